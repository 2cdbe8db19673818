package worker_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// asIf makes the API answer as if a request had asked with other parameters.
func (w *world) asIf(change func(query url.Values)) {
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		change(query)
		r.URL.RawQuery = query.Encode()
		w.sim.ServeHTTP(rw, r)
	})
}

// tenantsRecorded counts the tenants that have a row.
func (w *world) tenantsRecorded() int {
	w.t.Helper()
	tenants := map[string]bool{}
	for _, r := range w.usageRows("ws-a") {
		tenants[r.TenantID] = true
	}
	return len(tenants)
}

// However often a run begins again, it ends no sooner than all that the API lists was looked at.
func TestEveryPageIsReadThoughTenantsKeepComing(t *testing.T) {
	t.Parallel()
	for _, style := range simulator.UsageStyles {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{config: together(2)})
			w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 1000, Style: style, BeforeRequest: func(n int, u *simulator.Usage) {
				if n%4 == 0 {
					u.Tenants += 100 // a page more in the time of four
				}
			}})
			w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			eventually(t, soon, w.usageRunIs("e", repo.Incomplete, repo.RunDone))
			eventually(t, soon, w.settled)
			run := w.usageRun("e", "ws-a")
			told := style != "none" && style != "records" // which have no counts that could shift
			if told != (run.Status == repo.Incomplete) || run.Pass > 4 {
				t.Errorf("the run says %+v", run)
			}
			if n, all := w.tenantsRecorded(), len(w.totals(run)); n < all-100 { // which may have come after the last page
				t.Errorf("%d of %d tenants were read; pages asked for: %v", n, all, w.pagesAsked("ws-a"))
			}
			if events := w.synced(); told == (len(events) > 0) {
				t.Errorf("told %+v", events)
			}
		})
	}
}

// Killed on its way through the last pass, which has shifted, a run still knows that it is not whole.
func TestARunThatShiftedInItsLastPassIsIncompleteAlsoAfterACrash(t *testing.T) {
	t.Parallel()
	w := start(t, options{noWorker: true, config: together(1)})
	first := w.startWorker()
	var grow atomic.Bool
	grow.Store(true)
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 1000, BeforeRequest: func(n int, u *simulator.Usage) {
		if grow.Load() && n%2 == 0 {
			u.Tenants++
		}
	}})
	held := make(chan struct{})
	var waits atomic.Bool
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		if page(r) == 7 { // each pass before has ended at its second page
			grow.Store(false)
			waits.Store(true)
			<-held
		}
		w.sim.ServeHTTP(rw, r)
	})
	w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
	eventually(t, soon, func() error {
		if r := w.usageRun("e", "ws-a"); !waits.Load() || r.NextPage != 7 {
			return fmt.Errorf("the run is %+v", r)
		}
		return nil
	})
	first.kill()
	close(held)
	w.intercept(nil)
	w.startWorker()
	eventually(t, soon, w.usageRunIs("e", repo.Incomplete, repo.RunDone))
	if run := w.usageRun("e", "ws-a"); run.Status != repo.Incomplete || run.NextPage != 12 || w.tenantsRecorded() < 1000 {
		t.Errorf("the run says %+v, %d tenants", run, w.tenantsRecorded())
	}
}

// A page that was read twice under two numbers is not two pages: a cache may know them by their path alone.
func TestPagesThatRepeatAreNotTakenForTheWhole(t *testing.T) {
	t.Parallel()
	for _, style := range simulator.UsageStyles {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{config: together(2)})
			w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400, Style: style})
			w.asIf(func(query url.Values) { query.Set("page", "1") })
			w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			eventually(t, soon, w.usageRunIs("e", repo.Incomplete, repo.RunDone))
			if run := w.usageRun("e", "ws-a"); run.Status != repo.Incomplete || w.tenantsRecorded() != 100 || len(w.synced()) > 0 {
				t.Errorf("%d of 400 tenants are recorded, and the run says %+v", w.tenantsRecorded(), run)
			}
		})
	}
}

// An API that gives shorter pages than were asked for is read to its end, whatever it says of their number.
func TestShorterPagesThanAskedForAreReadToTheEnd(t *testing.T) {
	t.Parallel()
	for _, style := range append(slices.Clone(simulator.UsageStyles), "total alone") {
		for _, tenants := range []int{1, 50, 150, 175, 220} {
			t.Run(fmt.Sprint(style, "/", tenants), func(t *testing.T) {
				t.Parallel()
				w := start(t, options{config: together(2)})
				u := simulator.Usage{Tenants: tenants, Style: style}
				if style == "total alone" {
					u.Style = "none"
				}
				w.sim.SetUsage("ws-a", u)
				w.intercept(func(rw http.ResponseWriter, r *http.Request) {
					query := r.URL.Query()
					query.Set("per_page", "50")
					r.URL.RawQuery = query.Encode()
					answer := httptest.NewRecorder()
					w.sim.ServeHTTP(answer, r)
					body := answer.Body.String()
					if style == "total alone" {
						body = strings.TrimSuffix(body, "}") + fmt.Sprintf(`,"total":%d}`, tenants)
					}
					rw.Header().Set("Content-Type", "application/json")
					_, _ = rw.Write([]byte(body))
				})
				w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
				eventually(t, soon, w.usageRunIs("e", repo.Incomplete, repo.RunDone))
				run := w.usageRun("e", "ws-a")
				w.checkUsage("ws-a", w.totals(run))
				if run.Status != repo.RunDone || run.Pass != 1 {
					t.Errorf("the run says %+v", run)
				}
			})
		}
	}
}

// The checkpoint is a page: when pages have another size after a stop than before, none of the rows may be passed over.
func TestARunThatGoesOnWithAnotherPageSizeMissesNothing(t *testing.T) {
	t.Parallel()
	for _, style := range simulator.UsageStyles {
		for _, sizes := range [][2]int{{50, 100}, {100, 50}} {
			t.Run(fmt.Sprint(style, "/", sizes), func(t *testing.T) {
				t.Parallel()
				w := start(t, options{noWorker: true, config: together(1)})
				w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 1000, Style: style})
				held := make(chan struct{})
				var size, waits atomic.Int64
				size.Store(int64(sizes[0]))
				w.intercept(func(rw http.ResponseWriter, r *http.Request) {
					if page(r) == 4 && waits.Add(1) == 1 {
						<-held
					}
					query := r.URL.Query()
					query.Set("per_page", strconv.Itoa(int(size.Load())))
					r.URL.RawQuery = query.Encode()
					w.sim.ServeHTTP(rw, r)
				})
				first := w.startWorker()
				w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
				eventually(t, soon, func() error {
					if r := w.usageRun("e", "ws-a"); waits.Load() == 0 || r.NextPage != 4 {
						return fmt.Errorf("the run is %+v", r)
					}
					return nil
				})
				first.kill()
				size.Store(int64(sizes[1]))
				close(held)
				w.startWorker()
				eventually(t, soon, w.usageRunIs("e", repo.Incomplete, repo.RunDone))
				w.checkUsage("ws-a", w.totals(w.usageRun("e", "ws-a")))
				if run := w.usageRun("e", "ws-a"); run.Status != repo.RunDone {
					t.Errorf("the run says %+v", run)
				}
			})
		}
	}
}

// A long run says how far it is, in the log and in the metrics, for as long as it is at work here, and keeps its lease though it has
// nothing to record.
func TestARunAtWorkSaysHowFarItIs(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: func(c *worker.Config) { c.UsageConcurrency, c.Timeout = 1, soon }})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 1000})
	held := make(chan struct{})
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		if page(r) == 4 {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		w.sim.ServeHTTP(rw, r)
	})
	w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
	eventually(t, soon, func() error {
		done, _ := metric(t, w.workers[0], "papermap_usage_run_pages_done", "ws-a")
		pages, _ := metric(t, w.workers[0], "papermap_usage_run_pages", "ws-a")
		if done != 3 || pages != 10 {
			return fmt.Errorf("%v of %v pages are done in the metrics", done, pages)
		}
		if !strings.Contains(w.logs.String(), `"msg":"syncing usage","worker":0,"workspace_id":"ws-a","event_id":"e","pages_done":3,"pages":10`) {
			return fmt.Errorf("the log says nothing of it")
		}
		if run := w.usageRun("e", "ws-a"); run.UpdatedAt.Sub(run.StartedAt.Time) < 9*time.Second {
			return fmt.Errorf("no sign of life of it since %s", run.UpdatedAt)
		}
		return nil
	})
	close(held)
	eventually(t, soon, w.usageRunIs("e", repo.RunDone))
	eventually(t, soon, w.settled)
	for _, name := range []string{"papermap_usage_run_pages_done", "papermap_usage_run_pages"} {
		if value, ok := metric(t, w.workers[0], name, "ws-a"); !ok || value != 0 {
			t.Errorf("%s is %v after the end", name, value)
		}
	}
}
