package simulator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/papermap"
)

func TestControlStateIsReadable(t *testing.T) {
	s, address := start(t, Options{})
	get := func(path string, into any) {
		t.Helper()
		r := send("GET", address+path, nil, "")
		if r.status != 200 || r.header.Get("Content-Type") != "application/json" {
			t.Fatalf("%s: %d %s", path, r.status, r.body)
		}
		if err := json.Unmarshal([]byte(r.body), into); err != nil {
			t.Fatalf("%s: %v in %s", path, err, r.body)
		}
	}
	if r := send("GET", address+"/simulator/state", nil,
		""); r.body != `{"dashboards":[],"requests":[],"faults":[]}` {
		t.Errorf("empty state is %s", r.body)
	}

	h := good()
	h.Set("X-Tenant-ID", "org-1")
	send("POST", address+createPath, h, createText("One", "pmw:1"))
	send("POST", address+createPath, h, createText("Two", "pmw:2"))
	s.SetFaults(Fault{Drop: "after", Rate: 0.5})
	var state struct {
		Dashboards []Dashboard
		Requests   []Request
		Faults     []string
	}
	get("/simulator/state", &state)
	if diff := cmp.Diff(s.Dashboards(), state.Dashboards); diff != "" || len(state.Dashboards) != 2 {
		t.Errorf("dashboards (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(s.Log(), state.Requests); diff != "" || len(state.Requests) != 2 {
		t.Errorf("requests (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"drop=after rate=0.5"}, state.Faults); diff != "" {
		t.Errorf("faults (-want +got)\n%s", diff)
	}
	var dashboards []Dashboard
	get("/simulator/dashboards", &dashboards)
	if diff := cmp.Diff(s.Dashboards(), dashboards); diff != "" {
		t.Errorf("dashboards (-want +got)\n%s", diff)
	}
	for path, want := range map[string][]Request{
		"/simulator/requests":         s.Log(),
		"/simulator/requests?after=0": s.Log(),
		"/simulator/requests?after=1": s.Log()[1:],
		"/simulator/requests?after=9": {},
	} {
		var requests []Request
		get(path, &requests)
		if diff := cmp.Diff(want, requests); diff != "" {
			t.Errorf("%s (-want +got)\n%s", path, diff)
		}
	}
	for _, path := range []string{"/simulator/requests?after=x", "/simulator/requests?after=-1"} {
		if r := send("GET", address+path, nil, ""); r.status != 400 {
			t.Errorf("%s: %d", path, r.status)
		}
	}
	if r := send("GET", address+"/healthz", nil, ""); r.status != 200 {
		t.Errorf("healthz: %d", r.status)
	}
}

func TestControlStateKeysAreSnakeCase(t *testing.T) {
	_, address := start(t, Options{Faults: []Fault{{Status: 200, Body: "{}", Effect: true}}})
	h := good()
	h.Set("X-Tenant-ID", "org-1")
	send("POST", address+createPath, h, createText("One", "pmw:1"))
	var state struct{ Dashboards, Requests []map[string]any }
	if err := json.Unmarshal([]byte(send("GET", address+"/simulator/state", nil, "").body),
		&state); err != nil {
		t.Fatal(err)
	}
	has := func(object map[string]any, keys string) {
		t.Helper()
		for key := range strings.FieldsSeq(keys) {
			if _, ok := object[key]; !ok {
				t.Errorf("no %s in %v", key, object)
			}
			delete(object, key)
		}
		if len(object) > 0 {
			t.Errorf("more than expected: %v", object)
		}
	}
	has(state.Dashboards[0], "id workspace_id tenant_id title description mark created_at")
	has(state.Requests[0],
		"seq time method path workspace_id tenant_id title description mark status fault dashboard_id")
}

func TestControlStateSurvivesHeadersThatAreNotUTF8(t *testing.T) {
	_, address := start(t, Options{})
	h := good()
	h.Set("X-Tenant-ID", "caf\xe9")
	send("POST", address+createPath, h, createText("T", ""))
	if r := send("GET", address+"/simulator/state", nil, ""); r.err != nil ||
		!strings.Contains(r.body, `"tenant_id":"caf`+"\ufffd"+`"`) {
		t.Errorf("%d %s (%v)", r.status, r.body, r.err)
	}
}

func TestControlReplacesAllFaultsOrNone(t *testing.T) {
	_, address := start(t, Options{})
	put := func(body string) reply { return send("PUT", address+"/simulator/faults", nil, body) }
	status := func() int { return send("POST", address+createPath, good(), createText("T", "")).status }
	if r := put(`["status=503 retry-after=1 count=1","status=429"]`); r.status != http.StatusNoContent {
		t.Errorf("%d %s", r.status, r.body)
	}
	if a, b := status(), status(); a != 503 || b != 429 {
		t.Errorf("answered %d, %d", a, b)
	}
	for body, message := range map[string]string{
		`["status=500","stat=500","drop=x"]`: "unknown key",
		`["status=500","drop=x"]`:            "drop=x: must be before or after",
		`{"status":500}`:                     "must be a JSON list",
		`["status=500"`:                      "must be a JSON list",
	} {
		if r := put(body); r.status != 400 || !strings.Contains(r.body, message) {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
		if got := status(); got != 429 {
			t.Errorf("%s: rules changed, answered %d", body, got)
		}
	}
	put(`[]`)
	if got := status(); got != 200 {
		t.Errorf("after clearing: %d", got)
	}
}

func TestControlUsageTellsTheTrueTotals(t *testing.T) {
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
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 60 {
		t.Errorf("%d rows (-want +got)\n%s", len(got), diff)
	}

	// the order of rows does not matter
	slices.SortFunc(got, func(a, b papermap.UsageRow) int { return int(b.Requests - a.Requests) })
	r = send("GET",
		address+"/simulator/usage?workspace=ws-a&from_period=2025-01&to_period=2025-02&checksum=1", nil, "")
	if want := fmt.Sprintf(`{"rows":%d,"checksum":"%s"}`, len(want), UsageChecksum(got)); r.body != want {
		t.Errorf("got %s, want %s", r.body, want)
	}
	// printf 'a|2025-01|0.5|2\nb|2025-01|1|3\n' | sha256sum
	const known = "6a03776ecffa2f3d0cef52004aed69a9ae636cc6ff166ba1d6670176d4f2c728"
	if sum := UsageChecksum([]papermap.UsageRow{{TenantID: "b", Period: "2025-01", Credits: "1", Requests: 3},
		{TenantID: "a", Period: "2025-01", Credits: "0.5", Requests: 2}}); sum != known {
		t.Errorf("checksum %s, want %s", sum, known)
	}

	for _, query := range []string{"from_period=2025-13", "to_period=x", "from_period=x&checksum=1",
		"from_period=0001-01"} {
		if r := send("GET", address+"/simulator/usage?workspace=ws-a&"+query, nil,
			""); r.status != http.StatusBadRequest {
			t.Errorf("%s: %d", query, r.status)
		}
	}
	if r := send("GET", address+"/simulator/usage?workspace=ws-z", nil, ""); r.status != 200 || r.body != "" {
		t.Errorf("a workspace without usage: %d %q", r.status, r.body)
	}
}

func TestControlSetsUsageWholeOrNotAtAll(t *testing.T) {
	s, address := start(t, Options{})
	put := func(body string) reply {
		return send("PUT", address+"/simulator/usage?workspace=ws-a", nil,
			body)
	}
	r := put(`{"tenants":40,"seed":3,"bad_every":7,"style":"items","corrections":{"org-0000001":2},
		"rows":[{"tenant_id":"Zoë","period":"2025-02","credits":"1e3","requests":4}]}`)
	if r.status != http.StatusNoContent {
		t.Fatalf("%d %s", r.status, r.body)
	}
	got := totals(t, s, "2025-01", "2025-02")
	s.SetUsage("ws-a", Usage{
		Tenants: 40, Seed: 3, BadEvery: 7, Style: "items", Corrections: map[string]int{"org-0000001": 2},
		Rows: []UsageRow{{"Zoë", "2025-02", "1e3", 4}},
	})
	want := totals(t, s, "2025-01", "2025-02")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for body, message := range map[string]string{
		`{"tenants":1,"style":"xml"}`: "must be one of pagination, meta,",
		`{"tenants":-1}`:              "must not be negative",
		`{"tenant":1}`:                "must be a JSON object such as",
		`[]`:                          "must be a JSON object such as",
		`{"tenants":1`:                "must be a JSON object such as",
	} {
		if r := put(body); r.status != 400 || !strings.Contains(r.body, message) {
			t.Errorf("%s: %d %s", body, r.status, r.body)
		}
		if diff := cmp.Diff(want, totals(t, s, "2025-01", "2025-02")); diff != "" {
			t.Errorf("%s changed the usage (-want +got)\n%s", body, diff)
		}
	}
}

func TestControlIsForLoopbackNamesOnly(t *testing.T) {
	s := New(Options{})
	for host, want := range map[string]int{
		"127.0.0.1:8090": 200, "127.1.2.3": 200, "localhost": 200, "LocalHost:1": 200, "a.localhost:1": 200,
		"[::1]:8090": 200, "[::1]": 200,
		"evil.example": 403, "evil.example:8090": 403, "localhost.evil.example": 403, "10.0.0.1:8090": 403,
		"127.0.0.1.evil.example": 403, "": 403,
	} {
		for _, path := range []string{"state", "dashboards", "requests", "usage?workspace=w"} {
			r := httptest.NewRequest("GET", "/simulator/"+path, nil)
			r.Host = host
			w := httptest.NewRecorder()
			if s.ServeHTTP(w, r); w.Code != want && (want != 200 || w.Code == 403) {
				t.Errorf("%s at host %q: %d, want %d", path, host, w.Code, want)
			}
		}
		for _, path := range []string{"usage?workspace=w", "faults"} {
			r := httptest.NewRequest("PUT", "/simulator/"+path, strings.NewReader("[]"))
			r.Host = host
			w := httptest.NewRecorder()
			if s.ServeHTTP(w, r); (w.Code == 403) != (want == 403) {
				t.Errorf("PUT %s at host %q: %d", path, host, w.Code)
			}
		}
	}
}
