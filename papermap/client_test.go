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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
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

// pipeListener accepts the server's ends of the pipes that dial makes. Unlike sockets they let a
// synctest bubble's clock run.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener(t *testing.T) *pipeListener {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// servePiped is serve for a synctest bubble: dial is the client's ClientOptions.Dial.
func servePiped(t *testing.T, handler http.HandlerFunc) (dial dialFunc, seen *atomic.Int64) {
	t.Helper()
	l := newPipeListener(t)
	seen = new(atomic.Int64)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		handler(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return l.dial, seen
}

// connHandler serves a connection. next reads a request, and is false when there is none.
type connHandler func(conn net.Conn, next func() bool)

// serveRaw gives handle each connection, and counts the requests that it reads with next.
func serveRaw(t *testing.T, handle connHandler) (address string, seen *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return "http://" + listener.Addr().String(), serveConns(listener, handle)
}

func serveConns(listener net.Listener, handle connHandler) (seen *atomic.Int64) {
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
				handle(conn, func() bool {
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
	return seen
}

func answerRaw(conn net.Conn, body string) {
	_, _ = fmt.Fprintf(conn,
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
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

func TestProbeReadsOneUsageRowOfTheEscapedWorkspace(t *testing.T) {
	address, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if got, want := r.Method+" "+r.RequestURI,
			"GET /base/api/v1/external/workspaces/a%2Fb%20%3F%C3%BC/tenant-usage?per_page=1"; got != want {
			t.Errorf("request is %s, want %s", got, want)
		}
		if r.Header.Get("X-Signature") == "" || r.Header.Get("X-Tenant-ID") != "" ||
			r.Header.Get("Content-Type") != "" || r.ContentLength != 0 || r.TransferEncoding != nil {
			t.Errorf("headers %v", r.Header)
		}
	})
	c := newTestClient(t, address+"/base", ClientOptions{})
	c.ws.ID = "a/b ?ü"
	if err := c.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAddressThatIsNoURLIsConfigurationAndNotQuoted(t *testing.T) {
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

func TestCloseEndsIdleConnections(t *testing.T) {
	ended := make(chan struct{})
	address, _ := serveRaw(t, func(conn net.Conn, next func() bool) {
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

func TestClientServesManyCallsAtOnce(t *testing.T) {
	address, _ := expiryServer(t, func() time.Time { return time.Unix(1735689600+3600, 0) })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(1735689600, 0) }})
	var calls sync.WaitGroup
	for range 64 {
		calls.Go(func() {
			if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
}
