package simulator

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStateIsReadableFromOutside(t *testing.T) {
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
	if r := send("GET", address+"/simulator/state", nil, ""); r.body != `{"dashboards":[],"requests":[],"faults":[]}` {
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

func TestStateKeysAreSnakeCase(t *testing.T) {
	_, address := start(t, Options{Faults: []Fault{{Status: 200, Body: "{}", Effect: true}}})
	h := good()
	h.Set("X-Tenant-ID", "org-1")
	send("POST", address+createPath, h, createText("One", "pmw:1"))
	var state struct{ Dashboards, Requests []map[string]any }
	if err := json.Unmarshal([]byte(send("GET", address+"/simulator/state", nil, "").body), &state); err != nil {
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
	has(state.Requests[0], "seq time method path workspace_id tenant_id title description mark status fault dashboard_id")
}

func TestHeaderBytesThatAreNotUTF8DoNotBreakTheState(t *testing.T) {
	_, address := start(t, Options{})
	h := good()
	h.Set("X-Tenant-ID", "caf\xe9")
	send("POST", address+createPath, h, createText("T", ""))
	if r := send("GET", address+"/simulator/state", nil, ""); r.err != nil || !strings.Contains(r.body, `"tenant_id":"caf`+"\ufffd"+`"`) {
		t.Errorf("%d %s (%v)", r.status, r.body, r.err)
	}
}

func TestFaultsAreReplacedFromOutsideAllOrNone(t *testing.T) {
	_, address := start(t, Options{})
	put := func(body string) reply { return send("PUT", address+"/simulator/faults", nil, body) }
	status := func() int { return send("POST", address+createPath, good(), createText("T", "")).status }
	if r := put(`["status=503 retry-after=1 count=1","status=429"]`); r.status != http.StatusNoContent {
		t.Errorf("%d %s", r.status, r.body)
	}
	if a, b := status(), status(); a != 503 || b != 429 {
		t.Errorf("answered %d, %d", a, b)
	}
	for body, says := range map[string]string{
		`["status=500","stat=500","drop=x"]`: "unknown key",
		`["status=500","drop=x"]`:            "drop=x: must be before or after",
		`{"status":500}`:                     "must be a JSON list",
		`["status=500"`:                      "must be a JSON list",
	} {
		if r := put(body); r.status != 400 || !strings.Contains(r.body, says) {
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

func TestServeFreesItsAddressOnClose(t *testing.T) {
	first, err := Serve(New(Options{}), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(first.URL, "http://")
	if _, err := Serve(New(Options{}), addr); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("address in use: error %v", err)
	}
	first.Close()
	first.Close()
	second, err := Serve(New(Options{}), addr)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}
