// Package worker gives tenants their dashboards, follows their suspension and deletion, mints their
// embed tokens and syncs their usage. A [Worker] composes the services that do so:
//
//   - provisioner handles tenant.created: it creates the tenant's dashboard at Papermap;
//   - accessHandler handles tenant.suspended, tenant.resumed and tenant.deleted;
//   - tokenService mints embed tokens, from memory where it can;
//   - usageSync handles usage.sync, and scheduler publishes it;
//   - relay publishes the events of the outbox;
//   - a breaker per workspace pauses the creation of dashboards while Papermap fails;
//   - API has the calls of REST, the console and NATS's request-reply.
//
// The path of a tenant.created: Worker.handle gets the decoded event; the provisioner takes a
// permit of the workspace's breaker, claims the tenant (repo.Begin: mapping, claim and attempt in
// one commit), creates the dashboard (papermap.CreateDashboard) and records it (repo.Finish:
// mapping, attempt and event out in one commit). Its error decides whether package events
// acknowledges the event, retries it or makes it a dead letter. If a worker is killed between any
// two of these steps, or two replicas run them at once, nothing is lost and no second dashboard is
// recorded.
//
// The path of a token request: tokenFromCache looks in memory. If the tenant is not there, or the
// request has an unusual form, embedToken reads the database. A token is signed only if the mapping
// is active, for that row's workspace and dashboard. No API is called.
//
// A process runs one worker, with its own bus and database:
//
//	w := worker.New(worker.Config{Workspaces: list, Concurrency: 64, MaxAttempts: 10, …}, db, bus, log)
//	go serveHTTP(w) // w.EmbedToken, w.State, w.Metrics
//	err := w.Run(ctx) // until ctx ends, then drains
//
// What it does not promise: Papermap's create is not idempotent, so a create whose answer was lost
// may leave a dashboard behind. Such attempts are listed as possible orphans.
package worker

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

// Worker composes the services and runs them. Other packages in the process use the methods of API.
type Worker struct {
	*API
	cfg      Config
	db       *repo.DB
	bus      *events.Bus
	log      *slog.Logger
	metrics  *metrics
	refusals *refusals
	draining atomic.Bool

	workspaces workspaces
	resumed    chan struct{} // signaled when a breaker permits more calls
	main       *events.Consumer
	access     *events.Consumer

	provisioner   *provisioner
	accessHandler *accessHandler
	tokens        *tokenService
	usage         *usageSync
	scheduler     *scheduler
	relay         *relay
	health        *health
}

// accessSlots is how many suspensions, resumptions and deletions may be in flight: each is one
// short transaction.
const accessSlots = 32

// New makes a worker; Run starts it. The caller keeps db and bus open until Run has returned.
func New(cfg Config, db *repo.DB, bus *events.Bus, log *slog.Logger) *Worker {
	cfg, limit := cfg.withinRate()
	now := cfg.Clock
	if now == nil {
		now = time.Now
	}
	m, spans := newMetrics(cfg.Build), newSpanByEvent()
	w := &Worker{cfg: cfg, db: db, bus: bus, log: log, metrics: m, resumed: make(chan struct{}, 1)}
	w.refusals = newRefusals(m.refused)
	w.workspaces = newWorkspaces(cfg.Workspaces, papermap.ClientOptions{
		Timeout: cfg.Timeout, Limiter: rate.NewLimiter(limit, max(1, int(cfg.MaxRPS))),
		UserAgent: "papermap-worker/" + cfg.Build.Version, HistoryPath: cfg.HistoryPath, Dial: cfg.Dial,
		Observe: m.requested,
	}, cfg.EmbedURL, w.resumed, log)
	w.tokens = newTokenService(w.workspaces, db.Tokens(), m, tokenLimits{
		ttl: cfg.TokenTTL, maxTTL: cfg.TokenMaxTTL, rate: cfg.TokenRate, burst: cfg.TokenBurst,
	}, cfg.Clock, cfg.TokenAudit)
	changed := func(tenantID string) { // for this and the other replicas
		w.tokens.cache.invalidate(tenantID)
		bus.AnnounceChange(tenantID)
	}
	w.relay = newRelay(db, bus, log, spans)
	w.provisioner = &provisioner{
		workspaces: w.workspaces, db: db, log: log, metrics: m, spans: spans, hold: cfg.Hold,
		maxAttempts: cfg.MaxAttempts, changed: changed, wakeRelay: w.relay.wake,
		unwritten: rate.NewLimiter(rate.Every(30*time.Second), 1),
	}
	w.accessHandler = &accessHandler{w.workspaces, db, log, changed}
	w.usage = &usageSync{
		workspaces: w.workspaces, db: db, log: log, metrics: m, spans: spans, draining: w.draining.Load,
		slots: make(chan struct{}, max(1, cfg.Concurrency/2)), concurrent: cfg.UsageConcurrency,
		wakeRelay: w.relay.wake, turns: map[string]*usageTurn{},
	}
	for _, ws := range w.workspaces.list {
		w.usage.turns[ws.ID] = newUsageTurn(db, ws.ID, cfg.UsageConcurrency)
	}
	w.scheduler = &scheduler{cfg.Schedule, w.usage, log, now}
	w.API = &API{
		workspaces: w.workspaces, db: db.People(), bus: bus, tokens: w.tokens, now: now,
		changed: func(tenantID string) {
			changed(tenantID)
			w.relay.wake()
		},
	}
	if cfg.CreateMissing {
		w.missing = newMissingTenants(db.Tokens(), bus, now)
	}
	w.main = bus.MainConsumer(cfg.Concurrency, cfg.Grace)
	w.main.Admit, w.main.Handle, w.main.Observe = w.admit, w.handle, m.eventHandled
	w.access = bus.AccessConsumer(accessSlots, cfg.Grace)
	w.access.Handle, w.access.Observe = w.handle, m.eventHandled
	w.health = &health{bus: bus, db: db, log: log, consuming: func() bool {
		return w.main.Healthy() && w.access.Healthy()
	}}
	for _, ws := range w.workspaces.list {
		m.runProgress(ws.ID, 0, 0)
	}
	m.registry.MustRegister(collector{w})
	return w
}

// Build returns what the program was built from.
func (w *Worker) Build() Build { return w.cfg.Build }

// Run works until ctx ends. Then it drains: it accepts nothing new, finishes the work in flight
// within the grace period, and returns. The bus and the database stay open.
func (w *Worker) Run(ctx context.Context) error {
	ctx = WithActor(ctx, Actor{}) // the worker's own work has no actor
	service, err := w.bus.Serve(w.cfg.Build.Version, w.cfg.ReplyPrefixes, w.endpoints()...)
	if err != nil {
		return err
	}
	unsubscribe, err := w.bus.OnChange(w.tokens.cache.invalidate)
	if err != nil {
		return err
	}
	defer unsubscribe()
	stop := context.AfterFunc(ctx, func() {
		w.draining.Store(true)
		failpoint.Hit(failpoint.Draining)
	})
	defer stop()

	// The breakers and the relay serve the consumers, so they stop after them.
	support, stopSupport := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSupport()
	var supporters sync.WaitGroup
	for _, ws := range w.workspaces.list {
		supporters.Go(func() { ws.breaker.run(support) })
		supporters.Go(func() { ws.watchClock(support, w.log) })
	}
	supporters.Go(func() { w.relay.run(support) })
	supporters.Go(func() { w.health.run(support) })
	supporters.Go(func() { prune(support, w.db, cmp.Or(w.cfg.AuditKept, DefaultAuditKept), w.log) })
	supporters.Go(func() { w.tokens.cache.renewals(support, w.tokens.loadTenants) })
	supporters.Go(func() { w.tokens.counts.run(support, w.db, w.log) })
	supporters.Go(func() { w.tokens.audit.run(support, w.log) })

	var consumers sync.WaitGroup
	consumers.Go(func() { w.scheduler.run(ctx) })
	consumers.Go(func() { w.main.Run(ctx) })
	consumers.Go(func() { w.access.Run(ctx) })
	consumers.Wait()

	service.Stop()
	stopSupport()
	supporters.Wait()
	for _, ws := range w.workspaces.list {
		ws.api.Close()
	}
	return nil
}

// handle handles an event of either consumer.
func (w *Worker) handle(ctx context.Context, e events.Event) error {
	defer func() {
		if w.draining.Load() {
			failpoint.Hit(failpoint.Draining)
		}
	}()
	if id := e.TenantID(); id != "" {
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("papermap.tenant_id", id))
	}
	switch data := e.Data.(type) {
	case events.TenantCreated:
		return w.provisioner.handle(ctx, e, data)
	case events.TenantChange:
		return w.accessHandler.handleAccess(ctx, e, data)
	case events.UsageSync:
		return w.usage.handle(ctx, e, data)
	}
	return unknownType(e)
}

// admit returns how many events may be fetched for the main consumer. It blocks while every
// workspace is paused.
func (w *Worker) admit(ctx context.Context) (int, error) {
	for {
		n := 0
		for _, ws := range w.workspaces.list {
			n = max(n, ws.breaker.permits(w.cfg.Concurrency))
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-w.resumed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Database is the worker's database, for reads for people.
func (w *Worker) Database() *repo.DB { return w.db.People() }

// Bus is the worker's connection to NATS.
func (w *Worker) Bus() *events.Bus { return w.bus }

// EmbedURLs are the addresses of the workspaces' pages for iframes.
func (w *Worker) EmbedURLs() (list []string) {
	for _, ws := range w.workspaces.list {
		list = append(list, ws.EmbedURL)
	}
	return list
}
