package worker_test

import (
	"fmt"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/workertest"
)

// The database's clock is an hour off the host's and NATS's, and is then put right while the relay's
// lease is held by a worker that is killed.
func TestDatabaseClockMayBeOffAndJump(t *testing.T) {
	for _, skew := range []string{"-1 hour", "1 hour"} {
		t.Run(skew, func(t *testing.T) {
			onPostgres(t, options{}, func(t *testing.T, w *world) {
				offset := func(by string) {
					t.Helper()
					w.SQL.MustExec(fmt.Sprintf(`CREATE OR REPLACE FUNCTION public.clock_timestamp()
						RETURNS timestamptz LANGUAGE sql VOLATILE
						AS 'SELECT now + interval ''%s'' FROM public.virtual_clock'`, by))
				}
				done := func(tenants []string) {
					t.Helper()
					w.Create(tenants...)
					workertest.Eventually(t, time.Minute, w.Are(repo.Active, tenants...))
					workertest.Eventually(t, time.Minute, w.Relayed)
				}
				offset(skew)
				done(names("off", 5))
				w.Opens(w.Token("off-0000"), "Dashboard - off-0000")
				c, err := w.Workers[0].ChangeAccess(t.Context(), events.TypeTenantSuspended, "off-0000", "")
				if err != nil || !c.InForce {
					t.Errorf("suspended: %+v, %v", c, err)
				}
				release := w.API.HoldAnswers()
				w.Create("killed") // its claim is of the killed worker, too
				w.Eventually(w.Sent(6))
				second := w.StartWorker()
				w.Workers[0].Kill()
				release()
				offset("0")
				done(names("right", 5))
				workertest.Eventually(t, time.Minute, w.Are(repo.Active, "killed"))
				c, err = second.ChangeAccess(t.Context(), events.TypeTenantResumed, "off-0000", "")
				if err != nil || !c.InForce {
					t.Errorf("resumed: %+v, %v", c, err)
				}
			})
		})
	}
}
