// Package worker is the work itself: it gives tenants their dashboards, follows their suspension and deletion, and
// answers requests for embed tokens.
//
// The way of a tenant.created: [Worker.handle] gets the decoded event; provision asks the workspace's gate, claims the
// tenant (repo.Begin: intent, claim and attempt in one commit), creates the dashboard (papermap.CreateDashboard) and
// records it (repo.Finish: mapping, attempt and event out in one commit). Its error decides what becomes of the
// event; package events settles it. Being killed between any two of these steps, run twice, or run by two replicas
// at once loses nothing and records no second dashboard.
//
// The way of a token request: quickToken looks into memory; what is not there, or not plain, embedToken reads from the
// database. Only if the mapping is active a token is signed, for that row's workspace and dashboard. No API is called.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

// Config is how the worker works.
type Config struct {
	Workspaces    []papermap.Workspace // the first is the default
	EmbedURL      string
	Timeout       time.Duration // of one API request
	MaxRPS        float64       // API requests per second; 0 for no limit
	Hold          bool          // hold a tenant whose create has an unknown outcome, instead of creating again
	TokenTTL      time.Duration
	TokenMaxTTL   time.Duration
	TokenRate     float64 // per second and tenant; 0 for no limit
	TokenBurst    int
	TokenAudit    int // most log lines per second that tell of minted tokens
	Concurrency   int // events in hand at once
	MaxAttempts   int
	Grace         time.Duration // for what is in hand at a stop
	ReplyPrefixes []string
	Version       string

	Schedule         *Schedule        // of usage; nil: off
	UsageConcurrency int              // pages of usage on their way at once
	HistoryPath      string           // of one tenant's usage; empty: the client's default
	Clock            func() time.Time // for the schedule, months and tokens; nil: time.Now
}

// Worker composes events, Papermap and the database.
type Worker struct {
	cfg        Config
	db         *repo.DB
	bus        *events.Bus
	log        *slog.Logger
	workspaces map[string]*workspace
	admission  chan struct{} // rung when a gate changes
	runs       chan struct{} // as many usage runs as may be at work at once: half of the slots
	outbox     chan struct{} // rung when there is an event to relay
	id         string        // of this process, as a holder of leases
	main       *events.Consumer
	access     *events.Consumer
	draining   atomic.Bool
	now        func() time.Time

	metrics   *metrics
	tenants   *tenants
	minted    tokenCounts
	audit     *audit
	causes    causes
	embedPage []byte // begin of the iframe's address as JSON text, up to the token
}

// workspace is a configured workspace with what is needed to work with it.
type workspace struct {
	papermap.Workspace
	api    *papermap.Client
	gate   *gate
	minter *papermap.Minter
}

// MostSkew is how far the host's clock may be from Papermap's for tokens to be minted: they live by it. From WarnSkew on
// operators are told.
const (
	MostSkew = 300 * time.Second
	WarnSkew = 60 * time.Second
)

// So old may the newest reading of Papermap's clock be: where the clock is fine, and where it is off or not known, so that
// putting it right is noticed. A worker that has nothing to ask asks for the first one after clockFirst.
const (
	clockFine  = 5 * time.Minute
	clockOff   = 30 * time.Second
	clockFirst = 5 * time.Second
)

// clockAllows returns an error when the host's clock is so far off that tokens would live much longer or shorter than they
// say.
func (ws *workspace) clockAllows() error {
	if skew, known := ws.api.ClockSkew(); known && skew.Abs() > MostSkew {
		return &events.ServiceError{Status: 503, Code: "UNAVAILABLE", Message: "the worker's clock is wrong, so no tokens are minted", RetryAfter: 60}
	}
	return nil
}

// watchClock asks for Papermap's time when no other request has shown it for long, or one contradicts what is believed.
func (ws *workspace) watchClock(ctx context.Context, log *slog.Logger) {
	said := false
	asked := time.Now().Add(clockFirst - clockOff)
	for sleep(ctx, time.Second) {
		skew, known := ws.api.ClockSkew()
		off := known && skew.Abs() > WarnSkew
		if off && !said {
			log.Error("the host's clock is off: set it; beyond 5 minutes no tokens are minted", "workspace_id", ws.ID, "skew", skew.Round(time.Second).String())
		}
		said = off
		old := clockFine
		if off || !known {
			old = clockOff
		}
		read, doubtful := ws.api.ClockReading()
		if !doubtful && (time.Since(read) < old || time.Since(asked) < old) {
			continue
		}
		asked = time.Now()
		if err := ws.api.Probe(ctx); err != nil {
			log.Debug("cannot ask Papermap for its time", "workspace_id", ws.ID, "error", err)
		}
	}
}

// New makes a worker that has not begun.
func New(cfg Config, db *repo.DB, bus *events.Bus, log *slog.Logger) *Worker {
	w := &Worker{
		cfg: cfg, db: db, bus: bus, log: log, workspaces: map[string]*workspace{},
		admission: make(chan struct{}, 1), outbox: make(chan struct{}, 1), id: uuid.NewString(),
	}
	if w.now = cfg.Clock; w.now == nil {
		w.now = time.Now
	}
	w.metrics = newMetrics(cfg.Version)
	w.metrics.registry.MustRegister(readings{w})
	w.tenants = newTenants(w.loadTenant)
	w.audit = newAudit(cfg.TokenAudit)
	w.causes.spans.most = mostCauses / 2
	w.embedPage, _ = jsontext.AppendQuote(nil, cfg.EmbedURL+"?embedded-token=") // an error only for text that is not UTF-8
	w.embedPage = w.embedPage[:len(w.embedPage)-1]
	limit := rate.Inf
	if cfg.MaxRPS > 0 {
		limit = rate.Limit(cfg.MaxRPS)
		// More in hand than two seconds' worth would claim their tenants only to find no turn within the client's budget.
		w.cfg.Concurrency = min(cfg.Concurrency, max(2, int(2*cfg.MaxRPS)))
		w.cfg.UsageConcurrency = min(cfg.UsageConcurrency, int(cfg.MaxRPS/2)) // for the limit serves all in turn, and tenants wait for theirs
	}
	w.cfg.UsageConcurrency = max(1, w.cfg.UsageConcurrency)
	w.runs = make(chan struct{}, max(1, w.cfg.Concurrency/2))
	options := papermap.ClientOptions{
		Timeout: cfg.Timeout, Limiter: rate.NewLimiter(limit, max(1, int(cfg.MaxRPS))), UserAgent: "papermap-worker/" + cfg.Version,
		HistoryPath: cfg.HistoryPath, Observe: w.metrics.requested,
	}
	for _, ws := range cfg.Workspaces {
		api := papermap.NewClient(ws, options)
		w.metrics.reading(ws.ID, 0, 0)
		w.workspaces[ws.ID] = &workspace{ws, api, newGate(api.Probe, w.admission, log.With("workspace_id", ws.ID)), papermap.NewMinter(ws.EmbedKey, ws.ID)}
	}
	w.main = bus.MainConsumer(w.cfg.Concurrency, cfg.Grace)
	w.main.Admit, w.main.Handle, w.main.Settled = w.admit, w.handle, w.metrics.settled
	w.access = bus.AccessConsumer(accessSlots, cfg.Grace)
	w.access.Handle, w.access.Settled = w.handle, w.metrics.settled
	return w
}

// accessSlots is how many suspensions, resumptions and deletions are in hand at once: each is one short transaction.
const accessSlots = 32

// Run works until ctx ends, then drains: it takes nothing new, finishes what is in hand within the grace, and
// returns. The bus and the database stay open.
func (w *Worker) Run(ctx context.Context) error {
	service, err := w.bus.Serve(w.cfg.Version, w.cfg.ReplyPrefixes, w.endpoints()...)
	if err != nil {
		return err
	}
	unsubscribe, err := w.bus.OnChanged(w.tenants.drop)
	if err != nil {
		return err
	}
	defer unsubscribe()
	stop := context.AfterFunc(ctx, func() {
		w.draining.Store(true)
		failpoint.Hit(failpoint.Draining)
	})
	defer stop()

	// The gates and the relay serve the consumers, so they stop after them.
	support, stopSupport := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSupport()
	var supporters sync.WaitGroup
	for _, ws := range w.workspaces {
		supporters.Go(func() { ws.gate.run(support) })
		supporters.Go(func() { ws.watchClock(support, w.log) })
	}
	supporters.Go(func() { w.relay(support) })
	supporters.Go(func() { w.keepTokenCounts(support) })
	supporters.Go(func() { w.audit.write(support, w.log) })

	var consumers sync.WaitGroup
	consumers.Go(func() { w.schedule(ctx) })
	consumers.Go(func() { w.main.Run(ctx) })
	consumers.Go(func() { w.access.Run(ctx) })
	consumers.Wait()

	service.Stop()
	stopSupport()
	supporters.Wait()
	for _, ws := range w.workspaces {
		ws.api.Close()
	}
	return nil
}

// handle does what an event asks for.
func (w *Worker) handle(ctx context.Context, e events.Event) error {
	defer func() {
		if w.draining.Load() {
			failpoint.Hit(failpoint.Draining)
		}
	}()
	switch data := e.Data.(type) {
	case events.TenantCreated:
		return w.provision(ctx, e, data)
	case events.TenantChange:
		return w.change(ctx, e, data)
	case events.UsageSync:
		return w.syncUsage(ctx, e, data)
	}
	return &events.Permanent{Code: "UNKNOWN_TYPE", Err: fmt.Errorf("no handler for events of type %s", e.Type)}
}

// admit says how many events may be fetched from the main consumer, waiting while every workspace is paused.
func (w *Worker) admit(ctx context.Context) (int, error) {
	for {
		most := 0
		for _, ws := range w.workspaces {
			most = max(most, ws.gate.admits(w.cfg.Concurrency))
		}
		if most > 0 {
			return most, nil
		}
		select {
		case <-w.admission:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// workspaceOf finds a configured workspace; the default one for an empty id.
func (w *Worker) workspaceOf(id string) (*workspace, bool) {
	if id == "" {
		id = w.cfg.Workspaces[0].ID
	}
	ws, ok := w.workspaces[id]
	return ws, ok
}

// knownWorkspace is workspaceOf for an event, where an unknown one is the publisher's mistake.
func (w *Worker) knownWorkspace(id string) (*workspace, error) {
	ws, ok := w.workspaceOf(id)
	if !ok {
		return nil, &events.Permanent{Code: "UNKNOWN_WORKSPACE", Err: fmt.Errorf("workspace %q is not configured: set PAPERMAP_WORKSPACE_ID or PAPERMAP_WORKSPACES_FILE, or correct the event", id)}
	}
	return ws, nil
}

// State is whether the worker can work, for people and probes.
type State struct {
	Ready     bool     `json:"ready"`
	Consuming string   `json:"consuming"`         // yes, paused (because of Papermap) or no
	Reasons   []string `json:"reasons,omitempty"` // what is wrong, or why it is paused
}

// State looks at everything that the worker needs.
func (w *Worker) State(ctx context.Context) State {
	s := State{Ready: true, Consuming: "yes"}
	no := func(reason string) {
		s.Ready, s.Consuming = false, "no"
		s.Reasons = append(s.Reasons, reason)
	}
	if w.draining.Load() {
		no("the worker is draining")
	}
	if err := w.bus.Connected(); err != nil {
		no(err.Error())
	} else if !w.main.Healthy() || !w.access.Healthy() {
		no("the consumers are not running; the log says why")
	}
	if err := w.db.Ping(ctx); err != nil {
		no(err.Error())
	}
	var pauses []string
	for id, ws := range w.workspaces {
		if reason := ws.gate.paused(); reason != "" {
			pauses = append(pauses, fmt.Sprintf("workspace %s is paused: %s", id, reason))
		}
	}
	slices.Sort(pauses)
	if s.Ready && len(pauses) > 0 {
		s.Consuming = "paused"
	}
	s.Reasons = append(s.Reasons, pauses...)
	for id, ws := range w.workspaces {
		if skew, known := ws.api.ClockSkew(); known && skew.Abs() > WarnSkew {
			s.Reasons = append(s.Reasons, fmt.Sprintf("the host's clock is %v off Papermap's (workspace %s): set it; beyond %v no tokens are minted", skew.Abs().Round(time.Second), id, MostSkew))
		}
	}
	return s
}
