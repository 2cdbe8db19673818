package repo

import (
	"context"
	"fmt"
)

// Outcome is what is known of one call of the client's create.
type Outcome string

const (
	Sent        Outcome = "sent"     // committed before the first byte; still running, or its worker stopped
	Made        Outcome = "created"  // the mapping's dashboard
	NotAccepted Outcome = "refused"  // provably not processed
	Uncertain   Outcome = "unknown"  // may have been processed
	Orphaned    Outcome = "orphaned" // made a dashboard that is not the mapping's
)

// Attempt is a row of provision_attempts: one call of the client's create.
type Attempt struct {
	ID          string  `db:"id" json:"id"`
	WorkspaceID string  `db:"workspace_id" json:"workspace_id"`
	TenantID    string  `db:"tenant_id" json:"tenant_id"`
	Generation  int     `db:"generation" json:"generation"`
	Mark        string  `db:"mark" json:"mark"` // stands in the dashboard's description at Papermap
	Outcome     Outcome `db:"outcome" json:"outcome"`
	DashboardID string  `db:"dashboard_id" json:"dashboard_id,omitempty"`
	HTTPStatus  int     `db:"http_status" json:"http_status,omitzero"`
	Error       string  `db:"error" json:"error,omitempty"`
	StartedAt   Time    `db:"started_at" json:"started_at"`
	FinishedAt  Time    `db:"finished_at" json:"finished_at,omitzero"`
	SettledAt   Time    `db:"settled_at" json:"settled_at,omitzero"` // when a person had looked after it
}

// Result is how an attempt ended.
type Result struct {
	Outcome     Outcome
	DashboardID string
	HTTPStatus  int    // 0 when there was no answer
	Error       string // empty when there was none
}

const attemptColumns = `id, workspace_id, tenant_id, generation, mark, outcome, COALESCE(dashboard_id, '') AS dashboard_id,
	COALESCE(http_status, 0) AS http_status, COALESCE(error, '') AS error, started_at, finished_at, settled_at`

func (t *tx) settle(ctx context.Context, id string, r Result) error {
	return t.exec(ctx, `UPDATE provision_attempts SET outcome = ?, dashboard_id = NULLIF(?, ''), http_status = NULLIF(?, 0),
		error = NULLIF(?, ''), finished_at = ? WHERE id = ?`, r.Outcome, r.DashboardID, r.HTTPStatus, r.Error, t.now, id)
}

// settleStale records how the attempt of a holder that lost its claim ended, unless a person knew it to be the mapping's.
func (t *tx) settleStale(ctx context.Context, id string, r Result) error {
	var a Attempt
	if err := t.get(ctx, &a, "SELECT "+attemptColumns+" FROM provision_attempts WHERE id = ?", id); err != nil || a.Outcome == Made {
		return err
	}
	return t.settle(ctx, id, r)
}

// settleLeft records how the attempt ended that an earlier holder left, unless that holder has come back meanwhile: then f is
// what it said.
func (t *tx) settleLeft(ctx context.Context, id string, f Failure) (Failure, error) {
	var a Attempt
	if err := t.get(ctx, &a, "SELECT "+attemptColumns+" FROM provision_attempts WHERE id = ?", id); err != nil {
		return f, err
	}
	if a.Outcome == Sent {
		return f, t.settle(ctx, id, f.Result)
	}
	f.Result = Result{Outcome: a.Outcome, DashboardID: a.DashboardID, HTTPStatus: a.HTTPStatus, Error: a.Error}
	switch a.Outcome {
	case NotAccepted: // nothing was made, and nothing keeps the tenant from its next try
		f.Hold, f.Deferral = false, true
	case Orphaned:
		f.Result.Error = fmt.Sprintf("the worker that had stopped made dashboard %q after all", a.DashboardID)
	}
	return f, nil
}

// UncertainAttempt is a create request whose dashboard may exist without being a mapping's, with the title to look
// for.
type UncertainAttempt struct {
	Attempt
	Title  string `db:"title" json:"title"`
	Status Status `db:"status" json:"tenant_status"`
}

// UncertainAttempts lists, oldest first, the attempts with an unknown or orphaned outcome that nobody has settled, and those
// that are still "sent" longer than a lease lasts: their worker stopped.
func (db *DB) UncertainAttempts(ctx context.Context) ([]UncertainAttempt, error) {
	now, err := db.clock(ctx)
	if err != nil {
		return nil, err
	}
	var list []UncertainAttempt
	err = db.read.SelectContext(ctx, &list, db.read.Rebind(`SELECT a.*, COALESCE(m.title, '') AS title, COALESCE(m.status, '') AS status
		FROM (SELECT `+attemptColumns+` FROM provision_attempts
			WHERE outcome NOT IN ('created', 'refused') AND settled_at IS NULL AND (outcome <> 'sent' OR started_at < ?)) a
		LEFT JOIN tenant_dashboards m ON m.tenant_id = a.tenant_id ORDER BY a.started_at, a.id`), at(now.Add(-Lease)))
	if err != nil {
		return nil, fmt.Errorf("listing uncertain attempts: %w", err)
	}
	return list, nil
}

// Attempts lists a tenant's attempts, oldest first.
func (db *DB) Attempts(ctx context.Context, tenantID string) ([]Attempt, error) {
	var list []Attempt
	err := db.read.SelectContext(ctx, &list, db.read.Rebind("SELECT "+attemptColumns+
		" FROM provision_attempts WHERE tenant_id = ? ORDER BY started_at, id"), tenantID)
	if err != nil {
		return nil, fmt.Errorf("listing attempts of tenant %q: %w", tenantID, err)
	}
	return list, nil
}
