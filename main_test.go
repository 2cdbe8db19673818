package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	contract "papermap-worker/schema/schematest"
)

// TestMain makes the test binary the program as well: under the name papermap-worker, first in PATH, it runs main.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"papermap-worker": main})
}

// Canaries are secrets that must not show anywhere.
const (
	secretCanary   = "sk_CANARY_of_the_key"
	passwordCanary = "CANARY_of_NATS"
)

var testWorkspace = papermap.Workspace{ID: "ws-test", Key: papermap.KeyPair{ID: "ak_test", Secret: papermap.NewSecret(secretCanary)}}

// system is what a worker needs, in this process: a NATS server, the simulator and a folder for the database.
type system struct {
	nats *embedded.Server
	sim  *simulator.Simulator
	api  *simulator.Server
	env  []string // the settings of a worker that uses them
	db   string   // path
}

func startSystem(dir string, faults ...simulator.Fault) (*system, error) {
	s := &system{db: filepath.Join(dir, "papermap.db")}
	s.sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{testWorkspace}, Faults: faults})
	var err error
	if s.api, err = simulator.Serve(s.sim, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.nats, err = embedded.Start(filepath.Join(dir, "jetstream"), 0); err != nil {
		s.api.Close()
		return nil, err
	}
	s.env = []string{
		"PAPERMAP_API_URL=" + s.api.URL, "PAPERMAP_EMBED_URL=" + s.api.URL + "/embedded/dashboard", "PAPERMAP_WORKSPACE_ID=" + testWorkspace.ID,
		"PAPERMAP_API_KEY_ID=" + testWorkspace.Key.ID, "PAPERMAP_SECRET_KEY=" + secretCanary, "DATABASE_URL=sqlite:" + s.db,
		"NATS_URL=" + s.nats.URL(), "HTTP_ADDR=127.0.0.1:0", "LOG_LEVEL=debug",
		"USAGE_SYNC_SCHEDULE=off", // its ticks would stand between the tests' own events
	}
	return s, nil
}

func (s *system) close() {
	s.nats.Close()
	s.api.Close()
}

func newSystem(t *testing.T, faults ...simulator.Fault) *system {
	t.Helper()
	s, err := startSystem(t.TempDir(), faults...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// jetStream is a connection of ours to the NATS server, with the worker's streams made. At the end of the test, the events
// of the stream fit their schemas.
func (s *system) jetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	bus, err := events.Connect(events.Options{
		URL: s.nats.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1, MaxAge: 720 * time.Hour,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close(t.Context())
	if err := bus.EnsureStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.nats.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { contract.CheckStream(t, js) })
	return js
}

// openSQL opens the database beside the worker, to read it.
func (s *system) openSQL(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+s.db+"?_query_only=1&_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// process is the program, running.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // then

	mu     sync.Mutex
	output bytes.Buffer // stdout and stderr
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// start starts the program with no environment but env. It does not outlive the test.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command("papermap-worker", args...), done: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("output of %v, the end of it:\n%s", args, tail(p.text(), 8000))
		}
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// signal asks the process to stop.
func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// wait returns the exit code, -1 when a signal ended the process.
func (p *process) wait(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(limit):
		t.Fatalf("still running after %v", limit)
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		t.Fatal(p.err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// address waits for the worker's HTTP address, as it logs it.
func (p *process) address(t *testing.T) string {
	t.Helper()
	var address string
	eventually(t, 10*time.Second, func() error {
		_, rest, ok := strings.Cut(p.text(), `"msg":"serving HTTP","address":"`)
		if !ok {
			return errors.New("no HTTP address in the log")
		}
		address, _, _ = strings.Cut(rest, `"`)
		return nil
	})
	return address
}

// health runs the command against the worker and returns its exit code and output.
func health(t *testing.T, address string) (int, string) {
	t.Helper()
	p := start(t, []string{"HTTP_ADDR=" + address}, "health")
	return p.wait(t, 10*time.Second), p.text()
}

// eventually tries until there is no error, at most for limit.
func eventually(t *testing.T, limit time.Duration, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("not within %v: %v", limit, err)
		}
	}
}

// status waits until the tenant's mapping has the status, and returns its dashboard's id.
func (s *system) status(t *testing.T, db *sql.DB, tenant, want string) string {
	t.Helper()
	var dashboard sql.NullString
	eventually(t, 20*time.Second, func() error {
		var status string
		err := db.QueryRowContext(t.Context(), "SELECT status, dashboard_id FROM tenant_dashboards WHERE tenant_id = ?", tenant).Scan(&status, &dashboard)
		if err == nil && status != want {
			err = fmt.Errorf("tenant %s is %s, not %s", tenant, status, want)
		}
		return err
	})
	return dashboard.String
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

func tail(s string, most int) string { return s[max(0, len(s)-most):] }
