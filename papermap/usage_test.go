package papermap

import (
	"bytes"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

// usageAnswer is a 200 with body.
func usageAnswer(body string) answer {
	return answer{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}}, body: []byte(body)}
}

var firstPage = UsageQuery{Page: 1, PerPage: 100}

// inRow is an answer with one row.
func inRow(row string) answer { return usageAnswer(`{"data":{"usage":[` + row + `]}}`) }

func TestUsageGoldenAnswersAreReadAsTheirWantFiles(t *testing.T) {
	for name, q := range map[string]UsageQuery{
		"documented": {Page: 1, PerPage: 3},
		"rejected":   {FromPeriod: "2025-01", ToPeriod: "2025-01", Page: 1, PerPage: 100},
	} {
		sent, err := os.ReadFile("testdata/usage/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(sent) })
		got, err := newTestClient(t, address, ClientOptions{}).Usage(t.Context(), q)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden, err := os.ReadFile("testdata/usage/" + name + ".want.json")
		if err != nil {
			t.Fatal(err)
		}
		var want UsagePage
		if err := json.Unmarshal(golden, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
	}
}

func TestUsageAsksForThePageAndKeepsEachIDInOneSegment(t *testing.T) {
	const query = "?from_period=2025-01&page=2&per_page=50&to_period=2025-03"
	for tenant, want := range map[string]string{
		"":                   "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenant-usage",
		"org-1":              "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/org-1/usage",
		"../x":               "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/..%2Fx/usage",
		"..":                 "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/%2E%2E/usage",
		".":                  "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/%2E/usage",
		"a/%2F#?":            "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/a%2F%252F%23%3F/usage",
		"{workspace_id}\xff": "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/%7Bworkspace_id%7D%FF/usage",
	} {
		address, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || r.RequestURI != want+query {
				t.Errorf("tenant %q: %s %s, want GET %s", tenant, r.Method, r.RequestURI, want+query)
			}
			if _, sent := r.Header["X-Tenant-Id"]; sent || r.Header.Get("X-Signature") == "" {
				t.Errorf("tenant %q: headers %v", tenant, r.Header)
			}
			_, _ = io.WriteString(w, `{"data":[]}`)
		})
		c := newTestClient(t, address+"/base", ClientOptions{})
		c.ws.ID = "a/b ?"
		page, err := c.Usage(t.Context(), UsageQuery{TenantID: tenant, FromPeriod: "2025-01", ToPeriod: "2025-03", Page: 2, PerPage: 50})
		if err != nil || len(page.Rows) != 0 || page.More {
			t.Errorf("tenant %q: %+v, %v", tenant, page, err)
		}
	}

	address, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if want := "/v2/org%2F1/usage/ws-1/ws-1?page=1&per_page=100"; r.RequestURI != want {
			t.Errorf("asked for %s, want %s", r.RequestURI, want)
		}
		_, _ = io.WriteString(w, `{"data":[]}`)
	})
	c := newTestClient(t, address, ClientOptions{HistoryPath: "/v2/{tenant_id}/usage/{workspace_id}/{workspace_id}"})
	if _, err := c.Usage(t.Context(), UsageQuery{TenantID: "org/1", Page: 1, PerPage: 100}); err != nil {
		t.Error(err)
	}
}

func TestUsageQueryThatMakesNoSenseIsRefusedAndNotSent(t *testing.T) {
	address, seen := serve(t, func(http.ResponseWriter, *http.Request) {})
	c := newTestClient(t, address, ClientOptions{})
	for _, q := range []UsageQuery{
		{}, {Page: 1}, {PerPage: 1}, {Page: -1, PerPage: 1}, {Page: 1, PerPage: 101},
		{Page: 1, PerPage: 1, FromPeriod: "2025-1"}, {Page: 1, PerPage: 1, ToPeriod: "2025-13"}, {Page: 1, PerPage: 1, ToPeriod: "2025-01-01"},
		{Page: 1, PerPage: 1, FromPeriod: "1999-12"}, {Page: 1, PerPage: 1, FromPeriod: "2025-02", ToPeriod: "2025-01"},
	} {
		if _, err := c.Usage(t.Context(), q); classOf(t, err) != Refused || seen.Load() != 0 {
			t.Errorf("%+v: %v, %d requests", q, err, seen.Load())
		}
	}
}

func TestUsageFailureHasTheClassOfTheTable(t *testing.T) {
	nested := strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001)
	const list = `{"data":{"usage":[]}}`
	for _, row := range []struct {
		status            int
		contentType, body string
		want              Class // empty: success
	}{
		{200, "", list, ""},
		{200, "text/plain", list, ""},
		{200, "text/html", list, Retryable},
		{200, "", "", Retryable},
		{200, "", "null", Retryable},
		{200, "", "[]", Retryable},
		{200, "", list[:15], Retryable},
		{200, "", list[:len(list)-1], Retryable},
		{200, "", list + "}", Retryable},
		{200, "", list + list, Retryable},
		{200, "", list + "\x00", Retryable},
		{200, "", list + " \r\n", ""},
		{200, "", `{"data":{"usage":[{"credits":NaN}]}}`, Retryable},
		{200, "", `{"data":{"usage":[{"credits":1}],"x":` + nested + `}}`, Retryable},
		{200, "", `{"data":{"usage":[` + nested + `]}}`, Retryable},
		{200, "", `{"success":false,"message":"no","data":{"usage":[]}}`, Retryable},
		{200, "", `{"data":{"usage":[]},"success":false}`, Retryable},
		{200, "", `{"success":true}`, Retryable},
		{200, "", `{"data":null}`, Retryable},
		{200, "", `{"data":{}}`, Retryable},
		{200, "", `{"data":{"usage":null}}`, Retryable},
		{200, "", `{"data":{"usage":{}}}`, Retryable},
		{200, "", `{"data":{"data":{"data":{"usage":[]}}}}`, Retryable},
		{200, "", `{"usage":[]}`, Retryable},
		{200, "", `{"data":[` + strings.Repeat("1,", maxUsageRows) + `1]}`, Retryable},
		{204, "", "", Retryable},
		{206, "", list, Retryable},
		{500, "", list, Retryable},
		{429, "", "", Retryable},
		{401, "", "", Credentials},
		{404, "", "", Configuration},
		{400, "", "", Refused},
	} {
		address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil // none is guessed
			if row.contentType != "" {
				w.Header().Set("Content-Type", row.contentType)
			}
			w.WriteHeader(row.status)
			_, _ = io.WriteString(w, row.body)
		})
		page, err := newTestClient(t, address, ClientOptions{}).Usage(t.Context(), firstPage)
		if classOf(t, err) != row.want || err != nil && (page.Rows != nil || page.Rejected != nil) {
			t.Errorf("%d %s %.60q: %d rows, %v, want %q", row.status, row.contentType, row.body, len(page.Rows), err, row.want)
		}
	}
}

func TestUsageListIsFoundAtTheBestOfItsPlaces(t *testing.T) {
	list := func(tenant string) string { return `[{"tenant_id":"` + tenant + `","credits":1,"period":"2025-01"}]` }
	for body, want := range map[string]string{
		`{"data":{"usage":` + list("a") + `}}`:                                     "a",
		`{"data":{"data":{"usage":` + list("a") + `}}}`:                            "a",
		`{"data":` + list("a") + `}`:                                               "a",
		`{"data":{"items":` + list("a") + `}}`:                                     "a",
		`{"data":{"tenants":` + list("a") + `}}`:                                   "a",
		`{"data":{"records":` + list("a") + `}}`:                                   "a",
		`{"data":{"data":` + list("a") + `}}`:                                      "a",
		`{"data":{"records":` + list("b") + `,"usage":` + list("a") + `}}`:         "a",
		`{"data":{"usage":` + list("a") + `,"records":` + list("b") + `}}`:         "a",
		`{"data":{"items":` + list("b") + `,"data":{"usage":` + list("a") + `}}}`:  "a",
		`{"data":{"data":{"usage":` + list("b") + `},"usage":` + list("a") + `}}`:  "a",
		`{"data":{"tenants":3,"usage":null,"items":` + list("a") + `}}`:            "a",
		`{"data":{"usage":` + list("b") + `,"usage":` + list("a") + `}}`:           "a", // a duplicate: as others read it, the last
		`{"data":{"us\u0061ge":` + list("a") + `}}`:                                "a",
		`{"data":{"Usage":` + list("b") + `,"records":` + list("a") + `},"x":[1]}`: "a",
	} {
		page, err := readUsage(usageAnswer(body), firstPage)
		if err != nil || len(page.Rows) != 1 || page.Rows[0].TenantID != want {
			t.Errorf("%s: %+v, %v", body, page, err)
		}
	}
}

func TestUsageFieldIsReadFromTheFirstAliasThatHasAValue(t *testing.T) {
	const rest = `"tenant_id":"a","credits_consumed":1,"request_count":2,"period":"2025-01"`
	usual := UsageRow{"a", "2025-01", "1", 2}
	with := func(change func(*UsageRow)) UsageRow {
		r := usual
		change(&r)
		return r
	}
	tenant := with(func(r *UsageRow) { r.TenantID = "t" })
	credits := with(func(r *UsageRow) { r.Credits = "5" })
	requests := with(func(r *UsageRow) { r.Requests = 7 })
	may := with(func(r *UsageRow) { r.Period = "2025-05" })
	for row, want := range map[string]UsageRow{
		`{` + rest + `}`: usual,
		`{"tenant":"t","credits":1,"requests":2,"start":"2025-01-01"}`:                                                      tenant,
		`{"external_tenant_id":"t","credits":1,"requests":2,"start":"2025-01-01"}`:                                          tenant,
		`{"external_tenant_id":"x","tenant":"x","tenant_id":"t","credits":1,"requests":2,"start":"2025-01"}`:                tenant,
		`{"tenant_id":null,"tenant":"t","credits":1,"requests":2,"start":"2025-01"}`:                                        tenant,
		`{"tenant_id":"x","tenant_id":"t","credits":1,"requests":2,"start":"2025-01"}`:                                      tenant,
		`{"tenant\u005fid":"\u0074","credits":1,"requests":2,"start":"2025-01"}`:                                            tenant,
		`{"tenant":"a","credits_used":5,"requests":2,"period_start":"2025-01-01 00:00:00"}`:                                 credits,
		`{"tenant":"a","total_credits":5,"requests":2,"period_start":"2025-01-01 00:00:00"}`:                                credits,
		`{"tenant":"a","credits":5,"requests":2,"period_start":"2025-01-01 00:00:00"}`:                                      credits,
		`{"tenant":"a","credits":1,"total_credits":1,"credits_used":1,"credits_consumed":5,"requests":2,"start":"2025-01"}`: credits,
		`{"tenant":"a","credits":1,"total_requests":7,"start":"2025-01-01"}`:                                                requests,
		`{"tenant":"a","credits":1,"total_requests":1,"requests":7,"start":"2025-01-01"}`:                                   requests,
		`{"tenant":"a","credits":1,"total_requests":1,"requests":1,"request_count":"7.0","start":"2025-01-01"}`:             requests,
		`{"tenant":"a","credits":1,"start":"2025-01-01"}`:                                                                   with(func(r *UsageRow) { r.Requests = 0 }),
		`{"tenant":"a","credits":1,"request_count":null,"start":"2025-01-01"}`:                                              with(func(r *UsageRow) { r.Requests = 0 }),
		`{"tenant":"a","credits":1,"requests":2,"billing_period_start":"2025-05-31"}`:                                       may,
		`{"tenant":"a","credits":1,"requests":2,"start":"2025-01","billing_period_start":"2025-05"}`:                        may,
		`{"tenant":"a","credits":1,"requests":2,"billing_period_start":"2025-01","period_start":"2025-05-01"}`:              may,
		`{"tenant":"a","credits":1,"requests":2,"period_start":"2025-01","period":"2025-05"}`:                               may,
	} {
		page, err := readUsage(inRow(row), firstPage)
		if err != nil || len(page.Rows) != 1 || page.Rows[0] != want {
			t.Errorf("%s: %+v, %v, want %+v", row, page, err, want)
		}
	}
}

func TestCreditsBecomePlainDecimalNotation(t *testing.T) {
	for sent, want := range map[string]string{ // "": rejected
		"0": "0", "-0": "0", "-0.0e5": "0", "0e999999999": "0", "0.000": "0", `"000"`: "0", `"+5"`: "5", `"007.50"`: "7.5", `".5"`: "0.5", `"5."`: "5",
		"12.50": "12.5", "100": "100", "100.0": "100", "1e3": "1000", "1E+3": "1000", "1.25e1": "12.5", "125e-1": "12.5", "5e-12": "0.000000000005", "0.05": "0.05",
		"0.000000000001": "0.000000000001", "0.0000000000010": "0.000000000001", "0.0000000000001": "", "5e-13": "", "50e-13": "0.000000000005",
		"1e19": "10000000000000000000", "1e20": "", "1e21": "", "99999999999999999999": "99999999999999999999", "100000000000000000000": "",
		"99999999999999999999.999999999999": "99999999999999999999.999999999999", "99999999999999999999.9999999999991": "", "0.1e20": "10000000000000000000",
		"1" + strings.Repeat("0", 5000) + "e-5000": "1", "0." + strings.Repeat("0", 5000) + "1e5001": "1", "1." + strings.Repeat("0", 5000): "1",
		"1e999999999": "", "1e-999999999": "", "1e99999999999999999999999": "", "1e18446744073709551616": "", "1e-18446744073709551617": "", "1e-99999999999999999999999": "", strings.Repeat("9", 100000): "",
		"1" + strings.Repeat("0", 40) + "1e-39": "", "-1": "", "-0.001": "", "-1e-99": "", `"-1"`: "",
		`"NaN"`: "", `"Infinity"`: "", `""`: "", `" 1"`: "", `"1 "`: "", `"1,5"`: "", `"1_0"`: "", `"0x1"`: "", `"1e"`: "", `"e1"`: "", `"."`: "", `"1.2.3"`: "", `"--1"`: "", `"1e1.5"`: "",
		"true": "", "false": "", "{}": "", "[]": "", "[1]": "", `"\u0031"`: "1", `"１"`: "", "9007199254740993": "9007199254740993", "0.1": "0.1",
	} {
		page, err := readUsage(inRow(`{"tenant_id":"a","credits":`+sent+`,"period":"2025-01"}`), firstPage)
		switch {
		case err != nil:
			t.Errorf("%.60s: %v", sent, err)
		case want == "" && (len(page.Rows) != 0 || len(page.Rejected) != 1 || !strings.HasPrefix(page.Rejected[0].Reason, "credits are ")):
			t.Errorf("%.60s: %+v, want it rejected", sent, page)
		case want != "" && (len(page.Rows) != 1 || page.Rows[0].Credits != want):
			t.Errorf("%.60s: %+v, want %s", sent, page, want)
		}
	}
}

func TestHugeExponentsAndNumbersCostNoMemory(t *testing.T) {
	for _, sent := range []string{"1e999999999", "1e-999999999", "0e999999999", `"1e999999999"`, "1" + strings.Repeat("0", 1<<16) + "e-999999999"} {
		buffer := make([]byte, 0, 64)
		if n := testing.AllocsPerRun(10, func() { _, _ = appendDecimal(buffer, []byte(sent)) }); n > 4 {
			t.Errorf("%.20s: %v allocations", sent, n)
		}
		if text, _ := appendDecimal(buffer, []byte(sent)); len(text) > 40 {
			t.Errorf("%.20s: made %d digits", sent, len(text))
		}
	}
}

func TestPeriodIsTheMonthInUTCOrAsWritten(t *testing.T) {
	for sent, want := range map[string]string{ // "": rejected
		"2025-01": "2025-01", "2025-01-31": "2025-01", "2025-01-01 00:00:00": "2025-01", "2025-01-31T23:59:59": "2025-01", "2025-01-31T23:59:59.999999": "2025-01",
		"2025-01-01T00:00:00Z": "2025-01", "2025-01-01T00:00:00+02:00": "2024-12", "2025-01-31T23:00:00-02:00": "2025-02", "2025-01-01 00:00:00+00:00": "2025-01",
		"2000-01": "2000-01", "2999-12": "2999-12", "1999-12": "", "3000-01": "", "2000-01-01T00:00:00+01:00": "", "2999-12-31T23:00:00-02:00": "",
		"": "", "2025": "", "2025-1": "", "2025-13": "", "2025-00": "", "2025-02-30": "", "2025/01": "", "01-2025": "", " 2025-01": "", "2025-01 ": "", "2025-01-01 24:00:00": "",
	} {
		for _, name := range []string{"period", "period_start", "billing_period_start", "start"} {
			page, err := readUsage(inRow(`{"tenant_id":"a","credits":1,"`+name+`":"`+sent+`"}`), firstPage)
			if got := append(page.Rows, UsageRow{})[0].Period; err != nil || got != want || len(page.Rejected) != 1-len(page.Rows) {
				t.Errorf("%s %q: %+v, %v, want %q", name, sent, page, err, want)
			}
		}
	}
	page, err := readUsage(inRow(`{"tenant_id":"a","credits":1,"period":202501}`), firstPage)
	if err != nil || len(page.Rejected) != 1 {
		t.Errorf("a number: %+v, %v", page, err)
	}
}

func TestTenantIDIsBelievedOnlyWhenValidAndNeverChanged(t *testing.T) {
	longest := strings.Repeat("ü", MaxTenantID)
	for _, row := range []struct{ sent, want string }{ // "": rejected
		{`org-1`, "org-1"}, {` a `, " a "}, {`../x`, "../x"}, {`\ud83d\ude00`, "😀"}, {`e\u0301`, "e\u0301"}, {"\u00e9", "\u00e9"}, {`\ufffd`, "\ufffd"}, {longest, longest},
		{longest + "x", ""}, {``, ""}, {`a\u0000`, ""}, {`a\n`, ""}, {"a\u0085", ""}, {"a\x7f", ""}, {`\ud800`, ""}, {`\udc00\ud800`, ""},
		{"a\xff", ""}, {"a\xfe", ""}, {"\xed\xa0\x80", ""}, {"\xc0\x80", ""},
	} {
		page, err := readUsage(inRow(`{"tenant_id":"`+row.sent+`","credits":1,"period":"2025-01"}`), firstPage)
		if got := append(page.Rows, UsageRow{})[0].TenantID; err != nil || got != row.want || len(page.Rejected) != 1-len(page.Rows) {
			t.Errorf("%q: %+v, %v", row.sent, page, err)
		}
	}
}

func TestHistoryRowBelongsToTheTenantThatWasAskedFor(t *testing.T) {
	q := UsageQuery{TenantID: "org-1", Page: 1, PerPage: 100}
	page, err := readUsage(usageAnswer(`{"data":{"tenant_id":"org-1","usage":[
		{"credits":1,"period":"2025-01"},{"tenant_id":"org-1","credits":2,"period":"2025-02"},{"tenant_id":"org-2","credits":3,"period":"2025-03"},
		{"tenant_id":null,"credits":4,"period":"2025-04"},{"tenant":"ORG-1","credits":5,"period":"2025-05"}]}}`), q)
	want := []UsageRow{{"org-1", "2025-01", "1", 0}, {"org-1", "2025-02", "2", 0}, {"org-1", "2025-04", "4", 0}}
	if diff := cmp.Diff(want, page.Rows); diff != "" || err != nil || len(page.Rejected) != 2 || page.Rejected[0].Index != 2 || page.Rejected[1].Index != 4 {
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
		{1, 2, body(2, `,"pagination":{"total":1e999999999,"total_pages":99999999999999999999}`, ""), -1, -1, true},
	} {
		got, err := readUsage(usageAnswer(c.body), UsageQuery{Page: c.page, PerPage: c.perPage})
		if err != nil || got.Total != c.total || got.Pages != c.pages || got.More != c.more {
			t.Errorf("page %d of %d: %s\ngot total %d, pages %d, more %t (%v), want %d, %d, %t", c.page, c.perPage, c.body, got.Total, got.Pages, got.More, err, c.total, c.pages, c.more)
		}
	}
}

func TestRejectedRowIsKeptFitToStore(t *testing.T) {
	signature := Sign(NewSecret("sk_canary_secret"), "ws-1", 1735689900)
	long := `{"note":"` + strings.Repeat("ü", 600) + `"}`
	exact := `{"note":"` + strings.Repeat("ü", maxRawRow-len(`{"note":""}`)) + `"}`
	sent := []string{`{"x":"` + "\xff" + `"}`, long, exact, `{ "id":"ak_canary_id", "x":"sk_canary_secret sk_canary_embed ` + signature + `"}`, `{"x":"\u0000"}`}
	address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":{"usage":[ `+strings.Join(sent, " ,\n")+` ]}}`)
	})
	page, err := newTestClient(t, address, ClientOptions{}).Usage(t.Context(), firstPage)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`{"x":"` + "\ufffd" + `"}`, long[:len(`{"note":"`)+2*(maxRawRow-1-len(`{"note":"`))] + "…", exact, `{ "id":"[redacted]", "x":"[redacted] [redacted] [redacted]"}`, `{"x":"\u0000"}`}
	var got []string
	for i, r := range page.Rejected {
		got = append(got, r.Raw)
		if r.Index != i || utf8.RuneCountInString(r.Raw) > maxRawRow {
			t.Errorf("row %d has index %d and %d code points", i, r.Index, utf8.RuneCountInString(r.Raw))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
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
	for _, body := range []string{`{"data":[{"tenant":"a","credits":"1e3","start":"2025-01-01T00:00:00Z"}],"total":1}`, `{"data":{"data":[[],1,{"tenant_id":"\ud800"}]}}`, "null", "[[", "\xff"} {
		f.Add([]byte(body), "", 1)
	}
	f.Fuzz(func(t *testing.T, body []byte, tenant string, perPage int) {
		q := UsageQuery{TenantID: tenant, FromPeriod: "2024-01", ToPeriod: "2026-12", Page: 2, PerPage: max(1, min(perPage, 100))}
		page, err := readUsage(answer{status: 200, header: http.Header{}, body: body}, q)
		if valid := jsontext.Value(body).IsValid(lenient); err == nil && !valid {
			t.Fatal("accepted what is not JSON")
		}
		for _, r := range page.Rows {
			credits, ok := new(big.Rat).SetString(r.Credits)
			if !plain.MatchString(r.Credits) || !ok || credits.Sign() < 0 || r.Requests < 0 || r.Period < "2024-01" || r.Period > "2026-12" || len(r.Period) != 7 {
				t.Errorf("accepted %+v", r)
			}
			if tenant == "" && (r.TenantID == "" || !utf8.ValidString(r.TenantID) || utf8.RuneCountInString(r.TenantID) > MaxTenantID || strings.ContainsFunc(r.TenantID, unicode.IsControl)) {
				t.Errorf("accepted tenant %q", r.TenantID)
			}
			if tenant != "" && r.TenantID != tenant {
				t.Errorf("tenant %q instead of %q", r.TenantID, tenant)
			}
		}
		for _, r := range page.Rejected {
			raw := cutRaw(r.Raw, strings.NewReplacer("a", "[redacted]"))
			if !utf8.ValidString(raw) || utf8.RuneCountInString(raw) > maxRawRow || strings.Contains(raw, "\x00") || raw == "" ||
				r.Reason == "" || strings.ContainsFunc(r.Reason, unicode.IsControl) {
				t.Errorf("rejected %+v", r)
			}
		}
		if page.Total < -1 || page.Pages < -1 {
			t.Errorf("total %d, pages %d", page.Total, page.Pages)
		}
	})
}

var plain = regexp.MustCompile(`^(0|[1-9][0-9]{0,19})(\.[0-9]{0,11}[1-9])?$`)

// FuzzCredits holds the digits' shuffling to exact arithmetic.
func FuzzCredits(f *testing.F) {
	for _, s := range []string{"0", "-0", "12.50", "1e3", "125e-1", "1e20", "5e-13", "-1", "99999999999999999999.999999999999", "0.10e1", "1000e-15", ".5", "5.", "+7", "1e999"} {
		f.Add(s)
	}
	number := regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$`)
	most, least := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(maxIntegerDigits), nil)), int64(maxFractionDigits)
	scale := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(least), nil))
	f.Fuzz(func(t *testing.T, s string) {
		quoted, err := jsontext.AppendQuote(nil, s)
		if err != nil {
			return // not UTF-8
		}
		text, why := appendDecimal(nil, quoted)
		if why == "" && !plain.Match(text) {
			t.Fatalf("%q became %q", s, text)
		}
		if !number.MatchString(s) {
			if why == "" && !regexp.MustCompile(`[eE][+-]?[0-9]{4,}$`).MatchString(s) {
				t.Fatalf("%q is no number and became %q", s, text)
			}
			return
		}
		value, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Fatalf("big.Rat does not read %q", s)
		}
		fits := value.Sign() >= 0 && value.Cmp(most) < 0 && new(big.Rat).Mul(value, scale).IsInt()
		if fits != (why == "") {
			t.Fatalf("%q: %q, %s; fits: %v", s, text, why, fits)
		}
		if fits {
			if got, _ := new(big.Rat).SetString(string(text)); got.Cmp(value) != 0 {
				t.Fatalf("%q became %q", s, text)
			}
		}
	})
}

// BenchmarkDecodeUsagePage reads a full page in the documented shape; "plain" is the same page unmarshalled into structs
// that know its names, the limit of the JSON library.
func BenchmarkDecodeUsagePage(b *testing.B) {
	var body bytes.Buffer
	body.WriteString(`{"success":true,"message":"Tenant usage retrieved successfully","data":{"workspace_id":"ws-123","usage":[`)
	for i := range 100 {
		if i > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"tenant_id":"org-%07d","credits_consumed":%d.%06d,"request_count":%d,"period_start":"2025-01-01 00:00:00","period_end":"2025-01-31 23:59:59"}`,
			i, i*37, i*7919%1000000, i*11)
	}
	body.WriteString(`],"pagination":{"page":1,"per_page":100,"total":1000000,"total_pages":10000}}}`)
	a := answer{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}}, body: body.Bytes()}
	b.Run("client", func(b *testing.B) {
		b.SetBytes(int64(body.Len()))
		b.ReportAllocs()
		for b.Loop() {
			page, err := readUsage(a, UsageQuery{Page: 1, PerPage: 100})
			if err != nil || len(page.Rows) != 100 || !page.More {
				b.Fatal(page, err)
			}
		}
	})
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(int64(body.Len()))
		b.ReportAllocs()
		for b.Loop() {
			var page struct {
				Data struct {
					Usage []struct {
						TenantID string  `json:"tenant_id"`
						Credits  float64 `json:"credits_consumed"`
						Requests int64   `json:"request_count"`
						Start    string  `json:"period_start"`
					} `json:"usage"`
				} `json:"data"`
			}
			if err := json.Unmarshal(body.Bytes(), &page, lenient); err != nil || len(page.Data.Usage) != 100 {
				b.Fatal(err)
			}
		}
	})
}
