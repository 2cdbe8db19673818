package worker_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// recovery is how soon everything must be done after Papermap works again.
const recovery = 30 * time.Second

// paused is a check that the worker is paused, for this reason.
func (i *instance) paused(reason string) func() error {
	return func() error {
		s := i.State(i.world.t.Context())
		if !s.Ready || s.Consuming != "paused" || len(s.Reasons) != 1 || !strings.Contains(s.Reasons[0], reason) {
			return fmt.Errorf("state is %+v, want ready, paused, because of %q", s, reason)
		}
		return nil
	}
}

// paused is a check that every worker is paused, for this reason.
func (w *world) paused(reason string) func() error {
	return func() error {
		for _, i := range w.workers {
			if err := i.paused(reason)(); err != nil {
				return err
			}
		}
		return nil
	}
}

// consuming counts the workers that consume and have nothing to complain of.
func (w *world) consuming() int {
	n := 0
	for _, i := range w.workers {
		if s := i.State(w.t.Context()); s.Ready && s.Consuming == "yes" && len(s.Reasons) == 0 {
			n++
		}
	}
	return n
}

// pausesLogged counts the pauses that the log tells of.
func (w *world) pausesLogged() int {
	return strings.Count(w.logs.String(), `"msg":"paused creating dashboards`)
}

func TestWhilePapermapCannotBeWorkedWithEventsWaitAndNoneDies(t *testing.T) {
	onBoth(t, testWhilePapermapCannotBeWorkedWithEventsWaitAndNoneDies)
}

func testWhilePapermapCannotBeWorkedWithEventsWaitAndNoneDies(t *testing.T) {
	const slots = 4
	var led atomic.Int64 // to where the redirect points
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
	t.Cleanup(elsewhere.Close)
	for _, c := range []struct {
		name    string
		reason  string
		most    int  // create requests of a worker before and during the pause
		certain bool // that none of them was processed
		breakIt func(w *world)
		mend    func(w *world)
	}{
		{
			"revoked key", "refuses the credentials", slots, true,
			func(w *world) { w.sim.RevokeKey("ak_a") }, func(w *world) { w.sim.AddKey("ws-a", workspaceA.Key) },
		}, {
			"403", "refuses the credentials", slots, true,
			func(w *world) { w.setFaults("status=403") }, func(w *world) { w.setFaults() },
		}, {
			"404", "PAPERMAP_API_URL", slots, true,
			func(w *world) { w.setFaults("status=404") }, func(w *world) { w.setFaults() },
		}, {
			"redirect", "PAPERMAP_API_URL", slots, true,
			func(w *world) {
				w.intercept(func(rw http.ResponseWriter, r *http.Request) {
					http.Redirect(rw, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
				})
			}, func(w *world) { w.intercept(nil) },
		}, {
			"500 on everything", "keep failing", 8 + slots, false,
			func(w *world) { w.setFaults("status=500") }, func(w *world) { w.setFaults() },
		}, {
			"500 on creates alone", "keep failing", 20, false, // some are trials: the probes succeed
			func(w *world) { w.setFaults("on=create status=500") }, func(w *world) { w.setFaults() },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{config: func(c *worker.Config) { c.Concurrency, c.MaxAttempts = slots, 1 }})
			w.create("before", "suspended-later")
			eventually(t, soon, w.are(repo.Active, "before", "suspended-later"))
			good := w.front.seen(http.MethodPost)

			c.breakIt(w)
			tenants := names("t", 20)
			w.create(tenants...)
			eventually(t, soon, w.paused(c.reason))
			eventually(t, soon, func() error { // they probe, and by reads
				if n := w.front.seen(http.MethodGet); n < 2*len(w.workers) {
					return fmt.Errorf("%d probes so far", n)
				}
				return nil
			})
			if n, most := w.front.seen(http.MethodPost)-good, c.most*len(w.workers); n > most {
				t.Errorf("%d requests before and during the pause, want at most %d", n, most)
			}
			w.must(w.paused("")())

			// Meanwhile the rest of the work goes on.
			w.publish(events.TypeTenantSuspended, object("tenant_id", "suspended-later"))
			eventually(t, soon, w.are(repo.Suspended, "suspended-later"))
			w.refused("embed-token", object("tenant_id", "suspended-later"), 403, "TENANT_SUSPENDED")
			w.token(object("tenant_id", "before"))
			if n := w.waiting(); n != len(tenants) {
				t.Errorf("%d events wait in the stream, want %d", n, len(tenants))
			}

			c.mend(w)
			eventually(t, recovery, w.are(repo.Active, tenants...))
			if w.consuming() == 0 {
				t.Errorf("no worker says that it consumes: %+v", w.workers[0].State(t.Context()))
			}
			eventually(t, recovery, func() error {
				if n := w.consuming(); n < len(w.workers) { // a replica that was left no event is still to try its one dashboard
					tenants = append(tenants, fmt.Sprintf("late-%d", len(tenants)))
					w.create(tenants[len(tenants)-1])
					return fmt.Errorf("%d of %d workers consume", n, len(w.workers))
				}
				return w.are(repo.Active, tenants...)()
			})
			if n := len(w.dead()); n > 0 {
				t.Errorf("%d dead letters", n)
			}
			if n := len(w.sim.Dashboards()); n != len(tenants)+2 {
				t.Errorf("%d dashboards for %d tenants", n, len(tenants)+2)
			}
			for _, tenant := range tenants {
				if c.certain && strings.Contains(w.outcomes(tenant), "unknown") {
					t.Errorf("%s: attempts %s, though nothing was processed", tenant, w.outcomes(tenant))
				}
			}
			if n := w.pausesLogged(); n != len(w.workers) {
				t.Errorf("the log tells of %d pauses", n)
			}
			if n := led.Load(); n > 0 {
				t.Errorf("%d redirects were followed", n)
			}
		})
	}
}

func TestAPausedWorkspaceDoesNotPauseAnother(t *testing.T) {
	onBoth(t, testAPausedWorkspaceDoesNotPauseAnother)
}

func testAPausedWorkspaceDoesNotPauseAnother(t *testing.T) {
	w := start(t, options{})
	w.sim.RevokeKey("ak_b")
	closed := names("b", 10)
	inB := func(tenant string) {
		w.publish(events.TypeTenantCreated, object("tenant_id", tenant, "name", tenant, "workspace_id", "ws-b"))
	}
	for _, tenant := range closed[:5] {
		inB(tenant)
	}
	eventually(t, soon, w.paused("workspace ws-b is paused"))
	for _, tenant := range closed[5:] {
		inB(tenant)
	}
	for n := range 2 { // for more than one fetch
		eventually(t, soon, func() error {
			if probes := w.front.seen(http.MethodGet); probes <= n {
				return fmt.Errorf("%d probes", probes)
			}
			return nil
		})
		open := names(fmt.Sprintf("a-%d", n), 10)
		w.create(open...)
		eventually(t, soon, w.are(repo.Active, open...))
	}
	eventually(t, soon, func() error {
		if n := w.waiting(); n != len(closed) {
			return fmt.Errorf("%d events wait, want %d", n, len(closed))
		}
		return nil
	})
	w.sim.AddKey("ws-b", workspaceB.Key)
	eventually(t, recovery, w.are(repo.Active, closed...))
}

func TestOurOwnRateLimitIsNoPauseAndNoFailure(t *testing.T) {
	onBoth(t, testOurOwnRateLimitIsNoPauseAndNoFailure)
}

func testOurOwnRateLimitIsNoPauseAndNoFailure(t *testing.T) {
	w := start(t, options{config: func(c *worker.Config) { c.MaxRPS, c.MaxAttempts = 10, 1 }})
	tenants := names("t", 80*len(w.workers)) // each worker has a limit of its own
	began := time.Now()
	w.create(tenants...)
	eventually(t, soon, w.are(repo.Active, tenants...))
	if took := time.Since(began); took < 7*time.Second {
		t.Errorf("80 requests of each worker at 10 a second took %v", took)
	}
	if n := w.pausesLogged(); n != 0 || len(w.dead()) != 0 {
		t.Errorf("%d pauses, %d dead letters", n, len(w.dead()))
	}
}

func TestAThousandDeferredEventsDelayNoHealthyOne(t *testing.T) {
	onBoth(t, testAThousandDeferredEventsDelayNoHealthyOne)
}

func testAThousandDeferredEventsDelayNoHealthyOne(t *testing.T) {
	for answer, tries := range map[string]int{
		"status=429 retry-after=60": 1, "status=503 retry-after=60": 1,
		"status=429 retry-after=1": 4, // by then they do not all come back every second
	} {
		t.Run(answer, func(t *testing.T) {
			w := start(t, options{faults: []string{"title=slow " + answer}, config: func(c *worker.Config) { c.MaxAttempts = 1 }})
			slow := names("slow", 1000)
			w.create(slow...)
			eventually(t, soon, func() error {
				if n := w.front.seen(http.MethodPost); n < tries*len(slow) {
					return fmt.Errorf("%d requests", n)
				}
				return nil
			})
			for _, healthy := range names("healthy", 5) {
				w.create(healthy)
				eventually(t, 20*time.Second, func() error { // the slow ones hold nothing for a minute; that it takes milliseconds is measured by a benchmark
					if status := w.status(healthy); status != repo.Active {
						return fmt.Errorf("%s is %q", healthy, status)
					}
					return nil
				})
			}
			if n := w.pausesLogged(); n != 0 || len(w.dead()) != 0 {
				t.Errorf("%d pauses, %d dead letters", n, len(w.dead()))
			}
		})
	}
}

func TestATenantThatFailsWhileOthersSucceedDiesAfterMaxAttempts(t *testing.T) {
	onBoth(t, testATenantThatFailsWhileOthersSucceedDiesAfterMaxAttempts)
}

func testATenantThatFailsWhileOthersSucceedDiesAfterMaxAttempts(t *testing.T) {
	w := start(t, options{
		config: func(c *worker.Config) { c.MaxAttempts = 2 },
		faults: []string{"tenant=poison status=500"},
	})
	sequence := w.publish(events.TypeTenantCreated, object("tenant_id", "poison", "name", "N"), "Nats-Msg-Id", "the-event")
	others := 0
	eventually(t, soon, func() error {
		w.create(fmt.Sprintf("other-%d", others))
		others++
		return w.are(repo.Failed, "poison")()
	})
	eventually(t, soon, func() error {
		if n := len(w.dead()); n != 1 {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})
	h := w.dead()[0].Header
	for name, want := range map[string]string{
		"Papermap-Error-Code": "API_FAILED", "Papermap-Attempts": "2", "Papermap-Side-Effect": "maybe", "Papermap-Event-Id": "the-event",
		"Papermap-Stream-Sequence": fmt.Sprint(sequence), "Papermap-Original-Nats-Msg-Id": "the-event",
	} {
		if h.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, h.Get(name), want)
		}
	}
	if n := w.creates("poison"); n != 3 { // the first never counts: there is no moment before it
		t.Errorf("%d create requests, want 3", n)
	}
	if got := w.outcomes("poison"); got != "unknown unknown unknown" {
		t.Errorf("attempts %s", got)
	}
	eventually(t, soon, w.settled)
	if n := len(w.sim.Dashboards()); n != others || w.pausesLogged() > 0 {
		t.Errorf("%d dashboards for %d others, %d pauses", n, others, w.pausesLogged())
	}
}

func TestWhileEveryCreateFailsNobodyRunsOutOfAttempts(t *testing.T) {
	onBoth(t, testWhileEveryCreateFailsNobodyRunsOutOfAttempts)
}

func testWhileEveryCreateFailsNobodyRunsOutOfAttempts(t *testing.T) {
	w := start(t, options{config: func(c *worker.Config) { c.MaxAttempts = 1 }})
	w.create("before")
	eventually(t, soon, w.are(repo.Active, "before"))
	w.setFaults("on=create status=500")
	tenants := names("t", 2) // so few that there is no pause yet
	w.create(tenants...)
	eventually(t, soon, func() error {
		for _, tenant := range tenants {
			if n := w.creates(tenant); n < 3 {
				return fmt.Errorf("%s was tried %d times", tenant, n)
			}
		}
		return nil
	})
	if n := len(w.dead()); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	w.setFaults()
	eventually(t, recovery, w.are(repo.Active, tenants...))
}

func TestManyFailingTenantsDoNotKeepOthersOut(t *testing.T) {
	onBoth(t, testManyFailingTenantsDoNotKeepOthersOut)
}

func testManyFailingTenantsDoNotKeepOthersOut(t *testing.T) {
	failing := names("poison", 8) // each has failed once when the gate closes
	var faults []string
	for _, tenant := range failing {
		faults = append(faults, "tenant="+tenant+" status=500")
	}
	// With more workspaces a paused one's events are given back meanwhile, and it takes longer.
	w := start(t, options{faults: faults, config: func(c *worker.Config) { c.Workspaces = c.Workspaces[:1] }})
	w.create(failing...)
	eventually(t, soon, w.paused("keep failing")) // nothing tells them from an API that is down
	eventually(t, soon, func() error {            // until those that failed are offered again
		if n := len(w.requests("create")); n < 10*len(w.workers) {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	others := names("other", 5)
	w.create(others...)
	eventually(t, recovery, w.are(repo.Active, others...))
	if n := len(w.dead()); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	if slices.ContainsFunc(others, func(tenant string) bool { return w.creates(tenant) != 1 }) {
		t.Error("more than one request for a good tenant")
	}
}
