package console

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"papermap-worker/events"
	"papermap-worker/repo"
)

func TestDeadLettersAreShownReplayedAndDiscarded(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		list := w.letters(2)
		if got := text(w.get("/dead").body); !strings.Contains(got, "API_REFUSED") ||
			!strings.Contains(got, "INVALID_JSON") {
			t.Errorf("%s", got)
		}
		if got := text(w.get("/dead?code=API_REFUSED").body); strings.Contains(got, "INVALID_JSON") {
			t.Errorf("the filter lets others through:\n%s", got)
		}
		if got := text(w.get(fmt.Sprintf("/dead/%d", list[0].Sequence)).body); !strings.Contains(got,
			`"name": "The refused ones"`) || !strings.Contains(got, "nothing was made at Papermap") {
			t.Errorf("%s", got)
		}
		if got := text(w.get(fmt.Sprintf("/dead/%d", list[1].Sequence)).body); !strings.Contains(got,
			`{"tenant_id":"broken"`) || !strings.Contains(got, "Publish a valid one from its source") {
			t.Errorf("%s", got)
		}
		w.act("/dead/replay", url.Values{"sequence": {fmt.Sprint(list[0].Sequence)}})
		w.becomes("refused", repo.Active)
		w.act("/dead/discard", url.Values{"sequence": {fmt.Sprint(list[1].Sequence)}})
		w.letters(0)
		for _, action := range []string{"replay", "discard"} {
			if r := w.ask("POST", "/dead/"+action,
				url.Values{"sequence": {fmt.Sprint(list[0].Sequence)}}); r.status != http.StatusNotFound {
				t.Errorf("%s of what is gone: %d", action, r.status)
			}
		}
	})
}

func TestDeadLettersAreShownPageByPage(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		for range lettersShown + 2 {
			w.Publish(events.TypeTenantCreated, `{}`)
		}
		w.letters(lettersShown + 2)
		first := w.get("/dead").body
		next := regexp.MustCompile(`rel="next" href="([^"]+)"`).FindStringSubmatch(first)
		if n := strings.Count(first, `name="sequence"`); n != lettersShown || next == nil {
			t.Fatalf("%d on the first page, next %q", n, next)
		}
		if n := strings.Count(w.get(strings.ReplaceAll(next[1], "&amp;", "&")).body,
			`name="sequence"`); n != 2 {
			t.Errorf("%d on the second page, want 2", n)
		}
	})
}

func TestAllDeadLettersOfAFilterAreDiscardedAcrossPages(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		t.Cleanup(func() { // without their dead letters, the events look like any that nobody handled
			stream, err := w.JS.Stream(context.Background(), "PAPERMAP")
			w.Must(err)
			w.Must(stream.Purge(context.Background()))
		})
		for range lettersShown + 2 {
			w.Publish(events.TypeTenantCreated, `{}`)
		}
		w.Publish(events.TypeTenantSuspended, `{}`)
		list := w.letters(lettersShown + 3)
		page := w.get("/dead?type=" + events.TypeTenantCreated).body
		last := regexp.MustCompile(`name="last" value="([0-9]+)"`).FindStringSubmatch(page)
		if last == nil || !strings.Contains(page, `data-count="27"`) {
			t.Fatalf("it does not count them:\n%s", text(page))
		}
		w.Publish(events.TypeTenantCreated, `{}`) // after the visitor saw the number
		w.letters(len(list) + 1)
		got := text(w.act("/dead/discard", url.Values{"all": {"1"}, "last": {last[1]},
			"type": {events.TypeTenantCreated}}).body)
		if !strings.Contains(got, "27 dead letters are deleted.") {
			t.Errorf("%s", got)
		}
		w.letters(2)
	})
}

func TestReplayIsThePrimaryButtonOnlyWhereItIsAdvised(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		for i, d := range w.letters(2) { // of a refusal, and of an event that is no JSON
			page := w.get(fmt.Sprintf("/dead/%d", d.Sequence)).body
			if got := strings.Contains(page, `<button class="primary">Replay</button>`); got != (i == 0) {
				t.Errorf("%s: primary is %t", d.Code, got)
			}
		}
	})
}
