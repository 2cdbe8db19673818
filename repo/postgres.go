package repo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"

	"papermap-worker/worker/failpoint"
)

const (
	postgresConns = 32 // at most; the worker's transactions are short
	postgresTries = 10 // of a transaction that the server gave up in favour of another

	// commitTimeout is how long the outcome of a COMMIT without an answer is looked up.
	commitTimeout = 10 * time.Second

	// postgresTimeout is when a connection without an answer is given up. The statement_timeout is
	// over by then, so the server or the way to it is gone.
	postgresTimeout = 20 * time.Second
)

// postgresSettings are sent to the server unless DATABASE_URL gives others.
var postgresSettings = map[string]string{
	"application_name":                    "papermap-worker",
	"statement_timeout":                   "15s",
	"lock_timeout":                        "5s",
	"idle_in_transaction_session_timeout": "30s",
}

func openPostgres(ctx context.Context, address string) (*DB, error) {
	config, err := parsePostgres(address)
	if err != nil {
		return nil, err
	}
	for name, value := range postgresSettings {
		if _, given := config.RuntimeParams[name]; !given {
			config.RuntimeParams[name] = value
		}
	}
	if config.ValidateConnect == nil { // else target_session_attrs says what is wanted
		config.ValidateConnect = refuseStandby
	}
	both := sqlx.NewDb(stdlib.OpenDB(*config), "pgx")
	both.SetMaxOpenConns(postgresConns)
	both.SetMaxIdleConns(postgresConns)
	both.SetConnMaxIdleTime(5 * time.Minute)
	if err := both.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to PostgreSQL (DATABASE_URL): %w", err), both.Close())
	}
	db := &DB{
		dialect: &postgresDialect, read: pool{both, &postgresDialect, postgresTimeout},
		write: both, pools: map[string]*sqlx.DB{"postgres": both},
	}
	db.transact = db.transactPostgres
	return db, nil
}

// Unreachable reports whether the error of an Open may go away by itself: no server answers yet, or
// it is starting up.
func Unreachable(err error) bool {
	var network *net.OpError
	var lookup *net.DNSError
	return errors.As(err, &network) || errors.As(err, &lookup) ||
		hasCode(err, cannotConnectNow, tooManyConnections)
}

func parsePostgres(address string) (*pgx.ConnConfig, error) {
	if strings.HasPrefix(address, "postgres://") || strings.HasPrefix(address, "postgresql://") {
		if config, err := pgx.ParseConfig(address); err == nil {
			return config, nil
		}
	}
	return nil, errors.New(
		"not an address like sqlite:papermap.db or postgres://user:password@host:5432/database")
}

var errReadOnly = errors.New("the PostgreSQL server is a read-only standby: " +
	"let DATABASE_URL name the primary (several hosts with target_session_attrs=read-write find it)")

// refuseStandby keeps every connection of the pool, not only the first, from a server that may be
// behind: a suspended tenant would look active there.
//
// pg_is_in_recovery is true on a server that follows another.
func refuseStandby(ctx context.Context, conn *pgconn.PgConn) error {
	result := conn.ExecParams(ctx, "SELECT pg_is_in_recovery()", nil, nil, nil, nil).Read()
	if result.Err != nil {
		return result.Err
	}
	if string(result.Rows[0][0]) == "t" {
		return errReadOnly
	}
	return nil
}

// transactPostgres runs do in a transaction of its own. One that the server gave up in favour of
// another is run again.
//
// Transactions are READ COMMITTED. What one reads in order to change it, it reads with FOR UPDATE,
// or it has the row of a lease locked that all writers of those rows lock first.
func (db *DB) transactPostgres(ctx context.Context, do txFunc) error {
	for try := 1; ; try++ {
		err := db.tryTransaction(ctx, do)
		switch {
		case hasCode(err, readOnlyTransaction):
			return fmt.Errorf("%w (%w)", errReadOnly, err)
		case try < postgresTries && hasCode(err, serializationFailure, deadlockDetected):
			time.Sleep(rand.N(time.Duration(try) * 5 * time.Millisecond))
		default:
			return err
		}
	}
}

// tryTransaction is one try. An error of COMMIT that the server did not answer with is no outcome:
// it is looked up, so that a caller never repeats what was committed.
func (db *DB) tryTransaction(ctx context.Context, do txFunc) error {
	ctx, cancel := db.read.limit(ctx)
	defer cancel()
	sqlTx, err := db.write.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer sqlTx.Rollback() // after a commit this does nothing
	var start struct {
		Now Time   `db:"now"`
		ID  string `db:"id"`
	}
	const query = "SELECT clock_timestamp() AS now, pg_current_xact_id()::text AS id"
	if err := sqlTx.GetContext(ctx, &start, query); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	if db.now != nil {
		start.Now = at(db.now())
	}
	if err := recovered(ctx, do, &tx{db: db, on: sqlTx, now: start.Now}); err != nil {
		return err
	}
	failpoint.Hit(failpoint.Commit)
	err = sqlTx.Commit()
	failpoint.Hit(failpoint.Committed)
	var server *pgconn.PgError
	if err == nil || errors.As(err, &server) && !hasCode(err, adminShutdown, crashShutdown) {
		return err // the server answered
	}
	return db.lookUpCommit(context.WithoutCancel(ctx), start.ID, err)
}

// lookUpCommit finds out what became of a transaction whose COMMIT got no answer; cause is why it
// got none. The server keeps the status of recent transactions:
// https://www.postgresql.org/docs/current/functions-info.html
func (db *DB) lookUpCommit(ctx context.Context, id string, cause error) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	for {
		var status string
		err := db.write.GetContext(ctx, &status, "SELECT COALESCE(pg_xact_status($1::xid8), '')", id)
		switch {
		case err == nil && status == "committed":
			return nil
		case err == nil && status == "aborted":
			return fmt.Errorf("commit: rolled back: %w", cause)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("commit: the outcome is unknown: %w", cause)
		}
	}
}
