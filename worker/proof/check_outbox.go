package proof

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// outbox compares the rows of the outbox with the events in the stream. A row may have been
// published more than once; the first time counts.
func (c *checker) outbox() {
	rows, published := map[string]OutboxRow{}, map[string]uint64{} // by event id
	for _, r := range c.Outbox {
		rows[r.EventID] = r
	}
	for _, o := range c.Out {
		r, known := rows[o.ID]
		if !known || r.Type != o.Type || r.TenantID != o.Tenant || !sameJSON(r.Data, o.Data) {
			c.report(OutCause, o.Tenant, "%s %s (sequence %d) was published, and the outbox has no such row",
				o.Type, o.ID, o.Sequence)
		}
		if at, again := published[o.ID]; !again || o.Sequence < at {
			published[o.ID] = o.Sequence
		}
	}
	latest := map[string]OutboxRow{} // by tenant
	byID := func(a, b OutboxRow) int { return cmp.Compare(a.ID, b.ID) }
	for _, r := range slices.SortedFunc(slices.Values(c.Outbox), byID) {
		at, done := published[r.EventID]
		if !done {
			c.report(OutPublished, r.TenantID, "%s %s is in the outbox and was not published (sent_at %v)",
				r.Type, r.EventID, r.SentAt)
			continue
		}
		// Runs of several workspaces end at the same time, and their events have no order.
		if before, any := latest[r.TenantID]; any && r.TenantID != "" && published[before.EventID] > at {
			c.report(OutOrder, r.TenantID, "%s %s was published before %s %s, which happened first",
				r.Type, r.EventID, before.Type, before.EventID)
		}
		latest[r.TenantID] = r
	}
}

func sameJSON(a, b []byte) bool {
	x, y := jsontext.Value(slices.Clone(a)), jsontext.Value(slices.Clone(b))
	return x.Canonicalize() == nil && y.Canonicalize() == nil && bytes.Equal(x, y)
}

// outTrue compares the events out with the attempts that they are about.
func (c *checker) outTrue() {
	announced := map[string]bool{} // attempts
	for _, o := range c.Outbox {
		var data struct {
			TenantID    string `json:"tenant_id"`
			WorkspaceID string `json:"workspace_id"`
			DashboardID string `json:"dashboard_id"`
			Attempt     string `json:"attempt"`
		}
		switch o.Type {
		case events.TypeUsageSynced, events.TypeUsageThreshold, events.TypeUsageSync:
			continue
		}
		if err := json.Unmarshal(o.Data, &data); err != nil || data.TenantID != o.TenantID {
			c.report(OutTrue, o.TenantID, "%s %s is about tenant %q: %v",
				o.Type, o.EventID, data.TenantID, err)
			continue
		}
		i := slices.IndexFunc(c.attempts[o.TenantID], func(a repo.Attempt) bool {
			switch {
			case a.WorkspaceID != data.WorkspaceID:
				return false
			case o.Type == events.TypeDashboardCreated:
				return a.Outcome == repo.OutcomeCreated && a.DashboardID == data.DashboardID
			}
			return o.Type != events.TypeDashboardHeld || a.ID == data.Attempt
		})
		if i < 0 && o.Type == events.TypeDashboardCreated &&
			c.adopted(o.TenantID, data.DashboardID, forever) {
			continue
		}
		if i < 0 {
			c.report(OutTrue, o.TenantID, "%s %s says %s, and no attempt of the tenant does",
				o.Type, o.EventID, o.Data)
		} else if o.Type == events.TypeDashboardCreated {
			announced[c.attempts[o.TenantID][i].ID] = true
		}
	}
	for _, a := range c.Attempts {
		// Nothing is published about a tenant that was deleted meanwhile.
		deleted := c.has(a.TenantID, events.TypeTenantDeleted)
		if a.Outcome == repo.OutcomeCreated && !announced[a.ID] && !deleted {
			c.report(OutTrue, a.TenantID, "attempt %s made dashboard %s, and no dashboard.created names it",
				a.ID, a.DashboardID)
		}
	}
}
