package worker_test

import (
	"fmt"
	"strings"
	"testing"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// Somebody with psql, a backup or a stuck replica holds the rows of two tenants for longer than lock_timeout allows.
func TestALockedRowDelaysItsOwnEventsAndKillsNone(t *testing.T) {
	t.Parallel()
	t.Run("PostgreSQL", func(t *testing.T) {
		const attempts = 2
		w := start(t, options{noWorker: true, config: func(c *worker.Config) { c.MaxAttempts = attempts }})
		w.address += "&lock_timeout=100ms"
		w.startWorker()
		w.create("active")
		w.publish(events.TypeTenantResumed, object("tenant_id", "new")) // makes a row
		eventually(t, soon, w.are(repo.Active, "active"))
		eventually(t, soon, w.are(repo.Pending, "new"))

		lock, err := w.sql.Beginx()
		w.must(err)
		defer lock.Rollback()
		_, err = lock.Exec("SELECT 1 FROM tenant_dashboards FOR UPDATE")
		w.must(err)
		w.publish(events.TypeTenantSuspended, object("tenant_id", "active"))
		w.create("new", "free")
		eventually(t, soon, w.are(repo.Active, "free"))
		eventually(t, soon, func() error { // more often than MAX_ATTEMPTS allows, if such failures counted
			if n := strings.Count(w.logs.String(), "canceling statement due to lock timeout"); n < 2*(attempts+1) {
				return fmt.Errorf("%d statements were canceled", n)
			}
			return nil
		})
		w.must(lock.Rollback())
		eventually(t, soon, w.are(repo.Suspended, "active"))
		eventually(t, soon, w.are(repo.Active, "new"))
		if n := len(w.dead()); n > 0 || w.creates("new") != 1 {
			t.Errorf("%d dead letters, %d creates", n, w.creates("new"))
		}
	})
}
