package proof

import (
	"regexp"

	"papermap-worker/events"
	"papermap-worker/repo"
)

var (
	periodForm  = regexp.MustCompile(`^2\d{3}-(0[1-9]|1[0-2])$`)
	creditsForm = regexp.MustCompile(`^\d{1,20}(\.\d+)?$`)
)

func (c *checker) usageValid() {
	type key struct{ workspace, tenant, period string }
	seen := map[key]bool{}
	for _, u := range c.Usage {
		k := key{u.WorkspaceID, u.TenantID, u.Period}
		if seen[k] || !periodForm.MatchString(u.Period) || !creditsForm.MatchString(u.Credits) || u.Requests < 0 {
			c.report(UsageValid, u.TenantID, "the usage in workspace %s and period %q (%q credits, %d requests) stands there twice or has a wrong form",
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
			c.report(UsageTrue, k.tenant, "the table has %s credits and %d requests for %s, the API reports %q and %d", u.Credits, u.Requests, k.period, r.Credits, r.Requests)
		}
	}
	for _, run := range c.Runs {
		if run.Status != repo.RunDone || run.TenantID != "" {
			continue
		}
		for k, r := range reported {
			if _, there := have[k]; !there && k.workspace == run.WorkspaceID && k.period >= run.FromPeriod && k.period <= run.ToPeriod {
				c.report(UsageTrue, k.tenant, "run %s is done, and the %s credits of %s are not in the table", run.ID, r.Credits, k.period)
			}
		}
	}
}

// usageRuns checks that each run has ended, is its event's only one, and is told of once when it is done.
func (c *checker) usageRuns() {
	told := map[string]bool{} // a copy has the same id
	for _, o := range c.Out {
		if o.Type == events.TypeUsageSynced {
			told[o.ID] = true
		}
	}
	done := 0
	seen := map[[2]string]bool{}
	for _, run := range c.Runs {
		k := [2]string{run.WorkspaceID, run.EventID}
		if seen[k] || run.Status == repo.Running {
			c.report(UsageRun, run.TenantID, "run %s of event %s is %s, at page %d, the first of its event: %t", run.ID, run.EventID, run.Status, run.NextPage, !seen[k])
		}
		seen[k] = true
		if run.Status == repo.RunDone {
			done++
		}
	}
	if len(told) != done {
		c.report(UsageRun, "", "%d runs are done, and %d usage.synced tell of one", done, len(told))
	}
}
