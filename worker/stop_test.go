package worker_test

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// takeUp is how soon what a killed worker had in hand must be taken up again.
const takeUp = 30 * time.Second

// sent is a check that so many create requests have reached Papermap.
func (w *world) sent(n int) func() error {
	return func() error {
		if seen := len(w.requests("create")); seen < n {
			return fmt.Errorf("%d create requests, want %d", seen, n)
		}
		return nil
	}
}

// Not parallel: beside other tests, two hundred requests may not get in hand before the first of them times out.
func TestADrainFinishesWhatIsInHandAndTheNextWorkerTheRest(t *testing.T) {
	w := start(t, options{config: func(c *worker.Config) { c.Concurrency, c.Timeout = 200, worker.MaxTimeout }})
	release := w.holdAnswers()
	tenants := names("t", 300)
	w.create(tenants...)
	eventually(t, soon, w.sent(200))
	w.workers[0].cancel()
	eventually(t, soon, func() error {
		if s := w.workers[0].State(t.Context()); s.Ready || !strings.Contains(s.Reasons[0], "draining") {
			return fmt.Errorf("state %+v", s)
		}
		return nil
	})
	w.refused("embed-token", object("tenant_id", tenants[0]), 409, "DASHBOARD_NOT_READY") // requests are still answered
	release()
	w.workers[0].stop() // fails when it takes longer than the grace
	inHand := w.sim.Dashboards()
	if len(inHand) != 200 {
		t.Errorf("%d dashboards after the drain, want those 200 that were in hand", len(inHand))
	}
	for _, d := range inHand {
		if w.status(d.TenantID) != repo.Active {
			t.Errorf("%s was in hand and is %s", d.TenantID, w.status(d.TenantID))
		}
	}
	if err := w.relayed(); err != nil {
		t.Errorf("after the drain: %v", err)
	}
	w.startWorker()
	eventually(t, soon, w.are(repo.Active, tenants...))
	eventually(t, soon, w.settled)
	if n := len(w.sim.Dashboards()); n != len(tenants) {
		t.Errorf("%d dashboards for %d tenants", n, len(tenants))
	}
}

func TestADrainThatOutlastsItsGraceIsCutAndAccountedFor(t *testing.T) {
	t.Parallel()
	w := start(t, options{
		config: func(c *worker.Config) { c.Grace = 200 * time.Millisecond },
		faults: []string{"on=create delay=1m"},
	})
	tenants := names("t", 10)
	w.create(tenants...)
	eventually(t, soon, w.sent(len(tenants)))
	w.workers[0].stop()
	for _, tenant := range tenants {
		if w.outcomes(tenant) != "unknown" || w.status(tenant) != repo.Pending {
			t.Errorf("%s is %s, attempts %s", tenant, w.status(tenant), w.outcomes(tenant))
		}
	}
	w.setFaults()
	w.startWorker()
	eventually(t, takeUp, w.are(repo.Active, tenants...))
	if n := len(w.dead()); n > 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestIdleWorkersStopWithoutWaiting(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	for range 7 {
		w.startWorker()
	}
	began := time.Now()
	var stopping sync.WaitGroup
	for _, i := range w.workers {
		stopping.Go(i.stop)
	}
	stopping.Wait()
	if took := time.Since(began); took > 4*time.Second { // a fetch takes one
		t.Errorf("it took %v", took)
	}
}

// A worker is killed with a request on its way: the dashboard is made, and nobody knows.
func TestWhatAKilledWorkerHadInHandIsTakenUpAgain(t *testing.T) {
	onBoth(t, testWhatAKilledWorkerHadInHandIsTakenUpAgain)
}

func testWhatAKilledWorkerHadInHandIsTakenUpAgain(t *testing.T) {
	for _, c := range []struct {
		name      string
		hold      bool
		status    repo.Status
		outcomes  string
		announced string
	}{
		{"recreate", false, repo.Active, "unknown created", "dashboard.created"},
		{"hold", true, repo.Held, "unknown", "dashboard.held"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{
				config:   func(cfg *worker.Config) { cfg.Hold, cfg.Grace = c.hold, 100*time.Millisecond },
				faults:   []string{"on=create delay=1m"},
				noWorker: true,
			})
			inHand := w.startWorker()
			tenants := names("t", 5)
			w.create(tenants...)
			eventually(t, soon, w.sent(len(tenants)))
			w.config.Grace = 20 * time.Second
			if w.shared {
				w.startWorker() // the replica that survives
			}
			inHand.kill()
			killed := time.Now()
			for _, tenant := range tenants {
				if w.outcomes(tenant) != "sent" || w.status(tenant) != repo.Creating {
					t.Fatalf("%s is %s, attempts %s: that was no kill", tenant, w.status(tenant), w.outcomes(tenant))
				}
			}
			w.setFaults()
			if !w.shared {
				w.startWorker()
			}
			eventually(t, soon, w.are(c.status, tenants...))
			eventually(t, soon, w.settled)
			eventually(t, soon, w.relayed)
			for _, tenant := range tenants {
				if after := w.attempts(tenant)[0].FinishedAt.Sub(killed); after > takeUp {
					t.Errorf("%s was taken up %v after the kill", tenant, after)
				}
				if w.outcomes(tenant) != c.outcomes || len(w.made(tenant)) != w.creates(tenant) {
					t.Errorf("%s: attempts %s, %d dashboards", tenant, w.outcomes(tenant), len(w.made(tenant)))
				}
				if got := w.announced(tenant); len(got) != 1 || !strings.HasPrefix(got[0], c.announced) {
					t.Errorf("%s: announced %q", tenant, got)
				}
			}
		})
	}
}

// A worker is cut off from NATS while Papermap refuses: the tenant is failed, the dead letter not stored. The same
// message comes again, to another worker, and ends the same way without another request.
func TestARedeliveredRefusalBecomesItsDeadLetterWithoutAnotherRequest(t *testing.T) {
	onBoth(t, testARedeliveredRefusalBecomesItsDeadLetterWithoutAnotherRequest)
}

func testARedeliveredRefusalBecomesItsDeadLetterWithoutAnotherRequest(t *testing.T) {
	w := start(t, options{faults: []string{"on=create status=400"}, noWorker: true})
	inHand := w.startWorker()
	release := w.holdAnswers()
	sequence := w.publish(events.TypeTenantCreated, object("tenant_id", "t", "name", "N"))
	eventually(t, soon, w.sent(1))
	if w.shared {
		w.startWorker() // the replica that gets the message next
	}
	inHand.bus.Close(canceled())
	release()
	eventually(t, soon, w.are(repo.Failed, "t"))
	inHand.stop()
	if n := len(w.dead()); n != 0 || w.settled() == nil {
		t.Fatalf("%d dead letters, settled: %v: the worker was not cut off", n, w.settled())
	}
	if !w.shared {
		w.startWorker()
	}
	eventually(t, takeUp, w.settled)
	if letters := w.dead(); len(letters) != 1 || letters[0].Header.Get("Papermap-Side-Effect") != "none" ||
		letters[0].Header.Get("Papermap-Error-Code") != "API_REFUSED" || letters[0].Header.Get("Papermap-Stream-Sequence") != strconv.FormatUint(sequence, 10) {
		t.Errorf("dead letters %+v", letters)
	}
	if w.creates("t") != 1 || w.status("t") != repo.Failed || w.mapping("t").Generation != 1 {
		t.Errorf("%d requests, mapping %+v", w.creates("t"), w.mapping("t"))
	}
	eventually(t, soon, w.relayed)
	if got := w.announced("t"); len(got) != 1 || !strings.HasPrefix(got[0], "dashboard.failed") {
		t.Errorf("announced %q", got)
	}
}

// restartNATS starts the NATS server again, on the same port and folder.
func (w *world) restartNATS() {
	w.t.Helper()
	address, err := url.Parse(w.bus.URL)
	w.must(err)
	port, err := strconv.Atoi(address.Port())
	w.must(err)
	w.nats, err = embedded.Start(filepath.Join(w.dir, "jetstream"), port)
	w.must(err)
}

func TestAnEventOutThatAStopKeptBackIsPublishedByTheNextWorker(t *testing.T) {
	onBoth(t, testAnEventOutThatAStopKeptBackIsPublishedByTheNextWorker)
}

func testAnEventOutThatAStopKeptBackIsPublishedByTheNextWorker(t *testing.T) {
	w := start(t, options{})
	release := w.holdAnswers()
	w.create("t")
	eventually(t, soon, w.sent(1))
	w.nats.Close()
	release()
	eventually(t, soon, w.are(repo.Active, "t")) // committed, and cannot be told
	for _, i := range w.workers {
		if s := i.State(t.Context()); s.Ready || s.Consuming != "no" {
			t.Errorf("without NATS the state is %+v", s)
		}
		i.stop()
	}
	if err := w.relayed(); err == nil {
		t.Fatal("the event was published without a server")
	}
	w.restartNATS()
	w.startWorker()
	eventually(t, soon, w.relayed)
	eventually(t, takeUp, w.settled)
	if got := w.announced("t"); len(got) != 1 || len(w.made("t")) != 1 {
		t.Errorf("announced %q, made %v", got, w.made("t"))
	}
}

func TestTheWorkerGoesOnWhenNATSComesBack(t *testing.T) {
	onBoth(t, testTheWorkerGoesOnWhenNATSComesBack)
}

func testTheWorkerGoesOnWhenNATSComesBack(t *testing.T) {
	w := start(t, options{faults: []string{"on=create delay=300ms"}})
	tenants := names("t", 100*len(w.workers))
	w.create(tenants...)
	eventually(t, soon, w.sent(70*len(w.workers))) // some are done, some in hand, some wait
	w.nats.Close()
	eventually(t, soon, func() error {
		for _, i := range w.workers {
			if s := i.State(t.Context()); s.Ready {
				return fmt.Errorf("state without NATS is %+v", s)
			}
		}
		return nil
	})
	w.restartNATS()
	eventually(t, soon, w.are(repo.Active, tenants...))
	eventually(t, soon, w.settled)
	eventually(t, soon, w.relayed)
	w.create("after")
	eventually(t, soon, w.are(repo.Active, "after"))
	w.token(object("tenant_id", "after"))
	if n := len(w.sim.Dashboards()); n != len(tenants)+1 {
		t.Errorf("%d dashboards for %d tenants", n, len(tenants)+1)
	}
	eventually(t, soon, func() error { // the other consumer may still wait for its next try
		if n := w.consuming(); n < len(w.workers) {
			return fmt.Errorf("%d of %d workers consume", n, len(w.workers))
		}
		return nil
	})
}

func TestTheWorkerMakesStreamsAndConsumersAgain(t *testing.T) {
	onBoth(t, testTheWorkerMakesStreamsAndConsumersAgain)
}

func testTheWorkerMakesStreamsAndConsumersAgain(t *testing.T) {
	w := start(t, options{})
	ctx := t.Context()
	w.create("first")
	eventually(t, soon, w.are(repo.Active, "first"))
	for _, c := range []struct {
		name   string
		remove func() error
	}{
		{"the consumers", func() error {
			if err := w.js.DeleteConsumer(ctx, "PAPERMAP", accessConsumer); err != nil {
				return err
			}
			return w.js.DeleteConsumer(ctx, "PAPERMAP", mainConsumer)
		}},
		{"the stream", func() error { return w.js.DeleteStream(ctx, "PAPERMAP") }},
		{"both streams", func() error {
			if err := w.js.DeleteStream(ctx, "PAPERMAP_DEAD"); err != nil {
				return err
			}
			return w.js.DeleteStream(ctx, "PAPERMAP")
		}},
	} {
		w.must(c.remove())
		eventually(t, soon, func() error {
			for _, name := range []string{mainConsumer, accessConsumer} {
				if _, err := w.js.Consumer(ctx, "PAPERMAP", name); err != nil {
					return err
				}
			}
			_, err := w.js.Stream(ctx, "PAPERMAP_DEAD")
			return err
		})
		tenant := "after " + c.name
		w.create(tenant)
		w.publish(events.TypeTenantSuspended, object("tenant_id", "first"))
		w.publish(events.TypeTenantCreated, `bad`)
		eventually(t, soon, w.are(repo.Active, tenant))
		eventually(t, soon, w.are(repo.Suspended, "first"))
		eventually(t, soon, w.relayed)
		eventually(t, soon, func() error {
			if len(w.dead()) == 0 || len(w.announced(tenant)) != 1 {
				return fmt.Errorf("%d dead letters, announced %q", len(w.dead()), w.announced(tenant))
			}
			return nil
		})
		w.publish(events.TypeTenantResumed, object("tenant_id", "first"))
		eventually(t, soon, w.are(repo.Active, "first"))
	}
	if n := len(w.sim.Dashboards()); n != 4 {
		t.Errorf("%d dashboards, want 4: one is made once, though its event was offered again", n)
	}
}

// Not parallel: it looks at all goroutines of the process.
func TestAStoppedWorkerLeavesNoGoroutineBehind(t *testing.T) {
	w := start(t, options{noWorker: true})
	work := func(tenant string) {
		i := w.startWorker()
		w.sim.RevokeKey("ak_b") // so that a gate probes
		w.publish(events.TypeTenantCreated, object("tenant_id", "b "+tenant, "name", "N", "workspace_id", "ws-b"))
		w.create(tenant)
		eventually(t, soon, w.are(repo.Active, tenant))
		eventually(t, soon, i.paused("ws-b"))
		w.token(object("tenant_id", tenant))
		i.stop()
	}
	work("first") // after this the NATS server and our own connection have all that they will have
	others := goleak.IgnoreCurrent()
	work("second")
	if err := goleak.Find(others); err != nil {
		t.Error(err)
	}
}
