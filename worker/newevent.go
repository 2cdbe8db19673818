package worker

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// titlePrefix and the tenant's name make the dashboard's title, unless the event has a title.
const titlePrefix = "Dashboard - "

// NewEvent makes an event as an upstream service would publish it: plain JSON of the fields that
// are not empty, with a new id. It returns an error for an event that the worker would refuse.
//
//	fields := map[string]string{"tenant_id": "acme", "name": "Acme"}
//	e, err := worker.NewEvent(events.TypeTenantCreated, fields, time.Now())
func NewEvent(eventType string, fields map[string]string, now time.Time) (events.Outgoing, error) {
	given := maps.Clone(fields)
	maps.DeleteFunc(given, func(_, value string) bool { return value == "" })
	data, err := json.Marshal(given, json.Deterministic(true))
	if err != nil {
		return events.Outgoing{}, errors.New("a text is not valid UTF-8")
	}
	if _, err := events.Decode(events.Raw{Type: eventType, Data: data, Time: now}); err != nil {
		return events.Outgoing{}, err
	}
	return events.Outgoing{ID: uuid.NewString(), Type: eventType, Data: data}, nil
}

// createdFields are the fields of a tenant.created that would record the mapping again. The decoder
// accepts them for every mapping: a title that was not made from a name also serves as the name,
// and a blank title is left out. The dashboard id is left out, because the event is for tenants
// that need a new dashboard.
func createdFields(m repo.Mapping) map[string]string {
	fields := map[string]string{
		"tenant_id": m.TenantID, "workspace_id": m.WorkspaceID, "description": m.Description,
		"created_by": m.CreatedBy,
	}
	name, fromName := strings.CutPrefix(m.Title, titlePrefix)
	switch {
	case fromName && strings.TrimSpace(name) != "":
		fields["name"] = name
	case strings.TrimSpace(m.Title) != "":
		fields["name"], fields["title"] = m.Title, m.Title
	default:
		fields["name"], fields["title"] = m.TenantID, m.Title
	}
	maps.DeleteFunc(fields, func(_, value string) bool { return value == "" })
	return fields
}

// TenantCreatedAgain is the mapping's tenant.created again, with its original identity and time.
func TenantCreatedAgain(m repo.Mapping) (repo.OutboxEvent, error) {
	e, err := newOutboxEvent(events.TypeTenantCreated, createdFields(m))
	e.OriginalID, e.OriginalTime = m.CreatedEventID, m.CreatedEvent
	return e, err
}

// DashboardCreatedEvent announces the mapping's dashboard.
func DashboardCreatedEvent(m repo.Mapping) (repo.OutboxEvent, error) {
	return newOutboxEvent(events.TypeDashboardCreated, events.DashboardCreated{
		TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, DashboardID: m.DashboardID, Title: m.Title,
	})
}

// newOutboxEvent makes an event out with a new id. Ids of version 7 are ordered by time, which
// suits an index.
func newOutboxEvent(eventType string, data any) (repo.OutboxEvent, error) {
	body, err := json.Marshal(data, json.Deterministic(true))
	if err != nil {
		return repo.OutboxEvent{}, fmt.Errorf("encode %s: %w", eventType, err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return repo.OutboxEvent{}, fmt.Errorf("make an event id: %w", err)
	}
	return repo.OutboxEvent{EventID: id.String(), Type: eventType, Data: body}, nil
}
