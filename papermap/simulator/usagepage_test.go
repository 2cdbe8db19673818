package simulator

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/papermap"
)

func TestUsageIsReadTrulyInEveryStyle(t *testing.T) {
	named := []UsageRow{
		{"org-0000003", "2025-01", `"0012.500"`, 7}, {"org-0000004", "2025-02", `"none"`, 1},
		{"Zoë \"Z\"", "2025-02", "1e3", 0}, {"Acme", "2025-02", "99999999999999999999.5", 1},
		{"Acme", "2025-01", "0", 1}, {"Acme", "2024-12", "5", 1}, {"big", "2025-01", "1e21", 1},
		{"", "2025-01", "1", 1}, {"bad", "soon", "1", 1}, {"bad", "", "1", 1}, {"bad", "2025-01", "", 1},
	}
	// Generated: 50 in 2 months. Named: 8 more, for two stand in the place of generated ones, and
	// December is not asked for. Bad: 12 of either month, of which one is replaced by a good one;
	// of the named that of org-0000004, big, "" and bad.
	const all, bad = 50*2 + 8, 12 + 12 - 1 + 6
	for _, style := range UsageStyles {
		for _, perPage := range []int{7, 100} {
			s, address := start(t, Options{})
			s.SetUsage("ws-a", Usage{Tenants: 50, Seed: 3, Style: style, BadEvery: 4, Rows: named})
			rows, rejected, last := readAll(t, address,
				papermap.UsageQuery{FromPeriod: "2025-01", ToPeriod: "2025-02", PerPage: perPage})
			want := totals(t, s, "2025-01", "2025-02")
			if diff := cmp.Diff(want, rows); diff != "" {
				t.Errorf("%s: (-want +got)\n%s", style, diff)
			}
			if len(rows) != all-bad || len(rejected) != bad || last.Total >= 0 && last.Total != all {
				t.Errorf("%s: %d rows and %d rejected, total %d", style, len(rows), len(rejected), last.Total)
			}
			if i := slices.Index(rows, papermap.UsageRow{TenantID: "org-0000003", Period: "2025-01",
				Credits: "12.5", Requests: 7}); i < 0 {
				t.Errorf("%s: the named row of a generated tenant is not there", style)
			}
		}
	}
}

func TestUsageStylesTogetherHaveEveryName(t *testing.T) {
	var seen strings.Builder
	for _, style := range UsageStyles {
		s, address := start(t, Options{})
		s.SetUsage("ws-a", Usage{Tenants: 2, Style: style})
		r := send("GET", address+"/api/v1/external/workspaces/ws-a/tenant-usage?per_page=1", good(), "")
		if r.status != 200 || !json.Valid([]byte(r.body)) {
			t.Fatalf("%s: %d %s", style, r.status, r.body)
		}
		seen.WriteString(r.body)
	}
	for _, name := range []string{
		"tenant_id", "tenant", "external_tenant_id", "credits_consumed", "credits_used", "total_credits",
		"credits", "request_count", "requests", "total_requests",
		"period", "period_start", "billing_period_start", "start", "usage", "items", "tenants", "records",
		"pagination", "meta",
		"total_pages", "pages", "total", "total_records", "page", "per_page", "has_next", "has_more",
	} {
		if !strings.Contains(seen.String(), `"`+name+`":`) {
			t.Errorf("no style has %s", name)
		}
	}
	for _, place := range []string{`"data":[{`, `"data":{"usage":[{`} {
		if !strings.Contains(seen.String(), place) {
			t.Errorf("no style has the list at %s", place)
		}
	}
}

func TestUsageHistoryHasOneTenantsRows(t *testing.T) {
	for _, style := range UsageStyles {
		s, address := start(t, Options{})
		s.SetUsage("ws-a", Usage{Tenants: 30, Style: style, BadEvery: 3,
			TenantID: func(i int) string { return fmt.Sprintf("../t/%d%%", i) },
			Rows:     []UsageRow{{"..", "2025-03", "5", 1}, {"../t/7%", "2025-03", "6", 2}}})
		for _, tenant := range []string{"../t/7%", "..", "unknown"} {
			rows, rejected, _ := readAll(t, address, papermap.UsageQuery{TenantID: tenant,
				FromPeriod: "2025-01", ToPeriod: "2025-12", PerPage: 5})
			var want []papermap.UsageRow
			for _, r := range totals(t, s, "2025-01", "2025-12") {
				if r.TenantID == tenant {
					want = append(want, r)
				}
			}
			if diff := cmp.Diff(want, rows); diff != "" {
				t.Errorf("%s of %s: (-want +got)\n%s", style, tenant, diff)
			}
			if tenant == "../t/7%" && (len(rows) < 8 || len(rows)+len(rejected) != 12) {
				t.Errorf("%s: %d rows, %d rejected", style, len(rows), len(rejected))
			}
		}
	}
}

func TestUsageAnswersAnEmptyPageAndChecksItsQuery(t *testing.T) {
	_, address := start(t, Options{})
	base := address + "/api/v1/external/workspaces/"
	const begin = `{"success":true,"message":"Tenant usage retrieved successfully",` +
		`"data":{"workspace_id":"ws-a",`
	const all = begin + `"usage":[],"pagination":{"page":1,"per_page":50,"total":0,"total_pages":0}}}`
	const one = begin +
		`"tenant_id":"../a b","usage":[],"pagination":{"page":3,"per_page":100,"total":0,"total_pages":0}}}`
	for _, c := range []struct {
		path   string
		status int
		body   string
	}{
		{"ws-a/tenant-usage", 200, all},
		{"ws-a/tenant-usage?from_period=2026-11&to_period=2026-12&page=1&per_page=50", 200, all},
		{"ws-a/tenants/..%2Fa%20b/usage?page=3&per_page=100", 200, one},
		{"ws-b/tenant-usage", 403, ""},
		{"ws-b/tenants/x/usage", 403, ""},
		{"ws-a/tenant-usage?from_period=2026-13", 400, ""},
		{"ws-a/tenant-usage?to_period=2026-1", 400, ""},
		{"ws-a/tenant-usage?page=0", 400, ""},
		{"ws-a/tenant-usage?page=x", 400, ""},
		{"ws-a/tenant-usage?per_page=0", 400, ""},
		{"ws-a/tenant-usage?per_page=101", 400, ""},
		{"ws-a/anything", 404, ""},
	} {
		r := send("GET", base+c.path, good(), "")
		if r.status != c.status || c.body != "" && r.body != c.body {
			t.Errorf("%s: got %d %s, want %d %s", c.path, r.status, r.body, c.status, c.body)
		}
	}
}

func TestUsageWithoutPeriodsIsOfTheCurrentMonth(t *testing.T) {
	s, address := start(t, Options{}) // epoch is in 2027-01
	s.SetUsage("ws-a", Usage{Tenants: 3})
	for q, want := range map[papermap.UsageQuery]int{{PerPage: 10}: 3,
		{PerPage: 10, FromPeriod: "2026-12"}: 6, {PerPage: 10, ToPeriod: "2025-01"}: 3,
		{PerPage: 10, FromPeriod: "2027-02"}: 0} {
		if rows, _, _ := readAll(t, address, q); len(rows) != want {
			t.Errorf("%+v: %d rows, want %d", q, len(rows), want)
		}
	}
}

// BenchmarkUsagePage answers the page in the middle of a million tenants, from signature to body.
func BenchmarkUsagePage(b *testing.B) {
	for _, style := range UsageStyles {
		b.Run(style, func(b *testing.B) {
			s := newSimulator(Options{})
			s.SetUsage("ws-a", Usage{Tenants: 1_000_000, Style: style})
			q := httptest.NewRequest("GET",
				"/api/v1/external/workspaces/ws-a/tenant-usage?"+
					"from_period=2025-01&to_period=2025-01&per_page=100&page=5000", nil)
			q.Header = good()
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				if s.ServeHTTP(w, q); w.Code != 200 || w.Body.Len() < 5000 {
					b.Fatal(w.Code, w.Body.Len())
				}
			}
		})
	}
}

func TestUsageTenantsAppearAndVanishBetweenPages(t *testing.T) {
	s, address := start(t, Options{})
	s.SetUsage("ws-a", Usage{Tenants: 25, BeforeRequest: func(n int, u *Usage) {
		switch n {
		case 2:
			u.Tenants = 35
		case 4:
			u.Tenants = 31
		}
	}})
	rows, _, last := readAll(t, address, papermap.UsageQuery{FromPeriod: "2025-01", ToPeriod: "2025-01",
		PerPage: 10})
	if len(rows) != 31 || last.Total != 31 {
		t.Errorf("%d rows of %d, want 31: 10 of 25, 20 of 35, 1 of 31", len(rows), last.Total)
	}
	var pages []string
	for _, e := range s.Log() {
		pages = append(pages, e.Query)
	}
	if want := "from_period=2025-01&page=4&per_page=10&to_period=2025-01"; len(pages) != 4 ||
		pages[3] != want {
		t.Errorf("log has the queries %q, want the last to be %q", pages, want)
	}
}

// readAll reads a workspace's usage with the real client, page by page, relying on More alone.
func readAll(t *testing.T, address string, q papermap.UsageQuery) (rows []papermap.UsageRow,
	rejected []papermap.RejectedRow, last papermap.UsagePage) {
	t.Helper()
	client := papermap.NewClient(papermap.Workspace{ID: "ws-a", APIURL: address, Key: apiKey},
		papermap.ClientOptions{Now: func() time.Time { return epoch }})
	defer client.Close()
	for q.Page = 1; ; q.Page++ {
		page, err := client.Usage(t.Context(), q)
		if err != nil {
			t.Fatalf("page %d: %v", q.Page, err)
		}
		rows, rejected = append(rows, page.Rows...), append(rejected, page.Rejected...)
		if !page.More {
			return rows, rejected, page
		}
		if q.Page > 1000 {
			t.Fatal("no page is the last")
		}
	}
}
