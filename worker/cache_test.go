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

// Promise 6 counts 5 s from the commit of a suspension, and a query may have started before it: its
// answer must not be used that long, however late it comes.
func TestCacheRefusesAnAnswerThatCameTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		late := newTenantCache(func(context.Context, string) (*tenant, error) {
			time.Sleep(5 * time.Second) // the clock is the bubble's
			return &tenant{id: "t"}, nil
		})
		_, err := late.get(t.Context(), "t")
		var refused *events.ServiceError
		if !errors.As(err, &refused) || refused.Code != "UNAVAILABLE" {
			t.Errorf("an answer to a query of 5 s ago was used: %v", err)
		}
		if known, _, _ := late.lookup([]byte("t"), time.Now()); known != nil {
			t.Error("it is fresh in memory")
		}
	})
}

// A request after the change of a tenant does not join a query from before it.
func TestCacheSeesAChangeThatWasMadeDuringAQuery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan repo.Status)
		tenants := newTenantCache(func(context.Context, string) (*tenant, error) {
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
		tenants.invalidate("t")
		second := read()
		answer <- repo.Active
		answer <- repo.Suspended // a deadlock if the second request joined the first
		if a, b := <-first, <-second; a == b {
			t.Errorf("queried as %v and %v", a, b)
		}
	})
}

func TestTwoGenCacheIsBoundedAndKeepsWhatIsUsed(t *testing.T) {
	t.Parallel()
	g := twoGenCache[int]{size: 100}
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

// After a restart nothing is in memory. Queries of tenants that exist are not limited, those of
// unknown ones are.
func TestCacheLimitsLookupsOfUnknownTenantsOnly(t *testing.T) {
	t.Parallel()
	const known, unknown = 3 * maxLookups, 3 * maxLookups
	synctest.Test(t, func(t *testing.T) {
		tenants := newTenantCache(func(_ context.Context, id string) (*tenant, error) {
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
		if looked != maxLookups {
			t.Errorf("%d unknown tenants were looked up at once, want %d", looked, maxLookups)
		}
		if _, _, err := tenants.lookup([]byte("?0"), time.Now()); err != errUnknownTenant {
			t.Errorf("a tenant that is remembered as unknown: %v", err)
		}
		if _, _, err := tenants.lookup([]byte("?later"), time.Now()); err != errTooManyLookups {
			t.Errorf("a tenant beyond the budget: %v", err)
		}
	})
}

// While the host sleeps the monotonic clock stands still and the wall clock goes on.
func TestCacheExpiresByTheWallClockToo(t *testing.T) {
	t.Parallel()
	tenants := newTenantCache(func(context.Context, string) (*tenant, error) { return &tenant{id: "t"}, nil })
	known, err := tenants.get(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	known.wall -= int64(tenantLife) // as if the host had slept since
	if _, stale, err := tenants.lookup([]byte("t"), time.Now()); !stale || err != nil {
		t.Errorf("a mapping of %v ago is used, error %v", tenantLife, err)
	}
}

func TestCacheKeepsAnInactiveTenantForASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		status := repo.Pending
		tenants := newTenantCache(func(context.Context, string) (*tenant, error) {
			return &tenant{id: "t", refused: tokenRefused(status)}, nil
		})
		check := func(active bool) {
			t.Helper()
			known, err := tenants.get(t.Context(), "t")
			if err != nil || (known.refused == nil) != active {
				t.Errorf("refused %v, error %v; want active: %t", known.refused, err, active)
			}
		}
		check(false)
		status = repo.Active
		time.Sleep(900 * time.Millisecond)
		check(false)
		time.Sleep(100 * time.Millisecond)
		check(true)
	})
}

// A tenant that gets tokens all the time waits for the database only once.
func TestCacheRenewsMappingsInUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tenants := newTenantCache(func(_ context.Context, id string) (*tenant, error) {
			return &tenant{id: id}, nil
		})
		const all = 250
		renewed := 0
		ctx, stop := context.WithCancel(t.Context())
		go tenants.renewals(ctx, func(_ context.Context, ids []string) (list []*tenant, _ error) {
			if renewed += len(ids); len(ids) > renewAtOnce {
				t.Errorf("%d in one query", len(ids))
			}
			for _, id := range ids {
				list = append(list, &tenant{id: id})
			}
			return list, nil
		})
		for id := range all {
			if _, err := tenants.get(t.Context(), fmt.Sprint(id)); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 { // until 10 s
			time.Sleep(500 * time.Millisecond)
			for id := range all {
				known, _, err := tenants.lookup(fmt.Append(nil, id), time.Now())
				if known == nil || err != nil {
					t.Fatalf("tenant %d after %v: %v, %v", id, time.Since(tenants.start), known, err)
				}
			}
		}
		synctest.Wait()
		if renewed != 3*all { // at 3, 6 and 9 s
			t.Errorf("%d mappings were read again, want %d", renewed, 3*all)
		}
		stop()
		synctest.Wait()
	})
}

// Promise 6: a renewal prolongs nothing that it did not read, and undoes no change.
func TestCacheRenewalProlongsOnlyWhatItRead(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(*tenantCache) ([]*tenant, error){
		"failed":  func(*tenantCache) ([]*tenant, error) { return nil, errors.New("no database") },
		"missing": func(*tenantCache) ([]*tenant, error) { return nil, nil },
		"suspended": func(*tenantCache) ([]*tenant, error) {
			return []*tenant{{id: "t", refused: tokenRefused(repo.Suspended)}}, nil
		},
		"invalidated": func(c *tenantCache) ([]*tenant, error) {
			c.invalidate("t") // by a change that the answer does not have yet
			return []*tenant{{id: "t"}}, nil
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			tenants := newTenantCache(func(context.Context, string) (*tenant, error) {
				return &tenant{id: "t"}, nil
			})
			if _, err := tenants.get(t.Context(), "t"); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			go tenants.renewals(ctx, func(context.Context, []string) ([]*tenant, error) {
				return answer(tenants)
			})
			time.Sleep(tenantLife - renewBefore)
			if known, _, _ := tenants.lookup([]byte("t"), time.Now()); known == nil {
				t.Errorf("%s: not in memory before the renewal", name)
			}
			time.Sleep(renewBefore)
			if known, _, _ := tenants.lookup([]byte("t"), time.Now()); known != nil && known.refused == nil {
				t.Errorf("%s: still gets tokens after %v", name, tenantLife)
			}
			stop()
			synctest.Wait()
		})
	}
}

// Promise 6: what was read may be old by the time of the answer.
func TestCacheRenewalCountsFromTheBeginningOfItsQuery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tenants := newTenantCache(func(context.Context, string) (*tenant, error) {
			return &tenant{id: "t"}, nil
		})
		if _, err := tenants.get(t.Context(), "t"); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		go tenants.renewals(ctx, func(context.Context, []string) ([]*tenant, error) {
			time.Sleep(renewBefore / 2)
			return []*tenant{{id: "t"}}, nil
		})
		time.Sleep(tenantLife - renewBefore)
		asked := time.Now()
		fresh := func() bool {
			known, _, _ := tenants.lookup([]byte("t"), time.Now())
			return known != nil
		}
		if !fresh() {
			t.Error("not in memory before the renewal")
		}
		time.Sleep(renewBefore) // the first life has ended
		if !fresh() {
			t.Error("it was not renewed")
		}
		stop()
		synctest.Wait()
		time.Sleep(time.Until(asked.Add(tenantLife)))
		if fresh() {
			t.Errorf("still in memory %v after it was read", tenantLife)
		}
	})
}
