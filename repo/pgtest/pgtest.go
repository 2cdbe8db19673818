// Package pgtest gives tests a PostgreSQL server of their own.
//
// A package's tests call [Main] from TestMain and [Server.Database] for a fresh database. The server is the one at
// TEST_POSTGRES_URL (a user who may create databases), else a private one made by initdb in a temporary folder. Where
// neither is to be had, tests are skipped, except with CI=true: there that is a failure.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
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
}

var errNone = errors.New("no PostgreSQL server binaries found (Debian: apt-get install postgresql), and TEST_POSTGRES_URL is not set")

// Start returns the server that tests are to use.
func Start() (*Server, error) {
	if address := os.Getenv("TEST_POSTGRES_URL"); address != "" {
		return &Server{url: address}, nil
	}
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	s, err := private(bin)
	if err != nil {
		return nil, err
	}
	if err := s.run("initdb", "-D", filepath.Join(s.data, "db"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"); err != nil {
		return nil, err
	}
	return s, s.start()
}

// private finds a place for a server that is still to be made there.
func private(bin string) (*Server, error) {
	data, err := os.MkdirTemp("", "papermap-pgtest-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for PostgreSQL: %w", err)
	}
	s := &Server{bin: bin, data: data}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("finding a free port: %w", err)
	}
	s.port = listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	s.url = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", s.port)
	return s, s.own()
}

// Standby starts a copy of the private server that follows it and can only be read, until the test ends. It returns the
// copy's host and port.
func (s *Server) Standby(t testing.TB) string {
	t.Helper()
	standby, err := private(s.bin)
	if err == nil {
		err = standby.run("pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "postgres", "-D", filepath.Join(standby.data, "db"),
			"--write-recovery-conf", "--checkpoint=fast", "--no-sync")
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
	if err := s.run("pg_ctl", "-D", filepath.Join(s.data, "db"), "-m", "immediate", "-w", "stop"); err != nil {
		return err
	}
	return s.start()
}

func (s *Server) start() error {
	options := fmt.Sprintf("-p %d -c listen_addresses=127.0.0.1 -c unix_socket_directories=%s -c max_connections=300", s.port, s.data)
	return s.run("pg_ctl", "-D", filepath.Join(s.data, "db"), "-w", "-l", filepath.Join(s.data, "log"), "-o", options, "start")
}

// Stop ends a private server and removes its files.
func (s *Server) Stop() error {
	if !s.Private() {
		return nil
	}
	return errors.Join(s.run("pg_ctl", "-D", filepath.Join(s.data, "db"), "-m", "immediate", "-w", "stop"), os.RemoveAll(s.data))
}

// Database makes an empty database that is dropped when the test ends, and returns its address.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), s.databases.Add(1))
	admin := func(statement string) {
		t.Helper()
		db, err := sql.Open("pgx", s.url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	admin("CREATE DATABASE " + name)
	t.Cleanup(func() { admin("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)") })
	address, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	address.Path = "/" + name
	return address.String()
}

// Main runs a package's tests with *server set, or nil where tests may be without one: see [Need].
func Main(m *testing.M, server **Server) int {
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

// Need returns a fresh database's address, and skips the test where there is no server.
func Need(t testing.TB, s *Server) string {
	t.Helper()
	if s == nil {
		t.Skip(errNone)
	}
	return s.Database(t)
}

// ForTest starts a server for one test alone and returns the address of a database on it, or skips the test as Need does.
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

// own gives the folder to the user that PostgreSQL runs as: it refuses to run as root.
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

func (s *Server) run(program string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.data
	if os.Getuid() == 0 {
		credential, err := unprivileged()
		if err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
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
