package ops

import (
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"papermap-worker/repo"
)

// A route that changes something has its request here, and the action that the audit log names. To mint
// a token is no action: it has its line in the log.
var auditedRoutes = map[string]struct {
	body, action  string
	byTransaction bool // else by an event
}{
	"POST /api/v1/dashboards":                         {`{"tenant_id":"org-1","name":"A"}`, "create", false},
	"DELETE /api/v1/dashboards/{tenant_id}":           {`{"reason":"left"}`, "delete", false},
	"POST /api/v1/dashboards/{tenant_id}/suspend":     {`{"reason":"unpaid"}`, "suspend", false},
	"POST /api/v1/dashboards/{tenant_id}/resume":      {`{"reason":"paid"}`, "resume", false},
	"PUT /api/v1/usage/budgets/{tenant_id}":           {`{"credits":10}`, "budget-set", true},
	"DELETE /api/v1/usage/budgets/{tenant_id}":        {"", "budget-unset", true},
	"POST /api/v1/dashboards/{tenant_id}/embed-token": {},
}

func auditLog(w *world) []repo.AuditEntry {
	w.t.Helper()
	list, err := w.DB.AuditLog(w.t.Context(), repo.AuditFilter{}, 1000)
	w.Must(err)
	return list
}

func TestAuditLogHasEveryChangeByREST(t *testing.T) {
	for _, r := range routes {
		if r.method == "GET" {
			continue
		}
		name := r.method + " " + r.path
		t.Run(strings.ReplaceAll(strings.ReplaceAll(name, "/", " "), " ", "_"), func(t *testing.T) {
			test, ok := auditedRoutes[name]
			if !ok {
				t.Fatal("the audit log is not tested for this route")
			}
			virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
				w.Create("org-1")
				w.Eventually(w.Are(repo.Active, "org-1"))
				w.Must(w.DB.SetBudget(t.Context(), repo.Budget{TenantID: "org-1", Credits: "5",
					Thresholds: repo.Percents{80}}, nil))
				ann := hs256(t, jwt.MapClaims{"scope": adminScope, "sub": "ann"})
				a := w.ask(r.method, strings.ReplaceAll(r.path, "{tenant_id}", "org-1"), ann, test.body)
				if a.status >= 300 {
					t.Fatalf("%d %s", a.status, a.body)
				}
				list := auditLog(w)
				if test.action == "" {
					if len(list) > 0 {
						t.Errorf("the audit log has %+v", list)
					}
					return
				}
				if len(list) != 1 {
					t.Fatalf("the audit log has %+v, want one entry", list)
				}
				e := list[0]
				if e.Actor != "https://issuer ann" || e.Via != "rest" || e.Action != test.action ||
					e.TenantID != "org-1" || (e.Detail == "") != (test.body == "") {
					t.Errorf("%+v", e)
				}
				if test.byTransaction != (e.EventID == "") || e.EventID != "" && !published(w, e.EventID) {
					t.Errorf("no event %q is in the stream", e.EventID)
				}
			})
		})
	}
}

// A tenant's own create is an action of its caller's.
func TestAuditLogHasATenantsOwnCreate(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		own := hs256(t, jwt.MapClaims{"scope": createScope, "tenant_id": "org-2", "sub": "bob\x00"})
		w.ok(w.ask("POST", api, own, `{"tenant_id":"org-2","name":"Acme"}`), 201)
		list := auditLog(w)
		if len(list) != 1 || list[0].Action != "create" || list[0].Actor != "https://issuer bob" ||
			list[0].TenantID != "org-2" || !published(w, list[0].EventID) {
			t.Errorf("the audit log has %+v", list)
		}
		w.ok(w.ask("POST", api, own, `{"tenant_id":"org-2","name":"Acme"}`), 201) // publishes nothing
		if again := auditLog(w); len(again) != 1 {
			t.Errorf("the audit log has %+v", again)
		}
	})
}

// What was refused before it was tried is no action.
func TestAuditLogHasNoRefusedRequests(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)
		w.refused(w.ask("POST", api, root, `{"tenant_id":"org-1"}`), 400, "name")
		w.refused(w.ask("POST", api, root, `{"tenant_id":"org-1","name":"x","workspace_id":"none"}`),
			400, "workspace")
		w.refused(w.ask("POST", api+"/org-1/suspend", hs256(t, jwt.MapClaims{"tenant_id": "org-1"}), ""),
			403, "")
		w.ask("DELETE", api+"/org-1", "", "")
		if list := auditLog(w); len(list) > 0 {
			t.Errorf("the audit log has %+v", list)
		}
	})
}

func TestAuditLogHasWhatCouldNotBePublished(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		w.Create("org-1")
		stream, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)
		full := stream.CachedInfo().Config
		full.MaxMsgs = 1
		_, err = w.JS.UpdateStream(t.Context(), full)
		w.Must(err)
		if a := w.ask("POST", api+"/org-1/suspend", admin(t), ""); a.status != 503 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		list := auditLog(w)
		if len(list) != 2 || list[1].Action != "suspend" || list[0].Action != "suspend.failed" ||
			list[0].EventID != list[1].EventID || list[0].EventID == "" || list[0].Detail == "" {
			t.Errorf("the audit log has %+v", list)
		}
	})
}

// published says whether the stream has an event of that id.
func published(w *world, id string) bool {
	w.t.Helper()
	events, _, err := w.Workers[0].Bus.TenantEvents(w.t.Context(), "org-1", 100, 1000)
	w.Must(err)
	others, _, err := w.Workers[0].Bus.TenantEvents(w.t.Context(), "org-2", 100, 1000)
	w.Must(err)
	for _, e := range append(events, others...) {
		if e.ID == id {
			return true
		}
	}
	return false
}
