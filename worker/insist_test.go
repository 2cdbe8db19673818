package worker

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

func TestAKnownOutcomeIsWrittenHoweverLongTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		w := &Worker{log: slog.New(slog.NewTextHandler(&log, nil))}
		began, last := time.Now(), time.Now()
		err := w.insist(t.Context(), func(context.Context) error {
			if wait := time.Since(last); wait > 2*insistEvery {
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
			t.Errorf("said %d times:\n%s", n, log.String())
		}
	})
}

func TestAKnownOutcomeIsTriedToBeWrittenUntilTheGraceIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &Worker{log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began, away := time.Now(), errors.New("away")
		err := w.insist(ctx, func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Error("a try is cut off by the end of the grace")
			}
			return away
		})
		if took := time.Since(began); err == nil || took != time.Minute {
			t.Errorf("%v after %v", err, took)
		}
		tries := 0
		if err := w.insist(ctx, func(context.Context) error { tries++; return away }); err == nil || tries != 1 {
			t.Errorf("after the grace: %v after %d tries", err, tries)
		}
	})
}

// A commit that took longer than the lease, or a process that slept, is no failure of Papermap.
func TestALeaseThatEndedBeforeTheRequestIsADeferral(t *testing.T) {
	w := &Worker{log: slog.New(slog.DiscardHandler)}
	claim := repo.Claim{Until: time.Now().Add(leaseMargin)}
	_, cause := w.call(t.Context(), claim, nil)
	f, err := w.failure(t.Context(), events.Event{}, claim, cause, "")
	if err != nil || !f.Deferral || f.Result.Outcome != repo.NotAccepted {
		t.Errorf("%v is recorded as %+v, error %v", cause, f, err)
	}
	withGate(t, func(g *testGate) {
		g.calls(times(maxFailures, cause)...)
		g.admitted(64)
	})
}
