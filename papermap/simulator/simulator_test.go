package simulator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"papermap-worker/papermap"
)

const createPath = "/api/v1/external/dashboards"

var (
	epoch    = time.Unix(1_800_000_000, 0).UTC()
	apiKey   = papermap.KeyPair{ID: "ak_api", Secret: papermap.NewSecret("sk_api")}
	embedKey = papermap.KeyPair{ID: "ak_embed", Secret: papermap.NewSecret("sk_embed")}
	otherKey = papermap.KeyPair{ID: "ak_other", Secret: papermap.NewSecret("sk_other")}
)

// newSimulator returns a simulator whose clock stands at epoch, with the workspaces ws-a (apiKey,
// embedKey) and ws-b (otherKey).
func newSimulator(o Options) *Simulator {
	o.Workspaces = []papermap.Workspace{
		{ID: "ws-a", Key: apiKey, EmbedKey: embedKey}, {ID: "ws-b", Key: otherKey, EmbedKey: otherKey},
	}
	o.Now = func() time.Time { return epoch }
	return New(o)
}

// start serves a newSimulator.
func start(t *testing.T, o Options) (*Simulator, string) {
	t.Helper()
	s := newSimulator(o)
	server, err := Serve(s, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return s, server.URL
}

func signed(workspace string, key papermap.KeyPair, until int64) http.Header {
	h := http.Header{}
	h.Set("X-API-Key-ID", key.ID)
	h.Set("X-Workspace-ID", workspace)
	h.Set("X-Valid-Until", strconv.FormatInt(until, 10))
	h.Set("X-Signature", papermap.Sign(key.Secret, workspace, until))
	return h
}

func good() http.Header { return signed("ws-a", apiKey, epoch.Unix()+300) }

func createText(title, description string) string {
	text, err := json.Marshal(map[string]string{"workspace_id": "ws-a", "title": title,
		"description": description})
	if err != nil {
		panic(err)
	}
	return string(text)
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error // of the request, or of reading the body
}

// send makes a request on a connection of its own and follows no redirect.
func send(method, address string, h http.Header, body string) reply {
	q, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		return reply{err: err}
	}
	q.Header = h.Clone()
	q.Close = true
	client := http.Client{CheckRedirect: func(*http.Request,
		[]*http.Request) error {
		return http.ErrUseLastResponse
	}}
	r, err := client.Do(q)
	if err != nil {
		return reply{err: err}
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	return reply{r.StatusCode, r.Header, string(text), err}
}

func TestRequestIsRefusedUnlessSignedExactly(t *testing.T) {
	now := epoch.Unix()
	with := func(h http.Header, name, value string) http.Header {
		h.Set(name, value)
		return h
	}
	without := func(name string) http.Header {
		h := good()
		h.Del(name)
		return h
	}
	const invalid = `{"error":"Invalid signature","code":"INVALID_SIGNATURE","status":401}`
	const expired = `{"error":"Token expired","code":"TOKEN_EXPIRED","status":401}`
	for _, c := range []struct {
		name   string
		header http.Header
		status int
		body   string // "" when not checked
	}{
		{"right", good(), 200, ""},
		{"signed with the embed pair", signed("ws-a", embedKey, now+300), 200, ""},
		{"valid for one more second", signed("ws-a", apiKey, now+1), 200, ""},
		{"valid for a year", signed("ws-a", apiKey, now+365*86400), 200, ""},
		{"valid until now", signed("ws-a", apiKey, now), 401, expired},
		{"expired long ago", signed("ws-a", apiKey, now-3600), 401, expired},
		{"wrong secret", signed("ws-a", papermap.KeyPair{ID: apiKey.ID,
			Secret: papermap.NewSecret("sk_wrong")}, now+300), 401, invalid},
		{"wrong secret and expired", signed("ws-a", papermap.KeyPair{ID: apiKey.ID,
			Secret: papermap.NewSecret("sk_wrong")}, now-1), 401, invalid},
		{"unknown key", signed("ws-a", papermap.KeyPair{ID: "ak_unknown", Secret: apiKey.Secret}, now+300),
			401, invalid},
		{"key of another workspace", signed("ws-a", otherKey, now+300), 401, invalid},
		{"unknown workspace", signed("ws-z", apiKey, now+300), 401, invalid},
		{"workspace changed after signing", with(good(), "X-Workspace-ID", "ws-b"), 401, invalid},
		{"time changed after signing", with(good(), "X-Valid-Until", strconv.FormatInt(now+301, 10)), 401,
			invalid},
		{"nine digits", signed("ws-a", apiKey, 999_999_999), 401, invalid},
		{"eleven digits", signed("ws-a", apiKey, 18_000_000_000), 401, invalid},
		{"a leading zero", with(signed("ws-a", apiKey, 999_999_999), "X-Valid-Until", "0999999999"), 401,
			expired},
		{"a sign", with(signed("ws-a", apiKey, 999_999_999), "X-Valid-Until", "+999999999"), 401, invalid},
		{"digits moved over to the workspace", with(with(good(), "X-Workspace-ID", "ws-a1"), "X-Valid-Until",
			strconv.FormatInt(now+300, 10)[1:]), 401, invalid},
		{"upper-case signature", with(good(), "X-Signature", strings.ToUpper(good().Get("X-Signature"))), 401,
			invalid},
		{"empty signature", with(good(), "X-Signature", ""), 401, invalid},
		{"no X-API-Key-ID", without("X-API-Key-ID"), 401, invalid},
		{"no X-Workspace-ID", without("X-Workspace-ID"), 401, invalid},
		{"no X-Valid-Until", without("X-Valid-Until"), 401, invalid},
		{"no X-Signature", without("X-Signature"), 401, invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, address := start(t, Options{})
			for _, r := range []reply{
				send("POST", address+createPath, c.header, createText("T", "")),
				send("GET", address+"/api/v1/external/workspaces/ws-a/tenant-usage", c.header, ""),
				send("GET", address+"/api/v1/external/workspaces/ws-a/tenants/x/usage", c.header, ""),
			} {
				if r.err != nil || r.status != c.status || c.body != "" && r.body != c.body {
					t.Errorf("got %d %s (%v), want %d %s", r.status, r.body, r.err, c.status, c.body)
				}
			}
			if made := len(s.Dashboards()) == 1; made != (c.status == 200) {
				t.Errorf("dashboard made: %v", made)
			}
		})
	}
}

func TestKeysCanBeAddedAndRevokedWhileServing(t *testing.T) {
	s, address := start(t, Options{})
	fresh := papermap.KeyPair{ID: "ak_new", Secret: papermap.NewSecret("sk_new")}
	status := func(k papermap.KeyPair) int {
		return send("POST", address+createPath, signed("ws-a", k, epoch.Unix()+300),
			createText("T", "")).status
	}
	if got := status(fresh); got != 401 {
		t.Errorf("before AddKey: %d", got)
	}
	s.AddKey("ws-a", fresh)
	if old, added := status(apiKey), status(fresh); old != 200 || added != 200 {
		t.Errorf("after AddKey: old %d, added %d", old, added)
	}
	s.RevokeKey(apiKey.ID)
	if old, added := status(apiKey), status(fresh); old != 401 || added != 200 {
		t.Errorf("after RevokeKey: old %d, added %d", old, added)
	}
}

func TestCreateAnswersTheDocumentedShape(t *testing.T) {
	for _, nested := range []bool{false, true} {
		s, address := start(t, Options{NestedAnswer: nested})
		r := send("POST", address+createPath, good(), createText("Dashboard - Acme", "for Acme"))
		var got struct {
			Success bool
			Message string
			Data    map[string]any
		}
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.status != 200 || !got.Success ||
			got.Message == "" {
			t.Fatalf("nested %v: %d %s (%v)", nested, r.status, r.body, err)
		}
		if nested {
			if len(got.Data) != 1 {
				t.Errorf("nested: data has more than data: %s", r.body)
			}
			got.Data, _ = got.Data["data"].(map[string]any)
		}
		id := s.Dashboards()[0].ID
		if _, err := uuid.Parse(id); err != nil {
			t.Errorf("dashboard id is no UUID: %v", err)
		}
		when := epoch.Format(time.RFC3339)
		want := map[string]any{
			"dashboard_id": id, "title": "Dashboard - Acme", "description": "for Acme",
			"workspace_id": "ws-a", "dashboard_status": "active",
			"is_public": false, "created_by": "simulator", "created_at": when, "modified_at": when,
		}
		if diff := cmp.Diff(want, got.Data); diff != "" {
			t.Errorf("nested %v: (-want +got)\n%s", nested, diff)
		}
		if date := r.header.Get("Date"); date != epoch.Format(http.TimeFormat) {
			t.Errorf("Date is %q, want the simulator's clock", date)
		}
	}
}

func TestCreateRefusesWhatIsNotAValidRequest(t *testing.T) {
	for _, c := range []struct {
		body   string
		status int
	}{
		{``, 400}, {`null`, 400}, {`[]`, 400}, {`"x"`, 400}, {`{}`, 400}, {`{"workspace_id":"ws-a"`, 400},
		{`{"workspace_id":"ws-a","title":""}`, 400},
		{`{"workspace_id":"ws-a","title":null}`, 400},
		{`{"workspace_id":"ws-a","title":7}`, 400},
		{`{"workspace_id":"ws-a","title":"T"}{}`, 400},
		{`{"title":"T"}`, 400},
		{`{"workspace_id":"ws-b","title":"T"}`, 403},
		{`{"workspace_id":"ws-a","title":"` + strings.Repeat("x", maxBody) + `"}`, 413},
		{`{"workspace_id":"ws-a","title":"T","description":null,"more":[1]}`, 200},
	} {
		s, address := start(t, Options{})
		r := send("POST", address+createPath, good(), c.body)
		shown := c.body[:min(len(c.body), 60)]
		if r.status != c.status {
			t.Errorf("%s: answered %d %s (%v), want %d", shown, r.status, r.body, r.err, c.status)
		}
		if c.status != 200 {
			var got struct {
				Success *bool
				Message string
				Status  int `json:"status_code"`
			}
			if err := json.Unmarshal([]byte(r.body), &got); err != nil || got.Success == nil ||
				*got.Success || got.Message == "" || got.Status != c.status {
				t.Errorf("%s: error body %s", shown, r.body)
			}
		}
		if made := len(s.Dashboards()); (made == 1) != (c.status == 200) {
			t.Errorf("%s: made %d dashboards", shown, made)
		}
	}
}

func TestLogHoldsEveryRequestInOrder(t *testing.T) {
	s, address := start(t, Options{Faults: []Fault{{On: onCreate, Title: "Lost", Drop: "after"}}})
	h := good()
	h.Set("X-Tenant-ID", "org-1")
	send("POST", address+createPath, h, createText("First", "text pmw:018f-a_B, pmw:second"))
	send("POST", address+createPath, http.Header{}, createText("Unsigned", ""))
	send("POST", address+createPath, h, createText("Lost", "(pmw:x)"))
	send("GET", address+"/api/v1/external/workspaces/ws-a/tenants/a%2Fb/usage?page=2", good(), "")
	send("DELETE", address+createPath, good(), "")
	send("GET", address+"/healthz", nil, "")

	made := s.Dashboards()
	wantMade := []Dashboard{
		{WorkspaceID: "ws-a", TenantID: "org-1", Title: "First", Description: "text pmw:018f-a_B, pmw:second",
			Mark: "pmw:018f-a_B", CreatedAt: epoch},
		{WorkspaceID: "ws-a", TenantID: "org-1", Title: "Lost", Description: "(pmw:x)", Mark: "pmw:x",
			CreatedAt: epoch},
	}
	if diff := cmp.Diff(wantMade, made, cmpopts.IgnoreFields(Dashboard{}, "ID")); diff != "" {
		t.Fatalf("dashboards (-want +got)\n%s", diff)
	}
	want := []Request{
		{Seq: 1, Method: "POST", Path: createPath, WorkspaceID: "ws-a", TenantID: "org-1", Title: "First",
			Description: made[0].Description, Mark: made[0].Mark, Status: 200, DashboardID: made[0].ID},
		{Seq: 2, Method: "POST", Path: createPath, Title: "Unsigned", Status: 401},
		{Seq: 3, Method: "POST", Path: createPath, WorkspaceID: "ws-a", TenantID: "org-1", Title: "Lost",
			Description: "(pmw:x)", Mark: "pmw:x", Fault: "drop=after on=create title=Lost",
			DashboardID: made[1].ID},
		{Seq: 4, Method: "GET", Path: "/api/v1/external/workspaces/ws-a/tenants/a%2Fb/usage", Query: "page=2",
			WorkspaceID: "ws-a", Status: 200},
		{Seq: 5, Method: "DELETE", Path: createPath, WorkspaceID: "ws-a", Status: 404},
	}
	for i := range want {
		want[i].Time = epoch
	}
	if diff := cmp.Diff(want, s.Log()); diff != "" {
		t.Errorf("log (-want +got)\n%s", diff)
	}
}

func TestLogIsRightUnderConcurrencyAndAheadOfEveryAnswer(t *testing.T) {
	const clients, each = 8, 40
	s, address := start(t, Options{Seed: 7, Faults: []Fault{
		{Rate: 0.1, Drop: "before"}, {Rate: 0.1, Drop: "after"}, {Rate: 0.1, Status: 503},
		{Rate: 0.1, Truncate: true},
	}})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	var wait sync.WaitGroup
	for n := range clients {
		wait.Go(func() {
			for i := range each {
				mark := fmt.Sprintf("pmw:%d-%d", n, i)
				q, _ := http.NewRequest("POST", address+createPath, strings.NewReader(createText("T", mark)))
				q.Header = good()
				r, err := client.Do(q)
				if err != nil {
					continue // dropped
				}
				text, err := io.ReadAll(r.Body)
				r.Body.Close()
				if err != nil || r.StatusCode != 200 {
					continue
				}
				log, made := s.Log(), s.Dashboards()
				d := slices.IndexFunc(made, func(d Dashboard) bool { return d.Mark == mark })
				if d < 0 || !bytes.Contains(text, []byte(made[d].ID)) {
					t.Errorf("%s: answered, but the list lacks its dashboard: %s", mark, text)
				} else if !slices.ContainsFunc(log, func(e Request) bool {
					return e.Mark == mark &&
						e.Status == 200 && e.DashboardID == made[d].ID
				}) {
					t.Errorf("%s: answered, but the log lacks it", mark)
				}
			}
		})
	}
	wait.Wait()
	log, made := s.Log(), s.Dashboards()
	if len(log) != clients*each {
		t.Errorf("%d entries for %d requests", len(log), clients*each)
	}
	var fromLog, fromList []string
	for i, e := range log {
		if e.Seq != i+1 {
			t.Fatalf("entry %d has sequence number %d", i, e.Seq)
		}
		if e.DashboardID != "" {
			fromLog = append(fromLog, e.DashboardID)
		}
	}
	for _, d := range made {
		fromList = append(fromList, d.ID)
	}
	if diff := cmp.Diff(fromLog, fromList); diff != "" {
		t.Errorf("log and list have different dashboards, or in another order (-log +list)\n%s", diff)
	}
}
