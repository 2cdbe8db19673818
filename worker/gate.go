package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"papermap-worker/papermap"
)

// gate pauses the creation of dashboards in one workspace while Papermap cannot be worked with. Closed, it probes
// with a read that changes nothing; when that succeeds it lets one create through, and opens if that one succeeds.
type gate struct {
	probe   func(context.Context) error
	changed chan<- struct{} // rung when more may be admitted
	closed  chan struct{}   // rung when the gate closes
	log     *slog.Logger

	mu       sync.Mutex
	state    gateState
	reason   string
	kind     string         // of the reason, in a word
	failures int            // calls that failed in a row
	trial    bool           // while half open: one create is on its way
	pauses   map[string]int // so far, by kind
	turn     uint64         // grows at each change of state, so that calls from before do not count
	wait     time.Duration  // before the next probe of this pause
	halfway  time.Time      // when it was last set half open
}

type gateState int

const (
	open gateState = iota
	halfOpen
	shut
)

// maxFailures in a row close the gate. Random faults of one in six do so once in a million calls.
const maxFailures = 8

// Probes begin after probeFirst and slow down to probeMost, so that a recovered API is noticed within it.
const (
	probeFirst = time.Second
	probeMost  = 10 * time.Second
)

// untriedFirst is how long after a probe the trial is kept for tenants that never failed. The server offers the events
// that failed first, always: tenants that can only fail would take every trial and keep all others out.
const untriedFirst = 3 * time.Second

// idleOpens is how long after a probe the gate waits for something to try. Other replicas may have done all the work.
const idleOpens = 15 * time.Second

// errPaused means that the workspace is paused.
var errPaused = errors.New("the workspace is paused")

func newGate(probe func(context.Context) error, changed chan<- struct{}, log *slog.Logger) *gate {
	return &gate{probe: probe, changed: changed, closed: make(chan struct{}, 1), pauses: map[string]int{}, log: log}
}

// admits returns how many events may be fetched for the workspace, at most most.
func (g *gate) admits(most int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.state == open:
		return most
	case g.state == halfOpen && !g.trial:
		return 1
	}
	return 0
}

// paused returns why the gate is not open, or nothing.
func (g *gate) paused() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == open {
		return ""
	}
	return g.reason
}

// pauseKinds are the reasons of a pause, in a word.
var pauseKinds = []string{"credentials", "configuration", "failing"}

// counts says whether the gate is closed for a kind of reason, and how often it was.
func (g *gate) counts(kind string) (paused bool, pauses int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state != open && g.kind == kind, g.pauses[kind]
}

// wantsUntried says whether tenants that failed before are to let others go first.
func (g *gate) wantsUntried() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == halfOpen && time.Since(g.halfway) < untriedFirst
}

// enter asks to make one call. The caller must end it with leave or unused.
func (g *gate) enter() (turn uint64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == shut || g.state == halfOpen && g.trial {
		return 0, fmt.Errorf("%w: %s", errPaused, g.reason)
	}
	g.trial = g.state == halfOpen
	return g.turn, nil
}

// unused ends a call that was not made.
func (g *gate) unused(turn uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if turn == g.turn {
		g.trial = false
		ring(g.changed)
	}
}

// leave ends a call with its result.
func (g *gate) leave(turn uint64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if turn != g.turn {
		return // from before the last change
	}
	var e *papermap.Error
	switch {
	case err == nil || errors.As(err, &e) && e.Class == papermap.Refused: // the API works, whatever it thinks of this tenant
		g.failures, g.trial = 0, false
		if g.state == halfOpen {
			g.set(open, "")
			g.log.Info("Papermap works again; creating dashboards goes on")
		}
		ring(g.changed)
	case e != nil && e.Deferred: // this event is to come later; that says nothing of the others
		g.trial = false
		ring(g.changed)
	case e != nil && e.Class == papermap.Credentials:
		g.shut("credentials", "Papermap refuses the credentials: check PAPERMAP_API_KEY_ID, PAPERMAP_SECRET_KEY and PAPERMAP_WORKSPACE_ID", err)
	case e != nil && e.Class == papermap.Configuration:
		g.shut("configuration", "Papermap's API is not where PAPERMAP_API_URL says", err)
	default:
		if g.failures++; g.failures >= maxFailures || g.state == halfOpen {
			g.shut("failing", "calls to Papermap keep failing", err)
		}
	}
}

func (g *gate) shut(kind, reason string, err error) {
	again := g.state == halfOpen
	g.kind = kind
	g.set(shut, fmt.Sprintf("%s (%v)", reason, err))
	if !again { // else it is still the same pause, and said already
		g.wait = probeFirst
		g.pauses[kind]++
		g.log.Error("paused creating dashboards; events wait in the stream, tokens go on", "reason", reason, "error", err)
	}
	ring(g.closed)
}

func (g *gate) set(s gateState, reason string) {
	g.state, g.reason, g.failures, g.trial = s, reason, 0, false
	g.turn++
}

// run probes while the gate is closed, until ctx ends.
func (g *gate) run(ctx context.Context) {
	for {
		select {
		case <-g.closed:
		case <-ctx.Done():
			return
		}
		for {
			if !sleep(ctx, g.nextWait()) {
				return
			}
			err := g.probe(ctx)
			if err == nil {
				break
			}
			g.log.Debug("Papermap does not work yet", "error", err)
		}
		g.mu.Lock()
		g.set(halfOpen, "trying one dashboard after a pause: "+g.reason)
		g.halfway = time.Now()
		turn := g.turn
		g.mu.Unlock()
		ring(g.changed)
		time.AfterFunc(idleOpens, func() { g.openIdle(turn) })
	}
}

// openIdle opens the gate when nothing has come that could be tried, though Papermap answers.
func (g *gate) openIdle(turn uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if turn == g.turn && g.state == halfOpen && g.trial {
		time.AfterFunc(idleOpens, func() { g.openIdle(turn) }) // it may end as unused
	}
	if turn == g.turn && g.state == halfOpen && !g.trial {
		g.set(open, "")
		g.log.Info("Papermap answers again; creating dashboards goes on")
		ring(g.changed)
	}
}

func (g *gate) nextWait() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	wait := g.wait
	g.wait = min(2*wait, probeMost)
	return wait
}

// ring wakes the one that waits on the bell, now or at its next look.
func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
