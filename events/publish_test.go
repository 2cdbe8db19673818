package events

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"papermap-worker/events/embedded"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

const anyDashboard = `{"tenant_id":"a","workspace_id":"w","dashboard_id":"d","title":"t"}`

// While the stream is away, a plain subscription of somebody's is enough for the server not to say so.
func TestPublishAllRecoversFromMissingAcknowledgements(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		if _, err := b.nc.Subscribe("papermap.events.>", func(*nats.Msg) {}); err != nil {
			t.Fatal(err)
		}
		if err := b.js.DeleteStream(t.Context(), b.o.Stream); err != nil {
			t.Fatal(err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		list := make([]Outgoing, 4001) // more than may wait for their acknowledgements
		for i := range list {
			list[i] = Outgoing{ID: fmt.Sprint(i), Type: TypeDashboardCreated, Data: []byte(anyDashboard)}
		}
		b.PublishAll(ended, list)
		if err := b.EnsureStreams(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, "an event is published", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			return b.PublishAll(ctx, []Outgoing{{ID: "after", Type: TypeDashboardCreated,
				Data: []byte(anyDashboard)}})[0] == nil
		})
		if took := time.Since(began); took > publishWait+5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestPublishAllReportsTooLargeEvents(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		errs := b.PublishAll(t.Context(), []Outgoing{
			{ID: "1", Type: TypeDashboardCreated, Data: make([]byte, b.nc.MaxPayload())}, // and its headers
			{ID: "2", Type: TypeDashboardCreated, Data: []byte(anyDashboard)},
		})
		if !errors.Is(errs[0], ErrTooLarge) || errs[1] != nil {
			t.Errorf("%v, %v", errs[0], errs[1])
		}
		stream, err := b.js.Stream(t.Context(), b.o.Stream)
		if err != nil {
			t.Fatal(err)
		}
		config := stream.CachedInfo().Config
		config.MaxMsgSize = 1000
		if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if errs := b.PublishAll(t.Context(), []Outgoing{{ID: "3", Type: TypeDashboardCreated,
			Data: make([]byte, 2000)}}); !errors.Is(errs[0], ErrTooLarge) {
			t.Errorf("for the stream: %v", errs[0])
		}
	})
}

// The caller has been told of the failure, so the event must not come after it.
func TestPublishThatFailedWithoutAConnectionIsNotMadeUpFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server, err := embedded.Start(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	b := connectBus(t, Options{URL: server.URL(), Wait: true})
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	eventually(t, "the loss is noticed", func() bool { return b.Connected() != nil })
	_, err = b.Publish(t.Context(), createdEvent("a"))
	if err == nil || !strings.Contains(err.Error(), "no connection to NATS") {
		t.Errorf("Publish: %v", err)
	}
	if err := b.PublishAll(t.Context(), []Outgoing{createdEvent("b")})[0]; err == nil {
		t.Error("PublishAll reported no failure")
	}
	if server, err = embedded.Start(dir, port); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is connected again", func() bool { return b.Connected() == nil })
	publish(t, b, createdEvent("c"))
	stream, err := b.js.Stream(t.Context(), b.o.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d events are stored, want the one that was not reported as failed", n)
	}
}
