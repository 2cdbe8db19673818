package simulator

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"papermap-worker/papermap"
)

type embedView struct {
	Title, Tenant, Workspace, Dashboard, Expires string
	Life                                         int64 // seconds until Expires
	Chart                                        chart
	Refused                                      string // why there is no dashboard to see
}

// serveEmbedded shows the page that an iframe loads: a dashboard's facts, or why its token does not
// open it.
func (s *Simulator) serveEmbedded(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	view, status := s.openDashboard(query.Get("embedded-token"), query.Get("workspace-id"),
		query.Get("dashboard-id"))
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", embedPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer") // the address holds the token
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = embedPage.Execute(w, view)
}

// openDashboard checks a token as Papermap would, and nothing more: the tenant in it is unsigned,
// and dashboards have no tenant to compare it with. Workspace and dashboard may be left out of the
// address, as in the sample iframe of Papermap's guide: the token names them.
func (s *Simulator) openDashboard(token, workspaceID, dashboardID string) (embedView, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	claims, err := papermap.ParseToken(token)
	secret, known := s.keys[claims.WorkspaceID][claims.APIKeyID]
	key := papermap.KeyPair{ID: claims.APIKeyID, Secret: secret}
	workspaceID = cmp.Or(workspaceID, claims.WorkspaceID)
	dashboardID = cmp.Or(dashboardID, claims.DashboardID)
	asked := func(d Dashboard) bool { return d.ID == dashboardID && d.WorkspaceID == workspaceID }
	found := slices.IndexFunc(s.dashboards, asked)

	status, refused := http.StatusUnauthorized, ""
	switch invalid := claims.Verify(key, s.now()); {
	case err != nil:
		refused = "The embed token cannot be read."
	case !known:
		refused = "The embed token is signed with a key that this workspace does not have."
	case claims.ValidUntil < 1e9 || claims.ValidUntil > 9999999999:
		refused = "The embed token's expiry is not a ten-digit Unix time."
	case invalid != nil:
		refused = "The embed " + invalid.Error() + "."
	case claims.WorkspaceID != workspaceID:
		status, refused = http.StatusForbidden, "The embed token is for another workspace than workspace-id."
	case claims.DashboardID != dashboardID:
		status, refused = http.StatusForbidden, "The embed token is for another dashboard than dashboard-id."
	case found < 0:
		status, refused = http.StatusNotFound, "This workspace has no such dashboard."
	}
	if refused != "" {
		return embedView{Title: http.StatusText(status), Refused: refused}, status
	}
	return embedView{
		Title:  s.dashboards[found].Title,
		Tenant: claims.TenantID, Workspace: workspaceID, Dashboard: dashboardID,
		Expires: time.Unix(claims.ValidUntil, 0).UTC().Format(time.RFC3339),
		Life:    claims.ValidUntil - s.now().Unix(),
		Chart:   newChart(dashboardID),
	}, http.StatusOK
}
