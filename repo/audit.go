package repo

import (
	"context"
	"strings"
	"time"
	"unicode/utf8"
)

// AuditEntry is a row of audit_log: an action of a person or a REST caller. Rows are never changed,
// and are deleted by Prune.
type AuditEntry struct {
	ID       int64  `db:"id" json:"id"`
	At       Time   `db:"at" json:"at"`
	Actor    string `db:"actor" json:"actor"`
	Via      string `db:"via" json:"via"` // rest, console or cli
	Action   string `db:"action" json:"action"`
	TenantID string `db:"tenant_id" json:"tenant_id,omitempty"` // empty: it is about no tenant
	EventID  string `db:"event_id" json:"event_id,omitempty"`   // of the event that was published for it
	Detail   string `db:"detail" json:"detail,omitempty"`
}

// maxAuditText limits each text of an entry, in characters. Reasons and errors can be long.
const maxAuditText = 1000

// row is the entry as it is written: with a time, and with text that both databases accept.
func (e AuditEntry) row(now Time) AuditEntry {
	e.ID, e.At = 0, now
	for _, text := range []*string{&e.Actor, &e.Action, &e.TenantID, &e.EventID, &e.Detail} {
		*text = strings.ToValidUTF8(strings.ReplaceAll(*text, "\x00", ""), "\uFFFD")
		if utf8.RuneCountInString(*text) > maxAuditText {
			*text = string([]rune(*text)[:maxAuditText-1]) + "…"
		}
	}
	return e
}

// Audited is a view of the database in which each write also records the entry, in its own
// transaction: both are committed, or neither is.
//
//	m, err := db.Audited(entry).Recreate(ctx, tenantID, announce)
func (db *DB) Audited(e AuditEntry) *DB { return &DB{db.core, db.read, &e} }

// Audit records entries of actions that are not transactions of this database.
func (db *DB) Audit(ctx context.Context, list ...AuditEntry) error {
	return db.decide(ctx, &job{urgent: true, audit: list}, "write the audit log")
}

// audited is do with the view's entry. do may complete the entry: see tx.audit.
func (db *DB) audited(do txFunc) txFunc {
	if db.audit == nil {
		return do
	}
	return func(ctx context.Context, t *tx) error {
		e := *db.audit
		t.audit = &e
		if err := do(ctx, t); err != nil {
			return err
		}
		e = e.row(t.now)
		return t.exec(ctx, `INSERT INTO audit_log (at, actor, via, action, tenant_id, event_id, detail)
			VALUES (?, ?, ?, ?, ?, ?, ?)`, e.At, e.Actor, e.Via, e.Action, e.TenantID, e.EventID, e.Detail)
	}
}

// AuditFilter selects entries of the audit log. An empty field selects everything.
type AuditFilter struct {
	TenantID string
	Since    time.Time
	Before   int64 // id of an entry: only those older than it
}

// AuditLog reads the entries, newest first, at most limit.
func (db *DB) AuditLog(ctx context.Context, f AuditFilter, limit int) ([]AuditEntry, error) {
	query, args := f.query(limit)
	return list[AuditEntry](ctx, db.read, "read the audit log", query, args...)
}

// query reads an index in order, from the beginning of the list.
func (f AuditFilter) query(limit int) (query string, args []any) {
	query = auditTable.selects + " WHERE at >= ?"
	args = []any{at(f.Since)}
	if f.Since.IsZero() {
		args = []any{at(time.Unix(0, 0))}
	}
	if f.TenantID != "" {
		query, args = query+" AND tenant_id = ?", append(args, f.TenantID)
	}
	if f.Before != 0 {
		const before = "(SELECT at FROM audit_log WHERE id = ?)"
		query += " AND at <= " + before + " AND (at < " + before + " OR id < ?)"
		args = append(args, f.Before, f.Before, f.Before)
	}
	return query + " ORDER BY at DESC, id DESC LIMIT ?", append(args, limit)
}
