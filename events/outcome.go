package events

import (
	"cmp"
	"math/rand/v2"
	"time"
)

// Permanent is an event that can never be handled: it becomes a dead letter within one delivery.
type Permanent struct {
	Code       string // machine-readable, e.g. INVALID_JSON
	Err        error  // what is wrong and what to do
	SideEffect string // what it may have done at Papermap: none (also when empty), maybe or done
	Attempts   int    // failures that counted
}

func (p *Permanent) Error() string { return p.Err.Error() }
func (p *Permanent) Unwrap() error { return p.Err }

func (p *Permanent) sideEffect() string { return cmp.Or(p.SideEffect, "none") }

// Retry is an event that is to be offered again, without blame: it waits for somebody, or for Papermap.
type Retry struct {
	After time.Duration
	Err   error // why
}

func (r *Retry) Error() string { return r.Err.Error() }
func (r *Retry) Unwrap() error { return r.Err }

// MaxDelay is the longest delay before another try that we choose ourselves. Events that waited for Papermap are all
// tried again this soon after it recovers.
const MaxDelay = 10 * time.Second

// Delay is how long an event that was delivered so many times waits before it is offered again: 1 s, doubled each
// time up to MaxDelay, give or take a fifth, so that events that failed together do not come back together.
func Delay(deliveries int) time.Duration {
	d := MaxDelay
	if deliveries < 5 {
		d = time.Second << max(0, deliveries-1)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
