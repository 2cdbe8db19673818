package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

const (
	relayLease = 20 * time.Second
	relayPoll  = 500 * time.Millisecond // for events of other replicas, and those that a crash left behind
	relayBatch = 256
	relayStop  = 2 * time.Second // for the last pass, at a stop
)

// relay publishes the events of the outbox, at least once and in order per tenant.
//
// Events out are written to the outbox in the transaction of the state change that they announce.
// Over all replicas one relay, which has the lease "outbox", publishes them and marks them as sent
// once the stream has acknowledged them. A relay that is killed in between publishes some again,
// under the same id, which the stream drops within its duplicate window.
//
// The services wake it after each commit that has an event; it polls for those of other replicas.
type relay struct {
	db    *repo.DB
	bus   *events.Bus
	log   *slog.Logger
	spans *spanByEvent

	holder string        // of the lease
	until  time.Time     // end of this replica's lease, as far as it knows
	woken  chan struct{} // signaled when there is an event to publish
}

func newRelay(db *repo.DB, bus *events.Bus, log *slog.Logger, spans *spanByEvent) *relay {
	return &relay{
		db: db, bus: bus, log: log, spans: spans, holder: uuid.NewString(), woken: make(chan struct{}, 1),
	}
}

// wake makes the relay look at the outbox at once.
func (r *relay) wake() { signal(r.woken) }

// run publishes until ctx ends; then what is left, once more.
func (r *relay) run(ctx context.Context) {
	poll := time.NewTicker(relayPoll)
	defer poll.Stop()
	logged := ""
	pass := func(ctx context.Context) {
		err := r.publishAll(ctx)
		switch {
		case err == nil:
			logged = ""
		case err.Error() != logged && ctx.Err() == nil:
			logged = err.Error()
			r.log.Warn("cannot publish events out; they wait in the database", "error", err)
		}
	}
	for {
		select {
		case <-r.woken:
			pass(ctx)
		case <-poll.C:
			pass(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), relayStop)
			defer cancel()
			pass(last)
			if err := r.db.DropLease(last, "outbox", r.holder); err != nil {
				r.log.Warn("cannot give up the relay's lease", "error", err)
			}
			return
		}
	}
}

// publishAll publishes until nothing is left that can be published, or another replica has the
// lease. Its error says what is left.
func (r *relay) publishAll(ctx context.Context) error {
	// Tenants with an event that can never be published: their later events wait behind it, others
	// do not.
	var stuck []string
	var left error
	for {
		leader, err := r.lead(ctx, stuck)
		if err != nil || !leader {
			return errors.Join(left, err)
		}
		n, tooLarge, err := r.publishBatch(ctx, stuck)
		for _, row := range tooLarge {
			stuck = append(stuck, row.TenantID)
			err := fmt.Errorf("event %s of tenant %q: %w", row.EventID, row.TenantID, events.ErrTooLarge)
			left = errors.Join(left, err)
		}
		if err != nil || n == 0 {
			return errors.Join(left, err)
		}
	}
}

// lead makes sure that half of the lease is left, and returns false if there is nothing to publish
// or another replica has the lease.
func (r *relay) lead(ctx context.Context, stuck []string) (bool, error) {
	asked := time.Now()
	if r.until.Sub(asked) >= relayLease/2 {
		return true, nil
	}
	rows, err := r.db.Unsent(ctx, 1, stuck...)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	taken, err := r.db.TakeLease(ctx, "outbox", r.holder, relayLease)
	if taken {
		r.until = asked.Add(relayLease)
	}
	return taken, err
}

// publishBatch publishes the oldest events of tenants that are not stuck, one of each tenant at
// most, because all are published at the same time. It returns how many rows were waiting.
func (r *relay) publishBatch(
	ctx context.Context, stuck []string,
) (waiting int, tooLarge []repo.OutboxRow, err error) {
	rows, err := r.db.Unsent(ctx, relayBatch, stuck...)
	if err != nil || len(rows) == 0 {
		return 0, nil, err
	}
	failpoint.Hit(failpoint.OutboxRead)
	var batch []events.Outgoing
	var source []repo.OutboxRow // of each in the batch
	seen := map[string]bool{}
	for _, row := range rows {
		if seen[row.TenantID] {
			continue
		}
		seen[row.TenantID] = true
		e, err := events.Structured(row.EventID, row.Type, row.TenantID, row.CreatedAt.Time, row.Data)
		if err != nil {
			return 0, nil, err
		}
		if row.OriginalID != "" {
			e = e.WithIdentity(row.OriginalID, time.Unix(0, row.OriginalTime))
		}
		e.Cause = r.spans.of(row.EventID)
		batch, source = append(batch, e), append(source, row)
	}
	publishing, cancel := context.WithTimeout(ctx, relayLease/2)
	defer cancel()
	var sent []int64
	for i, publishErr := range r.bus.PublishAll(publishing, batch) {
		switch {
		case publishErr == nil:
			sent = append(sent, source[i].ID)
		case errors.Is(publishErr, events.ErrTooLarge):
			tooLarge = append(tooLarge, source[i])
		default:
			err = publishErr
		}
	}
	failpoint.Hit(failpoint.OutboxSent)
	if markErr := r.db.MarkSent(ctx, sent); markErr != nil {
		return 0, nil, markErr
	}
	return len(rows), tooLarge, err
}

// spanByEvent remembers which span wrote each event of the outbox, so that the relay continues its
// trace. It is in memory: an event that another replica publishes, or that outlives a restart,
// begins a new trace.
type spanByEvent struct {
	mu    sync.Mutex
	spans twoGenCache[trace.SpanContext]
}

const maxSpans = 10_000

func newSpanByEvent() *spanByEvent {
	return &spanByEvent{spans: twoGenCache[trace.SpanContext]{size: maxSpans / 2}}
}

// remember notes the current span, if it is sampled, as the one that wrote the event.
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
