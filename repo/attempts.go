package repo

import (
	"context"
	"fmt"
)

// Outcome is what is known about one call of the client's create. Begin writes "sent"; Finish and
// Fail write the others, and so does the next Begin for an attempt whose worker stopped. A known
// outcome is never changed, with two exceptions: a person can find the dashboard of an unknown one
// (Resolve), and another dashboard can replace a mapping's (Replace, Restore).
//
// The number of dashboards that a tenant can have at Papermap is limited by its generations plus
// its attempts that are sent, unknown or orphaned.
type Outcome string

const (
	OutcomeSent     Outcome = "sent"     // committed before the first byte; running, or its worker stopped
	OutcomeCreated  Outcome = "created"  // the mapping's dashboard
	OutcomeRefused  Outcome = "refused"  // provably not processed
	OutcomeUnknown  Outcome = "unknown"  // may have been processed
	OutcomeOrphaned Outcome = "orphaned" // made a dashboard that is not the mapping's
)

// Attempt is a row of provision_attempts: one call of the client's create.
type Attempt struct {
	ID          string  `db:"id" json:"id"`
	WorkspaceID string  `db:"workspace_id" json:"workspace_id"`
	TenantID    string  `db:"tenant_id" json:"tenant_id"`
	Generation  int     `db:"generation" json:"generation"`
	Mark        string  `db:"mark" json:"mark"` // in the dashboard's description at Papermap
	Outcome     Outcome `db:"outcome" json:"outcome"`
	DashboardID string  `db:"dashboard_id" json:"dashboard_id,omitempty"`
	HTTPStatus  int     `db:"http_status" json:"http_status,omitzero"` // 0 when there was no answer
	Error       string  `db:"error" json:"error,omitempty"`
	StartedAt   Time    `db:"started_at" json:"started_at"`
	FinishedAt  Time    `db:"finished_at" json:"finished_at,omitzero"`
	ResolvedAt  Time    `db:"settled_at" json:"settled_at,omitzero"` // when a person resolved it
}

// Result is how an attempt ended, as the worker that sent it knows: the outcome of the call, not of
// the tenant. See Failure for the tenant.
type Result struct {
	Outcome     Outcome
	DashboardID string
	HTTPStatus  int    // 0 when there was no answer
	Error       string // empty when there was none
}

// possibleOrphans selects what may be a dashboard at Papermap without a mapping: attempts, and
// dashboards that an operator has replaced and that no attempt made. Its parameter is the time
// before which an attempt that is still "sent" has lost its lease.
var possibleOrphans = attemptTable.selects + ` WHERE outcome NOT IN ('created', 'refused')
	AND settled_at IS NULL AND (outcome <> 'sent' OR started_at < ?)
	AND NOT EXISTS (SELECT 1 FROM tenant_dashboards m WHERE m.tenant_id = provision_attempts.tenant_id
		AND m.workspace_id = provision_attempts.workspace_id
		AND m.dashboard_id = provision_attempts.dashboard_id)
	UNION ALL SELECT o.dashboard_id, o.workspace_id, o.tenant_id, m.generation, '', 'orphaned',
	o.dashboard_id, 0, '` + replacedError + `', o.replaced_at, o.replaced_at, o.settled_at FROM ` +
	replacedOpen

// replacedError is the error of a possible orphan that is a replaced dashboard.
const replacedError = "an operator has given the tenant another dashboard"

// replacedOpen are the replaced dashboards that are possible orphans, each with its tenant.
const replacedOpen = `dashboard_owners o JOIN tenant_dashboards m ON m.tenant_id = o.tenant_id
	WHERE o.replaced_at IS NOT NULL AND o.replaced_at >= COALESCE(o.set_at, o.replaced_at)
	AND (o.settled_at IS NULL OR o.settled_at < o.replaced_at)
	AND (m.workspace_id <> o.workspace_id OR COALESCE(m.dashboard_id, '') <> o.dashboard_id)
	AND NOT EXISTS (SELECT 1 FROM provision_attempts a WHERE a.tenant_id = o.tenant_id
		AND a.workspace_id = o.workspace_id AND a.dashboard_id = o.dashboard_id)`

func (t *tx) attempt(ctx context.Context, id string) (a Attempt, err error) {
	err = t.get(ctx, &a, attemptTable.selects+" WHERE id = ?", id)
	return a, err
}

// abandoned returns the failure of an attempt that an earlier holder abandoned. It is f, unless
// that holder has recorded an outcome since.
func (f Failure) abandoned(a *Attempt) Failure {
	if a.Outcome == OutcomeSent {
		return f
	}
	f.Result = Result{a.Outcome, a.DashboardID, a.HTTPStatus, a.Error}
	switch a.Outcome {
	case OutcomeRefused: // nothing was created, so the tenant can be retried
		f.Hold, f.Deferral = false, true
	case OutcomeOrphaned:
		f.Result.Error = fmt.Sprintf("the worker that had stopped made dashboard %q after all", a.DashboardID)
	}
	return f
}

// PossibleOrphan is a create request whose dashboard may exist without belonging to a mapping, with
// the title to look for.
type PossibleOrphan struct {
	Attempt
	Title  string `db:"title" json:"title"`
	Status Status `db:"status" json:"tenant_status"`
}

// PossibleOrphans lists, oldest first: unresolved attempts with an unknown or orphaned outcome;
// attempts that are "sent" for longer than a lease, because their worker stopped; and replaced
// dashboards, with their id in place of an attempt's.
func (db *DB) PossibleOrphans(ctx context.Context) ([]PossibleOrphan, error) {
	now, err := db.clock(ctx)
	if err != nil {
		return nil, err
	}
	return list[PossibleOrphan](ctx, db.read, "list possible orphans",
		`SELECT a.*, COALESCE(m.title, '') AS title, COALESCE(m.status, '') AS status
		FROM (`+possibleOrphans+`) a
		LEFT JOIN tenant_dashboards m ON m.tenant_id = a.tenant_id ORDER BY a.started_at, a.id`,
		at(now.Add(-Lease)))
}

// Attempts lists a tenant's attempts, oldest first.
func (db *DB) Attempts(ctx context.Context, tenantID string) ([]Attempt, error) {
	return list[Attempt](ctx, db.read, fmt.Sprintf("list attempts of tenant %q", tenantID),
		attemptTable.selects+" WHERE tenant_id = ? ORDER BY started_at, id", tenantID)
}

// ReplacedDashboard is a dashboard that an operator replaced in its tenant's mapping.
type ReplacedDashboard struct {
	DashboardID string `db:"dashboard_id"`
	ReplacedAt  Time   `db:"replaced_at"`
	Open        bool   `db:"open"` // listed by PossibleOrphans under its own id
}

// AsOrphan is the dashboard as PossibleOrphans lists it.
func (r ReplacedDashboard) AsOrphan(m Mapping) Attempt {
	return Attempt{
		ID: r.DashboardID, WorkspaceID: m.WorkspaceID, TenantID: m.TenantID, Generation: m.Generation,
		Outcome: OutcomeOrphaned, DashboardID: r.DashboardID, Error: replacedError,
		StartedAt: r.ReplacedAt, FinishedAt: r.ReplacedAt,
	}
}

// Replaced lists the tenant's replaced dashboards, oldest first.
func (db *DB) Replaced(ctx context.Context, tenantID string) ([]ReplacedDashboard, error) {
	return list[ReplacedDashboard](ctx, db.read,
		fmt.Sprintf("list replaced dashboards of tenant %q", tenantID),
		`SELECT r.dashboard_id, r.replaced_at, EXISTS (SELECT 1 FROM `+replacedOpen+`
			AND o.workspace_id = r.workspace_id AND o.dashboard_id = r.dashboard_id) AS open
		FROM dashboard_owners r WHERE r.replaced_at IS NOT NULL AND r.tenant_id = ?
		ORDER BY r.replaced_at, r.dashboard_id`, tenantID)
}
