package repo

import (
	"context"
	"time"
)

// TakeLease is for jobs that one worker does for all replicas, such as publishing the outbox. It
// makes holder the only one who has the named lease, until ttl from now, unless another has it. A
// holder that has it already prolongs it. One that ends later than any holder could have asked for
// is from before the clock was set back, and free.
func (db *DB) TakeLease(ctx context.Context, name, holder string, ttl time.Duration) (taken bool, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) (err error) {
		taken, err = t.takeLease(ctx, name, holder, ttl)
		return err
	}, "take the lease %q", name)
	return taken && err == nil, err
}

func (t *tx) takeLease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	// Twice the time to live, because transactions side by side do not begin at one time.
	err := t.exec(ctx, `INSERT INTO leases (name, holder, until) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
		WHERE leases.holder = excluded.holder OR leases.until < ? OR leases.until > ?`,
		name, holder, at(t.now.Add(ttl)), t.now, at(t.now.Add(2*ttl)))
	if err != nil {
		return false, err
	}
	return t.exists(ctx, "leases WHERE name = ? AND holder = ?", name, holder)
}

// DropLease gives the lease up, if holder has it, so that another need not wait for its end. A
// holder that stops should drop its leases; one that is killed is followed when they end.
func (db *DB) DropLease(ctx context.Context, name, holder string) error {
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		return t.dropLease(ctx, name, holder)
	}, "drop the lease %q", name)
}

func (t *tx) dropLease(ctx context.Context, name, holder string) error {
	return t.exec(ctx, "DELETE FROM leases WHERE name = ? AND holder = ?", name, holder)
}
