package proof

import (
	"testing"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

func TestCheckFindsAdoptionViolations(t *testing.T) {
	testViolations(t, []violation{
		{AdoptionTrue, "announced for two tenants", func(s *builder) {
			s.event(38_000, events.TypeTenantCreated, "thief").Adopts = "existing"
			s.announce(events.TypeDashboardCreated, "thief", `"dashboard_id":"existing"`)
			s.event(38_100, events.TypeTenantDeleted, "thief")
			s.row(38_200, "thief", repo.Deleted, "none", 1, "")
		}},
		{AdoptionTrue, "never announced", func(s *builder) {
			s.event(38_000, events.TypeTenantCreated, "quiet").Adopts = "silent"
			s.row(38_200, "quiet", repo.Active, repo.Active, 1, "silent")
		}},
		{DashboardExists, "the row has a dashboard that no event named", func(s *builder) {
			s.event(38_000, events.TypeTenantCreated, "odd").Adopts = "named"
			s.row(38_200, "odd", repo.Active, repo.Active, 1, "unnamed")
		}},
		{DeadLetterDue, "taken, and no other tenant has it", func(s *builder) {
			s.buried(38_100, s.adopting(38_000, "alone", "free"), worker.CodeTaken)
		}},
		{DeadLetterDue, "in conflict with nothing", func(s *builder) {
			s.buried(38_100, s.adopting(38_000, "adopter", "existing"), worker.CodeConflict)
			s.mapping("adopter").CreatedEvent = at(38_000).UnixNano()
		}},
		{OutTrue, "announced, and no event named it", func(s *builder) {
			s.announce(events.TypeDashboardCreated, "adopter", `"dashboard_id":"unnamed"`)
		}},
		{TokenMapping, "a token before the event", func(s *builder) {
			s.token(35_000, "adopter", "existing")
		}},
		{PoisonHarmless, "a row of the rival", func(s *builder) {
			s.row(38_000, "rival", repo.Pending, repo.Pending, 1, "")
		}},
	})
}
