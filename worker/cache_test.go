package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// Promise 6 counts from the commit, and a reading may have begun before it: so long must it not be believed, however late
// the database answers. The reading is of before the suspension, and its answer comes when the 5 s are over.
func TestAReadingThatTookTooLongMintsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		late := newTenants(func(context.Context, string) (*tenant, error) {
			time.Sleep(5 * time.Second) // the clock is the bubble's
			return &tenant{id: "t"}, nil
		})
		_, err := late.get(t.Context(), "t")
		var refused *events.ServiceError
		if !errors.As(err, &refused) || refused.Code != "UNAVAILABLE" {
			t.Errorf("a reading that began 5 s ago was believed: %v", err)
		}
		if known, _, _ := late.peek([]byte("t"), time.Now()); known != nil {
			t.Error("it is believed from memory")
		}
	})
}

// A tenant that changes while it is being read: whoever asks after the change gets a reading of after it.
func TestAChangeDuringAReadingIsSeenByTheNextRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan repo.Status)
		tenants := newTenants(func(context.Context, string) (*tenant, error) {
			return &tenant{id: "t", refused: tokenRefused(<-answer)}, nil
		})
		read := func() <-chan *events.ServiceError {
			got := make(chan *events.ServiceError, 1)
			go func() {
				known, err := tenants.get(t.Context(), "t")
				if err != nil {
					t.Error(err)
					known = &tenant{}
				}
				got <- known.refused
			}()
			synctest.Wait()
			return got
		}
		first := read()
		tenants.drop("t")
		second := read()
		answer <- repo.Active
		answer <- repo.Suspended // nobody reads it if the second request joined the first: the bubble ends in a deadlock
		if a, b := <-first, <-second; a == b {
			t.Errorf("read as %v and %v", a, b)
		}
	})
}

// What is in memory is bounded, and what is used stays in it.
func TestMemoryIsBoundedAndKeepsWhatIsUsed(t *testing.T) {
	t.Parallel()
	g := generations[int]{most: 100}
	g.put("used", 1)
	for i := range 10_000 {
		g.put(string(rune(i))+"x", i)
		if _, ok := g.get([]byte("used")); !ok {
			t.Fatalf("forgotten after %d others", i)
		}
		if n := len(g.young) + len(g.old); n > 200 {
			t.Fatalf("%d in memory, want at most 200", n)
		}
	}
}

// After a restart nothing is in memory. Tenants that exist are no flood of unknown ones, which a second's budget ends.
func TestTenantsThatExistDoNotUseUpTheLookupsOfUnknownOnes(t *testing.T) {
	t.Parallel()
	const known, unknown = 3 * lookups, 3 * lookups
	synctest.Test(t, func(t *testing.T) {
		tenants := newTenants(func(_ context.Context, id string) (*tenant, error) {
			if id[0] == '?' {
				return nil, repo.ErrNotFound
			}
			return &tenant{id: id}, nil
		})
		for n := range known {
			if _, err := tenants.get(t.Context(), fmt.Sprint(n)); err != nil {
				t.Fatalf("active tenant no. %d after a restart: %v", n+1, err)
			}
		}
		looked := 0
		for n := range unknown {
			if _, err := tenants.get(t.Context(), fmt.Sprint("?", n)); err == errUnknownTenant {
				looked++
			}
		}
		if looked != lookups {
			t.Errorf("%d unknown tenants were looked up at once, want %d", looked, lookups)
		}
		if _, _, err := tenants.peek([]byte("?0"), time.Now()); err != errUnknownTenant {
			t.Errorf("a tenant that is remembered as unknown: %v", err)
		}
		if _, _, err := tenants.peek([]byte("?later"), time.Now()); err != errTooManyLookups {
			t.Errorf("a tenant beyond the budget: %v", err)
		}
	})
}
