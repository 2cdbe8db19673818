-- +goose Up

-- How the tenant got its dashboard: empty, a create of this worker; adopted, by a tenant.created that names it;
-- replaced, by an operator, in the place of another.
ALTER TABLE tenant_dashboards ADD COLUMN dashboard_origin TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE tenant_dashboards DROP COLUMN dashboard_origin;
