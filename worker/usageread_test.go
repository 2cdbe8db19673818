package worker_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// A long run reports its progress, in the log and in the metrics, for as long as it runs here,
// and keeps its lease though it has nothing to record.
func TestUsageReadReportsItsProgress(t *testing.T) {
	o := options{Config: func(c *worker.Config) { c.UsageConcurrency, c.Timeout = 1, workertest.Soon }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 1000})
		held := make(chan struct{})
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			if page(r) == 4 {
				select {
				case <-held:
				case <-r.Context().Done():
				}
			}
			w.Simulator.ServeHTTP(rw, r)
		})
		w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
		w.Eventually(func() error {
			samples := w.Workers[0].Samples()
			done, pages := samples["papermap_usage_run_pages_done{workspace_id=ws-a}"],
				samples["papermap_usage_run_pages{workspace_id=ws-a}"]
			if done != 3 || pages != 10 {
				return fmt.Errorf("%v of %v pages are done in the metrics", done, pages)
			}
			if !strings.Contains(w.Logs.String(),
				`"msg":"syncing usage","worker":0,"workspace_id":"ws-a","event_id":"e",`+
					`"pages_done":3,"pages":10`) {
				return fmt.Errorf("the log says nothing of it")
			}
			if run := w.usageRun("e", "ws-a"); run.UpdatedAt.Sub(run.StartedAt.Time) < 9*time.Second {
				return fmt.Errorf("no sign of life of it since %s", run.UpdatedAt)
			}
			return nil
		})
		close(held)
		w.Eventually(w.usageRunIs("e", repo.RunDone))
		w.Eventually(w.Handled)
		for _, name := range []string{"papermap_usage_run_pages_done", "papermap_usage_run_pages"} {
			if value, ok := w.Workers[0].Samples()[name+"{workspace_id=ws-a}"]; !ok || value != 0 {
				t.Errorf("%s is %v after the end", name, value)
			}
		}
	})
}

func TestUsageReadIsRightInEveryStyle(t *testing.T) {
	for _, style := range simulator.UsageStyles {
		for _, concurrency := range []int{1, 8} {
			o := options{Config: together(concurrency)}
			subtest(t, fmt.Sprint(style, "/", concurrency), o, func(t *testing.T, w *world) {
				month := time.Now().UTC().Format("2006-01")
				special := []simulator.UsageRow{
					{TenantID: "exact", Period: month, Credits: "99999999999999999999.999999999999",
						Requests: 1<<62 + 1},
					{TenantID: "float", Period: month, Credits: "9007199254740993", Requests: 1},
					{TenantID: "tiny", Period: month, Credits: `"0.000000000001"`},
					{TenantID: "exponent", Period: month, Credits: "1.5e3"},
					{TenantID: "quoted \" ' \\ /", Period: month, Credits: `"12.500"`},
					{TenantID: "ключ 🔑", Period: month, Credits: "7"},
					// instead of the generated one
					{TenantID: "org-0000003", Period: month, Credits: "3.25", Requests: 3},
					{TenantID: "bad", Period: month, Credits: "-1"},
					{TenantID: "bad", Period: "last week", Credits: "1"},
					{TenantID: "too large", Period: month, Credits: "1e20"},
				}
				w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 333, Seed: 7, BadEvery: 50,
					Style: style, Rows: special})
				w.Sync("e", "workspace_id", "ws-a")
				w.Eventually(w.usageRunIs("e", repo.RunDone))
				run := w.usageRun("e", "ws-a")
				want := w.totals(run)
				w.checkUsage("ws-a", want)
				rows := int64(333*2 + len(special) - 1)
				rejected := rows - int64(len(want))
				if run.Read != int64(len(want)) || run.Written != run.Read || run.Rejected != rejected ||
					run.Pass != 1 || rejected < 10 {
					t.Errorf("the run says %+v, want %d rows and %d rejected in one pass", run, len(want),
						rejected)
				}
				tenants := map[string]bool{}
				for _, r := range want {
					tenants[r.TenantID] = true
				}
				synced := events.UsageSynced{
					WorkspaceID: "ws-a", FromPeriod: run.FromPeriod, ToPeriod: run.ToPeriod,
					Tenants: len(tenants), Rows: run.Read, RejectedRows: rejected,
				}
				if got := w.synced(); !slices.Equal(got, []events.UsageSynced{synced}) {
					t.Errorf("synced %+v, want %+v", got, synced)
				}
				w.checkRejects(run)

				w.Sync("again", "workspace_id", "ws-a")
				w.Eventually(w.usageRunIs("again", repo.RunDone))
				if again := w.usageRun("again", "ws-a"); again.Written != 0 || again.Read != run.Read ||
					again.Changed != 0 {
					t.Errorf("the run again says %+v", again)
				}
				w.Eventually(w.Handled)
			})
		}
	}
}

// checkRejects holds the run's rejects against its count: each has its place, a reason and what was
// sent.
func (w *world) checkRejects(run repo.Run) {
	w.t.Helper()
	var rejects []struct {
		Page   int    `db:"page"`
		Place  int    `db:"place"`
		Reason string `db:"reason"`
		Raw    string `db:"raw"`
	}
	w.Must(w.SQL.Select(&rejects,
		w.SQL.Rebind(`SELECT page, place, reason, raw FROM usage_rejects
			WHERE run_id = ? ORDER BY page, place`),
		run.ID))
	if int64(len(rejects)) != run.Rejected {
		w.t.Errorf("%d rejects are kept, the run says %d", len(rejects), run.Rejected)
	}
	reasons := map[string]bool{}
	for _, r := range rejects {
		reasons[r.Reason] = true
		if r.Page < 1 || r.Place < 0 || r.Place > 99 || r.Reason == "" || !strings.HasPrefix(r.Raw, "{") {
			w.t.Errorf("reject %+v", r)
		}
	}
	for _, want := range []string{"no tenant", "no credits", "no period", "credits are negative",
		"credits are not a number"} {
		if !reasons[want] {
			w.t.Errorf("no row was rejected because of %q, only %v", want, slices.Sorted(maps.Keys(reasons)))
		}
	}
}

// Rows that come or go shift the others from page to page, past the reader.
func TestUsageReadStartsOverWhenTotalsShift(t *testing.T) {
	for name, c := range map[string]struct {
		style  string
		change func(u *simulator.Usage)
	}{
		"appear":           {"pagination", func(u *simulator.Usage) { u.Tenants += 5 }},
		"appear on a page": {"meta", func(u *simulator.Usage) { u.Tenants += 60 }},
		"vanish":           {"flat", func(u *simulator.Usage) { u.Tenants -= 5 }},
		"vanish, from 0 on": {"items", func(u *simulator.Usage) {
			u.Tenants -= 5
			u.TenantID = func(i int) string { return fmt.Sprintf("org-%07d", i+5) }
		}},
		"none is left": {"pagination", func(u *simulator.Usage) { u.Tenants = 0 }},
		"from 0 on, no totals": {"none", func(u *simulator.Usage) {
			u.Tenants += 5
			u.TenantID = func(i int) string { return fmt.Sprintf("org-%07d", max(0, i-5)+1000*max(0, 5-i)) }
		}},
	} {
		for _, concurrency := range []int{1, 4} {
			o := options{Config: together(concurrency)}
			subtest(t, fmt.Sprint(name, "/", concurrency), o, func(t *testing.T, w *world) {
				w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 350, Seed: 3, BadEvery: 40,
					Style: c.style, BeforeRequest: func(n int, u *simulator.Usage) {
						if n == 4 {
							c.change(u)
						}
					}})
				before, err := w.Simulator.UsageTotals("ws-a", "2026-01", "2026-02")
				w.Must(err)
				w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-02")
				w.Eventually(w.usageRunIs("e", repo.RunDone))
				run := w.usageRun("e", "ws-a")
				after := w.totals(run)
				passes := 2
				if c.style == "none" {
					passes = 1 // it cannot be seen, and the next run corrects it
				}
				if run.Pass != passes || run.Read != int64(len(after)) && passes == 2 {
					t.Errorf("the run says %+v, want %d rows in %d passes", run, len(after), passes)
				}
				if rejects := 0; w.SQL.Get(&rejects, "SELECT COUNT(*) FROM usage_rejects") != nil ||
					int64(rejects) != run.Rejected {
					t.Errorf("%d rejects, the run says %d", rejects, run.Rejected)
				}
				reported := map[papermap.UsageRow]bool{}
				for _, r := range append(before, after...) {
					reported[r] = true
				}
				complete := func() {
					have := map[papermap.UsageRow]bool{}
					for _, r := range w.usageRows("ws-a") {
						have[r] = true
						if !reported[r] {
							t.Errorf("%+v was never reported", r)
						}
					}
					for _, r := range after {
						if !have[r] {
							t.Errorf("%+v is not recorded", r)
						}
					}
				}
				if passes == 2 {
					complete()
				}
				if synced := w.synced(); len(synced) != 1 || synced[0].Rows != run.Read ||
					synced[0].RejectedRows != run.Rejected {
					t.Errorf("synced %+v", synced)
				}
				w.Sync("next", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-02")
				w.Eventually(w.usageRunIs("next", repo.RunDone))
				complete()
				if next := w.usageRun("next", "ws-a"); next.Pass != 1 || next.Written > 0 && passes == 2 {
					t.Errorf("the next run says %+v", next)
				}
			})
		}
	}
}

func TestUsageReadThatAlwaysShiftsIsIncomplete(t *testing.T) {
	virtual(t, options{Config: together(4)}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 350,
			BeforeRequest: func(_ int, u *simulator.Usage) { u.Tenants++ }})
		w.Sync("e", "workspace_id", "ws-a")
		w.Eventually(w.usageRunIs("e", repo.RunIncomplete))
		w.Eventually(w.Handled)
		run := w.usageRun("e", "ws-a")
		if run.Pass != 4 || !strings.Contains(run.Error, "shifted in each of 4 passes") ||
			run.FinishedAt.IsZero() {
			t.Errorf("the run says %+v", run)
		}
		reported := map[papermap.UsageRow]bool{}
		for _, r := range w.totals(run) {
			reported[r] = true
		}
		have := w.usageRows("ws-a")
		for _, r := range have {
			if !reported[r] {
				t.Errorf("%+v was never reported", r)
			}
		}
		if len(have) == 0 {
			t.Error("nothing of it is recorded")
		}
		w.Simulator.ChangeUsage("ws-a", func(u *simulator.Usage) { u.BeforeRequest = nil })
		asked := len(w.Requests("usage"))
		// the event again
		w.Publish(events.TypeUsageSync, object("workspace_id", "ws-a"), "Papermap-Event-Id", "e")
		w.Sync("later", "workspace_id", "ws-b")
		w.Eventually(w.Handled)
		if n := len(w.Requests("usage")); n != asked+1 {
			t.Errorf("%d requests after the end", n-asked-1)
		}
		if synced := w.synced(); len(synced) != 1 || synced[0].WorkspaceID != "ws-b" {
			t.Errorf("synced %+v", synced)
		}
		w.NoDeadLetters()
		w.Sync("at rest", "workspace_id", "ws-a")
		w.Eventually(w.usageRunIs("at rest", repo.RunDone))
		w.checkUsage("ws-a", w.totals(w.usageRun("at rest", "ws-a")))
	})
}

func TestUsageCorrectionsAreCountedAndKept(t *testing.T) {
	virtual(t, options{Config: together(4)}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 250, Seed: 5})
		w.Sync("first", "workspace_id", "ws-a")
		w.Eventually(w.usageRunIs("first", repo.RunDone))
		run := w.usageRun("first", "ws-a")
		before := w.totals(run)
		w.Simulator.ChangeUsage("ws-a", func(u *simulator.Usage) {
			u.Corrections = map[string]int{"org-0000000": 1, "org-0000120": 2, "org-0000249": 1}
			// went up
			u.Rows = []simulator.UsageRow{{TenantID: "org-0000007", Period: run.ToPeriod, Credits: "99999999",
				Requests: 1 << 40}}
		})
		after := w.totals(run)
		changed := int64(0)
		for i := range before {
			if before[i] != after[i] {
				changed++
			}
		}
		w.Sync("second", "workspace_id", "ws-a")
		w.Eventually(w.usageRunIs("second", repo.RunDone))
		w.checkUsage("ws-a", after)
		second := w.usageRun("second", "ws-a")
		if second.Changed != changed-1 || second.Written != changed || changed < 4 {
			t.Errorf("the run says %+v, want %d rows written of which %d went down", second, changed,
				changed-1)
		}
		kept := 0
		w.Must(w.SQL.Get(&kept, "SELECT COUNT(*) FROM usage_changes WHERE run_id = '"+second.ID+"'"))
		if synced := w.synced(); len(synced) != 2 || synced[0].ChangedRows != 0 ||
			synced[1].ChangedRows != changed-1 || int64(kept) != changed-1 {
			t.Errorf("synced %+v, kept %d changes", synced, kept)
		}
	})
}

// The path of one tenant's usage is not documented, and may know no pages.
func TestTenantHistoryMayHaveNoPages(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.answersUsage(func(int) string {
			return `{"success":true,"data":{"usage":[{"credits":1,"requests":1,"period":"2026-01"},` +
				`{"credits":2,"requests":1,"period":"2026-02"}]}}`
		})
		w.Sync("e", "workspace_id", "ws-a", "tenant_id", "t", "from_period", "2026-01", "to_period",
			"2026-02")
		w.Eventually(w.usageRunIs("e", repo.RunDone))
		if have := w.usageRows("ws-a"); len(have) != 2 || len(w.synced()) != 1 {
			t.Errorf("recorded %+v; synced %+v", have, w.synced())
		}
	})
}

func TestTenantUsageIsReadFromItsHistory(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		tenants := []string{"../x", "a/b", "100%", ".", "..", "a b", "a?b=c", "a#b", "a;b", "%2e%2e", "ä€😀",
			"org-0000003", "a+b", "{tenant_id}"}
		month := time.Now().UTC().Format("2006-01")
		var rows []simulator.UsageRow
		for i, tenant := range tenants {
			rows = append(rows, simulator.UsageRow{TenantID: tenant, Period: month,
				Credits: fmt.Sprint(i, ".5"), Requests: int64(i)})
		}
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 1000, Rows: rows})
		w.Simulator.SetUsage("ws-b", simulator.Usage{Rows: []simulator.UsageRow{{TenantID: "of b",
			Period: month, Credits: "1"}}})
		for i, tenant := range tenants {
			id := fmt.Sprint("e", i)
			w.Eventually(w.Handled)
			w.Sync(id, "workspace_id", "ws-a", "tenant_id", tenant)
			w.Eventually(w.usageRunIs(id, repo.RunDone))
			run := w.usageRun(id, "ws-a")
			want := slices.DeleteFunc(w.totals(run),
				func(r papermap.UsageRow) bool { return r.TenantID != tenant })
			have := slices.DeleteFunc(w.usageRows("ws-a"),
				func(r papermap.UsageRow) bool { return r.TenantID != tenant })
			if simulator.UsageChecksum(have) != simulator.UsageChecksum(want) || len(want) == 0 ||
				run.TenantID != tenant {
				t.Errorf("%q: recorded %+v, want %+v; run %+v", tenant, have, want, run)
			}
		}
		for _, r := range w.Requests("usage") {
			if !strings.HasPrefix(r.Path, "/api/v1/external/workspaces/ws-a/tenants/") ||
				!strings.HasSuffix(r.Path, "/usage") || strings.Count(r.Path, "/") != 8 || r.Status != 200 {
				t.Errorf("request %+v", r)
			}
		}
		for i, synced := range w.synced() {
			if synced.TenantID != tenants[i] || synced.Tenants != 1 || synced.Rows < 1 || synced.Rows > 2 {
				t.Errorf("of %q synced %+v", tenants[i], synced)
			}
		}

		// Without a workspace it is the tenant's own; of an unknown tenant, every
		// workspace is asked.
		w.Publish(events.TypeTenantCreated, object("tenant_id", "of b", "name", "B", "workspace_id", "ws-b"))
		w.Eventually(w.Are(repo.Active, "of b"))
		w.Sync("own", "tenant_id", "of b")
		w.Sync("nobody's", "tenant_id", "nobody")
		w.Eventually(w.Handled)
		if a, b := w.usageRun("own", "ws-a"), w.usageRun("own", "ws-b"); a.ID != "" ||
			b.Status != repo.RunDone || b.Read != 1 {
			t.Errorf("the runs are %+v and %+v", a, b)
		}
		if a, b := w.usageRun("nobody's", "ws-a"), w.usageRun("nobody's", "ws-b"); a.Status != repo.RunDone ||
			b.Status != repo.RunDone || a.Read+b.Read != 0 {
			t.Errorf("the runs are %+v and %+v", a, b)
		}
	})
}

func TestTenantHistoryPathIsConfigurable(t *testing.T) {
	o := options{Config: func(c *worker.Config) { c.HistoryPath = "/v2/{tenant_id}/usage/{workspace_id}" }}
	virtual(t, o, func(t *testing.T, w *world) {
		var asked atomic.Value
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			asked.Store(r.URL.EscapedPath())
			rw.Header().Set("Content-Type", "application/json")
			_, _ = rw.Write([]byte(`{"success":true,"data":{"usage":[` +
				`{"tenant_id":"a/b","credits":1.5,"period":"2026-01"}],"total":1}}`))
		})
		w.Sync("e", "workspace_id", "ws-a", "tenant_id", "a/b", "from_period", "2026-01", "to_period",
			"2026-01")
		w.Eventually(w.usageRunIs("e", repo.RunDone))
		if got := asked.Load(); got != "/v2/a%2Fb/usage/ws-a" {
			t.Errorf("asked for %v", got)
		}
		w.checkUsage("ws-a", []papermap.UsageRow{{TenantID: "a/b", Period: "2026-01", Credits: "1.5"}})
	})
}
