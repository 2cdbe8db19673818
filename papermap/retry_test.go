package papermap

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
)

// read is a call that may be tried again after any failure.
var read = request{route: "usage", method: http.MethodGet, path: "/", maxBody: maxUsageBody}

func TestCallRetriesOnlyWhatWasNotProcessedAndWithinItsBudget(t *testing.T) {
	for _, row := range []struct {
		name            string
		reads           bool          // else it creates
		firstWait, left time.Duration // left: until the context's deadline; 0 means none
		retryAfter      string
		status          int // of the first two answers, then 200
		want            Class
		requests        int64
	}{
		{"a read", true, firstRetryWait, 0, "", 500, "", 3},
		{"wait longer than the budget", true, time.Hour, 0, "", 500, Retryable, 1},
		{"wait longer than the context", true, 2 * time.Second, 700 * time.Millisecond, "", 500, Retryable,
			1},
		{"deferral without a time", false, firstRetryWait, 0, "", 429, Retryable, 1},
		{"deferral for a second", false, firstRetryWait, 0, "1", 503, Retryable, 1},
		{"deferral of a read", true, firstRetryWait, 0, "1", 429, Retryable, 1},
		{"a server that is not the API's", false, firstRetryWait, 0, "", 421, "", 3},
		{"too early", false, firstRetryWait, 0, "", 425, "", 3},
		{"announced close", false, firstRetryWait, 0, "", 408, Unknown, 1},
		{"quota", false, firstRetryWait, 0, "", 402, Quota, 1},
		{"unknown", false, firstRetryWait, 0, "", 500, Unknown, 1},
		{"credentials", false, firstRetryWait, 0, "", 401, Credentials, 1},
		{"configuration", false, firstRetryWait, 0, "", 404, Configuration, 1},
		{"refused", false, firstRetryWait, 0, "", 400, Refused, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			answers := 0
			dial, seen := servePiped(t, func(w http.ResponseWriter, r *http.Request) {
				if answers++; answers > 2 {
					_, _ = io.WriteString(w, created)
					return
				}
				if row.retryAfter != "" {
					w.Header().Set("Retry-After", row.retryAfter)
				}
				w.WriteHeader(row.status)
			})
			c := newTestClient(t, "http://papermap.test", ClientOptions{Dial: dial})
			c.firstWait = row.firstWait
			ctx := t.Context()
			if row.left > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, row.left)
				defer cancel()
			}
			start := time.Now()
			var err error
			if row.reads {
				if failed := c.call(ctx, read); failed != nil {
					err = failed
				}
			} else {
				_, err = c.CreateDashboard(ctx, anyDashboard)
			}
			took := time.Since(start)
			if classOf(t, err) != row.want || seen.Load() != row.requests || took > 800*time.Millisecond ||
				row.requests == 1 && took != 0 {
				t.Errorf("%s: %v after %d requests and %v, want %q after %d",
					row.name, err, seen.Load(), took, row.want, row.requests)
			}
			answers = 0
			seen.Store(0)
			if err := c.Probe(t.Context()); seen.Load() != 1 {
				t.Errorf("%s: probe was tried %d times: %v", row.name, seen.Load(), err)
			}
		})
	}
}

func TestCallWaitsBeforeARetryAndSignsItAfresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var untils []string
		var times []time.Time
		dial, _ := servePiped(t, func(w http.ResponseWriter, r *http.Request) {
			times = append(times, time.Now())
			untils = append(untils, r.Header.Get("X-Valid-Until"))
			until, _ := strconv.ParseInt(r.Header.Get("X-Valid-Until"), 10, 64)
			if r.Header.Get("X-Signature") != Sign(NewSecret("sk_canary_secret"), "ws-1", until) {
				t.Errorf("request %d has a wrong signature", len(times))
			}
			if len(times) == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		var ticks int64
		now := func() time.Time { ticks++; return time.Unix(1735689600+ticks, 0) }
		c := newTestClient(t, "http://papermap.test", ClientOptions{Dial: dial, Now: now})
		c.firstWait = firstRetryWait
		if err := c.call(t.Context(), read); err != nil {
			t.Fatal(err)
		}
		if len(times) != 2 || untils[0] == untils[1] {
			t.Fatalf("requests at %v, valid until %v", times, untils)
		}
		if wait := times[1].Sub(times[0]); wait < firstRetryWait/2 || wait > firstRetryWait*3/2 {
			t.Errorf("waited %v", wait)
		}
	})
}

func TestCallStopsWaitingWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, seen := servePiped(t, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "broken", http.StatusBadGateway)
		})
		ctx, cancel := context.WithCancel(t.Context())
		answered := func(string, int, time.Duration) { cancel() }
		c := newTestClient(t, "http://papermap.test", ClientOptions{Dial: dial, Observe: answered})
		c.firstWait = 1900 * time.Millisecond // give or take half of it, and so within the budget
		start := time.Now()
		err := c.call(ctx, read)
		if err == nil || err.Status != 502 || seen.Load() != 1 || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestRateLimitSendsNothingAndIsADeferral(t *testing.T) {
	address, seen := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_,
			_ = io.WriteString(w, created)
	})
	shared := rate.NewLimiter(rate.Every(time.Hour), 1)
	if err := newTestClient(t, address, ClientOptions{Limiter: shared}).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := newTestClient(t, address, ClientOptions{Limiter: shared}).CreateDashboard(t.Context(),
		anyDashboard)
	e := failed(t, err)
	if e == nil || e.Class != Retryable || !e.Deferred || e.RetryAfter != time.Second || seen.Load() != 1 {
		t.Errorf("%v, %d requests", err, seen.Load())
	}

	late := time.Now().Add(-time.Second)
	if err := newTestClient(t, address, ClientOptions{}).waitTurn(t.Context(), late); err == nil ||
		!err.Deferred {
		t.Errorf("an attempt starts after the call's budget: %v", err)
	}

	broken, seen := serve(t, func(w http.ResponseWriter,
		_ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
	})
	c := newTestClient(t, broken, ClientOptions{Limiter: rate.NewLimiter(rate.Every(time.Hour), 1)})
	c.firstWait = time.Millisecond
	if err := c.call(t.Context(), read); err == nil || err.Status != 502 || seen.Load() != 1 {
		t.Errorf("a retry that gets no turn hides why it was needed: %v, %d requests", err, seen.Load())
	}
}
