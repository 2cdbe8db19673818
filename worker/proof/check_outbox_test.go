package proof

import (
	"slices"
	"strings"
	"testing"

	"papermap-worker/events"
)

func TestCheckFindsOutboxViolations(t *testing.T) {
	testViolations(t, []violation{
		{OutPublished, "a row of the outbox was never published", func(s *builder) { s.Out = s.Out[1:] }},
		{OutOrder, "two of a tenant in the wrong order", func(s *builder) {
			var of []int
			for i, o := range s.Out {
				if o.Tenant == "again" {
					of = append(of, i)
				}
			}
			a, b := &s.Out[of[0]], &s.Out[of[1]]
			a.Sequence, b.Sequence = b.Sequence, a.Sequence
		}},
		{OutCause, "published without a row", func(s *builder) {
			o := s.Out[0]
			o.ID, o.Sequence = "strange", 5_000
			s.Out = append(s.Out, o)
		}},
		{OutCause, "published about another tenant", func(s *builder) { s.Out[0].Tenant = "lost" }},
		{
			OutCause, "published as another type",
			func(s *builder) { s.Out[0].Type = events.TypeDashboardFailed },
		},
		{OutCause, "published with other data", func(s *builder) {
			s.Out[0].Data = []byte(`{"tenant_id":"acme"}`)
		}},
		{OutTrue, "the announced dashboard is not the tenant's", func(s *builder) {
			data := []byte(strings.Replace(string(s.Outbox[0].Data), "dashboard-0", "dashboard-1", 1))
			s.Outbox = append(s.Outbox, s.Outbox[0])
			more := &s.Outbox[len(s.Outbox)-1]
			more.ID, more.EventID, more.Data = 999, "strange", data
			s.Out = append(s.Out,
				Out{Sequence: 5_000, Type: more.Type, ID: more.EventID, Tenant: more.TenantID, Data: data})
		}},
		{OutTrue, "about another tenant", func(s *builder) {
			data := []byte(strings.Replace(string(s.Outbox[0].Data), "acme", "lost", 1))
			s.Outbox[0].Data, s.Out[0].Data = data, data
		}},
		{OutTrue, "held because of another tenant's attempt", func(s *builder) {
			i := slices.IndexFunc(s.Outbox,
				func(o OutboxRow) bool { return o.Type == events.TypeDashboardHeld })
			data := []byte(strings.Replace(string(s.Outbox[i].Data), s.lastAttempt("held").ID,
				s.lastAttempt("acme").ID, 1))
			s.Outbox[i].Data, s.Out[i].Data = data, data
		}},
		{OutTrue, "a dashboard without an event", func(s *builder) {
			s.Outbox, s.Out = s.Outbox[1:], s.Out[1:]
		}},
	})
}
