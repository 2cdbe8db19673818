package repo

import (
	"cmp"
	"context"
	"fmt"
)

// Adopt gives the tenant the dashboard that e names, without a create, and writes the event of
// announce with it. It returns a Claim with
//
//   - StepAdopted: the dashboard was recorded;
//   - StepDone: the event is superseded, or the tenant has that dashboard already;
//   - StepWait: a create is under way, whose dashboard the tenant will have if it succeeds;
//   - StepConflict: the tenant has another dashboard, and the event is not older than what gave it.
//
// It returns ErrTaken, and records nothing, when the dashboard belongs to another tenant.
func (db *DB) Adopt(ctx context.Context, e Created, announce Announce) (c Claim, err error) {
	err = db.decide(ctx, &job{
		tenantID: e.TenantID, workspaceID: e.WorkspaceID,
		decide: func(d *decision) (err error) {
			c, err = d.adopt(e, announce)
			return err
		},
	}, "adopt dashboard %q for tenant %q", e.DashboardID, e.TenantID)
	if err != nil {
		return Claim{}, err
	}
	return c, nil
}

// adopt decides by the events' times alone whether the tenant gets the dashboard. An event that is
// too old for that still counts for the status, like every tenant.created.
func (d *decision) adopt(e Created, announce Announce) (c Claim, err error) {
	c = Claim{Message: e.Message, Event: eventTime(e.EventTime)}
	creating := d.Stage == Creating && d.wait() > 0
	switch {
	case c.Event <= d.DeletedEvent:
		c.Step = StepDone
	case !d.ended() && (creating || d.Stage == Active):
		if c.Step, err = d.adoptLater(e); err != nil {
			return c, err
		}
		if c.Step == StepWait {
			c.Wait = d.wait()
		}
		d.noteCreated(e)
	default:
		c.Step = StepAdopted
		if err := d.adoptNow(e); err != nil {
			return c, err
		}
		if err := d.announce(announce); err != nil {
			return c, err
		}
	}
	d.save()
	c.Mapping = d.Mapping
	return c, nil
}

// adoptLater decides about a dashboard for a tenant that already has one, or whose create is in
// flight.
func (d *decision) adoptLater(e Created) (Step, error) {
	key := dashboardKey{d.adoptsIn(e), e.DashboardID}
	if d.Stage == Active && (key == dashboardKey{d.WorkspaceID, d.DashboardID} ||
		eventTime(e.EventTime) < d.dashboardEvent()) {
		return StepDone, nil
	}
	owner, err := d.owner(key, false)
	switch {
	case err != nil:
		return StepDone, err
	case owner.TenantID != "" && owner.TenantID != d.TenantID:
		return StepDone, Taken(owner.TenantID)
	case d.Stage == Creating:
		return StepWait, nil
	}
	return StepConflict, nil
}

// adoptNow gives the tenant the dashboard. It fences off any worker that still works on the tenant.
func (d *decision) adoptNow(e Created) error {
	if d.ended() {
		d.startGeneration(e)
	} else {
		if d.Stage == Creating {
			if err := d.giveUpSent(); err != nil {
				return err
			}
		}
		d.Epoch++
		d.WorkspaceID = d.adoptsIn(e)
		d.Title, d.Description = cmp.Or(e.Title, d.Title), cmp.Or(e.Description, d.Description)
		d.CreatedBy = cmp.Or(e.CreatedBy, d.CreatedBy)
	}
	d.noteCreated(e)
	return d.activate(e.DashboardID, OriginAdopted, eventTime(e.EventTime))
}

// adoptsIn is the workspace of the dashboard that an event names for a provisioned tenant: the
// event's workspace, or else the tenant's.
func (d *decision) adoptsIn(e Created) string {
	if e.NamesWorkspace {
		return e.WorkspaceID
	}
	return d.WorkspaceID
}

// DashboardTenant returns the tenant that a dashboard belongs to; empty if it was never recorded. A
// dashboard still belongs to a tenant that no longer uses it.
func (db *DB) DashboardTenant(ctx context.Context, workspaceID, dashboardID string) (string, error) {
	owners, err := list[owner](ctx, db.read, fmt.Sprintf("read whose dashboard %q is", dashboardID),
		ownerTable.selects+" WHERE workspace_id = ? AND dashboard_id = ?", workspaceID, dashboardID)
	if err != nil || len(owners) == 0 {
		return "", err
	}
	return owners[0].TenantID, nil
}

// SomeDashboards lists ids of dashboards of the workspace's tenants, at most limit, without those
// of the tenant except.
func (db *DB) SomeDashboards(ctx context.Context, workspaceID, except string, limit int) ([]string, error) {
	return list[string](ctx, db.read, "list dashboards", `SELECT dashboard_id FROM tenant_dashboards
		WHERE workspace_id = ? AND dashboard_id IS NOT NULL AND tenant_id <> ? LIMIT ?`,
		workspaceID, except, limit)
}
