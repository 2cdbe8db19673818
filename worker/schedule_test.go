package worker_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// kiritimati is 14 hours ahead of UTC: it is another day there most of the time.
var kiritimati = time.FixedZone("Pacific/Kiritimati", 14*60*60)

func schedule(t *testing.T, text string) *worker.Schedule {
	t.Helper()
	s, err := worker.ParseSchedule(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return s
}

func TestSlotsAreTheSameForEverybodyWhenAndWhereverTheyLook(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, now, last, next string }{
		{"@every 15m", "2026-03-01T12:07:00Z", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every 15m", "2026-03-01T12:14:59.999999999Z", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every 15m", "2026-03-01T12:15:00Z", "2026-03-01T12:15:00Z", "2026-03-01T12:30:00Z"},
		{"@every 15m", "2026-03-02T01:07:00+13:00", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every  15m", "2026-03-01T12:07:00Z", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every 1s", "2026-03-01T12:07:00.5Z", "2026-03-01T12:07:00Z", "2026-03-01T12:07:01Z"},
		{"@every 1.5s", "1970-01-01T00:00:02Z", "1970-01-01T00:00:01.5Z", "1970-01-01T00:00:03Z"},
		{"@every 7m", "1970-01-01T01:00:00Z", "1970-01-01T00:56:00Z", "1970-01-01T01:03:00Z"}, // 8 × 7 minutes
		{"@every 7m", "1970-01-02T00:00:00Z", "1970-01-01T23:55:00Z", "1970-01-02T00:02:00Z"}, // not anew each day
		{"@every 36h", "1970-01-03T00:00:00Z", "1970-01-02T12:00:00Z", "1970-01-04T00:00:00Z"},
		{"@every 36h", "2026-03-01T12:00:00Z", "2026-02-28T12:00:00Z", "2026-03-02T00:00:00Z"}, // 13,675 × 36 hours, and one more
		{"@hourly", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"},
		{"@hourly", "2026-03-01T11:59:59.999Z", "2026-03-01T11:00:00Z", "2026-03-01T12:00:00Z"},
		{"@daily", "2026-03-01T13:59:00+14:00", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"@midnight", "2026-03-01T14:00:00+14:00", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"},
		{"@weekly", "2026-03-04T00:00:00Z", "2026-03-01T00:00:00Z", "2026-03-08T00:00:00Z"},
		{"@monthly", "2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"},
		{"@yearly", "2026-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		{"30 2 * * *", "2026-03-29T02:30:00+01:00", "2026-03-28T02:30:00Z", "2026-03-29T02:30:00Z"}, // a time that Berlin's clocks skip
		{"*/20 * * * *", "2026-12-31T23:59:00Z", "2026-12-31T23:40:00Z", "2027-01-01T00:00:00Z"},
		{"5 0 1 * *", "2026-12-31T23:59:59Z", "2026-12-01T00:05:00Z", "2027-01-01T00:05:00Z"},
		{"0 0 31 * *", "2026-03-15T00:00:00Z", "2026-01-31T00:00:00Z", "2026-03-31T00:00:00Z"},
		{"0 0 31 * *", "2026-04-01T00:00:00Z", "2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z"},
		{"0 0 29 2 *", "2026-03-01T00:00:00Z", "2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"0 0 29 2 *", "2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"},
		{"0 12 * * MON-FRI", "2026-03-01T00:00:00Z", "2026-02-27T12:00:00Z", "2026-03-02T12:00:00Z"}, // a Sunday
		{"* * * * *", "2026-03-01T00:00:59Z", "2026-03-01T00:00:00Z", "2026-03-01T00:01:00Z"},
		{"*/7 1-3,22 * JAN,dec *", "2026-06-01T00:00:00Z", "2026-01-31T22:56:00Z", "2026-12-01T01:00:00Z"},
	} {
		now, err := time.Parse(time.RFC3339Nano, c.now)
		if err != nil {
			t.Fatal(err)
		}
		s := schedule(t, c.text)
		for _, zone := range []*time.Location{time.UTC, kiritimati, now.Location()} {
			last, next := s.Last(now.In(zone)), s.Next(now.In(zone))
			if got := last.Format(time.RFC3339Nano) + " " + next.Format(time.RFC3339Nano); got != c.last+" "+c.next {
				t.Errorf("%s at %s: last and next slot are %s, want %s %s", c.text, now.In(zone), got, c.last, c.next)
			}
		}
	}
}

func TestEverySlotIsFoundFromBothSides(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, text := range []string{
		"@every 1s", "@every 7m", "@every 90s", "@every 36h", "@hourly", "@daily", "@weekly", "@monthly", "@yearly",
		"*/13 * * * *", "17 3 * * *", "0 0 31 * *", "0 0 29 2 *", "59 23 31 12 *", "*/5 9-17 * * 1-5", "0 0 13 * 5",
	} {
		s := schedule(t, text)
		for range 200 {
			now := time.Unix(1.6e9+random.Int64N(3e8), random.Int64N(1e9)).In(kiritimati)
			last, next := s.Last(now), s.Next(now)
			if last.After(now) || !next.After(now) || !s.Next(last).Equal(next) || !s.Last(next).Equal(next) || !s.Last(next.Add(-1)).Equal(last) || !s.Next(next.Add(-1)).Equal(next) {
				t.Fatalf("%s at %s: last slot %s, next %s, and from there %s, %s, %s and %s", text, now, last, next,
					s.Next(last), s.Last(next), s.Last(next.Add(-1)), s.Next(next.Add(-1)))
			}
		}
	}
}

func TestSchedulesThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	for text, why := range map[string]string{
		"":                            "@every 15m",
		" ":                           "@every 15m",
		"hourly":                      "@every 15m",
		"@sometimes":                  "@every 15m",
		"@reboot":                     "@every 15m",
		"* * * *":                     "@every 15m",
		"0 0 * * * *":                 "@every 15m", // with seconds
		"60 * * * *":                  "@every 15m",
		"* 24 * * *":                  "@every 15m",
		"* * 0 * *":                   "@every 15m",
		"* * * 13 *":                  "@every 15m",
		"*/0 * * * *":                 "@every 15m",
		"@every":                      "@every 15m",
		"@every15m":                   "@every 15m",
		"@every 0s":                   "at least 1s",
		"@every 999ms":                "at least 1s",
		"@every -5m":                  "at least 1s",
		"@every 15":                   "at least 1s",
		"@every 15m extra":            "at least 1s",
		"@every 300000h0m1000000000h": "at least 1s",
		"TZ=Europe/Berlin * * * * *":  "UTC",
		"CRON_TZ=UTC * * * * *":       "UTC",
		"0 0 31 2 *":                  "never comes",
		"0 0 31 2,4,6,9,11 *":         "never comes",
	} {
		if s, err := worker.ParseSchedule(text); err == nil || s != nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q gave %v and the error %v, want one that says %q", text, s, err, why)
		}
	}
}

// clock is one that a test sets. It stands still.
type clock struct{ nanoseconds atomic.Int64 }

func (c *clock) set(now time.Time) { c.nanoseconds.Store(now.UnixNano()) }
func (c *clock) now() time.Time    { return time.Unix(0, c.nanoseconds.Load()).In(kiritimati) }

// The months are those of the event's time, in UTC, whenever and by whomever the run is made.
func TestARunReadsTheMonthsThatItsEventNames(t *testing.T) {
	t.Parallel()
	var now clock
	now.set(time.Now().AddDate(0, 3, 0))
	w := start(t, options{config: func(c *worker.Config) { c.Clock = now.now }})
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
		w.publish(events.TypeUsageSync, object(fields...), "Nats-Msg-Id", id, "Papermap-Event-Time", c.time)
		eventually(t, soon, w.usageRunIs(id, repo.RunDone))
		if run := w.usageRun(id, "ws-a"); run.FromPeriod+" "+run.ToPeriod != c.want {
			t.Errorf("%+v: the run reads %s to %s", c, run.FromPeriod, run.ToPeriod)
		}
	}
	for _, r := range w.requests("usage") {
		if r.Status != 200 {
			t.Errorf("the API answered %d to %s", r.Status, r.Path)
		}
	}
}

// The tick of the first of January reads December and January, also when the worker that makes the run has another month.
func TestATickReadsTheMonthsOfItsSlot(t *testing.T) {
	t.Parallel()
	for at, want := range map[string]string{
		"2026-01-01T00:00:00Z": "2025-12 2026-01", "2025-12-31T23:59:59Z": "2025-11 2025-12", "2024-02-29T23:59:59Z": "2024-01 2024-02", "2025-03-31T12:00:00Z": "2025-02 2025-03",
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			slot, err := time.Parse(time.RFC3339, at)
			if err != nil {
				t.Fatal(err)
			}
			var now clock
			now.set(slot)
			w := start(t, options{config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1s") }})
			id := fmt.Sprint("usage-tick.ws-a.", slot.Unix())
			eventually(t, soon, w.usageRunIs(id, repo.RunDone))
			if r := w.usageRun(id, "ws-a"); r.FromPeriod+" "+r.ToPeriod != want {
				t.Errorf("it reads %s to %s, want %s", r.FromPeriod, r.ToPeriod, want)
			}
		})
	}
}

// ticks are the slots of which the stream has events for a workspace, in minutes from a time, in the order of publishing.
func (w *world) ticks(workspace string, from time.Time) (slots []int) {
	w.t.Helper()
	for _, msg := range w.stored("PAPERMAP", "papermap.events.usage.sync") {
		rest, ok := strings.CutPrefix(msg.Header.Get("Nats-Msg-Id"), "usage-tick."+workspace+".")
		if !ok {
			continue
		}
		unix, err := strconv.ParseInt(rest, 10, 64)
		w.must(err)
		slots = append(slots, int(time.Unix(unix, 0).Sub(from)/time.Minute))
	}
	return slots
}

func (w *world) ticked(from time.Time, want ...int) func() error {
	return func() error {
		for _, workspace := range []string{"ws-a", "ws-b"} {
			if got := w.ticks(workspace, from); !slices.Equal(got, want) {
				return fmt.Errorf("%s has ticks of minutes %v, want %v", workspace, got, want)
			}
		}
		return nil
	}
}

func TestTheScheduleTicksOncePerSlotAndOnceForAllThatItMissed(t *testing.T) {
	t.Parallel()
	var now clock
	began := time.Now().Truncate(time.Minute)
	minute := func(n float64) { now.set(began.Add(time.Duration(n * float64(time.Minute)))) }
	minute(0.5)
	w := start(t, options{config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1m") }})
	eventually(t, soon, w.ticked(began, 0)) // the slot before the start
	w.startWorker()
	minute(1)
	eventually(t, soon, w.ticked(began, 0, 1)) // of two workers, one tick
	minute(61.2)
	eventually(t, soon, w.ticked(began, 0, 1, 61)) // the clock was set forward: not sixty
	minute(61.9)
	minute(62)
	eventually(t, soon, w.ticked(began, 0, 1, 61, 62))
	for _, i := range w.workers {
		i.stop()
	}
	minute(70.1)
	w.startWorker()
	eventually(t, soon, w.ticked(began, 0, 1, 61, 62, 70)) // once for what passed while nobody ran
	minute(71)
	eventually(t, soon, w.ticked(began, 0, 1, 61, 62, 70, 71))
}

func TestTheScheduleGoesOnWhenNATSComesBack(t *testing.T) {
	t.Parallel()
	var now clock
	began := time.Now().Truncate(time.Minute)
	now.set(began)
	w := start(t, options{config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1m") }})
	eventually(t, soon, w.ticked(began, 0))
	w.nats.Close()
	now.set(began.Add(time.Minute))
	const failed = "cannot publish the usage schedule's tick"
	eventually(t, soon, func() error {
		if !strings.Contains(w.logs.String(), failed) {
			return fmt.Errorf("no warning yet")
		}
		return nil
	})
	now.set(began.Add(30 * time.Minute))
	w.restartNATS()
	var got []int
	eventually(t, soon, func() error {
		if got = w.ticks("ws-b", began); !slices.Contains(got, 30) || !slices.Contains(w.ticks("ws-a", began), 30) {
			return fmt.Errorf("ticks %v", got)
		}
		return nil
	})
	now.set(began.Add(31 * time.Minute))
	eventually(t, soon, func() error {
		for _, workspace := range []string{"ws-a", "ws-b"} {
			got := slices.DeleteFunc(w.ticks(workspace, began), func(n int) bool { return n == 1 }) // it may have been sent by then
			if !slices.Equal(got, []int{0, 30, 31}) {
				return fmt.Errorf("%s has ticks %v", workspace, got)
			}
		}
		return nil
	})
	if n := strings.Count(w.logs.String(), failed); n != 1 {
		t.Errorf("warned %d times", n)
	}
}

// Ticks that waited behind a pause all ask for the same: one run does, and the others say so.
func TestTicksThatWaitedAreOneRun(t *testing.T) {
	t.Parallel()
	w := start(t, options{noWorker: true})
	w.sim.SetUsage("ws-a", simulator.Usage{Tenants: 400})
	for slot := range 5 {
		w.sync(fmt.Sprint("usage-tick.ws-a.", slot), "workspace_id", "ws-a")
	}
	first := w.startWorker()
	eventually(t, soon, w.settled)
	w.sync("usage-tick.ws-a.5", "workspace_id", "ws-a")
	eventually(t, soon, w.usageRunIs("usage-tick.ws-a.5", repo.RunDone))
	became := map[repo.RunStatus]int{}
	for slot := range 5 {
		became[w.usageRun(fmt.Sprint("usage-tick.ws-a.", slot), "ws-a").Status]++
	}
	if want := map[repo.RunStatus]int{repo.RunDone: 1, repo.Skipped: 4}; !maps.Equal(became, want) {
		t.Errorf("the ticks that waited became %v, want %v", became, want)
	}
	if n := strings.Count(w.logs.String(), "skipped a scheduled usage run: another does its work"); n != 4 {
		t.Errorf("%d of 4 skipped runs are in the log", n)
	}
	if n, ok := metric(t, first, "papermap_usage_runs_total", "skipped"); !ok || n != 4 {
		t.Errorf("%v of 4 skipped runs are in the metrics", n)
	}
	if n := len(w.dead()); n > 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestWithoutAScheduleNothingTicks(t *testing.T) {
	t.Parallel()
	w := start(t, options{config: func(c *worker.Config) { c.Schedule = nil }})
	w.create("a")
	eventually(t, soon, w.are(repo.Active, "a"))
	w.workers[0].stop() // with a schedule the slot before the start is published first of all
	if ticks := w.stored("PAPERMAP", "papermap.events.usage.sync"); len(ticks) > 0 {
		t.Errorf("%d events", len(ticks))
	}
}
