package repo

import (
	"context"
	"database/sql"
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
	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"

	"papermap-worker/worker/failpoint"
)

const (
	postgresConns = 32 // at most; the worker's transactions are short
	postgresTries = 10 // of a transaction that the server gave up for another's sake
	commitWait    = 10 * time.Second
	silence       = 20 * time.Second // without an answer, a connection is given up: statement_timeout is over, so nobody is there any more
)

// Codes of https://www.postgresql.org/docs/current/errcodes-appendix.html that mean something to us.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006"
	uniqueViolation      = "23505"
	adminShutdown        = "57P01"
	crashShutdown        = "57P02"
	cannotConnectNow     = "57P03"
	tooManyConnections   = "53300"
)

func openPostgres(ctx context.Context, address string) (*DB, error) {
	config, err := parsePostgres(address)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"application_name": "papermap-worker", "statement_timeout": "15s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "30s",
	} {
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
	return &DB{dialect: goose.DialectPostgres, read: pool{both, silence}, write: both}, nil
}

// Unreachable says whether the error of an Open may go away by itself: no server answers yet, or it is starting up.
func Unreachable(err error) bool {
	var network *net.OpError
	var lookup *net.DNSError
	var server *pgconn.PgError
	return errors.As(err, &network) || errors.As(err, &lookup) ||
		errors.As(err, &server) && (server.Code == cannotConnectNow || server.Code == tooManyConnections)
}

func parsePostgres(address string) (*pgx.ConnConfig, error) {
	if strings.HasPrefix(address, "postgres://") || strings.HasPrefix(address, "postgresql://") {
		if config, err := pgx.ParseConfig(address); err == nil {
			return config, nil
		}
	}
	return nil, errors.New("not an address like sqlite:papermap.db or postgres://user:password@host:5432/database")
}

var errReadOnly = errors.New("the PostgreSQL server is a read-only standby: let DATABASE_URL name the primary (several hosts with target_session_attrs=read-write find it)")

// refuseStandby keeps every connection of the pool, not only the first, from a server that may be behind: a suspended tenant
// would look active there.
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

// transact runs do in a transaction of its own. One that the server gave up for another's sake is run again.
func (db *DB) transact(ctx context.Context, do work) error {
	for try := 1; ; try++ {
		err := db.transactOnce(ctx, do)
		var server *pgconn.PgError
		if !errors.As(err, &server) {
			return err
		}
		switch server.Code {
		case readOnlyTransaction:
			return fmt.Errorf("%w (%w)", errReadOnly, err)
		case serializationFailure, deadlockDetected:
			if try < postgresTries {
				time.Sleep(rand.N(time.Duration(try) * 5 * time.Millisecond))
				continue
			}
		}
		return err
	}
}

func (db *DB) transactOnce(ctx context.Context, do work) error {
	ctx, cancel := db.read.limit(ctx)
	defer cancel()
	sqlTx, err := db.write.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	defer sqlTx.Rollback() // after a commit this does nothing
	var begun struct {
		Now Time   `db:"now"`
		ID  string `db:"id"`
	}
	if err := sqlTx.GetContext(ctx, &begun, "SELECT clock_timestamp() AS now, pg_current_xact_id()::text AS id"); err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	if db.now != nil {
		begun.Now = at(db.now())
	}
	if err := attempt(ctx, do, &tx{on: sqlTx, driver: sqlTx.DriverName(), now: begun.Now, locking: " FOR UPDATE"}); err != nil {
		return err
	}
	failpoint.Hit(failpoint.Commit)
	err = sqlTx.Commit()
	failpoint.Hit(failpoint.Committed)
	var server *pgconn.PgError
	if err == nil || errors.As(err, &server) && server.Code != adminShutdown && server.Code != crashShutdown {
		return err
	}
	return db.committed(context.WithoutCancel(ctx), begun.ID, err)
}

// beginPatient begins a transaction that only reads, and whose reader may take any time between two rows. When the server is
// done before the reader is, it may end the transaction as idle: what it has sent is read all the same.
func (db *DB) beginPatient(ctx context.Context) (*sqlx.Tx, error) {
	t, err := db.read.BeginTxx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("beginning a transaction: %w", err)
	}
	if _, err := t.ExecContext(ctx, "SET LOCAL statement_timeout = 0"); err != nil {
		return nil, errors.Join(fmt.Errorf("lifting the time-out: %w", err), t.Rollback())
	}
	return t, nil
}

// committed finds out what became of a transaction whose COMMIT got no answer (lost is why).
func (db *DB) committed(ctx context.Context, id string, lost error) error {
	ctx, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	for {
		var status string
		err := db.write.GetContext(ctx, &status, "SELECT COALESCE(pg_xact_status($1::xid8), '')", id)
		switch {
		case err == nil && status == "committed":
			return nil
		case err == nil && status == "aborted":
			return fmt.Errorf("committing: rolled back: %w", lost)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("committing: the outcome is unknown: %w", lost)
		}
	}
}

// isUnique says whether a statement failed because its row would not be the only one.
func isUnique(err error) bool {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return server.Code == uniqueViolation
	}
	var lite sqlite3.Error
	return errors.As(err, &lite) && lite.ExtendedCode == sqlite3.ErrConstraintUnique
}
