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

	"papermap-worker/schema"
)

// ErrNotFound means that there is no such row.
var ErrNotFound = errors.New("not found")

// DB is an open database. Its methods may be called from many goroutines.
type DB struct {
	dialect  *dialect
	read     pool
	write    *sqlx.DB                            // the same as read on PostgreSQL
	pools    map[string]*sqlx.DB                 // all of them, by what metrics call them
	transact func(context.Context, txFunc) error // runs one write that is no decision and commits it
	batches  *batches                            // of decisions; nil until the database is open
	settings func(alone bool) []statement        // what a session begins with
	session  func(context.Context, func(*session) error) error
	sets     *sqlx.DB         // of sessions; nil on SQLite
	path     string           // of SQLite's file; empty on PostgreSQL
	lock     *os.File         // held by the one worker of an SQLite file while it runs
	now      func() time.Time // the clock that leases go by; nil for PostgreSQL's own

	lastBegin atomic.Int64 // when Begin was last called, in Unix nanoseconds
}

// Open opens the database at address, "sqlite:PATH" or "postgres://…", without migrating it. An
// SQLite file that does not exist is created; its folder is not.
func Open(ctx context.Context, address string) (*DB, error) {
	if path, ok := sqlitePath(address); ok {
		return openSQLite(ctx, path)
	}
	return openPostgres(ctx, address)
}

// Exists returns an error unless there is something at address that Open would open rather than
// create.
func Exists(address string) error {
	path, ok := sqlitePath(address)
	if !ok {
		return nil
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("there is no database: is DATABASE_URL right, "+
			"and has `papermap-worker serve` or `migrate` run? %w", err)
	}
	return nil
}

// CheckAddress returns what is wrong with an address. The message does not quote it: it may hold a
// password.
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
	return schema.Migrate(ctx, db.write.DB, db.dialect.goose)
}

// Errors of [DB.CheckSchema]: the database is older, or newer, than this program.
var (
	ErrSchemaBehind = schema.ErrBehind
	ErrSchemaNewer  = schema.ErrNewer
)

// CheckSchema returns nil when the schema is at the program's version, else what to do: an error
// that wraps [schema.ErrBehind] or [schema.ErrNewer].
func (db *DB) CheckSchema(ctx context.Context) error {
	return schema.Check(ctx, db.write.DB, db.dialect.goose)
}

// Migrations lists the migrations that the program knows and whether each was applied.
func (db *DB) Migrations(ctx context.Context) ([]schema.Migration, error) {
	return schema.Status(ctx, db.write.DB, db.dialect.goose)
}

// Ping returns an error when the database cannot be read.
func (db *DB) Ping(ctx context.Context) error {
	var one int
	const query = "SELECT 1 FROM tenant_dashboards UNION ALL SELECT 1 LIMIT 1"
	if err := db.read.get(ctx, &one, query); err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	return nil
}

// Close finishes the writes that have begun and closes the database.
func (db *DB) Close() error {
	if db.batches != nil {
		db.batches.close()
	}
	var errs []error
	for _, p := range db.pools {
		errs = append(errs, p.Close())
	}
	if db.lock != nil {
		errs = append(errs, db.lock.Close())
	}
	return errors.Join(errs...)
}

// update runs do in a transaction and returns when it is committed or was rolled back. The format
// and its arguments say what it was for, in an error. Once it has begun it is finished even if ctx
// ends, so that the caller learns what became of it.
func (db *DB) update(ctx context.Context, do txFunc, format string, args ...any) (err error) {
	ctx, span := startSpan(ctx, "transaction") // with the wait for its turn, and the commit
	defer func() { endSpan(span, err) }()
	if err := db.transact(ctx, do); err != nil {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
	}
	return nil
}

// decide is update for a decision about one tenant, which shares its transaction with others.
func (db *DB) decide(ctx context.Context, j *job, format string, args ...any) (err error) {
	ctx, span := startSpan(ctx, "transaction")
	defer func() { endSpan(span, err) }()
	if err := db.batches.do(ctx, j); err != nil {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
	}
	return nil
}

// clock reads the clock that leases go by.
func (db *DB) clock(ctx context.Context) (time.Time, error) {
	if db.now != nil {
		return db.now(), nil
	}
	var now time.Time
	if err := db.read.get(ctx, &now, "SELECT clock_timestamp()"); err != nil {
		return now, fmt.Errorf("read the database's clock: %w", err)
	}
	return now, nil
}

// pool is a pool of connections for reading, within spans and within a time limit.
type pool struct {
	*sqlx.DB
	dialect *dialect
	timeout time.Duration // of a statement or a transaction, with the way to the server and back; 0: none
}

// get reads one row into dest; ErrNotFound when there is none. Parameters are question marks on
// both databases.
func (p pool) get(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	return notFound(traced(ctx, p.dialect, query, func(ctx context.Context) error {
		return p.GetContext(ctx, dest, p.Rebind(query), args...)
	}))
}

// list reads all rows of a query. what names it in an error.
func list[T any](ctx context.Context, p pool, what, query string, args ...any) ([]T, error) {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	var rows []T
	err := traced(ctx, p.dialect, query, func(ctx context.Context) error {
		return p.SelectContext(ctx, &rows, p.Rebind(query), args...)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return rows, nil
}

func (p pool) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, p.timeout)
}

// txFunc is one caller's part of a transaction. It may run more than once, so it must set what it
// returns anew each time.
type txFunc func(context.Context, *tx) error

// tx is a transaction.
type tx struct {
	db  *DB
	on  connection
	now Time // of the clock that leases go by, when the transaction began
}

// Every query of this package has question marks for parameters, whichever the database, and names
// the columns that it reads. It goes through pool or tx, which trace it.

// connection is the connection of a transaction: SQLite's connection that writes, or a PostgreSQL
// transaction.
type connection interface {
	Rebind(query string) string
	GetContext(ctx context.Context, dest any, query string, args ...any) error
	SelectContext(ctx context.Context, dest any, query string, args ...any) error
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// get reads one row into dest; ErrNotFound when there is none.
func (t *tx) get(ctx context.Context, dest any, query string, args ...any) error {
	return notFound(traced(ctx, t.db.dialect, query, func(ctx context.Context) error {
		return t.on.GetContext(ctx, dest, t.on.Rebind(query), args...)
	}))
}

// exists reports whether FROM and what follows it selects a row.
func (t *tx) exists(ctx context.Context, from string, args ...any) (found bool, err error) {
	err = t.get(ctx, &found, "SELECT EXISTS (SELECT 1 FROM "+from+")", args...)
	return found, err
}

// list reads all rows into the slice at dest.
func (t *tx) list(ctx context.Context, dest any, query string, args ...any) error {
	return traced(ctx, t.db.dialect, query, func(ctx context.Context) error {
		return t.on.SelectContext(ctx, dest, t.on.Rebind(query), args...)
	})
}

// exec runs a statement.
func (t *tx) exec(ctx context.Context, query string, args ...any) error {
	_, err := t.execCount(ctx, query, args...)
	return err
}

// execCount runs a statement and returns how many rows it wrote.
func (t *tx) execCount(ctx context.Context, query string, args ...any) (rows int64, err error) {
	err = traced(ctx, t.db.dialect, query, func(ctx context.Context) error {
		result, err := t.on.ExecContext(ctx, t.on.Rebind(query), args...)
		if err != nil {
			return err
		}
		rows, err = result.RowsAffected()
		return err
	})
	return rows, err
}

// execNamed runs a statement whose parameters are fields of the struct arg.
func (t *tx) execNamed(ctx context.Context, query string, arg any) error {
	query, args, err := sqlx.Named(query, arg)
	if err != nil {
		return err
	}
	return t.exec(ctx, query, args...)
}

func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}

// Time is a time as the database keeps it: UTC, to the millisecond; the zero time is NULL.
type Time struct{ time.Time }

// timeFormat sorts as text as the times do.
const timeFormat = "2006-01-02T15:04:05.000Z"

func at(t time.Time) Time { return Time{t.UTC().Truncate(time.Millisecond)} }

// Value implements driver.Valuer.
func (t Time) Value() (driver.Value, error) {
	if t.IsZero() {
		return nil, nil
	}
	return t.UTC().Format(timeFormat), nil
}

// Scan implements sql.Scanner: SQLite gives text, PostgreSQL a time.
func (t *Time) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*t = Time{}
	case time.Time:
		*t = at(v)
	case string:
		parsed, err := time.Parse(timeFormat, v)
		if err != nil {
			return fmt.Errorf("read a time: %w", err)
		}
		*t = Time{parsed}
	default:
		return fmt.Errorf("read a time: unexpected %T", v)
	}
	return nil
}
