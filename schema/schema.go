// Package schema holds the database's migrations and applies them, and the contract for machines: a
// JSON Schema for each event (contract.go).
//
//	names, err := schema.Migrate(ctx, db, goose.DialectPostgres) // at start, or by `migrate`
//	err = schema.Check(ctx, db, goose.DialectPostgres)           // by commands that must not migrate
//
// There is one folder of goose migrations for each kind of database, with the same tables and the
// same numbers. Migrations only add within a major version of the program; on SQLite, which has one
// worker, one may replace an index. A database that is newer than the program is refused: goose by
// itself would accept it.
package schema

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pressly/goose/v3"

	"papermap-worker/worker/failpoint"
)

//go:embed sqlite/*.sql postgres/*.sql
var migrations embed.FS

// ErrNewer means that the database was migrated by a newer program.
var ErrNewer = errors.New(
	"the database is newer than this program: run the newer version, or restore a backup")

// ErrBehind means that the database needs migrations that have not been applied.
var ErrBehind = errors.New("the database is behind this program: run `papermap-worker migrate`")

// Migration is one step of the database's history.
type Migration struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
}

// Migrate brings the database up to date. It returns the names of what it applied.
func Migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect) ([]string, error) {
	p, err := provider(db, dialect)
	if err != nil {
		return nil, err
	}
	if dialect == goose.DialectPostgres {
		unlock, err := lock(ctx, db)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	if err := check(ctx, p); err != nil && !errors.Is(err, ErrBehind) {
		return nil, err
	}
	var names []string
	for {
		step, err := p.UpByOne(ctx)
		if errors.Is(err, goose.ErrNoNextVersion) {
			return names, nil
		}
		if err != nil {
			return names, fmt.Errorf("migrate the database: %w", err)
		}
		names = append(names, step.Source.Path)
		failpoint.Hit(failpoint.Migrated)
	}
}

// Check returns nil when the database is at this program's version, else an error that wraps
// [ErrNewer] or [ErrBehind].
func Check(ctx context.Context, db *sql.DB, dialect goose.Dialect) error {
	p, err := provider(db, dialect)
	if err != nil {
		return err
	}
	return check(ctx, p)
}

// Status lists the migrations that this program knows.
func Status(ctx context.Context, db *sql.DB, dialect goose.Dialect) ([]Migration, error) {
	p, err := provider(db, dialect)
	if err != nil {
		return nil, err
	}
	states, err := p.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the state of migrations: %w", err)
	}
	var list []Migration
	for _, s := range states {
		list = append(list, Migration{s.Source.Version, s.Source.Path, s.State == goose.StateApplied})
	}
	return list, nil
}

// lockID is an arbitrary number that nothing else in the database locks.
const lockID = 0x706d772d6d6967

// lock keeps other replicas that start at the same time from migrating with us. goose has such a
// lock, but reads its own table before taking it.
func lock(ctx context.Context, db *sql.DB) (unlock func(), err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to migrate the database: %w", err)
	}
	for {
		var locked bool
		err := conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1)", lockID).Scan(&locked)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock the database to migrate it: %w", err), conn.Close())
		}
		if locked {
			return func() {
				// It fails only if the connection does, which releases the lock.
				_, _ = conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", lockID)
				_ = conn.Close()
			}, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			err := fmt.Errorf("wait for another replica that migrates the database: %w", ctx.Err())
			return nil, errors.Join(err, conn.Close())
		}
	}
}

func check(ctx context.Context, p *goose.Provider) error {
	current, target, err := p.GetVersions(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("read the database's version: %w", err)
	case current > target:
		return fmt.Errorf("database version %d, program version %d: %w", current, target, ErrNewer)
	case current < target:
		return fmt.Errorf("database version %d, program version %d: %w", current, target, ErrBehind)
	}
	return nil
}

func provider(db *sql.DB, dialect goose.Dialect) (*goose.Provider, error) {
	folder := "sqlite"
	if dialect == goose.DialectPostgres {
		folder = "postgres"
	}
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return nil, fmt.Errorf("read migrations for %s: %w", dialect, err)
	}
	p, err := goose.NewProvider(dialect, db, files)
	if err != nil {
		return nil, fmt.Errorf("prepare migrations for %s: %w", dialect, err)
	}
	return p, nil
}
