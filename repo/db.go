// Package repo keeps what the worker knows in SQL: the mapping from tenant to dashboard, every create request that
// was sent, synced usage, and the events that wait to be published.
//
// What it promises:
//
//   - A method that writes is one transaction: when it returns nil it is committed and on disk, when it returns an
//     error nothing of it is.
//   - A tenant is provisioned by the holder of a lease with an epoch. The lease keeps others out while the holder
//     works; the epoch makes sure that a holder who slept cannot finish. See [DB.Begin].
//   - A state change and the event that tells of it are written together. See [DB.Unsent] for how they leave.
//
// On SQLite, which has one writer, writes that wait at the same time share one transaction, each in a savepoint of
// its own ([DB.commitGroups]): one fsync for many events. Reads have a pool of their own.
package repo

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"

	"papermap-worker/schema"
)

// ErrNotFound means that there is no such row.
var ErrNotFound = errors.New("not found")

// DB is an open database. Its methods may be called from many goroutines.
type DB struct {
	read, write *sqlx.DB
	now         func() time.Time
	queue       chan *job
	stop        chan struct{} // closed by Close: no more jobs are taken
	done        chan struct{} // closed when the last group is committed
	closeOnce   sync.Once
}

// Open opens the database at address, "sqlite:PATH", without migrating it. A file that does not exist is created;
// its folder is not.
func Open(ctx context.Context, address string) (*DB, error) {
	path, ok := strings.CutPrefix(address, "sqlite:")
	if !ok || path == "" {
		return nil, errors.New("DATABASE_URL must be sqlite:PATH, for example sqlite:papermap.db")
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, fmt.Errorf("opening the database: %s is a folder, not a file", path)
	}
	file := "file:" + (&url.URL{Path: path}).EscapedPath()
	// Settings stand in the address because a PRAGMA by Exec would reach one connection of the pool alone.
	const common = "?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=5000&_foreign_keys=on"
	write, err := sqlx.Open("sqlite3", file+common+"&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("opening the database %s: %w", path, err)
	}
	write.SetMaxOpenConns(1)
	if err := write.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the database %s: %w", path, damaged(err)), write.Close())
	}
	read, err := sqlx.Open("sqlite3", file+common+"&_query_only=1")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the database %s: %w", path, err), write.Close())
	}
	read.SetMaxOpenConns(4)
	db := &DB{
		read: read, write: write, now: time.Now,
		queue: make(chan *job), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go db.commitGroups()
	return db, nil
}

// Migrate brings the schema up to date and returns the names of the migrations that it applied.
func (db *DB) Migrate(ctx context.Context) ([]string, error) {
	return schema.Migrate(ctx, db.write.DB, goose.DialectSQLite3)
}

// CheckSchema returns nil when the schema is at the program's version, else what to do.
func (db *DB) CheckSchema(ctx context.Context) error {
	return schema.Check(ctx, db.write.DB, goose.DialectSQLite3)
}

// Migrations lists the migrations that the program knows and whether each was applied.
func (db *DB) Migrations(ctx context.Context) ([]schema.Migration, error) {
	return schema.Status(ctx, db.write.DB, goose.DialectSQLite3)
}

// CheckIntegrity reads the whole file and returns an error when it is damaged.
func (db *DB) CheckIntegrity(ctx context.Context) error {
	var result string
	if err := db.read.GetContext(ctx, &result, "PRAGMA quick_check(1)"); err != nil {
		return fmt.Errorf("checking the database file: %w", damaged(err))
	}
	if result != "ok" {
		return fmt.Errorf("the database file is damaged (%s): restore it from a backup", result)
	}
	return nil
}

// damaged adds what to do to an error that means that the file is broken, or was never a database.
func damaged(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB) {
		return fmt.Errorf("the file is damaged or no database (%w): restore it from a backup, or correct DATABASE_URL", err)
	}
	return err
}

// Ping returns an error when the database cannot be read.
func (db *DB) Ping(ctx context.Context) error {
	var one int
	if err := db.read.GetContext(ctx, &one, "SELECT 1 FROM tenant_dashboards UNION ALL SELECT 1 LIMIT 1"); err != nil {
		return fmt.Errorf("reading the database: %w", err)
	}
	return nil
}

// Close finishes the writes that have begun and closes the database.
func (db *DB) Close() error {
	db.closeOnce.Do(func() { close(db.stop) })
	<-db.done
	return errors.Join(db.read.Close(), db.write.Close())
}

// tx is one caller's part of a transaction. now is the database's clock when it began.
type tx struct {
	*sqlx.Tx
	now Time
}

// exec runs a statement whose parameters are question marks.
func (t *tx) exec(ctx context.Context, query string, args ...any) error {
	_, err := t.ExecContext(ctx, t.Rebind(query), args...)
	return err
}

// get reads one row into dest; ErrNotFound when there is none.
func (t *tx) get(ctx context.Context, dest any, query string, args ...any) error {
	return notFound(t.GetContext(ctx, dest, t.Rebind(query), args...))
}

func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}

// Time is a time as the database keeps it: UTC, to the millisecond; the zero time is NULL.
type Time struct{ time.Time }

const timeFormat = "2006-01-02T15:04:05.000Z"

func at(t time.Time) Time { return Time{t.UTC().Truncate(time.Millisecond)} }

// Value implements driver.Valuer.
func (t Time) Value() (driver.Value, error) {
	if t.IsZero() {
		return nil, nil
	}
	return t.UTC().Format(timeFormat), nil
}

// Scan implements sql.Scanner.
func (t *Time) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*t = Time{}
	case time.Time:
		*t = at(v)
	case string:
		parsed, err := time.Parse(timeFormat, v)
		if err != nil {
			return fmt.Errorf("reading a time: %w", err)
		}
		*t = Time{parsed}
	default:
		return fmt.Errorf("reading a time: unexpected %T", v)
	}
	return nil
}
