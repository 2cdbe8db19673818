package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// ErrDashboardID means that a text cannot be a dashboard id.
var ErrDashboardID = errors.New("no dashboard id")

// Resolve gives a held tenant the dashboard that an operator found at Papermap. The command line
// calls it next to running workers, which notice within tenantLife.
func Resolve(ctx context.Context, db *repo.DB, tenantID, dashboardID string) (repo.Mapping, error) {
	if !papermap.ValidDashboardID(dashboardID) {
		return repo.Mapping{}, fmt.Errorf("%q: %w", dashboardID, ErrDashboardID)
	}
	return db.Resolve(ctx, tenantID, dashboardID, DashboardCreatedEvent)
}

// Recreate has a held tenant's dashboard created once more.
func Recreate(ctx context.Context, db *repo.DB, tenantID string) (repo.Mapping, error) {
	return db.Recreate(ctx, tenantID, TenantCreatedAgain)
}

// Resolve is the function Resolve in the running worker, where it takes effect at once.
func (a *API) Resolve(ctx context.Context, tenantID, dashboardID string) (repo.Mapping, error) {
	return a.announce(Resolve(ctx, a.db, tenantID, dashboardID))
}

// Recreate is the function Recreate in the running worker, where it takes effect at once.
func (a *API) Recreate(ctx context.Context, tenantID string) (repo.Mapping, error) {
	return a.announce(Recreate(ctx, a.db, tenantID))
}

// announce has a mapping that was changed without an error take effect in all replicas.
func (a *API) announce(m repo.Mapping, err error) (repo.Mapping, error) {
	if err == nil {
		a.changed(m.TenantID)
	}
	return m, err
}

// recordWait is how long an operator's event is waited for; recordPoll, how often its tenant is
// looked at.
const (
	recordWait = 3 * time.Second
	recordPoll = 25 * time.Millisecond
)

// RequestAccessChange publishes tenant.suspended, tenant.resumed or tenant.deleted, and waits up to
// recordWait until it is recorded.
func (a *API) RequestAccessChange(ctx context.Context, eventType, tenantID, reason string) error {
	before, err := a.db.Mapping(ctx, tenantID)
	if err != nil {
		return err
	}
	fields := map[string]string{"tenant_id": tenantID, "reason": reason}
	if _, err := a.Publish(ctx, eventType, fields); err != nil {
		return err
	}
	return a.await(ctx, tenantID, func(m repo.Mapping) bool {
		return m.SuspendedEvent != before.SuspendedEvent || m.ResumedEvent != before.ResumedEvent ||
			m.DeletedEvent != before.DeletedEvent
	})
}

// RetryFailed publishes the tenant.created of a failed tenant as a new event, and waits up to
// recordWait until it is handled.
func (a *API) RetryFailed(ctx context.Context, tenantID string) error {
	m, err := a.db.Mapping(ctx, tenantID)
	if err != nil {
		return err
	}
	if m.Stage != repo.Failed || !m.Wanted() {
		return fmt.Errorf("tenant %q has not failed, it is %s", tenantID, m.Status)
	}
	id, err := a.Publish(ctx, events.TypeTenantCreated, createdFields(m))
	if err != nil {
		return err
	}
	return a.await(ctx, tenantID, func(m repo.Mapping) bool {
		return m.CreatedEventID == id && m.Stage != repo.Pending && m.Stage != repo.Creating
	})
}

// await polls the mapping until done or recordWait has passed, which is no error: what was
// published takes effect anyway.
func (a *API) await(ctx context.Context, tenantID string, done func(repo.Mapping) bool) error {
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	for events.Sleep(ctx, recordPoll) {
		m, err := a.db.Mapping(context.WithoutCancel(ctx), tenantID)
		if err != nil || done(m) {
			return err
		}
	}
	return nil
}
