package repo

import (
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shopspring/decimal"
)

// EveryTenant is the tenant id of the default budget, for tenants without their own.
const EveryTenant = "*"

// Budget is the number of credits that a tenant is expected to use per month, in each workspace.
// When usage reaches a threshold, this is announced once per month, in the transaction that records
// the usage or sets the budget.
type Budget struct {
	TenantID   string   `db:"tenant_id" json:"tenant_id"`
	Credits    string   `db:"credits" json:"credits"` // plain decimal; 0: no budget
	Thresholds Percents `db:"thresholds" json:"thresholds"`
}

// Percents are thresholds, ascending. The database has them separated by commas.
type Percents []int

const (
	maxThresholds = 10
	maxPercent    = 1000
)

// ParsePercents reads thresholds separated by commas, in any order.
func ParsePercents(text string) (Percents, error) {
	var list Percents
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("invalid thresholds %q: use percentages such as 80,100", text)
		}
		list = append(list, n)
	}
	return list, nil
}

func (p Percents) String() string {
	texts := make([]string, len(p))
	for i, n := range p {
		texts[i] = strconv.Itoa(n)
	}
	return strings.Join(texts, ",")
}

// Value implements driver.Valuer.
func (p Percents) Value() (driver.Value, error) { return p.String(), nil }

// Scan implements sql.Scanner.
func (p *Percents) Scan(v any) (err error) {
	text, ok := v.(string)
	if !ok {
		return fmt.Errorf("read thresholds: unexpected %T", v)
	}
	*p, err = ParsePercents(text)
	return err
}

// isCredits are the amounts that both databases store exactly, as for usage.
var isCredits = regexp.MustCompile(`^[0-9]{1,20}(\.[0-9]{1,12})?$`)

// NewBudget checks a budget and normalizes it. The caller has checked the tenant id.
func NewBudget(tenantID, credits string, thresholds Percents) (Budget, error) {
	if !isCredits.MatchString(credits) {
		return Budget{}, fmt.Errorf("invalid credits %.40q: use a decimal number such as 1000 or 12.5, "+
			"with at most 20 digits before and 12 after the point", credits)
	}
	amount, err := decimal.NewFromString(credits)
	if err != nil {
		return Budget{}, fmt.Errorf("invalid credits %q: %w", credits, err)
	}
	thresholds = slices.Clone(thresholds)
	slices.Sort(thresholds)
	thresholds = slices.Compact(thresholds)
	if n := len(thresholds); n == 0 || n > maxThresholds || thresholds[0] < 1 ||
		thresholds[n-1] > maxPercent {
		return Budget{}, fmt.Errorf("invalid thresholds: use 1 to %d percentages from 1 to %d",
			maxThresholds, maxPercent)
	}
	return Budget{tenantID, amount.String(), thresholds}, nil
}

const selectBudgets = "SELECT tenant_id, CAST(credits AS TEXT) AS credits, thresholds FROM usage_budgets"

// Budget reads the budget that was set for a tenant, or for EveryTenant; ErrNotFound if there is
// none.
func (db *DB) Budget(ctx context.Context, tenantID string) (b Budget, err error) {
	if err := db.read.get(ctx, &b, selectBudgets+" WHERE tenant_id = ?", tenantID); err != nil {
		return b, fmt.Errorf("read the budget of tenant %q: %w", tenantID, err)
	}
	return b, nil
}

// Budgets lists the budgets that were set, by tenant id.
func (db *DB) Budgets(ctx context.Context) ([]Budget, error) {
	return list[Budget](ctx, db.read, "list budgets", selectBudgets+" ORDER BY tenant_id")
}

// SetBudget sets the budget of a tenant or of EveryTenant, and announces the thresholds that usage
// of the current and the previous month has reached. If the budget was raised, thresholds that are
// no longer reached can be reached again.
func (db *DB) SetBudget(ctx context.Context, b Budget, announce AnnounceThreshold) error {
	return db.changeBudget(ctx, b.TenantID, announce, func(ctx context.Context, t *tx) error {
		return t.exec(ctx, `INSERT INTO usage_budgets (tenant_id, credits, thresholds) VALUES (?, ?, ?)
			ON CONFLICT (tenant_id) DO UPDATE
			SET credits = excluded.credits, thresholds = excluded.thresholds`,
			b.TenantID, b.Credits, b.Thresholds)
	})
}

// UnsetBudget removes the budget of a tenant, so that the one of EveryTenant applies; ErrNotFound
// if the tenant has no budget of its own.
func (db *DB) UnsetBudget(ctx context.Context, tenantID string, announce AnnounceThreshold) error {
	return db.changeBudget(ctx, tenantID, announce, func(ctx context.Context, t *tx) error {
		deleted, err := t.execCount(ctx, "DELETE FROM usage_budgets WHERE tenant_id = ?", tenantID)
		if err == nil && deleted == 0 {
			err = ErrNotFound
		}
		return err
	})
}

// changeBudget changes the budget of a tenant and judges the usage that it applies to.
func (db *DB) changeBudget(
	ctx context.Context, tenantID string, announce AnnounceThreshold, change txFunc,
) error {
	return db.update(ctx, func(ctx context.Context, t *tx) error {
		// Blocks recording of usage, which would be judged by the old budget.
		for _, statement := range []string{t.db.dialect.unlimited, t.db.dialect.lockBudgets} {
			if statement == "" {
				continue
			}
			if err := t.exec(ctx, statement); err != nil {
				return err
			}
		}
		before, err := t.budgets(ctx, []string{tenantID})
		if err != nil {
			return err
		}
		if err := change(ctx, t); err != nil {
			return err
		}
		after, err := t.budgets(ctx, []string{tenantID})
		if err != nil {
			return err
		}
		return t.judgeAll(ctx, tenantID, before.of(tenantID), after.of(tenantID), announce)
	}, "change the budget of tenant %q", tenantID)
}

// limits are budgets by tenant.
type limits map[string]*limit

// limit is a budget with its amounts; nil: there is none.
type limit struct {
	budget     decimal.Decimal
	credits    string
	thresholds Percents
	amounts    []decimal.Decimal // of the thresholds
	nearly     float64           // a little less than the first amount
}

// of returns the limit of a tenant; nil when it has none.
func (l limits) of(tenantID string) *limit {
	own, ok := l[tenantID]
	if !ok {
		own = l[EveryTenant]
	}
	if own == nil || own.budget.IsZero() {
		return nil
	}
	return own
}

func (l *limit) amount(percent int) decimal.Decimal {
	return l.budget.Mul(decimal.New(int64(percent), -2))
}

// budgets reads the budgets of tenants, with that of EveryTenant.
func (t *tx) budgets(ctx context.Context, tenants []string) (limits, error) {
	var rows []Budget
	err := t.list(ctx, &rows, selectBudgets+" WHERE tenant_id"+t.db.dialect.inSet,
		t.db.dialect.list(append(tenants[:len(tenants):len(tenants)], EveryTenant)))
	if err != nil {
		return nil, err
	}
	found := make(limits, len(rows))
	for _, b := range rows {
		l := &limit{credits: b.Credits, thresholds: b.Thresholds}
		if l.budget, err = decimal.NewFromString(b.Credits); err != nil {
			return nil, fmt.Errorf("the budget of tenant %q: %w", b.TenantID, err)
		}
		for _, percent := range b.Thresholds {
			l.amounts = append(l.amounts, l.amount(percent))
		}
		l.nearly = l.amounts[0].InexactFloat64() * 0.999999
		found[b.TenantID] = l
	}
	return found, nil
}

// Threshold is a part of a tenant's budget that its usage of a month has reached.
type Threshold struct {
	WorkspaceID, TenantID, Period string
	Percent                       int
	Credits, Budget               string // plain decimals
}

// AnnounceThreshold makes the event of a threshold. Like Announce, it is called within the
// transaction.
type AnnounceThreshold func(Threshold) (OutboxEvent, error)

// spent is a row of tenant_usage to be judged.
type spent struct {
	WorkspaceID string `db:"workspace_id"`
	TenantID    string `db:"tenant_id"`
	Period      string `db:"period"`
	Credits     string `db:"credits"`
}

// judgedPeriods are the months whose usage is compared with budgets.
func judgedPeriods(now Time) (previous, current string) {
	const form = "2006-01"
	return time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC).Format(form), now.Format(form)
}

// judgeRecorded judges the recorded rows of some keys, whether or not they changed.
func (t *tx) judgeRecorded(
	ctx context.Context, workspaceID string, keys []usageKey, latest map[usageKey]UsageRow,
	announce AnnounceThreshold,
) error {
	previous, current := judgedPeriods(t.now)
	var judged []spent
	var tenants []string
	for _, k := range keys {
		if k.period == current || k.period == previous {
			judged = append(judged, spent{workspaceID, k.tenantID, k.period, latest[k].Credits})
			tenants = append(tenants, k.tenantID)
		}
	}
	if len(judged) == 0 {
		return nil
	}
	if statement := t.db.dialect.shareBudgets; statement != "" {
		if err := t.exec(ctx, statement); err != nil {
			return err
		}
	}
	budgets, err := t.budgets(ctx, tenants)
	if err != nil || len(budgets) == 0 {
		return err
	}
	return t.judge(ctx, judged, budgets.of, announce)
}

// mark is a row of usage_marks.
type mark struct {
	Period      string `db:"period"`
	WorkspaceID string `db:"workspace_id"`
	TenantID    string `db:"tenant_id"`
	Percent     int    `db:"percent"`
}

var markColumns = []column{
	{"period", "text"}, {"workspace_id", "text"}, {"tenant_id", "text"}, {"percent", "bigint"},
	{"budget", "numeric"},
}

func (m mark) values() []any { return []any{m.Period, m.WorkspaceID, m.TenantID, int64(m.Percent)} }

// judge marks the thresholds that rows have reached, and enqueues an event for each new mark.
func (t *tx) judge(
	ctx context.Context, rows []spent, limitOf func(tenantID string) *limit, announce AnnounceThreshold,
) error {
	var reached []Threshold
	for _, r := range rows {
		l := limitOf(r.TenantID)
		if l == nil {
			continue
		}
		// Binary floating point is used only to leave out rows that are far from the first threshold.
		if roughly, err := strconv.ParseFloat(r.Credits, 64); err == nil && roughly < l.nearly {
			continue
		}
		credits, err := decimal.NewFromString(r.Credits)
		if err != nil {
			return fmt.Errorf("the credits of tenant %q: %w", r.TenantID, err)
		}
		for i, amount := range l.amounts {
			if credits.LessThan(amount) {
				break
			}
			reached = append(reached,
				Threshold{r.WorkspaceID, r.TenantID, r.Period, l.thresholds[i], r.Credits, l.credits})
		}
	}
	// In key order, so that transactions cannot deadlock on each other's marks.
	slices.SortFunc(reached, func(a, b Threshold) int {
		return cmp.Or(cmp.Compare(a.Period, b.Period), cmp.Compare(a.WorkspaceID, b.WorkspaceID),
			cmp.Compare(a.TenantID, b.TenantID), cmp.Compare(a.Percent, b.Percent))
	})
	for chunk := range slices.Chunk(reached, maxUsageRows) {
		if err := t.mark(ctx, chunk, announce); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) mark(ctx context.Context, reached []Threshold, announce AnnounceThreshold) error {
	rows := make([][]any, len(reached))
	for i, r := range reached {
		rows[i] = append(r.mark().values(), r.Budget)
	}
	var inserted []mark
	query, args := t.insertion("usage_marks", markColumns, rows,
		" ON CONFLICT DO NOTHING RETURNING period, workspace_id, tenant_id, percent")
	if err := t.list(ctx, &inserted, query, args...); err != nil || len(inserted) == 0 {
		return err
	}
	isNew := make(map[mark]bool, len(inserted))
	for _, m := range inserted {
		isNew[m] = true
	}
	var out [][]any
	for _, r := range reached {
		if !isNew[r.mark()] {
			continue
		}
		e, err := announce(r)
		if err != nil {
			return err
		}
		out = append(out, []any{e.EventID, r.TenantID, e.Type, string(e.Data)})
	}
	_, err := t.insertSet(ctx, "outbox", announcedColumns, out, "", t.now)
	return err
}

var announcedColumns = []column{
	{"created_at", ""}, {"event_id", "text"}, {"tenant_id", "text"}, {"type", "text"}, {"data", "text"},
}

func (r Threshold) mark() mark { return mark{r.Period, r.WorkspaceID, r.TenantID, r.Percent} }

// judgeAll judges all usage that a changed budget applies to: that of one tenant, or of every
// tenant without a budget of its own.
func (t *tx) judgeAll(
	ctx context.Context, tenantID string, before, after *limit, announce AnnounceThreshold,
) error {
	if after == nil {
		return nil
	}
	previous, current := judgedPeriods(t.now)
	// Binary floating point is used only to leave out rows that are far from the first threshold.
	where := ` WHERE u.period IN (?, ?) AND (CAST(u.credits AS DOUBLE PRECISION) >= ?
		OR EXISTS (SELECT 1 FROM usage_marks m WHERE m.period = u.period
			AND m.workspace_id = u.workspace_id AND m.tenant_id = u.tenant_id))`
	args := []any{previous, current, after.nearly}
	if tenantID == EveryTenant {
		where += ` AND (u.tenant_id = ? OR NOT EXISTS
			(SELECT 1 FROM usage_budgets b WHERE b.tenant_id = u.tenant_id))`
	} else {
		where += " AND u.tenant_id = ? AND u.workspace_id IN (" + usedWorkspaces + ")"
	}
	args = append(args, tenantID)
	query := `SELECT u.workspace_id, u.tenant_id, u.period, CAST(u.credits AS TEXT) AS credits
		FROM tenant_usage u` + where + ` AND (u.workspace_id, u.tenant_id, u.period) > (?, ?, ?)
		ORDER BY u.workspace_id, u.tenant_id, u.period LIMIT ?`
	for last := (spent{}); ; {
		var rows []spent
		err := t.list(ctx, &rows, query, append(args[:len(args):len(args)],
			last.WorkspaceID, last.TenantID, last.Period, maxUsageRows)...)
		if err != nil || len(rows) == 0 {
			return err
		}
		last = rows[len(rows)-1]
		if err := t.clearMarks(ctx, rows, before, after); err != nil {
			return err
		}
		if err := t.judge(ctx, rows, func(string) *limit { return after }, announce); err != nil {
			return err
		}
	}
}

// clearMarks deletes the marks of thresholds that are no longer reached after a budget was raised,
// so that they can be reached again. A mark from before the budget was removed is compared with the
// budget of that time.
func (t *tx) clearMarks(ctx context.Context, rows []spent, before, after *limit) error {
	credits := make(map[mark]decimal.Decimal, len(rows)) // by the key without percent
	keys := make([][]any, len(rows))
	for i, r := range rows {
		keys[i] = []any{r.Period, r.WorkspaceID, r.TenantID}
		amount, err := decimal.NewFromString(r.Credits)
		if err != nil {
			return fmt.Errorf("the credits of tenant %q: %w", r.TenantID, err)
		}
		credits[mark{r.Period, r.WorkspaceID, r.TenantID, 0}] = amount
	}
	from, args := t.db.dialect.set(markColumns[:3], keys)
	var marks []struct {
		mark
		Budget decimal.Decimal `db:"budget"`
	}
	err := t.list(ctx, &marks, `SELECT m.period, m.workspace_id, m.tenant_id, m.percent,
		CAST(m.budget AS TEXT) AS budget FROM `+from+` CROSS JOIN usage_marks m WHERE m.period = v.period
		AND m.workspace_id = v.workspace_id AND m.tenant_id = v.tenant_id`, args...)
	if err != nil {
		return err
	}
	var left [][]any
	for _, m := range marks {
		budget := m.Budget
		if before != nil {
			budget = before.budget
		}
		key := m.mark
		key.Percent = 0
		if after.budget.GreaterThan(budget) && credits[key].LessThan(after.amount(m.Percent)) {
			left = append(left, m.values())
		}
	}
	if len(left) == 0 {
		return nil
	}
	from, args = t.db.dialect.set(markColumns[:4], left)
	return t.exec(ctx, `DELETE FROM usage_marks WHERE (period, workspace_id, tenant_id, percent) IN
		(SELECT v.period, v.workspace_id, v.tenant_id, v.percent FROM `+from+")", args...)
}

// budgetOf is the budget of the tenant of u, as text; empty if there is none.
const budgetOf = `COALESCE(NULLIF(COALESCE(
	(SELECT CAST(b.credits AS TEXT) FROM usage_budgets b WHERE b.tenant_id = u.tenant_id),
	(SELECT CAST(b.credits AS TEXT) FROM usage_budgets b WHERE b.tenant_id = '*')), '0'), '')`

// BudgetPercent is the used share of the budget, rounded down, so that it equals a threshold only
// when that is reached; 0 without a budget.
func (u Usage) BudgetPercent() int64 {
	credits, errCredits := decimal.NewFromString(u.Credits)
	budget, errBudget := decimal.NewFromString(u.Budget)
	if errCredits != nil || errBudget != nil || !budget.IsPositive() {
		return 0
	}
	return credits.Shift(2).Div(budget).IntPart()
}

// OverBudget lists the rows of a month whose tenants have used at least percent of their budget, the
// largest share first, at most limit. It reads all rows.
func (db *DB) OverBudget(ctx context.Context, period string, percent, limit int) ([]Usage, error) {
	return list[Usage](ctx, db.read, "read who is over budget in "+period, `SELECT * FROM
		(SELECT u.tenant_id, u.workspace_id, u.period, CAST(u.credits AS TEXT) AS credits, u.requests,
			u.synced_at, `+budgetOf+` AS budget FROM tenant_usage u WHERE u.period = ?) s
		WHERE CAST(credits AS DOUBLE PRECISION) * 100 >= ? * CAST(NULLIF(budget, '') AS DOUBLE PRECISION)
		ORDER BY CAST(credits AS DOUBLE PRECISION) / CAST(NULLIF(budget, '') AS DOUBLE PRECISION) DESC,
			tenant_id
		LIMIT ?`, period, percent, limit)
}
