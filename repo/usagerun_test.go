package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestRecordPagesRefusesPagesOutOfOrder(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := startRun(t, db, "e")
		record(t, db, run, row("a", "1", 1))
		before := *run
		for _, numbers := range [][]int{{1}, {3}, {0}, {2, 2}, {2, 4}, {2, 1}, {3, 2}} {
			var pages []Page
			for _, n := range numbers {
				pages = append(pages, Page{Number: n, Rows: []UsageRow{row("b", "1", 1)}})
			}
			if err := db.RecordPages(ctx, run, pages, nil); err == nil ||
				!strings.Contains(err.Error(), "comes before") {
				t.Errorf("pages %v gave %v", numbers, err)
			}
		}
		same(t, "the run", run.NextPage, before.NextPage)
		same(t, "the run as recorded", storedRun(t, db, "e").NextPage, 2)
		same(t, "usage", usage(t, db, UsageFilter{}), []string{"a=1/1"})
	})
}

func TestRecordPagesIsAtomic(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := startRun(t, db, "e")
		record(t, db, run, row("a", "5", 5), row("b", "5", 5))
		before := *run
		recorded := storedRun(t, db, "e")
		pass(db, time.Second)
		unchanged := func(why string) {
			t.Helper()
			same(t, why+": the checkpoint",
				[]any{run.NextPage, run.Read, run.Written, run.Rejected, run.Changed},
				[]any{before.NextPage, before.Read, before.Written, before.Rejected, before.Changed})
			after := storedRun(t, db, "e")
			same(t, why+": the run as recorded", []any{after.NextPage, after.Written, after.UpdatedAt},
				[]any{recorded.NextPage, recorded.Written, recorded.UpdatedAt})
			same(t, why+": usage", usage(t, db, UsageFilter{}), []string{"a=5/5", "b=5/5"})
			same(t, why+": rejects and changes",
				[]int{count(t, db, "usage_rejects"), count(t, db, "usage_changes")}, []int{0, 0})
		}
		rows := []UsageRow{row("a", "1", 1), row("new", "1", 1)}

		good, twice := Reject{Place: 3, Reason: "no credits", Raw: "{}"}, Reject{Place: 3,
			Reason: "no tenant", Raw: "{}"}
		err := db.RecordPages(ctx, run, []Page{{Number: 2, Rows: rows, Rejected: []Reject{good}},
			{Number: 3, Rejected: []Reject{good, twice}}}, nil)
		if err == nil {
			t.Fatal("two rejects of one place were recorded")
		}
		unchanged("a reject that is there already")

		// The checkpoint itself, after the rows.
		spoil, mend := `CREATE TRIGGER spoil BEFORE UPDATE OF next_page ON usage_runs
			BEGIN SELECT RAISE(ABORT, 'spoiled'); END`, "DROP TRIGGER spoil"
		if db.path == "" {
			spoil = "ALTER TABLE usage_runs ADD CONSTRAINT spoiled CHECK (next_page < 3)"
			mend = "ALTER TABLE usage_runs DROP CONSTRAINT spoiled"
		}
		db.write.MustExec(spoil)
		page := []Page{{Number: 2, Rows: rows, Rejected: []Reject{good}}}
		if err := db.RecordPages(ctx, run, page, nil); err == nil ||
			!strings.Contains(err.Error(), "spoiled") {
			t.Fatalf("a checkpoint that cannot be written gave %v", err)
		}
		unchanged("a checkpoint that cannot be written")

		db.write.MustExec(mend)
		must(t, db.RecordPages(ctx, run, page, nil))
		same(t, "usage at the second try", usage(t, db, UsageFilter{}), []string{"a=1/1", "b=5/5", "new=1/1"})
		same(t, "rejects and changes", []int{count(t, db, "usage_rejects"), count(t, db, "usage_changes")},
			[]int{1, 1})
		same(t, "the run", []int64{int64(run.NextPage), run.Read, run.Written, run.Rejected, run.Changed},
			[]int64{3, 4, 4, 1, 1})
	})
}

func TestRunIsLostAfterItsLease(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		slept := startRun(t, db, "e")
		record(t, db, slept, row("a", "1", 1))
		pass(db, RunLease)
		if _, err := tryRun(db, want("w", "e")); !errors.Is(err, errBusy) {
			t.Fatalf("at the end of the lease another got the run: %v", err)
		}
		pass(db, time.Millisecond)
		heir := startRun(t, db, "e")
		same(t, "the heir's run", []any{heir.ID, heir.NextPage}, []any{slept.ID, 2})

		for what, do := range map[string]func() error{
			"RecordPages": func() error {
				return db.RecordPages(ctx, slept,
					[]Page{{Number: 2, Rows: []UsageRow{row("a", "2", 2)},
						Rejected: []Reject{{0, "no tenant", "{}"}}}}, nil)
			},
			"RestartRun":  func() error { return db.RestartRun(ctx, slept) },
			"KeepRun":     func() error { return db.KeepRun(ctx, slept, "waits") },
			"CompleteRun": func() error { return db.CompleteRun(ctx, slept, note("n")) },
			"EndRun":      func() error { return db.EndRun(ctx, slept, RunFailed, "") },
			"StartRun": func() error {
				_, err := db.StartRun(ctx, want("w", "another"), slept.holder)
				return err
			},
		} {
			if err := do(); !errors.Is(err, ErrRunLost) {
				t.Errorf("%s by the holder that slept gave %v, want ErrRunLost", what, err)
			}
		}
		leaveRun(t, db, slept) // the lease is not its own
		if _, err := tryRun(db, want("w", "third")); !errors.Is(err, errBusy) {
			t.Errorf("the heir lost the run to the holder that slept: a third got %v", err)
		}
		same(t, "usage", usage(t, db, UsageFilter{}), []string{"a=1/1"})
		same(t, "events out", unsent(t, db, 10), []string(nil))
		record(t, db, heir, row("a", "3", 3))
		endRun(t, db, heir, RunDone)
		same(t, "usage in the end", usage(t, db, UsageFilter{}), []string{"a=3/3"})
	})
}

func TestRunWritesProlongItsLease(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := startRun(t, db, "e")
		for what, sign := range map[string]func(){
			"KeepRun": func() {
				must(t, db.KeepRun(ctx, run, "Papermap is away"))
			},
			"RecordPages": func() { record(t, db, run) },
			"RestartRun": func() {
				must(t, db.RestartRun(ctx, run))
			},
		} {
			pass(db, RunLease-time.Second)
			sign()
			pass(db, RunLease-time.Second)
			if _, err := tryRun(db, want("w", "e")); !errors.Is(err, errBusy) {
				t.Errorf("after %s another got the run: %v", what, err)
			}
		}
		must(t, db.KeepRun(ctx, run, "Papermap is away"))
		same(t, "what it waits for", storedRun(t, db, "e").Error, "Papermap is away")
		pass(db, 2*RunLease) // no other took it, so it is kept
		record(t, db, run, row("a", "1", 1))
	})
}

func TestDropRunLeaseLetsAnotherResume(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := startRun(t, db, "e")
		record(t, db, run, row("a", "1", 1))
		leaveRun(t, db, run)
		same(t, "the run that was left", storedRun(t, db, "e").Status, RunRunning)
		next := startRun(t, db, "e")
		same(t, "its checkpoint", next.NextPage, 2)
		if err := db.KeepRun(ctx, run, ""); !errors.Is(err, ErrRunLost) {
			t.Errorf("the holder that left it gave %v, want ErrRunLost", err)
		}
		endRun(t, db, next, RunDone)
	})
}

func TestRestartRunForgetsRejects(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		other := mustRun(t, db, want("other", "e"))
		page := []Page{{Number: 1, Rows: []UsageRow{row("a", "1", 1)},
			Rejected: []Reject{{1, "no credits", `{"tenant_id":"x"}`}, {2, "no tenant", "{}"}}}}
		must(t, db.RecordPages(ctx, other, page, nil))
		run := startRun(t, db, "e")
		run.Pages, run.Total = 7, 700
		must(t, db.RecordPages(ctx, run, page, nil))
		same(t, "what the first page told", []any{storedRun(t, db, "e").Pages, storedRun(t, db, "e").Total},
			[]any{7, int64(700)})
		must(t, db.RestartRun(ctx, run))
		again := storedRun(t, db, "e")
		same(t, "the run", []any{again.Pass, again.NextPage, again.Pages, again.Total, again.Read,
			again.Rejected, again.Written}, []any{2, 1, 0, int64(-1), int64(0), int64(0), int64(1)})
		same(t, "rejects of this and of another run",
			[]int{count(t, db, "usage_rejects WHERE run_id = '"+run.ID+"'"),
				count(t, db, "usage_rejects")}, []int{0, 2})
		must(t, db.RecordPages(ctx, run, page, nil))
		same(t, "rows read, rejected and written in the end", []int64{run.Read, run.Rejected, run.Written},
			[]int64{1, 2, 1})
		var kept []string
		must(t, db.read.Select(&kept, `SELECT reason || ' ' || raw FROM usage_rejects
			WHERE run_id = '`+run.ID+"' ORDER BY page, place"))
		same(t, "rejects", kept, []string{`no credits {"tenant_id":"x"}`, "no tenant {}"})
	})
}

// The same bad rows come again in each run, a row for each run stays: neither may fill the disk.
func TestEndRunForgetsOldRejectsAndRuns(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		bad := []Reject{{0, "no credits", "{}"}, {1, "no tenant", "{}"}}
		run := func(want Run, status RunStatus) {
			t.Helper()
			run := mustRun(t, db, want)
			must(t, db.RecordPages(ctx, run, []Page{{Number: 1, Rejected: bad}}, nil))
			endRun(t, db, run, status)
			pass(db, time.Hour)
		}
		rejectsOf := func() (events []string) {
			t.Helper()
			err := db.read.Select(&events,
				`SELECT DISTINCT r.event_id || '/' || r.workspace_id AS e
				FROM usage_rejects j JOIN usage_runs r ON r.id = j.run_id ORDER BY e`)
			must(t, err)
			same(t, "rejects without a run",
				count(t, db, "usage_rejects WHERE run_id NOT IN (SELECT id FROM usage_runs)"), 0)
			return events
		}
		oneTenants, longer := want("w", "a's"), want("w", "longer")
		oneTenants.TenantID, longer.FromPeriod = "a", "2025-06"
		run(longer, RunDone)
		run(want("w2", "other"), RunDone)
		run(oneTenants, RunDone)
		for hour := range 24 {
			run(want("w", fmt.Sprint("hour", hour)), RunDone)
		}
		same(t, "runs with rejects after a day", rejectsOf(), []string{"hour23/w", "longer/w", "other/w2"})
		run(want("w", "failed"), RunFailed)
		same(t, "after one that did not read all", rejectsOf(),
			[]string{"failed/w", "hour23/w", "longer/w", "other/w2"})
		run(want("w", "incomplete"), RunIncomplete)
		same(t, "after one that read all, as it was when it looked", rejectsOf(),
			[]string{"incomplete/w", "longer/w", "other/w2"})
		same(t, "runs", count(t, db, "usage_runs WHERE workspace_id = 'w'"), 28)

		must(t, db.PlanRuns(ctx, []Run{want("w", "lost")}))
		pass(db, 31*24*time.Hour)
		run(want("w", "late"), RunIncomplete)
		var left []string
		must(t, db.read.Select(&left, "SELECT event_id FROM usage_runs ORDER BY started_at"))
		same(t, "runs after a month, the newest that is done among them", left,
			[]string{"other", "hour23", "late"})
		same(t, "runs with rejects", rejectsOf(), []string{"late/w", "other/w2"})
	})
}

func TestCompleteRunAloneAnnounces(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, status := range []RunStatus{RunIncomplete, RunFailed} {
			endRun(t, db, startRun(t, db, string(status)), status)
			same(t, "the run", storedRun(t, db, string(status)).Status, status)
		}
		same(t, "events out of runs that are not done", unsent(t, db, 10), []string(nil))

		run := startRun(t, db, "all")
		january, december := row("c", "1", 1), row("d", "1", 1)
		january.Period, december.Period = "2026-01", "2025-12"
		record(t, db, run, row("a", "1", 1), row("b", "1", 1), january, row("c", "1", 1), december)
		pass(db, time.Second)
		must(t, db.transact(ctx, func(ctx context.Context,
			t *tx) error {
			return t.enqueue(ctx, "", note("taken"))
		}))
		if err := db.CompleteRun(ctx, run, note("taken")); err == nil {
			t.Fatal("two events of one id were accepted")
		}
		same(t, "a run whose event out cannot be written", storedRun(t, db, "all").Status, RunRunning)
		endRun(t, db, run, RunDone)
		done := storedRun(t, db, "all")
		same(t, "the run", []any{done.Status, done.FinishedAt}, []any{RunDone, Time{db.now()}})

		of := want("w", "one")
		of.TenantID = "c"
		endRun(t, db, mustRun(t, db, of), RunDone)
		list, err := db.Unsent(ctx, 10)
		must(t, err)
		var got []string
		for _, o := range list {
			got = append(got, fmt.Sprintf("%s %q %s", o.EventID, o.TenantID, o.Data))
		}
		// d has no usage in those months
		same(t, "events out", got[1:], []string{`synced-all "" {"tenants":3}`,
			`synced-one "c" {"tenants":1}`})
		if err := db.RecordPages(ctx, run, []Page{{Number: 2}}, nil); !errors.Is(err, ErrRunLost) {
			t.Errorf("a page after the end gave %v", err)
		}
	})
}

func TestRunsListsNewestFirst(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, event := range []string{"a", "b", "c"} {
			must(t, db.PlanRuns(ctx, []Run{want("w", event), want("w2", event)}))
			pass(db, time.Second)
		}
		for _, test := range []struct {
			event string
			limit int
			want  string
		}{{"", 10, "c/w2 c/w b/w2 b/w a/w2 a/w"}, {"", 3, "c/w2 c/w b/w2"}, {"b", 10, "b/w2 b/w"}, {"b", 1,
			"b/w2"}, {"x", 10, ""}} {
			list, err := db.Runs(ctx, test.event, test.limit)
			must(t, err)
			var got []string
			for _, r := range list {
				got = append(got, r.EventID+"/"+r.WorkspaceID)
			}
			same(t, fmt.Sprintf("%+v", test), strings.Join(got, " "), test.want)
		}
	})
}

func TestPagesTogetherIsSmallWhileTenantsAreProvisioned(t *testing.T) {
	db := openTest(t)
	quiet := db.PagesTogether()
	claim(t, db, "a")
	busy := db.PagesTogether()
	db.lastBegin.Add(-int64(busyTime))
	if after := db.PagesTogether(); busy >= quiet || after != quiet {
		t.Errorf("%d pages together, %d beside tenants, %d after them", quiet, busy, after)
	}
}
