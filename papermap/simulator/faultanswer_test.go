package simulator

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"papermap-worker/papermap"
)

func TestFaultIsWhatAClientSees(t *testing.T) {
	const expired = `{"error":"Token expired","code":"TOKEN_EXPIRED","status":401}`
	for _, c := range []struct {
		fault  string
		status int    // 0: no answer, the connection was closed
		body   string // exact; "*" for any
		header map[string]string
		made   bool // the dashboard is there
	}{
		{"status=503", 503,
			`{"success":false,"message":"Simulated fault: Service Unavailable","status_code":503}`,
			map[string]string{"Retry-After": ""}, false},
		{"status=503 retry-after=1", 503, "*", map[string]string{"Retry-After": "1",
			"Content-Type": "application/json"}, false},
		{`status=429 retry-after="Wed, 21 Oct 2015 07:28:00 GMT"`, 429, "*",
			map[string]string{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, false},
		{"status=500 effect=true", 500, "*", nil, true},
		{"status=200", 200, "", nil, false},
		{"status=200 effect=true", 200, "", nil, true},
		{"status=204 effect=true", 204, "", nil, true},
		{"status=302", 302, "", map[string]string{"Location": createPath}, false},
		{`status=502 body="<h1>Bad gateway</h1>" content-type=text/html`, 502, "<h1>Bad gateway</h1>",
			map[string]string{"Content-Type": "text/html"}, false},
		{`body={"success":false} effect=true`, 200, `{"success":false}`, nil, true},
		{"status=401 body=`" + expired + "`", 401, expired, nil, false},
		{"drop=before", 0, "", nil, false},
		{`bom=true body={"a":1}`, 200, "\ufeff{\"a\":1}", nil, false},
		{"bom=true status=204", 204, "", nil, false},
		{"interim=true status=500 effect=true", 500, "*", nil, true},
		{"drop=after", 0, "", nil, true},
		{"on=usage status=500", 200, "*", nil, true},
		{"on=create status=500", 500, "*", nil, false},
		{"tenant=org-2 status=500", 200, "*", nil, true},
		{"tenant=org-1 status=500", 500, "*", nil, false},
		{"title=Acme status=500", 500, "*", nil, false},
		{"title=acme status=500", 200, "*", nil, true},
	} {
		t.Run(c.fault, func(t *testing.T) {
			f, err := ParseFault(c.fault)
			if err != nil {
				t.Fatal(err)
			}
			s, address := start(t, Options{Faults: []Fault{f}})
			h := good()
			h.Set("X-Tenant-ID", "org-1")
			r := send("POST", address+createPath, h, createText("Dashboard - Acme", ""))
			if c.status == 0 {
				if !errors.Is(r.err, io.EOF) {
					t.Errorf("got status %d and error %v, want EOF", r.status, r.err)
				}
			} else if r.err != nil || r.status != c.status || c.body != "*" && r.body != c.body {
				t.Errorf("got %d %q (%v), want %d %q", r.status, r.body, r.err, c.status, c.body)
			}
			for name, want := range c.header {
				if got := r.header.Get(name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			if made := len(s.Dashboards()) == 1; made != c.made {
				t.Errorf("dashboard made: %v, want %v", made, c.made)
			}
			e := s.Log()[0]
			if e.Status != c.status || (e.DashboardID != "") != c.made {
				t.Errorf("logged %+v", e)
			}
		})
	}
}

func TestTruncatedAnswerEndsInTheMiddleOfItsBody(t *testing.T) {
	s, address := start(t, Options{Faults: []Fault{{Truncate: true}}})
	r := send("POST", address+createPath, good(), createText("T", ""))
	if r.status != 200 || !errors.Is(r.err, io.ErrUnexpectedEOF) ||
		!strings.HasPrefix(r.body, `{"success":true`) {
		t.Fatalf("got %d %q and error %v, want half of an answer", r.status, r.body, r.err)
	}
	s.SetFaults()
	whole := send("POST", address+createPath, good(), createText("T", ""))
	if whole.err != nil || len(r.body) != len(whole.body)/2 {
		t.Errorf("got %d bytes of %d (%v), want half", len(r.body), len(whole.body), whole.err)
	}
	if n := len(s.Dashboards()); n != 2 {
		t.Errorf("%d dashboards, want both", n)
	}
}

func TestDelayedAnswerIsLoggedBeforeTheWaitAndDroppedWithItsClient(t *testing.T) {
	request := func(ctx context.Context) *http.Request {
		q := httptest.NewRequestWithContext(ctx, "POST", createPath, strings.NewReader(createText("T", "")))
		q.Header = good()
		return q
	}
	for _, leave := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newSimulator(Options{Faults: []Fault{{Delay: time.Hour}}})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			start, done := time.Now(), make(chan time.Duration, 1)
			go func() {
				s.ServeHTTP(httptest.NewRecorder(), request(ctx))
				done <- time.Since(start)
			}()
			synctest.Wait()
			if len(s.Dashboards()) != 1 || len(s.Log()) != 1 || len(done) != 0 {
				t.Errorf("during the wait: %d dashboards, %d entries, answered: %v", len(s.Dashboards()),
					len(s.Log()), len(done) == 1)
			}
			want := time.Hour
			if leave {
				cancel()
				want = 0
			}
			if took := <-done; took != want {
				t.Errorf("client left %v: took %v, want %v", leave, took, want)
			}
		})
	}
}

func TestClientClassifiesEachFaultInBoundedMemory(t *testing.T) {
	const lost, slow = "longer than 8388608 bytes", "not done within 10s"
	for fault, c := range map[string]struct {
		create, usage papermap.Class
		message       string // of usage
	}{
		"header-delay=3s":  {papermap.Unknown, papermap.Retryable, slow},
		"header-delay=1h":  {papermap.Unknown, papermap.Retryable, slow},
		"header-delay=1ms": {"", "", ""},
		"header-bytes=1048576": {papermap.Unknown, papermap.Retryable,
			"headers are longer"},
		"header-bytes=1000":                   {"", "", ""},
		"endless=true":                        {papermap.Unknown, papermap.Retryable, lost},
		"endless=true status=400 body=broken": {papermap.Refused, papermap.Refused, "Bad Request: broken"},
		"bomb=true":                           {papermap.Unknown, papermap.Retryable, lost},
		"bomb=true status=500": {papermap.Unknown, papermap.Retryable,
			"Internal Server Error"},
		"delay=1h": {papermap.Unknown, papermap.Retryable, slow},
	} {
		t.Run(fault, func(t *testing.T) {
			f, err := ParseFault(fault)
			if err != nil {
				t.Fatal(err)
			}
			call := func(what string, want papermap.Class, message string, do clientCall) {
				synctest.Test(t, func(t *testing.T) {
					client := pipedClient(t, newSimulator(Options{Faults: []Fault{f}}))
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					err := do(t.Context(), client)
					runtime.ReadMemStats(&after)
					if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 {
						t.Errorf("%s: client and simulator allocated %d MiB", what, grown>>20)
					}
					var e *papermap.Error
					if want == "" {
						if err != nil {
							t.Errorf("%s: %v", what, err)
						}
					} else if !errors.As(err, &e) || e.Class != want ||
						!strings.Contains(e.Message, message) {
						t.Errorf("%s: %v, want %s: …%s…", what, err, want, message)
					}
				})
			}
			call("create", c.create, "", func(ctx context.Context, client *papermap.Client) error {
				_, err := client.CreateDashboard(ctx, papermap.NewDashboard{TenantID: "t", Title: "T"})
				return err
			})
			call("usage", c.usage, c.message, func(ctx context.Context, client *papermap.Client) error {
				_, err := client.Usage(ctx, papermap.UsageQuery{Page: 1, PerPage: 100})
				return err
			})
		})
	}
}

// pipedClient returns a client of s over connections in memory, so that a synctest bubble's clock
// runs. It tries once in a call.
func pipedClient(t *testing.T, s *Simulator) *papermap.Client {
	listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	t.Cleanup(serve(s, listener).Close)
	client := papermap.NewClient(papermap.Workspace{ID: "ws-a", APIURL: "http://papermap.test", Key: apiKey},
		papermap.ClientOptions{
			Now: func() time.Time { return epoch }, Dial: listener.dial,
			Limiter: rate.NewLimiter(rate.Every(time.Hour), 1),
		})
	t.Cleanup(client.Close)
	return client
}

type clientCall = func(context.Context, *papermap.Client) error
