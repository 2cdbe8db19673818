package repo

import (
	"testing"
	"time"
)

func TestLeaseHasOneHolder(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		take := func(name, holder string, want bool) {
			t.Helper()
			got, err := db.TakeLease(ctx, name, holder, time.Minute)
			if err != nil || got != want {
				t.Fatalf("%s takes %s: %v, %v; want %v", holder, name, got, err, want)
			}
		}
		drop := func(name, holder string) {
			t.Helper()
			must(t, db.DropLease(ctx, name, holder))
		}
		take("relay", "a", true)
		take("relay", "b", false)
		take("sync", "b", true)
		pass(db, 50*time.Second)
		take("relay", "a", true) // prolonged, to 1:50
		pass(db, time.Minute)
		take("relay", "b", false) // 1:50 is not after 1:50
		pass(db, time.Millisecond)
		take("relay", "b", true)
		take("relay", "a", false)
		drop("relay", "a") // has it no longer
		take("relay", "a", false)
		drop("relay", "b")
		take("relay", "a", true)
	})
}

// Times too far ahead start anew, so that no tenant waits longer than a lease or the longest
// retry.
func TestLeasesSurviveAClockSetBack(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		claim(t, db, "killed")
		fail(t, db, claim(t, db, "put off"),
			Failure{Result: ambiguous.Result, RetryAfter: 10 * time.Second, MaxFailures: 10})
		take := func(holder string, want bool) {
			t.Helper()
			if got, err := db.TakeLease(ctx, "relay", holder, 20*time.Second); err != nil || got != want {
				t.Fatalf("%s takes the lease: %v, %v; want %v", holder, got, err, want)
			}
		}
		take("killed", true)
		pass(db, -time.Second)
		take("beside it", false) // a little is no jump
		pass(db, -time.Hour)
		take("next", true)
		for tenant, longest := range map[string]time.Duration{"killed": Lease, "put off": maxRetry} {
			c := begin(t, db, created(tenant, 10, "m-"+tenant))
			same(t, tenant, []any{c.Step, c.Wait}, []any{StepWait, longest})
		}
		pass(db, Lease)
		claim(t, db, "killed")
		pass(db, maxRetry-Lease)
		claim(t, db, "put off")
	})
}
