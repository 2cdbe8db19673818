package worker_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
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

// A tick that has running is not given up because a newer one has come meanwhile.
func TestScheduledRunContinuesHoweverLate(t *testing.T) {
	var now clock
	now.set(time.Now())
	o := options{NoWorker: true, Config: func(c *worker.Config) {
		c.Clock, c.Schedule = now.now, schedule(t, "@every 10m")
	}}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		var failing atomic.Bool
		failing.Store(true)
		w.refusePages(http.StatusUnauthorized,
			func(r *http.Request) bool { return page(r) == 3 && failing.Load() })
		w.StartWorker()
		id := ""
		w.Eventually(func() error {
			list, err := w.DB.Runs(t.Context(), "", 10)
			w.Must(err)
			for _, r := range list {
				if r.WorkspaceID == "ws-a" && r.Error != "" {
					id = r.EventID
					return nil
				}
			}
			return fmt.Errorf("runs %+v", list)
		})
		now.set(time.Now().Add(31 * time.Minute))
		failing.Store(false)
		w.Eventually(w.usageRunIs(id, repo.RunDone))
	})
}

// Whether a tick is made does not depend on how a worker's clock and the broker's differ.
func TestScheduleWorksWithAClockAheadOfTheBrokers(t *testing.T) {
	virtual(t, options{Config: func(c *worker.Config) {
		c.Clock, c.Schedule = func() time.Time { return time.Now().Add(time.Hour) }, schedule(t, "@every 15m")
	}}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 4})
		w.Eventually(func() error {
			list, err := w.DB.Runs(t.Context(), "", 10)
			w.Must(err)
			if len(list) < 2 || w.Handled() != nil ||
				slices.ContainsFunc(list, func(r repo.Run) bool { return r.Status == repo.RunRunning }) {
				return fmt.Errorf("runs %+v", list)
			}
			for _, r := range list {
				if r.Status != repo.RunDone {
					t.Errorf("%s is %s: %s", r.EventID, r.Status, r.Error)
				}
			}
			return nil
		})
	})
}

func TestScheduleContinuesWhenTheClockIsSetBack(t *testing.T) {
	var now clock
	began := time.Now().Truncate(time.Minute)
	now.set(began.Add(60 * time.Minute))
	o := options{Config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1m") }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Eventually(w.ticked(began, 60))
		back := time.Now()
		// from then on an hour passes in every minute, and each look of the schedule finds a slot
		w.Eventually(func() error {
			now.set(began.Add(60 * time.Since(back)))
			if ticks := w.ticks("ws-a", began); len(ticks) < 3 || ticks[0] > 30 && ticks[1] > 30 {
				return fmt.Errorf("ticks %v", ticks)
			}
			return nil
		})
	})
}

// kiritimati is 14 hours ahead of UTC: it is another day there most of the time.
var kiritimati = time.FixedZone("Pacific/Kiritimati", 14*60*60)

func TestScheduleSlotsAreTheSameWheneverAndWherever(t *testing.T) {
	for _, c := range []struct{ text, now, last, next string }{
		{"@every 15m", "2026-03-01T12:07:00Z", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every 15m", "2026-03-01T12:14:59.999999999Z", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every 15m", "2026-03-01T12:15:00Z", "2026-03-01T12:15:00Z", "2026-03-01T12:30:00Z"},
		{"@every 15m", "2026-03-02T01:07:00+13:00", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every  15m", "2026-03-01T12:07:00Z", "2026-03-01T12:00:00Z", "2026-03-01T12:15:00Z"},
		{"@every 1s", "2026-03-01T12:07:00.5Z", "2026-03-01T12:07:00Z", "2026-03-01T12:07:01Z"},
		{"@every 1.5s", "1970-01-01T00:00:02Z", "1970-01-01T00:00:01.5Z", "1970-01-01T00:00:03Z"},
		// 8 × 7 minutes
		{"@every 7m", "1970-01-01T01:00:00Z", "1970-01-01T00:56:00Z", "1970-01-01T01:03:00Z"},
		// not anew each day
		{"@every 7m", "1970-01-02T00:00:00Z", "1970-01-01T23:55:00Z", "1970-01-02T00:02:00Z"},
		{"@every 36h", "1970-01-03T00:00:00Z", "1970-01-02T12:00:00Z", "1970-01-04T00:00:00Z"},
		// 13,675 × 36 hours, and one more
		{"@every 36h", "2026-03-01T12:00:00Z", "2026-02-28T12:00:00Z", "2026-03-02T00:00:00Z"},
		{"@hourly", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"},
		{"@hourly", "2026-03-01T11:59:59.999Z", "2026-03-01T11:00:00Z", "2026-03-01T12:00:00Z"},
		{"@daily", "2026-03-01T13:59:00+14:00", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"@midnight", "2026-03-01T14:00:00+14:00", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"},
		{"@weekly", "2026-03-04T00:00:00Z", "2026-03-01T00:00:00Z", "2026-03-08T00:00:00Z"},
		{"@monthly", "2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"},
		{"@yearly", "2026-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		// a time that Berlin's clocks skip
		{"30 2 * * *", "2026-03-29T02:30:00+01:00", "2026-03-28T02:30:00Z", "2026-03-29T02:30:00Z"},
		{"*/20 * * * *", "2026-12-31T23:59:00Z", "2026-12-31T23:40:00Z", "2027-01-01T00:00:00Z"},
		{"5 0 1 * *", "2026-12-31T23:59:59Z", "2026-12-01T00:05:00Z", "2027-01-01T00:05:00Z"},
		{"0 0 31 * *", "2026-03-15T00:00:00Z", "2026-01-31T00:00:00Z", "2026-03-31T00:00:00Z"},
		{"0 0 31 * *", "2026-04-01T00:00:00Z", "2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z"},
		{"0 0 29 2 *", "2026-03-01T00:00:00Z", "2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"0 0 29 2 *", "2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"},
		// a Sunday
		{"0 12 * * MON-FRI", "2026-03-01T00:00:00Z", "2026-02-27T12:00:00Z", "2026-03-02T12:00:00Z"},
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
			if got := last.Format(time.RFC3339Nano) + " " +
				next.Format(time.RFC3339Nano); got != c.last+" "+c.next {
				t.Errorf("%s at %s: last and next slot are %s, want %s %s", c.text, now.In(zone), got, c.last,
					c.next)
			}
		}
	}
}

func TestScheduleFindsEachSlotFromBothSides(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, text := range []string{
		"@every 1s", "@every 7m", "@every 90s", "@every 36h", "@hourly", "@daily", "@weekly", "@monthly",
		"@yearly",
		"*/13 * * * *", "17 3 * * *", "0 0 31 * *", "0 0 29 2 *", "59 23 31 12 *", "*/5 9-17 * * 1-5",
		"0 0 13 * 5",
	} {
		s := schedule(t, text)
		for range 200 {
			now := time.Unix(1.6e9+random.Int64N(3e8), random.Int64N(1e9)).In(kiritimati)
			last, next := s.Last(now), s.Next(now)
			if last.After(now) || !next.After(now) || !s.Next(last).Equal(next) ||
				!s.Last(next).Equal(next) || !s.Last(next.Add(-1)).Equal(last) ||
				!s.Next(next.Add(-1)).Equal(next) {
				t.Fatalf("%s at %s: last slot %s, next %s, and from there %s, %s, %s and %s", text, now, last,
					next,
					s.Next(last), s.Last(next), s.Last(next.Add(-1)), s.Next(next.Add(-1)))
			}
		}
	}
}

func TestParseScheduleRefusesNonsense(t *testing.T) {
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
		if s, err := worker.ParseSchedule(text); err == nil || s != nil ||
			!strings.Contains(err.Error(), why) {
			t.Errorf("%q gave %v and the error %v, want one that says %q", text, s, err, why)
		}
	}
}

// The tick of the first of January reads December and January, also when the worker that makes the
// run has another month.
func TestTickReadsTheMonthsOfItsSlot(t *testing.T) {
	for at, want := range map[string]string{
		"2026-01-01T00:00:00Z": "2025-12 2026-01", "2025-12-31T23:59:59Z": "2025-11 2025-12",
		"2024-02-29T23:59:59Z": "2024-01 2024-02", "2025-03-31T12:00:00Z": "2025-02 2025-03",
	} {
		t.Run(at, func(t *testing.T) {
			slot, err := time.Parse(time.RFC3339, at)
			if err != nil {
				t.Fatal(err)
			}
			var now clock
			now.set(slot)
			o := options{Config: func(c *worker.Config) {
				c.Clock, c.Schedule = now.now, schedule(t, "@every 1s")
			}}
			virtual(t, o, func(t *testing.T, w *world) {
				id := fmt.Sprint("usage-tick.ws-a.", slot.Unix())
				w.Eventually(w.usageRunIs(id, repo.RunDone))
				if r := w.usageRun(id, "ws-a"); r.FromPeriod+" "+r.ToPeriod != want {
					t.Errorf("it reads %s to %s, want %s", r.FromPeriod, r.ToPeriod, want)
				}
			})
		})
	}
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

func TestScheduleTicksOncePerSlotAndOnceForAllMissed(t *testing.T) {
	var now clock
	began := time.Now().Truncate(time.Minute)
	minute := func(n float64) { now.set(began.Add(time.Duration(n * float64(time.Minute)))) }
	minute(0.5)
	o := options{Config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1m") }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Eventually(w.ticked(began, 0)) // the slot before the start
		w.StartWorker()
		minute(1)
		w.Eventually(w.ticked(began, 0, 1)) // of two workers, one tick
		minute(61.2)
		w.Eventually(w.ticked(began, 0, 1, 61)) // the clock was set forward: not sixty
		minute(61.9)
		minute(62)
		w.Eventually(w.ticked(began, 0, 1, 61, 62))
		for _, i := range w.Workers {
			i.Stop()
		}
		minute(70.1)
		w.StartWorker()
		w.Eventually(w.ticked(began, 0, 1, 61, 62, 70)) // once for what passed while no worker ran
		minute(71)
		w.Eventually(w.ticked(began, 0, 1, 61, 62, 70, 71))
	})
}

func TestScheduleContinuesWhenNATSComesBack(t *testing.T) {
	var now clock
	began := time.Now().Truncate(time.Minute)
	now.set(began)
	o := options{Config: func(c *worker.Config) { c.Clock, c.Schedule = now.now, schedule(t, "@every 1m") }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Eventually(w.ticked(began, 0))
		w.StopNATS()
		now.set(began.Add(time.Minute))
		const failed = "cannot publish the usage schedule's tick"
		w.Eventually(w.Logged(failed, 1))
		now.set(began.Add(30 * time.Minute))
		w.StartNATS()
		var got []int
		w.Eventually(func() error {
			if got = w.ticks("ws-b", began); !slices.Contains(got, 30) ||
				!slices.Contains(w.ticks("ws-a", began), 30) {
				return fmt.Errorf("ticks %v", got)
			}
			return nil
		})
		now.set(began.Add(31 * time.Minute))
		w.Eventually(func() error {
			for _, workspace := range []string{"ws-a", "ws-b"} {
				// it may have been sent by then
				got := slices.DeleteFunc(w.ticks(workspace, began), func(n int) bool { return n == 1 })
				if !slices.Equal(got, []int{0, 30, 31}) {
					return fmt.Errorf("%s has ticks %v", workspace, got)
				}
			}
			return nil
		})
		if n := strings.Count(w.Logs.String(), failed); n != 1 {
			t.Errorf("warned %d times", n)
		}
	})
}

// Ticks that waited behind a pause all ask for the same: one run does, and the others say so.
func TestTicksThatWaitedBecomeOneRun(t *testing.T) {
	virtual(t, options{NoWorker: true}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		for slot := range 5 {
			w.Sync(fmt.Sprint("usage-tick.ws-a.", slot), "workspace_id", "ws-a")
		}
		w.StartWorker()
		w.Eventually(w.Handled)
		w.Sync("usage-tick.ws-a.5", "workspace_id", "ws-a")
		w.Eventually(w.usageRunIs("usage-tick.ws-a.5", repo.RunDone))
		became := map[repo.RunStatus]int{}
		for slot := range 5 {
			became[w.usageRun(fmt.Sprint("usage-tick.ws-a.", slot), "ws-a").Status]++
		}
		if want := map[repo.RunStatus]int{repo.RunDone: 1, repo.RunSkipped: 4}; !maps.Equal(became, want) {
			t.Errorf("the ticks that waited became %v, want %v", became, want)
		}
		if n := strings.Count(w.Logs.String(),
			"skipped a scheduled usage run: another run covers it"); n != 4 {
			t.Errorf("%d of 4 skipped runs are in the log", n)
		}
		if n, ok := w.Workers[0].Samples()["papermap_usage_runs_total{status=skipped}"]; !ok || n != 4 {
			t.Errorf("%v of 4 skipped runs are in the metrics", n)
		}
		w.NoDeadLetters()
	})
}

func TestScheduleOffMakesNoTicks(t *testing.T) {
	virtual(t, options{Config: func(c *worker.Config) { c.Schedule = nil }}, func(t *testing.T, w *world) {
		w.Create("a")
		w.Eventually(w.Are(repo.Active, "a"))
		w.Workers[0].Stop() // with a schedule the slot before the start is published first of all
		if ticks := w.Stored("PAPERMAP", "papermap.events.usage.sync"); len(ticks) > 0 {
			t.Errorf("%d events", len(ticks))
		}
	})
}
