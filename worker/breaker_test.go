package worker_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// Promise 5, under load: tenants keep coming while the API answers only 401, and then only 500.
func TestOutageLosesNoEventAndRepeatsNoCreate(t *testing.T) {
	const outage = time.Minute // twice
	onBoth(t, options{}, func(t *testing.T, w *world) {
		w.Create("before", "suspended")
		w.Eventually(w.Are(repo.Active, "before", "suspended"))
		for _, status := range []int{401, 500} {
			w.SetFaults(fmt.Sprintf("status=%d", status))
			// so many at once that each gate shuts, before any is tried again
			tenants := names(fmt.Sprint("first-", status), 20*len(w.Workers))
			w.Create(tenants...)
			w.Eventually(w.paused("workspace ws-a is paused"))
			load := time.NewTicker(time.Second)
			defer load.Stop()
			for end := time.Now().Add(outage); time.Now().Before(end); <-load.C {
				tenant := fmt.Sprintf("t-%d-%d", status, len(tenants))
				tenants = append(tenants, tenant)
				w.Create(tenant)
				switch len(tenants) % 40 {
				case 10:
					w.Publish(events.TypeTenantSuspended, object("tenant_id", "suspended"))
					w.Eventually(w.Are(repo.Suspended, "suspended"))
				case 30:
					w.Publish(events.TypeTenantResumed, object("tenant_id", "suspended"))
					w.Eventually(w.Are(repo.Active, "suspended"))
				}
				w.Token("before")
			}
			for _, tenant := range tenants {
				if n := w.Creates(tenant); n > 1 {
					t.Errorf("%d creates were sent for %s while the API answered only %d", n, tenant, status)
				}
			}
			if n := len(w.DeadLetters()); n > 0 {
				t.Errorf("%d dead letters while the API answered only %d", n, status)
			}
			w.SetFaults()
			from := time.Now()
			workertest.Eventually(t, recovery, w.Are(repo.Active, tenants...))
			t.Logf("%d: %d tenants waited %v, active %v after the end", status, len(tenants), outage,
				time.Since(from).Round(time.Millisecond))
		}
	})
}

func TestPauseKeepsEventsUntilPapermapWorks(t *testing.T) {
	const slots = 4
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
			func(w *world) { w.Simulator.RevokeKey("ak_a") },
			func(w *world) { w.Simulator.AddKey("ws-a", workertest.WorkspaceA.Key) },
		}, {
			"403", "refuses the credentials", slots, true,
			func(w *world) { w.SetFaults("status=403") }, func(w *world) { w.SetFaults() },
		}, {
			"404", "PAPERMAP_API_URL", slots, true,
			func(w *world) { w.SetFaults("status=404") }, func(w *world) { w.SetFaults() },
		}, {
			"redirect", "PAPERMAP_API_URL", slots, true,
			func(w *world) {
				w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
					http.Redirect(rw, r, "http://elsewhere.invalid"+r.URL.Path, http.StatusTemporaryRedirect)
				})
			}, func(w *world) { w.API.Intercept(nil) },
		}, {
			"500 on everything", "keep failing", 8 + slots, false,
			func(w *world) { w.SetFaults("status=500") }, func(w *world) { w.SetFaults() },
		}, {
			"500 on creates alone", "keep failing", 20, false, // some are trials: the probes succeed
			func(w *world) { w.SetFaults("on=create status=500") }, func(w *world) { w.SetFaults() },
		},
	} {
		run := virtual
		if c.name == "500 on everything" {
			run = onBoth
		}
		t.Run(c.name, func(t *testing.T) {
			o := options{Config: func(c *worker.Config) { c.Concurrency, c.MaxAttempts = slots, 1 }}
			run(t, o, func(t *testing.T, w *world) {
				w.Create("before", "suspended-later")
				w.Eventually(w.Are(repo.Active, "before", "suspended-later"))
				good := w.API.Requests(http.MethodPost)

				c.breakIt(w)
				tenants := names("t", 20)
				w.Create(tenants...)
				w.Eventually(w.paused(c.reason))
				w.Eventually(workertest.That("two probes of each worker", func() bool {
					return w.API.Requests(http.MethodGet) >= 2*len(w.Workers)
				})) // they probe, and by reads
				if n, most := w.API.Requests(http.MethodPost)-good, c.most*len(w.Workers); n > most {
					t.Errorf("%d requests before and during the pause, want at most %d", n, most)
				}
				w.Must(w.paused("")())

				// Meanwhile everything else works.
				w.Publish(events.TypeTenantSuspended, object("tenant_id", "suspended-later"))
				w.Eventually(w.Are(repo.Suspended, "suspended-later"))
				w.Refused("embed-token", object("tenant_id", "suspended-later"), 403, "TENANT_SUSPENDED")
				w.Token("before")
				if n := w.Unhandled(); n != len(tenants) {
					t.Errorf("%d events wait in the stream, want %d", n, len(tenants))
				}

				c.mend(w)
				workertest.Eventually(t, recovery, w.Are(repo.Active, tenants...))
				if w.consuming() == 0 {
					t.Errorf("no worker says that it consumes: %+v", w.Workers[0].State())
				}
				workertest.Eventually(t, recovery, func() error {
					// a replica that was left no event is still to try its one dashboard
					if n := w.consuming(); n < len(w.Workers) {
						tenants = append(tenants, fmt.Sprintf("late-%d", len(tenants)))
						w.Create(tenants[len(tenants)-1])
						return fmt.Errorf("%d of %d workers consume", n, len(w.Workers))
					}
					return w.Are(repo.Active, tenants...)()
				})
				w.NoDeadLetters()
				if n := len(w.Simulator.Dashboards()); n != len(tenants)+2 {
					t.Errorf("%d dashboards for %d tenants", n, len(tenants)+2)
				}
				for _, tenant := range tenants {
					if c.certain && strings.Contains(w.Outcomes(tenant), "unknown") {
						t.Errorf("%s: attempts %s, though nothing was processed", tenant, w.Outcomes(tenant))
					}
				}
				if n := w.pausesLogged(); n != len(w.Workers) {
					t.Errorf("the log tells of %d pauses", n)
				}
				if n := w.DialsRefused(); n > 0 {
					t.Errorf("%d redirects were followed", n)
				}
			})
		})
	}
}

func TestUsedUpQuotaPausesUntilACreateSucceeds(t *testing.T) {
	const slots = 4
	o := options{Config: func(c *worker.Config) { c.Concurrency, c.MaxAttempts = slots, 1 }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Create("before")
		w.Eventually(w.Are(repo.Active, "before"))
		tenants := names("t", 20)
		w.SetFaults("on=create status=402")
		w.Create(tenants...)
		w.Eventually(w.paused("quota is used up"))
		time.Sleep(3 * time.Minute)
		w.SetFaults("status=403 body=`{\"code\":\"QUOTA_EXCEEDED\"}`")
		time.Sleep(3 * time.Minute)
		w.Must(w.paused("quota is used up")())
		w.Token("before")
		// The waits between trials grow by half each: 1 s, 1.5 s … 2 minutes.
		if n := len(w.Requests("create")) - 1; n < 10 || n > slots+12 {
			t.Errorf("%d creates in 6 minutes without a quota", n)
		}
		w.SetFaults()
		workertest.Eventually(t, 15*time.Minute, w.Are(repo.Active, tenants...))
		w.NoDeadLetters()
		if n := w.pausesLogged(); n != 1 || len(w.Simulator.Dashboards()) != len(tenants)+1 {
			t.Errorf("%d pauses, %d dashboards", n, len(w.Simulator.Dashboards()))
		}
	})
}

func TestPauseOfAWorkspaceLeavesOthersRunning(t *testing.T) {
	virtual(t, options{Workers: 2}, func(t *testing.T, w *world) {
		w.Simulator.RevokeKey("ak_b")
		closed := names("b", 10)
		inB := func(tenant string) {
			w.Publish(events.TypeTenantCreated,
				object("tenant_id", tenant, "name", tenant, "workspace_id", "ws-b"))
		}
		for _, tenant := range closed[:5] {
			inB(tenant)
		}
		w.Eventually(w.paused("workspace ws-b is paused"))
		for _, tenant := range closed[5:] {
			inB(tenant)
		}
		for n := range 2 { // for more than one fetch
			w.Eventually(workertest.That("another probe",
				func() bool { return w.API.Requests(http.MethodGet) > n }))
			open := names(fmt.Sprintf("a-%d", n), 10)
			w.Create(open...)
			w.Eventually(w.Are(repo.Active, open...))
		}
		w.Eventually(workertest.That("all events of the paused workspace wait",
			func() bool { return w.Unhandled() == len(closed) }))
		w.Simulator.AddKey("ws-b", workertest.WorkspaceB.Key)
		workertest.Eventually(t, recovery, w.Are(repo.Active, closed...))
	})
}

func TestRateLimitOfOurOwnIsNoPauseAndNoFailure(t *testing.T) {
	o := options{Workers: 2, Config: func(c *worker.Config) { c.MaxRPS, c.MaxAttempts = 10, 1 }}
	virtual(t, o, func(t *testing.T, w *world) {
		tenants := names("t", 80*len(w.Workers)) // each worker has a limit of its own
		began := time.Now()
		w.Create(tenants...)
		w.Eventually(w.Are(repo.Active, tenants...))
		if took := time.Since(began); took < 7*time.Second {
			t.Errorf("80 requests of each worker at 10 a second took %v", took)
		}
		if n := w.pausesLogged(); n != 0 || len(w.DeadLetters()) != 0 {
			t.Errorf("%d pauses, %d dead letters", n, len(w.DeadLetters()))
		}
	})
}

func TestDeferredEventsDelayNoOthers(t *testing.T) {
	for _, c := range []struct {
		answer         string
		tenants, tries int
	}{
		{"status=429 retry-after=60", 1000, 1}, // as many as NATS lets wait by default
		{"status=503 retry-after=60", 300, 1},
		{"status=429 retry-after=1", 300, 4}, // by then they do not all come back every second
	} {
		o := options{Faults: []string{"title=slow " + c.answer},
			Config: func(c *worker.Config) { c.MaxAttempts = 1 }}
		subtest(t, c.answer, o, func(t *testing.T, w *world) {
			slow := names("slow", c.tenants)
			w.Create(slow...)
			w.Eventually(workertest.That("every tenant is tried often enough", func() bool {
				return w.API.Requests(http.MethodPost) >= c.tries*len(slow)
			}))
			for _, healthy := range names("healthy", 5) {
				w.Create(healthy)
				// The slow ones hold nothing for a minute. A benchmark measures that it takes
				// milliseconds.
				workertest.Eventually(t, 20*time.Second, w.Are(repo.Active, healthy))
			}
			if n := w.pausesLogged(); n != 0 || len(w.DeadLetters()) != 0 {
				t.Errorf("%d pauses, %d dead letters", n, len(w.DeadLetters()))
			}
		})
	}
}

func TestFailingTenantsDoNotBlockOthers(t *testing.T) {
	failing := names("poison", 8) // each has failed once when the gate closes
	var faults []string
	for _, tenant := range failing {
		faults = append(faults, "tenant="+tenant+" status=500")
	}
	// With more workspaces a paused one's events are given back meanwhile, and it takes longer.
	o := options{Workers: 2, Faults: faults,
		Config: func(c *worker.Config) { c.Workspaces = c.Workspaces[:1] }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Create(failing...)
		w.Eventually(w.paused("keep failing")) // nothing tells them from an API that is down
		w.Eventually(func() error {            // until those that failed are offered again
			if n := len(w.Requests("create")); n < 10*len(w.Workers) {
				return fmt.Errorf("%d requests", n)
			}
			return nil
		})
		others := names("other", 5)
		w.Create(others...)
		workertest.Eventually(t, recovery, w.Are(repo.Active, others...))
		w.NoDeadLetters()
		if slices.ContainsFunc(others, func(tenant string) bool { return w.Creates(tenant) != 1 }) {
			t.Error("more than one request for a good tenant")
		}
	})
}
