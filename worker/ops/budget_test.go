package ops

import (
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

func TestBudgetsAreSetShownAndRemoved(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)
		const budgets = "/api/v1/usage/budgets/"
		w.refused(w.ask("GET", budgets+"org-1", root, ""), 404, "No budget")
		w.refused(w.ask("DELETE", budgets+"org-1", root, ""), 404, "No budget")
		for body, want := range map[string]string{
			`{"credits":"1000.50","thresholds":[100,80,80]}`: `"credits":"1000.5","thresholds":[80,100]}`,
			`{"credits":12.5}`:                   `"credits":"12.5","thresholds":[80,100]}`,
			`{"credits":"0","thresholds":null}`:  `"credits":"0","thresholds":[80,100]}`,
			`{"credits":"7","thresholds":[150]}`: `"credits":"7","thresholds":[150]}`,
		} {
			want = `{"tenant_id":"org-1",` + want
			for _, a := range []answer{
				w.ok(w.ask("PUT", budgets+"org-1", root, body), 200),
				w.ok(w.ask("GET", budgets+"org-1/", root, ""), 200),
			} {
				if got := strings.TrimSpace(string(a.body)); got != want {
					t.Errorf("%s: %s, want %s", body, got, want)
				}
			}
		}
		for _, path := range []string{budgets + "*", budgets + "%2A"} {
			if got := w.ok(w.ask("PUT", path, root, `{"credits":"5"}`), 200).field("tenant_id"); got != "*" {
				t.Errorf("%s is of %q", path, got)
			}
		}
		if a := w.ask("DELETE", budgets+"org-1", root, ""); a.status != 204 || len(a.body) > 0 {
			t.Errorf("%d %s", a.status, a.body)
		}
		w.refused(w.ask("GET", budgets+"org-1", root, ""), 404, "No budget")
		w.ok(w.ask("GET", budgets+"*", root, ""), 200)
	})
}

func TestBudgetsThatAreWrongAreRefused(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		for body, detail := range map[string]string{
			``:                                      "credits",
			`{}`:                                    "credits",
			`[]`:                                    "not a JSON object",
			`{"credits":null}`:                      "credits",
			`{"credits":-1}`:                        "credits",
			`{"credits":"1e3"}`:                     "credits",
			`{"credits":1e3}`:                       "credits",
			`{"credits":true}`:                      "credits",
			`{"credits":["1"]}`:                     "credits",
			`{"credits":"1","Credits":"2"}`:         "only by case",
			`{"credits":"1","thresholds":[]}`:       "thresholds",
			`{"credits":"1","thresholds":[0]}`:      "thresholds",
			`{"credits":"1","thresholds":[80.5]}`:   "thresholds",
			`{"credits":"1","thresholds":["80"]}`:   "thresholds",
			`{"credits":"1","thresholds":"80,100"}`: "thresholds",
		} {
			w.refused(w.ask("PUT", "/api/v1/usage/budgets/org-1", admin(t), body), 400, detail)
		}
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			own := w.ask(method, "/api/v1/usage/budgets/org-1",
				hs256(t, jwt.MapClaims{"tenant_id": "org-1"}), `{"credits":"1"}`)
			w.refused(own, 403, "Access denied")
		}
	})
}
