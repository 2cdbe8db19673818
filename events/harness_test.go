package events

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"papermap-worker/events/embedded"
	"papermap-worker/schema/schematest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startBus connects to a server of its own that has the streams.
func startBus(t *testing.T) *Bus {
	t.Helper()
	server, err := embedded.Start(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return connectBus(t, server.URL())
}

func connectBus(t *testing.T, address string) *Bus {
	t.Helper()
	bus, err := Connect(Options{
		URL: address, Subjects: Subjects{Prefix: "papermap"}, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1, MaxAge: time.Hour,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		schematest.CheckStream(t, bus.js)
		bus.Close(context.Background())
	})
	if err := bus.EnsureStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	return bus
}

// consume runs the consumer until the test ends.
func consume(t *testing.T, c *Consumer) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func publish(t *testing.T, b *Bus, e Outgoing) {
	t.Helper()
	if _, err := b.Publish(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

// eventually looks until ok says true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// pending is how many events the consumer has yet to acknowledge.
func pending(t *testing.T, b *Bus, durable string) int {
	t.Helper()
	c, err := b.js.Consumer(t.Context(), b.o.Stream, durable)
	if err != nil {
		return -1
	}
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.NumAckPending + int(info.NumPending)
}

func createdEvent(id string) Outgoing {
	return Outgoing{Type: TypeTenantCreated, Data: []byte(`{"tenant_id":"` + id + `","name":"x"}`)}
}

func deadLetters(t *testing.T, b *Bus) []DeadLetter {
	t.Helper()
	list, err := b.DeadLetters(t.Context(), DeadFilter{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
