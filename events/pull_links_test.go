package events

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// slowLink is a way to a server that transfers so many bytes a second.
type slowLink struct {
	nats.InProcessConnProvider
	rate int
}

func (l slowLink) InProcessConn() (net.Conn, error) {
	c, err := l.InProcessConnProvider.InProcessConn()
	return slowConn{c, l.rate}, err
}

type slowConn struct {
	net.Conn
	rate int
}

func (c slowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	time.Sleep(time.Duration(n) * time.Second / time.Duration(c.rate))
	return n, err
}

const twentyMbit = 2_500_000 // bytes a second

// sized is an event of at least so many bytes.
func sized(id string, bytesOfSpace int) Outgoing {
	e := createdEvent(id)
	e.Data = append(e.Data, bytes.Repeat([]byte{' '}, bytesOfSpace)...)
	return e
}

// A pull requests 16 MiB, which take longer than it waits.
func TestSlowLinkDelaysEventsButRedeliversNone(t *testing.T) {
	virtuallyOn(t, func(t *testing.T, publisher *Bus, way *way) {
		const events, size = 32, 900_000
		for n := range events {
			publish(t, publisher, sized(fmt.Sprint(n), size))
		}
		b := connectBus(t, Options{InProcess: slowLink{way, twentyMbit}})
		c := b.MainConsumer(events, time.Second)
		handled := make(chan int, 1000)
		c.Handle = func(_ context.Context, e Event) error {
			handled <- e.Deliveries
			return nil
		}
		consume(t, c)
		began, unhealthy := time.Now(), 0
		for len(handled) < events && time.Since(began) < 10*time.Minute {
			time.Sleep(100 * time.Millisecond)
			if !c.Healthy() {
				unhealthy++
			}
		}
		if took := time.Since(began); took > 15*time.Second { // the link alone takes 12 s
			t.Errorf("%d events were handled after %v", len(handled), took)
		}
		for range len(handled) {
			if n := <-handled; n > 1 {
				t.Errorf("an event was delivered %d times", n)
			}
		}
		if unhealthy > 0 {
			t.Errorf("unhealthy for %d ms while it consumes", 100*unhealthy)
		}
	})
}

func TestScanReadsLargeMessagesOverASlowLink(t *testing.T) {
	virtuallyWith(t, &server.Options{MaxPayload: 8 << 20}, func(t *testing.T, s *server.Server) {
		publisher := connectBus(t, Options{InProcess: s})
		for n := range 3 {
			publish(t, publisher, sized(fmt.Sprint(n), 6<<20))
		}
		b := connectBus(t, Options{InProcess: slowLink{s, twentyMbit}})
		if ids, err := scanned(t, b); err != nil || len(ids) != 3 {
			t.Errorf("found %q, error %v", ids, err)
		}
	})
}

// The network fails, for NATS and for Papermap. NATS comes back.
func TestPausedConsumerIsHealthyAfterAFailedPull(t *testing.T) {
	virtuallyOn(t, func(t *testing.T, b *Bus, way *way) {
		c := b.MainConsumer(4, time.Second)
		c.Handle = func(context.Context, Event) error { return nil }
		paused := make(chan struct{})
		c.Admit = func(ctx context.Context) (int, error) {
			select {
			case <-paused:
				<-ctx.Done()
				return 0, ctx.Err()
			default:
				return 4, nil
			}
		}
		consume(t, c)
		time.Sleep(time.Minute)
		way.losesPulls.Store(true)
		for c.Healthy() {
			time.Sleep(time.Second)
		}
		close(paused)
		way.losesPulls.Store(false)
		time.Sleep(20 * time.Second)
		if !c.Healthy() {
			t.Error("unhealthy during a pause, though NATS can be used")
		}
	})
}

// The new leader knows nothing of the pulls of the old one.
func TestLeaderChangeLeavesAnIdleConsumerHealthy(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		c, _ := idle(t, b, nil)
		var pulls atomic.Int32
		_, err := b.nc.Subscribe(b.api("CONSUMER.MSG.NEXT.>"), func(request *nats.Msg) {
			if pulls.Add(1) == 1 {
				status := nats.NewMsg(request.Reply)
				status.Header = nats.Header{"Status": {"409"}, "Description": {"Leadership Change"}}
				_ = b.nc.PublishMsg(status)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if !c.Healthy() {
				t.Fatal("unhealthy")
			}
		}
		if n := pulls.Load(); n < 2 {
			t.Errorf("%d pulls", n)
		}
	})
}
