package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// RunStatus is the status of a usage run.
type RunStatus string

const (
	RunRunning    RunStatus = "running"
	RunDone       RunStatus = "done"
	RunIncomplete RunStatus = "incomplete" // the totals kept shifting while they were read
	RunFailed     RunStatus = "failed"     // the API refused
	RunSkipped    RunStatus = "skipped"    // a scheduled run that another run covers
)

// Run is a row of usage_runs: one sync of a workspace's usage, or of one tenant's. Its life:
//
//	TakeRunLease  the workspace's lease, which runs of single tenants may share
//	StartRun      starts the run, or resumes it at its checkpoint
//	RecordPages   from run.NextPage on, each time with the checkpoint
//	KeepRun       at least once in RunLease while there is nothing to record
//	RestartRun    if the totals shifted while they were read
//	CompleteRun   or EndRun; or neither, for another worker to resume it
//	DropRunLease
//
// If a worker is killed, another one resumes its run at the checkpoint when the lease has ended.
// Rows are absolute totals, so recording a page twice changes nothing.
type Run struct {
	ID          string    `db:"id" json:"id"`
	WorkspaceID string    `db:"workspace_id" json:"workspace_id"`
	EventID     string    `db:"event_id" json:"event_id"`             // that asked for it
	EventSource string    `db:"event_source" json:"-"`                // hash of its source, or empty
	Message     string    `db:"message" json:"-"`                     // of the event, the last one handled
	Slot        Time      `db:"slot" json:"slot,omitzero"`            // of a scheduled run
	TenantID    string    `db:"tenant_id" json:"tenant_id,omitempty"` // of a run for one tenant
	FromPeriod  string    `db:"from_period" json:"from_period"`       // YYYY-MM
	ToPeriod    string    `db:"to_period" json:"to_period"`           // YYYY-MM, included
	Status      RunStatus `db:"status" json:"status"`
	Pass        int       `db:"pass" json:"pass"`           // 1, one more for each restart; 0: not started
	Shifted     bool      `db:"shifted" json:"-"`           // in this pass rows moved between pages
	NextPage    int       `db:"next_page" json:"next_page"` // all pages before are recorded
	Pages       int       `db:"pages" json:"pages"`         // 0 while unknown
	Total       int64     `db:"total" json:"total"`         // rows, as the API says; -1 while unknown
	Read        int64     `db:"rows_read" json:"rows"`      // of the last pass
	Written     int64     `db:"rows_written" json:"written_rows"`
	Rejected    int64     `db:"rows_rejected" json:"rejected_rows"` // of the last pass
	Changed     int64     `db:"rows_changed" json:"changed_rows"`   // totals that went down
	Error       string    `db:"error" json:"error,omitempty"`       // why it ended, or what it waits for
	StartedAt   Time      `db:"started_at" json:"started_at"`
	UpdatedAt   Time      `db:"updated_at" json:"updated_at"`
	FinishedAt  Time      `db:"finished_at" json:"finished_at,omitzero"`

	holder string // of the lease, while this process has it
}

// Done is how many pages are recorded.
func (r Run) Done() int { return r.NextPage - 1 }

// RunLease is how long a run is kept from other workers after its last write.
const RunLease = 25 * time.Second

const (
	// leaseStep is how much of its lease a run uses up before a write extends it.
	leaseStep = 2 * time.Second

	// runForgotten is how long an unfinished run without updates still covers scheduled ones. The
	// longest wait of a run for the API is 15 minutes.
	runForgotten = 20 * time.Minute

	runsKept = 30 * 24 * time.Hour
)

var (
	// ErrRunLost means that the holder's lease has passed to another process.
	ErrRunLost = errors.New("the usage run passed to another worker")
	// ErrRunOver means that the run has ended before.
	ErrRunOver = errors.New("the usage run has ended")
)

const selectRun = `SELECT id, workspace_id, event_id, event_source, message, slot, tenant_id,
	from_period, to_period, status, pass, shifted, next_page, pages, total, rows_read, rows_written,
	rows_rejected, rows_changed, error, started_at, updated_at, finished_at FROM usage_runs`

// TakeRunLease makes holder the only one that may run usage syncs of the workspace, across all
// replicas, until RunLease after its last write. It fails if there is another holder.
func (db *DB) TakeRunLease(ctx context.Context, workspaceID, holder string) (taken bool, err error) {
	return db.TakeLease(ctx, runLease(workspaceID), holder, RunLease)
}

// DropRunLease lets another worker take over at once, including unfinished runs.
func (db *DB) DropRunLease(ctx context.Context, workspaceID, holder string) error {
	return db.DropLease(ctx, runLease(workspaceID), holder)
}

func runLease(workspaceID string) string { return "usage:" + workspaceID }

// newRun is the row of the run that an event asks for.
func newRun(want Run, now Time) (Run, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Run{}, fmt.Errorf("make a run id: %w", err)
	}
	want.ID, want.Status, want.Total, want.StartedAt, want.UpdatedAt = id.String(), RunRunning, -1, now, now
	return want, nil
}

// StartRun starts the run that an event asks for, or resumes it where it stopped. A run that failed
// starts over for a copy of its event. For the same message, redelivered, it has ended.
//
// holder must have the workspace's lease; otherwise the error is ErrRunLost. ErrRunOver means that
// the event's run has ended; the run is returned with it.
//
// A run of all tenants takes over scheduled runs that wait and whose months it covers; they are
// skipped. No clock decides that: usage that is read now is newer than any earlier schedule.
func (db *DB) StartRun(ctx context.Context, want Run, holder string) (run Run, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) (err error) {
		run, err = t.startRun(ctx, want, holder)
		return err
	}, "start a usage run of workspace %q", want.WorkspaceID)
	return run, err
}

func (t *tx) startRun(ctx context.Context, want Run, holder string) (run Run, err error) {
	if err := t.keepRunLease(ctx, want.WorkspaceID, holder); err != nil {
		return run, err
	}
	const ofEvent = " WHERE workspace_id = ? AND event_id = ? AND event_source = ?"
	err = t.get(ctx, &run, selectRun+ofEvent, want.WorkspaceID, want.EventID, want.EventSource)
	isNew := err == ErrNotFound
	switch {
	case isNew:
		run, err = newRun(want, t.now)
	case err == nil && run.Status == RunFailed && run.Message != want.Message:
		run.Pass = 0
		err = t.exec(ctx, "DELETE FROM usage_rejects WHERE run_id = ?", run.ID)
	case err == nil && run.Status != RunRunning:
		return run, ErrRunOver
	}
	if err != nil {
		return run, err
	}
	if run.Pass == 0 {
		run.beginPass()
		run.Error, run.StartedAt = "", t.now
		if err := t.skipScheduled(ctx, run); err != nil {
			return run, err
		}
	}
	run.Status, run.Message, run.FinishedAt, run.holder = RunRunning, want.Message, Time{}, holder
	if isNew {
		inserted, err := t.insertRun(ctx, run)
		if err == nil && inserted == 0 { // a copy of the event was planned at the same time
			err = ErrRunLost
		}
		return run, err
	}
	return run, t.saveRun(ctx, &run)
}

// beginPass makes the run read the pages from the first one.
func (r *Run) beginPass() {
	r.Pass++
	r.Shifted, r.NextPage, r.Pages, r.Total, r.Read, r.Rejected = false, 1, 0, -1, 0, 0
}

// skipScheduled skips the waiting scheduled runs that the run covers.
func (t *tx) skipScheduled(ctx context.Context, run Run) error {
	if run.TenantID != "" {
		return nil
	}
	return t.exec(ctx, `UPDATE usage_runs SET status = 'skipped', error = ?, updated_at = ?, finished_at = ?
		WHERE workspace_id = ? AND slot IS NOT NULL AND status = 'running' AND pass = 0 AND id <> ?
		AND from_period >= ? AND to_period <= ?`,
		doneBy(run.EventID), t.now, t.now, run.WorkspaceID, run.ID, run.FromPeriod, run.ToPeriod)
}

func doneBy(eventID string) string { return fmt.Sprintf("the run of event %s does its work", eventID) }

// ScheduleRun records the run of a slot of the schedule, want.Slot, with the usage.sync that starts
// it: want.EventID is that event's id. isNew is true for one caller across all replicas. If a
// running run covers it, the run is skipped, without an event.
func (db *DB) ScheduleRun(
	ctx context.Context, want Run, sync OutboxEvent,
) (run Run, isNew bool, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		if run, err = newRun(want, t.now); err != nil {
			return err
		}
		var other string
		err := t.get(ctx, &other, `SELECT event_id FROM usage_runs WHERE workspace_id = ?
			AND tenant_id = '' AND from_period <= ? AND to_period >= ?
			AND status = 'running' AND pass > 0 AND updated_at > ? ORDER BY started_at DESC LIMIT 1`,
			run.WorkspaceID, run.FromPeriod, run.ToPeriod, at(t.now.Add(-runForgotten)))
		if err == nil {
			run.Status, run.Error, run.FinishedAt = RunSkipped, doneBy(other), t.now
		} else if err != ErrNotFound {
			return err
		}
		inserted, err := t.insertRun(ctx, run)
		if isNew = inserted > 0; err != nil || !isNew || run.Status == RunSkipped {
			return err
		}
		return t.enqueue(ctx, "", sync)
	}, "schedule a usage run of workspace %q", want.WorkspaceID)
	return run, isNew && err == nil, err
}

// PlanRuns records all runs that one event asks for, one for each workspace, including those that
// have not started: a person who waits for the event must not mistake the end of the first run for
// the end of all. It is idempotent.
func (db *DB) PlanRuns(ctx context.Context, runs []Run) error {
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		for _, want := range runs {
			run, err := newRun(want, t.now)
			if err == nil {
				_, err = t.insertRun(ctx, run)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, "plan usage runs")
}

// insertRun does nothing if the event, or the slot, already has a run: copies of an event share one
// run, and so do the slots of all replicas.
func (t *tx) insertRun(ctx context.Context, run Run) (inserted int64, err error) {
	query, args, err := sqlx.Named(`INSERT INTO usage_runs (id, workspace_id, event_id, event_source,
		message, slot, tenant_id, from_period, to_period, status, pass, total, error, started_at,
		updated_at, finished_at) VALUES (:id, :workspace_id, :event_id, :event_source, :message, :slot,
		:tenant_id, :from_period, :to_period, :status, :pass, :total, :error, :started_at, :updated_at,
		:finished_at) ON CONFLICT DO NOTHING`, run)
	if err != nil {
		return 0, err
	}
	return t.execCount(ctx, query, args...)
}

// saveRun writes the parts of a run that may change, and the time of this write.
func (t *tx) saveRun(ctx context.Context, run *Run) error {
	run.UpdatedAt = t.now
	return t.execNamed(ctx, `UPDATE usage_runs SET status = :status, message = :message,
		pass = :pass, shifted = :shifted, next_page = :next_page,
		pages = :pages, total = :total, rows_read = :rows_read, rows_written = :rows_written,
		rows_rejected = :rows_rejected, rows_changed = :rows_changed, error = :error,
		started_at = :started_at, updated_at = :updated_at, finished_at = :finished_at WHERE id = :id`, *run)
}

// Page is a page of usage to be recorded, as the API gave it. Its unusable rows are stored for
// people to look at.
type Page struct {
	Number   int // from 1
	Rows     []UsageRow
	Rejected []Reject
}

// Reject is a row that cannot be used.
type Reject struct {
	Place       int // in the page, from 0
	Reason, Raw string
}

// busyTime is how long after a Begin more are expected.
const busyTime = time.Second

// PagesTogether is the maximum number of pages for RecordPages: few on SQLite while tenants are
// provisioned, because their writes wait for it.
func (db *DB) PagesTogether() int {
	if time.Since(time.Unix(0, db.lastBegin.Load())) < busyTime {
		return db.dialect.pagesWhileBusy
	}
	return db.dialect.pages
}

// RecordPages writes the next pages of the run and the number of pages known so far, announces the
// thresholds of budgets that they reach, and advances the run's checkpoint, in one transaction.
func (db *DB) RecordPages(ctx context.Context, run *Run, pages []Page, announce AnnounceThreshold) error {
	return db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		var rows []UsageRow
		var rejects [][]any
		for _, p := range pages {
			if p.Number != after.NextPage {
				return fmt.Errorf("page %d comes before page %d", p.Number, after.NextPage)
			}
			after.NextPage++
			after.Read += int64(len(p.Rows))
			after.Rejected += int64(len(p.Rejected))
			rows = append(rows, p.Rows...)
			for _, r := range p.Rejected {
				rejects = append(rejects, []any{int64(p.Number), int64(r.Place), r.Reason, r.Raw})
			}
		}
		_, err := t.insertSet(ctx, "usage_rejects", rejectColumns, rejects, "", run.ID)
		if err != nil {
			return err
		}
		written, down, err := t.recordUsage(ctx, run, rows, announce)
		after.Written += written
		after.Changed += down
		return err
	})
}

// RestartRun makes the run read the pages again from the first, because rows moved between pages
// while they were read, so that some may have been missed. Recorded rows stay: each is a total that
// the API reported.
func (db *DB) RestartRun(ctx context.Context, run *Run) error {
	return db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		after.beginPass()
		return t.exec(ctx, "DELETE FROM usage_rejects WHERE run_id = ?", run.ID)
	})
}

// RunTenants counts the tenants that have usage in the run's months. It reads all rows of the
// workspace. It is not part of CompleteRun, because on SQLite every other write would wait while a
// transaction counts a million rows.
func (db *DB) RunTenants(ctx context.Context, run *Run) (tenants int, err error) {
	where, args := UsageFilter{run.WorkspaceID, run.TenantID, run.FromPeriod, run.ToPeriod}.where()
	query := "SELECT COUNT(*) FROM (SELECT DISTINCT u.tenant_id FROM tenant_usage u" + where + ") d"
	if err := db.read.get(ctx, &tenants, query, args...); err != nil {
		return 0, fmt.Errorf("count the tenants of usage run %s: %w", run.ID, err)
	}
	return tenants, nil
}

// CompleteRun records that every page of the run was read, and with it the event usage.synced. Like
// every write to a run it returns ErrRunLost, and writes nothing, if another worker has taken over
// the run.
func (db *DB) CompleteRun(ctx context.Context, run *Run, synced OutboxEvent) error {
	return db.endRun(ctx, run, RunDone, "", &synced)
}

// EndRun records that the run ended as RunIncomplete or RunFailed, and why. It writes no event: a
// usage.synced promises that every page was read.
func (db *DB) EndRun(ctx context.Context, run *Run, status RunStatus, why string) error {
	return db.endRun(ctx, run, status, why, nil)
}

func (db *DB) endRun(ctx context.Context, run *Run, status RunStatus, why string, synced *OutboxEvent) error {
	return db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		after.Status, after.Error, after.FinishedAt = status, why, t.now
		if run.TenantID == "" && status != RunFailed {
			if err := t.forgetRuns(ctx, run); err != nil {
				return err
			}
		}
		if synced == nil {
			return nil
		}
		return t.enqueue(ctx, run.TenantID, *synced)
	})
}

// forgetRuns deletes what a complete run makes obsolete: the rejects of earlier runs over its
// months, and all of runs that ended long ago, except the newest that is done and the newest slot.
func (t *tx) forgetRuns(ctx context.Context, run *Run) error {
	const others = "(SELECT id FROM usage_runs WHERE workspace_id = ? AND id <> ? AND "
	const rejects = "DELETE FROM usage_rejects WHERE run_id IN " + others
	const old = `started_at < ? AND updated_at < ? AND id NOT IN (SELECT id FROM usage_runs
		WHERE workspace_id = ? AND tenant_id = '' AND status = 'done' ORDER BY started_at DESC LIMIT 1)
		AND id NOT IN (SELECT id FROM usage_runs
		WHERE workspace_id = ? AND slot IS NOT NULL ORDER BY started_at DESC LIMIT 1))`
	before := at(t.now.Add(-runsKept))
	oldArgs := []any{before, before, run.WorkspaceID, run.WorkspaceID}
	for _, d := range []struct {
		query string
		args  []any
	}{
		{
			rejects + "status <> 'running' AND from_period >= ? AND to_period <= ?)",
			[]any{run.FromPeriod, run.ToPeriod},
		},
		{rejects + old, oldArgs},
		{"DELETE FROM usage_runs WHERE id IN " + others + old, oldArgs},
	} {
		if err := t.exec(ctx, d.query, append([]any{run.WorkspaceID, run.ID}, d.args...)...); err != nil {
			return err
		}
	}
	return nil
}

// KeepRun extends the lease of a run that has nothing to record now, and records what it waits for.
func (db *DB) KeepRun(ctx context.Context, run *Run, why string) error {
	return db.changeRun(ctx, run, func(_ context.Context, _ *tx, after *Run) error {
		after.Error = why
		return nil
	})
}

// changeRun changes a run whose holder has the lease, and extends the lease. If it returns nil, run
// is as committed; otherwise it is unchanged.
func (db *DB) changeRun(ctx context.Context, run *Run, do func(context.Context, *tx, *Run) error) error {
	var after Run
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		if err := t.keepRunLease(ctx, run.WorkspaceID, run.holder); err != nil {
			return err
		}
		after = *run
		if err := do(ctx, t, &after); err != nil {
			return err
		}
		return t.saveRun(ctx, &after)
	}, "record usage of workspace %q", run.WorkspaceID)
	if err == nil {
		*run = after
	}
	return err
}

// keepRunLease extends the workspace's lease, or returns ErrRunLost if holder has lost it. No other
// holder can take it before the transaction ends. Runs that share it do not wait for each other,
// except when one of them extends it.
func (t *tx) keepRunLease(ctx context.Context, workspaceID, holder string) error {
	const ours = "name = ? AND holder = ?"
	lease := runLease(workspaceID)
	kept, err := t.execCount(ctx, "UPDATE leases SET until = ? WHERE "+ours+" AND until < ?",
		at(t.now.Add(RunLease)), lease, holder, at(t.now.Add(RunLease-leaseStep)))
	if err != nil || kept > 0 {
		return err
	}
	var found int
	err = t.get(ctx, &found, "SELECT 1 FROM leases WHERE "+ours+t.db.dialect.forShare, lease, holder)
	if err == ErrNotFound {
		err = ErrRunLost
	}
	return err
}

// Runs lists usage runs, newest first, at most limit. If an event is given, it lists only that
// event's runs.
func (db *DB) Runs(ctx context.Context, eventID string, limit int) ([]Run, error) {
	query, args := selectRun, []any{}
	if eventID != "" {
		query, args = query+" WHERE event_id = ?", append(args, eventID)
	}
	query, args = query+" ORDER BY started_at DESC, id DESC LIMIT ?", append(args, limit)
	return list[Run](ctx, db.read, "list usage runs", query, args...)
}
