package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"papermap-worker/repo/pgtest"
)

// Everything works behind a pooler that gives each transaction another connection.
func TestPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	const tenants = 500
	s := newSystem(t)
	s.database = pgtest.PgBouncer(t, postgres(t))
	s.env = append(s.env, "DATABASE_URL="+s.database+"&default_query_exec_mode=exec")

	var migrating sync.WaitGroup
	for range 3 {
		migrating.Go(func() {
			if p := start(t, s.env, "migrate"); p.wait(t) != 0 {
				t.Errorf("migrate: %s", p.text())
			}
		})
	}
	migrating.Wait()
	run(t, s.env, "migrate", "status")
	workers := []*process{start(t, s.env, "serve"), start(t, s.env, "serve", "--database-max-conns=4")}
	for _, w := range workers {
		ready(t, w.address(t))
	}
	js := s.jetStream(t)
	for n := range tenants {
		publishCreated(t, js, fmt.Sprintf("org-%03d", n))
	}
	db := openSQL(t, s.database+"&default_query_exec_mode=exec")
	eventually(t, func() error {
		active := 0
		err := db.GetContext(t.Context(), &active,
			"SELECT COUNT(*) FROM tenant_dashboards WHERE status = 'active'")
		if err == nil && active != tenants {
			err = fmt.Errorf("%d of %d tenants are active", active, tenants)
		}
		return err
	})
	for _, command := range []string{
		"publish usage-sync --wait", "token org-007 --url", "tenants list", "tenants show org-007",
		"tenants list --status held", "attempts list", "usage show --tenant org-007", "usage export",
		"usage runs", "dead list", "replay --since 1h --dry-run", "doctor",
	} {
		run(t, s.env, strings.Fields(command)...)
	}
	run(t, s.env, "publish", "tenant-suspended", "org-007", "--reason", "unpaid")
	s.status(t, "org-007", "suspended")
	for _, w := range workers {
		w.stop(t)
		for line := range strings.Lines(w.text()) {
			away := strings.Contains(line, "not ready") // while the server restarted
			wrong := strings.Contains(line, `"level":"ERROR"`) || strings.Contains(line, "SQLSTATE")
			if wrong && !away || strings.Contains(line, "prepared statement") {
				t.Errorf("the log says %s", line)
			}
		}
	}
}

// health runs the command for the worker at an address.
func health(t *testing.T, address string) (code int, text string) {
	t.Helper()
	p := start(t, []string{"HTTP_ADDR=" + address}, "health")
	return p.wait(t), p.text()
}

// While another program migrates, serve says so, and is alive and not ready.
func TestServeWaitsForAnotherMigration(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.usePostgres(t)
	other, err := openSQL(t, s.database).BeginTxx(t.Context(), nil)
	must(t, err)
	defer other.Rollback()
	other.MustExec("SELECT pg_advisory_xact_lock(31645556022274407)") // what a migration holds

	const waiting = "another program is migrating the database; waiting for it"
	worker := start(t, s.env, "serve")
	worker.says(t, waiting)
	address := worker.address(t)
	answer, text, err := read(http.Get("http://" + address + "/healthz"))
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("alive meanwhile: %s, %v", text, err)
	}
	code, text := health(t, address)
	if code != 1 || !strings.Contains(text, "another program is migrating the database") {
		t.Errorf("health meanwhile: exit code %d, %s", code, text)
	}
	command := start(t, s.env, "migrate")
	command.says(t, waiting)
	must(t, other.Commit())
	ready(t, address)
	worker.says(t, "other migration finished")
	if code := command.wait(t); code != 0 {
		t.Errorf("migrate: exit code %d, %s", code, command.text())
	}
	if n := strings.Count(worker.text(), waiting); n != 1 {
		t.Errorf("it logged %d times that it waits", n)
	}
	worker.stop(t)
}

// What only looks makes no table and no file.
func TestCommandsThatLookChangeNothing(t *testing.T) {
	t.Parallel()
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		s := newSystem(t)
		s.usePostgres(t)
		db := openSQL(t, s.database)
		for _, args := range [][]string{
			{"doctor"}, {"migrate", "status"}, {"tenants", "list"}, {"serve", "--database-migrate=false"},
		} {
			start(t, s.env, args...).wait(t)
			var tables int
			must(t, db.GetContext(t.Context(), &tables,
				"SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'"))
			if tables != 0 {
				t.Errorf("%v made a table", args)
			}
		}
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		s := newSystem(t)
		for _, args := range [][]string{
			{"doctor"}, {"migrate", "status"}, {"tenants", "list"}, {"serve", "--database-migrate=false"},
		} {
			start(t, s.env, args...).wait(t)
			if files, err := filepath.Glob(s.db + "*"); err != nil || len(files) > 0 {
				t.Errorf("%v made %v, %v", args, files, err)
			}
		}
	})
}

// The file is removed under a running worker: readiness, doctor and each event say so.
func TestServeNoticesThatItsFileIsGone(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	worker := start(t, s.env, "serve")
	address := worker.address(t)
	ready(t, address)
	must(t, os.Remove(s.db))
	publishCreated(t, s.jetStream(t), "org-1")
	eventually(t, func() error {
		code, text := health(t, address)
		if code != 1 || !strings.Contains(text, "removed while the worker was running") {
			return fmt.Errorf("health: %d, %s", code, text)
		}
		return nil
	})
	code, text := doctor(t, s.env)
	if code != 1 || !matches("ERROR +database .*removed while the worker was running", text) ||
		!strings.Contains(text, "replay --since") {
		t.Errorf("doctor: exit code %d, %s", code, text)
	}
	worker.stop(t)
}

// A wrong address is named with the parser's reason, and without its secret.
func TestDatabaseAddressIsExplainedWithoutItsSecret(t *testing.T) {
	t.Parallel()
	secret := url.QueryEscape("CANARY/@?x")
	for address, want := range map[string]string{
		"postgres://u:" + secret + "@h/db?sslmode=requires":                    "sslmode is invalid",
		"postgres://u:" + secret + "@h/db?sslmode=verify-full&sslrootcert=/no": "open /no: no such file",
		"postgres://u:CANARY/x@h/db":                                           "percent-encode",
		"host=h user=u password=CANARY dbname=db":                              "not an address like",
	} {
		p := start(t, []string{"DATABASE_URL=" + address}, "tenants", "list")
		code, text := p.wait(t), p.text()
		if code != 2 || !strings.Contains(text, want) || strings.Contains(text, "CANARY") {
			t.Errorf("exit code %d, want 2 and %q: %s", code, want, text)
		}
	}
	p := start(t, []string{"DATABASE_URL=postgres://u:CANARY@192.0.2.1/db?connect_timeout=1"},
		"tenants", "list")
	if code := p.wait(t); code != 1 || strings.Contains(p.text(), "CANARY") {
		t.Errorf("exit code %d: %s", code, p.text())
	}
}
