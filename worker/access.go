package worker

import (
	"context"
	"log/slog"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

// accessHandler handles tenant.suspended, tenant.resumed and tenant.deleted. It calls no API, so no
// pause delays it.
type accessHandler struct {
	workspaces workspaces
	db         *repo.DB
	log        *slog.Logger
	changed    func(tenantID string) // called after each change, so that no replica mints by the old mapping
}

func (a *accessHandler) handleAccess(ctx context.Context, e events.Event, data events.TenantChange) error {
	ws, err := a.workspaces.ofEvent(data.WorkspaceID)
	if err != nil {
		return err
	}
	to, ok := AccessStatus(e.Type)
	if !ok {
		return unknownType(e)
	}
	failpoint.Hit(failpoint.ChangeBegin)
	changed, err := a.db.Change(ctx, repo.Change{
		TenantID: data.TenantID, WorkspaceID: ws.ID, To: to, EventTime: e.Time,
	})
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.ChangeDone)
	if changed {
		a.changed(data.TenantID)
		a.log.InfoContext(ctx, "tenant access changed",
			"tenant_id", data.TenantID, "event", e.Type, "reason", data.Reason, "event_id", e.ID)
	}
	return nil
}

func unknownType(e events.Event) error {
	return permanent("UNKNOWN_TYPE", "no handler for events of type %s", e.Type)
}

// AccessStatus returns the status that an event about a tenant's access asks for. ok is false for
// other types.
func AccessStatus(eventType string) (to repo.Status, ok bool) {
	switch eventType {
	case events.TypeTenantSuspended:
		return repo.Suspended, true
	case events.TypeTenantResumed:
		return repo.Active, true
	case events.TypeTenantDeleted:
		return repo.Deleted, true
	}
	return "", false
}
