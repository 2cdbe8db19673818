package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// EmbedToken is the answer to a request for an embed token. Times are Unix seconds.
type EmbedToken struct {
	Token        string `json:"token"`
	TenantID     string `json:"tenant_id"`
	WorkspaceID  string `json:"workspace_id"`
	DashboardID  string `json:"dashboard_id"`
	ExpiresAt    int64  `json:"expires_at"`
	RefreshAfter int64  `json:"refresh_after"` // when 80 % of the life are over
	EmbedURL     string `json:"embed_url"`
}

// Dashboard is the answer to a request for a tenant's mapping.
type Dashboard struct {
	TenantID    string      `json:"tenant_id"`
	WorkspaceID string      `json:"workspace_id"`
	DashboardID *string     `json:"dashboard_id"` // null until known
	Title       string      `json:"title"`
	Status      repo.Status `json:"status"`
	CreatedAt   repo.Time   `json:"created_at"`
	UpdatedAt   repo.Time   `json:"updated_at"`
}

func (w *Worker) endpoints() []events.Endpoint {
	return []events.Endpoint{
		{Name: "embed-token", Handle: w.embedToken},
		{Name: "dashboard", Handle: w.dashboard},
	}
}

func (w *Worker) embedToken(ctx context.Context, request []byte) ([]byte, error) {
	var tenantID, workspaceID string
	var ttl *int64
	if err := events.DecodeObject(request, map[string]any{"tenant_id": &tenantID, "workspace_id": &workspaceID, "ttl_seconds": &ttl}); err != nil {
		return nil, invalid(err)
	}
	life := w.cfg.TokenTTL
	if ttl != nil {
		if *ttl < 1 {
			return nil, invalid(errors.New(`"ttl_seconds" must be at least 1`))
		}
		life = time.Duration(min(*ttl, int64(w.cfg.TokenMaxTTL/time.Second))) * time.Second
	}
	m, err := w.mapping(ctx, tenantID, workspaceID)
	if err != nil {
		return nil, err
	}
	if err := tokenAllowed(m); err != nil {
		return nil, err
	}
	token, err := w.mint(m, life, time.Now())
	if err != nil {
		return nil, err
	}
	return json.Marshal(token)
}

// tokenAllowed returns the documented error unless the mapping is active.
func tokenAllowed(m repo.Mapping) error {
	switch m.Status {
	case repo.Active:
		return nil
	case repo.Suspended:
		return &events.ServiceError{Status: 403, Code: "TENANT_SUSPENDED", Message: "the tenant is suspended"}
	case repo.Deleted:
		return &events.ServiceError{Status: 410, Code: "TENANT_DELETED", Message: "the tenant was deleted"}
	}
	retry := map[repo.Status]int{repo.Pending: 2, repo.Creating: 2, repo.Held: 60, repo.Failed: 60}[m.Status]
	return &events.ServiceError{
		Status: 409, Code: "DASHBOARD_NOT_READY", Message: fmt.Sprintf("the tenant has no dashboard yet: it is %s", m.Status), RetryAfter: retry,
	}
}

// mint signs a token for the mapping's own workspace and dashboard.
func (w *Worker) mint(m repo.Mapping, life time.Duration, now time.Time) (EmbedToken, error) {
	ws, ok := w.workspaces[m.WorkspaceID]
	if !ok {
		return EmbedToken{}, fmt.Errorf("workspace %q of tenant %q is not configured", m.WorkspaceID, m.TenantID)
	}
	now = now.Truncate(time.Second)
	expires := now.Add(life)
	token, err := papermap.MintToken(ws.EmbedKey, m.WorkspaceID, m.TenantID, m.DashboardID, expires)
	if err != nil {
		return EmbedToken{}, fmt.Errorf("tenant %q: %w", m.TenantID, err)
	}
	return EmbedToken{
		Token: token, TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, DashboardID: m.DashboardID,
		ExpiresAt: expires.Unix(), RefreshAfter: now.Add(life * 8 / 10).Unix(),
		EmbedURL: papermap.EmbedURL(w.cfg.EmbedURL, token, m.WorkspaceID, m.DashboardID),
	}, nil
}

func (w *Worker) dashboard(ctx context.Context, request []byte) ([]byte, error) {
	var tenantID, workspaceID string
	if err := events.DecodeObject(request, map[string]any{"tenant_id": &tenantID, "workspace_id": &workspaceID}); err != nil {
		return nil, invalid(err)
	}
	m, err := w.mapping(ctx, tenantID, workspaceID)
	if err != nil {
		return nil, err
	}
	d := Dashboard{TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, Title: m.Title, Status: m.Status, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt}
	if m.DashboardID != "" {
		d.DashboardID = &m.DashboardID
	}
	return json.Marshal(d)
}

// mapping reads the tenant's mapping for a request; a workspace in the request is only checked.
func (w *Worker) mapping(ctx context.Context, tenantID, workspaceID string) (repo.Mapping, error) {
	if err := events.ValidateTenantID(tenantID); err != nil {
		return repo.Mapping{}, invalid(err)
	}
	m, err := w.db.Mapping(ctx, tenantID)
	if errors.Is(err, repo.ErrNotFound) {
		return m, &events.ServiceError{Status: 404, Code: "TENANT_NOT_FOUND", Message: "the tenant is unknown: was tenant.created published for it?"}
	}
	if err != nil {
		return m, err
	}
	if workspaceID != "" && workspaceID != m.WorkspaceID {
		return m, invalid(errors.New(`"workspace_id" is not the tenant's`))
	}
	return m, nil
}

func invalid(err error) *events.ServiceError {
	return &events.ServiceError{Status: 400, Code: "INVALID_REQUEST", Message: err.Error()}
}
