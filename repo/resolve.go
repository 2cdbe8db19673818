package repo

import (
	"context"
	"errors"
	"fmt"
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
	return db.resolveHeld(ctx, tenantID, announce, func(ctx context.Context, t *tx, m *mappingRow) error {
		if err := t.activate(ctx, m, dashboardID); err != nil {
			return err
		}
		// The attempt that is known to have made it, else the newest.
		return t.exec(ctx, `UPDATE provision_attempts SET outcome = 'created', dashboard_id = ?,
			settled_at = ? WHERE id = (SELECT id FROM provision_attempts
				WHERE tenant_id = ? AND generation = ?
				AND (outcome = 'unknown' OR outcome = 'orphaned' AND dashboard_id = ?)
			ORDER BY outcome, started_at DESC, id DESC LIMIT 1)`,
			dashboardID, t.now, m.TenantID, m.Generation, dashboardID)
	})
}

// Recreate has another dashboard created for a held tenant: its tenant.created, made by announce,
// is published again with the identity and the time that it had. The attempt that held it stays a
// possible orphan.
func (db *DB) Recreate(ctx context.Context, tenantID string, announce Announce) (Mapping, error) {
	return db.resolveHeld(ctx, tenantID, announce, func(ctx context.Context, t *tx, m *mappingRow) error {
		if !m.Wanted() {
			return errors.New("the tenant was deleted, and needs no dashboard")
		}
		m.clearFailures()
		m.setStage(Pending, Time{})
		return t.save(ctx, m)
	})
}

func (db *DB) resolveHeld(
	ctx context.Context, tenantID string, announce Announce, do func(context.Context, *tx, *mappingRow) error,
) (after Mapping, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lock(ctx, tenantID)
		if err != nil {
			return err
		}
		if m.Stage != Held {
			return fmt.Errorf("%w, it is %s", ErrNotHeld, m.Status)
		}
		m.Epoch++ // a worker that still waits for an answer has lost the tenant
		if err := do(ctx, t, m); err != nil {
			return err
		}
		after = m.Mapping
		return t.announce(ctx, &m.Mapping, announce)
	}, "resolve tenant %q", tenantID)
	if err != nil {
		return Mapping{}, err
	}
	return after, nil
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
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lockOrMake(ctx, d.TenantID, d.WorkspaceID)
		if err != nil || m.DashboardID == d.ID {
			return err
		}
		known, err := t.exists(ctx,
			"provision_attempts WHERE tenant_id = ? AND dashboard_id = ?", d.TenantID, d.ID)
		if err != nil || known { // the database is as new as this dashboard, or newer
			return err
		}
		if m.Stage == Active {
			m.Generation++
		}
		if m.Stage == Active && m.Wanted() { // else a deletion has ended the generation of its dashboard
			err := t.exec(ctx, `UPDATE provision_attempts SET outcome = 'orphaned', settled_at = NULL
				WHERE workspace_id = ? AND tenant_id = ? AND dashboard_id = ?`,
				m.WorkspaceID, m.TenantID, m.DashboardID)
			if err != nil {
				return err
			}
		}
		m.WorkspaceID, m.Title = d.WorkspaceID, d.Title
		m.CreatedEvent = max(m.CreatedEvent, eventTime(d.CreatedEvent))
		m.Epoch++
		return t.activate(ctx, m, d.ID)
	}, "adopt dashboard %q of tenant %q", d.ID, d.TenantID)
}
