package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// fillRiver makes River's tables and inserts a job for each tenant. The jobs' table gets
// statistics, as it has in a system that has run for a minute.
func fillRiver(ctx context.Context, address string, list []tenant) error {
	pool, err := pgxpool.New(ctx, address)
	if err != nil {
		return fmt.Errorf("open a pool: %w", err)
	}
	defer pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return fmt.Errorf("make River's migrator: %w", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("migrate River's tables: %w", err)
	}
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{})
	if err != nil {
		return fmt.Errorf("make a River client: %w", err)
	}
	params := make([]river.InsertManyParams, len(list))
	for i, t := range list {
		params[i].Args = t
	}
	if _, err := client.InsertManyFast(ctx, params); err != nil {
		return fmt.Errorf("insert jobs: %w", err)
	}
	if _, err := pool.Exec(ctx, "ANALYZE river_job"); err != nil {
		return fmt.Errorf("analyze: %w", err)
	}
	return nil
}

type riverWorker struct {
	river.WorkerDefaults[tenant]
	rival *rival
}

// Work does one job.
func (w *riverWorker) Work(ctx context.Context, job *river.Job[tenant]) error {
	return w.rival.provision(ctx, job.Args)
}

// workRiver runs River's client with the fetch settings of River's own benchmark: with the
// defaults (a fetch each 100 ms) it does at most ten times t.InFlight jobs a second.
func workRiver(t task) error {
	ctx := context.Background()
	record, pool, err := openRecorder(ctx, t.Database)
	if err != nil {
		return err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &riverWorker{rival: newRival(t.API, record)})
	client, err := river.NewClient[pgx.Tx](riverpgxv5.New(pool), &river.Config{
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		Logger:            warnings(),
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: t.InFlight}},
		Workers:           workers,
	})
	if err != nil {
		return fmt.Errorf("make a River client: %w", err)
	}
	if err := client.Start(ctx); err != nil {
		return fmt.Errorf("start River: %w", err)
	}
	select {}
}
