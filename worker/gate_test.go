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
	errRefused     = &papermap.Error{Class: papermap.Refused, Status: 400}
)

// testGate is a gate whose probe fails while down is set, in a bubble of time.
type testGate struct {
	*gate
	t      *testing.T
	began  time.Time
	down   atomic.Bool
	probes []time.Duration // when, since the bubble began
	log    bytes.Buffer
	rung   chan struct{}
}

// withGate runs test with a gate that runs.
func withGate(t *testing.T, test func(g *testGate)) {
	synctest.Test(t, func(t *testing.T) {
		g := &testGate{t: t, began: time.Now(), rung: make(chan struct{}, 1)}
		g.gate = newGate(func(context.Context) error {
			g.probes = append(g.probes, time.Since(g.began))
			if g.down.Load() {
				return errDown
			}
			return nil
		}, g.rung, slog.New(slog.NewTextHandler(&g.log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			g.run(ctx)
		}()
		test(g)
		cancel()
		<-ran
	})
}

// calls makes one call after another with these results, all of which must be let through.
func (g *testGate) calls(results ...error) {
	g.t.Helper()
	for i, err := range results {
		turn, refused := g.enter()
		if refused != nil {
			g.t.Fatalf("call %d was not let through: %v", i, refused)
		}
		g.leave(turn, err)
	}
}

// after lets time pass, until d since the bubble began, and everything happen that happens then.
func (g *testGate) after(d time.Duration) {
	time.Sleep(time.Until(g.began.Add(d))) // the bubble's time
	synctest.Wait()
}

func (g *testGate) admitted(want int) {
	g.t.Helper()
	if got := g.admits(64); got != want {
		g.t.Errorf("admits %d, want %d", got, want)
	}
	if open := g.paused() == ""; open != (want == 64) {
		g.t.Errorf("paused says %q", g.paused())
	}
}

func times(n int, err error) []error {
	list := make([]error, n)
	for i := range list {
		list[i] = err
	}
	return list
}

func TestGateShutsAtOnceOnCredentialsAndConfiguration(t *testing.T) {
	for _, err := range []error{errCredentials, errAddress} {
		withGate(t, func(g *testGate) {
			g.admitted(64)
			g.calls(err)
			g.admitted(0)
			if _, refused := g.enter(); !errors.Is(refused, errPaused) {
				t.Errorf("enter while shut: %v", refused)
			}
		})
	}
}

func TestGateShutsOnlyAfterFailuresInARow(t *testing.T) {
	withGate(t, func(g *testGate) {
		for _, ok := range []error{nil, errRefused} { // a refusal is an answer of an API that works
			g.calls(times(maxFailures-1, errDown)...)
			g.calls(ok)
		}
		g.calls(times(maxFailures-1, errDown)...)
		g.admitted(64)
		g.calls(errors.New("any other error"))
		g.admitted(0)
	})
}

func TestGateLearnsNothingFromADeferral(t *testing.T) {
	for _, status := range []int{0, 429, 503} { // 0: our own rate limit
		withGate(t, func(g *testGate) {
			deferral := &papermap.Error{Class: papermap.Retryable, Status: status, Deferred: true, RetryAfter: time.Second}
			g.calls(times(10*maxFailures, deferral)...)
			g.admitted(64)
			g.calls(times(maxFailures-1, errDown)...)
			g.calls(deferral) // it is no success either
			g.calls(errDown)
			g.admitted(0)
			g.after(time.Second)
			g.calls(deferral) // the trial is free for the next one
			g.admitted(1)
			g.calls(nil)
			g.admitted(64)
		})
	}
}

func TestGateProbesLessAndLessOftenUntilPapermapWorks(t *testing.T) {
	withGate(t, func(g *testGate) {
		g.down.Store(true)
		g.calls(errCredentials)
		g.after(40 * time.Second)
		g.admitted(0)
		g.down.Store(false)
		g.after(45 * time.Second)
		g.admitted(1)
		g.after(time.Hour) // it probes no more
		want := []time.Duration{1 * time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second, 25 * time.Second, 35 * time.Second, 45 * time.Second}
		if diff := cmp.Diff(want, g.probes); diff != "" {
			t.Errorf("probes (-want +got)\n%s", diff)
		}
	})
}

func TestGateLetsOneThroughAfterAProbeAndOpensIfItSucceeds(t *testing.T) {
	withGate(t, func(g *testGate) {
		g.calls(errCredentials)
		g.after(time.Second)
		g.admitted(1)
		<-g.rung // whoever waits for admission hears of it
		unused, err := g.enter()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter(); !errors.Is(err, errPaused) {
			t.Errorf("a second one beside the trial: %v", err)
		}
		g.admitted(0)
		g.unused(unused) // it was a copy, or waits: another may try
		<-g.rung
		g.admitted(1)
		g.calls(nil)
		<-g.rung
		g.admitted(64)
	})
}

func TestGateOpensByItselfWhenNothingComesToBeTried(t *testing.T) {
	withGate(t, func(g *testGate) {
		g.calls(errCredentials)
		g.after(time.Second)
		g.admitted(1)
		g.after(15 * time.Second)
		g.admitted(1)
		g.after(16 * time.Second)
		g.admitted(64)

		g.calls(errCredentials) // not while a trial is on its way
		g.after(17 * time.Second)
		turn, err := g.enter()
		if err != nil {
			t.Fatal(err)
		}
		g.after(40 * time.Second)
		g.admitted(0)
		g.leave(turn, errDown)
		g.admitted(0)
	})
}

func TestGateShutsAgainWhenTheTrialFailsAndSaysSoOnce(t *testing.T) {
	withGate(t, func(g *testGate) {
		g.calls(errCredentials)
		g.after(time.Second)
		g.calls(errDown)
		g.admitted(0)
		g.after(2 * time.Second)
		g.admitted(0) // the next probe is later than the first was
		g.after(3 * time.Second)
		g.calls(errDown)
		g.after(7 * time.Second)
		g.calls(nil)
		g.admitted(64)
		if paused, again := strings.Count(g.log.String(), "paused"), strings.Count(g.log.String(), "works again"); paused != 1 || again != 1 {
			t.Errorf("logged %d pauses and %d ends:\n%s", paused, again, g.log.String())
		}
	})
}

func TestGateBeginsEveryPauseWithAProbeSoon(t *testing.T) {
	withGate(t, func(g *testGate) {
		g.down.Store(true)
		g.calls(errCredentials)
		g.after(40 * time.Second)
		g.down.Store(false)
		g.after(45 * time.Second)
		g.calls(nil)
		g.after(100 * time.Second)
		g.calls(errCredentials)
		g.after(101 * time.Second)
		g.admitted(1)
	})
}

func TestGateKeepsTheTrialForTenantsThatNeverFailedForAWhile(t *testing.T) {
	withGate(t, func(g *testGate) {
		wants := func(at time.Duration, want bool) {
			t.Helper()
			g.after(at)
			if got := g.wantsUntried(); got != want {
				t.Errorf("at %v: wants untried ones: %t", at, got)
			}
		}
		wants(0, false)
		g.calls(errCredentials)
		wants(time.Second-1, false)
		wants(time.Second, true)
		wants(time.Second+untriedFirst-1, true)
		wants(time.Second+untriedFirst, false) // there was none
		g.calls(nil)
		wants(20*time.Second, false)
		g.calls(errCredentials)
		wants(21*time.Second, true)
		g.calls(nil)
		wants(21*time.Second, false)
	})
}

func TestGateForgetsCallsFromBeforeItsLastChange(t *testing.T) {
	withGate(t, func(g *testGate) {
		before, err := g.enter()
		if err != nil {
			t.Fatal(err)
		}
		g.calls(errCredentials)
		g.leave(before, nil) // sent before the credentials were lost
		g.admitted(0)
		g.after(time.Second)
		g.leave(before, errDown)
		g.unused(before)
		g.admitted(1)
		g.calls(nil)
		for range maxFailures {
			g.leave(before, errDown)
		}
		g.admitted(64)
	})
}

func TestGateStopsProbingWithItsContext(t *testing.T) {
	withGate(t, func(g *testGate) { // withGate waits for run
		g.down.Store(true)
		g.calls(errCredentials)
		g.after(10 * time.Second)
	})
}
