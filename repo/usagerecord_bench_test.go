package repo

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// usagePages decodes n pages of 100 rows out of the simulator, over HTTP, and hands each to use.
func usagePages(b *testing.B, n int, use func(papermap.UsagePage)) {
	workspace := papermap.Workspace{ID: "w",
		Key: papermap.KeyPair{ID: "ak", Secret: papermap.NewSecret("sk")}}
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
		page, err := client.Usage(ctx, papermap.UsageQuery{FromPeriod: "2026-03", ToPeriod: "2026-03",
			Page: i + 1, PerPage: 100})
		if err != nil {
			b.Fatal(err)
		}
		use(page)
	}
}

// BenchmarkUsageRecord holds the rate of recording decoded pages against that of decoding and
// dropping them: keys in the order of the index, in none, rows that are known already, and rows of
// which each has changed. A transaction takes as many pages as a run's does, of which twice eight
// are on their way.
func BenchmarkUsageRecord(b *testing.B) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		for _, order := range []string{"ordered", "shuffled", "unchanged", "changed"} {
			b.Run(database+"/"+order, func(b *testing.B) { benchmarkUsageRecord(b, order) })
		}
	}
}

func benchmarkUsageRecord(b *testing.B, order string) {
	const pages = 400
	db := openTest(b)
	together := min(db.PagesTogether(), 16)
	record := func(event string, rows []UsageRow) (took time.Duration) {
		run := startRun(b, db, event)
		began := time.Now()
		for batch := range slices.Chunk(rows, 100*together) {
			var list []Page
			for page := range slices.Chunk(batch, 100) {
				list = append(list, Page{Number: run.NextPage + len(list), Rows: page})
			}
			if err := db.RecordPages(ctx, run, list, nil); err != nil {
				b.Fatal(err)
			}
		}
		took = time.Since(began)
		endRun(b, db, run, RunDone)
		return took
	}
	var dropped, recorded time.Duration
	n := 0
	for b.Loop() {
		n++
		began := time.Now()
		usagePages(b, pages, func(papermap.UsagePage) {})
		dropped += time.Since(began)

		rows := make([]UsageRow, 0, 100*pages)
		usagePages(b, pages, func(p papermap.UsagePage) {
			for _, r := range p.Rows {
				rows = append(rows, UsageRow(r))
			}
		})
		switch order {
		case "shuffled":
			rand.New(rand.NewPCG(1, 1)).Shuffle(len(rows),
				func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		case "unchanged":
			record(fmt.Sprint("before", n), rows)
		case "changed":
			record(fmt.Sprint("before", n), rows)
			for i := range rows {
				rows[i].Requests++
			}
		}
		recorded += record(fmt.Sprint("run", n), rows)
		db.write.MustExec("DELETE FROM tenant_usage")
	}
	b.ReportMetric(float64(100*pages*n)/dropped.Seconds(), "dropped-rows/s")
	b.ReportMetric(float64(100*pages*n)/recorded.Seconds(), "recorded-rows/s")
	b.ReportMetric(dropped.Seconds()/recorded.Seconds(), "recorded/dropped")
	b.ReportMetric(0, "ns/op")
}
