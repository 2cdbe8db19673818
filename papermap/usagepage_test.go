package papermap

import (
	"bytes"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

func TestUsageListIsReadFromTheBestOfItsPlaces(t *testing.T) {
	list := func(tenant string) string {
		return `[{"tenant_id":"` + tenant +
			`","credits":1,"period":"2025-01"}]`
	}
	for body, want := range map[string]string{
		`{"data":{"usage":` + list("a") + `}}`:                                    "a",
		`{"data":{"data":{"usage":` + list("a") + `}}}`:                           "a",
		`{"data":` + list("a") + `}`:                                              "a",
		`{"data":{"items":` + list("a") + `}}`:                                    "a",
		`{"data":{"tenants":` + list("a") + `}}`:                                  "a",
		`{"data":{"records":` + list("a") + `}}`:                                  "a",
		`{"data":{"data":` + list("a") + `}}`:                                     "a",
		`{"data":{"records":` + list("b") + `,"usage":` + list("a") + `}}`:        "a",
		`{"data":{"usage":` + list("a") + `,"records":` + list("b") + `}}`:        "a",
		`{"data":{"items":` + list("b") + `,"data":{"usage":` + list("a") + `}}}`: "a",
		`{"data":{"data":{"usage":` + list("b") + `},"usage":` + list("a") + `}}`: "a",
		`{"data":{"tenants":3,"usage":null,"items":` + list("a") + `}}`:           "a",
		// a duplicate: as others read it, the last
		`{"data":{"usage":` + list("b") + `,"usage":` + list("a") + `}}`:           "a",
		`{"data":{"us\u0061ge":` + list("a") + `}}`:                                "a",
		`{"data":{"Usage":` + list("b") + `,"records":` + list("a") + `},"x":[1]}`: "a",
	} {
		page, err := readUsage(usageAnswer(body), firstPage)
		if err != nil || len(page.Rows) != 1 || page.Rows[0].TenantID != want {
			t.Errorf("%s: %+v, %v", body, page, err)
		}
	}
}

func TestHistoryRowBelongsToTheTenantThatWasAskedFor(t *testing.T) {
	q := UsageQuery{TenantID: "org-1", Page: 1, PerPage: 100}
	page, err := readUsage(usageAnswer(`{"data":{"tenant_id":"org-1","usage":[
		{"credits":1,"period":"2025-01"},
		{"tenant_id":"org-1","credits":2,"period":"2025-02"},
		{"tenant_id":"org-2","credits":3,"period":"2025-03"},
		{"tenant_id":null,"credits":4,"period":"2025-04"},
		{"tenant":"ORG-1","credits":5,"period":"2025-05"}]}}`), q)
	want := []UsageRow{{"org-1", "2025-01", "1", 0}, {"org-1", "2025-02", "2", 0},
		{"org-1", "2025-04", "4", 0}}
	if diff := cmp.Diff(want, page.Rows); diff != "" || err != nil || len(page.Rejected) != 2 ||
		page.Rejected[0].Index != 2 || page.Rejected[1].Index != 4 {
		t.Errorf("%v, rejected %+v (-want +got)\n%s", err, page.Rejected, diff)
	}
}

func TestPaginationIsReadFromEachAliasAndDistrustedWhenItContradicts(t *testing.T) {
	rows := func(n int) string {
		return strings.TrimSuffix(strings.Repeat(`{"tenant_id":"a","credits":1,"period":"2025-01"},`, n), ",")
	}
	body := func(n int, inData, atTop string) string {
		return `{"data":{"usage":[` + rows(n) + `]` + inData + `}` + atTop + `}`
	}
	for _, c := range []struct {
		page, perPage int
		body          string
		total, pages  int
		more          bool
	}{
		{1, 2, body(2, `,"pagination":{"page":1,"per_page":2,"total":5,"total_pages":3}`, ""), 5, 3, true},
		{3, 2, body(1, `,"pagination":{"page":3,"per_page":2,"total":5,"total_pages":3}`, ""), 5, 3, false},
		{1, 2, body(2, `,"meta":{"pages":3}`, ""), -1, 3, true},
		{1, 2, body(2, "", `,"meta":{"total_records":"5","has_next":"true"}`), 5, -1, true},
		{1, 2, body(2, "", `,"pagination":{"has_more":true}`), -1, -1, true},
		{1, 2, body(2, `,"has_more":false`, ""), -1, -1, false},
		{1, 2, body(2, `,"total":"5","pages":"3"`, ""), 5, 3, true},
		{2, 2, body(2, `,"total_pages":2.0`, ""), -1, 2, false},
		{1, 2, `{"data":{"data":{"usage":[` + rows(2) + `],"meta":{"total":5}}}}`, 5, -1, true},
		{1, 2, `{"data":[` + rows(2) + `],"total":5,"pages":3}`, 5, 3, true},
		{1, 2, body(2, `,"pagination":{"total":5},"total":9`, `,"meta":{"total":8}`), 5, -1, true},
		{1, 2, body(2, `,"pagination":{"total":null},"total":5`, ""), 5, -1, true},
		{1, 2, body(2, `,"pagination":[],"meta":"x"`, ""), -1, -1, true}, // none at all: the page has rows
		{1, 2, body(1, "", ""), -1, -1, true},
		{1, 2, body(0, "", ""), -1, -1, false},
		{1, 2, `{"data":[` + rows(1) + `,7]}`, -1, -1, true}, // a rejected row fills its place
		{1, 100, body(50, `,"pagination":{"per_page":50}`, ""), -1, -1, true},
		{1, 2, body(0, `,"pagination":{"page":1,"per_page":2,"total":0,"total_pages":0}`, ""), 0, 0, false},
		{1, 2, body(0, `,"pagination":{"page":1,"per_page":2,"total":0,"total_pages":1}`, ""), 0, 1, false},
		// Shorter pages than were asked for.
		{1, 100, body(50, `,"total":175,"pages":4`, ""), 175, 4, true},
		{4, 100, body(25, `,"total":175,"pages":4`, ""), 175, 4, false},
		{1, 100, body(50, `,"total":175`, ""), 175, -1, true},
		{2, 100, body(50, `,"total":100`, ""), 100, -1, true},
		{1, 100, body(50, `,"pagination":{"per_page":50,"total":175}`, ""), 175, 4, true},
		{4, 100, body(25, `,"pagination":{"per_page":50,"total":175}`, ""), 175, 4, false},
		// Contradictions.
		{1, 2, body(2, `,"total":5,"pages":6`, ""), -1, -1, true},
		{1, 2, body(2, `,"pagination":{"total":-5,"total_pages":-1}`, ""), -1, -1, true},
		{1, 2, body(2, `,"pagination":{"total":1.5,"total_pages":"many"}`, ""), -1, -1, true},
		{1, 2, body(2, `,"pagination":{"total":1}`, ""), -1, -1, true},
		{1, 2, body(2, `,"pagination":{"total":5,"total_pages":2}`, ""), -1, -1, true},
		{3, 2, body(2, `,"pagination":{"total_pages":2}`, ""), -1, -1, true},
		{2, 2, body(2, `,"pagination":{"page":1,"total_pages":2}`, ""), -1, -1, true},
		{1, 2, body(2, `,"pagination":{"total_pages":3,"has_next":false}`, ""), -1, -1, false},
		{1, 2, body(2, `,"pagination":{"total_pages":1,"has_next":true}`, ""), -1, -1, true},
		{1, 2, body(2, `,"pagination":{"total":1e999999999,"total_pages":99999999999999999999}`, ""), -1, -1,
			true},
	} {
		got, err := readUsage(usageAnswer(c.body), UsageQuery{Page: c.page, PerPage: c.perPage})
		if err != nil || got.Total != c.total || got.Pages != c.pages || got.More != c.more {
			t.Errorf("page %d of %d: %s\ngot total %d, pages %d, more %t (%v), want %d, %d, %t", c.page,
				c.perPage, c.body, got.Total, got.Pages, got.More, err, c.total, c.pages, c.more)
		}
	}
}

func FuzzUsageAnswer(f *testing.F) {
	for _, name := range []string{"documented", "rejected"} {
		body, err := os.ReadFile("testdata/usage/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, "", 3)
		f.Add(body, "org-1", 100)
	}
	for _, body := range []string{
		`{"data":[{"tenant":"a","credits":"1e3","start":"2025-01-01T00:00:00Z"}],"total":1}`,
		`{"data":{"data":[[],1,{"tenant_id":"\ud800"}]}}`, "null", "[[", "\xff"} {
		f.Add([]byte(body), "", 1)
	}
	f.Fuzz(func(t *testing.T, body []byte, tenant string, perPage int) {
		q := UsageQuery{TenantID: tenant, FromPeriod: "2024-01", ToPeriod: "2026-12", Page: 2,
			PerPage: max(1, min(perPage, 100))}
		page, err := readUsage(answer{status: 200, header: http.Header{}, body: body}, q)
		if valid := jsontext.Value(body).IsValid(lenient); err == nil && !valid {
			t.Fatal("accepted what is not JSON")
		}
		for _, r := range page.Rows {
			credits, ok := new(big.Rat).SetString(r.Credits)
			if !plain.MatchString(r.Credits) || !ok || credits.Sign() < 0 || r.Requests < 0 ||
				r.Period < "2024-01" || r.Period > "2026-12" || len(r.Period) != 7 {
				t.Errorf("accepted %+v", r)
			}
			if tenant == "" && (r.TenantID == "" || !utf8.ValidString(r.TenantID) ||
				utf8.RuneCountInString(r.TenantID) > MaxTenantID ||
				strings.ContainsFunc(r.TenantID, unicode.IsControl)) {
				t.Errorf("accepted tenant %q", r.TenantID)
			}
			if tenant != "" && r.TenantID != tenant {
				t.Errorf("tenant %q instead of %q", r.TenantID, tenant)
			}
		}
		for _, r := range page.Rejected {
			raw := storableRow(r.Raw, redactor{whole: strings.NewReplacer("a", "[redacted]")})
			if !utf8.ValidString(raw) || utf8.RuneCountInString(raw) > maxRawRow ||
				strings.Contains(raw, "\x00") || raw == "" ||
				r.Reason == "" || strings.ContainsFunc(r.Reason, unicode.IsControl) {
				t.Errorf("rejected %+v", r)
			}
		}
		if page.Total < -1 || page.Pages < -1 {
			t.Errorf("total %d, pages %d", page.Total, page.Pages)
		}
	})
}

// BenchmarkDecodeUsagePage reads a full page in the documented shape.
func BenchmarkDecodeUsagePage(b *testing.B) {
	var body bytes.Buffer
	body.WriteString(`{"success":true,"message":"Tenant usage retrieved successfully",` +
		`"data":{"workspace_id":"ws-123","usage":[`)
	for i := range 100 {
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body,
			`{"tenant_id":"org-%07d","credits_consumed":%d.%06d,"request_count":%d,`+
				`"period_start":"2025-01-01 00:00:00","period_end":"2025-01-31 23:59:59"}`,
			i, i*37, i*7919%1000000, i*11)
	}
	body.WriteString(`],"pagination":{"page":1,"per_page":100,"total":1000000,"total_pages":10000}}}`)
	a := answer{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}},
		body: body.Bytes()}
	b.SetBytes(int64(body.Len()))
	b.ReportAllocs()
	for b.Loop() {
		page, err := readUsage(a, UsageQuery{Page: 1, PerPage: 100})
		if err != nil || len(page.Rows) != 100 || !page.More {
			b.Fatal(page, err)
		}
	}
}
