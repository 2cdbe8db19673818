package repo

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

func TestUsageIsWrittenOnlyWhereNew(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		first := startRun(t, db, "first")
		record(t, db, first, row("a", "1", 1), row("b", "2", 2), row("c", "3", 3), row("d", "4", 4))
		same(t, "rows written at first", first.Written, int64(4))
		endRun(t, db, first, RunDone)

		pass(db, time.Minute)
		second := startRun(t, db, "second")
		record(t, db, second, row("a", "1", 1), row("b", "2.5", 2), row("c", "3", 4), row("e", "5", 5))
		// d is missing, not zero
		same(t, "usage", usage(t, db, UsageFilter{}), []string{"a=1/1", "b=2.5/2", "c=3/4", "d=4/4", "e=5/5"})
		same(t, "first read", syncedAt(t, db), map[string]float64{"a": 0, "b": 1, "c": 1, "d": 0, "e": 1})
		same(t, "rows read, written and changed", []int64{second.Read, second.Written, second.Changed},
			[]int64{4, 3, 0})
		same(t, "the run as recorded", storedRun(t, db, "second").Written, int64(3))
		endRun(t, db, second, RunDone)

		pass(db, time.Minute)
		third := startRun(t, db, "third")
		record(t, db, third, row("a", "1", 1), row("b", "2.5", 2), row("c", "3", 4), row("e", "5", 5))
		same(t, "rows written when nothing is new", third.Written, int64(0))
		same(t, "first read, still", syncedAt(t, db),
			map[string]float64{"a": 0, "b": 1, "c": 1, "d": 0, "e": 1})
	})
}

func TestUsageKeepsTotalsThatWentDown(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
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
			before, after = append(before, row(tenant, test.old, test.oldReq)), append(after,
				row(tenant, test.new, test.newReq))
			now = append(now, fmt.Sprintf("%s=%s/%d", tenant, test.new, test.newReq))
			if test.down {
				changes = append(changes,
					fmt.Sprintf("%s 2026-03 %s>%s %d>%d", tenant, test.old, test.new, test.oldReq,
						test.newReq))
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
		same(t, "rows written and changed", []int64{second.Written, second.Changed},
			[]int64{written, int64(len(changes))})

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
		err := db.read.Select(&kept, `SELECT run_id, workspace_id, tenant_id, period,
			CAST(old_credits AS TEXT) AS old_credits, CAST(new_credits AS TEXT) AS new_credits,
		old_requests, new_requests, changed_at FROM usage_changes ORDER BY tenant_id`)
		must(t, err)
		var got []string
		for _, k := range kept {
			got = append(got, fmt.Sprintf("%s %s %s>%s %d>%d", k.Tenant, k.Period, k.Old, k.New, k.OldReq,
				k.NewReq))
			if k.Run != second.ID || k.Workspace != "w" || !k.At.Equal(db.now()) {
				t.Errorf("%+v is not said to be of run %s, now", k, second.ID)
			}
		}
		same(t, "changes", got, changes)
	})
}

func TestUsageKeepsCreditsToTheLastDigit(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		var rows []UsageRow
		for i, credits := range []string{
			"0", "1", "0.1", "0.000000000001", "12.5", "100", "9007199254740993", "99999999999999999999",
			"99999999999999999999.999999999999",
			"10000000000000000000.000000000001", "123456789.123456789012",
		} {
			rows = append(rows, row(fmt.Sprintf("t%02d", i), credits, int64(i)))
		}
		run := startRun(t, db, "e")
		for range 2 { // what is read back is what was written, so that it is not taken for another value
			record(t, db, run, rows...)
			for i, u := range usage(t, db, UsageFilter{}) {
				same(t, "usage", u, fmt.Sprintf("%s=%s/%d", rows[i].TenantID, rows[i].Credits,
					rows[i].Requests))
			}
		}
		same(t, "rows read, written and changed", []int64{run.Read, run.Written, run.Changed},
			[]int64{22, 11, 0})
	})
}

func TestUsageOfARepeatedKeyIsTheLater(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
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
			{pages([]UsageRow{row("a", "4", 4)}, []UsageRow{row("b", "5", 5), row("a", "3", 3)}), 1, 0, 3,
				"a=3/3 b=5/5"}, // a is as it was
			{pages([]UsageRow{row("a", "9", 9)}, nil, []UsageRow{row("a", "1", 1)}), 1, 1, 2, "a=1/1 b=5/5"},
			{pages([]UsageRow{row("a", "1", 1), row("a", "1", 1)}), 0, 0, 2, "a=1/1 b=5/5"},
			{pages([]UsageRow{feb(row("a", "7", 7)), row("a", "8", 8)}), 2, 0, 2, "a=7/7 a=8/8 b=5/5"},
			// another month is another key
		} {
			before := *run
			for i := range test.pages {
				test.pages[i].Number = run.NextPage + i
			}
			must(t, db.RecordPages(ctx, run, test.pages, nil))
			got := fmt.Sprint(run.Written-before.Written, run.Changed-before.Changed, run.Read-before.Read,
				" ", strings.Join(usage(t, db, UsageFilter{}), " "))
			same(t, fmt.Sprintf("%+v", test.pages), got,
				fmt.Sprint(test.written, test.changed, test.read, " ", test.want))
		}
	})
}

func TestRecordPagesTakesAnyNumberOfRows(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, n := range []int{0, 1, 2, 99, 100, 499, 500, 501, 999, 1000, 1001, 1300, 9000} {
			run := startRun(t, db, fmt.Sprint("e", n))
			rows, changed := make([]UsageRow, n), make([]UsageRow, n)
			down := int64(0)
			for i := range rows {
				// each once, in no order
				rows[i] = row(fmt.Sprintf("%04d-%04d", n, (i*7919)%n), fmt.Sprint(10+i), 1)
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
				pages := []Page{{Number: 1}, {Number: 2, Rows: rows[:n/2]}, {Number: 3},
					{Number: 4, Rows: rows[n/2:]}, {Number: 5}}
				must(t, db.RecordPages(ctx, run, pages, nil))
				same(t, "the checkpoint", run.NextPage, 6)
			} else {
				record(t, db, run, rows...)
			}
			record(t, db, run, rows...)
			same(t, fmt.Sprintf("written of %d rows that are new, then known", n), run.Written, int64(n))
			record(t, db, run, changed...)
			same(t, fmt.Sprintf("of %d rows, written and gone down", n), []int64{run.Written, run.Changed},
				[]int64{int64(n + n - (n+2)/3), down})
			same(t, "rows", count(t, db, fmt.Sprintf("tenant_usage WHERE tenant_id LIKE '%04d-%%'", n)), n)
			same(t, "kept changes", count(t, db,
				fmt.Sprintf("usage_changes WHERE tenant_id LIKE '%04d-%%'", n)), int(down))
			endRun(t, db, run, RunDone)
		}
		run := startRun(t, db, "none")
		// a call without a page
		must(t, db.RecordPages(ctx, run, nil, nil))
		same(t, "the checkpoint", run.NextPage, 1)
	})
}
