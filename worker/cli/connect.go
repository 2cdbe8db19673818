package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// AfterApply lets the command's Run take a *events.Bus.
func (s *natsSettings) AfterApply(k *kong.Context) error { return k.BindToProvider(s.connect) }

// connect opens a connection to NATS for one command, until that ends. Unlike serve, it does not
// wait for a server that is not there.
func (s *natsSettings) connect(a *app) (*events.Bus, error) {
	p := a.parser()
	options, traces := s.parse(p), p.tracing()
	if err := p.err(); err != nil {
		return nil, err
	}
	tracer, log, stopTracing, err := startTracing(traces, a.build, a.log)
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, stopTracing)
	options.Name, options.Tracer = "papermap-worker-cli", tracer
	bus, err := events.Connect(options, log)
	if err != nil {
		return nil, fmt.Errorf("%w: is the server running, and is NATS_URL right?", err)
	}
	a.closers = append(a.closers, func() { closeWithin(2*time.Second, bus.Close) })
	return bus, nil
}

// closeWithin closes something, with a context that ends after limit.
func closeWithin(limit time.Duration, close func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	close(ctx)
}

const (
	connectTimeout = 10 * time.Second // of one try to connect to the database
	databaseWait   = 5 * time.Minute  // of serve, for a server that is not there yet
)

// waitForDatabase opens the database for work: undamaged, and at this program's version. It waits
// for a server that is not there yet, and for another program that migrates. starting is told what it
// does.
func waitForDatabase(
	ctx context.Context, cfg serveConfig, starting func(string), log *slog.Logger,
) (*repo.DB, error) {
	if !cfg.migrate { // it is made by somebody else
		if err := repo.Exists(cfg.database); err != nil {
			return nil, err
		}
	}
	if err := checkFolder(cfg.database); err != nil {
		return nil, err
	}
	starting("it is connecting to the database")
	db, err := connectToDatabase(ctx, cfg, starting, log)
	if err != nil {
		return nil, err
	}
	starting("it is checking the database")
	err = errors.Join(db.Lock(), db.CheckIntegrity(ctx))
	switch {
	case err == nil && cfg.migrate:
		starting("it is migrating the database")
		var applied []string
		applied, err = db.MigrateWhenFree(ctx, func(waits bool) {
			logMigrationWait(log, waits)
			if waits {
				starting("another program is migrating the database")
			}
		})
		if len(applied) > 0 {
			log.Info("migrated the database", "applied", applied)
		}
	case err == nil:
		err = db.CheckSchema(ctx)
	}
	if err != nil {
		_ = db.Close() // the first error says what is wrong
		return nil, err
	}
	return db, nil
}

// checkFolder returns an error if there is no folder for an SQLite file.
func checkFolder(address string) error {
	path, isFile := strings.CutPrefix(address, "sqlite:")
	if _, err := os.Stat(filepath.Dir(path)); isFile && err != nil {
		return fmt.Errorf("there is no folder %s for the database", filepath.Dir(path))
	}
	return nil
}

// connectToDatabase opens the database, and tries again while its server cannot be reached.
func connectToDatabase(
	ctx context.Context, cfg serveConfig, starting func(string), log *slog.Logger,
) (db *repo.DB, err error) {
	logged, started := false, time.Now()
	ended := poll(ctx, time.Second, func() (bool, error) {
		opening, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		db, err = repo.OpenLimited(opening, cfg.database, cfg.maxConns)
		switch {
		case !repo.Unreachable(err):
			return true, nil
		case time.Since(started) >= databaseWait:
			err = fmt.Errorf("PostgreSQL could not be reached for %v: %w", databaseWait, err)
			return true, nil
		case !logged:
			log.Warn("PostgreSQL cannot be reached yet; waiting for it", "error", err)
			starting(err.Error())
			logged = true
		}
		return false, nil
	})
	if err = errors.Join(err, ended); err == nil && logged {
		log.Info("PostgreSQL can be reached")
	}
	return db, err
}

func logMigrationWait(log *slog.Logger, waits bool) {
	if waits {
		log.Warn("another program is migrating the database; waiting for it")
	} else {
		log.Info("other migration finished")
	}
}

// database opens the database that DATABASE_URL names, until the command ends. It must exist, at
// this program's version.
func (a *app) database() (*repo.DB, error) {
	address, err := a.databaseURL()
	if err == nil {
		err = repo.Exists(address)
	}
	if err != nil {
		return nil, err
	}
	db, err := a.openDatabase(address)
	if err == nil {
		err = db.CheckSchema(a.ctx)
	}
	return db, err
}

func (a *app) databaseURL() (string, error) {
	p := a.parser()
	return p.databaseURL(), p.err()
}

// openDatabase opens the database as it is.
func (a *app) openDatabase(address string) (*repo.DB, error) {
	opening, cancel := context.WithTimeout(a.ctx, connectTimeout)
	defer cancel()
	notice := time.AfterFunc(2*time.Second, func() {
		a.log.Warn("waiting for the database", "timeout", connectTimeout.String())
	})
	defer notice.Stop()
	db, err := repo.OpenLimited(opening, address, repo.CommandConns)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("the database did not answer within %v: %w", connectTimeout, err)
	}
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, func() { _ = db.Close() })
	return db, nil
}

// poll calls a function until it is done or fails, with a pause between two calls. It returns ctx's
// error when ctx ends during a pause.
func poll(ctx context.Context, every time.Duration, try func() (done bool, err error)) error {
	for {
		if done, err := try(); done || err != nil {
			return err
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
