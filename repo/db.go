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
// Two databases, one behaviour. On SQLite (sqlite.go), which has one writer, writes that wait at the same time share
// one transaction: one fsync for many events. On PostgreSQL (postgres.go) each write is a
// transaction of its own, because groups that lock many tenants' rows would deadlock between replicas.
package repo

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"

	"papermap-worker/schema"
)

// ErrNotFound means that there is no such row.
var ErrNotFound = errors.New("not found")

// DB is an open database. Its methods may be called from many goroutines.
type DB struct {
	dialect goose.Dialect
	read    pool
	write   *sqlx.DB         // the same as read on PostgreSQL
	group   *group           // SQLite's group commit; nil on PostgreSQL
	path    string           // of SQLite's file
	begun   atomic.Int64     // when Begin was last called, in Unix nanoseconds
	lock    *os.File         // held for the process's life by the one worker of an SQLite file
	now     func() time.Time // the clock that leases go by; nil for PostgreSQL's own
}

// pool is a pool of connections that reads within spans, and not for ever.
type pool struct {
	*sqlx.DB
	patience time.Duration // with the server; 0 for SQLite: no limit
}

func (p pool) GetContext(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	return traced(ctx, p.DriverName(), query, func(ctx context.Context) error { return p.DB.GetContext(ctx, dest, query, args...) })
}

func (p pool) SelectContext(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	return traced(ctx, p.DriverName(), query, func(ctx context.Context) error { return p.DB.SelectContext(ctx, dest, query, args...) })
}

func (p pool) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.patience == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, p.patience)
}

// Open opens the database at address, "sqlite:PATH" or "postgres://…", without migrating it. An SQLite file that does
// not exist is created; its folder is not.
func Open(ctx context.Context, address string) (*DB, error) {
	if path, ok := sqlitePath(address); ok {
		return openSQLite(ctx, path)
	}
	return openPostgres(ctx, address)
}

// Exists returns an error unless there is something at address that Open would open rather than create.
func Exists(address string) error {
	path, ok := sqlitePath(address)
	if !ok {
		return nil
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("there is no database: is DATABASE_URL right, and has `papermap-worker serve` or `migrate` run? %w", err)
	}
	return nil
}

// CheckAddress returns what is wrong with an address. The message does not quote it: it may hold a password.
func CheckAddress(address string) error {
	if _, ok := sqlitePath(address); ok {
		return nil
	}
	_, err := parsePostgres(address)
	return err
}

func sqlitePath(address string) (string, bool) {
	path, ok := strings.CutPrefix(address, "sqlite:")
	return path, ok && path != "" && path != ":memory:" // each connection would have a memory of its own
}

// Migrate brings the schema up to date and returns the names of the migrations that it applied.
func (db *DB) Migrate(ctx context.Context) ([]string, error) {
	return schema.Migrate(ctx, db.write.DB, db.dialect)
}

// CheckSchema returns nil when the schema is at the program's version, else what to do.
func (db *DB) CheckSchema(ctx context.Context) error {
	return schema.Check(ctx, db.write.DB, db.dialect)
}

// Migrations lists the migrations that the program knows and whether each was applied.
func (db *DB) Migrations(ctx context.Context) ([]schema.Migration, error) {
	return schema.Status(ctx, db.write.DB, db.dialect)
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
	if db.group == nil {
		return db.write.Close()
	}
	db.group.close()
	err := errors.Join(db.read.Close(), db.write.Close())
	if db.lock != nil {
		err = errors.Join(err, db.lock.Close())
	}
	return err
}

// work is one caller's part of a write. It may run more than once.
type work func(context.Context, *tx) error

// update runs do in a transaction and returns when it is committed, or was rolled back.
func (db *DB) update(ctx context.Context, do work) (err error) {
	ctx, span := startSpan(ctx, "transaction") // waiting for its turn, and the commit, are in it
	defer func() { endSpan(span, err) }()
	if db.group != nil {
		return db.group.update(ctx, do)
	}
	return db.transact(ctx, do)
}

// clock reads the clock that leases go by.
func (db *DB) clock(ctx context.Context) (time.Time, error) {
	if db.now != nil {
		return db.now(), nil
	}
	var now time.Time
	if err := db.read.GetContext(ctx, &now, "SELECT clock_timestamp()"); err != nil {
		return now, fmt.Errorf("reading the database's clock: %w", err)
	}
	return now, nil
}

// tx is one caller's part of a transaction. now is the database's clock when it began.
type tx struct {
	on      statements
	driver  string
	now     Time
	locking string // what a SELECT needs at its end to lock its rows
}

// statements is the connection of a transaction.
type statements interface {
	Rebind(query string) string
	GetContext(ctx context.Context, dest any, query string, args ...any) error
	SelectContext(ctx context.Context, dest any, query string, args ...any) error
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// exec runs a statement whose parameters are question marks.
func (t *tx) exec(ctx context.Context, query string, args ...any) error {
	_, err := t.ExecContext(ctx, t.on.Rebind(query), args...)
	return err
}

// get reads one row into dest; ErrNotFound when there is none.
func (t *tx) get(ctx context.Context, dest any, query string, args ...any) error {
	return notFound(t.GetContext(ctx, dest, t.on.Rebind(query), args...))
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
