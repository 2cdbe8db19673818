package worker

import (
	"context"
	"time"

	"papermap-worker/events"
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
	said := false
	var mine time.Time // until when this replica is the relay, as far as it knows
	pass := func(ctx context.Context) {
		err := w.relayAll(ctx, &mine)
		if err != nil && !said && ctx.Err() == nil {
			w.log.Warn("cannot publish events out; they wait in the database", "error", err)
		}
		said = err != nil
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

// relayAll publishes until nothing waits, or this replica is not the relay.
func (w *Worker) relayAll(ctx context.Context, mine *time.Time) error {
	for {
		waiting, err := w.db.Unsent(ctx, 1)
		if err != nil || len(waiting) == 0 {
			return err
		}
		if asked := time.Now(); mine.Sub(asked) < relayLease/2 {
			taken, err := w.db.TakeLease(ctx, "outbox", w.id, relayLease)
			if err != nil || !taken {
				return err
			}
			*mine = asked.Add(relayLease)
		}
		if err := w.relayBatch(ctx); err != nil {
			return err
		}
	}
}

// relayBatch publishes the oldest events, at most one of each tenant, because they are published at once.
func (w *Worker) relayBatch(ctx context.Context) error {
	rows, err := w.db.Unsent(ctx, relayBatch)
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.OutboxRead)
	var batch []events.Outgoing
	var ids []int64
	seen := map[string]bool{}
	for _, r := range rows {
		if seen[r.TenantID] {
			continue
		}
		seen[r.TenantID] = true
		e, err := events.Structured(r.EventID, r.Type, r.TenantID, r.CreatedAt.Time, r.Data)
		if err != nil {
			return err
		}
		if r.OriginalID != "" {
			e = e.As(r.OriginalID, time.Unix(0, r.OriginalTime))
		}
		e.Cause = w.causes.of(r.EventID)
		batch, ids = append(batch, e), append(ids, r.ID)
	}
	publishing, cancel := context.WithTimeout(ctx, relayLease/2)
	defer cancel()
	var sent []int64
	for i, publishErr := range w.bus.PublishAll(publishing, batch) {
		if publishErr == nil {
			sent = append(sent, ids[i])
		} else {
			err = publishErr
		}
	}
	failpoint.Hit(failpoint.OutboxSent)
	if markErr := w.db.MarkSent(ctx, sent); markErr != nil {
		return markErr
	}
	return err
}
