package repo

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// Usage is a row of tenant_usage, with more facts about it.
type Usage struct {
	TenantID     string `db:"tenant_id" json:"tenant_id"`
	WorkspaceID  string `db:"workspace_id" json:"workspace_id"`
	Period       string `db:"period" json:"period"`
	Credits      string `db:"credits" json:"credits"`
	Requests     int64  `db:"requests" json:"requests"`
	SyncedAt     Time   `db:"synced_at" json:"synced_at"` // when this value was first read
	Unknown      bool   `db:"unknown" json:"unknown_tenant,omitzero"`
	Unattributed bool   `db:"unattributed" json:"unattributed,omitzero"` // no token was minted in that month
	Budget       string `db:"budget" json:"budget,omitzero"`             // credits; empty: none
}

// UsageFilter selects rows of usage. An empty field selects everything. Periods are YYYY-MM, both
// ends included.
type UsageFilter struct{ WorkspaceID, TenantID, FromPeriod, ToPeriod string }

// usedWorkspaces walks the key from one workspace to the next, in as many steps as there are
// workspaces.
const usedWorkspaces = `WITH RECURSIVE w (id) AS (SELECT MIN(workspace_id) FROM tenant_usage
	UNION ALL SELECT (SELECT MIN(workspace_id) FROM tenant_usage WHERE workspace_id > w.id) FROM w
	WHERE w.id IS NOT NULL) SELECT id FROM w`

func (f UsageFilter) where() (text string, args []any) {
	var parts []string
	if f.WorkspaceID == "" && f.TenantID != "" {
		parts = append(parts, "u.workspace_id IN ("+usedWorkspaces+")") // with which the key begins
	}
	for _, c := range []struct{ condition, value string }{
		{"u.workspace_id = ?", f.WorkspaceID}, {"u.tenant_id = ?", f.TenantID},
		{"u.period >= ?", f.FromPeriod}, {"u.period <= ?", f.ToPeriod},
	} {
		if c.value != "" {
			parts, args = append(parts, c.condition), append(args, c.value)
		}
	}
	if len(parts) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(parts, " AND "), args
}

// query reads usage in the order of workspace, tenant and month. Whether the tenant is known, and
// whether it had a token, is looked up and not stored: both may change after the row was read.
func (f UsageFilter) query() (text string, args []any) {
	where, args := f.where()
	return `SELECT u.tenant_id, u.workspace_id, u.period, CAST(u.credits AS TEXT) AS credits, u.requests,
		u.synced_at,
		NOT EXISTS (SELECT 1 FROM tenant_dashboards m WHERE m.tenant_id = u.tenant_id) AS unknown,
		NOT EXISTS (SELECT 1 FROM token_counts c WHERE c.workspace_id = u.workspace_id
			AND c.tenant_id = u.tenant_id AND c.period = u.period) AS unattributed, ` + budgetOf + ` AS budget
		FROM tenant_usage u` + where + " ORDER BY u.workspace_id, u.tenant_id, u.period", args
}

// Usage reads at most limit rows of usage, after the first offset ones, and the number of all rows.
// The two are read one after the other, so the total may be slightly older.
func (db *DB) Usage(
	ctx context.Context, f UsageFilter, offset, limit int,
) (rows []Usage, total int, err error) {
	where, args := f.where()
	if err := db.read.get(ctx, &total, "SELECT COUNT(*) FROM tenant_usage u"+where, args...); err != nil {
		return nil, 0, fmt.Errorf("count usage: %w", err)
	}
	query, args := f.query()
	query, args = query+" LIMIT ? OFFSET ?", append(args, limit, offset)
	rows, err = list[Usage](ctx, db.read, "read usage", query, args...)
	return rows, total, err
}

// EachUsage calls each for every row of usage that the filter selects, without holding all rows in
// memory, at the pace of each. An error of each ends it and is returned unchanged.
//
// If the PostgreSQL server has sent everything before each is done, it may end the transaction as
// idle. The rows that it has sent are read anyway.
func (db *DB) EachUsage(ctx context.Context, f UsageFilter, each func(Usage) error) error {
	fail := func(err error) error { return fmt.Errorf("read usage: %w", err) }
	t, err := db.read.BeginTxx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fail(err)
	}
	defer t.Rollback()
	if statement := db.dialect.unlimited; statement != "" {
		if _, err := t.ExecContext(ctx, statement); err != nil {
			return fail(err)
		}
	}
	query, args := f.query()
	rows, err := t.QueryxContext(ctx, t.Rebind(query), args...)
	if err != nil {
		return fail(err)
	}
	defer rows.Close()
	for rows.Next() {
		var u Usage
		if err := rows.StructScan(&u); err != nil {
			return fail(err)
		}
		if err := each(u); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fail(err)
	}
	return nil
}

// TokenCount is how many tokens were minted for a tenant in a month.
type TokenCount struct {
	WorkspaceID, TenantID, Period string
	Tokens                        int64
}

// AddTokens adds to the counts of minted tokens. Workers count in memory and add their counts every
// few seconds: a count shows which tenants could have caused usage, and is not a bill.
func (db *DB) AddTokens(ctx context.Context, counts []TokenCount) error {
	if len(counts) == 0 {
		return nil
	}
	rows := make([][]any, len(counts))
	for i, c := range counts {
		rows[i] = []any{c.WorkspaceID, c.TenantID, c.Period, c.Tokens}
	}
	from, args := db.dialect.set(tokenColumns, rows)
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		// In key order, so that replicas cannot deadlock on each other's rows.
		return t.exec(ctx, `INSERT INTO token_counts (workspace_id, tenant_id, period, tokens)
			SELECT v.workspace_id, v.tenant_id, v.period, SUM(v.tokens) FROM `+from+` WHERE true
			GROUP BY v.workspace_id, v.tenant_id, v.period ORDER BY 1, 2, 3
			ON CONFLICT (workspace_id, tenant_id, period)
			DO UPDATE SET tokens = token_counts.tokens + excluded.tokens`, args...)
	}, "count minted tokens")
}

var tokenColumns = []column{
	{"workspace_id", "text"}, {"tenant_id", "text"}, {"period", "text"}, {"tokens", "bigint"},
}
