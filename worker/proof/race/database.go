package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/mattn/go-sqlite3"
)

// maxConns is the size of each contender's PostgreSQL pool: papermap-worker's default.
const maxConns = 24

const sqlitePrefix = "sqlite:"

// sqliteOptions are papermap-worker's too: no commit is lost, not even with the machine's power.
const sqliteOptions = "?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=5000&_txlock=immediate"

// openDatabase opens a database for few users: the race itself, or SQLite's one writer.
func openDatabase(address string) (*sql.DB, error) {
	driver, source := "pgx", address
	if path, ok := strings.CutPrefix(address, sqlitePrefix); ok {
		driver, source = "sqlite3", "file:"+path+sqliteOptions
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// makeTable makes the rivals' table. Its columns are a part of papermap-worker's table of the same
// name, so that one query verifies all.
func makeTable(ctx context.Context, db *sql.DB, database string) error {
	timestamp := map[string]string{onPostgres: "timestamptz", onSQLite: "TEXT"}[database]
	_, err := db.ExecContext(ctx, `CREATE TABLE tenant_dashboards (
		tenant_id    TEXT NOT NULL PRIMARY KEY,
		dashboard_id TEXT NOT NULL UNIQUE,
		title        TEXT NOT NULL,
		updated_at   `+timestamp+` NOT NULL)`)
	if err != nil {
		return fmt.Errorf("make a table: %w", err)
	}
	return nil
}

// openRecorder returns the rivals' one INSERT, and a pool if the database is PostgreSQL.
func openRecorder(ctx context.Context, address string) (
	record func(context.Context, tenant, string) error, pool *pgxpool.Pool, err error,
) {
	if strings.HasPrefix(address, sqlitePrefix) {
		db, err := openDatabase(address)
		if err != nil {
			return nil, nil, err
		}
		insert, err := db.PrepareContext(ctx, `INSERT INTO tenant_dashboards VALUES
			(?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) ON CONFLICT (tenant_id) DO NOTHING`)
		if err != nil {
			return nil, nil, fmt.Errorf("prepare: %w", err)
		}
		return func(ctx context.Context, t tenant, dashboardID string) error {
			_, err := insert.ExecContext(ctx, t.ID, dashboardID, t.Name)
			return err
		}, nil, nil
	}
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, nil, fmt.Errorf("read the database's URL: %w", err)
	}
	config.MaxConns = maxConns
	pool, err = pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, nil, fmt.Errorf("open a pool: %w", err)
	}
	return func(ctx context.Context, t tenant, dashboardID string) error {
		// Prepared by pgx at its first use on a connection.
		_, err := pool.Exec(ctx, `INSERT INTO tenant_dashboards VALUES ($1, $2, $3, clock_timestamp())
			ON CONFLICT (tenant_id) DO NOTHING`, t.ID, dashboardID, t.Name)
		return err
	}, pool, nil
}

// recorded counts the tenants that have a dashboard.
func recorded(ctx context.Context, db *sql.DB) (n int, err error) {
	row := db.QueryRowContext(ctx, "SELECT count(*) FROM tenant_dashboards WHERE dashboard_id IS NOT NULL")
	if err := row.Scan(&n); err != nil {
		return 0, fmt.Errorf("count dashboards: %w", err)
	}
	return n, nil
}

// verify checks that each tenant has a dashboard of its own, and returns when each was recorded,
// by the database's clock, in order.
func verify(ctx context.Context, db *sql.DB, want int) ([]time.Time, error) {
	rows, err := db.QueryContext(ctx, `SELECT tenant_id, dashboard_id, updated_at
		FROM tenant_dashboards ORDER BY updated_at`)
	if err != nil {
		return nil, fmt.Errorf("read the dashboards: %w", err)
	}
	defer rows.Close()
	var times []time.Time
	owners := map[string]string{}
	for rows.Next() {
		var (
			tenant    string
			dashboard sql.NullString
			at        any
		)
		if err := rows.Scan(&tenant, &dashboard, &at); err != nil {
			return nil, fmt.Errorf("read the dashboards: %w", err)
		}
		if dashboard.String == "" {
			return nil, fmt.Errorf("tenant %q has no dashboard", tenant)
		}
		if other, taken := owners[dashboard.String]; taken {
			return nil, fmt.Errorf("tenants %q and %q have the same dashboard", tenant, other)
		}
		owners[dashboard.String] = tenant
		t, err := timestamp(at)
		if err != nil {
			return nil, err
		}
		times = append(times, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the dashboards: %w", err)
	}
	if len(times) != want {
		return nil, fmt.Errorf("%d tenants have a dashboard, want %d", len(times), want)
	}
	return times, nil
}

// timestamp reads a time as either database has it.
func timestamp(value any) (time.Time, error) {
	if t, ok := value.(time.Time); ok {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339Nano, fmt.Sprint(value))
	if err != nil {
		return time.Time{}, fmt.Errorf("read a time: %w", err)
	}
	return t, nil
}
