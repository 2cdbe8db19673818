package worker_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// An API that ignores the page and says nothing of how many there are does not keep a run for ever.
func TestUsageFetchEndsWhenOnePageRepeatsForever(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet {
				w.Simulator.ServeHTTP(rw, r)
				return
			}
			rw.Header().Set("Content-Type", "application/json")
			row := `{"tenant_id":"t-%d","credits":1,"requests":1,"period":"2026-01"}`
			var rows []string
			for i := range 100 {
				rows = append(rows, fmt.Sprintf(row, i))
			}
			fmt.Fprintf(rw, `{"success":true,"data":{"usage":[%s]}}`, strings.Join(rows, ","))
		})
		w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
		w.Eventually(w.usageRunIs("e", repo.RunIncomplete))
	})
}

// asIf makes the API answer as if a request had asked with other parameters.
func (w *world) asIf(change func(query url.Values)) {
	w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		change(query)
		r.URL.RawQuery = query.Encode()
		w.Simulator.ServeHTTP(rw, r)
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
func TestUsageFetchReachesEveryPageWhileTenantsAreAdded(t *testing.T) {
	for _, style := range simulator.UsageStyles {
		subtest(t, style, options{Config: together(2)}, func(t *testing.T, w *world) {
			w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 1000, Style: style,
				BeforeRequest: func(n int, u *simulator.Usage) {
					if n%4 == 0 {
						u.Tenants += 100 // a page more in the time of four
					}
				}})
			w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			w.Eventually(w.usageRunIs("e", repo.RunIncomplete, repo.RunDone))
			w.Eventually(w.Handled)
			run := w.usageRun("e", "ws-a")
			counts := style != "none" && style != "records" // which have no counts that could shift
			if counts != (run.Status == repo.RunIncomplete) || run.Pass > 4 {
				t.Errorf("the run says %+v", run)
			}
			// which may have come after the last page
			if n, all := w.tenantsRecorded(), len(w.totals(run)); n < all-100 {
				t.Errorf("%d of %d tenants were read; pages asked for: %v", n, all, w.pagesAsked("ws-a"))
			}
			if events := w.synced(); counts == (len(events) > 0) {
				t.Errorf("synced %+v", events)
			}
		})
	}
}

// Killed on its way through the last pass, which has shifted, a run still knows that it is not
// whole.
func TestUsageFetchThatShiftedIsIncompleteAfterACrash(t *testing.T) {
	virtual(t, options{NoWorker: true, Config: together(1)}, func(t *testing.T, w *world) {
		first := w.StartWorker()
		var grow atomic.Bool
		grow.Store(true)
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 1000,
			BeforeRequest: func(n int, u *simulator.Usage) {
				if grow.Load() && n%2 == 0 {
					u.Tenants++
				}
			}})
		held := make(chan struct{})
		var waits atomic.Bool
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			if page(r) == 7 { // each pass before has ended at its second page
				grow.Store(false)
				waits.Store(true)
				<-held
			}
			w.Simulator.ServeHTTP(rw, r)
		})
		w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
		w.Eventually(func() error {
			if r := w.usageRun("e", "ws-a"); !waits.Load() || r.NextPage != 7 {
				return fmt.Errorf("the run is %+v", r)
			}
			return nil
		})
		first.Kill()
		close(held)
		w.API.Intercept(nil)
		w.StartWorker()
		w.Eventually(w.usageRunIs("e", repo.RunIncomplete, repo.RunDone))
		if run := w.usageRun("e", "ws-a"); run.Status != repo.RunIncomplete || run.NextPage != 12 ||
			w.tenantsRecorded() < 1000 {
			t.Errorf("the run says %+v, %d tenants", run, w.tenantsRecorded())
		}
	})
}

// A page that was read twice under two numbers is not two pages: a cache may know them by their
// path alone.
func TestUsageFetchOfRepeatedPagesIsIncomplete(t *testing.T) {
	for _, style := range simulator.UsageStyles {
		subtest(t, style, options{Config: together(2)}, func(t *testing.T, w *world) {
			w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400, Style: style})
			w.asIf(func(query url.Values) { query.Set("page", "1") })
			w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			w.Eventually(w.usageRunIs("e", repo.RunIncomplete, repo.RunDone))
			if run := w.usageRun("e", "ws-a"); run.Status != repo.RunIncomplete ||
				w.tenantsRecorded() != 100 || len(w.synced()) > 0 {
				t.Errorf("%d of 400 tenants are recorded, and the run says %+v", w.tenantsRecorded(), run)
			}
		})
	}
}

// An API that gives shorter pages than were asked for is read to its end, whatever it says of their
// number.
func TestUsageFetchReadsShorterPagesToTheEnd(t *testing.T) {
	for _, style := range append(slices.Clone(simulator.UsageStyles), "total alone") {
		for _, tenants := range []int{1, 50, 150, 175, 220} {
			o := options{Config: together(2)}
			subtest(t, fmt.Sprint(style, "/", tenants), o, func(t *testing.T, w *world) {
				u := simulator.Usage{Tenants: tenants, Style: style}
				if style == "total alone" {
					u.Style = "none"
				}
				w.Simulator.SetUsage("ws-a", u)
				w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
					query := r.URL.Query()
					query.Set("per_page", "50")
					r.URL.RawQuery = query.Encode()
					answer := httptest.NewRecorder()
					w.Simulator.ServeHTTP(answer, r)
					body := answer.Body.String()
					if style == "total alone" {
						body = strings.TrimSuffix(body, "}") + fmt.Sprintf(`,"total":%d}`, tenants)
					}
					rw.Header().Set("Content-Type", "application/json")
					_, _ = rw.Write([]byte(body))
				})
				w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
				w.Eventually(w.usageRunIs("e", repo.RunIncomplete, repo.RunDone))
				run := w.usageRun("e", "ws-a")
				w.checkUsage("ws-a", w.totals(run))
				if run.Status != repo.RunDone || run.Pass != 1 {
					t.Errorf("the run says %+v", run)
				}
			})
		}
	}
}

// The checkpoint is a page: when pages have another size after a stop than before, none of the rows
// may be passed over.
func TestUsageFetchResumedWithAnotherPageSizeMissesNothing(t *testing.T) {
	for _, style := range simulator.UsageStyles {
		for _, sizes := range [][2]int{{50, 100}, {100, 50}} {
			o := options{NoWorker: true, Config: together(1)}
			subtest(t, fmt.Sprint(style, "/", sizes), o, func(t *testing.T, w *world) {
				w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 1000, Style: style})
				held := make(chan struct{})
				var size, waits atomic.Int64
				size.Store(int64(sizes[0]))
				w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
					if page(r) == 4 && waits.Add(1) == 1 {
						<-held
					}
					query := r.URL.Query()
					query.Set("per_page", strconv.Itoa(int(size.Load())))
					r.URL.RawQuery = query.Encode()
					w.Simulator.ServeHTTP(rw, r)
				})
				first := w.StartWorker()
				w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
				w.Eventually(func() error {
					if r := w.usageRun("e", "ws-a"); waits.Load() == 0 || r.NextPage != 4 {
						return fmt.Errorf("the run is %+v", r)
					}
					return nil
				})
				first.Kill()
				size.Store(int64(sizes[1]))
				close(held)
				w.StartWorker()
				w.Eventually(w.usageRunIs("e", repo.RunIncomplete, repo.RunDone))
				w.checkUsage("ws-a", w.totals(w.usageRun("e", "ws-a")))
				if run := w.usageRun("e", "ws-a"); run.Status != repo.RunDone {
					t.Errorf("the run says %+v", run)
				}
			})
		}
	}
}

// Where the API says that there is more, no total of its own keeps a run from reading it; and where
// it wrongly says so, one more page is asked for.
func TestUsageFetchReadsOnWhileThereIsMore(t *testing.T) {
	for _, test := range []struct {
		name   string
		pages  int
		paging func(page int) string
	}{
		{"the total is of the page", 3, func(p int) string {
			return fmt.Sprintf(`{"page":%d,"per_page":100,"total":100,"has_more":%t}`, p, p < 3)
		}},
		{"the total is of the page, which has no number", 3,
			func(p int) string { return fmt.Sprintf(`{"total":100,"has_next":%t}`, p < 3) }},
		{"one page, and the API claims more", 1,
			func(p int) string {
				return fmt.Sprintf(`{"page":%d,"per_page":100,"total":100,"has_more":true}`, p)
			}},
	} {
		subtest(t, test.name, options{}, func(t *testing.T, w *world) {
			w.answersUsage(func(page int) string {
				var rows []string
				for i := range 100 {
					if page <= test.pages {
						row := fmt.Sprintf(`{"tenant_id":"t-%d-%d","credits":1,"period":"2026-01"}`, page,
							i)
						rows = append(rows, row)
					}
				}
				return fmt.Sprintf(`{"success":true,"data":{"usage":[%s]},"pagination":%s}`,
					strings.Join(rows, ","), test.paging(page))
			})
			w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			w.Eventually(w.usageRunIs("e", repo.RunDone))
			if have := len(w.usageRows("ws-a")); have != 100*test.pages || len(w.synced()) != 1 {
				t.Errorf("%d rows recorded of %d; synced %+v", have, 100*test.pages, w.synced())
			}
		})
	}
}

// Pages that overtake an early one are more than one transaction takes when that comes at last.
func TestUsageFetchRecordsPagesOutOfOrder(t *testing.T) {
	for name, hide := range map[string]string{"with a total": "nothing",
		"with a number of pages alone": `"total":[0-9]+,`} {
		t.Run(name, func(t *testing.T) {
			const pages = 20
			virtual(t, options{Config: together(32)}, func(t *testing.T, w *world) {
				w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 100 * pages, Style: "items"})
				var others atomic.Int64
				all := make(chan struct{})
				hidden := regexp.MustCompile(hide)
				w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
					if page(r) == 2 {
						<-all
					}
					answer := httptest.NewRecorder()
					w.Simulator.ServeHTTP(answer, r)
					rw.Header().Set("Content-Type", "application/json")
					_, _ = rw.Write(hidden.ReplaceAll(answer.Body.Bytes(), nil))
					if page(r) > 2 && others.Add(1) == pages-2 {
						close(all)
					}
				})
				w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-03", "to_period", "2026-03")
				w.Eventually(w.usageRunIs("e", repo.RunDone, repo.RunIncomplete))
				run := w.usageRun("e", "ws-a")
				if run.Status != repo.RunDone || run.Pass != 1 || run.NextPage != pages+1 ||
					run.Read != 100*pages || (run.Total < 0) != strings.Contains(hide, "total") {
					t.Errorf("the run says %+v", run)
				}
				w.checkUsage("ws-a", w.totals(run))
			})
		})
	}
}

// Pages that are much longer than requested are not held in memory together.
func TestUsageFetchRequestsLongPagesOneAtATime(t *testing.T) {
	virtual(t, options{Config: together(4)}, func(t *testing.T, w *world) {
		var inFlight, most atomic.Int64
		rows := strings.Repeat("0,", 6000) + "0"
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			page := r.URL.Query().Get("page")
			if page == "" {
				w.Simulator.ServeHTTP(rw, r)
				return
			}
			most.Store(max(most.Load(), inFlight.Add(1)))
			<-time.After(time.Second) // of virtual time: the others have come by then
			inFlight.Add(-1)
			rw.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(rw, `{"success":true,"data":{"usage":[%s],"pagination":{"page":%s,"total_pages":4}}}`,
				rows, page)
		})
		w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
		w.Eventually(w.usageRunIs("e", repo.RunDone))
		if most.Load() != 1 {
			t.Errorf("%d pages of 6001 rows were requested at the same time", most.Load())
		}
	})
}
