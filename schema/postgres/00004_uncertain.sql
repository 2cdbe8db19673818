-- +goose Up

-- The same attempts, as the queries ask for them on both databases.
DROP INDEX provision_attempts_uncertain;
CREATE INDEX provision_attempts_uncertain ON provision_attempts (started_at) WHERE outcome NOT IN ('created', 'refused');

-- +goose Down
DROP INDEX provision_attempts_uncertain;
CREATE INDEX provision_attempts_uncertain ON provision_attempts (started_at) WHERE outcome IN ('sent', 'unknown', 'orphaned');
