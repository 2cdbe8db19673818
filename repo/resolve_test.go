package repo

import (
	"errors"
	"testing"
	"time"
)

func TestResolveActivatesTheFoundDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		c := held(t, db, "a")
		pass(db, time.Hour)
		m := resolve(t, db, "a", "found")
		same(t, "the mapping", []any{m.Status, m.DashboardID, m.Generation, m.FailedCode, m.FailedError,
			m.UpdatedAt},
			[]any{Active, "found", 1, "", "", at(db.now())})
		a := attempts(t, db, "a")
		same(t, "its attempt", []any{len(a), a[0].Outcome, a[0].DashboardID, a[0].ResolvedAt},
			[]any{1, OutcomeCreated, "found", at(db.now())})
		same(t, "events out", unsent(t, db, 10),
			[]string{"held-" + c.Attempt.ID, `a is active with "found" in generation 1`})
		same(t, "possible orphans", uncertain(t, db), []string(nil))
		for _, message := range []string{"m-a", "another"} {
			same(t, "its tenant.created again", begin(t, db, created("a", 10, message)).Step, StepDone)
		}
	})
}

func TestResolveLeavesAccessToTheEvents(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		held(t, db, "suspended")
		change(t, db, "suspended", Suspended, 12)
		same(t, "a suspended tenant", resolve(t, db, "suspended", "d1").Status, Suspended)
		change(t, db, "suspended", Active, 13)
		same(t, "resumed", mapping(t, db, "suspended").Status, Active)

		c := held(t, db, "deleted")
		change(t, db, "deleted", Deleted, 12)
		m := resolve(t, db, "deleted", "d2")
		same(t, "a deleted tenant", []any{m.Status, m.DashboardID}, []any{Deleted, "d2"})
		// nothing is announced
		same(t, "events out of a deleted tenant", unsent(t, db, 10)[2:], []string{"held-" + c.Attempt.ID})
		again := begin(t, db, created("deleted", 13, "again"))
		same(t, "created again", []any{again.Step, again.Mapping.Generation, again.Mapping.DashboardID},
			[]any{StepCreate, 2, ""})
	})
}

func TestResolveTakesTheGenerationsNewestUnknownAttempt(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		fail(t, db, claim(t, db, "a"), ambiguous) // of generation 1
		change(t, db, "a", Deleted, 20)
		e := created("a", 30, "second")
		fail(t, db, begin(t, db, e), ambiguous)
		pass(db, time.Millisecond)
		fail(t, db, begin(t, db, e), Failure{Result: ambiguous.Result, Hold: true})
		resolve(t, db, "a", "found")
		same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeUnknown, OutcomeUnknown, OutcomeCreated})
		same(t, "possible orphans", uncertain(t, db), []string{"a", "a"})

		fail(t, db, claim(t, db, "b"), ambiguous)
		change(t, db, "b", Deleted, 20)
		c := begin(t, db, created("b", 30, "second"))
		fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true})
		c.Mapping.Epoch-- // as if another had held it
		finish(t, db, c)
		resolve(t, db, "b", "found elsewhere")
		same(t, "attempts of which none can have made it", outcomes(t, db, "b"),
			[]Outcome{OutcomeUnknown, OutcomeOrphaned})
	})
}

func TestResolveRefusesTenantsNotHeld(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, script := range []string{
			"s12", "d12", "c10", "c10 retry", "c10 lapse", "c10 make", "c10 make s12", "c10 refuse",
			"c10 make d20", "c10 hold d20 c21",
		} {
			play(t, db, script, script)
			before := snapshot(t, db, script)
			if _, err := db.Resolve(ctx, script, "found", announceState); !errors.Is(err, ErrNotHeld) {
				t.Errorf("resolving %q: %v, want ErrNotHeld", script, err)
			}
			if _, err := db.Recreate(ctx, script, announceState); !errors.Is(err, ErrNotHeld) {
				t.Errorf("creating %q again: %v, want ErrNotHeld", script, err)
			}
			same(t, script, snapshot(t, db, script), before)
		}
		for _, resolve := range []func() (Mapping, error){
			func() (Mapping, error) { return db.Resolve(ctx, "no such tenant", "found", announceState) },
			func() (Mapping, error) { return db.Recreate(ctx, "no such tenant", announceState) },
		} {
			if _, err := resolve(); !errors.Is(err, ErrNotFound) {
				t.Errorf("an unknown tenant: %v, want ErrNotFound", err)
			}
		}
		same(t, "an unknown tenant's row", mapping(t, db, "no such tenant"), Mapping{})

		held(t, db, "a")
		resolve(t, db, "a", "found")
		if _, err := db.Resolve(ctx, "a", "other", announceState); !errors.Is(err, ErrNotHeld) {
			t.Errorf("resolving twice: %v, want ErrNotHeld", err)
		}
	})
}

func TestResolveRefusesAnothersDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		finish(t, db, claim(t, db, "owner"))
		slept := claim(t, db, "orphan")
		pass(db, Lease)
		finish(t, db, claim(t, db, "orphan"))
		finish(t, db, slept)
		held(t, db, "a")
		before := snapshot(t, db, "a")
		for what, id := range map[string]string{"a mapping's": mapping(t, db, "owner").DashboardID,
			"an orphaned attempt's": dashboard(slept)} {
			if _, err := db.Resolve(ctx, "a", id, announceState); !errors.Is(err, ErrTaken) {
				t.Errorf("%s dashboard: %v, want ErrTaken", what, err)
			}
			same(t, what, snapshot(t, db, "a"), before)
		}
		resolve(t, db, "a", "found")
	})
}

func TestResolveWithoutItsEventChangesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		c := held(t, db, "a")
		before := snapshot(t, db, "a")
		wrong := errors.New("no event")
		for what, n := range map[string]Announce{
			"no event":           func(Mapping) (OutboxEvent, error) { return OutboxEvent{}, wrong },
			"an event of its id": announce("held-" + c.Attempt.ID),
		} {
			if _, err := db.Resolve(ctx, "a", "found", n); err == nil {
				t.Errorf("%s: resolved", what)
			}
			if _, err := db.Recreate(ctx, "a", n); err == nil {
				t.Errorf("%s: created again", what)
			}
			same(t, what, snapshot(t, db, "a"), before)
		}
	})
}

func TestRecreateRepublishesTheTenantsEvent(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
		for _, hold := range []bool{false, true} {
			db := openTest(t)
			first := held(t, db, "a")
			m := recreate(t, db, "a")
			same(t, "the mapping", []any{m.Status, m.Generation, m.ClaimableAt, m.Failures, m.FailedCode,
				m.FailedError}, []any{Pending, 1, Time{}, 0, "", ""})
			same(t, "its attempt", outcomes(t, db, "a"), []Outcome{OutcomeUnknown})
			same(t, "possible orphans", uncertain(t, db), []string{"a"}) // until a person has looked
			list, err := db.Unsent(ctx, 10)
			must(t, err)
			again := list[len(list)-1]
			same(t, "the event that is published again",
				[]any{again.EventID, again.OriginalID, time.Unix(0, again.OriginalTime).UTC()},
				[]any{`a is pending with "" in generation 1`, "event-m-a", minute(10)})

			same(t, "the first holder's dashboard is recorded", finish(t, db, first), false)
			same(t, "the mapping after it", mapping(t, db, "a"), m)
			second := beginWith(t, db, created("a", 10, "again"), hold)
			same(t, "when it arrives", []any{second.Step, second.Mapping.Generation}, []any{StepCreate, 1})
			same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned, OutcomeSent})
			same(t, "the first holder's dashboard is recorded", finish(t, db, first), false)
			same(t, "the second's", finish(t, db, second), true)
			same(t, "attempts at the end", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned, OutcomeCreated})
			same(t, "the dashboard", mapping(t, db, "a").DashboardID, dashboard(second))
		}
	})
}

func TestRecreateKeepsSuspensionAndRefusesDeleted(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		held(t, db, "suspended")
		change(t, db, "suspended", Suspended, 12)
		same(t, "a suspended tenant", recreate(t, db, "suspended").Status, Suspended)
		c := begin(t, db, created("suspended", 10, "again"))
		same(t, "its event", c.Step, StepCreate)
		finish(t, db, c)
		same(t, "with its dashboard", mapping(t, db, "suspended").Status, Suspended)

		held(t, db, "deleted")
		change(t, db, "deleted", Deleted, 12)
		before := snapshot(t, db, "deleted")
		if m, err := db.Recreate(ctx, "deleted", announceState); err == nil {
			t.Errorf("a deleted tenant is created again: %+v", m)
		}
		same(t, "a deleted tenant", snapshot(t, db, "deleted"), before)
	})
}

// A holder that slept through the hold and its settling comes back with an answer of its own.
func TestResolveIsNotUndoneByALateHolder(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		// while another holder found its attempt and held the tenant
		asleep := func(tenant string) (slept Claim) {
			t.Helper()
			slept = beginWith(t, db, created(tenant, 10, "m-"+tenant), true)
			pass(db, Lease)
			settler := beginWith(t, db, created(tenant, 10, "m-"+tenant), true)
			same(t, "what the next holder has to do", settler.Step, StepRecordOutcome)
			fail(t, db, settler, Failure{Result: ambiguous.Result, Hold: true})
			return slept
		}

		slept := asleep("its own")
		want := resolve(t, db, "its own", dashboard(slept)) // it was found at Papermap by its mark
		out := unsent(t, db, 100)
		finish(t, db, slept)
		same(t, "the mapping after its own dashboard came late", mapping(t, db, "its own"), want)
		// an orphan would be deleted at Papermap by its id
		same(t, "its attempt", outcomes(t, db, "its own"), []Outcome{OutcomeCreated})
		same(t, "possible orphans", uncertain(t, db), []string(nil))
		same(t, "events out", unsent(t, db, 100), out)

		slept = asleep("another's")
		want = resolve(t, db, "another's", "found")
		same(t, "another dashboard is recorded", finish(t, db, slept), false)
		same(t, "the mapping after another dashboard came late", mapping(t, db, "another's"), want)
		same(t, "its attempt", attempts(t, db, "another's")[0].Outcome, OutcomeOrphaned)
		same(t, "its dashboard", attempts(t, db, "another's")[0].DashboardID, dashboard(slept))

		slept = asleep("failing")
		want = resolve(t, db, "failing", "found by its mark")
		same(t, "the mapping that follows from a late failure", fail(t, db, slept, ambiguous), want)
		// the person knows more than the holder
		same(t, "its attempt", outcomes(t, db, "failing"), []Outcome{OutcomeCreated})

		slept = asleep("orphaned first")
		finish(t, db, slept)
		same(t, "possible orphans", uncertain(t, db), []string{"another's", "orphaned first"})
		resolve(t, db, "orphaned first", dashboard(slept))
		same(t, "its attempt, once its dashboard is the tenant's", outcomes(t, db, "orphaned first"),
			[]Outcome{OutcomeCreated})
		same(t, "possible orphans", uncertain(t, db), []string{"another's"})
	})
}

// A worker was killed, and its tenant deleted.
func TestResolveAttemptTakesAnAbandonedOne(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		c := claim(t, db, "a")
		change(t, db, "a", Deleted, 20)
		pass(db, Lease+time.Millisecond)
		same(t, "its event", begin(t, db, created("a", 10, "m-a")).Step, StepDone)
		same(t, "possible orphans", uncertain(t, db), []string{"a"})
		must(t, db.ResolveAttempt(ctx, c.Attempt.ID))
		same(t, "possible orphans, once it is resolved", uncertain(t, db), []string(nil))
	})
}

func TestResolveAttemptTakesOnlyPossibleOrphans(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		fail(t, db, claim(t, db, "unknown"), ambiguous)
		slept := claim(t, db, "orphaned")
		pass(db, Lease)
		made := claim(t, db, "orphaned")
		finish(t, db, made)
		finish(t, db, slept)
		refused := claim(t, db, "refused")
		fail(t, db, refused, unaccepted)
		sent := claim(t, db, "sent")
		for _, c := range []Claim{made, refused, sent} {
			before := attempts(t, db, c.Mapping.TenantID)
			if err := db.ResolveAttempt(ctx, c.Attempt.ID); err == nil {
				t.Errorf("attempt %s of tenant %s was resolved", c.Attempt.ID, c.Mapping.TenantID)
			}
			same(t, "an attempt that is no orphan", attempts(t, db, c.Mapping.TenantID), before)
		}
		if err := db.ResolveAttempt(ctx, "no such"); !errors.Is(err, ErrNotFound) {
			t.Errorf("an unknown attempt: %v, want ErrNotFound", err)
		}
		same(t, "possible orphans", uncertain(t, db), []string{"unknown", "orphaned"})
		must(t, db.ResolveAttempt(ctx, slept.Attempt.ID))
		same(t, "possible orphans, one resolved", uncertain(t, db), []string{"unknown"})
		same(t, "the resolved attempt keeps its outcome", outcomes(t, db, "orphaned"),
			[]Outcome{OutcomeOrphaned, OutcomeCreated})

		late := claim(t, db, "late")
		pass(db, Lease+time.Millisecond)
		finish(t, db, claim(t, db, "late"))
		must(t, db.ResolveAttempt(ctx, late.Attempt.ID))
		finish(t, db, late) // this dashboard could not have been found before
		same(t, "an orphan that came after its attempt was resolved", uncertain(t, db),
			[]string{"unknown", "sent", "late"})
	})
}

// Of the dashboards that the stream tells of, the newest wins, unless the database has a newer one.
func TestRestoreTakesTheNewestDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		restore := func(tenant, id string, ago time.Duration) string {
			t.Helper()
			must(t, db.Restore(ctx, Dashboard{TenantID: tenant, WorkspaceID: "w", ID: id,
				CreatedEvent: minute(10), SetAt: db.now().Add(-ago)}))
			return mapping(t, db, tenant).DashboardID
		}
		play(t, db, "adopted", "a10=1") // and replaced after the backup
		pass(db, time.Hour)
		same(t, "a replaced dashboard", restore("adopted", "new", 0), "new")
		same(t, "possible orphans", uncertain(t, db), []string{"adopted"})
		same(t, "its tenant.created again",
			adopt(t, db, adopting("adopted", 10, "of adopted1")).Step, StepDone)
		same(t, "a later one", adopt(t, db, adopting("adopted", 1_000_000, "third")).Step, StepConflict)

		play(t, db, "back", "a10=1 replace")
		pass(db, time.Hour)
		same(t, "one that was replaced, and taken back after the backup",
			restore("back", "of back1", 0), "of back1")

		play(t, db, "live", "a10=1")
		pass(db, time.Hour)
		replace(t, db, "live", "newer")
		same(t, "one from before the last correction", restore("live", "of live1", time.Hour), "newer")
	})
}
