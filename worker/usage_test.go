package worker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestUsageRequestThatCannotBeAnsweredIsRefused(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.Refused("usage", `{"tenant_id":"t","workspace_id":"ws-b"}`, 400, "INVALID_REQUEST")
		w.Refused("usage", `{"workspace_id":"a\u0000"}`, 400, "INVALID_REQUEST")

		// The longest answer fits into a message.
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 500,
			TenantID: func(i int) string { return strings.Repeat("😀", 250) + fmt.Sprint(10000+i) }})
		w.Sync("e", "workspace_id", "ws-a", "from_period", "2026-01", "to_period", "2026-01")
		w.Eventually(w.usageRunIs("e", repo.RunDone))
		if reply := w.Request("usage", `{"per_page":400}`); workertest.Refusal(reply) != "" ||
			len(reply.Data) < 400*1000 {
			t.Errorf("%d bytes, %v", len(reply.Data), reply.Header)
		}
		w.Refused("usage", `{"per_page":401}`, 400, "INVALID_REQUEST")
	})
}

func TestUsageIsAnsweredInPages(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Simulator.SetUsage("ws-a", simulator.Usage{Tenants: 30, Seed: 2})
		w.Simulator.SetUsage("ws-b", simulator.Usage{Tenants: 1,
			TenantID: func(int) string { return "of b" }})
		ask := func(fields string) worker.UsagePage {
			t.Helper()
			schematest.Validate(t, "usage.request", []byte(fields))
			reply := w.Request("usage", fields)
			var answer worker.UsagePage
			if err := json.Unmarshal(reply.Data, &answer); err != nil || len(reply.Header) > 0 {
				t.Fatalf("%s: %v %s", fields, reply.Header, reply.Data)
			}
			schematest.Validate(t, "usage.reply", reply.Data)
			return answer
		}
		if got := ask(`{}`); got.Total != 0 || got.Page != 1 || got.Usage == nil || len(got.Usage) > 0 {
			t.Errorf("before any sync: %+v", got)
		}
		w.Sync("e", "from_period", "2026-01", "to_period", "2026-03")
		w.Eventually(w.Handled)
		a, b := w.totals(w.usageRun("e", "ws-a")), w.totals(w.usageRun("e", "ws-b"))
		all := append(slices.Clone(a), b...) // in the order of workspace, tenant, month
		asked := len(w.Requests("usage"))
		for _, c := range []struct {
			fields string
			want   []papermap.UsageRow
			page   int
			total  int
		}{
			{`{}`, all, 1, 93},
			{`{"per_page":10}`, all[:10], 1, 93},
			{`{"page":2,"per_page":10}`, all[10:20], 2, 93},
			{`{"page":10,"per_page":10}`, all[90:], 10, 93},
			{`{"page":11,"per_page":10}`, nil, 11, 93},
			{`{"page":2147483648,"per_page":400}`, nil, 1 << 31, 93},
			{`{"per_page":400}`, all, 1, 93},
			{`{"workspace_id":"ws-b"}`, b, 1, 3},
			{`{"workspace_id":"ws-z"}`, nil, 1, 0},
			{`{"tenant_id":"org-0000004"}`, a[12:15], 1, 3},
			{`{"tenant_id":"org-0000004","from_period":"2026-02"}`, a[13:15], 1, 2},
			{`{"tenant_id":"org-0000004","to_period":"2026-02"}`, a[12:14], 1, 2},
			{`{"tenant_id":"org-0000004","from_period":"2026-02","to_period":"2026-02",` +
				`"workspace_id":"ws-a"}`, a[13:14], 1, 1},
			{`{"tenant_id":"ORG-0000004"}`, nil, 1, 0},
			{`{"from_period":"2026-04"}`, nil, 1, 0},
		} {
			got := ask(c.fields)
			var rows []papermap.UsageRow
			for _, u := range got.Usage {
				rows = append(rows, papermap.UsageRow{TenantID: u.TenantID, Period: u.Period,
					Credits: u.Credits, Requests: u.Requests})
				if workspace := map[bool]string{true: "ws-b",
					false: "ws-a"}[u.TenantID == "of b"]; u.WorkspaceID != workspace ||
					time.Since(u.SyncedAt.Time).Abs() > 5*time.Minute {
					t.Errorf("%s: row %+v", c.fields, u)
				}
			}
			if !slices.Equal(rows, c.want) || got.Page != c.page || got.Total != c.total {
				t.Errorf("%s: %d rows %.200v, page %d, total %d; want %d rows %.200v, page %d, total %d",
					c.fields, len(rows), rows, got.Page, got.Total, len(c.want), c.want, c.page, c.total)
			}
		}
		for _, body := range []string{
			``, `null`, `[]`, `{"page":0}`, `{"page":-1}`, `{"page":2147483649}`, `{"page":"1"}`,
			`{"page":1.5}`, `{"per_page":0}`, `{"per_page":1001}`,
			`{"tenant_id":""}{}`, `{"tenant_id":" x"}`, `{"tenant_id":7}`, `{"tenant_id":"a\u0000"}`,
			`{"Tenant_id":"x"}`, `{"from_period":"2026-13"}`, `{"from_period":"2026-1"}`,
			`{"to_period":"March"}`, `{"to_period":202603}`, `{"workspace_id":1}`, `{"page":1,"page":1}`,
		} {
			w.Refused("usage", body, 400, "INVALID_REQUEST")
		}
		if n := len(w.Requests("usage")); n != asked {
			t.Errorf("%d API requests for answers", n-asked)
		}
		w.Must(w.Workers[0].DB.Close())
		w.Refused("usage", `{}`, 503, "UNAVAILABLE")
	})
}
