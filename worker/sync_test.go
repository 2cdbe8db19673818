package worker_test

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// The months are those of the event's time, in UTC, whenever and by whomever the run is made.
func TestRunReadsTheMonthsOfItsEvent(t *testing.T) {
	var now clock
	now.set(time.Now().AddDate(0, 3, 0))
	virtual(t, options{Config: func(c *worker.Config) { c.Clock = now.now }}, func(t *testing.T, w *world) {
		for i, c := range []struct{ time, from, to, want string }{
			{"2025-03-15T12:00:00Z", "", "", "2025-02 2025-03"},
			{"2025-01-01T00:00:00Z", "", "", "2024-12 2025-01"},
			{"2024-12-31T23:59:59.999Z", "", "", "2024-11 2024-12"},
			{"2025-03-31T23:59:59Z", "", "", "2025-02 2025-03"}, // February has no 31st
			{"2024-02-29T23:59:59Z", "", "", "2024-01 2024-02"},
			{"2025-04-01T13:59:59+14:00", "", "", "2025-02 2025-03"}, // in Kiritimati it is April
			{"2025-03-15T12:00:00Z", "2024-11", "", "2024-11 2025-03"},
			{"2025-03-15T12:00:00Z", "2025-03", "", "2025-03 2025-03"},
			{"2025-03-15T12:00:00Z", "2025-07", "", "2025-07 2025-07"}, // to come
			{"2025-03-15T12:00:00Z", "", "2025-03", "2025-02 2025-03"},
			{"2025-03-15T12:00:00Z", "", "2024-06", "2024-06 2024-06"},
			{"2025-03-15T12:00:00Z", "", "2025-09", "2025-02 2025-09"},
			{"2025-03-15T12:00:00Z", "2024-01", "2024-02", "2024-01 2024-02"},
		} {
			fields := []string{"workspace_id", "ws-a"}
			if c.from != "" {
				fields = append(fields, "from_period", c.from)
			}
			if c.to != "" {
				fields = append(fields, "to_period", c.to)
			}
			id := fmt.Sprint("e", i)
			w.Publish(events.TypeUsageSync, object(fields...), "Nats-Msg-Id", id, "Papermap-Event-Time",
				c.time)
			w.Eventually(w.usageRunIs(id, repo.RunDone))
			if run := w.usageRun(id, "ws-a"); run.FromPeriod+" "+run.ToPeriod != c.want {
				t.Errorf("%+v: the run reads %s to %s", c, run.FromPeriod, run.ToPeriod)
			}
		}
		for _, r := range w.Requests("usage") {
			if r.Status != 200 {
				t.Errorf("the API answered %d to %s", r.Status, r.Path)
			}
		}
	})
}

// Whatever the API answers in the middle of a run, short of a refusal, the run waits and resumes
// where it stopped.
func TestRunWaitsForTheAPIAndResumes(t *testing.T) {
	for name, status := range map[string]int{
		"too many requests": 429, "internal error": 500, "unavailable": 503, "credentials": 401,
		"forbidden": 403, "not there": 404, "redirected": 302,
	} {
		subtest(t, name, options{Config: together(1)}, func(t *testing.T, w *world) {
			w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
			var failing atomic.Bool
			var refused atomic.Int64
			failing.Store(true)
			w.refusePages(status, func(r *http.Request) bool {
				if page(r) != 4 || !failing.Load() {
					return false
				}
				refused.Add(1)
				return true
			})
			w.Sync("e", "workspace_id", "ws-a")
			w.Eventually(func() error {
				r := w.usageRun("e", "ws-a")
				if r.Status != repo.RunRunning || r.NextPage != 4 ||
					!strings.Contains(r.Error, "no usage today") &&
						!strings.Contains(r.Error, strconv.Itoa(status)) {
					return fmt.Errorf("the run is %+v", r)
				}
				return nil
			})
			tried := refused.Load()
			w.Eventually(workertest.That("the page is asked for again", func() bool {
				return refused.Load() != tried
			})) // it comes again, without blame
			if synced := w.synced(); len(synced) > 0 ||
				w.usageRun("e", "ws-a").Status != repo.RunRunning {
				t.Errorf("synced %+v before its end", synced)
			}
			failing.Store(false)
			w.Eventually(w.usageRunIs("e", repo.RunDone))
			w.Eventually(w.Handled)
			run := w.usageRun("e", "ws-a")
			w.checkUsage("ws-a", w.totals(run))
			if got := w.pagesAsked("ws-a"); !maps.Equal(got, once(8)) {
				t.Errorf("pages that were answered: %v, want each of 8 once", got)
			}
			if run.Pass != 1 || run.Error != "" || len(w.synced()) != 1 {
				t.Errorf("the run says %+v; synced %+v", run, w.synced())
			}
			w.NoDeadLetters()
		})
	}
}

// A page that fails once is asked for again inside the call, and the run does not notice.
func TestRunSurvivesRandomFaults(t *testing.T) {
	virtual(t, options{Config: together(8), Faults: []string{
		"on=usage rate=0.05 status=500", "on=usage rate=0.05 status=429 retry-after=1",
		"on=usage rate=0.05 drop=after", "on=usage rate=0.05 truncate=true",
	}}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 2000, BadEvery: 70})
		w.Sync("e", "workspace_id", "ws-a")
		w.Eventually(w.usageRunIs("e", repo.RunDone))
		run := w.usageRun("e", "ws-a")
		w.checkUsage("ws-a", w.totals(run))
		if run.Pass != 1 || run.Read+run.Rejected != 4000 || len(w.DeadLetters()) > 0 {
			t.Errorf("the run says %+v, %d dead letters", run, len(w.DeadLetters()))
		}
	})
}

func TestRefusedRunFailsWithTheReasonAndCanBeReplayed(t *testing.T) {
	virtual(t, options{Config: together(1)}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		w.refusePages(http.StatusBadRequest, func(r *http.Request) bool { return page(r) == 3 })
		w.Sync("manual", "workspace_id", "ws-a")
		w.Eventually(w.usageRunIs("manual", repo.RunFailed))
		w.Eventually(w.Handled)
		tick := w.schedule(1)
		w.Eventually(w.usageRunIs(tick.EventID, repo.RunFailed))
		w.Eventually(w.Handled)
		letters := w.DeadLetters()
		if len(letters) != 1 {
			t.Fatalf("%d dead letters, want the manual event's alone", len(letters))
		}
		h := letters[0].Header
		if h.Get("Papermap-Event-Id") != "manual" || h.Get("Papermap-Error-Code") != "API_REFUSED" ||
			h.Get("Papermap-Side-Effect") != "none" ||
			!strings.Contains(h.Get("Papermap-Error"), "no usage today") ||
			letters[0].Subject != "papermap.dead.usage.sync" {
			t.Errorf("the dead letter is %s %v", letters[0].Subject, h)
		}
		run := w.usageRun("manual", "ws-a")
		if !strings.Contains(run.Error, "no usage today") || run.NextPage != 3 || run.FinishedAt.IsZero() ||
			len(w.synced()) > 0 {
			t.Errorf("the run says %+v; synced %+v", run, w.synced())
		}

		w.API.Intercept(nil) // replayed, it starts anew
		asked := len(w.Requests("usage"))
		w.Publish(events.TypeUsageSync, object("workspace_id", "ws-a"), "Papermap-Event-Id", "manual")
		w.Eventually(w.usageRunIs("manual", repo.RunDone))
		if again := w.usageRun("manual", "ws-a"); again.ID != run.ID || again.Error != "" ||
			again.Read != 800 {
			t.Errorf("the run again says %+v", again)
		}
		if n := len(w.Requests("usage")) - asked; n != 8 {
			t.Errorf("%d requests for the 8 pages", n)
		}
		w.checkUsage("ws-a", w.totals(run))
	})
}

// Two services may use one event id; copies and redeliveries of each event are one run.
func TestSyncsOfTwoSourcesWithOneIDBothRun(t *testing.T) {
	onBoth(t, options{Config: together(1)}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 40})
		sources := []string{"/billing", "/crm", "", strings.Repeat("/long", 10_000), "/100% of söme text"}
		for range 3 {
			for _, source := range sources {
				headers := []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", source}
				if source == "" {
					headers = []string{"Papermap-Event-Id", "1"}
				}
				w.Publish(events.TypeUsageSync, object("workspace_id", "ws-a"), headers...)
			}
		}
		w.Eventually(w.Handled)
		list, err := w.DB.Runs(t.Context(), "1", 100)
		w.Must(err)
		if n := len(w.synced()); len(list) != len(sources) || n != len(sources) {
			t.Errorf("%d runs and %d usage.synced of %d events: %+v", len(list), n, len(sources), list)
		}
		w.NoDeadLetters()
	})
}

func TestRefusalOfAWorkspaceDoesNotStopOthers(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		for _, workspace := range []string{"ws-a", "ws-b"} {
			w.Simulator.SetUsage(workspace, simulator.Usage{Tenants: 10})
		}
		var failing atomic.Bool
		failing.Store(true)
		w.refusePages(http.StatusUnprocessableEntity,
			func(r *http.Request) bool { return strings.Contains(r.URL.Path, "ws-a") })
		w.Sync("refused")
		w.Eventually(w.Handled)
		if a, b := w.usageRun("refused", "ws-a"), w.usageRun("refused", "ws-b"); a.Status != repo.RunFailed ||
			b.Status != repo.RunDone || len(w.DeadLetters()) != 1 {
			t.Errorf("the runs are %+v and %+v, %d dead letters", a, b, len(w.DeadLetters()))
		}

		w.refusePages(http.StatusUnauthorized,
			func(r *http.Request) bool { return failing.Load() && strings.Contains(r.URL.Path, "ws-a") })
		w.Sync("waits")
		w.Eventually(workertest.That("the run of ws-b is done", func() bool {
			return w.usageRun("waits", "ws-b").Status == repo.RunDone
		}))
		if a := w.usageRun("waits", "ws-a"); a.Status != repo.RunRunning {
			t.Errorf("the run of ws-a is %+v", a)
		}
		failing.Store(false)
		w.Eventually(w.usageRunIs("waits", repo.RunDone))
		w.Eventually(w.Handled)
		if synced := w.synced(); len(synced) != 3 || len(w.DeadLetters()) != 1 {
			t.Errorf("synced %+v, %d dead letters", synced, len(w.DeadLetters()))
		}
	})
}

func TestSyncOfAnUnknownWorkspaceIsADeadLetter(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Sync("e", "workspace_id", "ws-z")
		w.Eventually(w.Handled)
		letters := w.DeadLetters()
		if len(letters) != 1 || letters[0].Header.Get("Papermap-Error-Code") != "UNKNOWN_WORKSPACE" ||
			letters[0].Header.Get("Papermap-Event-Id") != "e" {
			t.Errorf("dead letters %+v", letters)
		}
		if list, err := w.DB.Runs(t.Context(), "", 10); err != nil || len(list)+len(w.Requests("usage")) > 0 {
			t.Errorf("runs %+v (%v), requests %+v", list, err, w.Requests("usage"))
		}
	})
}

// A workspace that refuses is asked once, however long the event waits for another workspace's
// sake; then it is a dead letter.
func TestRefusedRunIsNotRepeatedWhileAnotherWorkspaceWaits(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		var failing atomic.Bool
		var a, b atomic.Int64
		failing.Store(true)
		w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
			status := http.StatusUnauthorized
			switch {
			case page(r) == 0: // a look at the clock
				w.Simulator.ServeHTTP(rw, r)
				return
			case strings.Contains(r.URL.Path, "ws-a"):
				status = http.StatusUnprocessableEntity
				a.Add(1)
			case failing.Load():
				b.Add(1)
			default:
				w.Simulator.ServeHTTP(rw, r)
				return
			}
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(status)
			_, _ = rw.Write([]byte(`{"success":false,"message":"no usage today"}`))
		})
		w.Sync("e")
		w.Eventually(workertest.That("ws-b is asked three times", func() bool { return b.Load() >= 3 }))
		failing.Store(false)
		w.Eventually(w.Handled)
		failures := strings.Count(w.Logs.String(), `"a usage run failed"`)
		if counted := w.Workers[0].Samples()["papermap_usage_runs_total{status=failed}"]; a.Load() != 1 ||
			failures != 1 || counted != 1 {
			t.Errorf("the workspace was asked %d times, its failure logged %d and counted %v times",
				a.Load(), failures, counted)
		}
		letters := w.DeadLetters()
		if len(letters) != 1 || letters[0].Header.Get("Papermap-Error-Code") != "API_REFUSED" ||
			!strings.Contains(letters[0].Header.Get("Papermap-Error"), "no usage today") {
			t.Errorf("dead letters %+v", letters)
		}
		if b := w.usageRun("e", "ws-b"); b.Status != repo.RunDone {
			t.Errorf("the run of ws-b is %+v", b)
		}
	})
}

// Who waits for a sync of all workspaces must know from the beginning how many runs that are.
func TestSyncOfAllWorkspacesPlansAllItsRuns(t *testing.T) {
	virtual(t, options{Config: together(1)}, func(t *testing.T, w *world) {
		reached, release := w.holdPage(1)
		w.Sync("e")
		w.Eventually(reached)
		running, planned := w.usageRun("e", "ws-a"), w.usageRun("e", "ws-b")
		if running.Status != repo.RunRunning || running.Pass != 1 || planned.Status != repo.RunRunning ||
			planned.Pass != 0 {
			t.Errorf("while the first runs, they are %+v and %+v", running, planned)
		}
		release()
		w.Eventually(w.Handled)
		if b := w.usageRun("e", "ws-b"); b.Status != repo.RunDone || b.ID != planned.ID ||
			b.StartedAt.Before(w.usageRun("e", "ws-a").FinishedAt.Time) {
			t.Errorf("the second run is %+v", b)
		}
	})
}
