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
	inFlight  int // of each worker
	workers   int
	folder    string // the race's; measure makes one in it
	postgres  *postgres

	task task // where the servers are
	js   jetstream.JetStream

	api, nats *process // nats: nil for River
}

// result is what a run measured.
type result struct {
	Contender string  `json:"contender"`
	Round     int     `json:"round"`
	InFlight  int     `json:"in_flight"` // of each worker
	Workers   int     `json:"workers"`
	Rate      float64 `json:"tenants_per_second"`                  // over the last 90 %
	CPU       float64 `json:"cpu_us_per_tenant"`                   // of the workers, over the last 90 %
	Postgres  float64 `json:"postgres_cpu_us_per_tenant,omitzero"` // if the race started the server
	NATS      float64 `json:"nats_cpu_us_per_tenant,omitzero"`
	API       float64 `json:"api_cpu_us_per_tenant"`
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
	var workers group
	later(func() error { return workers.stop(syscall.SIGTERM) })
	for range r.workers {
		worker, err := r.startWorker()
		if err != nil {
			return result{}, err
		}
		workers = append(workers, worker)
	}
	res = result{Contender: r.contender.name, InFlight: r.inFlight, Workers: r.workers}
	start, used, err := r.drain(ctx, workers, func() (int, error) { return recorded(ctx, db) })
	if err != nil {
		return result{}, err
	}
	times, err := verify(ctx, db, r.options.tenants)
	if err != nil {
		return result{}, err
	}
	res.Rate = rate(times)
	each := func(d time.Duration) float64 {
		return float64(d.Microseconds()) / float64(max(r.options.tenants-start, 1))
	}
	res.CPU, res.Postgres = each(used.workers), each(used.postgres)
	res.NATS, res.API = each(used.nats), each(used.api)
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
	r.api, r.task.API = api, "http://"+address

	if r.contender.role != roleRiver {
		files := task{Folder: filepath.Join(folder, "nats")}
		server, address, err := startServer(ctx, folder, roleServer, files)
		if err != nil {
			return err
		}
		later(func() error { return server.stop(syscall.SIGKILL) })
		r.nats, r.task.NATS = server, "nats://"+address
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

// used is the processor time of each part.
type used struct{ workers, postgres, nats, api time.Duration }

// cpu reads the processor time that each part has used so far.
func (r *run) cpu(workers group) (u used, err error) {
	u.workers, err = workers.cpu()
	if err == nil {
		u.api, err = r.api.cpu()
	}
	if err == nil && r.nats != nil {
		u.nats, err = r.nats.cpu()
	}
	if err == nil && r.contender.database == onPostgres && r.postgres.server != nil {
		u.postgres, err = r.postgres.server.family()
	}
	return u, err
}

// drain waits until all tenants are recorded and the workers are idle. It returns how many tenants
// had a dashboard when it began to count the processor time, and that time.
func (r *run) drain(ctx context.Context, workers group, recorded func() (int, error)) (
	start int, _ used, err error,
) {
	var failed error
	reach := func(ask func() (int, error), want int) (n int, err error) {
		err = workers.waitUntil(ctx, func() bool {
			n, failed = ask()
			return failed != nil || n >= want
		})
		return n, errors.Join(err, failed)
	}
	api := func() (int, error) { return created(ctx, r.task.API) }
	n := r.options.tenants
	if start, err = reach(api, n/10); err != nil {
		return 0, used{}, err
	}
	before, err := r.cpu(workers)
	if err != nil {
		return 0, used{}, err
	}
	if _, err := reach(api, n); err != nil {
		return 0, used{}, err
	}
	if _, err := reach(recorded, n); err != nil {
		return 0, used{}, err
	}
	after, err := r.idle(workers)
	return start, used{
		workers: after.workers - before.workers, postgres: after.postgres - before.postgres,
		nats: after.nats - before.nats, api: after.api - before.api,
	}, err
}

// idle waits until the workers have done what is left, such as acknowledgements and events out, and
// returns the processor time.
func (r *run) idle(workers group) (used, error) {
	const window = 250 * time.Millisecond
	last, err := r.cpu(workers)
	for range 120 {
		if err != nil {
			return used{}, err
		}
		time.Sleep(window)
		var now used
		now, err = r.cpu(workers)
		// Some poll while idle.
		if err == nil && now.workers-last.workers < window/10*time.Duration(len(workers)) {
			return last, nil
		}
		last = now
	}
	return used{}, errors.Join(errors.New("the workers are still busy 30 s after their last tenant"), err)
}

// rate is the tenants per second over the last 90 % of the times.
func rate(times []time.Time) float64 {
	first, last := max(len(times)/10, 1)-1, len(times)-1
	return float64(last-first) / times[last].Sub(times[first]).Seconds()
}
