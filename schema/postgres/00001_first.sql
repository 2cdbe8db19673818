-- +goose Up

-- Texts that are keys sort by their bytes, as on SQLite. Event times are Unix nanoseconds (BIGINT), because two events a
-- microsecond apart must stay apart; 0 means that no such event was seen.
CREATE TABLE tenant_dashboards (
    tenant_id        TEXT COLLATE "C"    NOT NULL PRIMARY KEY,
    workspace_id     TEXT COLLATE "C"    NOT NULL,
    dashboard_id     TEXT COLLATE "C",
    title            TEXT    NOT NULL DEFAULT '',
    description      TEXT    NOT NULL DEFAULT '',
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'creating', 'active', 'held', 'failed', 'suspended', 'deleted')),
    generation       INTEGER NOT NULL DEFAULT 1,
    created_by       TEXT    NOT NULL DEFAULT '',
    created_at       TIMESTAMPTZ NOT NULL,
    updated_at       TIMESTAMPTZ NOT NULL,
    -- How far provisioning is, whatever status shows; 'none' until a tenant.created was accepted.
    stage            TEXT    NOT NULL DEFAULT 'none' CHECK (stage IN ('none', 'pending', 'creating', 'active', 'held', 'failed')),
    created_event    BIGINT  NOT NULL DEFAULT 0,
    deleted_event    BIGINT  NOT NULL DEFAULT 0,
    suspended_event  BIGINT  NOT NULL DEFAULT 0,
    resumed_event    BIGINT  NOT NULL DEFAULT 0,
    created_event_id TEXT    NOT NULL DEFAULT '',
    -- The lease: only the holder of the current epoch may finish; no other worker may claim before claimable_at.
    epoch            BIGINT  NOT NULL DEFAULT 0,
    claimable_at     TIMESTAMPTZ,
    -- Failures of this generation that count towards MAX_ATTEMPTS, when the last API call failed, and the stored
    -- message that ended as failed, so that its redelivery ends the same way.
    failures         INTEGER NOT NULL DEFAULT 0,
    failed_at        TIMESTAMPTZ,
    failed_message   TEXT    NOT NULL DEFAULT '',
    failed_code      TEXT    NOT NULL DEFAULT '',
    failed_error     TEXT    NOT NULL DEFAULT '',
    UNIQUE (workspace_id, dashboard_id)
);
CREATE INDEX tenant_dashboards_status ON tenant_dashboards (status, tenant_id);

CREATE TABLE provision_attempts (
    id           TEXT COLLATE "C"    NOT NULL PRIMARY KEY,
    workspace_id TEXT COLLATE "C"    NOT NULL,
    tenant_id    TEXT COLLATE "C"    NOT NULL,
    generation   INTEGER NOT NULL,
    mark         TEXT    NOT NULL UNIQUE,
    outcome      TEXT    NOT NULL CHECK (outcome IN ('sent', 'created', 'refused', 'unknown', 'orphaned')),
    dashboard_id TEXT COLLATE "C",
    http_status  INTEGER,
    error        TEXT,
    started_at   TIMESTAMPTZ NOT NULL,
    finished_at  TIMESTAMPTZ
);
CREATE INDEX provision_attempts_tenant ON provision_attempts (tenant_id, started_at);
CREATE INDEX provision_attempts_outcome ON provision_attempts (workspace_id, outcome, finished_at);
CREATE INDEX provision_attempts_dashboard ON provision_attempts (workspace_id, dashboard_id) WHERE dashboard_id IS NOT NULL;
CREATE INDEX provision_attempts_uncertain ON provision_attempts (started_at) WHERE outcome IN ('sent', 'unknown', 'orphaned');

CREATE TABLE tenant_usage (
    workspace_id TEXT COLLATE "C"   NOT NULL,
    tenant_id    TEXT COLLATE "C"   NOT NULL,
    period       TEXT COLLATE "C"   NOT NULL,
    credits      NUMERIC NOT NULL,
    requests     BIGINT NOT NULL,
    synced_at    TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (workspace_id, tenant_id, period)
);

-- Events out, written with the state change; a row without sent_at waits for the relay.
CREATE TABLE outbox (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id   TEXT NOT NULL UNIQUE,
    tenant_id  TEXT COLLATE "C" NOT NULL,
    type       TEXT NOT NULL,
    data       TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    sent_at    TIMESTAMPTZ
);
CREATE INDEX outbox_unsent ON outbox (id) WHERE sent_at IS NULL;
CREATE INDEX outbox_tenant ON outbox (tenant_id, id);
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

-- One holder at a time for jobs that run once over all replicas.
CREATE TABLE leases (
    name   TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    until  TIMESTAMPTZ NOT NULL
);

-- +goose Down
DROP TABLE leases;
DROP TABLE outbox;
DROP TABLE tenant_usage;
DROP TABLE provision_attempts;
DROP TABLE tenant_dashboards;
