package console

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

func TestUsageIsSummedShownByRunAndDownloaded(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		if got := text(w.get("/usage").body); !strings.Contains(got, "No usage was read yet.") {
			t.Errorf("%s", got)
		}
		month := time.Now().UTC().Format("2006-01")
		w.Publish(events.TypeTenantCreated, `{"tenant_id":"a","name":"Acme"}`)
		w.becomes("a", repo.Active)
		rows := []simulator.UsageRow{{TenantID: "a", Period: month, Credits: "1234.5", Requests: 7},
			{TenantID: "gone", Period: month, Credits: "1", Requests: 1},
			{Period: month, Credits: "5", Requests: 1}}
		w.Simulator.SetUsage("ws-a", simulator.Usage{Rows: rows})
		sync := func(runs int) {
			t.Helper()
			w.act("/usage/sync", nil)
			w.Eventually(func() error {
				list, err := w.DB.Runs(t.Context(), "", 10)
				if err == nil && (len(list) != runs || list[0].Status != repo.RunDone) {
					err = fmt.Errorf("runs %+v", list)
				}
				return err
			})
		}
		sync(1)
		got := text(w.get("/usage").body)
		for _, want := range []string{"1,235.50 8 2", "a Acme 1,234.5 7", "gone unknown tenant 1 1"} {
			if !strings.Contains(got, want) {
				t.Errorf("it does not say %q:\n%s", want, got)
			}
		}
		rows[0].Credits = "1000"
		w.Simulator.SetUsage("ws-a", simulator.Usage{Rows: rows})
		sync(2)
		page := w.get("/usage").body
		if !strings.Contains(text(page), "1,001.00") {
			t.Errorf("the sums are old:\n%s", text(page))
		}
		run := regexp.MustCompile(`href="(/usage/run[^"]+)"`).FindStringSubmatch(page)
		if got := text(w.get(run[1]).body); !strings.Contains(got,
			"a "+monthName(month)+" 1,234.5 1,000 7 7") ||
			!strings.Contains(got, "Rows that could not be used") {
			t.Errorf("%s", got)
		}
		if got := text(w.get("/tenant?id=a").body); !strings.Contains(got,
			"Usage of "+monthName(month)+" went down 1234.5 to 1000 credits") {
			t.Errorf("%s", got)
		}
		csv := w.get("/usage.csv?tenant=a")
		if !strings.HasPrefix(csv.header.Get("Content-Disposition"), "attachment") ||
			!strings.Contains(csv.body, "a,ws-a,"+month+",1000,7,") || strings.Contains(csv.body, "gone") {
			t.Errorf("%v\n%s", csv.header, csv.body)
		}
	})
}

func TestUsagePageShowsBudgets(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		month := time.Now().UTC().Format("2006-01")
		w.Simulator.SetUsage("ws-a", simulator.Usage{Rows: []simulator.UsageRow{
			{TenantID: "half", Period: month, Credits: "500", Requests: 1},
			{TenantID: "near", Period: month, Credits: "80", Requests: 1},
			{TenantID: "none", Period: month, Credits: "70", Requests: 1},
			{TenantID: "over", Period: month, Credits: "60", Requests: 1},
		}})
		for tenant, credits := range map[string]string{"half": "1000", "near": "100", "over": "40"} {
			b, err := repo.NewBudget(tenant, credits, repo.Percents{80, 100})
			w.Must(err)
			w.Must(w.Workers[0].SetBudget(t.Context(), b))
		}
		w.Publish(events.TypeUsageSync, "{}")
		w.Eventually(func() error {
			got := text(w.get("/usage").body)
			for _, want := range []string{
				"half unknown tenant 500 50 % of 1,000 1 " +
					"near unknown tenant 80 80 % of 100 1 none unknown tenant 70 1",
				"Over 80 % of their budget in " + monthName(month) +
					" Tenant Budget Credits Workspace over 150 % of 40 60 ws-a near 80 % of 100 80 ws-a",
			} {
				if !strings.Contains(got, want) {
					return fmt.Errorf("it does not say %q:\n%s", want, got)
				}
			}
			return nil
		})
	})
}

func TestUsageDownloadHoldsNoFormula(t *testing.T) {
	virtual(t, Config{Dev: true}, nil, func(t *testing.T, w *world) {
		month := time.Now().UTC().Format("2006-01")
		var u simulator.Usage
		for _, id := range []string{"=1+1", "+1", "-1", "@SUM(A1)", `=HYPERLINK("https://evil.example","x")`,
			"plain"} {
			u.Rows = append(u.Rows, simulator.UsageRow{TenantID: id, Period: month, Credits: "1.5",
				Requests: 2})
		}
		w.Simulator.SetUsage("ws-a", u)
		w.Publish(events.TypeUsageSync, "{}")
		w.Eventually(func() error {
			if n := strings.Count(w.get("/usage.csv").body, "\n"); n != len(u.Rows)+1 {
				return fmt.Errorf("%d lines", n)
			}
			return nil
		})
		csv := w.get("/usage.csv")
		for _, line := range strings.Split(strings.TrimSpace(csv.body), "\n")[1:] {
			if first := strings.TrimLeft(line, `"`); strings.ContainsAny(first[:1], "=+-@") {
				t.Errorf("a spreadsheet would run %s", line)
			}
		}
		if csv.header.Get("Content-Type") != "text/csv; charset=utf-8" ||
			csv.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%v", csv.header)
		}
	})
}
