package console

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// fillTenants writes so many tenants past the rules: t-0000000 "Dashboard - Company 0" and so on,
// every tenth of them held.
func fillTenants(t testing.TB, w *world, n int) {
	t.Helper()
	_, err := w.SQL.Exec(`INSERT INTO tenant_dashboards
		(tenant_id, workspace_id, dashboard_id, title, status, stage, created_at, updated_at)
		WITH RECURSIVE number (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < ?)
		SELECT printf('t-%07d', i), 'ws-a', 'd-' || i, 'Dashboard - Company ' || i,
			iif(i % 10, 'active', 'held'), iif(i % 10, 'active', 'held'),
			'2026-03-01T12:00:00.000Z', '2026-03-01T12:00:00.000Z' FROM number`, n)
	w.Must(err)
	t.Cleanup(func() { // they are in no books
		_, err := w.SQL.Exec("DELETE FROM tenant_dashboards")
		w.Must(err)
	})
}

// BenchmarkTenantsPage is a page of 50 tenants out of 1,000,000 in SQLite, from the request to the
// HTML:
//
//	go test -run '^$' -bench TenantsPage ./worker/ops/console
//
// The plans are of the same conditions; a test in repo holds the very queries to their indexes.
// Measured: see docs/console.md.
func BenchmarkTenantsPage(b *testing.B) {
	w := start(b, Config{Dev: true})
	fillTenants(b, w, 1_000_000)
	for _, page := range []struct{ name, path, where string }{
		{"first", "/tenants", "tenant_id > '' ORDER BY tenant_id"},
		{"deep", "/tenants?after=t-0700000", "tenant_id > 't-0700000' ORDER BY tenant_id"},
		{"back", "/tenants?before=t-0700000", "tenant_id < 't-0700000' ORDER BY tenant_id DESC"},
		{"status", "/tenants?status=held&after=t-0700000",
			"status = 'held' AND tenant_id > 't-0700000' ORDER BY tenant_id"},
		{"id", "/tenants?q=t-07", "tenant_id >= 't-07' AND tenant_id < 't-07~' ORDER BY tenant_id"},
		{"name", "/tenants?q=company+7", ""},
		{"name-deep", "/tenants?q=company&by=name&after=t-0700000", ""},
		{"name-status", "/tenants?q=company&by=name&status=held", ""},
		{"name-nobody", "/tenants?q=company&by=name&status=failed", ""},
		{"overview", "/", ""},
	} {
		b.Run(page.name, func(b *testing.B) {
			if page.where != "" {
				var plan []struct {
					ID, Parent, Notused int
					Detail              string
				}
				query := "SELECT * FROM tenant_dashboards WHERE " + page.where + " LIMIT 51"
				w.Must(w.SQL.Select(&plan, "EXPLAIN QUERY PLAN "+query))
				for _, step := range plan {
					b.Log(step.Detail)
				}
			}
			for b.Loop() {
				r := httptest.NewRequest("GET", page.path, nil)
				r.Host, r.RemoteAddr = "localhost", "127.0.0.1:1"
				rw := httptest.NewRecorder()
				w.console.ServeHTTP(rw, r)
				if rw.Code != http.StatusOK {
					b.Fatal(fmt.Sprint(rw.Code, rw.Body))
				}
			}
		})
	}
}
