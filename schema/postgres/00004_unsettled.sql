-- +goose Up

-- The same attempts as provision_attempts_uncertain, as the queries now ask for them on both databases. The old index stays for
-- the workers of before, and because dropping it would wait for every reader and keep all others waiting.
CREATE INDEX provision_attempts_unsettled ON provision_attempts (started_at) WHERE outcome NOT IN ('created', 'refused');

-- +goose Down
DROP INDEX provision_attempts_unsettled;
