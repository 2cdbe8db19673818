package repo

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"papermap-worker/repo/pgtest"
)

// want is the run that an event asks for.
func want(workspace, event string) Run {
	return Run{WorkspaceID: workspace, EventID: event, FromPeriod: "2026-01", ToPeriod: "2026-03"}
}

// startRun begins the run that an event asks for, in workspace w.
func startRun(t fataler, db *DB, event string) *Run {
	t.Helper()
	run, err := db.StartRun(ctx, want("w", event), db.now(), false)
	if err != nil {
		t.Fatal(err)
	}
	return &run
}

// row is a total of 2026-03.
func row(tenant, credits string, requests int64) UsageRow {
	return UsageRow{TenantID: tenant, Period: "2026-03", Credits: credits, Requests: requests}
}

// record records rows as the run's next page.
func record(t fataler, db *DB, run *Run, rows ...UsageRow) {
	t.Helper()
	if err := db.RecordPages(ctx, run, []Page{{Number: run.NextPage, Rows: rows}}); err != nil {
		t.Fatal(err)
	}
}

func endRun(t fataler, db *DB, run *Run, status RunStatus) {
	t.Helper()
	err := db.EndRun(ctx, run, status, "", func(tenants int) (Notice, error) {
		return Notice{EventID: "synced-" + run.EventID, Type: "usage.synced", Data: fmt.Appendf(nil, `{"tenants":%d}`, tenants)}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// usage reads what is recorded, as tenant=credits/requests.
func usage(t fataler, db *DB, f UsageFilter) (list []string) {
	t.Helper()
	err := db.EachUsage(ctx, f, func(u Usage) error {
		list = append(list, fmt.Sprintf("%s=%s/%d", u.TenantID, u.Credits, u.Requests))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// syncedAt is when each tenant's value was first read, by the minute since the clock of openTest began.
func syncedAt(t fataler, db *DB) map[string]float64 {
	t.Helper()
	times := map[string]float64{}
	err := db.EachUsage(ctx, UsageFilter{}, func(u Usage) error {
		times[u.TenantID] = u.SyncedAt.Sub(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)).Minutes()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return times
}

// storedRun reads the event's run in workspace w as it is recorded.
func storedRun(t fataler, db *DB, event string) Run {
	t.Helper()
	list, err := db.Runs(ctx, event, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if r.WorkspaceID == "w" {
			return r
		}
	}
	return Run{}
}

// count counts the rows that a query's WHERE selects.
func count(t fataler, db *DB, from string) (n int) {
	t.Helper()
	if err := db.read.GetContext(ctx, &n, "SELECT COUNT(*) FROM "+from); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUsageIsWrittenOnlyWhereTheValueIsNew(t *testing.T) {
	onBoth(t, testUsageIsWrittenOnlyWhereTheValueIsNew)
}

func testUsageIsWrittenOnlyWhereTheValueIsNew(t *testing.T) {
	db := openTest(t)
	first := startRun(t, db, "first")
	record(t, db, first, row("a", "1", 1), row("b", "2", 2), row("c", "3", 3), row("d", "4", 4))
	same(t, "rows written at first", first.Written, int64(4))
	endRun(t, db, first, RunDone)

	pass(db, time.Minute)
	second := startRun(t, db, "second")
	record(t, db, second, row("a", "1", 1), row("b", "2.5", 2), row("c", "3", 4), row("e", "5", 5))
	same(t, "usage", usage(t, db, UsageFilter{}), []string{"a=1/1", "b=2.5/2", "c=3/4", "d=4/4", "e=5/5"}) // d is missing, not zero
	same(t, "first read", syncedAt(t, db), map[string]float64{"a": 0, "b": 1, "c": 1, "d": 0, "e": 1})
	same(t, "rows read, written and changed", []int64{second.Read, second.Written, second.Changed}, []int64{4, 3, 0})
	same(t, "the run as recorded", storedRun(t, db, "second").Written, int64(3))
	endRun(t, db, second, RunDone)

	pass(db, time.Minute)
	third := startRun(t, db, "third")
	record(t, db, third, row("a", "1", 1), row("b", "2.5", 2), row("c", "3", 4), row("e", "5", 5))
	same(t, "rows written when nothing is new", third.Written, int64(0))
	same(t, "first read, still", syncedAt(t, db), map[string]float64{"a": 0, "b": 1, "c": 1, "d": 0, "e": 1})
}

func TestTotalsThatWentDownAreKeptWithTheirOldValue(t *testing.T) {
	onBoth(t, testTotalsThatWentDownAreKeptWithTheirOldValue)
}

func testTotalsThatWentDownAreKeptWithTheirOldValue(t *testing.T) {
	const most, least = "99999999999999999999.999999999999", "0.000000000001"
	tests := []struct {
		old, new       string
		oldReq, newReq int64
		down           bool
	}{
		{"9.9", "10", 0, 0, false},
		{"10", "9.9", 0, 0, true},
		{"2", "10", 0, 0, false},
		{"10", "2", 0, 0, true},
		{"0", least, 0, 0, false},
		{least, "0", 0, 0, true},
		{"1.5", "1.49", 0, 0, true},
		{"1.49", "1.5", 0, 0, false},
		{"1", "1.000000000001", 0, 0, false},
		{"1.000000000001", "1", 0, 0, true},
		{"100", "99.999999999999", 0, 0, true},
		{"0.9", "0.10000000001", 0, 0, true},
		{"99999999999999999999.999999999998", most, 0, 0, false},
		{most, "99999999999999999999.999999999998", 0, 0, true},
		{most, "99999999999999999999", 0, 0, true},
		{"9007199254740993", "9007199254740992", 0, 0, true}, // the same as binary floating point
		{"5", "5", 7, 8, false},
		{"5", "5", 8, 7, true},
		{"5", "6", 8, 7, true},
		{"5", "4", 7, 8, true},
		{"5", "6", math.MaxInt64 - 1, math.MaxInt64, false},
		{"5", "5", math.MaxInt64, math.MaxInt64 - 1, true},
		{"7.25", "7.25", 3, 3, false},
	}
	db := openTest(t)
	var before, after []UsageRow
	var changes, now []string
	written := int64(0)
	for i, test := range tests {
		tenant := fmt.Sprintf("t%02d", i)
		before, after = append(before, row(tenant, test.old, test.oldReq)), append(after, row(tenant, test.new, test.newReq))
		now = append(now, fmt.Sprintf("%s=%s/%d", tenant, test.new, test.newReq))
		if test.down {
			changes = append(changes, fmt.Sprintf("%s 2026-03 %s>%s %d>%d", tenant, test.old, test.new, test.oldReq, test.newReq))
		}
		if before[i] != after[i] {
			written++
		}
	}
	first := startRun(t, db, "first")
	record(t, db, first, before...)
	endRun(t, db, first, RunDone)
	pass(db, time.Minute)
	second := startRun(t, db, "second")
	record(t, db, second, after...)
	same(t, "usage", usage(t, db, UsageFilter{}), now)
	same(t, "rows written and changed", []int64{second.Written, second.Changed}, []int64{written, int64(len(changes))})

	var kept []struct {
		Run       string `db:"run_id"`
		Workspace string `db:"workspace_id"`
		Tenant    string `db:"tenant_id"`
		Period    string `db:"period"`
		Old       string `db:"old_credits"`
		New       string `db:"new_credits"`
		OldReq    int64  `db:"old_requests"`
		NewReq    int64  `db:"new_requests"`
		At        Time   `db:"changed_at"`
	}
	err := db.read.Select(&kept, `SELECT run_id, workspace_id, tenant_id, period, CAST(old_credits AS TEXT) AS old_credits, CAST(new_credits AS TEXT) AS new_credits,
		old_requests, new_requests, changed_at FROM usage_changes ORDER BY tenant_id`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range kept {
		got = append(got, fmt.Sprintf("%s %s %s>%s %d>%d", k.Tenant, k.Period, k.Old, k.New, k.OldReq, k.NewReq))
		if k.Run != second.ID || k.Workspace != "w" || !k.At.Equal(db.now()) {
			t.Errorf("%+v is not said to be of run %s, now", k, second.ID)
		}
	}
	same(t, "changes", got, changes)
}

func TestCreditsAreKeptToTheLastDigit(t *testing.T) { onBoth(t, testCreditsAreKeptToTheLastDigit) }

func testCreditsAreKeptToTheLastDigit(t *testing.T) {
	db := openTest(t)
	var rows []UsageRow
	for i, credits := range []string{
		"0", "1", "0.1", "0.000000000001", "12.5", "100", "9007199254740993", "99999999999999999999", "99999999999999999999.999999999999",
		"10000000000000000000.000000000001", "123456789.123456789012",
	} {
		rows = append(rows, row(fmt.Sprintf("t%02d", i), credits, int64(i)))
	}
	run := startRun(t, db, "e")
	for range 2 { // what is read back is what was written, so that it is not taken for another value
		record(t, db, run, rows...)
		for i, u := range usage(t, db, UsageFilter{}) {
			same(t, "usage", u, fmt.Sprintf("%s=%s/%d", rows[i].TenantID, rows[i].Credits, rows[i].Requests))
		}
	}
	same(t, "rows read, written and changed", []int64{run.Read, run.Written, run.Changed}, []int64{22, 11, 0})
}

func TestOfAKeyThatComesTwiceTheLaterCounts(t *testing.T) {
	onBoth(t, testOfAKeyThatComesTwiceTheLaterCounts)
}

func testOfAKeyThatComesTwiceTheLaterCounts(t *testing.T) {
	db := openTest(t)
	run := startRun(t, db, "e")
	feb := func(r UsageRow) UsageRow { r.Period = "2026-02"; return r }
	pages := func(list ...[]UsageRow) (pages []Page) {
		for i, rows := range list {
			pages = append(pages, Page{Number: run.NextPage + i, Rows: rows})
		}
		return pages
	}
	for _, test := range []struct {
		pages                  []Page
		written, changed, read int64
		want                   string
	}{
		{pages([]UsageRow{row("a", "1", 1), row("b", "1", 1), row("a", "2", 2)}), 2, 0, 3, "a=2/2 b=1/1"},
		{pages([]UsageRow{row("a", "3", 3), row("a", "2", 2), row("a", "3", 3)}), 1, 0, 3, "a=3/3 b=1/1"},
		{pages([]UsageRow{row("a", "4", 4)}, []UsageRow{row("b", "5", 5), row("a", "3", 3)}), 1, 0, 3, "a=3/3 b=5/5"}, // a is as it was
		{pages([]UsageRow{row("a", "9", 9)}, nil, []UsageRow{row("a", "1", 1)}), 1, 1, 2, "a=1/1 b=5/5"},
		{pages([]UsageRow{row("a", "1", 1), row("a", "1", 1)}), 0, 0, 2, "a=1/1 b=5/5"},
		{pages([]UsageRow{feb(row("a", "7", 7)), row("a", "8", 8)}), 2, 0, 2, "a=7/7 a=8/8 b=5/5"}, // another month is another key
	} {
		before := *run
		for i := range test.pages {
			test.pages[i].Number = run.NextPage + i
		}
		if err := db.RecordPages(ctx, run, test.pages); err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(run.Written-before.Written, run.Changed-before.Changed, run.Read-before.Read, " ", strings.Join(usage(t, db, UsageFilter{}), " "))
		same(t, fmt.Sprintf("%+v", test.pages), got, fmt.Sprint(test.written, test.changed, test.read, " ", test.want))
	}
}

func TestOneCallTakesAnyNumberOfRows(t *testing.T) { onBoth(t, testOneCallTakesAnyNumberOfRows) }

func testOneCallTakesAnyNumberOfRows(t *testing.T) {
	db := openTest(t)
	for _, n := range []int{0, 1, 2, 99, 100, 499, 500, 501, 999, 1000, 1001, 1300, 9000} {
		run := startRun(t, db, fmt.Sprint("e", n))
		rows, changed := make([]UsageRow, n), make([]UsageRow, n)
		down := int64(0)
		for i := range rows {
			rows[i] = row(fmt.Sprintf("%04d-%04d", n, (i*7919)%n), fmt.Sprint(10+i), 1) // each once, in no order
			changed[i] = rows[i]
			switch i % 3 {
			case 1:
				changed[i].Credits = "1"
				down++
			case 2:
				changed[i].Requests = 2
			}
		}
		if n > 1 { // spread over pages of which some are empty
			pages := []Page{{Number: 1}, {Number: 2, Rows: rows[:n/2]}, {Number: 3}, {Number: 4, Rows: rows[n/2:]}, {Number: 5}}
			if err := db.RecordPages(ctx, run, pages); err != nil {
				t.Fatal(err)
			}
			same(t, "the checkpoint", run.NextPage, 6)
		} else {
			record(t, db, run, rows...)
		}
		record(t, db, run, rows...)
		same(t, fmt.Sprintf("written of %d rows that are new, then known", n), run.Written, int64(n))
		record(t, db, run, changed...)
		same(t, fmt.Sprintf("of %d rows, written and gone down", n), []int64{run.Written, run.Changed}, []int64{int64(n + n - (n+2)/3), down})
		same(t, "rows", count(t, db, fmt.Sprintf("tenant_usage WHERE tenant_id LIKE '%04d-%%'", n)), n)
		same(t, "kept changes", count(t, db, fmt.Sprintf("usage_changes WHERE tenant_id LIKE '%04d-%%'", n)), int(down))
		endRun(t, db, run, RunDone)
	}
	run := startRun(t, db, "none")
	if err := db.RecordPages(ctx, run, nil); err != nil { // a call without a page
		t.Fatal(err)
	}
	same(t, "the checkpoint", run.NextPage, 1)
}

func TestPagesAreRecordedInTheirOrderOnly(t *testing.T) {
	onBoth(t, testPagesAreRecordedInTheirOrderOnly)
}

func testPagesAreRecordedInTheirOrderOnly(t *testing.T) {
	db := openTest(t)
	run := startRun(t, db, "e")
	record(t, db, run, row("a", "1", 1))
	before := *run
	for _, numbers := range [][]int{{1}, {3}, {0}, {2, 2}, {2, 4}, {2, 1}, {3, 2}} {
		var pages []Page
		for _, n := range numbers {
			pages = append(pages, Page{Number: n, Rows: []UsageRow{row("b", "1", 1)}})
		}
		if err := db.RecordPages(ctx, run, pages); err == nil || !strings.Contains(err.Error(), "comes before") {
			t.Errorf("pages %v gave %v", numbers, err)
		}
	}
	same(t, "the run", run.NextPage, before.NextPage)
	same(t, "the run as recorded", storedRun(t, db, "e").NextPage, 2)
	same(t, "usage", usage(t, db, UsageFilter{}), []string{"a=1/1"})
}

func TestRowsAndCheckpointAreWrittenTogetherOrNotAtAll(t *testing.T) {
	onBoth(t, testRowsAndCheckpointAreWrittenTogetherOrNotAtAll)
}

func testRowsAndCheckpointAreWrittenTogetherOrNotAtAll(t *testing.T) {
	db := openTest(t)
	run := startRun(t, db, "e")
	record(t, db, run, row("a", "5", 5), row("b", "5", 5))
	before := *run
	recorded := storedRun(t, db, "e")
	pass(db, time.Second)
	unchanged := func(why string) {
		t.Helper()
		same(t, why+": the checkpoint", []any{run.NextPage, run.Read, run.Written, run.Rejected, run.Changed},
			[]any{before.NextPage, before.Read, before.Written, before.Rejected, before.Changed})
		after := storedRun(t, db, "e")
		same(t, why+": the run as recorded", []any{after.NextPage, after.Written, after.UpdatedAt}, []any{recorded.NextPage, recorded.Written, recorded.UpdatedAt})
		same(t, why+": usage", usage(t, db, UsageFilter{}), []string{"a=5/5", "b=5/5"})
		same(t, why+": rejects and changes", []int{count(t, db, "usage_rejects"), count(t, db, "usage_changes")}, []int{0, 0})
	}
	rows := []UsageRow{row("a", "1", 1), row("new", "1", 1)}

	good, twice := Reject{Place: 3, Reason: "no credits", Raw: "{}"}, Reject{Place: 3, Reason: "no tenant", Raw: "{}"}
	err := db.RecordPages(ctx, run, []Page{{Number: 2, Rows: rows, Rejected: []Reject{good}}, {Number: 3, Rejected: []Reject{good, twice}}})
	if err == nil {
		t.Fatal("two rejects of one place were recorded")
	}
	unchanged("a reject that is there already")

	// The checkpoint itself, after the rows.
	spoil, mend := "CREATE TRIGGER spoil BEFORE UPDATE OF next_page ON usage_runs BEGIN SELECT RAISE(ABORT, 'spoiled'); END", "DROP TRIGGER spoil"
	if db.dialect == goose.DialectPostgres {
		spoil, mend = "ALTER TABLE usage_runs ADD CONSTRAINT spoiled CHECK (next_page < 3)", "ALTER TABLE usage_runs DROP CONSTRAINT spoiled"
	}
	db.write.MustExec(spoil)
	page := []Page{{Number: 2, Rows: rows, Rejected: []Reject{good}}}
	if err := db.RecordPages(ctx, run, page); err == nil || !strings.Contains(err.Error(), "spoiled") {
		t.Fatalf("a checkpoint that cannot be written gave %v", err)
	}
	unchanged("a checkpoint that cannot be written")

	db.write.MustExec(mend)
	if err := db.RecordPages(ctx, run, page); err != nil {
		t.Fatal(err)
	}
	same(t, "usage at the second try", usage(t, db, UsageFilter{}), []string{"a=1/1", "b=5/5", "new=1/1"})
	same(t, "rejects and changes", []int{count(t, db, "usage_rejects"), count(t, db, "usage_changes")}, []int{1, 1})
	same(t, "the run", []int64{int64(run.NextPage), run.Read, run.Written, run.Rejected, run.Changed}, []int64{3, 4, 4, 1, 1})
}

func TestOneRunOfAWorkspaceIsAtWorkAtATime(t *testing.T) {
	onBoth(t, testOneRunOfAWorkspaceIsAtWorkAtATime)
}

func testOneRunOfAWorkspaceIsAtWorkAtATime(t *testing.T) {
	db := openTest(t)
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
			t.Errorf("a copy of the event at work gave %v, want ErrRunBusy", err)
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
	same(t, "a new run", []any{second.Status, second.Pass, second.NextPage, second.Pages, second.Total}, []any{Running, 1, 1, 0, int64(-1)})
	recorded := storedRun(t, db, "second")
	same(t, "it as recorded", []any{recorded.ID, recorded.Status, recorded.Pass, recorded.NextPage, recorded.Total, recorded.StartedAt}, []any{second.ID, Running, 1, 1, int64(-1), Time{db.now()}})
	endRun(t, db, second, Incomplete)
	if _, err := start("w", "second"); !errors.Is(err, ErrRunOver) {
		t.Errorf("an incomplete run again gave %v, want ErrRunOver", err)
	}
}

// A run that waited for the end of another says that it began after it.
func TestARunBeginsWhenItHasTheLease(t *testing.T) {
	db := openAddress(t, pgtest.Need(t, postgres))
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := db.StartRun(ctx, want("w", "first"), time.Now(), false); err != nil {
		t.Fatal(err)
	}
	ending := db.write.MustBegin()
	ending.MustExec("DELETE FROM leases")
	began := make(chan Run, 1)
	go func() {
		run, err := db.StartRun(ctx, want("w", "second"), time.Now(), false)
		if err != nil {
			t.Error(err)
		}
		began <- run
	}()
	for deadline := time.Now().Add(20 * time.Second); count(t, db, "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the second run does not wait for the lease")
		}
	}
	var ended Time
	if err := ending.Get(&ended, "SELECT clock_timestamp()"); err != nil {
		t.Fatal(err)
	}
	if err := ending.Commit(); err != nil {
		t.Fatal(err)
	}
	if run := <-began; run.StartedAt.Before(ended.Time) {
		t.Errorf("it began at %v, and had to wait until %v", run.StartedAt, ended)
	}
}

// A tick needs no run of its own when another one reads what it would read, at work, waiting, or begun since.
func TestATickIsSkippedWhenAnotherRunDoesItsWork(t *testing.T) {
	onBoth(t, testATickIsSkippedWhenAnotherRunDoesItsWork)
}

func testATickIsSkippedWhenAnotherRunDoesItsWork(t *testing.T) {
	began := func(t *testing.T, db *DB, want Run) *Run {
		t.Helper()
		run, err := db.StartRun(ctx, want, db.now(), false)
		if err != nil {
			t.Fatal(err)
		}
		return &run
	}
	leave := func(t *testing.T, db *DB, run *Run) {
		t.Helper()
		if err := db.LeaveRun(ctx, run); err != nil {
			t.Fatal(err)
		}
	}
	longer, shorter, oneTenants := want("w", "other"), want("w", "other"), want("w", "other")
	longer.FromPeriod, longer.ToPeriod, shorter.FromPeriod, oneTenants.TenantID = "2025-01", "2026-04", "2026-02", "a"
	for _, c := range []struct {
		name   string
		before func(t *testing.T, db *DB) // a minute before the tick is looked at, which was asked for 30 s before that
		want   string
	}{
		{"nothing", func(*testing.T, *DB) {}, "runs"},
		{"a run at work", func(t *testing.T, db *DB) { began(t, db, want("w", "other")); pass(db, 50*time.Second) }, "skipped"},
		{"a run that waits for Papermap", func(t *testing.T, db *DB) { leave(t, db, began(t, db, want("w", "other"))) }, "skipped"},
		{"a run whose worker was killed", func(t *testing.T, db *DB) { began(t, db, want("w", "other")); pass(db, 15*time.Minute) }, "skipped"},
		{"a run that nobody comes back for", func(t *testing.T, db *DB) { began(t, db, want("w", "other")); pass(db, 20*time.Minute) }, "runs"},
		{"a run over more months", func(t *testing.T, db *DB) { leave(t, db, began(t, db, longer)) }, "skipped"},
		{"a run over fewer months, at work", func(t *testing.T, db *DB) { began(t, db, shorter); pass(db, -50*time.Second) }, "waits"},
		{"a run over fewer months, waiting", func(t *testing.T, db *DB) { leave(t, db, began(t, db, shorter)) }, "runs"},
		{"one tenant's run, at work", func(t *testing.T, db *DB) { began(t, db, oneTenants); pass(db, -50*time.Second) }, "waits"},
		{"one tenant's run, done since", func(t *testing.T, db *DB) { pass(db, 40*time.Second); endRun(t, db, began(t, db, oneTenants), RunDone) }, "runs"},
		{"another workspace's run", func(t *testing.T, db *DB) { began(t, db, want("w2", "other")) }, "runs"},
		{"a run that began before and is done", func(t *testing.T, db *DB) {
			run := began(t, db, want("w", "other"))
			for range 5 {
				pass(db, 10*time.Second)
				record(t, db, run)
			}
			endRun(t, db, run, RunDone)
		}, "runs"},
		{"a run that began since and is done", func(t *testing.T, db *DB) {
			pass(db, 40*time.Second)
			endRun(t, db, began(t, db, want("w", "other")), RunDone)
		}, "skipped"},
		{"a run that began since and is incomplete", func(t *testing.T, db *DB) {
			pass(db, 40*time.Second)
			endRun(t, db, began(t, db, want("w", "other")), Incomplete)
		}, "skipped"},
		{"a run that began since and failed", func(t *testing.T, db *DB) {
			pass(db, 40*time.Second)
			endRun(t, db, began(t, db, want("w", "other")), RunFailed)
		}, "runs"},
		{"a tick that was skipped", func(t *testing.T, db *DB) {
			other := began(t, db, want("w", "other"))
			if _, err := db.StartRun(ctx, want("w", "tick before"), db.now(), true); err != nil {
				t.Fatal(err)
			}
			endRun(t, db, other, RunDone)
		}, "runs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := openTest(t)
			asked := db.now().Add(30 * time.Second)
			c.before(t, db)
			pass(db, time.Minute)
			run, err := db.StartRun(ctx, want("w", "tick"), asked, true)
			stored := storedRun(t, db, "tick")
			switch c.want {
			case "waits":
				if !errors.Is(err, ErrRunBusy) || stored.ID != "" {
					t.Errorf("the tick gave %v and run %+v, want ErrRunBusy and none", err, stored)
				}
			case "runs":
				if err != nil || run.Status != Running {
					t.Errorf("the tick gave %v and run %+v", err, run)
				}
			case "skipped":
				if err != nil || run.Status != Skipped || stored.ID != run.ID || stored.Status != Skipped || stored.Error != "the run of event other does its work" ||
					!stored.FinishedAt.Equal(db.now()) || stored.FromPeriod != "2026-01" {
					t.Errorf("the tick gave %v and run %+v, recorded as %+v", err, run, stored)
				}
				if run, err := db.StartRun(ctx, want("w", "tick"), asked, true); !errors.Is(err, ErrRunOver) || run.Status != Skipped {
					t.Errorf("a copy of it gave %v and run %+v, want ErrRunOver", err, run)
				}
				pass(db, RunLease+time.Second)
				began(t, db, want("w", "next")) // the lease is not the skipped run's
			}
		})
	}
}

// Who waits for all runs of an event must see those, too, that have not begun.
func TestRunsThatAreToComeAreThereBeforeTheFirstBegins(t *testing.T) {
	onBoth(t, testRunsThatAreToComeAreThereBeforeTheFirstBegins)
}

func testRunsThatAreToComeAreThereBeforeTheFirstBegins(t *testing.T) {
	db := openTest(t)
	planned := []Run{want("w", "e"), want("w2", "e")}
	for range 2 {
		if err := db.PlanRuns(ctx, planned); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "runs", count(t, db, "usage_runs WHERE status = 'running' AND pass = 0"), 2)
	pass(db, time.Minute)
	run := startRun(t, db, "e")
	same(t, "a planned run that begins", []any{run.Pass, run.NextPage, run.Total, run.StartedAt, storedRun(t, db, "e").StartedAt}, []any{1, 1, int64(-1), Time{db.now()}, Time{db.now()}})
	record(t, db, run, row("a", "1", 1))
	if err := db.PlanRuns(ctx, planned); err != nil { // when the event comes again
		t.Fatal(err)
	}
	endRun(t, db, run, RunDone)
	if err := db.PlanRuns(ctx, planned); err != nil {
		t.Fatal(err)
	}
	same(t, "the run that is done", []any{storedRun(t, db, "e").Status, storedRun(t, db, "e").ID}, []any{RunDone, run.ID})
	same(t, "runs", count(t, db, "usage_runs"), 2)
}

// Copies of an event that come at once, each to a replica of its own: one run is made, and only once.
func TestCopiesOfAnEventAtOnceAreOneRun(t *testing.T) { onBoth(t, testCopiesOfAnEventAtOnceAreOneRun) }

func testCopiesOfAnEventAtOnceAreOneRun(t *testing.T) {
	db := openTest(t)
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
					err := db.EndRun(ctx, &run, RunDone, "", func(int) (Notice, error) { return note(fmt.Sprint(event, made.Load())), nil })
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
}

// The event of a failed run becomes a dead letter: only when that is replayed, the API is to be asked again.
func TestAFailedRunMayBeginAgainWhereItStopped(t *testing.T) {
	onBoth(t, testAFailedRunMayBeginAgainWhereItStopped)
}

func testAFailedRunMayBeginAgainWhereItStopped(t *testing.T) {
	db := openTest(t)
	run := startRun(t, db, "e")
	record(t, db, run, row("a", "1", 1))
	if err := db.EndRun(ctx, run, RunFailed, "status 400", nil); err != nil {
		t.Fatal(err)
	}
	failed := storedRun(t, db, "e")
	same(t, "the failed run", []any{failed.Status, failed.Error, failed.FinishedAt}, []any{RunFailed, "status 400", Time{db.now()}})
	asked := db.now().Add(-time.Second)
	pass(db, time.Hour)
	if over, err := db.StartRun(ctx, want("w", "e"), asked, false); !errors.Is(err, ErrRunOver) || over.Status != RunFailed || over.Error != "status 400" {
		t.Errorf("the event that has failed, redelivered, gave %v and run %+v, want ErrRunOver", err, over)
	}
	again := startRun(t, db, "e")
	same(t, "the run again", []any{again.ID, again.Status, again.NextPage, again.Written, storedRun(t, db, "e").FinishedAt}, []any{run.ID, Running, 2, int64(1), Time{}})
	endRun(t, db, again, RunDone)
	same(t, "its error, once it is done", storedRun(t, db, "e").Error, "")
}

func TestAHolderThatSleptHasLostItsRun(t *testing.T) { onBoth(t, testAHolderThatSleptHasLostItsRun) }

func testAHolderThatSleptHasLostItsRun(t *testing.T) {
	db := openTest(t)
	slept := startRun(t, db, "e")
	record(t, db, slept, row("a", "1", 1))
	pass(db, RunLease)
	if _, err := db.StartRun(ctx, want("w", "e"), db.now(), false); !errors.Is(err, ErrRunBusy) {
		t.Fatalf("at the end of the lease another got the run: %v", err)
	}
	pass(db, time.Millisecond)
	heir := startRun(t, db, "e")
	same(t, "the heir's run", []any{heir.ID, heir.NextPage}, []any{slept.ID, 2})

	for what, do := range map[string]func() error{
		"RecordPages": func() error {
			return db.RecordPages(ctx, slept, []Page{{Number: 2, Rows: []UsageRow{row("a", "2", 2)}, Rejected: []Reject{{0, "no tenant", "{}"}}}})
		},
		"RestartRun": func() error { return db.RestartRun(ctx, slept) },
		"KeepRun":    func() error { return db.KeepRun(ctx, slept, "waits") },
		"EndRun": func() error {
			return db.EndRun(ctx, slept, RunDone, "", func(int) (Notice, error) { return note("n"), nil })
		},
	} {
		if err := do(); !errors.Is(err, ErrRunLost) {
			t.Errorf("%s by the one who slept gave %v, want ErrRunLost", what, err)
		}
	}
	if err := db.LeaveRun(ctx, slept); err != nil { // it is not his to give up
		t.Errorf("LeaveRun gave %v", err)
	}
	if _, err := db.StartRun(ctx, want("w", "third"), db.now(), false); !errors.Is(err, ErrRunBusy) {
		t.Errorf("the heir lost the run to the one who slept: a third got %v", err)
	}
	same(t, "usage", usage(t, db, UsageFilter{}), []string{"a=1/1"})
	same(t, "events out", unsent(t, db, 10), []string(nil))
	record(t, db, heir, row("a", "3", 3))
	endRun(t, db, heir, RunDone)
	same(t, "usage in the end", usage(t, db, UsageFilter{}), []string{"a=3/3"})
}

func TestASignOfLifeKeepsTheRun(t *testing.T) { onBoth(t, testASignOfLifeKeepsTheRun) }

func testASignOfLifeKeepsTheRun(t *testing.T) {
	db := openTest(t)
	run := startRun(t, db, "e")
	for what, sign := range map[string]func(){
		"KeepRun": func() {
			if err := db.KeepRun(ctx, run, "Papermap is away"); err != nil {
				t.Fatal(err)
			}
		},
		"RecordPages": func() { record(t, db, run) },
		"RestartRun": func() {
			if err := db.RestartRun(ctx, run); err != nil {
				t.Fatal(err)
			}
		},
	} {
		pass(db, RunLease-time.Second)
		sign()
		pass(db, RunLease-time.Second)
		if _, err := db.StartRun(ctx, want("w", "e"), db.now(), false); !errors.Is(err, ErrRunBusy) {
			t.Errorf("after %s another got the run: %v", what, err)
		}
	}
	if err := db.KeepRun(ctx, run, "Papermap is away"); err != nil {
		t.Fatal(err)
	}
	same(t, "what it waits for", storedRun(t, db, "e").Error, "Papermap is away")
	pass(db, 2*RunLease) // nobody took it, so it is still his
	record(t, db, run, row("a", "1", 1))
}

func TestARunThatIsLeftGoesOnAtOnce(t *testing.T) { onBoth(t, testARunThatIsLeftGoesOnAtOnce) }

func testARunThatIsLeftGoesOnAtOnce(t *testing.T) {
	db := openTest(t)
	run := startRun(t, db, "e")
	record(t, db, run, row("a", "1", 1))
	if err := db.LeaveRun(ctx, run); err != nil {
		t.Fatal(err)
	}
	same(t, "the run that was left", storedRun(t, db, "e").Status, Running)
	next := startRun(t, db, "e")
	same(t, "its checkpoint", next.NextPage, 2)
	if err := db.KeepRun(ctx, run, ""); !errors.Is(err, ErrRunLost) {
		t.Errorf("the one who left it gave %v, want ErrRunLost", err)
	}
	endRun(t, db, next, RunDone)
	if err := db.LeaveRun(ctx, next); err != nil { // of a run that has ended
		t.Fatal(err)
	}
}

func TestARunThatBeginsAgainForgetsItsRejectsAndKeepsWhatItWrote(t *testing.T) {
	onBoth(t, testARunThatBeginsAgainForgetsItsRejectsAndKeepsWhatItWrote)
}

func testARunThatBeginsAgainForgetsItsRejectsAndKeepsWhatItWrote(t *testing.T) {
	db := openTest(t)
	other, err := db.StartRun(ctx, want("other", "e"), db.now(), false)
	if err != nil {
		t.Fatal(err)
	}
	page := []Page{{Number: 1, Rows: []UsageRow{row("a", "1", 1)}, Rejected: []Reject{{1, "no credits", `{"tenant_id":"x"}`}, {2, "no tenant", "{}"}}}}
	if err := db.RecordPages(ctx, &other, page); err != nil {
		t.Fatal(err)
	}
	run := startRun(t, db, "e")
	run.Pages, run.Total = 7, 700
	if err := db.RecordPages(ctx, run, page); err != nil {
		t.Fatal(err)
	}
	same(t, "what the first page told", []any{storedRun(t, db, "e").Pages, storedRun(t, db, "e").Total}, []any{7, int64(700)})
	if err := db.RestartRun(ctx, run); err != nil {
		t.Fatal(err)
	}
	again := storedRun(t, db, "e")
	same(t, "the run", []any{again.Pass, again.NextPage, again.Pages, again.Total, again.Read, again.Rejected, again.Written}, []any{2, 1, 0, int64(-1), int64(0), int64(0), int64(1)})
	same(t, "rejects of this and of another run", []int{count(t, db, "usage_rejects WHERE run_id = '"+run.ID+"'"), count(t, db, "usage_rejects")}, []int{0, 2})
	if err := db.RecordPages(ctx, run, page); err != nil {
		t.Fatal(err)
	}
	same(t, "rows read, rejected and written in the end", []int64{run.Read, run.Rejected, run.Written}, []int64{1, 2, 1})
	var kept []string
	if err := db.read.Select(&kept, "SELECT reason || ' ' || raw FROM usage_rejects WHERE run_id = '"+run.ID+"' ORDER BY page, place"); err != nil {
		t.Fatal(err)
	}
	same(t, "rejects", kept, []string{`no credits {"tenant_id":"x"}`, "no tenant {}"})
}

// The same bad rows come again in each run, a row for each run stays: neither may fill the disk.
func TestRejectsAndRunsDoNotPileUp(t *testing.T) { onBoth(t, testRejectsAndRunsDoNotPileUp) }

func testRejectsAndRunsDoNotPileUp(t *testing.T) {
	db := openTest(t)
	bad := []Reject{{0, "no credits", "{}"}, {1, "no tenant", "{}"}}
	run := func(want Run, status RunStatus) {
		t.Helper()
		run, err := db.StartRun(ctx, want, db.now(), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.RecordPages(ctx, &run, []Page{{Number: 1, Rejected: bad}}); err != nil {
			t.Fatal(err)
		}
		endRun(t, db, &run, status)
		pass(db, time.Hour)
	}
	rejectsOf := func() (events []string) {
		t.Helper()
		err := db.read.Select(&events, "SELECT DISTINCT r.event_id || '/' || r.workspace_id AS e FROM usage_rejects j JOIN usage_runs r ON r.id = j.run_id ORDER BY e")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "rejects without a run", count(t, db, "usage_rejects WHERE run_id NOT IN (SELECT id FROM usage_runs)"), 0)
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
	same(t, "after one that did not read all", rejectsOf(), []string{"failed/w", "hour23/w", "longer/w", "other/w2"})
	run(want("w", "incomplete"), Incomplete)
	same(t, "after one that read all, as it was when it looked", rejectsOf(), []string{"incomplete/w", "longer/w", "other/w2"})
	same(t, "runs", count(t, db, "usage_runs WHERE workspace_id = 'w'"), 28)

	if err := db.PlanRuns(ctx, []Run{want("w", "lost")}); err != nil {
		t.Fatal(err)
	}
	pass(db, 31*24*time.Hour)
	run(want("w", "late"), Incomplete)
	var left []string
	if err := db.read.Select(&left, "SELECT event_id FROM usage_runs ORDER BY started_at"); err != nil {
		t.Fatal(err)
	}
	same(t, "runs after a month, the newest that is done among them", left, []string{"other", "hour23", "late"})
	same(t, "runs with rejects", rejectsOf(), []string{"late/w", "other/w2"})
}

func TestOnlyARunThatIsDoneTellsOfIt(t *testing.T) { onBoth(t, testOnlyARunThatIsDoneTellsOfIt) }

func testOnlyARunThatIsDoneTellsOfIt(t *testing.T) {
	db := openTest(t)
	for _, status := range []RunStatus{Incomplete, RunFailed} {
		endRun(t, db, startRun(t, db, string(status)), status)
		same(t, "the run", storedRun(t, db, string(status)).Status, status)
	}
	same(t, "events out of runs that are not done", unsent(t, db, 10), []string(nil))

	run := startRun(t, db, "all")
	january, december := row("c", "1", 1), row("d", "1", 1)
	january.Period, december.Period = "2026-01", "2025-12"
	record(t, db, run, row("a", "1", 1), row("b", "1", 1), january, row("c", "1", 1), december)
	pass(db, time.Second)
	no := errors.New("no")
	if err := db.EndRun(ctx, run, RunDone, "", func(int) (Notice, error) { return Notice{}, no }); !errors.Is(err, no) {
		t.Fatalf("an event out that cannot be made gave %v", err)
	}
	same(t, "a run whose event out cannot be made", storedRun(t, db, "all").Status, Running)
	endRun(t, db, run, RunDone)
	done := storedRun(t, db, "all")
	same(t, "the run", []any{done.Status, done.FinishedAt}, []any{RunDone, Time{db.now()}})

	of := want("w", "one")
	of.TenantID = "c"
	one, err := db.StartRun(ctx, of, db.now(), false)
	if err != nil {
		t.Fatal(err)
	}
	endRun(t, db, &one, RunDone)
	list, err := db.Unsent(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range list {
		got = append(got, fmt.Sprintf("%s %q %s", o.EventID, o.TenantID, o.Data))
	}
	same(t, "events out", got, []string{`synced-all "" {"tenants":3}`, `synced-one "c" {"tenants":1}`}) // d has no usage in those months
	if err := db.RecordPages(ctx, run, []Page{{Number: 2}}); !errors.Is(err, ErrRunLost) {
		t.Errorf("a page after the end gave %v", err)
	}
}

func TestRunsAreListedNewestFirst(t *testing.T) { onBoth(t, testRunsAreListedNewestFirst) }

func testRunsAreListedNewestFirst(t *testing.T) {
	db := openTest(t)
	for _, event := range []string{"a", "b", "c"} {
		if err := db.PlanRuns(ctx, []Run{want("w", event), want("w2", event)}); err != nil {
			t.Fatal(err)
		}
		pass(db, time.Second)
	}
	for _, test := range []struct {
		event string
		limit int
		want  string
	}{{"", 10, "c/w2 c/w b/w2 b/w a/w2 a/w"}, {"", 3, "c/w2 c/w b/w2"}, {"b", 10, "b/w2 b/w"}, {"b", 1, "b/w2"}, {"x", 10, ""}} {
		list, err := db.Runs(ctx, test.event, test.limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range list {
			got = append(got, r.EventID+"/"+r.WorkspaceID)
		}
		same(t, fmt.Sprintf("%+v", test), strings.Join(got, " "), test.want)
	}
}

func TestUsageIsWrittenInSmallerPartsWhileTenantsAreProvisioned(t *testing.T) {
	db := openTest(t)
	quiet := db.PagesTogether()
	claim(t, db, "a")
	busy := db.PagesTogether()
	db.begun.Add(-int64(moreTenants))
	if after := db.PagesTogether(); busy >= quiet || after != quiet {
		t.Errorf("%d pages together, %d beside tenants, %d after them", quiet, busy, after)
	}
}

func TestUsageIsReadInOrderAndByWhatIsAskedFor(t *testing.T) {
	onBoth(t, testUsageIsReadInOrderAndByWhatIsAskedFor)
}

func testUsageIsReadInOrderAndByWhatIsAskedFor(t *testing.T) {
	db := openTest(t)
	for _, workspace := range []string{"w2", "w1"} {
		run, err := db.StartRun(ctx, want(workspace, "e"), db.now(), false)
		if err != nil {
			t.Fatal(err)
		}
		var rows []UsageRow
		for _, tenant := range []string{"b", "a", "B", "é"} {
			for _, period := range []string{"2026-02", "2025-12", "2026-01"} {
				rows = append(rows, UsageRow{TenantID: tenant, Period: period, Credits: "1"})
			}
		}
		record(t, db, &run, rows...)
	}
	const all = "w1/B/2025-12 w1/B/2026-01 w1/B/2026-02 w1/a/2025-12 w1/a/2026-01 w1/a/2026-02 w1/b/2025-12 w1/b/2026-01 w1/b/2026-02 w1/é/2025-12 w1/é/2026-01 w1/é/2026-02"
	for _, test := range []struct {
		f             UsageFilter
		offset, limit int
		want          string
		total         int
	}{
		{UsageFilter{}, 0, 100, all + " " + strings.ReplaceAll(all, "w1", "w2"), 24},
		{UsageFilter{WorkspaceID: "w1"}, 0, 100, all, 12},
		{UsageFilter{WorkspaceID: "w1"}, 2, 2, "w1/B/2026-02 w1/a/2025-12", 12},
		{UsageFilter{WorkspaceID: "w1"}, 11, 5, "w1/é/2026-02", 12},
		{UsageFilter{WorkspaceID: "w1"}, 12, 5, "", 12},
		{UsageFilter{WorkspaceID: "w1"}, 0, 0, "", 12},
		{UsageFilter{WorkspaceID: "none"}, 0, 5, "", 0},
		{UsageFilter{TenantID: "a", FromPeriod: "2026-01"}, 0, 100, "w1/a/2026-01 w1/a/2026-02 w2/a/2026-01 w2/a/2026-02", 4},
		{UsageFilter{TenantID: "a", ToPeriod: "2026-01", WorkspaceID: "w2"}, 0, 100, "w2/a/2025-12 w2/a/2026-01", 2},
		{UsageFilter{FromPeriod: "2026-01", ToPeriod: "2026-01", WorkspaceID: "w1"}, 0, 100, "w1/B/2026-01 w1/a/2026-01 w1/b/2026-01 w1/é/2026-01", 4},
		{UsageFilter{FromPeriod: "2026-02", ToPeriod: "2026-01"}, 0, 100, "", 0},
		{UsageFilter{TenantID: "A"}, 0, 100, "", 0},
	} {
		list, total, err := db.Usage(ctx, test.f, test.offset, test.limit)
		if err != nil {
			t.Fatal(err)
		}
		text := func(u Usage) string { return u.WorkspaceID + "/" + u.TenantID + "/" + u.Period }
		var got, each []string
		for _, u := range list {
			got = append(got, text(u))
		}
		same(t, fmt.Sprintf("%+v", test), strings.Join(got, " "), test.want)
		same(t, fmt.Sprintf("total of %+v", test.f), total, test.total)
		if test.offset > 0 || test.limit == 0 {
			continue
		}
		if err := db.EachUsage(ctx, test.f, func(u Usage) error { each = append(each, text(u)); return nil }); err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprintf("each of %+v", test.f), strings.Join(each, " "), test.want)
	}
	enough := errors.New("enough")
	n := 0
	if err := db.EachUsage(ctx, UsageFilter{}, func(Usage) error { n++; return enough }); !errors.Is(err, enough) || n != 1 {
		t.Errorf("a reader who has enough got %v after %d rows", err, n)
	}
}

func TestUsageSaysWhetherItsTenantIsKnownAndHadATokenThatMonth(t *testing.T) {
	onBoth(t, testUsageSaysWhetherItsTenantIsKnownAndHadATokenThatMonth)
}

func testUsageSaysWhetherItsTenantIsKnownAndHadATokenThatMonth(t *testing.T) {
	db := openTest(t)
	run := startRun(t, db, "e")
	february := row("a", "1", 1)
	february.Period = "2026-02"
	record(t, db, run, february, row("a", "1", 1), row("b", "1", 1))
	flags := func() string {
		list, _, err := db.Usage(ctx, UsageFilter{}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, u := range list {
			text := u.TenantID + u.Period[4:]
			if u.Unknown {
				text += "?"
			}
			if u.Unattributed {
				text += "!"
			}
			all = append(all, text)
		}
		return strings.Join(all, " ")
	}
	tokens := func(workspace, tenant, period string) {
		if err := db.AddTokens(ctx, []TokenCount{{workspace, tenant, period, 1}}); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "at first", flags(), "a-02?! a-03?! b-03?!")
	claim(t, db, "a")
	same(t, "once a is known", flags(), "a-02! a-03! b-03?!")
	change(t, db, "b", Suspended, 1)
	same(t, "once b is known, without a dashboard", flags(), "a-02! a-03! b-03!")
	tokens("w2", "a", "2026-03")
	tokens("w", "a", "2026-01")
	tokens("w", "c", "2026-03")
	same(t, "after tokens of another workspace, month and tenant", flags(), "a-02! a-03! b-03!")
	tokens("w", "a", "2026-03")
	same(t, "after a token", flags(), "a-02! a-03 b-03!")
}

func TestTokenCountsAddUp(t *testing.T) { onBoth(t, testTokenCountsAddUp) }

func testTokenCountsAddUp(t *testing.T) {
	db := openTest(t)
	var group sync.WaitGroup
	for range 8 { // as replicas do
		group.Go(func() {
			err := db.AddTokens(ctx, []TokenCount{{"w", "a", "2026-03", 2}, {"w", "b", "2026-03", 1}, {"w", "a", "2026-04", 1}, {"w2", "a", "2026-03", 1}, {"w", "a", "2026-03", 3}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	var got []string
	if err := db.read.Select(&got, "SELECT workspace_id || ' ' || tenant_id || ' ' || period || ' ' || tokens FROM token_counts ORDER BY 1"); err != nil {
		t.Fatal(err)
	}
	same(t, "counts", got, []string{"w a 2026-03 40", "w a 2026-04 8", "w b 2026-03 8", "w2 a 2026-03 8"})
	if err := db.AddTokens(ctx, nil); err != nil {
		t.Fatal(err)
	}
}

// One tenant's usage is what its own page asks for, whether or not it names the workspace.
func TestOneTenantsUsageIsFoundByItsKeyInAnyWorkspace(t *testing.T) {
	onBoth(t, testOneTenantsUsageIsFoundByItsKeyInAnyWorkspace)
}

func testOneTenantsUsageIsFoundByItsKeyInAnyWorkspace(t *testing.T) {
	db := openTest(t)
	for _, workspace := range []string{"w1", "w2", "w3"} {
		run, err := db.StartRun(ctx, want(workspace, "e"), db.now(), false)
		if err != nil {
			t.Fatal(err)
		}
		rows := make([]UsageRow, 20_000)
		for i := range rows {
			rows[i] = row(fmt.Sprintf("org-%05d", i), "1", 1)
		}
		record(t, db, &run, rows...)
	}
	explain := "EXPLAIN QUERY PLAN "
	if db.dialect == goose.DialectPostgres {
		db.write.MustExec("ANALYZE tenant_usage")
		explain = "EXPLAIN "
	}
	for _, f := range []UsageFilter{{TenantID: "org-01234"}, {WorkspaceID: "w2", TenantID: "org-01234"}} {
		query, args := f.query()
		rows, err := db.read.Queryx(db.read.Rebind(explain+query), args...)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			columns, err := rows.SliceScan()
			if err != nil {
				t.Fatal(err)
			}
			step := fmt.Sprint(columns[len(columns)-1])
			if strings.HasPrefix(step, "SCAN u") || strings.Contains(step, "Seq Scan on tenant_usage") {
				t.Errorf("%+v reads the whole table: %s", f, step)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "its usage", usage(t, db, UsageFilter{TenantID: "org-01234"}), []string{"org-01234=1/1", "org-01234=1/1", "org-01234=1/1"})
	if list, total, err := db.Usage(ctx, UsageFilter{TenantID: "nobody"}, 0, 10); err != nil || total != 0 || len(list) != 0 {
		t.Errorf("nobody's usage: %+v, %d, %v", list, total, err)
	}
}

// An export goes to wherever somebody reads it, as slowly as they like: no time-out that is meant for the worker's own
// statements cuts it. They are cut here to match a reader who takes two seconds rather than a minute.
func TestUsageIsReadToTheEndHoweverSlowly(t *testing.T) {
	address := pgtest.Need(t, postgres)
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	db := openAddress(t, address+separator+"statement_timeout=1s&idle_in_transaction_session_timeout=1s")
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	for _, rows := range []int{3, 200_000} { // the server is done with the few before the reader is, and waits for him with the many
		tx := db.write.MustBegin()
		tx.MustExec("SET LOCAL statement_timeout = 0")
		tx.MustExec("DELETE FROM tenant_usage")
		tx.MustExec(`INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
			SELECT 'w', 'org-' || lpad(n::text, 100, '0'), '2026-03', n, n, now() FROM generate_series(1, $1::int) n`, rows)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		read := 0
		err := db.EachUsage(ctx, UsageFilter{}, func(Usage) error {
			if read++; read == 1 {
				<-time.After(2 * time.Second) // the slow reader
			}
			return nil
		})
		if err != nil || read != rows {
			t.Errorf("%d of %d rows: %v", read, rows, err)
		}
		var timeout string
		if err := db.read.Get(&timeout, "SHOW statement_timeout"); err != nil || timeout != "1s" {
			t.Errorf("after it, other statements may take %q (%v)", timeout, err)
		}
	}
}
