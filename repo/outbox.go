package repo

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
)

// Notice is an event to be published because of a state change.
type Notice struct {
	EventID string // unique; the same at every publication
	Type    string // e.g. dashboard.created
	Data    []byte // JSON

	// Of an event in that is published again; empty and 0 for an event out.
	OriginalID   string
	OriginalTime int64 // Unix nanoseconds
}

// Outgoing is a row of the outbox.
type Outgoing struct {
	ID        int64  `db:"id"`
	EventID   string `db:"event_id"`
	TenantID  string `db:"tenant_id"`
	Type      string `db:"type"`
	Data      []byte `db:"data"`
	CreatedAt Time   `db:"created_at"`
	SentAt    Time   `db:"sent_at"` // zero while it waits

	OriginalID   string `db:"original_id"`
	OriginalTime int64  `db:"original_time"`
}

const outboxColumns = "id, event_id, tenant_id, type, data, original_id, original_time, created_at, sent_at"

func (t *tx) notify(ctx context.Context, tenantID string, n Notice) error {
	return t.exec(ctx, "INSERT INTO outbox (event_id, tenant_id, type, data, original_id, original_time, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
		n.EventID, tenantID, n.Type, string(n.Data), n.OriginalID, n.OriginalTime, t.now)
}

// Unsent reads at most limit events that wait to be published, in the order in which a tenant's must leave, except those of
// some tenants. Rows are found by their state and never by the last id seen: ids are given before transactions commit.
func (db *DB) Unsent(ctx context.Context, limit int, except ...string) ([]Outgoing, error) {
	others, args := "", []any{limit}
	if len(except) > 0 {
		var err error
		if others, args, err = sqlx.In(" AND tenant_id NOT IN (?)", except); err != nil {
			return nil, fmt.Errorf("reading the outbox: %w", err)
		}
		args = append(args, limit)
	}
	var list []Outgoing
	err := db.read.SelectContext(ctx, &list, db.read.Rebind("SELECT "+outboxColumns+" FROM outbox WHERE sent_at IS NULL"+others+" ORDER BY id LIMIT ?"), args...)
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	return list, nil
}

// EventsOut reads a tenant's newest events out, at most limit, oldest first: those that wait, and those that were sent and are
// still kept.
func (db *DB) EventsOut(ctx context.Context, tenantID string, limit int) ([]Outgoing, error) {
	var list []Outgoing
	err := db.read.SelectContext(ctx, &list, db.read.Rebind("SELECT "+outboxColumns+" FROM outbox WHERE tenant_id = ? ORDER BY id DESC LIMIT ?"), tenantID, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the events out of tenant %q: %w", tenantID, err)
	}
	slices.Reverse(list)
	return list, nil
}

// MarkSent records that the events were published.
func (db *DB) MarkSent(ctx context.Context, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		query, args, err := sqlx.In("UPDATE outbox SET sent_at = ? WHERE id IN (?)", t.now, ids)
		if err != nil {
			return err
		}
		return t.exec(ctx, query, args...)
	})
	if err != nil {
		return fmt.Errorf("marking events as sent: %w", err)
	}
	return nil
}

// PruneSent deletes events that were sent more than age ago, at most limit of them.
func (db *DB) PruneSent(ctx context.Context, age time.Duration, limit int) error {
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		return t.exec(ctx, "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE sent_at < ? LIMIT ?)", at(t.now.Add(-age)), limit)
	})
	if err != nil {
		return fmt.Errorf("pruning the outbox: %w", err)
	}
	return nil
}

// TakeLease makes holder the only one who has the named lease, until ttl from now, unless another has it. A holder
// that has it already prolongs it. One that ends later than anybody could have asked for is from before the clock was
// set back, and free.
func (db *DB) TakeLease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	var taken bool
	err := db.update(ctx, func(ctx context.Context, t *tx) (err error) {
		taken, err = t.takeLease(ctx, name, holder, ttl)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("taking the lease %q: %w", name, err)
	}
	return taken, nil
}

func (t *tx) takeLease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	err := t.exec(ctx, `INSERT INTO leases (name, holder, until) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
		WHERE leases.holder = excluded.holder OR leases.until < ? OR leases.until > ?`,
		name, holder, at(t.now.Add(ttl)), t.now, at(t.now.Add(2*ttl))) // twice: transactions side by side do not begin at one time
	if err != nil {
		return false, err
	}
	var current string
	err = t.get(ctx, &current, "SELECT holder FROM leases WHERE name = ?", name)
	return current == holder, err
}

// DropLease gives the lease up, if holder has it.
func (db *DB) DropLease(ctx context.Context, name, holder string) error {
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		return t.exec(ctx, "DELETE FROM leases WHERE name = ? AND holder = ?", name, holder)
	})
	if err != nil {
		return fmt.Errorf("dropping the lease %q: %w", name, err)
	}
	return nil
}
