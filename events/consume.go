package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"papermap-worker/worker/failpoint"
)

// memoryInHand limits the bytes of a consumer's events in flight. A requested event counts as the
// server's maximum message size until its size is known.
const memoryInHand = 16 << 20

const (
	failureLines = rate.Limit(1.0 / 30) // per second, of each kind

	fetchWait  = time.Second // how long a pull waits for events; a stop waits for the pull to end
	maxSettles = 5           // look-ups of the stream, a second apart, before an event is redelivered
)

// Consumer fetches events from one durable consumer and handles them, at most Slots at a time. It
// fetches only as many as it has free slots for, because the server counts the time that an event
// waits in a buffer towards AckWait. It fetches no more than fits into memoryInHand either, however
// large the events are.
type Consumer struct {
	Durable string
	Slots   int
	Grace   time.Duration // after a stop, how long handlers may continue

	// Admit returns how many events may be fetched now, at least one. If none may, it waits until
	// ctx ends. Nil means as many as there are free slots.
	Admit func(ctx context.Context) (int, error)
	// Handle handles the event. After nil the event is acknowledged; after *Permanent it becomes a
	// dead letter; after *Retry it is redelivered after that delay; after any other error it is
	// redelivered after [Delay]. Handle must be idempotent, even if two workers run it
	// concurrently.
	Handle func(ctx context.Context, e Event) error
	// Observe, if not nil, is called for each event with its outcome: acknowledged, dead, retried or
	// failed.
	Observe func(eventType, outcome string, took time.Duration)

	bus      *Bus
	log      *slog.Logger
	slots    chan struct{}       // one element for each slot in use
	memory   *semaphore.Weighted // bytes of the events in flight, and of those requested
	inFlight sync.WaitGroup
	health   health

	// The result of the last pull. Only Run uses it.
	idle    bool // it got no event
	pullErr error

	// Limits log lines about failures, which every event causes while something is down.
	failures, unsettled *rate.Limiter
}

// MainConsumer returns the consumer of tenant.created and usage.sync.
func (b *Bus) MainConsumer(slots int, grace time.Duration) *Consumer {
	return b.consumer(MainConsumer, slots, grace)
}

// AccessConsumer returns the consumer of tenant.suspended, tenant.resumed and tenant.deleted.
func (b *Bus) AccessConsumer(slots int, grace time.Duration) *Consumer {
	return b.consumer(AccessConsumer, slots, grace)
}

func (b *Bus) consumer(durable string, slots int, grace time.Duration) *Consumer {
	return &Consumer{
		Durable: durable, Slots: slots, Grace: grace,
		bus: b, log: b.log.With("consumer", durable), slots: make(chan struct{}, slots),
		memory:   semaphore.NewWeighted(memoryInHand),
		failures: rate.NewLimiter(failureLines, 1), unsettled: rate.NewLimiter(failureLines, 1),
	}
}

// Healthy reports whether events are being fetched: streams and consumers exist, and the server
// answers pull requests.
func (c *Consumer) Healthy() bool {
	c.health.Lock()
	defer c.health.Unlock()
	return c.health.ok
}

// health is whether a consumer fetches events, and what the log says about it.
type health struct {
	sync.Mutex
	ok       bool
	logged   string // each error is logged once
	failures int    // in a row
}

func (c *Consumer) setHealthy() {
	c.health.Lock()
	defer c.health.Unlock()
	if c.health.logged != "" {
		c.log.Info("consuming again")
	}
	c.health.ok, c.health.logged, c.health.failures = true, "", 0
}

// setUnhealthy returns how many errors there were in a row.
func (c *Consumer) setUnhealthy(err error) (failures int) {
	c.health.Lock()
	defer c.health.Unlock()
	if err.Error() != c.health.logged {
		c.health.logged = err.Error()
		c.log.Error("cannot consume; retrying", "error", err)
	}
	c.health.ok = false
	c.health.failures++
	return c.health.failures
}

// The steps of one event: acquireSlots, fetch, handle (which extends AckWait), process (Decode and
// Handle), ack. Nothing else acknowledges.

// Run consumes until ctx ends. Then it stops fetching, gives events that it has not started back to
// the server, waits for the events in flight and returns. Streams or a consumer that are deleted or
// changed while it runs are created again or repaired.
func (c *Consumer) Run(ctx context.Context) {
	// Handlers run with the context work, which outlives ctx by Grace, so that a stop does not fail
	// the events in flight.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(c.Grace, abandon) })
	defer stop()

	retry := Backoff{Base: time.Second, Max: 5 * time.Second}
	for ctx.Err() == nil {
		if err := c.consume(ctx, work); ctx.Err() == nil {
			Sleep(ctx, retry.Delay(c.setUnhealthy(err)))
		}
	}
	c.health.Lock()
	c.health.ok = false
	c.health.Unlock()
	c.inFlight.Wait()
}

// consume fetches and handles events until ctx ends or there is a problem with the streams, the
// consumers or a pull. The consumer is healthy once the streams and consumers exist. After a failed
// pull, it is healthy again only when another is answered, or while nothing may be fetched.
func (c *Consumer) consume(ctx, work context.Context) error {
	if err := c.bus.Connected(); err != nil {
		return err
	}
	if _, err := c.bus.supervise(ctx, 0); err != nil {
		return err
	}
	if c.pullErr == nil {
		c.setHealthy()
	}
	for ctx.Err() == nil { // acquireSlots alone would still find free slots now and then
		largest := min(c.bus.nc.MaxPayload(), memoryInHand)
		// A longer wait is for Papermap or for handlers. It says nothing against NATS.
		waits := time.AfterFunc(fetchWait, func() {
			if ctx.Err() == nil {
				c.setHealthy()
			}
		})
		n, err := c.acquireSlots(ctx, largest)
		waits.Stop()
		if err != nil {
			return err
		}
		if err := c.fetch(ctx, work, n, largest); err != nil {
			return err
		}
		if err := c.bus.Connected(); err != nil {
			return err
		}
		if c.pullErr == nil {
			c.setHealthy()
		}
	}
	return ctx.Err()
}

// acquireSlots waits for a free slot with memory for an event of largest bytes, and for admission. It
// returns how many slots it acquired.
func (c *Consumer) acquireSlots(ctx context.Context, largest int64) (int, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := c.memory.Acquire(ctx, largest); err != nil {
		<-c.slots
		return 0, err
	}
	limit := c.Slots
	if c.Admit != nil {
		var err error
		if limit, err = c.Admit(ctx); err != nil {
			c.release(largest)
			return 0, err
		}
	}
	for n := 1; n < limit; n++ {
		select {
		case c.slots <- struct{}{}:
		default:
			return n, nil
		}
		if !c.memory.TryAcquire(largest) {
			<-c.slots
			return n, nil
		}
	}
	return limit, nil
}

// release returns a slot with its memory.
func (c *Consumer) release(bytes int64) {
	c.memory.Release(bytes)
	<-c.slots
}

// fetch requests n events, for which slots with memory for largest bytes each are acquired, and
// starts a handler for each that arrives.
func (c *Consumer) fetch(ctx, work context.Context, n int, largest int64) error {
	defer func() {
		for range n {
			c.release(largest)
		}
	}()
	incarnation, err := c.bus.supervise(ctx, checkEvery)
	if err != nil {
		return err
	}
	until, wait := c.pullWait(ctx)
	request := pullRequest{Batch: limited(n, c.bus.maxBatch(c.Durable))}
	c.idle = true
	nc, stream := c.bus.nc.Conn, c.bus.o.Stream
	err = c.bus.pull(until, nc, stream, c.Durable, wait, request, func(msg *nats.Msg) bool {
		c.idle = false
		d := &delivery{msg, c, incarnation}
		if ctx.Err() != nil {
			// Without a delay, it would come back by this very pull.
			d.finish(work, "return", func() error { return msg.NakWithDelay(fetchWait) })
			return true
		}
		n-- // the handler releases this slot
		size := min(largest, int64(headerSize(msg.Header)+len(msg.Data)))
		c.memory.Release(largest - size)
		c.inFlight.Go(func() {
			defer c.release(size)
			c.handle(work, d)
		})
		return true
	})
	if errors.Is(err, nats.ErrDisconnected) {
		return nil // consume reports a lost connection, unless it is back already
	}
	// A single one may be lost with its server.
	once := c.pullErr == nil && (errors.Is(err, errUnanswered) || errors.Is(err, errMoved))
	c.pullErr = err
	if err == nil {
		return nil
	}
	c.idle = false // so the next has no heartbeats: only then does the server say why it refuses a pull
	if errors.Is(err, jetstream.ErrConsumerDeleted) {
		c.bus.streamMayBeAnother()
	}
	if once {
		return nil
	}
	return fmt.Errorf("fetch: %w", err)
}

// pullWait returns how long a pull waits, and a context that ends it earlier. While events arrive, a
// pull is short and a stop waits for its end, so that no event is in transit to a consumer that
// is gone. While there are none, it lasts until the next check of the streams, and a stop ends it. An
// event that arrives at that very moment is redelivered after ackWait.
func (c *Consumer) pullWait(ctx context.Context) (until context.Context, wait time.Duration) {
	wait = c.bus.untilIdleCheck()
	if !c.idle || wait <= fetchWait {
		return context.WithoutCancel(ctx), fetchWait
	}
	return ctx, wait
}

// delivery is a fetched message, and what may be sent to the server about it.
type delivery struct {
	*nats.Msg
	c           *Consumer
	incarnation uint64 // of the stream that it came from
}

// settle sends the message's outcome to the server, unless its stream is gone: in a recreated
// stream the same number belongs to another event.
func (d *delivery) settle(ctx context.Context, tell func() error) error {
	if err := d.current(ctx); err != nil {
		return err
	}
	return tell()
}

// finish settles the message for good. If it fails, nothing is lost: the event is redelivered after
// ackWait, which handlers must tolerate anyway.
func (d *delivery) finish(ctx context.Context, operation string, tell func() error) {
	if err := d.settle(ctx, tell); err != nil {
		d.c.log.Warn("cannot acknowledge an event; it will be redelivered",
			"operation", operation, "subject", d.Subject, "error", err)
	}
}

var errOtherStream = errors.New("its stream was recreated or restored since the delivery")

// current returns nil if the stream is the one that the message was fetched from. If the server
// does not answer, it asks again.
func (d *delivery) current(ctx context.Context) error {
	for tries := 1; ; tries++ {
		now, err := d.c.bus.incarnation(ctx)
		switch {
		case err == nil && now != d.incarnation:
			return errOtherStream
		case err == nil:
			return nil
		case tries == maxSettles || !Sleep(ctx, time.Second):
			return fmt.Errorf("look up the stream: %w", err)
		}
	}
}

// extend extends the message's AckWait until stop is called. When stop returns, nothing more is
// sent: an extension after the acknowledgement would be an error.
func (d *delivery) extend(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // also during a drain
	var beats sync.WaitGroup
	beats.Go(func() {
		for Sleep(ctx, ackWait/3) {
			if err := d.settle(ctx, func() error { return d.InProgress() }); err != nil && ctx.Err() == nil {
				d.c.log.Debug("cannot extend the deadline of an event", "subject", d.Subject, "error", err)
			}
		}
	})
	return func() {
		cancel()
		beats.Wait()
	}
}

// handle handles one event and acknowledges it. Until then it extends the event's AckWait, also
// during a drain.
func (c *Consumer) handle(ctx context.Context, d *delivery) {
	defer logPanic(c.log, d.Subject) // what is not acknowledged is redelivered
	start := time.Now()
	stop := d.extend(ctx)
	defer stop()
	raw, deliveries, err := c.bus.raw(d.Msg)
	ctx, span := c.startProcess(ctx, d.Subject, raw, deliveries)
	defer span.End()
	e := Event{Deliveries: deliveries}
	if err == nil {
		e, err = c.process(ctx, raw, deliveries)
	}
	stop()
	outcome := c.ack(ctx, d, raw, e, err)
	if c.Observe != nil {
		c.Observe(raw.Type, outcome, time.Since(start))
	}
}

// jetstreamSize is the header of a message whose data the consumer is configured to omit.
const jetstreamSize = "Nats-Msg-Size"

// process decodes the event and handles it. A panic fails only this event.
func (c *Consumer) process(ctx context.Context, raw Raw, deliveries int) (e Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.ErrorContext(ctx, "a handler panicked",
				"event_id", e.ID, "type", raw.Type, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("the handler panicked")
		}
	}()
	if raw.Header.Get(jetstreamSize) != "" && len(raw.Data) == 0 && deliveries <= 5 {
		return e, errors.New("delivered without data: the consumer is set to headers_only")
	}
	e, err = Decode(raw)
	e.Deliveries = deliveries
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("messaging.message.id", e.ID))
	if err != nil {
		return e, err
	}
	return e, c.Handle(ctx, e)
}

// ack is the only place that sends the outcome of an event, err, to the server. By then it is
// committed.
func (c *Consumer) ack(ctx context.Context, d *delivery, raw Raw, e Event, err error) (outcome string) {
	var permanent *Permanent
	var retry *Retry
	log := c.log.With("event_id", e.ID, "type", raw.Type)
	span := trace.SpanFromContext(ctx)
	again := func(after time.Duration) {
		d.finish(ctx, "delay", func() error { return d.NakWithDelay(after) })
		span.AddEvent("redelivery requested",
			trace.WithAttributes(attribute.String("papermap.after", after.String())))
	}
	switch {
	case err == nil:
		d.finish(ctx, "acknowledge", func() error { return d.Ack() })
		span.AddEvent("acknowledged")
		failpoint.Hit(failpoint.Acked)
		return "acknowledged"
	case errors.As(err, &permanent):
		if err := c.bus.publishDead(ctx, raw, e, permanent); err != nil {
			level := slog.LevelDebug
			if c.failures.Allow() {
				level = slog.LevelError
			}
			log.Log(ctx, level, "cannot store a dead letter; the event will be redelivered", "error", err)
			again(Delay(e.Deliveries))
			span.SetStatus(codes.Error, "the dead letter could not be stored")
			return "failed"
		}
		span.AddEvent("dead letter stored",
			trace.WithAttributes(attribute.String("papermap.code", permanent.Code)))
		span.SetStatus(codes.Error, permanent.Code)
		failpoint.Hit(failpoint.DeadStored)
		log.WarnContext(ctx, "event became a dead letter", "code", permanent.Code, "error", permanent)
		d.finish(ctx, "terminate", func() error { return d.Term() })
		return "dead"
	case errors.As(err, &retry):
		log.DebugContext(ctx, "event will be redelivered", "after", retry.After, "reason", err)
		again(retry.After)
		return "retried"
	}
	after := Delay(e.Deliveries)
	level := slog.LevelDebug
	if c.failures.Allow() { // while the database is down every event fails
		level = slog.LevelWarn
	}
	log.Log(ctx, level, "event failed and will be redelivered", "after", after, "error", err)
	again(after)
	span.SetStatus(codes.Error, "failed")
	return "failed"
}

// raw returns a message as the stream stores it, and how often it was delivered.
func (b *Bus) raw(msg *nats.Msg) (r Raw, deliveries int, err error) {
	r = Raw{Type: b.o.Subjects.typeOf(msg.Subject), Header: msg.Header, Data: msg.Data}
	meta, err := msg.Metadata()
	if err != nil {
		return r, 1, fmt.Errorf("read a message's metadata: %w", err)
	}
	r.Sequence, r.Time = meta.Sequence.Stream, meta.Timestamp
	return r, int(meta.NumDelivered), nil
}
