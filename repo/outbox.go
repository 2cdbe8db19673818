package repo

import (
	"context"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"
)

// The outbox guarantees that an event is published if, and only if, its state change was committed.
// One worker at a time, the holder of the lease "outbox", publishes the waiting events and marks
// those that the stream has stored:
//
//	rows, err := db.NextUnsent(ctx, limit, skip) // one of each tenant
//	… publish them
//	err = db.MarkSent(ctx, ids)
//
// If the worker is killed in between, the event is published again with the same id, which
// consumers and the stream's duplicate window recognize: at least once, in order for each tenant.

// OutboxEvent is an event to be published because of a state change.
type OutboxEvent struct {
	EventID string // unique; the same at every publication
	Type    string // e.g. dashboard.created
	Data    []byte // JSON

	// Of an event in that is published again; empty and 0 for an event out.
	OriginalID   string
	OriginalTime int64 // Unix nanoseconds
}

// Announce makes the event for a mapping that is being committed. The mapping's Stage says which
// event: Active (dashboard.created), Failed (dashboard.failed), Held (dashboard.held), or Pending
// (its own tenant.created, to be published again). It is called within the transaction, and more
// than once if the decision is repeated, so it must be quick and must not use the database. If it
// fails, nothing is written.
type Announce func(Mapping) (OutboxEvent, error)

// OutboxRow is a row of the outbox.
type OutboxRow struct {
	ID        int64  `db:"id"`
	EventID   string `db:"event_id"`
	TenantID  string `db:"tenant_id"`
	Type      string `db:"type"`
	Data      []byte `db:"data"`
	CreatedAt Time   `db:"created_at"`
	SentAt    Time   `db:"sent_at"` // zero while it waits; kept for TenantOutbox until Prune

	OriginalID   string `db:"original_id"`
	OriginalTime int64  `db:"original_time"`
}

func newOutboxRow(tenantID string, e OutboxEvent, now Time) OutboxRow {
	return OutboxRow{
		EventID: e.EventID, TenantID: tenantID, Type: e.Type, Data: e.Data, CreatedAt: now,
		OriginalID: e.OriginalID, OriginalTime: e.OriginalTime,
	}
}

func (t *tx) enqueue(ctx context.Context, tenantID string, e OutboxEvent) error {
	return t.exec(ctx, `INSERT INTO outbox (event_id, tenant_id, type, data, original_id, original_time,
		created_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		e.EventID, tenantID, e.Type, string(e.Data), e.OriginalID, e.OriginalTime, t.now)
}

// Skip is what NextUnsent leaves out.
type Skip struct {
	IDs   []int64  // of OutboxRow
	Types []string // of events
}

// NextUnsent reads the events that may be published concurrently: the oldest waiting event of each
// tenant, at most limit. If a tenant's oldest event is skipped, its later events wait behind it.
//
// Rows are found by their state and never by the last id seen, because ids are assigned before
// transactions commit. The query groups by an expression. Otherwise SQLite would use the index of
// all rows by tenant, including sent ones, instead of the index of waiting rows.
func (db *DB) NextUnsent(ctx context.Context, limit int, skip Skip) ([]OutboxRow, error) {
	query, args := outboxTable.selects+` WHERE id IN
		(SELECT MIN(id) FROM outbox WHERE sent_at IS NULL GROUP BY tenant_id || '')`, []any{}
	if len(skip.IDs) > 0 {
		query, args = query+" AND id NOT IN (?)", append(args, skip.IDs)
	}
	if len(skip.Types) > 0 {
		query, args = query+" AND type NOT IN (?)", append(args, skip.Types)
	}
	query, args, err := sqlx.In(query+" ORDER BY id LIMIT ?", append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return list[OutboxRow](ctx, db.read, "read the outbox", query, args...)
}

// Unsent reads at most limit events that wait to be published, oldest first.
func (db *DB) Unsent(ctx context.Context, limit int) ([]OutboxRow, error) {
	return list[OutboxRow](ctx, db.read, "read the outbox",
		outboxTable.selects+" WHERE sent_at IS NULL ORDER BY id LIMIT ?", limit)
}

// TenantOutbox reads a tenant's newest events out, at most limit, oldest first: waiting ones, and
// sent ones that are still stored.
func (db *DB) TenantOutbox(ctx context.Context, tenantID string, limit int) ([]OutboxRow, error) {
	rows, err := list[OutboxRow](ctx, db.read, fmt.Sprintf("read the events out of tenant %q", tenantID),
		outboxTable.selects+" WHERE tenant_id = ? ORDER BY id DESC LIMIT ?", tenantID, limit)
	slices.Reverse(rows)
	return rows, err
}

// MarkSent records that the stream has acknowledged the events. ids are those of OutboxRow.
func (db *DB) MarkSent(ctx context.Context, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	return db.decide(ctx, &job{sent: ids}, "mark events as sent")
}
