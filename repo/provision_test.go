package repo

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestFinishRepeatedChangesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		c, err := db.Begin(ctx, Created{TenantID: "t", WorkspaceID: "w", Title: "T", EventID: "e",
			EventTime: time.Unix(1, 0), Message: "1-1"}, false)
		must(t, err)
		for range 2 {
			recorded, err := db.Finish(ctx, c, "d", 200, announce("n"))
			if err != nil || !recorded {
				t.Errorf("recorded %v, error %v", recorded, err)
			}
		}
		unsent, err := db.Unsent(ctx, 10)
		must(t, err)
		if len(unsent) != 1 {
			t.Errorf("%d events wait to be published, want 1", len(unsent))
		}
	})
}

func TestFailRepeatedChangesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
		for name, f := range map[string]Failure{
			"failed":  {Result: unaccepted.Result, Permanent: true},
			"held":    {Result: ambiguous.Result, Hold: true},
			"counted": {Result: ambiguous.Result, MaxFailures: 2},
		} {
			db := openTest(t)
			fail(t, db, claim(t, db, "a"), unaccepted)
			pass(db, time.Second)
			finish(t, db, claim(t, db, "another"))
			c := claim(t, db, "a")
			m := fail(t, db, c, f)
			before := snapshot(t, db, "a")
			pass(db, time.Second)
			finish(t, db, claim(t, db, "a third"))
			same(t, name+": the mapping that it returns", fail(t, db, c, f), m)
			same(t, name+": all that is stored of it", snapshot(t, db, "a")[:2], before[:2])
		}
	})
}

func TestBeginClaimsOnlyForTheTenantsWorkspace(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		fail(t, db, claim(t, db, "a"), unaccepted)
		e := created("a", 20, "of another workspace")
		e.WorkspaceID = "other"
		c := begin(t, db, e)
		same(t, "step, stage and workspace", []any{c.Step, c.Mapping.Stage, c.Mapping.WorkspaceID},
			[]any{StepElsewhere, Pending, "w"})
		same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeRefused})
		e.AllowedWorkspace = "w"
		c = begin(t, db, e)
		same(t, "step and workspace for the one that it is in", []any{c.Step, c.Attempt.WorkspaceID},
			[]any{StepCreate, "w"})

		play(t, db, "b", "c10 make d20")
		e = created("b", 30, "again")
		e.AllowedWorkspace = "other"
		c = begin(t, db, e)
		same(t, "step and status of a deleted tenant", []any{c.Step, c.Mapping.Status},
			[]any{StepElsewhere, Pending})
	})
}

// The next holder gives up an attempt that it finds in two commits, Begin and Fail.
func TestFailKeepsAnOutcomeRecordedMeanwhile(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
		givenUp := Failure{Result: ambiguous.Result, Hold: true}
		db := openTest(t)
		between := func(tenant string) (slept, successor Claim) {
			t.Helper()
			slept = claim(t, db, tenant)
			pass(db, Lease)
			successor = beginWith(t, db, created(tenant, 10, "m-"+tenant), true)
			same(t, "what the next holder has to do", successor.Step, StepRecordOutcome)
			return slept, successor
		}

		slept, successor := between("made")
		finish(t, db, slept)
		before := attempts(t, db, "made")
		m := fail(t, db, successor, givenUp)
		same(t, "an attempt that made a dashboard", attempts(t, db, "made"), before)
		same(t, "its outcome and dashboard", []any{before[0].Outcome, before[0].DashboardID},
			[]any{OutcomeOrphaned, dashboard(slept)})
		same(t, "its tenant", m.Stage, Held) // a person can give it that dashboard
		if !strings.Contains(m.FailedError, dashboard(slept)) {
			t.Errorf("why it is held: %q does not name the dashboard", m.FailedError)
		}

		slept, successor = between("refused")
		fail(t, db, slept, unaccepted)
		before = attempts(t, db, "refused")
		m = fail(t, db, successor, givenUp)
		same(t, "an attempt that made nothing", attempts(t, db, "refused"), before)
		same(t, "its outcome", before[0].Outcome, OutcomeRefused)
		same(t, "its tenant", []any{m.Stage, begin(t, db, created("refused", 10, "m-refused")).Step},
			[]any{Pending, StepCreate})

		slept, successor = between("refused later")
		pass(db, Lease)
		third := beginWith(t, db, created("refused later", 10, "m-refused later"), true)
		fail(t, db, slept, unaccepted)
		before = attempts(t, db, "refused later")
		fail(t, db, successor, givenUp) // it slept, too
		same(t, "an attempt of which its successor knows nothing", attempts(t, db, "refused later"), before)
		same(t, "its tenant", fail(t, db, third, givenUp).Stage, Pending)
	})
}

func TestBeginFailsARedeliveryOfAFailedMessage(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		first := created("a", 10, "1-1")
		fail(t, db, begin(t, db, first), Failure{Result: Result{Outcome: OutcomeRefused, HTTPStatus: 422,
			Error: "bad title"}, Code: "API_REFUSED", Permanent: true})
		for range 2 {
			c := begin(t, db, first)
			same(t, "the same message again",
				[]any{c.Step, c.Mapping.Status, c.Mapping.FailedCode, c.Mapping.FailedError,
					c.Mapping.Generation},
				[]any{StepRefused, Failed, "API_REFUSED", "bad title", 1})
		}
		same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeRefused})

		// the same event, published again: event id and time are the same, the stored message is
		// another
		replay := first
		replay.Message = "1-2"
		c := begin(t, db, replay)
		same(t, "another message", []any{c.Step, c.Mapping.Status, c.Mapping.Generation},
			[]any{StepCreate, Creating, 2})
		same(t, "the first message while the second is in flight", begin(t, db, first).Step, StepWait)
		finish(t, db, c)
		same(t, "the first message after the second succeeded", begin(t, db, first).Step, StepDone)

		// Superseded is more than failed.
		play(t, db, "b", "c10 refuse d20")
		same(t, "a failed message of a tenant deleted since", deliver(t, db, "b", "c10", "c10").Step,
			StepDone)
	})
}

func TestBeginWaitsForTheLeaseThenTakesTheClaim(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		started := time.Now()
		first := claim(t, db, "a")
		if first.Until.Before(started.Add(Lease)) || first.Until.After(time.Now().Add(Lease)) {
			t.Errorf("the lease ends %s after it began, want %s", first.Until.Sub(started), Lease)
		}
		pass(db, Lease-time.Millisecond)
		for _, message := range []string{"m-a", "other"} {
			c := begin(t, db, created("a", 10, message))
			same(t, "before the end of the lease", []any{c.Step, c.Wait, c.Attempt},
				[]any{StepWait, time.Millisecond, Attempt{}})
		}
		pass(db, time.Millisecond)
		second := claim(t, db, "a")
		same(t, "attempts after the second claim", outcomes(t, db, "a"),
			[]Outcome{OutcomeUnknown, OutcomeSent})
		old := attempts(t, db, "a")[0]
		same(t, "the first attempt", []any{old.Error, old.FinishedAt},
			[]any{"the worker stopped before an answer came", at(db.now())})
		same(t, "the epoch has grown", second.Mapping.Epoch > first.Mapping.Epoch, true)

		// The first holder wakes, before and after the second is done.
		before := mapping(t, db, "a")
		same(t, "the slept holder's dashboard is recorded", finish(t, db, first), false)
		same(t, "the mapping after the slept holder finished", mapping(t, db, "a"), before)
		same(t, "attempts after the slept holder finished", outcomes(t, db, "a"),
			[]Outcome{OutcomeOrphaned, OutcomeSent})
		same(t, "the orphan", attempts(t, db, "a")[0].DashboardID, dashboard(first))
		same(t, "the second holder's dashboard is recorded", finish(t, db, second), true)
		done := mapping(t, db, "a")
		same(t, "the slept holder's dashboard is recorded", finish(t, db, first), false)
		same(t, "the mapping at the end", mapping(t, db, "a"), done)
		same(t, "its dashboard", done.DashboardID, dashboard(second))
		same(t, "attempts at the end", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned, OutcomeCreated})
		same(t, "events out", unsent(t, db, 10), []string{"created-" + second.Attempt.ID})
	})
}

func TestFinishAfterTheLeaseIfNotReplaced(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		c := claim(t, db, "a")
		pass(db, time.Hour)
		same(t, "recorded", finish(t, db, c), true)
		same(t, "status", mapping(t, db, "a").Status, Active)
	})
}

func TestFailOfAFencedHolderRecordsOnlyItsAttempt(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
		for name, f := range map[string]Failure{
			"retryable":    unaccepted,
			"permanent":    {Result: unaccepted.Result, Permanent: true},
			"hold":         {Result: ambiguous.Result, Hold: true},
			"max failures": {Result: ambiguous.Result},
		} {
			db := openTest(t)
			first := claim(t, db, "a")
			pass(db, Lease)
			second := claim(t, db, "a")
			before := mapping(t, db, "a")
			same(t, name+": the mapping that follows", fail(t, db, first, f), before)
			same(t, name+": the mapping", mapping(t, db, "a"), before)
			same(t, name+": attempts", outcomes(t, db, "a"), []Outcome{f.Result.Outcome, OutcomeSent})
			same(t, name+": events out", unsent(t, db, 10), []string(nil))
			same(t, name+": the second holder's dashboard is recorded", finish(t, db, second), true)
		}
	})
}

func TestGenerationFencesTheOldHolder(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		old := claim(t, db, "a")
		change(t, db, "a", Deleted, 20)
		c := begin(t, db, created("a", 21, "again"))
		same(t, "created again within the lease", []any{c.Step, c.Mapping.Generation}, []any{StepCreate, 2})
		same(t, "the old holder's dashboard is recorded", finish(t, db, old), false)
		same(t, "the mapping", mapping(t, db, "a"), c.Mapping)
		same(t, "the new holder's dashboard is recorded", finish(t, db, c), true)
		same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned, OutcomeCreated})
		same(t, "the dashboard", mapping(t, db, "a").DashboardID, dashboard(c))
	})
}

func TestBeginWithHoldHandsOverAnAbandonedAttempt(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		first := beginWith(t, db, created("a", 10, "m"), true)
		same(t, "the first claim", first.Step, StepCreate)
		for range 2 { // its next holder may be killed, too
			same(t, "while the lease lives", beginWith(t, db, created("a", 10, "m"), true).Step, StepWait)
			pass(db, Lease)
			c := beginWith(t, db, created("a", 10, "m"), true)
			same(t, "after the lease", []any{c.Step, c.Attempt}, []any{StepRecordOutcome, first.Attempt})
		}
		pass(db, Lease)
		c := beginWith(t, db, created("a", 10, "m"), true)
		f := ambiguous
		f.Hold = true
		m := fail(t, db, c, f)
		same(t, "the mapping that follows", m, mapping(t, db, "a"))
		same(t, "held", []any{m.Status, m.ClaimableAt}, []any{Held, Time{}})
		same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeUnknown})
		same(t, "events out", unsent(t, db, 10), []string{"held-" + first.Attempt.ID})
		for _, hold := range []bool{true, false} {
			same(t, "created again", beginWith(t, db, created("a", 30, "later"), hold).Step, StepDone)
		}
		same(t, "the first holder's dashboard is recorded", finish(t, db, first), false)
		same(t, "held still", mapping(t, db, "a").Status, Held)
		same(t, "the outcome, known now", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned})

		// An attempt of an older generation needs no outcome in this one.
		beginWith(t, db, created("b", 10, "m"), true)
		change(t, db, "b", Deleted, 20)
		same(t, "a new generation", beginWith(t, db, created("b", 21, "m2"), true).Step, StepCreate)
		same(t, "attempts of two generations", outcomes(t, db, "b"), []Outcome{OutcomeUnknown, OutcomeSent})
	})
}

// A holder was suspended past its lease, and the one that was to record its outcome is killed. What
// the first one records late decides, as if the second one had seen it.
func TestBeginWithHoldKnowsAnOutcomeThatCameLate(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for name, test := range map[string]struct {
			late  func(Claim)
			step  Step
			stage Status
		}{
			"made":    {func(c Claim) { finish(t, db, c) }, StepRecordOutcome, Held},
			"unknown": {func(c Claim) { fail(t, db, c, ambiguous) }, StepRecordOutcome, Held},
			"refused": {func(c Claim) { fail(t, db, c, unaccepted) }, StepCreate, Active},
		} {
			e := created(name, 10, "m")
			first := beginWith(t, db, e, true)
			pass(db, Lease)
			same(t, name+": the second holder", beginWith(t, db, e, true).Step, StepRecordOutcome)
			test.late(first)
			pass(db, Lease)
			third := beginWith(t, db, e, true)
			same(t, name+": the third holder", third.Step, test.step)
			if third.Step == StepCreate {
				finish(t, db, third)
			} else {
				same(t, name+": whose outcome", third.Attempt.ID, first.Attempt.ID)
				fail(t, db, third, Failure{Result: ambiguous.Result, Hold: true})
			}
			same(t, name+": stage", mapping(t, db, name).Stage, test.stage)
		}
	})
}

func TestFailCountsOnlyAfterAnothersSuccess(t *testing.T) {
	onBoth(t, func(t *testing.T, _ *DB) {
		for _, test := range []struct{ steps, failures string }{
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
			{"fail bystander fail bystander fail", "0 0 0"}, // no other succeeds
			{"fail elsewhere fail", "0 0"},                  // another workspace has another API
			{"fail other crash fail", "0 1"},
		} {
			db := openTest(t)
			var got []string
			for i, step := range strings.Fields(test.steps) {
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
				same(t, test.steps+": the mapping that follows", m, mapping(t, db, "a"))
				same(t, test.steps+": status", m.Status, Pending)
				got = append(got, fmt.Sprint(m.Failures))
			}
			same(t, test.steps, strings.Join(got, " "), test.failures)
		}
	})
}

func TestBeginWaitsForTheRetry(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		f := unaccepted
		f.RetryAfter = time.Minute
		fail(t, db, claim(t, db, "a"), f)
		for _, message := range []string{"m-a", "other"} {
			c := begin(t, db, created("a", 10, message))
			same(t, "before it is due", []any{c.Step, c.Wait}, []any{StepWait, time.Minute})
		}
		pass(db, time.Minute)
		c := claim(t, db, "a")
		same(t, "a known outcome stays", outcomes(t, db, "a"), []Outcome{OutcomeRefused, OutcomeSent})
		finish(t, db, c)
		m := mapping(t, db, "a")
		same(t, "what failed is forgotten", []any{m.Failures, m.FailedAt, m.FailedCode, m.FailedError},
			[]any{0, Time{}, "", ""})
	})
}

func TestFailAtMaxFailuresAnnouncesOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		f := ambiguous
		f.MaxFailures, f.RetryAfter = 2, time.Millisecond
		var last Claim
		for i, want := range []Status{Pending, Pending, Failed} {
			pass(db, time.Millisecond)
			last = claim(t, db, "a")
			same(t, fmt.Sprint("after failure ", i), fail(t, db, last, f).Status, want)
			pass(db, time.Millisecond)
			finish(t, db, claim(t, db, fmt.Sprint("other", i)))
		}
		for range 3 {
			same(t, "redelivery", claimStep(t, db, last.Message), StepRefused)
		}
		var committed []string
		for _, id := range unsent(t, db, 10) {
			if !strings.HasPrefix(id, "created-") {
				committed = append(committed, id)
			}
		}
		same(t, "events out", committed, []string{"failed-" + last.Attempt.ID})
		m := mapping(t, db, "a")
		same(t, "the mapping", []any{m.Failures, m.FailedMessage, m.FailedCode, m.FailedError},
			[]any{2, last.Message, "API_FAILED", "timeout"})
		c := begin(t, db, created("a", 10, "another"))
		same(t, "a new generation counts from the start", []any{c.Mapping.Generation, c.Mapping.Failures},
			[]any{2, 0})
	})
}

func claimStep(t *testing.T, db *DB, message string) Step {
	return begin(t, db, created("a", 10, message)).Step
}

func TestFinishRefusesAnothersDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
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
			"a mapping's": mapping(t, db, "owner").DashboardID, "an orphaned attempt's": dashboard(slept),
			"an unknown attempt's": "disputed",
		} {
			recorded, err := db.Finish(ctx, c, id, 200, announce("n"))
			if recorded || !errors.Is(err, ErrTaken) {
				t.Fatalf("%s dashboard: %v, %v; want ErrTaken", what, recorded, err)
			}
			same(t, what+": the mapping", mapping(t, db, "a"), before)
			same(t, what+": the attempts", attempts(t, db, "a"), sent)
			same(t, what+": events out", unsent(t, db, 10), waiting)
		}

		e := created("elsewhere", 10, "m")
		e.WorkspaceID = "w2"
		if recorded, err := db.Finish(ctx, begin(t, db, e), mapping(t, db, "owner").DashboardID, 200,
			announce("n2")); !recorded || err != nil {
			t.Fatalf("the same id in another workspace: %v, %v", recorded, err)
		}
		same(t, "the claim after ErrTaken can go on", finish(t, db, c), true)
	})
}

// A transaction may wait for others before it runs, and the lease must not get longer by that.
func TestBeginCountsTheLeaseFromItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := openTest(t)
		now := db.now
		db.now = func() time.Time { // called as the transaction begins
			time.Sleep(10 * time.Second)
			return now()
		}
		called := time.Now()
		c := claim(t, db, "a")
		same(t, "waited", time.Since(called) >= 10*time.Second, true)
		same(t, "from the call to the end of the lease", c.Until.Sub(called), Lease)
	})
}

// The first holder comes back from a sleep with a refusal; the second's attempt has no known outcome.
func TestFailReleasesAHeldTenantOnlyWithoutUncertainAttempts(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		first := claim(t, db, "a")
		pass(db, Lease)
		second := claim(t, db, "a")
		same(t, "stage", fail(t, db, second, Failure{Result: ambiguous.Result, Hold: true}).Stage, Held)
		same(t, "stage after the first was refused", fail(t, db, first, unaccepted).Stage, Held)
		same(t, "attempts", outcomes(t, db, "a"), []Outcome{OutcomeRefused, OutcomeUnknown})
	})
}
