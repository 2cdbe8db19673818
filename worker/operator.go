package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/trace"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// ErrDashboardID means that a text cannot be a dashboard id.
var ErrDashboardID = errors.New("no dashboard id")

// Resolve gives a held tenant the dashboard that an operator found at Papermap. The command line
// calls it next to running workers, which notice within tenantLife.
func Resolve(ctx context.Context, db *repo.DB, tenantID, dashboardID string) (repo.Mapping, error) {
	if events.ValidateDashboardID(dashboardID) != nil {
		return repo.Mapping{}, fmt.Errorf("%q: %w", dashboardID, ErrDashboardID)
	}
	e := repo.AuditEntry{Action: ActionResolve, TenantID: tenantID, Detail: "dashboard " + dashboardID}
	return audited(ctx, db, e).Resolve(ctx, tenantID, dashboardID, DashboardCreatedEvent)
}

// Replace corrects the dashboard of a tenant that has one: dashboardID takes the place of old.
func Replace(ctx context.Context, db *repo.DB, tenantID, old, dashboardID string) (repo.Mapping, error) {
	if events.ValidateDashboardID(dashboardID) != nil {
		return repo.Mapping{}, fmt.Errorf("%q: %w", dashboardID, ErrDashboardID)
	}
	e := repo.AuditEntry{
		Action: ActionReplace, TenantID: tenantID, Detail: "dashboard " + dashboardID + " instead of " + old,
	}
	return audited(ctx, db, e).Replace(ctx, tenantID, old, dashboardID, DashboardCreatedEvent)
}

// Recreate has a held tenant's dashboard created again.
func Recreate(ctx context.Context, db *repo.DB, tenantID string) (repo.Mapping, error) {
	e := repo.AuditEntry{Action: ActionRecreate, TenantID: tenantID}
	return audited(ctx, db, e).Recreate(ctx, tenantID, TenantCreatedAgain)
}

// Resolve is [Resolve] in the running worker, where it takes effect at once.
func (a *API) Resolve(ctx context.Context, tenantID, dashboardID string) (repo.Mapping, error) {
	return a.announce(Resolve(ctx, a.db, tenantID, dashboardID))
}

// Replace is [Replace] in the running worker, where it takes effect at once.
func (a *API) Replace(ctx context.Context, tenantID, old, dashboardID string) (repo.Mapping, error) {
	return a.announce(Replace(ctx, a.db, tenantID, old, dashboardID))
}

// Recreate is [Recreate] in the running worker, where it takes effect at once.
func (a *API) Recreate(ctx context.Context, tenantID string) (repo.Mapping, error) {
	return a.announce(Recreate(ctx, a.db, tenantID))
}

// announce makes a successful change of a mapping take effect in all replicas.
func (a *API) announce(m repo.Mapping, err error) (repo.Mapping, error) {
	if err == nil {
		a.changed(m.TenantID)
	}
	return m, err
}

// accessWait is how long an operator's event may take until it is in force. recordPoll is how often
// that is checked.
const (
	accessWait = 5 * time.Second
	recordPoll = 25 * time.Millisecond
)

// AccessChange is the result of an operator's suspension, resumption or deletion.
type AccessChange struct {
	EventID string
	InForce bool      // seen in the database; else it is only stored in the stream
	After   Dashboard // when it was seen in force
}

// ChangeAccess publishes tenant.suspended, tenant.resumed or tenant.deleted, and waits up to
// accessWait until it is in force. Its time is later than every known event of the tenant, whatever
// times publishers have given. It returns a ServiceError: 409 if a later event arrived after all,
// 503 if the event was not stored.
func (a *API) ChangeAccess(
	ctx context.Context, eventType, tenantID, reason string,
) (c AccessChange, err error) {
	to, ok := AccessStatus(eventType)
	if !ok {
		return c, fmt.Errorf("%s does not change a tenant's access", eventType)
	}
	ctx, cancel := context.WithTimeout(ctx, accessWait)
	defer cancel()
	when, err := a.afterAllKnown(ctx, tenantID)
	if err != nil {
		return c, err
	}
	c.EventID, err = a.publishAt(ctx, actions[eventType], eventType,
		map[string]string{"tenant_id": tenantID, "reason": reason}, when)
	if err != nil {
		return c, err
	}
	for events.Sleep(ctx, recordPoll) {
		m, err := a.db.Mapping(untraced(ctx), tenantID)
		newest, inForce := m.Access(to)
		if err != nil || newest < when.UnixNano() {
			continue
		}
		if !inForce {
			e := repo.AuditEntry{Action: actions[eventType], TenantID: tenantID, EventID: c.EventID}
			return c, auditFailure(ctx, e, a.db.Audit, errSuperseded)
		}
		a.changed(tenantID) // before the answer
		c.InForce, c.After = true, dashboardOf(m)
		return c, nil
	}
	return c, nil
}

var errSuperseded = serviceError(409, "SUPERSEDED", 0,
	"an event about the tenant with a later time is known, so this one has no effect")

// afterAllKnown is a time for an operator's event that is later than every known event of the
// tenant: the current time of the stream's clock, or right after the newest event.
func (a *API) afterAllKnown(ctx context.Context, tenantID string) (time.Time, error) {
	m, err := a.db.Mapping(ctx, tenantID)
	if err != nil && !errors.Is(err, repo.ErrNotFound) {
		return time.Time{}, notStored(errNotStored, err)
	}
	now, err := a.bus.StreamTime(ctx)
	if err != nil {
		return now, notStored(errNotStored, err)
	}
	after := time.Unix(0, m.NewestEvent()).Add(time.Millisecond)
	switch {
	case after.Before(now):
		return now, nil
	case after.After(now.Add(events.MaxAhead)): // such a time is not accepted
		return now, errSuperseded
	}
	return after, nil
}

// untraced is the context of repeated queries: their spans would clutter the trace.
func untraced(ctx context.Context) context.Context { return trace.ContextWithSpan(ctx, nil) }

// RetryFailed publishes the tenant.created of a failed tenant as a new event, and waits up to
// accessWait until it is handled.
func (a *API) RetryFailed(ctx context.Context, tenantID string) error {
	m, err := a.db.Mapping(ctx, tenantID)
	if err != nil {
		return err
	}
	if m.Stage != repo.Failed || !m.Wanted() {
		return fmt.Errorf("tenant %q has not failed, it is %s", tenantID, m.Status)
	}
	ctx, cancel := context.WithTimeout(ctx, accessWait)
	defer cancel()
	when, err := a.afterAllKnown(ctx, tenantID)
	if err != nil {
		return err
	}
	id, err := a.publishAt(ctx, ActionRetry, events.TypeTenantCreated, createdFields(m), when)
	if err != nil {
		return err
	}
	for events.Sleep(ctx, recordPoll) { // what was published takes effect anyway
		m, err := a.db.Mapping(untraced(ctx), tenantID)
		if err == nil && m.CreatedEventID == id && m.Stage != repo.Pending && m.Stage != repo.Creating {
			break
		}
	}
	return nil
}
