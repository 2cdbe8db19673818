package repo

import (
	"testing"
	"time"
)

func TestFinishThatIsRepeatedAfterItsAnswerWasLostChangesNothing(t *testing.T) {
	onBoth(t, testFinishThatIsRepeatedAfterItsAnswerWasLostChangesNothing)
}

func testFinishThatIsRepeatedAfterItsAnswerWasLostChangesNothing(t *testing.T) {
	db := openTest(t)
	c, err := db.Begin(ctx, Created{TenantID: "t", WorkspaceID: "w", Title: "T", EventID: "e", EventTime: time.Unix(1, 0), Message: "1-1"}, false)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		recorded, err := db.Finish(ctx, c, "d", 200, Notice{EventID: "n", Type: "dashboard.created", Data: []byte("{}")})
		if err != nil || !recorded {
			t.Errorf("recorded %v, error %v", recorded, err)
		}
	}
	unsent, err := db.Unsent(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(unsent) != 1 {
		t.Errorf("%d events wait to be published, want 1", len(unsent))
	}
}

func TestFailThatIsRepeatedAfterItsAnswerWasLostChangesNothing(t *testing.T) {
	onBoth(t, testFailThatIsRepeatedAfterItsAnswerWasLostChangesNothing)
}

func testFailThatIsRepeatedAfterItsAnswerWasLostChangesNothing(t *testing.T) {
	for name, f := range map[string]Failure{
		"failed":  {Result: unaccepted.Result, Permanent: true},
		"held":    {Result: ambiguous.Result, Hold: true},
		"counted": {Result: ambiguous.Result, Most: 2},
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
}
