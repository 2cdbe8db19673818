package proof

import (
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

func TestCheckFindsDashboardViolations(t *testing.T) {
	repeat := func(s *builder, seq, status int, made bool) { // request seq's mark again, at the same moment
		r := s.Requests[seq-1]
		s.request(0, &repo.Attempt{Mark: r.Mark, TenantID: r.TenantID}, status, "", made)
		s.Requests[len(s.Requests)-1].Time = r.Time.Add(10 * time.Millisecond)
	}
	testViolations(t, []violation{
		{OneDashboard, "two rows of one tenant", func(s *builder) {
			s.Mappings = append(s.Mappings, *s.mapping("acme"))
		}},
		{OneDashboard, "one dashboard in two rows", func(s *builder) {
			s.mapping("held").DashboardID = s.mapping("acme").DashboardID
		}},
		{DashboardExists, "a row names a dashboard that was never made", func(s *builder) {
			s.mapping("held").DashboardID = "invented"
		}},
		{DashboardExists, "an orphan's dashboard was made for another tenant", func(s *builder) {
			a := s.lastAttempt("held")
			a.Outcome, a.DashboardID = repo.OutcomeOrphaned, "dashboard-0"
			m := s.mapping("held")
			// held no longer
			m.Status, m.Stage, m.DashboardID = repo.Active, repo.Active, s.created(23_000, "held", 1)
		}},
		{DashboardExists, "made by another tenant's attempt", func(s *builder) {
			s.Dashboards[0].Mark = s.lastAttempt("busy").Mark
		}},
		{
			DashboardExists, "made in another workspace",
			func(s *builder) { s.Dashboards[0].WorkspaceID = "ws-b" },
		},
		{DashboardRecorded, "a dashboard without a record", func(s *builder) {
			s.Dashboards = append(s.Dashboards,
				simulator.Dashboard{
					ID: "lost", WorkspaceID: workspace.ID, TenantID: "held", Mark: "pmw:strange",
				})
			s.attempt(22_700, "held", 1, repo.OutcomeUnknown) // so that their number could be right
		}},
		{DashboardBound, "two dashboards of a generation without an uncertain attempt", func(s *builder) {
			s.Dashboards = append(s.Dashboards,
				simulator.Dashboard{
					ID: "second", WorkspaceID: workspace.ID, TenantID: "acme",
					Mark: s.lastAttempt("acme").Mark,
				})
		}},
		{GenerationCause, "a generation more than there were reasons for", func(s *builder) {
			s.mapping("acme").Generation = 2
			s.lastAttempt("acme").Generation = 2
		}},
		{CreateMarked, "a request without an attempt", func(s *builder) {
			s.request(1_000, &repo.Attempt{TenantID: "acme"}, 500, "status=500", false)
		}},
		{CreateMarked, "the attempt was committed after its request", func(s *builder) {
			s.lastAttempt("acme").StartedAt = repo.Time{
				Time: s.lastRequest("acme").Time.Add(50 * time.Millisecond),
			}
		}},
		{CreateMarked, "the mark of another tenant's attempt", func(s *builder) {
			s.request(22_200, &repo.Attempt{TenantID: "acme", Mark: s.lastAttempt("held").Mark}, 500,
				"status=500", false)
			s.Requests[len(s.Requests)-1].Mark += "0" // or it would be the second with this mark, too
			a := s.attempt(22_200, "held", 1, repo.OutcomeUnknown)
			a.Mark = s.Requests[len(s.Requests)-1].Mark
		}},
		{MarkSentOnce, "again after an answer that leaves it open", func(s *builder) {
			repeat(s, s.lastRequest("held").Seq, 500, false)
		}},
		{MarkSentOnce, "again before the answer came", func(s *builder) {
			s.Requests[s.lastRequest("busy").Seq-3].Fault = "delay=10s status=429"
		}},
		{MarkSentOnce, "again after a conflict", func(s *builder) {
			s.Requests[s.lastRequest("busy").Seq-2].Status = 409
		}},
		{MarkSentOnce, "again after a 503 without Retry-After", func(s *builder) {
			s.Requests[s.lastRequest("busy").Seq-2].Fault = "status=503"
		}},
		{KnownOutcome, "sent after the refusal was recorded", func(s *builder) {
			s.lastRequest("bad").Time = s.lastAttempt("bad").FinishedAt.Add(50 * time.Millisecond)
		}},
		{KnownOutcome, "another attempt after the dashboard was made", func(s *builder) {
			s.attempt(8_000, "acme", 1, repo.OutcomeRefused)
		}},
		{CreatedProven, "created, but the answer was cut short", func(s *builder) {
			s.lastRequest("acme").Fault = "truncate=true"
		}},
		{CreatedProven, "created, but the row has none", func(s *builder) {
			s.event(17_000, events.TypeTenantDeleted, "hush") // so that it need not have one
			m := s.mapping("hush")
			m.DashboardID, m.Status, m.DeletedEvent = "", repo.Deleted, at(17_000).UnixNano()
		}},
		{RefusedProven, "refused, and yet the answer was lost", func(s *builder) {
			r := s.lastRequest("patient")
			r = &s.Requests[r.Seq-2]
			r.Status, r.Fault = 0, "drop=before"
		}},
	})
}
