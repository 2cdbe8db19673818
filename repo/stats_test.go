package repo

import (
	"regexp"
	"testing"
)

func TestEngineNamesItsVersion(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		if name, err := openTest(t).Engine(ctx); err != nil ||
			!regexp.MustCompile(`^(SQLite 3\.|PostgreSQL 1)\d`).MatchString(name) {
			t.Errorf("%q, %v", name, err)
		}
	})
}
