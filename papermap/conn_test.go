package papermap

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// trust makes c accept the certificate of srv.
func trust(c *Client, srv *httptest.Server) {
	c.dialer.tls.RootCAs = srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
}

// reuse creates two dashboards, with a pause between them, at a server that after its first answer
// on a connection does what idle says. It returns how many connections there were, and the outcome
// of the second create. It runs in a bubble of time.
func reuse(t *testing.T, header string, pause time.Duration, idle func(net.Conn)) (conns int64, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener(t)
		var dialled atomic.Int64
		serveConns(l, func(conn net.Conn, next func() bool) {
			first := dialled.Add(1) == 1
			for next() {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s",
					header, len(created), created)
				if first {
					first = false
					go idle(conn)
				}
			}
		})
		c := newTestClient(t, "http://papermap.test", ClientOptions{Dial: l.dial})
		if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(pause) // the bubble's time
		_, err = c.CreateDashboard(t.Context(), anyDashboard)
		conns = dialled.Load()
	})
	return conns, err
}

func quietly(net.Conn) {}

func TestConnectionIsUsedAgainOnlyShortlyAfterItsLastAnswer(t *testing.T) {
	for _, row := range []struct {
		keepAlive string // header
		idle      time.Duration
		conns     int64
	}{
		{"", 0, 1},
		{"", maxIdle - 1, 1},
		{"", maxIdle, 2},
		{"", time.Hour, 2},
		{"Keep-Alive: timeout=5, max=100\r\n", maxIdle - 1, 1},
		{"Keep-Alive: timeout=5, max=100\r\n", maxIdle, 2},
		{"Keep-Alive: timeout=1\r\n", maxIdle - 1, 1},
		{"Keep-Alive: max=3, Timeout=0.5\r\n", 250*time.Millisecond - 1, 1},
		{"Keep-Alive: max=3, Timeout=0.5\r\n", 250 * time.Millisecond, 2},
		{"Keep-Alive: timeout=0\r\n", 0, 2},
		{"Keep-Alive: timeout=-1\r\n", 0, 2},
		{"Keep-Alive: timeout=soon\r\n", maxIdle - 1, 1},
		{"Connection: close\r\n", 0, 2},
	} {
		conns, err := reuse(t, row.keepAlive, row.idle, quietly)
		if err != nil || conns != row.conns {
			t.Errorf("%q, idle for %v: %d connections, want %d; %v", row.keepAlive, row.idle,
				conns, row.conns, err)
		}
	}
}

func TestConnectionThatDidNotStayQuietIsNotUsedAgain(t *testing.T) {
	for name, idle := range map[string]func(net.Conn){
		"closed": func(c net.Conn) { _ = c.Close() },
		"announced and closed": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
			_ = c.Close()
		},
		"announced": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
		},
		"a second answer": func(c net.Conn) { answerRaw(c, created2) },
		"garbage":         func(c net.Conn) { _, _ = io.WriteString(c, "?") },
	} {
		if conns, err := reuse(t, "", maxIdle/2, idle); conns != 2 || err != nil {
			t.Errorf("%s: %d connections, want 2; %v", name, conns, err)
		}
	}
}

func TestAnswersThatArriveTogetherAreNotTakenForTheNextRequests(t *testing.T) {
	var connections atomic.Int64
	address, seen := serveRaw(t, func(conn net.Conn, next func() bool) {
		connections.Add(1)
		for next() {
			text := "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
			_, _ = fmt.Fprintf(conn, text+"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
				len(created), created)
		}
	})
	c := newTestClient(t, address, ClientOptions{})
	for range 20 {
		if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
			t.Fatal(err)
		}
	}
	if connections.Load() != seen.Load() {
		t.Errorf("%d connections for %d requests", connections.Load(), seen.Load())
	}
}

func TestConnectionIsNotUsedAgainAfterTheHostSlept(t *testing.T) {
	c := &conn{Conn: nopConn{}, raw: &countingConn{}, idle: maxIdle, quiet: make(chan bool, 1)}
	now := time.Now()
	for slept, want := range map[time.Duration]bool{0: true, time.Hour: false} {
		c.quiet <- true
		// Only the wall clock goes on while the host sleeps.
		c.idleSince = now.Round(0).Add(-slept)
		if c.stopWatch() != want {
			t.Errorf("after %v: used again: %t", slept, !want)
		}
	}
}

// nopConn accepts every deadline.
type nopConn struct{ net.Conn }

func (nopConn) SetReadDeadline(time.Time) error { return nil }

func TestInterimAnswersAreSkipped(t *testing.T) {
	address, _ := serveRaw(t, func(conn net.Conn, next func() bool) {
		for next() {
			_, _ = io.WriteString(conn,
				"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
			answerRaw(conn, created)
		}
	})
	c := newTestClient(t, address, ClientOptions{})
	for range 2 {
		if d, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil || d.ID != "dash-1" {
			t.Error(d, err)
		}
	}
}

func TestEndlessInterimAnswersAreBounded(t *testing.T) {
	address, _ := serveRaw(t, func(conn net.Conn, next func() bool) {
		for err := error(nil); err == nil && next(); {
			for err == nil {
				_, err = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
			}
		}
	})
	_, err := newTestClient(t, address, ClientOptions{}).CreateDashboard(t.Context(), anyDashboard)
	if e := failed(t, err); e == nil || e.Class != Unknown ||
		!strings.Contains(e.Message, "headers are longer") {
		t.Error(err)
	}
}

func TestMisdirectedRequestIsSentAgainOnAnotherConnection(t *testing.T) {
	var connections atomic.Int64
	address, seen := serveRaw(t, func(conn net.Conn, next func() bool) {
		misdirected := connections.Add(1) == 1
		for next() {
			if misdirected {
				_, _ = io.WriteString(conn, "HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\n\r\n")
			} else {
				answerRaw(conn, created)
			}
		}
	})
	c := newTestClient(t, address, ClientOptions{})
	c.firstWait = time.Millisecond
	if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil || seen.Load() != 2 {
		t.Errorf("%v after %d requests", err, seen.Load())
	}
}

// A server may close each connection after its first answer without saying so. Connections that are
// taken again at once are the hard case: nothing has read them yet.
func TestConnectionThatEndsWithItsAnswerIsNotUsedAgain(t *testing.T) {
	address, seen := serveRaw(t, func(conn net.Conn, next func() bool) {
		if next() {
			answerRaw(conn, created)
		}
	})
	c := newTestClient(t, address, ClientOptions{})
	put := 0
	for range 50 {
		k, err := c.conns.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r := request{route: "create", method: http.MethodPost, path: "/", body: []byte("{}")}
		req, err := c.signedRequest(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := k.roundTrip(t.Context(), req, maxCreateBody); a.status != http.StatusOK {
			t.Fatal(err)
		}
		for silent(k.raw.Conn) { // until the end has arrived
			runtime.Gosched()
		}
		if c.conns.put(k); !k.reusable {
			continue
		}
		put++
		again, err := c.conns.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if again == k {
			t.Error("used again")
		}
		_ = again.Close()
	}
	if put == 0 || seen.Load() == 0 {
		t.Error("no connection was kept")
	}
}
