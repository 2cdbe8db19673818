package e2e

import (
	"bytes"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	contract "papermap-worker/schema/schematest"
	"papermap-worker/worker/cli"
	"papermap-worker/worker/workertest"
)

// TestMain makes the test binary the program as well: under the name papermap-worker, first in
// PATH, it runs the command line.
func TestMain(m *testing.M) {
	testscript.Main(inRepository{m}, map[string]func(){
		"papermap-worker": func() { os.Exit(cli.Run(testBuild, os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// inRepository runs the tests, but not the program, in the repository's root: paths such as
// docs/operations.md are relative to it. It sets the passwords that the files of docs/nats read
// from the environment.
type inRepository struct{ *testing.M }

func (m inRepository) Run() int {
	if signal.Ignored(syscall.SIGHUP) { // as under nohup; the programs would ignore it, too
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	if err := os.Chdir("../.."); err != nil {
		panic(err)
	}
	for role, r := range natsRoles {
		if r.variable != "" {
			os.Setenv(r.variable, strconv.Quote(natsPassword(role)))
		}
	}
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		// the tests mostly wait for processes, so they are more than the processors
		_ = parallel.Value.Set("16")
	}
	var err error
	if sharedDir, err = os.MkdirTemp("", "papermap-e2e-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(sharedDir)
	go startPostgres()
	defer func() {
		if s, err := startPostgres(); err == nil {
			_ = s.Stop()
		}
	}()
	return m.M.Run()
}

// What several tests need and is slow to make.
var (
	sharedDir     string
	startPostgres = sync.OnceValues(pgtest.Start) // begins with the first test
)

// postgres returns the address of an empty database on the shared server.
func postgres(t *testing.T) string {
	t.Helper()
	s, err := startPostgres()
	if err != nil {
		without(t, "no PostgreSQL: %v", err)
	}
	return s.Database(t)
}

// Canaries are secrets that must not show anywhere.
const (
	secretCanary   = "sk_CANARY_of_the_key"
	passwordCanary = "CANARY_of_NATS"
)

var testWorkspace = papermap.Workspace{ID: "ws-test",
	Key: papermap.KeyPair{ID: "ak_test", Secret: papermap.NewSecret(secretCanary)}}

// system is what a worker needs, in this process: a NATS server, the simulator and a folder for the
// database.
type system struct {
	nats     *embedded.Server
	sim      *simulator.Simulator
	api      *simulator.Server
	env      []string // the settings of a worker that uses them
	db       string   // path of the SQLite file
	database string   // the worker's DATABASE_URL
}

// startSystem starts a system with these faults, as simulator.ParseFault reads them.
func startSystem(dir string, faults ...string) (*system, error) {
	o := simulator.Options{Workspaces: []papermap.Workspace{testWorkspace}}
	for _, text := range faults {
		f, err := simulator.ParseFault(text)
		if err != nil {
			return nil, err
		}
		o.Faults = append(o.Faults, f)
	}
	s := &system{sim: simulator.New(o), db: filepath.Join(dir, "papermap.db")}
	s.database = "sqlite:" + s.db
	var err error
	if s.api, err = simulator.Serve(s.sim, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.nats, err = embedded.Start(filepath.Join(dir, "jetstream"), 0); err != nil {
		s.api.Close()
		return nil, err
	}
	s.env = append(apiSettings(s.api.URL),
		"PAPERMAP_SECRET_KEY="+secretCanary, "DATABASE_URL="+s.database, "NATS_URL="+s.nats.URL(),
		"USAGE_SYNC_SCHEDULE=off") // its ticks would stand between the tests' own events
	return s, nil
}

// apiSettings are the settings of a worker on an API at an address, without a secret.
func apiSettings(address string) []string {
	return []string{
		"PAPERMAP_API_URL=" + address, "PAPERMAP_EMBED_URL=" + address + "/embedded/dashboard",
		"PAPERMAP_WORKSPACE_ID=ws-test", "PAPERMAP_API_KEY_ID=ak_test", "HTTP_ADDR=127.0.0.1:0",
		"LOG_LEVEL=debug",
	}
}

func (s *system) close() {
	s.nats.Close()
	s.api.Close()
}

func newSystem(t *testing.T, faults ...string) *system {
	t.Helper()
	s, err := startSystem(t.TempDir(), faults...)
	must(t, err)
	t.Cleanup(s.close)
	return s
}

// usePostgres gives the worker an empty PostgreSQL database.
func (s *system) usePostgres(t *testing.T) {
	t.Helper()
	s.database = postgres(t)
	s.env = append(s.env, "DATABASE_URL="+s.database)
}

// jetStream is a connection of ours to the NATS server, with the worker's streams made. At the end
// of the test, the events of the stream fit their schemas.
func (s *system) jetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	bus, err := events.Connect(events.Options{
		URL: s.nats.URL(), Subjects: subjects, Stream: "PAPERMAP",
		ManageStreams: true, Replicas: 1, MaxAge: 720 * time.Hour,
	}, slog.New(slog.DiscardHandler))
	must(t, err)
	defer bus.Close(t.Context())
	must(t, bus.EnsureStreams(t.Context()))
	js := s.rawJetStream(t)
	t.Cleanup(func() { contract.CheckStream(t, js) })
	return js
}

// rawJetStream is a connection of ours to the NATS server as it is.
func (s *system) rawJetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.nats.URL(), nats.Timeout(patience))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return js
}

var subjects = events.Subjects{Prefix: "papermap"}

// openSQL opens a worker's database, to look at it or to change it behind the worker's back.
func openSQL(t *testing.T, address string) *sqlx.DB {
	t.Helper()
	driver, source := "pgx", address
	if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
		driver, source = "sqlite3", "file:"+path+"?_busy_timeout=5000"
	}
	db, err := sqlx.Open(driver, source)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// openRepo opens a worker's database as the worker does.
func openRepo(t *testing.T, address string) *repo.DB {
	t.Helper()
	db, err := repo.Open(t.Context(), address)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
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
	return startProgram(t, "papermap-worker", env, args...)
}

// startProgram does the same with another program.
func startProgram(t *testing.T, program string, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	must(t, p.cmd.Start())
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
	must(t, p.cmd.Process.Signal(s))
}

// wait returns the exit code, -1 when a signal ended the process.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("still running after %v", patience)
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		t.Fatal(p.err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop ends the process with SIGTERM, and expects that it drains and exits with 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// run runs the program, which must exit with 0, and returns what it printed.
func run(t *testing.T, env []string, args ...string) string {
	t.Helper()
	p := start(t, env, args...)
	if code := p.wait(t); code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, code, p.text())
	}
	return p.text()
}

// read reads an HTTP answer: answer, body, err := read(http.Get(address)).
func read(answer *http.Response, err error) (*http.Response, string, error) {
	if err != nil {
		return answer, "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer, string(body), err
}

// ready waits until the worker at the address is ready.
func ready(t *testing.T, address string) {
	t.Helper()
	eventually(t, func() error {
		answer, text, err := read(http.Get("http://" + address + "/readyz"))
		if err == nil && answer.StatusCode != http.StatusOK {
			err = errors.New(text)
		}
		return err
	})
}

// startReady starts a worker and returns when it says that it is ready.
func startReady(t *testing.T, env []string) *process {
	t.Helper()
	p := start(t, env, "serve")
	ready(t, p.address(t))
	return p
}

// address waits for the worker's HTTP address, as it logs it.
func (p *process) address(t *testing.T) string {
	t.Helper()
	var address string
	eventually(t, func() error {
		_, rest, ok := strings.Cut(p.text(), `"msg":"serving HTTP","address":"`)
		if !ok {
			return errors.New("no HTTP address in the log")
		}
		address, _, _ = strings.Cut(rest, `"`)
		return nil
	})
	return address
}

// says waits until the process has printed a text.
func (p *process) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, func() error {
		if !strings.Contains(p.text(), text) {
			return fmt.Errorf("it has not printed %q", text)
		}
		return nil
	})
}

// prints runs a command again and again, until it succeeds and prints what a pattern matches. It
// returns what that was.
func prints(t *testing.T, pattern string, env []string, args ...string) string {
	t.Helper()
	var text string
	eventually(t, func() error {
		p := start(t, env, args...)
		code := p.wait(t)
		if text = p.text(); code != 0 || !matches(pattern, text) {
			return fmt.Errorf("%v: exit code %d, and not %q:\n%s", args, code, pattern, text)
		}
		return nil
	})
	return text
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

// ask sends a request over NATS, which must be answered.
func ask(t *testing.T, nc *nats.Conn, subject, body string) *nats.Msg {
	t.Helper()
	reply, err := nc.Request(subject, []byte(body), 5*time.Second)
	if err != nil {
		t.Fatalf("request %s: %v", subject, err)
	}
	return reply
}

// tempFile writes a file in a folder of its own.
func tempFile(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// must ends the test if there is an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is how long a test waits for what should happen at once. The machine can be busy with
// other tests.
const patience = time.Minute

// eventually tries until there is no error.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	workertest.Eventually(t, patience, try)
}

// status waits until the tenant's mapping has the status, and returns its dashboard's id.
func (s *system) status(t *testing.T, tenant, want string) string {
	t.Helper()
	db := openSQL(t, s.database)
	var is struct {
		Status    string         `db:"status"`
		Dashboard sql.NullString `db:"dashboard_id"`
	}
	eventually(t, func() error {
		err := db.Get(&is,
			db.Rebind("SELECT status, dashboard_id FROM tenant_dashboards WHERE tenant_id = ?"), tenant)
		if err == nil && is.Status != want {
			err = fmt.Errorf("tenant %s is %s, not %s", tenant, is.Status, want)
		}
		return err
	})
	return is.Dashboard.String
}

// openEmbedded opens the address as an iframe would, and returns why Papermap refuses it.
func openEmbedded(address string) error {
	answer, body, err := read(http.Get(address))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("papermap refused the token: status %d: %s", answer.StatusCode, body)
	}
	return err
}

func tail(s string, length int) string { return s[max(0, len(s)-length):] }
