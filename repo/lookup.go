package repo

import (
	"context"
	"slices"
)

// TenantState is the part of a mapping that an import needs.
type TenantState struct {
	TenantID       string `db:"tenant_id"`
	WorkspaceID    string `db:"workspace_id"`
	DashboardID    string `db:"dashboard_id"`
	Stage          Status `db:"stage"`
	CreatedEvent   int64  `db:"created_event"`
	DeletedEvent   int64  `db:"deleted_event"`
	CreatedEventID string `db:"created_event_id"`
	ClaimableAt    Time   `db:"claimable_at"`
	FailedCode     string `db:"failed_code"`
	FailedError    string `db:"failed_error"`
}

// Wanted is [Mapping.Wanted].
func (s TenantState) Wanted() bool { return s.CreatedEvent > s.DeletedEvent }

// Deleted reports whether the tenant was deleted, and not created again since.
func (s TenantState) Deleted() bool { return s.DeletedEvent > 0 && !s.Wanted() }

var stateTable = newTable[TenantState]("tenant_dashboards", "dashboard_id")

// TenantStates reads the tenants of a list in one statement. It leaves out unknown ones.
func (db *DB) TenantStates(ctx context.Context, tenantIDs []string) (map[string]TenantState, error) {
	rows, err := list[TenantState](ctx, db.read, "read tenants",
		stateTable.selects+" WHERE tenant_id"+db.dialect.inSet, db.dialect.list(tenantIDs))
	states := make(map[string]TenantState, len(rows))
	for _, s := range rows {
		states[s.TenantID] = s
	}
	return states, err
}

// DashboardOwner is the tenant that a dashboard belongs to, even if the tenant no longer uses it.
type DashboardOwner struct {
	WorkspaceID string `db:"workspace_id"`
	DashboardID string `db:"dashboard_id"`
	TenantID    string `db:"tenant_id"`
}

// DashboardOwners reads the owners of a list of dashboards, in each of the workspaces. It leaves
// out dashboards without an owner.
func (db *DB) DashboardOwners(
	ctx context.Context, workspaceIDs, dashboardIDs []string,
) ([]DashboardOwner, error) {
	keys := make([]dashboardKey, 0, len(workspaceIDs)*len(dashboardIDs))
	for _, workspace := range workspaceIDs {
		for _, dashboard := range dashboardIDs {
			keys = append(keys, dashboardKey{workspace, dashboard})
		}
	}
	query, args := db.dialect.ownersOf(keys, ownerTable.columns[:3])
	return list[DashboardOwner](ctx, db.read, "read whose dashboards are", query, args...)
}

// OwnerWorkspaces lists the workspaces that have dashboards. It reads one row of the index for each.
func (db *DB) OwnerWorkspaces(ctx context.Context) ([]string, error) {
	return list[string](ctx, db.read, "list workspaces",
		`WITH RECURSIVE w (id) AS (
			SELECT MIN(workspace_id) FROM dashboard_owners
			UNION ALL
			SELECT (SELECT MIN(workspace_id) FROM dashboard_owners WHERE workspace_id > w.id)
			FROM w WHERE w.id IS NOT NULL)
		SELECT id FROM w WHERE id IS NOT NULL`)
}

// TenantName is the part of a mapping that people search for.
type TenantName struct {
	TenantID  string `db:"tenant_id"`
	Title     string `db:"title"`
	Status    Status `db:"status"`
	Origin    Origin `db:"dashboard_origin"`
	UpdatedAt Time   `db:"updated_at"`
}

var nameTable = newTable[TenantName]("tenant_dashboards")

// TenantNames reads at most limit tenants in the order of their ids, after the id after.
func (db *DB) TenantNames(ctx context.Context, after string, limit int) ([]TenantName, error) {
	return list[TenantName](ctx, db.read, "read the names of tenants",
		nameTable.selects+" WHERE tenant_id > ? ORDER BY tenant_id LIMIT ?", after, limit)
}

// MappingsOf reads the mappings of a list of tenants, in the order of the list, in one statement.
// It leaves out unknown ones.
func (db *DB) MappingsOf(ctx context.Context, tenantIDs []string) ([]Mapping, error) {
	rows, err := list[Mapping](ctx, db.read, "read mappings",
		mappingTable.selects+" WHERE tenant_id"+db.dialect.inSet, db.dialect.list(tenantIDs))
	slices.SortFunc(rows, func(a, b Mapping) int {
		return slices.Index(tenantIDs, a.TenantID) - slices.Index(tenantIDs, b.TenantID)
	})
	return rows, err
}
