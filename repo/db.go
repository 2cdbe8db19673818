package repo

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"papermap-worker/schema"
)

// ErrNotFound means that there is no such row.
var ErrNotFound = errors.New("not found")

// DB is an open database. Its methods may be called concurrently.
type DB struct {
	*core
	read  pool
	audit *AuditEntry // of a view: what each write records; nil: nothing
}

// core is the state that all views of a database share.
type core struct {
	dialect  *dialect
	write    *sqlx.DB                            // of writes; on PostgreSQL of the work's reads, too
	pools    map[string]*sqlx.DB                 // all of them, by what metrics call them
	tokens   pool                                // see Tokens
	people   pool                                // see People
	transact func(context.Context, txFunc) error // runs one write that is no decision and commits it
	batches  *batches                            // of decisions; nil until the database is open
	settings func(alone bool) []statement        // what a session begins with
	session  func(context.Context, func(*session) error) error
	sets     *sqlx.DB         // of sessions; nil on SQLite
	path     string           // of SQLite's file; empty on PostgreSQL
	files    []sqliteFile     // of an SQLite database
	lock     *os.File         // held by the one worker of an SQLite file while it runs
	now      func() time.Time // the clock that leases go by; nil for PostgreSQL's own

	lastBegin atomic.Int64 // when Begin was last called, in Unix nanoseconds
	lastWrite atomic.Int64 // when something was last committed, in Unix nanoseconds
	probing   atomic.Bool  // a write check is in flight
}

// Connections to PostgreSQL.
const (
	MinConns     = 4  // of a worker: one for each of its pools
	DefaultConns = 24 // of a worker
	CommandConns = 2  // of a command, which does one thing after the other
)

// Open opens the database at address, "sqlite:PATH" or "postgres://…", without migrating it, with
// the connections of a worker. An SQLite file that does not exist is created; its folder is not.
func Open(ctx context.Context, address string) (*DB, error) {
	return OpenLimited(ctx, address, DefaultConns)
}

// OpenLimited is Open with a maximum number of connections to PostgreSQL. With fewer than MinConns,
// all views share one pool.
func OpenLimited(ctx context.Context, address string, conns int) (*DB, error) {
	if path, ok := sqlitePath(address); ok {
		return openSQLite(ctx, path)
	}
	return openPostgres(ctx, address, conns)
}

// Tokens is a view of the database whose reads have separate connections, so that token requests
// wait for nothing else.
func (db *DB) Tokens() *DB { return &DB{core: db.core, read: db.core.tokens} }

// People is a view of the database whose reads have separate connections, so that lists and the
// console take none from the events.
func (db *DB) People() *DB { return &DB{core: db.core, read: db.core.people} }

// Migrate brings the schema up to date and returns the names of the migrations that it applied.
func (db *DB) Migrate(ctx context.Context) ([]string, error) {
	return db.MigrateWhenFree(ctx, func(bool) {})
}

// MigrateWhenFree is Migrate. It calls onWait with true when it begins to wait for another program
// that migrates, and with false when the wait ends.
func (db *DB) MigrateWhenFree(ctx context.Context, onWait func(bool)) ([]string, error) {
	return schema.Migrate(ctx, db.write.DB, db.dialect.schema, onWait)
}

// Errors of [DB.CheckSchema]: the database is older, or newer, than this program.
var (
	ErrSchemaBehind = schema.ErrBehind
	ErrSchemaNewer  = schema.ErrNewer
)

// CheckSchema returns nil if the schema is at the program's version, or else an error that says
// what to do and wraps [schema.ErrBehind] or [schema.ErrNewer].
func (db *DB) CheckSchema(ctx context.Context) error {
	ctx, cancel := db.read.limit(ctx)
	defer cancel()
	return schema.Check(ctx, db.read.DB.DB, db.dialect.schema)
}

// Migrations lists the migrations of this program and whether each was applied.
func (db *DB) Migrations(ctx context.Context) ([]schema.Migration, error) {
	ctx, cancel := db.read.limit(ctx)
	defer cancel()
	return schema.Status(ctx, db.read.DB.DB, db.dialect.schema)
}

// NoMigrations lists the migrations for the database at address, which does not exist yet.
func NoMigrations(address string) ([]schema.Migration, error) {
	if _, ok := sqlitePath(address); ok {
		return schema.Status(context.Background(), nil, schema.SQLite)
	}
	return schema.Status(context.Background(), nil, schema.Postgres)
}

// Close finishes the writes in progress and closes the database.
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
// and its arguments describe the purpose in an error. Once started, it is finished even if ctx ends,
// so that the caller learns the outcome.
func (db *DB) update(ctx context.Context, do txFunc, format string, args ...any) (err error) {
	ctx, span := startSpan(ctx, "transaction") // with the wait for its turn, and the commit
	defer func() { endSpan(span, err) }()
	if err := db.transact(ctx, db.audited(do)); err != nil {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
	}
	return nil
}

// decide is update for a decision about one tenant, which shares its transaction with others.
func (db *DB) decide(ctx context.Context, j *job, format string, args ...any) (err error) {
	ctx, span := startSpan(ctx, "transaction")
	defer func() { endSpan(span, err) }()
	if db.audit != nil {
		j.audit = append(j.audit, *db.audit)
	}
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

	// query reads all rows into the slice at dest, within PostgreSQL's settings for reads. It is nil
	// on SQLite.
	query func(ctx context.Context, p pool, dest any, query string, args []any) error
}

// get reads one row into dest; ErrNotFound when there is none. Parameters are question marks on
// both databases.
func (p pool) get(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	return notFound(traced(ctx, p.dialect, query, func(ctx context.Context) error {
		if p.query == nil {
			return p.GetContext(ctx, dest, query, args...)
		}
		value := reflect.ValueOf(dest).Elem()
		rows := reflect.New(reflect.SliceOf(value.Type()))
		if err := p.query(ctx, p, rows.Interface(), query, args); err != nil {
			return err
		}
		if rows.Elem().Len() == 0 {
			return sql.ErrNoRows
		}
		value.Set(rows.Elem().Index(0))
		return nil
	}))
}

// list reads all rows of a query. what names it in an error.
func list[T any](ctx context.Context, p pool, what, query string, args ...any) ([]T, error) {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	var rows []T
	err := traced(ctx, p.dialect, query, func(ctx context.Context) error {
		if p.query == nil {
			return p.SelectContext(ctx, &rows, query, args...)
		}
		return p.query(ctx, p, &rows, query, args)
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

// txFunc is one caller's part of a transaction. It may run more than once, so it must set all its
// results each time.
type txFunc func(context.Context, *tx) error

// tx is a transaction.
type tx struct {
	db  *DB
	on  connection
	now Time // of the clock that leases go by, when the transaction began

	audit *AuditEntry // of an audited write, which may complete it; nil: the write is not audited
}

// Every query of this package has question marks for parameters on both databases, and names the
// columns that it reads. It goes through pool or tx, which trace it.

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
