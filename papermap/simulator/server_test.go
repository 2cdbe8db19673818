package simulator

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestServerFreesItsAddressOnClose(t *testing.T) {
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

func TestServerCloseEndsAnAnswerWhoseHeaderIsStillComing(t *testing.T) {
	s := New(Options{Faults: []Fault{{HeaderDelay: time.Hour}}})
	server, err := Serve(s, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "POST "+createPath+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	line := make([]byte, len("HTTP/1.1 401 Unauthorized\r\n"))
	if _, err := io.ReadFull(conn, line); err != nil || string(line) != "HTTP/1.1 401 Unauthorized\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	server.Close()
	if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
		t.Errorf("after Close: %q, %v", rest, err)
	}
}

func TestIdleConnectionEndsAsItsFaultSays(t *testing.T) {
	for fault, last := range map[string]string{"idle-close=1s": "", "idle-408=1s": "HTTP/1.1 408 "} {
		synctest.Test(t, func(t *testing.T) {
			f, err := ParseFault(fault)
			if err != nil {
				t.Fatal(err)
			}
			l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
			server := serve(New(Options{Faults: []Fault{f}}), l)
			defer server.Close()
			conn, err := l.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			answers := bufio.NewReader(conn)
			for range 2 { // the second before the first one's time is over
				_, _ = io.WriteString(conn,
					"POST "+createPath+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
				r, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, r.Body)
				time.Sleep(600 * time.Millisecond) // the bubble's time
			}
			start := time.Now()
			rest, err := io.ReadAll(answers)
			if err != nil || !strings.HasPrefix(string(rest), last) || (last == "") != (len(rest) == 0) ||
				time.Since(start) != 400*time.Millisecond {
				t.Errorf("%s: %q after %v, %v", fault, rest, time.Since(start), err)
			}
		})
	}
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
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

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
