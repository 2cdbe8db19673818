package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

// RunStatus is what became of a usage run.
type RunStatus string

const (
	Running    RunStatus = "running"
	RunDone    RunStatus = "done"
	Incomplete RunStatus = "incomplete" // the totals kept shifting while they were read
	RunFailed  RunStatus = "failed"     // the API refused
	Skipped    RunStatus = "skipped"    // a tick whose work another run does
)

// Run is a row of usage_runs: one reading of a workspace's usage, or of one tenant's.
type Run struct {
	ID          string    `db:"id" json:"id"`
	WorkspaceID string    `db:"workspace_id" json:"workspace_id"`
	EventID     string    `db:"event_id" json:"event_id"` // that asked for it
	TenantID    string    `db:"tenant_id" json:"tenant_id,omitempty"`
	FromPeriod  string    `db:"from_period" json:"from_period"`
	ToPeriod    string    `db:"to_period" json:"to_period"`
	Status      RunStatus `db:"status" json:"status"`
	Pass        int       `db:"pass" json:"pass"`           // 1, and one more each time that the totals shifted; 0 before it begins
	NextPage    int       `db:"next_page" json:"next_page"` // all pages before are recorded
	Pages       int       `db:"pages" json:"pages"`         // 0 while unknown
	Total       int64     `db:"total" json:"total"`         // rows that the API speaks of; -1 when it does not
	Read        int64     `db:"rows_read" json:"rows"`      // of the last pass
	Written     int64     `db:"rows_written" json:"written_rows"`
	Rejected    int64     `db:"rows_rejected" json:"rejected_rows"` // of the last pass
	Changed     int64     `db:"rows_changed" json:"changed_rows"`   // totals that went down
	Error       string    `db:"error" json:"error,omitempty"`
	StartedAt   Time      `db:"started_at" json:"started_at"`
	UpdatedAt   Time      `db:"updated_at" json:"updated_at"`
	FinishedAt  Time      `db:"finished_at" json:"finished_at,omitzero"`

	holder string // of the lease, while this process has it
}

// RunLease is how long a run is kept from others after its last sign of life.
const RunLease = 25 * time.Second

const (
	// runForgotten is how long a run that has not ended, and of which nothing was heard, keeps ticks from beginning another.
	// The longest that one waits for the API is 15 minutes.
	runForgotten = 20 * time.Minute

	runsKept = 30 * 24 * time.Hour
)

var (
	// ErrRunLost means that another process has the run now.
	ErrRunLost = errors.New("the usage run passed to another worker")
	// ErrRunBusy means that another run of the workspace is at work.
	ErrRunBusy = errors.New("another usage run of the workspace is at work")
	// ErrRunOver means that the run has ended before.
	ErrRunOver = errors.New("the usage run has ended")
)

const runColumns = `id, workspace_id, event_id, tenant_id, from_period, to_period, status, pass, next_page, pages, total,
	rows_read, rows_written, rows_rejected, rows_changed, error, started_at, updated_at, finished_at`

// StartRun begins the run that an event asks for, or goes on with it where it stopped. asked is when the event was stored:
// a run that failed after it is over, one that failed before is asked for anew.
//
// Over all replicas one run of a workspace is at work at a time: ErrRunBusy says that it is another's turn. ErrRunOver says
// that the event's run has ended; it is returned all the same. A tick that finds its work in hand, or done since it was
// asked for, becomes a run that is returned as skipped.
func (db *DB) StartRun(ctx context.Context, want Run, asked time.Time, tick bool) (Run, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Run{}, fmt.Errorf("making a run id: %w", err)
	}
	var run Run
	var state error
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		run, state = Run{}, nil
		// The lease comes first, as in changeRun: who has its row locked is alone with the workspace's runs.
		holder := uuid.NewString()
		taken, err := t.takeLease(ctx, runLease(want.WorkspaceID), holder, RunLease)
		if err != nil {
			return err
		}
		if db.dialect == goose.DialectPostgres && db.now == nil { // a run begins when it has the lease, for which it may have waited
			if err := t.get(ctx, &t.now, "SELECT clock_timestamp()"); err != nil {
				return err
			}
		}
		giveBack := func() error {
			return t.exec(ctx, "DELETE FROM leases WHERE name = ? AND holder = ?", runLease(want.WorkspaceID), holder)
		}
		err = t.get(ctx, &run, "SELECT "+runColumns+" FROM usage_runs WHERE workspace_id = ? AND event_id = ?", want.WorkspaceID, want.EventID)
		isNew := err == ErrNotFound
		switch {
		case isNew:
			run = want
			run.ID, run.Status, run.Total, run.UpdatedAt = id.String(), Running, -1, t.now
		case err != nil:
			return err
		case run.Status != Running && (run.Status != RunFailed || run.FinishedAt.After(asked)):
			state = ErrRunOver
			return giveBack()
		}
		if isNew && tick {
			switch other, err := t.instead(ctx, want, asked); {
			case err == nil:
				run.Status, run.StartedAt, run.FinishedAt, run.Error = Skipped, t.now, t.now, fmt.Sprintf("the run of event %s does its work", other)
				if err := t.insertRun(ctx, run); err != nil {
					return err
				}
				return giveBack()
			case err != ErrNotFound:
				return err
			}
		}
		if !taken {
			state = ErrRunBusy
			return nil
		}
		if run.Pass == 0 {
			run.Pass, run.NextPage, run.StartedAt = 1, 1, t.now
		}
		run.holder, run.Status, run.FinishedAt = holder, Running, Time{}
		if isNew {
			return t.insertRun(ctx, run)
		}
		return t.saveRun(ctx, &run)
	})
	if err == nil {
		err = state
	}
	if err != nil {
		return run, fmt.Errorf("beginning a usage run of workspace %q: %w", want.WorkspaceID, err)
	}
	return run, nil
}

func runLease(workspaceID string) string { return "usage:" + workspaceID }

// instead finds the event of a run that does the work of a tick: a whole one, over the same months at least, that has not
// ended, or has begun since.
func (t *tx) instead(ctx context.Context, tick Run, asked time.Time) (eventID string, err error) {
	err = t.get(ctx, &eventID, `SELECT event_id FROM usage_runs WHERE workspace_id = ? AND tenant_id = '' AND from_period <= ? AND to_period >= ?
		AND (status = 'running' AND updated_at > ? OR status IN ('done', 'incomplete') AND started_at > ?) ORDER BY started_at DESC LIMIT 1`,
		tick.WorkspaceID, tick.FromPeriod, tick.ToPeriod, at(t.now.Add(-runForgotten)), at(asked))
	return eventID, err
}

// PlanRuns records all runs that one event asks for, so that who waits for them knows of those, too, that have not begun.
func (db *DB) PlanRuns(ctx context.Context, runs []Run) error {
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		for _, run := range runs {
			id, err := uuid.NewV7()
			if err != nil {
				return fmt.Errorf("making a run id: %w", err)
			}
			run.ID, run.Status, run.Total, run.StartedAt, run.UpdatedAt = id.String(), Running, -1, t.now, t.now
			if err := t.insertRun(ctx, run); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("planning usage runs: %w", err)
	}
	return nil
}

// insertRun does nothing when there is a run of the event already.
func (t *tx) insertRun(ctx context.Context, run Run) error {
	return t.execNamed(ctx, `INSERT INTO usage_runs (id, workspace_id, event_id, tenant_id, from_period, to_period, status, pass, total, error, started_at, updated_at, finished_at)
		VALUES (:id, :workspace_id, :event_id, :tenant_id, :from_period, :to_period, :status, :pass, :total, :error, :started_at, :updated_at, :finished_at)
		ON CONFLICT DO NOTHING`, run)
}

// saveRun writes what may change of a run, and that it lives.
func (t *tx) saveRun(ctx context.Context, run *Run) error {
	run.UpdatedAt = t.now
	return t.execNamed(ctx, `UPDATE usage_runs SET status = :status, pass = :pass, next_page = :next_page, pages = :pages, total = :total,
		rows_read = :rows_read, rows_written = :rows_written, rows_rejected = :rows_rejected, rows_changed = :rows_changed, error = :error,
		started_at = :started_at, updated_at = :updated_at, finished_at = :finished_at WHERE id = :id`, *run)
}

// execNamed runs a statement whose parameters are fields of run.
func (t *tx) execNamed(ctx context.Context, query string, run Run) error {
	query, args, err := sqlx.Named(query, run)
	if err != nil {
		return err
	}
	return t.exec(ctx, query, args...)
}

// Page is a page of usage to be recorded.
type Page struct {
	Number   int
	Rows     []UsageRow
	Rejected []Reject
}

// Reject is a row that cannot be used.
type Reject struct {
	Place       int // in the page, from 0
	Reason, Raw string
}

// PagesTogether is how many pages are recorded in one transaction at most: more on PostgreSQL, where each transaction costs some
// round trips, and one on SQLite while tenants are provisioned, whose writes wait for it.
func (db *DB) PagesTogether() int {
	switch {
	case db.dialect == goose.DialectPostgres:
		return 32
	case time.Since(time.Unix(0, db.begun.Load())) < moreTenants:
		return 1
	}
	return 8
}

// moreTenants is how long after a tenant was begun others are expected.
const moreTenants = time.Second

// RecordPages writes the pages that come next in the run, with what the run says of their number, and moves its checkpoint
// behind them, in one transaction.
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
				err := t.exec(ctx, "INSERT INTO usage_rejects (run_id, page, place, reason, raw) VALUES (?, ?, ?, ?, ?)", run.ID, p.Number, r.Place, r.Reason, r.Raw)
				if err != nil {
					return err
				}
			}
		}
		written, down, err := t.recordUsage(ctx, db.dialect, run, rows)
		after.Written += written
		after.Changed += down
		return err
	})
}

// RestartRun has the pages read once more from the first.
func (db *DB) RestartRun(ctx context.Context, run *Run) error {
	return db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		after.Pass++
		after.NextPage, after.Pages, after.Total, after.Read, after.Rejected = 1, 0, -1, 0, 0
		return t.exec(ctx, "DELETE FROM usage_rejects WHERE run_id = ?", run.ID)
	})
}

// EndRun records how the run ended and, when it is done, the event that tells of it.
func (db *DB) EndRun(ctx context.Context, run *Run, status RunStatus, why string, n func(tenants int) (Notice, error)) error {
	var tenants int
	if status == RunDone { // before the transaction: on SQLite nobody else would write while a million rows are counted
		where, args := UsageFilter{WorkspaceID: run.WorkspaceID, TenantID: run.TenantID, FromPeriod: run.FromPeriod, ToPeriod: run.ToPeriod}.where()
		query := "SELECT COUNT(*) FROM (SELECT DISTINCT u.tenant_id FROM tenant_usage u" + where + ") d"
		if err := db.read.GetContext(ctx, &tenants, db.read.Rebind(query), args...); err != nil {
			return fmt.Errorf("counting the tenants of usage run %s: %w", run.ID, err)
		}
	}
	err := db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		after.Status, after.Error, after.FinishedAt = status, why, t.now
		if err := t.exec(ctx, "DELETE FROM leases WHERE name = ?", runLease(run.WorkspaceID)); err != nil {
			return err
		}
		if run.TenantID == "" && (status == RunDone || status == Incomplete) {
			if err := t.forgetRuns(ctx, run); err != nil {
				return err
			}
		}
		if status != RunDone {
			return nil
		}
		notice, err := n(tenants)
		if err != nil {
			return err
		}
		return t.notify(ctx, run.TenantID, notice)
	})
	if err == nil {
		run.holder = ""
	}
	return err
}

// forgetRuns deletes what the end of a whole run makes old: the rejects of earlier runs over its months, and all of runs that
// ended long ago, but for the newest that is done.
func (t *tx) forgetRuns(ctx context.Context, run *Run) error {
	const others = "(SELECT id FROM usage_runs WHERE workspace_id = ? AND id <> ? AND "
	const old = others + `started_at < ? AND updated_at < ? AND id NOT IN (
		SELECT id FROM usage_runs WHERE workspace_id = ? AND tenant_id = '' AND status = 'done' ORDER BY started_at DESC LIMIT 1))`
	before := at(t.now.Add(-runsKept))
	for _, d := range []struct {
		query string
		args  []any
	}{
		{"DELETE FROM usage_rejects WHERE run_id IN " + others + "status <> 'running' AND from_period >= ? AND to_period <= ?)", []any{run.FromPeriod, run.ToPeriod}},
		{"DELETE FROM usage_rejects WHERE run_id IN " + old, []any{before, before, run.WorkspaceID}},
		{"DELETE FROM usage_runs WHERE id IN " + old, []any{before, before, run.WorkspaceID}},
	} {
		if err := t.exec(ctx, d.query, append([]any{run.WorkspaceID, run.ID}, d.args...)...); err != nil {
			return err
		}
	}
	return nil
}

// KeepRun is a sign of life of a run that has nothing to record now, with what it waits for.
func (db *DB) KeepRun(ctx context.Context, run *Run, why string) error {
	return db.changeRun(ctx, run, func(_ context.Context, _ *tx, after *Run) error {
		after.Error = why
		return nil
	})
}

// LeaveRun gives up a run that has not ended, so that whoever gets its event next goes on with it at once.
func (db *DB) LeaveRun(ctx context.Context, run *Run) error {
	if run.holder == "" {
		return nil
	}
	return db.DropLease(ctx, runLease(run.WorkspaceID), run.holder)
}

// changeRun changes a run of which this process has the lease, and prolongs that.
func (db *DB) changeRun(ctx context.Context, run *Run, do func(context.Context, *tx, *Run) error) error {
	var after Run
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		kept, err := t.ExecContext(ctx, t.on.Rebind("UPDATE leases SET until = ? WHERE name = ? AND holder = ?"),
			at(t.now.Add(RunLease)), runLease(run.WorkspaceID), run.holder)
		if err != nil {
			return err
		}
		if n, err := kept.RowsAffected(); err != nil || n == 0 {
			return errors.Join(ErrRunLost, err)
		}
		after = *run
		if err := do(ctx, t, &after); err != nil {
			return err
		}
		return t.saveRun(ctx, &after)
	})
	if err != nil {
		return fmt.Errorf("recording usage of workspace %q: %w", run.WorkspaceID, err)
	}
	*run = after
	return nil
}

// Runs lists usage runs, the newest first, at most limit; of one event unless that is empty.
func (db *DB) Runs(ctx context.Context, eventID string, limit int) ([]Run, error) {
	query, args := "SELECT "+runColumns+" FROM usage_runs", []any{}
	if eventID != "" {
		query, args = query+" WHERE event_id = ?", append(args, eventID)
	}
	var list []Run
	if err := db.read.SelectContext(ctx, &list, db.read.Rebind(query+" ORDER BY started_at DESC, id DESC LIMIT ?"), append(args, limit)...); err != nil {
		return nil, fmt.Errorf("listing usage runs: %w", err)
	}
	return list, nil
}

// Done is how many pages are recorded.
func (r Run) Done() int { return r.NextPage - 1 }
