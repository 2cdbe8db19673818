package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

const (
	maxMissing    = 10              // events a second, of this worker, for tenants that token requests name
	missingWindow = 2 * time.Minute // the stream's duplicate window: a copy within it is dropped
)

// missingTenants publishes tenant.created for unknown tenants that a token request asks to create.
// Whoever may send such requests can name any tenant, so the rate is limited: a flood of made-up
// names creates at most maxMissing dashboards a second.
type missingTenants struct {
	db  *repo.DB
	bus *events.Bus
	now func() time.Time

	mu     sync.Mutex
	recent [maxMissing]time.Time // when the newest were published, as a ring
	next   int
	asked  twoGenCache[time.Time] // by tenant, when it was published
}

func newMissingTenants(db *repo.DB, bus *events.Bus, now func() time.Time) *missingTenants {
	return &missingTenants{
		db: db, bus: bus, now: now,
		asked: twoGenCache[time.Time]{size: maxMissing * int(missingWindow/time.Second)},
	}
}

var (
	errBeingCreated = serviceError(409, "DASHBOARD_NOT_READY", 2,
		"the tenant has no dashboard yet: it is being created")
	errTooManyMissing = serviceError(429, "RATE_LIMITED", 1, "too many tenants are being created; try again")
)

// create publishes the tenant's event, unless the tenant is known or the event was just published.
// It returns the answer to the request.
func (m *missingTenants) create(ctx context.Context, r TokenRequest, workspaces workspaces) error {
	asked := m.now() // before the mapping is read: an event that deletes the tenant meanwhile is newer
	e, err := NewEvent(events.TypeTenantCreated, map[string]string{
		"tenant_id": r.TenantID, "name": r.Name, "workspace_id": r.WorkspaceID,
	}, asked)
	if err != nil {
		return invalid(err)
	}
	if _, ok := workspaces.find(r.WorkspaceID); r.WorkspaceID != "" && !ok {
		return errOtherWorkspace
	}
	publish, err := m.admit(r.TenantID, time.Now())
	if err != nil || !publish {
		return err
	}
	switch _, err := m.db.Mapping(ctx, r.TenantID); {
	case err == nil:
		return errBeingCreated // since it was looked up
	case !errors.Is(err, repo.ErrNotFound):
		m.forget(r.TenantID)
		return err
	}
	e.ID = "missing-" + events.EncodeTenant(r.TenantID)
	if _, err := m.bus.Publish(ctx, e.WithIdentity(e.ID, asked)); err != nil {
		m.forget(r.TenantID)
		return notStored(errNotStored, err)
	}
	return errBeingCreated
}

// admit decides whether to publish the tenant's event now. If not, the error is the answer.
func (m *missingTenants) admit(tenantID string, now time.Time) (publish bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if last, ok := m.asked.get([]byte(tenantID)); ok && now.Sub(last) < missingWindow {
		return false, errBeingCreated
	}
	if oldest := m.recent[m.next]; !oldest.IsZero() && now.Sub(oldest) < time.Second {
		return false, errTooManyMissing
	}
	m.recent[m.next] = now
	m.next = (m.next + 1) % maxMissing
	m.asked.put(tenantID, now)
	return true, nil
}

// forget lets the next request publish again.
func (m *missingTenants) forget(tenantID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked.drop(tenantID)
}
