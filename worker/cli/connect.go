package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	tracer, log, stopTracing, err := startTracing(traces, a.version, a.log)
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

// waitForDatabase opens the database for work: undamaged, and at this program's version. It waits
// for a server that is not there yet.
func waitForDatabase(ctx context.Context, address string, migrate bool, log *slog.Logger) (*repo.DB, error) {
	var db *repo.DB
	var err error
	logged := false
	ended := poll(ctx, time.Second, func() (bool, error) {
		if db, err = repo.Open(ctx, address); !repo.Unreachable(err) {
			return true, nil
		}
		if !logged {
			log.Warn("PostgreSQL cannot be reached yet; waiting for it", "error", err)
			logged = true
		}
		return false, nil
	})
	if err = errors.Join(err, ended); err != nil {
		return nil, err
	}
	err = errors.Join(db.Lock(), db.CheckIntegrity(ctx))
	switch {
	case err == nil && migrate:
		var applied []string
		if applied, err = db.Migrate(ctx); len(applied) > 0 {
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

// database opens the database that DATABASE_URL names, until the command ends. It must exist, at
// this program's version.
func (a *app) database() (*repo.DB, error) {
	db, err := a.openDatabase(repo.Exists)
	if err == nil {
		err = db.CheckSchema(a.ctx)
	}
	return db, err
}

// openDatabase opens the database as it is, if its address passes a check.
func (a *app) openDatabase(check func(address string) error) (*repo.DB, error) {
	p := a.parser()
	address := p.databaseURL()
	if err := p.err(); err != nil {
		return nil, err
	}
	if err := check(address); err != nil {
		return nil, err
	}
	db, err := repo.Open(a.ctx, address)
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
