package repo

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
)

func TestStartRunAllowsOneRunPerWorkspace(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		start := func(workspace, event string) (Run, error) {
			return db.StartRun(ctx, want(workspace, event), db.now(), false)
		}
		first := startRun(t, db, "first")
		if _, err := start("w", "second"); !errors.Is(err, ErrRunBusy) {
			t.Errorf("a second run gave %v, want ErrRunBusy", err)
		}
		same(t, "runs that wait for their turn", storedRun(t, db, "second").ID, "")
		for range 2 { // the same event, once more
			if _, err := start("w", "first"); !errors.Is(err, ErrRunBusy) {
				t.Errorf("a copy of the event running gave %v, want ErrRunBusy", err)
			}
		}
		if other, err := start("other", "first"); err != nil || other.ID == first.ID {
			t.Errorf("another workspace's run gave %v", err)
		}
		record(t, db, first, row("a", "1", 1)) // none of which disturbs it
		endRun(t, db, first, RunDone)

		if _, err := start("w", "first"); !errors.Is(err, ErrRunOver) {
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
		if _, err := start("w", "second"); !errors.Is(err, ErrRunOver) {
			t.Errorf("an incomplete run again gave %v, want ErrRunOver", err)
		}
	})
}

// A run that waited for the end of another says that it began after it.
func TestStartRunStartsWhenItHasTheLease(t *testing.T) {
	db := openAddress(t, pgtest.Need(t, postgres))
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := db.StartRun(ctx, want("w", "first"), time.Now(), false); err != nil {
		t.Fatal(err)
	}
	ending := db.write.MustBegin()
	ending.MustExec("DELETE FROM leases")
	started := make(chan Run, 1)
	go func() {
		run, err := db.StartRun(ctx, want("w", "second"), time.Now(), false)
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

// A tick needs no run of its own when another one reads what it would read, running, waiting, or
// started since.
func TestStartRunSkipsATickThatAnotherCovers(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
		start := func(t *testing.T, db *DB, want Run) *Run {
			t.Helper()
			run, err := db.StartRun(ctx, want, db.now(), false)
			must(t, err)
			return &run
		}
		leave := func(t *testing.T, db *DB, run *Run) {
			t.Helper()
			must(t, db.LeaveRun(ctx, run))
		}
		longer, shorter, oneTenants := want("w", "other"), want("w", "other"), want("w", "other")
		longer.FromPeriod, longer.ToPeriod = "2025-01", "2026-04"
		shorter.FromPeriod, oneTenants.TenantID = "2026-02", "a"
		for _, c := range []struct {
			name string
			// a minute before the tick is handled, which was requested 30 s before that
			before func(t *testing.T, db *DB)
			want   string
		}{
			{"nothing", func(*testing.T, *DB) {}, "runs"},
			{"a run that is running", func(t *testing.T, db *DB) {
				start(t, db, want("w", "other"))
				pass(db, 50*time.Second)
			}, "skipped"},
			{"a run that waits for Papermap",
				func(t *testing.T, db *DB) { leave(t, db, start(t, db, want("w", "other"))) }, "skipped"},
			{"a run whose worker was killed",
				func(t *testing.T, db *DB) { start(t, db, want("w", "other")); pass(db, 15*time.Minute) },
				"skipped"},
			{"a run that no worker resumes",
				func(t *testing.T, db *DB) { start(t, db, want("w", "other")); pass(db, 20*time.Minute) },
				"runs"},
			{"a run over more months", func(t *testing.T, db *DB) { leave(t, db, start(t, db, longer)) },
				"skipped"},
			{"a run over fewer months, running",
				func(t *testing.T, db *DB) { start(t, db, shorter); pass(db, -50*time.Second) }, "waits"},
			{"a run over fewer months, waiting",
				func(t *testing.T, db *DB) { leave(t, db, start(t, db, shorter)) }, "runs"},
			{"one tenant's run, running",
				func(t *testing.T, db *DB) { start(t, db, oneTenants); pass(db, -50*time.Second) }, "waits"},
			{"one tenant's run, done since",
				func(t *testing.T, db *DB) {
					pass(db, 40*time.Second)
					endRun(t, db,
						start(t, db, oneTenants), RunDone)
				}, "runs"},
			{"another workspace's run", func(t *testing.T, db *DB) { start(t, db, want("w2", "other")) },
				"runs"},
			{"a run that started before and is done", func(t *testing.T, db *DB) {
				run := start(t, db, want("w", "other"))
				for range 5 {
					pass(db, 10*time.Second)
					record(t, db, run)
				}
				endRun(t, db, run, RunDone)
			}, "runs"},
			{"a run that started since and is done", func(t *testing.T, db *DB) {
				pass(db, 40*time.Second)
				endRun(t, db, start(t, db, want("w", "other")), RunDone)
			}, "skipped"},
			{"a run that started since and is incomplete", func(t *testing.T, db *DB) {
				pass(db, 40*time.Second)
				endRun(t, db, start(t, db, want("w", "other")), RunIncomplete)
			}, "skipped"},
			{"a run that started since and failed", func(t *testing.T, db *DB) {
				pass(db, 40*time.Second)
				endRun(t, db, start(t, db, want("w", "other")), RunFailed)
			}, "runs"},
			{"a tick that was skipped", func(t *testing.T, db *DB) {
				other := start(t, db, want("w", "other"))
				if _, err := db.StartRun(ctx, want("w", "tick before"), db.now(), true); err != nil {
					t.Fatal(err)
				}
				endRun(t, db, other, RunDone)
			}, "runs"},
		} {
			t.Run(c.name, func(t *testing.T) {
				db := openTest(t)
				requestedAt := db.now().Add(30 * time.Second)
				c.before(t, db)
				pass(db, time.Minute)
				run, err := db.StartRun(ctx, want("w", "tick"), requestedAt, true)
				stored := storedRun(t, db, "tick")
				switch c.want {
				case "waits":
					if !errors.Is(err, ErrRunBusy) || stored.ID != "" {
						t.Errorf("the tick gave %v and run %+v, want ErrRunBusy and none", err, stored)
					}
				case "runs":
					if err != nil || run.Status != RunRunning {
						t.Errorf("the tick gave %v and run %+v", err, run)
					}
				case "skipped":
					if err != nil || run.Status != RunSkipped || stored.ID != run.ID ||
						stored.Status != RunSkipped ||
						stored.Error != "the run of event other does its work" ||
						!stored.FinishedAt.Equal(db.now()) || stored.FromPeriod != "2026-01" {
						t.Errorf("the tick gave %v and run %+v, recorded as %+v", err, run, stored)
					}
					if run, err := db.StartRun(ctx, want("w", "tick"), requestedAt, true); !errors.Is(err,
						ErrRunOver) || run.Status != RunSkipped {
						t.Errorf("a copy of it gave %v and run %+v, want ErrRunOver", err, run)
					}
					pass(db, RunLease+time.Second)
					start(t, db, want("w", "next")) // the lease is not the skipped run's
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
					run, err := db.StartRun(ctx, want("w", event), db.now(), true)
					switch {
					case err == nil:
						made.Add(1)
						err := db.CompleteRun(ctx, &run, note(fmt.Sprint(event, made.Load())))
						if err != nil {
							t.Error(err)
						}
					case !errors.Is(err, ErrRunBusy) && !errors.Is(err, ErrRunOver):
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

// The event of a failed run becomes a dead letter: only when that is replayed, the API is to be
// asked again.
func TestStartRunResumesAFailedRun(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := startRun(t, db, "e")
		record(t, db, run, row("a", "1", 1))
		must(t, db.EndRun(ctx, run, RunFailed, "status 400"))
		failed := storedRun(t, db, "e")
		same(t, "the failed run", []any{failed.Status, failed.Error, failed.FinishedAt},
			[]any{RunFailed, "status 400", Time{db.now()}})
		requestedAt := db.now().Add(-time.Second)
		pass(db, time.Hour)
		if over, err := db.StartRun(ctx, want("w", "e"), requestedAt, false); !errors.Is(err, ErrRunOver) ||
			over.Status != RunFailed || over.Error != "status 400" {
			t.Errorf("the event that has failed, redelivered, gave %v and run %+v, want ErrRunOver", err,
				over)
		}
		again := startRun(t, db, "e")
		same(t, "the run again", []any{again.ID, again.Status, again.NextPage, again.Written,
			storedRun(t, db, "e").FinishedAt}, []any{run.ID, RunRunning, 2, int64(1), Time{}})
		endRun(t, db, again, RunDone)
		same(t, "its error, once it is done", storedRun(t, db, "e").Error, "")
	})
}
