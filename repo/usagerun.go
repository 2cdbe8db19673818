package repo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/pressly/goose/v3"
)

// RunStatus is what became of a usage run.
type RunStatus string

const (
	Running    RunStatus = "running"
	RunDone    RunStatus = "done"
	Incomplete RunStatus = "incomplete" // the totals kept shifting while they were read
	RunFailed  RunStatus = "failed"     // the API refused
	Skipped    RunStatus = "skipped"    // a tick that came while another run was at work, or too late
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
	Pass        int       `db:"pass" json:"pass"`           // 1, and one more each time that it began again
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

// StartRun begins the run that an event asks for, or goes on with it where it stopped. Over all replicas one run of a
// workspace is at work at a time: ErrRunBusy says that it is another's turn; with skip a new run is then recorded as skipped,
// and the run that is returned says so. ErrRunOver says that the event was served before.
func (db *DB) StartRun(ctx context.Context, want Run, skip bool) (Run, error) {
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
		err = t.get(ctx, &run, "SELECT "+runColumns+" FROM usage_runs WHERE workspace_id = ? AND event_id = ?", want.WorkspaceID, want.EventID)
		if err != nil && err != ErrNotFound {
			return err
		}
		isNew := err == ErrNotFound
		if !isNew && run.Status != Running && run.Status != RunFailed {
			state = ErrRunOver
			return t.exec(ctx, "DELETE FROM leases WHERE name = ? AND holder = ?", runLease(want.WorkspaceID), holder)
		}
		if !taken {
			state = ErrRunBusy
			if !isNew || !skip {
				return nil
			}
		}
		if isNew {
			run = want
			run.ID, run.Status, run.Pass, run.NextPage, run.Total, run.StartedAt, run.UpdatedAt = id.String(), Running, 1, 1, -1, t.now, t.now
			if !taken {
				run.Status, run.FinishedAt, run.Error = Skipped, t.now, ErrRunBusy.Error()
			}
			if _, err := t.insertRun(ctx, run); err != nil {
				return err
			}
			if !taken { // the other may be this very event's
				return t.get(ctx, &run, "SELECT "+runColumns+" FROM usage_runs WHERE workspace_id = ? AND event_id = ?", want.WorkspaceID, want.EventID)
			}
			run.holder = holder
			return nil
		}
		run.holder, run.Status, run.FinishedAt = holder, Running, Time{}
		return t.exec(ctx, "UPDATE usage_runs SET status = 'running', finished_at = NULL, updated_at = ? WHERE id = ?", t.now, run.ID)
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

// SkipRun records a run that is not to be made, and why, unless it has begun already.
func (db *DB) SkipRun(ctx context.Context, want Run, why string) (skipped bool, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return false, fmt.Errorf("making a run id: %w", err)
	}
	want.ID, want.Status, want.Error = id.String(), Skipped, why
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		want.StartedAt, want.UpdatedAt, want.FinishedAt = t.now, t.now, t.now
		skipped, err = t.insertRun(ctx, want)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("recording a skipped usage run of workspace %q: %w", want.WorkspaceID, err)
	}
	return skipped, nil
}

// insertRun does nothing when there is a run of the event already.
func (t *tx) insertRun(ctx context.Context, run Run) (inserted bool, err error) {
	result, err := t.NamedExecContext(ctx, `INSERT INTO usage_runs (id, workspace_id, event_id, tenant_id, from_period, to_period, status, error, started_at, updated_at, finished_at)
		VALUES (:id, :workspace_id, :event_id, :tenant_id, :from_period, :to_period, :status, :error, :started_at, :updated_at, :finished_at)
		ON CONFLICT DO NOTHING`, run)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
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

// PagesTogether is how many pages are recorded in one transaction at most: few on SQLite, where all other writes wait for
// it, and more on PostgreSQL, where each transaction costs some round trips.
func (db *DB) PagesTogether() int {
	if db.dialect == goose.DialectSQLite3 {
		return 4
	}
	return 32
}

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
	err := db.changeRun(ctx, run, func(ctx context.Context, t *tx, after *Run) error {
		after.Status, after.Error, after.FinishedAt = status, why, t.now
		if err := t.exec(ctx, "DELETE FROM leases WHERE name = ?", runLease(run.WorkspaceID)); err != nil || status != RunDone {
			return err
		}
		where, args := UsageFilter{WorkspaceID: run.WorkspaceID, TenantID: run.TenantID, FromPeriod: run.FromPeriod, ToPeriod: run.ToPeriod}.where()
		var tenants int
		if err := t.get(ctx, &tenants, "SELECT COUNT(*) FROM (SELECT DISTINCT u.tenant_id FROM tenant_usage u"+where+") d", args...); err != nil {
			return err
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
		kept, err := t.ExecContext(ctx, t.Rebind("UPDATE leases SET until = ? WHERE name = ? AND holder = ?"),
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
		after.UpdatedAt = t.now
		_, err = t.NamedExecContext(ctx, `UPDATE usage_runs SET status = :status, pass = :pass, next_page = :next_page, pages = :pages, total = :total,
			rows_read = :rows_read, rows_written = :rows_written, rows_rejected = :rows_rejected, rows_changed = :rows_changed, error = :error,
			updated_at = :updated_at, finished_at = :finished_at WHERE id = :id`, after)
		return err
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
