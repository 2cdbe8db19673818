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
	"papermap-worker/worker/workertest"
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
				w.Eventually(workertest.That("a run is done", func() bool {
					list := w.scheduled("ws-a")
					return len(list) == 1 && list[0].Status == repo.RunDone
				}))
				if r := w.scheduled("ws-a")[0]; r.FromPeriod+" "+r.ToPeriod != want || !r.Slot.Equal(slot) {
					t.Errorf("%s reads %s to %s, want %s", r.Slot, r.FromPeriod, r.ToPeriod, want)
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

// Slots that waited behind an outage all ask for the same: one run does it, and the others say so.
func TestSlotsOfAnOutageBecomeOneRun(t *testing.T) {
	var now clock
	began := time.Now().Truncate(time.Minute)
	now.set(began)
	o := options{NoWorker: true, Config: func(c *worker.Config) {
		c.Clock, c.Schedule = now.now, schedule(t, "@every 1m")
	}}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 400})
		w.StartWorker()
		ended := func() error {
			for _, r := range w.scheduled("ws-a") {
				if r.Status == repo.RunRunning {
					return fmt.Errorf("slot %s is %s", r.Slot, r.Status)
				}
			}
			return w.Handled()
		}
		w.Eventually(w.ticked(began, 0))
		w.Eventually(ended)
		w.StopNATS()
		want := []int{0}
		for _, minute := range []int{1, 2, 3, 4, 30} {
			now.set(began.Add(time.Duration(minute) * time.Minute))
			want = append(want, minute)
			w.Eventually(w.ticked(began, want...))
		}
		w.StartNATS()
		w.Eventually(ended)
		became := map[repo.RunStatus]int{}
		for _, r := range w.scheduled("ws-a") {
			became[r.Status]++
		}
		if want := (map[repo.RunStatus]int{repo.RunDone: 2, repo.RunSkipped: 4}); !maps.Equal(became, want) {
			t.Errorf("the slots became %v, want %v", became, want)
		}
		for text, n := range map[string]int{
			`another run covers it","worker":0,"reason":"the run of event `: 8, // of two workspaces
			"cannot schedule usage syncs":                                   0,
		} {
			if got := strings.Count(w.Logs.String(), text); got != n {
				t.Errorf("%q is in the log %d times, want %d", text, got, n)
			}
		}
		if n := w.Workers[0].Samples()["papermap_usage_runs_total{status=skipped}"]; n != 8 {
			t.Errorf("%v of 8 skipped runs are in the metrics", n)
		}
		w.NoDeadLetters()
		now.set(began.Add(31 * time.Minute))
		w.Eventually(w.ticked(began, append(want, 31)...))
		w.Eventually(ended)
		if got := w.pagesAsked("ws-a"); !maps.Equal(got, map[int]int{1: 3, 2: 3, 3: 3, 4: 3, 5: 3, 6: 3, 7: 3,
			8: 3}) {
			t.Errorf("pages that were asked for: %v, want each of 8 for three runs", got)
		}
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
