package repo

import (
	"context"
	"time"
)

// notBeyond handles a clock that was set back, everywhere: no lease and no retry ends later than
// its longest duration from now. One that does was written before the clock was set back, so it
// starts again. It is never cut short, because its holder may still be working. Now must be read
// after the row is locked. Otherwise a transaction that waited for the row would mistake a new
// lease for one that is too long.
func notBeyond(end, now Time, longest time.Duration) Time {
	if limit := at(now.Add(longest)); end.After(limit.Time) {
		return limit
	}
	return end
}

// TakeLease is for jobs that one worker does for all replicas, such as publishing the outbox. It
// gives holder the named lease until ttl from now, unless another holder has it. A holder that
// already has the lease extends it. All holders of a lease use the same ttl.
func (db *DB) TakeLease(ctx context.Context, name, holder string, ttl time.Duration) (taken bool, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) (err error) {
		taken, err = t.takeLease(ctx, name, holder, ttl)
		return err
	}, "take the lease %q", name)
	return taken && err == nil, err
}

// takeLease locks the lease's row, reads the clock and decides. The transaction's clock is from
// then on the time after the lock.
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

// DropLease gives up the lease, if holder has it, so that another holder need not wait for its end.
// A worker that stops should drop its leases. The leases of a killed worker end by themselves.
func (db *DB) DropLease(ctx context.Context, name, holder string) error {
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		return t.dropLease(ctx, name, holder)
	}, "drop the lease %q", name)
}

func (t *tx) dropLease(ctx context.Context, name, holder string) error {
	return t.exec(ctx, "DELETE FROM leases WHERE name = ? AND holder = ?", name, holder)
}
