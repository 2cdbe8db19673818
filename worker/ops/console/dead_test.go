package console

import (
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
			`{"tenant_id":"broken"`) || !strings.Contains(got, "Let its publisher send a right one") {
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
		for range perPage + 2 {
			w.Publish(events.TypeTenantCreated, `{}`)
		}
		w.letters(perPage + 2)
		first := w.get("/dead").body
		next := regexp.MustCompile(`rel="next" href="([^"]+)"`).FindStringSubmatch(first)
		if n := strings.Count(first, `name="sequence"`); n != perPage || next == nil {
			t.Fatalf("%d on the first page, next %q", n, next)
		}
		if n := strings.Count(w.get(strings.ReplaceAll(next[1], "&amp;", "&")).body,
			`name="sequence"`); n != 2 {
			t.Errorf("%d on the second page, want 2", n)
		}
	})
}
