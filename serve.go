package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/ops"
)

// version is set when a release is built: -ldflags "-X main.version=1.2.3".
var version = ""

func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return semanticVersion(version, info.Main.Version)
	}
	return semanticVersion(version)
}

var semanticForm = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// semanticVersion is the first candidate that is a semantic version, without the v that Go puts before it: micro
// services have no other kind.
func semanticVersion(candidates ...string) string {
	for _, c := range candidates {
		if c = strings.TrimPrefix(c, "v"); semanticForm.MatchString(c) {
			return c
		}
	}
	return "0.0.0-dev"
}

type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	_, err := fmt.Fprintln(a.stdout, programVersion())
	return err
}

type serveCmd struct {
	papermapSettings
	workSettings
	natsSettings
	databaseSettings
}

// serveConfig is everything that serve needs, checked.
type serveConfig struct {
	worker   worker.Config
	bus      events.Options
	database string
	migrate  bool
	http     ops.Config
	tracing  bool
}

func (c *serveCmd) Run(a *app) error {
	cfg, err := c.config(a.problems)
	if err != nil {
		return err
	}
	c.warn(a.log, cfg)
	return serve(a.ctx, cfg, a.log)
}

// config checks the settings, on top of problems that were found before.
func (c *serveCmd) config(p problems) (serveConfig, error) {
	cfg := serveConfig{worker: c.papermapSettings.parse(&p), bus: c.natsSettings.parse(&p), database: p.databaseURL(), http: c.workSettings.http(&p), tracing: p.tracing()}
	c.workSettings.parse(&p, &cfg.worker)
	cfg.migrate = p.boolean("DATABASE_MIGRATE", c.Migrate)
	cfg.bus.Wait = true
	for _, prefix := range cfg.worker.ReplyPrefixes {
		if replies, ours := strings.TrimSuffix(prefix, ".")+".", cfg.bus.Subjects.Prefix+"."; strings.HasPrefix(replies, ours) || strings.HasPrefix(ours, replies) {
			p.add("NATS_REPLY_PREFIXES: %q would let callers make the worker publish to its own subjects", prefix)
		}
	}
	return cfg, p.err()
}

// warn says at start what is allowed and should not stay so.
func (c *serveCmd) warn(log *slog.Logger, cfg serveConfig) {
	if allowed, _ := strconv.ParseBool(c.AllowHTTP); allowed {
		log.Warn("PAPERMAP_ALLOW_HTTP is set: signatures can be read on the way; use it for tests only")
	}
	if cfg.worker.TokenAudit > 0 && !log.Enabled(context.Background(), slog.LevelInfo) {
		log.Warn("LOG_LEVEL leaves out the lines that tell of minted tokens: set it to info, or EMBED_TOKEN_AUDIT to 0")
	}
	if n := len(cfg.http.Console.Token); n > 0 && n < 16 {
		log.Warn("CONSOLE_TOKEN is shorter than 16 bytes, so it could be guessed: use a random one, such as openssl rand -hex 16 makes")
	}
	if n := len(cfg.http.JWT.Secret); n > 0 && n < 32 {
		log.Warn("HTTP_JWT_SECRET is shorter than the 32 bytes that HS256 asks for (RFC 7518): whoever has one token can try secrets until one fits")
	}
	secrets := map[papermap.Secret]string{}
	for _, ws := range cfg.worker.Workspaces {
		if other, ok := secrets[ws.Key.Secret]; ok {
			log.Warn("two workspaces have the same secret: a signature for one could fit the other", "workspace_id", ws.ID, "other_workspace_id", other)
		}
		secrets[ws.Key.Secret] = ws.ID
		if ambiguousID(ws.ID) {
			log.Warn("the workspace id ends in a digit: Papermap signs id and time without a separator, so a signature could fit another id", "workspace_id", ws.ID)
		}
	}
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// ambiguousID says whether the id could run into the time that is signed behind it. All UUIDs have one length.
func ambiguousID(id string) bool {
	last := id[len(id)-1]
	return last >= '0' && last <= '9' && !uuidForm.MatchString(id)
}

// serve wires the worker together and runs it until ctx ends.
func serve(ctx context.Context, cfg serveConfig, log *slog.Logger) error {
	tracer, log, stopTracing, err := startTracing(cfg.tracing, log)
	if err != nil {
		return err
	}
	defer stopTracing()
	cfg.bus.Tracer, cfg.http.Tracer = tracer, tracer
	db, err := openDatabase(ctx, cfg.database, cfg.migrate, log)
	if ctx.Err() != nil && err != nil {
		log.Info("stopped before it had started")
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
	cfg.worker.Version = programVersion()
	bus, err := events.Connect(cfg.bus, log)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		bus.Close(closing)
	}()
	w := worker.New(cfg.worker, db, bus, log)
	if cfg.http.Addr != "" || cfg.http.MetricsAddr != "" {
		server, err := ops.Start(cfg.http, w, log)
		if err != nil {
			return err
		}
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			server.Close(closing)
		}()
		log.Info("serving HTTP", "address", server.Addr())
	}
	log.Info("started", "version", cfg.worker.Version, "workspaces", len(cfg.worker.Workspaces))
	err = w.Run(ctx)
	log.Info("stopped")
	return err
}

// openDatabase opens the database for work: whole, and at this program's version. It waits for a server that is not
// there yet, as it does for NATS.
func openDatabase(ctx context.Context, address string, migrate bool, log *slog.Logger) (*repo.DB, error) {
	db, err := repo.Open(ctx, address)
	for said := false; repo.Unreachable(err); db, err = repo.Open(ctx, address) {
		if !said {
			log.Warn("PostgreSQL cannot be reached yet; waiting for it", "error", err)
			said = true
		}
		if pause(ctx, time.Second) != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	if err = errors.Join(db.Lock(), db.CheckIntegrity(ctx)); err == nil {
		if migrate {
			var applied []string
			if applied, err = db.Migrate(ctx); len(applied) > 0 {
				log.Info("migrated the database", "applied", applied)
			}
		} else {
			err = db.CheckSchema(ctx)
		}
	}
	if err != nil {
		_ = db.Close() // the first error says what is wrong
		return nil, err
	}
	return db, nil
}

type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" default:"1" help:"Bring the database up to date."`
	Status migrateStatusCmd `cmd:"" help:"List the migrations and whether each was applied."`
}

type migrateUpCmd struct{}

func (migrateUpCmd) Run(a *app) error {
	db, err := openConfigured(a)
	if err != nil {
		return err
	}
	defer db.Close()
	applied, err := db.Migrate(a.ctx)
	for _, name := range applied {
		fmt.Fprintln(a.stdout, "applied", name)
	}
	if err == nil && len(applied) == 0 {
		fmt.Fprintln(a.stdout, "the database is up to date")
	}
	return err
}

type migrateStatusCmd struct {
	JSON bool `help:"Print JSON."`
}

func (c migrateStatusCmd) Run(a *app) error {
	db, err := openConfigured(a)
	if err != nil {
		return err
	}
	defer db.Close()
	list, err := db.Migrations(a.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, list)
	}
	rows := table{{"VERSION", "NAME", "APPLIED"}}
	for _, m := range list {
		rows = append(rows, []string{fmt.Sprint(m.Version), m.Name, map[bool]string{true: "yes", false: "no"}[m.Applied]})
	}
	return rows.print(a.stdout)
}

// openConfigured opens the database that DATABASE_URL names, as it is.
func openConfigured(a *app) (*repo.DB, error) {
	p := a.problems
	address := p.databaseURL()
	if err := p.err(); err != nil {
		return nil, err
	}
	return repo.Open(a.ctx, address)
}

// openMigrated opens it for a command that needs its tables, and makes none.
func openMigrated(a *app) (*repo.DB, error) {
	p := a.problems
	address := p.databaseURL()
	if err := p.err(); err != nil {
		return nil, err
	}
	if err := repo.Exists(address); err != nil {
		return nil, err
	}
	db, err := repo.Open(a.ctx, address)
	if err != nil {
		return nil, err
	}
	if err := db.CheckSchema(a.ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

type healthCmd struct {
	HTTPAddr    string `name:"http-addr" env:"HTTP_ADDR" default:"127.0.0.1:8080" help:"Where the worker serves health."`
	MetricsAddr string `name:"metrics-addr" env:"METRICS_ADDR" help:"Where it does instead."`
}

func (c healthCmd) Run(a *app) error {
	addr := workSettings{HTTPAddr: c.HTTPAddr, MetricsAddr: c.MetricsAddr}.healthAddr()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return &usageError{"HTTP_ADDR is no host:port, so there is no health to ask for"}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(a.ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("asking for health: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("asking for health: %w", err)
	}
	defer answer.Body.Close()
	body := make([]byte, 4096)
	n, _ := answer.Body.Read(body)
	fmt.Fprintf(a.stdout, "%s", body[:n])
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the worker is not ready (status %d)", answer.StatusCode)
	}
	return nil
}
