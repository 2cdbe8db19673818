package worker

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"papermap-worker/repo"
)

func newTestTurn(t *testing.T, db *repo.DB) *usageTurn {
	t.Helper()
	return newUsageTurn(db, "ws", 2)
}

// turnDB is a database of which each worker has a handle.
func turnDB(t *testing.T) *repo.DB {
	t.Helper()
	db, err := repo.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

func mustEnter(t *testing.T, turn *usageTurn, tenant string) (holder string) {
	t.Helper()
	holder, err := turn.enter(t.Context(), tenant)
	if err != nil {
		t.Fatalf("the run of tenant %q: %v", tenant, err)
	}
	return holder
}

func mustLeave(t *testing.T, turn *usageTurn, tenant, holder string, err error) {
	t.Helper()
	if err := turn.leave(t.Context(), tenant, holder, err); err != nil {
		t.Fatal(err)
	}
}

func wantTaken(t *testing.T, turn *usageTurn, tenant string) {
	t.Helper()
	if _, err := turn.enter(t.Context(), tenant); !errors.Is(err, errTurnTaken) {
		t.Errorf("the run of tenant %q: %v, want errTurnTaken", tenant, err)
	}
}

// Two runs that read the same rows never go on at one time, in one worker or in two.
func TestUsageTurnKeepsRunsOfTheSameRowsApart(t *testing.T) {
	db := turnDB(t)
	here, there := newTestTurn(t, db), newTestTurn(t, db)
	a := mustEnter(t, here, "a")
	b := mustEnter(t, here, "b")
	if a != b {
		t.Errorf("two runs of one worker have the leases %s and %s", a, b)
	}
	wantTaken(t, here, "a")
	wantTaken(t, there, "c")
	mustLeave(t, here, "a", a, nil)
	wantTaken(t, there, "c")
	mustLeave(t, here, "b", b, nil)

	all := mustEnter(t, here, "")
	for _, tenant := range []string{"", "a"} {
		wantTaken(t, here, tenant)
		wantTaken(t, there, tenant)
	}
	mustLeave(t, here, "", all, nil)
	there.retryAt = here.retryAt // it asked a moment ago
	mustLeave(t, there, "", mustEnter(t, there, ""), nil)
}

// However many single tenants wait, a run of all tenants gets its turn next.
func TestUsageTurnOfAllTenantsIsNotStarved(t *testing.T) {
	turn := newTestTurn(t, turnDB(t))
	holders := map[string]string{}
	for n := range 2 {
		tenant := fmt.Sprint("t", n)
		holders[tenant] = mustEnter(t, turn, tenant)
	}
	entered := make(chan string)
	var runs sync.WaitGroup
	defer runs.Wait()
	for _, tenant := range []string{"t2", "t3", ""} {
		runs.Go(func() {
			holder, err := turn.enter(t.Context(), tenant)
			if err != nil {
				t.Error(err)
			}
			entered <- tenant
			if err := turn.leave(t.Context(), tenant, holder, nil); err != nil {
				t.Error(err)
			}
		})
		for known := false; !known; {
			turn.lock <- struct{}{}
			known = turn.tenants[tenant]
			<-turn.lock
		}
		if tenant == "t3" {
			wantTaken(t, turn, "t4") // enough wait
		}
	}
	wantTaken(t, turn, "t5")
	for tenant, holder := range holders {
		mustLeave(t, turn, tenant, holder, nil)
	}
	seen := map[string]bool{}
	for range 3 {
		seen[<-entered] = true
	}
	if !seen[""] || !seen["t2"] || !seen["t3"] {
		t.Errorf("entered: %v", seen)
	}
}

// Once a run has lost the lease, no later one takes it under the name of those that believe to have it.
func TestUsageTurnIsTakenAnewAfterTheLeaseWasLost(t *testing.T) {
	db := turnDB(t)
	turn := newTestTurn(t, db)
	slept, other := mustEnter(t, turn, "a"), mustEnter(t, turn, "b")
	if err := db.DropRunLease(t.Context(), "ws", slept); err != nil { // as if it had passed to another
		t.Fatal(err)
	}
	if _, err := db.StartRun(t.Context(), repo.Run{WorkspaceID: "ws", EventID: "e"}, other); !errors.Is(err,
		repo.ErrRunLost) {
		t.Errorf("a run without the lease: %v, want ErrRunLost", err)
	}
	mustLeave(t, turn, "a", slept, fmt.Errorf("record: %w", repo.ErrRunLost))
	next := mustEnter(t, turn, "a")
	if next == other {
		t.Error("the lease was taken under the name of those who lost it")
	}
	mustLeave(t, turn, "b", other, repo.ErrRunLost)
	if taken, err := db.TakeRunLease(t.Context(), "ws", "another"); err != nil || taken {
		t.Errorf("the end of a run that lost the lease dropped the next one's: %t, %v", taken, err)
	}
	mustLeave(t, turn, "a", next, nil)
	if taken, err := db.TakeRunLease(t.Context(), "ws", "another"); err != nil || !taken {
		t.Errorf("the lease after all have left: %t, %v", taken, err)
	}
}
