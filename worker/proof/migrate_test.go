package proof_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/failpoint"
)

// TestAMigrationThatIsKilledGoesOnWhereItStopped kills the program after each migration in turn, five times over on both
// databases. Whoever comes next brings the database up to date.
func TestAMigrationThatIsKilledGoesOnWhereItStopped(t *testing.T) {
	p := build(t) // not in parallel: another test restarts PostgreSQL
	for name, address := range map[string]func(*testing.T) string{
		"SQLite":     func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "papermap.db") },
		"PostgreSQL": func(t *testing.T) string { return pgtest.Need(t, postgres) },
	} {
		t.Run(name, func(t *testing.T) {
			for range 5 {
				env := []string{"DATABASE_URL=" + address(t)}
				log := filepath.Join(t.TempDir(), "migrate.log")
				migrate := func(more ...string) (syscall.Signal, int, string) {
					m, err := launch(log, p.worker, append(env, more...), "migrate")
					if err != nil {
						t.Fatal(err)
					}
					select {
					case <-m.done:
					case <-time.After(30 * time.Second):
						m.kill()
					}
					signal, code := m.ended()
					return signal, code, m.output()
				}
				kills := 0
				for ; ; kills++ {
					signal, code, out := migrate(fmt.Sprintf("PAPERMAP_FAILPOINT=%s=kill@1", failpoint.Migrated))
					if signal == 0 && code == 0 && strings.Contains(out, "up to date") {
						break
					}
					if signal != syscall.SIGKILL || kills > 20 {
						t.Fatalf("after %d kills: signal %v, code %d:\n%s", kills, signal, code, out)
					}
				}
				if kills < 2 {
					t.Errorf("%d migrations were killed, want each", kills)
				}
			}
		})
	}
}
