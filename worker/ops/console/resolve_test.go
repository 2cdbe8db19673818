package console

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"papermap-worker/repo"
)

// choose looks at a dashboard that a tenant might get.
func (w *world) choose(tenant, dashboard string) reply {
	w.t.Helper()
	return w.ask("POST", "/tenant/dashboard", url.Values{"tenant": {tenant}, "dashboard": {dashboard}})
}

// likeness is an id of the same form, of one digit alone.
func likeness(id string, digit rune) string {
	return strings.Map(func(r rune) rune {
		if r == '-' {
			return r
		}
		return digit
	}, id)
}

func TestAWrongDashboardIsLookedAtAndReplaced(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		old := w.becomes("good", repo.Active).DashboardID
		right := likeness(old, '0')
		w.Existing("good", right)

		page := w.choose("good", " "+right+" ")
		got := text(page.body)
		if page.status != http.StatusOK || !strings.Contains(got, "It has "+old+" It gets "+right) {
			t.Fatalf("%d %s", page.status, got)
		}
		if !strings.Contains(page.body, "<iframe src=") ||
			!strings.Contains(page.body, "dashboard-id="+right) {
			t.Errorf("no preview of it:\n%s", page.body)
		}
		if m, err := w.DB.Mapping(t.Context(), "good"); err != nil || m.DashboardID != old {
			t.Errorf("looking at it changed the tenant: %+v, %v", m, err)
		}

		confirm := url.Values{"tenant": {"good"}, "dashboard": {right}, "replaces": {old}}
		got = text(w.act("/tenant/resolve", confirm).body)
		if !strings.Contains(got, "The tenant is active and has dashboard ") ||
			!strings.Contains(got, "Dashboard "+right) ||
			!strings.Contains(got, "Dashboard "+old+" was replaced") {
			t.Errorf("%s", got)
		}
		if got := text(w.get("/attention").body); !strings.Contains(got, "orphaned: dashboard "+old) {
			t.Errorf("the replaced one is no possible orphan: %s", got)
		}
		list := w.auditLog()
		if len(list) != 1 || list[0].Action != "replace" || list[0].TenantID != "good" ||
			!strings.Contains(list[0].Detail, right) || !strings.Contains(list[0].Detail, old) {
			t.Errorf("the audit log has %+v", list)
		}
		confirm.Set("dashboard", "another")
		if r := w.ask("POST", "/tenant/resolve", confirm); r.status != http.StatusConflict {
			t.Errorf("with a form from before: %d %s", r.status, text(r.body))
		}
	})
}

func TestAnUnusualDashboardIsWarnedOf(t *testing.T) {
	virtual(t, Config{Dev: true}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		good := w.becomes("good", repo.Active).DashboardID
		if got := text(w.choose("held", "not a uuid").body); !strings.Contains(got, "Look closely") ||
			!strings.Contains(got, good) {
			t.Errorf("no warning: %s", got)
		}
		usual := likeness(good, '1')
		if r := w.choose("held", usual); r.status != http.StatusOK ||
			strings.Contains(text(r.body), "Look closely") {
			t.Errorf("a usual one: %d %s", r.status, text(r.body))
		}
		for what, test := range map[string]struct {
			tenant, dashboard string
			status            int
		}{
			"no id":                      {"held", " ", http.StatusBadRequest},
			"an id with a control":       {"held", "a\x01", http.StatusBadRequest},
			"another tenant's":           {"held", good, http.StatusConflict},
			"the same":                   {"good", good, http.StatusConflict},
			"of a tenant that failed":    {"refused", usual, http.StatusConflict},
			"of a tenant that is no one": {"nobody", usual, http.StatusNotFound},
		} {
			if r := w.choose(test.tenant, test.dashboard); r.status != test.status {
				t.Errorf("%s: %d %s, want %d", what, r.status, text(r.body), test.status)
			}
		}
	})
}
