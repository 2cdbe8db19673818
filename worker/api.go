package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"papermap-worker/events"
	"papermap-worker/repo"
)

// API has the calls of a running worker: NATS reaches them through its endpoints, REST and the
// console, which run in the same process, through its methods. An error for the caller is an
// *events.ServiceError.
//
//	token, err := w.EmbedToken(ctx, worker.TokenRequest{TenantID: "acme"})
type API struct {
	workspaces workspaces
	db         *repo.DB
	bus        *events.Bus
	tokens     *tokenService
	missing    *missingTenants // nil unless token requests may create tenants
	now        func() time.Time
	changed    func(tenantID string) // called after each change of a mapping by an operator
}

// Dashboard is a tenant's mapping as callers see it.
type Dashboard struct {
	TenantID    string      `json:"tenant_id"`
	WorkspaceID string      `json:"workspace_id"`
	DashboardID *string     `json:"dashboard_id"` // null until known
	Title       string      `json:"title"`
	Status      repo.Status `json:"status"`
	CreatedAt   repo.Time   `json:"created_at"`
	UpdatedAt   repo.Time   `json:"updated_at"`

	Description, CreatedBy *string `json:"-"` // REST shows them; nil: none
}

// DashboardRequest asks for a tenant's mapping.
type DashboardRequest struct {
	TenantID    string
	WorkspaceID string // empty, or the tenant's own
}

// endpoints are the request-reply endpoints on NATS.
func (a *API) endpoints() []events.Endpoint {
	token := typedHandler(a.decodeTokenRequest, a.EmbedToken)
	return []events.Endpoint{
		{Name: "embed-token", Handle: token, Fast: a.tokens.tokenFromCache, Timeout: tokenWait},
		{Name: "embed-token", PerToken: true, Handle: token, Fast: a.tokens.tokenFromCache,
			Timeout: tokenWait},
		{Name: "dashboard", Handle: typedHandler(decodeDashboardRequest, a.Dashboard)},
		{Name: "usage", Handle: typedHandler(decodeUsageRequest, a.Usage)},
	}
}

// typedHandler makes an endpoint's handler of a decoder and a typed call.
func typedHandler[Q, A any](
	decode func(events.Request) (Q, error), call func(context.Context, Q) (A, error),
) func(context.Context, events.Request) ([]byte, error) {
	return func(ctx context.Context, r events.Request) ([]byte, error) {
		q, err := decode(r)
		if err != nil {
			return nil, err
		}
		answer, err := call(ctx, q)
		if err != nil {
			return nil, err
		}
		return json.Marshal(answer)
	}
}

// decodeTokenRequest counts requests that cannot be decoded; EmbedToken counts all others.
func (a *API) decodeTokenRequest(r events.Request) (TokenRequest, error) {
	q, err := decodeTokenRequest(r)
	if err != nil {
		a.tokens.metrics.tokenAnswered(err, 0)
	}
	return q, err
}

// EmbedToken mints a token for a tenant whose mapping is active.
func (a *API) EmbedToken(ctx context.Context, r TokenRequest) (EmbedToken, error) {
	token, err := a.tokens.embedToken(ctx, r)
	if r.CreateMissing && a.missing != nil && errors.Is(err, errUnknownTenant) {
		err = a.missing.create(ctx, r, a.workspaces)
	}
	return token, err
}

func decodeDashboardRequest(r events.Request) (q DashboardRequest, err error) {
	fields := map[string]any{"tenant_id": &q.TenantID, "workspace_id": &q.WorkspaceID}
	if err := events.DecodeObject(r.Data, fields); err != nil {
		return q, invalid(err)
	}
	return q, nil
}

// Dashboard returns a tenant's mapping.
func (a *API) Dashboard(ctx context.Context, r DashboardRequest) (Dashboard, error) {
	if err := events.ValidateTenantID(r.TenantID); err != nil {
		return Dashboard{}, invalid(err)
	}
	m, err := a.db.Mapping(ctx, r.TenantID)
	switch {
	case errors.Is(err, repo.ErrNotFound):
		return Dashboard{}, errUnknownTenant
	case err != nil:
		return Dashboard{}, err
	case r.WorkspaceID != "" && r.WorkspaceID != m.WorkspaceID:
		return Dashboard{}, errOtherWorkspace
	}
	return dashboardOf(m), nil
}

func dashboardOf(m repo.Mapping) Dashboard {
	d := Dashboard{
		TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, Title: m.Title, Status: m.Status,
		CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt,
	}
	d.DashboardID, d.Description, d.CreatedBy =
		nullable(m.DashboardID), nullable(m.Description), nullable(m.CreatedBy)
	return d
}

// nullable is nil for an empty text.
func nullable(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// Tenants lists at most limit mappings in the order of tenant ids, starting after the id after. If
// status is not empty, it lists only mappings with that status.
func (a *API) Tenants(ctx context.Context, status repo.Status, after string, limit int) ([]Dashboard, error) {
	list, err := a.db.Mappings(ctx, status, after, limit)
	if err != nil {
		return nil, err
	}
	dashboards := make([]Dashboard, len(list))
	for i, m := range list {
		dashboards[i] = dashboardOf(m)
	}
	return dashboards, nil
}

// Publish publishes the event that NewEvent makes from the fields, and returns its id once the
// stream has stored it. The event's time is the time of the request by the stream's clock, even if
// it arrives later.
func (a *API) Publish(ctx context.Context, eventType string, fields map[string]string) (string, error) {
	now, err := a.bus.StreamTime(ctx)
	if err != nil {
		return "", notStored(errNotStored, err)
	}
	return a.publishAt(ctx, actions[eventType], eventType, fields, now)
}

func (a *API) publishAt(
	ctx context.Context, action, eventType string, fields map[string]string, when time.Time,
) (string, error) {
	e, err := NewEvent(eventType, fields, when)
	if err != nil {
		return "", invalid(err)
	}
	if id := fields["workspace_id"]; id != "" {
		if _, ok := a.workspaces.find(id); !ok {
			return "", invalid(fmt.Errorf("workspace %q is not configured", id))
		}
	}
	entry, tried := EventEntry(e), false
	entry.Action = action
	err = Audit(ctx, entry, a.db.Audit, func() error {
		tried = true
		_, err := a.bus.Publish(ctx, e.WithTime(when))
		return err
	})
	switch {
	case err == nil:
		return e.ID, nil
	case !tried: // the action was not recorded either
		return "", notStored(errNotStored, err)
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		return "", notStored(errMaybe, err)
	}
	return "", notStored(errNotStored, err)
}

// The answers to a request whose event the stream does not have, or did not acknowledge in time.
// They reveal nothing that a tenant must not know.
var (
	errNotStored = serviceError(503, "UNAVAILABLE", 1, "the event was not stored; try again")
	errMaybe     = serviceError(503, "UNAVAILABLE", 1,
		"the event was not acknowledged in time, and may have been stored; look, then try again")
)

// notStored wraps errNotStored or errMaybe with the cause.
func notStored(answer, cause error) error { return fmt.Errorf("%w (%w)", answer, cause) }

// createPoll is how often Create checks whether its event has been handled.
const createPoll = 50 * time.Millisecond

// Create publishes tenant.created and waits for its outcome: the tenant is active, held, or failed,
// which is a ServiceError 422 with Papermap's reason. If ctx ends first, it returns the current
// mapping, with status pending or creating. The event is in the stream and will be handled.
func (a *API) Create(ctx context.Context, fields map[string]string) (Dashboard, error) {
	if fields["dashboard_id"] != "" {
		return a.createAdopted(ctx, fields)
	}
	eventID, err := a.Publish(ctx, events.TypeTenantCreated, fields)
	if err != nil {
		return Dashboard{}, err
	}
	return a.awaitCreated(ctx, eventID, Dashboard{
		TenantID: fields["tenant_id"], WorkspaceID: fields["workspace_id"], Status: repo.Pending,
	})
}

// awaitCreated waits for the outcome of a tenant.created. If there is none when ctx ends, it
// returns d.
func (a *API) awaitCreated(ctx context.Context, eventID string, d Dashboard) (Dashboard, error) {
	for {
		m, err := a.db.Mapping(untraced(context.WithoutCancel(ctx)), d.TenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return d, err
		}
		if err == nil {
			d = dashboardOf(m)
			switch handled := m.CreatedEventID == eventID; {
			case m.Stage == repo.Active && m.Wanted(), handled && m.Stage == repo.Held:
				return d, nil
			case handled && m.Stage == repo.Failed:
				return d, serviceError(422, m.FailedCode, 0, m.FailedError)
			}
		}
		if !events.Sleep(ctx, createPoll) {
			return d, nil
		}
	}
}
