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
