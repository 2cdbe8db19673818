package repo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"papermap-worker/schema"
)

func TestTablesHaveTheColumnsAndConstraintsThatOutsideChecksRelyOn(t *testing.T) {
	db := openTest(t)
	for table, want := range map[string]string{
		"tenant_dashboards":  "tenant_id workspace_id dashboard_id title description status generation created_by created_at updated_at",
		"provision_attempts": "id workspace_id tenant_id generation mark outcome dashboard_id http_status error started_at finished_at",
		"tenant_usage":       "workspace_id tenant_id period credits requests synced_at",
	} {
		rows, err := db.read.QueryxContext(ctx, "SELECT * FROM "+table)
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err := errors.Join(err, rows.Close()); err != nil {
			t.Fatal(err)
		}
		for _, column := range strings.Fields(want) {
			if !slices.Contains(columns, column) {
				t.Errorf("%s has no column %s", table, column)
			}
		}
	}

	const when = "'2026-01-01T00:00:00.000Z'"
	tenant := func(id, workspace, dashboard, status string) string {
		return fmt.Sprintf(`INSERT INTO tenant_dashboards (tenant_id, workspace_id, dashboard_id, status, created_at, updated_at)
			VALUES ('%s', '%s', %s, '%s', %s, %s)`, id, workspace, dashboard, status, when, when)
	}
	attempt := func(id, mark, outcome string) string {
		return fmt.Sprintf(`INSERT INTO provision_attempts (id, workspace_id, tenant_id, generation, mark, outcome, started_at)
			VALUES ('%s', 'w', 'a', 1, '%s', '%s', %s)`, id, mark, outcome, when)
	}
	usage := func(tenant string) string {
		return fmt.Sprintf(`INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
			VALUES ('w', '%s', '2026-01', '1.50', 2, %s)`, tenant, when)
	}
	outside, err := sqlx.Open("sqlite3", db.path)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	for _, test := range []struct {
		statement string
		ok        bool
	}{
		{tenant("a", "w", "'d'", "active"), true},
		{tenant("a", "w2", "NULL", "active"), false},
		{tenant("b", "w", "'d'", "active"), false},
		{tenant("b", "w2", "'d'", "active"), true},
		{tenant("c", "w", "NULL", "pending"), true},
		{tenant("d", "w", "NULL", "pending"), true},
		{tenant("e", "w", "NULL", "none"), false},
		{attempt("1", "m1", "sent"), true},
		{attempt("1", "m2", "sent"), false},
		{attempt("2", "m1", "sent"), false},
		{attempt("2", "m2", "lost"), false},
		{usage("a"), true},
		{usage("a"), false},
		{usage("b"), true},
	} {
		if _, err := outside.ExecContext(ctx, test.statement); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.statement, err)
		}
	}
	for _, status := range Statuses() {
		if _, err := outside.ExecContext(ctx, tenant("is-"+string(status), "w", "NULL", string(status))); err != nil {
			t.Errorf("status %s: %v", status, err)
		}
	}
	for _, outcome := range []Outcome{Sent, Made, NotAccepted, Uncertain, Orphaned} {
		if _, err := outside.ExecContext(ctx, attempt(string(outcome), string(outcome), string(outcome))); err != nil {
			t.Errorf("outcome %s: %v", outcome, err)
		}
	}
}

func TestAWordThatNoCodeKnowsIsFoundInTheFile(t *testing.T) {
	db := openFile(t, filepath.Join(t.TempDir(), "test.db"))
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	insertTenants(t, db, [3]string{"a", "A", "lost"})
	if err := db.CheckIntegrity(ctx); err == nil || !strings.Contains(err.Error(), "CHECK constraint failed in tenant_dashboards): correct the row") {
		t.Errorf("the status %q: %v", "lost", err)
	}
}

func TestADatabaseIsUsedOnlyAtTheProgramsVersion(t *testing.T) {
	db := openFile(t, filepath.Join(t.TempDir(), "new.db"))
	if err := db.CheckSchema(ctx); !errors.Is(err, schema.ErrBehind) {
		t.Fatalf("a new file: %v, want ErrBehind", err)
	}
	if err := db.Ping(ctx); err == nil {
		t.Fatal("Ping is content with a database without tables")
	}
	for try := range 2 {
		names, err := db.Migrate(ctx)
		if err != nil || (len(names) > 0) != (try == 0) {
			t.Fatalf("migration %d applied %q: %v", try, names, err)
		}
	}
	if err := errors.Join(db.CheckSchema(ctx), db.CheckIntegrity(ctx), db.Ping(ctx)); err != nil {
		t.Fatal(err)
	}
	list, err := db.Migrations(ctx)
	if err != nil || len(list) == 0 {
		t.Fatalf("migrations: %v, %v", list, err)
	}
	for _, m := range list {
		same(t, m.Name+" is applied", m.Applied, true)
	}
	if _, err := db.write.ExecContext(ctx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"check": db.CheckSchema(ctx), "migrate": func() error { _, err := db.Migrate(ctx); return err }()} {
		if !errors.Is(err, schema.ErrNewer) {
			t.Errorf("%s of a newer database: %v, want ErrNewer", what, err)
		}
	}
}

func TestTimesAreTextInUTCWithMillisecondsOnSQLite(t *testing.T) {
	db := openTest(t)
	zone := time.FixedZone("", 5*3600)
	db.now = func() time.Time { return time.Date(2026, 3, 1, 3, 4, 5, 6_999_999, zone) }
	finish(t, db, claim(t, db, "a"))
	fail(t, db, claim(t, db, "b"), unaccepted)
	form := regexp.MustCompile(`^text \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)
	for _, query := range []string{
		"SELECT typeof(created_at) || ' ' || created_at FROM tenant_dashboards", "SELECT typeof(updated_at) || ' ' || updated_at FROM tenant_dashboards",
		"SELECT typeof(claimable_at) || ' ' || claimable_at FROM tenant_dashboards WHERE claimable_at IS NOT NULL",
		"SELECT typeof(failed_at) || ' ' || failed_at FROM tenant_dashboards WHERE failed_at IS NOT NULL",
		"SELECT typeof(started_at) || ' ' || started_at FROM provision_attempts", "SELECT typeof(finished_at) || ' ' || finished_at FROM provision_attempts",
		"SELECT typeof(created_at) || ' ' || created_at FROM outbox",
	} {
		var values []string
		if err := db.read.SelectContext(ctx, &values, query); err != nil {
			t.Fatal(err)
		}
		if len(values) == 0 {
			t.Errorf("%s: no row", query)
		}
		for _, v := range values {
			if !form.MatchString(v) {
				t.Errorf("%s: %q", query, v)
			}
		}
	}
	same(t, "created_at", mapping(t, db, "a").CreatedAt.Time, time.Date(2026, 2, 28, 22, 4, 5, 6_000_000, time.UTC))
}

func TestAnyFileNameIsOpenedAsItIs(t *testing.T) {
	for _, name := range []string{"a b.db", "100%.db", "%41.db", "a?mode=memory", "a#b.db", "a&b=c;d+e.db", "ü.db", ":memory:"} {
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

func TestAnEmptyFileIsANewDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "empty.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	db := openFile(t, path)
	_, err := db.Migrate(ctx)
	if err := errors.Join(err, db.CheckSchema(ctx), db.CheckIntegrity(ctx)); err != nil {
		t.Fatal(err)
	}
}

// SQLite does not wait by itself for another who turns a new file into one with a write-ahead log.
func TestANewFileThatAnotherPreparesIsOpenedWhenHeIsDone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new.db")
	other, err := sqlx.Open("sqlite3", path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	prepares, err := other.Beginx()
	if err != nil {
		t.Fatal(err)
	}
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
	if err := prepares.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesWhatCannotBeADatabase(t *testing.T) {
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

func TestADamagedFileIsRefusedAndLeftAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "whole.db")
	db, err := Open(ctx, "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		claim(t, db, fmt.Sprint("tenant-", i))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := len(whole) / 4096 / 2 * 4096
	for name, data := range map[string][]byte{
		"text":       []byte(strings.Repeat("this is no database\n", 500)),
		"two bytes":  []byte("xy"), // a file of one byte is an empty one to SQLite
		"bad header": append([]byte(strings.Repeat("\x00", 100)), whole[100:]...),
		"bad schema": append(append(slices.Clone(whole[:100]), []byte(strings.Repeat("\xff", 3996))...), whole[4096:]...),
		"bad pages":  append(slices.Clone(whole[:page]), []byte(strings.Repeat("\xff", len(whole)-page))...),
		"cut":        whole[:page],
	} {
		path := filepath.Join(t.TempDir(), "damaged.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
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
