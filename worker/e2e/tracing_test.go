package e2e

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"papermap-worker/papermap/simulator"
	"papermap-worker/worker/workertest"
)

const collectorCanary = "CANARY of the collector"

// collector is an OTLP collector over HTTP, in this process.
type collector struct {
	url string

	mu    sync.Mutex
	bytes []byte // all that was exported
	spans []*tracepb.Span
	keys  map[string]bool // that came with it
	fail  int             // so many requests, with an answer that repeats what came
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{keys: map[string]bool{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request collectortrace.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &request)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.keys[r.Header.Get("Api-Key")] = true
		if c.fail > 0 || err != nil {
			c.fail--
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, r.Header, err)
			return
		}
		c.bytes = append(c.bytes, body...)
		for _, resource := range request.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// env are the settings of a program that exports to it.
func (c *collector) env() []string {
	return []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url,
		"OTEL_EXPORTER_OTLP_HEADERS=api-key=" + strings.ReplaceAll(collectorCanary, " ", "%20"),
		"OTEL_BSP_SCHEDULE_DELAY=50",
	}
}

// text is all that was exported.
func (c *collector) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.bytes)
}

// all are the spans of that name, in the order of their beginning; of every name if it is empty.
func (c *collector) all(name string) []*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*tracepb.Span
	for _, s := range c.spans {
		if name == "" || s.Name == name {
			list = append(list, s)
		}
	}
	slices.SortFunc(list,
		func(a, b *tracepb.Span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	return list
}

// await waits for so many spans of a name.
func (c *collector) await(t *testing.T, name string, count int) []*tracepb.Span {
	t.Helper()
	var list []*tracepb.Span
	eventually(t, func() error {
		if list = c.all(name); len(list) < count {
			return fmt.Errorf("%d spans %q, not %d", len(list), name, count)
		}
		return nil
	})
	return list
}

// tree writes the names of the spans below a parent (none: those of the roots) of a trace.
func (c *collector) tree(trace, parent []byte) string {
	var b strings.Builder
	var write func(parent []byte, indent string)
	write = func(parent []byte, indent string) {
		for _, s := range c.all("") {
			if string(s.TraceId) == string(trace) && string(s.ParentSpanId) == string(parent) {
				fmt.Fprintln(&b, indent+s.Name)
				write(s.SpanId, indent+"  ")
			}
		}
	}
	write(parent, "")
	return b.String()
}

const wholeTrace = `publish papermap.events.tenant.created
  process papermap.events.tenant.created
    transaction
      SELECT tenant_dashboards
      INSERT tenant_dashboards
      INSERT provision_attempts
    POST create
    transaction
      SELECT tenant_dashboards
      INSERT dashboard_owners
      UPDATE tenant_dashboards
      UPDATE provision_attempts
      INSERT outbox
    publish papermap.events.dashboard.created
`

// One trace goes from the publisher through the worker and its database, and on with the event out;
// what else the worker does makes no spans. Papermap does not hear of it, and no secret is in it.
// Lines of the log name it.
func TestTraceCoversPublishToActive(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t)
	var mu sync.Mutex
	secrets := map[string]string{"the key": secretCanary, "the collector's key": collectorCanary}
	forwarded := map[string][]string{}
	api, err := simulator.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		secrets["the signature of "+r.URL.Path] = r.Header.Get("X-Signature")
		for _, name := range []string{"Traceparent", "Tracestate", "Baggage"} {
			if r.Header.Get(name) != "" {
				forwarded[r.URL.Path] = append(forwarded[r.URL.Path], name)
			}
		}
		mu.Unlock()
		s.sim.ServeHTTP(w, r)
	}), "127.0.0.1:0")
	must(t, err)
	t.Cleanup(api.Close)
	js := s.jetStream(t)
	worker := start(t, append(append(s.env, c.env()...), "PAPERMAP_API_URL="+api.URL), "serve")
	cli := append(c.env(), "NATS_URL="+s.nats.URL())
	run(t, cli, "publish", "tenant-created", "org-1", "--name", "Confidential Ltd", "--event-id", "signup-1")
	dashboard := s.status(t, "org-1", "active")

	out := c.await(t, "publish papermap.events.dashboard.created", 1)[0]
	process := c.await(t, "process papermap.events.tenant.created", 1)[0]
	eventually(t, func() error {
		if diff := gocmp.Diff(wholeTrace, c.tree(process.TraceId, nil)); diff != "" {
			return fmt.Errorf("the trace differs:\n%s", diff)
		}
		return nil
	})
	if len(process.Links) > 0 || out.Status.GetCode() != tracepb.Status_STATUS_CODE_UNSET {
		t.Errorf("a first delivery has links %v, the event out status %v", process.Links, out.Status)
	}

	stored, err := js.Stream(t.Context(), "PAPERMAP")
	must(t, err)
	msg, err := stored.GetLastMsgForSubject(t.Context(), "papermap.events.dashboard.created")
	if want := fmt.Sprintf("00-%x-%x-01", out.TraceId, out.SpanId); err != nil ||
		msg.Header.Get("traceparent") != want {
		t.Errorf("the event out has traceparent %q, not %s (%v)", msg.Header.Get("traceparent"), want, err)
	}
	line := logged(t, worker, "created a dashboard")
	if line["trace_id"] != hex.EncodeToString(process.TraceId) ||
		line["span_id"] != hex.EncodeToString(process.SpanId) || line["event_id"] != "signup-1" {
		t.Errorf("the log says %v, and the span is %x of trace %x", line, process.SpanId, process.TraceId)
	}

	// Tokens: a span for a caller that traces its request, none for others, or they would be more than all
	// else.
	run(t, []string{"NATS_URL=" + s.nats.URL()}, "token", "org-1")
	var token struct {
		Token string `json:"token"`
	}
	must(t, json.Unmarshal([]byte(run(t, cli, "token", "org-1", "--json")), &token))
	secrets["a token"] = token.Token
	answer := c.await(t, "answer papermap.rpc.embed-token", 1)
	request := c.await(t, "request papermap.rpc.embed-token", 1)
	if len(answer) != 1 || len(request) != 1 || string(answer[0].ParentSpanId) != string(request[0].SpanId) {
		t.Errorf("answers %v, requests %v", answer, request)
	}
	line = logged(t, worker, "minted an embed token", hex.EncodeToString(answer[0].TraceId))
	if line["tenant_id"] != "org-1" {
		t.Errorf("the log says %v", line)
	}

	mu.Lock()
	defer mu.Unlock()
	for _, root := range c.all("") {
		if len(root.ParentSpanId) == 0 && root.Name != "publish papermap.events.tenant.created" &&
			root.Name != request[0].Name {
			t.Errorf("a trace begins with %q", root.Name)
		}
	}
	if len(forwarded) > 0 {
		t.Errorf("Papermap got headers of traces: %v", forwarded)
	}
	if !c.keys[collectorCanary] || len(c.keys) != 1 {
		t.Errorf("the collector got keys %v", c.keys)
	}
	secrets["a tenant's data"] = "Confidential"
	text := c.text()
	if !strings.Contains(text, "org-1") || strings.Contains(text, dashboard) {
		t.Error("the traces do not name the tenant, or quote what the database was given")
	}
	for what, secret := range secrets {
		for _, form := range workertest.FormsOf(secret) {
			if strings.Contains(text, string(form)) {
				t.Errorf("%s is in the traces, as %s", what, form)
			}
		}
	}
}

// logged waits for a line of the worker's log with that message and those texts in it.
func logged(t *testing.T, worker *process, message string, texts ...string) map[string]any {
	t.Helper()
	var found map[string]any
	eventually(t, func() error {
	lines:
		for line := range strings.SplitSeq(worker.text(), "\n") {
			for _, text := range append(texts, `"msg":"`+message) {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			return json.Unmarshal([]byte(line), &found)
		}
		return fmt.Errorf("the log does not say %q with %v", message, texts)
	})
	return found
}

// A request over REST continues its caller's trace, and what is published for it continues
// the request's; so do usage runs and what they publish.
func TestTraceCoversRESTAndUsageRuns(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t)
	s.jetStream(t)
	key := strings.Repeat("secret", 6)
	worker := start(t, append(append(s.env, c.env()...), "HTTP_JWT_SECRET="+key), "serve")
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"scope": "papermap:admin",
		"exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(key))
	must(t, err)
	address := worker.address(t)
	ready(t, address)
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for authorization, want := range map[string]int{"Bearer " + token: http.StatusCreated,
		"Bearer x": http.StatusUnauthorized} {
		request, err := http.NewRequest(http.MethodPost, "http://"+address+"/api/v1/dashboards",
			strings.NewReader(`{"tenant_id":"org-1","name":"One"}`))
		must(t, err)
		request.Header.Set("Authorization", authorization)
		request.Header.Set("traceparent", "00-"+traceID+"-"+spanID+"-01")
		answer, err := http.DefaultClient.Do(request)
		must(t, err)
		if answer.Body.Close(); answer.StatusCode != want {
			t.Errorf("status %d, want %d", answer.StatusCode, want)
		}
	}
	c.await(t, "POST /api/v1/dashboards", 2)
	c.await(t, "publish papermap.events.dashboard.created", 1)
	c.await(t, "process papermap.events.tenant.created", 1)
	id, _ := hex.DecodeString(traceID)
	parent, _ := hex.DecodeString(spanID)
	const request = "POST /api/v1/dashboards"
	tree := c.tree(id, parent)
	want := strings.TrimSpace(request + "\n  transaction\n    INSERT audit_log\n  " +
		strings.ReplaceAll(wholeTrace, "\n", "\n  "))
	polls := strings.Contains(tree, "\n  SELECT")
	if !strings.Contains(tree, want) || strings.Count(tree, request) != 2 || polls {
		t.Errorf("the requests' trace is\n%s", tree)
	}
	statuses := map[int64]tracepb.Status_StatusCode{}
	for _, span := range c.all(request) {
		for _, a := range span.Attributes {
			if a.Key == "http.response.status_code" {
				statuses[a.Value.GetIntValue()] = span.Status.GetCode()
			}
		}
	}
	if diff := gocmp.Diff(map[int64]tracepb.Status_StatusCode{201: 0, 401: 0}, statuses); diff != "" {
		t.Error(diff)
	}

	run(t, append(c.env(), "NATS_URL="+s.nats.URL()), "publish", "usage-sync")
	synced := c.await(t, "publish papermap.events.usage.synced", 1)[0]
	process := c.await(t, "process papermap.events.usage.sync", 1)[0]
	page := c.await(t, "GET usage", 1)[0]
	if string(synced.ParentSpanId) != string(process.SpanId) ||
		string(page.ParentSpanId) != string(process.SpanId) {
		t.Errorf("the run's trace is\n%s", c.tree(process.TraceId, nil))
	}
}

// What comes later than the first delivery begins a trace of its own, and links to where the event
// came from.
func TestTraceLinksRedeliveriesAndReplays(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t, "on=create status=500 count=1")
	js := s.jetStream(t)
	worker := start(t, append(s.env, c.env()...), "serve")
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	from := "00-" + traceID + "-" + spanID + "-01"
	publish := func(data string, header nats.Header) {
		t.Helper()
		msg := &nats.Msg{Subject: "papermap.events.tenant.created", Data: []byte(data), Header: header}
		_, err := js.PublishMsg(t.Context(), msg)
		must(t, err)
	}
	continues := func(what string, s *tracepb.Span, parent string) {
		t.Helper()
		if hex.EncodeToString(s.TraceId) != traceID || hex.EncodeToString(s.ParentSpanId) != parent ||
			len(s.Links) > 0 {
			t.Errorf("%s does not continue the trace: %v", what, s)
		}
	}
	links := func(what string, s *tracepb.Span, parent []byte) {
		t.Helper()
		if hex.EncodeToString(s.TraceId) == traceID || string(s.ParentSpanId) != string(parent) {
			t.Errorf("%s is in trace %x under %x", what, s.TraceId, s.ParentSpanId)
		}
		if len(s.Links) != 1 || hex.EncodeToString(s.Links[0].TraceId) != traceID ||
			hex.EncodeToString(s.Links[0].SpanId) != spanID {
			t.Errorf("%s has links %v", what, s.Links)
		}
	}
	const name = "process papermap.events.tenant.created"

	publish(`{"tenant_id":"org-1","name":"One"}`, nats.Header{"Traceparent": {from}})
	s.status(t, "org-1", "active")
	spans := c.await(t, name, 2)
	continues("the first delivery", spans[0], spanID)
	links("the redelivery", spans[1], nil)

	publish(`{"tenant_id":"org-2","name":"Two","workspace_id":"ws-nowhere"}`, nats.Header{
		"ce-specversion": {"1.0"}, "ce-id": {"e-2"}, "ce-source": {"/test"}, "ce-type": {"tenant.created"},
		"ce-traceparent": {from},
	})
	dead := c.await(t, name, 3)[2]
	continues("what became a dead letter", dead, spanID)
	if dead.Status.GetMessage() != "UNKNOWN_WORKSPACE" || len(dead.Events) != 1 ||
		dead.Events[0].Name != "dead letter stored" {
		t.Errorf("the span says %v, %v", dead.Status, dead.Events)
	}
	if line := logged(t, worker, "event became a dead letter"); line["trace_id"] != traceID ||
		line["event_id"] != "e-2" {
		t.Errorf("the log says %v", line)
	}

	cli := []string{"NATS_URL=" + s.nats.URL()}
	run(t, append(c.env(), cli...), "dead", "replay", "--all")
	replay := c.await(t, "publish papermap.events.tenant.created", 1)[0]
	links("the replay", replay, nil)
	links("what handles the replay", c.await(t, name, 4)[3], replay.SpanId)

	// once it is a dead letter again; without tracing, the link is kept
	prints(t, "e-2", cli, "dead", "replay", "--all")
	links("what handles the second replay", c.await(t, name, 5)[4], nil)

	// its dead letter links to the span that made it one
	publish(`{"tenant_id":"org-3","name":"Three","workspace_id":"ws-nowhere"}`, nil)
	first := c.await(t, name, 6)[5]
	if len(first.ParentSpanId)+len(first.Links) > 0 {
		t.Errorf("an event without a trace has %v", first)
	}
	prints(t, "replayed", cli, "dead", "replay", "--tenant", "org-3")
	eventually(t, func() error {
		for _, s := range c.all(name) {
			if len(s.Links) == 1 && string(s.Links[0].SpanId) == string(first.SpanId) {
				return nil
			}
		}
		return fmt.Errorf("no span links to %x", first.SpanId)
	})
}

// A collector that cannot be reached, or refuses, costs spans and a line in the log, and no work.
func TestTraceCollectorIsNotRequired(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t)
	c.fail = 1 << 20
	worker := start(t, append(s.env, c.env()...), "serve")
	publishCreated(t, s.jetStream(t), "org-1")
	s.status(t, "org-1", "active")
	line := logged(t, worker, "cannot export traces")
	if text, _ := line["error"].(string); !strings.Contains(text, "400 Bad Request") {
		t.Errorf("the log says %v", line)
	}
	worker.stop(t)
	if n := strings.Count(worker.text(), "cannot export traces"); n != 1 ||
		strings.Contains(worker.text(), "CANARY") {
		t.Errorf("the log says it %d times: %s", n, worker.text())
	}
}
