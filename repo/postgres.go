package repo

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"

	"papermap-worker/worker/failpoint"
)

const (
	lanePipeline    = 2 // transactions of a lane: one is written while the other is committed
	postgresSingles = 8 // transactions of single jobs at once

	// batchLockTimeout is how long a batch waits for a row that another transaction inserts. After
	// that, each of its jobs waits alone, for as long as lock_timeout.
	batchLockTimeout = "250ms"

	// commitTimeout is how long the outcome of a COMMIT without an answer is looked up.
	commitTimeout = 10 * time.Second

	// postgresTimeout is when a connection without an answer is abandoned. The statement_timeout
	// has passed by then, so the server or the network is down.
	postgresTimeout = 20 * time.Second

	postgresIdle = time.Minute // after which a connection is closed
)

// A connection has no state of its own, because a pooler such as PgBouncer may give each
// transaction another one: no prepared statements, no session locks, and each transaction sets its
// own timeouts. A new connection sends only parameters that poolers support and keep for each
// client.
var (
	// connectionSettings make text and times independent of the server's settings.
	connectionSettings = map[string]string{"client_encoding": "UTF8", "datestyle": "ISO", "timezone": "UTC"}

	// timeouts are a transaction's default timeouts. DATABASE_URL can change them.
	timeouts = map[string]string{
		"statement_timeout": "15s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "30s",
	}
)

func openPostgres(ctx context.Context, address string, conns int) (*DB, error) {
	config, err := parsePostgres(address)
	if err != nil {
		return nil, err
	}
	limits := maps.Clone(timeouts)
	for name := range limits {
		if value, given := config.RuntimeParams[name]; given {
			limits[name] = value
			delete(config.RuntimeParams, name)
		}
	}
	if _, given := config.RuntimeParams["application_name"]; !given {
		config.RuntimeParams["application_name"] = "papermap-worker"
	}
	maps.Copy(config.RuntimeParams, connectionSettings)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	if config.ValidateConnect == nil { // else target_session_attrs says what is wanted
		config.ValidateConnect = refuseStandby
	}
	db := &DB{core: &core{dialect: &postgresDialect, pools: map[string]*sqlx.DB{}}}
	for name, n := range connectionShares(conns) {
		db.pools[name] = postgresPool(config, n)
	}
	of := func(name string) *sqlx.DB { return cmp.Or(db.pools[name], db.pools["all"]) }
	read := settingsOf(map[string]string{
		"statement_timeout": limits["statement_timeout"], "extra_float_digits": "1",
	})
	query := func(ctx context.Context, p pool, dest any, query string, args []any) error {
		return pipelinedRead(ctx, p.DB, dest, read, statement{text: query, args: args})
	}
	reads := func(name string) pool { return pool{of(name), &postgresDialect, postgresTimeout, query} }
	db.read, db.core.tokens, db.core.people = reads("work"), reads("tokens"), reads("people")
	db.write, db.sets = of("work"), of("batches")
	if err := db.write.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to PostgreSQL (DATABASE_URL): %w", err), db.Close())
	}
	begin := statement{text: "BEGIN ISOLATION LEVEL READ COMMITTED", untraced: true}
	single := batchSettings(limits, limits["lock_timeout"])
	batch := batchSettings(limits, batchLockTimeout)
	db.settings = func(alone bool) []statement {
		if alone {
			return []statement{begin, single}
		}
		return []statement{begin, batch}
	}
	db.session = db.postgresSession
	db.batches = newBatches(db)
	start := startOf(settingsOf(limits))
	db.transact = func(ctx context.Context, do txFunc) error { return db.transactPostgres(ctx, start, do) }
	return db, nil
}

// connectionShares divides a worker's connections among its pools.
func connectionShares(conns int) map[string]int {
	if conns < MinConns {
		return map[string]int{"all": conns}
	}
	tokens, people := max(1, conns/8), max(1, conns/6)
	work := max(1, (conns-tokens-people)/3)
	batches := min(conns-tokens-people-work, 2*lanePipeline+postgresSingles)
	work = conns - tokens - people - batches
	return map[string]int{"tokens": tokens, "people": people, "batches": batches, "work": work}
}

func postgresPool(config *pgx.ConnConfig, conns int) *sqlx.DB {
	p := sqlx.NewDb(sql.OpenDB(connector{stdlib.GetConnector(*config)}), "pgx")
	p.SetMaxOpenConns(conns)
	p.SetMaxIdleConns(conns)
	p.SetConnMaxIdleTime(postgresIdle)
	return p
}

// connector explains why there is no connection.
type connector struct{ driver.Connector }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	switch {
	case hasCode(err, tooManyConnections):
		return nil, fmt.Errorf("PostgreSQL has no connection left for this program: lower "+
			"DATABASE_MAX_CONNS of the workers, or raise max_connections (%w)", err)
	case err != nil && strings.Contains(err.Error(), "unsupported startup parameter"):
		return nil, fmt.Errorf("the pooler before PostgreSQL refuses a parameter of DATABASE_URL: "+
			"remove it, or name it in ignore_startup_parameters (%w)", err)
	}
	return conn, err
}

// bySetSettings are the settings of a batch: each of its statements finds its rows by an index,
// even if the server has no statistics of the table yet.
var bySetSettings = []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin"}

// settingsOf returns the statement that sets a transaction's settings.
func settingsOf(settings map[string]string) statement {
	st := statement{untraced: true}
	var calls []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		calls, st.args = append(calls, "set_config('"+name+"', ?, true)"), append(st.args, settings[name])
	}
	st.text = "SELECT " + strings.Join(calls, ", ")
	return st
}

// batchSettings returns the statement that sets a batch's settings.
func batchSettings(limits map[string]string, lockTimeout string) statement {
	settings := maps.Clone(limits)
	settings["lock_timeout"] = lockTimeout
	for _, name := range bySetSettings {
		settings[name] = "off"
	}
	return settingsOf(settings)
}

// startOf returns the first statement of a transaction: it sets the settings, and reads the clock
// and the transaction's id.
func startOf(settings statement) statement {
	settings.text = "SELECT clock_timestamp() AS now, pg_current_xact_id()::text AS id, concat(" +
		strings.TrimPrefix(settings.text, "SELECT ") + ") AS settings"
	return settings
}

// Unreachable reports whether the error of an Open may go away by itself: no server answers yet, or
// it is starting.
func Unreachable(err error) bool {
	var network *net.OpError
	var lookup *net.DNSError
	return errors.As(err, &network) || errors.As(err, &lookup) ||
		errors.Is(err, context.DeadlineExceeded) ||
		hasCode(err, cannotConnectNow, tooManyConnections) || hasCode(err, protocolViolation) &&
		slices.ContainsFunc(poolerWaits,
			func(text string) bool { return strings.Contains(err.Error(), text) })
}

// poolerWaits are parts of PgBouncer's errors while it cannot reach PostgreSQL.
var poolerWaits = []string{"server login", "query_wait_timeout", "connect failed", "cannot connect to server"}

var errReadOnly = errors.New("the PostgreSQL server is a read-only standby: " +
	"let DATABASE_URL name the primary (several hosts with target_session_attrs=read-write find it)")

// refuseStandby keeps every connection of the pool, not only the first, away from a server that may
// lag behind: a suspended tenant would look active there.
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

// transactPostgres runs do in its own transaction. If the server aborted it in favour of another,
// it is run again.
//
// Transactions are READ COMMITTED. Rows that a transaction reads in order to change them are read
// with FOR UPDATE, unless it has locked the row of a lease that all writers of those rows lock
// first.
func (db *DB) transactPostgres(ctx context.Context, start statement, do txFunc) error {
	for try := 1; ; try++ {
		err := db.tryTransaction(ctx, start, do)
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

// tryTransaction is one try. An error of COMMIT that is not the server's answer does not show the
// outcome. The outcome is then looked up, so that a caller never repeats what was committed.
func (db *DB) tryTransaction(ctx context.Context, start statement, do txFunc) error {
	ctx, cancel := db.read.limit(ctx)
	defer cancel()
	sqlTx, err := db.write.BeginTxx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer sqlTx.Rollback() // after a commit this does nothing
	var clock struct {
		Now      Time   `db:"now"`
		ID       string `db:"id"`
		Settings string `db:"settings"`
	}
	if err := sqlTx.GetContext(ctx, &clock, sqlTx.Rebind(start.text), start.args...); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	if db.now != nil {
		clock.Now = at(db.now())
	}
	if err := recovered(ctx, do, &tx{db: db, on: sqlTx, now: clock.Now}); err != nil {
		return err
	}
	failpoint.Hit(failpoint.Commit)
	err = committed(sqlTx.Commit(), clock.ID)
	failpoint.Hit(failpoint.Committed)
	var lost *lostCommit
	if errors.As(err, &lost) {
		err = db.lookUpCommit(lost.id, lost.error)
	}
	db.wrote(err)
	return err
}

// committed returns the error of a COMMIT as a lostCommit if the server did not answer.
func committed(err error, id string) error {
	if err == nil || answered(err) {
		return err
	}
	return &lostCommit{err, id}
}

// answered reports whether an error is the server's answer to a statement, rather than the loss of
// the connection, which a pooler may report in the server's place.
func answered(err error) bool {
	var server *pgconn.PgError
	return errors.As(err, &server) && server.Severity != "FATAL" && server.Severity != "PANIC" &&
		!strings.HasPrefix(server.Code, "08") &&
		!hasCode(err, adminShutdown, crashShutdown, cannotConnectNow)
}

// postgresSession runs do in a session on its own connection.
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
			err = committed(err, s.id)
			db.wrote(err)
			return err
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
	results := send(ctx, pg, list...)
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

func send(ctx context.Context, pg *pgx.Conn, list ...*statement) pgx.BatchResults {
	batch := &pgx.Batch{}
	for _, st := range list {
		batch.Queue(sqlx.Rebind(sqlx.DOLLAR, st.text), st.args...)
	}
	return pg.SendBatch(ctx, batch)
}

// pipelinedRead sends a reading statement together with its settings, which makes them one
// transaction.
func pipelinedRead(ctx context.Context, db *sqlx.DB, dest any, settings, st statement) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(raw any) error {
		results := send(ctx, raw.(*stdlib.Conn).Conn(), &settings, &st)
		defer results.Close()
		if _, err := results.Exec(); err != nil {
			return err
		}
		rows, err := results.Query()
		if err == nil {
			err = scan(rows, dest)
		}
		if err != nil {
			return err
		}
		return results.Close()
	})
}

// scan reads all rows into the slice at dest: of structs, by the names of the columns, or of values.
func scan(rows pgx.Rows, dest any) error {
	list := reflect.ValueOf(dest).Elem()
	element := list.Type().Elem()
	value := element.Kind() != reflect.Struct || element == reflect.TypeFor[time.Time]() ||
		reflect.PointerTo(element).Implements(reflect.TypeFor[sql.Scanner]())
	if !value {
		return sqlx.StructScan(pgxRows{rows}, dest)
	}
	defer rows.Close()
	for rows.Next() {
		row := reflect.New(element)
		if err := rows.Scan(row.Interface()); err != nil {
			return err
		}
		list.Set(reflect.Append(list, row.Elem()))
	}
	return rows.Err()
}

// refused returns the error of a statement as a statementError if the statement is at fault, and
// explains the error of a read-only server.
func refused(err error) error {
	switch {
	case hasCode(err, readOnlyTransaction):
		return fmt.Errorf("%w (%w)", errReadOnly, err)
	case !answered(err):
		return err
	}
	return statementError{err}
}

// pgxRows adapts pgx's rows to sqlx.
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

// lookUpCommit looks up the outcome of a transaction whose COMMIT got no answer; cause is the
// reason for that. The server keeps the status of recent transactions:
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
