package repo

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Its time is 2026-03-01: see openTest.
func TestPruneDeletesWhatIsOldAndNothingElse(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		insert := func(query string, args ...any) {
			t.Helper()
			must(t, db.transact(ctx, func(ctx context.Context, x *tx) error {
				return x.exec(ctx, query, args...)
			}))
		}
		many := 2*pruneBatch + 500 // more than one transaction deletes
		insert(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO outbox (event_id, tenant_id, type, data, created_at, sent_at)
			SELECT 'old-' || i, 't', 'x', '{}', '2026-01-01T00:00:00.000Z', '2026-01-29T11:59:59.999Z'
			FROM n`, many)
		insert(`INSERT INTO outbox (event_id, tenant_id, type, data, created_at, sent_at)
			VALUES ('recent', 't', 'x', '{}', '2026-01-01T00:00:00.000Z', '2026-01-30T12:00:00.000Z'),
			('unsent', 't', 'x', '{}', '2020-01-01T00:00:00.000Z', NULL)`)
		outcomes := []Outcome{OutcomeSent, OutcomeCreated, OutcomeRefused, OutcomeUnknown, OutcomeOrphaned}
		for age, at := range map[string]string{
			"old": "2025-02-27T00:00:00.000Z", "recent": "2025-03-02T00:00:00.000Z",
		} {
			started, err := time.Parse(time.RFC3339, at)
			must(t, err)
			for i, outcome := range outcomes {
				id := firstID(started)[:24] + fmt.Sprintf("%012d", i)
				insert(`INSERT INTO provision_attempts (id, workspace_id, tenant_id, generation, mark,
					outcome, started_at, finished_at, settled_at) VALUES (?, 'w', 't', 1, ?, ?, ?, ?, ?)`,
					id, age+" "+string(outcome), string(outcome), at, at, at)
			}
			insert(`INSERT INTO usage_changes (run_id, workspace_id, tenant_id, period, old_credits,
				new_credits, old_requests, new_requests, changed_at)
				VALUES (?, 'w', 't', '2025-01', '2', '1', 1, 1, ?)`, age, at)
		}
		for detail, at := range map[string]string{
			"old": "2026-02-19T11:59:59.999Z", "recent": "2026-02-19T12:00:00.000Z",
		} {
			insert(`INSERT INTO audit_log (at, actor, via, action, detail)
				VALUES (?, 'a', 'cli', 'sync', ?)`, at, detail)
		}
		deleted, err := db.Prune(ctx, 10*day)
		must(t, err)
		same(t, "deleted rows", deleted, int64(2504))
		values := func(query string) []string {
			t.Helper()
			list, err := list[string](ctx, db.read, "read what is left", query)
			must(t, err)
			return list
		}
		same(t, "events out", values("SELECT event_id FROM outbox ORDER BY event_id"),
			[]string{"recent", "unsent"})
		same(t, "attempts", values("SELECT mark FROM provision_attempts ORDER BY mark"),
			[]string{"old orphaned", "old sent", "old unknown", "recent created", "recent orphaned",
				"recent refused", "recent sent", "recent unknown"})
		same(t, "audit log", values("SELECT detail FROM audit_log"), []string{"recent"})
		same(t, "changes", values("SELECT run_id FROM usage_changes"), []string{"recent"})
	})
}

func TestPruneEndsWithItsContext(t *testing.T) {
	db := openTest(t)
	ended, end := context.WithCancel(ctx)
	end()
	if _, err := db.Prune(ended, day); err == nil {
		t.Error("it went on")
	}
}

// The ids of attempts are of this kind, so that those of an age are a range of ids.
func TestFirstIDIsNotAfterAnyOfItsTime(t *testing.T) {
	db := openTest(t)
	c := claim(t, db, "a")
	before, after := firstID(time.Now().Add(-time.Minute)), firstID(time.Now().Add(time.Minute))
	if id := c.Attempt.ID; id <= before || id >= after {
		t.Errorf("the attempt %s is not between %s and %s", id, before, after)
	}
}
