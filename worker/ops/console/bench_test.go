package console

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"syscall"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/workertest"
)

// fillTenants writes so many tenants past the rules: t-0000000 "Dashboard - Company 0" and so on,
// every tenth of them held, and every seventh adopted.
func fillTenants(t testing.TB, w *world, n int) {
	t.Helper()
	_, err := w.SQL.Exec(`INSERT INTO tenant_dashboards
		(tenant_id, workspace_id, dashboard_id, title, status, stage, dashboard_origin, created_at,
			updated_at)
		WITH RECURSIVE number (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < ?)
		SELECT printf('t-%07d', i), 'ws-a', 'd-' || i, 'Dashboard - Company ' || i,
			iif(i % 10, 'active', 'held'), iif(i % 10, 'active', 'held'),
			iif(i % 7, '', 'adopted'),
			'2026-03-01T12:00:00.000Z', '2026-03-01T12:00:00.000Z' FROM number`, n)
	w.Must(err)
	emptyTenants(t, w)
}

func fillPostgres(t testing.TB, w *world, n int) {
	t.Helper()
	_, err := w.SQL.Exec(`INSERT INTO tenant_dashboards
		(tenant_id, workspace_id, dashboard_id, title, status, stage, dashboard_origin, created_at,
			updated_at)
		SELECT 't-' || lpad(i::text, 7, '0'), 'ws-a', 'd-' || i, 'Dashboard - Company ' || i,
			CASE i % 10 WHEN 0 THEN 'held' ELSE 'active' END,
			CASE i % 10 WHEN 0 THEN 'held' ELSE 'active' END,
			CASE i % 7 WHEN 0 THEN 'adopted' ELSE '' END,
			'2026-03-01T12:00:00Z', '2026-03-01T12:00:00Z' FROM generate_series(0, $1 - 1) i`, n)
	w.Must(err)
	emptyTenants(t, w)
}

// emptyTenants deletes tenants at the end: they are in no books.
func emptyTenants(t testing.TB, w *world) {
	t.Cleanup(func() {
		_, err := w.SQL.Exec("DELETE FROM tenant_dashboards")
		w.Must(err)
	})
}

// BenchmarkTenantsPage is a page of 50 tenants out of 1,000,000, from the request to the HTML, in
// both databases:
//
//	go test -run '^$' -bench TenantsPage ./worker/ops/console
//
// The index is in memory; the plans are of the statements that read what is shown, and the index.
// Measured: see docs/console.md.
func BenchmarkTenantsPage(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) {
		w := start(b, Config{Dev: true})
		fillTenants(b, w, 1_000_000)
		for _, query := range []string{
			"SELECT * FROM tenant_dashboards WHERE tenant_id IN (SELECT value FROM json_each('[]'))",
			"SELECT tenant_id FROM tenant_dashboards WHERE tenant_id > '' ORDER BY tenant_id LIMIT 20000",
		} {
			var plan []struct {
				ID, Parent, Notused int
				Detail              string
			}
			w.Must(w.SQL.Select(&plan, "EXPLAIN QUERY PLAN "+query))
			for _, step := range plan {
				b.Log(step.Detail)
			}
		}
		benchmarkTenants(b, w)
	})
	b.Run("postgres", func(b *testing.B) {
		o := options(nil)
		o.Postgres = pgtest.ForTest(b)
		w := serve(b, workertest.Start(b, o), Config{Dev: true})
		fillPostgres(b, w, 1_000_000)
		_, err := w.SQL.Exec("ANALYZE tenant_dashboards")
		w.Must(err)
		for _, query := range []string{
			"SELECT * FROM tenant_dashboards WHERE tenant_id = ANY('{t-0000001,t-0000002}'::text[])",
			"SELECT tenant_id FROM tenant_dashboards WHERE tenant_id > '' ORDER BY tenant_id LIMIT 20000",
		} {
			var plan []string
			w.Must(w.SQL.Select(&plan, "EXPLAIN "+query))
			for _, step := range plan {
				b.Log(step)
			}
		}
		benchmarkTenants(b, w)
	})
}

// processorTime is what this process has used. Unlike the clock's, it does not depend on what else the
// machine does.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func benchmarkTenants(b *testing.B, w *world) {
	get := func(path string) {
		r := httptest.NewRequest("GET", path, nil)
		r.Host, r.RemoteAddr = "localhost", "127.0.0.1:1"
		rw := httptest.NewRecorder()
		w.console.ServeHTTP(rw, r)
		if rw.Code != http.StatusOK {
			b.Fatal(fmt.Sprint(rw.Code, rw.Body))
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w.Eventually(func() error {
		get("/tenants")
		w.console.indexes.mu.Lock()
		defer w.console.indexes.mu.Unlock()
		if w.console.indexes.now == nil {
			return fmt.Errorf("the index is not read")
		}
		return nil
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Logf("reading the index took %s; it has %d MB", w.console.indexes.took,
		(after.HeapAlloc-before.HeapAlloc)>>20)
	w.console.indexes.mu.Lock()
	w.console.indexes.took = time.Hour // it is not read again meanwhile
	w.console.indexes.mu.Unlock()
	for _, page := range []struct{ name, path string }{
		{"first", "/tenants"},
		{"deep", "/tenants?page=14000"},
		{"status", "/tenants?status=held&page=1000"},
		{"adopted", "/tenants?dashboard=adopted&page=1000"},
		{"replaced", "/tenants?dashboard=replaced"},
		{"part of all", "/tenants?q=a"},
		{"part of a tenth", "/tenants?q=any+7&page=100"},
		{"part of one", "/tenants?q=0777777"},
		{"part of none", "/tenants?q=nobody"},
		{"by name, deep", "/tenants?q=company&sort=name&page=14000"},
		{"by change", "/tenants?q=company&sort=-changed"},
		{"name and status", "/tenants?q=company&status=held&sort=-name"},
	} {
		b.Run(page.name, func(b *testing.B) {
			before := processorTime(b)
			for b.Loop() {
				get(page.path)
			}
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1e3/float64(b.N), "cpu-ms/op")
		})
	}
}
