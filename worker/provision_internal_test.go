package worker

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

func TestProvisionerRetriesUntilWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		p := &provisioner{unwritten: rate.NewLimiter(0, 1), log: slog.New(slog.NewTextHandler(&log, nil))}
		began, last := time.Now(), time.Now()
		err := p.retryUntilWritten(t.Context(), func(context.Context) error {
			if wait := time.Since(last); wait > 2*writeRetryMax {
				t.Errorf("no try for %v", wait)
			}
			if last = time.Now(); last.Sub(began) < time.Hour {
				return errors.New("away")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "cannot record"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
	})
}

func TestProvisionerStopsRetryingWhenTheGraceIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &provisioner{unwritten: rate.NewLimiter(0, 1), log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began, away := time.Now(), errors.New("away")
		err := p.retryUntilWritten(ctx, func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Error("a try is cut off by the end of the grace period")
			}
			return away
		})
		if took := time.Since(began); err == nil || took != time.Minute {
			t.Errorf("%v after %v", err, took)
		}
		tries := 0
		err = p.retryUntilWritten(ctx, func(context.Context) error { tries++; return away })
		if err == nil || tries != 1 {
			t.Errorf("after the grace: %v after %d tries", err, tries)
		}
	})
}

// A commit that took longer than the lease, or a host that slept, is not Papermap's failure.
func TestProvisionerDefersWhenTheLeaseEndedBeforeTheRequest(t *testing.T) {
	p := &provisioner{unwritten: rate.NewLimiter(0, 1), log: slog.New(slog.DiscardHandler)}
	claim := repo.Claim{Until: time.Now().Add(leaseMargin)}
	_, cause := (&attempt{provisioner: p, claim: claim}).call(t.Context())
	f := p.classify(t.Context(), events.Event{}, cause)
	if !f.Deferral || f.Result.Outcome != repo.OutcomeRefused {
		t.Errorf("%v is recorded as %+v", cause, f)
	}
	withBreaker(t, func(b *testBreaker) {
		b.calls(times(maxFailures, cause)...)
		b.permitted(64)
	})
}

func TestProvisionerDelaysTheRetryAfterAnUnknownOutcome(t *testing.T) {
	p := &provisioner{unwritten: rate.NewLimiter(0, 1), log: slog.New(slog.DiscardHandler)}
	f := p.classify(t.Context(), events.Event{Deliveries: 1}, unknownOutcome("timeout"))
	if f.RetryAfter < 3*time.Second || f.Result.Outcome != repo.OutcomeUnknown {
		t.Errorf("%+v, want a retry after 3 s at the earliest", f)
	}
}

// The exploration of package repo assumes these failures (its failureOf).
func TestClassifyIsWhatTheExplorationAssumes(t *testing.T) {
	type decides struct {
		outcome                   repo.Outcome
		permanent, hold, deferral bool
	}
	deferred := decides{outcome: repo.OutcomeRefused, deferral: true}
	for _, test := range []struct {
		cause error
		want  decides
	}{
		{&papermap.Error{Class: papermap.Refused}, decides{outcome: repo.OutcomeRefused, permanent: true}},
		{&papermap.Error{Class: papermap.Credentials}, deferred},
		{&papermap.Error{Class: papermap.Configuration}, deferred},
		{&papermap.Error{Class: papermap.Quota}, deferred},
		{&papermap.Error{Class: papermap.Retryable, Deferred: true}, deferred},
		{&papermap.Error{Class: papermap.Retryable}, decides{outcome: repo.OutcomeRefused}},
		{&papermap.Error{Class: papermap.Unknown}, decides{outcome: repo.OutcomeUnknown, hold: true}},
		{errors.New("no error of the API"), decides{outcome: repo.OutcomeUnknown, hold: true}},
	} {
		for _, hold := range []bool{true, false} {
			p := &provisioner{hold: hold, maxAttempts: 3}
			f := p.classify(t.Context(), events.Event{Deliveries: 1}, test.cause)
			want := test.want
			want.hold = want.hold && hold
			got := decides{f.Result.Outcome, f.Permanent, f.Hold, f.Deferral}
			if got != want || f.MaxFailures != 3 || f.RetryAfter <= 0 || f.Result.DashboardID != "" {
				t.Errorf("%+v is recorded as %+v", test.cause, f)
			}
		}
	}
}

func TestSideEffectFollowsTheAttempts(t *testing.T) {
	for outcome, want := range map[repo.Outcome]string{
		repo.OutcomeRefused: "none", repo.OutcomeSent: "maybe", repo.OutcomeUnknown: "maybe",
		repo.OutcomeCreated: "done", repo.OutcomeOrphaned: "done",
	} {
		attempts := []repo.Attempt{
			{Generation: 1, Outcome: repo.OutcomeRefused}, {Generation: 1, Outcome: outcome},
		}
		if got := sideEffect(attempts, 1); got != want {
			t.Errorf("%s: %q, want %q", outcome, got, want)
		}
		if got := sideEffect(attempts, 2); got != "none" {
			t.Errorf("%s, of another generation: %q", outcome, got)
		}
	}
}
