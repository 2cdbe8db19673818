package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// Answer answers a request as over NATS: endpoint is embed-token, dashboard or usage. An error that the caller is to see
// is an *events.ServiceError.
func (w *Worker) Answer(ctx context.Context, endpoint string, request []byte) ([]byte, error) {
	for _, e := range w.endpoints() {
		if e.Name == endpoint && !e.PerToken {
			return e.Handle(ctx, events.Request{Data: request})
		}
	}
	return nil, fmt.Errorf("there is no endpoint %s", endpoint)
}

// Tenants lists at most limit mappings in the order of tenant ids, those after the id after; of one status unless it is
// empty.
func (w *Worker) Tenants(ctx context.Context, status repo.Status, after string, limit int) ([]Dashboard, error) {
	list, err := w.db.Mappings(ctx, status, after, limit)
	if err != nil {
		return nil, err
	}
	dashboards := make([]Dashboard, len(list))
	for i, m := range list {
		dashboards[i] = dashboardOf(m)
	}
	return dashboards, nil
}

// Publish publishes an event in for a tenant, once it is one that the worker would take, and returns when the stream has it.
func (w *Worker) Publish(ctx context.Context, eventType string, fields map[string]string) (eventID string, err error) {
	for name, value := range fields {
		if value == "" {
			delete(fields, name)
		}
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return "", invalid(errors.New("a text is not valid UTF-8"))
	}
	if _, err := events.Decode(events.Raw{Type: eventType, Data: data, Time: w.now()}); err != nil {
		return "", invalid(err)
	}
	if id := fields["workspace_id"]; id != "" {
		if _, ok := w.workspaceOf(id); !ok {
			return "", invalid(fmt.Errorf("workspace %q is not configured", id))
		}
	}
	eventID = uuid.NewString()
	_, err = w.bus.Publish(ctx, events.Outgoing{ID: eventID, Type: eventType, Data: data})
	return eventID, err
}

// Create publishes tenant.created and waits for what comes of it, at most until ctx ends: then the mapping is as it is by then.
func (w *Worker) Create(ctx context.Context, fields map[string]string) (Dashboard, error) {
	tenantID := fields["tenant_id"]
	eventID, err := w.Publish(ctx, events.TypeTenantCreated, fields)
	if err != nil {
		return Dashboard{}, err
	}
	d := Dashboard{TenantID: tenantID, WorkspaceID: fields["workspace_id"], Status: repo.Pending}
	unseen := trace.ContextWithSpan(context.WithoutCancel(ctx), nil) // spans of it would hide the others
	for {
		m, err := w.db.Mapping(unseen, tenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return d, err
		}
		if err == nil {
			d = dashboardOf(m)
			switch seen := m.CreatedEventID == eventID; {
			case m.Stage == repo.Active && m.Wanted(), seen && m.Stage == repo.Held:
				return d, nil
			case seen && m.Stage == repo.Failed:
				return d, &events.ServiceError{Status: 422, Code: m.FailedCode, Message: m.FailedError}
			}
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return d, nil
		}
	}
}

func dashboardOf(m repo.Mapping) Dashboard {
	d := Dashboard{TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, Title: m.Title, Status: m.Status, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt}
	if m.DashboardID != "" {
		d.DashboardID = &m.DashboardID
	}
	return d
}
