package console

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestFlashSaysOnceWhatAnActionDid(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		says := func(path string, change ...func(*http.Request)) bool {
			return strings.Contains(w.ask("GET", path, nil, change...).body, `class="flash`)
		}
		if says("/tenant?id=good&done=suspended") {
			t.Error("an address makes the page say that the tenant is suspended")
		}
		r := w.ask("POST", "/tenant/suspend", url.Values{"tenant": {"good"}})
		target, key := r.header.Get("Location"), with(cookie(r, flashCookie))
		if says(target, key, header("HX-Request", "true")) {
			t.Error("a part of a page takes the flash")
		}
		if !says(target, key) {
			t.Error("the page after the action says nothing of it")
		}
		if says(target, key) {
			t.Error("it says it again when it is reloaded")
		}
	})
}

func TestFlashesAreBoundedAndExpire(t *testing.T) {
	f, now := flashes{all: map[string]flash{}}, time.Now()
	for range 2 * maxFlashes {
		f.put(flash{Text: "a"}, now)
	}
	if n := len(f.all); n > maxFlashes {
		t.Errorf("%d flashes wait", n)
	}
	if key := f.put(flash{Text: "b"}, now); f.take(key, now.Add(2*flashLife)) != nil {
		t.Error("a flash is shown long after its action")
	}
}

func TestUnknownPagesKeepTheNavigation(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		for _, p := range [][2]string{{"GET", "/nowhere"}, {"GET", "/tenant/suspend"}, {"POST", "/nowhere"},
			{"GET", "/assets/none.js"}, {"GET", "/dead/x"}} {
			r := w.ask(p[0], p[1], nil)
			if r.status != http.StatusNotFound || !strings.Contains(r.body, `<nav aria-label="Pages">`) ||
				!strings.Contains(r.body, "console.css") {
				t.Errorf("%s %s: %d %s", p[0], p[1], r.status, r.body)
			}
		}
	})
}
