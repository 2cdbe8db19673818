package worker_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// A tick that has begun is not given up because a newer one has come meanwhile.
func TestAScheduledRunThatWasInterruptedGoesOnHoweverLate(t *testing.T) {
	t.Parallel()
	var now clock
	now.set(time.Now())
	w := start(t, options{noWorker: true, config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 10m") }})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
	var ill atomic.Bool
	ill.Store(true)
	w.refusePages(http.StatusUnauthorized, func(r *http.Request) bool { return page(r) == 3 && ill.Load() })
	w.startWorker()
	id := ""
	eventually(t, soon, func() error {
		list, err := w.db.Runs(t.Context(), "", 10)
		w.must(err)
		for _, r := range list {
			if r.WorkspaceID == "ws-a" && r.Error != "" {
				id = r.EventID
				return nil
			}
		}
		return fmt.Errorf("runs %+v", list)
	})
	now.set(time.Now().Add(31 * time.Minute))
	ill.Store(false)
	eventually(t, soon, w.usageRunIs(id, repo.RunDone))
}

// Whether a tick is made does not depend on how a worker's clock and the broker's differ.
func TestAWorkerWhoseClockIsAheadOfTheBrokersSyncsAllTheSame(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: func(c *worker.Config) {
		c.Clock, c.Schedule = func() time.Time { return time.Now().Add(time.Hour) }, schedule(t, "@every 15m")
	}})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 4})
	eventually(t, soon, func() error {
		list, err := w.db.Runs(t.Context(), "", 10)
		w.must(err)
		if len(list) < 2 || w.settled() != nil || slices.ContainsFunc(list, func(r repo.Run) bool { return r.Status == repo.Running }) {
			return fmt.Errorf("runs %+v", list)
		}
		for _, r := range list {
			if r.Status != repo.RunDone {
				t.Errorf("%s is %s: %s", r.EventID, r.Status, r.Error)
			}
		}
		return nil
	})
}

func TestTheScheduleGoesOnWhenTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	var now clock
	began := time.Now().Truncate(time.Minute)
	now.set(began.Add(60 * time.Minute))
	w := start(t, options{config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1m") }})
	eventually(t, soon, w.ticked(began, 60))
	back := time.Now()
	eventually(t, soon, func() error { // from then on an hour passes in every minute, and each look of the schedule finds a slot
		now.set(began.Add(60 * time.Since(back)))
		if ticks := w.ticks("ws-a", began); len(ticks) < 3 || ticks[0] > 30 && ticks[1] > 30 {
			return fmt.Errorf("ticks %v", ticks)
		}
		return nil
	})
}

func TestAUsageRequestThatCannotBeAnsweredIsToldSo(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	w.refused("usage", `{"tenant_id":"t","workspace_id":"ws-b"}`, 400, "INVALID_REQUEST")
	w.refused("usage", `{"workspace_id":"a\u0000"}`, 400, "INVALID_REQUEST")

	// The longest answer fits into a message.
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 500, TenantID: func(i int) string { return strings.Repeat("😀", 250) + fmt.Sprint(10000+i) }})
	w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
	eventually(t, soon, w.usageRunIs("e", repo.RunDone))
	if reply := w.request("usage", `{"per_page":400}`); reply.Header.Get("Nats-Service-Error-Code") != "" || len(reply.Data) < 400*1000 {
		t.Errorf("%d bytes, %v", len(reply.Data), reply.Header)
	}
	w.refused("usage", `{"per_page":401}`, 400, "INVALID_REQUEST")
}

// An API that ignores the page and says nothing of how many there are does not keep a run for ever.
func TestAnAPIThatAnswersTheSamePageForEverEndsTheRun(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.sim.ServeHTTP(rw, r)
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
	w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
	eventually(t, soon, w.usageRunIs("e", repo.Incomplete))
}

// Our own limit of requests slows a run down, and does not stop it.
func TestARunGoesOnWithFewRequestsPerSecond(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: func(c *worker.Config) { c.MaxRPS, c.UsageConcurrency = 2, 8 }})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 1000})
	w.sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
	eventually(t, soon, w.usageRunIs("e", repo.RunDone))
}
