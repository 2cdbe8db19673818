package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"papermap-worker/repo"
)

// Results of a row.
const (
	resultCreated   = "created"   // a dashboard was made
	resultAdopted   = "adopted"   // it has the row's dashboard now
	resultUnchanged = "unchanged" // there was nothing to do
	resultConflict  = "conflict"  // the row contradicts what is recorded
	resultInvalid   = "invalid"   // the worker would refuse the row
	resultFailed    = "failed"    // it was tried, and the tenant has no dashboard
)

// importResults lists the results in the order in which they are counted. Rows of the last three need
// a person.
var importResults = []string{
	resultCreated, resultAdopted, resultUnchanged, resultConflict, resultInvalid, resultFailed,
}

// needsPerson reports whether a row of this result has to be corrected.
func needsPerson(result string) bool {
	return result == resultConflict || result == resultInvalid || result == resultFailed
}

// verdict is what is to be done about a row.
type verdict struct {
	importResult      // what it is, or what it will be if all goes well
	publish      bool // publish tenant.created
	follow       bool // wait for what was published before
}

func (v verdict) acts() bool { return v.publish || v.follow }

// planner decides about rows by what the database has.
type planner struct {
	db         *repo.DB
	recreate   bool     // --recreate-deleted
	workspaces []string // that have dashboards
}

func newPlanner(ctx context.Context, db *repo.DB, recreate bool) (*planner, error) {
	workspaces, err := db.OwnerWorkspaces(ctx)
	return &planner{db, recreate, workspaces}, err
}

// facts are what the database has about some rows.
type importFacts struct {
	states map[string]repo.TenantState
	owners map[string][]repo.DashboardOwner // by dashboard id, in all workspaces
}

// read reads the facts about the rows that are valid.
func (p *planner) read(ctx context.Context, rows []importRow) (f importFacts, err error) {
	var tenants, dashboards []string
	for _, r := range rows {
		if len(r.problems) > 0 {
			continue
		}
		tenants = append(tenants, r.TenantID)
		if r.DashboardID != "" {
			dashboards = append(dashboards, r.DashboardID)
		}
	}
	if len(tenants) > 0 {
		if f.states, err = p.db.TenantStates(ctx, tenants); err != nil {
			return f, err
		}
	}
	if len(dashboards) == 0 || len(p.workspaces) == 0 {
		return f, nil
	}
	owners, err := p.db.DashboardOwners(ctx, p.workspaces, dashboards)
	f.owners = map[string][]repo.DashboardOwner{}
	for _, o := range owners {
		f.owners[o.DashboardID] = append(f.owners[o.DashboardID], o)
	}
	return f, err
}

// judge decides about a row.
func (p *planner) judge(r *importRow, f importFacts) verdict {
	s, known := f.states[r.TenantID]
	if len(r.problems) > 0 {
		return r.verdict(resultInvalid, strings.Join(r.problems, "; "))
	}
	if taken := r.takenBy(s, f.owners[r.DashboardID]); taken != "" {
		return r.verdict(resultConflict, taken)
	}
	do := verdict{importResult: r.result(resultCreated, ""), publish: true}
	if r.DashboardID != "" {
		do.Result = resultAdopted
	}
	switch {
	case !known:
		return do
	case s.Deleted() && !p.recreate:
		return r.verdict(resultConflict,
			"the tenant was deleted: --recreate-deleted gives it a dashboard again")
	case !s.Wanted(): // deleted, or known by other events alone
		return do
	case s.Stage == repo.Active:
		return r.besides(s)
	case s.Stage == repo.Failed || r.DashboardID != "":
		return do
	case s.Stage == repo.Held:
		return r.verdict(resultConflict, "the tenant is held: decide about it with "+
			"`papermap-worker tenants resolve`, or with a dashboard_id in this row")
	}
	return verdict{importResult: r.result(resultUnchanged, ""), follow: true}
}

// takenBy says that the row's dashboard belongs to another tenant; empty if it does not. Without a
// workspace, the dashboard is looked for in the tenant's own, or in all.
func (r *importRow) takenBy(s repo.TenantState, owners []repo.DashboardOwner) string {
	workspace := r.WorkspaceID
	if workspace == "" && s.Wanted() && s.Stage != repo.Failed {
		workspace = s.WorkspaceID
	}
	for _, o := range owners {
		if o.TenantID != r.TenantID && cmp.Or(workspace, o.WorkspaceID) == o.WorkspaceID {
			return fmt.Sprintf("dashboard %q of workspace %q belongs to tenant %q",
				o.DashboardID, o.WorkspaceID, o.TenantID)
		}
	}
	return ""
}

// besides is the verdict on a tenant that has a dashboard.
func (r *importRow) besides(s repo.TenantState) verdict {
	if r.differs(s) {
		return r.verdict(resultConflict, fmt.Sprintf("the tenant has dashboard %q of workspace %q: "+
			"`papermap-worker tenants resolve --replace` corrects it", s.DashboardID, s.WorkspaceID))
	}
	v := r.verdict(resultUnchanged, "")
	v.DashboardID = s.DashboardID
	return v
}

// differs reports whether the row names another dashboard than the tenant has.
func (r *importRow) differs(s repo.TenantState) bool {
	return r.DashboardID != "" &&
		(r.DashboardID != s.DashboardID || cmp.Or(r.WorkspaceID, s.WorkspaceID) != s.WorkspaceID)
}

// verdict is one after which nothing is done.
func (r *importRow) verdict(result, reason string) verdict {
	return verdict{importResult: r.result(result, reason)}
}

func (r *importRow) result(result, reason string) importResult {
	return importResult{
		Line: r.line, TenantID: r.TenantID, Result: result, DashboardID: r.DashboardID, Error: reason,
	}
}
