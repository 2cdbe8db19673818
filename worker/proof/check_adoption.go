package proof

import (
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
)

// forever is later than every event of a run.
var forever = time.Unix(1<<40, 0)

// announced is a dashboard.created in the outbox.
type announced struct{ tenant, dashboard string }

// announcements returns what the outbox says of dashboards, in any order.
func (c *checker) announcements() (list []announced) {
	for _, o := range c.Outbox {
		var data struct {
			DashboardID string `json:"dashboard_id"`
		}
		if o.Type == events.TypeDashboardCreated && json.Unmarshal(o.Data, &data) == nil { // else OutTrue
			list = append(list, announced{o.TenantID, data.DashboardID})
		}
	}
	return list
}

// adopted reports whether a good event that was stored by then gives the tenant the dashboard.
func (c *checker) adopted(tenant, dashboard string, by time.Time) bool {
	return slices.ContainsFunc(c.good[tenant], func(p Published) bool {
		return p.Adopts != "" && p.Adopts == dashboard && !c.after(p.StoredAt, by)
	})
}

// adoptions checks that a dashboard has the same tenant for ever, and that an adopted one was
// announced.
func (c *checker) adoptions() {
	list := c.announcements()
	owners := map[string]string{}
	for _, a := range list {
		if owner, taken := owners[a.dashboard]; taken && owner != a.tenant {
			c.report(AdoptionTrue, a.tenant, "dashboard %s was announced for tenant %q, too",
				a.dashboard, owner)
		}
		owners[a.dashboard] = a.tenant
	}
	for _, m := range c.Mappings {
		if c.adopted(m.TenantID, m.DashboardID, forever) &&
			!slices.Contains(list, announced{m.TenantID, m.DashboardID}) {
			c.report(AdoptionTrue, m.TenantID, "the row has dashboard %s, and no dashboard.created names it",
				m.DashboardID)
		}
	}
}

// Codes of dead letters, as docs/errors.md has them.
const (
	codeTaken    = "DASHBOARD_TAKEN"
	codeConflict = "DASHBOARD_CONFLICT"
)

// adoptionRefused reports whether a dead letter of an adoption is due: the dashboard was recorded
// for another tenant, or the tenant had another dashboard.
func (c *checker) adoptionRefused(p Published, code string) bool {
	return p.Adopts != "" && slices.ContainsFunc(c.announcements(), func(a announced) bool {
		switch code {
		case codeTaken:
			return a.dashboard == p.Adopts && a.tenant != p.Tenant
		case codeConflict:
			return a.dashboard != p.Adopts && a.tenant == p.Tenant
		}
		return false
	})
}

// refused reports whether the event became a dead letter with this code.
func (c *checker) refused(p Published, code string) bool {
	return slices.ContainsFunc(c.dead[p.Sequence], func(d Dead) bool { return d.Code == code })
}

// taken reports whether the event recorded nothing because its dashboard is another tenant's. An event
// that was ever refused in conflict with the tenant's own dashboard was recorded. For a lost event, its
// copies decide, unless it was recorded while it waited for a create.
func (c *checker) taken(p Published) bool {
	switch {
	case c.refused(p, codeConflict):
		return false
	case p.Lost:
		return p.Adopts != "" && c.copyTaken[p.Tenant+" "+p.Adopts] &&
			c.rows[p.Tenant].CreatedEvent != p.when().UnixNano()
	}
	return c.refused(p, codeTaken)
}
