package main

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
	"syscall"
)

// postgres is a server, started by the race or given.
type postgres struct {
	url     string   // of a database that one can connect to
	server  *process // nil: not ours
	db      *sql.DB  // at url
	count   int      // of databases made
	version string
}

// openPostgres connects to the server at the address, or starts one with default settings.
func openPostgres(ctx context.Context, folder, address string) (*postgres, error) {
	pg := &postgres{url: address}
	if address == "" {
		if err := pg.start(ctx, folder); err != nil {
			return nil, fmt.Errorf("start PostgreSQL: %w", err)
		}
	}
	var err error
	if pg.db, err = openDatabase(pg.url); err == nil {
		err = pg.db.QueryRowContext(ctx, "SHOW server_version").Scan(&pg.version)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to PostgreSQL: %w", err), pg.close())
	}
	return pg, nil
}

// start makes a cluster and starts its server. PostgreSQL refuses to run as root, so root gives
// the cluster's folder to the user postgres.
func (pg *postgres) start(ctx context.Context, folder string) error {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return errors.New("no /usr/lib/postgresql/*/bin/initdb (Debian: postgresql), and no -postgres")
	}
	slices.Sort(found)
	bin := filepath.Dir(found[len(found)-1])
	data := filepath.Join(folder, "postgres")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	var as *syscall.Credential
	if os.Getuid() == 0 {
		if as, err = postgresUser(); err != nil {
			return err
		}
		err := errors.Join(os.Chown(data, int(as.Uid), int(as.Gid)), os.Chmod(folder, 0o711))
		if err != nil {
			return err
		}
	}
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres",
		"-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = data, &syscall.SysProcAttr{Credential: as}
	if text, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, text)
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", port,
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+data)
	cmd.Dir, cmd.SysProcAttr = data, &syscall.SysProcAttr{Credential: as}
	if pg.server, err = start(folder, "postgres", cmd); err != nil {
		return err
	}
	pg.url = "postgres://postgres@" + address + "/postgres?sslmode=disable"
	if err := pg.server.waitUntil(ctx, func() bool { return answers(ctx, pg.url) }); err != nil {
		return errors.Join(err, pg.close())
	}
	return nil
}

func postgresUser() (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL refuses to run as root: %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// answers says whether the server at the address has started.
func answers(ctx context.Context, address string) bool {
	db, err := openDatabase(address)
	if err != nil {
		return false
	}
	defer db.Close()
	return db.PingContext(ctx) == nil
}

// create makes an empty database and returns its URL. What earlier runs wrote is flushed, so that
// no run pays for them.
func (pg *postgres) create(ctx context.Context) (string, error) {
	pg.count++
	name := fmt.Sprintf("race_%d_%d", os.Getpid(), pg.count)
	if _, err := pg.db.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return "", fmt.Errorf("create a database: %w", err)
	}
	_, _ = pg.db.ExecContext(ctx, "CHECKPOINT") // needs more rights than a user of -postgres may have
	address, err := url.Parse(pg.url)
	if err != nil {
		return "", fmt.Errorf("read PostgreSQL's URL: %w", err)
	}
	address.Path = "/" + name
	return address.String(), nil
}

// drop removes a database that create made.
func (pg *postgres) drop(address string) error {
	u, err := url.Parse(address)
	if err == nil {
		_, err = pg.db.Exec("DROP DATABASE " + filepath.Base(u.Path) + " WITH (FORCE)")
	}
	if err != nil {
		return fmt.Errorf("drop a database: %w", err)
	}
	return nil
}

// close ends the server if the race started it. Its files lie in the race's folder.
func (pg *postgres) close() error {
	if pg.db != nil {
		pg.db.Close()
	}
	if pg.server == nil {
		return nil
	}
	return pg.server.stop(syscall.SIGQUIT) // at once: its data is of no use any more
}
