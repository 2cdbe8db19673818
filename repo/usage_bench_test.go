package repo

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// usagePages decodes n pages of 100 rows out of the simulator, over HTTP, and hands each to use.
func usagePages(b *testing.B, n int, use func(papermap.UsagePage)) {
	workspace := papermap.Workspace{ID: "w", Key: papermap.KeyPair{ID: "ak", Secret: papermap.NewSecret("sk")}}
	sim := simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}})
	sim.SetUsage("w", simulator.Usage{Tenants: 100 * n, Seed: 1})
	api, err := simulator.Serve(http.Handler(sim), "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer api.Close()
	workspace.APIURL = api.URL
	client := papermap.NewClient(workspace, papermap.ClientOptions{})
	defer client.Close()
	for i := range n {
		page, err := client.Usage(ctx, papermap.UsageQuery{FromPeriod: "2026-03", ToPeriod: "2026-03", Page: i + 1, PerPage: 100})
		if err != nil {
			b.Fatal(err)
		}
		use(page)
	}
}

const benchPages = 400 // of 100 rows

func perSecond(b *testing.B, rows int) {
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// The rate of decoding alone, against which BenchmarkUsageRecord is held.
func BenchmarkUsageDecodeAndDrop(b *testing.B) {
	rows := 0
	for range b.N {
		rows = 0
		usagePages(b, benchPages, func(p papermap.UsagePage) { rows += len(p.Rows) })
	}
	perSecond(b, rows)
}

// The rate of recording decoded pages, eight in a transaction as a run does: keys in the order of the index, in none,
// and rows that are known already.
func BenchmarkUsageRecord(b *testing.B) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		b.Run(database, func(b *testing.B) {
			var decoded []UsageRow
			usagePages(b, benchPages, func(p papermap.UsagePage) {
				for _, r := range p.Rows {
					decoded = append(decoded, UsageRow(r))
				}
			})
			for _, order := range []string{"ordered", "shuffled", "unchanged", "changed"} {
				b.Run(order, func(b *testing.B) { recordAll(b, decoded, order) })
			}
		})
	}
}

func recordAll(b *testing.B, decoded []UsageRow, order string) {
	db := openTest(b)
	rows := append([]UsageRow(nil), decoded...)
	if order == "shuffled" {
		rand.New(rand.NewPCG(1, 1)).Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	}
	record := func(n int, rows []UsageRow) {
		run, err := db.StartRun(ctx, want("w", fmt.Sprint("run-", n)), false)
		if err != nil {
			b.Fatal(err)
		}
		for len(rows) > 0 {
			var pages []Page
			for range min(8, len(rows)/100) {
				pages = append(pages, Page{Number: run.NextPage + len(pages), Rows: rows[:100]})
				rows = rows[100:]
			}
			if err := db.RecordPages(ctx, &run, pages); err != nil {
				b.Fatal(err)
			}
		}
		endRun(b, db, &run, RunDone)
	}
	if order == "unchanged" || order == "changed" {
		record(-1, rows)
	}
	b.ResetTimer()
	for n := range b.N {
		b.StopTimer()
		if order == "changed" {
			for i := range rows {
				rows[i].Requests++
			}
		}
		if order == "ordered" || order == "shuffled" {
			db.write.MustExec("DELETE FROM tenant_usage")
		}
		b.StartTimer()
		record(n, rows)
	}
	perSecond(b, len(rows))
}
