package repo

import (
	"fmt"
	"testing"
	"time"
)

func TestPossibleOrphansAreUnknownOrphanedAndLongSent(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		finish(t, db, claim(t, db, "made"))
		fail(t, db, claim(t, db, "refused"), unaccepted)
		claim(t, db, "crashed")
		pass(db, time.Millisecond)
		fail(t, db, claim(t, db, "unknown"), ambiguous)
		pass(db, time.Millisecond)
		slept := claim(t, db, "orphaned")
		pass(db, Lease)
		finish(t, db, claim(t, db, "orphaned"))
		finish(t, db, slept)
		claim(t, db, "young")
		pass(db, Lease) // exactly: young may still be running

		list, err := db.PossibleOrphans(ctx)
		must(t, err)
		var got []string
		for _, u := range list {
			got = append(got, fmt.Sprintf("%s %s %q %s", u.TenantID, u.Outcome, u.Title, u.Status))
		}
		same(t, "uncertain attempts, oldest first", got, []string{
			`crashed sent "Dashboard - crashed" creating`, `unknown unknown "Dashboard - unknown" pending`,
			`orphaned orphaned "Dashboard - orphaned" active`,
		})

		pass(db, time.Millisecond)
		if list, _ = db.PossibleOrphans(ctx); len(list) != 4 || list[3].TenantID != "young" {
			t.Fatalf("an attempt sent longer ago than a lease is not the last of %+v", list)
		}
	})
}
