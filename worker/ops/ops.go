// Package ops serves HTTP for operators, their tools, and callers of the REST API.
//
//	/healthz  200 while the process works, also before it has a worker
//	/readyz   200 while the worker can work, 503 with the reasons while it cannot; a pause because
//	          of Papermap is 200 with "consuming":"paused", because tokens still work
//	/metrics  for Prometheus; names begin with papermap_
//	/api/v1/  REST, for callers with a bearer token: see openapi.json; off until there is a key
//	/embed/   <papermap-dashboard>, for pages of customers: see package embed
//	/         the console, for people: see package console; off until there is a log-in
//
// A server runs next to its worker, in the same process, and calls it directly:
//
//	server, err := ops.Start(ops.Config{Addr: "127.0.0.1:8080", JWT: ops.JWT{Secret: secret}}, w, log)
//	if err != nil {
//		return err
//	}
//	defer server.Close(ctx)
//
// It adds no state of its own: what REST answers is what the worker answers over NATS. Times and
// bodies of requests are bounded, and no error tells a caller more than its own mistake.
package ops

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/net/netutil"

	"papermap-worker/worker"
	"papermap-worker/worker/ops/console"
	"papermap-worker/worker/ops/embed"
)

// Config is what is served, and where.
type Config struct {
	Addr        string // of console and REST API, for example 127.0.0.1:8080; empty: none
	MetricsAddr string // of health and metrics; empty: Addr
	JWT         JWT
	Origins     []string         // CORS: origins whose pages may call the REST API
	TLS         *tls.Certificate // nil: HTTP
	Proxies     []netip.Prefix   // whose X-Forwarded-For is trusted
	Tracer      trace.Tracer     // of requests to the REST API; nil: no spans
	Console     console.Config
	Example     http.Handler // of /example, in dev; nil: none
}

// Server is the running HTTP side: one server, or two when health and metrics have an address of
// their own.
type Server struct {
	config        Config
	front, probes handler
	servers       []*http.Server
	addr          string
	log           *slog.Logger
	ctx           context.Context // ends with stop
	stop          context.CancelFunc
}

// maxConnections is how many connections an address has at a time; others wait.
const maxConnections = 1024

// Start is Listen and Serve.
func Start(c Config, w *worker.Worker, log *slog.Logger) (*Server, error) {
	s, err := Listen(c, log)
	if err != nil {
		return nil, err
	}
	if err := s.Serve(w); err != nil {
		s.Close(context.Background())
		return nil, err
	}
	return s, nil
}

// Serve serves the worker from now on.
func (s *Server) Serve(w *worker.Worker) error {
	c, ctx, log := s.config, s.ctx, s.log
	probes := http.NewServeMux()
	registerProbes(probes, w, log)
	front := probes
	if c.MetricsAddr != "" {
		front = http.NewServeMux()
	}
	if c.JWT.Given() {
		auth, err := newVerifier(ctx, c.JWT, log)
		if err != nil {
			return err
		}
		(&rest{w: w, auth: auth, origins: c.Origins, tracer: c.Tracer, log: log}).register(front)
	}
	if c.Addr != "" {
		embed.Register(front)
		if c.Example != nil {
			front.Handle("/example", c.Example)
			front.Handle("/example/", c.Example)
		}
	}
	if c.Addr != "" && c.Console.Enabled() {
		front.Handle("/", console.New(ctx, c.Console, w, log))
	}
	s.front.set(front)
	s.probes.set(probes)
	return nil
}

// listen serves on an address. Addr returns the last one.
func (s *Server) listen(setting, addr string, handler http.Handler) error {
	if addr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for HTTP (%s): %w", setting, err)
	}
	s.addr = listener.Addr().String()
	server := &http.Server{
		Addr: s.addr, Handler: s.guard(handler), ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}
	listener = netutil.LimitListener(listener, maxConnections)
	if s.config.TLS != nil {
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*s.config.TLS}}
	}
	s.servers = append(s.servers, server)
	go func() {
		var err error
		if s.config.TLS != nil {
			err = server.ServeTLS(listener, "", "")
		} else {
			err = server.Serve(listener)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the HTTP server stopped", "error", err)
		}
	}()
	return nil
}

// guard handles what holds for every request: its remote address is the client's, also behind a
// trusted proxy, and no browser guesses the type of an answer.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		rw.Header().Set("X-Content-Type-Options", "nosniff")
		req.RemoteAddr = client(req, s.config.Proxies)
		next.ServeHTTP(rw, req)
	})
}

// client is the address of the request's client: of the connection, or, if that is a trusted
// proxy's, the last one in X-Forwarded-For that is not. What stands before it anybody could have
// written.
func client(req *http.Request, proxies []netip.Prefix) string {
	trusted := func(ip netip.Addr) bool {
		return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	peer, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil || !trusted(peer.Addr().Unmap()) {
		return req.RemoteAddr
	}
	found := req.RemoteAddr
	hops := strings.Split(strings.Join(req.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		hop = strings.TrimSpace(hop)
		ip, err := netip.ParseAddr(strings.Trim(hop, "[]"))
		if err != nil {
			withPort, err := netip.ParseAddrPort(hop)
			if err != nil {
				break
			}
			ip = withPort.Addr()
		}
		ip = ip.Unmap().WithZone("")
		if found = ip.String(); !trusted(ip) {
			break
		}
	}
	return found
}

func registerProbes(mux *http.ServeMux, w *worker.Worker, log *slog.Logger) {
	mux.HandleFunc("GET /healthz", replyHealthy)
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		s := w.State()
		status := http.StatusOK
		if !s.Ready {
			status = http.StatusServiceUnavailable
		}
		reply(rw, status, s)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(w.Metrics(), promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	}))
}

// Addr is the address at which health is served.
func (s *Server) Addr() string { return s.addr }

// Close waits for requests in flight, but not longer than ctx.
func (s *Server) Close(ctx context.Context) {
	s.stop()
	for _, server := range s.servers {
		if err := server.Shutdown(ctx); err != nil {
			s.log.Warn("cannot stop the HTTP server cleanly", "error", err)
		}
	}
}

// replyOptions are those of encoding/json, with which the REST API began: text is escaped for HTML
// and JavaScript, a nil slice is null.
var replyOptions = json.JoinOptions(json.Deterministic(true), json.FormatNilSliceAsNull(true),
	jsontext.EscapeForHTML(true), jsontext.EscapeForJS(true), jsontext.AllowInvalidUTF8(true))

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, status, body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.WriteHeader(status)
	if json.MarshalWrite(w, body, replyOptions) == nil { // else the client has gone
		_, _ = w.Write([]byte{'\n'})
	}
}
