package pgtest

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// PgBouncer starts a PgBouncer in transaction mode in front of a database, with few connections to
// its server, until the test ends. It returns the database's address through it. Without the program
// the test is skipped, except with CI=true.
func PgBouncer(t testing.TB, database string) string {
	t.Helper()
	address, _ := RestartablePgBouncer(t, database)
	return address
}

// RestartablePgBouncer is PgBouncer, and also returns what ends and starts it.
func RestartablePgBouncer(t testing.TB, database string) (through string, restart func() error) {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer"
		if _, err := os.Stat(program); err != nil && os.Getenv("CI") != "true" {
			t.Skip("no PgBouncer (Debian: apt-get install pgbouncer)")
		}
	}
	address, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	server := *address
	b, err := startPgBouncer(program, &server, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	port := b.port
	address.Host = fmt.Sprintf("127.0.0.1:%d", port)
	return address.String(), func() error {
		if err := b.Stop(); err != nil {
			return err
		}
		again, err := startPgBouncer(program, &server, port)
		if err == nil {
			b = again
		}
		return err
	}
}

// startPgBouncer starts it on a port, or on any that is free.
func startPgBouncer(program string, server *url.URL, port int) (*Server, error) {
	b, err := private("")
	if err != nil {
		return nil, err
	}
	b.port = cmp.Or(port, b.port)
	password, _ := server.User.Password()
	for name, text := range map[string]string{
		"pgbouncer.ini": fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = users
pool_mode = transaction
max_client_conn = 500
default_pool_size = 6
`, server.Hostname(), server.Port(), b.port),
		"users": fmt.Sprintf("%q %q\n", server.User.Username(), password),
	} {
		if err := os.WriteFile(filepath.Join(b.data, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	// It ends when this process is done with it, or is gone, as a server does.
	script := `"$1" pgbouncer.ini >log 2>&1 & cat; kill $!; wait; cd /; rm -rf "$2"`
	cmd, err := b.command("sh", "-c", script, "pgbouncer", program, b.data)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr.Setpgid = true
	if b.alive, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("make a pipe for PgBouncer: %w", err)
	}
	b.ended = cmd
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for started := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", b.port))
		if err == nil {
			return b, conn.Close()
		}
		if time.Since(started) > 20*time.Second {
			log, _ := os.ReadFile(filepath.Join(b.data, "log"))
			return nil, errors.Join(fmt.Errorf("PgBouncer does not answer: %w\n%s", err, log), b.Stop())
		}
	}
}
