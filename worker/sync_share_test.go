package worker_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// Our own limit of requests slows a run down, and does not stop it.
func TestRunFinishesWithFewRequestsPerSecond(t *testing.T) {
	o := options{Config: func(c *worker.Config) { c.MaxRPS, c.UsageConcurrency = 2, 8 }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 1000})
		w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
		w.Eventually(w.usageRunIs("e", repo.RunDone))
	})
}

func TestDrainedRunIsResumedAtOnceByAnotherWorker(t *testing.T) {
	virtual(t, options{Config: together(1)}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		held := make(chan struct{})
		var waits atomic.Int64
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			if page(r) == 4 && waits.Add(1) == 1 {
				<-held
			}
			w.Simulator.ServeHTTP(rw, r)
		})
		w.Sync("e", "workspace_id", "ws-a")
		w.Eventually(workertest.That("page 4 is asked for", func() bool { return waits.Load() != 0 }))
		second := w.StartWorker()
		w.Workers[0].Drain()
		w.Eventually(workertest.That("the worker drains", func() bool {
			return !w.Workers[0].State().Ready
		}))
		close(held)
		w.Workers[0].Stop()
		workertest.Eventually(t, 15*time.Second, w.usageRunIs("e", repo.RunDone)) // its lease is of 25
		second.Stop()
		if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
			t.Errorf("pages that were answered: %v, want each of 8 once", got)
		}
		run := w.usageRun("e", "ws-a")
		w.checkUsage("ws-a", w.totals(run))
		if len(w.synced()) != 1 || run.Pass != 1 || run.Error != "" {
			t.Errorf("the run says %+v; synced %+v", run, w.synced())
		}
	})
}

func TestRunsOfAWorkspaceAreSequentialAndTicksDoNotQueue(t *testing.T) {
	virtual(t, options{Config: together(2)}, func(t *testing.T, w *world) {
		w.StartWorker()
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		w.Simulator.SetUsage("ws-b", simulator.Usage{Tenants: 400})
		reached, release := w.holdPage(3)
		w.Sync("first", "workspace_id", "ws-a")
		w.Eventually(reached)
		w.Sync("second", "workspace_id", "ws-a")
		tick := w.schedule(1)
		w.Sync("other", "workspace_id", "ws-b")
		w.Eventually(workertest.That("the run of ws-b is done", func() bool {
			return w.usageRun("other", "ws-b").Status == repo.RunDone
		})) // another workspace does not wait
		if tick.Status != repo.RunSkipped || tick.Error != "the run of event first does its work" {
			t.Errorf("the scheduled run is %+v, want it skipped", tick)
		}
		if second := w.usageRun("second", "ws-a"); second.ID != "" {
			t.Errorf("the second run began beside the first: %+v", second)
		}
		release()
		w.Eventually(w.usageRunIs("second", repo.RunDone))
		w.Eventually(w.Handled)
		first, second := w.usageRun("first", "ws-a"), w.usageRun("second", "ws-a")
		if first.Status != repo.RunDone || second.StartedAt.Before(first.FinishedAt.Time) ||
			second.Written != 0 || second.Read != 800 {
			t.Errorf("the runs are %+v and %+v", first, second)
		}
		if synced := w.synced(); len(synced) != 3 || len(w.DeadLetters()) > 0 {
			t.Errorf("synced %+v, %d dead letters", synced, len(w.DeadLetters()))
		}
	})
}

// A run that waits for Papermap is not over: the ticks that come meanwhile neither begin another
// nor cut its waiting short.
func TestTicksAreSkippedWhileARunWaits(t *testing.T) {
	virtual(t, options{Config: together(1)}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		var failing atomic.Bool
		var mu sync.Mutex
		var refused []time.Time
		failing.Store(true)
		w.refusePages(http.StatusTooManyRequests, func(r *http.Request) bool { // for 4 s
			if page(r) != 4 || !failing.Load() {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, time.Now())
			return true
		})
		waits := func(times int) func() error {
			return func() error {
				mu.Lock()
				defer mu.Unlock()
				if len(refused) < times {
					return fmt.Errorf("refused %d times", len(refused))
				}
				return nil
			}
		}
		w.Sync("first", "workspace_id", "ws-a")
		for n := range 3 {
			w.Eventually(waits(n + 1))
			if tick := w.schedule(n); tick.Status != repo.RunSkipped {
				t.Errorf("the scheduled run is %+v, want it skipped", tick)
			}
		}
		failing.Store(false)
		w.Eventually(w.usageRunIs("first", repo.RunDone))
		w.Eventually(w.Handled)
		if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
			t.Errorf("pages that were answered: %v, want each of 8 once", got)
		}
		for i := range refused[1:] {
			if waited := refused[i+1].Sub(refused[i]); waited < 4*time.Second {
				t.Errorf("asked again after %v, where Papermap had asked for 4 s", waited)
			}
		}
	})
}

// Only a run that reads what a tick would read takes its place.
func TestTickWaitsForARunOfOneTenant(t *testing.T) {
	virtual(t, options{Config: together(1)}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 10})
		reached, release := w.holdPage(1)
		w.Sync("one", "workspace_id", "ws-a", "tenant_id", "org-0000001", "from_period", "2020-01",
			"to_period", "2020-01")
		w.Eventually(reached)
		tick := w.schedule(1)
		w.Eventually(w.Relayed)
		release()
		w.Eventually(w.usageRunIs(tick.EventID, repo.RunDone))
		w.Eventually(w.Handled)
		for _, synced := range w.synced() {
			if (synced.FromPeriod == "2020-01") != (synced.TenantID == "org-0000001") {
				t.Errorf("synced %+v, want only 2020-01 of one tenant", synced)
			}
		}
	})
}

// Syncs of single tenants go on side by side, each of another tenant, and a run of all tenants alone.
func TestSyncsOfSingleTenantsAreConcurrent(t *testing.T) {
	onBoth(t, options{Config: together(8)}, func(t *testing.T, w *world) {
		const tenants, each = 40, 3
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: tenants})
		var mu sync.Mutex
		reading, most, total := map[string]int{}, 0, 0
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			if page(r) == 0 {
				w.Simulator.ServeHTTP(rw, r)
				return
			}
			mu.Lock()
			reading[r.URL.Path]++
			total++
			most = max(most, total)
			all := strings.HasSuffix(r.URL.Path, "/tenant-usage")
			if reading[r.URL.Path] > 1 || all && total > 1 {
				t.Errorf("%s is read by %d of %d requests", r.URL.Path, reading[r.URL.Path], total)
			}
			mu.Unlock()
			time.Sleep(100 * time.Millisecond) // of the bubble
			w.Simulator.ServeHTTP(rw, r)
			mu.Lock()
			reading[r.URL.Path]--
			total--
			mu.Unlock()
		})
		for n := range tenants * each {
			w.Sync(fmt.Sprint("e", n), "workspace_id", "ws-a", "tenant_id",
				fmt.Sprintf("org-%07d", n%tenants))
			if n == tenants {
				w.Sync("all", "workspace_id", "ws-a")
			}
		}
		w.Eventually(w.Handled)
		if n := len(w.synced()); n != tenants*each+1 {
			t.Errorf("%d of %d syncs are done", n, tenants*each+1)
		}
		if most != 8 {
			t.Errorf("%d requests at once, want 8", most)
		}
		w.checkUsage("ws-a", w.totals(w.usageRun("all", "ws-a")))
		w.NoDeadLetters()
	})
}

// Papermap's limit is shared: tenants get their dashboards while a run takes all that it can get of
// PAPERMAP_MAX_RPS.
func TestRunLeavesTenantsTheirShareOfRequests(t *testing.T) {
	o := options{Config: func(c *worker.Config) { c.MaxRPS, c.UsageConcurrency = 2, 8 }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 100_000})
		w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
		w.Eventually(workertest.That("the run is at page 3",
			func() bool { return w.usageRun("e", "ws-a").NextPage >= 3 }))
		began := time.Now()
		w.Create("a", "b", "c", "d")
		w.Eventually(w.Are(repo.Active, "a", "b", "c", "d"))
		if took := time.Since(began); took > 10*time.Second { // 2 s at best
			t.Errorf("four dashboards took %v at 2 requests per second", took)
		}
	})
}

// A run is one event in flight until it ends: tenants do not wait for that.
func TestRunsLeaveSlotsForTenants(t *testing.T) {
	for name, change := range map[string]func(*worker.Config){
		"few slots":    func(c *worker.Config) { c.Concurrency = 2 },
		"few requests": func(c *worker.Config) { c.MaxRPS = 0.9 },
	} {
		subtest(t, name, options{Config: change}, func(t *testing.T, w *world) {
			for _, workspace := range []string{"ws-a", "ws-b"} {
				w.Simulator.SetUsage(workspace, simulator.Usage{Tenants: 400})
			}
			held := make(chan struct{})
			var holding atomic.Int64
			w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && page(r) > 0 {
					holding.Add(1)
					select {
					case <-held:
					case <-r.Context().Done():
					}
				}
				w.Simulator.ServeHTTP(rw, r)
			})
			w.Sync("a", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			w.Sync("b", "workspace_id", "ws-b", "from_period", "2026-01", "to_period", "2026-01")
			w.Eventually(workertest.That("a run is reading", func() bool { return holding.Load() != 0 }))
			w.Create("x")
			workertest.Eventually(t, 9*time.Second, w.Are(repo.Active, "x")) // a request takes 10 at most
			close(held)
			w.Eventually(w.Handled)
		})
	}
}

// Copies of one event, in three workers' hands at once, are one run.
func TestCopiesOfASyncAreOneRun(t *testing.T) {
	virtual(t, options{Config: together(1)}, func(t *testing.T, w *world) {
		w.StartWorker()
		w.StartWorker()
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		for range 30 {
			w.Publish(events.TypeUsageSync, object("workspace_id", "ws-a"), "Papermap-Event-Id", "e")
		}
		w.Eventually(w.Handled)
		if list, err := w.DB.Runs(t.Context(), "", 10); err != nil || len(list) != 1 ||
			list[0].Status != repo.RunDone {
			t.Errorf("runs %+v (%v)", list, err)
		}
		if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
			t.Errorf("pages that were answered: %v, want each of 8 once", got)
		}
		if synced := w.synced(); len(synced) != 1 {
			t.Errorf("synced %+v", synced)
		}
	})
}
