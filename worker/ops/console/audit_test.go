package console

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// What the audit log has of each action, in a world in trouble. A preview mints a token, which has its
// line in the log.
var auditedActions = map[string]struct {
	form   url.Values
	action string
	tenant string
	event  bool // it is done by an event, or is about one
}{
	"POST /tenant/suspend":   {url.Values{"tenant": {"good"}, "reason": {"unpaid"}}, "suspend", "good", true},
	"POST /tenant/resume":    {url.Values{"tenant": {"good"}}, "resume", "good", true},
	"POST /tenant/resolve":   {url.Values{"tenant": {"held"}, "dashboard": {""}}, "resolve", "held", false},
	"POST /tenant/dashboard": {url.Values{"tenant": {"held"}, "dashboard": {"x"}}, "", "", false},
	"POST /tenant/recreate":  {url.Values{"tenant": {"held"}}, "recreate", "held", false},
	"POST /tenant/preview":   {url.Values{"tenant": {"good"}}, "", "", false},
	"POST /attempt/resolve":  {url.Values{"attempt": {""}}, "resolve-attempt", "held", false},
	"POST /dead/replay":      {url.Values{"sequence": {"1"}}, "replay-dead-letter", "refused", true},
	"POST /dead/discard":     {url.Values{"sequence": {"1"}}, "discard-dead-letter", "refused", true},
	"POST /usage/sync":       {nil, "sync", "", true},
}

func (w *world) auditLog() []repo.AuditEntry {
	w.t.Helper()
	list, err := w.DB.AuditLog(w.t.Context(), repo.AuditFilter{}, 1000)
	w.Must(err)
	return list
}

func TestAuditLogHasEveryAction(t *testing.T) {
	for _, r := range routes {
		if r.access != act {
			continue
		}
		t.Run(strings.ReplaceAll(strings.TrimPrefix(r.pattern, "POST /"), "/", "_"), func(t *testing.T) {
			test, ok := auditedActions[r.pattern]
			if !ok {
				t.Fatal("the audit log is not tested for this action")
			}
			virtual(t, Config{Token: token}, inTrouble, func(t *testing.T, w *world) {
				w.trouble()
				w.login()
				form := url.Values{}
				for name, values := range test.form {
					form[name] = values
				}
				if form.Has("attempt") {
					list, err := w.DB.PossibleOrphans(t.Context())
					w.Must(err)
					form.Set("attempt", list[0].ID)
				}
				if form.Has("dashboard") {
					form.Set("dashboard", w.Dashboards("held")[0].ID)
				}
				if a := w.ask("POST", strings.TrimPrefix(r.pattern, "POST "), form); a.status >= 400 {
					t.Fatalf("%d %s", a.status, text(a.body))
				}
				list := w.auditLog()
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
				if e.Actor != "console" || e.Via != "console" || e.Action != test.action ||
					e.TenantID != test.tenant || (e.EventID != "") != test.event {
					t.Errorf("%+v", e)
				}
			})
		})
	}
}

func TestAuditLogHasTheRetryOfAFailedTenantAndWhoLoggedIn(t *testing.T) {
	file := usersFile(t, "olga:operator:"+hashed("operate-it-all"))
	virtual(t, Config{UsersFile: file}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		w.loginAs("olga", "operate-it-all")
		w.act("/tenant/recreate", url.Values{"tenant": {"refused"}})
		list := w.auditLog()
		if len(list) != 1 || list[0].Action != "retry" || list[0].Actor != "console:olga" ||
			list[0].TenantID != "refused" || list[0].EventID == "" {
			t.Fatalf("the audit log has %+v", list)
		}
		page := text(w.get("/tenant?id=refused").body)
		if !strings.Contains(page, "Action: retry by console:olga") {
			t.Errorf("the tenant's history does not name who retried: %s", page)
		}
	})
}

func TestAuditLogHasTheDashboardThatWasReplaced(t *testing.T) {
	virtual(t, Config{Token: token}, nil, func(t *testing.T, w *world) {
		w.login()
		w.Create("good")
		old := w.becomes("good", repo.Active).DashboardID
		w.act("/tenant/resolve", url.Values{"tenant": {"good"}, "dashboard": {"right"}, "replaces": {old}})
		list := w.auditLog()
		if len(list) != 1 || list[0].Action != "replace" || list[0].TenantID != "good" ||
			list[0].Detail != "dashboard right instead of "+old {
			t.Errorf("the audit log has %+v", list)
		}
		// so that the books are right
		w.act("/tenant/resolve", url.Values{"tenant": {"good"}, "dashboard": {old}, "replaces": {"right"}})
	})
}

// An action that its transaction refuses is not recorded; one that could not be done after it was
// recorded is recorded as failed.
func TestAuditLogSaysWhatFailed(t *testing.T) {
	virtual(t, Config{Token: token}, inTrouble, func(t *testing.T, w *world) {
		w.trouble()
		w.login()
		if a := w.ask("POST", "/tenant/resolve",
			url.Values{"tenant": {"good"}, "dashboard": {"x"}}); a.status != 409 {
			t.Fatal(a.status)
		}
		if list := w.auditLog(); len(list) > 0 {
			t.Errorf("the audit log has %+v", list)
		}
		stream, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)
		full := stream.CachedInfo().Config
		full.MaxMsgs = 1
		_, err = w.JS.UpdateStream(t.Context(), full)
		w.Must(err)
		w.ask("POST", "/dead/replay", url.Values{"sequence": {"1"}})
		var actions []string
		for _, e := range w.auditLog() {
			actions = append(actions, e.Action+" "+e.TenantID)
		}
		if !slices.Equal(actions,
			[]string{"replay-dead-letter.failed refused", "replay-dead-letter refused"}) {
			t.Errorf("the audit log has %q", actions)
		}
		w.letters(2) // it is still there
	})
}

func TestAuditPageShowsWhoDidWhat(t *testing.T) {
	virtual(t, Config{Token: token}, nil, func(t *testing.T, w *world) {
		w.login()
		if page := text(w.get("/audit").body); !strings.Contains(page, "Nobody has done anything yet.") {
			t.Errorf("an empty log: %s", page)
		}
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"good","name":"Good"}`)
		w.becomes("good", repo.Active)
		w.act("/tenant/suspend", url.Values{"tenant": {"good"}, "reason": {"<b>unpaid</b>"}})
		for range perPage {
			w.act("/usage/sync", nil)
		}
		first := w.get("/audit").body
		if page := text(first); strings.Count(page, " sync ") != perPage ||
			strings.Contains(page, "suspend ") || !strings.Contains(page, "Older →") {
			t.Errorf("the first page: %s", page)
		}
		older := first[strings.Index(first, `href="/audit?before=`)+len(`href="`):]
		page := text(w.get(older[:strings.Index(older, `"`)]).body)
		if !strings.Contains(page, "console console suspend good reason: <b>unpaid</b>") {
			t.Errorf("the second page: %s", page)
		}
		if page := text(w.get("/audit?tenant=good").body); strings.Count(page, " suspend ") != 1 ||
			strings.Contains(page, " sync ") {
			t.Errorf("of a tenant: %s", page)
		}
	})
}
