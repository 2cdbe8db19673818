package worker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// The stream keeps nanoseconds and the database milliseconds, so what followed at once would seem
// to come first.
func TestReportListsTheCauseFirstWithinOneMillisecond(t *testing.T) {
	t.Parallel()
	stored := time.Date(2026, 1, 2, 3, 4, 5, 6_900_000, time.UTC)
	recorded := repo.Time{Time: stored.Truncate(time.Millisecond)}
	created := events.Event{
		ID: "event", Type: events.TypeTenantCreated, Time: stored,
		Data: events.TenantCreated{TenantID: "acme", Name: "Acme"},
	}
	f := Facts{
		Mapping: repo.Mapping{TenantID: "acme", CreatedEvent: stored.UnixNano()},
		Attempts: []repo.Attempt{{
			ID: "attempt", Outcome: repo.OutcomeRefused, StartedAt: recorded, FinishedAt: recorded,
		}},
		Events: []events.StoredEvent{{
			Event: created, Raw: events.Raw{Type: created.Type, Time: stored},
		}},
		DeadLetters: []events.DeadLetter{{Sequence: 7, EventID: "event", Type: created.Type, Time: stored}},
		Outbox: []repo.OutboxRow{{
			EventID: "out", Type: events.TypeDashboardFailed, CreatedAt: recorded,
		}},
	}
	var got []string
	for _, m := range f.Report(stored).History {
		got = append(got, fmt.Sprint(m.Kind, " ", m.ID))
	}
	want := []string{"event event", "attempt attempt", "dead letter event", "event out out"}
	if !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}
}
