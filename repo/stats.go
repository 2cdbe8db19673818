package repo

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Stats are counts of the tables, for operators.
type Stats struct {
	Tenants           map[Status]int
	PossibleOrphans   int                      // that DB.PossibleOrphans lists
	PossibleOrphanAge time.Duration            // of the oldest
	Unsent            int                      // events out that wait
	UnsentAge         time.Duration            // of the oldest
	UsageAge          map[string]time.Duration // since the newest run that is done, by workspace
}

// Stats counts. With a million tenants it reads an index, not the table.
func (db *DB) Stats(ctx context.Context) (s Stats, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read statistics: %w", err)
		}
	}()
	s = Stats{Tenants: map[Status]int{}, UsageAge: map[string]time.Duration{}}
	now, err := db.clock(ctx)
	if err != nil {
		return s, err
	}
	tenants, err := list[struct {
		Status Status `db:"status"`
		N      int    `db:"n"`
	}](ctx, db.read, "count tenants", "SELECT status, COUNT(*) AS n FROM tenant_dashboards GROUP BY status")
	if err != nil {
		return s, err
	}
	for _, t := range tenants {
		s.Tenants[t.Status] = t.N
	}
	waiting := func(since, from string, args ...any) (n int, age time.Duration, err error) {
		var row struct {
			N      int  `db:"n"`
			Oldest Time `db:"oldest"`
		}
		query := "SELECT COUNT(*) AS n, MIN(" + since + ") AS oldest FROM " + from
		if err := db.read.get(ctx, &row, query, args...); err != nil || row.Oldest.IsZero() {
			return row.N, 0, err
		}
		return row.N, max(0, now.Sub(row.Oldest.Time)), nil
	}
	s.PossibleOrphans, s.PossibleOrphanAge, err = waiting("started_at", "("+possibleOrphans+") a",
		at(now.Add(-Lease)))
	if err != nil {
		return s, err
	}
	s.Unsent, s.UnsentAge, err = waiting("created_at", "outbox WHERE sent_at IS NULL")
	if err != nil {
		return s, err
	}
	runs, err := list[struct {
		WorkspaceID string `db:"workspace_id"`
		Newest      Time   `db:"newest"`
	}](ctx, db.read, "read usage runs", `SELECT workspace_id, MAX(finished_at) AS newest FROM usage_runs
		WHERE status = 'done' AND tenant_id = '' GROUP BY workspace_id`)
	for _, r := range runs {
		s.UsageAge[r.WorkspaceID] = max(0, now.Sub(r.Newest.Time))
	}
	return s, err
}

// Engine is the database's product and version, e.g. "SQLite 3.50.4".
func (db *DB) Engine(ctx context.Context) (string, error) {
	var version string
	if err := db.read.get(ctx, &version, db.dialect.version); err != nil {
		return "", fmt.Errorf("read the database's version: %w", err)
	}
	return db.dialect.engine + " " + version, nil
}

// Pools are the states of the connection pools by purpose: "tokens", "people", and for the work
// "read" and "write" on SQLite, "batches" and "work" on PostgreSQL.
func (db *DB) Pools() map[string]sql.DBStats {
	stats := map[string]sql.DBStats{}
	for name, p := range db.pools {
		stats[name] = p.Stats()
	}
	return stats
}
