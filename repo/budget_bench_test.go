package repo

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkUsageRecordWithBudgets holds the median time of recording with budgets against that
// without, in turns: a budget for every tenant and one of its own for each tenth; all totals rise,
// and one in fifty reaches a threshold.
func BenchmarkUsageRecordWithBudgets(b *testing.B) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		b.Run(database, benchmarkBudgets)
	}
}

func benchmarkBudgets(b *testing.B) {
	const tenants = 20_000
	db := openTest(b)
	rows := make([]UsageRow, tenants)
	for i := range rows {
		rows[i] = row(fmt.Sprintf("org-%06d", i), fmt.Sprint(1000+i%50), 1)
	}
	var own [][]any
	for i := 0; i < tenants; i += 10 {
		own = append(own, []any{rows[i].TenantID, "1049", "100"})
	}
	together := 100 * min(db.PagesTogether(), 16)
	n := 0
	record := func() time.Duration {
		n++
		run := startRun(b, db, fmt.Sprint("run", n))
		began := time.Now()
		for batch := range slices.Chunk(rows, together) {
			must(b, db.RecordPages(ctx, run, []Page{{Number: run.NextPage, Rows: batch}}, announceThreshold))
		}
		took := time.Since(began)
		endRun(b, db, run, RunDone)
		return took
	}
	rise := func() {
		for i := range rows {
			rows[i].Credits = fmt.Sprint(1000 + (i+n)%50)
			rows[i].Requests++
		}
	}
	record()
	var without, with []time.Duration
	for b.Loop() {
		for range 4 {
			db.write.MustExec("DELETE FROM usage_budgets")
			rise()
			without = append(without, record())
			must(b, db.update(ctx, func(ctx context.Context, t *tx) error {
				_, err := t.insertSet(ctx, "usage_budgets", budgetColumns, own, "")
				return err
			}, "set budgets"))
			db.write.MustExec("INSERT INTO usage_budgets (tenant_id, credits, thresholds) " +
				"VALUES ('*', '1049', '100')")
			db.write.MustExec("DELETE FROM usage_marks") // or each threshold would be reached but once
			rise()
			with = append(with, record())
		}
	}
	median := func(list []time.Duration) float64 {
		return slices.Sorted(slices.Values(list))[len(list)/2].Seconds()
	}
	b.ReportMetric(median(with)/median(without), "with/without")
	b.ReportMetric(0, "ns/op")
}

var budgetColumns = []column{{"tenant_id", "text"}, {"credits", "numeric"}, {"thresholds", "text"}}
