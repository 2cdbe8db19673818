package worker_test

import (
	"fmt"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// A suspension that was published, and outranked by a later event before it was in force.
func TestAuditLogSaysThatAnActionWasSuperseded(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		stream, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)
		_, err = stream.PauseConsumer(t.Context(), workertest.AccessConsumer, time.Now().Add(time.Hour))
		w.Must(err)
		ctx := worker.WithActor(t.Context(), worker.Actor{Via: worker.ViaConsole, Name: "console:ann"})
		answer := make(chan error, 1)
		go func() {
			_, err := w.Workers[0].ChangeAccess(ctx, events.TypeTenantSuspended, "t", "unpaid")
			answer <- err
		}()
		w.Eventually(func() error {
			if n := len(w.Stored("PAPERMAP", "papermap.events.tenant.suspended")); n != 1 {
				return fmt.Errorf("%d events", n)
			}
			return nil
		})
		now := time.Now()
		w.SQL.MustExec("UPDATE tenant_dashboards SET suspended_event = ?, resumed_event = ?",
			now.UnixNano(), now.Add(time.Minute).UnixNano())
		refusedWith(t, <-answer, 409)
		list, err := w.DB.AuditLog(t.Context(), repo.AuditFilter{TenantID: "t"}, 10)
		w.Must(err)
		if len(list) != 2 || list[0].Action != "suspend.failed" || list[1].Action != "suspend" ||
			list[0].EventID != list[1].EventID || list[0].EventID == "" || list[0].Actor != "console:ann" {
			t.Errorf("the audit log has %+v", list)
		}
		_, err = stream.ResumeConsumer(t.Context(), workertest.AccessConsumer)
		w.Must(err)
	})
}

// The worker's own events and those of its timers, in a process that somebody started by a command.
func TestAuditLogHasNothingThatTheWorkerDoesByItself(t *testing.T) {
	virtual(t, options{Config: func(c *worker.Config) {
		c.Schedule, _ = worker.ParseSchedule("@every 1m")
	}}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.Request("embed-token", object("tenant_id", "t"))
		time.Sleep(3 * time.Minute)
		list, err := w.DB.AuditLog(t.Context(), repo.AuditFilter{}, 10)
		w.Must(err)
		if len(list) > 0 {
			t.Errorf("the audit log has %+v", list)
		}
	})
}

func TestWorkerPrunesTheAuditLog(t *testing.T) {
	for kept, days := range map[time.Duration]int{0: 365, 48 * time.Hour: 2} {
		subtest(t, kept.String(), options{Config: func(c *worker.Config) { c.AuditKept = kept }},
			func(t *testing.T, w *world) {
				e := repo.AuditEntry{Actor: "cli:me", Via: "cli", Action: "sync"}
				w.Must(w.DB.Audit(t.Context(), e))
				for _, test := range []struct{ days, want int }{{days - 1, 1}, {days + 1, 0}} {
					w.SQL.MustExec("UPDATE audit_log SET at = ?",
						time.Now().AddDate(0, 0, -test.days).UTC().Format("2006-01-02T15:04:05.000Z"))
					time.Sleep(2 * time.Minute)
					list, err := w.DB.AuditLog(t.Context(), repo.AuditFilter{}, 10)
					w.Must(err)
					if len(list) != test.want {
						t.Errorf("after %d days there are %d entries, want %d",
							test.days, len(list), test.want)
					}
				}
			})
	}
}

func TestWorkerLooksForOldRowsLessOftenWhileThereAreNone(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		left := func() int {
			list, err := w.DB.AuditLog(t.Context(), repo.AuditFilter{}, 10)
			w.Must(err)
			return len(list)
		}
		entry := func() {
			w.Must(w.DB.Audit(t.Context(), repo.AuditEntry{Actor: "cli:me", Via: "cli", Action: "sync"}))
			w.SQL.MustExec("UPDATE audit_log SET at = '2020-01-01T00:00:00.000Z'")
		}
		time.Sleep(64 * time.Minute) // it looked after 1, 3, 7, 15, 31, 47 and 63 minutes
		entry()
		if time.Sleep(10 * time.Minute); left() == 0 {
			t.Error("it looked although it had found nothing for an hour")
		}
		if time.Sleep(6 * time.Minute); left() > 0 {
			t.Error("it did not look for 16 minutes")
		}
		entry()
		if time.Sleep(2 * time.Minute); left() > 0 {
			t.Error("it did not look a minute after it had found something")
		}
	})
}
