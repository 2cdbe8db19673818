package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// bench is a worker with all that it needs.
type bench struct {
	*testing.B
	sim *simulator.Simulator
	nc  *nats.Conn
	db  *repo.DB
}

// newBench starts a worker on the PostgreSQL database at address, or on SQLite if that is empty.
func newBench(b *testing.B, address string, concurrency int) *bench {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	x := &bench{B: b, sim: simulator.New(simulator.Options{
		Workspaces: []papermap.Workspace{workertest.WorkspaceA}, Seed: 1,
	})}
	api, err := simulator.Serve(x.sim, "127.0.0.1:0")
	must(err)
	b.Cleanup(api.Close)
	server, err := embedded.Start(filepath.Join(dir, "jetstream"), 0)
	must(err)
	b.Cleanup(func() { server.Close() })
	x.nc, err = nats.Connect(server.URL())
	must(err)
	b.Cleanup(x.nc.Close)
	if address == "" {
		address = "sqlite:" + filepath.Join(dir, "papermap.db")
	}
	x.db, err = repo.Open(b.Context(), address)
	must(err)
	b.Cleanup(func() { _ = x.db.Close() })
	_, err = x.db.Migrate(b.Context())
	must(err)
	log := slog.New(slog.DiscardHandler)
	bus, err := events.Connect(events.Options{
		URL: server.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP",
		ManageStreams: true, Replicas: 1, MaxAge: time.Hour, Wait: true,
	}, log)
	must(err)
	b.Cleanup(func() { bus.Close(context.Background()) })
	workspace := workertest.WorkspaceA
	workspace.APIURL = api.URL
	w := worker.New(worker.Config{
		Workspaces: []papermap.Workspace{workspace}, Timeout: 10 * time.Second, TokenTTL: time.Hour,
		TokenMaxTTL: time.Hour,
		Concurrency: 64, MaxAttempts: 10, Grace: 10 * time.Second, UsageConcurrency: concurrency,
		Build: worker.Build{Version: "0.0.0-bench"},
	}, x.db, bus, log)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- w.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			b.Error(err)
		}
	})
	for deadline := time.Now().Add(workertest.Soon); !w.State().Ready; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatal("the worker is not ready")
		}
	}
	return x
}

// publish publishes an event to the worker and returns when the stream has it.
func (x *bench) publish(eventType, id, body string) {
	x.Helper()
	msg := &nats.Msg{Subject: "papermap.events." + eventType, Header: nats.Header{"Nats-Msg-Id": {id}},
		Data: []byte(body)}
	if _, err := x.nc.RequestMsg(msg, 10*time.Second); err != nil {
		x.Fatal(err)
	}
}

// run is the run that an event asked for.
func (x *bench) run(event string) repo.Run {
	x.Helper()
	list, err := x.db.Runs(context.Background(), event, 1)
	if err != nil {
		x.Fatal(err)
	}
	if len(list) == 0 {
		return repo.Run{}
	}
	return list[0]
}

// BenchmarkUsagePages reads the usage of 60,000 tenants, from an API that takes 5 ms for a page,
// with ever more pages on their way at once.
func BenchmarkUsagePages(b *testing.B) {
	const pages = 600
	var rates [3]float64
	for n := range b.N {
		for i, concurrency := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("round%d/at-once=%d", n, concurrency), func(b *testing.B) {
				x := newBench(b, "", concurrency)
				fault, err := simulator.ParseFault("on=usage delay=5ms")
				if err != nil {
					b.Fatal(err)
				}
				x.sim.SetFaults(fault)
				x.sim.SetUsage("ws-a", simulator.Usage{Tenants: 100 * pages})
				b.ResetTimer()
				for n := range b.N {
					x.publish(events.TypeUsageSync, fmt.Sprint("e", n),
						`{"from_period":"2026-03","to_period":"2026-03"}`)
					deadline := time.Now().Add(workertest.Soon)
					id := fmt.Sprint("e", n)
					for run := x.run(id); run.Status != repo.RunDone; run = x.run(id) {
						if time.Now().After(deadline) {
							b.Fatalf("the run is %+v", run)
						}
						time.Sleep(5 * time.Millisecond)
					}
				}
				rate := float64(b.N*pages) / b.Elapsed().Seconds()
				rates[i] = rate
				b.ReportMetric(rate, "pages/s")
			})
		}
	}
	b.Logf("%.1f pages/s at 1, %.1f times that at 8, %.1f times at 32", rates[0], rates[1]/rates[0],
		rates[2]/rates[0])
}

// BenchmarkTenantSyncs measures how many usage.sync for single tenants are done in a second while
// thousands wait.
func BenchmarkTenantSyncs(b *testing.B) {
	const waiting = 3000
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		b.Run(database, func(b *testing.B) {
			address := ""
			if database == "PostgreSQL" {
				address = pgtest.Need(b, postgres)
			}
			x := newBench(b, address, 8)
			x.sim.SetUsage("ws-a", simulator.Usage{Tenants: waiting})
			synced := make(chan *nats.Msg, 1<<16)
			if _, err := x.nc.ChanSubscribe("papermap.events.usage.synced", synced); err != nil {
				b.Fatal(err)
			}
			for round := range b.N {
				for n := range waiting {
					msg := &nats.Msg{Subject: "papermap.events.usage.sync",
						Data: []byte(object("tenant_id", fmt.Sprintf("org-%07d", n)))}
					msg.Header = nats.Header{"Nats-Msg-Id": {fmt.Sprint(round, "-", n)}}
					if err := x.nc.PublishMsg(msg); err != nil {
						b.Fatal(err)
					}
				}
				began := time.Now()
				for n := range waiting {
					<-synced
					if done := n + 1; done%500 == 0 {
						b.Logf("%d done, %.0f a second", done, float64(done)/time.Since(began).Seconds())
					}
				}
			}
			b.ReportMetric(float64(b.N*waiting)/b.Elapsed().Seconds(), "syncs/s")
		})
	}
}

// BenchmarkProvisioningBesideUsage measures how long after its tenant.created a tenant's
// dashboard.created is there, first alone, then while a million rows of usage are read and written.
func BenchmarkProvisioningBesideUsage(b *testing.B) {
	const rows = 1_000_000
	x := newBench(b, "", 8)
	x.sim.SetUsage("ws-a", simulator.Usage{Tenants: rows})
	arrived := make(chan *nats.Msg, 1<<16)
	if _, err := x.nc.ChanSubscribe("papermap.events.dashboard.created", arrived); err != nil {
		b.Fatal(err)
	}
	published := map[string]time.Time{}
	// provision publishes a tenant every 10 ms for as long as more says so, and returns how long
	// each took.
	provision := func(prefix string, more func(n int) bool) (took []time.Duration) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		n := 0
		take := func(msg *nats.Msg) {
			var e struct {
				Subject string `json:"subject"`
			}
			if err := json.Unmarshal(msg.Data, &e); err != nil {
				b.Fatal(err)
			}
			if at, ok := published[e.Subject]; ok {
				took = append(took, time.Since(at))
				delete(published, e.Subject)
			}
		}
		for wanted := true; wanted; {
			select {
			case msg := <-arrived:
				take(msg)
			case <-tick.C:
				wanted = more(n)
				tenant := fmt.Sprint(prefix, n)
				n++
				published[tenant] = time.Now()
				if err := x.nc.Publish("papermap.events.tenant.created",
					[]byte(object("tenant_id", tenant, "name", tenant))); err != nil {
					b.Fatal(err)
				}
			}
		}
		for len(published) > 0 {
			take(<-arrived)
		}
		return took
	}
	quantile := func(q float64, took []time.Duration) float64 {
		slices.Sort(took)
		return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000
	}
	provision("warm-", func(n int) bool { return n < 100 })
	for round := range b.N {
		idle := provision(fmt.Sprint("idle-", round, "-"), func(n int) bool { return n < 500 })
		event := fmt.Sprint("e", round)
		began := time.Now()
		x.publish(events.TypeUsageSync, event,
			fmt.Sprintf(`{"from_period":"%d-01","to_period":"%d-01"}`, 2000+round, 2000+round))
		busy := provision(fmt.Sprint("busy-", round, "-"),
			func(n int) bool { return x.run(event).Status != repo.RunDone })
		b.Logf("idle p50 %.1f ms, p99 %.1f ms of %d; beside usage p50 %.1f, p99 %.1f of %d, %.0f rows/s",
			quantile(0.5, idle), quantile(0.99, idle), len(idle),
			quantile(0.5, busy), quantile(0.99, busy), len(busy), rows/time.Since(began).Seconds())
		b.ReportMetric(quantile(0.99, idle), "idle-p99-ms")
		b.ReportMetric(quantile(0.99, busy), "busy-p99-ms")
		b.ReportMetric(quantile(0.99, busy)/quantile(0.99, idle), "busy/idle")
	}
}
