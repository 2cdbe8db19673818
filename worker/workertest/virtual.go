package workertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
)

// virtualStart is when the clock of a bubble starts, unless the test says when: in the middle of a
// month. Bubbles begin in the year 2000, when Unix seconds had nine digits, which signatures do not
// allow.
var virtualStart = time.Date(2026, time.November, 17, 12, 0, 0, 0, time.UTC)

// bubbles keeps bubbles apart from each other and from worlds on the real clock: nats.go has one
// pool of timers for all its connections, and a timer must not leave the bubble in which it was
// made.
var bubbles sync.RWMutex

// leftovers is set while pools may have something of a bubble. A bubble itself starts with empty
// ones, whatever was before.
var leftovers struct {
	sync.Mutex
	exist bool
}

// ClearPools empties the pools for what runs outside of bubbles. Start does so. Tests that make
// connections to NATS without Start call it after Virtual.
func ClearPools() {
	leftovers.Lock()
	defer leftovers.Unlock()
	if leftovers.exist {
		emptyPools()
		leftovers.exist = false
	}
}

// emptyPools makes every sync.Pool forget what it has: the second collection drops what the first
// moved to the victim cache.
func emptyPools() {
	runtime.GC()
	runtime.GC()
}

// Virtual runs the scenario with a world in virtual time. The scenario must use the t and the world
// that it is given, end every goroutine that it starts, and open no sockets. A t.Fatal in it tears
// the world down, as its end does. One scenario runs at a time, so t.Parallel gains nothing.
//
// On PostgreSQL, whose server is outside of the bubble, the workers' clock_timestamp() follows the
// virtual clock.
func Virtual(t *testing.T, o Options, scenario func(t *testing.T, w *World)) {
	t.Helper()
	bubbles.Lock()
	defer bubbles.Unlock()
	emptyPools()
	leftovers.exist = true
	ats.Register() // the server's own goroutine of that package waits on a channel made outside of the bubble
	defer ats.Unregister()
	synctest.Test(t, func(t *testing.T) {
		begin := o.Begin
		if begin.IsZero() {
			begin = virtualStart
		}
		time.Sleep(time.Until(begin))
		scenario(t, start(t, o, &Network{}))
	})
}

// latency passes in a bubble with each event published, each request answered and each call of the
// API: otherwise everything happens in the same instant, and the order is decided by the rules for
// events of the same time.
const latency = time.Millisecond

func (w *World) delay() {
	if w.virtual != nil {
		time.Sleep(latency)
	}
}

// Network is TCP without sockets, for HTTP in a bubble: its connections are pipes. The zero value
// is ready for use.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	refused   int
}

// Listen returns a listener at a new address of the network, 127.0.0.1 with a port.
func (n *Network) Listen() net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = map[string]*pipeListener{}
	}
	l := &pipeListener{
		address: pipeAddr(fmt.Sprint("127.0.0.1:", 10_000+len(n.listeners))),
		conns:   make(chan net.Conn), closed: make(chan struct{}),
	}
	n.listeners[l.address.String()] = l
	return l
}

// Dial connects to an address where the network has a listener. It is a DialContext of
// http.Transport.
func (n *Network) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	if l == nil {
		n.refused++
		n.mu.Unlock()
		return nil, errors.New("connection refused")
	}
	n.mu.Unlock()
	client, server := net.Pipe()
	select {
	case l.conns <- pipe{server, "127.0.0.1:9999"}:
		return pipe{client, l.address}, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Refused counts the dials to addresses where nothing listens.
func (n *Network) Refused() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refused
}

// pipe is an end of a net.Pipe that knows the address of the other.
type pipe struct {
	net.Conn
	remote pipeAddr
}

func (p pipe) RemoteAddr() net.Addr { return p.remote }

type pipeAddr string

func (pipeAddr) Network() string  { return "tcp" }
func (a pipeAddr) String() string { return string(a) }

type pipeListener struct {
	address pipeAddr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return l.address }

// link is one worker's way to the NATS server, which can be cut, and to Papermap.
type link struct {
	world *World
	mu    sync.Mutex
	down  bool // the way to NATS
	dead  bool // both, for good
	conns []net.Conn
	calls []net.Conn // to Papermap
}

// InProcessConn implements nats.InProcessConnProvider.
func (l *link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down || l.dead {
		return nil, errors.New("the link is cut")
	}
	c, err := l.world.InProcessConn()
	if err == nil {
		l.conns = append(l.conns, c)
	}
	return c, err
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func (l *link) restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
}

// dial connects to Papermap.
func (l *link) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := l.world.virtual.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		_ = c.Close()
		return nil, errors.New("the worker is dead")
	}
	if len(l.calls) >= maxCalls {
		l.calls = append(l.calls[:0], l.calls[maxCalls/2:]...)
	}
	l.calls = append(l.calls, c)
	return c, nil
}

// maxCalls is how many of the newest connections to Papermap are closed with a link.
const maxCalls = 1000

// sever cuts off a worker from everything, for good.
func (l *link) sever() {
	l.cut()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	for _, c := range l.calls {
		_ = c.Close()
	}
	l.calls = nil
}

// clockTick is the maximum lag of PostgreSQL's clock behind the bubble's, unless the test sets it.
const clockTick = 250 * time.Millisecond

// virtualPostgres makes the database's clock_timestamp() follow the bubble's clock, for every
// connection to w.Address: it finds a function of that name in the schema public before
// PostgreSQL's own.
func (w *World) virtualPostgres() {
	w.t.Helper()
	_, err := w.SQL.Exec(`CREATE UNLOGGED TABLE IF NOT EXISTS virtual_clock (now timestamptz NOT NULL);
		CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
			AS 'SELECT now FROM public.virtual_clock'`)
	w.Must(err)
	_, err = w.SQL.Exec("INSERT INTO virtual_clock VALUES ($1)", time.Now().Add(w.ahead))
	w.Must(err)
	address, err := url.Parse(w.Address)
	w.Must(err)
	query := address.Query()
	query.Set("search_path", "public,pg_catalog")
	address.RawQuery = query.Encode()
	w.Address = address.String()

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(w.tick)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				if _, err := w.SQL.Exec("UPDATE virtual_clock SET now = $1", now.Add(w.ahead)); err != nil {
					w.t.Errorf("setting PostgreSQL's clock: %v", err)
					return
				}
			case <-stop:
				return
			}
		}
	}()
	w.t.Cleanup(func() {
		close(stop)
		<-stopped
	})
}
