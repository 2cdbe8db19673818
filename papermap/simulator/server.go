package simulator

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Server serves a handler until it is closed.
type Server struct {
	URL  string // e.g. http://127.0.0.1:43211
	http *http.Server
	end  context.CancelFunc // ends the requests' contexts
	done chan struct{}
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
