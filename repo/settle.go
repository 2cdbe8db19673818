package repo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNotHeld means that there is nothing to settle: the tenant is not held.
var ErrNotHeld = errors.New("the tenant is not held")

// Resolve settles a held tenant with the dashboard that a person found at Papermap: it becomes the mapping's, the
// attempt that made it counts as created, and n tells of it. It returns ErrNotHeld or ErrTaken when that cannot be.
func (db *DB) Resolve(ctx context.Context, tenantID, dashboardID string, n func(Mapping) (Notice, error)) (Mapping, error) {
	return db.settleHeld(ctx, tenantID, func(ctx context.Context, t *tx, m *mappingRow) error {
		if err := t.activate(ctx, m, dashboardID); err != nil {
			return err
		}
		err := t.exec(ctx, `UPDATE provision_attempts SET outcome = 'created', dashboard_id = ?, settled_at = ? WHERE id = (
			SELECT id FROM provision_attempts WHERE tenant_id = ? AND generation = ? AND (outcome = 'unknown' OR outcome = 'orphaned' AND dashboard_id = ?)
			ORDER BY outcome, started_at DESC, id DESC LIMIT 1)`, // the one that is known to have made it, else the newest
			dashboardID, t.now, m.TenantID, m.Generation, dashboardID)
		if err != nil || !m.Wanted() {
			return err
		}
		notice, err := n(m.Mapping)
		if err != nil {
			return err
		}
		return t.notify(ctx, m.TenantID, notice)
	})
}

// Recreate settles a held tenant by another create: n, its tenant.created, is published again with the identity and the
// time that it had. The attempt that held it stays a possible orphan.
func (db *DB) Recreate(ctx context.Context, tenantID string, n func(Mapping) (Notice, error)) (Mapping, error) {
	return db.settleHeld(ctx, tenantID, func(ctx context.Context, t *tx, m *mappingRow) error {
		if !m.Wanted() {
			return errors.New("the tenant was deleted, and needs no dashboard")
		}
		m.Stage, m.ClaimableAt = Pending, Time{}
		m.Failures, m.FailedAt, m.FailedCode, m.FailedError = 0, Time{}, "", ""
		m.show()
		if err := t.save(ctx, m); err != nil {
			return err
		}
		notice, err := n(m.Mapping)
		if err != nil {
			return err
		}
		return t.notify(ctx, m.TenantID, notice)
	})
}

func (db *DB) settleHeld(ctx context.Context, tenantID string, do func(context.Context, *tx, *mappingRow) error) (Mapping, error) {
	var after Mapping
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.known(ctx, tenantID)
		if err != nil {
			return err
		}
		if m.Stage != Held {
			return fmt.Errorf("%w, it is %s", ErrNotHeld, m.Status)
		}
		m.Epoch++ // whoever still waits for an answer has lost the tenant
		err = do(ctx, t, m)
		after = m.Mapping
		return err
	})
	if err != nil {
		return Mapping{}, fmt.Errorf("settling tenant %q: %w", tenantID, err)
	}
	return after, nil
}

// SettleAttempt takes an attempt off the list of UncertainAttempts, once a person has looked after it at Papermap.
func (db *DB) SettleAttempt(ctx context.Context, id string) error {
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		var a Attempt
		if err := t.get(ctx, &a, "SELECT "+attemptColumns+" FROM provision_attempts WHERE id = ?", id); err != nil {
			return err
		}
		left := a.Outcome == Sent && a.StartedAt.Before(t.now.Add(-Lease))
		if a.Outcome != Uncertain && a.Outcome != Orphaned && !left {
			return fmt.Errorf("its outcome is %s: there is nothing to look after", a.Outcome)
		}
		return t.exec(ctx, "UPDATE provision_attempts SET settled_at = ? WHERE id = ?", t.now, id)
	})
	if err != nil {
		return fmt.Errorf("settling attempt %q: %w", id, err)
	}
	return nil
}

// Dashboard is a dashboard that the stream tells of.
type Dashboard struct {
	TenantID, WorkspaceID, ID, Title string
	CreatedEvent                     time.Time // of the newest tenant.created before it; zero when the stream does not keep that
}

// Adopt records a dashboard that the database does not know, because it was restored from an older backup, so that it is
// not made a second time. One that the tenant has all the same becomes a possible orphan.
func (db *DB) Adopt(ctx context.Context, d Dashboard) error {
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lock(ctx, d.TenantID, d.WorkspaceID)
		if err != nil || m.DashboardID == d.ID {
			return err
		}
		var known bool // then the database is as new as this dashboard, or newer
		err = t.get(ctx, &known, "SELECT EXISTS (SELECT 1 FROM provision_attempts WHERE tenant_id = ? AND dashboard_id = ?)", d.TenantID, d.ID)
		if err != nil || known {
			return err
		}
		if m.Stage == Active {
			m.Generation++
		}
		if m.Stage == Active && m.Wanted() { // else its dashboard is that of a generation which a deletion has ended
			err := t.exec(ctx, "UPDATE provision_attempts SET outcome = 'orphaned', settled_at = NULL WHERE workspace_id = ? AND tenant_id = ? AND dashboard_id = ?",
				m.WorkspaceID, m.TenantID, m.DashboardID)
			if err != nil {
				return err
			}
		}
		m.WorkspaceID, m.Title = d.WorkspaceID, d.Title
		m.CreatedEvent = max(m.CreatedEvent, eventTime(d.CreatedEvent))
		m.Epoch++
		return t.activate(ctx, m, d.ID)
	})
	if err != nil {
		return fmt.Errorf("adopting dashboard %q of tenant %q: %w", d.ID, d.TenantID, err)
	}
	return nil
}
