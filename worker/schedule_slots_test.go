package worker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// Whether the clocks of the database, of NATS and of workers agree decides nothing: each slot is one
// run. NATS has the clock of the test.
func TestSlotIsOneRunWhateverTheClocksSay(t *testing.T) {
	const slots = 4
	for _, c := range []struct {
		name     string
		workers  []time.Duration // how far the clock of each is ahead
		database time.Duration
	}{
		{"all agree", []time.Duration{0}, 0},
		{"the database is ahead", []time.Duration{0}, time.Hour},
		{"the database is behind", []time.Duration{0}, -time.Hour},
		{"the worker is ahead", []time.Duration{time.Hour}, 0},
		{"the worker is behind", []time.Duration{-time.Hour}, 0},
		{"the worker and the database are ahead", []time.Duration{time.Hour}, time.Hour},
		{"the worker is behind, the database ahead", []time.Duration{-time.Hour}, time.Hour},
		{"three workers a minute apart", []time.Duration{0, time.Minute, 2 * time.Minute}, -time.Hour},
		{"three workers far apart", []time.Duration{0, time.Hour, -time.Hour}, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options{NoWorker: true, DatabaseAhead: c.database, Config: func(c *worker.Config) {
				c.UsageConcurrency, c.Schedule = 2, schedule(t, "@every 1m")
			}}
			onPostgres(t, o, func(t *testing.T, w *world) {
				w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 120})
				for _, ahead := range c.workers {
					w.Config.Clock = func() time.Time { return time.Now().Add(ahead) }
					w.StartWorker()
				}
				end := time.Now().Truncate(time.Minute).Add((slots-1)*time.Minute + 30*time.Second)
				time.Sleep(time.Until(end))
				w.Eventually(w.Relayed)
				w.Eventually(w.Handled)
				runs := w.scheduled("ws-a")
				perSlot, done := map[int64]int{}, 0
				for _, r := range runs {
					perSlot[r.Slot.Unix()]++
					switch {
					case r.Status == repo.RunDone:
						done++
					// slots that several clocks reach at one time may be one run
					case r.Status != repo.RunSkipped || len(c.workers) == 1:
						t.Errorf("slot %s is %s: %s", r.Slot, r.Status, r.Error)
					}
				}
				now := time.Now()
				for _, ahead := range c.workers {
					last := now.Add(ahead).Truncate(time.Minute)
					for n := range slots {
						if slot := last.Add(-time.Duration(n) * time.Minute); perSlot[slot.Unix()] != 1 {
							t.Errorf("slot %s of a worker %v ahead is %d runs", slot, ahead,
								perSlot[slot.Unix()])
						}
					}
				}
				if asked := w.pagesAsked("ws-a"); asked[1] != done || done < slots {
					t.Errorf("%d runs are done, and page 1 was asked for %d times", done, asked[1])
				}
				t.Logf("%d slots, %d runs are done", len(runs), done)
			})
		})
	}
}

// What publishers send, under whatever id, takes no slot from the schedule.
func TestPublisherCannotTakeASlot(t *testing.T) {
	var now clock
	began := time.Now().Truncate(time.Minute)
	now.set(began)
	o := options{Config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1m") }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 4})
		done := func(n int) func() error {
			return workertest.That(fmt.Sprint(n, " slots are done"), func() bool {
				list := w.scheduled("ws-a")
				return len(list) == n && !slices.ContainsFunc(list, func(r repo.Run) bool {
					return r.Status != repo.RunDone
				})
			})
		}
		w.Eventually(done(1))
		for n := range 5 {
			slot := began.Add(time.Duration(n+1) * time.Minute)
			ids := []string{
				fmt.Sprintf("usage-tick.ws-a.%d", slot.Unix()), fmt.Sprint(slot.Unix()),
				slot.UTC().Format(time.RFC3339), w.scheduled("ws-a")[n].EventID,
			}
			for _, id := range ids {
				w.Sync(id, "workspace_id", "ws-b", "from_period", "2020-01", "to_period", "2020-01")
				w.Publish("usage.sync", object("workspace_id", "ws-b", "tenant_id", "x"),
					"ce-specversion", "1.0", "ce-id", id, "ce-source", "papermap-worker")
			}
			w.Eventually(w.Handled)
			now.set(slot)
			w.Eventually(done(n + 2))
		}
	})
}

// The longest ids of workspaces make events that the worker accepts.
func TestScheduleTakesTheLongestWorkspaceID(t *testing.T) {
	id := strings.Repeat("w", 255)
	o := options{Config: func(c *worker.Config) {
		long := workertest.WorkspaceA
		long.ID, long.APIURL = id, c.Workspaces[0].APIURL
		c.Workspaces = []papermap.Workspace{c.Workspaces[0], long}
		c.Schedule = schedule(t, "@every 1h")
	}}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Eventually(workertest.That("the run has started", func() bool {
			list := w.scheduled(id)
			return len(list) == 1 && list[0].Pass == 1
		}))
		w.NoDeadLetters()
	})
}
