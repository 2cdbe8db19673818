package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// backupSource makes a migrated database with tenants.
func backupSource(t *testing.T, address string, tenants int) *DB {
	t.Helper()
	db, err := Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	addTenants(t, db, "org", tenants)
	return db
}

func addTenants(t *testing.T, db *DB, prefix string, n int) {
	t.Helper()
	for i := range n {
		change := Change{TenantID: fmt.Sprintf("%s-%d", prefix, i), WorkspaceID: "ws", To: Suspended,
			EventTime: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
		if _, err := db.Change(context.Background(), change); err != nil {
			t.Error(err)
		}
	}
}

func TestBackupOfSQLiteIsWholeWhileAWorkerWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	address := "sqlite:" + filepath.Join(dir, "papermap.db")
	db := backupSource(t, address, 50)
	written := make(chan struct{})
	go func() {
		defer close(written)
		addTenants(t, db, "later", 50)
	}()
	file := filepath.Join(dir, "backup.db")
	for range 3 {
		b, err := WriteBackup(t.Context(), address, file)
		if err != nil {
			t.Fatal(err)
		}
		if b.Tenants < 50 || b.Tenants > 100 || b.Engine != "SQLite" || b.Version == 0 {
			t.Errorf("the backup holds %+v", b)
		}
	}
	<-written
	b, err := WriteBackup(t.Context(), address, file)
	if err != nil || b.Tenants != 100 {
		t.Errorf("the last backup holds %+v, %v", b, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("it has mode %v, %v", info.Mode(), err)
	}
	onlyFiles(t, dir, "papermap.db", "papermap.db-wal", "papermap.db-shm", "backup.db")
	restored, err := Open(t.Context(), "sqlite:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	if err := restored.CheckSchema(t.Context()); err != nil {
		t.Error(err)
	}
}

// onlyFiles says that nothing else was left behind.
func onlyFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range list {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+entry.Name()+" ") {
			t.Errorf("left behind: %s", entry.Name())
		}
	}
}

// keepsGoodBackup says that a backup fails, and the one that is there stays.
func keepsGoodBackup(t *testing.T, ctx context.Context, address, file, want string) {
	t.Helper()
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := WriteBackup(ctx, address, file); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the backup ended with %v, want %q", err, want)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the good backup was replaced: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*.new*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBackupKeepsAGoodOneWhenTheNextFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	database := filepath.Join(dir, "papermap.db")
	db := backupSource(t, "sqlite:"+database, 2000)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "backup.db")
	if _, err := WriteBackup(t.Context(), "sqlite:"+database, file); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	keepsGoodBackup(t, ended, "sqlite:"+database, file, context.Canceled.Error())
	empty := filepath.Join(dir, "empty.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	keepsGoodBackup(t, t.Context(), "sqlite:"+empty, file, "does not hold the tables")

	data, err := os.ReadFile(database)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"pages are overwritten": func(data []byte) []byte {
			for i := len(data) / 2; i < len(data)/2+40_000; i++ {
				data[i] = 0xa5
			}
			return data
		},
		"it was cut": func(data []byte) []byte { return data[:len(data)*2/3] },
		"text":       func([]byte) []byte { return []byte(strings.Repeat("damaged ", 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			broken := filepath.Join(dir, "broken.db")
			if err := os.WriteFile(broken, damage([]byte(string(data))), 0o600); err != nil {
				t.Fatal(err)
			}
			keepsGoodBackup(t, t.Context(), "sqlite:"+broken, file, "damaged")
			if _, err := CheckBackup(t.Context(), broken); err == nil {
				t.Error("the check accepts it")
			}
		})
	}
}

func TestBackupReplacesNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	database := filepath.Join(dir, "papermap.db")
	backupSource(t, "sqlite:"+database, 1)
	other := filepath.Join(dir, "other.db")
	backupSource(t, "sqlite:"+other, 1)
	link := filepath.Join(dir, "link")
	if err := os.Link(database, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		database: "is the database itself", link: "is the database itself", other: "a database in use",
		dir: "not a regular file", os.DevNull: "not a regular file",
		filepath.Join(dir, "none", "b"): "no such file",
	} {
		_, err := WriteBackup(t.Context(), "sqlite:"+database, path)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := CheckBackup(t.Context(), database); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the check of a database in use ended with %v", err)
	}
}

func TestBackupOnAFullDiskKeepsTheGoodOne(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir, disk := t.TempDir(), t.TempDir()
	database := filepath.Join(dir, "papermap.db")
	db := backupSource(t, "sqlite:"+database, 1)
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=400k"); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	}()
	file := filepath.Join(disk, "backup.db")
	if _, err := WriteBackup(t.Context(), "sqlite:"+database, file); err != nil {
		t.Fatal(err)
	}
	addTenants(t, db, "more", 1500)
	keepsGoodBackup(t, t.Context(), "sqlite:"+database, file, "full")
}

// The address has parameters that pg_dump does not know, and a password, which pg_dump gets in its
// environment.
func TestBackupOfPostgreSQLCountsAndChecks(t *testing.T) {
	t.Parallel()
	if postgres == nil {
		t.Skip("no PostgreSQL")
	}
	address := postgres.Database(t)
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	address += separator + "statement_timeout=20s&default_query_exec_mode=exec&lock_timeout=3s"
	backupSource(t, address, 20)
	file := filepath.Join(t.TempDir(), "backup.dump")
	b, err := WriteBackup(t.Context(), address, file)
	if err != nil || b.Tenants != 20 || b.Engine != "PostgreSQL" || b.Version == 0 {
		t.Fatalf("the backup holds %+v, %v", b, err)
	}
	keepsGoodBackup(t, t.Context(), address+"&connect_timeout=1&user=nobody_here", file, "pg_dump failed")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.dump")
	if err := os.WriteFile(cut, data[:len(data)*3/4], 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := CheckBackup(t.Context(), cut); err == nil {
		t.Errorf("a backup that was cut is accepted: %+v", b)
	}
}

func TestBackupGivesPgDumpNoPasswordToShow(t *testing.T) {
	t.Parallel()
	for address, want := range map[string][2]string{
		"postgres://me:s%40cret@db:5432/papermap?sslmode=verify-full&statement_timeout=5s": {
			"postgresql://me@db:5432/papermap?sslmode=verify-full", "s@cret"},
		"postgres://a,b:5433/x?password=s%20p&user=u%20v&pool_max_conns=3": {
			"postgresql://a,b:5433/x?user=u%20v", "s p"},
		"postgres:///x?host=/run/postgresql&search_path=p": {"postgresql:///x?host=%2Frun%2Fpostgresql", ""},
	} {
		clean, password, err := dumpAddress(address)
		if err != nil || clean != want[0] || password != want[1] {
			t.Errorf("%s: %q, %q, %v", address, clean, password, err)
		}
	}
	if _, _, err := dumpAddress("postgres://db/x?sslpassword=secret"); err == nil ||
		errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "secret") {
		t.Errorf("sslpassword: %v", err)
	}
}
