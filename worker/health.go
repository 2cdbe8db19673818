package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// Finding is the result of one check of NATS, the database or Papermap. Readiness and doctor judge
// by the same checks: what doctor calls fatal about NATS or the database keeps `/readyz` at 503, in
// the same words.
type Finding = events.Finding

const databaseCheck = "database" // the name of its findings

// CheckDatabase checks that the tables belong to this program, can be read, and accept writes.
// migrate means that serve would migrate them. It returns nothing if all is well.
func CheckDatabase(ctx context.Context, db *repo.DB, migrate bool) []Finding {
	const check = databaseCheck
	switch err := db.CheckSchema(ctx); {
	case errors.Is(err, repo.ErrSchemaBehind) && migrate:
		return []Finding{{Check: check, Found: "it is behind this program: serve migrates it"}}
	case errors.Is(err, repo.ErrSchemaBehind):
		fix := "run `papermap-worker migrate`, or set DATABASE_MIGRATE=true"
		return []Finding{{Check: check, Found: err.Error(), Fix: fix, Fatal: true}}
	case errors.Is(err, repo.ErrSchemaNewer):
		return []Finding{{Check: check, Found: err.Error(), Fix: "run the newer program", Fatal: true}}
	case err != nil:
		return []Finding{DatabaseFinding(err)}
	}
	return checkUsable(ctx, db)
}

func checkUsable(ctx context.Context, db *repo.DB) []Finding {
	if err := db.Check(ctx); err != nil {
		return []Finding{DatabaseFinding(err)}
	}
	return nil
}

// DatabaseFinding says what to do about an error of the database.
func DatabaseFinding(err error) Finding {
	fix := "is the database up, is its disk full or read-only, and can the user read and write the tables?"
	if errors.Is(err, repo.ErrFileGone) {
		fix = "stop the worker, put the right file in its place, start it, and run " +
			"`papermap-worker replay --since` a time before this"
	}
	return Finding{Check: databaseCheck, Found: err.Error(), Fix: fix, Fatal: true}
}

// CheckPapermap reads one row of usage with the workspace's API key. That checks the address, the
// credentials and the clock, and changes nothing. check names the finding.
func CheckPapermap(ctx context.Context, check string, client *papermap.Client) []Finding {
	list := []Finding{{Check: check, Found: "it answers, and accepts the key"}}
	if err := client.Probe(ctx); err != nil {
		list[0] = papermapFinding(check, err)
	}
	if skew, known := client.ClockSkew(); known {
		list = append(list, checkSkew(skew))
	}
	return list
}

// papermapFinding says what to do about a request that failed.
func papermapFinding(check string, err error) Finding {
	if api, ok := errors.AsType[*papermap.Error](err); ok && api.Deferred {
		return Finding{Check: check, Found: err.Error(), Fix: "try again later; the worker waits, too"}
	}
	t := troubleOf(err)
	return Finding{Check: check, Found: fmt.Sprintf("%s: %v", t.found, err), Fix: t.fix, Fatal: true}
}

// checkSkew judges how far the host's clock is from Papermap's.
func checkSkew(skew time.Duration) Finding {
	found := fmt.Sprintf("the host's clock is %v off Papermap's", skew.Abs().Round(time.Second))
	switch {
	case skew.Abs() > MaxClockSkew:
		fix := "set it; no tokens are minted until then"
		return Finding{Check: "clock", Found: found, Fix: fix, Fatal: true}
	case skew.Abs() > WarnClockSkew:
		fix := fmt.Sprintf("set it; beyond %v no tokens are minted", MaxClockSkew)
		return Finding{Check: "clock", Found: found, Fix: fix}
	}
	return Finding{Check: "clock", Found: "it agrees with Papermap's"}
}

// trouble is a problem that keeps the worker from using Papermap's API. The breaker pauses because
// of it, and doctor reports it.
type trouble struct{ kind, found, fix string }

// pauseFound describes each kind of trouble in words that strangers may read.
var pauseFound = map[string]string{
	PauseCredentials:   "Papermap refuses the credentials",
	PauseConfiguration: "Papermap's API is not at PAPERMAP_API_URL",
	PauseQuota:         "Papermap says that the workspace's quota is used up",
	PauseFailing:       "calls to Papermap keep failing",
}

// troubleOf returns what a failed call to the API shows.
func troubleOf(err error) trouble {
	var api *papermap.Error
	errors.As(err, &api)
	kind, fix := PauseFailing, "can this host reach the address? The worker waits, and tokens still work"
	switch {
	case api != nil && api.Class == papermap.Credentials:
		kind, fix = PauseCredentials,
			"check PAPERMAP_API_KEY_ID, PAPERMAP_SECRET_KEY and PAPERMAP_WORKSPACE_ID"
	case api != nil && api.Class == papermap.Configuration:
		kind, fix = PauseConfiguration, "correct the address; or check the workspace id"
	case api != nil && api.Class == papermap.Quota:
		kind, fix = PauseQuota,
			"raise the quota at Papermap; the worker tries one dashboard every 15 minutes at least"
	case api != nil && api.Unreadable:
		return trouble{PauseFailing, "Papermap's answers name no dashboard",
			"each create may have made one: see `papermap-worker attempts list`; is PAPERMAP_API_URL right?"}
	}
	return trouble{kind, pauseFound[kind], fix}
}

const (
	healthEvery   = 10 * time.Second // between checks of NATS and the database
	healthPoll    = time.Second      // between checks for a lost or new connection
	healthTimeout = 5 * time.Second  // of one check
)

// health checks NATS and the database in the background, every 10 s and at once when a connection
// or the consumers go up or down. A request for readiness therefore runs no checks itself.
type health struct {
	bus       *events.Bus
	db        *repo.DB
	log       *slog.Logger
	consuming func() bool
	last      atomic.Pointer[[]Finding] // nil before the first check
	fatal     map[string]Finding        // of the last check, by what was looked at
}

// run checks until ctx ends.
func (h *health) run(ctx context.Context) {
	var checked time.Time
	var before, now [2]bool
	for {
		now = [2]bool{h.bus.Connected() == nil, h.consuming()}
		if now != before || time.Since(checked) >= healthEvery {
			h.check(ctx)
			before, checked = now, time.Now()
		}
		if !events.Sleep(ctx, healthPoll) {
			return
		}
	}
}

func (h *health) check(ctx context.Context) {
	checking, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	list := CheckDatabase(checking, h.db, false)
	connected := h.bus.Connected() == nil
	if connected {
		list = append(list, h.bus.CheckTopology(checking)...)
	}
	if ctx.Err() != nil {
		return // the result of an interrupted check does not count
	}
	h.last.Store(&list)
	h.report(list, connected)
}

// report logs a fatal finding when it first appears, and when it is resolved.
func (h *health) report(list []Finding, connected bool) {
	fatal := map[string]Finding{}
	for _, f := range list {
		if f.Fatal {
			fatal[f.Check] = f
		}
	}
	for check, f := range h.fatal {
		_, still := fatal[check]
		switch {
		case still:
		case !connected && check != databaseCheck: // it was not checked
			fatal[check] = f
		default:
			h.log.Info("problem resolved", "check", check)
		}
	}
	for check, f := range fatal {
		if _, known := h.fatal[check]; !known {
			h.log.Error("worker is not ready", "check", check, "found", f.Found, "do", f.Fix)
		}
	}
	h.fatal = fatal
}

// reasons returns the fatal findings of the last check.
func (h *health) reasons() (reasons []string) {
	last := h.last.Load()
	if last == nil {
		return []string{"first health check is still running"}
	}
	for _, f := range *last {
		if f.Fatal {
			reasons = append(reasons, f.String())
		}
	}
	return reasons
}

// State says whether the worker is ready, for people and probes.
type State struct {
	Ready     bool     `json:"ready"`
	Consuming string   `json:"consuming"`         // yes, paused (because of Papermap) or no
	Reasons   []string `json:"reasons,omitempty"` // what is wrong, or why it is paused
}

// State returns the result of the last checks and runs none itself. A pause because of Papermap
// leaves the worker ready: it still mints tokens and handles suspensions. The reason names only the
// kind of pause, because strangers read it. The log and the console have Papermap's own words.
func (w *Worker) State() State {
	s := State{Ready: true, Consuming: "yes"}
	notReady := func(reason string) {
		s.Ready, s.Consuming = false, "no"
		s.Reasons = append(s.Reasons, reason)
	}
	if w.draining.Load() {
		notReady("shutting down")
	}
	if err := w.bus.Connected(); err != nil {
		notReady(err.Error())
	} else if !w.main.Healthy() || !w.access.Healthy() {
		notReady("consumers are not running; see the log")
	} else if err := w.bus.Answering(); err != nil { // events go on
		s.Ready, s.Reasons = false, append(s.Reasons, "requests are not answered: "+err.Error())
	}
	for _, reason := range w.health.reasons() {
		notReady(reason)
	}
	for _, ws := range w.workspaces.list {
		pause, ok := ws.breaker.current()
		if !ok {
			continue
		}
		if s.Ready {
			s.Consuming = "paused"
		}
		s.Reasons = append(s.Reasons, fmt.Sprintf("workspace %s is paused: %s", ws.ID,
			cmp.Or(pauseFound[pause.Kind], "creating dashboards is not possible")))
	}
	for _, ws := range w.workspaces.list {
		if skew, known := ws.api.ClockSkew(); known && skew.Abs() > WarnClockSkew {
			s.Reasons = append(s.Reasons, fmt.Sprintf("workspace %s: %s", ws.ID, checkSkew(skew)))
		}
	}
	return s
}
