// Bench measures the worker's token service from outside: it builds the real program, starts it with a NATS server and a
// database that is filled beforehand, each in a process of its own, and asks for tokens.
//
//	go run ./worker/proof/bench tokens                     rates and latencies, beside a bare micro endpoint and HTTP
//	go run ./worker/proof/bench tokens -flood              what five times more requests than it can answer do to it
//	go run ./worker/proof/bench tokens -tenants 100000     its memory with so many tenants in it
//
// What it prints depends on the machine; the ratios of one run, whose rounds are interleaved, depend on it less.
package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "github.com/mattn/go-sqlite3"
	"github.com/nats-io/nats.go"
)

// What the worker is configured with, and the HTTP server that is compared with it.
const (
	workspaceID = "7b0c6a52-6a3f-4f4b-9a0c-0d6f3f1f8a11"
	keyID       = "ak_embed_0123456789"
	secret      = "sk_0123456789abcdef0123456789abcdef"
	embedURL    = "https://papermap.ai/embedded/dashboard"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("what to measure? `go run ./worker/proof/bench tokens`")
	}
	switch args[0] {
	case "tokens":
		return tokens(ctx, args[1:])
	case "bare-micro": // the others are processes that tokens starts
		return bareMicro(ctx, args[1])
	case "bare-http":
		return bareHTTP(ctx)
	case "pour":
		return pour(ctx, args[1:])
	}
	return fmt.Errorf("%s is nothing that can be measured: only tokens", args[0])
}

func tokens(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("tokens", flag.ContinueOnError)
	var (
		address = flags.String("nats", "", "address of a NATS server with JetStream to use; by default one is built and started")
		tenants = flags.Int("tenants", 1000, "tenants in the database; when given, only the worker's memory with them is measured")
		flood   = flags.Bool("flood", false, "flood the worker instead")
		rounds  = flags.Int("rounds", 5, "rounds, of which the medians are printed")
		each    = flags.Duration("each", 2*time.Second, "time of one measurement")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	memoryAlone := false
	flags.Visit(func(f *flag.Flag) { memoryAlone = memoryAlone || f.Name == "tenants" })

	s, err := startSystem(ctx, *address, *tenants)
	if err != nil {
		return err
	}
	defer s.stop()
	switch {
	case *flood:
		return s.flood(ctx)
	case memoryAlone:
		return s.memory(ctx)
	}
	return s.compare(ctx, *rounds, *each)
}

// system is a worker and what it needs, each in its own process.
type system struct {
	dir       string
	tenants   int
	url       string // of NATS
	nc        *nats.Conn
	worker    *process
	ready     string // address of the worker's /readyz
	processes []*process
}

func startSystem(ctx context.Context, natsURL string, tenants int) (s *system, err error) {
	s = &system{tenants: tenants, url: natsURL}
	if s.dir, err = os.MkdirTemp("", "papermap-bench-"); err != nil {
		return nil, fmt.Errorf("making a temporary folder: %w", err)
	}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if s.url == "" {
		server, err := s.build(ctx, "github.com/nats-io/nats-server/v2", "nats-server")
		if err != nil {
			return nil, err
		}
		p, err := s.start(server, nil, "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", filepath.Join(s.dir, "jetstream"))
		if err != nil {
			return nil, err
		}
		port, err := p.says(ctx, "Listening for client connections on 127.0.0.1:", "\n")
		if err != nil {
			return nil, err
		}
		s.url = "nats://127.0.0.1:" + strings.TrimSpace(port)
	}
	program, err := s.build(ctx, "papermap-worker", "papermap-worker")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "papermap.db")
	env := []string{
		"DATABASE_URL=sqlite:" + file, "NATS_URL=" + s.url, "PAPERMAP_API_URL=http://127.0.0.1:9", "PAPERMAP_WORKSPACE_ID=" + workspaceID,
		"PAPERMAP_API_KEY_ID=ak_bench", "PAPERMAP_SECRET_KEY=sk_bench", "PAPERMAP_EMBED_API_KEY_ID=" + keyID, "PAPERMAP_EMBED_SECRET_KEY=" + secret,
		"PAPERMAP_EMBED_URL=" + embedURL, "USAGE_SYNC_SCHEDULE=off", "HTTP_ADDR=127.0.0.1:0", "LOG_FORMAT=json",
	}
	migrate := exec.CommandContext(ctx, program, "migrate")
	migrate.Env = env
	if out, err := migrate.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making the database: %w\n%s", err, out)
	}
	if err := fill(ctx, file, tenants); err != nil {
		return nil, err
	}
	if s.worker, err = s.start(program, env, "serve"); err != nil {
		return nil, err
	}
	if s.ready, err = s.worker.says(ctx, `"msg":"serving HTTP","address":"`, `"`); err != nil {
		return nil, err
	}
	if s.nc, err = nats.Connect(s.url); err != nil {
		return nil, fmt.Errorf("connecting to NATS: %w", err)
	}
	return s, s.waitForToken(ctx)
}

// waitForToken waits until the worker answers.
func (s *system) waitForToken(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		asking, enough := context.WithTimeout(ctx, time.Second)
		reply, err := s.nc.RequestWithContext(asking, "papermap.rpc.embed-token", request(0))
		enough()
		if err == nil && strings.HasPrefix(string(reply.Data), `{"token":"`) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the worker gives no token: %w\n%s", err, s.worker.text())
		}
	}
}

func (s *system) stop() {
	if s.nc != nil {
		s.nc.Close()
	}
	for i := len(s.processes) - 1; i >= 0; i-- {
		s.processes[i].stop()
	}
	_ = os.RemoveAll(s.dir)
}

// build builds a program of this module, or of one that it requires.
func (s *system) build(ctx context.Context, pkg, name string) (string, error) {
	path := filepath.Join(s.dir, name)
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s (run this in the repository): %w\n%s", pkg, err, out)
	}
	return path, nil
}

// start starts a program, or this one again when name is empty. Its output goes into a file.
func (s *system) start(name string, env []string, args ...string) (*process, error) {
	var err error
	if name == "" {
		if name, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("looking for this program: %w", err)
		}
	}
	out, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("output-%d", len(s.processes))))
	if err != nil {
		return nil, fmt.Errorf("making a log file: %w", err)
	}
	defer out.Close()
	p := &process{cmd: exec.Command(name, args...), output: out.Name()}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, out, out
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	s.processes = append(s.processes, p)
	return p, nil
}

// process is a running program.
type process struct {
	cmd    *exec.Cmd
	output string // path
}

func (p *process) text() string {
	text, err := os.ReadFile(p.output)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// says waits until the process has written something, and returns what follows up to end.
func (p *process) says(ctx context.Context, what, end string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		_, rest, _ := strings.Cut(p.text(), what)
		if text, _, found := strings.Cut(rest, end); found {
			return text, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return "", fmt.Errorf("%s does not say %q, but\n%s", p.cmd.Path, what, p.text())
		}
	}
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	ended := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer ended.Stop()
	_ = p.cmd.Wait()
}

// status reads a number from the system's account of the process: VmRSS and VmHWM in KiB, Threads.
func (p *process) status(name string) (n int, err error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("looking at the worker's memory: %w", err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), name+":"); found {
			_, err := fmt.Sscan(value, &n)
			return n, err
		}
	}
	return 0, io.ErrUnexpectedEOF
}

// cpu is the processor time that the process has used so far.
func (p *process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("looking at a process's time: %w", err)
	}
	var user, system int64 // in hundredths of a second, the 14th and 15th field; the 2nd is a name in parentheses
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, fmt.Errorf("looking at a process's time: %w", err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

// resetPeak makes VmHWM begin anew.
func (p *process) resetPeak() error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("resetting the worker's peak of memory: %w", err)
	}
	return nil
}

// fill writes so many active tenants into a new database.
func fill(ctx context.Context, file string, tenants int) error {
	db, err := sql.Open("sqlite3", "file:"+file)
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
		INSERT INTO tenant_dashboards (tenant_id, workspace_id, dashboard_id, title, status, stage, created_event, created_at, updated_at)
		SELECT printf('org-%07d', i), ?, printf('b4a7a2f8-1c55-4a6e-8f0e-%012d', i), printf('Dashboard - Company %d', i), 'active', 'active', 1,
			'2025-01-01T00:00:00.000Z', '2025-01-01T00:00:00.000Z' FROM n`, tenants, workspaceID)
	if err != nil {
		return fmt.Errorf("filling the database: %w", err)
	}
	return nil
}

// request is a request for a tenant's token.
func request(tenant int) []byte { return fmt.Appendf(nil, `{"tenant_id":"org-%07d"}`, tenant) }
