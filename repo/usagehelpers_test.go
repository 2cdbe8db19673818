package repo

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// want is the run that an event asks for.
func want(workspace, event string) Run {
	return Run{WorkspaceID: workspace, EventID: event, FromPeriod: "2026-01", ToPeriod: "2026-03"}
}

// errBusy means that another holder has the lease of a workspace's runs.
var errBusy = errors.New("the lease is another's")

// tryRun takes the lease of a workspace's runs and starts a run.
func tryRun(db *DB, want Run) (Run, error) {
	holder := uuid.NewString()
	taken, err := db.TakeRunLease(ctx, want.WorkspaceID, holder)
	if err == nil && !taken {
		err = errBusy
	}
	if err != nil {
		return Run{}, err
	}
	run, err := db.StartRun(ctx, want, holder)
	if err != nil {
		err = errors.Join(err, db.DropRunLease(ctx, want.WorkspaceID, holder))
	}
	return run, err
}

func mustRun(t fataler, db *DB, want Run) *Run {
	t.Helper()
	run, err := tryRun(db, want)
	must(t, err)
	return &run
}

// startRun begins the run that an event asks for, in workspace w.
func startRun(t fataler, db *DB, event string) *Run {
	t.Helper()
	return mustRun(t, db, want("w", event))
}

// leaveRun lets another holder resume a run.
func leaveRun(t fataler, db *DB, run *Run) {
	t.Helper()
	must(t, db.DropRunLease(ctx, run.WorkspaceID, run.holder))
}

// row is a total of 2026-03.
func row(tenant, credits string, requests int64) UsageRow {
	return UsageRow{TenantID: tenant, Period: "2026-03", Credits: credits, Requests: requests}
}

// record records rows as the run's next page.
func record(t fataler, db *DB, run *Run, rows ...UsageRow) {
	t.Helper()
	must(t, db.RecordPages(ctx, run, []Page{{Number: run.NextPage, Rows: rows}}, nil))
}

func endRun(t fataler, db *DB, run *Run, status RunStatus) {
	t.Helper()
	var err error
	if status == RunDone {
		var tenants int
		if tenants, err = db.RunTenants(ctx, run); err == nil {
			err = db.CompleteRun(ctx, run, OutboxEvent{
				EventID: "synced-" + run.EventID, Type: "usage.synced",
				Data: fmt.Appendf(nil, `{"tenants":%d}`, tenants),
			})
		}
	} else {
		err = db.EndRun(ctx, run, status, "")
	}
	must(t, err)
	leaveRun(t, db, run)
}

// usage reads what is recorded, as tenant=credits/requests.
func usage(t fataler, db *DB, f UsageFilter) (list []string) {
	t.Helper()
	err := db.EachUsage(ctx, f, func(u Usage) error {
		list = append(list, fmt.Sprintf("%s=%s/%d", u.TenantID, u.Credits, u.Requests))
		return nil
	})
	must(t, err)
	return list
}

// syncedAt is when each tenant's value was first read, by the minute since the clock of openTest
// began.
func syncedAt(t fataler, db *DB) map[string]float64 {
	t.Helper()
	times := map[string]float64{}
	err := db.EachUsage(ctx, UsageFilter{}, func(u Usage) error {
		times[u.TenantID] = u.SyncedAt.Sub(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)).Minutes()
		return nil
	})
	must(t, err)
	return times
}

// storedRun reads the event's run in workspace w as it is recorded.
func storedRun(t fataler, db *DB, event string) Run {
	t.Helper()
	list, err := db.Runs(ctx, event, 10)
	must(t, err)
	for _, r := range list {
		if r.WorkspaceID == "w" {
			return r
		}
	}
	return Run{}
}
