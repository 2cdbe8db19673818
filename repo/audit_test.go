package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// entry is one of an operator's, who resolves a tenant.
var entry = AuditEntry{Actor: "console:anna", Via: "console", Action: "resolve", TenantID: "a", Detail: "x"}

func auditLog(t *testing.T, db *DB, f AuditFilter) []AuditEntry {
	t.Helper()
	list, err := db.AuditLog(ctx, f, 1000)
	must(t, err)
	return list
}

func TestAuditEntryIsCommittedWithItsWrite(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		held(t, db, "a")
		unknown := held(t, db, "b").Attempt.ID
		_, err := db.Audited(entry).Resolve(ctx, "a", "found", announceState)
		must(t, err)
		by := entry
		by.Action, by.TenantID = "resolve-attempt", ""
		must(t, db.Audited(by).ResolveAttempt(ctx, unknown))
		must(t, db.Audit(ctx, AuditEntry{Actor: "cli:root", Via: "cli", Action: "sync", EventID: "e"}))

		want := []AuditEntry{
			{Actor: "cli:root", Via: "cli", Action: "sync", EventID: "e"},
			{Actor: "console:anna", Via: "console", Action: "resolve-attempt", TenantID: "b", Detail: "x"},
			entry,
		}
		got := auditLog(t, db, AuditFilter{})
		for i := range got {
			if got[i].ID == 0 || !got[i].At.Equal(db.now()) {
				t.Errorf("id %d, at %s", got[i].ID, got[i].At)
			}
			got[i].ID, got[i].At = 0, Time{}
		}
		same(t, "the audit log", got, want)
	})
}

// Both kinds of writes: a decision, and statements of its own.
func TestAuditEntryIsNotWrittenWithoutItsWrite(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		held(t, db, "a")
		id := held(t, db, "b").Attempt.ID
		audited := db.Audited(entry)
		failing := errors.New("no event")
		_, err := audited.Resolve(ctx, "a", "found", func(Mapping) (OutboxEvent, error) {
			return OutboxEvent{}, failing
		})
		if !errors.Is(err, failing) {
			t.Error(err)
		}
		if _, err := audited.Resolve(ctx, "nobody", "found", announceState); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if err := audited.ResolveAttempt(ctx, "nothing"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		same(t, "after writes that failed", count(t, db, "audit_log"), 0)

		// and no write without its entry, which PostgreSQL refuses because of its via
		if db.path != "" {
			must(t, db.transact(ctx, func(ctx context.Context, x *tx) error {
				return x.exec(ctx, `CREATE TRIGGER refuse BEFORE INSERT ON audit_log
					BEGIN SELECT RAISE(ABORT, 'refused'); END`)
			}))
		}
		by := entry
		by.Via = "somewhere else"
		if err := db.Audited(by).ResolveAttempt(ctx, id); err == nil {
			t.Error("the entry was accepted")
		}
		if _, err := db.Audited(by).Recreate(ctx, "a", announceState); err == nil {
			t.Error("the entry was accepted")
		}
		if m, err := db.Mapping(ctx, "a"); err != nil || m.Stage != Held {
			t.Error(m.Stage, err)
		}
		same(t, "possible orphans", uncertain(t, db), []string{"a", "b"})
	})
}

func TestAuditLogIsFilteredAndPagedNewestFirst(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		start := db.now()
		for i := range 6 { // two at each time
			e := AuditEntry{Actor: "a", Via: "cli", Action: fmt.Sprint(i), TenantID: fmt.Sprint("t", i%3)}
			must(t, db.Audit(ctx, e))
			if i%2 == 1 {
				pass(db, time.Minute)
			}
		}
		actions := func(list []AuditEntry) string {
			var text []string
			for _, e := range list {
				text = append(text, e.Action)
			}
			return strings.Join(text, " ")
		}
		for _, test := range []struct {
			f    AuditFilter
			want string
		}{
			{AuditFilter{}, "5 4 3 2 1 0"},
			{AuditFilter{TenantID: "t1"}, "4 1"},
			{AuditFilter{Since: start.Add(time.Minute)}, "5 4 3 2"},
			{AuditFilter{TenantID: "t1", Since: start.Add(time.Second)}, "4"},
			{AuditFilter{TenantID: "t%"}, ""},
			{AuditFilter{Before: 1 << 40}, ""},
		} {
			same(t, fmt.Sprintf("%+v", test.f), actions(auditLog(t, db, test.f)), test.want)
			var pages []AuditEntry // one by one is the same
			for f := test.f; ; f.Before = pages[len(pages)-1].ID {
				page, err := db.AuditLog(ctx, f, 1)
				must(t, err)
				if len(page) == 0 {
					break
				}
				pages = append(pages, page...)
			}
			same(t, fmt.Sprintf("%+v, one by one", test.f), actions(pages), test.want)
		}
	})
}

// What strangers chose must not keep an action from being recorded.
func TestAuditEntryTakesAnyText(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		must(t, db.Audit(ctx, AuditEntry{
			Actor: "iss\x00 s\xffub", Via: "rest", Action: "create", Detail: strings.Repeat("é", 5000),
		}))
		e := auditLog(t, db, AuditFilter{})[0]
		same(t, "actor", e.Actor, "iss s\uFFFDub")
		same(t, "detail", e.Detail, strings.Repeat("é", maxAuditText-1)+"…")
	})
}

func TestAuditLogReadsAnIndexInItsOrder(t *testing.T) {
	db := openTest(t)
	for _, f := range []AuditFilter{{}, {TenantID: "a"}, {Since: minute(1)},
		{TenantID: "a", Since: minute(1)}, {Before: 7}, {TenantID: "a", Before: 7}} {
		query, args := f.query(50)
		text := strings.Join(plan(t, db, query, args), "; ")
		index := "audit_log_at"
		if f.TenantID != "" {
			index = "audit_log_tenant"
		}
		if !strings.HasPrefix(text, "SEARCH audit_log USING INDEX "+index) ||
			strings.Contains(text, "TEMP B-TREE") {
			t.Errorf("%+v: %s", f, text)
		}
	}
}

// Batches carry the entries of all their jobs, also of those that only record one.
func TestAuditEntriesShareABatch(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		const n = 50
		errs := make(chan error, n)
		for i := range n {
			go func() {
				e := entry
				e.TenantID = fmt.Sprint("t", i)
				if i%2 == 0 {
					errs <- db.Audit(ctx, e)
					return
				}
				change := Change{TenantID: e.TenantID, WorkspaceID: "w", To: Suspended, EventTime: minute(1)}
				_, err := db.Audited(e).Change(context.Background(), change)
				errs <- err
			}()
		}
		for range n {
			must(t, <-errs)
		}
		tenants := map[string]bool{}
		for _, e := range auditLog(t, db, AuditFilter{}) {
			tenants[e.TenantID] = true
		}
		same(t, "tenants", len(tenants), n)
	})
}

// plan is SQLite's plan of a query.
func plan(t *testing.T, db *DB, query string, args []any) (steps []string) {
	t.Helper()
	rows, err := db.read.QueryxContext(ctx, "EXPLAIN QUERY PLAN "+query, args...)
	must(t, err)
	for rows.Next() {
		step, err := rows.SliceScan()
		must(t, err)
		steps = append(steps, fmt.Sprint(step[3]))
	}
	must(t, errors.Join(rows.Err(), rows.Close()))
	return steps
}
