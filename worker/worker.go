// Package worker is the work itself: it gives tenants their dashboards, follows their suspension and deletion, and
// answers requests for embed tokens.
//
// The way of a tenant.created: [Worker.handle] gets the decoded event; provision asks the workspace's gate, claims the
// tenant (repo.Begin: intent, claim and attempt in one commit), creates the dashboard (papermap.CreateDashboard) and
// records it (repo.Finish: mapping, attempt and event out in one commit). Its error decides what becomes of the
// event; package events settles it. Being killed between any two of these steps, run twice, or run by two replicas
// at once loses nothing and records no second dashboard.
//
// The way of a token request: embedToken reads the tenant's mapping, and only if it is active signs a token for that
// row's workspace and dashboard. No API is called.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
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
	Concurrency   int // events in hand at once
	MaxAttempts   int
	Grace         time.Duration // for what is in hand at a stop
	ReplyPrefixes []string
	Version       string
}

// Worker composes events, Papermap and the database.
type Worker struct {
	cfg        Config
	db         *repo.DB
	bus        *events.Bus
	log        *slog.Logger
	workspaces map[string]*workspace
	admission  chan struct{} // rung when a gate changes
	outbox     chan struct{} // rung when there is an event to relay
	id         string        // of this process, as a holder of leases
	main       *events.Consumer
	access     *events.Consumer
	draining   atomic.Bool
}

// workspace is a configured workspace with what is needed to work with it.
type workspace struct {
	papermap.Workspace
	api  *papermap.Client
	gate *gate
}

// New makes a worker that has not begun.
func New(cfg Config, db *repo.DB, bus *events.Bus, log *slog.Logger) *Worker {
	w := &Worker{
		cfg: cfg, db: db, bus: bus, log: log, workspaces: map[string]*workspace{},
		admission: make(chan struct{}, 1), outbox: make(chan struct{}, 1), id: uuid.NewString(),
	}
	limit := rate.Inf
	if cfg.MaxRPS > 0 {
		limit = rate.Limit(cfg.MaxRPS)
		// More in hand than two seconds' worth would claim their tenants only to find no turn within the client's budget.
		w.cfg.Concurrency = min(cfg.Concurrency, max(1, int(2*cfg.MaxRPS)))
	}
	options := papermap.ClientOptions{
		Timeout: cfg.Timeout, Limiter: rate.NewLimiter(limit, max(1, int(cfg.MaxRPS))), UserAgent: "papermap-worker/" + cfg.Version,
	}
	for _, ws := range cfg.Workspaces {
		api := papermap.NewClient(ws, options)
		w.workspaces[ws.ID] = &workspace{ws, api, newGate(api.Probe, w.admission, log.With("workspace_id", ws.ID))}
	}
	w.main = bus.MainConsumer(w.cfg.Concurrency, cfg.Grace)
	w.main.Admit, w.main.Handle = w.admit, w.handle
	w.access = bus.AccessConsumer(accessSlots, cfg.Grace)
	w.access.Handle = w.handle
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
	stop := context.AfterFunc(ctx, func() { w.draining.Store(true) })
	defer stop()

	// The gates and the relay serve the consumers, so they stop after them.
	support, stopSupport := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSupport()
	var supporters sync.WaitGroup
	for _, ws := range w.workspaces {
		supporters.Go(func() { ws.gate.run(support) })
	}
	supporters.Go(func() { w.relay(support) })

	var consumers sync.WaitGroup
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
	switch data := e.Data.(type) {
	case events.TenantCreated:
		return w.provision(ctx, e, data)
	case events.TenantChange:
		return w.change(ctx, e, data)
	case events.UsageSync:
		return &events.Permanent{Code: "NOT_SUPPORTED", Err: errors.New("this version of the worker does not sync usage: replay the event with one that does")}
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
	return s
}
