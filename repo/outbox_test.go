package repo

import (
	"context"
	"fmt"
	"slices"
	"testing"
)

func TestOutboxIsWrittenWithItsChangeOrNotAtAll(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		c := claim(t, db, "a")
		same(t, "after a claim", unsent(t, db, 10), []string(nil))
		finish(t, db, c)
		first, err := db.Unsent(ctx, 10)
		must(t, err)
		same(t, "after the change", first, []OutboxRow{{
			ID: first[0].ID, EventID: "created-" + c.Attempt.ID, TenantID: "a", Type: "dashboard.test",
			Data: []byte(`{"n":1}`), CreatedAt: at(db.now()),
		}})

		// An event that cannot be written takes its change with it.
		b := claim(t, db, "b")
		before := mapping(t, db, "b")
		if _, err := db.Finish(ctx, b, "d", 200, announce(first[0].EventID)); err == nil {
			t.Fatal("two events of one id were accepted")
		}
		f := ambiguous
		f.Hold = true
		if _, err := db.Fail(ctx, b, f, announce(first[0].EventID)); err == nil {
			t.Fatal("two events of one id were accepted")
		}
		same(t, "the mapping after changes that were rolled back", mapping(t, db, "b"), before)
		same(t, "the attempt after changes that were rolled back", outcomes(t, db, "b"),
			[]Outcome{OutcomeSent})
		same(t, "the outbox after changes that were rolled back", len(unsent(t, db, 10)), 1)
	})
}

func TestOutboxOmitsTenantsDeletedMeanwhile(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for tenant, end := range map[string]func(Claim){
			"made":   func(c Claim) { finish(t, db, c) },
			"failed": func(c Claim) { fail(t, db, c, Failure{Result: unaccepted.Result, Permanent: true}) },
			"held":   func(c Claim) { fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true}) },
		} {
			c := claim(t, db, tenant)
			change(t, db, tenant, Deleted, 11)
			end(c)
			same(t, "the outbox after "+tenant, unsent(t, db, 10), []string(nil))
			same(t, "the status of "+tenant, mapping(t, db, tenant).Status, Deleted)
		}
		same(t, "a dashboard that was made is known", mapping(t, db, "made").DashboardID != "", true)
	})
}

func TestUnsentKeepsATenantsOrder(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		want := map[string][]string{}
		for range 3 { // each tenant fails, then starts a new generation
			for _, tenant := range []string{"b", "a"} {
				c := begin(t, db, created(tenant, 10, fmt.Sprint("m", len(want[tenant]))))
				fail(t, db, c, Failure{Result: unaccepted.Result, Permanent: true})
				want[tenant] = append(want[tenant], "failed-"+c.Attempt.ID)
			}
		}
		list, err := db.Unsent(ctx, 100)
		must(t, err)
		got := map[string][]string{}
		for _, o := range list {
			got[o.TenantID] = append(got[o.TenantID], o.EventID)
		}
		same(t, "each tenant's events", got, want)

		// A row is found although younger ones were sent before it.
		must(t, db.MarkSent(ctx, []int64{list[0].ID, list[3].ID, list[5].ID}))
		same(t, "what is left", unsent(t, db, 100),
			[]string{list[1].EventID, list[2].EventID, list[4].EventID})
		same(t, "what is left, two at most", unsent(t, db, 2), []string{list[1].EventID, list[2].EventID})
		must(t, db.MarkSent(ctx, nil))
		same(t, "after marking none", len(unsent(t, db, 100)), 3)
	})
}

func TestNextUnsentIsTheOldestOfEachTenant(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		err := db.transact(ctx, func(ctx context.Context, x *tx) error {
			for i := range 600 { // more of one tenant than are read at once, ahead of the others
				tenant, kind := "busy", "dashboard.created"
				if i >= 597 {
					tenant, kind = fmt.Sprint("t-", i), fmt.Sprint("kind-", i)
				}
				if err := x.enqueue(ctx, tenant,
					OutboxEvent{EventID: fmt.Sprint("e-", i), Type: kind}); err != nil {
					return err
				}
			}
			return nil
		})
		must(t, err)
		next := func(limit int, skip Skip) (ids []string, first int64) {
			t.Helper()
			rows, err := db.NextUnsent(ctx, limit, skip)
			must(t, err)
			for _, r := range rows {
				ids = append(ids, r.EventID)
			}
			return ids, rows[0].ID
		}
		all, first := next(10, Skip{})
		same(t, "the oldest of each tenant", all, []string{"e-0", "e-597", "e-598", "e-599"})
		two, _ := next(2, Skip{})
		same(t, "two at most", two, []string{"e-0", "e-597"})
		rest, last := next(10, Skip{IDs: []int64{first}, Types: []string{"kind-597", "kind-598"}})
		same(t, "without what is left out, and without what waits behind it", rest, []string{"e-599"})
		must(t, db.MarkSent(ctx, []int64{first, last})) // a younger one was sent, too
		after, _ := next(10, Skip{})
		same(t, "after some were sent", after, []string{"e-1", "e-597", "e-598"})
	})
}

func TestTenantOutboxReadsNewestOldestFirst(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		err := db.transact(ctx, func(ctx context.Context, x *tx) error {
			for i := range 6 {
				n := OutboxEvent{EventID: fmt.Sprint("event-", i), Type: "dashboard.created",
					Data: []byte(`{}`)}
				if err := x.enqueue(ctx, fmt.Sprint("tenant-", i%2), n); err != nil {
					return err
				}
			}
			return nil
		})
		must(t, err)
		first, err := db.Unsent(ctx, 2)
		must(t, err)
		must(t, db.MarkSent(ctx, []int64{first[1].ID}))
		for limit, want := range map[int][]string{10: {"event-1 sent", "event-3", "event-5"},
			2: {"event-3", "event-5"}} {
			list, err := db.TenantOutbox(ctx, "tenant-1", limit)
			var got []string
			for _, e := range list {
				if got = append(got, e.EventID); !e.SentAt.IsZero() {
					got[len(got)-1] += " sent"
				}
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("at most %d: %v, %v, want %v", limit, got, err, want)
			}
		}
	})
}
