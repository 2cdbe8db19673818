package repo

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"papermap-worker/repo/pgtest"
)

func raise(code string) string {
	return "DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '" + code + "'; END $$"
}

func TestPostgresRetriesSerializationFailures(t *testing.T) {
	db := openPostgresTest(t, pgtest.Need(t, postgres))
	for _, code := range []string{serializationFailure, deadlockDetected} {
		runs := 0
		err := db.transact(t.Context(), func(ctx context.Context, tx *tx) error {
			if runs++; runs < 3 {
				return tx.exec(ctx, raise(code))
			}
			return nil
		})
		if err != nil || runs != 3 {
			t.Errorf("%s: %d runs, error %v", code, runs, err)
		}
	}
	runs := 0
	err := db.transact(t.Context(), func(ctx context.Context, tx *tx) error {
		runs++
		return tx.exec(ctx, raise("22012"))
	})
	if err == nil || runs != 1 {
		t.Errorf("another error: %d runs, error %v", runs, err)
	}
}

var isCommit = regexp.MustCompile(`(?i)\bcommit\b`) // not the COMMITTED of an isolation level

// commitProxy passes connections on to the server at upstream. While lose is true, the first COMMIT
// that comes is passed on or not, as deliver says, and the client's connection is closed without
// its answer. While silent is true nothing is passed on, and nothing closed: the server's host has
// died, or a firewall has forgotten the connections.
type commitProxy struct {
	upstream      string
	lose, deliver atomic.Bool
	silent        atomic.Bool
	lost          atomic.Int32
	ctx           context.Context // its end closes all connections
}

func (p *commitProxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	defer context.AfterFunc(p.ctx, func() { client.Close() })()
	var swallow atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer client.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := server.Read(buffer)
			if err != nil {
				return
			}
			if p.silent.Load() {
				continue
			}
			if swallow.Load() { // it has answered, so it has committed
				return
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			return
		}
		if p.silent.Load() {
			continue
		}
		if p.lose.Load() && isCommit.Match(buffer[:n]) {
			p.lose.Store(false)
			p.lost.Add(1)
			if !p.deliver.Load() {
				return
			}
			swallow.Store(true)
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
		if swallow.Load() {
			<-done
			return
		}
	}
}

// openThroughProxy opens a new, migrated database through a proxy.
func openThroughProxy(t *testing.T) (*DB, *commitProxy) {
	t.Helper()
	address, err := url.Parse(pgtest.Need(t, postgres))
	must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	running, stop := context.WithCancel(ctx)
	proxy := &commitProxy{upstream: address.Host, ctx: running}
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			connections.Go(func() { proxy.serve(client) })
		}
	})
	address.Host = listener.Addr().String()
	db, err := Open(t.Context(), address.String())
	must(t, err)
	t.Cleanup(func() {
		stop() // pgx would wait for 15 s to cancel what had no answer
		_ = db.Close()
		_ = listener.Close()
		connections.Wait()
	})
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db, proxy
}

func TestPostgresLooksUpACommitWithoutAnswer(t *testing.T) {
	db, proxy := openThroughProxy(t)
	for _, delivered := range []bool{true, false} {
		tenant := map[bool]string{true: "delivered", false: "lost"}[delivered]
		proxy.deliver.Store(delivered)
		proxy.lose.Store(true)
		_, err := db.Change(t.Context(), Change{TenantID: tenant, WorkspaceID: "w", To: Suspended,
			EventTime: time.Now()})
		if (err == nil) != delivered {
			t.Errorf("commit %s: error %v", tenant, err)
		}
		_, err = db.Mapping(t.Context(), tenant)
		if errors.Is(err, ErrNotFound) == delivered || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("commit %s: reading it: %v", tenant, err)
		}
	}
	if proxy.lost.Load() != 2 {
		t.Errorf("%d commits were lost, want 2", proxy.lost.Load())
	}
}

// A transaction that is still in progress when the look-up ends may or may not commit later.
func TestPostgresReportsACommitOfUnknownOutcome(t *testing.T) {
	address := pgtest.Need(t, postgres)
	synctest.Test(t, func(t *testing.T) {
		db := openPostgresTest(t, address)
		tx, err := db.write.BeginTxx(ctx, nil)
		must(t, err)
		defer tx.Rollback()
		var id string
		must(t, tx.GetContext(ctx, &id, "SELECT pg_current_xact_id()::text"))
		started := time.Now()
		err = db.lookUpCommit(id, io.EOF)
		if took := time.Since(started); !errors.Is(err, io.EOF) || took != commitTimeout {
			t.Errorf("%v after %v, want an error that wraps the cause after %v", err, took, commitTimeout)
		}
	})
}

func TestPostgresTimesOutWhenTheServerIsSilent(t *testing.T) {
	db, proxy := openThroughProxy(t)
	c := claim(t, db, "a")
	usual := db.read.timeout
	db.read.timeout = 200 * time.Millisecond
	proxy.silent.Store(true)
	for what, do := range map[string]func() error{
		// ctx never ends
		"a write": func() error { _, err := db.Finish(ctx, c, "d", 200, announce("n")); return err },
		"a read":  func() error { _, err := db.Mapping(ctx, "a"); return err },
		"a list":  func() error { _, err := db.Attempts(ctx, "a"); return err },
	} {
		done := make(chan error, 1)
		go func() { done <- do() }()
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s is still under way", what)
		}
	}
	proxy.silent.Store(false)
	db.read.timeout = usual
	same(t, "recorded once the server answers again", finish(t, db, c), true)
}

func TestPostgresReportsReadOnly(t *testing.T) {
	address := pgtest.Need(t, postgres)
	db := openPostgresTest(t, address)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	standby := openPostgresTest(t, address+"&default_transaction_read_only=on")
	_, err := standby.Change(t.Context(),
		Change{TenantID: "t", WorkspaceID: "w", To: Deleted, EventTime: time.Now()})
	if err == nil || !strings.Contains(err.Error(), "read-only standby") {
		t.Errorf("writing to a read-only database: %v", err)
	}
}

// A standby is a server of its own that copies another, here by streaming replication.
func TestPostgresRefusesAStandby(t *testing.T) {
	primary := pgtest.Need(t, postgres)
	if !postgres.Private() {
		t.Skip("TEST_POSTGRES_URL names a server that is not ours to copy")
	}
	host := postgres.Standby(t)
	address, err := url.Parse(primary)
	must(t, err)
	primaryHost := address.Host
	address.Host = host
	_, err = Open(t.Context(), address.String())
	if err == nil || !strings.Contains(err.Error(), "read-only standby: let DATABASE_URL name the primary") {
		t.Errorf("opening a standby: %v", err)
	}
	address.Host = host + "," + primaryHost // as the error advises
	db := openPostgresTest(t, address.String()+"&target_session_attrs=read-write")
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Errorf("finding the primary behind its standby: %v", err)
	}
}

func TestPostgresPoolIsLimited(t *testing.T) {
	address := pgtest.Need(t, postgres)
	db := openPostgresTest(t, address)
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	server, err := sql.Open("pgx", address)
	must(t, err)
	defer server.Close()
	var callers sync.WaitGroup
	for n := range 200 {
		callers.Go(func() {
			for i := range 10 {
				tenant := fmt.Sprint("t", (n+i)%50) // four callers, often, for one row
				if _, err := db.Change(t.Context(),
					Change{TenantID: tenant, WorkspaceID: "w", To: Suspended,
						EventTime: time.Now()}); err != nil {
					t.Error(err)
				}
				if _, err := db.Mapping(t.Context(), tenant); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() { callers.Wait(); close(ended) }()
	largest := 0
	for looking := true; looking; {
		select {
		case <-ended:
			looking = false
		default:
		}
		var connections int
		err := server.QueryRowContext(t.Context(),
			`SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'papermap-worker'`).Scan(&connections)
		must(t, err)
		largest = max(largest, connections)
	}
	// Reads have all that are theirs, and batches need few.
	if least := connectionShares(DefaultConns)["work"]; largest < least || largest > DefaultConns {
		t.Errorf("200 callers had up to %d connections, want %d to %d", largest, least, DefaultConns)
	}
}

func TestPostgresStatementAndLockTimeouts(t *testing.T) {
	address := pgtest.Need(t, postgres)
	plain := openPostgresTest(t, address)
	if _, err := plain.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	limited := openPostgresTest(t, address+"&statement_timeout=400ms&lock_timeout=200ms")
	const timeouts = `SELECT concat_ws(' ', current_setting('statement_timeout'),
		current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'))`
	for db, want := range map[*DB]string{plain: "15s 5s 30s", limited: "400ms 200ms 30s"} {
		var got string
		err := db.transact(t.Context(), func(ctx context.Context, tx *tx) error {
			return tx.get(ctx, &got, timeouts)
		})
		if err != nil || got != want {
			t.Errorf("timeouts of a transaction %q (%v), want %q", got, err, want)
		}
		err = db.read.get(t.Context(), &got, "SELECT current_setting('statement_timeout')")
		if err != nil || !strings.HasPrefix(want, got+" ") {
			t.Errorf("timeout of a read %q (%v), want the first of %q", got, err, want)
		}
		if err := db.write.GetContext(t.Context(), &got, timeouts); err != nil || got != "0 0 0" {
			t.Errorf("timeouts of a connection %q (%v), want none", got, err)
		}
	}
	runs := 0
	err := limited.transact(t.Context(), func(ctx context.Context, tx *tx) error {
		runs++
		return tx.exec(ctx, "SELECT pg_sleep(30)")
	})
	if err == nil || !strings.Contains(err.Error(), "statement timeout") || runs != 1 {
		t.Errorf("a statement that takes too long: error %v, %d runs", err, runs)
	}

	suspend := func(db *DB) error {
		_, err := db.Change(t.Context(), Change{TenantID: "t", WorkspaceID: "w", To: Suspended,
			EventTime: time.Now()})
		return err
	}
	must(t, suspend(plain))
	// another replica, say, or a person with psql
	err = plain.transact(t.Context(), func(ctx context.Context, tx *tx) error {
		if err := tx.exec(ctx, "SELECT FROM tenant_dashboards WHERE tenant_id = 't' FOR UPDATE"); err != nil {
			return err
		}
		if err := suspend(limited); err == nil || !strings.Contains(err.Error(), "lock timeout") {
			t.Errorf("a row that is locked for too long: error %v", err)
		}
		return nil
	})
	must(t, err)
	if err := suspend(limited); err != nil {
		t.Errorf("when the lock is gone: %v", err)
	}
}

func TestPostgresIsMigratedOnceByReplicas(t *testing.T) {
	address := pgtest.Need(t, postgres)
	const replicas = 6
	var applied atomic.Int32
	var group sync.WaitGroup
	for range replicas {
		group.Go(func() {
			db, err := Open(context.Background(), address)
			if err != nil {
				t.Error(err)
				return
			}
			defer db.Close()
			names, err := db.Migrate(context.Background())
			if err != nil {
				t.Error(err)
			}
			applied.Add(int32(len(names)))
			if err := db.CheckSchema(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	list, err := openPostgresTest(t, address).Migrations(t.Context())
	must(t, err)
	if int(applied.Load()) != len(list) {
		t.Errorf("%d migrations were applied, there are %d", applied.Load(), len(list))
	}
}

func TestPostgresRestartIsSurvived(t *testing.T) {
	server, err := pgtest.Start()
	if err != nil && postgres == nil {
		t.Skip(err)
	}
	must(t, err)
	if !server.Private() {
		t.Skip("TEST_POSTGRES_URL names a server that is not ours to restart")
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	db := openPostgresTest(t, server.Database(t))
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	change := func() error {
		_, err := db.Change(t.Context(), Change{TenantID: "t", WorkspaceID: "w", To: Suspended,
			EventTime: time.Now()})
		return err
	}
	must(t, change())
	must(t, server.Restart())
	for try := 1; ; try++ { // a connection from before may fail once
		err := change()
		if err == nil {
			_, err = db.Mapping(t.Context(), "t")
		}
		if err == nil {
			break
		}
		if try > 2*DefaultConns {
			t.Fatalf("after a restart: %v", err)
		}
	}
}

func TestPostgresAddressIsNotQuoted(t *testing.T) {
	for _, address := range []string{"postgres://u:canary@host:notaport/db", "postgres://u:canary@[::1/db",
		"mysql://u:canary@host/db", "canary"} {
		if err := CheckAddress(address); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("CheckAddress: %v", err)
		}
	}
	_, err := Open(t.Context(), "postgres://u:canary@127.0.0.1:1/db?connect_timeout=1")
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("Open: %v", err)
	}
}
