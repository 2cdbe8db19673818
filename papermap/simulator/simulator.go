// Package simulator simulates Papermap's external API as an [http.Handler], for tests, demos and
// development.
//
//	ws := papermap.Workspace{ID: "ws-1"}
//	ws.Key = papermap.KeyPair{ID: "ak_1", Secret: papermap.NewSecret("sk_1")}
//	fault, err := simulator.ParseFault("on=create status=503 retry-after=1 count=3")
//	s := simulator.New(simulator.Options{
//		Workspaces: []papermap.Workspace{ws},
//		Faults:     []simulator.Fault{fault},
//	})
//	server, err := simulator.Serve(s, "127.0.0.1:0")
//	defer server.Close()
//	ws.APIURL = server.URL
//	// … papermap.NewClient(ws, papermap.ClientOptions{}) …
//	fmt.Println(s.Log(), s.Dashboards())
//
// What it promises:
//
//   - Signatures are checked exactly: four headers, ten digits, lower-case hex, not expired, one
//     workspace throughout.
//   - Every API request becomes one entry of an append-only log, and every dashboard one of an
//     append-only list, before the first byte of the answer is written. So every answer that a
//     client has seen is in the log, and everything in the log has happened, seen by the client or
//     not.
//   - Faults by rule (see [ParseFault]) happen as a client sees them on a network: real statuses,
//     closed connections, cut bodies. With the same seed, rules and order of requests the same
//     requests are hit.
//
// What it does not promise: it is a test tool for the loopback interface. Everything under
// /simulator/ is open to any caller that names a loopback host, everything is kept in memory until
// the process ends, and where Papermap's documentation is silent (names of usage's fields, order of
// checks, most error bodies) the answers are this package's choice.
//
// Endpoints:
//
//	POST /api/v1/external/dashboards
//	GET  /api/v1/external/workspaces/{workspace}/tenant-usage
//	GET  /api/v1/external/workspaces/{workspace}/tenants/{tenant}/usage
//	GET  /embedded/dashboard     the page of the iframe
//	GET  /healthz, /readyz       "ok"
//	GET  /simulator/state        everything; /simulator/dashboards and /simulator/requests: parts
//	GET  /simulator/usage        true totals: ?workspace=, from_period, to_period, checksum=1
//	PUT  /simulator/usage        ?workspace=; a [Usage] in JSON, with snake_case names
//	PUT  /simulator/faults       a JSON list of rules
package simulator

import (
	"cmp"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"papermap-worker/papermap"
)

// Options are the workspaces that a simulator serves, and how it behaves.
type Options struct {
	// Workspaces have Key and EmbedKey, each valid both for requests and for tokens; APIURL is
	// ignored.
	Workspaces []papermap.Workspace
	// NestedAnswer puts the dashboard id at data.data.dashboard_id (Papermap's guide) instead of
	// data.dashboard_id (its reference).
	NestedAnswer bool
	Seed         uint64           // of the random choices of fault rules
	Faults       []Fault          // the first rules
	Now          func() time.Time // the server's clock, also of its Date header; nil: time.Now
}

// Simulator is the API. Its methods may be used while it serves.
type Simulator struct {
	nested bool
	now    func() time.Time
	mux    *http.ServeMux

	mu         sync.Mutex
	keys       map[string]map[string]papermap.Secret // by workspace, then by key id
	rules      []*rule
	random     *rand.Rand
	log        []Request // entry i has Seq i+1
	dashboards []Dashboard
	usages     map[string]*usageState // by workspace
}

// Request is one API request in the log. Entries are complete when they appear and never change.
type Request struct {
	Seq         int       `json:"seq"` // 1, 2, 3 … in the order of their effects
	Time        time.Time `json:"time"`
	Method      string    `json:"method"`
	Path        string    `json:"path"` // as sent, percent-encoded, without the query
	Query       string    `json:"query,omitempty"`
	WorkspaceID string    `json:"workspace_id"` // of the header
	TenantID    string    `json:"tenant_id"`    // of the header
	Title       string    `json:"title,omitempty"`
	Description string    `json:"description,omitempty"`
	Mark        string    `json:"mark,omitempty"`         // the first pmw:<id> in the description
	Fault       string    `json:"fault,omitempty"`        // the rule that was applied
	DashboardID string    `json:"dashboard_id,omitempty"` // made by this request

	// Status was answered, perhaps late, or cut short; 0: the connection was dropped.
	Status int `json:"status"`
}

// Dashboard is a created dashboard. The API takes no tenant: TenantID is the request's header.
type Dashboard struct {
	ID          string    `json:"id"`
	WorkspaceID string    `json:"workspace_id"`
	TenantID    string    `json:"tenant_id"`
	Title       string    `json:"title"`
	Description string    `json:"description"`
	Mark        string    `json:"mark"`
	CreatedAt   time.Time `json:"created_at"`
}

// New returns a simulator that knows o's workspaces and has no dashboards.
func New(o Options) *Simulator {
	s := &Simulator{
		nested: o.NestedAnswer,
		now:    o.Now,
		mux:    http.NewServeMux(),
		keys:   map[string]map[string]papermap.Secret{},
		random: rand.New(rand.NewPCG(o.Seed, 0)),
		usages: map[string]*usageState{},
	}
	if s.now == nil {
		s.now = time.Now
	}
	for _, w := range o.Workspaces {
		s.AddKey(w.ID, w.Key)
		s.AddKey(w.ID, w.EmbedKey)
	}
	s.SetFaults(o.Faults...)

	const api = "/api/v1/external/"
	s.mux.HandleFunc("POST "+api+"dashboards", s.api(onCreate, s.create))
	s.mux.HandleFunc("GET "+api+"workspaces/{workspace}/tenant-usage", s.api(onUsage, s.usage))
	s.mux.HandleFunc("GET "+api+"workspaces/{workspace}/tenants/{tenant}/usage", s.api(onUsage, s.usage))
	s.mux.HandleFunc(api, s.api("", func(*call) answer { return failure(http.StatusNotFound, "Not found") }))
	s.mux.HandleFunc("GET /embedded/dashboard", s.serveEmbedded)
	s.mux.HandleFunc("GET /simulator/state", local(s.serveState))
	s.mux.HandleFunc("GET /simulator/dashboards", local(s.serveDashboards))
	s.mux.HandleFunc("GET /simulator/requests", local(s.serveRequests))
	s.mux.HandleFunc("GET /simulator/usage", local(s.serveUsage))
	s.mux.HandleFunc("PUT /simulator/usage", local(s.replaceUsage))
	s.mux.HandleFunc("PUT /simulator/faults", local(s.serveFaults))
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }
	s.mux.HandleFunc("GET /healthz", ok)
	s.mux.HandleFunc("GET /readyz", ok) // for `papermap-worker health`
	return s
}

// local serves requests whose Host is a loopback name or address, and refuses others: a web page
// that a person visits could reach this address through its own host name.
func local(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		host = strings.ToLower(strings.Trim(host, "[]"))
		if host != "localhost" && !strings.HasSuffix(host, ".localhost") && !net.ParseIP(host).IsLoopback() {
			failure(http.StatusForbidden, "Host must be a loopback name, such as localhost").write(w)
			return
		}
		handler(w, r)
	}
}

func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	s.mux.ServeHTTP(w, r)
}

// call is an API request on its way through an endpoint.
type call struct {
	http  *http.Request
	now   time.Time
	entry Request // what will be logged
	body  *createBody
	err   error // why body could not be read
}

type createBody struct {
	WorkspaceID string `json:"workspace_id"`
	Title       string `json:"title"`
	Description string `json:"description"`
}

// answer is what goes back; a status of 0 closes the connection instead.
type answer struct {
	status      int
	contentType string // application/json when empty
	retryAfter  string
	location    string
	body        []byte
}

const maxBody = 1 << 20

var markPattern = regexp.MustCompile(`pmw:[0-9A-Za-z_-]+`)

// api serves one endpoint.
func (s *Simulator) api(on string, endpoint func(*call) answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{http: r, entry: Request{
			Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery,
			WorkspaceID: r.Header.Get("X-Workspace-ID"), TenantID: r.Header.Get("X-Tenant-ID"),
		}}
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if on == onCreate {
			if err == nil {
				err = json.Unmarshal(text, &c.body)
			}
			if c.err = err; err == nil && c.body != nil {
				c.entry.Title, c.entry.Description = c.body.Title, c.body.Description
				c.entry.Mark = markPattern.FindString(c.body.Description)
			}
		}
		a, fault := s.decide(c, on, endpoint)
		if fault.Delay > 0 {
			select {
			case <-time.After(fault.Delay):
			case <-r.Context().Done(): // the client has disconnected, or the server closes
			}
		}
		fault.write(w, r, a)
	}
}

// decide picks the fault, applies the endpoint's effect and logs both in one critical section. So
// the order of the log is the order of the effects, and everything is recorded before the client
// gets its answer.
func (s *Simulator) decide(c *call, on string, endpoint func(*call) answer) (a answer, fault Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.now = s.now().UTC()
	fault, c.entry.Fault = s.pickFault(on, c.entry)
	if fault.reachesEndpoint() {
		a = endpoint(c)
	}
	switch {
	case fault.Drop != "":
		a = answer{}
	case fault.replacesAnswer():
		a = fault.answer(c.http)
	}
	c.entry.Seq, c.entry.Time, c.entry.Status = len(s.log)+1, c.now, a.status
	s.log = append(s.log, c.entry)
	return a, fault
}

// create creates a dashboard. s.mu is held, as for every endpoint.
func (s *Simulator) create(c *call) answer {
	if refusal, ok := s.checkSignature(c); !ok {
		return refusal
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(c.err, &tooLarge):
		return failure(http.StatusRequestEntityTooLarge, "Body is larger than 1 MiB")
	case c.err != nil:
		return failure(http.StatusBadRequest, "Body is not a valid request: "+c.err.Error())
	case c.body == nil:
		return failure(http.StatusBadRequest, "Body is not a JSON object")
	case c.body.Title == "":
		return failure(http.StatusBadRequest, "title is required")
	case c.body.WorkspaceID == "":
		return failure(http.StatusBadRequest, "workspace_id is required")
	case c.body.WorkspaceID != c.entry.WorkspaceID:
		return failure(http.StatusForbidden, "workspace_id is not the workspace of X-Workspace-ID")
	}
	d := Dashboard{
		ID: uuid.NewString(), WorkspaceID: c.entry.WorkspaceID, TenantID: c.entry.TenantID,
		Title: c.entry.Title, Description: c.entry.Description, Mark: c.entry.Mark, CreatedAt: c.now,
	}
	s.dashboards = append(s.dashboards, d)
	c.entry.DashboardID = d.ID

	var data any = struct {
		DashboardID     string    `json:"dashboard_id"`
		Title           string    `json:"title"`
		Description     string    `json:"description"`
		WorkspaceID     string    `json:"workspace_id"`
		DashboardStatus string    `json:"dashboard_status"`
		IsPublic        bool      `json:"is_public"`
		CreatedBy       string    `json:"created_by"`
		CreatedAt       time.Time `json:"created_at"`
		ModifiedAt      time.Time `json:"modified_at"`
	}{d.ID, d.Title, d.Description, d.WorkspaceID, "active", false, "simulator", d.CreatedAt, d.CreatedAt}
	if s.nested {
		data = map[string]any{"data": data}
	}
	return success("Dashboard created successfully", data)
}

// checkSignature reports whether the four headers are right, and if not, what to answer. The answer
// does not distinguish an unknown key, an unknown workspace and a wrong signature.
func (s *Simulator) checkSignature(c *call) (answer, bool) {
	h := c.http.Header
	invalid := unauthorized("Invalid signature", "INVALID_SIGNATURE")
	text := h.Get("X-Valid-Until")
	until, err := strconv.ParseUint(text, 10, 63)
	if err != nil || len(text) != 10 {
		return invalid, false
	}
	secret, known := s.keys[c.entry.WorkspaceID][h.Get("X-API-Key-ID")]
	signature := papermap.Sign(secret, c.entry.WorkspaceID, int64(until))
	switch {
	case !known, !hmac.Equal([]byte(h.Get("X-Signature")), []byte(signature)):
		return invalid, false
	case int64(until) <= c.now.Unix():
		return unauthorized("Token expired", "TOKEN_EXPIRED"), false
	}
	return answer{}, true
}

// AddKey makes a key pair valid for a workspace. A pair without an id is ignored.
func (s *Simulator) AddKey(workspaceID string, k papermap.KeyPair) {
	if k.ID == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[workspaceID] == nil {
		s.keys[workspaceID] = map[string]papermap.Secret{}
	}
	s.keys[workspaceID][k.ID] = k.Secret
}

// RevokeKey makes a key id invalid in every workspace, for requests and for tokens that it signed.
func (s *Simulator) RevokeKey(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, keys := range s.keys {
		delete(keys, id)
	}
}

func success(message string, data any) answer {
	const form = `{"success":true,"message":"%s","data":%s}`
	return answer{status: http.StatusOK, body: fmt.Appendf(nil, form, message, marshal(data))}
}

func failure(status int, message string) answer {
	const form = `{"success":false,"message":%s,"status_code":%d}`
	return answer{status: status, body: fmt.Appendf(nil, form, appendQuoted(nil, message), status)}
}

func unauthorized(message, code string) answer {
	const form = `{"error":"%s","code":"%s","status":401}`
	return answer{status: http.StatusUnauthorized, body: fmt.Appendf(nil, form, message, code)}
}

// marshal encodes this package's own values. A header may have any bytes, hence the option.
func marshal(v any) []byte {
	text, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic(fmt.Sprintf("simulator: encoding %T: %v", v, err))
	}
	return text
}

// write sends the answer. Aborting the handler makes net/http close the connection without one.
func (a answer) write(w http.ResponseWriter) {
	if a.status == 0 {
		panic(http.ErrAbortHandler)
	}
	a.setHeader(w.Header())
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

func (a answer) setHeader(h http.Header) {
	h.Set("Content-Type", cmp.Or(a.contentType, "application/json"))
	if a.retryAfter != "" {
		h.Set("Retry-After", a.retryAfter)
	}
	if a.location != "" {
		h.Set("Location", a.location)
	}
}
