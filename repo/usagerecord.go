package repo

import (
	"context"
	"slices"
	"strings"

	"github.com/shopspring/decimal"
)

// UsageRow is a tenant's total of one month, as the API reported it.
type UsageRow struct {
	TenantID string `db:"tenant_id"`
	Period   string `db:"period"`  // YYYY-MM
	Credits  string `db:"credits"` // plain decimal, without sign, leading zeros, trailing zeros of a fraction
	Requests int64  `db:"requests"`
}

// usageKey is the key of a row within its workspace.
type usageKey struct{ tenantID, period string }

// maxUsageRows is how many rows one statement writes: as many as a transaction on PostgreSQL.
const maxUsageRows = 3200

// The columns of sets of rows: first those that are the same for all rows.
var (
	usageColumns = []column{
		{"workspace_id", ""}, {"synced_at", ""},
		{"tenant_id", "text"}, {"period", "text"}, {"credits", "numeric"}, {"requests", "bigint"},
	}
	usageKeyColumns = []column{{"tenant_id", "text"}, {"period", "text"}}
	rejectColumns   = []column{
		{"run_id", ""}, {"page", "bigint"}, {"place", "bigint"}, {"reason", "text"}, {"raw", "text"},
	}
	usageChangeColumns = []column{
		{"run_id", ""}, {"workspace_id", ""}, {"changed_at", ""},
		{"tenant_id", "text"}, {"period", "text"}, {"old_credits", "numeric"}, {"new_credits", "numeric"},
		{"old_requests", "bigint"}, {"new_requests", "bigint"},
	}
)

// insertSet inserts rows in one statement and returns how many it wrote. common are the values of
// the first columns, which are the same for all rows.
func (t *tx) insertSet(
	ctx context.Context, table string, columns []column, rows [][]any, ending string, common ...any,
) (int64, error) {
	if len(rows) == 0 {
		return 0, nil
	}
	query, args := t.insertion(table, columns, rows, ending, common...)
	return t.execCount(ctx, query, args...)
}

// insertion is the statement of insertSet; ending follows the rows.
func (t *tx) insertion(
	table string, columns []column, rows [][]any, ending string, common ...any,
) (query string, args []any) {
	own := columns[len(common):]
	from, args := t.db.dialect.set(own, rows)
	return "INSERT INTO " + table + " (" + names(columns, "") + ") SELECT " +
		strings.Repeat("?, ", len(common)) + names(own, "v.") + " FROM " + from + " WHERE true" +
		t.db.dialect.inOrder + ending, append(common, args...)
}

// recordUsage writes the rows that are new or have changed, and returns how many, and how many of
// them went down. Unchanged rows are not touched. If a key occurs twice, the later row counts. All
// rows are compared with budgets.
func (t *tx) recordUsage(
	ctx context.Context, run *Run, rows []UsageRow, announce AnnounceThreshold,
) (written, down int64, err error) {
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
		w, d, err := t.recordDistinct(ctx, run, chunk, latest)
		if err == nil {
			err = t.judgeRecorded(ctx, run.WorkspaceID, chunk, latest, announce)
		}
		if err != nil {
			return 0, 0, err
		}
		written, down = written+w, down+d
	}
	return written, down, nil
}

// recordDistinct is recordUsage for the latest rows of some keys, in as few statements as possible:
// one if all are new, two if all are known, four if some have gone down.
func (t *tx) recordDistinct(
	ctx context.Context, run *Run, keys []usageKey, latest map[usageKey]UsageRow,
) (written, down int64, err error) {
	rows, keySet := make([][]any, len(keys)), make([][]any, len(keys))
	for i, key := range keys {
		rows[i], keySet[i] = latest[key].values(), []any{key.tenantID, key.period}
	}
	written, err = t.insertSet(ctx, "tenant_usage", usageColumns, rows, " ON CONFLICT DO NOTHING",
		run.WorkspaceID, t.now)
	if err != nil || written == int64(len(rows)) {
		return written, 0, err
	}
	stored, err := t.storedUsage(ctx, run.WorkspaceID, keySet)
	if err != nil {
		return 0, 0, err
	}
	var changed, lowered [][]any
	for _, before := range stored {
		after := latest[usageKey{before.TenantID, before.Period}]
		if after == before {
			continue
		}
		changed = append(changed, after.values())
		if lower(after.Credits, before.Credits) || after.Requests < before.Requests {
			lowered = append(lowered, []any{after.TenantID, after.Period, before.Credits, after.Credits,
				before.Requests, after.Requests})
		}
	}
	// Totals that went down are kept for people who have to explain a bill.
	if down, err = t.insertSet(ctx, "usage_changes", usageChangeColumns, lowered, "",
		run.ID, run.WorkspaceID, t.now); err != nil {
		return 0, 0, err
	}
	updated, err := t.insertSet(ctx, "tenant_usage", usageColumns, changed,
		` ON CONFLICT (workspace_id, tenant_id, period) DO UPDATE
		SET credits = excluded.credits, requests = excluded.requests, synced_at = excluded.synced_at`,
		run.WorkspaceID, t.now)
	return written + updated, down, err
}

func (r UsageRow) values() []any { return []any{r.TenantID, r.Period, r.Credits, r.Requests} }

// storedUsage reads the stored rows of the keys. CROSS JOIN keeps the order of SQLite's loops: the
// set outside, the key inside.
func (t *tx) storedUsage(ctx context.Context, workspaceID string, keys [][]any) ([]UsageRow, error) {
	from, args := t.db.dialect.set(usageKeyColumns, keys)
	var rows []UsageRow
	err := t.list(ctx, &rows, `SELECT u.tenant_id, u.period, CAST(u.credits AS TEXT) AS credits, u.requests
		FROM `+from+` CROSS JOIN tenant_usage u
		WHERE u.workspace_id = ? AND u.tenant_id = v.tenant_id AND u.period = v.period`,
		append(args, workspaceID)...)
	return rows, err
}

// lower compares two amounts exactly. Both are plain decimals, which the caller has checked.
func lower(a, b string) bool {
	x, errX := decimal.NewFromString(a)
	y, errY := decimal.NewFromString(b)
	return errX == nil && errY == nil && x.LessThan(y)
}
