package e2e

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
)

var importPlanRows = flag.Int("import.plan", 20_000, "rows of the test of an import's plan")

// The plan of a million rows takes no more memory than that of a few, on either database. With
// -import.plan 1000000 -v, the test logs what a row costs beside a bare SELECT.
func TestImportPlansInBoundedMemory(t *testing.T) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) {
			address := "sqlite:" + filepath.Join(t.TempDir(), "papermap.db")
			if database == "PostgreSQL" {
				address = postgres(t)
			}
			env := []string{"DATABASE_URL=" + address}
			run(t, env, "migrate")
			db := openSQL(t, address)
			fillTenants(t, db, *importPlanRows)
			file := planFile(t, *importPlanRows)
			started := time.Now()
			p := start(t, env, "import", file, "--dry-run")
			peak := memoryUntilEnd(p) >> 10
			if code := p.wait(t); code != 0 {
				t.Fatalf("exit code %d: %s", code, tail(p.text(), 500))
			}
			took := time.Since(started)
			if !strings.Contains(p.text(),
				fmt.Sprintf("created 0, adopted 0, unchanged %d,", *importPlanRows)) {
				t.Errorf("plan: %s", tail(p.text(), 300))
			}
			if peak > 100 && !raceDetector {
				t.Errorf("%d MiB of memory", peak)
			}
			n := time.Duration(*importPlanRows)
			t.Logf("%v a row, of which CPU %v, peak %d MiB; a bare SELECT by key %v", took/n,
				p.cmd.ProcessState.UserTime()/n, peak, bareSelect(t, db, *importPlanRows)/n)
		})
	}
}

// fillTenants gives the database tenants past the worker's rules.
func fillTenants(t *testing.T, db *sqlx.DB, n int) {
	t.Helper()
	numbers := "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
	for _, query := range []string{
		numbers + ` INSERT INTO tenant_dashboards (tenant_id, workspace_id, dashboard_id, title, status,
			stage, created_at, updated_at, created_event)
			SELECT 'org-' || i, 'ws', 'dash-' || i, 'Dashboard - ' || i, 'active', 'active',
				CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 1 FROM n`,
		numbers + ` INSERT INTO dashboard_owners (workspace_id, dashboard_id, tenant_id)
			SELECT 'ws', 'dash-' || i, 'org-' || i FROM n`,
	} {
		args := strings.Replace(query, "?", fmt.Sprint(n-1), 1)
		_, err := db.Exec(args)
		must(t, err)
	}
	if db.DriverName() == "pgx" {
		_, err := db.Exec("ANALYZE tenant_dashboards, dashboard_owners")
		must(t, err)
	}
}

// planFile is a file of the tenants, half of them with their dashboards.
func planFile(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tenants.csv")
	file, err := os.Create(path)
	must(t, err)
	w := bufio.NewWriter(file)
	fmt.Fprintln(w, "tenant_id,name,dashboard_id")
	for i := range n {
		dashboard := ""
		if i%2 == 0 {
			dashboard = fmt.Sprintf("dash-%d", i)
		}
		fmt.Fprintf(w, "org-%d,Company %d,%s\n", i, i, dashboard)
	}
	must(t, w.Flush())
	must(t, file.Close())
	return path
}

// bareSelect is how long it takes to read all tenants by key, a thousand in each statement.
func bareSelect(t *testing.T, db *sqlx.DB, n int) time.Duration {
	t.Helper()
	in := " IN (SELECT value FROM json_each(?))"
	if db.DriverName() == "pgx" {
		in = " IN (SELECT jsonb_array_elements_text(?::jsonb))"
	}
	query := db.Rebind("SELECT tenant_id, workspace_id, dashboard_id, stage " +
		"FROM tenant_dashboards WHERE tenant_id" + in)
	started := time.Now()
	for i := 0; i < n; i += 1000 {
		keys := bytes.NewBufferString("[")
		for k := i; k < min(n, i+1000); k++ {
			fmt.Fprintf(keys, `"org-%d",`, k)
		}
		keys.Truncate(keys.Len() - 1)
		rows, err := db.Query(query, keys.String()+"]")
		must(t, err)
		for rows.Next() {
			var tenant, workspace, dashboard, stage string
			must(t, rows.Scan(&tenant, &workspace, &dashboard, &stage))
		}
		must(t, rows.Err())
		must(t, rows.Close())
	}
	return time.Since(started)
}
