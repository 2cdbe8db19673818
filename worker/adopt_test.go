package worker_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// deadCodes lists the dead letters, as their event's id and code.
func (w *world) deadCodes() (list []string) {
	for _, d := range w.DeadLetters() {
		list = append(list, d.Header.Get("Papermap-Event-Id")+" "+d.Header.Get("Papermap-Error-Code")+" "+
			d.Header.Get("Papermap-Side-Effect"))
	}
	slices.Sort(list)
	return list
}

// adopt publishes a tenant.created that names a dashboard.
func (w *world) adopt(id, tenant, dashboard string, more ...string) {
	w.t.Helper()
	w.Publish(events.TypeTenantCreated,
		object(append([]string{"tenant_id", tenant, "name", tenant, "dashboard_id", dashboard}, more...)...),
		"Nats-Msg-Id", id)
}

func TestTenantCreatedAdoptsTheDashboardThatItNames(t *testing.T) {
	onBoth(t, options{}, func(t *testing.T, w *world) {
		w.Existing("acme", "old-1")
		w.adopt("e1", "acme", "old-1", "title", "Acme's own")
		w.Eventually(w.Are(repo.Active, "acme"))
		token := w.Token("acme")
		if token.DashboardID != "old-1" {
			t.Errorf("a token for dashboard %s", token.DashboardID)
		}
		w.Opens(token, "Old acme")
		w.Eventually(w.Handled)
		w.Eventually(w.Relayed)
		if diff := cmp.Diff([]string{"dashboard.created old-1 Acme's own"}, w.Announced("acme")); diff != "" {
			t.Errorf("events out (-want +got):\n%s", diff)
		}

		w.adopt("e2", "acme", "old-1")
		w.adopt("e3", "acme", "old-2")
		w.adopt("e4", "rival", "old-1")
		w.PublishAt(time.Now().Add(-time.Hour), events.TypeTenantDeleted, "acme") // before all of them
		w.Eventually(w.Handled)
		want := []string{"e3 DASHBOARD_CONFLICT none", "e4 DASHBOARD_TAKEN none"}
		if diff := cmp.Diff(want, w.deadCodes()); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
		if n := len(w.Requests("create")); n != 0 || w.Status("acme") != repo.Active ||
			w.Status("rival") != "" {
			t.Errorf("%d creates, acme is %s, rival is %q", n, w.Status("acme"), w.Status("rival"))
		}
	})
}

// Two tenants want one dashboard, on two replicas.
func TestRivalsForADashboardHaveOneWinner(t *testing.T) {
	onBoth(t, options{Workers: 2}, func(t *testing.T, w *world) {
		const rounds = 10
		var publishers sync.WaitGroup
		for round := range rounds {
			id := fmt.Sprint("dash-", round)
			for _, side := range []string{"left-", "right-"} {
				w.Existing(side+id, side+id) // so that each has one that the books know
				publishers.Go(func() { w.adopt(side+id, side+id, id) })
			}
		}
		publishers.Wait()
		w.Eventually(w.Handled)
		won := map[string]int{}
		for round := range rounds {
			id := fmt.Sprint("dash-", round)
			for _, side := range []string{"left-", "right-"} {
				lost := slices.Contains(w.deadCodes(), side+id+" DASHBOARD_TAKEN none")
				if has := w.Status(side+id) == repo.Active; has == lost {
					t.Errorf("%s: has it %v, is a dead letter %v", side+id, has, lost)
				} else if has {
					won[id]++
					w.Existing(side+id, id)
				}
			}
			if won[id] != 1 {
				t.Errorf("%s has %d winners", id, won[id])
			}
		}
		if n := len(w.DeadLetters()); n != rounds {
			t.Errorf("%d dead letters, want %d", n, rounds)
		}
	})
}

// While a create is under way an adoption waits, and then finds another dashboard.
func TestAdoptionWaitsForTheCreate(t *testing.T) {
	virtual(t, options{Faults: []string{"on=create tenant=busy delay=8s count=1"}},
		func(t *testing.T, w *world) {
			w.Create("busy")
			w.Eventually(w.Are(repo.Creating, "busy"))
			w.adopt("late", "busy", "old")
			w.Eventually(w.Handled)
			if diff := cmp.Diff([]string{"late DASHBOARD_CONFLICT none"}, w.deadCodes()); diff != "" {
				t.Errorf("dead letters (-want +got):\n%s", diff)
			}
			if w.Status("busy") != repo.Active || w.Outcomes("busy") != "created" {
				t.Errorf("the tenant is %s, its attempts %s", w.Status("busy"), w.Outcomes("busy"))
			}
		})
}

// An operator's correction takes effect at once in all replicas, and is announced.
func TestReplaceTakesEffectAtOnce(t *testing.T) {
	onBoth(t, options{Workers: 2}, func(t *testing.T, w *world) {
		w.Create("acme")
		w.Eventually(w.Are(repo.Active, "acme"))
		old := w.Token("acme").DashboardID
		w.Existing("acme", "right-1")
		_, err := w.Workers[0].Replace(t.Context(), "acme", old, "right-1")
		w.Must(err)
		w.Eventually(workertest.That("tokens are for the right dashboard", func() bool {
			return w.Token("acme").DashboardID == "right-1"
		}))
		w.Eventually(w.Relayed)
		want := []string{"dashboard.created " + old + " Dashboard - acme",
			"dashboard.created right-1 Dashboard - acme"}
		if diff := cmp.Diff(want, w.Announced("acme")); diff != "" {
			t.Errorf("events out (-want +got):\n%s", diff)
		}
		facts, report, err := w.Workers[1].Report(t.Context(), "acme")
		w.Must(err)
		if orphans := facts.PossibleOrphans(); len(orphans) != 1 || orphans[0].DashboardID != old {
			t.Errorf("possible orphans: %+v", orphans)
		}
		if !slices.ContainsFunc(report.History, func(h worker.HistoryEntry) bool {
			return h.Kind == "dashboard" && h.ID == old
		}) {
			t.Errorf("the history does not tell of it: %+v", report.History)
		}
	})
}

func createMissing(on bool) options {
	return options{Config: func(c *worker.Config) { c.CreateMissing = on }}
}

func TestTokenRequestCreatesAMissingTenant(t *testing.T) {
	onBoth(t, createMissing(true), func(t *testing.T, w *world) {
		const request = `{"tenant_id":"new one","name":"New","create_missing":true}`
		if after := w.Refused("embed-token", request, 409, "DASHBOARD_NOT_READY"); after < 1 {
			t.Errorf("retry_after %d", after)
		}
		w.Eventually(w.Are(repo.Active, "new one"))
		w.Opens(w.TokenFor(request), "Dashboard - New")

		for _, bad := range []string{
			`{"tenant_id":"x","create_missing":true}`,
			`{"tenant_id":"x","name":" ","create_missing":true}`,
			`{"tenant_id":"x","name":"X","create_missing":"true"}`,
			`{"tenant_id":"x","name":1,"create_missing":true}`,
			`{"tenant_id":"x","name":"X","create_missing":true,"workspace_id":"other"}`,
			`{"tenant_id":"x","name":"X","Create_missing":true}`,
		} {
			w.Refused("embed-token", bad, 400, "INVALID_REQUEST")
		}
		w.Refused("embed-token", `{"tenant_id":"x","name":"X","create_missing":false}`,
			404, "TENANT_NOT_FOUND")
		w.Refused("embed-token.x", `{"name":"X","create_missing":true}`, 404, "TENANT_NOT_FOUND")

		w.PublishAt(time.Now(), events.TypeTenantDeleted, "new one")
		w.Eventually(w.Are(repo.Deleted, "new one"))
		w.Refused("embed-token", request, 410, "TENANT_DELETED")
		w.Eventually(w.Handled)
		if n := len(w.Stored("PAPERMAP", "papermap.events.tenant.created")); n != 1 {
			t.Errorf("%d events tenant.created", n)
		}
	})
}

func TestTokenRequestCreatesNothingUnlessPermitted(t *testing.T) {
	virtual(t, createMissing(false), func(t *testing.T, w *world) {
		w.Refused("embed-token", `{"tenant_id":"x","name":"X","create_missing":true}`,
			404, "TENANT_NOT_FOUND")
		if n := len(w.Stored("PAPERMAP", "papermap.events.tenant.created")); n != 0 {
			t.Errorf("%d events tenant.created", n)
		}
	})
}

// A caller makes up names for ten seconds.
func TestTokenRequestsForMadeUpNamesAreLimited(t *testing.T) {
	virtual(t, createMissing(true), func(t *testing.T, w *world) {
		w.Create("real")
		w.Eventually(w.Are(repo.Active, "real"))
		codes := map[string]int{}
		for i := range 1000 {
			body := fmt.Sprintf(`{"tenant_id":"made-up-%d","name":"x","create_missing":true}`, i)
			codes[workertest.Refusal(w.Request("embed-token", body))]++
			time.Sleep(10 * time.Millisecond)
		}
		w.Token("real")
		var times []time.Time
		for _, msg := range w.Stored("PAPERMAP", "papermap.events.tenant.created") {
			if strings.Contains(string(msg.Data), "made-up") {
				times = append(times, msg.Time)
			}
		}
		for i := range times[:len(times)-10] {
			if d := times[i+10].Sub(times[i]); d < 990*time.Millisecond {
				t.Errorf("11 events within %s", d)
			}
		}
		if len(times) < 90 || codes["409"] != len(times) || codes["429"] != 1000-len(times) {
			t.Errorf("%d events, answers %v", len(times), codes)
		}
	})
}
