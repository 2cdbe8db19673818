package events

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/ats"
	"go.uber.org/goleak"

	"papermap-worker/events/embedded"
	"papermap-worker/schema/schematest"
)

// main runs the tests with the server's access clock registered, which servers in a bubble share.
type main struct{ m *testing.M }

func (m main) Run() int {
	ats.Register()
	defer ats.Unregister()
	return m.m.Run()
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(main{m}) }

// virtually runs a test in virtual time, with a connection to a server of its own that has the
// streams. Waiting takes no time there: the clock jumps when every goroutine waits.
//
// Such tests are not parallel: nats.go has a pool of timers for the whole process, and a bubble's
// timer must not get into another bubble.
func virtually(t *testing.T, test func(t *testing.T, b *Bus)) {
	t.Helper()
	virtuallyOn(t, func(t *testing.T, b *Bus, _ *way) { test(t, b) })
}

// virtuallyOn is virtually for tests that cut the connection.
func virtuallyOn(t *testing.T, test func(t *testing.T, b *Bus, way *way)) {
	t.Helper()
	emptyPools()
	defer emptyPools()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		// Not in the year 2000, where a bubble begins: the server counts on Unix seconds of ten digits.
		time.Sleep(time.Until(time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)))
		s, err := embedded.StartInProcess(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		w := newWay(s)
		test(t, connectBus(t, Options{InProcess: w}), w)
	})
}

// virtuallyWith is virtually with a server of these options.
func virtuallyWith(t *testing.T, o *server.Options, test func(t *testing.T, s *server.Server)) {
	t.Helper()
	emptyPools()
	defer emptyPools()
	o.StoreDir = t.TempDir()
	o.DontListen, o.JetStream, o.NoSigs, o.NoLog = true, true, true, true
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)))
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("the server does not start")
		}
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		test(t, s)
	})
}

// way is a network path to a server. It can be closed, can lose pull requests, and its host can vanish
// without closing its connections.
type way struct {
	*embedded.Server
	closed, losesPulls, vanished atomic.Bool
	pulls                        chan struct{} // that are sent or lost; one is remembered
}

func newWay(s *embedded.Server) *way { return &way{Server: s, pulls: make(chan struct{}, 1)} }

// nextPull waits for the next pull request.
func (w *way) nextPull() {
	select {
	case <-w.pulls:
	default:
	}
	<-w.pulls
}

func (w *way) InProcessConn() (net.Conn, error) {
	if w.closed.Load() {
		return nil, errors.New("the way is closed")
	}
	c, err := w.Server.InProcessConn()
	return lossyConn{c, w}, err
}

type lossyConn struct {
	net.Conn
	way *way
}

func (c lossyConn) Write(p []byte) (int, error) {
	pulls := pullsIn(p)
	if pulls {
		select {
		case c.way.pulls <- struct{}{}:
		default:
		}
	}
	if c.way.vanished.Load() || pulls && c.way.losesPulls.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// pullsIn reports whether a client writes a pull request.
func pullsIn(p []byte) bool { return bytes.Contains(p, []byte("CONSUMER.MSG.NEXT")) }

func (c lossyConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.way.vanished.Load() {
			return n, err
		}
	}
}

// emptyPools empties each sync.Pool of the process: their elements survive one garbage collection, and
// not the next.
func emptyPools() {
	runtime.GC()
	runtime.GC()
}

// startBus connects to a server of its own that has the streams, over a socket.
func startBus(t *testing.T) *Bus {
	t.Helper()
	server, err := embedded.Start(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return connectBus(t, Options{URL: server.URL()})
}

func connectBus(t *testing.T, o Options) *Bus {
	t.Helper()
	o.Subjects, o.Stream, o.ManageStreams, o.Replicas = Subjects{"papermap"}, "PAPERMAP", true, 1
	o.MaxAge = 24 * time.Hour // longer than any test waits: an event that expires is not delivered
	bus, err := Connect(o, slog.New(slog.DiscardHandler))
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

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
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
	var list []DeadLetter
	if err := b.EachDeadLetter(t.Context(), DeadFilter{}, 100, func(d DeadLetter) error {
		list = append(list, d)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}
