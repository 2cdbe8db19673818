package repo

import (
	"context"
	"fmt"
)

// MonthlyUsage is the usage of all tenants together in a month. Sums are for display; only the rows
// are exact.
type MonthlyUsage struct {
	Period   string  `db:"period"`
	Credits  float64 `db:"credits"`
	Requests int64   `db:"requests"`
	Tenants  int     `db:"tenants"`
}

// UsageByMonth sums usage by month, the newest last. It reads all rows.
func (db *DB) UsageByMonth(ctx context.Context) ([]MonthlyUsage, error) {
	return list[MonthlyUsage](ctx, db.read, "sum usage", `SELECT period,
		CAST(SUM(credits) AS DOUBLE PRECISION) AS credits, CAST(SUM(requests) AS BIGINT) AS requests,
		COUNT(*) AS tenants FROM tenant_usage GROUP BY period ORDER BY period`)
}

// TopUsage lists the rows of a month with the most credits, at most limit. It reads all rows.
func (db *DB) TopUsage(ctx context.Context, period string, limit int) ([]Usage, error) {
	return list[Usage](ctx, db.read, "read the most usage of "+period,
		`SELECT u.tenant_id, u.workspace_id, u.period, CAST(u.credits AS TEXT) AS credits, u.requests,
		u.synced_at, `+budgetOf+` AS budget FROM tenant_usage u WHERE u.period = ?
		ORDER BY u.credits`+db.dialect.asNumber+` DESC, u.tenant_id LIMIT ?`, period, limit)
}

// UsageChange is a total that went down: the API corrected itself.
type UsageChange struct {
	RunID       string `db:"run_id" json:"run_id"`
	TenantID    string `db:"tenant_id" json:"tenant_id"`
	Period      string `db:"period" json:"period"`
	OldCredits  string `db:"old_credits" json:"old_credits"`
	NewCredits  string `db:"new_credits" json:"new_credits"`
	OldRequests int64  `db:"old_requests" json:"old_requests"`
	NewRequests int64  `db:"new_requests" json:"new_requests"`
	ChangedAt   Time   `db:"changed_at" json:"changed_at"`
}

const selectChanges = `SELECT run_id, tenant_id, period, CAST(old_credits AS TEXT) AS old_credits,
	CAST(new_credits AS TEXT) AS new_credits, old_requests, new_requests, changed_at FROM usage_changes`

// TenantChanges lists the totals of a tenant that went down, the newest first, at most limit.
func (db *DB) TenantChanges(
	ctx context.Context, workspaceID, tenantID string, limit int,
) ([]UsageChange, error) {
	return list[UsageChange](ctx, db.read, fmt.Sprintf("list corrections of tenant %q", tenantID),
		selectChanges+" WHERE workspace_id = ? AND tenant_id = ? ORDER BY id DESC LIMIT ?",
		workspaceID, tenantID, limit)
}

// RejectedRow is a row of the API that a run could not use.
type RejectedRow struct {
	Page   int    `db:"page" json:"page"`
	Place  int    `db:"place" json:"place"` // in the page, from 0
	Reason string `db:"reason" json:"reason"`
	Raw    string `db:"raw" json:"raw"`
}

// RunDetails reads a run with the rows that it rejected and the totals that went down in it, at
// most limit of each.
func (db *DB) RunDetails(
	ctx context.Context, id string, limit int,
) (run Run, rejected []RejectedRow, changes []UsageChange, err error) {
	what := fmt.Sprintf("read usage run %q", id)
	if err := db.read.get(ctx, &run, selectRun+" WHERE id = ?", id); err != nil {
		return run, nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	rejected, err = list[RejectedRow](ctx, db.read, what,
		"SELECT page, place, reason, raw FROM usage_rejects WHERE run_id = ? ORDER BY page, place LIMIT ?",
		id, limit)
	if err == nil && run.Changed > 0 { // they have no index by run
		changes, err = list[UsageChange](ctx, db.read, what,
			selectChanges+" WHERE run_id = ? ORDER BY id LIMIT ?", id, limit)
	}
	return run, rejected, changes, err
}
