package repo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCheckFindsAFileThatIsGone(t *testing.T) {
	move := func(path string) error { return os.Rename(path, path+".away") }
	moveFolder := func(path string) error { return move(filepath.Dir(path)) }
	replace := func(path string) error {
		data, err := os.ReadFile(path)
		return errors.Join(err, move(path), os.WriteFile(path, data, 0o600))
	}
	for name, test := range map[string]struct {
		change func(path string) error
		file   string
		want   string
		writes bool // still go on
	}{
		"removed":          {os.Remove, "", "removed while the worker was running", false},
		"moved away":       {move, "", "removed while the worker was running", false},
		"replaced":         {replace, "", "replaced while the worker was running", false},
		"log removed":      {os.Remove, "-wal", "-wal was removed while", false},
		"log replaced":     {replace, "-wal", "-wal was replaced while", false},
		"lock removed":     {os.Remove, ".lock", ".lock was removed while", true},
		"lock replaced":    {replace, ".lock", ".lock was replaced while", true},
		"folder moved":     {moveFolder, "", "removed while", false},
		"nothing happened": {func(string) error { return nil }, "", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data", "test.db")
			must(t, os.Mkdir(filepath.Dir(path), 0o700))
			db := openFile(t, path)
			_, err := db.Migrate(ctx)
			must(t, errors.Join(err, db.Lock(), db.Check(ctx)))
			must(t, test.change(path+test.file))
			err = db.Check(ctx)
			if test.want == "" {
				must(t, err)
			} else if !strings.Contains(errorText(err), test.want) {
				t.Errorf("the check: %v, want %q", err, test.want)
			}
			_, err = db.TakeLease(ctx, "l", "h", time.Hour)
			if (err == nil) != test.writes || err != nil && !errors.Is(err, ErrFileGone) {
				t.Errorf("a write: %v, want one: %v", err, test.writes)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A command such as doctor is another process than the worker.
func TestCheckWorkersFileFindsAnotherFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "test.db")
	address := "sqlite:" + path
	must(t, CheckWorkersFile(address)) // there is nothing
	worker, err := Open(ctx, address)
	must(t, err)
	must(t, errors.Join(worker.Lock(), CheckWorkersFile(address)))
	must(t, os.Rename(path, path+".away"))
	if err := CheckWorkersFile(address); !errors.Is(err, ErrFileGone) {
		t.Errorf("the file is removed: %v", err)
	}
	must(t, os.WriteFile(path, nil, 0o600))
	if err := CheckWorkersFile(address); !errors.Is(err, ErrFileGone) {
		t.Errorf("the file is replaced: %v", err)
	}
	must(t, worker.Close())
	must(t, CheckWorkersFile(address)) // the worker that had it is gone
	must(t, CheckWorkersFile("postgres://host/db"))
}

func TestCheckWritesOnlyWhenNothingElseDoes(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		finish(t, db, claim(t, db, "a"))
		spoil := "CREATE TRIGGER spoil BEFORE INSERT ON leases BEGIN SELECT RAISE(ABORT, 'disk full'); END"
		mend := "DROP TRIGGER spoil"
		if db.path == "" {
			spoil, mend = "ALTER TABLE leases RENAME TO away", "ALTER TABLE away RENAME TO leases"
		}
		db.write.MustExec(spoil)
		defer db.write.MustExec(mend)
		must(t, db.Check(ctx)) // something was committed just now
		db.lastWrite.Store(time.Now().Add(-writeCheckEvery).UnixNano())
		if err := db.Check(ctx); !strings.Contains(errorText(err), "write to the database: ") {
			t.Errorf("a database that takes no writes: %v", err)
		}
	})
}

func TestCheckLeavesNothingBehind(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		before := time.Now()
		must(t, db.Check(ctx))
		same(t, "leases", count(t, db, "leases"), 0)
		if wrote := time.Unix(0, db.lastWrite.Load()); wrote.Before(before) {
			t.Error("nothing was written")
		}
	})
}

func TestCheckEndsWhileAWriteHangs(t *testing.T) {
	db, _ := openBatches(t)
	db.lastWrite.Store(0)
	started, end := make(chan struct{}), make(chan struct{})
	go func() {
		_ = db.transact(ctx, func(context.Context, *tx) error { close(started); <-end; return nil })
	}()
	<-started
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := db.Check(soon); !errors.Is(err, errWritesHang) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while a write hangs: %v", err)
	}
	close(end)
}

func TestCheckFindsAReadOnlyDatabase(t *testing.T) {
	db, _ := openBatches(t)
	must(t, db.Check(ctx))
	db.lastWrite.Store(0)
	db.write.MustExec("PRAGMA query_only = 1") // as on a file system that became read-only
	if err := db.Check(ctx); !strings.Contains(errorText(err), "readonly database") {
		t.Errorf("a database that became read-only: %v", err)
	}
	db.write.MustExec("PRAGMA query_only = 0")
	must(t, db.Check(ctx))
}
