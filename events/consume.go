package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"papermap-worker/worker/failpoint"
)

const (
	ackWait   = 15 * time.Second // a killed worker's events are offered again after this; one in hand says so three times as often
	lookEvery = 5 * time.Second  // how often a consumer is looked at, while events are fetched
	fetchWait = time.Second      // how long a pull waits for events, and so the longest that a stop waits for one
)

// Consumer takes events from one durable consumer and hands them out, at most Slots at a time. It fetches only what
// there are free slots for, because the server counts the time that an event waits in a buffer as time in hand.
type Consumer struct {
	Durable string
	Types   []string
	Slots   int
	Grace   time.Duration // after a stop, how long handlers may go on

	// Admit returns how many events may be fetched now, at least one; it waits while that is none, until ctx ends.
	// Nil means as many as there are slots.
	Admit func(ctx context.Context) (int, error)
	// Handle does what the event asks for. Its error settles the event: nil acknowledges it, *Permanent makes it a
	// dead letter, *Retry offers it again then, any other offers it again after Delay.
	Handle func(ctx context.Context, e Event) error
	// Settled, if there is one, hears of each event that was settled: acknowledged, dead, retried or failed.
	Settled func(eventType, outcome string, took time.Duration)

	bus     *Bus
	log     *slog.Logger
	ackWait time.Duration
	slots   chan struct{}
	inHand  sync.WaitGroup
	healthy atomic.Bool
}

// MainConsumer returns the consumer of tenant.created and usage.sync.
func (b *Bus) MainConsumer(slots int, grace time.Duration) *Consumer {
	return b.consumer(MainConsumer, mainTypes, slots, grace)
}

// AccessConsumer returns the consumer of tenant.suspended, tenant.resumed and tenant.deleted.
func (b *Bus) AccessConsumer(slots int, grace time.Duration) *Consumer {
	return b.consumer(AccessConsumer, accessTypes, slots, grace)
}

func (b *Bus) consumer(durable string, types []string, slots int, grace time.Duration) *Consumer {
	return &Consumer{
		Durable: durable, Types: types, Slots: slots, Grace: grace,
		bus: b, log: b.log.With("consumer", durable), ackWait: ackWait, slots: make(chan struct{}, slots),
	}
}

// Healthy says whether events are being fetched.
func (c *Consumer) Healthy() bool { return c.healthy.Load() }

// Run consumes until ctx ends. Then it fetches no more, gives back what it has not begun, waits for what is in hand
// and returns. Whatever goes wrong with the streams or the consumer meanwhile, it builds them again.
func (c *Consumer) Run(ctx context.Context) {
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(c.Grace, abandon) })
	defer stop()

	said := ""
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		err := c.consume(ctx, work, func() {
			c.healthy.Store(true)
			if said != "" {
				c.log.Info("consuming again")
			}
			said, wait = "", time.Second
		})
		c.healthy.Store(false)
		if ctx.Err() != nil {
			break
		}
		if err.Error() != said { // say it once
			said = err.Error()
			c.log.Error("cannot consume; trying again until it works", "error", err)
		}
		sleep(ctx, wait)
	}
	c.inHand.Wait()
}

// consume fetches and hands out events until ctx ends or something is wrong with the stream or the consumer. It
// calls working when a fetch has succeeded.
func (c *Consumer) consume(ctx, work context.Context, working func()) error {
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
	made, looked := settings(js.CachedInfo()), time.Now()
	working()
	for ctx.Err() == nil { // take alone would still find free slots now and then
		if time.Since(looked) > lookEvery {
			info, err := js.Info(ctx)
			looked = time.Now()
			switch {
			case errors.Is(err, jetstream.ErrConsumerNotFound):
				return fmt.Errorf("looking at consumer %s: %w", c.Durable, err)
			case err != nil: // a fetch will say what is wrong; if nothing is, we lack the right
				looked = looked.Add(time.Minute)
			case !reflect.DeepEqual(settings(info), made): // nothing else would tell: events just stay away, or are dropped
				c.log.WarnContext(ctx, "somebody has changed the consumer; putting it right")
				if js, err = c.ensure(ctx); err != nil {
					return err
				}
				made = settings(js.CachedInfo())
			}
		}
		n, err := c.take(ctx)
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

// ensure makes the durable consumer, or puts it right. One through which events of ours were lost begins again with the
// oldest in the stream, which handlers must bear anyway: the server would not hand out afterwards what has passed it.
func (c *Consumer) ensure(ctx context.Context) (jetstream.Consumer, error) {
	want := jetstream.ConsumerConfig{
		Durable:        c.Durable,
		FilterSubjects: c.bus.o.Subjects.events(c.Types), // exact, or we would take our own events out
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        c.ackWait,
		MaxDeliver:     -1, // a limit would drop events silently; failures are counted in the database
		MaxAckPending:  -1, // events that wait for a retry count, and must not keep others out
	}
	if old, err := c.bus.js.Consumer(ctx, c.bus.o.Stream, c.Durable); err == nil && loses(old.CachedInfo().Config, want) {
		err := c.bus.js.DeleteConsumer(ctx, c.bus.o.Stream, c.Durable)
		if err != nil {
			c.log.ErrorContext(ctx, "somebody had changed the consumer so that events may have passed it, and it cannot be deleted: delete it yourself, and it begins again", "error", err)
		} else {
			c.log.WarnContext(ctx, "somebody had changed the consumer so that events may have passed it; it begins with the oldest again")
		}
	}
	js, err := c.bus.js.CreateOrUpdateConsumer(ctx, c.bus.o.Stream, want)
	if err != nil {
		return nil, fmt.Errorf("making consumer %s: %w", c.Durable, err)
	}
	return js, nil
}

// loses says whether events that a consumer is to hand out may have passed one that is like this.
func loses(is, want jetstream.ConsumerConfig) bool {
	return is.MaxDeliver > 0 || slices.ContainsFunc(want.FilterSubjects, func(s string) bool { return !slices.Contains(is.FilterSubjects, s) })
}

// settings are those of a consumer that decide what it hands out. Servers add to the metadata as they like, and an operator
// may pause it.
func settings(info *jetstream.ConsumerInfo) jetstream.ConsumerConfig {
	config := info.Config
	config.Metadata, config.PauseUntil = nil, nil
	return config
}

// take waits for a free slot and for admission, and returns how many slots it took.
func (c *Consumer) take(ctx context.Context) (int, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	most := c.Slots
	if c.Admit != nil {
		var err error
		if most, err = c.Admit(ctx); err != nil {
			<-c.slots
			return 0, err
		}
	}
	n := 1
	for ; n < most; n++ {
		select {
		case c.slots <- struct{}{}:
		default:
			return n, nil
		}
	}
	return n, nil
}

// fetch asks for n events, for which slots are taken, and starts a handler for each that comes.
func (c *Consumer) fetch(ctx, work context.Context, js jetstream.Consumer, n int) error {
	defer func() {
		for range n {
			<-c.slots
		}
	}()
	batch, err := js.Fetch(n, jetstream.FetchMaxWait(fetchWait))
	if err != nil {
		return fmt.Errorf("fetching: %w", err)
	}
	for msg := range batch.Messages() {
		if ctx.Err() != nil {
			c.report("give back", msg, msg.NakWithDelay(fetchWait)) // at once, it would come back by this very pull
			continue
		}
		n--
		c.inHand.Go(func() {
			defer func() { <-c.slots }()
			c.handle(work, msg)
		})
	}
	if err := batch.Error(); err != nil {
		return fmt.Errorf("fetching: %w", err)
	}
	return nil
}

// handle handles one event and settles it, telling the server meanwhile that it is in hand, also during a drain.
func (c *Consumer) handle(ctx context.Context, msg jetstream.Msg) {
	began := time.Now()
	beats := time.NewTicker(c.ackWait / 3)
	done := make(chan struct{})
	go func() {
		defer beats.Stop()
		for {
			select {
			case <-beats.C:
				c.report("keep", msg, msg.InProgress())
			case <-done:
				return
			}
		}
	}()
	raw, deliveries, err := c.raw(msg)
	ctx, span := c.startProcess(ctx, msg.Subject(), raw, deliveries)
	defer span.End()
	var e Event
	if err == nil {
		e, err = c.process(ctx, raw, deliveries)
	}
	close(done)
	outcome := c.settle(ctx, msg, raw, e, deliveries, err)
	if c.Settled != nil {
		c.Settled(raw.Type, outcome, time.Since(began))
	}
}

// process reads the event and handles it. A panic is a failure of this event alone.
func (c *Consumer) process(ctx context.Context, raw Raw, deliveries int) (e Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.ErrorContext(ctx, "a handler panicked", "event_id", e.ID, "type", raw.Type, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("the handler panicked")
		}
	}()
	e, err = Decode(raw)
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("messaging.message.id", e.ID))
	if err != nil {
		return e, err
	}
	e.Deliveries = deliveries
	return e, c.Handle(ctx, e)
}

// settle is the one place that tells the server what became of an event. By then it is committed.
func (c *Consumer) settle(ctx context.Context, msg jetstream.Msg, raw Raw, e Event, deliveries int, err error) (outcome string) {
	var permanent *Permanent
	var retry *Retry
	log := c.log.With("event_id", e.ID, "type", raw.Type)
	span := trace.SpanFromContext(ctx)
	switch {
	case err == nil:
		c.report("acknowledge", msg, msg.Ack())
		span.AddEvent("acknowledged")
		failpoint.Hit(failpoint.Acked)
		return "acknowledged"
	case errors.As(err, &permanent):
		if err := c.bus.publishDead(ctx, raw, e, permanent); err != nil {
			log.ErrorContext(ctx, "cannot store a dead letter; the event stays", "error", err)
			c.report("delay", msg, msg.NakWithDelay(Delay(deliveries)))
			span.SetStatus(codes.Error, "the dead letter could not be stored")
			return "failed"
		}
		span.AddEvent("dead letter stored", trace.WithAttributes(attribute.String("papermap.code", permanent.Code)))
		span.SetStatus(codes.Error, permanent.Code)
		failpoint.Hit(failpoint.DeadStored)
		log.WarnContext(ctx, "event became a dead letter", "code", permanent.Code, "error", permanent)
		c.report("terminate", msg, msg.Term())
		return "dead"
	case errors.As(err, &retry):
		log.DebugContext(ctx, "event is offered again later", "after", retry.After, "reason", err)
		c.report("delay", msg, msg.NakWithDelay(retry.After))
		span.AddEvent("offered again later", trace.WithAttributes(attribute.String("papermap.after", retry.After.String())))
		return "retried"
	}
	after := Delay(deliveries)
	log.WarnContext(ctx, "event failed and is offered again later", "after", after, "error", err)
	c.report("delay", msg, msg.NakWithDelay(after))
	span.AddEvent("offered again later", trace.WithAttributes(attribute.String("papermap.after", after.String())))
	span.SetStatus(codes.Error, "failed")
	return "failed"
}

// report logs that the server could not be told something. The event is then offered again after ackWait, which
// handlers must bear anyway.
func (c *Consumer) report(what string, msg jetstream.Msg, err error) {
	if err != nil {
		c.log.Warn("cannot settle an event; it will be offered again", "operation", what, "subject", msg.Subject(), "error", err)
	}
}

func (c *Consumer) raw(msg jetstream.Msg) (Raw, int, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Raw{}, 1, fmt.Errorf("reading a message's metadata: %w", err)
	}
	return Raw{
		Type: msg.Subject()[len(c.bus.o.Subjects.Event("")):], Header: msg.Headers(), Data: msg.Data(),
		Sequence: meta.Sequence.Stream, Time: meta.Timestamp,
	}, int(meta.NumDelivered), nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
