package worker_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// Not parallel: beside other tests, two hundred requests may not be in flight before the first of
// them times out.
func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	o := options{Config: func(c *worker.Config) { c.Concurrency, c.Timeout = 200, worker.MaxTimeout }}
	virtual(t, o, func(t *testing.T, w *world) {
		release := w.API.HoldAnswers()
		tenants := names("t", 300)
		w.Create(tenants...)
		w.Eventually(w.Sent(200))
		w.Workers[0].Drain()
		w.Eventually(func() error {
			if s := w.Workers[0].State(); s.Ready || !strings.Contains(s.Reasons[0], "shutting down") {
				return fmt.Errorf("state %+v", s)
			}
			return nil
		})
		// requests are still answered
		w.Refused("embed-token", object("tenant_id", tenants[0]), 409, "DASHBOARD_NOT_READY")
		release()
		w.Workers[0].Stop() // fails when it takes longer than the grace
		first := w.Simulator.Dashboards()
		if len(first) != 200 {
			t.Errorf("%d dashboards after the drain, want those 200 that were in flight", len(first))
		}
		for _, d := range first {
			if w.Status(d.TenantID) != repo.Active {
				t.Errorf("%s was in flight and is %s", d.TenantID, w.Status(d.TenantID))
			}
		}
		if err := w.Relayed(); err != nil {
			t.Errorf("after the drain: %v", err)
		}
		w.StartWorker()
		w.Eventually(w.Are(repo.Active, tenants...))
		w.Eventually(w.Handled)
		if n := len(w.Simulator.Dashboards()); n != len(tenants) {
			t.Errorf("%d dashboards for %d tenants", n, len(tenants))
		}
	})
}

func TestDrainBeyondItsGraceIsCutAndRecorded(t *testing.T) {
	virtual(t, options{
		Config: func(c *worker.Config) { c.Grace = 5 * time.Second },
		Faults: []string{"on=create delay=1m"},
	}, func(t *testing.T, w *world) {
		tenants := names("t", 10)
		w.Create(tenants...)
		w.Eventually(w.Sent(len(tenants)))
		w.Workers[0].Stop()
		for _, tenant := range tenants {
			if w.Outcomes(tenant) != "unknown" || w.Status(tenant) != repo.Pending {
				t.Errorf("%s is %s, attempts %s", tenant, w.Status(tenant), w.Outcomes(tenant))
			}
		}
		w.SetFaults()
		w.StartWorker()
		workertest.Eventually(t, takeUp, w.Are(repo.Active, tenants...))
		w.NoDeadLetters()
	})
}

func TestStopOfIdleWorkersDoesNotWait(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		for range 7 {
			w.StartWorker()
		}
		began := time.Now()
		var stopping sync.WaitGroup
		for _, i := range w.Workers {
			stopping.Go(i.Stop)
		}
		stopping.Wait()
		if took := time.Since(began); took > 4*time.Second { // a fetch takes one
			t.Errorf("it took %v", took)
		}
	})
}

func TestWorkerContinuesWhenNATSComesBack(t *testing.T) {
	onBoth(t, options{Faults: []string{"on=create delay=300ms"}}, func(t *testing.T, w *world) {
		tenants := names("t", 100*len(w.Workers))
		w.Create(tenants...)
		w.Eventually(w.Sent(70 * len(w.Workers))) // some are done, some in flight, some wait
		w.StopNATS()
		w.Eventually(func() error {
			for _, i := range w.Workers {
				if s := i.State(); s.Ready {
					return fmt.Errorf("state without NATS is %+v", s)
				}
			}
			return nil
		})
		w.StartNATS()
		w.Eventually(w.Are(repo.Active, tenants...))
		w.Eventually(w.Handled)
		w.Eventually(w.Relayed)
		w.Create("after")
		w.Eventually(w.Are(repo.Active, "after"))
		w.Token("after")
		if n := len(w.Simulator.Dashboards()); n != len(tenants)+1 {
			t.Errorf("%d dashboards for %d tenants", n, len(tenants)+1)
		}
		w.Eventually(workertest.That("all workers consume", func() bool {
			return w.consuming() >= len(w.Workers)
		})) // the other consumer may still wait for its next try
	})
}

func TestWorkerRecreatesStreamsAndConsumers(t *testing.T) {
	virtual(t, options{Workers: 2}, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.Create("first")
		w.Eventually(w.Are(repo.Active, "first"))
		for _, c := range []struct {
			name   string
			remove func() error
		}{
			{"the consumers", func() error {
				if err := w.JS.DeleteConsumer(ctx, "PAPERMAP", workertest.AccessConsumer); err != nil {
					return err
				}
				return w.JS.DeleteConsumer(ctx, "PAPERMAP", workertest.MainConsumer)
			}},
			{"the stream", func() error { return w.JS.DeleteStream(ctx, "PAPERMAP") }},
			{"both streams", func() error {
				if err := w.JS.DeleteStream(ctx, "PAPERMAP_DEAD"); err != nil {
					return err
				}
				return w.JS.DeleteStream(ctx, "PAPERMAP")
			}},
		} {
			w.Must(c.remove())
			w.Eventually(func() error {
				for _, name := range []string{workertest.MainConsumer, workertest.AccessConsumer} {
					if _, err := w.JS.Consumer(ctx, "PAPERMAP", name); err != nil {
						return err
					}
				}
				_, err := w.JS.Stream(ctx, "PAPERMAP_DEAD")
				return err
			})
			tenant := "after " + c.name
			w.Create(tenant)
			w.Publish(events.TypeTenantSuspended, object("tenant_id", "first"))
			w.Publish(events.TypeTenantCreated, `bad`)
			w.Eventually(w.Are(repo.Active, tenant))
			w.Eventually(w.Are(repo.Suspended, "first"))
			w.Eventually(w.Relayed)
			w.Eventually(func() error {
				if len(w.DeadLetters()) == 0 || len(w.Announced(tenant)) != 1 {
					return fmt.Errorf("%d dead letters, announced %q", len(w.DeadLetters()),
						w.Announced(tenant))
				}
				return nil
			})
			w.Publish(events.TypeTenantResumed, object("tenant_id", "first"))
			w.Eventually(w.Are(repo.Active, "first"))
		}
		if n := len(w.Simulator.Dashboards()); n != 4 {
			t.Errorf("%d dashboards, want 4: one is made once, though its event was offered again", n)
		}
	})
}

// Not parallel: it looks at all goroutines of the process.
func TestStoppedWorkerLeavesNoGoroutines(t *testing.T) {
	virtual(t, options{NoWorker: true}, func(t *testing.T, w *world) {
		work := func(tenant string) {
			i := w.StartWorker()
			w.Simulator.RevokeKey("ak_b") // so that a gate probes
			w.Publish(events.TypeTenantCreated,
				object("tenant_id", "b "+tenant, "name", "N", "workspace_id", "ws-b"))
			w.Create(tenant)
			w.Eventually(w.Are(repo.Active, tenant))
			w.Eventually(i.Paused("ws-b"))
			w.Token(tenant)
			i.Stop()
		}
		work("first") // after this the NATS server and our own connection have all that they will have
		others := goleak.IgnoreCurrent()
		work("second")
		if err := goleak.Find(others); err != nil {
			t.Error(err)
		}
	})
}

// A row of events.Types without a case in Worker.handle would make each of its events a dead letter.
func TestWorkerHandlesEachTypeOfEvent(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		for _, eventType := range events.TypesIn() {
			w.Publish(eventType, workertest.Object("tenant_id", "t-"+eventType, "name", "x"))
		}
		w.Eventually(w.Handled)
		for _, m := range w.DeadLetters() {
			t.Errorf("%s became a dead letter: %s", m.Subject, m.Header.Get("Papermap-Error"))
		}
	})
}
