package repo

import (
	"context"
	"time"
)

// Dashboard is a dashboard that an event of the stream names.
type Dashboard struct {
	TenantID, WorkspaceID, ID, Title string

	// CreatedEvent is the time of the newest tenant.created before it; zero when the stream no
	// longer has that.
	CreatedEvent time.Time

	// SetAt is when it became the tenant's: the time of its dashboard.created. Zero: not known.
	SetAt time.Time
}

// Restore records a dashboard that the database does not know, because it was restored from an older
// backup, so that it is not made a second time. One that the tenant has all the same becomes a
// possible orphan.
func (db *DB) Restore(ctx context.Context, d Dashboard) error {
	return db.decide(ctx, &job{
		tenantID: d.TenantID, workspaceID: d.WorkspaceID, urgent: true,
		decide: func(x *decision) error { return x.restore(d) },
	}, "restore dashboard %q of tenant %q", d.ID, d.TenantID)
}

func (d *decision) restore(found Dashboard) error {
	key := dashboardKey{found.WorkspaceID, found.ID}
	if key == (dashboardKey{d.WorkspaceID, d.DashboardID}) {
		return nil
	}
	known, err := d.knowsNewer(key, found.SetAt)
	if err != nil || known {
		return err
	}
	if d.Stage == Active {
		d.Generation++
	}
	if d.Stage == Active && d.Wanted() { // else a deletion has ended the generation of its dashboard
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
	return d.activate(found.ID, eventTime(event))
}

// knowsNewer reports whether the dashboard was recorded for the tenant and the database is as new as
// the time at which it became the tenant's, or newer.
func (d *decision) knowsNewer(key dashboardKey, setAt time.Time) (bool, error) {
	found, err := d.owner(key, false)
	if err != nil || found.TenantID != d.TenantID {
		return false, err
	}
	newest := found.SetAt.Time
	if d.DashboardID != "" {
		present, err := d.owner(dashboardKey{d.WorkspaceID, d.DashboardID}, false)
		if err != nil {
			return false, err
		}
		if present.SetAt.After(newest) {
			newest = present.SetAt.Time
		}
	}
	return newest.IsZero() || !setAt.After(newest), nil
}
