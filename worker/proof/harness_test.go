package proof_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	_ "github.com/mattn/go-sqlite3"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker/proof"
)

// These tests run the program and the NATS server as processes, because only a process can be
// killed. The simulator is in the test's own process, behind a proxy that can cut connections.

var subjects = events.Subjects{Prefix: "papermap"}

var workspace = papermap.Workspace{
	ID:       "ws-proof",
	Key:      papermap.KeyPair{ID: "ak_proof", Secret: papermap.NewSecret("sk_canary_api")},
	EmbedKey: papermap.KeyPair{ID: "ak_proof_embed", Secret: papermap.NewSecret("sk_canary_embed")},
}

// postgres is the server of the tests on PostgreSQL; nil where there is none.
var postgres *pgtest.Server

// built are the programs that the tests run, once a test has asked for them.
var built programs

var programsFolder = flag.String("programs", "",
	"where papermap-worker, built with failpoints, and nats-server are; empty: they are built")

type programs struct {
	dir, worker, nats string
	once              sync.Once
	err               error
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" { // a benchmark has started this binary again
		os.Exit(playRole(role))
	}
	flag.Parse()
	_ = flag.Set("test.parallel", "16") // the tests mostly wait
	dir, err := os.MkdirTemp("", "papermap-proof-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a folder for programs:", err)
		os.Exit(1)
	}
	built.dir = dir
	code := pgtest.Main(m, &postgres)
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// build builds the worker, with failpoints, and the NATS server that go.mod has.
func build(t testing.TB) *programs {
	t.Helper()
	built.once.Do(func() {
		if *programsFolder != "" {
			built.worker = filepath.Join(*programsFolder, "papermap-worker")
			built.nats = filepath.Join(*programsFolder, "nats-server")
			return
		}
		built.worker, built.nats = filepath.Join(built.dir, "papermap-worker"), filepath.Join(built.dir,
			"nats-server")
		var group sync.WaitGroup
		results := make([]error, 2)
		for i, args := range [][]string{
			{"build", "-ldflags=-s -w", "-tags", "failpoints", "-o", built.worker, "papermap-worker"},
			{"build", "-ldflags=-s -w", "-o", built.nats, "github.com/nats-io/nats-server/v2"},
		} {
			group.Go(func() {
				if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
					results[i] = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
				}
			})
		}
		group.Wait()
		built.err = errors.Join(results...)
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return &built
}

// system is what workers share: NATS, a database, and the simulated API.
type system struct {
	t        testing.TB
	name     string
	dir      string // kept when the test fails
	database string // DATABASE_URL
	env      []string
	nats     []*natsServer
	sim      *simulator.Simulator
	proxy    *proxy
	nc       *nats.Conn // of publishers and callers
	js       jetstream.JetStream
	sql      *sqlx.DB // beside the workers' own connections
	db       *repo.DB
	broker   string // the NATS server's program; empty for the one that go.mod has
	disks    bool   // NATS and SQLite have disks of their own, which can be filled

	prepare  func(dir string) error // if not nil, puts files into dir before anything is started
	settings string                 // a configuration file of the NATS servers; may be empty

	workspaces []papermap.Workspace
}

// newSystem starts everything but the workers, which get env in addition to the settings that all
// have. database is the address of an empty PostgreSQL database, or empty for SQLite.
func newSystem(t testing.TB, name, database string, servers int, seed uint64, env ...string) *system {
	t.Helper()
	s := &system{t: t, name: name, database: database}
	s.start(servers, seed, env...)
	return s
}

func (s *system) start(servers int, seed uint64, env ...string) {
	t, name := s.t, s.name
	t.Helper()
	s.workspaces = []papermap.Workspace{workspace}
	var err error
	if s.dir, err = os.MkdirTemp("", "papermap-"+name+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.keepLogs)
	if s.prepare != nil {
		s.must(s.prepare(s.dir))
	}
	s.sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}, Seed: seed})
	api, err := simulator.Serve(s.sim, "127.0.0.1:0")
	s.must(err)
	t.Cleanup(api.Close)
	s.proxy = startProxy(t, api.URL)

	if s.disks {
		s.mount("node0")
		s.mount("database")
	}
	s.nats = newServers(t, s.dir, servers)
	var urls []string
	for _, n := range s.nats {
		n.program = cmp.Or(s.broker, n.program)
		if s.settings != "" {
			n.cluster = append(n.cluster, "-c", s.settings)
		}
		s.must(n.start())
		t.Cleanup(func() { n.process.kill() })
		urls = append(urls, n.url())
	}
	s.openDatabase()
	s.env = append([]string{
		"PAPERMAP_API_URL=" + s.proxy.url(), "PAPERMAP_WORKSPACE_ID=" + workspace.ID,
		"PAPERMAP_API_KEY_ID=" + workspace.Key.ID, "PAPERMAP_SECRET_KEY=" + workspace.Key.Secret.Reveal(),
		"PAPERMAP_EMBED_API_KEY_ID=" + workspace.EmbedKey.ID,
		"PAPERMAP_EMBED_SECRET_KEY=" + workspace.EmbedKey.Secret.Reveal(),
		"DATABASE_URL=" + s.database, "NATS_URL=" + strings.Join(urls, ","),
		"USAGE_SYNC_SCHEDULE=off", "LOG_LEVEL=debug", "LOG_FORMAT=json",
	}, env...)

	if servers == 1 && s.prepare == nil { // so that there is a stream before the first worker is up
		eventually(t, 20*time.Second, func() error {
			return s.withBus(func(ctx context.Context, b *events.Bus) error { return b.EnsureStreams(ctx) })
		})
	}
	eventually(t, 20*time.Second, func() (err error) {
		s.nc, err = nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1),
			nats.ReconnectWait(100*time.Millisecond), nats.ReconnectBufSize(-1))
		return err
	})
	t.Cleanup(func() { s.nc.Close() })
	s.js, err = jetstream.New(s.nc)
	s.must(err)
}

func (s *system) openDatabase() {
	driver, address := "pgx", s.database
	if s.database == "" {
		path := filepath.Join(s.dir, "papermap.db")
		if folder := filepath.Join(s.dir, "database"); isFolder(folder) {
			path = filepath.Join(folder, "papermap.db")
		}
		s.database, driver, address = "sqlite:"+path, "sqlite3", "file:"+path+"?_busy_timeout=5000"
	}
	var err error
	s.sql, err = sqlx.Open(driver, address)
	s.must(err)
	s.t.Cleanup(func() { _ = s.sql.Close() })
	s.db, err = repo.Open(s.t.Context(), s.database)
	s.must(err)
	s.t.Cleanup(func() { _ = s.db.Close() })
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (s *system) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// keepLogs removes the system's files, or says where they are if the test has failed.
func (s *system) keepLogs() {
	if !s.t.Failed() {
		_ = os.RemoveAll(s.dir)
		return
	}
	s.t.Logf("kept: %s", s.dir)
	logs, _ := filepath.Glob(filepath.Join(s.dir, "worker*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		s.t.Logf("end of %s:\n%s", path, text[max(0, len(text)-4000):])
	}
}

// withBus connects to the first NATS server as a worker does.
func (s *system) withBus(do func(context.Context, *events.Bus) error) error {
	bus, err := events.Connect(events.Options{
		URL: s.nats[0].url(), Subjects: subjects, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1,
		MaxAge: 720 * time.Hour,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer bus.Close(context.WithoutCancel(s.t.Context()))
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	return do(ctx, bus)
}

// startWorker starts a worker with more settings, which may replace those of the system.
func (s *system) startWorker(name string, env ...string) (*process, error) {
	env = append(append([]string{"HTTP_ADDR=off"}, s.env...), env...)
	return launch(filepath.Join(s.dir, name+".log"), build(s.t).worker, env, "serve")
}

// view is the system as package proof reads it.
func (s *system) view() proof.System {
	return proof.System{
		DB: s.sql, Repo: s.db, JetStream: s.js, Stream: "PAPERMAP", Subjects: subjects, Simulator: s.sim,
	}
}

// quiet returns what is still to be done, or nil when there is nothing.
func (s *system) quiet() error {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	if err := proof.Quiet(ctx, s.view()); err != nil {
		return err
	}
	var n int
	err := s.sql.GetContext(ctx, &n, `SELECT COUNT(*) FROM tenant_dashboards
		WHERE stage IN ('pending', 'creating') AND created_event > deleted_event`)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d tenants are still to have a dashboard", n)
	}
	return err
}

// waitQuiet waits until nothing is left to be done.
func (s *system) waitQuiet(limit time.Duration) {
	s.t.Helper()
	start := time.Now()
	if err := waitFor(s.t.Context(), limit, s.quiet); err != nil {
		s.t.Errorf("%s: not quiet after %v: %v", s.name, limit, err)
	}
	s.t.Logf("%s: quiet after %v", s.name, time.Since(start).Round(100*time.Millisecond))
}

// expire ends what a dead or stopped worker has left, as if its time had passed: claims of tenants,
// events in flight, and if no worker runs, the leases of the relay and of usage runs. It may be
// called while NATS or the database is down; then the workers have to wait.
func (s *system) expire(ctx context.Context, noWorker bool) {
	// Claims come first: an event that is delivered again and finds one is deferred to its end.
	statements := []string{"UPDATE tenant_dashboards SET claimable_at = NULL"}
	if noWorker {
		statements = append(statements, "DELETE FROM leases")
	}
	for _, statement := range statements {
		if _, err := s.sql.ExecContext(ctx, statement); err != nil {
			s.t.Logf("%s: %s: %v", s.name, statement, err)
		}
	}
	// A shorter AckWait brings deliveries and delayed naks forward, too.
	for _, name := range []string{events.MainConsumer, events.AccessConsumer} {
		c, err := s.js.Consumer(ctx, "PAPERMAP", name)
		if err != nil {
			continue // no worker has made it yet
		}
		config := c.CachedInfo().Config
		normal := config.AckWait
		config.AckWait = time.Second
		_, err = s.js.UpdateConsumer(ctx, "PAPERMAP", config)
		sleep(ctx, 1200*time.Millisecond)
		config.AckWait = normal
		if _, restoreErr := s.js.UpdateConsumer(ctx, "PAPERMAP", config); restoreErr != nil || err != nil {
			s.t.Logf("%s: AckWait of %s: %v, %v", s.name, name, err, restoreErr) // a worker corrects it
		}
	}
}

// collect completes a history with what the run has left, including the workers' logs.
func (s *system) collect(h proof.History) proof.History {
	s.t.Helper()
	schematest.CheckStream(s.t, s.js)
	h.Workspaces, h.LongestLife, h.Texts = s.workspaces, time.Hour, map[string]string{}
	logs, err := filepath.Glob(filepath.Join(s.dir, "worker*.log"))
	if err != nil || len(logs) == 0 {
		s.t.Fatalf("no log of a worker, error %v", err)
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		s.must(err)
		h.Texts[filepath.Base(path)] = string(text)
	}
	h, err = proof.Collect(s.t.Context(), s.view(), h)
	s.must(err)
	return h
}

// check collects and fails the test with each promise that was broken.
func (s *system) check(h proof.History) proof.History {
	s.t.Helper()
	h = s.collect(h)
	for _, v := range proof.Check(h) {
		s.t.Errorf("%s: violation of %v", s.name, v) // TestMutants looks for this
	}
	return h
}

// eventually fails the test if try still returns an error after limit.
func eventually(t testing.TB, limit time.Duration, try func() error) {
	t.Helper()
	if err := waitFor(t.Context(), limit, try); err != nil {
		t.Fatalf("not within %v: %v", limit, err)
	}
}

func waitFor(ctx context.Context, limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) || !sleep(ctx, 50*time.Millisecond) {
			return err
		}
	}
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
