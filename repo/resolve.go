package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrNotHeld means that there is nothing to resolve: the tenant is not held.
var ErrNotHeld = errors.New("the tenant is not held")

// What an operator decides. Each is one transaction that checks the tenant's state itself, raises
// the epoch, so that a worker which still waits for an answer cannot overwrite the decision, and
// writes the event of what follows.

// Resolve gives a held tenant the dashboard that a person found at Papermap: it becomes the
// mapping's, the attempt that made it counts as created, and announce makes its event. It returns
// ErrNotHeld or ErrTaken when that cannot be.
func (db *DB) Resolve(ctx context.Context, tenantID, dashboardID string, announce Announce) (Mapping, error) {
	return db.resolveHeld(ctx, tenantID, announce, func(d *decision) error { return d.resolve(dashboardID) })
}

// Recreate has another dashboard created for a held tenant: its tenant.created, made by announce,
// is published again with the identity and the time that it had. The attempt that held it stays a
// possible orphan.
func (db *DB) Recreate(ctx context.Context, tenantID string, announce Announce) (Mapping, error) {
	return db.resolveHeld(ctx, tenantID, announce, (*decision).recreate)
}

func (db *DB) resolveHeld(
	ctx context.Context, tenantID string, announce Announce, do func(*decision) error,
) (after Mapping, err error) {
	err = db.decide(ctx, &job{
		tenantID: tenantID, known: true, urgent: true,
		decide: func(d *decision) error {
			err := d.resolveHeld(announce, do)
			after = d.Mapping
			return err
		},
	}, "resolve tenant %q", tenantID)
	if err != nil {
		return Mapping{}, err
	}
	return after, nil
}

func (d *decision) resolveHeld(announce Announce, do func(*decision) error) error {
	if d.Stage != Held {
		return fmt.Errorf("%w, it is %s", ErrNotHeld, d.Status)
	}
	d.Epoch++ // a worker that still waits for an answer has lost the tenant
	if err := do(d); err != nil {
		return err
	}
	return d.announce(announce)
}

func (d *decision) resolve(dashboardID string) error {
	if err := d.activate(dashboardID); err != nil {
		return err
	}
	candidates, err := d.history(func(a *attemptRow) bool {
		return a.Generation == d.Generation && (a.Outcome == OutcomeUnknown ||
			a.Outcome == OutcomeOrphaned && a.DashboardID == dashboardID)
	})
	if err != nil || len(candidates) == 0 {
		return err
	}
	// The attempt that is known to have made it, else the newest.
	a := slices.MaxFunc(candidates, func(a, b *attemptRow) int {
		return cmp.Or(cmp.Compare(b.Outcome, a.Outcome), a.StartedAt.Compare(b.StartedAt.Time),
			cmp.Compare(a.ID, b.ID))
	})
	a.Outcome, a.DashboardID, a.ResolvedAt = OutcomeCreated, dashboardID, d.now
	a.changed, a.resolved = true, true
	return nil
}

func (d *decision) recreate() error {
	if !d.Wanted() {
		return errors.New("the tenant was deleted, and needs no dashboard")
	}
	d.clearFailures()
	d.setStage(Pending, Time{})
	d.save()
	return nil
}

// ResolveAttempt takes an attempt off the list of PossibleOrphans, once a person has looked for its
// dashboard at Papermap.
func (db *DB) ResolveAttempt(ctx context.Context, id string) error {
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		a, err := t.attempt(ctx, id)
		if err != nil {
			return err
		}
		abandoned := a.Outcome == OutcomeSent && a.StartedAt.Before(t.now.Add(-Lease))
		if a.Outcome != OutcomeUnknown && a.Outcome != OutcomeOrphaned && !abandoned {
			return fmt.Errorf("its outcome is %s: it is no possible orphan", a.Outcome)
		}
		return t.exec(ctx, "UPDATE provision_attempts SET settled_at = ? WHERE id = ?", t.now, id)
	}, "resolve attempt %q", id)
}

// Dashboard is a dashboard that an event of the stream names.
type Dashboard struct {
	TenantID, WorkspaceID, ID, Title string

	// CreatedEvent is the time of the newest tenant.created before it; zero when the stream no
	// longer has that.
	CreatedEvent time.Time
}

// Adopt records a dashboard that the database does not know, because it was restored from an older
// backup, so that it is not made a second time. One that the tenant has all the same becomes a
// possible orphan.
func (db *DB) Adopt(ctx context.Context, d Dashboard) error {
	return db.decide(ctx, &job{
		tenantID: d.TenantID, workspaceID: d.WorkspaceID, urgent: true,
		decide: func(x *decision) error { return x.adopt(d) },
	}, "adopt dashboard %q of tenant %q", d.ID, d.TenantID)
}

func (d *decision) adopt(found Dashboard) error {
	if d.DashboardID == found.ID {
		return nil
	}
	known, err := d.history(func(a *attemptRow) bool { return a.DashboardID == found.ID })
	if err != nil || len(known) > 0 { // the database is as new as this dashboard, or newer
		return err
	}
	if d.Stage == Active {
		d.Generation++
	}
	if d.Stage == Active && d.Wanted() { // else a deletion has ended the generation of its dashboard
		made, err := d.history(func(a *attemptRow) bool {
			return a.WorkspaceID == d.WorkspaceID && a.DashboardID == d.DashboardID
		})
		if err != nil {
			return err
		}
		for _, a := range made {
			a.Outcome, a.ResolvedAt, a.changed, a.resolved = OutcomeOrphaned, Time{}, true, true
		}
	}
	d.WorkspaceID, d.Title = found.WorkspaceID, found.Title
	d.CreatedEvent = max(d.CreatedEvent, eventTime(found.CreatedEvent))
	d.Epoch++
	return d.activate(found.ID)
}
