package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
)

// breaker is the circuit breaker of one workspace: it pauses the creation of dashboards while
// Papermap fails, so that events wait in the stream instead of failing one by one.
//
//	running --credentials, configuration, quota, or maxFailures in a row--> paused
//	paused  --a probe succeeds--> trial
//	trial   --the one create that it permits succeeds--> running
//	trial   --that create fails--> paused
//	trial   --no create comes for idleResume--> running
//
// A probe is a request that changes nothing. It cannot reveal some failures: a used-up quota, and
// answers that name no dashboard. Such a pause is "blind": there is no probe, the waits between
// trials grow to trialMax, and only a create ends the trial.
//
// Only calls that create dashboards are counted; usage and tokens neither need a permit nor report
// results. Each replica has its own breakers: an outage that one replica has noticed costs another
// at most maxFailures calls.
//
// A permit is the right to make one call:
//
//	permit, err := b.acquire()
//	if err != nil {
//		return err // paused
//	}
//	permit.done(create()) // or permit.cancel(), if nothing was sent
type breaker struct {
	probe   func(context.Context) error
	changed chan<- struct{} // signaled when more calls may be permitted
	tripped chan struct{}   // signaled when a pause begins, for run
	log     *slog.Logger

	mu         sync.Mutex
	state      breakerState
	pause      Pause          // the last one's kind and reason
	failures   int            // consecutive ones, while running
	trialTaken bool           // on trial: the one create is in flight
	pauses     map[string]int // total so far, by kind
	period     uint64         // counts changes of state, so that results of earlier calls are ignored
	blind      bool           // a probe cannot show that the pause may end
	wait       time.Duration  // before the next probe of this pause, or its next trial
	trialSince time.Time
}

type breakerState int

const (
	running breakerState = iota
	trial
	paused
)

// Pause says why no dashboards are created in a workspace at present.
type Pause struct {
	Kind   string // one of PauseKinds
	Reason string // with the last error
}

// Kinds of a pause.
const (
	PauseCredentials   = "credentials"   // Papermap refuses the API key: a person has to replace it
	PauseConfiguration = "configuration" // Papermap's API is not at PAPERMAP_API_URL
	PauseQuota         = "quota"         // the workspace's quota is used up: a person has to raise it
	PauseFailing       = "failing"       // timeouts, 5xx, no connection: it may pass by itself
)

var pauseKinds = []string{PauseCredentials, PauseConfiguration, PauseQuota, PauseFailing}

// maxFailures consecutive failures pause the workspace. If one call in six fails at random, that
// happens once in a million calls.
const maxFailures = 8

// Probes start after probeFirst and slow down to probeMax, which bounds how late a recovery is
// noticed.
const (
	probeFirst = time.Second
	probeMax   = 10 * time.Second
)

// trialMax is the longest wait between trials of a blind pause. Each may leave a dashboard that
// belongs to no tenant.
const trialMax = 15 * time.Minute

// untriedFirst is how long a trial is reserved for tenants that never failed. The server redelivers
// the events that failed before it delivers new ones: tenants that can only fail would use up every
// trial.
const untriedFirst = 3 * time.Second

// idleResume is how long a trial waits for a create. Other replicas may have done all the work.
const idleResume = 15 * time.Second

var errPaused = errors.New("the workspace is paused")

func newBreaker(probe func(context.Context) error, changed chan<- struct{}, log *slog.Logger) *breaker {
	return &breaker{
		probe: probe, changed: changed, tripped: make(chan struct{}, 1), pauses: map[string]int{}, log: log,
	}
}

// permits returns how many calls may start now, at most limit.
func (b *breaker) permits(limit int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.state == running:
		return limit
	case b.state == trial && !b.trialTaken:
		return 1
	}
	return 0
}

// current returns the present pause or trial. ok is false while the workspace runs.
func (b *breaker) current() (p Pause, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == running {
		return Pause{}, false
	}
	return b.pause, true
}

// pauseCount returns the number of pauses of a kind.
func (b *breaker) pauseCount(kind string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pauses[kind]
}

// prefersUntried reports whether tenants that failed before must let others go first.
func (b *breaker) prefersUntried() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == trial && time.Since(b.trialSince) < untriedFirst
}

// permit is the right to make one call. End it with done or cancel.
type permit struct {
	b      *breaker
	period uint64
}

// acquire asks for the right to make one call. Its error is errPaused, with the reason.
func (b *breaker) acquire() (permit, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == paused || b.state == trial && b.trialTaken {
		return permit{}, fmt.Errorf("%w: %s", errPaused, b.pause.Reason)
	}
	b.trialTaken = b.state == trial
	return permit{b, b.period}, nil
}

// cancel gives the permit back unused.
func (p permit) cancel() {
	b := p.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.period == b.period {
		b.trialTaken = false
		signal(b.changed)
	}
}

// done reports the result of the call. What an error means depends on its papermap.Class:
// credentials, configuration and quota pause at once, other failures after maxFailures. A refusal
// shows that the API works.
func (p permit) done(err error) {
	b := p.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.period != b.period {
		return // the call began before the last change of state
	}
	var api *papermap.Error
	switch {
	case err == nil || errors.As(err, &api) && api.Class == papermap.Refused:
		b.failures, b.trialTaken = 0, false
		if b.state == trial {
			b.setState(running)
			b.log.Info("Papermap is available again; resumed creating dashboards")
		}
		signal(b.changed)
	case api != nil && api.Deferred: // concerns this call alone
		b.trialTaken = false
		signal(b.changed)
	case troubleOf(err).kind != PauseFailing:
		b.trip(err)
	default:
		if b.failures++; b.failures >= maxFailures || b.state == trial {
			b.trip(err)
		}
	}
}

// trip pauses the workspace. A trial that fails continues its pause. That is neither counted nor
// logged again, unless a person has to fix a new cause.
func (b *breaker) trip(err error) {
	t := troubleOf(err)
	begins := b.state == running
	another := t.kind != b.pause.Kind && t.kind != PauseFailing
	b.pause = Pause{t.kind, fmt.Sprintf("%s: %s (%v)", t.found, t.fix, err)}
	var api *papermap.Error
	b.blind = errors.As(err, &api) && (api.Class == papermap.Quota || api.Unreadable)
	b.setState(paused)
	if begins {
		b.wait = probeFirst
	}
	if begins || another {
		b.pauses[t.kind]++
		b.log.Error("paused creating dashboards; events wait in the stream, tokens are still minted",
			"reason", t.found+": "+t.fix, "error", err)
	}
	signal(b.tripped)
}

func (b *breaker) setState(s breakerState) {
	b.state, b.failures, b.trialTaken = s, 0, false
	b.period++
}

// run probes during pauses, until ctx ends.
func (b *breaker) run(ctx context.Context) {
	for {
		select {
		case <-b.tripped:
		case <-ctx.Done():
			return
		}
		if !b.waitForTrial(ctx) {
			return
		}
		b.mu.Lock()
		b.setState(trial)
		b.pause.Reason = "trying one dashboard after a pause: " + b.pause.Reason
		b.trialSince = time.Now()
		period, blind := b.period, b.blind
		b.mu.Unlock()
		signal(b.changed)
		if !blind {
			time.AfterFunc(idleResume, func() { b.resumeIdle(period) })
		}
	}
}

// waitForTrial waits until a probe succeeds, or in a blind pause for a fixed time. It returns false
// if ctx ended first.
func (b *breaker) waitForTrial(ctx context.Context) bool {
	for {
		wait, blind := b.nextWait()
		if !events.Sleep(ctx, wait) {
			return false
		}
		if blind {
			return true
		}
		err := b.probe(ctx)
		var api *papermap.Error
		if err == nil || errors.As(err, &api) && api.Class == papermap.Quota { // which a create will show
			return true
		}
		b.log.Debug("Papermap is still unavailable", "error", err)
	}
}

// nextWait returns the wait before the next probe or, if the pause is blind, the next trial.
func (b *breaker) nextWait() (wait time.Duration, blind bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.blind {
		wait = b.wait
		b.wait = min(wait*3/2, trialMax)
	} else {
		wait = min(b.wait, probeMax)
		b.wait = min(2*wait, probeMax)
	}
	return wait, b.blind
}

// resumeIdle ends a trial for which no create arrived while Papermap answers.
func (b *breaker) resumeIdle(period uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case period != b.period || b.state != trial:
	case b.trialTaken: // it may yet be canceled
		time.AfterFunc(idleResume, func() { b.resumeIdle(period) })
	default:
		b.setState(running)
		b.log.Info("Papermap is available again; resumed creating dashboards")
		signal(b.changed)
	}
}

// signal wakes the receiver of a channel with a buffer of one, now or at its next receive.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
