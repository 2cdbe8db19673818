package repo

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mattn/go-sqlite3"

	"papermap-worker/schema"
)

// dialect holds the differences between the two databases, as far as they are data. How they are
// opened and how they commit is in sqlite.go and postgres.go.
type dialect struct {
	schema  schema.Dialect
	engine  string // the product's name, for people
	version string // the query for its version
	system  string // OpenTelemetry's db.system.name: https://opentelemetry.io/docs/specs/semconv/database/

	// set makes a table v of the rows; inOrder ends a SELECT from it in their order. inSet says that a
	// column is in a list.
	set     func(columns []column, rows [][]any) (from string, args []any)
	inOrder string
	inSet   string
	list    func([]string) any // the argument of inSet

	lockSet   string // ends a SELECT of rows to be changed: leaves out those that are locked
	forUpdate string // the same, but waits for those
	forShare  string // ends a SELECT of a row that must not change before the transaction ends
	clock     string // reads started; empty: the process's clock counts

	collate   string // the collation by code points, which is SQLite's default
	asNumber  string // follows credits that are sorted: SQLite stores them as text
	unlimited string // removes the timeout of a transaction's statements; empty if there is none

	// The maximum number of usage pages in one transaction, normally and while tenants are
	// provisioned. On PostgreSQL each transaction costs some round trips, so more is better. On
	// SQLite all other writes wait for it.
	pages, pagesWhileBusy int

	// Statements that begin a change of budgets (lockBudgets) or a comparison with them
	// (shareBudgets): neither runs during the other. Empty if there is only one writer.
	lockBudgets, shareBudgets string

	isUnique func(err error) bool // whether a statement violated a unique key
}

var sqliteDialect = dialect{
	schema: schema.SQLite, engine: "SQLite", version: "SELECT sqlite_version()", system: "sqlite",
	set: setOfJSON, inSet: " IN (SELECT value FROM json_each(?))", list: listOfJSON,
	asNumber: " + 0",
	pages:    8, pagesWhileBusy: 1,
	isUnique: func(err error) bool {
		var e sqlite3.Error
		return errors.As(err, &e) && e.ExtendedCode == sqlite3.ErrConstraintUnique
	},
}

var postgresDialect = dialect{
	schema: schema.Postgres, engine: "PostgreSQL", version: "SHOW server_version", system: "postgresql",
	set: setOfArrays, list: func(l []string) any { return arrayOf(l) }, inSet: " = ANY(?::text[])",
	lockSet: " ORDER BY tenant_id FOR UPDATE SKIP LOCKED", forUpdate: " FOR UPDATE", forShare: " FOR SHARE",
	inOrder: " ORDER BY v.n_in_set",
	clock: `SELECT clock_timestamp() AS now, pg_current_xact_id()::text AS id,
		ARRAY(SELECT tenant_id FROM tenant_dashboards WHERE tenant_id = ANY(?::text[])) AS known`,
	collate: ` COLLATE "C"`, unlimited: "SET LOCAL statement_timeout = 0",
	pages: 32, pagesWhileBusy: 32,
	lockBudgets:  "LOCK TABLE usage_budgets IN EXCLUSIVE MODE",
	shareBudgets: "LOCK TABLE usage_budgets IN ROW SHARE MODE",
	isUnique:     func(err error) bool { return hasCode(err, uniqueViolation) },
}

// Codes of https://www.postgresql.org/docs/current/errcodes-appendix.html that are handled.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006"
	uniqueViolation      = "23505"
	adminShutdown        = "57P01"
	crashShutdown        = "57P02"
	cannotConnectNow     = "57P03"
	tooManyConnections   = "53300"
	protocolViolation    = "08P01"
)

// hasCode reports whether the PostgreSQL server refused something with one of these codes.
func hasCode(err error, codes ...string) bool {
	var server *pgconn.PgError
	return errors.As(err, &server) && slices.Contains(codes, server.Code)
}

// setOfArrays passes a set to PostgreSQL as one array for each column.
func setOfArrays(columns []column, rows [][]any) (string, []any) {
	var from, args = "unnest(", make([]any, len(columns))
	for i, c := range columns {
		if i > 0 {
			from += ", "
		}
		from += "?::" + c.kind + "[]"
		values := make([]any, len(rows))
		for r, row := range rows {
			values[r] = row[i]
		}
		args[i] = arrayOf(values)
	}
	return from + ") WITH ORDINALITY AS v (" + names(columns, "") + ", n_in_set)", args
}

// arrayOf is the text of a PostgreSQL array:
// https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
func arrayOf[T any](values []T) string {
	text := append(make([]byte, 0, 40*len(values)), '{') // most values are times, numbers and ids
	for i, v := range values {
		if i > 0 {
			text = append(text, ',')
		}
		switch v := any(v).(type) {
		case nil:
			text = append(text, "NULL"...)
		case int64:
			text = strconv.AppendInt(text, v, 10)
		case string:
			text = append(text, '"')
			for i := range len(v) {
				if v[i] == '"' || v[i] == '\\' {
					text = append(text, '\\')
				}
				text = append(text, v[i])
			}
			text = append(text, '"')
		}
	}
	return string(append(text, '}'))
}

// setOfJSON passes a set to SQLite as an array of arrays, one for each row.
func setOfJSON(columns []column, rows [][]any) (string, []any) {
	var from strings.Builder
	for i, c := range columns {
		fmt.Fprintf(&from, ", value ->> %d AS %s", i, c.name)
	}
	text := []byte{'['}
	for r, row := range rows {
		if r > 0 {
			text = append(text, ',')
		}
		text = appendJSON(text, row)
	}
	return "(SELECT " + from.String()[2:] + " FROM json_each(?)) AS v", []any{string(append(text, ']'))}
}

func listOfJSON(values []string) any { return string(appendJSON(nil, values)) }

func appendJSON[T any](text []byte, values []T) []byte {
	text = append(text, '[')
	for i, v := range values {
		if i > 0 {
			text = append(text, ',')
		}
		switch v := any(v).(type) {
		case nil:
			text = append(text, "null"...)
		case int64:
			text = strconv.AppendInt(text, v, 10)
		case string:
			text, _ = jsontext.AppendQuote(text, v) // the error is that it replaced what is no UTF-8
		}
	}
	return append(text, ']')
}
