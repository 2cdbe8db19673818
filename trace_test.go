package main

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
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"papermap-worker/papermap/simulator"
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

// env are the settings of who exports to it.
func (c *collector) env() []string {
	return []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_EXPORTER_OTLP_HEADERS=api-key=" + strings.ReplaceAll(collectorCanary, " ", "%20"),
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
	slices.SortFunc(list, func(a, b *tracepb.Span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	return list
}

// await waits for so many spans of a name.
func (c *collector) await(t *testing.T, name string, count int) []*tracepb.Span {
	t.Helper()
	var list []*tracepb.Span
	eventually(t, 20*time.Second, func() error {
		if list = c.all(name); len(list) < count {
			return fmt.Errorf("%d spans %q, not %d", len(list), name, count)
		}
		return nil
	})
	return list
}

// tree writes the spans below a parent (none: those of the roots) of a trace, with their times if asked.
func (c *collector) tree(trace, parent []byte, times bool) string {
	var b strings.Builder
	var write func(parent []byte, indent string)
	write = func(parent []byte, indent string) {
		for _, s := range c.all("") {
			if string(s.TraceId) != string(trace) || string(s.ParentSpanId) != string(parent) {
				continue
			}
			fmt.Fprint(&b, indent, s.Name)
			if times {
				fmt.Fprintf(&b, "  %.1f ms", float64(s.EndTimeUnixNano-s.StartTimeUnixNano)/1e6)
				for _, e := range s.Events {
					fmt.Fprintf(&b, "  [%s]", e.Name)
				}
			}
			fmt.Fprintln(&b)
			write(s.SpanId, indent+"  ")
		}
	}
	write(parent, "")
	return b.String()
}

const wholeTrace = `publish papermap.events.tenant.created
  process papermap.events.tenant.created
    transaction
      SELECT tenant_dashboards
      INSERT provision_attempts
      INSERT tenant_dashboards
    POST create
    transaction
      SELECT tenant_dashboards
      SELECT provision_attempts
      UPDATE tenant_dashboards
      UPDATE provision_attempts
      INSERT outbox
    publish papermap.events.dashboard.created
`

// One trace goes from the publisher through the worker and its database, and on with the event out; what else the worker
// does makes no spans. Papermap is not told of it, and no secret is in it. Lines of the log name it.
func TestOneTraceGoesFromPublishToActive(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t)
	var mu sync.Mutex
	secrets := map[string]string{"the key": secretCanary, "the collector's key": collectorCanary}
	told := map[string][]string{}
	api, err := simulator.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		secrets["the signature of "+r.URL.Path] = r.Header.Get("X-Signature")
		for _, name := range []string{"Traceparent", "Tracestate", "Baggage"} {
			if r.Header.Get(name) != "" {
				told[r.URL.Path] = append(told[r.URL.Path], name)
			}
		}
		mu.Unlock()
		s.sim.ServeHTTP(w, r)
	}), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	js := s.jetStream(t)
	worker := start(t, append(append(s.env, c.env()...), "PAPERMAP_API_URL="+api.URL), "serve")
	cli := append(c.env(), "NATS_URL="+s.nats.URL())
	if p := start(t, cli, "publish", "tenant-created", "org-1", "--name", "Confidential Ltd", "--event-id", "signup-1"); p.wait(t, 10*time.Second) != 0 {
		t.Fatal(p.text())
	}
	dashboard := s.status(t, s.openSQL(t), "org-1", "active")

	out := c.await(t, "publish papermap.events.dashboard.created", 1)[0]
	process := c.await(t, "process papermap.events.tenant.created", 1)[0]
	eventually(t, 10*time.Second, func() error {
		if diff := gocmp.Diff(wholeTrace, c.tree(process.TraceId, nil, false)); diff != "" {
			return fmt.Errorf("the trace differs:\n%s", diff)
		}
		return nil
	})
	t.Logf("trace %x\n%s", process.TraceId, c.tree(process.TraceId, nil, true))
	if len(process.Links) > 0 || out.Status.GetCode() != tracepb.Status_STATUS_CODE_UNSET {
		t.Errorf("a first delivery has links %v, the event out status %v", process.Links, out.Status)
	}

	stored, err := js.Stream(t.Context(), "PAPERMAP")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stored.GetLastMsgForSubject(t.Context(), "papermap.events.dashboard.created")
	if want := fmt.Sprintf("00-%x-%x-01", out.TraceId, out.SpanId); err != nil || msg.Header.Get("traceparent") != want {
		t.Errorf("the event out has traceparent %q, not %s (%v)", msg.Header.Get("traceparent"), want, err)
	}
	if line := logged(t, worker, "created a dashboard"); line["trace_id"] != hex.EncodeToString(process.TraceId) ||
		line["span_id"] != hex.EncodeToString(process.SpanId) || line["event_id"] != "signup-1" {
		t.Errorf("the log says %v, and the span is %x of trace %x", line, process.SpanId, process.TraceId)
	}

	// Tokens: a span for who traces its request, none for others, or they would be more than all else.
	if p := start(t, []string{"NATS_URL=" + s.nats.URL()}, "token", "org-1"); p.wait(t, 10*time.Second) != 0 {
		t.Fatal(p.text())
	}
	asked := start(t, cli, "token", "org-1", "--json")
	if asked.wait(t, 10*time.Second) != 0 {
		t.Fatal(asked.text())
	}
	var token struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(asked.text()), &token); err != nil {
		t.Fatal(err)
	}
	secrets["a token"] = token.Token
	answer := c.await(t, "answer papermap.rpc.embed-token", 1)
	request := c.await(t, "request papermap.rpc.embed-token", 1)
	if len(answer) != 1 || len(request) != 1 || string(answer[0].ParentSpanId) != string(request[0].SpanId) {
		t.Errorf("answers %v, requests %v", answer, request)
	}
	if line := logged(t, worker, "minted an embed token", hex.EncodeToString(answer[0].TraceId)); line["tenant_id"] != "org-1" {
		t.Errorf("the log says %v", line)
	}

	mu.Lock()
	defer mu.Unlock()
	for _, root := range c.all("") {
		if len(root.ParentSpanId) == 0 && root.Name != "publish papermap.events.tenant.created" && root.Name != request[0].Name {
			t.Errorf("a trace begins with %q", root.Name)
		}
	}
	if len(told) > 0 {
		t.Errorf("Papermap was told of traces: %v", told)
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
		for _, form := range formsOf(secret) {
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
	eventually(t, 10*time.Second, func() error {
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

// A request over REST goes on with its caller's trace, and what is published for it goes on with the request's; so do usage
// runs and what they publish.
func TestRESTAndUsageRunsAreTracedThrough(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t)
	s.jetStream(t)
	key := strings.Repeat("secret", 6)
	worker := start(t, append(append(s.env, c.env()...), "HTTP_JWT_SECRET="+key), "serve")
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"scope": "papermap:admin", "exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	address := worker.address(t)
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for authorization, want := range map[string]int{"Bearer " + token: http.StatusCreated, "Bearer x": http.StatusUnauthorized} {
		request, err := http.NewRequest(http.MethodPost, "http://"+address+"/api/v1/dashboards", strings.NewReader(`{"tenant_id":"org-1","name":"One"}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", authorization)
		request.Header.Set("traceparent", "00-"+traceID+"-"+spanID+"-01")
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
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
	tree := c.tree(id, parent, false)
	if want := request + "\n  " + strings.ReplaceAll(wholeTrace, "\n", "\n  "); !strings.Contains(tree, strings.TrimSpace(want)) || strings.Count(tree, request) != 2 ||
		strings.Contains(tree, "\n  SELECT") { // of the polls
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

	if p := start(t, append(c.env(), "NATS_URL="+s.nats.URL()), "publish", "usage-sync"); p.wait(t, 10*time.Second) != 0 {
		t.Fatal(p.text())
	}
	synced := c.await(t, "publish papermap.events.usage.synced", 1)[0]
	process := c.await(t, "process papermap.events.usage.sync", 1)[0]
	page := c.await(t, "GET usage", 1)[0]
	if string(synced.ParentSpanId) != string(process.SpanId) || string(page.ParentSpanId) != string(process.SpanId) {
		t.Errorf("the run's trace is\n%s", c.tree(process.TraceId, nil, false))
	}
}

// What comes later than the first delivery begins a trace of its own, and links to where the event came from.
func TestRedeliveriesAndReplaysLinkToTheFirstTrace(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t, simulator.Fault{On: "create", Status: 500, Count: 1})
	js := s.jetStream(t)
	worker := start(t, append(s.env, c.env()...), "serve")
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	from := "00-" + traceID + "-" + spanID + "-01"
	publish := func(data string, header nats.Header) {
		t.Helper()
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "papermap.events.tenant.created", Data: []byte(data), Header: header}, jetstream.WithExpectStream("PAPERMAP")); err != nil {
			t.Fatal(err)
		}
	}
	continues := func(what string, s *tracepb.Span, parent string) {
		t.Helper()
		if hex.EncodeToString(s.TraceId) != traceID || hex.EncodeToString(s.ParentSpanId) != parent || len(s.Links) > 0 {
			t.Errorf("%s does not go on with the trace: %v", what, s)
		}
	}
	links := func(what string, s *tracepb.Span, parent []byte) {
		t.Helper()
		if hex.EncodeToString(s.TraceId) == traceID || string(s.ParentSpanId) != string(parent) {
			t.Errorf("%s is in trace %x under %x", what, s.TraceId, s.ParentSpanId)
		}
		if len(s.Links) != 1 || hex.EncodeToString(s.Links[0].TraceId) != traceID || hex.EncodeToString(s.Links[0].SpanId) != spanID {
			t.Errorf("%s has links %v", what, s.Links)
		}
	}
	const name = "process papermap.events.tenant.created"

	publish(`{"tenant_id":"org-1","name":"One"}`, nats.Header{"Traceparent": {from}})
	s.status(t, s.openSQL(t), "org-1", "active")
	spans := c.await(t, name, 2)
	continues("the first delivery", spans[0], spanID)
	links("the redelivery", spans[1], nil)

	publish(`{"tenant_id":"org-2","name":"Two","workspace_id":"ws-nowhere"}`, nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e-2"}, "ce-source": {"/test"}, "ce-type": {"tenant.created"}, "ce-traceparent": {from}})
	dead := c.await(t, name, 3)[2]
	continues("what became a dead letter", dead, spanID)
	if dead.Status.GetMessage() != "UNKNOWN_WORKSPACE" || len(dead.Events) != 1 || dead.Events[0].Name != "dead letter stored" {
		t.Errorf("the span says %v, %v", dead.Status, dead.Events)
	}
	if line := logged(t, worker, "event became a dead letter"); line["trace_id"] != traceID || line["event_id"] != "e-2" {
		t.Errorf("the log says %v", line)
	}

	cli := []string{"NATS_URL=" + s.nats.URL()}
	if p := start(t, append(c.env(), cli...), "dead", "replay", "--all"); p.wait(t, 10*time.Second) != 0 {
		t.Fatal(p.text())
	}
	replay := c.await(t, "publish papermap.events.tenant.created", 1)[0]
	links("the replay", replay, nil)
	links("what handles the replay", c.await(t, name, 4)[3], replay.SpanId)

	eventually(t, 10*time.Second, func() error { // once it is a dead letter again; without tracing, the link is kept
		if p := start(t, cli, "dead", "replay", "--all"); p.wait(t, 10*time.Second) != 0 || !strings.Contains(p.text(), "e-2") {
			return fmt.Errorf("nothing was replayed: %s", p.text())
		}
		return nil
	})
	links("what handles the second replay", c.await(t, name, 5)[4], nil)

	publish(`{"tenant_id":"org-3","name":"Three","workspace_id":"ws-nowhere"}`, nil) // its dead letter links to the span that made it one
	first := c.await(t, name, 6)[5]
	if len(first.ParentSpanId)+len(first.Links) > 0 {
		t.Errorf("an event without a trace has %v", first)
	}
	eventually(t, 10*time.Second, func() error {
		if p := start(t, cli, "dead", "replay", "--tenant", "org-3"); p.wait(t, 10*time.Second) != 0 || !strings.Contains(p.text(), "replayed") {
			return fmt.Errorf("nothing was replayed: %s", p.text())
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		for _, s := range c.all(name) {
			if len(s.Links) == 1 && string(s.Links[0].SpanId) == string(first.SpanId) {
				return nil
			}
		}
		return fmt.Errorf("no span links to %x", first.SpanId)
	})
}

// OpenTelemetry's library would tell a mistake to stderr, with its value, and go on. Without an endpoint nothing is judged:
// the variables are others' too.
func TestTracingSettingsAreJudged(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	names := map[string]struct{ right, wrong []string }{
		endpoint: {
			[]string{"http://collector:4318", "https://h/base"},
			[]string{"collector:4318", "grpc://h", "https://", "https://u:CANARY@h", "https://h?key=CANARY", "http://h:port"},
		},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT":    {[]string{"http://h/v1/traces"}, []string{"h"}},
		"OTEL_EXPORTER_OTLP_HEADERS":            {[]string{"api-key=CANARY", "a=1, b=x%20y"}, []string{"CANARY", "a b=CANARY", "a=%zCANARY"}},
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":     {[]string{"a="}, []string{"=CANARY"}},
		"OTEL_EXPORTER_OTLP_PROTOCOL":           {[]string{"http/protobuf", "http/json"}, []string{"grpc"}},
		"OTEL_EXPORTER_OTLP_TIMEOUT":            {[]string{"5000"}, []string{"5s", "0"}},
		"OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": {[]string{"trace_test.go"}, []string{"/nowhere"}},
		"OTEL_TRACES_EXPORTER":                  {[]string{"otlp"}, []string{"zipkin"}},
		"OTEL_TRACES_SAMPLER":                   {[]string{"always_off", "parentbased_traceidratio"}, []string{"jaeger_remote"}},
		"OTEL_RESOURCE_ATTRIBUTES":              {[]string{"deployment.environment.name=prod,a=b"}, []string{"prod"}},
		"OTEL_SERVICE_NAME":                     {[]string{"any"}, nil},
		"OTEL_SDK_DISABLED":                     {[]string{"false"}, nil},
		"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY":  {nil, []string{"/nowhere"}},
		"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": {nil, []string{"/nowhere"}},
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL":    {nil, []string{"http"}},
		"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT":     {nil, []string{"-1"}},
	}
	judge := func(settings ...string) (bool, problems) {
		for name := range names {
			t.Setenv(name, "")
		}
		t.Setenv("OTEL_TRACES_SAMPLER_ARG", "")
		for i := 0; i < len(settings); i += 2 {
			t.Setenv(settings[i], settings[i+1])
		}
		unsetEmpty()
		var p problems
		return p.tracing(), p
	}
	for name, values := range names {
		for _, value := range values.right {
			if on, p := judge(endpoint, "http://h", name, value); !on || len(p) > 0 {
				t.Errorf("%s=%s: %v, %v", name, value, on, p)
			}
		}
		for _, value := range values.wrong {
			if _, p := judge(endpoint, "http://h", name, value); len(p) != 1 || !strings.HasPrefix(p[0], name+": ") || strings.Contains(p[0], "CANARY") {
				t.Errorf("%s=%s: %q, want one problem that names the variable", name, value, p)
			}
			if name == endpoint || strings.HasSuffix(name, "TRACES_ENDPOINT") {
				continue
			}
			for _, off := range []string{"", "OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none"} {
				settings := []string{name, value}
				if switchName, to, ok := strings.Cut(off, "="); ok {
					settings = append(settings, endpoint, "http://h", switchName, to)
				}
				if on, p := judge(settings...); on || len(p) > 0 {
					t.Errorf("%s=%s with %q: %v, %v", name, value, off, on, p)
				}
			}
		}
	}
	if _, p := judge(endpoint, "http://h", "OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG", "2"); len(p) != 1 {
		t.Errorf("a ratio of 2: %q", p)
	}
}

// A collector that cannot be reached, or refuses, costs spans and a line in the log, and no work.
func TestWorkGoesOnWithoutItsCollector(t *testing.T) {
	t.Parallel()
	c, s := newCollector(t), newSystem(t)
	c.fail = 1 << 20
	worker := start(t, append(s.env, c.env()...), "serve")
	publishCreated(t, s.jetStream(t), "org-1")
	s.status(t, s.openSQL(t), "org-1", "active")
	line := logged(t, worker, "cannot export traces")
	if text, _ := line["error"].(string); !strings.Contains(text, "400 Bad Request") {
		t.Errorf("the log says %v", line)
	}
	worker.signal(t, syscall.SIGTERM)
	if code := worker.wait(t, 10*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := strings.Count(worker.text(), "cannot export traces"); n != 1 || strings.Contains(worker.text(), "CANARY") {
		t.Errorf("the log says it %d times: %s", n, worker.text())
	}
}
