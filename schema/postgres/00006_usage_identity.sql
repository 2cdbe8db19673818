-- +goose Up

-- A run is known by the source and the id of the event that asked for it: two services may use one id.
ALTER TABLE usage_runs ADD COLUMN event_source TEXT COLLATE "C" NOT NULL DEFAULT ''; -- a hash; empty: the event has none
ALTER TABLE usage_runs ADD COLUMN message TEXT NOT NULL DEFAULT ''; -- of the event, that was handled last
ALTER TABLE usage_runs ADD COLUMN slot TIMESTAMPTZ; -- of the schedule, if that asked for the run
ALTER TABLE usage_runs ADD COLUMN shifted BOOLEAN NOT NULL DEFAULT FALSE; -- in this pass rows moved between pages
UPDATE usage_runs SET shifted = TRUE WHERE pass > 4; -- which said the same
ALTER TABLE usage_runs DROP CONSTRAINT usage_runs_workspace_id_event_id_key;
CREATE UNIQUE INDEX usage_runs_event ON usage_runs (workspace_id, event_id, event_source);
-- One run for each slot, over all replicas.
CREATE UNIQUE INDEX usage_runs_slot ON usage_runs (workspace_id, slot);

-- +goose Down
DELETE FROM usage_runs WHERE event_source <> '';
DROP INDEX usage_runs_slot;
DROP INDEX usage_runs_event;
ALTER TABLE usage_runs ADD UNIQUE (workspace_id, event_id);
ALTER TABLE usage_runs DROP COLUMN shifted;
ALTER TABLE usage_runs DROP COLUMN slot;
ALTER TABLE usage_runs DROP COLUMN message;
ALTER TABLE usage_runs DROP COLUMN event_source;
