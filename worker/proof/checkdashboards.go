package proof

import (
	"maps"
	"net/http"
	"slices"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

func (c *checker) oneDashboard() {
	tenants, owners := map[string]bool{}, map[string]string{}
	for _, m := range c.Mappings {
		if tenants[m.TenantID] {
			c.report(OneDashboard, m.TenantID, "the tenant has two rows")
			continue
		}
		tenants[m.TenantID] = true
		if owner, taken := owners[m.DashboardID]; taken && m.DashboardID != "" {
			c.report(OneDashboard, m.TenantID, "dashboard %s is in the row of tenant %q, too", m.DashboardID, owner)
		}
		owners[m.DashboardID] = m.TenantID
	}
}

func (c *checker) dashboardsExist() {
	checked := map[string]bool{}
	check := func(where, id, tenant, workspace string) {
		if id == "" || checked[where+id] { // twice the same is oneDashboard's
			return
		}
		checked[where+id] = true
		d, made := c.byID[id]
		a := c.byMark[d.Mark]
		switch {
		case !made:
			c.report(DashboardExists, tenant, "%s has dashboard %s, which Papermap never made", where, id)
		case a.TenantID != tenant || d.TenantID != tenant:
			c.report(DashboardExists, tenant, "%s has dashboard %s, which was made for tenant %q (mark %q, of an attempt for %q)",
				where, id, d.TenantID, d.Mark, a.TenantID)
		case d.WorkspaceID != workspace:
			c.report(DashboardExists, tenant, "%s says workspace %s, and dashboard %s was made in %s", where, workspace, id, d.WorkspaceID)
		}
	}
	for _, m := range c.Mappings {
		check("the row", m.DashboardID, m.TenantID, m.WorkspaceID)
	}
	for _, a := range c.Attempts {
		if a.Outcome == repo.Made || a.Outcome == repo.Orphaned {
			check("attempt "+a.ID, a.DashboardID, a.TenantID, a.WorkspaceID)
		}
	}
}

func (c *checker) dashboardsRecorded() {
	recorded := map[string]string{}
	for _, a := range c.Attempts {
		recorded[a.DashboardID] = a.TenantID
	}
	for _, m := range c.Mappings {
		recorded[m.DashboardID] = m.TenantID
	}
	for _, d := range c.Dashboards {
		if c.byMark[d.Mark].TenantID != d.TenantID && recorded[d.ID] != d.TenantID {
			c.report(DashboardRecorded, d.TenantID, "Papermap made dashboard %s (mark %q), and no row or attempt of the tenant has its id or mark", d.ID, d.Mark)
		}
	}
}

func (c *checker) dashboardBound() {
	made := map[string]int{}
	for _, d := range c.Dashboards {
		made[d.TenantID]++
	}
	for _, tenant := range slices.Sorted(maps.Keys(made)) {
		uncertain := 0
		for _, a := range c.attempts[tenant] {
			if a.Outcome == repo.Sent || a.Outcome == repo.Uncertain || a.Outcome == repo.Orphaned {
				uncertain++
			}
		}
		if generations := c.rows[tenant].Generation; made[tenant] > generations+uncertain {
			c.report(DashboardBound, tenant, "Papermap made %d dashboards; %d generations and %d uncertain attempts allow fewer", made[tenant], generations, uncertain)
		}
	}
}

func (c *checker) generationCause() {
	ends := map[string]int{} // by tenant
	for _, o := range c.Outbox {
		if o.Type == events.TypeDashboardFailed || o.Type == events.TypeDashboardHeld {
			ends[o.TenantID]++
		}
	}
	for _, m := range c.Mappings {
		deletions := map[int64]bool{}
		for _, p := range c.good[m.TenantID] {
			if p.Type == events.TypeTenantDeleted {
				deletions[p.when().UnixNano()] = true
			}
		}
		if m.Generation > 1+len(deletions)+ends[m.TenantID] {
			c.report(GenerationCause, m.TenantID, "the row is at generation %d, after %d deletions and %d failures or holds",
				m.Generation, len(deletions), ends[m.TenantID])
		}
	}
}

func (c *checker) createsMarked() {
	for _, r := range c.creates {
		a, known := c.byMark[r.Mark]
		switch {
		case !known:
			c.report(CreateMarked, r.TenantID, "API request %d has mark %q, which is no attempt's", r.Seq, r.Mark)
		case a.TenantID != r.TenantID || a.WorkspaceID != r.WorkspaceID:
			c.report(CreateMarked, r.TenantID, "API request %d, in workspace %s, has the mark of attempt %s, which is for tenant %q in %s",
				r.Seq, r.WorkspaceID, a.ID, a.TenantID, a.WorkspaceID)
		case c.after(a.StartedAt.Time, r.Time):
			c.report(CreateMarked, r.TenantID, "API request %d came %v before its attempt %s was recorded", r.Seq, a.StartedAt.Sub(r.Time), a.ID)
		}
	}
}

// unprocessed says whether the answer to a create request means that nothing was done.
func unprocessed(r simulator.Request) bool {
	switch {
	case r.Status == http.StatusConflict:
		return false
	case r.Status == http.StatusServiceUnavailable:
		return fault(r).RetryAfter != ""
	}
	return r.Status >= 300 && r.Status < 500
}

// answered is when the answer to a request left, if one did.
func answered(r simulator.Request) time.Time { return r.Time.Add(fault(r).Delay) }

// fault is the rule that was applied to a request; the zero rule if it is none of this simulator's.
func fault(r simulator.Request) simulator.Fault {
	if r.Fault == "" {
		return simulator.Fault{}
	}
	f, err := simulator.ParseFault(r.Fault)
	if err != nil {
		return simulator.Fault{}
	}
	return f
}

func (c *checker) marksSentOnce() {
	for _, mark := range slices.Sorted(maps.Keys(c.sends)) {
		sends := c.sends[mark]
		for i, r := range sends[1:] {
			before := sends[i]
			if mark == "" { // that is createsMarked's
				continue
			}
			switch {
			case !unprocessed(before):
				c.report(MarkSentOnce, r.TenantID, "API request %d has mark %s again, and request %d may have been processed (status %d)",
					r.Seq, mark, before.Seq, before.Status)
			case answered(before).After(r.Time.Add(c.Clocks)):
				c.report(MarkSentOnce, r.TenantID, "API request %d has mark %s again, before request %d was answered", r.Seq, mark, before.Seq)
			}
		}
	}
}

func (c *checker) knownOutcomes() {
	for _, a := range c.Attempts {
		if a.Outcome == repo.Sent || a.Outcome == repo.Uncertain {
			continue // a holder that slept may still send after others gave it up
		}
		for _, r := range c.sends[a.Mark] {
			if c.after(r.Time, a.FinishedAt.Time) {
				c.report(KnownOutcome, a.TenantID, "API request %d was sent %v after its attempt %s had ended as %s",
					r.Seq, r.Time.Sub(a.FinishedAt.Time), a.ID, a.Outcome)
			}
		}
		for _, b := range c.attempts[a.TenantID] {
			if a.Outcome == repo.Made && b.Generation <= a.Generation && c.after(b.StartedAt.Time, a.FinishedAt.Time) {
				c.report(KnownOutcome, a.TenantID, "attempt %s began %v after attempt %s had made the dashboard of generation %d",
					b.ID, b.StartedAt.Sub(a.FinishedAt.Time), a.ID, a.Generation)
			}
		}
	}
}

func (c *checker) createdProven() {
	for _, a := range c.Attempts { // one that a person has settled is that person's word
		if a.Outcome != repo.Made {
			continue
		}
		if a.SettledAt.IsZero() && !slices.ContainsFunc(c.sends[a.Mark], func(r simulator.Request) bool {
			return r.DashboardID == a.DashboardID && (r.Status == http.StatusOK || r.Status == http.StatusCreated) && !fault(r).Truncate &&
				!c.after(answered(r), a.FinishedAt.Time)
		}) {
			c.report(CreatedProven, a.TenantID, "attempt %s says that it made dashboard %q, and no API request with its mark was answered so before",
				a.ID, a.DashboardID)
		}
		if m := c.rows[a.TenantID]; m.Generation < a.Generation || m.Generation == a.Generation && m.DashboardID != a.DashboardID {
			c.report(CreatedProven, a.TenantID, "attempt %s made dashboard %q for generation %d; the row has %q, generation %d",
				a.ID, a.DashboardID, a.Generation, m.DashboardID, m.Generation)
		}
	}
}

func (c *checker) refusedProven() {
	for _, a := range c.Attempts {
		if a.Outcome != repo.NotAccepted {
			continue
		}
		for _, r := range c.sends[a.Mark] {
			if !unprocessed(r) {
				c.report(RefusedProven, a.TenantID, "attempt %s says refused, and API request %d may have been processed (status %d, dashboard %q)",
					a.ID, r.Seq, r.Status, r.DashboardID)
			}
		}
	}
}
