// Package ops is the worker's HTTP side, for operators and their tools.
//
//	/healthz  200 while the process works
//	/readyz   200 while the worker can work, 503 while it cannot, with the reasons; a pause because of Papermap is
//	          200 with "consuming":"paused", because tokens still work
//	/metrics  for Prometheus; names begin papermap_
//	/api/v1/  REST, for callers with a bearer token: see openapi.json. Off until there is a key.
//	/         the console, for people: see package console
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

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"

	"papermap-worker/worker"
	"papermap-worker/worker/ops/console"
)

// Config says what is served, and where.
type Config struct {
	Addr        string // of console and REST API, for example 127.0.0.1:8080; empty: nowhere
	MetricsAddr string // of health and metrics; empty: Addr
	JWT         JWT
	Origins     []string     // that browsers may call the REST API from
	Tracer      trace.Tracer // of requests to the REST API; nil: no spans
	Console     console.Config
}

// Server is the running HTTP side: one server, or two when health and metrics have an address of their own.
type Server struct {
	servers []*http.Server
	addr    string
	log     *slog.Logger
	stop    context.CancelFunc
}

// Start listens and serves until Close.
func Start(c Config, w *worker.Worker, log *slog.Logger) (*Server, error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{log: log, stop: stop}
	probes := http.NewServeMux()
	registerProbes(probes, w, log)
	front := probes
	if c.MetricsAddr != "" {
		front = http.NewServeMux()
	}
	if c.JWT.Given() {
		auth, err := newVerifier(ctx, c.JWT, log)
		if err != nil {
			stop()
			return nil, err
		}
		(&rest{w: w, auth: auth, origins: c.Origins, tracer: c.Tracer, log: log}).register(front)
	}
	if c.Addr != "" {
		front.Handle("/", console.New(ctx, c.Console, w, log))
	}
	err := s.listen("HTTP_ADDR", c.Addr, front)
	if err == nil && c.MetricsAddr != "" {
		err = s.listen("METRICS_ADDR", c.MetricsAddr, probes)
	}
	if err != nil {
		s.Close(ctx)
		return nil, err
	}
	return s, nil
}

// listen serves on an address. The last one is where health is.
func (s *Server) listen(setting, addr string, handler http.Handler) error {
	if addr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listening for HTTP (%s): %w", setting, err)
	}
	s.addr = listener.Addr().String()
	server := &http.Server{
		Addr: s.addr, Handler: handler, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 64 << 10,
	}
	s.servers = append(s.servers, server)
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the HTTP server stopped", "error", err)
		}
	}()
	return nil
}

func registerProbes(mux *http.ServeMux, w *worker.Worker, log *slog.Logger) {
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		reply(rw, http.StatusOK, map[string]bool{"ok": true})
	})
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		s := w.State(ctx)
		status := http.StatusOK
		if !s.Ready {
			status = http.StatusServiceUnavailable
		}
		reply(rw, status, s)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(w.Metrics(), promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	}))
}

// Addr is the address at which health is served.
func (s *Server) Addr() string { return s.addr }

// Close lets requests end, at most until ctx does.
func (s *Server) Close(ctx context.Context) {
	s.stop()
	for _, server := range s.servers {
		if err := server.Shutdown(ctx); err != nil {
			s.log.Warn("cannot stop the HTTP server cleanly", "error", err)
		}
	}
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone needs no answer
}
