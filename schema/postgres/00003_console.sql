-- +goose Up

-- People look for a tenant by the beginning of its name, in any case. Status is in it, so that a filter reads no rows.
CREATE INDEX tenant_dashboards_name ON tenant_dashboards (substr(lower(replace(title, 'Dashboard - ', '')), 1, 100) COLLATE "C", tenant_id, status);

-- +goose Down
DROP INDEX tenant_dashboards_name;
