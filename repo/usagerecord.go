package repo

import (
	"context"
	"slices"
	"strings"

	"github.com/shopspring/decimal"
)

// UsageRow is a tenant's total of one month, as the API reported it.
type UsageRow struct {
	TenantID string
	Period   string // YYYY-MM
	Credits  string // plain decimal notation, without a sign, leading zeros, or trailing zeros of a fraction
	Requests int64
}

// usageKey is the key of a row within its workspace.
type usageKey struct{ tenantID, period string }

// maxUsageRows is how many rows one statement writes: as many as a transaction on PostgreSQL;
// SQLite takes 32,766 values.
const maxUsageRows = 3200

// recordUsage writes the rows that are new or have another value than before, and returns how many,
// and of those how many went down. A row whose value is known already is not touched. Of a key that
// comes twice the later row counts.
func (t *tx) recordUsage(ctx context.Context, run *Run, rows []UsageRow) (written, down int64, err error) {
	latest := make(map[usageKey]UsageRow, len(rows))
	keys := make([]usageKey, 0, len(rows))
	for _, r := range rows {
		key := usageKey{r.TenantID, r.Period}
		if _, known := latest[key]; !known {
			keys = append(keys, key)
		}
		latest[key] = r
	}
	for chunk := range slices.Chunk(keys, maxUsageRows) {
		distinct := make([]UsageRow, len(chunk))
		for i, key := range chunk {
			distinct[i] = latest[key]
		}
		w, d, err := t.recordDistinct(ctx, run, distinct, latest)
		if err != nil {
			return 0, 0, err
		}
		written, down = written+w, down+d
	}
	return written, down, nil
}

// recordDistinct is recordUsage for rows of different keys, in as few statements as can be: one
// when all are new, two when all are known, three when some have changed, and one for each that
// went down.
func (t *tx) recordDistinct(
	ctx context.Context, run *Run, rows []UsageRow, latest map[usageKey]UsageRow,
) (written, down int64, err error) {
	s := t.db.dialect.usage(rows)
	written, err = t.execCount(ctx, s.insert+" ON CONFLICT DO NOTHING", s.args(run.WorkspaceID, t.now)...)
	if err != nil || written == int64(len(rows)) {
		return written, 0, err
	}
	var stored []struct {
		TenantID string `db:"tenant_id"`
		Period   string `db:"period"`
		Credits  string `db:"credits"`
		Requests int64  `db:"requests"`
	}
	if err := t.list(ctx, &stored, s.lookUp, s.args(run.WorkspaceID, t.now)...); err != nil {
		return 0, 0, err
	}
	var changed []UsageRow
	for _, row := range stored {
		before, after := UsageRow(row), latest[usageKey{row.TenantID, row.Period}]
		if after == before {
			continue
		}
		changed = append(changed, after)
		if lower(after.Credits, before.Credits) || after.Requests < before.Requests {
			down++
			if err := t.keepOldTotal(ctx, run, before, after); err != nil {
				return 0, 0, err
			}
		}
	}
	if len(changed) == 0 {
		return written, 0, nil
	}
	s = t.db.dialect.usage(changed)
	err = t.exec(ctx, s.insert+` ON CONFLICT (workspace_id, tenant_id, period) DO UPDATE
		SET credits = excluded.credits, requests = excluded.requests, synced_at = excluded.synced_at`,
		s.args(run.WorkspaceID, t.now)...)
	return written + int64(len(changed)), down, err
}

// keepOldTotal records a total that went down, for people who have to explain a bill.
func (t *tx) keepOldTotal(ctx context.Context, run *Run, before, after UsageRow) error {
	return t.exec(ctx, `INSERT INTO usage_changes (run_id, workspace_id, tenant_id, period,
		old_credits, new_credits, old_requests, new_requests, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		run.ID, run.WorkspaceID, before.TenantID, before.Period,
		before.Credits, after.Credits, before.Requests, after.Requests, t.now)
}

// usageStatements are statements over many rows of usage. Written row by row, a sync of a hundred
// thousand tenants would take as many round trips on PostgreSQL.
type usageStatements struct {
	insert string // the rows; an ON CONFLICT can follow
	lookUp string // what is stored under their keys
	args   func(workspaceID string, now Time) []any
}

// usageByArrays makes the statements for PostgreSQL: one array for each column, so that the
// statement's text, and its plan, is the same for any number of rows.
func usageByArrays(rows []UsageRow) usageStatements {
	tenants, periods := make([]string, len(rows)), make([]string, len(rows))
	credits, requests := make([]string, len(rows)), make([]int64, len(rows))
	for i, r := range rows {
		tenants[i], periods[i], credits[i], requests[i] = r.TenantID, r.Period, r.Credits, r.Requests
	}
	const from = ` FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[])
		AS v (tenant_id, period, credits, requests)`
	return usageStatements{
		insert: `INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
			SELECT $1, v.tenant_id, v.period, v.credits::numeric, v.requests, $2::timestamptz` + from,
		lookUp: "SELECT u.tenant_id, u.period, u.credits::text AS credits, u.requests" + from + `
			JOIN tenant_usage u ON u.workspace_id = $1 AND u.tenant_id = v.tenant_id AND u.period = v.period
			WHERE $2::timestamptz IS NOT NULL`,
		args: func(workspaceID string, now Time) []any {
			return []any{workspaceID, now, tenants, periods, credits, requests}
		},
	}
}

// usageByValues makes the statements for SQLite, which has no arrays.
func usageByValues(rows []UsageRow) usageStatements {
	values := " (VALUES " + strings.TrimSuffix(strings.Repeat("(?, ?, ?, ?), ", len(rows)), ", ") + ") v"
	return usageStatements{
		insert: `INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
			SELECT ?1, v.column1, v.column2, v.column3, v.column4, ?2 FROM` + values + " WHERE true",
		// CROSS JOIN keeps the order of SQLite's loops: the values outside, the key inside.
		lookUp: `SELECT u.tenant_id, u.period, u.credits, u.requests
			FROM (SELECT ?1 AS workspace_id, ?2 AS now) run CROSS JOIN` + values + `
			CROSS JOIN tenant_usage u
				ON u.workspace_id = run.workspace_id AND u.tenant_id = v.column1 AND u.period = v.column2`,
		args: func(workspaceID string, now Time) []any {
			args := append(make([]any, 0, 2+4*len(rows)), workspaceID, now)
			for _, r := range rows {
				args = append(args, r.TenantID, r.Period, r.Credits, r.Requests)
			}
			return args
		},
	}
}

// lower compares two amounts exactly. Both are plain decimals, which the caller has checked.
func lower(a, b string) bool {
	x, errX := decimal.NewFromString(a)
	y, errY := decimal.NewFromString(b)
	return errX == nil && errY == nil && x.LessThan(y)
}
