package repo

import (
	"context"
	"fmt"
)

// session is the transaction of a batch. Each of its statements works on a set of rows: one job
// takes as many statements as a hundred.
//
// On PostgreSQL the statements of one call of run are sent together. They are planned each time,
// because a plan that was made while a table was empty scans the table forever. Settings belong to
// the transaction, not to the connection, which a pooler may give to others.
type session struct {
	db *DB
	on connection // SQLite's; nil on PostgreSQL

	// run runs the statements one after the other until one fails.
	run    func(context.Context, ...*statement) error
	commit func(context.Context) error

	now    Time            // of the clock that leases go by, once the rows were locked
	id     string          // of the transaction, on PostgreSQL
	locked map[string]bool // tenants whose rows another transaction has locked
}

// statement is a statement with question marks for its parameters.
type statement struct {
	text string
	args []any
	into any // the destination of its rows: a pointer to a slice of structs

	untraced bool  // has no span of its own
	expected int64 // how many rows it inserts, unless others were first; 0: it does not matter
	taken    bool  // a unique violation means that the dashboard is another tenant's

	rows   int64 // that it wrote
	failed bool
}

// started is the row with which the transaction's clock is read on PostgreSQL.
type started struct {
	Now   Time     `db:"now"`
	ID    string   `db:"id"`
	Known []string `db:"known"` // those of the tenants that have a row, locked or not
}

// begin begins the transaction and reads the tenants' mappings for a change. Alone means that it
// waits for locked rows.
//
// The clock is read by a separate statement after the locking one: within one statement, rows could
// be read later than the time that they are compared with. Every further read is also separate,
// because a statement does not see what was committed while it waited for a lock.
func (s *session) begin(ctx context.Context, tenants []string, alone bool) (*facts, error) {
	d := s.db.dialect
	var list []*statement
	for _, st := range s.db.settings(alone) {
		list = append(list, &st)
	}
	var rows []Mapping
	if len(tenants) > 0 {
		order := d.lockSet
		if alone {
			order = d.forUpdate
		}
		list = append(list, &statement{text: mappingTable.selects + " WHERE tenant_id" + d.inSet + order,
			args: []any{d.list(tenants)}, into: &rows})
	}
	var clock []started
	if d.clock != "" {
		list = append(list, &statement{text: d.clock, args: []any{d.list(tenants)}, into: &clock})
	}
	if err := s.run(ctx, list...); err != nil {
		if refused, ok := err.(statementError); ok && list[0].failed {
			err = refused.error // no job is at fault
		}
		if list[0].failed {
			err = fmt.Errorf("begin a transaction: %w", err)
		}
		return nil, err
	}
	f := newFacts()
	for _, m := range rows {
		f.mappings[m.TenantID] = m
	}
	for _, c := range clock {
		s.now, s.id, s.locked = c.Now, c.ID, map[string]bool{}
		for _, tenant := range c.Known {
			if _, ours := f.mappings[tenant]; !ours {
				s.locked[tenant] = true
			}
		}
	}
	if s.db.now != nil {
		s.now = at(s.db.now())
	}
	return f, nil
}

// tx is the session for writes that are not decisions; only on SQLite.
func (s *session) tx() *tx { return &tx{db: s.db, on: s.on, now: s.now} }

// readFacts reads the facts that decisions have asked for, with one statement for each kind.
func (s *session) readFacts(ctx context.Context, f *facts, w wanted) error {
	d := s.db.dialect
	var list []*statement
	var sent, all []Attempt
	if len(w.sent) > 0 {
		list = append(list, &statement{text: attemptsSent + d.inSet,
			args: []any{d.list(w.sent)}, into: &sent})
	}
	if len(w.attempts) > 0 {
		list = append(list, &statement{text: attemptTable.selects + " WHERE tenant_id" + d.inSet,
			args: []any{d.list(w.attempts)}, into: &all})
	}
	var owned []owner
	if len(w.owners) > 0 {
		list = append(list, s.selectOwners(w.owners, &owned))
	}
	var succeeded []struct {
		N int `db:"n"`
	}
	if len(w.succeeded) > 0 {
		list = append(list, s.selectSucceeded(w.succeeded, &succeeded))
	}
	if err := s.run(ctx, list...); err != nil {
		return err
	}
	addAttempts(f.sent, w.sent, sent)
	addAttempts(f.attempts, w.attempts, all)
	for _, key := range w.owners {
		f.owners[key] = owner{}
	}
	for _, o := range owned {
		f.owners[o.key()] = o
	}
	for _, key := range w.succeeded {
		f.succeeded[key] = false
	}
	for _, row := range succeeded {
		f.succeeded[w.succeeded[row.N]] = true
	}
	return nil
}

func addAttempts(known map[string][]Attempt, tenants []string, list []Attempt) {
	for _, tenant := range tenants {
		known[tenant] = nil
	}
	for _, a := range list {
		known[a.TenantID] = append(known[a.TenantID], a)
	}
}

// owner is a row of dashboard_owners: once recorded for a tenant, a dashboard belongs to that
// tenant forever.
type owner struct {
	WorkspaceID string `db:"workspace_id"`
	DashboardID string `db:"dashboard_id"`
	TenantID    string `db:"tenant_id"`
	SetAt       Time   `db:"set_at"`      // when it last became the mapping's; zero: never, or not known
	ReplacedAt  Time   `db:"replaced_at"` // when an operator last replaced it; zero: never
}

func (o owner) key() dashboardKey { return dashboardKey{o.WorkspaceID, o.DashboardID} }

// selectOwners reads the owners of the dashboards.
func (s *session) selectOwners(keys []dashboardKey, into *[]owner) *statement {
	text, args := s.db.dialect.ownersOf(keys, ownerTable.columns)
	return &statement{text: text, args: args, into: into}
}

// ownersOf reads columns of the dashboards' owners. CROSS JOIN keeps the order of SQLite's loops:
// the set outside, the key inside.
func (d *dialect) ownersOf(keys []dashboardKey, columns []column) (string, []any) {
	rows := make([][]any, len(keys))
	for i, key := range keys {
		rows[i] = []any{key.WorkspaceID, key.DashboardID}
	}
	from, args := d.set(ownerTable.columns[:2], rows)
	return "SELECT " + names(columns, "o.") + " FROM " + from + ` CROSS JOIN dashboard_owners o
		WHERE o.workspace_id = v.workspace_id AND o.dashboard_id = v.dashboard_id`, args
}

// selectSucceeded reads which of the keys have a success: their positions in the list. A scalar
// subquery runs by index for each row of the set; for EXISTS, PostgreSQL may scan the table.
func (s *session) selectSucceeded(keys []sinceKey, into any) *statement {
	rows := make([][]any, len(keys))
	for i, key := range keys {
		rows[i] = []any{int64(i), key.workspaceID, key.tenantID, key.since.Format(timeFormat)}
	}
	from, args := s.db.dialect.set([]column{
		{"n", "bigint"}, {"workspace_id", "text"}, {"tenant_id", "text"}, {"since", "timestamptz"},
	}, rows)
	return &statement{text: `SELECT n FROM (SELECT v.n AS n, (SELECT 1 FROM provision_attempts a
		WHERE a.workspace_id = v.workspace_id AND a.outcome = 'created' AND a.finished_at > v.since
		AND a.tenant_id <> v.tenant_id LIMIT 1) AS found FROM ` + from + `) s WHERE found = 1`,
		args: args, into: into}
}

// write writes the results of the decisions: at most one INSERT and one UPDATE for each table. It
// begins with rows that other transactions may also insert, in key order, so that transactions that
// wait for each other's keys cannot deadlock. The rows that it updates are locked.
func (s *session) write(ctx context.Context, result *set) error {
	w := writes{dialect: s.db.dialect}
	w.addMappings(result)
	w.addClaims(result)
	w.addUpdates(result)
	w.addAttempts(result)
	w.addOutbox(result)
	w.addSent(result)
	w.addAudit(result)
	if len(w.list) == 0 {
		return nil
	}
	err := s.run(ctx, w.list...)
	for _, st := range w.list {
		switch {
		case st.failed && st.taken && s.db.dialect.isUnique(err) && result.facts.newDashboards:
			return errConflict // decided again, with the owners read
		case st.failed && st.taken && s.db.dialect.isUnique(err):
			// Its dashboard was recorded by a replica of a version that does not know
			// dashboard_owners.
			return statementError{ErrTaken}
		case st.failed:
			return err
		case st.expected > 0 && st.rows != st.expected:
			return errConflict
		}
	}
	return err
}
