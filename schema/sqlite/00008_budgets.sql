-- +goose Up

-- Credits per month and workspace that a tenant is expected to use.
CREATE TABLE usage_budgets (
    tenant_id  TEXT NOT NULL PRIMARY KEY, -- *: each tenant that has none of its own
    credits    TEXT NOT NULL,             -- plain decimal notation; 0: no budget
    thresholds TEXT NOT NULL              -- percent, ascending, separated by commas
) WITHOUT ROWID;

-- Thresholds that were reached. A row makes its usage.threshold the only one.
CREATE TABLE usage_marks (
    period       TEXT    NOT NULL,
    workspace_id TEXT    NOT NULL,
    tenant_id    TEXT    NOT NULL,
    percent      INTEGER NOT NULL,
    budget       TEXT    NOT NULL, -- credits
    PRIMARY KEY (period, workspace_id, tenant_id, percent)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE usage_marks;
DROP TABLE usage_budgets;
