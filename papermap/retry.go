package papermap

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// RetryBudget bounds the retries inside a call: an attempt starts no later than this after the call
// began. The longest call lasts RetryBudget plus one ClientOptions.Timeout.
const RetryBudget = 3 * time.Second

// firstRetryWait is about how long a call waits before its second attempt.
const firstRetryWait = 200 * time.Millisecond

// newRetryWaits returns the waits between the attempts of one call: firstWait, then each 1.5 times
// the one before, all with ±50 % jitter. From 200 ms that makes about six attempts in RetryBudget.
// Longer outages are left to the caller, who can release a worker's slot.
func newRetryWaits(firstWait time.Duration) backoff.BackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstWait),
		backoff.WithMultiplier(1.5),
		backoff.WithRandomizationFactor(0.5),
		backoff.WithMaxElapsedTime(0)) // call stops by itself
}

// call sends r, and retries while it provably was not processed and RetryBudget allows. A deferral
// ends the call, because the caller has to wait. After TOKEN_EXPIRED the request is signed again
// once, at once, by the server's clock.
func (c *Client) call(ctx context.Context, r request) *Error {
	startBy := time.Now().Add(RetryBudget)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(startBy) {
		startBy = deadline
	}
	waits := newRetryWaits(c.firstWait)
	corrected := false
	var last *Error
	for {
		if err := c.waitTurn(ctx, startBy); err != nil {
			if last != nil {
				return last // the failure that needed the retry is the better reason
			}
			return err
		}
		last = c.attempt(ctx, r)
		switch {
		case last == nil:
			return nil
		case last.Status == http.StatusUnauthorized && last.Code == "TOKEN_EXPIRED":
			c.correctClock(last, corrected)
			if corrected {
				return last
			}
			corrected = true
			continue
		case last.Class != Retryable || last.Deferred || r.once:
			return last
		}
		wait := waits.NextBackOff()
		if time.Now().Add(wait).After(startBy) {
			return last
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return last
		}
	}
}

// attempt sends r once, with its span and its observation.
func (c *Client) attempt(ctx context.Context, r request) *Error {
	start := time.Now()
	ctx, span := c.startSpan(ctx, r)
	failed := c.send(ctx, r)
	endSpan(span, failed)
	if c.o.Observe != nil {
		status := http.StatusOK
		if failed != nil {
			status = failed.Status
		}
		c.o.Observe(r.route, status, time.Since(start))
	}
	return failed
}

// waitTurn waits for the process's rate limiter. An attempt that cannot start by startBy is a
// deferral, not a failure of the API.
func (c *Client) waitTurn(ctx context.Context, startBy time.Time) *Error {
	deferred := &Error{
		Class: Retryable, Deferred: true, RetryAfter: time.Second,
		Message: "nothing was sent: no turn in time",
	}
	if c.o.Limiter != nil {
		turn, cancel := context.WithDeadline(ctx, startBy)
		defer cancel()
		if err := c.o.Limiter.Wait(turn); err != nil {
			deferred.Message = "nothing was sent: our own rate limit: " + err.Error()
			return deferred
		}
	}
	if time.Now().After(startBy) {
		return deferred
	}
	return nil
}

// correctClock makes the client sign by the server's clock from now on. failed is a TOKEN_EXPIRED:
// it becomes retryable, or, when the corrected signature expired too, Credentials with a hint about
// the clock.
func (c *Client) correctClock(failed *Error, corrected bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.correcting = !c.clock.latest.at.IsZero()
	switch {
	case !corrected:
		failed.Class = Retryable
	case c.correcting:
		skew := c.clock.latest.skew().Round(time.Second)
		failed.Message = fmt.Sprintf("expired by the server's clock, too, %v off: set the host's clock", skew)
	default:
		failed.Message = "expired at once, and the server sends no Date: set the host's clock"
	}
}
