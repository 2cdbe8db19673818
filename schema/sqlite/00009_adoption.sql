-- +goose Up

-- When the event, or the operator's correction, happened that gave the tenant its dashboard, in Unix nanoseconds; 0: not
-- known.
ALTER TABLE tenant_dashboards ADD COLUMN dashboard_event BIGINT NOT NULL DEFAULT 0;

-- When the dashboard last became its tenant's, when an operator last gave its place to another, and when a person last
-- looked for it at Papermap.
ALTER TABLE dashboard_owners ADD COLUMN set_at TEXT;
ALTER TABLE dashboard_owners ADD COLUMN replaced_at TEXT;
ALTER TABLE dashboard_owners ADD COLUMN settled_at TEXT;
CREATE INDEX dashboard_owners_replaced ON dashboard_owners (tenant_id) WHERE replaced_at IS NOT NULL;

-- +goose Down
DROP INDEX dashboard_owners_replaced;
ALTER TABLE dashboard_owners DROP COLUMN settled_at;
ALTER TABLE dashboard_owners DROP COLUMN replaced_at;
ALTER TABLE dashboard_owners DROP COLUMN set_at;
ALTER TABLE tenant_dashboards DROP COLUMN dashboard_event;
