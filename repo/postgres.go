package repo

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	postgresConns   = 32 // at most; the worker's transactions are short
	postgresLanes   = 3  // of batches at once, and one more for what is urgent
	postgresSingles = 8  // transactions of single jobs at once
	postgresBatches = postgresLanes + 1 + postgresSingles

	// batchLockTimeout is how long a batch waits for a row that another transaction inserts. Then each
	// of its jobs waits alone, for as long as lock_timeout says.
	batchLockTimeout = "250ms"

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
	both := postgresPool(config, postgresConns-postgresBatches)
	if err := both.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to PostgreSQL (DATABASE_URL): %w", err), both.Close())
	}
	db := &DB{
		dialect: &postgresDialect, read: pool{both, &postgresDialect, postgresTimeout},
		write: both, pools: map[string]*sqlx.DB{"postgres": both},
	}
	begin := statement{text: "BEGIN", untraced: true}
	single := localSettings(config.RuntimeParams, config.RuntimeParams["lock_timeout"])
	batch := localSettings(config.RuntimeParams, batchLockTimeout)
	db.settings = func(alone bool) []statement {
		if alone {
			return []statement{begin, single}
		}
		return []statement{begin, batch}
	}
	config.RuntimeParams = maps.Clone(config.RuntimeParams)
	for _, name := range timeouts {
		delete(config.RuntimeParams, name)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	db.sets = postgresPool(config, postgresBatches)
	db.pools["postgres_batches"] = db.sets
	db.session = db.postgresSession
	db.batches = newBatches(db, postgresLanes+1, postgresSingles)
	db.transact = db.transactPostgres
	return db, nil
}

func postgresPool(config *pgx.ConnConfig, conns int) *sqlx.DB {
	p := sqlx.NewDb(stdlib.OpenDB(*config), "pgx")
	p.SetMaxOpenConns(conns)
	p.SetMaxIdleConns(conns)
	p.SetConnMaxIdleTime(5 * time.Minute)
	return p
}

// bySetSettings are a batch's: each of its statements finds its rows by an index, whatever the server
// believes of a table that it has not analysed yet.
var bySetSettings = []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin"}

// timeouts are the settings of postgresSettings that batches have for a transaction and not for a
// connection.
var timeouts = []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}

// localSettings is the statement that sets a transaction's settings.
func localSettings(params map[string]string, lockTimeout string) statement {
	var calls []string
	st := statement{untraced: true}
	for _, name := range timeouts {
		value := params[name]
		if name == "lock_timeout" {
			value = lockTimeout
		}
		calls, st.args = append(calls, "set_config('"+name+"', ?, true)"), append(st.args, value)
	}
	for _, name := range bySetSettings {
		calls = append(calls, "set_config('"+name+"', 'off', true)")
	}
	st.text = "SELECT " + strings.Join(calls, ", ")
	return st
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
			return refused(err)
		case try < maxTries && hasCode(err, serializationFailure, deadlockDetected):
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
	err = committed(sqlTx.Commit(), start.ID)
	failpoint.Hit(failpoint.Committed)
	var lost *lostCommit
	if errors.As(err, &lost) {
		return db.lookUpCommit(lost.id, lost.error)
	}
	return err
}

// committed returns the error of a COMMIT as a lostCommit if the server did not answer.
func committed(err error, id string) error {
	var server *pgconn.PgError
	if err == nil || errors.As(err, &server) && !hasCode(err, adminShutdown, crashShutdown) {
		return err
	}
	return &lostCommit{err, id}
}

// postgresSession runs do in a session on a connection of its own.
func (db *DB) postgresSession(ctx context.Context, do func(*session) error) error {
	conn, err := db.sets.Conn(ctx)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer conn.Close()
	return conn.Raw(func(raw any) error {
		pg := raw.(*stdlib.Conn).Conn()
		s := &session{db: db}
		s.run = func(ctx context.Context, list ...*statement) error { return db.pipeline(ctx, pg, list) }
		s.commit = func(ctx context.Context) error {
			tag, err := pg.Exec(ctx, "COMMIT")
			if err == nil && tag.String() != "COMMIT" {
				return errors.New("commit: rolled back")
			}
			return committed(err, s.id)
		}
		err := do(s)
		if err != nil && !pg.IsClosed() {
			ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
			defer cancel()
			if _, rollbackErr := pg.Exec(ctx, "ROLLBACK"); rollbackErr != nil {
				_ = pg.Close(ctx) // which ends the transaction, too
			}
		}
		return err
	})
}

// pipeline sends the statements together and reads their results.
func (db *DB) pipeline(ctx context.Context, pg *pgx.Conn, list []*statement) error {
	batch := &pgx.Batch{}
	for _, st := range list {
		batch.Queue(sqlx.Rebind(sqlx.DOLLAR, st.text), st.args...)
	}
	results := pg.SendBatch(ctx, batch)
	defer results.Close()
	for _, st := range list {
		err := st.traced(ctx, db.dialect, func(context.Context) error {
			if st.into == nil {
				tag, err := results.Exec()
				st.rows = tag.RowsAffected()
				return err
			}
			rows, err := results.Query()
			if err != nil {
				return err
			}
			return sqlx.StructScan(pgxRows{rows}, st.into)
		})
		if err != nil {
			st.failed = true
			return refused(err)
		}
	}
	return results.Close()
}

// refused returns the error of a statement as a statementError if it is the statement's fault, and
// says what a read-only server means.
func refused(err error) error {
	var server *pgconn.PgError
	switch {
	case hasCode(err, readOnlyTransaction):
		return fmt.Errorf("%w (%w)", errReadOnly, err)
	case !errors.As(err, &server) || hasCode(err, adminShutdown, crashShutdown, cannotConnectNow):
		return err
	}
	return statementError{err}
}

// pgxRows makes of pgx's rows what sqlx can read.
type pgxRows struct{ pgx.Rows }

func (r pgxRows) Close() error {
	r.Rows.Close()
	return r.Err()
}

func (r pgxRows) Columns() (names []string, err error) {
	for _, f := range r.FieldDescriptions() {
		names = append(names, f.Name)
	}
	return names, nil
}

// lookUpCommit finds out what became of a transaction whose COMMIT got no answer; cause is why it
// got none. The server keeps the status of recent transactions:
// https://www.postgresql.org/docs/current/functions-info.html
func (db *DB) lookUpCommit(id string, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
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
