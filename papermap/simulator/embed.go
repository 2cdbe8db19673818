package simulator

import (
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
	"slices"
	"time"

	"papermap-worker/papermap"
)

const embedStyle = `body{font:16px/1.5 system-ui,sans-serif;margin:2rem;color:#1c2430;background:#fff}` +
	`h1{font-size:1.3rem;margin:0 0 1rem}` +
	`dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1rem;margin:0}` +
	`dt{color:#5b6675}dd{margin:0;overflow-wrap:anywhere}` +
	`footer{margin-top:2rem;color:#5b6675;font-size:.85rem}`

var embedPage = template.Must(template.New("embedded").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{{.Title}}</title>
<style>` + embedStyle + `</style></head><body>
<h1>{{.Title}}</h1>
{{if .Refused}}<p>{{.Refused}}</p>
{{else}}<dl>
<dt>Tenant</dt><dd>{{.Tenant}}</dd>
<dt>Workspace</dt><dd>{{.Workspace}}</dd>
<dt>Dashboard</dt><dd>{{.Dashboard}}</dd>
<dt>Token expires</dt><dd><time datetime="{{.Expires}}">{{.Expires}}</time></dd>
</dl>
{{end}}<footer>Papermap simulator: a stand-in for the embedded dashboard.</footer>
</body></html>
`))

// embedPolicy lets nothing run or load on the page, and lets every site frame it, as an embedded
// dashboard requires.
var embedPolicy = func() string {
	sum := sha256.Sum256([]byte(embedStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors *"
}()

type embedView struct {
	Title, Tenant, Workspace, Dashboard, Expires string
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
// and dashboards have no tenant to compare it with.
func (s *Simulator) openDashboard(token, workspaceID, dashboardID string) (embedView, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	claims, err := papermap.ParseToken(token)
	secret, known := s.keys[claims.WorkspaceID][claims.APIKeyID]
	key := papermap.KeyPair{ID: claims.APIKeyID, Secret: secret}
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
	}, http.StatusOK
}
