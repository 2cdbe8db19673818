-- +goose Up

-- Who did what. Rows are never changed, and deleted when AUDIT_RETENTION is over.
CREATE TABLE audit_log (
    id        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        TIMESTAMPTZ NOT NULL,
    actor     TEXT NOT NULL,
    via       TEXT NOT NULL CHECK (via IN ('rest', 'console', 'cli')),
    action    TEXT NOT NULL,
    tenant_id TEXT COLLATE "C" NOT NULL DEFAULT '', -- empty: it was about no tenant
    event_id  TEXT COLLATE "C" NOT NULL DEFAULT '', -- of the event that does it; empty: the transaction of the row did
    detail    TEXT NOT NULL DEFAULT ''
);
CREATE INDEX audit_log_at ON audit_log (at, id);
CREATE INDEX audit_log_tenant ON audit_log (tenant_id, at, id);

-- +goose Down
DROP TABLE audit_log;
