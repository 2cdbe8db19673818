package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// TestGuidesClientIsServed runs the client of Papermap's multi-tenancy guide against the REST API,
// step by step: optional fields that are null, paths that end in a slash, a tenant's own rights, the
// row as the answer, and the iframe that has the token alone in its address.
func TestGuidesClientIsServed(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.env = append(s.env, "HTTP_JWT_SECRET=a secret of the tests that is long enough",
		"HTTP_CORS_ORIGINS=https://app.example.com")
	worker := startReady(t, s.env)
	defer worker.stop(t)
	base := "http://" + worker.address(t)
	bearer := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(run(t, s.env, append([]string{"jwt"}, args...)...))
	}
	admin := bearer("--scope", "papermap:admin")
	t.Run("go", func(t *testing.T) {
		c := &guideClient{t, base, s.api.URL + "/embedded/dashboard"}
		c.follow(admin, bearer("--tenant-id", "go-2", "--scope", "papermap:create"))
	})
	t.Run("node", func(t *testing.T) {
		node, err := exec.LookPath("node")
		if err != nil {
			without(t, "no Node: %v", err)
		}
		client := exec.CommandContext(t.Context(), node, "worker/e2e/testdata/guide.mjs")
		client.Env = append(os.Environ(), "API="+base+"/api/v1", "EMBED="+s.api.URL+"/embedded/dashboard",
			"ADMIN="+admin, "TENANT="+bearer("--tenant-id", "node-2", "--scope", "papermap:create"))
		if out, err := client.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, tail(string(out), 2000))
		}
	})
}

// guideClient is the guide's client in Go.
type guideClient struct {
	t           *testing.T
	base, embed string
}

// guideRow is what the guide's handlers answer with: a row of tenant_dashboards, or a token.
type guideRow struct {
	TenantID    string    `json:"tenant_id"`
	WorkspaceID string    `json:"workspace_id"`
	DashboardID string    `json:"dashboard_id"`
	Description *string   `json:"description"`
	CreatedBy   *string   `json:"created_by"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
	Token       string    `json:"token"`
	ExpiresAt   int64     `json:"expires_at"`
	Detail      string    `json:"detail"` // of a refusal
}

// guideDashboard is the body of a create; the guide sends what is not set as null.
type guideDashboard struct {
	TenantID    string  `json:"tenant_id"`
	WorkspaceID *string `json:"workspace_id"`
	Name        string  `json:"name"`
	Description *string `json:"description"`
}

func (c *guideClient) call(status int, method, path, token string, body any) (row guideRow) {
	c.t.Helper()
	data, err := json.Marshal(body)
	must(c.t, err)
	if body == nil {
		data = nil
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, bytes.NewReader(data))
	must(c.t, err)
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	answer, text, err := read(http.DefaultClient.Do(req))
	must(c.t, err)
	if answer.StatusCode != status {
		c.t.Fatalf("%s %s: %s %s, want %d", method, path, answer.Status, text, status)
	}
	must(c.t, json.Unmarshal([]byte(text), &row))
	return row
}

func (c *guideClient) follow(admin, tenant string) {
	c.t.Helper()
	const api = "/api/v1/dashboards/"
	workspace, description := "ws-test", "Q1"
	refused := func(row guideRow, detail string) {
		c.t.Helper()
		if row.Detail != detail {
			c.t.Errorf("refused with %q, want %q", row.Detail, detail)
		}
	}
	is := func(row guideRow, id string, description *string) {
		c.t.Helper()
		if row.TenantID != id || row.WorkspaceID != workspace || row.DashboardID == "" ||
			row.CreatedBy == nil ||
			*row.CreatedBy != "papermap-worker jwt" || row.CreatedAt.IsZero() || row.UpdatedAt.IsZero() ||
			(row.Description == nil) != (description == nil) ||
			description != nil && *row.Description != *description {
			c.t.Errorf("the row of %s is %+v", id, row)
		}
	}
	refused(c.call(401, "GET", api+"go-1", "", nil), "Missing authorization")
	refused(c.call(401, "GET", api+"go-1", "x", nil), "Invalid token")
	is(c.call(201, "POST", api, admin, guideDashboard{"go-1", &workspace, "Sales Dashboard", nil}),
		"go-1", nil)
	own := guideDashboard{"go-2", nil, "Sales Dashboard", &description}
	is(c.call(201, "POST", api, tenant, own), "go-2", &description)
	refused(c.call(403, "POST", api, tenant, guideDashboard{"go-1", nil, "Sales Dashboard", nil}),
		"Access denied")
	row := c.call(200, "GET", api+"go-2/", tenant, nil)
	is(row, "go-2", &description)
	refused(c.call(403, "GET", api+"go-1/", tenant, nil), "Access denied")
	c.call(404, "GET", api+"go-9/", admin, nil)
	c.call(403, "POST", api+"go-1/embed-token/", tenant, nil)
	c.call(200, "GET", "/api/v1/usage/?tenant_id=go-2", tenant, nil)
	for _, when := range []string{"first", "refreshed"} {
		token := c.call(200, "POST", api+"go-2/embed-token/", tenant, map[string]any{"ttl_seconds": nil})
		if token.DashboardID != row.DashboardID || token.ExpiresAt <= time.Now().Unix() {
			c.t.Errorf("the %s token is for %s until %d", when, token.DashboardID, token.ExpiresAt)
		}
		if err := openEmbedded(c.embed + "?embedded-token=" + url.QueryEscape(token.Token)); err != nil {
			c.t.Errorf("the %s iframe: %v", when, err)
		}
	}
	// The caller may not choose the dashboard: the guide's simple embedding is not served.
	c.call(404, "GET", fmt.Sprintf("/api/embed-token?workspaceId=%s&dashboardId=%s",
		workspace, row.DashboardID), admin, nil)
	c.preflight(api + "go-2/embed-token")
}

// preflight asks as a browser does, without credentials, so one list of origins is for all tenants.
func (c *guideClient) preflight(path string) {
	c.t.Helper()
	for origin, permitted := range map[string]string{
		"https://app.example.com": "https://app.example.com", "https://evil.example.com": "",
	} {
		req, err := http.NewRequestWithContext(c.t.Context(), "OPTIONS", c.base+path, nil)
		must(c.t, err)
		req.Header.Set("Origin", origin)
		req.Header.Set("Access-Control-Request-Method", "POST")
		answer, _, err := read(http.DefaultClient.Do(req))
		must(c.t, err)
		if got := answer.Header.Get("Access-Control-Allow-Origin"); got != permitted {
			c.t.Errorf("a page of %s: origin %q is permitted, want %q", origin, got, permitted)
		}
	}
}
