package events

import (
	"context"
	"math/rand/v2"
	"time"
)

// Permanent is the error of an event that can never be handled. The consumer loop stores the event
// as a dead letter on this delivery.
type Permanent struct {
	Code       string // machine-readable, such as INVALID_JSON
	Err        error  // what is wrong and what to do about it
	SideEffect string // effect at Papermap: none (also when empty), maybe or done
	Attempts   int    // failures that counted towards the limit
}

func (p *Permanent) Error() string { return p.Err.Error() }
func (p *Permanent) Unwrap() error { return p.Err }

// Retry is the error of an event to be redelivered. It is not a failure of the event: it waits for
// another worker, for a person, or for Papermap.
type Retry struct {
	After time.Duration
	Err   error // why
}

func (r *Retry) Error() string { return r.Err.Error() }
func (r *Retry) Unwrap() error { return r.Err }

// Backoff is a policy of growing delays: Base, doubled after each failure up to Max, plus or minus
// a fifth, so that events that failed together do not all come back together.
//
//	backoff := events.Backoff{Base: time.Second, Max: 10 * time.Second}
//	for failures := 1; probe() != nil; failures++ {
//		events.Sleep(ctx, backoff.Delay(failures))
//	}
type Backoff struct{ Base, Max time.Duration }

// Delay returns the delay after the given number of consecutive failures, which is at least one.
func (b Backoff) Delay(failures int) time.Duration {
	d := b.Base
	for ; failures > 1 && d < b.Max; failures-- {
		d *= 2
	}
	return time.Duration(float64(min(d, b.Max)) * (0.8 + 0.4*rand.Float64()))
}

// MaxDelay is the longest redelivery delay that the worker chooses itself. After Papermap recovers,
// all events that waited for it are retried within this time.
const MaxDelay = 10 * time.Second

// Delay returns how long an event waits before its next delivery, after the given number of
// deliveries. BackOff of a JetStream consumer cannot do this: a negative acknowledgement ignores
// it, and it distorts the delay of one that has a delay.
func Delay(deliveries int) time.Duration {
	return Backoff{Base: time.Second, Max: MaxDelay}.Delay(deliveries)
}

// Sleep waits for d and returns true, or false as soon as ctx ends.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
