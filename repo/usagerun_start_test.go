package repo

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"papermap-worker/repo/pgtest"
)

func TestStartRunAllowsOneHolderPerWorkspace(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		first := startRun(t, db, "first")
		for _, event := range []string{"second", "first"} {
			if _, err := tryRun(db, want("w", event)); !errors.Is(err, errBusy) {
				t.Errorf("the run of event %s gave %v, want errBusy", event, err)
			}
			_, err := db.StartRun(ctx, want("w", event), "nobody")
			if !errors.Is(err, ErrRunLost) {
				t.Errorf("the run of event %s without the lease gave %v, want ErrRunLost", event, err)
			}
		}
		same(t, "runs that wait for their turn", storedRun(t, db, "second").ID, "")
		if other, err := tryRun(db, want("other", "first")); err != nil || other.ID == first.ID {
			t.Errorf("another workspace's run gave %v", err)
		}
		record(t, db, first, row("a", "1", 1)) // none of which disturbs it
		endRun(t, db, first, RunDone)

		if _, err := tryRun(db, want("w", "first")); !errors.Is(err, ErrRunOver) {
			t.Errorf("first again gave %v, want ErrRunOver", err)
		}
		second := startRun(t, db, "second")
		same(t, "a new run", []any{second.Status, second.Pass, second.NextPage, second.Pages, second.Total},
			[]any{RunRunning, 1, 1, 0, int64(-1)})
		recorded := storedRun(t, db, "second")
		same(t, "it as recorded", []any{recorded.ID, recorded.Status, recorded.Pass, recorded.NextPage,
			recorded.Total, recorded.StartedAt},
			[]any{second.ID, RunRunning, 1, 1, int64(-1), Time{db.now()}})
		endRun(t, db, second, RunIncomplete)
		if _, err := tryRun(db, want("w", "second")); !errors.Is(err, ErrRunOver) {
			t.Errorf("an incomplete run again gave %v, want ErrRunOver", err)
		}
	})
}

// Runs of single tenants share the lease of their workspace, and end in any order.
func TestStartRunSharesALease(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		one := func(tenant string) Run {
			w := want("w", "of "+tenant)
			w.TenantID = tenant
			return w
		}
		a := mustRun(t, db, one("a"))
		b, err := db.StartRun(ctx, one("b"), a.holder)
		must(t, err)
		must(t, db.CompleteRun(ctx, a, note("a")))
		record(t, db, &b, row("b", "1", 1))
		must(t, db.CompleteRun(ctx, &b, note("b")))
		if _, err := tryRun(db, want("w", "all")); !errors.Is(err, errBusy) {
			t.Errorf("a run before they have dropped the lease gave %v, want errBusy", err)
		}
		leaveRun(t, db, &b)
		startRun(t, db, "all")
	})
}

// A run that waited for the end of another says that it began after it.
func TestStartRunStartsWhenItHasTheLease(t *testing.T) {
	db := openAddress(t, pgtest.Need(t, postgres))
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := tryRun(db, want("w", "first")); err != nil {
		t.Fatal(err)
	}
	ending := db.write.MustBegin()
	ending.MustExec("DELETE FROM leases")
	started := make(chan Run, 1)
	go func() {
		run, err := tryRun(db, want("w", "second"))
		if err != nil {
			t.Error(err)
		}
		started <- run
	}()
	for deadline := time.Now().Add(20 * time.Second); count(t, db,
		"pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the second run does not wait for the lease")
		}
	}
	var ended Time
	must(t, ending.Get(&ended, "SELECT clock_timestamp()"))
	must(t, ending.Commit())
	if run := <-started; run.StartedAt.Before(ended.Time) {
		t.Errorf("it started at %v, and had to wait until %v", run.StartedAt, ended)
	}
}

// What identifies an event is its source and its id.
func TestStartRunIsPerSourceAndID(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		of := func(source string) Run {
			w := want("w", "e")
			w.EventSource = source
			return w
		}
		ids := map[string]bool{}
		for _, source := range []string{"", "billing", "crm"} {
			run := mustRun(t, db, of(source))
			ids[run.ID] = true
			must(t, db.CompleteRun(ctx, run, note("of "+source)))
			leaveRun(t, db, run)
			if _, err := tryRun(db, of(source)); !errors.Is(err, ErrRunOver) {
				t.Errorf("the event of source %q once more gave %v, want ErrRunOver", source, err)
			}
		}
		same(t, "runs", []int{len(ids), count(t, db, "usage_runs WHERE status = 'done'")}, []int{3, 3})
	})
}

// slotAt is the run of a slot of the schedule, so many minutes after midnight, and its event.
func slotAt(minutes int) (Run, OutboxEvent) {
	w := want("w", fmt.Sprint("slot ", minutes))
	w.Slot = Time{time.Date(2026, 3, 1, 0, minutes, 0, 0, time.UTC)}
	return w, OutboxEvent{EventID: w.EventID, Type: "usage.sync", Data: []byte("{}")}
}

func scheduleRun(t fataler, db *DB, minutes int) (run Run, isNew bool) {
	t.Helper()
	w, e := slotAt(minutes)
	run, isNew, err := db.ScheduleRun(ctx, w, e)
	must(t, err)
	return run, isNew
}

// Each slot is scheduled once, in whatever order replicas with wrong clocks come to it.
func TestScheduleRunIsOncePerSlot(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		var events []string
		for _, minutes := range []int{60, 15, 60, 30, 15, 75, 15} {
			known := storedRun(t, db, fmt.Sprint("slot ", minutes)).ID != ""
			if _, isNew := scheduleRun(t, db, minutes); isNew == known {
				t.Errorf("slot %d is new: %t, and known: %t", minutes, isNew, known)
			}
			if !known {
				events = append(events, fmt.Sprint("slot ", minutes))
			}
		}
		same(t, "events out", unsent(t, db, 10), events)
		other, e := slotAt(15)
		other.WorkspaceID, e.EventID = "w2", "of w2"
		if _, isNew, err := db.ScheduleRun(ctx, other, e); err != nil || !isNew {
			t.Errorf("the slot of another workspace is new: %t, %v", isNew, err)
		}

		var isNew atomic.Int64
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				w, e := slotAt(90)
				w.EventID = uuid.NewString()
				e.EventID = w.EventID
				if _, mine, err := db.ScheduleRun(ctx, w, e); err != nil {
					t.Error(err)
				} else if mine {
					isNew.Add(1)
				}
			})
		}
		group.Wait()
		same(t, "replicas that scheduled the same slot", isNew.Load(), int64(1))
		same(t, "its runs", count(t, db, "usage_runs WHERE workspace_id = 'w'"), 5)
	})
}

// A worker that starts long after the newest slot, as of a yearly schedule, does not run it again.
func TestScheduleRunRemembersTheNewestSlot(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, minutes := range []int{15, 30} {
			slot, _ := scheduleRun(t, db, minutes)
			endRun(t, db, mustRun(t, db, slot), RunDone)
			pass(db, time.Minute)
		}
		pass(db, 300*24*time.Hour)
		endRun(t, db, startRun(t, db, "other"), RunDone)
		same(t, "runs", count(t, db, "usage_runs"), 2)
		if run, isNew := scheduleRun(t, db, 30); isNew {
			t.Errorf("the newest slot is scheduled again: %+v", run)
		}
	})
}

// A slot needs no run of its own when another one reads what it would read: one that is running or
// waits for Papermap, or one that starts afterwards.
func TestScheduledRunIsSkippedIfAnotherCoversIt(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
		longer, shorter, oneTenants := want("w", "other"), want("w", "other"), want("w", "other")
		longer.FromPeriod, longer.ToPeriod = "2025-01", "2026-04"
		shorter.FromPeriod, oneTenants.TenantID = "2026-02", "a"
		run := func(want Run) func(t *testing.T, db *DB) {
			return func(t *testing.T, db *DB) { mustRun(t, db, want) }
		}
		ended := func(want Run, status RunStatus) func(t *testing.T, db *DB) {
			return func(t *testing.T, db *DB) { endRun(t, db, mustRun(t, db, want), status) }
		}
		nothing := func(*testing.T, *DB) {}
		for _, c := range []struct {
			name          string
			before, after func(t *testing.T, db *DB) // the slot is scheduled
			want          RunStatus
		}{
			{"nothing", nothing, nothing, RunRunning},
			{"a run that is running", run(want("w", "other")), nothing, RunSkipped},
			{"a run that waits for Papermap", func(t *testing.T, db *DB) {
				leaveRun(t, db, mustRun(t, db, want("w", "other")))
			}, nothing, RunSkipped},
			{"a run whose worker was killed", func(t *testing.T, db *DB) {
				mustRun(t, db, want("w", "other"))
				pass(db, 16*time.Minute)
			}, nothing, RunSkipped},
			{"a run that no worker resumes", func(t *testing.T, db *DB) {
				mustRun(t, db, want("w", "other"))
				pass(db, 21*time.Minute)
			}, nothing, RunRunning},
			{"a run over more months", run(longer), nothing, RunSkipped},
			{"a run over fewer months", run(shorter), nothing, RunRunning},
			{"one tenant's run", run(oneTenants), nothing, RunRunning},
			{"another workspace's run", run(want("w2", "other")), nothing, RunRunning},
			{"a run that is done", ended(want("w", "other"), RunDone), nothing, RunRunning},
			{"a slot that waits", func(t *testing.T, db *DB) { scheduleRun(t, db, 0) }, nothing, RunRunning},
			{"a run that starts afterwards", nothing, run(want("w", "other")), RunSkipped},
			{"a longer run afterwards", nothing, run(longer), RunSkipped},
			{"a shorter run afterwards", nothing, run(shorter), RunRunning},
			{"one tenant's run afterwards", nothing, run(oneTenants), RunRunning},
			{"another workspace's run afterwards", nothing, run(want("w2", "other")), RunRunning},
			{"the next slot, which is first to start", nothing, func(t *testing.T, db *DB) {
				next, _ := scheduleRun(t, db, 30)
				mustRun(t, db, next)
			}, RunSkipped},
		} {
			t.Run(c.name, func(t *testing.T) {
				db := openTest(t)
				c.before(t, db)
				slot, isNew := scheduleRun(t, db, 15)
				if !isNew {
					t.Fatal("it is not new")
				}
				event := slices.Contains(unsent(t, db, 10), slot.EventID)
				pass(db, -time.Hour) // whatever the clock says meanwhile
				c.after(t, db)
				stored := storedRun(t, db, "slot 15")
				if stored.Status != c.want || event == (slot.Status == RunSkipped) ||
					!stored.Slot.Equal(slot.Slot.Time) {
					t.Errorf("the run is %+v, and has an event: %t", stored, event)
				}
				if c.want != RunSkipped {
					return
				}
				if !strings.HasPrefix(stored.Error, "the run of event ") || stored.FinishedAt.IsZero() {
					t.Errorf("the run is %+v", stored)
				}
				pass(db, 2*time.Hour)
				w, _ := slotAt(15)
				if run, err := tryRun(db, w); !errors.Is(err, ErrRunOver) || run.Status != RunSkipped {
					t.Errorf("its event gave %v and run %+v, want ErrRunOver", err, run)
				}
			})
		}
	})
}

// All runs of an event are listed, also those that have not started.
func TestPlanRunsListsRunsBeforeTheyStart(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		planned := []Run{want("w", "e"), want("w2", "e")}
		for range 2 {
			must(t, db.PlanRuns(ctx, planned))
		}
		same(t, "runs", count(t, db, "usage_runs WHERE status = 'running' AND pass = 0"), 2)
		pass(db, time.Minute)
		run := startRun(t, db, "e")
		same(t, "a planned run that begins",
			[]any{run.Pass, run.NextPage, run.Total, run.StartedAt,
				storedRun(t, db, "e").StartedAt}, []any{1, 1, int64(-1), Time{db.now()}, Time{db.now()}})
		record(t, db, run, row("a", "1", 1))
		// when the event comes again
		must(t, db.PlanRuns(ctx, planned))
		endRun(t, db, run, RunDone)
		must(t, db.PlanRuns(ctx, planned))
		same(t, "the run that is done", []any{storedRun(t, db, "e").Status, storedRun(t, db, "e").ID},
			[]any{RunDone, run.ID})
		same(t, "runs", count(t, db, "usage_runs"), 2)
	})
}

// Copies of an event that come at once, each to a replica of its own: one run is made, and only
// once.
func TestStartRunIsOnceForConcurrentCopies(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for round := range 20 {
			event := fmt.Sprint("e", round)
			var made atomic.Int64
			var group sync.WaitGroup
			for range 16 {
				group.Go(func() {
					run, err := tryRun(db, want("w", event))
					switch {
					case err == nil:
						made.Add(1)
						err := db.CompleteRun(ctx, &run, note(fmt.Sprint(event, made.Load())))
						if err == nil {
							err = db.DropRunLease(ctx, "w", run.holder)
						}
						if err != nil {
							t.Error(err)
						}
					case !errors.Is(err, errBusy) && !errors.Is(err, ErrRunOver):
						t.Error(err)
					}
				})
			}
			group.Wait()
			same(t, "times that the run was made", made.Load(), int64(1))
			same(t, "what became of it", storedRun(t, db, event).Status, RunDone)
		}
		same(t, "events out", len(unsent(t, db, 100)), 20)
	})
}

// The event of a failed run becomes a dead letter: only when that is replayed, as another message,
// the API is asked again, and for all pages.
func TestStartRunStartsAFailedRunOver(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		of := func(message string) Run {
			w := want("w", "e")
			w.Message = message
			return w
		}
		run := mustRun(t, db, of("1"))
		run.Pages, run.Total = 3, 300
		must(t, db.RecordPages(ctx, run, []Page{{Number: 1, Rows: []UsageRow{row("a", "1", 1)},
			Rejected: []Reject{{0, "no tenant", "{}"}}}}, nil))
		must(t, db.EndRun(ctx, run, RunFailed, "status 400"))
		leaveRun(t, db, run)
		failed := storedRun(t, db, "e")
		same(t, "the failed run", []any{failed.Status, failed.Error, failed.FinishedAt},
			[]any{RunFailed, "status 400", Time{db.now()}})
		for _, skew := range []time.Duration{time.Hour, -3 * time.Hour} { // no clock decides it
			pass(db, skew)
			if over, err := tryRun(db, of("1")); !errors.Is(err, ErrRunOver) || over.Status != RunFailed ||
				over.Error != "status 400" {
				t.Errorf("the message that has failed, redelivered, gave %v and run %+v", err, over)
			}
		}
		again := mustRun(t, db, of("2"))
		stored := storedRun(t, db, "e")
		same(t, "the run again", []any{again.ID, again.Status, again.Pass, again.NextPage, again.Pages,
			again.Total, again.Read, again.Rejected, again.Error, stored.FinishedAt, stored.StartedAt,
			count(t, db, "usage_rejects")},
			[]any{run.ID, RunRunning, 1, 1, 0, int64(-1), int64(0), int64(0), "", Time{}, Time{db.now()}, 0})
		record(t, db, again, row("a", "2", 2))
		endRun(t, db, again, RunDone)
		same(t, "usage", usage(t, db, UsageFilter{}), []string{"a=2/2"})
	})
}
