package worker

import (
	"context"
	"fmt"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// SetBudget sets the budget of a tenant, or of repo.EveryTenant. The running worker publishes the
// events about thresholds that usage has reached.
func SetBudget(ctx context.Context, db *repo.DB, b repo.Budget) error {
	e := repo.AuditEntry{
		Action: ActionSetBudget, TenantID: b.TenantID,
		Detail: fmt.Sprintf("%s credits, thresholds %s", b.Credits, b.Thresholds),
	}
	return audited(ctx, db, e).SetBudget(ctx, b, thresholdEvent)
}

// UnsetBudget removes a tenant's budget, so that the one of repo.EveryTenant applies. It returns
// repo.ErrNotFound if the tenant has no budget of its own.
func UnsetBudget(ctx context.Context, db *repo.DB, tenantID string) error {
	e := repo.AuditEntry{Action: ActionUnsetBudget, TenantID: tenantID}
	return audited(ctx, db, e).UnsetBudget(ctx, tenantID, thresholdEvent)
}

// Budget returns the budget that was set for a tenant, or for repo.EveryTenant.
func (a *API) Budget(ctx context.Context, tenantID string) (repo.Budget, error) {
	return a.db.Budget(ctx, tenantID)
}

// SetBudget is [SetBudget] in the running worker.
func (a *API) SetBudget(ctx context.Context, b repo.Budget) error { return SetBudget(ctx, a.db, b) }

// UnsetBudget is [UnsetBudget] in the running worker.
func (a *API) UnsetBudget(ctx context.Context, tenantID string) error {
	return UnsetBudget(ctx, a.db, tenantID)
}

func thresholdEvent(t repo.Threshold) (repo.OutboxEvent, error) {
	return newOutboxEvent(events.TypeUsageThreshold, events.UsageThreshold{
		TenantID: t.TenantID, WorkspaceID: t.WorkspaceID, Period: t.Period, Credits: t.Credits,
		Budget: t.Budget, Percent: t.Percent,
	})
}
