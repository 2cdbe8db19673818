-- +goose Up

-- When a person resolved a possible orphan, having looked for it in Papermap's page.
ALTER TABLE provision_attempts ADD COLUMN settled_at TEXT;

-- An event in that is published again keeps its identity and time.
ALTER TABLE outbox ADD COLUMN original_id TEXT NOT NULL DEFAULT '';
ALTER TABLE outbox ADD COLUMN original_time BIGINT NOT NULL DEFAULT 0;

-- Nothing was ever written to it. Without a row id each row is stored once, in the order of its key.
DROP TABLE tenant_usage;
CREATE TABLE tenant_usage (
    workspace_id TEXT   NOT NULL,
    tenant_id    TEXT   NOT NULL,
    period       TEXT   NOT NULL,
    credits      TEXT   NOT NULL, -- plain decimal notation: NUMERIC would be a float here
    requests     BIGINT NOT NULL,
    synced_at    TEXT   NOT NULL, -- when this value was first read
    PRIMARY KEY (workspace_id, tenant_id, period)
) WITHOUT ROWID;

-- A run reads every page of a workspace's usage in some months. It is known by the event that asked for it: copies of
-- the event, and the ticks that each replica publishes, are one run.
CREATE TABLE usage_runs (
    id             TEXT NOT NULL PRIMARY KEY,
    workspace_id   TEXT NOT NULL,
    event_id       TEXT NOT NULL,
    tenant_id      TEXT NOT NULL DEFAULT '', -- of a run for one tenant
    from_period    TEXT NOT NULL,
    to_period      TEXT NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('running', 'done', 'incomplete', 'failed', 'skipped')),
    pass           INTEGER NOT NULL DEFAULT 1, -- grows each time that it begins again because the totals shifted
    next_page      INTEGER NOT NULL DEFAULT 1, -- the checkpoint: all before are recorded
    pages          INTEGER NOT NULL DEFAULT 0, -- 0 while unknown
    total          BIGINT  NOT NULL DEFAULT -1, -- rows that the API speaks of; -1 when it does not
    rows_read      BIGINT  NOT NULL DEFAULT 0,
    rows_written   BIGINT  NOT NULL DEFAULT 0,
    rows_rejected  BIGINT  NOT NULL DEFAULT 0,
    rows_changed   BIGINT  NOT NULL DEFAULT 0, -- totals that went down
    error          TEXT NOT NULL DEFAULT '',
    started_at     TEXT NOT NULL,
    updated_at     TEXT NOT NULL,
    finished_at    TEXT,
    UNIQUE (workspace_id, event_id)
);
CREATE INDEX usage_runs_started ON usage_runs (workspace_id, started_at);

-- Rows of the API that could not be used, of each run's last pass.
CREATE TABLE usage_rejects (
    run_id TEXT NOT NULL,
    page   INTEGER NOT NULL,
    place  INTEGER NOT NULL, -- in the page, from 0
    reason TEXT NOT NULL,
    raw    TEXT NOT NULL,
    PRIMARY KEY (run_id, page, place)
);

-- Totals that went down: the API corrected itself.
CREATE TABLE usage_changes (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id       TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    tenant_id    TEXT NOT NULL,
    period       TEXT NOT NULL,
    old_credits  TEXT NOT NULL,
    new_credits  TEXT NOT NULL,
    old_requests BIGINT NOT NULL,
    new_requests BIGINT NOT NULL,
    changed_at   TEXT NOT NULL
);
CREATE INDEX usage_changes_tenant ON usage_changes (workspace_id, tenant_id, period);

-- How many embed tokens were minted: usage without a token was not caused by our users.
CREATE TABLE token_counts (
    workspace_id TEXT NOT NULL,
    tenant_id    TEXT NOT NULL,
    period       TEXT NOT NULL,
    tokens       BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, tenant_id, period)
);

-- +goose Down
DROP TABLE token_counts;
DROP TABLE usage_changes;
DROP TABLE usage_rejects;
DROP TABLE usage_runs;
ALTER TABLE outbox DROP COLUMN original_time;
ALTER TABLE outbox DROP COLUMN original_id;
ALTER TABLE provision_attempts DROP COLUMN settled_at;
