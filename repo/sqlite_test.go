package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
)

func TestCheckIntegrityFindsUnknownStatus(t *testing.T) {
	db := openFile(t, filepath.Join(t.TempDir(), "test.db"))
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	insertTenants(t, db, [3]string{"a", "A", "lost"})
	if err := db.CheckIntegrity(ctx); err == nil ||
		!strings.Contains(err.Error(), "CHECK constraint failed in tenant_dashboards): correct the row") {
		t.Errorf("the status %q: %v", "lost", err)
	}
}

func TestTimesAreTextInUTCOnSQLite(t *testing.T) {
	db := openTest(t)
	zone := time.FixedZone("", 5*3600)
	db.now = func() time.Time { return time.Date(2026, 3, 1, 3, 4, 5, 6_999_999, zone) }
	finish(t, db, claim(t, db, "a"))
	fail(t, db, claim(t, db, "b"), unaccepted)
	form := regexp.MustCompile(`^text \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)
	for _, query := range []string{
		"SELECT typeof(created_at) || ' ' || created_at FROM tenant_dashboards",
		"SELECT typeof(updated_at) || ' ' || updated_at FROM tenant_dashboards",
		`SELECT typeof(claimable_at) || ' ' || claimable_at FROM tenant_dashboards
			WHERE claimable_at IS NOT NULL`,
		"SELECT typeof(failed_at) || ' ' || failed_at FROM tenant_dashboards WHERE failed_at IS NOT NULL",
		"SELECT typeof(started_at) || ' ' || started_at FROM provision_attempts",
		"SELECT typeof(finished_at) || ' ' || finished_at FROM provision_attempts",
		"SELECT typeof(created_at) || ' ' || created_at FROM outbox",
	} {
		var values []string
		must(t, db.read.SelectContext(ctx, &values, query))
		if len(values) == 0 {
			t.Errorf("%s: no row", query)
		}
		for _, v := range values {
			if !form.MatchString(v) {
				t.Errorf("%s: %q", query, v)
			}
		}
	}
	same(t, "created_at", mapping(t, db, "a").CreatedAt.Time,
		time.Date(2026, 2, 28, 22, 4, 5, 6_000_000, time.UTC))
}

func TestOpenTakesAnyFileName(t *testing.T) {
	for _, name := range []string{"a b.db", "100%.db", "%41.db", "a?mode=memory", "a#b.db", "a&b=c;d+e.db",
		"ü.db", ":memory:"} {
		dir := t.TempDir()
		db := openFile(t, filepath.Join(dir, name))
		if _, err := db.Migrate(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		claim(t, db, "a")
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || !slices.Contains(files, filepath.Join(dir, name)) {
			t.Errorf("opening %q made %q, %v", name, files, err)
		}
	}
}

func TestOpenTakesAnEmptyFileAsNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "empty.db")
	must(t, os.WriteFile(path, nil, 0o600))
	db := openFile(t, path)
	_, err := db.Migrate(ctx)
	must(t, errors.Join(err, db.CheckSchema(ctx), db.CheckIntegrity(ctx)))
}

// SQLite does not wait by itself for a process that turns a new file into one with a write-ahead log.
func TestOpenWaitsWhileAnotherProcessPreparesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new.db")
	other, err := sqlx.Open("sqlite3", path+"?_txlock=immediate")
	must(t, err)
	defer other.Close()
	prepares, err := other.Beginx()
	must(t, err)
	opened := make(chan error)
	go func() {
		db, err := Open(ctx, "sqlite:"+path)
		if err == nil {
			err = db.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("not waited: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	must(t, prepares.Commit())
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesWhatIsNoDatabase(t *testing.T) {
	dir := t.TempDir()
	for address, want := range map[string]string{
		"":                             "not an address like sqlite:papermap.db",
		"sqlite:":                      "not an address like sqlite:papermap.db",
		filepath.Join(dir, "plain"):    "not an address like sqlite:papermap.db",
		"sqlite:" + dir:                "is a folder",
		"sqlite:" + dir + "/none/a.db": "unable to open database file",
	} {
		db, err := Open(ctx, address)
		if db != nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: %v, want %q", address, err, want)
		}
	}
}

func TestDamagedFileIsRefusedAndLeftUnchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "whole.db")
	db, err := Open(ctx, "sqlite:"+path)
	must(t, err)
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		claim(t, db, fmt.Sprint("tenant-", i))
	}
	must(t, db.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	page := len(whole) / 4096 / 2 * 4096
	for name, data := range map[string][]byte{
		"text":       []byte(strings.Repeat("this is no database\n", 500)),
		"two bytes":  []byte("xy"), // a file of one byte is an empty one to SQLite
		"bad header": append([]byte(strings.Repeat("\x00", 100)), whole[100:]...),
		"bad schema": append(append(slices.Clone(whole[:100]), []byte(strings.Repeat("\xff", 3996))...),
			whole[4096:]...),
		"bad pages": append(slices.Clone(whole[:page]), []byte(strings.Repeat("\xff", len(whole)-page))...),
		"cut":       whole[:page],
	} {
		path := filepath.Join(t.TempDir(), "damaged.db")
		must(t, os.WriteFile(path, data, 0o600))
		db, err := Open(ctx, "sqlite:"+path)
		if err == nil {
			err = db.CheckIntegrity(ctx)
			if err := db.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !strings.Contains(fmt.Sprint(err), "restore it from a backup") {
			t.Errorf("%s: %v, want what to do", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !slices.Equal(after, data) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
	}
}

func TestFileIsSharedByTwoProcesses(t *testing.T) {
	first, path := openBatches(t)
	second := openFile(t, path)
	var group sync.WaitGroup
	var claims atomic.Int64
	for _, db := range []*DB{first, second} {
		for range 8 {
			group.Go(func() {
				for i := range 20 { // both want the same tenants
					c, err := db.Begin(ctx, created(fmt.Sprint("tenant-", i), 10, "m"), false)
					if err != nil {
						t.Error(err)
					}
					if c.Step == StepCreate {
						claims.Add(1)
					}
				}
			})
		}
	}
	group.Wait()
	same(t, "claims", claims.Load(), int64(20))
}

func TestConnectionsAreDurableAndReadersReadOnly(t *testing.T) {
	db, _ := openBatches(t)
	for name, pool := range map[string]interface {
		GetContext(context.Context, any, string, ...any) error
	}{"read": db.read, "write": db.write} {
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2",
			"foreign_keys": "1", "busy_timeout": "5000"} {
			var got string
			if err := pool.GetContext(ctx, &got, "PRAGMA "+pragma); err != nil || got != want {
				t.Errorf("%s: %s is %s (%v), want %s", name, pragma, got, err, want)
			}
		}
	}
	if _, err := db.read.ExecContext(ctx, "DELETE FROM leases"); err == nil {
		t.Error("a reader's connection can write")
	}
}
