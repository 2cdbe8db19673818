package worker_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// Workers whose clocks are a minute apart publish each slot once more a minute later, and each of
// them is one run: because the stream drops what comes under an id that it has, and, when the
// stream has forgotten the id, because the database knows.
func TestSlotIsOneRunHoweverManyWorkersAndClocks(t *testing.T) {
	for name, c := range map[string]struct {
		workers int
		kept    bool // the stream keeps each worker's tick
	}{
		"PostgreSQL, two workers":                           {2, false},
		"PostgreSQL, three workers":                         {3, false},
		"PostgreSQL, three workers, and nothing is dropped": {3, true},
	} {
		t.Run(name, func(t *testing.T) {
			testOneRunForEachSlot(t, c.workers, c.kept)
		})
	}
}

func testOneRunForEachSlot(t *testing.T, workers int, kept bool) {
	const apart = time.Minute
	const every, enough = 40 * time.Second, 4 // slots
	o := options{NoWorker: true, Config: func(c *worker.Config) {
		c.UsageConcurrency, c.Schedule = 2, schedule(t, "@every "+every.String())
	}}
	onPostgres(t, o, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 120})
		ticks := w.overhearTicks(kept)
		for n := range workers {
			w.Config.Clock = func() time.Time { return time.Now().Add(time.Duration(n) * apart) }
			w.StartWorker()
		}
		w.Eventually(func() error {
			if n := len(ticks.publishedBy(workers)); n < enough {
				return fmt.Errorf("%d slots were published by all %d workers, want %d", n, workers, enough)
			}
			return nil
		})
		slots := ticks.publishedBy(workers)
		w.Eventually(w.Handled)
		for _, i := range w.Workers {
			i.Stop()
		}
		w.Eventually(ticks.quiet)

		list, err := w.DB.Runs(context.Background(), "", 10_000)
		w.Must(err)
		list = slices.DeleteFunc(list, func(r repo.Run) bool { return r.WorkspaceID != "ws-a" })
		slices.SortFunc(list, func(a, b repo.Run) int { return a.StartedAt.Compare(b.StartedAt.Time) })
		runs, done, stopped := map[int64]int{}, 0, 0
		var before repo.Run
		for _, r := range list {
			runs[slotOf(r.EventID)]++
			switch r.Status {
			case repo.RunSkipped:
				continue
			case repo.RunRunning: // its worker was stopped, perhaps before it asked for anything
				stopped++
			default:
				done++
			}
			if before.ID != "" && r.StartedAt.Before(before.FinishedAt.Time) {
				t.Errorf("run %s began at %v, before %s ended at %v", r.EventID, r.StartedAt, before.EventID,
					before.FinishedAt)
			}
			before = r
		}
		for slot := range slots {
			if runs[slot] != 1 {
				t.Errorf("slot %d, published by %d workers, is %d runs", slot, workers, runs[slot])
			}
		}
		for slot, n := range runs {
			if n > 1 {
				t.Errorf("slot %d is %d runs", slot, n)
			}
		}
		if asked := w.pagesAsked("ws-a"); asked[1] < done || asked[1] > done+stopped || done < enough {
			t.Errorf("%d runs were made and %d stopped, and page 1 was asked for %d times", done, stopped,
				asked[1])
		}
		stored := map[int64]int{}
		for _, msg := range w.Stored("PAPERMAP", "papermap.events.usage.sync") {
			id := cmp.Or(msg.Header.Get("Papermap-Event-Id"), msg.Header.Get("Nats-Msg-Id"))
			if strings.HasPrefix(id, "usage-tick.ws-a.") {
				stored[slotOf(id)]++
			}
		}
		for slot := range slots {
			if kept != (stored[slot] >= workers) { // two minutes after the first it drops none
				t.Errorf("the stream has %d of the %d ticks of slot %d; want all of them: %t",
					stored[slot], workers, slot, kept)
			}
		}
		t.Logf("%d slots, %d of them published by all %d workers; %d runs, %d of them skipped", len(runs),
			len(slots), workers, len(list), len(list)-done-stopped)
	})
}

// slotOf is the time that the id of a tick ends with.
func slotOf(event string) int64 {
	slot, _ := strconv.ParseInt(event[strings.LastIndexByte(event, '.')+1:], 10, 64)
	return slot
}

// overhearTicks listens to what is published. With kept it has the stream keep each copy that it
// would drop, as it does when it has forgotten the first: the same event, under another message id.
func (w *world) overhearTicks(kept bool) *ticks {
	o := &ticks{seen: map[string][]time.Time{}}
	sub, err := w.Conn.Subscribe("papermap.events.usage.sync", func(msg *nats.Msg) {
		id := msg.Header.Get("Nats-Msg-Id")
		if msg.Header.Get("Papermap-Event-Id") != "" {
			return // our own
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.seen[id], o.last = append(o.seen[id], time.Now()), time.Now()
		if copies := len(o.seen[id]); kept && copies > 1 {
			again := &nats.Msg{Subject: msg.Subject, Data: msg.Data, Header: nats.Header{
				"Papermap-Event-Id": {id}, "Nats-Msg-Id": {fmt.Sprint(id, " once more ", copies)},
			}}
			if err := w.Conn.PublishMsg(again); err != nil {
				w.t.Error(err)
			}
		}
	})
	w.Must(err)
	w.t.Cleanup(func() { _ = sub.Unsubscribe() })
	w.Must(w.Conn.Flush())
	return o
}

// publishedBy are the slots of ws-a of which there are so many copies, with when those came.
func (o *ticks) publishedBy(workers int) map[int64][]time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	slots := map[int64][]time.Time{}
	for id, times := range o.seen {
		if strings.HasPrefix(id, "usage-tick.ws-a.") {
			slots[slotOf(id)] = append(slots[slotOf(id)], times...)
		}
	}
	maps.DeleteFunc(slots, func(_ int64, times []time.Time) bool { return len(times) < workers })
	for _, times := range slots {
		slices.SortFunc(times, time.Time.Compare)
	}
	return slots
}

func (o *ticks) quiet() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if since := time.Since(o.last); since < time.Second {
		return fmt.Errorf("something was published %v ago", since)
	}
	return nil
}
