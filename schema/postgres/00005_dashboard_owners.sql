-- +goose Up

-- Which tenant a dashboard belongs to. An id that was ever recorded for a tenant stays that tenant's: who is first to insert it
-- has it. It replaces provision_attempts_dashboard, which stays for the workers of before, as do their writes: what they record
-- during a rolling restart is not in it, and is kept from others by the unique key of tenant_dashboards alone.
CREATE TABLE dashboard_owners (
    workspace_id TEXT COLLATE "C" NOT NULL,
    dashboard_id TEXT COLLATE "C" NOT NULL,
    tenant_id    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (workspace_id, dashboard_id)
);
SET LOCAL statement_timeout = 0;
INSERT INTO dashboard_owners (workspace_id, dashboard_id, tenant_id)
    SELECT workspace_id, dashboard_id, tenant_id FROM tenant_dashboards WHERE dashboard_id IS NOT NULL
    ON CONFLICT DO NOTHING;
INSERT INTO dashboard_owners (workspace_id, dashboard_id, tenant_id)
    SELECT workspace_id, dashboard_id, tenant_id FROM provision_attempts WHERE dashboard_id IS NOT NULL
    ORDER BY started_at, id ON CONFLICT DO NOTHING;

-- +goose Down
DROP TABLE dashboard_owners;
