package worker_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
)

// scheduled are the runs of the schedule for a workspace, in the order of their scheduling.
func (w *world) scheduled(workspace string) []repo.Run {
	w.t.Helper()
	list, err := w.DB.Runs(context.Background(), "", 10_000)
	w.Must(err)
	list = slices.DeleteFunc(list, func(r repo.Run) bool {
		return r.WorkspaceID != workspace || r.Slot.IsZero()
	})
	slices.SortFunc(list, func(a, b repo.Run) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// ticks are the slots that were scheduled for a workspace, in minutes from a time, in the order of
// their scheduling.
func (w *world) ticks(workspace string, from time.Time) (slots []int) {
	w.t.Helper()
	for _, r := range w.scheduled(workspace) {
		slots = append(slots, int(r.Slot.Sub(from)/time.Minute))
	}
	return slots
}

// schedule schedules a slot of ws-a as a worker does, in minutes since 1970.
func (w *world) schedule(minute int) repo.Run {
	w.t.Helper()
	source := sha256.Sum256([]byte("papermap-worker"))
	month := time.Now().UTC().Format("2006-01")
	id := fmt.Sprint("slot ", minute)
	run, _, err := w.DB.ScheduleRun(context.Background(), repo.Run{
		WorkspaceID: "ws-a", EventID: id, EventSource: hex.EncodeToString(source[:16]),
		Slot: repo.Time{Time: time.Unix(int64(60*minute), 0)}, FromPeriod: month, ToPeriod: month,
	}, repo.OutboxEvent{EventID: id, Type: events.TypeUsageSync, Data: []byte(object(
		"workspace_id", "ws-a", "from_period", month, "to_period", month))})
	w.Must(err)
	return run
}

// usageRun is the run of a workspace that an event asked for; the zero one when there is none.
func (w *world) usageRun(event, workspace string) repo.Run {
	w.t.Helper()
	list, err := w.DB.Runs(context.Background(), event, 100)
	w.Must(err)
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
			return fmt.Errorf("run %s is %q at page %d of pass %d: %s", event, r.Status, r.NextPage, r.Pass,
				r.Error)
		}
		return nil
	}
}

// usageRows are the recorded rows of a workspace.
func (w *world) usageRows(workspace string) (rows []papermap.UsageRow) {
	w.t.Helper()
	err := w.DB.EachUsage(context.Background(),
		repo.UsageFilter{WorkspaceID: workspace}, func(u repo.Usage) error {
			rows = append(rows, papermap.UsageRow{TenantID: u.TenantID, Period: u.Period, Credits: u.Credits,
				Requests: u.Requests})
			return nil
		})
	w.Must(err)
	return rows
}

// totals is what the API reports in the months of a run.
func (w *world) totals(run repo.Run) []papermap.UsageRow {
	w.t.Helper()
	rows, err := w.Simulator.UsageTotals(run.WorkspaceID, run.FromPeriod, run.ToPeriod)
	w.Must(err)
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
	w.Eventually(w.Relayed)
	seen := map[string]bool{}
	for _, msg := range w.Stored("PAPERMAP", "papermap.events.usage.synced") {
		schematest.Validate(w.t, "cloudevent", msg.Data)
		var e struct {
			ID   string         `json:"id"`
			Type string         `json:"type"`
			Data jsontext.Value `json:"data"`
		}
		w.Must(json.Unmarshal(msg.Data, &e))
		schematest.Validate(w.t, "usage.synced", e.Data)
		var data events.UsageSynced
		w.Must(json.Unmarshal(e.Data, &data))
		if e.Type != "usage.synced" || msg.Header.Get("Nats-Msg-Id") != e.ID ||
			msg.Header.Get("content-type") != "application/cloudevents+json" {
			w.t.Errorf("no good event: %v %s", msg.Header, msg.Data)
		}
		if !seen[e.ID] {
			list = append(list, data)
		}
		seen[e.ID] = true
	}
	return list
}

// pagesAsked counts the requests for each page of a workspace's usage, by what the simulator
// answered.
func (w *world) pagesAsked(workspace string) map[int]int {
	w.t.Helper()
	pages := map[int]int{}
	for _, r := range w.Requests("usage") {
		if r.WorkspaceID == workspace && r.Status == http.StatusOK {
			query, err := url.ParseQuery(r.Query)
			w.Must(err)
			page, err := strconv.Atoi(query.Get("page"))
			w.Must(err)
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

// refusePages answers the requests for usage that wrong selects with a status and a body; the
// others as usual.
func (w *world) refusePages(status int, wrong func(r *http.Request) bool) {
	w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !wrong(r) {
			w.Simulator.ServeHTTP(rw, r)
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

// answersUsage has the API answer each page with what is made of its number.
func (w *world) answersUsage(answer func(page int) string) {
	w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
		page, err := strconv.Atoi(r.URL.Query().Get("page"))
		if err != nil { // a probe
			w.Simulator.ServeHTTP(rw, r)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, answer(page))
	})
}

// holdPage makes the API wait with its first answer to a request for a page until release.
func (w *world) holdPage(n int) (reached func() error, release func()) {
	held := make(chan struct{})
	var seen atomic.Int64
	w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && page(r) == n && seen.Add(1) == 1 {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
		w.Simulator.ServeHTTP(rw, r)
	})
	return func() error {
		if seen.Load() == 0 {
			return fmt.Errorf("page was not asked for:  %d", n)
		}
		return nil
	}, func() { close(held) }
}
