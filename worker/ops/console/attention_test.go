package console

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

func TestHeldTenantIsResolvedWithTheDashboardFound(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		i := slices.IndexFunc(w.Simulator.Dashboards(),
			func(d simulator.Dashboard) bool { return d.TenantID == "held" })
		made := w.Simulator.Dashboards()[i]
		if page := w.get("/attention").body; !strings.Contains(page, made.Mark) {
			t.Errorf("the mark %s is not shown:\n%s", made.Mark, text(page))
		}
		for _, wrong := range []string{"", " ", strings.Repeat("x", 300), "a\x00b"} {
			if r := w.ask("POST", "/tenant/resolve",
				url.Values{"tenant": {"held"}, "dashboard": {wrong}}); r.status != http.StatusBadRequest {
				t.Errorf("%q: %d %s", wrong, r.status, text(r.body))
			}
		}
		if got := text(w.act("/tenant/resolve",
			url.Values{"tenant": {"held"}, "dashboard": {made.ID}}).body); !strings.Contains(got,
			"The tenant is active and has dashboard "+made.ID) ||
			!strings.Contains(got, "active has its dashboard") {
			t.Errorf("%s", got)
		}
		if m := w.becomes("held", repo.Active); m.DashboardID != made.ID {
			t.Errorf("dashboard %q, want %q", m.DashboardID, made.ID)
		}
		if r := w.ask("POST", "/tenant/resolve",
			url.Values{"tenant": {"held"}, "dashboard": {made.ID}}); r.status != http.StatusConflict {
			t.Errorf("a second time: %d %s", r.status, text(r.body))
		}
	})
}

func TestHeldAndFailedTenantsAreCreatedAgain(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		for _, id := range []string{"held", "refused"} {
			w.act("/tenant/recreate", url.Values{"tenant": {id}})
			w.becomes(id, repo.Active)
		}
		if r := w.ask("POST", "/tenant/recreate",
			url.Values{"tenant": {"good"}}); r.status != http.StatusConflict {
			t.Errorf("of an active tenant: %d", r.status)
		}
		page := w.get("/attention").body
		attempt := regexp.MustCompile(`name="attempt" value="([^"]+)"`).FindStringSubmatch(page)
		if attempt == nil {
			t.Fatalf("the create of the held tenant is no possible orphan:\n%s", text(page))
		}
		got := text(w.act("/attempt/resolve", url.Values{"attempt": {attempt[1]}}).body)
		if !strings.Contains(got, "Possible orphans These create") || !strings.Contains(got, "None.") {
			t.Errorf("%s", got)
		}
	})
}
