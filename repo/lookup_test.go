package repo

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestLookupReadsTenantsAndDashboardsInSets(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		if list, err := db.OwnerWorkspaces(ctx); err != nil || len(list) > 0 {
			t.Errorf("workspaces of an empty database: %q, %v", list, err)
		}
		for _, key := range []dashboardKey{{"w", "d-1"}, {"w2", "d-2"}, {"w 3", `d"3\`}} {
			e := created("tenant of "+key.DashboardID, 1, key.DashboardID)
			e.WorkspaceID, e.DashboardID = key.WorkspaceID, key.DashboardID
			_, err := db.Adopt(ctx, e, announce("event of "+key.DashboardID))
			must(t, err)
		}
		begin(t, db, created("new", 2, "new"))

		states, err := db.TenantStates(ctx, []string{`tenant of d"3\`, "new", "unknown"})
		must(t, err)
		third, fresh := states[`tenant of d"3\`], states["new"]
		if len(states) != 2 || third.DashboardID != `d"3\` || third.WorkspaceID != "w 3" ||
			third.Stage != Active ||
			!third.Wanted() || third.Deleted() || third.CreatedEvent != minute(1).UnixNano() {
			t.Errorf("states: %+v", states)
		}
		if fresh.Stage != Creating || fresh.DashboardID != "" || fresh.ClaimableAt.IsZero() {
			t.Errorf("state of a tenant that is being created: %+v", fresh)
		}

		workspaces, err := db.OwnerWorkspaces(ctx)
		must(t, err)
		if want := []string{"w", "w 3", "w2"}; !slices.Equal(workspaces, want) {
			t.Errorf("workspaces %q, want %q", workspaces, want)
		}
		owners, err := db.DashboardOwners(ctx, workspaces, []string{"d-1", `d"3\`, "d-4"})
		must(t, err)
		slices.SortFunc(owners,
			func(a, b DashboardOwner) int { return cmp.Compare(a.DashboardID, b.DashboardID) })
		want := []DashboardOwner{
			{WorkspaceID: "w 3", DashboardID: `d"3\`, TenantID: `tenant of d"3\`},
			{WorkspaceID: "w", DashboardID: "d-1", TenantID: "tenant of d-1"},
		}
		if diff := gocmp.Diff(want, owners); diff != "" {
			t.Errorf("owners (-want +got):\n%s", diff)
		}
		if owners, err := db.DashboardOwners(ctx, []string{"w2"}, []string{"d-1"}); err != nil ||
			len(owners) > 0 {
			t.Errorf("owners in another workspace: %+v, %v", owners, err)
		}
	})
}

// An import of a million rows must not scan the tables for each thousand, also in a database that
// PostgreSQL has no statistics of.
func TestLookupReadsByIndex(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		fillPlanTables(t, db, *planRows)
		explain := map[bool]string{true: "EXPLAIN QUERY PLAN ", false: "EXPLAIN "}[db.path != ""]
		var tenants, dashboards []string
		var keys []dashboardKey
		for i := range 500 {
			tenants = append(tenants, fmt.Sprintf("filled-%d", i+1))
			dashboards = append(dashboards, fmt.Sprintf("d-%d", i+1))
			keys = append(keys, dashboardKey{"w", dashboards[i]})
		}
		owners, err := db.DashboardOwners(ctx, []string{"w", "w2"}, dashboards)
		if must(t, err); len(owners) != 500 {
			t.Errorf("%d owners, want 500", len(owners))
		}
		byKey := regexp.MustCompile(`SEARCH .*(tenant_id=|workspace_id=\? AND dashboard_id=)|` +
			`Index Cond: (\(tenant_id = |\(\(workspace_id = .* AND \(dashboard_id = )`)
		query, args := db.dialect.ownersOf(keys, ownerTable.columns)
		for query, args := range map[string][]any{
			query: args,
			stateTable.selects + " WHERE tenant_id" + db.dialect.inSet: {db.dialect.list(tenants)},
		} {
			if plan := planOf(t, db, explain+query, args); !byKey.MatchString(plan) {
				t.Errorf("rows are not looked up by key:\n%s\n%s", query, plan)
			}
		}
	})
}
