package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// createAdopted publishes a tenant.created that names a dashboard, and waits as Create does. It
// returns a ServiceError 409, and publishes nothing, if the tenant cannot have that dashboard.
func (a *API) createAdopted(ctx context.Context, fields map[string]string) (Dashboard, error) {
	tenantID, id := fields["tenant_id"], fields["dashboard_id"]
	d := Dashboard{TenantID: tenantID, WorkspaceID: fields["workspace_id"], Status: repo.Pending}
	if events.ValidateTenantID(tenantID) == nil && events.ValidateDashboardID(id) == nil {
		if _, err := a.adopted(ctx, fields); err != nil {
			return d, err
		}
	}
	if _, err := a.Publish(ctx, events.TypeTenantCreated, fields); err != nil {
		return d, err
	}
	for {
		m, err := a.adopted(untraced(context.WithoutCancel(ctx)), fields)
		if err != nil {
			return d, err
		}
		if m.TenantID != "" {
			d = dashboardOf(m)
		}
		if m.Stage == repo.Active && m.Wanted() || !events.Sleep(ctx, createPoll) {
			return d, nil
		}
	}
}

// adopted returns the tenant's mapping, if it has one, and an error if it has another dashboard than
// the fields name, or if that is another tenant's.
func (a *API) adopted(ctx context.Context, fields map[string]string) (repo.Mapping, error) {
	tenantID, id := fields["tenant_id"], fields["dashboard_id"]
	m, err := a.db.Mapping(ctx, tenantID)
	if err != nil && !errors.Is(err, repo.ErrNotFound) {
		return m, err
	}
	workspaceID := cmp.Or(fields["workspace_id"], m.WorkspaceID, a.workspaces.list[0].ID)
	owner, err := a.db.DashboardTenant(ctx, workspaceID, id)
	switch {
	case err != nil:
		return m, err
	case owner != "" && owner != tenantID:
		return m, serviceError(409, CodeTaken, 0, repo.Taken(owner).Error())
	case m.Stage == repo.Active && m.Wanted() && (m.DashboardID != id || m.WorkspaceID != workspaceID):
		return m, serviceError(409, CodeConflict, 0, conflict(m.DashboardID).Error())
	}
	return m, nil
}

// PreviewToken mints a token for a dashboard that an operator is about to assign to a tenant, so
// that the operator can look at it first. The tenant never gets this token.
func (a *API) PreviewToken(
	ctx context.Context, m repo.Mapping, dashboardID string, life time.Duration,
) (EmbedToken, error) {
	ws, ok := a.workspaces.find(m.WorkspaceID)
	if !ok {
		return EmbedToken{}, errNotConfigured
	}
	if err := ws.checkClock(); err != nil {
		return EmbedToken{}, err
	}
	t := &tenant{id: m.TenantID, dashboardID: dashboardID, ws: ws}
	now := a.tokens.now(time.Now())
	return a.tokens.token(ctx, t, now, lifeFrom(now, life))
}

// DashboardWarning says what is unusual about a dashboard id that a person enters for a tenant: its
// form differs from that of the workspace's other dashboards. It is empty if nothing is unusual.
func DashboardWarning(ctx context.Context, db *repo.DB, m repo.Mapping, dashboardID string) (string, error) {
	others, err := db.SomeDashboards(ctx, m.WorkspaceID, m.TenantID, 100)
	if err != nil || len(others) == 0 || slices.ContainsFunc(others, func(other string) bool {
		return idForm(other) == idForm(dashboardID)
	}) {
		return "", err
	}
	return fmt.Sprintf("the id does not look like the workspace's others, such as %s", others[0]), nil
}

// idForm is what ids of one kind have in common: their length, and the positions of letters, digits
// and other characters. Positions that can hold a hexadecimal digit count as one kind.
func idForm(id string) string {
	hex := func(r rune) bool { return strings.ContainsRune("0123456789abcdefABCDEF", r) }
	word := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	inWords := strings.FieldsFunc(id, func(r rune) bool { return !word(r) })
	allHex := !slices.ContainsFunc(inWords, func(w string) bool {
		return strings.ContainsFunc(w, func(r rune) bool { return !hex(r) })
	})
	form := strings.Map(func(r rune) rune {
		if word(r) {
			return 'x'
		}
		return r
	}, id)
	if allHex {
		return "hex " + form
	}
	return form
}
