package events

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// idle runs a consumer until it has had no event for long. stop returns how long it took to stop.
func idle(t *testing.T, b *Bus, handled chan<- struct{}) (c *Consumer, stop func() time.Duration) {
	c = b.MainConsumer(4, time.Second)
	c.Handle = func(context.Context, Event) error {
		handled <- struct{}{}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	time.Sleep(time.Minute)
	stop = func() time.Duration {
		began := time.Now()
		cancel()
		<-done
		return time.Since(began)
	}
	t.Cleanup(func() { stop() })
	return c, stop
}

func TestIdleConsumerAsksOnlyAsOftenAsItChecksTheStreams(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		idle(t, b, nil)
		before := b.nc.Stats().OutMsgs
		time.Sleep(time.Minute)
		const checks = uint64(time.Minute / checkIdle)
		// A check asks for two streams and two consumers. A pull subscribes, asks and unsubscribes.
		if sent := b.nc.Stats().OutMsgs - before; sent > 5*(checks+1) {
			t.Errorf("%d requests in a minute, want %d", sent, 5*checks)
		}
	})
}

func TestIdleConsumerStopsAtOnce(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		_, stop := idle(t, b, nil)
		if took := stop(); took > 10*time.Millisecond {
			t.Errorf("it stopped after %v", took)
		}
	})
}

// The server drops a pull when it has an event for it and nobody listens.
func TestIdleConsumerPullsAgainAfterALostConnection(t *testing.T) {
	virtuallyOn(t, func(t *testing.T, b *Bus, way *way) {
		handled := make(chan struct{}, 10)
		idle(t, b, handled)
		other := connectBus(t, Options{InProcess: way})
		for _, id := range []string{"a", "b", "c", "d", "e"} { // at different moments of a pull
			time.Sleep(checkIdle + time.Second)
			way.closed.Store(true)
			if err := b.nc.ForceReconnect(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			publish(t, other, createdEvent(id))
			way.closed.Store(false)
			eventually(t, "connected again", func() bool { return b.Connected() == nil })
			began := time.Now()
			<-handled
			if took := time.Since(began); took > 2500*time.Millisecond {
				t.Errorf("%s was handled after %v", id, took)
			}
		}
	})
}

// A server that fails takes the pulls that wait at it along, and the connection may be to another one.
func TestIdleConsumerPullsAgainWhenItHearsNoHeartbeat(t *testing.T) {
	virtuallyOn(t, func(t *testing.T, b *Bus, way *way) {
		said := make(logged, 100)
		b.log = slog.New(slog.NewTextHandler(said, nil))
		handled := make(chan struct{}, 1)
		idle(t, b, handled)
		way.losesPulls.Store(true)
		way.nextPull()
		way.losesPulls.Store(false)
		began := time.Now()
		publish(t, b, createdEvent("a"))
		<-handled
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it was handled after %v", took)
		}
		select {
		case line := <-said:
			t.Errorf("logged: %s", line)
		default:
		}
	})
}

func TestIdleConsumerIsUnhealthyUntilItsPullsAreAnswered(t *testing.T) {
	virtuallyOn(t, func(t *testing.T, b *Bus, way *way) {
		said := make(logged, 100)
		b.log = slog.New(slog.NewTextHandler(said, nil))
		c, _ := idle(t, b, nil)
		way.losesPulls.Store(true)
		time.Sleep(time.Minute)
		staysUnhealthy(t, c)
		saysOnce(t, said, "the server did not answer")
		way.losesPulls.Store(false)
		time.Sleep(20 * time.Second) // for the pull that is lost, the pause after it and the next pull
		if !c.Healthy() {
			t.Error("unhealthy after its pulls were answered")
		}
		saysOnce(t, said, "consuming again")
	})
}

// staysUnhealthy checks that a consumer is unhealthy for a minute.
func staysUnhealthy(t *testing.T, c *Consumer) {
	t.Helper()
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		if c.Healthy() {
			t.Fatal("healthy, but it gets no events")
		}
	}
}

// saysOnce checks that one line was logged since the last call, with this text.
func saysOnce(t *testing.T, said logged, text string) {
	t.Helper()
	if len(said) == 0 {
		t.Fatalf("nothing was logged, want %q", text)
	}
	if line := string(<-said); !strings.Contains(line, text) {
		t.Errorf("logged %s, want %q", line, text)
	}
	if len(said) > 0 {
		t.Errorf("%d more lines, the first: %s", len(said), <-said)
	}
}

// A consumer that vanishes has probably gone with its stream, which may be back with other events by the
// time of the next look.
func TestIdleConsumerTakesTheStreamForAnotherWhenItsConsumerVanishes(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		idle(t, b, nil)
		before, err := b.incarnation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.js.DeleteConsumer(t.Context(), b.o.Stream, MainConsumer); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		after, err := b.incarnation(t.Context())
		if err != nil || after == before {
			t.Errorf("events of before would be acknowledged (error: %v)", err)
		}
	})
}
