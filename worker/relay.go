package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

const (
	relayLease  = 20 * time.Second
	relayMargin = 5 * time.Second        // before the end of its lease the relay publishes nothing more
	relayPoll   = 500 * time.Millisecond // while other replicas may leave their events to this one
	relayIdle   = 4 * time.Second        // longest poll for events of commands, and of replicas that are gone
	relayBatch  = 256
	relayStop   = 2 * time.Second // for the last pass, at a stop

	// relaySkip is how long an event that NATS refuses is skipped.
	relaySkip = 10 * time.Second
)

// relayRest is the minimum pause of a relay after a failed batch. It is longer than relayPoll, so
// that another replica takes the lease.
var relayRest = events.Backoff{Base: 2 * relayPoll, Max: 5 * time.Second}

// relay publishes the events of the outbox, at least once and in order per tenant.
//
// Events out are written to the outbox in the transaction of the state change that they announce.
// Across all replicas one relay, which holds the lease "outbox", publishes them and marks them as
// sent once the stream has acknowledged them. A replica that cannot publish does not become the
// relay: it takes no lease without a connection to NATS, and drops it after a failed batch.
//
// A relay that is killed between publishing and marking publishes some events again, with the same
// ids, which the stream drops within its duplicate window of 2 minutes. One that was suspended in
// the middle of a batch publishes no more of it: right before each event it checks that its lease
// has not ended.
//
// The services wake it after each commit that has an event. Until its lease has ended it polls for
// those of other replicas. After that the next replica that writes an event becomes the relay, so an
// idle one polls less often.
type relay struct {
	db    *repo.DB
	bus   *events.Bus
	log   *slog.Logger
	spans *spanByEvent

	holder   string        // of the lease
	until    time.Time     // end of this replica's lease, as far as it knows; zero: it has none
	ledUntil time.Time     // end of its latest lease, unless it was dropped
	woken    chan struct{} // signaled when there is an event to publish
	failures int           // batches in a row that failed
	rest     time.Time     // no batch before
	warned   logOnce

	// Events that NATS refuses because they are too large, and types that no stream captures.
	skip      repo.Skip
	skipUntil time.Time
	refused   error // why the first of them was refused
}

func newRelay(db *repo.DB, bus *events.Bus, log *slog.Logger, spans *spanByEvent) *relay {
	return &relay{
		db: db, bus: bus, log: log, spans: spans, holder: uuid.NewString(), woken: make(chan struct{}, 1),
	}
}

// wake makes the relay check the outbox at once.
func (r *relay) wake() { signal(r.woken) }

// run publishes until ctx ends, then makes one last pass.
func (r *relay) run(ctx context.Context) {
	wait := relayPoll
	poll := time.NewTimer(wait)
	defer poll.Stop()
	for {
		select {
		case <-r.woken:
			r.pass(ctx)
			wait = relayPoll
		case <-poll.C:
			if wait = min(2*wait, relayIdle); !r.pass(ctx) || time.Now().Before(r.ledUntil) {
				wait = relayPoll
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), relayStop)
			defer cancel()
			r.rest = time.Time{}
			r.pass(last)
			if err := r.db.DropLease(last, "outbox", r.holder); err != nil {
				r.log.Warn("cannot drop the relay's lease", "error", err)
			}
			return
		}
		poll.Reset(wait)
	}
}

// errNotRelay means that another replica has the lease.
var errNotRelay = errors.New("another replica is the relay")

// pass publishes all that it can, unless this replica has no connection, rests, or is not the
// relay. It logs when a problem begins and when it ends. It returns true if nothing waits.
func (r *relay) pass(ctx context.Context) (idle bool) {
	if r.bus.Connected() != nil { // which the log has
		r.giveUp(ctx)
		return false
	}
	if time.Now().Before(r.rest) {
		return false
	}
	err := r.publishAll(ctx)
	switch {
	case errors.Is(err, errNotRelay):
		return false
	case err != nil:
		r.failures++
		r.rest = time.Now().Add(relayRest.Delay(r.failures))
	default:
		r.failures, err = 0, r.refused
	}
	switch before := r.warned.on; {
	case r.warned.begins(err != nil):
		r.log.Warn("cannot publish outgoing events; they stay in the outbox", "error", err)
	case before && err == nil:
		r.log.Info("publishing outgoing events again")
	}
	return err == nil
}

// publishAll publishes until nothing publishable is left.
func (r *relay) publishAll(ctx context.Context) error {
	if !time.Now().Before(r.skipUntil) {
		r.skip, r.skipUntil, r.refused = repo.Skip{}, time.Now().Add(relaySkip), nil
	}
	for {
		waiting, err := r.lead(ctx)
		if err == nil && waiting {
			waiting, err = r.publishBatch(ctx)
			if err != nil {
				r.giveUp(ctx)
			}
		}
		if err != nil || !waiting {
			return err
		}
	}
}

// lead makes sure that at least half of the lease is left. It returns false if there is nothing to
// publish.
func (r *relay) lead(ctx context.Context) (waiting bool, err error) {
	asked := time.Now()
	if r.until.Sub(asked) >= relayLease/2 {
		return true, nil
	}
	r.until = time.Time{}
	rows, err := r.db.NextUnsent(ctx, 1, r.skip)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	taken, err := r.db.TakeLease(ctx, "outbox", r.holder, relayLease)
	if err == nil && !taken {
		err = errNotRelay
	}
	if err == nil {
		r.until = asked.Add(relayLease)
		r.ledUntil = r.until
	}
	return true, err
}

// giveUp drops the lease, so that a replica that can publish takes it.
func (r *relay) giveUp(ctx context.Context) {
	if r.until.IsZero() {
		return
	}
	r.until, r.ledUntil = time.Time{}, time.Time{}
	if err := r.db.DropLease(ctx, "outbox", r.holder); err != nil { // then it ends by itself
		r.log.Debug("cannot drop the relay's lease", "error", err)
	}
}

// publishBatch publishes the oldest event of each tenant. It takes only one per tenant because all
// are published concurrently. It returns false if none was waiting.
func (r *relay) publishBatch(ctx context.Context) (waiting bool, err error) {
	rows, err := r.db.NextUnsent(ctx, relayBatch, r.skip)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	failpoint.Hit(failpoint.OutboxRead)
	batch := make([]events.Outgoing, len(rows))
	for i, row := range rows {
		if batch[i], err = r.outgoing(row); err != nil {
			return false, err
		}
	}
	publishing, cancel := context.WithDeadline(ctx, r.until.Add(-relayMargin))
	defer cancel()
	var sent []int64
	for i, publishErr := range r.bus.PublishAll(publishing, batch) {
		switch {
		case publishErr == nil:
			sent = append(sent, rows[i].ID)
		case errors.Is(publishErr, events.ErrTooLarge):
			r.skip.IDs = append(r.skip.IDs, rows[i].ID)
			r.refuse(rows[i], publishErr)
		case errors.Is(publishErr, events.ErrNoStream):
			r.skip.Types = append(r.skip.Types, rows[i].Type)
			r.refuse(rows[i], publishErr)
		default:
			err = publishErr
		}
	}
	slices.Sort(r.skip.Types)
	r.skip.Types = slices.Compact(r.skip.Types)
	failpoint.Hit(failpoint.OutboxSent)
	if markErr := r.db.MarkSent(ctx, sent); markErr != nil {
		return false, markErr
	}
	return true, err
}

func (r *relay) refuse(row repo.OutboxRow, err error) {
	if r.refused == nil {
		r.refused = fmt.Errorf("event %s of tenant %q: %w", row.EventID, row.TenantID, err)
	}
}

// outgoing makes the event of a row of the outbox.
func (r *relay) outgoing(row repo.OutboxRow) (events.Outgoing, error) {
	e, err := events.Structured(row.EventID, row.Type, row.TenantID, row.CreatedAt.Time, row.Data)
	if row.OriginalID != "" {
		e = e.WithIdentity(row.OriginalID, time.Unix(0, row.OriginalTime))
	}
	e.Cause = r.spans.of(row.EventID)
	return e, err
}

// spanByEvent remembers which span wrote each event of the outbox, so that the relay continues its
// trace. It is only in memory: an event that another replica publishes, or that is published after
// a restart, begins a new trace.
type spanByEvent struct {
	mu    sync.Mutex
	spans twoGenCache[trace.SpanContext]
}

const maxSpans = 10_000

func newSpanByEvent() *spanByEvent {
	return &spanByEvent{spans: twoGenCache[trace.SpanContext]{size: maxSpans / 2}}
}

// remember records the current span, if it is sampled, as the one that wrote the event.
func (s *spanByEvent) remember(ctx context.Context, eventID string) {
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.spans.put(eventID, span)
	}
}

// of returns the span that wrote an event; an invalid one when it is not known.
func (s *spanByEvent) of(eventID string) trace.SpanContext {
	s.mu.Lock()
	defer s.mu.Unlock()
	span, _ := s.spans.get([]byte(eventID))
	return span
}
