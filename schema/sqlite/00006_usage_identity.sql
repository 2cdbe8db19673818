-- +goose Up

-- A run is known by the source and the id of the event that asked for it: two services may use one id. A table
-- with another UNIQUE has to be made anew.
CREATE TABLE usage_runs_new (
    id             TEXT NOT NULL PRIMARY KEY,
    workspace_id   TEXT NOT NULL,
    event_id       TEXT NOT NULL,
    event_source   TEXT NOT NULL DEFAULT '', -- a hash; empty: the event has none
    message        TEXT NOT NULL DEFAULT '', -- of the event, that was handled last
    slot           TEXT, -- of the schedule, if that asked for the run
    tenant_id      TEXT NOT NULL DEFAULT '', -- of a run for one tenant
    from_period    TEXT NOT NULL,
    to_period      TEXT NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('running', 'done', 'incomplete', 'failed', 'skipped')),
    pass           INTEGER NOT NULL DEFAULT 1, -- grows each time that it begins again because the totals shifted
    shifted        BOOLEAN NOT NULL DEFAULT FALSE, -- in this pass rows moved between pages
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
    UNIQUE (workspace_id, event_id, event_source),
    UNIQUE (workspace_id, slot) -- one run for each slot, over all replicas
);
INSERT INTO usage_runs_new (id, workspace_id, event_id, tenant_id, from_period, to_period, status, pass, shifted,
    next_page, pages, total, rows_read, rows_written, rows_rejected, rows_changed, error, started_at, updated_at, finished_at)
    SELECT id, workspace_id, event_id, tenant_id, from_period, to_period, status, pass, pass > 4, -- which said that it has shifted
    next_page, pages, total, rows_read, rows_written, rows_rejected, rows_changed, error, started_at, updated_at, finished_at
    FROM usage_runs;
DROP TABLE usage_runs;
ALTER TABLE usage_runs_new RENAME TO usage_runs;
CREATE INDEX usage_runs_started ON usage_runs (workspace_id, started_at);

-- +goose Down
CREATE TABLE usage_runs_old (
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
INSERT INTO usage_runs_old (id, workspace_id, event_id, tenant_id, from_period, to_period, status, pass, next_page, pages, total,
    rows_read, rows_written, rows_rejected, rows_changed, error, started_at, updated_at, finished_at)
    SELECT id, workspace_id, event_id, tenant_id, from_period, to_period, status, pass, next_page, pages, total,
    rows_read, rows_written, rows_rejected, rows_changed, error, started_at, updated_at, finished_at FROM usage_runs WHERE event_source = '';
DROP TABLE usage_runs;
ALTER TABLE usage_runs_old RENAME TO usage_runs;
CREATE INDEX usage_runs_started ON usage_runs (workspace_id, started_at);
