package events

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// scanned reads the whole stream and returns the tenants of its events.
func scanned(t *testing.T, b *Bus) (ids []string, err error) {
	t.Helper()
	err = b.ScanSince(t.Context(), time.Time{}, func(e StoredEvent) error {
		ids = append(ids, e.TenantID())
		return nil
	})
	return ids, err
}

// atMost ends a test's context after so many pulls: one that spins leaves the virtual clock where it is.
type atMost struct {
	nats.InProcessConnProvider
	pulls int
	stop  func()
}

func (p *atMost) InProcessConn() (net.Conn, error) {
	c, err := p.InProcessConnProvider.InProcessConn()
	return countingConn{c, p}, err
}

type countingConn struct {
	net.Conn
	p *atMost
}

func (c countingConn) Write(p []byte) (int, error) {
	if pullsIn(p) {
		if c.p.pulls--; c.p.pulls == 0 {
			c.p.stop()
		}
	}
	return c.Conn.Write(p)
}

func TestScanReadsAMessageThatIsLargerThanTheServerAcceptsNow(t *testing.T) {
	before := server.Options{MaxPayload: 8 << 20}
	virtuallyWith(t, &before, func(t *testing.T, s *server.Server) {
		b := connectBus(t, Options{InProcess: s})
		publish(t, b, createdEvent("a"))
		publish(t, b, sized("b", 4<<20))
		publish(t, b, createdEvent("c"))
		now := before
		now.MaxPayload = 1 << 20
		if err := s.ReloadOptions(&now); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		reader := connectBus(t, Options{InProcess: &atMost{s, 100, stop}})
		var ids []string
		err := reader.ScanSince(ctx, time.Time{}, func(e StoredEvent) error {
			ids = append(ids, e.TenantID())
			return nil
		})
		if err != nil || !slices.Equal(ids, []string{"a", "b", "c"}) {
			t.Errorf("found %q, error %v", ids, err)
		}
	})
}

// publishMany publishes events about the tenants 0, 1, 2 and so on.
func publishMany(t *testing.T, b *Bus, n int) (ids []string) {
	t.Helper()
	var list []Outgoing
	for i := range n {
		ids = append(ids, fmt.Sprint(i))
		list = append(list, createdEvent(ids[i]))
	}
	for _, err := range b.PublishAll(t.Context(), list) {
		if err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

func TestScanWaitsForASlowReader(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		want := publishMany(t, b, 600)
		began, most := time.Now(), 0
		var ids []string
		err := b.ScanSince(t.Context(), time.Time{}, func(e StoredEvent) error {
			ids = append(ids, e.TenantID())
			time.Sleep(100 * time.Millisecond)
			stream, err := b.js.Stream(t.Context(), b.o.Stream)
			if err == nil {
				most = max(most, stream.CachedInfo().State.Consumers)
			}
			return err
		})
		if err != nil || !slices.Equal(ids, want) || time.Since(began) > 61*time.Second {
			t.Errorf("found %d events in %v, error %v", len(ids), time.Since(began), err)
		}
		if most > 1 {
			t.Errorf("it had up to %d consumers", most)
		}
		stream, err := b.js.Stream(t.Context(), b.o.Stream)
		if err != nil || stream.CachedInfo().State.Consumers > 0 {
			t.Errorf("it left its consumer behind (error: %v)", err)
		}
	})
}

func TestScanOutlivesItsConnection(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		want := publishMany(t, b, 600)
		var ids []string
		err := b.ScanSince(t.Context(), time.Time{}, func(e StoredEvent) error {
			if ids = append(ids, e.TenantID()); len(ids) == 300 {
				b.reading.conn.Close()
			}
			return nil
		})
		if err != nil || !slices.Equal(ids, want) {
			t.Errorf("found %d events, error %v", len(ids), err)
		}
	})
}

// The server, or the stream, sets what the worker leaves open.
func TestLimitsOfTheServerAndTheStreamAreKept(t *testing.T) {
	for _, batch := range []int{10, 50} {
		o := &server.Options{JetStreamLimits: server.JSLimitOpts{MaxRequestBatch: batch}}
		t.Run(fmt.Sprint("max_request_batch ", batch), func(t *testing.T) {
			virtuallyWith(t, o, func(t *testing.T, s *server.Server) {
				works(t, connectBus(t, Options{InProcess: s}))
				works(t, connectBus(t, Options{InProcess: s})) // with the consumers of the first
			})
		})
	}
	t.Run("inactive_threshold", func(t *testing.T) {
		virtuallyOn(t, func(t *testing.T, b *Bus, way *way) {
			config := b.streams()[0].config()
			config.ConsumerLimits.InactiveThreshold = 30 * time.Second
			if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			works(t, b)
			works(t, connectBus(t, Options{InProcess: way}))
		})
	})
}

// works checks that events are handled and found, and that nothing is logged or found about consumers.
func works(t *testing.T, b *Bus) {
	t.Helper()
	said := make(logged, 1000)
	b.log = slog.New(slog.NewTextHandler(said, nil))
	c := b.MainConsumer(64, time.Second)
	handled := make(chan struct{}, 1000)
	c.Handle = func(context.Context, Event) error {
		handled <- struct{}{}
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	want := publishMany(t, b, 100)
	time.Sleep(5 * time.Minute)
	if len(handled) != len(want) || !c.Healthy() {
		t.Errorf("%d of %d events were handled; healthy: %t", len(handled), len(want), c.Healthy())
	}
	if ids, err := scanned(t, b); err != nil || !slices.Equal(ids[len(ids)-len(want):], want) {
		t.Errorf("found %d events, error %v", len(ids), err)
	}
	for _, f := range b.CheckTopology(t.Context()) {
		if strings.Contains(f.Found, "changed") {
			t.Error(f)
		}
	}
	stop()
	<-done
	if len(said) > 0 {
		t.Errorf("%d lines were logged, the first: %s", len(said), <-said)
	}
}
