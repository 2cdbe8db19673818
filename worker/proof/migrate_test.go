package proof_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/failpoint"
)

// TestMigrateResumesAfterAKill kills the program after each migration in turn, on both databases.
// The run without a failpoint that follows finds nothing left to do but the last one.
func TestMigrateResumesAfterAKill(t *testing.T) {
	t.Parallel()
	sqlite := func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "papermap.db") }
	postgreSQL := func(t *testing.T) string { return pgtest.Need(t, postgres) }
	databases := map[string]func(*testing.T) string{"SQLite": sqlite, "PostgreSQL": postgreSQL}
	for name, address := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			times := 5
			if short() {
				times = 1
			}
			for range times {
				database := address(t)
				kills := 0
				for ; ; kills++ {
					m := startMigrate(t, database, "kill@1")
					if !m.wait(t.Context(), 30*time.Second) {
						m.kill()
					}
					signal, code := m.exit()
					if signal == 0 && code == 0 && strings.Contains(m.output(), "up to date") {
						break
					}
					if signal != syscall.SIGKILL || kills > 20 {
						t.Fatalf("after %d kills: signal %v, code %d:\n%s", kills, signal, code, m.output())
					}
				}
				if kills < 2 {
					t.Errorf("%d migrations were killed, want each", kills)
				}
			}
		})
	}
}

// TestStopHoldsTheProcessAtItsPlace stops `migrate` after the first migration: nothing more happens
// until it is continued.
func TestStopHoldsTheProcessAtItsPlace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "papermap.db")
	m := startMigrate(t, "sqlite:"+path, "stop@1")
	t.Cleanup(m.kill)
	eventually(t, 20*time.Second, m.stopped)
	db, err := sqlx.Open("sqlite3", "file:"+path+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var version int
	if err := db.GetContext(t.Context(), &version,
		"SELECT MAX(version_id) FROM goose_db_version"); err != nil || version != 1 {
		t.Errorf("stopped at version %d, error %v; want 1", version, err)
	}
	_ = m.cmd.Process.Signal(syscall.SIGCONT)
	if !m.wait(t.Context(), 30*time.Second) {
		t.Fatal("it does not go on")
	}
	if signal, code := m.exit(); signal != 0 || code != 0 {
		t.Errorf("signal %v, code %d:\n%s", signal, code, m.output())
	}
}

// startMigrate starts `migrate` with an action at the failpoint behind each migration.
func startMigrate(t *testing.T, database, action string) *process {
	t.Helper()
	env := []string{"DATABASE_URL=" + database, "PAPERMAP_FAILPOINT=" + failpoint.Migrated + "=" + action}
	m, err := launch(filepath.Join(t.TempDir(), "migrate.log"), build(t).worker, env, "migrate")
	if err != nil {
		t.Fatal(err)
	}
	return m
}
