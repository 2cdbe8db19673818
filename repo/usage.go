package repo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

// UsageRow is a tenant's total of one month, as the API reported it.
type UsageRow struct {
	TenantID string
	Period   string // YYYY-MM
	Credits  string // plain decimal notation, without a sign, leading zeros, or trailing zeros of a fraction
	Requests int64
}

// Usage is a row of tenant_usage, with what else is known of it.
type Usage struct {
	TenantID     string `db:"tenant_id" json:"tenant_id"`
	WorkspaceID  string `db:"workspace_id" json:"workspace_id"`
	Period       string `db:"period" json:"period"`
	Credits      string `db:"credits" json:"credits"`
	Requests     int64  `db:"requests" json:"requests"`
	SyncedAt     Time   `db:"synced_at" json:"synced_at"` // when this value was first read
	Unknown      bool   `db:"unknown" json:"unknown_tenant,omitzero"`
	Unattributed bool   `db:"unattributed" json:"unattributed,omitzero"` // no token was minted for the tenant in that month
}

// UsageFilter selects rows of usage. A field that is empty selects all.
type UsageFilter struct{ WorkspaceID, TenantID, FromPeriod, ToPeriod string }

// usedWorkspaces goes along the key from one workspace to the next: as many steps as there are workspaces.
const usedWorkspaces = `WITH RECURSIVE w (id) AS (SELECT MIN(workspace_id) FROM tenant_usage
	UNION ALL SELECT (SELECT MIN(workspace_id) FROM tenant_usage WHERE workspace_id > w.id) FROM w WHERE w.id IS NOT NULL) SELECT id FROM w`

func (f UsageFilter) where() (text string, args []any) {
	var parts []string
	if f.WorkspaceID == "" && f.TenantID != "" {
		parts = append(parts, "u.workspace_id IN ("+usedWorkspaces+")") // with which the key begins
	}
	for _, c := range []struct{ is, value string }{
		{"u.workspace_id = ?", f.WorkspaceID}, {"u.tenant_id = ?", f.TenantID}, {"u.period >= ?", f.FromPeriod}, {"u.period <= ?", f.ToPeriod},
	} {
		if c.value != "" {
			parts, args = append(parts, c.is), append(args, c.value)
		}
	}
	if len(parts) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(parts, " AND "), args
}

// query reads usage in the order of workspace, tenant and month. Whether its tenant is known, and whether anybody could
// have caused it, is looked up and not stored: both may change after the row was read.
func (f UsageFilter) query() (text string, args []any) {
	where, args := f.where()
	return `SELECT u.tenant_id, u.workspace_id, u.period, CAST(u.credits AS TEXT) AS credits, u.requests, u.synced_at,
		NOT EXISTS (SELECT 1 FROM tenant_dashboards m WHERE m.tenant_id = u.tenant_id) AS unknown,
		NOT EXISTS (SELECT 1 FROM token_counts c WHERE c.workspace_id = u.workspace_id AND c.tenant_id = u.tenant_id AND c.period = u.period) AS unattributed
		FROM tenant_usage u` + where + " ORDER BY u.workspace_id, u.tenant_id, u.period", args
}

// Usage reads at most limit rows of usage, after the first offset ones, and how many there are in all.
func (db *DB) Usage(ctx context.Context, f UsageFilter, offset, limit int) (list []Usage, total int, err error) {
	where, args := f.where()
	if err := db.read.GetContext(ctx, &total, db.read.Rebind("SELECT COUNT(*) FROM tenant_usage u"+where), args...); err != nil {
		return nil, 0, fmt.Errorf("counting usage: %w", err)
	}
	query, args := f.query()
	if err := db.read.SelectContext(ctx, &list, db.read.Rebind(query+" LIMIT ? OFFSET ?"), append(args, limit, offset)...); err != nil {
		return nil, 0, fmt.Errorf("reading usage: %w", err)
	}
	return list, total, nil
}

// EachUsage hands out every row of usage that the filter selects, without holding them all, at the pace of each.
func (db *DB) EachUsage(ctx context.Context, f UsageFilter, each func(Usage) error) error {
	fail := func(err error) error { return fmt.Errorf("reading usage: %w", err) }
	var from sqlx.QueryerContext = db.read
	if db.dialect == goose.DialectPostgres {
		patient, err := db.beginPatient(ctx)
		if err != nil {
			return fail(err)
		}
		defer patient.Rollback()
		from = patient
	}
	query, args := f.query()
	rows, err := from.QueryxContext(ctx, db.read.Rebind(query), args...)
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

// AddTokens adds to the counts of minted tokens.
func (db *DB) AddTokens(ctx context.Context, counts []TokenCount) error {
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		for _, c := range counts {
			err := t.exec(ctx, `INSERT INTO token_counts (workspace_id, tenant_id, period, tokens) VALUES (?, ?, ?, ?)
				ON CONFLICT (workspace_id, tenant_id, period) DO UPDATE SET tokens = token_counts.tokens + excluded.tokens`,
				c.WorkspaceID, c.TenantID, c.Period, c.Tokens)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("counting minted tokens: %w", err)
	}
	return nil
}

// usageKey is the key of a row within its workspace.
type usageKey struct{ tenantID, period string }

// recordUsage writes the rows that are new or have another value than before, and returns how many, and of those how
// many went down. A row whose value is known already is not touched.
func (t *tx) recordUsage(ctx context.Context, dialect goose.Dialect, run *Run, rows []UsageRow) (written, down int64, err error) {
	newest := make(map[usageKey]int, len(rows)) // of a key that stands twice in the pages the later one counts
	for i, r := range rows {
		newest[usageKey{r.TenantID, r.Period}] = i
	}
	if len(newest) < len(rows) {
		distinct := make([]UsageRow, 0, len(newest))
		for i, r := range rows {
			if newest[usageKey{r.TenantID, r.Period}] == i {
				newest[usageKey{r.TenantID, r.Period}] = len(distinct)
				distinct = append(distinct, r)
			}
		}
		rows = distinct
	}
	now := func(k usageKey) UsageRow { return rows[newest[k]] }
	for together := range slices.Chunk(rows, rowsTogether) {
		w, d, err := t.recordTogether(ctx, dialect, run, together, now)
		if err != nil {
			return 0, 0, err
		}
		written, down = written+w, down+d
	}
	return written, down, nil
}

const rowsTogether = 3200 // in a statement, as many as a transaction on PostgreSQL; SQLite takes 32,766 values

// recordTogether is recordUsage for distinct rows in as few statements as can be. now is each key's row.
func (t *tx) recordTogether(ctx context.Context, dialect goose.Dialect, run *Run, rows []UsageRow, now func(usageKey) UsageRow) (written, down int64, err error) {
	set := usageSet(dialect, rows)
	inserted, err := t.ExecContext(ctx, set.insert+" ON CONFLICT DO NOTHING", set.args(run.WorkspaceID, t.now)...)
	if err != nil {
		return 0, 0, err
	}
	n, err := inserted.RowsAffected()
	if err != nil || n == int64(len(rows)) {
		return n, 0, err
	}

	var before []struct {
		TenantID string `db:"tenant_id"`
		Period   string `db:"period"`
		Credits  string `db:"credits"`
		Requests int64  `db:"requests"`
	}
	if err := t.SelectContext(ctx, &before, set.look, set.args(run.WorkspaceID, t.now)...); err != nil {
		return 0, 0, err
	}
	var other []UsageRow
	for _, b := range before {
		after := now(usageKey{b.TenantID, b.Period})
		if after == UsageRow(b) {
			continue
		}
		other = append(other, after)
		if !less(after.Credits, b.Credits) && after.Requests >= b.Requests {
			continue
		}
		down++
		err := t.exec(ctx, `INSERT INTO usage_changes (run_id, workspace_id, tenant_id, period, old_credits, new_credits, old_requests, new_requests, changed_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, run.ID, run.WorkspaceID, b.TenantID, b.Period, b.Credits, after.Credits, b.Requests, after.Requests, t.now)
		if err != nil {
			return 0, 0, err
		}
	}
	if len(other) > 0 {
		set = usageSet(dialect, other)
		_, err = t.ExecContext(ctx, set.insert+` ON CONFLICT (workspace_id, tenant_id, period)
			DO UPDATE SET credits = excluded.credits, requests = excluded.requests, synced_at = excluded.synced_at`, set.args(run.WorkspaceID, t.now)...)
	}
	return n + int64(len(other)), down, err
}

// set is statements over many rows of usage.
type set struct {
	insert, look string
	args         func(workspaceID string, now Time) []any
}

// usageSet makes the statements over rows: by arrays on PostgreSQL, by VALUES on SQLite, which has none.
func usageSet(dialect goose.Dialect, rows []UsageRow) set {
	if dialect == goose.DialectPostgres {
		tenants, periods, credits, requests := make([]string, len(rows)), make([]string, len(rows)), make([]string, len(rows)), make([]int64, len(rows))
		for i, r := range rows {
			tenants[i], periods[i], credits[i], requests[i] = r.TenantID, r.Period, r.Credits, r.Requests
		}
		const from = " FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) AS v (tenant_id, period, credits, requests)"
		return set{
			insert: `INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
				SELECT $1, v.tenant_id, v.period, v.credits::numeric, v.requests, $2::timestamptz` + from,
			look: "SELECT u.tenant_id, u.period, u.credits::text AS credits, u.requests" + from + `
				JOIN tenant_usage u ON u.workspace_id = $1 AND u.tenant_id = v.tenant_id AND u.period = v.period WHERE $2::timestamptz IS NOT NULL`,
			args: func(workspaceID string, now Time) []any {
				return []any{workspaceID, now, tenants, periods, credits, requests}
			},
		}
	}
	values := " (VALUES " + strings.TrimSuffix(strings.Repeat("(?, ?, ?, ?), ", len(rows)), ", ") + ") v"
	return set{
		insert: `INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
			SELECT ?1, v.column1, v.column2, v.column3, v.column4, ?2 FROM` + values + " WHERE true",
		// CROSS keeps the order: the values outside, the key inside.
		look: "SELECT u.tenant_id, u.period, u.credits, u.requests FROM (SELECT ?1 AS workspace_id, ?2 AS now) run CROSS JOIN" + values + `
			CROSS JOIN tenant_usage u ON u.workspace_id = run.workspace_id AND u.tenant_id = v.column1 AND u.period = v.column2`,
		args: func(workspaceID string, now Time) []any {
			args := append(make([]any, 0, 2+4*len(rows)), workspaceID, now)
			for _, r := range rows {
				args = append(args, r.TenantID, r.Period, r.Credits, r.Requests)
			}
			return args
		},
	}
}

// less compares decimals in plain notation exactly.
func less(a, b string) bool {
	wholeA, fractionA, _ := strings.Cut(a, ".")
	wholeB, fractionB, _ := strings.Cut(b, ".")
	if len(wholeA) != len(wholeB) {
		return len(wholeA) < len(wholeB)
	}
	if wholeA != wholeB {
		return wholeA < wholeB
	}
	return fractionA < fractionB
}
