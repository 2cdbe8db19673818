package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

var (
	// ErrNotHeld means that there is nothing to resolve: the tenant is not held.
	ErrNotHeld = errors.New("the tenant is not held")
	// ErrNotActive means that there is no dashboard to replace.
	ErrNotActive = errors.New("the tenant has no dashboard to replace")
	// ErrReplaced means that the tenant's dashboard is no longer the one to be replaced.
	ErrReplaced = errors.New("the tenant's dashboard has changed meanwhile")
)

// Operators' decisions. Each is one transaction that checks the tenant's state itself, raises the
// epoch, so that a worker that still waits for an answer cannot overwrite the decision, and writes
// the resulting event.

// Resolve gives a held tenant the dashboard that a person found at Papermap: it becomes the
// mapping's, the attempt that created it counts as created, and announce makes its event. It
// returns ErrNotHeld or ErrTaken if that is not possible.
func (db *DB) Resolve(ctx context.Context, tenantID, dashboardID string, announce Announce) (Mapping, error) {
	return db.resolveHeld(ctx, tenantID, announce, func(d *decision) error { return d.resolve(dashboardID) })
}

// Recreate has another dashboard created for a held tenant: its tenant.created, made by announce,
// is published again with its original identity and time. The attempt that caused the hold stays a
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
	if err := d.activate(dashboardID, OriginCreated, d.correction()); err != nil {
		return err
	}
	candidates, err := d.history(func(a *attemptRow) bool {
		return a.Generation == d.Generation && (a.Outcome == OutcomeUnknown ||
			a.Outcome == OutcomeOrphaned && a.DashboardID == dashboardID)
	})
	if err != nil || len(candidates) == 0 {
		return err
	}
	// The attempt that is known to have created it, or else the newest.
	a := slices.MaxFunc(candidates, func(a, b *attemptRow) int {
		return cmp.Or(cmp.Compare(b.Outcome, a.Outcome), a.StartedAt.Compare(b.StartedAt.Time),
			cmp.Compare(a.ID, b.ID))
	})
	a.Outcome, a.DashboardID, a.ResolvedAt = OutcomeCreated, dashboardID, d.now
	a.resolved = true
	return nil
}

// correction is the time of an operator's action: no known event is newer.
func (d *decision) correction() int64 { return max(d.now.UnixNano(), d.dashboardEvent()) }

// Replace corrects the dashboard of a tenant that has one: dashboardID takes the place of old,
// which still belongs to the tenant and is listed as a possible orphan, and announce makes the
// event. It changes nothing if the tenant already has the dashboard, and returns ErrNotActive,
// ErrReplaced or ErrTaken if the change is not possible.
func (db *DB) Replace(
	ctx context.Context, tenantID, old, dashboardID string, announce Announce,
) (after Mapping, err error) {
	err = db.decide(ctx, &job{
		tenantID: tenantID, known: true, urgent: true,
		decide: func(d *decision) error {
			err := d.replace(old, dashboardID, announce)
			after = d.Mapping
			return err
		},
	}, "replace the dashboard of tenant %q", tenantID)
	if err != nil {
		return Mapping{}, err
	}
	return after, nil
}

func (d *decision) replace(old, dashboardID string, announce Announce) error {
	switch {
	case d.Stage != Active || !d.Wanted():
		return fmt.Errorf("%w, it is %s", ErrNotActive, d.Status)
	case d.DashboardID == dashboardID:
		return nil
	case d.DashboardID != old:
		return fmt.Errorf("%w to %q", ErrReplaced, d.DashboardID)
	}
	if err := d.dropDashboard(); err != nil {
		return err
	}
	made, err := d.history(func(a *attemptRow) bool {
		return a.Outcome == OutcomeOrphaned && a.WorkspaceID == d.WorkspaceID && a.DashboardID == dashboardID
	})
	if err != nil {
		return err
	}
	for _, a := range made {
		a.Outcome, a.ResolvedAt, a.resolved = OutcomeCreated, d.now, true
	}
	d.Epoch++
	if err := d.activate(dashboardID, OriginReplaced, d.correction()); err != nil {
		return err
	}
	return d.announce(announce)
}

// dropDashboard records that another dashboard replaces the mapping's: it, or the attempt that
// created it, becomes a possible orphan.
func (d *decision) dropDashboard() error {
	made, err := d.history(func(a *attemptRow) bool {
		return a.WorkspaceID == d.WorkspaceID && a.DashboardID == d.DashboardID
	})
	if err != nil {
		return err
	}
	for _, a := range made {
		a.Outcome, a.ResolvedAt, a.resolved = OutcomeOrphaned, Time{}, true
	}
	_, err = d.own(owner{WorkspaceID: d.WorkspaceID, DashboardID: d.DashboardID, ReplacedAt: d.now})
	return err
}

func (d *decision) recreate() error {
	if !d.Wanted() {
		return errors.New("the tenant was deleted")
	}
	d.clearFailures()
	d.setStage(Pending, Time{})
	d.save()
	return nil
}

// ResolveAttempt removes an attempt from the list of PossibleOrphans, after a person has looked for
// its dashboard at Papermap. A replaced dashboard that no attempt created is identified by its own
// id.
func (db *DB) ResolveAttempt(ctx context.Context, id string) error {
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		a, err := t.attempt(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return t.resolveReplaced(ctx, id)
		}
		if err != nil {
			return err
		}
		abandoned := a.Outcome == OutcomeSent && a.StartedAt.Before(t.now.Add(-Lease))
		if a.Outcome != OutcomeUnknown && a.Outcome != OutcomeOrphaned && !abandoned {
			return fmt.Errorf("outcome is %s: nothing to resolve", a.Outcome)
		}
		if t.audit != nil {
			t.audit.TenantID = a.TenantID
		}
		return t.exec(ctx, "UPDATE provision_attempts SET settled_at = ? WHERE id = ?", t.now, id)
	}, "resolve attempt %q", id)
}

// resolveReplaced removes a replaced dashboard from the list of PossibleOrphans, in all workspaces.
func (t *tx) resolveReplaced(ctx context.Context, dashboardID string) error {
	var tenants []string
	err := t.list(ctx, &tenants, "SELECT o.tenant_id FROM "+replacedOpen+" AND o.dashboard_id = ?",
		dashboardID)
	if err == nil && len(tenants) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return err
	}
	if t.audit != nil {
		t.audit.TenantID = tenants[0]
	}
	return t.exec(ctx, "UPDATE dashboard_owners SET settled_at = ? WHERE dashboard_id = ?",
		t.now, dashboardID)
}
