package simulator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"papermap-worker/papermap"
)

// readAll reads a workspace's usage with the real client, page by page, as one who relies on More alone.
func readAll(t *testing.T, address string, q papermap.UsageQuery) (rows []papermap.UsageRow, rejected []papermap.RejectedRow, last papermap.UsagePage) {
	t.Helper()
	client := papermap.NewClient(papermap.Workspace{ID: "ws-a", APIURL: address, Key: apiKey}, papermap.ClientOptions{Now: func() time.Time { return epoch }})
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

func totals(t *testing.T, s *Simulator, from, to string) []papermap.UsageRow {
	t.Helper()
	rows, err := s.UsageTotals("ws-a", from, to)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestClientReadsTheTrueTotalsInEveryStyle(t *testing.T) {
	named := []UsageRow{
		{"org-0000003", "2025-01", `"0012.500"`, 7}, {"org-0000004", "2025-02", `"none"`, 1}, {"Zoë \"Z\"", "2025-02", "1e3", 0}, {"Acme", "2025-02", "99999999999999999999.5", 1},
		{"Acme", "2025-01", "0", 1}, {"Acme", "2024-12", "5", 1}, {"big", "2025-01", "1e21", 1}, {"", "2025-01", "1", 1}, {"bad", "soon", "1", 1}, {"bad", "", "1", 1}, {"bad", "2025-01", "", 1},
	}
	// Generated: 50 in 2 months. Named: 8 more, for two stand in the place of generated ones, and December is not asked for.
	// Bad: 12 of either month, of which one is replaced by a good one; of the named that of org-0000004, big, "" and bad.
	const all, bad = 50*2 + 8, 12 + 12 - 1 + 6
	for _, style := range UsageStyles {
		for _, perPage := range []int{7, 100} {
			s, address := start(t, Options{})
			s.SetUsage("ws-a", Usage{Tenants: 50, Seed: 3, Style: style, BadEvery: 4, Rows: named})
			rows, rejected, last := readAll(t, address, papermap.UsageQuery{FromPeriod: "2025-01", ToPeriod: "2025-02", PerPage: perPage})
			want := totals(t, s, "2025-01", "2025-02")
			if diff := gocmp.Diff(want, rows); diff != "" {
				t.Errorf("%s: (-want +got)\n%s", style, diff)
			}
			if len(rows) != all-bad || len(rejected) != bad || last.Total >= 0 && last.Total != all {
				t.Errorf("%s: %d rows and %d rejected, total %d", style, len(rows), len(rejected), last.Total)
			}
			if i := slices.Index(rows, papermap.UsageRow{TenantID: "org-0000003", Period: "2025-01", Credits: "12.5", Requests: 7}); i < 0 {
				t.Errorf("%s: the named row of a generated tenant is not there", style)
			}
		}
	}
}

func TestStylesTogetherUseEveryNameAClientMustKnow(t *testing.T) {
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
		"tenant_id", "tenant", "external_tenant_id", "credits_consumed", "credits_used", "total_credits", "credits", "request_count", "requests", "total_requests",
		"period", "period_start", "billing_period_start", "start", "usage", "items", "tenants", "records", "pagination", "meta",
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

func TestHistoryIsOneTenantsRows(t *testing.T) {
	for _, style := range UsageStyles {
		s, address := start(t, Options{})
		s.SetUsage("ws-a", Usage{Tenants: 30, Style: style, BadEvery: 3, TenantID: func(i int) string { return fmt.Sprintf("../t/%d%%", i) },
			Rows: []UsageRow{{"..", "2025-03", "5", 1}, {"../t/7%", "2025-03", "6", 2}}})
		for _, tenant := range []string{"../t/7%", "..", "nobody"} {
			rows, rejected, _ := readAll(t, address, papermap.UsageQuery{TenantID: tenant, FromPeriod: "2025-01", ToPeriod: "2025-12", PerPage: 5})
			var want []papermap.UsageRow
			for _, r := range totals(t, s, "2025-01", "2025-12") {
				if r.TenantID == tenant {
					want = append(want, r)
				}
			}
			if diff := gocmp.Diff(want, rows); diff != "" {
				t.Errorf("%s of %s: (-want +got)\n%s", style, tenant, diff)
			}
			if tenant == "../t/7%" && (len(rows) < 8 || len(rows)+len(rejected) != 12) {
				t.Errorf("%s: %d rows, %d rejected", style, len(rows), len(rejected))
			}
		}
	}
}

func TestEveryKindOfBadRowIsServedAndRejected(t *testing.T) {
	s, address := start(t, Options{})
	s.SetUsage("ws-a", Usage{Tenants: 100, BadEvery: 10})
	_, rejected, _ := readAll(t, address, papermap.UsageQuery{FromPeriod: "2025-01", ToPeriod: "2025-01", PerPage: 100})
	reasons := map[string]int{}
	for _, r := range rejected {
		reasons[r.Reason]++
	}
	want := map[string]int{"no tenant": 2, "no credits": 2, "no period": 2, "credits are negative": 2, "credits are not a number": 2}
	if diff := gocmp.Diff(want, reasons); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestGeneratedTotalsDependOnSeedTenantMonthAndCorrectionsAlone(t *testing.T) {
	s, _ := start(t, Options{})
	s.SetUsage("ws-a", Usage{Tenants: 500, Seed: 1})
	first := totals(t, s, "2025-01", "2025-01")
	s.SetUsage("ws-a", Usage{Tenants: 600, Seed: 1, Style: "meta"})
	if diff := gocmp.Diff(first, totals(t, s, "2025-01", "2025-01")[:500]); diff != "" {
		t.Errorf("with more tenants: %s", diff)
	}
	for what, other := range map[string][]papermap.UsageRow{
		"month": totals(t, s, "2025-02", "2025-02"),
		"seed": func() []papermap.UsageRow {
			s.SetUsage("ws-a", Usage{Tenants: 500, Seed: 2})
			return totals(t, s, "2025-01", "2025-01")
		}(),
	} {
		same := 0
		for i := range first {
			if first[i].Credits == other[i].Credits {
				same++
			}
		}
		if same > 25 {
			t.Errorf("another %s changes but %d of 500 rows", what, 500-same)
		}
	}
	zeros, fractions := 0, map[int]int{}
	for _, r := range first {
		_, fraction, _ := strings.Cut(r.Credits, ".")
		fractions[len(fraction)]++
		if r.Credits == "0" {
			zeros++
		}
	}
	if zeros == 0 || zeros > 30 || len(fractions) != 7 {
		t.Errorf("%d rows of nothing, lengths of fractions %v, want some of each from 0 to 6", zeros, fractions)
	}

	s.SetUsage("ws-a", Usage{Tenants: 500, Seed: 1})
	for revision := 1; revision <= 3; revision++ {
		before := totals(t, s, "2025-01", "2025-01")
		s.ChangeUsage("ws-a", func(u *Usage) { u.Corrections = map[string]int{"org-0000001": revision, "org-0000002": revision} })
		for i, after := range totals(t, s, "2025-01", "2025-01") {
			was, _ := new(big.Rat).SetString(before[i].Credits)
			is, _ := new(big.Rat).SetString(after.Credits)
			if corrected := i == 1 || i == 2; corrected && was.Sign() > 0 && is.Cmp(was) >= 0 || !corrected && after != before[i] {
				t.Errorf("correction %d: %+v became %+v", revision, before[i], after)
			}
		}
	}
}

func TestTenantsAppearAndVanishBetweenPages(t *testing.T) {
	s, address := start(t, Options{})
	s.SetUsage("ws-a", Usage{Tenants: 25, BeforeRequest: func(n int, u *Usage) {
		switch n {
		case 2:
			u.Tenants = 35
		case 4:
			u.Tenants = 31
		}
	}})
	rows, _, last := readAll(t, address, papermap.UsageQuery{FromPeriod: "2025-01", ToPeriod: "2025-01", PerPage: 10})
	if len(rows) != 31 || last.Total != 31 {
		t.Errorf("%d rows of %d, want 31: 10 of 25, 20 of 35, 1 of 31", len(rows), last.Total)
	}
	var pages []string
	for _, e := range s.Log() {
		pages = append(pages, e.Query)
	}
	if want := "from_period=2025-01&page=4&per_page=10&to_period=2025-01"; len(pages) != 4 || pages[3] != want {
		t.Errorf("log has the queries %q, want the last to be %q", pages, want)
	}
}

func TestTrueTotalsAreReadableFromOutside(t *testing.T) {
	s, address := start(t, Options{})
	s.SetUsage("ws-a", Usage{Tenants: 40, BadEvery: 7, Rows: []UsageRow{{"Zoë \"Z\"", "2025-02", "1e3", 4}}})
	want := totals(t, s, "2025-01", "2025-02")
	r := send("GET", address+"/simulator/usage?workspace=ws-a&from_period=2025-01&to_period=2025-02", nil, "")
	var got []papermap.UsageRow
	for line := range strings.Lines(r.body) {
		var row struct {
			TenantID string `json:"tenant_id"`
			Period   string
			Credits  string
			Requests int64
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got = append(got, papermap.UsageRow(row))
	}
	if diff := gocmp.Diff(want, got); diff != "" || len(got) < 60 {
		t.Errorf("%d rows (-want +got)\n%s", len(got), diff)
	}

	slices.SortFunc(got, func(a, b papermap.UsageRow) int { return -cmp.Compare(a.Requests, b.Requests) }) // the order of rows does not matter
	r = send("GET", address+"/simulator/usage?workspace=ws-a&from_period=2025-01&to_period=2025-02&checksum=1", nil, "")
	if want := fmt.Sprintf(`{"rows":%d,"checksum":"%s"}`, len(want), UsageChecksum(got)); r.body != want {
		t.Errorf("got %s, want %s", r.body, want)
	}
	// printf 'a|2025-01|0.5|2\nb|2025-01|1|3\n' | sha256sum
	const known = "6a03776ecffa2f3d0cef52004aed69a9ae636cc6ff166ba1d6670176d4f2c728"
	if sum := UsageChecksum([]papermap.UsageRow{{TenantID: "b", Period: "2025-01", Credits: "1", Requests: 3}, {TenantID: "a", Period: "2025-01", Credits: "0.5", Requests: 2}}); sum != known {
		t.Errorf("checksum %s, want %s", sum, known)
	}

	for _, query := range []string{"from_period=2025-13", "to_period=x", "from_period=x&checksum=1", "from_period=0001-01"} {
		if r := send("GET", address+"/simulator/usage?workspace=ws-a&"+query, nil, ""); r.status != http.StatusBadRequest {
			t.Errorf("%s: %d", query, r.status)
		}
	}
	if r := send("GET", address+"/simulator/usage?workspace=ws-z", nil, ""); r.status != 200 || r.body != "" {
		t.Errorf("a workspace without usage: %d %q", r.status, r.body)
	}
}

func TestUsageIsSetFromOutsideAllOrNothing(t *testing.T) {
	s, address := start(t, Options{})
	put := func(body string) reply { return send("PUT", address+"/simulator/usage?workspace=ws-a", nil, body) }
	r := put(`{"tenants":40,"seed":3,"bad_every":7,"style":"items","corrections":{"org-0000001":2},
		"rows":[{"tenant_id":"Zoë","period":"2025-02","credits":"1e3","requests":4}]}`)
	if r.status != http.StatusNoContent {
		t.Fatalf("%d %s", r.status, r.body)
	}
	got := totals(t, s, "2025-01", "2025-02")
	s.SetUsage("ws-a", Usage{
		Tenants: 40, Seed: 3, BadEvery: 7, Style: "items", Corrections: map[string]int{"org-0000001": 2}, Rows: []UsageRow{{"Zoë", "2025-02", "1e3", 4}},
	})
	want := totals(t, s, "2025-01", "2025-02")
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for body, says := range map[string]string{
		`{"tenants":1,"style":"xml"}`: "must be one of pagination, meta,",
		`{"tenants":-1}`:              "must not be negative",
		`{"tenant":1}`:                "must be a JSON object such as",
		`[]`:                          "must be a JSON object such as",
		`{"tenants":1`:                "must be a JSON object such as",
	} {
		if r := put(body); r.status != 400 || !strings.Contains(r.body, says) {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
		if diff := gocmp.Diff(want, totals(t, s, "2025-01", "2025-02")); diff != "" {
			t.Errorf("%s changed the usage (-want +got)\n%s", body, diff)
		}
	}
}

func TestUsageWithoutPeriodsIsOfTheCurrentMonth(t *testing.T) {
	s, address := start(t, Options{}) // epoch is in 2027-01
	s.SetUsage("ws-a", Usage{Tenants: 3})
	for q, want := range map[papermap.UsageQuery]int{{PerPage: 10}: 3, {PerPage: 10, FromPeriod: "2026-12"}: 6, {PerPage: 10, ToPeriod: "2025-01"}: 3, {PerPage: 10, FromPeriod: "2027-02"}: 0} {
		if rows, _, _ := readAll(t, address, q); len(rows) != want {
			t.Errorf("%+v: %d rows, want %d", q, len(rows), want)
		}
	}
}

func TestUsageThatMakesNoSenseIsRefused(t *testing.T) {
	s, _ := start(t, Options{})
	for _, u := range []Usage{{Style: "xml"}, {Tenants: -1}, {BadEvery: -1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v is taken", u)
				}
			}()
			s.SetUsage("ws-a", u)
		}()
	}
}

// BenchmarkUsagePage answers the page in the middle of a million tenants, from signature to body.
func BenchmarkUsagePage(b *testing.B) {
	for _, style := range UsageStyles {
		b.Run(style, func(b *testing.B) {
			s := New(Options{Workspaces: []papermap.Workspace{{ID: "ws-a", Key: apiKey}}, Now: func() time.Time { return epoch }})
			s.SetUsage("ws-a", Usage{Tenants: 1_000_000, Style: style})
			q := httptest.NewRequest("GET", "/api/v1/external/workspaces/ws-a/tenant-usage?from_period=2025-01&to_period=2025-01&per_page=100&page=5000", nil)
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
