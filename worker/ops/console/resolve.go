package console

import (
	"fmt"
	"net/http"
	"strings"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// dashboardChoice is a dashboard that a person is about to give a tenant.
type dashboardChoice struct {
	tenant
	Chosen  string // the id that was entered
	Replace bool   // the tenant has another one
	Warning string // what is unusual about the id
	NoFrame string // why there is no preview
}

// chooseDashboard shows what is about to happen to a held tenant, or to one with a wrong dashboard:
// the ids, what is unusual, and the dashboard itself, with a token for a minute. It changes nothing,
// and is a POST because a token is minted.
func (c *Console) chooseDashboard(rw http.ResponseWriter, v *visit) error {
	ctx := v.Context()
	t, err := c.readTenant(ctx, v.PostFormValue("tenant"))
	if err != nil {
		return err
	}
	choice := dashboardChoice{tenant: t, Chosen: strings.TrimSpace(v.PostFormValue("dashboard"))}
	choice.Replace = t.Stage == repo.Active
	switch {
	case events.ValidateDashboardID(choice.Chosen) != nil:
		return visible(fmt.Errorf("%q: %w", choice.Chosen, worker.ErrDashboardID))
	case t.Stage != repo.Held && !(choice.Replace && t.Wanted()):
		return refuse(http.StatusConflict, "The tenant is %s: there is nothing to resolve.", t.Status)
	case choice.Replace && t.DashboardID == choice.Chosen:
		return refuse(http.StatusConflict, "That is the tenant’s dashboard already.")
	}
	if owner, err := c.db.DashboardTenant(ctx, t.WorkspaceID, choice.Chosen); err != nil {
		return err
	} else if owner != "" && owner != t.TenantID {
		return visible(repo.Taken(owner))
	}
	if choice.Warning, err = worker.DashboardWarning(ctx, c.db, t.Mapping, choice.Chosen); err != nil {
		return err
	}
	token, err := c.w.PreviewToken(ctx, t.Mapping, choice.Chosen, previewLife)
	c.audit(v, "preview", err, "tenant_id", t.TenantID, "dashboard_id", choice.Chosen)
	if err != nil {
		choice.NoFrame = err.Error()
	} else {
		choice.Frame, choice.FrameLife = token.EmbedURL, previewLife
	}
	return c.show(rw, v, "resolve", t.TenantID, &choice)
}

// resolve gives a tenant the dashboard that a person has chosen: a held one, or instead of the one
// that the form names.
func (c *Console) resolve(rw http.ResponseWriter, v *visit) error {
	id, dashboardID := v.PostFormValue("tenant"), strings.TrimSpace(v.PostFormValue("dashboard"))
	old := v.PostFormValue("replaces")
	var m repo.Mapping
	var err error
	if old == "" {
		m, err = c.w.Resolve(v.Context(), id, dashboardID)
		c.audit(v, "resolve", err, "tenant_id", id, "dashboard_id", dashboardID)
	} else {
		m, err = c.w.Replace(v.Context(), id, old, dashboardID)
		c.audit(v, "replace", err, "tenant_id", id, "dashboard_id", dashboardID, "replaces", old)
	}
	if err != nil {
		return visible(err)
	}
	return c.after(rw, v, tenantPage(id), "good",
		fmt.Sprintf("The tenant is %s and has dashboard %s.", m.Status, m.DashboardID))
}
