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

// oneDashboard checks promise 2 on the table of mappings alone.
func (c *checker) oneDashboard() {
	tenants, owners := map[string]bool{}, map[string]string{}
	for _, m := range c.Mappings {
		if tenants[m.TenantID] {
			c.report(OneDashboard, m.TenantID, "the tenant has two rows")
			continue
		}
		tenants[m.TenantID] = true
		if owner, taken := owners[m.DashboardID]; taken && m.DashboardID != "" {
			c.report(OneDashboard, m.TenantID, "dashboard %s is in the row of tenant %q, too",
				m.DashboardID, owner)
		}
		owners[m.DashboardID] = m.TenantID
	}
}

// dashboardsExist checks that each dashboard in a mapping or an attempt was made at Papermap, for
// the same tenant and in the same workspace, by a request with the mark of an attempt of that
// tenant. One that was adopted may exist without that.
func (c *checker) dashboardsExist() {
	checked := map[string]bool{}
	check := func(where, id, tenant, workspace string) {
		if id == "" || checked[where+id] { // oneDashboard reports duplicates
			return
		}
		checked[where+id] = true
		d, made := c.byID[id]
		a := c.byMark[d.Mark]
		switch {
		case !made && c.adopted(tenant, id, forever):
		case !made:
			c.report(DashboardExists, tenant, "%s has dashboard %s, which Papermap never made", where, id)
		case a.TenantID != tenant || d.TenantID != tenant:
			c.report(DashboardExists, tenant,
				"%s has dashboard %s, which was made for tenant %q (mark %q, of an attempt for %q)",
				where, id, d.TenantID, d.Mark, a.TenantID)
		case d.WorkspaceID != workspace:
			c.report(DashboardExists, tenant, "%s says workspace %s, and dashboard %s was made in %s",
				where, workspace, id, d.WorkspaceID)
		}
	}
	for _, m := range c.Mappings {
		check("the row", m.DashboardID, m.TenantID, m.WorkspaceID)
	}
	for _, a := range c.Attempts {
		if a.Outcome == repo.OutcomeCreated || a.Outcome == repo.OutcomeOrphaned {
			check("attempt "+a.ID, a.DashboardID, a.TenantID, a.WorkspaceID)
		}
	}
}

// dashboardsRecorded checks the reverse: a dashboard that was made can be found from the database,
// by its id or by its mark. Otherwise it would be an orphan that no operator can look for.
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
			c.report(DashboardRecorded, d.TenantID,
				"Papermap made dashboard %s (mark %q); no row or attempt of the tenant has its id or mark",
				d.ID, d.Mark)
		}
	}
}

// dashboardBound counts what promise 3 allows: one dashboard for each generation, and one more for
// each attempt whose outcome is not known.
func (c *checker) dashboardBound() {
	made := map[string]int{}
	for _, d := range c.Dashboards {
		made[d.TenantID]++
	}
	for _, tenant := range slices.Sorted(maps.Keys(made)) {
		doubtful := 0
		for _, a := range c.attempts[tenant] {
			if uncertain(a.Outcome) {
				doubtful++
			}
		}
		if generations := c.rows[tenant].Generation; made[tenant] > generations+doubtful {
			c.report(DashboardBound, tenant,
				"Papermap made %d dashboards; %d generations and %d uncertain attempts allow fewer",
				made[tenant], generations, doubtful)
		}
	}
}

// generationCause checks that a tenant is provisioned again only for a reason: a deletion, each
// time only once however often it is delivered, a failure for good, or a hold that an operator
// ended.
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
			c.report(GenerationCause, m.TenantID,
				"the row is at generation %d, after %d deletions and %d failures or holds",
				m.Generation, len(deletions), ends[m.TenantID])
		}
	}
}

// createsMarked checks that an attempt is committed before its request is sent, which is what makes
// a lost answer visible after a crash.
func (c *checker) createsMarked() {
	for _, r := range c.creates {
		a, known := c.byMark[r.Mark]
		switch {
		case !known:
			c.report(CreateMarked, r.TenantID, "API request %d has mark %q, which is no attempt's",
				r.Seq, r.Mark)
		case a.TenantID != r.TenantID || a.WorkspaceID != r.WorkspaceID:
			c.report(CreateMarked, r.TenantID,
				"API request %d, in workspace %s, has the mark of attempt %s, which is for tenant %q in %s",
				r.Seq, r.WorkspaceID, a.ID, a.TenantID, a.WorkspaceID)
		case c.after(a.StartedAt.Time, r.Time):
			c.report(CreateMarked, r.TenantID, "API request %d came %v before its attempt %s was recorded",
				r.Seq, a.StartedAt.Sub(r.Time), a.ID)
		}
	}
}

// unprocessed reports whether the answer to a create request means that nothing was done.
func unprocessed(r simulator.Request) bool {
	switch {
	case r.Status == http.StatusConflict, r.Status == http.StatusRequestTimeout:
		return false
	case r.Status == http.StatusServiceUnavailable:
		return fault(r).RetryAfter != ""
	}
	return r.Status >= 300 && r.Status < 500
}

// answered is when the answer to a request was sent, if one was.
func answered(r simulator.Request) time.Time { return r.Time.Add(fault(r).Delay) }

// fault is the rule that was applied to a request, and the zero rule if there was none.
func fault(r simulator.Request) simulator.Fault {
	f, err := simulator.ParseFault(r.Fault)
	if err != nil {
		return simulator.Fault{}
	}
	return f
}

// marksSentOnce checks the retries of the client: a request may be sent again only when the answer
// to the one before says that it was not processed, and not before that answer.
func (c *checker) marksSentOnce() {
	for _, mark := range slices.Sorted(maps.Keys(c.sends)) {
		sends := c.sends[mark]
		for i, r := range sends[1:] {
			before := sends[i]
			switch {
			case mark == "": // createsMarked reports it
			case !unprocessed(before):
				c.report(MarkSentOnce, r.TenantID,
					"API request %d has mark %s again, and request %d may have been processed (status %d)",
					r.Seq, mark, before.Seq, before.Status)
			case answered(before).After(r.Time.Add(c.Clocks)):
				c.report(MarkSentOnce, r.TenantID,
					"API request %d has mark %s again, before request %d was answered",
					r.Seq, mark, before.Seq)
			}
		}
	}
}

// knownOutcomes checks that nothing is sent for an attempt that has ended, and that no attempt
// begins for a generation that has its dashboard.
func (c *checker) knownOutcomes() {
	for _, a := range c.Attempts {
		if a.Outcome == repo.OutcomeSent || a.Outcome == repo.OutcomeUnknown {
			continue // a holder that was suspended may still send after others have given it up
		}
		for _, r := range c.sends[a.Mark] {
			if c.after(r.Time, a.FinishedAt.Time) {
				c.report(KnownOutcome, a.TenantID,
					"API request %d was sent %v after its attempt %s had ended as %s",
					r.Seq, r.Time.Sub(a.FinishedAt.Time), a.ID, a.Outcome)
			}
		}
		for _, b := range c.attempts[a.TenantID] {
			if a.Outcome == repo.OutcomeCreated && b.Generation <= a.Generation &&
				c.after(b.StartedAt.Time, a.FinishedAt.Time) {
				c.report(KnownOutcome, a.TenantID,
					"attempt %s began %v after attempt %s had made the dashboard of generation %d",
					b.ID, b.StartedAt.Sub(a.FinishedAt.Time), a.ID, a.Generation)
			}
		}
	}
}

// createdProven checks that an attempt is recorded as created only after an answer that named the
// dashboard, and that the mapping has it, unless a later generation replaced it.
func (c *checker) createdProven() {
	for _, a := range c.Attempts {
		if a.Outcome != repo.OutcomeCreated {
			continue
		}
		proves := func(r simulator.Request) bool {
			ok := r.Status == http.StatusOK || r.Status == http.StatusCreated
			return ok && r.DashboardID == a.DashboardID && !fault(r).Truncate &&
				!c.after(answered(r), a.FinishedAt.Time)
		}
		// An operator's word is enough for an attempt that the operator resolved.
		if a.ResolvedAt.IsZero() && !slices.ContainsFunc(c.sends[a.Mark], proves) {
			c.report(CreatedProven, a.TenantID,
				"attempt %s says that it made dashboard %q; no request with its mark was answered so before",
				a.ID, a.DashboardID)
		}
		m := c.rows[a.TenantID]
		if m.Generation < a.Generation || m.Generation == a.Generation && m.DashboardID != a.DashboardID {
			c.report(CreatedProven, a.TenantID,
				"attempt %s made dashboard %q for generation %d; the row has %q, generation %d",
				a.ID, a.DashboardID, a.Generation, m.DashboardID, m.Generation)
		}
	}
}

// refusedProven checks that an attempt is recorded as refused only if no request of it may have
// been processed: a refused attempt is repeated and never listed as a possible orphan.
func (c *checker) refusedProven() {
	for _, a := range c.Attempts {
		if a.Outcome != repo.OutcomeRefused {
			continue
		}
		for _, r := range c.sends[a.Mark] {
			if !unprocessed(r) {
				c.report(RefusedProven, a.TenantID,
					"attempt %s says refused; request %d may have been processed (status %d, dashboard %q)",
					a.ID, r.Seq, r.Status, r.DashboardID)
			}
		}
	}
}
