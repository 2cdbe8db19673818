package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
)

// sync publishes a usage.sync with this event id. fields are pairs.
func (w *world) sync(id string, fields ...string) {
	w.t.Helper()
	w.publish(events.TypeUsageSync, object(fields...), "Nats-Msg-Id", id)
}

// usageRun is the run of a workspace that an event asked for; the zero one when there is none.
func (w *world) usageRun(event, workspace string) repo.Run {
	w.t.Helper()
	list, err := w.db.Runs(context.Background(), event, 100)
	w.must(err)
	for _, r := range list {
		if r.WorkspaceID == workspace {
			return r
		}
	}
	return repo.Run{}
}

// usageRunIs is a check that the event's run of workspace ws-a has one of these statuses.
func (w *world) usageRunIs(event string, statuses ...repo.RunStatus) func() error {
	return func() error {
		if r := w.usageRun(event, "ws-a"); !slices.Contains(statuses, r.Status) {
			return fmt.Errorf("run %s is %q at page %d of pass %d: %s", event, r.Status, r.NextPage, r.Pass, r.Error)
		}
		return nil
	}
}

// usageRows are the recorded rows of a workspace.
func (w *world) usageRows(workspace string) (rows []papermap.UsageRow) {
	w.t.Helper()
	err := w.db.EachUsage(context.Background(), repo.UsageFilter{WorkspaceID: workspace}, func(u repo.Usage) error {
		rows = append(rows, papermap.UsageRow{TenantID: u.TenantID, Period: u.Period, Credits: u.Credits, Requests: u.Requests})
		return nil
	})
	w.must(err)
	return rows
}

// totals is what the API reports in the months of a run.
func (w *world) totals(run repo.Run) []papermap.UsageRow {
	w.t.Helper()
	rows, err := w.sim.UsageTotals(run.WorkspaceID, run.FromPeriod, run.ToPeriod)
	w.must(err)
	return rows
}

// checkUsage fails the test unless a workspace's recorded rows are exactly those.
func (w *world) checkUsage(workspace string, want []papermap.UsageRow) {
	w.t.Helper()
	have := w.usageRows(workspace)
	if simulator.UsageChecksum(have) == simulator.UsageChecksum(want) {
		return
	}
	missing := map[papermap.UsageRow]bool{}
	for _, r := range want {
		missing[r] = true
	}
	for _, r := range have {
		if !missing[r] {
			w.t.Errorf("%s: %+v is recorded, and the API does not say so", workspace, r)
		}
		delete(missing, r)
	}
	for r := range missing {
		w.t.Errorf("%s: %+v is not recorded", workspace, r)
	}
}

// synced are the usage.synced events, in their order.
func (w *world) synced() (list []events.UsageSynced) {
	w.t.Helper()
	eventually(w.t, soon, w.relayed)
	seen := map[string]bool{}
	for _, msg := range w.stored("PAPERMAP", "papermap.events.usage.synced") {
		schematest.Validate(w.t, "cloudevent", msg.Data)
		var e struct {
			ID, Type, Subject string
			Data              json.RawMessage
		}
		w.must(json.Unmarshal(msg.Data, &e))
		schematest.Validate(w.t, "usage.synced", e.Data)
		var data events.UsageSynced
		w.must(json.Unmarshal(e.Data, &data))
		if e.Type != "usage.synced" || msg.Header.Get("Nats-Msg-Id") != e.ID || msg.Header.Get("content-type") != "application/cloudevents+json" {
			w.t.Errorf("no good event: %v %s", msg.Header, msg.Data)
		}
		if !seen[e.ID] {
			list = append(list, data)
		}
		seen[e.ID] = true
	}
	return list
}

// pagesAsked counts the requests for each page of a workspace's usage, by what the simulator answered.
func (w *world) pagesAsked(workspace string) map[int]int {
	w.t.Helper()
	pages := map[int]int{}
	for _, r := range w.requests("usage") {
		if r.WorkspaceID == workspace && r.Status == http.StatusOK {
			query, err := url.ParseQuery(r.Query)
			w.must(err)
			page, err := strconv.Atoi(query.Get("page"))
			w.must(err)
			pages[page]++
		}
	}
	return pages
}

// once is a map of the pages from 1 to n that each were asked for once.
func once(n int) map[int]int {
	pages := map[int]int{}
	for i := range n {
		pages[i+1] = 1
	}
	return pages
}

// page is the page that a usage request asks for.
func page(r *http.Request) int {
	n, _ := strconv.Atoi(r.URL.Query().Get("page"))
	return n
}

// refusePages answers the requests for usage that wrong selects with a status and a body; the others as usual.
func (w *world) refusePages(status int, wrong func(r *http.Request) bool) {
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !wrong(r) {
			w.sim.ServeHTTP(rw, r)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		if status == http.StatusTooManyRequests {
			rw.Header().Set("Retry-After", "4")
		}
		if status/100 == 3 {
			rw.Header().Set("Location", "/elsewhere")
		}
		rw.WriteHeader(status)
		_, _ = rw.Write([]byte(`{"success":false,"message":"no usage today"}`))
	})
}

func together(n int) func(*worker.Config) {
	return func(c *worker.Config) { c.UsageConcurrency = n }
}

func TestUsageIsRightHoweverTheAPIWritesIt(t *testing.T) {
	t.Parallel()
	for _, style := range simulator.UsageStyles {
		for _, concurrency := range []int{1, 8} {
			t.Run(fmt.Sprint(style, "/", concurrency), func(t *testing.T) {
				t.Parallel()
				w := start(t, options{config: together(concurrency)})
				month := time.Now().UTC().Format("2006-01")
				special := []simulator.UsageRow{
					{TenantID: "exact", Period: month, Credits: "99999999999999999999.999999999999", Requests: 1<<62 + 1},
					{TenantID: "float", Period: month, Credits: "9007199254740993", Requests: 1},
					{TenantID: "tiny", Period: month, Credits: `"0.000000000001"`},
					{TenantID: "exponent", Period: month, Credits: "1.5e3"},
					{TenantID: "quoted \" ' \\ /", Period: month, Credits: `"12.500"`},
					{TenantID: "ключ 🔑", Period: month, Credits: "7"},
					{TenantID: "org-0000003", Period: month, Credits: "3.25", Requests: 3}, // instead of the generated one
					{TenantID: "bad", Period: month, Credits: "-1"},
					{TenantID: "bad", Period: "last week", Credits: "1"},
					{TenantID: "too large", Period: month, Credits: "1e20"},
				}
				w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 333, Seed: 7, BadEvery: 50, Style: style, Rows: special})
				w.sync("e", "workspace_id", "ws-a")
				eventually(t, soon, w.usageRunIs("e", repo.RunDone))
				run := w.usageRun("e", "ws-a")
				want := w.totals(run)
				w.checkUsage("ws-a", want)
				rows := int64(333*2 + len(special) - 1)
				rejected := rows - int64(len(want))
				if run.Read != int64(len(want)) || run.Written != run.Read || run.Rejected != rejected || run.Pass != 1 || rejected < 10 {
					t.Errorf("the run says %+v, want %d rows and %d rejected in one pass", run, len(want), rejected)
				}
				tenants := map[string]bool{}
				for _, r := range want {
					tenants[r.TenantID] = true
				}
				told := events.UsageSynced{
					WorkspaceID: "ws-a", FromPeriod: run.FromPeriod, ToPeriod: run.ToPeriod, Tenants: len(tenants), Rows: run.Read, RejectedRows: rejected,
				}
				if got := w.synced(); !slices.Equal(got, []events.UsageSynced{told}) {
					t.Errorf("told %+v, want %+v", got, told)
				}
				w.checkRejects(run)

				w.sync("again", "workspace_id", "ws-a")
				eventually(t, soon, w.usageRunIs("again", repo.RunDone))
				if again := w.usageRun("again", "ws-a"); again.Written != 0 || again.Read != run.Read || again.Changed != 0 {
					t.Errorf("the run again says %+v", again)
				}
				eventually(t, soon, w.settled)
			})
		}
	}
}

// checkRejects holds the run's rejects against its count: each has its place, a reason and what was sent.
func (w *world) checkRejects(run repo.Run) {
	w.t.Helper()
	var rejects []struct {
		Page   int    `db:"page"`
		Place  int    `db:"place"`
		Reason string `db:"reason"`
		Raw    string `db:"raw"`
	}
	w.must(w.sql.Select(&rejects, "SELECT page, place, reason, raw FROM usage_rejects WHERE run_id = '"+run.ID+"' ORDER BY page, place"))
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
	for _, want := range []string{"no tenant", "no credits", "no period", "credits are negative", "credits are not a number"} {
		if !reasons[want] {
			w.t.Errorf("no row was rejected because of %q, only %v", want, slices.Sorted(maps.Keys(reasons)))
		}
	}
}

// Rows that come or go shift the others from page to page, past the reader.
func TestUsageThatShiftsWhileItIsReadIsReadAgain(t *testing.T) {
	t.Parallel()
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
		"nobody is left": {"pagination", func(u *simulator.Usage) { u.Tenants = 0 }},
		"from 0 on, no totals told": {"none", func(u *simulator.Usage) {
			u.Tenants += 5
			u.TenantID = func(i int) string { return fmt.Sprintf("org-%07d", max(0, i-5)+1000*max(0, 5-i)) }
		}},
	} {
		for _, concurrency := range []int{1, 4} {
			t.Run(fmt.Sprint(name, "/", concurrency), func(t *testing.T) {
				t.Parallel()
				w := start(t, options{config: together(concurrency)})
				w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 350, Seed: 3, BadEvery: 40, Style: c.style, BeforeRequest: func(n int, u *simulator.Usage) {
					if n == 4 {
						c.change(u)
					}
				}})
				before, err := w.sim.UsageTotals("ws-a", "2026-01", "2026-02")
				w.must(err)
				w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-02")
				eventually(t, soon, w.usageRunIs("e", repo.RunDone))
				run := w.usageRun("e", "ws-a")
				after := w.totals(run)
				passes := 2
				if c.style == "none" {
					passes = 1 // nobody can tell, and the next run sets it right
				}
				if run.Pass != passes || run.Read != int64(len(after)) && passes == 2 {
					t.Errorf("the run says %+v, want %d rows in %d passes", run, len(after), passes)
				}
				if rejects := 0; w.sql.Get(&rejects, "SELECT COUNT(*) FROM usage_rejects") != nil || int64(rejects) != run.Rejected {
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
				if told := w.synced(); len(told) != 1 || told[0].Rows != run.Read || told[0].RejectedRows != run.Rejected {
					t.Errorf("told %+v", told)
				}
				w.sync("next", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-02")
				eventually(t, soon, w.usageRunIs("next", repo.RunDone))
				complete()
				if next := w.usageRun("next", "ws-a"); next.Pass != 1 || next.Written > 0 && passes == 2 {
					t.Errorf("the next run says %+v", next)
				}
			})
		}
	}
}

func TestUsageThatNeverStandsStillIsIncompleteAndSaysSo(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(4)})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 350, BeforeRequest: func(_ int, u *simulator.Usage) { u.Tenants++ }})
	w.sync("e", "workspace_id", "ws-a")
	eventually(t, soon, w.usageRunIs("e", repo.Incomplete))
	eventually(t, soon, w.settled)
	run := w.usageRun("e", "ws-a")
	if run.Pass != 4 || !strings.Contains(run.Error, "shifted in each of 4 passes") || run.FinishedAt.IsZero() {
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
	w.sim.ChangeUsage("ws-a", func(u *simulator.Usage) { u.BeforeRequest = nil })
	asked := len(w.requests("usage"))
	w.publish(events.TypeUsageSync, object("workspace_id", "ws-a"), "Papermap-Event-Id", "e") // the event again
	w.sync("later", "workspace_id", "ws-b")
	eventually(t, soon, w.settled)
	if n := len(w.requests("usage")); n != asked+1 {
		t.Errorf("%d requests after the end", n-asked-1)
	}
	if told := w.synced(); len(told) != 1 || told[0].WorkspaceID != "ws-b" {
		t.Errorf("told %+v", told)
	}
	if n := len(w.dead()); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	w.sync("at rest", "workspace_id", "ws-a")
	eventually(t, soon, w.usageRunIs("at rest", repo.RunDone))
	w.checkUsage("ws-a", w.totals(w.usageRun("at rest", "ws-a")))
}

func TestTotalsThatTheAPICorrectsAreCountedAndKept(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(4)})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 250, Seed: 5})
	w.sync("first", "workspace_id", "ws-a")
	eventually(t, soon, w.usageRunIs("first", repo.RunDone))
	run := w.usageRun("first", "ws-a")
	before := w.totals(run)
	w.sim.ChangeUsage("ws-a", func(u *simulator.Usage) {
		u.Corrections = map[string]int{"org-0000000": 1, "org-0000120": 2, "org-0000249": 1}
		u.Rows = []simulator.UsageRow{{TenantID: "org-0000007", Period: run.ToPeriod, Credits: "99999999", Requests: 1 << 40}} // went up
	})
	after := w.totals(run)
	changed := int64(0)
	for i := range before {
		if before[i] != after[i] {
			changed++
		}
	}
	w.sync("second", "workspace_id", "ws-a")
	eventually(t, soon, w.usageRunIs("second", repo.RunDone))
	w.checkUsage("ws-a", after)
	second := w.usageRun("second", "ws-a")
	if second.Changed != changed-1 || second.Written != changed || changed < 4 {
		t.Errorf("the run says %+v, want %d rows written of which %d went down", second, changed, changed-1)
	}
	kept := 0
	w.must(w.sql.Get(&kept, "SELECT COUNT(*) FROM usage_changes WHERE run_id = '"+second.ID+"'"))
	if told := w.synced(); len(told) != 2 || told[0].ChangedRows != 0 || told[1].ChangedRows != changed-1 || int64(kept) != changed-1 {
		t.Errorf("told %+v, kept %d changes", told, kept)
	}
}

// Whatever the API answers in the middle of a run, short of a refusal, the run waits and goes on where it stopped.
func TestARunWaitsForTheAPIAndGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]int{
		"too many requests": 429, "internal error": 500, "unavailable": 503, "credentials": 401, "forbidden": 403, "not there": 404, "redirected": 302,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{config: together(1)})
			w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
			var ill atomic.Bool
			var refused atomic.Int64
			ill.Store(true)
			w.refusePages(status, func(r *http.Request) bool {
				if page(r) != 4 || !ill.Load() {
					return false
				}
				refused.Add(1)
				return true
			})
			w.sync("e", "workspace_id", "ws-a")
			eventually(t, soon, func() error {
				r := w.usageRun("e", "ws-a")
				if r.Status != repo.Running || r.NextPage != 4 || !strings.Contains(r.Error, "no usage today") && !strings.Contains(r.Error, strconv.Itoa(status)) {
					return fmt.Errorf("the run is %+v", r)
				}
				return nil
			})
			tried := refused.Load()
			eventually(t, soon, func() error { // it comes again, without blame
				if n := refused.Load(); n == tried {
					return fmt.Errorf("asked %d times for the page", n)
				}
				return nil
			})
			if told := w.synced(); len(told) > 0 || w.usageRun("e", "ws-a").Status != repo.Running {
				t.Errorf("told %+v before its end", told)
			}
			ill.Store(false)
			eventually(t, soon, w.usageRunIs("e", repo.RunDone))
			eventually(t, soon, w.settled)
			run := w.usageRun("e", "ws-a")
			w.checkUsage("ws-a", w.totals(run))
			if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
				t.Errorf("pages that were answered: %v, want each of 8 once", got)
			}
			if run.Pass != 1 || run.Error != "" || len(w.synced()) != 1 {
				t.Errorf("the run says %+v, told %+v", run, w.synced())
			}
			if n := len(w.dead()); n > 0 {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}

// A page that fails once is asked for again inside the call, and nobody notices.
func TestRandomFaultsDoNotDisturbARun(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(8), faults: []string{
		"on=usage rate=0.05 status=500", "on=usage rate=0.05 status=429 retry-after=1", "on=usage rate=0.05 drop=after", "on=usage rate=0.05 truncate=true",
	}})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 2000, BadEvery: 70})
	w.sync("e", "workspace_id", "ws-a")
	eventually(t, 2*soon, w.usageRunIs("e", repo.RunDone))
	run := w.usageRun("e", "ws-a")
	w.checkUsage("ws-a", w.totals(run))
	if run.Pass != 1 || run.Read+run.Rejected != 4000 || len(w.dead()) > 0 {
		t.Errorf("the run says %+v, %d dead letters", run, len(w.dead()))
	}
}

func TestARefusedRunFailsWithTheReasonAndMayBeAskedForAgain(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(1)})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
	w.refusePages(http.StatusBadRequest, func(r *http.Request) bool { return page(r) == 3 })
	w.sync("manual", "workspace_id", "ws-a")
	eventually(t, soon, w.usageRunIs("manual", repo.RunFailed))
	eventually(t, soon, w.settled)
	w.sync("usage-tick.ws-a.1", "workspace_id", "ws-a")
	eventually(t, soon, w.usageRunIs("usage-tick.ws-a.1", repo.RunFailed))
	eventually(t, soon, w.settled)
	letters := w.dead()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, want the manual event's alone", len(letters))
	}
	h := letters[0].Header
	if h.Get("Papermap-Event-Id") != "manual" || h.Get("Papermap-Error-Code") != "API_REFUSED" || h.Get("Papermap-Side-Effect") != "none" ||
		!strings.Contains(h.Get("Papermap-Error"), "no usage today") || letters[0].Subject != "papermap.dead.usage.sync" {
		t.Errorf("the dead letter is %s %v", letters[0].Subject, h)
	}
	run := w.usageRun("manual", "ws-a")
	if !strings.Contains(run.Error, "no usage today") || run.NextPage != 3 || run.FinishedAt.IsZero() || len(w.synced()) > 0 {
		t.Errorf("the run says %+v, told %+v", run, w.synced())
	}

	w.intercept(nil) // replayed, it goes on where it stopped
	asked := len(w.requests("usage"))
	w.publish(events.TypeUsageSync, object("workspace_id", "ws-a"), "Papermap-Event-Id", "manual")
	eventually(t, soon, w.usageRunIs("manual", repo.RunDone))
	if again := w.usageRun("manual", "ws-a"); again.ID != run.ID || again.Error != "" || again.Read != 800 {
		t.Errorf("the run again says %+v", again)
	}
	if n := len(w.requests("usage")) - asked; n != 6 {
		t.Errorf("%d requests for the 6 pages that were missing", n)
	}
	w.checkUsage("ws-a", w.totals(run))
}

func TestARefusalOfOneWorkspaceDoesNotKeepTheOthersOut(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	for _, workspace := range []string{"ws-a", "ws-b"} {
		w.sim.SetUsage(workspace, simulator.Usage{Tenants: 10})
	}
	var ill atomic.Bool
	ill.Store(true)
	w.refusePages(http.StatusUnprocessableEntity, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "ws-a") })
	w.sync("refused")
	eventually(t, soon, w.settled)
	if a, b := w.usageRun("refused", "ws-a"), w.usageRun("refused", "ws-b"); a.Status != repo.RunFailed || b.Status != repo.RunDone || len(w.dead()) != 1 {
		t.Errorf("the runs are %+v and %+v, %d dead letters", a, b, len(w.dead()))
	}

	w.refusePages(http.StatusUnauthorized, func(r *http.Request) bool { return ill.Load() && strings.Contains(r.URL.Path, "ws-a") })
	w.sync("waits")
	eventually(t, soon, func() error {
		if b := w.usageRun("waits", "ws-b"); b.Status != repo.RunDone {
			return fmt.Errorf("the run of ws-b is %+v", b)
		}
		return nil
	})
	if a := w.usageRun("waits", "ws-a"); a.Status != repo.Running {
		t.Errorf("the run of ws-a is %+v", a)
	}
	ill.Store(false)
	eventually(t, soon, w.usageRunIs("waits", repo.RunDone))
	eventually(t, soon, w.settled)
	if told := w.synced(); len(told) != 3 || len(w.dead()) != 1 {
		t.Errorf("told %+v, %d dead letters", told, len(w.dead()))
	}
}

func TestADrainedRunGoesOnAtOnceWithAnotherWorker(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(1)})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
	held := make(chan struct{})
	var waits atomic.Int64
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		if page(r) == 4 && waits.Add(1) == 1 {
			<-held
		}
		w.sim.ServeHTTP(rw, r)
	})
	w.sync("e", "workspace_id", "ws-a")
	eventually(t, soon, func() error {
		if waits.Load() == 0 {
			return fmt.Errorf("the run is %+v", w.usageRun("e", "ws-a"))
		}
		return nil
	})
	second := w.startWorker()
	w.workers[0].cancel()
	eventually(t, soon, func() error {
		if s := w.workers[0].State(t.Context()); s.Ready {
			return fmt.Errorf("it does not drain")
		}
		return nil
	})
	close(held)
	w.workers[0].stop()
	eventually(t, 15*time.Second, w.usageRunIs("e", repo.RunDone)) // its lease is of 25
	second.stop()
	if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
		t.Errorf("pages that were answered: %v, want each of 8 once", got)
	}
	run := w.usageRun("e", "ws-a")
	w.checkUsage("ws-a", w.totals(run))
	if len(w.synced()) != 1 || run.Pass != 1 || run.Error != "" {
		t.Errorf("the run says %+v, told %+v", run, w.synced())
	}
}

// answersUsage has the API answer each page with what is made of its number.
func (w *world) answersUsage(answer func(page int) string) {
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		page, err := strconv.Atoi(r.URL.Query().Get("page"))
		if err != nil { // a probe
			w.sim.ServeHTTP(rw, r)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, answer(page))
	})
}

// Where the API says that there is more, no total of its own keeps a run from reading it; and where it wrongly says so, one more
// page is asked for.
func TestARunReadsOnWhereTheAPISaysThatThereIsMore(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		pages  int
		paging func(page int) string
	}{
		{"the total is of the page", 3, func(p int) string {
			return fmt.Sprintf(`{"page":%d,"per_page":100,"total":100,"has_more":%t}`, p, p < 3)
		}},
		{"the total is of the page, which has no number", 3, func(p int) string { return fmt.Sprintf(`{"total":100,"has_next":%t}`, p < 3) }},
		{"one page, and there is said to be more", 1, func(p int) string { return fmt.Sprintf(`{"page":%d,"per_page":100,"total":100,"has_more":true}`, p) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{})
			w.answersUsage(func(page int) string {
				var rows []string
				for i := range 100 {
					if page <= test.pages {
						rows = append(rows, fmt.Sprintf(`{"tenant_id":"t-%d-%d","credits":1,"period":"2026-01"}`, page, i))
					}
				}
				return fmt.Sprintf(`{"success":true,"data":{"usage":[%s]},"pagination":%s}`, strings.Join(rows, ","), test.paging(page))
			})
			w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			eventually(t, soon, w.usageRunIs("e", repo.RunDone))
			if have := len(w.usageRows("ws-a")); have != 100*test.pages || len(w.synced()) != 1 {
				t.Errorf("%d rows recorded of %d, told %+v", have, 100*test.pages, w.synced())
			}
		})
	}
}

// The path of one tenant's usage is not documented, and may know no pages.
func TestOneTenantsHistoryMayHaveNoPages(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.answersUsage(func(int) string {
		return `{"success":true,"data":{"usage":[{"credits":1,"requests":1,"period":"2026-01"},{"credits":2,"requests":1,"period":"2026-02"}]}}`
	})
	w.sync("e", "workspace_id", "ws-a", "tenant_id", "t", "from_period", "2026-01", "to_period", "2026-02")
	eventually(t, soon, w.usageRunIs("e", repo.RunDone))
	if have := w.usageRows("ws-a"); len(have) != 2 || len(w.synced()) != 1 {
		t.Errorf("recorded %+v, told %+v", have, w.synced())
	}
}

func TestOneTenantsUsageIsReadOverItsHistory(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	tenants := []string{"../x", "a/b", "100%", ".", "..", "a b", "a?b=c", "a#b", "a;b", "%2e%2e", "ä€😀", "org-0000003", "a+b", "{tenant_id}"}
	month := time.Now().UTC().Format("2006-01")
	var rows []simulator.UsageRow
	for i, tenant := range tenants {
		rows = append(rows, simulator.UsageRow{TenantID: tenant, Period: month, Credits: fmt.Sprint(i, ".5"), Requests: int64(i)})
	}
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 1000, Rows: rows})
	w.sim.SetUsage("ws-b", simulator.Usage{Rows: []simulator.UsageRow{{TenantID: "of b", Period: month, Credits: "1"}}})
	for i, tenant := range tenants {
		id := fmt.Sprint("e", i)
		eventually(t, soon, w.settled)
		w.sync(id, "workspace_id", "ws-a", "tenant_id", tenant)
		eventually(t, soon, w.usageRunIs(id, repo.RunDone))
		run := w.usageRun(id, "ws-a")
		want := slices.DeleteFunc(w.totals(run), func(r papermap.UsageRow) bool { return r.TenantID != tenant })
		have := slices.DeleteFunc(w.usageRows("ws-a"), func(r papermap.UsageRow) bool { return r.TenantID != tenant })
		if simulator.UsageChecksum(have) != simulator.UsageChecksum(want) || len(want) == 0 || run.TenantID != tenant {
			t.Errorf("%q: recorded %+v, want %+v; run %+v", tenant, have, want, run)
		}
	}
	for _, r := range w.requests("usage") {
		if !strings.HasPrefix(r.Path, "/api/v1/external/workspaces/ws-a/tenants/") || !strings.HasSuffix(r.Path, "/usage") || strings.Count(r.Path, "/") != 8 || r.Status != 200 {
			t.Errorf("request %+v", r)
		}
	}
	for i, told := range w.synced() {
		if told.TenantID != tenants[i] || told.Tenants != 1 || told.Rows < 1 || told.Rows > 2 {
			t.Errorf("of %q told %+v", tenants[i], told)
		}
	}

	// Without a workspace it is the tenant's own; of a tenant that nobody knows, every workspace is asked.
	w.publish(events.TypeTenantCreated, object("tenant_id", "of b", "name", "B", "workspace_id", "ws-b"))
	eventually(t, soon, w.are(repo.Active, "of b"))
	w.sync("own", "tenant_id", "of b")
	w.sync("nobody's", "tenant_id", "nobody")
	eventually(t, soon, w.settled)
	if a, b := w.usageRun("own", "ws-a"), w.usageRun("own", "ws-b"); a.ID != "" || b.Status != repo.RunDone || b.Read != 1 {
		t.Errorf("the runs are %+v and %+v", a, b)
	}
	if a, b := w.usageRun("nobody's", "ws-a"), w.usageRun("nobody's", "ws-b"); a.Status != repo.RunDone || b.Status != repo.RunDone || a.Read+b.Read != 0 {
		t.Errorf("the runs are %+v and %+v", a, b)
	}
}

func TestAnUnknownWorkspacesSyncIsADeadLetter(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.sync("e", "workspace_id", "ws-z")
	eventually(t, soon, w.settled)
	letters := w.dead()
	if len(letters) != 1 || letters[0].Header.Get("Papermap-Error-Code") != "UNKNOWN_WORKSPACE" || letters[0].Header.Get("Papermap-Event-Id") != "e" {
		t.Errorf("dead letters %+v", letters)
	}
	if list, err := w.db.Runs(t.Context(), "", 10); err != nil || len(list)+len(w.requests("usage")) > 0 {
		t.Errorf("runs %+v (%v), requests %+v", list, err, w.requests("usage"))
	}
}

// holdPage makes the API wait with its first answer to a request for a page until release.
func (w *world) holdPage(n int) (reached func() error, release func()) {
	held := make(chan struct{})
	var seen atomic.Int64
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && page(r) == n && seen.Add(1) == 1 {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		w.sim.ServeHTTP(rw, r)
	})
	return func() error {
		if seen.Load() == 0 {
			return fmt.Errorf("nobody has asked for page %d", n)
		}
		return nil
	}, func() { close(held) }
}

func TestRunsOfAWorkspaceFollowOneAnotherAndTicksDoNotQueue(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(2)})
	w.startWorker()
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
	w.sim.SetUsage("ws-b", simulator.Usage{Tenants: 400})
	reached, release := w.holdPage(3)
	w.sync("first", "workspace_id", "ws-a")
	eventually(t, soon, reached)
	w.sync("second", "workspace_id", "ws-a")
	w.sync("usage-tick.ws-a.1", "workspace_id", "ws-a")
	w.sync("other", "workspace_id", "ws-b")
	eventually(t, soon, w.usageRunIs("usage-tick.ws-a.1", repo.Skipped))
	eventually(t, soon, func() error { // another workspace does not wait
		if r := w.usageRun("other", "ws-b"); r.Status != repo.RunDone {
			return fmt.Errorf("the run of ws-b is %+v", r)
		}
		return nil
	})
	if tick := w.usageRun("usage-tick.ws-a.1", "ws-a"); tick.Error != "the run of event first does its work" ||
		!strings.Contains(w.logs.String(), "skipped a scheduled usage run: another does its work") {
		t.Errorf("the skipped run says %+v", tick)
	}
	if second := w.usageRun("second", "ws-a"); second.ID != "" {
		t.Errorf("the second run began beside the first: %+v", second)
	}
	release()
	eventually(t, soon, w.usageRunIs("second", repo.RunDone))
	eventually(t, soon, w.settled)
	first, second := w.usageRun("first", "ws-a"), w.usageRun("second", "ws-a")
	if first.Status != repo.RunDone || second.StartedAt.Before(first.FinishedAt.Time) || second.Written != 0 || second.Read != 800 {
		t.Errorf("the runs are %+v and %+v", first, second)
	}
	if told := w.synced(); len(told) != 3 || len(w.dead()) > 0 {
		t.Errorf("told %+v, %d dead letters", told, len(w.dead()))
	}
}

// A run that waits for Papermap is not over: the ticks that come meanwhile neither begin another nor cut its waiting short.
func TestTicksAreSkippedAndAskNothingWhileARunWaits(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(1)})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
	var ill atomic.Bool
	var mu sync.Mutex
	var refused []time.Time
	ill.Store(true)
	w.refusePages(http.StatusTooManyRequests, func(r *http.Request) bool { // for 4 s
		if page(r) != 4 || !ill.Load() {
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
	w.sync("usage-tick.ws-a.1", "workspace_id", "ws-a")
	for n := range 3 {
		eventually(t, soon, waits(n+1))
		id := fmt.Sprint("usage-tick.ws-a.", n+2)
		w.sync(id, "workspace_id", "ws-a")
		eventually(t, soon, w.usageRunIs(id, repo.Skipped))
	}
	ill.Store(false)
	eventually(t, soon, w.usageRunIs("usage-tick.ws-a.1", repo.RunDone))
	eventually(t, soon, w.settled)
	if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
		t.Errorf("pages that were answered: %v, want each of 8 once", got)
	}
	for i := range refused[1:] {
		if waited := refused[i+1].Sub(refused[i]); waited < 4*time.Second {
			t.Errorf("asked again after %v, where Papermap had asked for 4 s", waited)
		}
	}
}

// Only a run that reads what a tick would read takes its place.
func TestATickWaitsForARunOfOneTenantAndIsMade(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(1)})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 10})
	reached, release := w.holdPage(1)
	w.sync("one", "workspace_id", "ws-a", "tenant_id", "org-0000001", "from_period", "2020-01", "to_period", "2020-01")
	eventually(t, soon, reached)
	w.sync("usage-tick.ws-a.1", "workspace_id", "ws-a")
	eventually(t, soon, func() error {
		if !strings.Contains(w.logs.String(), repo.ErrRunBusy.Error()) {
			return errors.New("nobody has looked at the tick")
		}
		return nil
	})
	release()
	eventually(t, soon, w.usageRunIs("usage-tick.ws-a.1", repo.RunDone))
	eventually(t, soon, w.settled)
	for _, told := range w.synced() {
		if want := map[bool]string{true: "org-0000001"}[told.FromPeriod == "2020-01"]; told.TenantID != want {
			t.Errorf("told %+v, want tenant %q", told, want)
		}
	}
}

// A workspace that refuses is asked once, however long the event waits for another workspace's sake; then it is a dead letter.
func TestARefusedRunIsNotMadeAgainForAnotherWorkspacesSake(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	var ill atomic.Bool
	var a, b atomic.Int64
	ill.Store(true)
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		status := http.StatusUnauthorized
		switch {
		case strings.Contains(r.URL.Path, "ws-a"):
			status = http.StatusUnprocessableEntity
			a.Add(1)
		case ill.Load():
			b.Add(1)
		default:
			w.sim.ServeHTTP(rw, r)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		_, _ = rw.Write([]byte(`{"success":false,"message":"no usage today"}`))
	})
	w.sync("e")
	eventually(t, soon, func() error {
		if b.Load() < 3 {
			return fmt.Errorf("ws-b was asked %d times", b.Load())
		}
		return nil
	})
	ill.Store(false)
	eventually(t, soon, w.settled)
	failures := strings.Count(w.logs.String(), `"a usage run failed: Papermap refuses"`)
	if counted, _ := metric(t, w.workers[0], "papermap_usage_runs_total", "failed"); a.Load() != 1 || failures != 1 || counted != 1 {
		t.Errorf("the workspace that refuses was asked %d times, its failure logged %d and counted %v times", a.Load(), failures, counted)
	}
	letters := w.dead()
	if len(letters) != 1 || letters[0].Header.Get("Papermap-Error-Code") != "API_REFUSED" || !strings.Contains(letters[0].Header.Get("Papermap-Error"), "no usage today") {
		t.Errorf("dead letters %+v", letters)
	}
	if b := w.usageRun("e", "ws-b"); b.Status != repo.RunDone {
		t.Errorf("the run of ws-b is %+v", b)
	}
}

// Who waits for a sync of all workspaces must know from the beginning how many runs that are.
func TestASyncOfAllWorkspacesShowsAllItsRunsFromTheBeginning(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(1)})
	reached, release := w.holdPage(1)
	w.sync("e")
	eventually(t, soon, reached)
	begun, planned := w.usageRun("e", "ws-a"), w.usageRun("e", "ws-b")
	if begun.Status != repo.Running || begun.Pass != 1 || planned.Status != repo.Running || planned.Pass != 0 {
		t.Errorf("while the first is at work, the runs are %+v and %+v", begun, planned)
	}
	release()
	eventually(t, soon, w.settled)
	if b := w.usageRun("e", "ws-b"); b.Status != repo.RunDone || b.ID != planned.ID || b.StartedAt.Before(w.usageRun("e", "ws-a").FinishedAt.Time) {
		t.Errorf("the second run is %+v", b)
	}
}

// Papermap's limit is shared: tenants get their dashboards while a run takes all that it can get of PAPERMAP_MAX_RPS.
func TestARunLeavesTenantsTheirShareOfTheRequests(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: func(c *worker.Config) { c.MaxRPS, c.UsageConcurrency = 2, 8 }})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 100_000})
	w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
	eventually(t, soon, func() error {
		if r := w.usageRun("e", "ws-a"); r.NextPage < 3 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	began := time.Now()
	w.create("a", "b", "c", "d")
	eventually(t, soon, w.are(repo.Active, "a", "b", "c", "d"))
	if took := time.Since(began); took > 10*time.Second { // 2 s at best
		t.Errorf("four dashboards took %v at 2 requests per second", took)
	}
}

// A run is an event in hand for as long as it takes: tenants do not wait for its end.
func TestRunsLeaveSlotsForTenants(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*worker.Config){
		"few slots":    func(c *worker.Config) { c.Concurrency = 2 },
		"few requests": func(c *worker.Config) { c.MaxRPS = 0.9 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{config: change})
			for _, workspace := range []string{"ws-a", "ws-b"} {
				w.sim.SetUsage(workspace, simulator.Usage{Tenants: 400})
			}
			held := make(chan struct{})
			var holding atomic.Int64
			w.intercept(func(rw http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && page(r) > 0 {
					holding.Add(1)
					select {
					case <-held:
					case <-r.Context().Done():
					}
				}
				w.sim.ServeHTTP(rw, r)
			})
			w.sync("a", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
			w.sync("b", "workspace_id", "ws-b", "from_period", "2026-01", "to_period", "2026-01")
			eventually(t, soon, func() error {
				if holding.Load() == 0 {
					return errors.New("no run is at work")
				}
				return nil
			})
			w.create("x")
			eventually(t, 9*time.Second, w.are(repo.Active, "x")) // a request takes 10 at most
			close(held)
			eventually(t, soon, w.settled)
		})
	}
}

func TestTheHistorysPathIsWhatTheConfigurationSays(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: func(c *worker.Config) { c.HistoryPath = "/v2/{tenant_id}/usage/{workspace_id}" }})
	var asked atomic.Value
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.EscapedPath())
		rw.Header().Set("Content-Type", "application/json")
		_, _ = rw.Write([]byte(`{"success":true,"data":{"usage":[{"tenant_id":"a/b","credits":1.5,"period":"2026-01"}],"total":1}}`))
	})
	w.sync("e", "workspace_id", "ws-a", "tenant_id", "a/b", "from_period", "2026-01", "to_period", "2026-01")
	eventually(t, soon, w.usageRunIs("e", repo.RunDone))
	if got := asked.Load(); got != "/v2/a%2Fb/usage/ws-a" {
		t.Errorf("asked for %v", got)
	}
	w.checkUsage("ws-a", []papermap.UsageRow{{TenantID: "a/b", Period: "2026-01", Credits: "1.5"}})
}

// Copies of one event, in three workers' hands at once, are one run.
func TestCopiesOfASyncAreOneRunOverAllWorkers(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: together(1)})
	w.startWorker()
	w.startWorker()
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
	for range 30 {
		w.publish(events.TypeUsageSync, object("workspace_id", "ws-a"), "Papermap-Event-Id", "e")
	}
	eventually(t, soon, w.settled)
	if list, err := w.db.Runs(t.Context(), "", 10); err != nil || len(list) != 1 || list[0].Status != repo.RunDone {
		t.Errorf("runs %+v (%v)", list, err)
	}
	if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
		t.Errorf("pages that were answered: %v, want each of 8 once", got)
	}
	if told := w.synced(); len(told) != 1 {
		t.Errorf("told %+v", told)
	}
}

func TestSyncedUsageIsAnsweredInPages(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 30, Seed: 2})
	w.sim.SetUsage("ws-b", simulator.Usage{Tenants: 1, TenantID: func(int) string { return "of b" }})
	ask := func(fields string) worker.Usage {
		t.Helper()
		schematest.Validate(t, "usage.request", []byte(fields))
		reply := w.request("usage", fields)
		var answer worker.Usage
		if err := json.Unmarshal(reply.Data, &answer); err != nil || len(reply.Header) > 0 {
			t.Fatalf("%s: %v %s", fields, reply.Header, reply.Data)
		}
		schematest.Validate(t, "usage.reply", reply.Data)
		return answer
	}
	if got := ask(`{}`); got.Total != 0 || got.Page != 1 || got.Usage == nil || len(got.Usage) > 0 {
		t.Errorf("before any sync: %+v", got)
	}
	w.sync("e", "from_period", "2026-01", "to_period", "2026-03")
	eventually(t, soon, w.settled)
	a, b := w.totals(w.usageRun("e", "ws-a")), w.totals(w.usageRun("e", "ws-b"))
	all := append(slices.Clone(a), b...) // in the order of workspace, tenant, month
	asked := len(w.requests("usage"))
	for _, c := range []struct {
		fields string
		want   []papermap.UsageRow
		page   int
		total  int
	}{
		{`{}`, all, 1, 93},
		{`{"per_page":10}`, all[:10], 1, 93},
		{`{"page":2,"per_page":10}`, all[10:20], 2, 93},
		{`{"page":10,"per_page":10}`, all[90:], 10, 93},
		{`{"page":11,"per_page":10}`, nil, 11, 93},
		{`{"page":2147483648,"per_page":400}`, nil, 1 << 31, 93},
		{`{"per_page":400}`, all, 1, 93},
		{`{"workspace_id":"ws-b"}`, b, 1, 3},
		{`{"workspace_id":"ws-z"}`, nil, 1, 0},
		{`{"tenant_id":"org-0000004"}`, a[12:15], 1, 3},
		{`{"tenant_id":"org-0000004","from_period":"2026-02"}`, a[13:15], 1, 2},
		{`{"tenant_id":"org-0000004","to_period":"2026-02"}`, a[12:14], 1, 2},
		{`{"tenant_id":"org-0000004","from_period":"2026-02","to_period":"2026-02","workspace_id":"ws-a"}`, a[13:14], 1, 1},
		{`{"tenant_id":"ORG-0000004"}`, nil, 1, 0},
		{`{"from_period":"2026-04"}`, nil, 1, 0},
	} {
		got := ask(c.fields)
		var rows []papermap.UsageRow
		for _, u := range got.Usage {
			rows = append(rows, papermap.UsageRow{TenantID: u.TenantID, Period: u.Period, Credits: u.Credits, Requests: u.Requests})
			if workspace := map[bool]string{true: "ws-b", false: "ws-a"}[u.TenantID == "of b"]; u.WorkspaceID != workspace || time.Since(u.SyncedAt.Time).Abs() > 5*time.Minute {
				t.Errorf("%s: row %+v", c.fields, u)
			}
		}
		if !slices.Equal(rows, c.want) || got.Page != c.page || got.Total != c.total {
			t.Errorf("%s: %d rows %.200v, page %d, total %d; want %d rows %.200v, page %d, total %d", c.fields, len(rows), rows, got.Page, got.Total, len(c.want), c.want, c.page, c.total)
		}
	}
	for _, body := range []string{
		``, `null`, `[]`, `{"page":0}`, `{"page":-1}`, `{"page":2147483649}`, `{"page":"1"}`, `{"page":1.5}`, `{"per_page":0}`, `{"per_page":1001}`, `{"per_page":null}`,
		`{"tenant_id":""}{}`, `{"tenant_id":" x"}`, `{"tenant_id":7}`, `{"tenant_id":"a\u0000"}`, `{"Tenant_id":"x"}`, `{"from_period":"2026-13"}`, `{"from_period":"2026-1"}`,
		`{"to_period":"March"}`, `{"to_period":202603}`, `{"workspace_id":1}`, `{"page":1,"page":1}`,
	} {
		w.refused("usage", body, 400, "INVALID_REQUEST")
	}
	if n := len(w.requests("usage")); n != asked {
		t.Errorf("%d API requests for answers", n-asked)
	}
	w.must(w.workers[0].db.Close())
	w.refused("usage", `{}`, 503, "UNAVAILABLE")
}

func TestMintedTokensAreCountedByTenantAndMonthAndWrittenBeforeTheEnd(t *testing.T) {
	t.Parallel()
	var now clock
	now.set(time.Date(2026, 3, 31, 23, 59, 59, 0, time.UTC)) // in Kiritimati it is April
	w := start(t, options{config: func(c *worker.Config) { c.Clock = now.now }})
	w.create("a", "b")
	eventually(t, soon, w.are(repo.Active, "a", "b"))
	for range 3 {
		w.token(`{"tenant_id":"a"}`)
	}
	w.token(`{"tenant_id":"b"}`)
	w.refused("embed-token", `{"tenant_id":"nobody"}`, 404, "TENANT_NOT_FOUND")
	w.request("dashboard", `{"tenant_id":"b"}`)
	counts := func() (list []string) {
		w.must(w.sql.Select(&list, "SELECT workspace_id || ' ' || tenant_id || ' ' || period || ' ' || tokens FROM token_counts ORDER BY 1"))
		return list
	}
	first := []string{"ws-a a 2026-03 3", "ws-a b 2026-03 1"}
	eventually(t, soon, func() error { // every few seconds
		if got := counts(); !slices.Equal(got, first) {
			return fmt.Errorf("counts %q, want %q", got, first)
		}
		return nil
	})
	now.set(time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC))
	w.token(`{"tenant_id":"a"}`)
	w.workers[0].stop()
	second := []string{"ws-a a 2026-03 3", "ws-a a 2026-04 1", "ws-a b 2026-03 1"}
	if got := counts(); !slices.Equal(got, second) {
		t.Errorf("counts after the stop %q, want %q", got, second)
	}

	w.startWorker()
	w.token(`{"tenant_id":"a"}`)
	w.workers[1].stop()
	if got := counts(); got[1] != "ws-a a 2026-04 2" {
		t.Errorf("counts after another stop %q", got)
	}
}

// Pages that overtake an early one are more than one transaction takes when that comes at last.
func TestPagesThatOvertakeAreAllRecorded(t *testing.T) {
	t.Parallel()
	for name, hide := range map[string]string{"with a total": "nothing", "with a number of pages alone": `"total":[0-9]+,`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const pages = 20
			w := start(t, options{config: together(32)})
			w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 100 * pages, Style: "items"})
			var others atomic.Int64
			all := make(chan struct{})
			hidden := regexp.MustCompile(hide)
			w.intercept(func(rw http.ResponseWriter, r *http.Request) {
				if page(r) == 2 {
					<-all
				}
				answer := httptest.NewRecorder()
				w.sim.ServeHTTP(answer, r)
				rw.Header().Set("Content-Type", "application/json")
				_, _ = rw.Write(hidden.ReplaceAll(answer.Body.Bytes(), nil))
				if page(r) > 2 && others.Add(1) == pages-2 {
					close(all)
				}
			})
			w.sync("e", "workspace_id", "ws-a", "from_period", "2026-03", "to_period", "2026-03")
			eventually(t, soon, w.usageRunIs("e", repo.RunDone, repo.Incomplete))
			run := w.usageRun("e", "ws-a")
			if run.Status != repo.RunDone || run.Pass != 1 || run.NextPage != pages+1 || run.Read != 100*pages || (run.Total < 0) != strings.Contains(hide, "total") {
				t.Errorf("the run says %+v", run)
			}
			w.checkUsage("ws-a", w.totals(run))
		})
	}
}
