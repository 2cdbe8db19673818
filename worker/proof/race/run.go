package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// run is one contender's, with servers and a database of its own.
type run struct {
	options   options
	contender contender
	inFlight  int
	folder    string // the race's; measure makes one in it
	postgres  *postgres

	task task // where the servers are
	js   jetstream.JetStream
}

// result is what a run measured.
type result struct {
	Contender string  `json:"contender"`
	Round     int     `json:"round"`
	InFlight  int     `json:"in_flight"`
	Rate      float64 `json:"tenants_per_second"` // over the last 90 %
	CPU       float64 `json:"cpu_us_per_tenant"`  // of the worker, over the last 90 %
	Created   int     `json:"dashboards_created"`
}

// measure fills the queue, starts the worker, waits until all is done, and verifies it.
func (r *run) measure(ctx context.Context) (res result, err error) {
	var cleanup []func() error
	defer func() {
		for i := len(cleanup) - 1; i >= 0; i-- {
			err = errors.Join(err, cleanup[i]())
		}
	}()
	later := func(f func() error) { cleanup = append(cleanup, f) }
	if err := r.serve(ctx, later); err != nil {
		return result{}, err
	}
	db, err := openDatabase(r.task.Database)
	if err != nil {
		return result{}, err
	}
	later(db.Close)
	if err := r.fill(ctx, db); err != nil {
		return result{}, fmt.Errorf("fill the queue: %w", err)
	}
	worker, err := r.startWorker()
	if err != nil {
		return result{}, err
	}
	later(func() error { return worker.stop(syscall.SIGTERM) })
	res = result{Contender: r.contender.name, InFlight: r.inFlight}
	start, used, err := r.drain(ctx, worker, func() (int, error) { return recorded(ctx, db) })
	if err != nil {
		return result{}, err
	}
	times, err := verify(ctx, db, r.options.tenants)
	if err != nil {
		return result{}, err
	}
	res.Rate = rate(times)
	res.CPU = float64(used.Microseconds()) / float64(max(r.options.tenants-start, 1))
	res.Created, err = created(ctx, r.task.API)
	return res, err
}

// serve starts the API and NATS and makes a database, all empty.
func (r *run) serve(ctx context.Context, later func(func() error)) error {
	folder, err := os.MkdirTemp(r.folder, "run-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	later(func() error { return os.RemoveAll(folder) })
	r.folder, r.task.InFlight = folder, r.inFlight

	api, address, err := startServer(ctx, folder, roleAPI, task{Delay: int64(r.options.delay)})
	if err != nil {
		return err
	}
	later(func() error { return api.stop(syscall.SIGKILL) })
	r.task.API = "http://" + address

	if r.contender.role != roleRiver {
		files := task{Folder: filepath.Join(folder, "nats")}
		server, address, err := startServer(ctx, folder, roleServer, files)
		if err != nil {
			return err
		}
		later(func() error { return server.stop(syscall.SIGKILL) })
		r.task.NATS = "nats://" + address
		nc, js, err := connect(ctx, r.task.NATS)
		if err != nil {
			return err
		}
		later(func() error { nc.Close(); return nil })
		r.js = js
	}
	if r.contender.database == onSQLite {
		r.task.Database = sqlitePrefix + filepath.Join(folder, "race.db")
		return nil
	}
	if r.task.Database, err = r.postgres.create(ctx); err != nil {
		return err
	}
	later(func() error { return r.postgres.drop(r.task.Database) })
	return nil
}

// fill makes the tables and stores a job for each tenant.
func (r *run) fill(ctx context.Context, db *sql.DB) error {
	jobs := tenants(r.options.tenants)
	if r.contender.role == "" {
		if err := r.prepareWorker(ctx); err != nil {
			return err
		}
		return publish(ctx, r.js, jobs)
	}
	if err := makeTable(ctx, db, r.contender.database); err != nil {
		return err
	}
	if r.contender.role == roleRiver {
		return fillRiver(ctx, r.task.Database, jobs)
	}
	if err := makeStream(ctx, r.js); err != nil {
		return err
	}
	return publish(ctx, r.js, jobs)
}

// startWorker starts the contender.
func (r *run) startWorker() (*process, error) {
	if r.contender.role != "" {
		return startRole(r.folder, r.contender.role, r.task)
	}
	cmd := exec.Command(r.contender.binary, "serve")
	cmd.Dir = r.folder
	// The defaults, but for HTTP, the usage schedule and the log, which the rivals lack.
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.folder, "TMPDIR=" + r.folder,
		"PAPERMAP_API_URL=" + r.task.API, "PAPERMAP_WORKSPACE_ID=" + workspaceID,
		"PAPERMAP_API_KEY_ID=" + keyID, "PAPERMAP_SECRET_KEY=" + secretKey,
		"NATS_URL=" + r.task.NATS, "DATABASE_URL=" + r.task.Database,
		"WORKER_CONCURRENCY=" + strconv.Itoa(r.inFlight),
		"HTTP_ADDR=off", "USAGE_SYNC_SCHEDULE=off", "LOG_LEVEL=warn",
	}
	return start(r.folder, r.contender.name, cmd)
}

// prepareWorker lets papermap-worker make its tables, streams and consumers.
func (r *run) prepareWorker(ctx context.Context) error {
	worker, err := r.startWorker()
	if err != nil {
		return err
	}
	err = worker.waitUntil(ctx, func() bool {
		_, err := r.js.Consumer(ctx, "PAPERMAP", durable)
		return err == nil
	})
	return errors.Join(err, worker.stop(syscall.SIGTERM))
}

// drain waits until all tenants are recorded and the worker is idle. It returns how many tenants
// had a dashboard when it began to count the worker's processor time, and that time.
func (r *run) drain(ctx context.Context, worker *process, recorded func() (int, error)) (
	start int, used time.Duration, err error,
) {
	var failed error
	reach := func(ask func() (int, error), want int) (n int, err error) {
		err = worker.waitUntil(ctx, func() bool {
			n, failed = ask()
			return failed != nil || n >= want
		})
		return n, errors.Join(err, failed)
	}
	api := func() (int, error) { return created(ctx, r.task.API) }
	n := r.options.tenants
	if start, err = reach(api, n/10); err != nil {
		return 0, 0, err
	}
	before, err := worker.cpu()
	if err != nil {
		return 0, 0, err
	}
	if _, err := reach(api, n); err != nil {
		return 0, 0, err
	}
	if _, err := reach(recorded, n); err != nil {
		return 0, 0, err
	}
	after, err := idle(worker)
	return start, after - before, err
}

// idle waits until the worker has done what is left, such as acknowledgements and events out, and
// returns its processor time.
func idle(worker *process) (time.Duration, error) {
	const window = 250 * time.Millisecond
	last, err := worker.cpu()
	for range 120 {
		if err != nil {
			return 0, err
		}
		time.Sleep(window)
		var now time.Duration
		if now, err = worker.cpu(); err == nil && now-last < window/10 { // some poll while idle
			return last, nil
		}
		last = now
	}
	return 0, errors.Join(errors.New("the worker is still busy 30 s after its last tenant"), err)
}

// rate is the tenants per second over the last 90 % of the times.
func rate(times []time.Time) float64 {
	first, last := max(len(times)/10, 1)-1, len(times)-1
	return float64(last-first) / times[last].Sub(times[first]).Seconds()
}
