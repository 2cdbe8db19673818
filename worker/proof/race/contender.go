package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

const (
	onPostgres = "postgres"
	onSQLite   = "sqlite"
)

// contender is one way to do the task.
type contender struct {
	name     string // such as river-postgres
	database string // onPostgres or onSQLite
	role     string // of this program, see runRole; empty: the program at binary
	binary   string // of papermap-worker
}

// Rivals that the ratios refer to.
const (
	baselinePostgres = "river-postgres"
	baselineSQLite   = "nats-sqlite"
)

// contenders lists all, with each build of papermap-worker. Several builds are told apart by the
// names of their files, or by number where these are equal.
func contenders(binaries []string) []contender {
	var all []contender
	used := map[string]bool{}
	for i, binary := range binaries {
		name := "papermap"
		if len(binaries) > 1 {
			name += ":" + filepath.Base(binary)
		}
		if used[name] {
			name = fmt.Sprintf("%s#%d", name, i+1)
		}
		used[name] = true
		all = append(all,
			contender{name: name + "-postgres", database: onPostgres, binary: binary},
			contender{name: name + "-sqlite", database: onSQLite, binary: binary})
	}
	return append(all,
		contender{name: baselinePostgres, database: onPostgres, role: roleRiver},
		contender{name: "watermill-postgres", database: onPostgres, role: roleWatermill},
		contender{name: "watermill-sqlite", database: onSQLite, role: roleWatermill},
		contender{name: "nats-postgres", database: onPostgres, role: roleNATS},
		contender{name: baselineSQLite, database: onSQLite, role: roleNATS})
}

func names(list []contender) []string {
	var names []string
	for _, c := range list {
		names = append(names, c.name)
	}
	return names
}

// choose keeps the contenders that are named; papermap-sqlite names every build of papermap.
func choose(all []contender, only []string) ([]contender, error) {
	if len(only) == 0 {
		return all, nil
	}
	var chosen []contender
	for _, name := range only {
		found := slices.DeleteFunc(slices.Clone(all), func(c contender) bool {
			return c.name != name && (c.role != "" || name != "papermap-"+c.database)
		})
		if len(found) == 0 {
			known := strings.Join(names(all), ", ")
			return nil, fmt.Errorf("-only: no contender %q; there are %s", name, known)
		}
		chosen = append(chosen, found...)
	}
	return chosen, nil
}
