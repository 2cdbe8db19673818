package proof

import (
	"testing"

	"papermap-worker/repo"
)

func TestCheckFindsUsageViolations(t *testing.T) {
	testViolations(t, []violation{
		{UsageValid, "twice the same month", func(s *builder) { s.Usage = append(s.Usage, s.Usage[0]) }},
		{UsageValid, "a float", func(s *builder) {
			s.Usage[0].Credits, s.Reported[0].Credits = "1.25e1", "1.25e1"
		}},
		{UsageTrue, "a credit too many", func(s *builder) { s.Usage[0].Credits = "13.50" }},
		{UsageTrue, "a request too few", func(s *builder) { s.Usage[0].Requests-- }},
		{UsageTrue, "a row that the API does not report", func(s *builder) { s.Reported = s.Reported[:0] }},
		{UsageTrue, "a row that a whole run has left out", func(s *builder) {
			s.Reported = append(s.Reported,
				UsageRow{WorkspaceID: workspace.ID, TenantID: "lost", Period: "2026-04", Credits: "1"})
		}},
		{UsageRun, "a run that never ended", func(s *builder) { s.Runs[1].Status = repo.RunRunning }},
		{UsageRun, "a second run of one event", func(s *builder) {
			s.Runs[1].EventID, s.Published[len(s.Published)-2].EventID = s.Runs[0].EventID, s.Runs[0].EventID
		}},
		{UsageRun, "a run that is done, without a usage.synced", func(s *builder) {
			s.Runs[1].Status = repo.RunDone
		}},
	})
}
