package worker

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/repo"
)

// newTestRelay makes a relay with a database, and a NATS server with the streams.
func newTestRelay(t *testing.T) *relay {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	server, err := embedded.Start(t.TempDir(), 0)
	must(err)
	t.Cleanup(server.Close)
	log := slog.New(slog.DiscardHandler)
	bus, err := events.Connect(events.Options{
		URL: server.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP",
		ManageStreams: true, Replicas: 1, MaxAge: time.Hour,
	}, log)
	must(err)
	t.Cleanup(func() { bus.Close(context.Background()) })
	must(bus.EnsureStreams(t.Context()))
	db, err := repo.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "papermap.db"))
	must(err)
	t.Cleanup(func() { _ = db.Close() })
	_, err = db.Migrate(t.Context())
	must(err)
	return newRelay(db, bus, log, newSpanByEvent())
}

// A relay that slept between reading and publishing has rows in hand that others have published.
func TestRelayThatSleptPublishesNothing(t *testing.T) {
	r := newTestRelay(t)
	c, err := r.db.Begin(t.Context(), repo.Created{
		TenantID: "a", WorkspaceID: "w", EventID: "e", EventTime: time.Now(), Message: "1",
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.db.Finish(t.Context(), c, "d", 200, DashboardCreatedEvent); err != nil {
		t.Fatal(err)
	}
	for name, until := range map[string]time.Time{
		"by the monotonic clock": time.Now().Add(relayMargin - time.Millisecond),
		// A host that slept has a wall clock that is ahead of what the monotonic one says.
		"by the wall clock": time.Now().Add(relayMargin - time.Millisecond).Round(0),
	} {
		r.until = until
		if _, err := r.publishBatch(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stored := func() (n int) {
		t.Helper()
		err := r.bus.ScanSince(t.Context(), time.Time{}, func(events.StoredEvent) error {
			n++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := stored(); n != 0 {
		t.Errorf("%d events were published after the lease had ended", n)
	}
	r.until = time.Now().Add(relayLease)
	if _, err := r.publishBatch(t.Context()); err != nil || stored() != 1 {
		t.Errorf("with a lease: %d events, %v, want 1", stored(), err)
	}
}
