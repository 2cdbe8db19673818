package repo

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// held brings a new tenant to where a person has to look: a create of minute 10 has an unknown outcome.
func held(t fataler, db *DB, tenant string) Claim {
	t.Helper()
	c := claim(t, db, tenant)
	same(t, "stage", fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true}).Stage, Held)
	return c
}

// told makes the event that tells of a settled tenant from the mapping as it is committed.
func told(m Mapping) (Notice, error) {
	n := note(fmt.Sprintf("%s is %s with %q in generation %d", m.TenantID, m.Status, m.DashboardID, m.Generation))
	n.OriginalID, n.OriginalTime = m.CreatedEventID, m.CreatedEvent
	return n, nil
}

func resolve(t fataler, db *DB, tenant, dashboardID string) Mapping {
	t.Helper()
	m, err := db.Resolve(ctx, tenant, dashboardID, told)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the mapping that Resolve returns", m, mapping(t, db, tenant))
	return m
}

func recreate(t fataler, db *DB, tenant string) Mapping {
	t.Helper()
	m, err := db.Recreate(ctx, tenant, told)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the mapping that Recreate returns", m, mapping(t, db, tenant))
	return m
}

// uncertain lists the tenants of the possible orphans that nobody has settled.
func uncertain(t fataler, db *DB) (tenants []string) {
	t.Helper()
	list, err := db.UncertainAttempts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range list {
		tenants = append(tenants, u.TenantID)
	}
	return tenants
}

// snapshot is all that a write which is refused must leave as it is.
func snapshot(t fataler, db *DB, tenant string) []any {
	t.Helper()
	return []any{mapping(t, db, tenant), attempts(t, db, tenant), unsent(t, db, 100)}
}

func TestAHeldTenantIsResolvedWithTheDashboardThatWasFound(t *testing.T) {
	onBoth(t, testAHeldTenantIsResolvedWithTheDashboardThatWasFound)
}

func testAHeldTenantIsResolvedWithTheDashboardThatWasFound(t *testing.T) {
	db := openTest(t)
	c := held(t, db, "a")
	pass(db, time.Hour)
	m := resolve(t, db, "a", "found")
	same(t, "the mapping", []any{m.Status, m.DashboardID, m.Generation, m.FailedCode, m.FailedError, m.UpdatedAt},
		[]any{Active, "found", 1, "", "", at(db.now())})
	a := attempts(t, db, "a")
	same(t, "its attempt", []any{len(a), a[0].Outcome, a[0].DashboardID, a[0].SettledAt}, []any{1, Made, "found", at(db.now())})
	same(t, "events out", unsent(t, db, 10), []string{"held-" + c.Attempt.ID, `a is active with "found" in generation 1`})
	same(t, "possible orphans", uncertain(t, db), []string(nil))
	for _, message := range []string{"m-a", "another"} {
		same(t, "its tenant.created again", begin(t, db, created("a", 10, message)).Step, Done)
	}
}

func TestResolvingLeavesAccessToTheEvents(t *testing.T) {
	onBoth(t, testResolvingLeavesAccessToTheEvents)
}

func testResolvingLeavesAccessToTheEvents(t *testing.T) {
	db := openTest(t)
	held(t, db, "suspended")
	change(t, db, "suspended", Suspended, 12)
	same(t, "a suspended tenant", resolve(t, db, "suspended", "d1").Status, Suspended)
	change(t, db, "suspended", Active, 13)
	same(t, "resumed", mapping(t, db, "suspended").Status, Active)

	c := held(t, db, "deleted")
	change(t, db, "deleted", Deleted, 12)
	m := resolve(t, db, "deleted", "d2")
	same(t, "a deleted tenant", []any{m.Status, m.DashboardID}, []any{Deleted, "d2"})
	same(t, "events out of a deleted tenant", unsent(t, db, 10)[2:], []string{"held-" + c.Attempt.ID}) // nothing is announced
	again := begin(t, db, created("deleted", 13, "again"))
	same(t, "created again", []any{again.Step, again.Mapping.Generation, again.Mapping.DashboardID}, []any{Create, 2, ""})
}

func TestResolveTakesTheNewestUnknownAttemptOfTheGeneration(t *testing.T) {
	onBoth(t, testResolveTakesTheNewestUnknownAttemptOfTheGeneration)
}

func testResolveTakesTheNewestUnknownAttemptOfTheGeneration(t *testing.T) {
	db := openTest(t)
	fail(t, db, claim(t, db, "a"), ambiguous) // of generation 1
	change(t, db, "a", Deleted, 20)
	e := created("a", 30, "second")
	fail(t, db, begin(t, db, e), ambiguous)
	pass(db, time.Millisecond)
	fail(t, db, begin(t, db, e), Failure{Result: ambiguous.Result, Hold: true})
	resolve(t, db, "a", "found")
	same(t, "attempts", outcomes(t, db, "a"), []Outcome{Uncertain, Uncertain, Made})
	same(t, "possible orphans", uncertain(t, db), []string{"a", "a"})

	fail(t, db, claim(t, db, "b"), ambiguous)
	change(t, db, "b", Deleted, 20)
	c := begin(t, db, created("b", 30, "second"))
	fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true})
	c.Mapping.Epoch-- // as if another had held it
	finish(t, db, c)
	resolve(t, db, "b", "found elsewhere")
	same(t, "attempts of which none can have made it", outcomes(t, db, "b"), []Outcome{Uncertain, Orphaned})
}

func TestOnlyAHeldTenantIsSettled(t *testing.T) { onBoth(t, testOnlyAHeldTenantIsSettled) }

func testOnlyAHeldTenantIsSettled(t *testing.T) {
	db := openTest(t)
	for _, script := range []string{
		"s12", "d12", "c10", "c10 retry", "c10 lapse", "c10 make", "c10 make s12", "c10 refuse", "c10 make d20", "c10 hold d20 c21",
	} {
		play(t, db, script, script)
		before := snapshot(t, db, script)
		if _, err := db.Resolve(ctx, script, "found", told); !errors.Is(err, ErrNotHeld) {
			t.Errorf("resolving %q: %v, want ErrNotHeld", script, err)
		}
		if _, err := db.Recreate(ctx, script, told); !errors.Is(err, ErrNotHeld) {
			t.Errorf("creating %q again: %v, want ErrNotHeld", script, err)
		}
		same(t, script, snapshot(t, db, script), before)
	}
	for _, settle := range []func() (Mapping, error){
		func() (Mapping, error) { return db.Resolve(ctx, "nobody", "found", told) },
		func() (Mapping, error) { return db.Recreate(ctx, "nobody", told) },
	} {
		if _, err := settle(); !errors.Is(err, ErrNotFound) {
			t.Errorf("an unknown tenant: %v, want ErrNotFound", err)
		}
	}
	same(t, "an unknown tenant's row", mapping(t, db, "nobody"), Mapping{})

	held(t, db, "a")
	resolve(t, db, "a", "found")
	if _, err := db.Resolve(ctx, "a", "other", told); !errors.Is(err, ErrNotHeld) {
		t.Errorf("resolving twice: %v, want ErrNotHeld", err)
	}
}

func TestAHeldTenantIsNotResolvedWithAnothersDashboard(t *testing.T) {
	onBoth(t, testAHeldTenantIsNotResolvedWithAnothersDashboard)
}

func testAHeldTenantIsNotResolvedWithAnothersDashboard(t *testing.T) {
	db := openTest(t)
	finish(t, db, claim(t, db, "owner"))
	slept := claim(t, db, "orphan")
	pass(db, Lease)
	finish(t, db, claim(t, db, "orphan"))
	finish(t, db, slept)
	held(t, db, "a")
	before := snapshot(t, db, "a")
	for what, id := range map[string]string{"a mapping's": mapping(t, db, "owner").DashboardID, "an orphaned attempt's": dashboard(slept)} {
		if _, err := db.Resolve(ctx, "a", id, told); !errors.Is(err, ErrTaken) {
			t.Errorf("%s dashboard: %v, want ErrTaken", what, err)
		}
		same(t, what, snapshot(t, db, "a"), before)
	}
	resolve(t, db, "a", "found")
}

func TestSettlingWithoutItsEventOutSettlesNothing(t *testing.T) {
	onBoth(t, testSettlingWithoutItsEventOutSettlesNothing)
}

func testSettlingWithoutItsEventOutSettlesNothing(t *testing.T) {
	db := openTest(t)
	c := held(t, db, "a")
	before := snapshot(t, db, "a")
	wrong := errors.New("no event")
	for what, n := range map[string]func(Mapping) (Notice, error){
		"no event":           func(Mapping) (Notice, error) { return Notice{}, wrong },
		"an event of its id": func(Mapping) (Notice, error) { return note("held-" + c.Attempt.ID), nil },
	} {
		if _, err := db.Resolve(ctx, "a", "found", n); err == nil {
			t.Errorf("%s: resolved", what)
		}
		if _, err := db.Recreate(ctx, "a", n); err == nil {
			t.Errorf("%s: created again", what)
		}
		same(t, what, snapshot(t, db, "a"), before)
	}
}

func TestAHeldTenantThatIsCreatedAgainPublishesItsOwnEventAgain(t *testing.T) {
	onBoth(t, testAHeldTenantThatIsCreatedAgainPublishesItsOwnEventAgain)
}

func testAHeldTenantThatIsCreatedAgainPublishesItsOwnEventAgain(t *testing.T) {
	for _, hold := range []bool{false, true} {
		db := openTest(t)
		first := held(t, db, "a")
		m := recreate(t, db, "a")
		same(t, "the mapping", []any{m.Status, m.Generation, m.ClaimableAt, m.Failures, m.FailedCode, m.FailedError}, []any{Pending, 1, Time{}, 0, "", ""})
		same(t, "its attempt", outcomes(t, db, "a"), []Outcome{Uncertain})
		same(t, "possible orphans", uncertain(t, db), []string{"a"}) // until a person has looked
		list, err := db.Unsent(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		again := list[len(list)-1]
		same(t, "the event that is published again", []any{again.EventID, again.OriginalID, time.Unix(0, again.OriginalTime).UTC()},
			[]any{`a is pending with "" in generation 1`, "event-m-a", minute(10)})

		same(t, "the first holder's dashboard is recorded", finish(t, db, first), false)
		same(t, "the mapping after it", mapping(t, db, "a"), m)
		second := beginWith(t, db, created("a", 10, "again"), hold)
		same(t, "when it arrives", []any{second.Step, second.Mapping.Generation}, []any{Create, 1})
		same(t, "attempts", outcomes(t, db, "a"), []Outcome{Orphaned, Sent})
		same(t, "the first holder's dashboard is recorded", finish(t, db, first), false)
		same(t, "the second's", finish(t, db, second), true)
		same(t, "attempts at the end", outcomes(t, db, "a"), []Outcome{Orphaned, Made})
		same(t, "the dashboard", mapping(t, db, "a").DashboardID, dashboard(second))
	}
}

func TestCreatingAHeldTenantAgainLeavesItSuspendedAndIsRefusedWhenItIsDeleted(t *testing.T) {
	onBoth(t, testCreatingAHeldTenantAgainLeavesItSuspendedAndIsRefusedWhenItIsDeleted)
}

func testCreatingAHeldTenantAgainLeavesItSuspendedAndIsRefusedWhenItIsDeleted(t *testing.T) {
	db := openTest(t)
	held(t, db, "suspended")
	change(t, db, "suspended", Suspended, 12)
	same(t, "a suspended tenant", recreate(t, db, "suspended").Status, Suspended)
	c := begin(t, db, created("suspended", 10, "again"))
	same(t, "its event", c.Step, Create)
	finish(t, db, c)
	same(t, "with its dashboard", mapping(t, db, "suspended").Status, Suspended)

	held(t, db, "deleted")
	change(t, db, "deleted", Deleted, 12)
	before := snapshot(t, db, "deleted")
	if m, err := db.Recreate(ctx, "deleted", told); err == nil {
		t.Errorf("a deleted tenant is created again: %+v", m)
	}
	same(t, "a deleted tenant", snapshot(t, db, "deleted"), before)
}

// A holder that slept through the hold and its settling comes back with an answer of its own.
func TestAHolderThatSleptDoesNotUndoWhatAPersonSettled(t *testing.T) {
	onBoth(t, testAHolderThatSleptDoesNotUndoWhatAPersonSettled)
}

func testAHolderThatSleptDoesNotUndoWhatAPersonSettled(t *testing.T) {
	db := openTest(t)
	asleep := func(tenant string) (slept Claim) { // while another holder found its attempt and held the tenant
		t.Helper()
		slept = beginWith(t, db, created(tenant, 10, "m-"+tenant), true)
		pass(db, Lease)
		settler := beginWith(t, db, created(tenant, 10, "m-"+tenant), true)
		same(t, "what the next holder has to do", settler.Step, Settle)
		fail(t, db, settler, Failure{Result: ambiguous.Result, Hold: true})
		return slept
	}

	slept := asleep("its own")
	want := resolve(t, db, "its own", dashboard(slept)) // it was found at Papermap by its mark
	out := unsent(t, db, 100)
	finish(t, db, slept)
	same(t, "the mapping after its own dashboard came late", mapping(t, db, "its own"), want)
	same(t, "its attempt", outcomes(t, db, "its own"), []Outcome{Made}) // an orphan would be deleted at Papermap by its id
	same(t, "possible orphans", uncertain(t, db), []string(nil))
	same(t, "events out", unsent(t, db, 100), out)

	slept = asleep("another's")
	want = resolve(t, db, "another's", "found")
	same(t, "another dashboard is recorded", finish(t, db, slept), false)
	same(t, "the mapping after another dashboard came late", mapping(t, db, "another's"), want)
	same(t, "its attempt", attempts(t, db, "another's")[0].Outcome, Orphaned)
	same(t, "its dashboard", attempts(t, db, "another's")[0].DashboardID, dashboard(slept))

	slept = asleep("failing")
	want = resolve(t, db, "failing", "found by its mark")
	same(t, "the mapping that follows from a late failure", fail(t, db, slept, ambiguous), want)
	same(t, "its attempt", outcomes(t, db, "failing"), []Outcome{Made}) // the person knows more than the holder

	slept = asleep("orphaned first")
	finish(t, db, slept)
	same(t, "possible orphans", uncertain(t, db), []string{"another's", "orphaned first"})
	resolve(t, db, "orphaned first", dashboard(slept))
	same(t, "its attempt, once its dashboard is the tenant's", outcomes(t, db, "orphaned first"), []Outcome{Made})
	same(t, "possible orphans", uncertain(t, db), []string{"another's"})
}

// The next holder gives up an attempt that it finds in two commits, Begin and Fail.
func TestWhatASleeperSaysWhileItsAttemptIsGivenUpCounts(t *testing.T) {
	onBoth(t, testWhatASleeperSaysWhileItsAttemptIsGivenUpCounts)
}

func testWhatASleeperSaysWhileItsAttemptIsGivenUpCounts(t *testing.T) {
	givenUp := Failure{Result: ambiguous.Result, Hold: true}
	db := openTest(t)
	between := func(tenant string) (slept, settler Claim) {
		t.Helper()
		slept = claim(t, db, tenant)
		pass(db, Lease)
		settler = beginWith(t, db, created(tenant, 10, "m-"+tenant), true)
		same(t, "what the next holder has to do", settler.Step, Settle)
		return slept, settler
	}

	slept, settler := between("made")
	finish(t, db, slept)
	before := attempts(t, db, "made")
	m := fail(t, db, settler, givenUp)
	same(t, "an attempt that made a dashboard", attempts(t, db, "made"), before)
	same(t, "its outcome and dashboard", []any{before[0].Outcome, before[0].DashboardID}, []any{Orphaned, dashboard(slept)})
	same(t, "its tenant", m.Stage, Held) // a person can give it that dashboard
	if !strings.Contains(m.FailedError, dashboard(slept)) {
		t.Errorf("why it is held: %q does not name the dashboard", m.FailedError)
	}

	slept, settler = between("refused")
	fail(t, db, slept, unaccepted)
	before = attempts(t, db, "refused")
	m = fail(t, db, settler, givenUp)
	same(t, "an attempt that made nothing", attempts(t, db, "refused"), before)
	same(t, "its outcome", before[0].Outcome, NotAccepted)
	same(t, "its tenant", []any{m.Stage, begin(t, db, created("refused", 10, "m-refused")).Step}, []any{Pending, Create})

	slept, settler = between("refused later")
	pass(db, Lease)
	next := beginWith(t, db, created("refused later", 10, "m-refused later"), true)
	fail(t, db, slept, unaccepted)
	before = attempts(t, db, "refused later")
	fail(t, db, settler, givenUp) // it slept, too
	same(t, "an attempt of which its settler knows nothing", attempts(t, db, "refused later"), before)
	same(t, "its tenant", fail(t, db, next, givenUp).Stage, Pending)
}

// A worker was killed, and its tenant deleted.
func TestAnAttemptThatStaysSentCanBeSettled(t *testing.T) {
	onBoth(t, testAnAttemptThatStaysSentCanBeSettled)
}

func testAnAttemptThatStaysSentCanBeSettled(t *testing.T) {
	db := openTest(t)
	c := claim(t, db, "a")
	change(t, db, "a", Deleted, 20)
	pass(db, Lease+time.Millisecond)
	same(t, "its event", begin(t, db, created("a", 10, "m-a")).Step, Done)
	same(t, "possible orphans", uncertain(t, db), []string{"a"})
	if err := db.SettleAttempt(ctx, c.Attempt.ID); err != nil {
		t.Fatal(err)
	}
	same(t, "possible orphans, once it is settled", uncertain(t, db), []string(nil))
}

func TestAPossibleOrphanIsSettledOnceAndNothingElseIs(t *testing.T) {
	onBoth(t, testAPossibleOrphanIsSettledOnceAndNothingElseIs)
}

func testAPossibleOrphanIsSettledOnceAndNothingElseIs(t *testing.T) {
	db := openTest(t)
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
		if err := db.SettleAttempt(ctx, c.Attempt.ID); err == nil {
			t.Errorf("attempt %s of tenant %s was settled", c.Attempt.ID, c.Mapping.TenantID)
		}
		same(t, "an attempt that is no orphan", attempts(t, db, c.Mapping.TenantID), before)
	}
	if err := db.SettleAttempt(ctx, "no such"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown attempt: %v, want ErrNotFound", err)
	}
	same(t, "possible orphans", uncertain(t, db), []string{"unknown", "orphaned"})
	if err := db.SettleAttempt(ctx, slept.Attempt.ID); err != nil {
		t.Fatal(err)
	}
	same(t, "possible orphans, one settled", uncertain(t, db), []string{"unknown"})
	same(t, "the settled attempt keeps its outcome", outcomes(t, db, "orphaned"), []Outcome{Orphaned, Made})

	late := claim(t, db, "late")
	pass(db, Lease+time.Millisecond)
	finish(t, db, claim(t, db, "late"))
	if err := db.SettleAttempt(ctx, late.Attempt.ID); err != nil {
		t.Fatal(err)
	}
	finish(t, db, late) // nobody could have found this dashboard before
	same(t, "an orphan that came after its attempt was settled", uncertain(t, db), []string{"unknown", "sent", "late"})
}

func TestAnAdoptedDashboardIsNotMadeAgain(t *testing.T) {
	onBoth(t, testAnAdoptedDashboardIsNotMadeAgain)
}

func testAnAdoptedDashboardIsNotMadeAgain(t *testing.T) {
	db := openTest(t)
	adopt := func(tenant, id string, n int) Mapping {
		t.Helper()
		d := Dashboard{TenantID: tenant, WorkspaceID: "w", ID: id, Title: "Dashboard - " + id}
		if n > 0 {
			d.CreatedEvent = minute(n)
		}
		if err := db.Adopt(ctx, d); err != nil {
			t.Fatal(err)
		}
		return mapping(t, db, tenant)
	}
	for tenant, before := range map[string]string{"new": "", "suspended": "s12", "begun": "c10", "retried": "c10 retry", "held": "c10 hold", "failed": "c10 refuse"} {
		play(t, db, tenant, before)
		m := adopt(tenant, "of "+tenant, 10)
		want := Active
		if tenant == "suspended" {
			want = Suspended
		}
		same(t, tenant, []any{m.Status, m.DashboardID, m.Title, m.Generation}, []any{want, "of " + tenant, "Dashboard - of " + tenant, 1})
		same(t, tenant+": its event, published again", begin(t, db, created(tenant, 10, "again")).Step, Done)
		pass(db, time.Millisecond)
		same(t, tenant+": adopted twice", adopt(tenant, "of "+tenant, 10), m)
	}

	play(t, db, "older", "c10 make")
	m := adopt("older", "newer", 30) // the backup knows generation 1, the stream tells of the next
	same(t, "another generation", []any{m.Status, m.DashboardID, m.Generation}, []any{Active, "newer", 2})
	change(t, db, "older", Deleted, 20)
	same(t, "the deletion between them, published again", mapping(t, db, "older").Status, Active)
	change(t, db, "older", Deleted, 40)
	same(t, "one after them", mapping(t, db, "older").Status, Deleted)

	play(t, db, "deleted", "d20")
	same(t, "a tenant deleted since", adopt("deleted", "of deleted", 10).Status, Deleted)
	same(t, "an event older than the stream", adopt("eldest", "of eldest", 0).Status, Active)
	same(t, "events out", len(unsent(t, db, 100)), 3) // of held, failed and older before: adopting tells nobody what the stream said

	play(t, db, "later", "c30")
	adopt("later", "of later", 10)
	change(t, db, "later", Deleted, 20)
	same(t, "a tenant of a later event", mapping(t, db, "later").Status, Active)

	slept := claim(t, db, "fenced")
	m = adopt("fenced", "of fenced", 10)
	same(t, "a holder from before", finish(t, db, slept), false)
	same(t, "the mapping after it", mapping(t, db, "fenced"), m)

	before := snapshot(t, db, "held")
	err := db.Adopt(ctx, Dashboard{TenantID: "held", WorkspaceID: "w", ID: "of new"})
	if !errors.Is(err, ErrTaken) {
		t.Errorf("another tenant's dashboard: %v, want ErrTaken", err)
	}
	same(t, "after another tenant's dashboard", snapshot(t, db, "held"), before)
}

func TestADashboardThatTheDatabaseKnowsIsNotAdoptedAgain(t *testing.T) {
	onBoth(t, testADashboardThatTheDatabaseKnowsIsNotAdoptedAgain)
}

func testADashboardThatTheDatabaseKnowsIsNotAdoptedAgain(t *testing.T) {
	db := openTest(t)
	c := claim(t, db, "a")
	finish(t, db, c)
	older := dashboard(c)
	if _, err := db.Change(ctx, Change{TenantID: "a", WorkspaceID: c.Mapping.WorkspaceID, To: Deleted, EventTime: time.Unix(1_000_000, 0)}); err != nil {
		t.Fatal(err)
	}
	begin(t, db, created("a", 2_000_000, "again"))
	before := mapping(t, db, "a")
	if err := db.Adopt(ctx, Dashboard{TenantID: "a", WorkspaceID: c.Mapping.WorkspaceID, ID: older, Title: "old"}); err != nil {
		t.Fatal(err)
	}
	same(t, "the mapping", mapping(t, db, "a"), before)
}

// The worker has made a dashboard of its own while the stream was read.
func TestADashboardThatAnAdoptedOneReplacesBecomesAPossibleOrphan(t *testing.T) {
	onBoth(t, testADashboardThatAnAdoptedOneReplacesBecomesAPossibleOrphan)
}

func testADashboardThatAnAdoptedOneReplacesBecomesAPossibleOrphan(t *testing.T) {
	db := openTest(t)
	adopt := func(tenant string) {
		t.Helper()
		if err := db.Adopt(ctx, Dashboard{TenantID: tenant, WorkspaceID: "w", ID: "of " + tenant, CreatedEvent: minute(30)}); err != nil {
			t.Fatal(err)
		}
	}
	c := claim(t, db, "a")
	finish(t, db, c)
	adopt("a")
	same(t, "the dashboard", mapping(t, db, "a").DashboardID, "of a")
	same(t, "its attempts", outcomes(t, db, "a"), []Outcome{Orphaned})
	same(t, "possible orphans", uncertain(t, db), []string{"a"})

	play(t, db, "deleted between", "c10 make d20")
	adopt("deleted between")
	same(t, "attempts of a generation that had ended", outcomes(t, db, "deleted between"), []Outcome{Made})
	same(t, "possible orphans", uncertain(t, db), []string{"a"})
}
