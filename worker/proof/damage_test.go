package proof_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"papermap-worker/repo"
	"papermap-worker/worker"
)

// The short form damages each part of the files a few times.
//
//	go test ./worker/proof -run TestDamaged -v -args -damage 100
var damages = flag.Int("damage", 2, "how often each part of an SQLite database is damaged in each way")

// sqliteFiles are a database of a worker that was killed: most of it is in the file, the rest in the
// write-ahead log.
type sqliteFiles struct {
	file, wal []byte
	states    map[string]int // what was in it after each commit in the log
	last      int
}

const damageTenants, damageLogged = 300, 40

func newSQLiteFiles(t *testing.T) (f sqliteFiles) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "papermap.db")
	f.states = map[string]int{}
	var db *repo.DB
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func() {
		t.Helper()
		var err error
		db, err = repo.Open(t.Context(), "sqlite:"+path)
		must(err)
		_, err = db.Migrate(t.Context())
		must(err)
	}
	keep := func(i int) { // the state, if it is in the log
		if i >= damageTenants-damageLogged {
			content, err := sqliteContent(path)
			must(err)
			f.last++
			f.states[content] = f.last
		}
	}
	open()
	for i := range damageTenants {
		if i == damageTenants-damageLogged {
			must(db.Close()) // which writes the log into the file
			open()
		}
		tenant := fmt.Sprintf("tenant-%d", i)
		c, err := db.Begin(t.Context(), repo.Created{
			TenantID: tenant, WorkspaceID: "w", EventID: tenant, EventTime: time.Now(), Message: tenant,
		}, false)
		must(err)
		keep(i)
		_, err = db.Finish(t.Context(), c, "d-"+tenant, 200, worker.DashboardCreatedEvent)
		must(err)
		keep(i)
	}
	var err error
	f.file, err = os.ReadFile(path)
	must(err)
	f.wal, err = os.ReadFile(path + "-wal")
	must(err)
	must(db.Close())
	return f
}

// sqliteContent reads all rows.
func sqliteContent(path string) (string, error) {
	db, err := sqlx.Open("sqlite3", "file:"+path+"?mode=ro")
	if err != nil {
		return "", err
	}
	defer db.Close()
	var b strings.Builder
	for _, table := range tables {
		rows, err := db.Queryx("SELECT * FROM " + table + " ORDER BY 1, 2")
		if err != nil {
			return "", err
		}
		for rows.Next() {
			row, err := rows.SliceScan()
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "%q\n", row)
		}
		if err := rows.Err(); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// outcome says what comes of damaged files.
func (f sqliteFiles) outcome(t *testing.T, file, wal []byte) string {
	path := filepath.Join(t.TempDir(), "papermap.db")
	for name, content := range map[string][]byte{path: file, path + "-wal": wal} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db, err := repo.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		return "found when it was opened"
	}
	defer db.Close()
	if err := db.CheckIntegrity(t.Context()); err != nil {
		return "found by the check at start"
	}
	content, err := sqliteContent(path)
	state, known := f.states[content]
	switch {
	case err != nil:
		return "found when it was read"
	case !known:
		return "not found: a value is different"
	case state < f.last:
		return "not found: the newest commits are missing, whole ones"
	}
	return "without effect"
}

// TestDamagedSQLiteIsFoundOrBounded damages the files of a database. Nothing but what the
// documentation says may come of it: a truncated file is found, and damage of the log costs whole
// commits and nothing else.
func TestDamagedSQLiteIsFoundOrBounded(t *testing.T) {
	f := newSQLiteFiles(t)
	random := rand.New(rand.NewPCG(1, 2))
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[random.IntN(len(b))] ^= 1 << random.IntN(8)
		return b
	}
	truncate := func(b []byte) []byte { return bytes.Clone(b[:random.IntN(len(b))]) }
	const different = "not found: a value is different"
	for _, d := range []struct {
		what    string
		damage  func() (file, wal []byte)
		mayDiff bool
	}{
		{"a bit of the file flipped", func() ([]byte, []byte) { return flip(f.file), f.wal }, true},
		{"the file truncated", func() ([]byte, []byte) { return truncate(f.file), f.wal }, false},
		{"a bit of the log flipped", func() ([]byte, []byte) { return f.file, flip(f.wal) }, false},
		{"the log truncated", func() ([]byte, []byte) { return f.file, truncate(f.wal) }, false},
	} {
		var count tally
		for range *damages {
			file, wal := d.damage()
			outcome := f.outcome(t, file, wal)
			count.add(outcome, 1)
			if outcome == different && !d.mayDiff {
				t.Errorf("%s: %s", d.what, outcome)
			}
		}
		t.Logf("%s, of %d and %d bytes:\n%s", d.what, len(f.file), len(f.wal), count.table())
	}
}
