package ops

import (
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"

	"papermap-worker/worker"
)

// handler is a handler that can be replaced while it serves.
type handler struct{ current atomic.Pointer[http.Handler] }

func (h *handler) set(next http.Handler) { h.current.Store(&next) }

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*h.current.Load()).ServeHTTP(w, r)
}

// Listen listens, and answers probes until Serve: the process works and is not ready. So an
// orchestrator does not kill a process that waits for its database.
func Listen(c Config, log *slog.Logger) (*Server, error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{config: c, log: log, ctx: ctx, stop: stop}
	s.Starting("it is starting")
	err := s.listen("HTTP_ADDR", c.Addr, &s.front)
	if err == nil && c.MetricsAddr != "" {
		err = s.listen("METRICS_ADDR", c.MetricsAddr, &s.probes)
	}
	if err != nil {
		s.Close(context.Background())
		return nil, err
	}
	return s, nil
}

// Starting sets why the worker is not ready yet.
func (s *Server) Starting(why string) {
	state := worker.State{Consuming: "no", Reasons: []string{"the worker is not ready yet: " + why}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", replyHealthy)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusServiceUnavailable, state)
	})
	s.front.set(mux)
	s.probes.set(mux)
}

func replyHealthy(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string]bool{"ok": true})
}
