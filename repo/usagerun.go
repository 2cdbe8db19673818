package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// RunStatus is what became of a usage run.
type RunStatus string

const (
	RunRunning    RunStatus = "running"
	RunDone       RunStatus = "done"
	RunIncomplete RunStatus = "incomplete" // the totals kept shifting while they were read
	RunFailed     RunStatus = "failed"     // the API refused
	RunSkipped    RunStatus = "skipped"    // a tick whose work another run does
)

// Run is a row of usage_runs: one reading of a workspace's usage, or of one tenant's. Its life:
//
//	StartRun     takes the workspace's lease
//	RecordPages  from run.NextPage on, each time with the checkpoint
//	KeepRun      at least once in RunLease while there is nothing to record
//	RestartRun   if the totals shifted while they were read
//	CompleteRun  or EndRun; or LeaveRun, for another worker to resume it
//
// A worker that is killed is followed by another when its lease is over, which starts at the
// checkpoint. Rows are absolute totals, so that to record a page twice changes nothing.
type Run struct {
	ID          string    `db:"id" json:"id"`
	WorkspaceID string    `db:"workspace_id" json:"workspace_id"`
	EventID     string    `db:"event_id" json:"event_id"`             // that asked for it
	TenantID    string    `db:"tenant_id" json:"tenant_id,omitempty"` // of a run for one tenant
	FromPeriod  string    `db:"from_period" json:"from_period"`       // YYYY-MM
	ToPeriod    string    `db:"to_period" json:"to_period"`           // YYYY-MM, included
	Status      RunStatus `db:"status" json:"status"`
	Pass        int       `db:"pass" json:"pass"`           // 1, one more for each restart; 0: not started
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
	// runForgotten is how long a run that has not ended, and was not updated, keeps ticks from
	// starting another. The longest that one waits for the API is 15 minutes.
	runForgotten = 20 * time.Minute

	runsKept = 30 * 24 * time.Hour
)

var (
	// ErrRunLost means that another process has the run now.
	ErrRunLost = errors.New("the usage run passed to another worker")
	// ErrRunBusy means that another run of the workspace is running.
	ErrRunBusy = errors.New("another usage run of the workspace is running")
	// ErrRunOver means that the run has ended before.
	ErrRunOver = errors.New("the usage run has ended")
)

const selectRun = `SELECT id, workspace_id, event_id, tenant_id, from_period, to_period, status,
	pass, next_page, pages, total, rows_read, rows_written, rows_rejected, rows_changed, error,
	started_at, updated_at, finished_at FROM usage_runs`

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

// StartRun starts the run that an event asks for, or resumes it where it stopped. requestedAt is
// when the event was stored: a run that failed after it is over, one that failed before is started
// anew.
//
// Over all replicas a workspace has one running run at a time: ErrRunBusy says that it is another's
// turn. ErrRunOver says that the event's run has ended; it is returned all the same. A tick whose
// work another run does, or has done since it was requested, becomes a run that is returned as
// skipped.
func (db *DB) StartRun(ctx context.Context, want Run, requestedAt time.Time, tick bool) (run Run, err error) {
	var refused error // is no reason to roll back
	err = db.update(ctx, func(ctx context.Context, t *tx) (err error) {
		run, refused, err = t.startRun(ctx, want, requestedAt, tick)
		return err
	}, "start a usage run of workspace %q", want.WorkspaceID)
	if err == nil && refused != nil {
		err = fmt.Errorf("start a usage run of workspace %q: %w", want.WorkspaceID, refused)
	}
	return run, err
}

func (t *tx) startRun(
	ctx context.Context, want Run, requestedAt time.Time, tick bool,
) (run Run, refused, err error) {
	// The lease comes first, as in changeRun: a transaction that has its row locked is alone with
	// the workspace's runs.
	lease, holder := runLease(want.WorkspaceID), uuid.NewString()
	taken, err := t.takeLease(ctx, lease, holder, RunLease)
	if err == nil && t.db.now == nil { // a run starts when it has the lease, for which it may have waited
		err = t.get(ctx, &t.now, "SELECT clock_timestamp()")
	}
	if err != nil {
		return run, nil, err
	}
	const ofEvent = " WHERE workspace_id = ? AND event_id = ?"
	err = t.get(ctx, &run, selectRun+ofEvent, want.WorkspaceID, want.EventID)
	isNew := err == ErrNotFound
	if isNew {
		run, err = newRun(want, t.now)
	}
	switch {
	case err != nil:
		return run, nil, err
	case run.Status != RunRunning && (run.Status != RunFailed || run.FinishedAt.After(requestedAt)):
		return run, ErrRunOver, t.dropLease(ctx, lease, holder)
	case isNew && tick:
		skipped, err := t.skipRun(ctx, &run, requestedAt)
		if err != nil {
			return run, nil, err
		}
		if skipped {
			return run, nil, t.dropLease(ctx, lease, holder)
		}
	}
	if !taken {
		return run, ErrRunBusy, nil
	}
	if run.Pass == 0 {
		run.Pass, run.NextPage, run.StartedAt = 1, 1, t.now
	}
	run.holder, run.Status, run.FinishedAt = holder, RunRunning, Time{}
	if isNew {
		return run, nil, t.insertRun(ctx, run)
	}
	return run, nil, t.saveRun(ctx, &run)
}

// skipRun records a tick as skipped if another run does its work: a whole one, over the same months
// at least, that has not ended, or has started since the tick was requested.
func (t *tx) skipRun(ctx context.Context, tick *Run, requestedAt time.Time) (skipped bool, err error) {
	var other string
	err = t.get(ctx, &other, `SELECT event_id FROM usage_runs
		WHERE workspace_id = ? AND tenant_id = '' AND from_period <= ? AND to_period >= ?
		AND (status = 'running' AND updated_at > ? OR status IN ('done', 'incomplete') AND started_at > ?)
		ORDER BY started_at DESC LIMIT 1`,
		tick.WorkspaceID, tick.FromPeriod, tick.ToPeriod, at(t.now.Add(-runForgotten)), at(requestedAt))
	if err == ErrNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	tick.Status, tick.FinishedAt = RunSkipped, t.now
	tick.Error = fmt.Sprintf("the run of event %s does its work", other)
	return true, t.insertRun(ctx, *tick)
}

// PlanRuns records all runs that one event asks for, one for each workspace, so that those that
// have not started are known, too: a person who waits for the event must not take the first run's
// end for the end of all. To repeat it changes nothing.
func (db *DB) PlanRuns(ctx context.Context, runs []Run) error {
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		for _, want := range runs {
			run, err := newRun(want, t.now)
			if err == nil {
				err = t.insertRun(ctx, run)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, "plan usage runs")
}

// insertRun does nothing when there is a run of the event already: (workspace_id, event_id) is
// unique, so that copies of an event, and the ticks that each replica publishes, are one run.
func (t *tx) insertRun(ctx context.Context, run Run) error {
	return t.execNamed(ctx, `INSERT INTO usage_runs (id, workspace_id, event_id, tenant_id, from_period,
		to_period, status, pass, total, error, started_at, updated_at, finished_at)
		VALUES (:id, :workspace_id, :event_id, :tenant_id, :from_period, :to_period,
		:status, :pass, :total, :error, :started_at, :updated_at, :finished_at) ON CONFLICT DO NOTHING`, run)
}

// saveRun writes what may change of a run, and with it the time of its last write.
func (t *tx) saveRun(ctx context.Context, run *Run) error {
	run.UpdatedAt = t.now
	return t.execNamed(ctx, `UPDATE usage_runs SET status = :status, pass = :pass, next_page = :next_page,
		pages = :pages, total = :total, rows_read = :rows_read, rows_written = :rows_written,
		rows_rejected = :rows_rejected, rows_changed = :rows_changed, error = :error,
		started_at = :started_at, updated_at = :updated_at, finished_at = :finished_at WHERE id = :id`, *run)
}

// Page is a page of usage to be recorded, as the API gave it: rows that it cannot use are kept for
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

// busyTime is how long after a Begin others are expected.
const busyTime = time.Second

// PagesTogether is how many pages RecordPages should get at most: few on SQLite while tenants are
// provisioned, whose writes wait for it.
func (db *DB) PagesTogether() int {
	if time.Since(time.Unix(0, db.lastBegin.Load())) < busyTime {
		return db.dialect.pagesWhileBusy
	}
	return db.dialect.pages
}

// RecordPages writes the pages that come next in the run, with what the run knows of their number,
// and moves its checkpoint behind them, in one transaction.
func (db *DB) RecordPages(ctx context.Context, run *Run, pages []Page) error {
	return db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		var rows []UsageRow
		for _, p := range pages {
			if p.Number != after.NextPage {
				return fmt.Errorf("page %d comes before page %d", p.Number, after.NextPage)
			}
			after.NextPage++
			after.Read += int64(len(p.Rows))
			after.Rejected += int64(len(p.Rejected))
			rows = append(rows, p.Rows...)
			for _, r := range p.Rejected {
				err := t.exec(ctx, `INSERT INTO usage_rejects (run_id, page, place, reason, raw)
					VALUES (?, ?, ?, ?, ?)`, run.ID, p.Number, r.Place, r.Reason, r.Raw)
				if err != nil {
					return err
				}
			}
		}
		written, down, err := t.recordUsage(ctx, run, rows)
		after.Written += written
		after.Changed += down
		return err
	})
}

// RestartRun has the pages read once more from the first, because rows have moved from page to page
// while they were read, so that some may have been missed. What was recorded stays: each row is a
// total that the API did report.
func (db *DB) RestartRun(ctx context.Context, run *Run) error {
	return db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		after.Pass++
		after.NextPage, after.Pages, after.Total, after.Read, after.Rejected = 1, 0, -1, 0, 0
		return t.exec(ctx, "DELETE FROM usage_rejects WHERE run_id = ?", run.ID)
	})
}

// RunTenants counts the tenants that have usage in the run's months. It reads all rows of the
// workspace, and is no part of CompleteRun because on SQLite every other write would wait while a
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
// every write to a run it returns ErrRunLost, and writes nothing, when another worker has taken the
// run over.
func (db *DB) CompleteRun(ctx context.Context, run *Run, synced OutboxEvent) error {
	return db.endRun(ctx, run, RunDone, "", func(ctx context.Context, t *tx) error {
		return t.enqueue(ctx, run.TenantID, synced)
	})
}

// EndRun records that the run ended as RunIncomplete or RunFailed, and why. No event goes out: a
// usage.synced promises that every page was read.
func (db *DB) EndRun(ctx context.Context, run *Run, status RunStatus, why string) error {
	return db.endRun(ctx, run, status, why, func(context.Context, *tx) error { return nil })
}

func (db *DB) endRun(ctx context.Context, run *Run, status RunStatus, why string, also txFunc) error {
	err := db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		after.Status, after.Error, after.FinishedAt = status, why, t.now
		if err := t.dropLease(ctx, runLease(run.WorkspaceID), run.holder); err != nil {
			return err
		}
		if run.TenantID == "" && (status == RunDone || status == RunIncomplete) {
			if err := t.forgetRuns(ctx, run); err != nil {
				return err
			}
		}
		return also(ctx, t)
	})
	if err == nil {
		run.holder = ""
	}
	return err
}

// forgetRuns deletes what the end of a whole run makes old: the rejects of earlier runs over its
// months, and all of runs that ended long ago, but for the newest that is done.
func (t *tx) forgetRuns(ctx context.Context, run *Run) error {
	const others = "(SELECT id FROM usage_runs WHERE workspace_id = ? AND id <> ? AND "
	const rejects = "DELETE FROM usage_rejects WHERE run_id IN " + others
	const old = `started_at < ? AND updated_at < ? AND id NOT IN (SELECT id FROM usage_runs
		WHERE workspace_id = ? AND tenant_id = '' AND status = 'done' ORDER BY started_at DESC LIMIT 1))`
	before := at(t.now.Add(-runsKept))
	for _, d := range []struct {
		query string
		args  []any
	}{
		{
			rejects + "status <> 'running' AND from_period >= ? AND to_period <= ?)",
			[]any{run.FromPeriod, run.ToPeriod},
		},
		{rejects + old, []any{before, before, run.WorkspaceID}},
		{"DELETE FROM usage_runs WHERE id IN " + others + old, []any{before, before, run.WorkspaceID}},
	} {
		if err := t.exec(ctx, d.query, append([]any{run.WorkspaceID, run.ID}, d.args...)...); err != nil {
			return err
		}
	}
	return nil
}

// KeepRun prolongs the lease of a run that has nothing to record now, and records what it waits
// for.
func (db *DB) KeepRun(ctx context.Context, run *Run, why string) error {
	return db.changeRun(ctx, run, func(_ context.Context, _ *tx, after *Run) error {
		after.Error = why
		return nil
	})
}

// LeaveRun gives up a run that has not ended, so that the worker that gets its event next resumes
// it at once.
func (db *DB) LeaveRun(ctx context.Context, run *Run) error {
	if run.holder == "" {
		return nil
	}
	return db.DropLease(ctx, runLease(run.WorkspaceID), run.holder)
}

// changeRun changes a run of which this process has the lease, and prolongs that. run is as
// committed when it returns nil, else as it was.
func (db *DB) changeRun(ctx context.Context, run *Run, do func(context.Context, *tx, *Run) error) error {
	var after Run
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		kept, err := t.execCount(ctx, "UPDATE leases SET until = ? WHERE name = ? AND holder = ?",
			at(t.now.Add(RunLease)), runLease(run.WorkspaceID), run.holder)
		if err != nil {
			return err
		}
		if kept == 0 {
			return ErrRunLost
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

// Runs lists usage runs, the newest first, at most limit; of one event unless that is empty.
func (db *DB) Runs(ctx context.Context, eventID string, limit int) ([]Run, error) {
	query, args := selectRun, []any{}
	if eventID != "" {
		query, args = query+" WHERE event_id = ?", append(args, eventID)
	}
	query, args = query+" ORDER BY started_at DESC, id DESC LIMIT ?", append(args, limit)
	return list[Run](ctx, db.read, "list usage runs", query, args...)
}
