package repo

import (
	"context"
	"time"
)

// notBeyond is the one answer to a clock that was set back: no lease and no retry ends later than
// the longest from now. One that does was written before the clock was set back, and its time starts
// anew. It is never cut short: its holder may still be at work. Now must be read after the row is
// locked, or a transaction that waited for the row would take a new lease for one too long.
func notBeyond(end, now Time, longest time.Duration) Time {
	if limit := at(now.Add(longest)); end.After(limit.Time) {
		return limit
	}
	return end
}

// TakeLease is for jobs that one worker does for all replicas, such as publishing the outbox. It
// makes holder the only one who has the named lease, until ttl from now, unless another has it. A
// holder that has it already prolongs it. All holders of a lease ask for the same ttl.
func (db *DB) TakeLease(ctx context.Context, name, holder string, ttl time.Duration) (taken bool, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) (err error) {
		taken, err = t.takeLease(ctx, name, holder, ttl)
		return err
	}, "take the lease %q", name)
	return taken && err == nil, err
}

// takeLease locks the lease's row, reads the clock and decides. The transaction's clock is then that
// of the lock.
func (t *tx) takeLease(ctx context.Context, name, holder string, ttl time.Duration) (taken bool, err error) {
	var lease struct {
		Holder string `db:"holder"`
		Until  Time   `db:"until"`
	}
	const lock = `INSERT INTO leases (name, holder, until) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING holder, until`
	if err := t.get(ctx, &lease, lock, name, holder, at(time.Unix(0, 0))); err != nil {
		return false, err
	}
	if t.db.now == nil {
		if err := t.get(ctx, &t.now, "SELECT clock_timestamp()"); err != nil {
			return false, err
		}
	}
	until := notBeyond(lease.Until, t.now, ttl)
	switch taken = lease.Holder == holder || until.Before(t.now.Time); {
	case taken:
		until = at(t.now.Add(ttl))
	case until == lease.Until:
		return false, nil
	default:
		holder = lease.Holder
	}
	return taken, t.exec(ctx, "UPDATE leases SET holder = ?, until = ? WHERE name = ?", holder, until, name)
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
