package simulator

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server serves a handler until it is closed.
type Server struct {
	URL  string // e.g. http://127.0.0.1:43211
	http *http.Server
	end  context.CancelFunc // ends the requests' contexts
	done chan struct{}
	ends sync.Map // *idleEnd by net.Conn
}

// idleEnd ends a connection when it has been idle for a time.
type idleEnd struct {
	conn  net.Conn
	mu    sync.Mutex
	after time.Duration // 0: never
	last  string        // words
	timer *time.Timer
}

type idleEndKey struct{} // of a request's context

// set applies what the rule of a request says about its connection.
func (e *idleEnd) set(f Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case f.IdleClose > 0:
		e.after, e.last = f.IdleClose, ""
	case f.Idle408 > 0:
		e.after = f.Idle408
		e.last = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
	}
}

func (e *idleEnd) follow(state http.ConnState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer != nil {
		e.timer.Stop()
	}
	if state == http.StateIdle && e.after > 0 {
		e.timer = time.AfterFunc(e.after, func() {
			_, _ = io.WriteString(e.conn, e.last)
			_ = e.conn.Close()
		})
	}
}

// Serve listens on addr (host:port; port 0 picks a free one) and serves h.
func Serve(h http.Handler, addr string) (*Server, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve on %q: %w", addr, err)
	}
	return serve(h, listener), nil
}

func serve(h http.Handler, listener net.Listener) *Server {
	requests, end := context.WithCancel(context.Background())
	s := &Server{URL: "http://" + listener.Addr().String(), end: end, done: make(chan struct{})}
	s.http = &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return requests },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			end := &idleEnd{conn: c}
			s.ends.Store(c, end)
			return context.WithValue(ctx, idleEndKey{}, end)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if end, ok := s.ends.Load(c); ok {
				end.(*idleEnd).follow(state)
			}
			if state == http.StateClosed || state == http.StateHijacked {
				s.ends.Delete(c)
			}
		},
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(listener)
	}()
	return s
}

// Close frees the address and closes all connections, including those in use. It may be called
// again.
func (s *Server) Close() {
	s.end() // for handlers that have hijacked their connection
	_ = s.http.Close()
	<-s.done
}
