-- +goose Up

-- Which tenant a dashboard belongs to. An id that was ever recorded for a tenant stays that tenant's: who is first to insert it
-- has it. It replaces provision_attempts_dashboard.
CREATE TABLE dashboard_owners (
    workspace_id TEXT NOT NULL,
    dashboard_id TEXT NOT NULL,
    tenant_id    TEXT NOT NULL,
    PRIMARY KEY (workspace_id, dashboard_id)
) WITHOUT ROWID;
INSERT INTO dashboard_owners (workspace_id, dashboard_id, tenant_id)
    SELECT workspace_id, dashboard_id, tenant_id FROM tenant_dashboards WHERE dashboard_id IS NOT NULL
    ON CONFLICT DO NOTHING;
INSERT INTO dashboard_owners (workspace_id, dashboard_id, tenant_id)
    SELECT workspace_id, dashboard_id, tenant_id FROM provision_attempts WHERE dashboard_id IS NOT NULL
    ORDER BY started_at, id ON CONFLICT DO NOTHING;
DROP INDEX provision_attempts_dashboard;

-- +goose Down
CREATE INDEX provision_attempts_dashboard ON provision_attempts (workspace_id, dashboard_id) WHERE dashboard_id IS NOT NULL;
DROP TABLE dashboard_owners;
