package papermap

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
)

// usageAnswer is a 200 with body.
func usageAnswer(body string) answer {
	return answer{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}},
		body: []byte(body)}
}

var firstPage = UsageQuery{Page: 1, PerPage: 100}

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
		"":        "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenant-usage",
		"org-1":   "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/org-1/usage",
		"../x":    "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/..%2Fx/usage",
		"..":      "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/%2E%2E/usage",
		".":       "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/%2E/usage",
		"a/%2F#?": "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/a%2F%252F%23%3F/usage",
		"{workspace_id}\xff": "/base/api/v1/external/workspaces/a%2Fb%20%3F/tenants/%7Bworkspace_id%7D%FF" +
			"/usage",
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
		page, err := c.Usage(t.Context(), UsageQuery{TenantID: tenant, FromPeriod: "2025-01",
			ToPeriod: "2025-03", Page: 2, PerPage: 50})
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
	c := newTestClient(t, address,
		ClientOptions{HistoryPath: "/v2/{tenant_id}/usage/{workspace_id}/{workspace_id}"})
	if _, err := c.Usage(t.Context(), UsageQuery{TenantID: "org/1", Page: 1, PerPage: 100}); err != nil {
		t.Error(err)
	}
}

func TestUsageQueryThatMakesNoSenseIsRefusedAndNotSent(t *testing.T) {
	address, seen := serve(t, func(http.ResponseWriter, *http.Request) {})
	c := newTestClient(t, address, ClientOptions{})
	for _, q := range []UsageQuery{
		{}, {Page: 1}, {PerPage: 1}, {Page: -1, PerPage: 1}, {Page: 1, PerPage: 101},
		{Page: 1, PerPage: 1, FromPeriod: "2025-1"}, {Page: 1, PerPage: 1, ToPeriod: "2025-13"},
		{Page: 1, PerPage: 1, ToPeriod: "2025-01-01"},
		{Page: 1, PerPage: 1, FromPeriod: "1999-12"}, {Page: 1, PerPage: 1, FromPeriod: "2025-02",
			ToPeriod: "2025-01"},
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
			t.Errorf("%d %s %.60q: %d rows, %v, want %q", row.status, row.contentType, row.body,
				len(page.Rows), err, row.want)
		}
	}
}

func TestRejectedRowIsKeptFitToStore(t *testing.T) {
	signature := Sign(NewSecret("sk_canary_secret"), "ws-1", 1735689900)
	long := `{"note":"` + strings.Repeat("ü", 600) + `"}`
	exact := `{"note":"` + strings.Repeat("ü", maxRawRow-len(`{"note":""}`)) + `"}`
	sent := []string{`{"x":"` + "\xff" + `"}`, long, exact,
		`{ "id":"ak_canary_id", "x":"sk_canary_secret sk_canary_embed ` + signature + `"}`, `{"x":"\u0000"}`}
	address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":{"usage":[ `+strings.Join(sent, " ,\n")+` ]}}`)
	})
	page, err := newTestClient(t, address, ClientOptions{}).Usage(t.Context(), firstPage)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`{"x":"` + "\ufffd" + `"}`, long[:len(`{"note":"`)+2*(maxRawRow-1-len(`{"note":"`))] +
		"…", exact, `{ "id":"[redacted]", "x":"[redacted] [redacted] [redacted]"}`, `{"x":"\u0000"}`}
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

var plain = regexp.MustCompile(`^(0|[1-9][0-9]{0,19})(\.[0-9]{0,11}[1-9])?$`)
