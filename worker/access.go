package worker

import (
	"context"
	"fmt"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

// change records that a tenant is suspended, resumed or deleted. It needs no API, and so goes on during a pause.
func (w *Worker) change(ctx context.Context, e events.Event, data events.TenantChange) error {
	about(ctx, data.TenantID)
	ws, err := w.knownWorkspace(data.WorkspaceID)
	if err != nil {
		return err
	}
	to, ok := ChangedTo(e.Type)
	if !ok {
		return &events.Permanent{Code: "UNKNOWN_TYPE", Err: fmt.Errorf("no handler for events of type %s", e.Type)}
	}
	failpoint.Hit(failpoint.ChangeBegin)
	changed, err := w.db.Change(ctx, repo.Change{TenantID: data.TenantID, WorkspaceID: ws.ID, To: to, EventTime: e.Time})
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.ChangeDone)
	if changed {
		w.changed(data.TenantID)
		w.log.InfoContext(ctx, "a tenant's access changed", "tenant_id", data.TenantID, "event", e.Type, "reason", data.Reason, "event_id", e.ID)
	}
	return nil
}

// ChangedTo is the status that an event about a tenant's access asks for; ok is false for any other type.
func ChangedTo(eventType string) (to repo.Status, ok bool) {
	to, ok = map[string]repo.Status{
		events.TypeTenantSuspended: repo.Suspended,
		events.TypeTenantResumed:   repo.Active,
		events.TypeTenantDeleted:   repo.Deleted,
	}[eventType]
	return to, ok
}

// changed makes this and the other replicas read the tenant's mapping anew.
func (w *Worker) changed(tenantID string) {
	w.tenants.drop(tenantID)
	w.bus.TellChanged(tenantID)
}
