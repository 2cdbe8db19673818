package proof

import (
	"cmp"
	"regexp"

	"papermap-worker/events"
	"papermap-worker/repo"
)

var (
	periodForm  = regexp.MustCompile(`^2\d{3}-(0[1-9]|1[0-2])$`)
	creditsForm = regexp.MustCompile(`^\d{1,20}(\.\d+)?$`)
)

// usageValid checks the rows alone: a period is YYYY-MM, credits are plain decimals.
func (c *checker) usageValid() {
	type key struct{ workspace, tenant, period string }
	seen := map[key]bool{}
	for _, u := range c.Usage {
		k := key{u.WorkspaceID, u.TenantID, u.Period}
		valid := periodForm.MatchString(u.Period) && creditsForm.MatchString(u.Credits) && u.Requests >= 0
		if seen[k] || !valid {
			c.report(UsageValid, u.TenantID,
				"usage in workspace %s and period %q (%q credits, %d requests) is there twice or malformed",
				u.WorkspaceID, u.Period, u.Credits, u.Requests)
		}
		seen[k] = true
	}
}

// usageTrue compares the table with what the API reports, and each run with what it must leave.
func (c *checker) usageTrue() {
	type key struct{ workspace, tenant, period string }
	have := map[key]UsageRow{}
	for _, u := range c.Usage {
		have[key{u.WorkspaceID, u.TenantID, u.Period}] = u
	}
	reported := map[key]UsageRow{}
	for _, r := range c.Reported {
		reported[key{r.WorkspaceID, r.TenantID, r.Period}] = r
	}
	for k, u := range have {
		if r := reported[k]; c.Reported != nil && (u.Credits != r.Credits || u.Requests != r.Requests) {
			c.report(UsageTrue, k.tenant,
				"the table has %s credits and %d requests for %s, the API reports %q and %d",
				u.Credits, u.Requests, k.period, r.Credits, r.Requests)
		}
	}
	for _, run := range c.Runs {
		if run.Status != repo.RunDone || run.TenantID != "" {
			continue
		}
		for k, r := range reported {
			covered := k.period >= run.FromPeriod && k.period <= run.ToPeriod
			if _, there := have[k]; covered && !there && k.workspace == run.WorkspaceID {
				c.report(UsageTrue, k.tenant, "run %s is done, and the %s credits of %s are not in the table",
					run.ID, r.Credits, k.period)
			}
		}
	}
}

// usageRuns checks that each run has ended, is its event's only one, and has one usage.synced if it
// is done. A run whose event was lost may not have ended.
func (c *checker) usageRuns() {
	lost := map[string]bool{} // by identity: the last copy of an event counts
	for _, p := range c.stored {
		lost[cmp.Or(p.EventID, p.message())] = p.Lost
	}
	synced := map[string]bool{} // by event id: copies count once
	for _, o := range c.Out {
		if o.Type == events.TypeUsageSynced {
			synced[o.ID] = true
		}
	}
	done := 0
	seen := map[[3]string]bool{}
	for _, run := range c.Runs {
		k := [3]string{run.WorkspaceID, run.EventID, run.EventSource}
		if seen[k] || run.Status == repo.RunRunning && !lost[run.EventID] {
			c.report(UsageRun, run.TenantID,
				"run %s of event %s is %s, at page %d, the first of its event: %t",
				run.ID, run.EventID, run.Status, run.NextPage, !seen[k])
		}
		seen[k] = true
		if run.Status == repo.RunDone {
			done++
		}
	}
	if len(synced) != done {
		c.report(UsageRun, "", "%d runs are done, and there are %d usage.synced", done, len(synced))
	}
}
