// Package pgtest gives tests a PostgreSQL server of their own.
//
// A package's tests call [Main] from TestMain and [Need] for a fresh database:
//
//	var postgres *pgtest.Server
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m, &postgres)) }
//
//	func TestSomething(t *testing.T) {
//		address := pgtest.Need(t, postgres)
//		…
//	}
//
// The server is the one at TEST_POSTGRES_URL (a user who may create databases), or else a private
// one made by initdb in a temporary folder. If neither is available, tests are skipped. With
// CI=true they fail instead.
//
// A private server ends with the process, even if a test panics or is killed.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
)

// Server is a PostgreSQL server for one test binary.
type Server struct {
	url       string // of a database that one can connect to
	bin, data string // of a private server
	port      int
	databases atomic.Int64
	shared    func() (string, error) // makes the database of Shared once

	sharedAddress string // empty until it is made

	alive io.Closer // while it is open, the server runs
	ended *exec.Cmd // ends when the server has stopped and its files are gone
}

var errNone = errors.New("no PostgreSQL server binaries found (Debian: apt-get install postgresql), " +
	"and TEST_POSTGRES_URL is not set")

// Start returns the server for the tests.
func Start() (*Server, error) {
	if address := os.Getenv("TEST_POSTGRES_URL"); address != "" {
		return newServer(address), nil
	}
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	s, err := private(bin)
	if err != nil {
		return nil, err
	}
	if err := s.guard(); err != nil {
		return nil, err
	}
	err = s.run("initdb", "-D", "db", "-U", "postgres", "-A", "trust", "-E", "UTF8",
		"--locale", "C", "--no-sync")
	if err != nil {
		return nil, err
	}
	return s, s.start()
}

func newServer(address string) *Server {
	s := &Server{url: address}
	s.shared = sync.OnceValues(func() (_ string, err error) {
		s.sharedAddress, err = s.create()
		return s.sharedAddress, err
	})
	return s
}

// guard starts a process that stops the server and removes its files when this process is done with
// it or has ended, which closes this end of the pipe.
func (s *Server) guard() error {
	script := `cat; [ ! -e db/postmaster.pid ] || "$1/pg_ctl" -D db -m immediate -w stop; cd /; rm -rf "$2"`
	cmd, err := s.command("sh", "-c", script, "guard", s.bin, s.data)
	if err != nil {
		return err
	}
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for the tests alone
	alive, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("make a pipe for the guard: %w", err)
	}
	s.alive, s.ended = alive, cmd
	return cmd.Start()
}

// private chooses a folder and a port for a new server.
func private(bin string) (*Server, error) {
	data, err := os.MkdirTemp(tempDir(), "papermap-pgtest-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for PostgreSQL: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("finding a free port: %w", err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	s := newServer(fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port))
	s.bin, s.data, s.port = bin, data, port
	return s, s.own()
}

// Standby starts a copy of the private server that follows it and can only be read, until the test
// ends. It returns the copy's host and port.
func (s *Server) Standby(t testing.TB) string {
	t.Helper()
	standby, err := private(s.bin)
	if err == nil {
		err = standby.run("pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "postgres",
			"-D", "db", "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	}
	if err == nil {
		err = standby.guard()
	}
	if err == nil {
		err = standby.start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	return fmt.Sprintf("127.0.0.1:%d", standby.port)
}

// Private says whether the server was started by Start.
func (s *Server) Private() bool { return s.data != "" }

// Restart stops the private server at once, as a crash would, and starts it again.
func (s *Server) Restart() error {
	if err := s.run("pg_ctl", "-D", "db", "-m", "immediate", "-w", "stop"); err != nil {
		return err
	}
	return s.start()
}

func (s *Server) start() error {
	// A crash of the machine may lose what tests have written. A crash of the server may not, as in
	// production.
	options := fmt.Sprintf("-p %d -c listen_addresses=127.0.0.1 -c unix_socket_directories=%s "+
		"-c max_connections=300 -c fsync=off -c full_page_writes=off", s.port, s.data)
	return s.run("pg_ctl", "-D", "db", "-w", "-l", "log", "-o", options, "start")
}

// Stop ends a private server and removes its files.
func (s *Server) Stop() error {
	if !s.Private() {
		if s.sharedAddress == "" {
			return nil
		}
		return s.drop(s.sharedAddress)
	}
	return errors.Join(s.alive.Close(), s.ended.Wait())
}

// Database makes an empty database that is dropped when the test ends, and returns its address.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	address, err := s.create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.drop(address); err != nil {
			t.Error(err)
		}
	})
	return address
}

// create makes an empty database and returns its address.
func (s *Server) create() (string, error) {
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), s.databases.Add(1))
	address, err := url.Parse(s.url)
	if err != nil {
		return "", err
	}
	address.Path = "/" + name
	return address.String(), execute(s.url, "CREATE DATABASE "+name)
}

func (s *Server) drop(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	return execute(s.url, "DROP DATABASE IF EXISTS "+path.Base(u.Path)+" WITH (FORCE)")
}

// Shared returns the address of a database that tests use one after the other, which is much faster
// than a new one for each. It contains the previous test's data: see [Empty].
func Shared(t testing.TB, s *Server) string {
	t.Helper()
	if s == nil {
		t.Skip(errNone)
	}
	address, err := s.shared()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// Empty is a statement that empties every table but goose's list of migrations.
const Empty = `DO $$ DECLARE name text; filled boolean; BEGIN
	FOR name IN SELECT tablename FROM pg_tables
		WHERE schemaname = 'public' AND tablename <> 'goose_db_version' LOOP
		EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I)', name) INTO filled;
		IF filled THEN EXECUTE format('TRUNCATE %I', name); END IF;
	END LOOP; END $$`

// SharedEmpty is [Shared] with empty tables, or with none if the database is new.
func SharedEmpty(t testing.TB, s *Server) string {
	t.Helper()
	address := Shared(t, s)
	if err := execute(address, Empty); err != nil {
		t.Fatal(err)
	}
	return address
}

func execute(address, statement string) error {
	db, err := sql.Open("pgx", address)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(context.Background(), statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// Main runs a package's tests with *server set, or nil if tests may run without one: see [Need].
// Temporary files of the tests and the private server are in memory if possible.
func Main(m *testing.M, server **Server) int {
	_ = os.Setenv("TMPDIR", tempDir())
	s, err := Start()
	if err != nil && (!errors.Is(err, errNone) || os.Getenv("CI") == "true") {
		fmt.Fprintln(os.Stderr, "starting PostgreSQL for tests:", err)
		return 1
	}
	*server = s
	code := m.Run()
	if s != nil {
		if err := s.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping PostgreSQL:", err)
			return 1
		}
	}
	return code
}

// tempDir is the folder for temporary files: os.TempDir, or one in memory if TMPDIR is not set and
// there is enough room. Tests kill processes and never the machine, so an fsync only costs them
// time.
func tempDir() string {
	const memory, enough, noExec = "/dev/shm", 2 << 30, 0x8 // statfs(2): ST_NOEXEC
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") != "" || syscall.Statfs(memory, &fs) != nil || fs.Flags&noExec != 0 ||
		fs.Bavail*uint64(fs.Bsize) < enough {
		return os.TempDir()
	}
	return memory
}

// Need returns a fresh database's address, and skips the test if there is no server.
func Need(t testing.TB, s *Server) string {
	t.Helper()
	if s == nil {
		t.Skip(errNone)
	}
	return s.Database(t)
}

// ForTest starts a server for one test only and returns the address of a database on it, or skips
// the test as Need does.
func ForTest(t testing.TB) string {
	t.Helper()
	s, err := Start()
	if errors.Is(err, errNone) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s.Database(t)
}

func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil { // to where its siblings are
			return filepath.Dir(path), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errNone
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), nil
}

// own gives the folder to the user that PostgreSQL runs as: PostgreSQL refuses to run as root.
func (s *Server) own() error {
	if os.Getuid() != 0 {
		return nil
	}
	credential, err := unprivileged()
	if err != nil {
		return err
	}
	return os.Chown(s.data, int(credential.Uid), int(credential.Gid))
}

func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("reading the id of user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("reading the group of user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
}

// command is a program that runs in the server's folder, as its user.
func (s *Server) command(program string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.SysProcAttr = s.data, &syscall.SysProcAttr{}
	if os.Getuid() != 0 {
		return cmd, nil
	}
	credential, err := unprivileged()
	cmd.SysProcAttr.Credential = credential
	return cmd, err
}

// run runs one of PostgreSQL's programs to its end.
func (s *Server) run(program string, args ...string) error {
	cmd, err := s.command(filepath.Join(s.bin, program), args...)
	if err != nil {
		return err
	}
	// A file, not a pipe: the server inherits it and would keep a pipe open.
	out, err := os.CreateTemp("", "papermap-pgtest-out-")
	if err != nil {
		return fmt.Errorf("making a file for output: %w", err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w\n%s", program, err, text)
	}
	return nil
}
