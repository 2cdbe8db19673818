package repo

import (
	"context"
	"time"

	"github.com/google/uuid"
)

// How long rows are kept after they are no longer needed. The other tables do not grow without
// limit, or are kept forever: docs/operations.md lists all of them.
const (
	day          = 24 * time.Hour
	sentKept     = 30 * day  // events out that were sent, which are part of a tenant's history
	attemptsKept = 366 * day // create requests that left no doubt: created or refused
	changesKept  = 366 * day // totals of usage that went down
)

// pruneBatch is how many rows one transaction deletes, so that it stays short.
const pruneBatch = 1000

// Prune deletes old rows in short transactions, until none is left or ctx ends. It returns how many
// it deleted. Entries of the audit log are kept for auditKept.
func (db *DB) Prune(ctx context.Context, auditKept time.Duration) (deleted int64, err error) {
	now, err := db.clock(ctx)
	if err != nil {
		return 0, err
	}
	before := func(kept time.Duration) Time { return at(now.Add(-kept)) }
	judged, _ := judgedPeriods(at(now))
	// Only the outbox and audit_log have an index by age. Ids of attempts and of changes grow with
	// time, so a statement reads no younger rows, except for a batch of changes.
	for _, d := range []struct {
		query string
		args  []any
	}{
		{
			"DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE sent_at < ? LIMIT ?)",
			[]any{before(sentKept), pruneBatch},
		},
		{
			`DELETE FROM provision_attempts WHERE id IN (SELECT id FROM provision_attempts
				WHERE id < ? AND outcome IN ('created', 'refused') AND finished_at < ? LIMIT ?)`,
			[]any{firstID(before(attemptsKept).Time), before(attemptsKept), pruneBatch},
		},
		{
			`DELETE FROM usage_changes WHERE id IN (SELECT id FROM (SELECT id, changed_at FROM usage_changes
				ORDER BY id LIMIT ?) oldest WHERE changed_at < ?)`,
			[]any{pruneBatch, before(changesKept)},
		},
		{
			"DELETE FROM audit_log WHERE id IN (SELECT id FROM audit_log WHERE at < ? LIMIT ?)",
			[]any{before(auditKept), pruneBatch},
		},
		{
			`DELETE FROM usage_marks WHERE (period, workspace_id, tenant_id, percent) IN
				(SELECT period, workspace_id, tenant_id, percent FROM usage_marks WHERE period < ? LIMIT ?)`,
			[]any{judged, pruneBatch},
		},
	} {
		n, err := db.prune(ctx, d.query, d.args)
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// prune repeats a statement until it deletes less than a batch.
func (db *DB) prune(ctx context.Context, query string, args []any) (deleted int64, err error) {
	for n := int64(pruneBatch); n == pruneBatch && ctx.Err() == nil; deleted += n {
		err := db.update(ctx, func(ctx context.Context, t *tx) (err error) {
			n, err = t.execCount(ctx, query, args...)
			return err
		}, "prune the database")
		if err != nil {
			return deleted, err
		}
	}
	return deleted, ctx.Err()
}

// firstID is the smallest UUID of version 7 at a time: it begins with the milliseconds.
func firstID(t time.Time) string {
	var id uuid.UUID
	for i, ms := 5, t.UnixMilli(); i >= 0; i, ms = i-1, ms>>8 {
		id[i] = byte(ms)
	}
	return id.String()
}
