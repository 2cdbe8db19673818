package worker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/papermap"
)

var (
	errDown        = &papermap.Error{Class: papermap.Unknown, Status: 500}
	errCredentials = &papermap.Error{Class: papermap.Credentials, Status: 401}
	errAddress     = &papermap.Error{Class: papermap.Configuration, Status: 404}
	errQuota       = &papermap.Error{Class: papermap.Quota, Status: 402}
	errUnreadable  = &papermap.Error{Class: papermap.Unknown, Status: 200, Unreadable: true}
	errRefused     = &papermap.Error{Class: papermap.Refused, Status: 400}
)

// testBreaker is a breaker whose probe fails while down is set, in a bubble of time.
type testBreaker struct {
	*breaker
	t       *testing.T
	began   time.Time
	down    atomic.Bool
	probes  []time.Duration // when, since the bubble began
	log     bytes.Buffer
	resumed chan struct{}
}

// withBreaker runs test with a breaker that runs.
func withBreaker(t *testing.T, test func(b *testBreaker)) {
	synctest.Test(t, func(t *testing.T) {
		b := &testBreaker{t: t, began: time.Now(), resumed: make(chan struct{}, 1)}
		b.breaker = newBreaker(func(context.Context) error {
			b.probes = append(b.probes, time.Since(b.began))
			if b.down.Load() {
				return errDown
			}
			return nil
		}, b.resumed, slog.New(slog.NewTextHandler(&b.log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			b.run(ctx)
		}()
		test(b)
		cancel()
		<-ran
	})
}

// calls makes one call after another with these results, all of which must be permitted.
func (b *testBreaker) calls(results ...error) {
	b.t.Helper()
	for i, err := range results {
		permit, refused := b.acquire()
		if refused != nil {
			b.t.Fatalf("call %d has no permit: %v", i, refused)
		}
		permit.done(err)
	}
}

// after lets time pass, until d since the bubble began, and everything happen that happens then.
func (b *testBreaker) after(d time.Duration) {
	time.Sleep(time.Until(b.began.Add(d))) // the bubble's time
	synctest.Wait()
}

func (b *testBreaker) permitted(want int) {
	b.t.Helper()
	if got := b.permits(64); got != want {
		b.t.Errorf("permits %d, want %d", got, want)
	}
	if pause, ok := b.current(); ok != (want != 64) || ok != (pause.Kind != "") {
		b.t.Errorf("the pause is %+v, %t", pause, ok)
	}
}

func times(n int, err error) []error {
	list := make([]error, n)
	for i := range list {
		list[i] = err
	}
	return list
}

func TestBreakerPausesAtOnceOnCredentialsAndConfiguration(t *testing.T) {
	for _, err := range []error{errCredentials, errAddress, errQuota} {
		withBreaker(t, func(b *testBreaker) {
			b.permitted(64)
			b.calls(err)
			b.permitted(0)
			if _, refused := b.acquire(); !errors.Is(refused, errPaused) {
				t.Errorf("acquire while paused: %v", refused)
			}
		})
	}
}

func TestBreakerPausesAfterConsecutiveFailuresOnly(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		for _, ok := range []error{nil, errRefused} { // a refusal is an answer of an API that works
			b.calls(times(maxFailures-1, errDown)...)
			b.calls(ok)
		}
		b.calls(times(maxFailures-1, errDown)...)
		b.permitted(64)
		b.calls(errors.New("any other error"))
		b.permitted(0)
	})
}

func TestBreakerIgnoresDeferrals(t *testing.T) {
	for _, status := range []int{0, 429, 503} { // 0: our own rate limit
		withBreaker(t, func(b *testBreaker) {
			deferral := &papermap.Error{
				Class: papermap.Retryable, Status: status, Deferred: true, RetryAfter: time.Second,
			}
			b.calls(times(10*maxFailures, deferral)...)
			b.permitted(64)
			b.calls(times(maxFailures-1, errDown)...)
			b.calls(deferral) // it is no success either
			b.calls(errDown)
			b.permitted(0)
			b.after(time.Second)
			b.calls(deferral) // the trial is free for the next one
			b.permitted(1)
			b.calls(nil)
			b.permitted(64)
		})
	}
}

func TestBreakerProbesWithGrowingDelaysUntilPapermapWorks(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		b.down.Store(true)
		b.calls(errCredentials)
		b.after(40 * time.Second)
		b.permitted(0)
		b.down.Store(false)
		b.after(45 * time.Second)
		b.permitted(1)
		b.after(time.Hour) // it probes no more
		var want []time.Duration
		for _, seconds := range []time.Duration{1, 3, 7, 15, 25, 35, 45} {
			want = append(want, seconds*time.Second)
		}
		if diff := cmp.Diff(want, b.probes); diff != "" {
			t.Errorf("probes (-want +got)\n%s", diff)
		}
	})
}

func TestBreakerPermitsOneTrialAfterAProbeAndResumesIfItSucceeds(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		b.calls(errCredentials)
		b.after(time.Second)
		b.permitted(1)
		<-b.resumed // whoever waits for admission hears of it
		unused, err := b.acquire()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.acquire(); !errors.Is(err, errPaused) {
			t.Errorf("a second one beside the trial: %v", err)
		}
		b.permitted(0)
		unused.cancel() // it was a copy, or waits: another may try
		<-b.resumed
		b.permitted(1)
		b.calls(nil)
		<-b.resumed
		b.permitted(64)
	})
}

func TestBreakerResumesWhenNoTrialComes(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		b.calls(errCredentials)
		b.after(time.Second)
		b.permitted(1)
		b.after(15 * time.Second)
		b.permitted(1)
		b.after(16 * time.Second)
		b.permitted(64)

		b.calls(errCredentials) // not while a trial is on its way
		b.after(17 * time.Second)
		permit, err := b.acquire()
		if err != nil {
			t.Fatal(err)
		}
		b.after(40 * time.Second)
		b.permitted(0)
		permit.done(errDown)
		b.permitted(0)
	})
}

func TestBreakerPausesAgainWhenTheTrialFailsAndLogsOnce(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		b.calls(errCredentials)
		b.after(time.Second)
		b.calls(errDown)
		b.permitted(0)
		b.after(2 * time.Second)
		b.permitted(0) // the next probe is later than the first was
		b.after(3 * time.Second)
		b.calls(errDown)
		b.after(7 * time.Second)
		b.calls(nil)
		b.permitted(64)
		paused := strings.Count(b.log.String(), "paused")
		again := strings.Count(b.log.String(), "available again")
		if paused != 1 || again != 1 {
			t.Errorf("logged %d pauses and %d ends:\n%s", paused, again, b.log.String())
		}
	})
}

func TestBreakerProbesSoonAtTheStartOfEachPause(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		b.down.Store(true)
		b.calls(errCredentials)
		b.after(40 * time.Second)
		b.down.Store(false)
		b.after(45 * time.Second)
		b.calls(nil)
		b.after(100 * time.Second)
		b.calls(errCredentials)
		b.after(101 * time.Second)
		b.permitted(1)
	})
}

func TestBreakerReservesTheTrialForUntriedTenants(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		wants := func(at time.Duration, want bool) {
			t.Helper()
			b.after(at)
			if got := b.prefersUntried(); got != want {
				t.Errorf("at %v: wants untried ones: %t", at, got)
			}
		}
		wants(0, false)
		b.calls(errCredentials)
		wants(time.Second-1, false)
		wants(time.Second, true)
		wants(time.Second+untriedFirst-1, true)
		wants(time.Second+untriedFirst, false) // there was none
		b.calls(nil)
		wants(20*time.Second, false)
		b.calls(errCredentials)
		wants(21*time.Second, true)
		b.calls(nil)
		wants(21*time.Second, false)
	})
}

func TestBreakerIgnoresCallsFromBeforeItsLastChange(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		before, err := b.acquire()
		if err != nil {
			t.Fatal(err)
		}
		b.calls(errCredentials)
		before.done(nil) // sent before the credentials were lost
		b.permitted(0)
		b.after(time.Second)
		before.done(errDown)
		before.cancel()
		b.permitted(1)
		b.calls(nil)
		for range maxFailures {
			before.done(errDown)
		}
		b.permitted(64)
	})
}

func TestBreakerStopsProbingWithItsContext(t *testing.T) {
	withBreaker(t, func(b *testBreaker) { // withBreaker waits for run
		b.down.Store(true)
		b.calls(errCredentials)
		b.after(10 * time.Second)
	})
}

// A read does not show that a quota is used up, or that creates get answers that name no dashboard.
func TestBreakerTriesCreatesAtGrowingIntervalsWhenAProbeCannotTell(t *testing.T) {
	for _, fails := range [][]error{{errQuota}, times(maxFailures, errUnreadable)} {
		withBreaker(t, func(b *testBreaker) {
			b.calls(fails...)
			last, trials := time.Duration(0), 0
			for at := time.Duration(0); at < 12*time.Hour; at += time.Second {
				b.after(at)
				if b.permits(64) == 0 {
					continue
				}
				b.calls(fails[0])
				wait := at - last
				if wait > trialMax+time.Second || at > time.Hour && wait < trialMax {
					t.Errorf("trial %d after %v", trials, wait)
				}
				last = at
				trials++
			}
			if trials < 45 || trials > 70 || len(b.probes) != 0 {
				t.Errorf("%d trials and %d probes in 12 hours", trials, len(b.probes))
			}
			b.after(13 * time.Hour)
			b.permitted(1) // until one comes, as nothing else shows that the pause is over
			b.calls(nil)
			b.permitted(64)
			if n := strings.Count(b.log.String(), "paused"); n != 1 {
				t.Errorf("logged %d pauses:\n%s", n, b.log.String())
			}
		})
	}
}

func TestBreakerShowsAQuotaThatATrialMeets(t *testing.T) {
	withBreaker(t, func(b *testBreaker) {
		b.calls(times(maxFailures, errDown)...)
		b.after(time.Second)
		b.calls(errQuota)
		if pause, _ := b.current(); pause.Kind != PauseQuota || b.pauseCount(PauseQuota) != 1 ||
			strings.Count(b.log.String(), "level=ERROR") != 2 {
			t.Errorf("%+v\n%s", pause, b.log.String())
		}
		b.after(3 * time.Second)
		b.calls(errDown) // and back: probes are of use again
		b.after(10 * time.Second)
		b.permitted(1)
		if pause, _ := b.current(); pause.Kind != PauseFailing || len(b.probes) == 0 {
			t.Errorf("%+v after %d probes", pause, len(b.probes))
		}
	})
}
