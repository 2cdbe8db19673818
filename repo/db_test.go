package repo

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"papermap-worker/schema"
)

func TestSchemaHasColumnsAndConstraintsOfTheContract(t *testing.T) {
	db := openTest(t)
	for table, want := range map[string]string{
		"tenant_dashboards": "tenant_id workspace_id dashboard_id title description status generation " +
			"created_by created_at updated_at",
		"provision_attempts": "id workspace_id tenant_id generation mark outcome dashboard_id http_status " +
			"error started_at finished_at",
		"tenant_usage": "workspace_id tenant_id period credits requests synced_at",
	} {
		rows, err := db.read.QueryxContext(ctx, "SELECT * FROM "+table)
		must(t, err)
		columns, err := rows.Columns()
		must(t, errors.Join(err, rows.Close()))
		for _, column := range strings.Fields(want) {
			if !slices.Contains(columns, column) {
				t.Errorf("%s has no column %s", table, column)
			}
		}
	}

	const when = "'2026-01-01T00:00:00.000Z'"
	tenant := func(id, workspace, dashboard, status string) string {
		return fmt.Sprintf(`INSERT INTO tenant_dashboards
			(tenant_id, workspace_id, dashboard_id, status, created_at, updated_at)
			VALUES ('%s', '%s', %s, '%s', %s, %s)`, id, workspace, dashboard, status, when, when)
	}
	attempt := func(id, mark, outcome string) string {
		return fmt.Sprintf(`INSERT INTO provision_attempts
			(id, workspace_id, tenant_id, generation, mark, outcome, started_at)
			VALUES ('%s', 'w', 'a', 1, '%s', '%s', %s)`, id, mark, outcome, when)
	}
	usage := func(tenant string) string {
		return fmt.Sprintf(`INSERT INTO tenant_usage
			(workspace_id, tenant_id, period, credits, requests, synced_at)
			VALUES ('w', '%s', '2026-01', '1.50', 2, %s)`, tenant, when)
	}
	outside, err := sqlx.Open("sqlite3", db.path)
	must(t, err)
	defer outside.Close()
	for _, test := range []struct {
		statement string
		ok        bool
	}{
		{tenant("a", "w", "'d'", "active"), true},
		{tenant("a", "w2", "NULL", "active"), false},
		{tenant("b", "w", "'d'", "active"), false},
		{tenant("b", "w2", "'d'", "active"), true},
		{tenant("c", "w", "NULL", "pending"), true},
		{tenant("d", "w", "NULL", "pending"), true},
		{tenant("e", "w", "NULL", "none"), false},
		{attempt("1", "m1", "sent"), true},
		{attempt("1", "m2", "sent"), false},
		{attempt("2", "m1", "sent"), false},
		{attempt("2", "m2", "lost"), false},
		{usage("a"), true},
		{usage("a"), false},
		{usage("b"), true},
	} {
		if _, err := outside.ExecContext(ctx, test.statement); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.statement, err)
		}
	}
	for _, status := range Statuses() {
		if _, err := outside.ExecContext(ctx,
			tenant("is-"+string(status), "w", "NULL", string(status))); err != nil {
			t.Errorf("status %s: %v", status, err)
		}
	}
	for _, outcome := range []Outcome{OutcomeSent, OutcomeCreated, OutcomeRefused, OutcomeUnknown,
		OutcomeOrphaned} {
		if _, err := outside.ExecContext(ctx,
			attempt(string(outcome), string(outcome), string(outcome))); err != nil {
			t.Errorf("outcome %s: %v", outcome, err)
		}
	}
}

func TestSchemaMustBeAtTheProgramsVersion(t *testing.T) {
	db := openFile(t, filepath.Join(t.TempDir(), "new.db"))
	if err := db.CheckSchema(ctx); !errors.Is(err, schema.ErrBehind) {
		t.Fatalf("a new file: %v, want ErrBehind", err)
	}
	if err := db.Check(ctx); err == nil {
		t.Fatal("Check is content with a database without tables")
	}
	for try := range 2 {
		names, err := db.Migrate(ctx)
		if err != nil || (len(names) > 0) != (try == 0) {
			t.Fatalf("migration %d applied %q: %v", try, names, err)
		}
	}
	must(t, errors.Join(db.CheckSchema(ctx), db.CheckIntegrity(ctx), db.Check(ctx)))
	list, err := db.Migrations(ctx)
	if err != nil || len(list) == 0 {
		t.Fatalf("migrations: %v, %v", list, err)
	}
	for _, m := range list {
		same(t, m.Name+" is applied", m.Applied, true)
	}
	if _, err := db.write.ExecContext(ctx,
		"INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"check": db.CheckSchema(ctx),
		"migrate": func() error { _, err := db.Migrate(ctx); return err }()} {
		if !errors.Is(err, schema.ErrNewer) {
			t.Errorf("%s of a newer database: %v, want ErrNewer", what, err)
		}
	}
}
