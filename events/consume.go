package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"papermap-worker/worker/failpoint"
)

const (
	checkEvery   = 5 * time.Second      // between looks at the consumer's settings, while events are fetched
	failureLines = rate.Limit(1.0 / 30) // per second, of each kind

	fetchWait = time.Second // how long a pull waits for events, and so how long a stop may wait for it
)

// Consumer fetches events from one durable consumer and handles them, at most Slots at a time. It
// fetches only what there are free slots for: the server counts the time that an event waits in a
// buffer towards AckWait.
type Consumer struct {
	Durable string
	Slots   int
	Grace   time.Duration // after a stop, how long handlers may continue

	// Admit returns how many events may be fetched now, at least one; while that is none, it waits
	// until ctx ends. Nil means as many as there are slots.
	Admit func(ctx context.Context) (int, error)
	// Handle does what the event asks for. After nil the event is acknowledged; after *Permanent it
	// becomes a dead letter; after *Retry it is delivered again then; after any other error it is
	// delivered again after [Delay]. Handle must be safe to repeat, also concurrently on two workers.
	Handle func(ctx context.Context, e Event) error
	// Observe, if not nil, is called for each event with its outcome: acknowledged, dead, retried or
	// failed.
	Observe func(eventType, outcome string, took time.Duration)

	bus      *Bus
	log      *slog.Logger
	slots    chan struct{} // one element for each slot in use
	inFlight sync.WaitGroup
	healthy  atomic.Bool

	// Of log lines about failures, which come with every event while something is down.
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
		failures: rate.NewLimiter(failureLines, 1), unsettled: rate.NewLimiter(failureLines, 1),
	}
}

// Healthy reports whether events are being fetched.
func (c *Consumer) Healthy() bool { return c.healthy.Load() }

// The steps of one event: acquireSlots, fetch, handle (which extends AckWait), process (Decode and
// Handle), ack. Nothing else acknowledges.

// Run consumes until ctx ends. Then it stops fetching, returns to the server what it has not started,
// waits for the events in flight and returns. Streams or a consumer that are lost or changed
// meanwhile are made again.
func (c *Consumer) Run(ctx context.Context) {
	// Handlers run under work, which outlives ctx by Grace, so that a stop does not fail what is in
	// flight.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(c.Grace, abandon) })
	defer stop()

	logged, failures := "", 0 // each error is logged once
	retry := Backoff{Base: time.Second, Max: 5 * time.Second}
	for ctx.Err() == nil {
		err := c.consume(ctx, work, func() {
			c.healthy.Store(true)
			if logged != "" {
				c.log.Info("consuming again")
			}
			logged, failures = "", 0
		})
		c.healthy.Store(false)
		if ctx.Err() != nil {
			break
		}
		if err.Error() != logged {
			logged = err.Error()
			c.log.Error("cannot consume; retrying", "error", err)
		}
		failures++
		Sleep(ctx, retry.Delay(failures))
	}
	c.inFlight.Wait()
}

// consume fetches and handles events until ctx ends or something is wrong with the stream or the
// consumer. It calls ready when both are as they must be.
func (c *Consumer) consume(ctx, work context.Context, ready func()) error {
	if err := c.bus.Connected(); err != nil {
		return err
	}
	if err := c.bus.EnsureStreams(ctx); err != nil {
		return err
	}
	js, err := c.ensure(ctx)
	if err != nil {
		return err
	}
	created, checked := js.CachedInfo().Config, time.Now()
	ready()
	for ctx.Err() == nil { // acquireSlots alone would still find free slots now and then
		if time.Since(checked) > checkEvery {
			checked = time.Now()
			info, err := js.Info(ctx)
			switch {
			case errors.Is(err, jetstream.ErrConsumerNotFound):
				return fmt.Errorf("look up consumer %s: %w", c.Durable, err)
			case err != nil: // a fetch finds out what is wrong; if nothing is, the permission is missing
				checked = checked.Add(time.Minute)
			case len(changedSettings(info.Config, created)) > 0: // no fetch would fail: events just stay away
				c.log.WarnContext(ctx, "the consumer's settings were changed; restoring them",
					"settings", strings.Join(changedSettings(info.Config, created), ", "))
				if js, err = c.ensure(ctx); err != nil {
					return err
				}
				created = js.CachedInfo().Config
			}
		}
		n, err := c.acquireSlots(ctx)
		if err != nil {
			return err
		}
		if err := c.fetch(ctx, work, js, n); err != nil {
			return err
		}
		if err := c.bus.Connected(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// acquireSlots waits for a free slot and for admission, and returns how many slots it acquired.
func (c *Consumer) acquireSlots(ctx context.Context) (int, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	limit := c.Slots
	if c.Admit != nil {
		var err error
		if limit, err = c.Admit(ctx); err != nil {
			<-c.slots
			return 0, err
		}
	}
	n := 1
	for ; n < limit; n++ {
		select {
		case c.slots <- struct{}{}:
		default:
			return n, nil
		}
	}
	return n, nil
}

// fetch requests n events, for which slots are acquired, and starts a handler for each that comes.
func (c *Consumer) fetch(ctx, work context.Context, js jetstream.Consumer, n int) error {
	defer func() {
		for range n {
			<-c.slots
		}
	}()
	batch, err := js.Fetch(n, jetstream.FetchMaxWait(fetchWait))
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	for msg := range batch.Messages() {
		if ctx.Err() != nil {
			// Without a delay, it would come back by this very pull.
			c.logFailed("return", msg, msg.NakWithDelay(fetchWait))
			continue
		}
		n-- // the handler releases this slot
		c.inFlight.Go(func() {
			defer func() { <-c.slots }()
			c.handle(work, msg)
		})
	}
	if err := batch.Error(); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	return nil
}

// handle handles one event and acknowledges it. Until then it extends the event's AckWait, also
// during a drain.
func (c *Consumer) handle(ctx context.Context, msg jetstream.Msg) {
	start := time.Now()
	beats := time.NewTicker(ackWait / 3)
	done := make(chan struct{})
	go func() {
		defer beats.Stop()
		for {
			select {
			case <-beats.C:
				c.logFailed("extend", msg, msg.InProgress())
			case <-done:
				return
			}
		}
	}()
	raw, meta, err := c.bus.raw(msg)
	ctx, span := c.startProcess(ctx, msg.Subject(), raw, int(meta.NumDelivered))
	defer span.End()
	e := Event{Deliveries: int(meta.NumDelivered)}
	if err == nil {
		e, err = c.process(ctx, raw, e.Deliveries)
	}
	close(done) // before the acknowledgement: an extension after it would be an error
	outcome := c.ack(ctx, msg, raw, e, err)
	if c.Observe != nil {
		c.Observe(raw.Type, outcome, time.Since(start))
	}
}

// process decodes the event and handles it. A panic is a failure of this event alone.
func (c *Consumer) process(ctx context.Context, raw Raw, deliveries int) (e Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.ErrorContext(ctx, "a handler panicked",
				"event_id", e.ID, "type", raw.Type, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("the handler panicked")
		}
	}()
	e, err = Decode(raw)
	e.Deliveries = deliveries
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("messaging.message.id", e.ID))
	if err != nil {
		return e, err
	}
	return e, c.Handle(ctx, e)
}

// ack is the one place that tells the server the outcome of an event, err. By then it is committed.
func (c *Consumer) ack(ctx context.Context, msg jetstream.Msg, raw Raw, e Event, err error) (outcome string) {
	var permanent *Permanent
	var retry *Retry
	log := c.log.With("event_id", e.ID, "type", raw.Type)
	span := trace.SpanFromContext(ctx)
	again := func(after time.Duration) {
		c.logFailed("delay", msg, msg.NakWithDelay(after))
		span.AddEvent("delivered again later",
			trace.WithAttributes(attribute.String("papermap.after", after.String())))
	}
	switch {
	case err == nil:
		c.logFailed("acknowledge", msg, msg.Ack())
		span.AddEvent("acknowledged")
		failpoint.Hit(failpoint.Acked)
		return "acknowledged"
	case errors.As(err, &permanent):
		if err := c.bus.publishDead(ctx, raw, e, permanent); err != nil {
			level := slog.LevelDebug
			if c.failures.Allow() {
				level = slog.LevelError
			}
			log.Log(ctx, level, "cannot store a dead letter; the event stays", "error", err)
			again(Delay(e.Deliveries))
			span.SetStatus(codes.Error, "the dead letter could not be stored")
			return "failed"
		}
		span.AddEvent("dead letter stored",
			trace.WithAttributes(attribute.String("papermap.code", permanent.Code)))
		span.SetStatus(codes.Error, permanent.Code)
		failpoint.Hit(failpoint.DeadStored)
		log.WarnContext(ctx, "event became a dead letter", "code", permanent.Code, "error", permanent)
		c.logFailed("terminate", msg, msg.Term())
		return "dead"
	case errors.As(err, &retry):
		log.DebugContext(ctx, "event will be redelivered", "after", retry.After, "reason", err)
		again(retry.After)
		return "retried"
	}
	after := Delay(e.Deliveries)
	level := slog.LevelDebug
	if c.failures.Allow() { // while the database is away every event fails
		level = slog.LevelWarn
	}
	log.Log(ctx, level, "event failed and is delivered again later", "after", after, "error", err)
	again(after)
	span.SetStatus(codes.Error, "failed")
	return "failed"
}

// logFailed logs that an acknowledgement could not be sent. The event is then delivered again after
// ackWait, which handlers must bear anyway.
func (c *Consumer) logFailed(operation string, msg jetstream.Msg, err error) {
	if err != nil && c.unsettled.Allow() {
		c.log.Warn("cannot acknowledge an event; it will be delivered again",
			"operation", operation, "subject", msg.Subject(), "error", err)
	}
}

// raw returns a message as the stream stores it, and what the server says of its delivery.
func (b *Bus) raw(msg jetstream.Msg) (Raw, *jetstream.MsgMetadata, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Raw{Type: b.o.Subjects.typeOf(msg.Subject())}, &jetstream.MsgMetadata{NumDelivered: 1},
			fmt.Errorf("read a message's metadata: %w", err)
	}
	return Raw{
		Type: b.o.Subjects.typeOf(msg.Subject()), Header: msg.Headers(), Data: msg.Data(),
		Sequence: meta.Sequence.Stream, Time: meta.Timestamp,
	}, meta, nil
}
