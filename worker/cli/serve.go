package cli

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/worker"
	"papermap-worker/worker/ops"
)

// serveCmd is the worker itself, and the one command with all settings. It waits for a database and
// a NATS server that cannot be reached yet, and drains at SIGINT or SIGTERM: events in flight get
// SHUTDOWN_GRACE to finish.
type serveCmd struct {
	papermapSettings `group:"Papermap"`
	workSettings     `group:"Worker"`
	natsSettings     `group:"NATS"`
	databaseSettings `group:"Database"`
}

// serveConfig is the configuration of serve, checked.
type serveConfig struct {
	worker   worker.Config
	bus      events.Options
	database string // its address
	migrate  bool
	maxConns int
	http     ops.Config
	tracing  bool
}

func (c *serveCmd) Run(a *app) error {
	cfg, err := c.config(a.parser())
	if err != nil {
		return err
	}
	cfg.worker.Build = a.build
	c.warn(a.log, cfg)
	return serve(a.ctx, cfg, a.log)
}

// config checks the settings.
func (c *serveCmd) config(p *parser) (serveConfig, error) {
	cfg := serveConfig{
		worker: c.papermapSettings.parse(p), bus: c.natsSettings.parse(p),
		http: c.workSettings.http(p), tracing: p.tracing(),
	}
	c.databaseSettings.parse(p, &cfg)
	cfg.bus.Wait = true
	cfg.bus.Operate = cfg.http.JWT.Given() || cfg.http.Console.Token != "" || cfg.http.Console.UsersFile != ""
	c.workSettings.parse(p, cfg.bus.Subjects.Prefix, &cfg.worker)
	return cfg, p.err()
}

// warn logs settings that are allowed, but unsafe.
func (c *serveCmd) warn(log *slog.Logger, cfg serveConfig) {
	if allowed, _ := strconv.ParseBool(c.AllowHTTP); allowed {
		log.Warn("PAPERMAP_ALLOW_HTTP is set: signatures are sent in the clear; use it for tests only")
	}
	if cfg.worker.TokenAudit > 0 && !log.Enabled(context.Background(), slog.LevelInfo) {
		log.Warn("LOG_LEVEL hides the log lines on minted tokens: set it to info, or EMBED_TOKEN_AUDIT to 0")
	}
	for _, warning := range unsafe(cfg) {
		log.Warn("the configuration is unsafe", "why", warning)
	}
	if n := len(cfg.http.JWT.Secret); n > 0 && n < 32 {
		log.Warn("HTTP_JWT_SECRET is shorter than HS256's 32 bytes (RFC 7518) and could be guessed")
	}
	secrets := map[papermap.Secret]string{}
	for _, ws := range cfg.worker.Workspaces {
		if other, ok := secrets[ws.Key.Secret]; ok {
			log.Warn("two workspaces have the same secret: a signature for one could fit the other",
				"workspace_id", ws.ID, "other_workspace_id", other)
		}
		secrets[ws.Key.Secret] = ws.ID
		if ambiguousID(ws.ID) {
			log.Warn("the workspace id ends in a digit: Papermap signs id and time without a separator, "+
				"so a signature could fit another id", "workspace_id", ws.ID)
		}
	}
}

// ambiguousID says whether the id could run into the time that is signed behind it. All UUIDs have
// one length.
func ambiguousID(id string) bool {
	last := id[len(id)-1]
	isUUID := len(id) == 36 && uuid.Validate(id) == nil
	return last >= '0' && last <= '9' && !isUUID
}

// The heap is collected when it has grown to heapBytes, or by heapPercent if that is more. The live
// heap is so small, about 5 MB, that with Go's default, 100 %, it would be collected 16 times a
// second under load. A large one, of very many tenants in memory, needs less than the default.
const (
	heapBytes   = 24 << 20
	heapPercent = 25
)

var garbageLimited sync.Once

// limitGarbage sets how much garbage gathers before the next collection, and again after each. The
// variable GOGC overrides it.
func limitGarbage() {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	// Not less than 6 MiB: the limit follows from the live heap, and is too high for a moment when that
	// grows suddenly.
	heap := max(6<<20, int(live[0].Value.Uint64()))
	debug.SetGCPercent(max(heapPercent, 100*(heapBytes-heap)/heap))
	runtime.AddCleanup(new([16]byte), func(struct{}) { limitGarbage() }, struct{}{})
}

// serve wires the worker together and runs it until ctx ends.
func serve(ctx context.Context, cfg serveConfig, log *slog.Logger) error {
	garbageLimited.Do(limitGarbage)
	tracer, log, stopTracing, err := startTracing(cfg.tracing, cfg.worker.Build, log)
	if err != nil {
		return err
	}
	defer stopTracing()
	cfg.bus.Tracer, cfg.http.Tracer = tracer, tracer
	server, err := ops.Listen(cfg.http, log)
	if err != nil {
		return err
	}
	defer closeWithin(2*time.Second, server.Close)
	if server.Addr() != "" {
		log.Info("serving HTTP", "address", server.Addr())
	}
	db, err := waitForDatabase(ctx, cfg, server.Starting, log)
	if ctx.Err() != nil && err != nil {
		log.Info("stopped during startup")
		return nil
	}
	if err != nil {
		return err
	}
	defer func() {
		if err := db.Close(); err != nil {
			log.Warn("cannot close the database cleanly", "error", err)
		}
	}()
	bus, err := events.Connect(cfg.bus, log)
	if err != nil {
		return err
	}
	defer closeWithin(5*time.Second, bus.Close)
	w := worker.New(cfg.worker, db, bus, log)
	if err := server.Serve(w); err != nil {
		return err
	}
	defer closeWithin(2*time.Second, server.Close) // before what it uses
	log.Info("started", "version", cfg.worker.Build.Version, "commit", cfg.worker.Build.Commit,
		"workspaces", len(cfg.worker.Workspaces))
	err = w.Run(ctx)
	log.Info("stopped")
	return err
}
