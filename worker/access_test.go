package worker_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// step is an event and its time in minutes.
type step struct {
	eventType string
	minute    int
}

func TestAccessFollowsEventTimesInEveryOrder(t *testing.T) {
	const created, suspended, resumed, deleted = events.TypeTenantCreated, events.TypeTenantSuspended,
		events.TypeTenantResumed, events.TypeTenantDeleted
	onBoth(t, options{}, func(t *testing.T, w *world) {
		type tenant struct {
			id        string
			steps     []step
			status    repo.Status
			dashboard bool
		}
		var tenants []tenant
		for i, c := range []struct {
			steps     []step
			status    repo.Status
			dashboard bool // there must be one, whatever the order
		}{
			{[]step{{created, 1}}, repo.Active, true},
			{[]step{{suspended, 1}}, repo.Suspended, false},
			{[]step{{deleted, 1}}, repo.Deleted, false},
			{[]step{{created, 1}, {deleted, 2}}, repo.Deleted, false},
			{[]step{{created, 1}, {deleted, 1}}, repo.Deleted, false},
			{[]step{{deleted, 1}, {created, 2}}, repo.Active, true},
			{[]step{{created, 1}, {suspended, 2}}, repo.Suspended, true},
			{[]step{{suspended, 1}, {created, 2}}, repo.Suspended, true},
			{[]step{{created, 1}, {suspended, 2}, {resumed, 3}}, repo.Active, true},
			{[]step{{created, 1}, {suspended, 2}, {resumed, 2}}, repo.Suspended, true},
			{[]step{{created, 1}, {deleted, 2}, {created, 3}}, repo.Active, true},
			{[]step{{suspended, 1}, {deleted, 2}, {created, 3}}, repo.Active, true},
			{[]step{{created, 1}, {deleted, 2}, {created, 3}, {suspended, 4}}, repo.Suspended, true},
		} {
			for n, order := range permutations(c.steps) {
				tenants = append(tenants, tenant{fmt.Sprintf("t-%d-%d", i, n), order, c.status, c.dashboard})
			}
		}
		began := time.Now().Add(-time.Hour)
		// the two consumers run beside each other: a round ends before the next starts
		for round := range 4 {
			for _, tenant := range tenants {
				if round < len(tenant.steps) {
					s := tenant.steps[round]
					w.PublishAt(began.Add(time.Duration(s.minute)*time.Minute), s.eventType, tenant.id)
				}
			}
			w.Eventually(w.Handled)
		}
		for _, tenant := range tenants {
			m := w.Mapping(tenant.id)
			if m.Status != tenant.status || tenant.dashboard && m.DashboardID == "" {
				t.Errorf("%v: status %s, dashboard %q; want %s", tenant.steps, m.Status, m.DashboardID,
					tenant.status)
			}
		}
		w.NoDeadLetters()
	})
}

func permutations(list []step) [][]step {
	if len(list) < 2 {
		return [][]step{list}
	}
	var all [][]step
	for i, first := range list {
		for _, rest := range permutations(slices.Delete(slices.Clone(list), i, i+1)) {
			all = append(all, append([]step{first}, rest...))
		}
	}
	return all
}
