-- +goose Up

-- The same attempts. For a list of more than two words SQLite builds a table of them each time that a row is written.
DROP INDEX provision_attempts_uncertain;
CREATE INDEX provision_attempts_unsettled ON provision_attempts (started_at) WHERE outcome NOT IN ('created', 'refused');

-- +goose Down
DROP INDEX provision_attempts_unsettled;
CREATE INDEX provision_attempts_uncertain ON provision_attempts (started_at) WHERE outcome IN ('sent', 'unknown', 'orphaned');
