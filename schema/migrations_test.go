package schema

import (
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// adds are the statements that leave everything that existed as it was, so that the previous
// version keeps working beside the new one during a rolling restart.
var adds = []*regexp.Regexp{
	regexp.MustCompile(`^CREATE TABLE \w+ \(`),
	// a unique one might refuse what the previous version writes
	regexp.MustCompile(`^CREATE INDEX \w+ ON `),
	regexp.MustCompile(`^ALTER TABLE \w+ ADD COLUMN \w+ [^,]+$`),
	regexp.MustCompile(`^INSERT INTO dashboard_owners .* ON CONFLICT DO NOTHING$`), // its first rows
	regexp.MustCompile(`^SET LOCAL statement_timeout = 0$`),
}

// exceptions are statements that do not only add, each with the reason why it is harmless.
var exceptions = map[string]string{
	"sqlite/00002_settle_and_usage.sql: DROP TABLE tenant_usage": "no program before this migration " +
		"ever wrote to the table, and the next statement creates it again",
	"sqlite/00004_unsettled.sql: DROP INDEX provision_attempts_uncertain": aloneOnSQLite +
		"one that is put back only takes longer to count",
	"sqlite/00005_dashboard_owners.sql: DROP INDEX provision_attempts_dashboard": aloneOnSQLite +
		"one that is put back only takes longer to look for rivals",
	"sqlite/00006_usage_identity.sql: INSERT INTO usage_runs_new (id, workspace_id, event_id, tenant_id, " +
		"from_period, to_period, status, pass, shifted, " + runColumns + ") SELECT id, workspace_id, " +
		"event_id, tenant_id, from_period, to_period, status, pass, pass > 4, " + runColumns +
		" FROM usage_runs": aloneOnSQLite + keepsRows,
	"sqlite/00006_usage_identity.sql: DROP TABLE usage_runs": aloneOnSQLite +
		keepsRows,
	"sqlite/00006_usage_identity.sql: ALTER TABLE usage_runs_new RENAME TO usage_runs": aloneOnSQLite +
		keepsRows,
	"postgres/00006_usage_identity.sql: UPDATE USAGE_RUNS SET shifted = TRUE WHERE pass > 4": "the " +
		"previous program does not know the column",
	"postgres/00006_usage_identity.sql: ALTER TABLE usage_runs " +
		"DROP CONSTRAINT usage_runs_workspace_id_event_id_key": "the previous program inserts " +
		"ON CONFLICT DO NOTHING, and the index that follows refuses what the constraint did, " +
		"for all that it writes",
	"postgres/00006_usage_identity.sql: CREATE UNIQUE INDEX usage_runs_event " +
		"ON usage_runs (workspace_id, event_id, event_source)": "the constraint before it was stricter",
	"postgres/00006_usage_identity.sql: CREATE UNIQUE INDEX usage_runs_slot " +
		"ON usage_runs (workspace_id, slot)": "the previous program leaves the slot NULL",
}

const (
	aloneOnSQLite = "no program runs beside the new one on an SQLite file, and "
	keepsRows     = "the table is created again with all its rows"

	runColumns = "next_page, pages, total, rows_read, rows_written, rows_rejected, rows_changed, error, " +
		"started_at, updated_at, finished_at"
)

func TestMigrationsOnlyEverAdd(t *testing.T) {
	files, err := fs.Glob(migrations, "*/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	used := map[string]bool{}
	for _, file := range files {
		text, err := migrations.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		statements := statements(string(text))
		if len(statements) == 0 {
			t.Errorf("%s: it does nothing", file)
		}
		for _, statement := range statements {
			named := file + ": " + statement
			if exceptions[named] != "" {
				used[named] = true
			} else if !onlyAdds(statement) {
				t.Errorf("%s\nmay break a program that runs beside the new one: migrations only ever add",
					named)
			}
		}
	}
	for named := range exceptions {
		if !used[named] {
			t.Errorf("nothing needs the exception for %s", named)
		}
	}
}

// The check of migrations is itself checked, with statements that a migration might have.
func TestStatementsThatDoNotOnlyAddAreSeen(t *testing.T) {
	const text = `-- DROP TABLE before;
-- +goose Up
create table  a (b TEXT);
CREATE INDEX a_b ON a (b); -- for c; and d
ALTER TABLE a ADD COLUMN c TEXT;
ALTER TABLE a ADD COLUMN d TEXT NOT NULL DEFAULT 'x';
-- a note; with a semicolon
drop table
    a;
DROP INDEX a_b;
ALTER TABLE a DROP COLUMN b;
ALTER TABLE a ADD COLUMN f TEXT, DROP COLUMN b;
ALTER TABLE a ADD COLUMN e TEXT NOT NULL;
ALTER TABLE a ADD COLUMN g TEXT UNIQUE;
ALTER TABLE a RENAME COLUMN b TO c;
ALTER TABLE a RENAME TO z;
ALTER TABLE a ALTER COLUMN b TYPE INTEGER;
ALTER TABLE a ADD CONSTRAINT u UNIQUE (b);
CREATE UNIQUE INDEX u ON a (b);
UPDATE a SET b = '';
DELETE FROM a
-- +goose Down
DROP TABLE a;
`
	statements := statements(text)
	i := slices.IndexFunc(statements, func(s string) bool { return !onlyAdds(s) })
	if len(statements) != 17 || i != 4 || slices.ContainsFunc(statements[i:], onlyAdds) {
		t.Errorf("of %d statements the first 4 only add; number %d was refused first:\n%s", len(statements),
			i+1, strings.Join(statements, "\n"))
	}
}

func onlyAdds(statement string) bool {
	if strings.HasPrefix(statement, "ALTER") && (strings.Contains(statement, " NOT NULL") &&
		!strings.Contains(statement, " DEFAULT ") || strings.Contains(statement, " UNIQUE")) {
		return false // a version without the column could not insert a row, or not a second one
	}
	return slices.ContainsFunc(adds, func(form *regexp.Regexp) bool { return form.MatchString(statement) })
}

// statements are those of a migration's Up part, each on one line, without comments.
func statements(text string) []string {
	text = regexp.MustCompile(`--.*`).ReplaceAllString(up(text), "")
	var list []string
	for statement := range strings.SplitSeq(text, ";") {
		if words := strings.Fields(statement); len(words) > 0 {
			for i, keyword := range words[:min(len(words), 2)] {
				words[i] = strings.ToUpper(keyword)
			}
			list = append(list, strings.Join(words, " "))
		}
	}
	return list
}
