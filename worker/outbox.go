package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

const (
	relayLease = 20 * time.Second
	relayPoll  = 500 * time.Millisecond // for events of other replicas, and those left by a crash
	relayBatch = 256
	sentFor    = 30 * 24 * time.Hour // sent events are kept so long, to tell a tenant's story
	pruneBatch = 1000
)

// relay publishes the events that wait in the outbox, until ctx ends; then what is left, once more. Over all
// replicas one relay works at a time, so that a tenant's events leave in order.
func (w *Worker) relay(ctx context.Context) {
	poll := time.NewTicker(relayPoll)
	defer poll.Stop()
	prune := time.NewTicker(time.Minute)
	defer prune.Stop()
	said := ""
	var mine time.Time // until when this replica is the relay, as far as it knows
	pass := func(ctx context.Context) {
		err := w.relayAll(ctx, &mine)
		switch {
		case err == nil:
			said = ""
		case err.Error() != said && ctx.Err() == nil: // say it once
			said = err.Error()
			w.log.Warn("cannot publish events out; they wait in the database", "error", err)
		}
	}
	for {
		select {
		case <-w.outbox:
			pass(ctx)
		case <-poll.C:
			pass(ctx)
		case <-prune.C:
			if err := w.db.PruneSent(ctx, sentFor, pruneBatch); err != nil {
				w.log.Warn("cannot prune the outbox", "error", err)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			pass(last)
			if err := w.db.DropLease(last, "outbox", w.id); err != nil {
				w.log.Warn("cannot give up the relay", "error", err)
			}
			return
		}
	}
}

// relayAll publishes until nothing waits that can be published, or this replica is not the relay. Its error says what is left.
func (w *Worker) relayAll(ctx context.Context, mine *time.Time) error {
	var stuck []string // tenants with an event that can never be published: what they have after it waits, all others go on
	var left error
	for {
		if asked := time.Now(); mine.Sub(asked) < relayLease/2 {
			waiting, err := w.db.Unsent(ctx, 1, stuck...)
			if err != nil || len(waiting) == 0 {
				return errors.Join(left, err)
			}
			taken, err := w.db.TakeLease(ctx, "outbox", w.id, relayLease)
			if err != nil || !taken {
				return errors.Join(left, err)
			}
			*mine = asked.Add(relayLease)
		}
		waited, tooLarge, err := w.relayBatch(ctx, stuck)
		for _, r := range tooLarge {
			stuck, left = append(stuck, r.TenantID), errors.Join(left, fmt.Errorf("event %s of tenant %q: %w", r.EventID, r.TenantID, events.ErrTooLarge))
		}
		if err != nil || waited == 0 {
			return errors.Join(left, err)
		}
	}
}

// relayBatch publishes the oldest events of tenants that are not stuck, at most one of each, because they are published at once.
// It returns how many waited.
func (w *Worker) relayBatch(ctx context.Context, stuck []string) (waited int, tooLarge []repo.Outgoing, err error) {
	rows, err := w.db.Unsent(ctx, relayBatch, stuck...)
	if err != nil || len(rows) == 0 {
		return 0, nil, err
	}
	failpoint.Hit(failpoint.OutboxRead)
	var batch []events.Outgoing
	var of []repo.Outgoing
	seen := map[string]bool{}
	for _, r := range rows {
		if seen[r.TenantID] {
			continue
		}
		seen[r.TenantID] = true
		e, err := events.Structured(r.EventID, r.Type, r.TenantID, r.CreatedAt.Time, r.Data)
		if err != nil {
			return 0, nil, err
		}
		if r.OriginalID != "" {
			e = e.As(r.OriginalID, time.Unix(0, r.OriginalTime))
		}
		e.Cause = w.causes.of(r.EventID)
		batch, of = append(batch, e), append(of, r)
	}
	publishing, cancel := context.WithTimeout(ctx, relayLease/2)
	defer cancel()
	var sent []int64
	for i, publishErr := range w.bus.PublishAll(publishing, batch) {
		switch {
		case publishErr == nil:
			sent = append(sent, of[i].ID)
		case errors.Is(publishErr, events.ErrTooLarge):
			tooLarge = append(tooLarge, of[i])
		default:
			err = publishErr
		}
	}
	failpoint.Hit(failpoint.OutboxSent)
	if markErr := w.db.MarkSent(ctx, sent); markErr != nil {
		return 0, nil, markErr
	}
	return len(rows), tooLarge, err
}
