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
		take("next", false) // its holder may still be at work
		for tenant, longest := range map[string]time.Duration{"killed": Lease, "put off": maxRetry} {
			c := begin(t, db, created(tenant, 10, "m-"+tenant))
			same(t, tenant, []any{c.Step, c.Wait}, []any{StepWait, longest})
		}
		pass(db, 20*time.Second+time.Millisecond)
		take("next", true)
		pass(db, Lease-20*time.Second)
		claim(t, db, "killed")
		pass(db, maxRetry-Lease)
		claim(t, db, "put off")
	})
}

// A transaction that waits for the row sees a lease that began after it did.
func TestLeaseIsNotCutShortByATransactionThatWaited(t *testing.T) {
	db := onPostgres(t)
	if taken, err := db.TakeLease(ctx, "relay", "a", time.Minute); err != nil || !taken {
		t.Fatalf("took the lease: %v, %v", taken, err)
	}
	release := rival(t, db, "SELECT FROM leases WHERE name = 'relay' FOR UPDATE")
	go func() {
		waiting(t, db)
		release(`UPDATE leases SET until = clock_timestamp() + interval '1 minute';
			INSERT INTO leases SELECT 'as it was', holder, until FROM leases; COMMIT`)
	}()
	taken, err := db.TakeLease(ctx, "relay", "b", time.Minute)
	if err != nil || taken {
		t.Fatalf("b takes a's lease: %v, %v", taken, err)
	}
	same(t, "ends of the lease", count(t, db, "(SELECT DISTINCT until FROM leases) AS ends"), 1)
}

// So does a decision that waits for the tenant's row.
func TestBeginReadsTheClockAfterTheLock(t *testing.T) {
	db := onPostgres(t)
	claim(t, db, "a")
	release := rival(t, db, "SELECT FROM tenant_dashboards WHERE tenant_id = 'a' FOR UPDATE")
	go func() {
		waiting(t, db)
		release(`UPDATE tenant_dashboards SET claimable_at = clock_timestamp() + interval '25 seconds';
			INSERT INTO leases SELECT 'as it was', '', claimable_at FROM tenant_dashboards; COMMIT`)
	}()
	if c := begin(t, db, created("a", 10, "again")); c.Step != StepWait {
		t.Fatalf("began with step %d, want Wait", c.Step)
	}
	const ends = "(SELECT claimable_at FROM tenant_dashboards UNION SELECT until FROM leases) AS ends"
	same(t, "ends of the lease", count(t, db, ends), 1)
}
