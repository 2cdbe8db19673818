package worker_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// refusedWith fails the test unless err is a ServiceError of that status.
func refusedWith(t *testing.T, err error, status int) {
	t.Helper()
	var known *events.ServiceError
	if !errors.As(err, &known) || known.Status != status {
		t.Errorf("got %v, want status %d", err, status)
	}
}

// The host's clock is off, and a publisher's is 4 minutes ahead.
func TestOperatorsSuspensionIsInForceWhateverTheClocksSay(t *testing.T) {
	for _, skew := range []time.Duration{-time.Hour, 0, time.Hour} {
		subtest(t, skew.String(), options{Config: func(c *worker.Config) {
			c.Clock = func() time.Time { return time.Now().Add(skew) }
		}}, func(t *testing.T, w *world) {
			w.Create("t")
			w.Eventually(w.Are(repo.Active, "t"))
			ahead := time.Now().Add(4 * time.Minute)
			w.PublishAt(ahead, events.TypeTenantResumed, "t")
			w.Eventually(w.Handled)
			for _, step := range []struct {
				event string
				want  repo.Status
			}{
				{events.TypeTenantSuspended, repo.Suspended}, {events.TypeTenantResumed, repo.Active},
				{events.TypeTenantSuspended, repo.Suspended}, {events.TypeTenantDeleted, repo.Deleted},
			} {
				c, err := w.Workers[0].ChangeAccess(t.Context(), step.event, "t", "")
				if err != nil || !c.InForce || c.After.Status != step.want || w.Status("t") != step.want {
					t.Fatalf("%s: %+v, %v; the tenant is %s", step.event, c, err, w.Status("t"))
				}
				asked := w.Request("embed-token", object("tenant_id", "t"))
				if granted := workertest.Refusal(asked) == ""; granted != (step.want == repo.Active) {
					t.Errorf("after %s a token was granted: %t", step.event, granted)
				}
			}
		})
	}
}

func TestOperatorsActionWithoutNATSIsNeverPublished(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.Workers[0].Cut()
		for _, eventType := range []string{events.TypeTenantDeleted, events.TypeTenantSuspended} {
			began := time.Now()
			_, err := w.Workers[0].ChangeAccess(t.Context(), eventType, "t", "")
			refusedWith(t, err, 503)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the answer took %v", took)
			}
			time.Sleep(time.Second) // the client library learns of a cut connection
		}
		w.Workers[0].Restore()
		w.Eventually(workertest.That("ready", func() bool { return w.Workers[0].State().Ready }))
		time.Sleep(time.Minute)
		for _, stored := range w.Stored("PAPERMAP", "papermap.events.tenant.*") {
			if stored.Subject != "papermap.events.tenant.created" {
				t.Errorf("%s was published after the answer", stored.Subject)
			}
		}
	})
}

func TestOperatorsActionSaysWhenItIsNotInForce(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		stream, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)
		_, err = stream.PauseConsumer(t.Context(), workertest.AccessConsumer, time.Now().Add(time.Hour))
		w.Must(err)
		began := time.Now()
		c, err := w.Workers[0].ChangeAccess(t.Context(), events.TypeTenantSuspended, "t", "")
		if took := time.Since(began); err != nil || c.InForce || c.EventID == "" || took > 5*time.Second {
			t.Errorf("nobody handles it: %+v, %v after %v", c, err, took)
		}
		if _, err := stream.ResumeConsumer(t.Context(), workertest.AccessConsumer); err != nil {
			t.Fatal(err)
		}
		w.Eventually(w.Are(repo.Suspended, "t"))

		// NATS's clock was set back by an hour since the tenant's newest event.
		w.SQL.MustExec(fmt.Sprint("UPDATE tenant_dashboards SET resumed_event = ",
			time.Now().Add(time.Hour).UnixNano()))
		before := len(w.Stored("PAPERMAP", "papermap.events.tenant.suspended"))
		_, err = w.Workers[0].ChangeAccess(t.Context(), events.TypeTenantSuspended, "t", "")
		refusedWith(t, err, 409)
		if after := len(w.Stored("PAPERMAP", "papermap.events.tenant.suspended")); after != before {
			t.Error("an event was published that cannot have an effect")
		}
	})
}
