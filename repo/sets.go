package repo

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// table is a table whose rows are structs. Its SQL is generated from the fields: declare a new
// field there and in a migration.
type table struct {
	name     string
	columns  []column
	nullable []bool // by column: NULL in the table for what is empty in Go
	selects  string // SELECT … FROM the table
}

// column is a column of a set and its type on PostgreSQL.
type column struct{ name, kind string }

var (
	mappingTable = newTable[Mapping]("tenant_dashboards", "dashboard_id")
	attemptTable = newTable[Attempt]("provision_attempts", "dashboard_id", "http_status", "error")
	outboxTable  = newTable[OutboxRow]("outbox")
	ownerTable   = newTable[owner]("dashboard_owners")
	auditTable   = newTable[AuditEntry]("audit_log")

	// An expression, so that the planner prefers the index of tenants to one of outcomes.
	attemptsSent = attemptTable.selects + " WHERE outcome || '' = 'sent' AND tenant_id"
)

func newTable[T any](name string, nullable ...string) table {
	t := table{name: name}
	var read []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		c := column{f.Tag.Get("db"), "text"}
		if c.name == "" {
			continue // a field of Time
		}
		empty := "''"
		switch f.Type.Kind() {
		case reflect.Int, reflect.Int64:
			c.kind, empty = "bigint", "0"
		case reflect.Struct:
			c.kind = "timestamptz"
		}
		null := slices.Contains(nullable, c.name)
		if null {
			read = append(read, "COALESCE("+c.name+", "+empty+") AS "+c.name)
		} else {
			read = append(read, c.name)
		}
		t.columns, t.nullable = append(t.columns, c), append(t.nullable, null)
	}
	t.selects = "SELECT " + strings.Join(read, ", ") + " FROM " + name
	return t
}

// rows returns the columns that keep selects, and the rows' values in them, as the database stores
// them. The rows are structs.
func (t *table) rows(list []reflect.Value, keep func(i int) bool) (columns []column, rows [][]any) {
	var places []int
	for i, c := range t.columns {
		if keep(i) {
			columns, places = append(columns, c), append(places, i)
		}
	}
	for _, row := range list {
		values := make([]any, len(places))
		for n, i := range places {
			if f := row.Field(i); !t.nullable[i] || !f.IsZero() {
				values[n] = value(f)
			}
		}
		rows = append(rows, values)
	}
	return columns, rows
}

// value is a field as the database stores it: a string, an int64 or nil.
func value(f reflect.Value) any {
	switch f.Kind() {
	case reflect.String:
		return f.String()
	case reflect.Slice:
		return string(f.Bytes())
	case reflect.Struct:
		if f.IsZero() {
			return nil
		}
		return f.Interface().(Time).Format(timeFormat)
	default:
		return f.Int()
	}
}

func names(columns []column, prefix string) string {
	var list []string
	for _, c := range columns {
		list = append(list, prefix+c.name)
	}
	return strings.Join(list, ", ")
}

// writes are the statements that write a batch.
type writes struct {
	dialect *dialect
	list    []*statement
}

// withoutDefault are the columns whose default differs from Go's zero value.
var withoutDefault = []string{
	"workspace_id", "tenant_id", "dashboard_id", "mark", "event_id", "type", "data",
}

// insert adds an INSERT of the rows, in order. Columns that are empty in all rows are left out,
// because empty is their default.
func (w *writes) insert(t *table, list []reflect.Value, onConflict string) *statement {
	columns, rows := t.rows(list, func(i int) bool {
		return slices.Contains(withoutDefault, t.columns[i].name) ||
			slices.ContainsFunc(list, func(row reflect.Value) bool { return !row.Field(i).IsZero() })
	})
	from, args := w.dialect.set(columns, rows)
	st := &statement{text: "INSERT INTO " + t.name + " (" + names(columns, "") + ") SELECT " +
		names(columns, "v.") + " FROM " + from + " WHERE true" + w.dialect.inOrder + onConflict, args: args}
	w.list = append(w.list, st)
	return st
}

// insertNew is insert for rows that another transaction may insert at the same time. If it does,
// this transaction has to start over.
func (w *writes) insertNew(t *table, list []reflect.Value, key string) *statement {
	st := w.insert(t, list, " ON CONFLICT ("+key+") DO NOTHING")
	st.expected = int64(len(list))
	return st
}

// update adds an UPDATE of the rows that the key, their first column, names. The other columns are
// the ones to change, if changes says so or is empty.
func (w *writes) update(t *table, columns []column, rows [][]any, changes string) *statement {
	if changes == "" {
		changes = assignments(columns[1:])
	}
	from, args := w.dialect.set(columns, rows)
	key := columns[0].name
	st := &statement{text: "UPDATE " + t.name + " SET " + changes + " FROM " + from +
		" WHERE " + t.name + "." + key + " = v." + key, args: args}
	w.list = append(w.list, st)
	return st
}

func assignments(columns []column) string {
	var list []string
	for _, c := range columns {
		list = append(list, c.name+" = v."+c.name)
	}
	return strings.Join(list, ", ")
}

// inOrder lists the tenants of the set in the order of their ids.
func (s *set) inOrder() []*tenant {
	return slices.SortedFunc(maps.Values(s.tenants), func(a, b *tenant) int {
		return cmp.Compare(a.TenantID, b.TenantID)
	})
}

// addMappings adds the rows of new tenants.
func (w *writes) addMappings(s *set) {
	var list []reflect.Value
	for _, t := range s.inOrder() {
		if t.made && !t.stored {
			list = append(list, reflect.ValueOf(t.Mapping))
		}
	}
	if len(list) > 0 {
		w.insertNew(&mappingTable, list, "tenant_id").taken = true
	}
}

// addClaims adds the dashboards that became a tenant's, and changed times of dashboards that
// already were. A dashboard that belongs to another tenant by now is not written.
func (w *writes) addClaims(s *set) {
	keys := slices.SortedFunc(maps.Keys(s.claims), func(a, b dashboardKey) int {
		return cmp.Or(cmp.Compare(a.WorkspaceID, b.WorkspaceID), cmp.Compare(a.DashboardID, b.DashboardID))
	})
	var list []reflect.Value
	for _, key := range keys {
		list = append(list, reflect.ValueOf(s.claims[key]))
	}
	if len(list) > 0 {
		st := w.insert(&ownerTable, list, ` ON CONFLICT (workspace_id, dashboard_id) DO UPDATE SET
			set_at = COALESCE(excluded.set_at, dashboard_owners.set_at),
			replaced_at = COALESCE(excluded.replaced_at, dashboard_owners.replaced_at)
			WHERE dashboard_owners.tenant_id = excluded.tenant_id`)
		st.expected = int64(len(list))
	}
}

// addUpdates adds the changed mappings, with the columns that changed in any of them: each written
// column costs an update of its indexes.
func (w *writes) addUpdates(s *set) {
	var list, before []reflect.Value
	for _, t := range s.inOrder() {
		if stored := s.facts.mappings[t.TenantID]; t.stored && t.Mapping != stored {
			list, before = append(list, reflect.ValueOf(t.Mapping)), append(before, reflect.ValueOf(stored))
		}
	}
	if len(list) == 0 {
		return
	}
	columns, rows := mappingTable.rows(list, func(i int) bool {
		for n, row := range list {
			if i == 0 || !row.Field(i).Equal(before[n].Field(i)) {
				return true
			}
		}
		return false
	})
	w.update(&mappingTable, columns, rows, "").taken = true
}

// resultColumns are the columns of an attempt that can change: its key, its outcome and the details
// of that.
var resultColumns = []string{"id", "outcome", "dashboard_id", "http_status", "error", "finished_at"}

// addAttempts adds new and changed attempts. Whether a person has resolved one is written only if
// that was decided, because it may have changed since the claim.
func (w *writes) addAttempts(s *set) {
	var fresh, changed []reflect.Value
	var resolved []any // whether each changed one is
	some := false
	for _, t := range s.inOrder() {
		for _, a := range t.attempts {
			switch {
			case !a.stored:
				fresh = append(fresh, reflect.ValueOf(a.Attempt))
			case a.resolved:
				some, resolved = true, append(resolved, int64(1))
				changed = append(changed, reflect.ValueOf(a.Attempt))
			case a.changed:
				changed, resolved = append(changed, reflect.ValueOf(a.Attempt)), append(resolved, int64(0))
			}
		}
	}
	if len(fresh) > 0 {
		w.insert(&attemptTable, fresh, "")
	}
	if len(changed) == 0 {
		return
	}
	columns, rows := attemptTable.rows(changed, func(i int) bool {
		name := attemptTable.columns[i].name
		return slices.Contains(resultColumns, name) || some && name == "settled_at"
	})
	if !some {
		w.update(&attemptTable, columns, rows, "")
		return
	}
	last := len(columns) - 1 // settled_at
	changes := assignments(columns[1:last]) +
		", settled_at = CASE v.resolved WHEN 1 THEN v.settled_at ELSE provision_attempts.settled_at END"
	for i := range rows {
		rows[i] = append(rows[i], resolved[i])
	}
	w.update(&attemptTable, append(columns, column{"resolved", "bigint"}), rows, changes)
}

// addOutbox adds the events out, in the order of the decisions: their ids, which the database gives,
// are the order in which they leave.
func (w *writes) addOutbox(s *set) {
	var list []reflect.Value
	for _, o := range s.outbox {
		list = append(list, reflect.ValueOf(o))
	}
	if len(list) > 0 {
		w.insert(&outboxTable, list, "")
	}
}

// addSent marks the events out that were published.
func (w *writes) addSent(s *set) {
	if len(s.sent) == 0 {
		return
	}
	slices.Sort(s.sent) // the order in which rows are locked
	rows := make([][]any, len(s.sent))
	for i, id := range s.sent {
		rows[i] = []any{id, s.now.Format(timeFormat)}
	}
	w.update(&outboxTable, []column{{"id", "bigint"}, {"sent_at", "timestamptz"}}, rows, "")
}

// addAudit adds the entries of the audit log.
func (w *writes) addAudit(s *set) {
	var list []reflect.Value
	for _, e := range s.audit {
		list = append(list, reflect.ValueOf(e))
	}
	if len(list) > 0 {
		w.insert(&auditTable, list, "")
	}
}
