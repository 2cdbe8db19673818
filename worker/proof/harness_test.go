package proof_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

// These tests run the program and the NATS server as processes, because only a process can be killed. The simulator is in
// the test's own process, behind a proxy that can cut connections.

var subjects = events.Subjects{Prefix: "papermap"}

var workspace = papermap.Workspace{ID: "ws-proof", Key: papermap.KeyPair{ID: "ak_proof", Secret: papermap.NewSecret("sk_proof")}}

// postgres is the server of the tests on PostgreSQL; nil where there is none.
var postgres *pgtest.Server

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // the tests mostly wait for leases and kills
	dir, err := os.MkdirTemp("", "papermap-proof-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a folder for programs:", err)
		os.Exit(1)
	}
	built.dir = dir
	code := pgtest.Main(m, &postgres)
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// programs are the files that the tests run.
type programs struct{ worker, nats string }

// built are the programs, once a test has asked for them.
var built struct {
	dir  string
	once sync.Once
	programs
	err error
}

// build builds the worker, with failpoints, and the NATS server that go.mod has.
func build(t *testing.T) programs {
	t.Helper()
	built.once.Do(func() {
		built.programs = programs{filepath.Join(built.dir, "papermap-worker"), filepath.Join(built.dir, "nats-server")}
		for _, args := range [][]string{
			{"build", "-tags", "failpoints", "-o", built.worker, "papermap-worker"}, {"build", "-o", built.nats, "github.com/nats-io/nats-server/v2"},
		} {
			if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
				built.err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.programs
}

// process is a program that runs. Its output goes to the end of a file.
type process struct {
	cmd  *exec.Cmd
	log  *os.File
	from int64         // where its output begins in the file
	done chan struct{} // closed when it has ended
}

func launch(log, program string, env []string, args ...string) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(program, args...), log: file, done: make(chan struct{})}
	if p.from, err = file.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", program, err), file.Close())
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	return p, nil
}

// kill ends the process as `kill -9` does, and returns when it has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// ended says how the process ended: by which signal, or 0 and with which code.
func (p *process) ended() (syscall.Signal, int) {
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal(), -1
	}
	return 0, p.cmd.ProcessState.ExitCode()
}

// output is what the process has written so far.
func (p *process) output() string {
	info, err := p.log.Stat()
	if err != nil || info.Size() <= p.from {
		return ""
	}
	text := make([]byte, info.Size()-p.from)
	n, _ := p.log.ReadAt(text, p.from)
	return string(text[:n])
}

// stopped says whether the process was stopped by SIGSTOP.
func (p *process) stopped() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return false
	}
	_, state, ok := strings.Cut(string(stat), ") ") // behind the program's name
	return ok && strings.HasPrefix(state, "T")
}

// natsServer is a NATS server with JetStream in a process, on the same port and store at each start.
type natsServer struct {
	program, dir, log string
	port              int
	more              []string // arguments, of a cluster
	process           *process
}

func newNATS(t *testing.T, p programs, dir, name string) *natsServer {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return &natsServer{program: p.nats, dir: filepath.Join(dir, name), log: filepath.Join(dir, name+".log"), port: port}
}

func (n *natsServer) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", n.port) }

func (n *natsServer) start() (err error) {
	args := append([]string{"-a", "127.0.0.1", "-p", fmt.Sprint(n.port), "-js", "-sd", n.dir}, n.more...)
	n.process, err = launch(n.log, n.program, nil, args...)
	return err
}

// restart kills the server and starts it again after a while.
func (n *natsServer) restart(after time.Duration) error {
	n.process.kill()
	time.Sleep(after)
	return n.start()
}

// proxy passes connections on to the simulator, as long as nothing else is asked of it.
type proxy struct {
	listener net.Listener
	to       string
	refuse   atomic.Bool  // new connections are closed at once
	delay    atomic.Int64 // nanoseconds, before anything is passed on
	copies   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, to: strings.TrimPrefix(to, "http://"), conns: map[net.Conn]bool{}}
	p.copies.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		p.copies.Wait()
	})
	return p
}

func (p *proxy) url() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		if p.refuse.Load() {
			_ = client.Close()
			continue
		}
		server, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		p.copies.Go(func() { p.pass(client, server) })
		p.copies.Go(func() { p.pass(server, client) })
	}
}

// pass copies one direction and closes both when it ends.
func (p *proxy) pass(from, to net.Conn) {
	defer p.drop(from, to)
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		if delay := time.Duration(p.delay.Load()); delay > 0 {
			time.Sleep(delay)
		}
		if n > 0 {
			if _, err := to.Write(piece[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) drop(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(p.conns, c)
	}
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// system is what workers share, and what they share it with.
type system struct {
	t        *testing.T
	name     string
	dir      string // kept when the test fails
	programs programs
	nats     []*natsServer
	sim      *simulator.Simulator
	proxy    *proxy
	database string
	env      []string
	nc       *nats.Conn // the publishers' and callers'
	js       jetstream.JetStream
	sql      *sqlx.DB // to look at the workers' database
	db       *repo.DB // too
	api      string   // the simulator's own address
}

// newSystem starts everything but the workers. database is empty for SQLite.
func newSystem(t *testing.T, name string, p programs, servers []*natsServer, dir, database string, seed uint64, env ...string) *system {
	t.Helper()
	s := &system{t: t, name: name, dir: dir, programs: p, database: database, nats: servers}
	s.sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}, Seed: seed})
	api, err := simulator.Serve(s.sim, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	s.api, s.proxy = api.URL, startProxy(t, api.URL)
	var urls []string
	for _, n := range servers {
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.process.kill() })
		urls = append(urls, n.url())
	}
	driver, address := "pgx", database
	if database == "" {
		path := filepath.Join(dir, "papermap.db")
		s.database, driver, address = "sqlite:"+path, "sqlite3", "file:"+path+"?_busy_timeout=5000"
	}
	if s.sql, err = sqlx.Open(driver, address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.sql.Close() })
	if s.db, err = repo.Open(t.Context(), s.database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.db.Close() })
	s.env = append([]string{
		"PAPERMAP_API_URL=" + s.proxy.url(), "PAPERMAP_WORKSPACE_ID=" + workspace.ID, "PAPERMAP_API_KEY_ID=" + workspace.Key.ID,
		"PAPERMAP_SECRET_KEY=" + workspace.Key.Secret.Reveal(), "DATABASE_URL=" + s.database, "NATS_URL=" + strings.Join(urls, ","),
		"HTTP_ADDR=off", "USAGE_SYNC_SCHEDULE=off", "LOG_LEVEL=debug", "LOG_FORMAT=json",
	}, env...)

	if len(servers) == 1 {
		eventually(t, 20*time.Second, func() error { return s.makeStreams(urls[0]) })
	}
	eventually(t, 20*time.Second, func() (err error) {
		s.nc, err = nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.ReconnectBufSize(-1))
		return err
	})
	t.Cleanup(func() { s.nc.Close() })
	if s.js, err = jetstream.New(s.nc); err != nil {
		t.Fatal(err)
	}
	return s
}

// makeStreams makes the worker's streams, so that there is something to publish to before the first worker is up.
func (s *system) makeStreams(url string) error {
	bus, err := events.Connect(events.Options{
		URL: url, Subjects: subjects, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1, MaxAge: 720 * time.Hour,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer bus.Close(s.t.Context())
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	return bus.EnsureStreams(ctx)
}

// startWorker starts a worker with more settings. Its output goes to the log of that name.
func (s *system) startWorker(log string, more ...string) (*process, error) {
	return launch(filepath.Join(s.dir, log+".log"), s.programs.worker, append(more, s.env...), "serve")
}

func (s *system) seen() proof.System {
	return proof.System{DB: s.sql, Repo: s.db, JetStream: s.js, Stream: "PAPERMAP", Subjects: subjects, Simulator: s.api}
}

// quiet returns what is still to be done, or nil when there is nothing.
func (s *system) quiet() error {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	if err := proof.Quiet(ctx, s.seen()); err != nil {
		return err
	}
	var n int
	err := s.sql.GetContext(ctx, &n, "SELECT COUNT(*) FROM tenant_dashboards WHERE stage IN ('pending', 'creating') AND created_event > deleted_event")
	if err == nil && n > 0 {
		err = fmt.Errorf("%d tenants are still to have a dashboard", n)
	}
	return err
}

// check collects what the run has left, and fails the test with each promise that was broken. The workers have ended.
func (s *system) check(h proof.History) proof.History {
	s.t.Helper()
	schematest.CheckStream(s.t, s.js)
	h.Workspaces, h.LongestLife, h.Texts = []papermap.Workspace{workspace}, time.Hour, map[string]string{}
	logs, err := filepath.Glob(filepath.Join(s.dir, "worker*.log"))
	if err != nil || len(logs) == 0 {
		s.t.Fatalf("no log of a worker, error %v", err)
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		h.Texts[path] = string(text)
	}
	h, err = proof.Collect(s.t.Context(), s.seen(), h)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, v := range proof.Check(h) {
		s.t.Errorf("%s: violation of %v", s.name, v) // mutants/run looks for this
	}
	return h
}

// eventually tries until there is no error, at most for limit.
func eventually(t *testing.T, limit time.Duration, try func() error) {
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
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// freePort is a port of the loopback interface that nobody listens on, below those that systems give out by themselves, so
// that it stays free.
func freePort() (int, error) {
	for {
		port := 20000 + rand.IntN(10000)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return 0, err
		}
		return port, listener.Close()
	}
}

// tail is the end of a file.
func tail(path string, most int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}
