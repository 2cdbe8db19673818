package repo

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

var stepNames = map[Step]string{Done: "Done", Create: "Create", Wait: "Wait", Settle: "Settle", Refused: "Refused", Elsewhere: "Elsewhere"}

// deliver hands an event over once: c, s, r or d for created, suspended, resumed or deleted, and its minute.
// A created comes as the stored message of the name given; only then is there a claim.
func deliver(t fataler, db *DB, tenant, event, message string) Claim {
	t.Helper()
	n, err := strconv.Atoi(event[1:])
	if err != nil {
		t.Fatal(err)
	}
	if event[0] == 'c' {
		return begin(t, db, created(tenant, n, message))
	}
	before := mapping(t, db, tenant).Status
	if before == "" {
		before = Pending // what a tenant's row begins with
	}
	changed := change(t, db, tenant, map[byte]Status{'s': Suspended, 'r': Active, 'd': Deleted}[event[0]], n)
	same(t, fmt.Sprintf("whether %s changed the status of %q", event, tenant), changed, mapping(t, db, tenant).Status != before)
	return Claim{}
}

// play brings a new tenant into a state: "c10 make d20" is created at minute 10, its dashboard made, deleted at minute 20.
func play(t fataler, db *DB, tenant, script string) {
	t.Helper()
	var c Claim
	for _, step := range strings.Fields(script) {
		switch step {
		case "make":
			same(t, "recorded", finish(t, db, c), true)
		case "retry":
			fail(t, db, c, unaccepted)
		case "later":
			f := unaccepted
			f.Retry = maxRetry
			fail(t, db, c, f)
		case "hold":
			fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true})
		case "refuse":
			fail(t, db, c, Failure{Result: unaccepted.Result, Permanent: true})
		case "lapse":
			pass(db, Lease)
		default:
			c = deliver(t, db, tenant, step, step)
		}
	}
}

// Every state, and what a created, suspended, resumed and deleted of three times each make of it: one entry for all
// three, or one for each. For created the step that is to be taken, and the status and generation committed with it.
var transitions = []struct{ state, created, suspended, resumed, deleted string }{ // created 5 20 21, suspended and resumed 5 12 25, deleted 5 10 25
	{"", "Create/creating/1", "suspended", "pending", "deleted"},
	{"s12", "Create/suspended/1", "suspended", "suspended suspended pending", "deleted"},
	{"r12", "Create/creating/1", "pending suspended suspended", "pending", "deleted"},
	{"d20", "Done/deleted/1 Done/deleted/1 Create/creating/1", "deleted", "deleted", "deleted"},
	{"d20 s25", "Done/deleted/1 Done/deleted/1 Create/suspended/1", "deleted", "deleted", "deleted"},

	{"c10 retry", "Create/creating/1", "suspended", "pending", "pending deleted deleted"},
	{"c10 later", "Wait/pending/1", "suspended", "pending", "pending deleted deleted"},
	{"c10", "Wait/creating/1", "suspended", "creating", "creating deleted deleted"},
	{"c10 lapse", "Create/creating/1", "suspended", "creating", "creating deleted deleted"},
	{"c10 make", "Done/active/1", "suspended", "active", "active deleted deleted"},
	{"c10 hold", "Done/held/1", "suspended", "held", "held deleted deleted"},
	{"c10 refuse", "Create/creating/2", "suspended", "failed", "failed deleted deleted"},

	{"c10 retry s12", "Create/suspended/1", "suspended", "suspended suspended pending", "suspended deleted deleted"},
	{"c10 s12", "Wait/suspended/1", "suspended", "suspended suspended creating", "suspended deleted deleted"},
	{"c10 make s12", "Done/suspended/1", "suspended", "suspended suspended active", "suspended deleted deleted"},
	{"c10 hold s12", "Done/suspended/1", "suspended", "suspended suspended held", "suspended deleted deleted"},
	{"c10 refuse s12", "Create/suspended/2", "suspended", "suspended suspended failed", "suspended deleted deleted"},
	{"c10 make s12 r12", "Done/suspended/1", "suspended", "suspended suspended active", "suspended deleted deleted"},
	{"c10 make s12 r13", "Done/active/1", "active active suspended", "active", "active deleted deleted"},

	{"c10 retry d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 later d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make d10", "Done/deleted/1 Create/creating/2 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 hold d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 refuse d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make s12 d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make s20 d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make d20 s25", "Done/deleted/1 Done/deleted/1 Create/suspended/2", "deleted", "deleted", "deleted"},

	// Created again: what is older than the deletion no longer counts.
	{"c10 make d20 c21 make", "Done/active/2", "active active suspended", "active", "active active deleted"},
	{"c10 make d20 c21 retry", "Done/pending/2 Done/pending/2 Create/creating/2", "pending pending suspended", "pending", "pending pending deleted"},
}

func TestEveryStateMeetsEveryEventAsTheContractSays(t *testing.T) {
	onBoth(t, testEveryStateMeetsEveryEventAsTheContractSays)
}

func testEveryStateMeetsEveryEventAsTheContractSays(t *testing.T) {
	db := openTest(t)
	for _, row := range transitions {
		t.Run(row.state, func(t *testing.T) {
			for _, column := range []struct{ events, want string }{
				{"c5 c20 c21", row.created}, {"s5 s12 s25", row.suspended}, {"r5 r12 r25", row.resumed}, {"d5 d10 d25", row.deleted},
			} {
				want := strings.Fields(column.want)
				for i, event := range strings.Fields(column.events) {
					want := want[min(i, len(want)-1)]
					tenant := row.state + " then " + event
					play(t, db, tenant, row.state)
					before := mapping(t, db, tenant)
					c := deliver(t, db, tenant, event, "another message")
					after := mapping(t, db, tenant)
					got := string(after.Status)
					if event[0] == 'c' {
						got = fmt.Sprintf("%s/%s/%d", stepNames[c.Step], after.Status, after.Generation)
						same(t, tenant+": the claim's mapping against the committed one", c.Mapping, after)
					}
					same(t, tenant, got, want)
					if c.Step == Create {
						finish(t, db, c)
						after := mapping(t, db, tenant)
						same(t, tenant+", finished", string(after.Status), strings.ReplaceAll(strings.Split(want, "/")[1], "creating", "active"))
						same(t, tenant+", its dashboard", after.DashboardID, dashboard(c))
					} else if before.TenantID != "" {
						same(t, tenant+", all but the access", provisioning(after), provisioning(before))
					}
				}
			}
		})
	}
}

// provisioning is what suspended, resumed and deleted leave as it is, and a created that changes nothing.
func provisioning(m Mapping) Mapping {
	m.Status, m.UpdatedAt, m.CreatedEventID = "", Time{}, ""
	m.CreatedEvent, m.DeletedEvent, m.SuspendedEvent, m.ResumedEvent = 0, 0, 0, 0
	return m
}

func TestACopyOfAnEventWritesNothing(t *testing.T) { onBoth(t, testACopyOfAnEventWritesNothing) }

func testACopyOfAnEventWritesNothing(t *testing.T) {
	db := openTest(t)
	for _, script := range []string{"c10", "c10 make", "c10 hold", "c10 refuse", "c10 make d20", "s12", "r12", "d20", "c10 make s12"} {
		play(t, db, script, script)
		before := mapping(t, db, script)
		pass(db, time.Millisecond)
		for _, event := range strings.Fields(script) {
			if strings.ContainsAny(event, "0123456789") {
				deliver(t, db, script, event, event)
			}
		}
		same(t, script, mapping(t, db, script), before)
	}
}

func TestANewGenerationTakesItsDetailsFromItsOwnEventAndForgetsFailures(t *testing.T) {
	onBoth(t, testANewGenerationTakesItsDetailsFromItsOwnEventAndForgetsFailures)
}

func testANewGenerationTakesItsDetailsFromItsOwnEventAndForgetsFailures(t *testing.T) {
	db := openTest(t)
	play(t, db, "a", "d5 c10 make d20")
	same(t, "an event of a tenant that exists", mapping(t, db, "a").Title, "Dashboard - a")
	e := created("a", 30, "m2")
	e.WorkspaceID, e.Title, e.Description, e.CreatedBy = "w2", "New", "about", "me"
	c := begin(t, db, e)
	m := c.Mapping
	same(t, "generation 2", []any{m.Generation, m.WorkspaceID, m.Title, m.Description, m.CreatedBy, m.Failures, m.FailedCode, m.FailedError, m.DashboardID},
		[]any{2, "w2", "New", "about", "me", 0, "", "", ""})
	same(t, "its attempt", c.Attempt, Attempt{
		ID: c.Attempt.ID, WorkspaceID: "w2", TenantID: "a", Generation: 2, Mark: "pmw:" + c.Attempt.ID, Outcome: Sent, StartedAt: at(db.now()),
	})
	same(t, "the attempt as committed", attempts(t, db, "a")[1], c.Attempt)
	e.Title, e.WorkspaceID = "Other", "w3"
	same(t, "an event of a tenant that is being provisioned", begin(t, db, e).Mapping, m)
}

func TestRedeliveryOfAFailedMessageFailsAgainAndAnotherMessageTriesAnew(t *testing.T) {
	onBoth(t, testRedeliveryOfAFailedMessageFailsAgainAndAnotherMessageTriesAnew)
}

func testRedeliveryOfAFailedMessageFailsAgainAndAnotherMessageTriesAnew(t *testing.T) {
	db := openTest(t)
	first := created("a", 10, "1-1")
	fail(t, db, begin(t, db, first), Failure{Result: Result{Outcome: NotAccepted, HTTPStatus: 422, Error: "bad title"}, Code: "API_REFUSED", Permanent: true})
	for range 2 {
		c := begin(t, db, first)
		same(t, "the same message again", []any{c.Step, c.Mapping.Status, c.Mapping.FailedCode, c.Mapping.FailedError, c.Mapping.Generation},
			[]any{Refused, Failed, "API_REFUSED", "bad title", 1})
	}
	same(t, "attempts", outcomes(t, db, "a"), []Outcome{NotAccepted})

	replay := first // the same event, published again: event id and time are the same, the stored message is another
	replay.Message = "1-2"
	c := begin(t, db, replay)
	same(t, "another message", []any{c.Step, c.Mapping.Status, c.Mapping.Generation}, []any{Create, Creating, 2})
	same(t, "the first message while the second is in hand", begin(t, db, first).Step, Wait)
	finish(t, db, c)
	same(t, "the first message after the second succeeded", begin(t, db, first).Step, Done)

	// Superseded is more than failed.
	play(t, db, "b", "c10 refuse d20")
	same(t, "a failed message of a tenant deleted since", deliver(t, db, "b", "c10", "c10").Step, Done)
}

func TestWhileALeaseLivesOthersWaitAndAfterItTheClaimPassesOn(t *testing.T) {
	onBoth(t, testWhileALeaseLivesOthersWaitAndAfterItTheClaimPassesOn)
}

func testWhileALeaseLivesOthersWaitAndAfterItTheClaimPassesOn(t *testing.T) {
	db := openTest(t)
	started := time.Now()
	first := claim(t, db, "a")
	if first.Until.Before(started.Add(Lease)) || first.Until.After(time.Now().Add(Lease)) {
		t.Errorf("the lease ends %s after it began, want %s", first.Until.Sub(started), Lease)
	}
	pass(db, Lease-time.Millisecond)
	for _, message := range []string{"m-a", "other"} {
		c := begin(t, db, created("a", 10, message))
		same(t, "before the end of the lease", []any{c.Step, c.Wait, c.Attempt}, []any{Wait, time.Millisecond, Attempt{}})
	}
	pass(db, time.Millisecond)
	second := claim(t, db, "a")
	same(t, "attempts after the second claim", outcomes(t, db, "a"), []Outcome{Uncertain, Sent})
	old := attempts(t, db, "a")[0]
	same(t, "the first attempt", []any{old.Error, old.FinishedAt}, []any{"the worker stopped before an answer came", at(db.now())})
	same(t, "the epoch has grown", second.Mapping.Epoch > first.Mapping.Epoch, true)

	// The first holder wakes, before and after the second is done.
	before := mapping(t, db, "a")
	same(t, "the slept holder's dashboard is recorded", finish(t, db, first), false)
	same(t, "the mapping after the slept holder finished", mapping(t, db, "a"), before)
	same(t, "attempts after the slept holder finished", outcomes(t, db, "a"), []Outcome{Orphaned, Sent})
	same(t, "the orphan", attempts(t, db, "a")[0].DashboardID, dashboard(first))
	same(t, "the second holder's dashboard is recorded", finish(t, db, second), true)
	done := mapping(t, db, "a")
	same(t, "the slept holder's dashboard is recorded", finish(t, db, first), false)
	same(t, "the mapping at the end", mapping(t, db, "a"), done)
	same(t, "its dashboard", done.DashboardID, dashboard(second))
	same(t, "attempts at the end", outcomes(t, db, "a"), []Outcome{Orphaned, Made})
	same(t, "events out", unsent(t, db, 10), []string{"created-" + second.Attempt.ID})
}

func TestAHolderWhoSleptAndWasNotReplacedMayFinish(t *testing.T) {
	onBoth(t, testAHolderWhoSleptAndWasNotReplacedMayFinish)
}

func testAHolderWhoSleptAndWasNotReplacedMayFinish(t *testing.T) {
	db := openTest(t)
	c := claim(t, db, "a")
	pass(db, time.Hour)
	same(t, "recorded", finish(t, db, c), true)
	same(t, "status", mapping(t, db, "a").Status, Active)
}

func TestAFencedHoldersFailureSettlesItsAttemptAlone(t *testing.T) {
	onBoth(t, testAFencedHoldersFailureSettlesItsAttemptAlone)
}

func testAFencedHoldersFailureSettlesItsAttemptAlone(t *testing.T) {
	for name, f := range map[string]Failure{
		"retryable": unaccepted,
		"permanent": {Result: unaccepted.Result, Permanent: true},
		"hold":      {Result: ambiguous.Result, Hold: true},
		"most":      {Result: ambiguous.Result},
	} {
		db := openTest(t)
		first := claim(t, db, "a")
		pass(db, Lease)
		second := claim(t, db, "a")
		before := mapping(t, db, "a")
		same(t, name+": the mapping that follows", fail(t, db, first, f), before)
		same(t, name+": the mapping", mapping(t, db, "a"), before)
		same(t, name+": attempts", outcomes(t, db, "a"), []Outcome{f.Result.Outcome, Sent})
		same(t, name+": events out", unsent(t, db, 10), []string(nil))
		same(t, name+": the second holder's dashboard is recorded", finish(t, db, second), true)
	}
}

func TestANewGenerationFencesTheOldHolderAtOnce(t *testing.T) {
	onBoth(t, testANewGenerationFencesTheOldHolderAtOnce)
}

func testANewGenerationFencesTheOldHolderAtOnce(t *testing.T) {
	db := openTest(t)
	old := claim(t, db, "a")
	change(t, db, "a", Deleted, 20)
	c := begin(t, db, created("a", 21, "again"))
	same(t, "created again within the lease", []any{c.Step, c.Mapping.Generation}, []any{Create, 2})
	same(t, "the old holder's dashboard is recorded", finish(t, db, old), false)
	same(t, "the mapping", mapping(t, db, "a"), c.Mapping)
	same(t, "the new holder's dashboard is recorded", finish(t, db, c), true)
	same(t, "attempts", outcomes(t, db, "a"), []Outcome{Orphaned, Made})
	same(t, "the dashboard", mapping(t, db, "a").DashboardID, dashboard(c))
}

func TestWithHoldAnAttemptOfUnknownOutcomeIsHandedOverAndHolds(t *testing.T) {
	onBoth(t, testWithHoldAnAttemptOfUnknownOutcomeIsHandedOverAndHolds)
}

func testWithHoldAnAttemptOfUnknownOutcomeIsHandedOverAndHolds(t *testing.T) {
	db := openTest(t)
	first := beginWith(t, db, created("a", 10, "m"), true)
	same(t, "the first claim", first.Step, Create)
	for range 2 { // who takes it over may be killed, too
		same(t, "while the lease lives", beginWith(t, db, created("a", 10, "m"), true).Step, Wait)
		pass(db, Lease)
		c := beginWith(t, db, created("a", 10, "m"), true)
		same(t, "after the lease", []any{c.Step, c.Attempt}, []any{Settle, first.Attempt})
	}
	pass(db, Lease)
	c := beginWith(t, db, created("a", 10, "m"), true)
	f := ambiguous
	f.Hold = true
	m := fail(t, db, c, f)
	same(t, "the mapping that follows", m, mapping(t, db, "a"))
	same(t, "held", []any{m.Status, m.ClaimableAt}, []any{Held, Time{}})
	same(t, "attempts", outcomes(t, db, "a"), []Outcome{Uncertain})
	same(t, "events out", unsent(t, db, 10), []string{"held-" + first.Attempt.ID})
	for _, hold := range []bool{true, false} {
		same(t, "created again", beginWith(t, db, created("a", 30, "later"), hold).Step, Done)
	}
	same(t, "the first holder's dashboard is recorded", finish(t, db, first), false)
	same(t, "held still", mapping(t, db, "a").Status, Held)
	same(t, "the outcome, known now", outcomes(t, db, "a"), []Outcome{Orphaned})

	// An attempt of an older generation is nothing to settle in this one.
	beginWith(t, db, created("b", 10, "m"), true)
	change(t, db, "b", Deleted, 20)
	same(t, "a new generation", beginWith(t, db, created("b", 21, "m2"), true).Step, Create)
	same(t, "attempts of two generations", outcomes(t, db, "b"), []Outcome{Uncertain, Sent})
}

func TestAFailureCountsOnlyIfAnotherTenantSucceededSinceThePreviousOne(t *testing.T) {
	onBoth(t, testAFailureCountsOnlyIfAnotherTenantSucceededSinceThePreviousOne)
}

func testAFailureCountsOnlyIfAnotherTenantSucceededSinceThePreviousOne(t *testing.T) {
	for _, test := range []struct{ story, failures string }{
		{"fail", "0"},
		{"fail fail fail", "0 0 0"},
		{"other fail", "0"}, // the first never counts
		{"fail other fail", "0 1"},
		{"fail other fail fail other fail", "0 1 1 2"},
		{"fail other other fail", "0 1"},
		{"defer defer", "0 0"},
		{"defer other fail", "0 0"},
		{"fail other defer", "0 0"},
		{"fail other defer fail", "0 0 1"}, // a deferral is not the previous failure
		{"fail defer other fail", "0 0 1"},
		{"fail other unknown", "0 1"},
		{"fail bystander fail bystander fail", "0 0 0"}, // nobody succeeds
		{"fail elsewhere fail", "0 0"},                  // another workspace has another API
		{"fail other crash fail", "0 1"},
	} {
		db := openTest(t)
		var got []string
		for i, step := range strings.Fields(test.story) {
			pass(db, time.Millisecond)
			var f Failure
			switch step {
			case "other", "elsewhere":
				e := created(fmt.Sprint(step, i), 10, "m")
				if step == "elsewhere" {
					e.WorkspaceID = "w2"
				}
				finish(t, db, begin(t, db, e))
				continue
			case "bystander":
				fail(t, db, claim(t, db, fmt.Sprint(step, i)), unaccepted)
				continue
			case "crash":
				claim(t, db, "a")
				pass(db, Lease)
				continue
			case "fail":
				f = unaccepted
			case "unknown":
				f = ambiguous
			case "defer":
				f = unaccepted
				f.Deferral = true
			}
			m := fail(t, db, claim(t, db, "a"), f)
			same(t, test.story+": the mapping that follows", m, mapping(t, db, "a"))
			same(t, test.story+": status", m.Status, Pending)
			got = append(got, fmt.Sprint(m.Failures))
		}
		same(t, test.story, strings.Join(got, " "), test.failures)
	}
}

func TestRetryIsWaitedForByEveryMessage(t *testing.T) { onBoth(t, testRetryIsWaitedForByEveryMessage) }

func testRetryIsWaitedForByEveryMessage(t *testing.T) {
	db := openTest(t)
	f := unaccepted
	f.Retry = time.Minute
	fail(t, db, claim(t, db, "a"), f)
	for _, message := range []string{"m-a", "other"} {
		c := begin(t, db, created("a", 10, message))
		same(t, "before it is due", []any{c.Step, c.Wait}, []any{Wait, time.Minute})
	}
	pass(db, time.Minute)
	c := claim(t, db, "a")
	same(t, "a known outcome stays", outcomes(t, db, "a"), []Outcome{NotAccepted, Sent})
	finish(t, db, c)
	m := mapping(t, db, "a")
	same(t, "what failed is forgotten", []any{m.Failures, m.FailedAt, m.FailedCode, m.FailedError}, []any{0, Time{}, "", ""})
}

func TestAtMostFailuresTheTenantIsFailedAndThisIsToldOnce(t *testing.T) {
	onBoth(t, testAtMostFailuresTheTenantIsFailedAndThisIsToldOnce)
}

func testAtMostFailuresTheTenantIsFailedAndThisIsToldOnce(t *testing.T) {
	db := openTest(t)
	f := ambiguous
	f.Most, f.Retry = 2, time.Millisecond
	var last Claim
	for i, want := range []Status{Pending, Pending, Failed} {
		pass(db, time.Millisecond)
		last = claim(t, db, "a")
		same(t, fmt.Sprint("after failure ", i), fail(t, db, last, f).Status, want)
		pass(db, time.Millisecond)
		finish(t, db, claim(t, db, fmt.Sprint("other", i)))
	}
	for range 3 {
		same(t, "redelivery", claimStep(t, db, last.Message), Refused)
	}
	var told []string
	for _, id := range unsent(t, db, 10) {
		if !strings.HasPrefix(id, "created-") {
			told = append(told, id)
		}
	}
	same(t, "events out", told, []string{"failed-" + last.Attempt.ID})
	m := mapping(t, db, "a")
	same(t, "the mapping", []any{m.Failures, m.FailedMessage, m.FailedCode, m.FailedError}, []any{2, last.Message, "API_FAILED", "timeout"})
	c := begin(t, db, created("a", 10, "another"))
	same(t, "a new generation counts from the start", []any{c.Mapping.Generation, c.Mapping.Failures}, []any{2, 0})
}

func claimStep(t *testing.T, db *DB, message string) Step {
	return begin(t, db, created("a", 10, message)).Step
}

func TestADashboardOfAnotherTenantIsNotRecorded(t *testing.T) {
	onBoth(t, testADashboardOfAnotherTenantIsNotRecorded)
}

func testADashboardOfAnotherTenantIsNotRecorded(t *testing.T) {
	db := openTest(t)
	finish(t, db, claim(t, db, "owner"))
	slept := claim(t, db, "orphan")
	pass(db, Lease)
	finish(t, db, claim(t, db, "orphan"))
	finish(t, db, slept)
	f := ambiguous
	f.Result.DashboardID = "disputed"
	fail(t, db, claim(t, db, "unknown"), f)

	c := claim(t, db, "a")
	before, sent, waiting := mapping(t, db, "a"), attempts(t, db, "a"), unsent(t, db, 10)
	for what, id := range map[string]string{
		"a mapping's": mapping(t, db, "owner").DashboardID, "an orphaned attempt's": dashboard(slept), "an unknown attempt's": "disputed",
	} {
		recorded, err := db.Finish(ctx, c, id, 200, note("n"))
		if recorded || !errors.Is(err, ErrTaken) {
			t.Fatalf("%s dashboard: %v, %v; want ErrTaken", what, recorded, err)
		}
		same(t, what+": the mapping", mapping(t, db, "a"), before)
		same(t, what+": the attempts", attempts(t, db, "a"), sent)
		same(t, what+": events out", unsent(t, db, 10), waiting)
	}

	e := created("elsewhere", 10, "m")
	e.WorkspaceID = "w2"
	if recorded, err := db.Finish(ctx, begin(t, db, e), mapping(t, db, "owner").DashboardID, 200, note("n2")); !recorded || err != nil {
		t.Fatalf("the same id in another workspace: %v, %v", recorded, err)
	}
	same(t, "the claim after ErrTaken can go on", finish(t, db, c), true)
}
