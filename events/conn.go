package events

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
)

// The purposes of connections. A server closes a connection that does not read fast enough. So
// traffic of unlimited volume has separate connections: requests, requests of tenants, and reads
// for people. The connection of the events carries nothing else.
const (
	forEvents   = "events"
	forRequests = "requests"
	forTenants  = "requests of tenants"
	forReading  = "reading"
)

// connectTimeout is how long the server has to greet a new connection. The default of 2 s is too short for
// a busy one.
const connectTimeout = 5 * time.Second

// connection is one of a bus's connections.
type connection struct {
	*nats.Conn
	closed chan struct{}
}

// dialer dials for one connection to NATS. It first closes the TCP connection that it dialed before:
// nats.go leaves it open if the server accepted it and then did not greet or refused the client, so
// that a worker with wrong credentials, or behind a proxy without a server, would have more and more
// of them until the next garbage collection.
type dialer struct {
	net.Dialer
	last net.Conn
}

// Dial implements [nats.CustomDialer].
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	if d.last != nil {
		_ = d.last.Close() // it may be closed
	}
	c, err := d.Dialer.Dial(network, address)
	d.last = c
	return c, err
}

// dial makes a connection that reconnects forever, even after authorization errors, because the
// credentials may be corrected. The connection for reading does not reconnect: it is made again
// when needed.
func (b *Bus) dial(purpose string, failed chan<- error) (*connection, error) {
	o, c := b.o, &connection{closed: make(chan struct{})}
	name := o.Name
	if purpose != forEvents {
		name = strings.TrimSpace(name + " " + purpose)
	}
	options := append(b.handlers(purpose, c.closed, failed),
		nats.Name(name), nats.Timeout(connectTimeout), nats.MaxReconnects(-1),
		nats.SetCustomDialer(&dialer{Dialer: net.Dialer{Timeout: connectTimeout}}),
		nats.ReconnectWait(time.Second), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1)) // what was reported as failed must not be published later
	if purpose == forReading {
		options = append(options, nats.NoReconnect())
	} else {
		options = append(options, nats.RetryOnFailedConnect(o.Wait))
	}
	credentials, err := o.credentials()
	if err != nil {
		return nil, err
	}
	if c.Conn, err = nats.Connect(o.URL, append(options, credentials...)...); err != nil {
		return nil, fmt.Errorf("no connection to NATS (NATS_URL): %w", err)
	}
	return c, nil
}

// jetStream returns JetStream over a connection.
func (b *Bus) jetStream(c *connection) (js jetstream.JetStream, err error) {
	// Without a timeout, publishes that got no acknowledgement would fill the limit of those in
	// flight, and then block all others.
	timeout := jetstream.WithPublishAsyncTimeout(publishWait)
	if b.o.Domain != "" {
		js, err = jetstream.NewWithDomain(c.Conn, b.o.Domain, timeout)
	} else {
		js, err = jetstream.New(c.Conn, timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	return js, nil
}

// close sends buffered messages, waits for running callbacks and closes the connection. If ctx ends
// first, it closes the connection at once.
func (c *connection) close(ctx context.Context) {
	if !c.IsConnected() || c.Drain() != nil {
		c.Close()
	}
	select {
	case <-c.closed: // Drain returns before it has drained
	case <-ctx.Done():
		c.Close()
	}
}

// dialForRequests makes a connection that is a part of [Bus.Answering] until it is dropped.
func (b *Bus) dialForRequests() (*connection, error) {
	c, err := b.dial(forRequests, nil)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, c)
	return c, nil
}

// drop closes connections for requests.
func (b *Bus) drop(ctx context.Context, list ...*connection) {
	b.mu.Lock()
	b.requests = slices.DeleteFunc(b.requests, func(c *connection) bool { return slices.Contains(list, c) })
	b.mu.Unlock()
	var closing sync.WaitGroup
	for _, c := range list {
		closing.Go(func() { c.close(ctx) })
	}
	closing.Wait()
}

const (
	readers    = 2                // streams that are read at a time
	readerIdle = 30 * time.Second // after which the connection for reading is closed
	readBytes  = 1 << 20          // of messages in flight to a reader
)

// reading is the connection for reads for people, made when it is first needed.
type reading struct {
	turn  chan struct{} // holds one element while the other fields are changed
	conn  *connection   // nil: there is none
	js    jetstream.JetStream
	users int
	idle  *time.Timer
	ended bool          // the bus is closed
	slots chan struct{} // one element for each stream that is read
}

func (r *reading) lock() (unlock func()) {
	r.turn <- struct{}{}
	return func() { <-r.turn }
}

// reader returns JetStream over the connection for reading, until release.
func (b *Bus) reader() (js jetstream.JetStream, release func(), err error) {
	r := &b.reading
	defer r.lock()()
	if r.ended {
		return nil, nil, nats.ErrConnectionClosed
	}
	if r.conn == nil || r.conn.IsClosed() {
		if r.conn, err = b.dial(forReading, nil); err != nil {
			r.conn = nil
			return nil, nil, err
		}
		if r.js, err = b.jetStream(r.conn); err != nil {
			return nil, nil, err
		}
	}
	if r.idle != nil {
		r.idle.Stop()
	}
	r.users++
	return r.js, sync.OnceFunc(func() {
		defer r.lock()()
		if r.users--; r.users == 0 && !r.ended {
			r.idle = time.AfterFunc(readerIdle, r.closeIdle)
		}
	}), nil
}

// readerInTurn is reader for whole messages. It waits while the maximum number of streams is being
// read, which limits the memory in use.
func (b *Bus) readerInTurn(ctx context.Context) (js jetstream.JetStream, release func(), err error) {
	select {
	case b.reading.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("others are reading: %w", ctx.Err())
	}
	js, done, err := b.reader()
	if err != nil {
		<-b.reading.slots
		return nil, nil, err
	}
	return js, sync.OnceFunc(func() { done(); <-b.reading.slots }), nil
}

func (r *reading) closeIdle() {
	defer r.lock()()
	if r.users == 0 && r.conn != nil {
		r.conn.Close()
		r.conn = nil
	}
}

// end closes the connection for good.
func (r *reading) end() {
	defer r.lock()()
	r.ended = true
	if r.idle != nil {
		r.idle.Stop()
	}
	if r.conn != nil {
		r.conn.Close()
		<-r.conn.closed
	}
}

// readLimit is how many bytes of messages a reader requests at a time: the server closes a
// connection for which it has to buffer too much. A request must have room for the largest message,
// even after half of it is used.
func (b *Bus) readLimit() int { return max(readBytes, 2*int(b.nc.MaxPayload()+maxHeaders)) }

// Connected returns nil while there is a connection for events, else why not. The others are no
// part of it: callers can make the server close one by a flood, and must not stop events by it.
func (b *Bus) Connected() error { return b.connected(b.nc) }

// Answering returns nil while there is a connection for requests, else why not. The one for requests
// of tenants is no part of it.
func (b *Bus) Answering() error {
	b.mu.Lock()
	requests := slices.Clone(b.requests)
	b.mu.Unlock()
	for _, c := range requests {
		if err := b.connected(c); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bus) connected(c *connection) error {
	if c.IsConnected() {
		return nil
	}
	if err := b.reason(c.LastError()); err != nil {
		return fmt.Errorf("no connection to NATS: %w", err)
	}
	return errors.New("no connection to NATS")
}

// listen accepts requests: on one connection, and requests on tenants' own subjects on another, so
// that a tenant that floods it does not affect other callers. Package micro has one connection, so
// it recognizes a tenant's endpoint by a subject that is written like a reply prefix.
func (s *Service) listen(version string, endpoints []Endpoint, counts map[string]*answers) error {
	requests, err := s.bus.dialForRequests()
	if err != nil {
		return err
	}
	s.conns = append(s.conns, requests)
	tenants, err := s.bus.dial(forTenants, nil)
	if err != nil {
		return err
	}
	s.conns = append(s.conns, tenants)
	s.micro, err = micro.AddService(requests.Conn, micro.Config{
		Name: serviceName, Version: version,
		Description: "Papermap dashboards and embed tokens of tenants. In STATS, errors and times of " +
			"answers are under data; num_errors and processing_time are those of handing requests over",
		StatsHandler: func(e *micro.Endpoint) any { return counts[e.Name].stats() },
		Metadata:     map[string]string{canAdopt: "yes"},
	})
	if err != nil {
		return fmt.Errorf("start the request-reply service: %w", err)
	}
	for _, e := range endpoints {
		name, subject := e.micro(), s.bus.o.Subjects.RPC(e.Name)
		accept := func(c *connection, r request) {
			r.nc, r.endpoint, r.answers = c, &e, counts[name]
			r.arrived, r.ctx = time.Now(), context.Background()
			s.accept(r)
		}
		if e.PerToken {
			sub, err := tenants.QueueSubscribe(subject+".*", micro.DefaultQueueGroup, func(m *nats.Msg) {
				accept(tenants, request{subject: m.Subject, reply: m.Reply, data: m.Data, header: m.Header})
			})
			if err == nil {
				err = sub.SetPendingLimits(pendingRequests, pendingBytes)
			}
			if err != nil {
				return fmt.Errorf("start endpoint %s: %w", name, err)
			}
			s.tenants = append(s.tenants, sub)
			subject += "." + anyTenant
		}
		handler := micro.HandlerFunc(func(r micro.Request) {
			accept(requests, request{
				subject: r.Subject(), reply: r.Reply(), data: r.Data(), header: nats.Header(r.Headers()),
			})
		})
		if err := s.micro.AddEndpoint(name, handler, micro.WithEndpointSubject(subject),
			micro.WithEndpointPendingLimits(pendingRequests, pendingBytes)); err != nil {
			return fmt.Errorf("start endpoint %s: %w", name, err)
		}
	}
	for _, c := range s.conns {
		if c.IsConnected() { // else it subscribes when it is
			_ = c.FlushTimeout(requestTimeout)
		}
	}
	return nil
}
