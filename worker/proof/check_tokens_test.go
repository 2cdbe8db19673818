package proof

import (
	"testing"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

func TestCheckFindsTokenViolations(t *testing.T) {
	testViolations(t, []violation{
		{TokenSigned, "signed with another key", func(s *builder) {
			s.token(3_000, "acme", "dashboard-0", func(c *papermap.Claims) { c.APIKeyID = workspace.Key.ID })
		}},
		{TokenSigned, "no token at all", func(s *builder) { s.Tokens[0].Text = "garbage" }},
		{TokenLife, "valid longer than allowed", func(s *builder) {
			s.token(3_000, "acme", "dashboard-0", func(c *papermap.Claims) { c.ValidUntil += 3 * 3600 })
		}},
		{TokenLife, "expired before it was asked for", func(s *builder) {
			s.token(3_000, "acme", "dashboard-0", func(c *papermap.Claims) { c.ValidUntil -= 3600 })
		}},
		{TokenMapping, "for another tenant's dashboard", func(s *builder) {
			s.token(16_000, "acme", "dashboard-4")
		}},
		{
			TokenMapping, "before there was a dashboard",
			func(s *builder) { s.token(50, "acme", "dashboard-0") },
		},
		{TokenMapping, "for the dashboard of an older generation", func(s *builder) {
			s.token(20_000, "again", "dashboard-4")
		}},
		{TokenMapping, "the answer names another dashboard than the token", func(s *builder) {
			s.Tokens[0].Dashboard = "dashboard-1"
		}},
		{TokenRevoked, "long after the suspension was committed", func(s *builder) {
			s.token(21_300, "hush", s.mapping("hush").DashboardID)
		}},
		{TokenRevoked, "after a deletion, before it was created again", func(s *builder) {
			s.token(45_000, "renewed", s.mapping("renewed").DashboardID)
			s.published(events.TypeTenantDeleted, "renewed").Time = at(34_000)
			m := s.mapping("renewed")
			m.Status, m.DeletedEvent = repo.Deleted, at(34_000).UnixNano()
			s.Commits[len(s.Commits)-1].Event = at(34_000).UnixNano()
		}},
		{TokenRevoked, "resumed only later", func(s *builder) {
			s.token(24_000, "back", s.mapping("back").DashboardID)
			s.published(events.TypeTenantResumed, "back").StoredAt = at(25_000)
			s.mapping("back").ResumedEvent = at(25_000).UnixNano()
		}},
	})
}

func TestCheckAcceptsTokensSignedWithTheAPIKey(t *testing.T) {
	s := goodHistory()
	s.Workspaces = []papermap.Workspace{{ID: workspace.ID, Key: workspace.EmbedKey}}
	for _, v := range Check(s.History) {
		t.Error(v)
	}
}
