package repo

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// announceThreshold makes an event whose data a test reads: the workspace, tenant, month and percent.
func announceThreshold(r Threshold) (OutboxEvent, error) {
	data := fmt.Appendf(nil, `"%s %s %s %d: %s of %s"`,
		r.WorkspaceID, r.TenantID, r.Period, r.Percent, r.Credits, r.Budget)
	return OutboxEvent{EventID: uuid.NewString(), Type: "usage.threshold", Data: data}, nil
}

// setBudget sets a budget with thresholds 80 and 100.
func setBudget(t fataler, db *DB, tenant, credits string) {
	t.Helper()
	b, err := NewBudget(tenant, credits, Percents{80, 100})
	must(t, err)
	must(t, db.SetBudget(ctx, b, announceThreshold))
}

// announced returns the thresholds that were announced since the test last asked.
func announced(t fataler, db *DB) (list []string) {
	t.Helper()
	rows, err := db.Unsent(ctx, 1<<20)
	must(t, err)
	var ids []int64
	for _, r := range rows {
		if r.Type == "usage.threshold" {
			list = append(list, strings.Trim(string(r.Data), `"`))
			ids = append(ids, r.ID)
		}
	}
	must(t, db.MarkSent(ctx, ids))
	return list
}

// syncRows records rows of workspace w in a run of their own.
func syncRows(t fataler, db *DB, rows ...UsageRow) {
	t.Helper()
	run := startRun(t, db, uuid.NewString())
	must(t, db.RecordPages(ctx, run, []Page{{Number: 1, Rows: rows}}, announceThreshold))
	endRun(t, db, run, RunDone)
}

func TestBudgetAnnouncesEachThresholdOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		setBudget(t, db, "a", "100")
		for _, step := range []struct {
			credits string
			want    []string
		}{
			{"79.999999999999", nil},
			{"80", []string{"w a 2026-03 80: 80 of 100"}},
			{"80", nil},
			{"99.999999999999", nil},
			{"70", nil}, // the total was corrected
			{"85", nil},
			{"100", []string{"w a 2026-03 100: 100 of 100"}},
			{"10", nil},
			{"500", nil},
		} {
			syncRows(t, db, row("a", step.credits, 1), row("other", "1000000", 1))
			same(t, "announced at "+step.credits, announced(t, db), step.want)
		}
		syncRows(t, db, UsageRow{TenantID: "a", Period: "2026-02", Credits: "1000"},
			UsageRow{TenantID: "a", Period: "2026-01", Credits: "1000"},
			UsageRow{TenantID: "a", Period: "2026-04", Credits: "1000"})
		same(t, "announced of other months: the previous one", announced(t, db),
			[]string{"w a 2026-02 80: 1000 of 100", "w a 2026-02 100: 1000 of 100"})
	})
}

func TestBudgetJudgesRowsThatDidNotChange(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		syncRows(t, db, row("a", "90", 1))
		// as an older version leaves it, which does not judge
		db.write.MustExec("INSERT INTO usage_budgets (tenant_id, credits, thresholds) " +
			"VALUES ('a', '100', '80')")
		syncRows(t, db, row("a", "90", 1))
		same(t, "announced", announced(t, db), []string{"w a 2026-03 80: 90 of 100"})
	})
}

func TestBudgetIsJudgedPerWorkspace(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		syncRows(t, db, row("a", "60", 1))
		other, page := mustRun(t, db, want("v", "e")), Page{Number: 1, Rows: []UsageRow{row("a", "90", 1)}}
		must(t, db.RecordPages(ctx, other, []Page{page}, announceThreshold))
		setBudget(t, db, "a", "100")
		same(t, "announced", announced(t, db), []string{"v a 2026-03 80: 90 of 100"})
		syncRows(t, db, row("a", "80", 1))
		same(t, "announced", announced(t, db), []string{"w a 2026-03 80: 80 of 100"})
	})
}

func TestBudgetOfEveryTenantIsForThoseWithoutTheirOwn(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		syncRows(t, db, row("*", "100", 1), row("a", "100", 1), row("none", "100", 1), row("own", "100", 1))
		setBudget(t, db, "own", "1000")
		setBudget(t, db, "none", "0")
		same(t, "announced of their own", announced(t, db), []string(nil))
		setBudget(t, db, EveryTenant, "120")
		same(t, "announced when it is set", announced(t, db),
			[]string{"w * 2026-03 80: 100 of 120", "w a 2026-03 80: 100 of 120"})
		syncRows(t, db, row("a", "130", 1), row("b", "100", 1), row("none", "130", 1), row("own", "130", 1))
		same(t, "announced when it is recorded", announced(t, db),
			[]string{"w a 2026-03 100: 130 of 120", "w b 2026-03 80: 100 of 120"})
		must(t, db.UnsetBudget(ctx, "own", announceThreshold))
		same(t, "announced without a budget of its own", announced(t, db),
			[]string{"w own 2026-03 80: 130 of 120", "w own 2026-03 100: 130 of 120"})
		same(t, "unset again", db.UnsetBudget(ctx, "own", announceThreshold) != nil, true)
		list, err := db.Budgets(ctx)
		must(t, err)
		same(t, "budgets", list, []Budget{{"*", "120", Percents{80, 100}}, {"none", "0", Percents{80, 100}}})
	})
}

func TestBudgetThatIsRaisedIsReachedAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		syncRows(t, db, row("a", "100", 1))
		type step struct {
			do   func()
			want []string
		}
		set := func(credits string) func() { return func() { setBudget(t, db, "a", credits) } }
		used := func(credits string) func() { return func() { syncRows(t, db, row("a", credits, 1)) } }
		for i, s := range []step{
			{set("100"), []string{"w a 2026-03 80: 100 of 100", "w a 2026-03 100: 100 of 100"}},
			{set("110"), nil}, // 100 is not reached any more, 80 is
			{used("110"), []string{"w a 2026-03 100: 110 of 110"}},
			{set("200"), nil},
			{used("160"), []string{"w a 2026-03 80: 160 of 200"}},
			{used("100"), nil},
			{set("200"), nil}, // not raised: the total fell
			{used("170"), nil},
			{set("100"), []string{"w a 2026-03 100: 170 of 100"}},
			{used("60"), nil},
			{set("50"), nil},
			{set("90"), nil}, // raised, and neither is reached
			{used("95"), []string{"w a 2026-03 80: 95 of 90", "w a 2026-03 100: 95 of 90"}},
			{set("0"), nil},
			{set("90"), nil}, // the same as before
			{set("0"), nil},
			{set("1000"), nil}, // more than before
			{used("800"), []string{"w a 2026-03 80: 800 of 1000"}},
		} {
			s.do()
			same(t, fmt.Sprint("announced after step ", i), announced(t, db), s.want)
		}
	})
}

func TestBudgetAnnouncesInTheOrderOfThresholds(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		b, err := NewBudget("a", "10.50", Percents{200, 50, 100, 50, 80})
		must(t, err)
		same(t, "the budget", fmt.Sprint(b), "{a 10.5 50,80,100,200}")
		must(t, db.SetBudget(ctx, b, announceThreshold))
		stored, err := db.Budget(ctx, "a")
		must(t, err)
		same(t, "the budget as stored", stored, b)
		syncRows(t, db, row("a", "20.999", 1))
		same(t, "announced", announced(t, db), []string{"w a 2026-03 50: 20.999 of 10.5",
			"w a 2026-03 80: 20.999 of 10.5", "w a 2026-03 100: 20.999 of 10.5"})
	})
}

func TestNewBudgetRefusesWhatCannotBeRecorded(t *testing.T) {
	for _, b := range []struct {
		credits    string
		thresholds Percents
	}{
		{"", Percents{80}}, {"-1", Percents{80}}, {"1e3", Percents{80}}, {"1.", Percents{80}},
		{".5", Percents{80}}, {"NaN", Percents{80}}, {"1\n", Percents{80}},
		{"100000000000000000000" /* 21 digits */, Percents{80}}, {"0.0000000000001", Percents{80}},
		{"1", nil}, {"1", Percents{0}}, {"1", Percents{-1, 80}}, {"1", Percents{1001}},
		{"1", Percents{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
	} {
		if got, err := NewBudget("a", b.credits, b.thresholds); err == nil {
			t.Errorf("%q, %v: %+v", b.credits, b.thresholds, got)
		}
	}
}

func TestBudgetSetWhileUsageIsRecordedMissesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		var want []string
		for round := range 20 {
			tenant := fmt.Sprintf("t%02d", round)
			run := startRun(t, db, tenant)
			done := make(chan error, 1)
			go func() {
				done <- db.RecordPages(ctx, run, []Page{{Number: 1, Rows: []UsageRow{row(tenant, "90", 1)}}},
					announceThreshold)
			}()
			setBudget(t, db, tenant, "100")
			must(t, <-done)
			endRun(t, db, run, RunDone)
			want = append(want, fmt.Sprintf("w %s 2026-03 80: 90 of 100", tenant))
		}
		got := announced(t, db)
		slices.Sort(got)
		same(t, "announced", got, want)
	})
}

func TestPruneDeletesMarksOfMonthsThatAreOver(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		setBudget(t, db, "a", "100")
		syncRows(t, db, row("a", "100", 1))
		pass(db, 31*24*time.Hour)
		_, err := db.Prune(ctx, time.Hour)
		must(t, err)
		same(t, "marks a month later", count(t, db, "usage_marks"), 2)
		syncRows(t, db, row("a", "100", 1))
		pass(db, 31*24*time.Hour)
		_, err = db.Prune(ctx, time.Hour)
		must(t, err)
		same(t, "marks two months later", count(t, db, "usage_marks"), 0)
		announced(t, db)
		syncRows(t, db, row("a", "200", 1))
		same(t, "announced then", announced(t, db), []string(nil))
	})
}

func TestOverBudgetListsTheLargestSharesFirst(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		setBudget(t, db, EveryTenant, "100")
		setBudget(t, db, "big", "1000")
		setBudget(t, db, "none", "0")
		syncRows(t, db, row("a", "79", 1), row("b", "80", 1), row("big", "900", 1), row("c", "250.5", 1),
			row("none", "900", 1))
		rows, err := db.OverBudget(ctx, "2026-03", 80, 10)
		must(t, err)
		var got []string
		for _, r := range rows {
			got = append(got, fmt.Sprint(r.TenantID, " ", r.BudgetPercent(), " % of ", r.Budget))
		}
		same(t, "over budget", got, []string{"c 250 % of 100", "big 90 % of 1000", "b 80 % of 100"})
	})
}
