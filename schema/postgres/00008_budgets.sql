-- +goose Up

-- Credits per month and workspace that a tenant is expected to use.
CREATE TABLE usage_budgets (
    tenant_id  TEXT COLLATE "C" NOT NULL PRIMARY KEY, -- *: each tenant that has none of its own
    credits    NUMERIC NOT NULL,                      -- 0: no budget
    thresholds TEXT NOT NULL                          -- percent, ascending, separated by commas
);

-- Thresholds that were reached. A row makes its usage.threshold the only one.
CREATE TABLE usage_marks (
    period       TEXT COLLATE "C" NOT NULL,
    workspace_id TEXT COLLATE "C" NOT NULL,
    tenant_id    TEXT COLLATE "C" NOT NULL,
    percent      BIGINT  NOT NULL,
    budget       NUMERIC NOT NULL, -- credits
    PRIMARY KEY (period, workspace_id, tenant_id, percent)
);

-- +goose Down
DROP TABLE usage_marks;
DROP TABLE usage_budgets;
