package repo

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/pressly/goose/v3"
)

// Stats is what the tables hold, for operators.
type Stats struct {
	Tenants      map[Status]int
	Uncertain    int // attempts that UncertainAttempts lists
	UncertainAge time.Duration
	Unsent       int // events out that wait
	UnsentAge    time.Duration
	UsageAge     map[string]time.Duration // since the newest run that is done, by workspace
}

// Stats counts. On a million tenants it reads an index.
func (db *DB) Stats(ctx context.Context) (Stats, error) {
	s := Stats{Tenants: map[Status]int{}, UsageAge: map[string]time.Duration{}}
	fail := func(err error) (Stats, error) { return Stats{}, fmt.Errorf("reading statistics: %w", err) }
	now, err := db.clock(ctx)
	if err != nil {
		return fail(err)
	}
	var tenants []struct {
		Status Status `db:"status"`
		N      int    `db:"n"`
	}
	if err := db.read.SelectContext(ctx, &tenants, "SELECT status, COUNT(*) AS n FROM tenant_dashboards GROUP BY status"); err != nil {
		return fail(err)
	}
	for _, t := range tenants {
		s.Tenants[t.Status] = t.N
	}
	var waiting struct {
		N      int  `db:"n"`
		Oldest Time `db:"oldest"`
	}
	age := func() time.Duration {
		if waiting.Oldest.IsZero() {
			return 0
		}
		return max(0, now.Sub(waiting.Oldest.Time))
	}
	err = db.read.GetContext(ctx, &waiting, db.read.Rebind(`SELECT COUNT(*) AS n, MIN(started_at) AS oldest FROM provision_attempts
		WHERE outcome NOT IN ('created', 'refused') AND settled_at IS NULL AND (outcome <> 'sent' OR started_at < ?)`), at(now.Add(-Lease)))
	if err != nil {
		return fail(err)
	}
	s.Uncertain, s.UncertainAge = waiting.N, age()
	if err := db.read.GetContext(ctx, &waiting, "SELECT COUNT(*) AS n, MIN(created_at) AS oldest FROM outbox WHERE sent_at IS NULL"); err != nil {
		return fail(err)
	}
	s.Unsent, s.UnsentAge = waiting.N, age()
	var runs []struct {
		WorkspaceID string `db:"workspace_id"`
		Newest      Time   `db:"newest"`
	}
	err = db.read.SelectContext(ctx, &runs, "SELECT workspace_id, MAX(finished_at) AS newest FROM usage_runs WHERE status = 'done' AND tenant_id = '' GROUP BY workspace_id")
	if err != nil {
		return fail(err)
	}
	for _, r := range runs {
		s.UsageAge[r.WorkspaceID] = max(0, now.Sub(r.Newest.Time))
	}
	return s, nil
}

// Engine is the database's program and its version.
func (db *DB) Engine(ctx context.Context) (string, error) {
	name, query := "PostgreSQL ", "SHOW server_version"
	if db.dialect == goose.DialectSQLite3 {
		name, query = "SQLite ", "SELECT sqlite_version()"
	}
	var version string
	if err := db.read.GetContext(ctx, &version, query); err != nil {
		return "", fmt.Errorf("asking the database for its version: %w", err)
	}
	return name + version, nil
}

// Pools are the states of the connection pools: read and write on SQLite, one on PostgreSQL.
func (db *DB) Pools() map[string]sql.DBStats {
	if db.read.DB == db.write {
		return map[string]sql.DBStats{"postgres": db.write.Stats()}
	}
	return map[string]sql.DBStats{"read": db.read.Stats(), "write": db.write.Stats()}
}
