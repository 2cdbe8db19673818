// Package schema contains the database's migrations and applies them. It also contains the
// machine-readable contract: a JSON Schema for each event (contract.go).
//
//	names, err := schema.Migrate(ctx, db, schema.Postgres, onWait) // at start, or by `migrate`
//	err = schema.Check(ctx, db, schema.Postgres)                   // by commands that must not migrate
//
// There is one folder of migrations for each kind of database, with the same tables and the same
// numbers, in the format of https://github.com/pressly/goose and with its version table. Each
// migration is applied in one transaction, with its record and the lock that keeps other programs
// from migrating, because a connection pooler may give every transaction another connection. Within
// a major version of the program, migrations only add; on SQLite, which has one worker, a migration
// may replace an index. A database that is newer than the program is refused.
package schema

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"

	"papermap-worker/worker/failpoint"
)

//go:embed sqlite/*.sql postgres/*.sql
var migrations embed.FS

// Dialect is a kind of database. It names the folder of its migrations.
type Dialect string

// The kinds of database.
const (
	SQLite   Dialect = "sqlite"
	Postgres Dialect = "postgres"
)

// ErrNewer means that the database was migrated by a newer program.
var ErrNewer = errors.New(
	"the database is newer than this program: run the newer version, or restore a backup")

// ErrBehind means that the database needs migrations that have not been applied.
var ErrBehind = errors.New("the database is behind this program: run `papermap-worker migrate`")

// errLocked means that another program is migrating.
var errLocked = errors.New("another program is migrating the database")

// lockWait is how long Migrate waits for another migrating program.
const lockWait = 5 * time.Minute

// Migration is one step of the database's history.
type Migration struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`

	up string // its statements
}

// queryer is a *sql.DB or a *sql.Tx.
type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Migrate brings the database up to date. It returns the names of the migrations that it applied.
// It calls onWait with true when it waits for another migrating program, and finally with false.
func Migrate(ctx context.Context, db *sql.DB, d Dialect, onWait func(bool)) (names []string, err error) {
	waited, lost := false, 0
	defer func() {
		if waited {
			onWait(false)
		}
	}()
	for {
		// This read takes no lock: a database that is up to date is left alone.
		if err := Check(ctx, db, d); !errors.Is(err, ErrBehind) {
			return names, err
		}
		name, err := applyWhenFree(ctx, db, d, func() {
			if !waited {
				waited = true
				onWait(true)
			}
		})
		if lost < maxLost && lostConnection(err) && ctx.Err() == nil {
			lost++ // the next read shows what was committed
			time.Sleep(200 * time.Millisecond)
			continue
		}
		if err != nil {
			return names, fmt.Errorf("migrate the database: %w", err)
		}
		if name != "" {
			names = append(names, name)
			failpoint.Hit(failpoint.Migrated)
		}
	}
}

// maxLost is how often Migrate retries after it has lost its connection.
const maxLost = 5

// lostConnection tells a connection's errors from PostgreSQL's answers.
func lostConnection(err error) bool {
	answered := (interface{ SQLState() string })(nil)
	sqlite := sqlite3.Error{}
	return err != nil && !errors.Is(err, errLocked) && !errors.As(err, &answered) && !errors.As(err, &sqlite)
}

// applyWhenFree is applyNext, but waits while another program migrates.
func applyWhenFree(ctx context.Context, db *sql.DB, d Dialect, wait func()) (name string, err error) {
	for started := time.Now(); ; {
		if name, err = applyNext(ctx, db, d); !errors.Is(err, errLocked) {
			return name, err
		}
		if time.Since(started) >= lockWait {
			return "", fmt.Errorf("%w for more than %v: if none is, end the connection that holds the lock",
				err, lockWait)
		}
		wait()
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return "", fmt.Errorf("wait for another program that migrates: %w", ctx.Err())
		}
	}
}

// lockID is an arbitrary number that nothing else in the database locks.
const lockID = 0x706d772d6d6967

// beginMigration locks the database against other migrating programs, until the end of the
// transaction. It removes the timeouts that a role may have, because a migration may take long.
// Only its wait for a table is limited, because everything else would wait behind it.
const beginMigration = `SELECT pg_try_advisory_xact_lock($1), set_config('statement_timeout', '0', true),
	set_config('idle_in_transaction_session_timeout', '0', true), set_config('lock_timeout', '60s', true)`

// applyNext applies the next migration. It returns the empty name if there is none, or errLocked.
func applyNext(ctx context.Context, db *sql.DB, d Dialect) (name string, err error) {
	list, err := load(d)
	if err != nil {
		return "", err
	}
	tx, err := db.BeginTx(ctx, nil) // on SQLite this waits for another that writes, for some seconds
	if busy := (sqlite3.Error{}); errors.As(err, &busy) && busy.Code == sqlite3.ErrBusy {
		return "", errLocked
	}
	if err != nil {
		return "", err
	}
	defer tx.Rollback() // after a commit this does nothing
	if d == Postgres {
		var locked bool
		var setting string
		err := tx.QueryRowContext(ctx, beginMigration, int64(lockID)).
			Scan(&locked, &setting, &setting, &setting)
		if err != nil {
			return "", fmt.Errorf("lock the database: %w", err)
		}
		if !locked {
			return "", errLocked
		}
	}
	current, err := version(ctx, tx, d)
	if err != nil {
		return "", err
	}
	next := slices.IndexFunc(list, func(m Migration) bool { return m.Version > current })
	if next < 0 {
		return "", nil
	}
	m := list[next]
	statements := []string{m.up, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (" +
		strconv.FormatInt(m.Version, 10) + ", true)"}
	if current < 0 {
		statements = append([]string{versionTable[d]}, statements...)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return "", fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return "", fmt.Errorf("%s: commit: %w", m.Name, err)
	}
	return m.Name, nil
}

// versionTable creates goose's version table.
var versionTable = map[Dialect]string{
	SQLite: `CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')));
		INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, true)`,
	Postgres: `CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
		version_id BIGINT NOT NULL, is_applied BOOLEAN NOT NULL, tstamp TIMESTAMP NOT NULL DEFAULT now());
		INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, true)`,
}

// hasVersions reports whether the version table exists. On PostgreSQL to_regclass may answer from a
// cache that is older than the lock: it does not see the table that the last holder created.
var hasVersions = map[Dialect]string{
	SQLite: "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'goose_db_version')",
	Postgres: `SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class
		WHERE relname = 'goose_db_version' AND pg_catalog.pg_table_is_visible(oid))`,
}

// version reads the database's version: 0 before the first migration, -1 if there is no version
// table.
func version(ctx context.Context, q queryer, d Dialect) (v int64, err error) {
	var exists bool
	err = q.QueryRowContext(ctx, hasVersions[d]).Scan(&exists)
	if err == nil && !exists {
		return -1, nil
	}
	if err == nil {
		err = q.QueryRowContext(ctx, "SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version").Scan(&v)
	}
	if err != nil {
		return 0, fmt.Errorf("read the database's version: %w", err)
	}
	return v, nil
}

// Check returns nil if the database is at this program's version, or else an error that wraps
// [ErrNewer] or [ErrBehind]. It changes nothing.
func Check(ctx context.Context, db *sql.DB, d Dialect) error {
	list, err := load(d)
	if err != nil {
		return err
	}
	current, err := version(ctx, db, d)
	target := list[len(list)-1].Version
	switch {
	case err != nil:
		return err
	case current > target:
		return fmt.Errorf("database version %d, program version %d: %w", current, target, ErrNewer)
	case current < target:
		return fmt.Errorf("database version %d, program version %d: %w", max(0, current), target, ErrBehind)
	}
	return nil
}

// Status lists the migrations of this program. Without a database, none is applied. It changes
// nothing.
func Status(ctx context.Context, db *sql.DB, d Dialect) ([]Migration, error) {
	list, err := load(d)
	if err != nil || db == nil {
		return list, err
	}
	current, err := version(ctx, db, d)
	for i := range list {
		list[i].Applied = list[i].Version <= current
	}
	return list, err
}

// load reads the migrations of a kind of database, in their order.
func load(d Dialect) (list []Migration, err error) {
	files, err := fs.Glob(migrations, string(d)+"/*.sql") // sorted
	for _, file := range files {
		name := strings.TrimPrefix(file, string(d)+"/")
		number, _, _ := strings.Cut(name, "_")
		version, numberErr := strconv.ParseInt(number, 10, 64)
		text, readErr := migrations.ReadFile(file)
		err = errors.Join(err, numberErr, readErr)
		list = append(list, Migration{Version: version, Name: name, up: up(string(text))})
	}
	if err != nil || len(list) == 0 {
		return nil, fmt.Errorf("read the migrations for %s: %w", d, err)
	}
	return list, nil
}

// up is the Up part of a migration.
func up(text string) string {
	_, text, _ = strings.Cut(text, "-- +goose Up\n")
	text, _, _ = strings.Cut(text, "-- +goose Down\n")
	return text
}
