package workertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// Instance is a running worker with its own connections, as one process would have.
type Instance struct {
	*worker.Worker
	DB  *repo.DB
	Bus *events.Bus

	world  *World
	link   *link
	cancel context.CancelFunc
	ran    chan struct{} // closed when Run has returned
	closed sync.Once
	cut    sync.Once
	dead   atomic.Bool
}

// StartWorker starts a worker on the world's database with the current Config, and waits until it
// is ready.
func (w *World) StartWorker() *Instance {
	w.t.Helper()
	i, err := w.Launch()
	w.Must(err)
	w.Eventually(func() error {
		if s := i.State(); !s.Ready {
			return fmt.Errorf("the worker is not ready: %v", s.Reasons)
		}
		return nil
	})
	return i
}

// Launch starts a worker as StartWorker does, and does not wait. Its error is that of a program that
// cannot start, because the database is away.
func (w *World) Launch() (*Instance, error) {
	log := slog.New(slog.NewJSONHandler(w.Logs, &slog.HandlerOptions{Level: w.LogLevel}))
	log = log.With("worker", len(w.Workers))
	i := &Instance{world: w, link: &link{world: w}, ran: make(chan struct{})}
	var err error
	if i.DB, err = repo.Open(context.Background(), w.Address); err != nil {
		return nil, err
	}
	o, c := w.Bus, w.Config
	if w.virtual != nil {
		o.InProcess, c.Dial = i.link, i.link.dial
	}
	if i.Bus, err = events.Connect(o, log); err != nil {
		return nil, errors.Join(err, i.DB.Close())
	}
	i.Worker = worker.New(c, i.DB, i.Bus, log)
	var ctx context.Context
	ctx, i.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(i.ran)
		if err := i.Run(ctx); err != nil && !i.dead.Load() {
			w.t.Errorf("Run: %v", err)
		}
	}()
	w.Workers = append(w.Workers, i)
	return i, nil
}

// Drain asks the worker to stop, as SIGTERM does, and returns at once.
func (i *Instance) Drain() { i.cancel() }

// Stop drains the worker, waits until it has returned and closes its connections. It fails the test
// if that takes much longer than the grace period.
func (i *Instance) Stop() {
	i.cancel()
	i.wait()
	i.close(true)
}

// Kill ends the worker as SIGKILL would, as far as others can see: from now on it writes nothing to
// the database and sends nothing to NATS. Requests in flight to Papermap are cut off.
func (i *Instance) Kill() {
	i.Sever()
	i.close(false)
	i.cancel()
	i.wait()
}

// Sever is what others see of a Kill, at once. The worker's goroutines may call it. Kill must follow.
func (i *Instance) Sever() {
	i.cut.Do(func() {
		i.dead.Store(true)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_ = i.DB.Close()
		}()
		// Close begins nothing more. It ends only when the caller is done, if that is in a transaction.
		select {
		case <-closed:
		case <-time.After(time.Millisecond):
		}
		i.link.sever() // last, so that a request that it cuts off is not recorded as unknown
	})
}

func (i *Instance) wait() {
	i.world.t.Helper()
	limit := i.world.Config.Grace + 10*time.Second
	select {
	case <-i.ran:
	case <-time.After(limit):
		i.world.t.Errorf("Run did not return within %v", limit)
	}
}

func (i *Instance) close(cleanly bool) {
	i.closed.Do(func() {
		if !cleanly {
			_ = i.DB.Close()
			i.CloseBus()
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		i.Bus.Close(ctx)
		if err := i.DB.Close(); err != nil {
			i.world.t.Errorf("closing the database: %v", err)
		}
	})
}

// CloseBus closes the worker's connection to NATS at once and for good.
func (i *Instance) CloseBus() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	i.Bus.Close(ctx)
}

// Cut cuts the worker off from NATS until Restore, in virtual time only.
func (i *Instance) Cut() { i.link.cut() }

// Restore ends a Cut: the worker connects again.
func (i *Instance) Restore() { i.link.restore() }

// Paused returns a check that the worker is ready and paused for one reason, whose text contains
// reason.
func (i *Instance) Paused(reason string) func() error {
	return func() error {
		s := i.State()
		if !s.Ready || s.Consuming != "paused" || len(s.Reasons) != 1 ||
			!strings.Contains(s.Reasons[0], reason) {
			return fmt.Errorf("state is %+v, want ready, paused, because of %q", s, reason)
		}
		return nil
	}
}
