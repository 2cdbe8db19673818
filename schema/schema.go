// Package schema holds the database's migrations and applies them.
//
// There is one folder of goose migrations for each kind of database, with the same tables and the same numbers.
// Migrations only add within a major version of the program; on SQLite, which has one worker, one may replace an index. A
// database that is newer than the program is refused: goose by itself would run happily against it.
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
var ErrNewer = errors.New("the database is newer than this program: run the newer version, or restore a backup")

// ErrBehind means that the database needs migrations that were not applied.
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
			return names, fmt.Errorf("migrating the database: %w", err)
		}
		names = append(names, step.Source.Path)
		failpoint.Hit(failpoint.Migrated)
	}
}

// Check returns nil when the database is at this program's version, else an error that wraps [ErrNewer] or [ErrBehind].
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
		return nil, fmt.Errorf("reading the state of migrations: %w", err)
	}
	var list []Migration
	for _, s := range states {
		list = append(list, Migration{Version: s.Source.Version, Name: s.Source.Path, Applied: s.State == goose.StateApplied})
	}
	return list, nil
}

// lockID is any number that nothing else in the database locks.
const lockID = 0x706d772d6d6967

// lock keeps other replicas that start at the same time from migrating with us. goose has such a lock, but looks at
// its own table before it takes it.
func lock(ctx context.Context, db *sql.DB) (unlock func(), err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to migrate the database: %w", err)
	}
	for {
		var locked bool
		if err := conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1)", lockID).Scan(&locked); err != nil {
			return nil, errors.Join(fmt.Errorf("locking the database to migrate it: %w", err), conn.Close())
		}
		if locked {
			return func() {
				_, _ = conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", lockID) // it fails only with the connection, which takes the lock along
				_ = conn.Close()
			}, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("waiting for another replica that migrates the database: %w", ctx.Err()), conn.Close())
		}
	}
}

func check(ctx context.Context, p *goose.Provider) error {
	current, target, err := p.GetVersions(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("reading the database's version: %w", err)
	case current > target:
		return fmt.Errorf("database version %d, program version %d: %w", current, target, ErrNewer)
	case current < target:
		return fmt.Errorf("database version %d, program version %d: %w", current, target, ErrBehind)
	}
	return nil
}

func provider(db *sql.DB, dialect goose.Dialect) (*goose.Provider, error) {
	folder := map[goose.Dialect]string{goose.DialectSQLite3: "sqlite", goose.DialectPostgres: "postgres"}[dialect]
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return nil, fmt.Errorf("reading migrations for %s: %w", dialect, err)
	}
	p, err := goose.NewProvider(dialect, db, files)
	if err != nil {
		return nil, fmt.Errorf("preparing migrations for %s: %w", dialect, err)
	}
	return p, nil
}
