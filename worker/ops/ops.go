// Package ops is the worker's HTTP side, for operators and their tools.
//
//	/healthz  200 while the process works
//	/readyz   200 while the worker can work, 503 while it cannot, with the reasons; a pause because of Papermap is
//	          200 with "consuming":"paused", because tokens still work
package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"papermap-worker/worker"
)

// Server is a running HTTP server.
type Server struct {
	http     *http.Server
	listener net.Listener
	log      *slog.Logger
}

// Start listens on addr, for example 127.0.0.1:8080, and serves until Close. state says how the worker is.
func Start(addr string, state func(context.Context) worker.State, log *slog.Logger) (*Server, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for HTTP (HTTP_ADDR): %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]bool{"ok": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		s := state(ctx)
		status := http.StatusOK
		if !s.Ready {
			status = http.StatusServiceUnavailable
		}
		reply(w, status, s)
	})
	s := &Server{
		http: &http.Server{
			Handler: mux, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
			ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
			MaxHeaderBytes: 64 << 10,
		},
		listener: listener, log: log,
	}
	go func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the HTTP server stopped", "error", err)
		}
	}()
	return s, nil
}

// Addr is the address that the server listens on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close lets requests end, at most until ctx does.
func (s *Server) Close(ctx context.Context) {
	if err := s.http.Shutdown(ctx); err != nil {
		s.log.Warn("cannot stop the HTTP server cleanly", "error", err)
	}
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone needs no answer
}
