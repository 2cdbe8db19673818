package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// BenchmarkPipeline is the way of a tenant.created, from the stream to its acknowledgement, with a
// Papermap that takes 5 ms: by the worker, with SQLite at full durability, and by the same loop
// without a database, which publishes its event out before it acknowledges. The ratio is what the
// database costs.
func BenchmarkPipeline(b *testing.B) {
	for _, concurrency := range []int{64, 256} {
		b.Run(fmt.Sprint(concurrency), func(b *testing.B) {
			const tenants = 10_000
			var with, without time.Duration
			for b.Loop() {
				without += pipeline(b, tenants, concurrency, bareLoop)
				with += pipeline(b, tenants, concurrency, wholeWorker)
			}
			b.ReportMetric(float64(tenants)*float64(b.N)/with.Seconds(), "events/s")
			b.ReportMetric(float64(tenants)*float64(b.N)/without.Seconds(), "bare_events/s")
			b.ReportMetric(without.Seconds()/with.Seconds(), "of_bare")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// pipelineParts are what a loop works with.
type pipelineParts struct {
	dir         string
	workspace   papermap.Workspace
	paused      []papermap.Workspace // more of them, whose keys the API does not know
	bus         *events.Bus
	concurrency int
	log         *slog.Logger
}

// pipeline returns how long a loop takes for so many tenants that wait in the stream, from its
// start: what it prepares does not count.
func pipeline(b *testing.B, tenants, concurrency int,
	loop func(*testing.B, pipelineParts) (start func() (stop func()))) time.Duration {
	b.Helper()
	p, sim, stopParts := startPipeline(b, concurrency)
	defer stopParts()
	var batch []events.Outgoing
	for i := range tenants {
		batch = append(batch, events.Outgoing{Type: events.TypeTenantCreated,
			Data: fmt.Appendf(nil, `{"tenant_id":"t-%d","name":"Tenant %d"}`, i, i)})
	}
	for _, err := range p.bus.PublishAll(context.Background(), batch) {
		if err != nil {
			b.Fatal(err)
		}
	}
	start := loop(b, p)
	from := time.Now()
	stop := start()
	for len(sim.Dashboards()) < tenants {
		time.Sleep(10 * time.Millisecond) // it copies them all
	}
	took := time.Since(from)
	stop()
	return took
}

// startPipeline starts a NATS server with the streams and a simulator that takes 5 ms.
func startPipeline(b *testing.B, concurrency int) (p pipelineParts, sim *simulator.Simulator, stop func()) {
	b.Helper()
	check := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workertest.WorkspaceA},
		Faults: []simulator.Fault{{On: "create", Delay: 5 * time.Millisecond}}})
	api, err := simulator.Serve(sim, "127.0.0.1:0")
	check(err)
	server, err := embedded.Start(filepath.Join(dir, "jetstream"), 0)
	check(err)
	p = pipelineParts{dir: dir, workspace: workertest.WorkspaceA, concurrency: concurrency,
		log: slog.New(slog.DiscardHandler)}
	p.workspace.APIURL = api.URL
	p.bus, err = events.Connect(events.Options{
		URL: server.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP",
		ManageStreams: true, Replicas: 1, MaxAge: time.Hour,
	}, p.log)
	check(err)
	check(p.bus.EnsureStreams(context.Background()))
	return p, sim, func() {
		p.bus.Close(context.Background())
		server.Close()
		api.Close()
	}
}

// pipelineLoad runs a worker under the load that publishes, and hands out how long each tenant
// waited.
func pipelineLoad(b *testing.B, load func(publish func(eventType,
	data string) time.Time) map[string]time.Time, each func(time.Duration)) {
	b.Helper()
	p, sim, stopParts := startPipeline(b, 64)
	defer stopParts()
	stop := wholeWorker(b, p)()
	defer stop()
	published := load(func(eventType, data string) time.Time {
		now := time.Now()
		if _, err := p.bus.Publish(context.Background(),
			events.Outgoing{Type: eventType, Data: []byte(data)}); err != nil {
			b.Fatal(err)
		}
		return now
	})
	for len(sim.Dashboards()) < len(published) {
		time.Sleep(time.Millisecond)
	}
	for _, d := range sim.Dashboards() {
		each(d.CreatedAt.Sub(published[d.TenantID]))
	}
}

// BenchmarkDeferred is how long a tenant waits, from publishing to its dashboard at Papermap, first
// alone and then while a thousand events of a paused workspace are deferred again and again.
func BenchmarkDeferred(b *testing.B) {
	const deferred, tenants = 1000, 300
	ctx := context.Background()
	var alone, beside time.Duration // the longest waits
	for n := range b.N {
		p, sim, stopParts := startPipeline(b, 64)
		paused := workertest.WorkspaceB
		paused.APIURL = p.workspace.APIURL
		p.paused = []papermap.Workspace{paused}
		stop := wholeWorker(b, p)()
		longest := func(prefix string) (wait time.Duration) {
			published := map[string]time.Time{}
			for i := range tenants {
				tenant := fmt.Sprintf("%s-%d", prefix, i)
				published[tenant] = time.Now()
				if _, err := p.bus.Publish(ctx, events.Outgoing{Type: events.TypeTenantCreated,
					Data: []byte(object("tenant_id", tenant, "name", tenant))}); err != nil {
					b.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			for {
				made := 0
				for _, d := range sim.Dashboards() {
					if at, ok := published[d.TenantID]; ok {
						made++
						wait = max(wait, d.CreatedAt.Sub(at))
					}
				}
				if made == tenants {
					return wait
				}
				time.Sleep(time.Millisecond)
			}
		}
		alone += longest(fmt.Sprint("alone-", n))
		for i := range deferred {
			data := object("tenant_id", fmt.Sprintf("deferred-%d", i), "name", "N", "workspace_id", paused.ID)
			if _, err := p.bus.Publish(ctx, events.Outgoing{Type: events.TypeTenantCreated,
				Data: []byte(data)}); err != nil {
				b.Fatal(err)
			}
		}
		for {
			list, _, err := p.bus.Backlog(ctx)
			if err != nil {
				b.Fatal(err)
			}
			if list[0].Pending == 0 && list[0].AckPending == deferred {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		beside += longest(fmt.Sprint("beside-", n))
		stop()
		stopParts()
	}
	b.ReportMetric(alone.Seconds()*1000/float64(b.N), "alone_ms")
	b.ReportMetric(beside.Seconds()*1000/float64(b.N), "beside_ms")
	b.ReportMetric(0, "ns/op")
}

func wholeWorker(b *testing.B, p pipelineParts) (start func() (stop func())) {
	db, err := repo.Open(context.Background(), "sqlite:"+filepath.Join(p.dir, "papermap.db"))
	if err == nil {
		_, err = db.Migrate(context.Background())
	}
	if err != nil {
		b.Fatal(err)
	}
	w := worker.New(worker.Config{
		Workspaces: append([]papermap.Workspace{p.workspace}, p.paused...), EmbedURL: "https://papermap.ai/x",
		Timeout: 10 * time.Second, TokenTTL: time.Hour, TokenMaxTTL: time.Hour,
		Concurrency: p.concurrency, MaxAttempts: 10, Grace: 20 * time.Second,
		Build: worker.Build{Version: "0.0.0-test"},
	}, db, p.bus, p.log)
	return func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
			_ = db.Close()
		}
	}
}

func bareLoop(_ *testing.B, p pipelineParts) (start func() (stop func())) {
	client := papermap.NewClient(p.workspace, papermap.ClientOptions{})
	consumer := p.bus.MainConsumer(p.concurrency, 20*time.Second)
	var number atomic.Int64
	consumer.Handle = func(ctx context.Context, e events.Event) error {
		data := e.Data.(events.TenantCreated)
		d, err := client.CreateDashboard(ctx, papermap.NewDashboard{
			TenantID: data.TenantID, Title: data.Name, Description: fmt.Sprintf("pmw:%d", number.Add(1)),
		})
		if err != nil {
			return err
		}
		out, err := events.Structured(uuid.NewString(), events.TypeDashboardCreated, data.TenantID,
			time.Now(),
			[]byte(object("tenant_id", data.TenantID, "workspace_id", p.workspace.ID, "dashboard_id", d.ID,
				"title", data.Name)))
		if err != nil {
			return err
		}
		_, err = p.bus.Publish(ctx, out)
		return err
	}
	return func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			consumer.Run(ctx)
		}()
		return func() {
			cancel()
			<-done
			client.Close()
		}
	}
}
