package repo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Dashboard is a dashboard that an event of the stream names.
type Dashboard struct {
	TenantID, WorkspaceID, ID, Title string

	// CreatedEvent is the time of the newest tenant.created before it; zero if the stream no longer
	// has that event.
	CreatedEvent time.Time

	// SetAt is when it became the tenant's: the time of its dashboard.created. Zero: unknown.
	SetAt time.Time

	// Adopted: the stream also has a tenant.created that names it.
	Adopted bool
}

func (d Dashboard) key() dashboardKey { return dashboardKey{d.WorkspaceID, d.ID} }

// Restore records a dashboard that is missing because the database was restored from an older
// backup, so that it is not created a second time. If the tenant has another dashboard, that one
// becomes a possible orphan.
//
// Of several dashboards of a tenant the oldest must be restored first.
func (db *DB) Restore(ctx context.Context, d Dashboard) error {
	return db.decide(ctx, &job{
		tenantID: d.TenantID, workspaceID: d.WorkspaceID, urgent: true,
		decide: func(x *decision) error { return x.restore(d) },
	}, "restore dashboard %q of tenant %q", d.ID, d.TenantID)
}

// KnowsDashboard reports whether Restore would change nothing.
func (db *DB) KnowsDashboard(ctx context.Context, d Dashboard) (known bool, err error) {
	m, err := db.Mapping(ctx, d.TenantID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	owners, err := list[owner](ctx, db.read, fmt.Sprintf("read whose dashboard %q is", d.ID),
		ownerTable.selects+
			" WHERE workspace_id = ? AND dashboard_id = ? OR workspace_id = ? AND dashboard_id = ?",
		d.WorkspaceID, d.ID, m.WorkspaceID, m.DashboardID)
	if err != nil {
		return false, err
	}
	byKey := map[dashboardKey]owner{}
	for _, o := range owners {
		byKey[o.key()] = o
	}
	return knows(m, d, byKey[d.key()], byKey[dashboardKey{m.WorkspaceID, m.DashboardID}]), nil
}

func (d *decision) restore(found Dashboard) error {
	owned, err := d.owner(found.key(), false)
	if err != nil {
		return err
	}
	var present owner
	if d.DashboardID != "" {
		if present, err = d.owner(dashboardKey{d.WorkspaceID, d.DashboardID}, false); err != nil {
			return err
		}
	}
	if knows(d.Mapping, found, owned, present) {
		return nil
	}
	if d.Stage == Active {
		d.Generation++
	}
	origin := OriginCreated
	if found.Adopted {
		origin = OriginAdopted
	}
	if d.Stage == Active && d.Wanted() { // else a deletion has ended the generation of its dashboard
		origin = OriginReplaced
		if err := d.dropDashboard(); err != nil {
			return err
		}
	}
	d.WorkspaceID, d.Title = found.WorkspaceID, found.Title
	d.CreatedEvent = max(d.CreatedEvent, eventTime(found.CreatedEvent))
	d.Epoch++
	event := found.SetAt
	if event.IsZero() {
		event = found.CreatedEvent
	}
	return d.activate(found.ID, origin, eventTime(event))
}

// knows reports whether the dashboard is the mapping's, or was recorded for the tenant and the
// database is as new as the time at which it became the tenant's, or newer. owned is what is recorded
// of it, and present of the mapping's.
func knows(m Mapping, found Dashboard, owned, present owner) bool {
	if found.key() == (dashboardKey{m.WorkspaceID, m.DashboardID}) {
		return true
	}
	newest := owned.SetAt.Time
	if present.SetAt.After(newest) {
		newest = present.SetAt.Time
	}
	return owned.TenantID == found.TenantID && (newest.IsZero() || !found.SetAt.After(newest))
}
