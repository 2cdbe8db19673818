package papermap

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestConnectionFailureBeforeTheFirstByteIsRetryable(t *testing.T) {
	untrusted := httptest.NewTLSServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer untrusted.Close()
	plain, seen := serve(t, func(http.ResponseWriter, *http.Request) {})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for name, address := range map[string]string{
		"name not found":      "http://papermap.invalid",
		"connection refused":  "http://" + closed.Addr().String(),
		"certificate unknown": untrusted.URL,
		"no TLS on the port":  strings.Replace(plain, "http:", "https:", 1),
	} {
		requireNothingSent(t, name, newTestClient(t, address, ClientOptions{}))
	}
	if seen.Load() != 0 {
		t.Error("a request arrived")
	}
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener(t)
		serveConns(l, func(conn net.Conn, _ func() bool) { _, _ = io.Copy(io.Discard, conn) })
		c := newTestClient(t, "https://papermap.test", ClientOptions{Dial: l.dial})
		requireNothingSent(t, "TLS handshake without an answer", c)
	})
}

func requireNothingSent(t *testing.T, name string, c *Client) {
	t.Helper()
	_, err := c.CreateDashboard(t.Context(), anyDashboard)
	for what, err := range map[string]error{"create": err, "probe": c.Probe(t.Context())} {
		e := failed(t, err)
		if e == nil || e.Class != Retryable || e.Status != 0 || e.Deferred ||
			!strings.Contains(e.Message, "nothing was sent: ") {
			t.Errorf("%s: %s: %v", name, what, err)
		}
	}
}

func TestConnectionLostAfterAByteIsUnknownForCreateAndNeverSentTwice(t *testing.T) {
	stall := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) } // until the client gives up
	for name, reply := range map[string]func(conn net.Conn){
		"closed":    func(conn net.Conn) {},
		"no answer": stall,
		"half a header": func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-")
			stall(conn)
		},
		"slow body": func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
			stall(conn)
		},
		"truncated body": func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"+created)
		},
		"not HTTP": func(conn net.Conn) { _, _ = io.WriteString(conn, "SSH-2.0-OpenSSH\r\n\r\n") },
		"1 MiB of headers": func(conn net.Conn) {
			header := "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)
			_, _ = io.WriteString(conn, header+"\r\n\r\n"+created)
		},
		"no gzip": func(conn net.Conn) {
			header := "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 4"
			_, _ = io.WriteString(conn, header+"\r\n\r\nnope")
		},
		"other protocol": func(conn net.Conn) {
			header := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x"
			_, _ = io.WriteString(conn, header+"\r\n\r\n")
			stall(conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newPipeListener(t)
				seen := serveConns(l, answerOnce(reply))
				requireLost(t, newTestClient(t, "http://papermap.test", ClientOptions{Dial: l.dial}), seen)
			})
		})
	}
	t.Run("reset", func(t *testing.T) { // which pipes do not know
		address, seen := serveRaw(t, answerOnce(func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) }))
		requireLost(t, newTestClient(t, address, ClientOptions{}), seen)
	})
}

func answerOnce(reply func(net.Conn)) connHandler {
	return func(conn net.Conn, next func() bool) {
		if next() {
			reply(conn)
		}
	}
}

func requireLost(t *testing.T, c *Client, seen *atomic.Int64) {
	t.Helper()
	c.firstWait = time.Millisecond
	_, err := c.CreateDashboard(t.Context(), anyDashboard)
	if classOf(t, err) != Unknown || seen.Load() != 1 {
		t.Errorf("create: %v after %d requests", err, seen.Load())
	}
	if err := c.Probe(t.Context()); classOf(t, err) != Retryable || seen.Load() != 2 {
		t.Errorf("probe: %v after %d requests", err, seen.Load()-1)
	}
}

func TestTransportDoesNotReplayARequestOnAResetKeptConnection(t *testing.T) {
	var connections atomic.Int64
	address, seen := serveRaw(t, func(conn net.Conn, next func() bool) {
		connections.Add(1)
		if next() {
			answerRaw(conn, created)
		}
		if next() {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
	})
	create := func(c *Client) error { _, err := c.CreateDashboard(t.Context(), anyDashboard); return err }
	probe := func(c *Client) error { return c.Probe(t.Context()) }
	for want, call := range map[Class]func(*Client) error{Unknown: create, Retryable: probe} {
		seen.Store(0)
		connections.Store(0)
		c := newTestClient(t, address, ClientOptions{})
		if err := call(c); err != nil {
			t.Fatal(err)
		}
		err := call(c)
		if classOf(t, err) != want || seen.Load() != 2 || connections.Load() != 1 {
			t.Errorf("%v after %d requests on %d connections, want %s after 2 on 1", err, seen.Load(),
				connections.Load(), want)
		}
	}
}

// dyingConn, once dead, takes nothing from its owner, as a kept connection that was just reset.
type dyingConn struct {
	net.Conn
	dead *atomic.Bool
}

func (c dyingConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(p)
}

func TestKeptConnectionThatTakesNoByteIsReplaced(t *testing.T) {
	var seen atomic.Int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		_, _ = io.WriteString(w, created)
	})
	plain, overTLS := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer overTLS.Close()
	for _, srv := range []*httptest.Server{plain, overTLS} {
		c := newTestClient(t, srv.URL, ClientOptions{})
		c.firstWait = time.Millisecond
		trust(c, overTLS)
		var firstIsDead atomic.Bool
		dial, dialled := c.dialer.network, 0
		c.dialer.network = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if dialled++; dialled == 1 && err == nil {
				return dyingConn{conn, &firstIsDead}, nil
			}
			return conn, err
		}
		seen.Store(0)
		for range 2 {
			if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
				t.Errorf("%s: %v", srv.URL, err)
			}
			firstIsDead.Store(true)
		}
		if dialled != 2 || seen.Load() != 2 {
			t.Errorf("%s: %d connections and %d requests, want 2 and 2", srv.URL, dialled, seen.Load())
		}
	}
}

func TestTLSServerIsSpokenToInHTTP1AndALossThereIsUnknown(t *testing.T) {
	var drop atomic.Bool
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("protocol %s", r.Proto)
		}
		if _, _ = io.Copy(io.Discard, r.Body); drop.Load() {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, created)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	c := newTestClient(t, srv.URL, ClientOptions{})
	trust(c, srv)
	for range 2 { // on a new connection, then on a kept one
		if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
			t.Fatal(err)
		}
	}
	drop.Store(true)
	for range 2 {
		if _, err := c.CreateDashboard(t.Context(), anyDashboard); classOf(t, err) != Unknown {
			t.Error(err)
		}
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	other, seen := serve(t, func(http.ResponseWriter, *http.Request) {})
	for _, status := range []int{300, 301, 302, 303, 304, 307, 308} {
		for _, location := range []string{other + "/elsewhere", "http://[::1", ""} {
			address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", location)
				w.WriteHeader(status)
			})
			c := newTestClient(t, address, ClientOptions{})
			_, err := c.CreateDashboard(t.Context(), anyDashboard)
			if classOf(t, err) != Configuration || classOf(t, c.Probe(t.Context())) != Configuration {
				t.Errorf("%d to %q: %v", status, location, err)
			}
		}
	}
	if seen.Load() != 0 {
		t.Errorf("the other host has seen %d requests", seen.Load())
	}
}
