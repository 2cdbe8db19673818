package papermap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

const created = `{"success":true,"message":"ok","data":{"dashboard_id":"dash-1","title":"ignored"}}`

var anyDashboard = NewDashboard{TenantID: "org-1", Title: "Dashboard - Acme"}

// newTestClient tries once in a call: its first retry would come too late.
func newTestClient(t *testing.T, address string, o ClientOptions) *Client {
	t.Helper()
	c := NewClient(Workspace{
		ID: "ws-1", APIURL: address,
		Key:      KeyPair{ID: "ak_canary_id", Secret: NewSecret("sk_canary_secret")},
		EmbedKey: KeyPair{ID: "ak_embed", Secret: NewSecret("sk_canary_embed")},
	}, o)
	c.firstWait = time.Hour
	t.Cleanup(c.Close)
	return c
}

// serve runs handler and counts the requests that it has seen.
func serve(t *testing.T, handler http.HandlerFunc) (address string, seen *atomic.Int64) {
	t.Helper()
	seen = new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		handler(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, seen
}

// serveRaw gives handle each connection, and counts the requests that it reads with next.
func serveRaw(t *testing.T, handle func(conn *net.TCPConn, next func() bool)) (address string, seen *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	seen = new(atomic.Int64)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				reader := bufio.NewReader(conn)
				handle(conn.(*net.TCPConn), func() bool {
					req, err := http.ReadRequest(reader)
					if err != nil {
						return false
					}
					_, err = io.Copy(io.Discard, req.Body)
					seen.Add(1)
					return err == nil
				})
			}()
		}
	}()
	return "http://" + listener.Addr().String(), seen
}

func answerRaw(conn net.Conn, body string) {
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// failed is err as the *Error that every call promises; nil stays nil.
func failed(t *testing.T, err error) *Error {
	t.Helper()
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is no *Error: %v", err, err)
	}
	return e
}

func classOf(t *testing.T, err error) Class {
	t.Helper()
	if e := failed(t, err); e != nil {
		return e.Class
	}
	return ""
}

func TestCreateSendsTheDocumentedRequest(t *testing.T) {
	now := time.Unix(1735689600, 0)
	tenant := "org-é.日本🔑 ~" + "\u00a0x"
	address, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		want := map[string]string{
			"X-API-Key-ID": "ak_canary_id", "X-Workspace-ID": "ws-1", "X-Valid-Until": "1735689900",
			"X-Signature": Sign(NewSecret("sk_canary_secret"), "ws-1", 1735689900), "X-Tenant-ID": tenant,
			"Content-Type": "application/json", "User-Agent": "papermap-worker/test", "Idempotency-Key": "", "X-Idempotency-Key": "",
		}
		for name, value := range want {
			if got := r.Header.Get(name); got != value {
				t.Errorf("%s is %q, want %q", name, got, value)
			}
		}
		if got := r.Method + " " + r.RequestURI; got != "POST /api/v1/external/dashboards" {
			t.Errorf("request is %s", got)
		}
		_, _ = io.WriteString(w, created)
	})
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return now }, UserAgent: "papermap-worker/test"})
	got, err := c.CreateDashboard(t.Context(), NewDashboard{TenantID: tenant, Title: "Dashboard - Acme"})
	if want := (Dashboard{ID: "dash-1", Title: "Dashboard - Acme", Status: 200}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestCreateBodyHasNoHTMLEscapesAndNoEmptyDescription(t *testing.T) {
	bodies := make(chan string, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
		_, _ = io.WriteString(w, created)
	}))
	defer srv.Close()
	c := newTestClient(t, srv.URL, ClientOptions{})
	for description, want := range map[string]string{
		"":        `{"workspace_id":"ws-1","title":"<Acme> & \"Söhne\""}`,
		"pmw:1>2": `{"workspace_id":"ws-1","title":"<Acme> & \"Söhne\"","description":"pmw:1>2"}`,
	} {
		if _, err := c.CreateDashboard(t.Context(), NewDashboard{TenantID: "t", Title: `<Acme> & "Söhne"`, Description: description}); err != nil {
			t.Fatal(err)
		}
		if got := <-bodies; got != want {
			t.Errorf("body %s, want %s", got, want)
		}
	}
	_, err := c.CreateDashboard(t.Context(), NewDashboard{Title: "\xff"})
	if classOf(t, err) != Refused || len(bodies) != 0 {
		t.Errorf("a title that is not UTF-8: %v, %d requests", err, len(bodies))
	}
}

func TestProbeReadsOneUsageRowOfTheEscapedWorkspace(t *testing.T) {
	address, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if got, want := r.Method+" "+r.RequestURI, "GET /base/api/v1/external/workspaces/a%2Fb%20%3F%C3%BC/tenant-usage?per_page=1"; got != want {
			t.Errorf("request is %s, want %s", got, want)
		}
		if r.Header.Get("X-Signature") == "" || r.Header.Get("X-Tenant-ID") != "" || r.Header.Get("Content-Type") != "" || r.ContentLength != 0 || r.TransferEncoding != nil {
			t.Errorf("headers %v", r.Header)
		}
	})
	c := newTestClient(t, address+"/base", ClientOptions{})
	c.ws.ID = "a/b ?ü"
	if err := c.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAddressThatIsNoURLIsAConfigurationErrorAndNotQuoted(t *testing.T) {
	err := newTestClient(t, "https://user:canary@[::1", ClientOptions{}).Probe(t.Context())
	if classOf(t, err) != Configuration || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
}

func TestEndedContextIsRetryableBeforeAByteAndUnknownAfter(t *testing.T) {
	arrived := make(chan struct{})
	address, seen := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	c := newTestClient(t, address, ClientOptions{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.CreateDashboard(ended, anyDashboard)
	if classOf(t, err) != Retryable || classOf(t, c.Probe(ended)) != Retryable || seen.Load() != 0 {
		t.Errorf("before: %v, %d requests", err, seen.Load())
	}
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if _, err := c.CreateDashboard(late, anyDashboard); classOf(t, err) != Retryable || seen.Load() != 0 {
		t.Errorf("past its deadline: %v, %d requests", err, seen.Load())
	}
	for _, want := range []Class{Unknown, Retryable} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		if want == Unknown {
			_, err = c.CreateDashboard(ctx, anyDashboard)
		} else {
			err = c.Probe(ctx)
		}
		if classOf(t, err) != want {
			t.Errorf("after: %v, want %s", err, want)
		}
		cancel()
	}
}

// read is a call that may be tried again after any failure.
var read = request{route: "usage", method: http.MethodGet, path: "/", maxBody: maxUsageBody}

func TestRetryInsideACall(t *testing.T) {
	for _, row := range []struct {
		name            string
		reads           bool          // else it creates
		firstWait, left time.Duration // left: until the context's deadline; 0 means none
		retryAfter      string
		status          int // of the first two answers, then 200
		want            Class
		requests        int64
	}{
		{"a read", true, time.Millisecond, 0, "", 500, "", 3},
		{"backoff longer than the budget", true, time.Hour, 0, "", 500, Retryable, 1},
		{"backoff longer than the context", true, 2 * time.Second, 700 * time.Millisecond, "", 500, Retryable, 1},
		{"deferral without a time", false, time.Millisecond, 0, "", 429, Retryable, 1},
		{"deferral for a second", false, time.Millisecond, 0, "1", 503, Retryable, 1},
		{"deferral of a read", true, time.Millisecond, 0, "1", 429, Retryable, 1},
		{"unknown", false, time.Millisecond, 0, "", 500, Unknown, 1},
		{"credentials", false, time.Millisecond, 0, "", 401, Credentials, 1},
		{"configuration", false, time.Millisecond, 0, "", 404, Configuration, 1},
		{"refused", false, time.Millisecond, 0, "", 400, Refused, 1},
	} {
		var seen *atomic.Int64
		address, seen := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if seen.Load() > 2 {
				_, _ = io.WriteString(w, created)
				return
			}
			if row.retryAfter != "" {
				w.Header().Set("Retry-After", row.retryAfter)
			}
			w.WriteHeader(row.status)
		})
		c := newTestClient(t, address, ClientOptions{})
		c.firstWait = row.firstWait
		ctx := t.Context()
		if row.left > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, row.left)
			defer cancel()
		}
		began := time.Now()
		var err error
		if row.reads {
			if failed := c.call(ctx, read); failed != nil {
				err = failed
			}
		} else {
			_, err = c.CreateDashboard(ctx, anyDashboard)
		}
		if classOf(t, err) != row.want || seen.Load() != row.requests || time.Since(began) > 600*time.Millisecond {
			t.Errorf("%s: %v after %d requests and %v, want %q after %d", row.name, err, seen.Load(), time.Since(began), row.want, row.requests)
		}
		seen.Store(0)
		if err := c.Probe(t.Context()); seen.Load() != 1 {
			t.Errorf("%s: probe was tried %d times: %v", row.name, seen.Load(), err)
		}
	}
}

func TestRetryInsideACallWaitsALittleAndSignsAfresh(t *testing.T) {
	var mu sync.Mutex
	var untils, valid []string
	var times []time.Time
	address, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		times = append(times, time.Now())
		untils = append(untils, r.Header.Get("X-Valid-Until"))
		until, _ := strconv.ParseInt(untils[len(untils)-1], 10, 64)
		valid = append(valid, strconv.FormatBool(r.Header.Get("X-Signature") == Sign(NewSecret("sk_canary_secret"), "ws-1", until)))
		if len(times) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	var ticks atomic.Int64
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(1735689600+ticks.Add(1), 0) }})
	c.firstWait = 200 * time.Millisecond
	if err := c.call(t.Context(), read); err != nil {
		t.Fatal(err)
	}
	if len(times) != 2 || times[1].Sub(times[0]) < 100*time.Millisecond || untils[0] == untils[1] || strings.Join(valid, " ") != "true true" {
		t.Errorf("requests at %v, valid until %v, signatures right: %v", times, untils, valid)
	}
}

func TestRetryInsideACallStopsWaitingWithItsContext(t *testing.T) {
	address, seen := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", http.StatusBadGateway) })
	c := newTestClient(t, address, ClientOptions{})
	c.firstWait = 1900 * time.Millisecond // give or take half of it, and so within the budget
	ctx, cancel := context.WithCancel(t.Context())
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{PutIdleConn: func(error) { cancel() }}) // once the answer is read
	began := time.Now()
	err := c.call(ctx, read)
	if err == nil || err.Status != 502 || seen.Load() != 1 || time.Since(began) > 900*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestOwnRateLimitSendsNothingAndIsADeferral(t *testing.T) {
	address, seen := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, created) })
	shared := rate.NewLimiter(rate.Every(time.Hour), 1)
	if err := newTestClient(t, address, ClientOptions{Limiter: shared}).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := newTestClient(t, address, ClientOptions{Limiter: shared}).CreateDashboard(t.Context(), anyDashboard)
	if e := failed(t, err); e == nil || e.Class != Retryable || !e.Deferred || e.RetryAfter != time.Second || seen.Load() != 1 {
		t.Errorf("%v, %d requests", err, seen.Load())
	}

	if err := newTestClient(t, address, ClientOptions{}).waitTurn(t.Context(), time.Now().Add(-time.Second)); err == nil || !err.Deferred {
		t.Errorf("a try starts after the call's budget: %v", err)
	}

	broken, seen := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	c := newTestClient(t, broken, ClientOptions{Limiter: rate.NewLimiter(rate.Every(time.Hour), 1)})
	c.firstWait = time.Millisecond
	if err := c.call(t.Context(), read); err == nil || err.Status != 502 || seen.Load() != 1 {
		t.Errorf("a retry that gets no turn hides why it was needed: %v, %d requests", err, seen.Load())
	}
}

func TestCloseEndsIdleConnections(t *testing.T) {
	ended := make(chan struct{})
	address, _ := serveRaw(t, func(conn *net.TCPConn, next func() bool) {
		if next() {
			answerRaw(conn, created)
		}
		_ = next()
		close(ended)
	})
	c := newTestClient(t, address, ClientOptions{})
	if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
		t.Fatal(err)
	}
	c.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second): // the idle time-out is 30 s
		t.Error("the connection is still open")
	}
}
