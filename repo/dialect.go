package repo

import (
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"
)

// dialect is what the two databases do not have in common, as far as it is data. How they are
// opened and how they commit is in sqlite.go and postgres.go.
type dialect struct {
	goose   goose.Dialect
	engine  string // the product's name, for people
	version string // the query for its version
	system  string // OpenTelemetry's db.system.name: https://opentelemetry.io/docs/specs/semconv/database/

	forUpdate string // ends a SELECT whose rows the transaction will change; empty where a writer is alone
	collate   string // the collation by code points, which is SQLite's default
	unlimited string // lifts the time-out of a transaction's statements; empty where there is none

	// The pages of usage that one transaction records at most, normally and while tenants are
	// provisioned. On PostgreSQL each transaction costs some round trips, so more is better; on
	// SQLite all other writes wait for it.
	pages, pagesWhileBusy int

	usage    func(rows []UsageRow) usageStatements
	isUnique func(err error) bool // whether a statement failed because its row would not be the only one
}

var sqliteDialect = dialect{
	goose: goose.DialectSQLite3, engine: "SQLite", version: "SELECT sqlite_version()", system: "sqlite",
	pages: 8, pagesWhileBusy: 1,
	usage: usageByValues,
	isUnique: func(err error) bool {
		var e sqlite3.Error
		return errors.As(err, &e) && e.ExtendedCode == sqlite3.ErrConstraintUnique
	},
}

var postgresDialect = dialect{
	goose: goose.DialectPostgres, engine: "PostgreSQL", version: "SHOW server_version", system: "postgresql",
	forUpdate: " FOR UPDATE", collate: ` COLLATE "C"`, unlimited: "SET LOCAL statement_timeout = 0",
	pages: 32, pagesWhileBusy: 32,
	usage:    usageByArrays,
	isUnique: func(err error) bool { return hasCode(err, uniqueViolation) },
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
)

// hasCode reports whether the PostgreSQL server refused something with one of these codes.
func hasCode(err error, codes ...string) bool {
	var server *pgconn.PgError
	return errors.As(err, &server) && slices.Contains(codes, server.Code)
}
