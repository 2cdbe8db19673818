package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// writeCheckEvery is how long nothing must have been written before Check writes something itself.
const writeCheckEvery = 10 * time.Second

// Check returns an error if the database cannot be used: it cannot be read, its files are not those
// that were opened, or it accepts no writes. To check writes, it writes a row and removes it in one
// transaction, unless something was committed within the last 10 s. It returns when ctx ends.
func (db *DB) Check(ctx context.Context) error {
	if err := cmp.Or(db.checkFiles(), db.checkLock()); err != nil {
		return err
	}
	var one int
	const query = "SELECT 1 FROM tenant_dashboards UNION ALL SELECT 1 LIMIT 1"
	if err := db.read.get(ctx, &one, query); err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	if time.Since(time.Unix(0, db.lastWrite.Load())) < writeCheckEvery {
		return nil
	}
	return db.checkWrites(ctx)
}

var errWritesHang = errors.New("write to the database: it has not answered yet")

// checkWrites writes a row. While one write hangs, it starts no other.
func (db *DB) checkWrites(ctx context.Context) error {
	if !db.probing.CompareAndSwap(false, true) {
		return errWritesHang
	}
	done := make(chan error, 1)
	go func() {
		defer db.probing.Store(false)
		done <- db.transact(ctx, func(ctx context.Context, t *tx) error {
			const name = "write check"
			err := t.exec(ctx, "INSERT INTO leases (name, holder, until) VALUES (?, '', ?) "+
				"ON CONFLICT (name) DO UPDATE SET until = excluded.until", name, t.now)
			if err != nil {
				return err
			}
			return t.exec(ctx, "DELETE FROM leases WHERE name = ?", name)
		})
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("write to the database: %w", err)
		}
		return nil
	case <-ctx.Done():
		return errWritesHang
	}
}

// wrote records the time of a commit.
func (db *DB) wrote(err error) {
	if err == nil {
		db.lastWrite.Store(time.Now().UnixNano())
	}
}

// sqliteFile is a file of an SQLite database as it was when it was opened.
type sqliteFile struct {
	path string
	info os.FileInfo
}

// ErrFileGone means that writes to the SQLite file would be lost.
var ErrFileGone = errors.New("while the worker was running; it has stopped writing")

// openFiles records the files that are open. SQLite keeps them open as long as there is a
// connection.
func openFiles(paths ...string) (list []sqliteFile, err error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		list = append(list, sqliteFile{path, info})
	}
	return list, nil
}

// checkFiles returns an error if a file of the SQLite database was removed or replaced since it was
// opened. A process that has it open would not notice.
func (db *DB) checkFiles() error {
	for _, f := range db.files {
		if what, err := f.check(); err != nil {
			return fmt.Errorf("find the database file: %w", err)
		} else if what != "" {
			return fmt.Errorf("%s was %s %w", f.path, what, ErrFileGone)
		}
	}
	return nil
}

// check says whether the file was removed or replaced.
func (f sqliteFile) check() (what string, err error) {
	info, err := os.Stat(f.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "removed", nil
	case err != nil:
		return "", err
	case !os.SameFile(info, f.info):
		return "replaced", nil
	}
	return "", nil
}

// checkLock returns an error if the lock file was removed or replaced: a second worker could start.
func (db *DB) checkLock() error {
	if db.lock == nil {
		return nil
	}
	info, err := db.lock.Stat()
	if err != nil {
		return fmt.Errorf("find the lock file: %w", err)
	}
	what, err := sqliteFile{db.lock.Name(), info}.check()
	if err != nil {
		return fmt.Errorf("find the lock file: %w", err)
	}
	if what != "" {
		return fmt.Errorf("%s was %s while the worker was running, so a second one could start: "+
			"restart it", db.lock.Name(), what)
	}
	return nil
}

// Lock keeps other processes from working on the same SQLite file, until Close or the end of the
// process, even after a crash. Commands that read, or that resolve one tenant, need no lock.
// Replicas share a PostgreSQL database, where Lock does nothing.
//
// Two workers on one SQLite file would be correct, as tests show, but each would wait for the
// other's commits.
func (db *DB) Lock() error {
	if db.path == "" {
		return nil
	}
	file, err := os.OpenFile(db.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the database: %w", err)
	}
	if err := lockFile(file, syscall.LOCK_EX, time.Second); err != nil { // doctor may be checking it
		_ = file.Close()
		return fmt.Errorf("another worker has the database %s: stop it, "+
			"or use PostgreSQL to run several (%w)", db.path, err)
	}
	db.lock = file
	if err := file.Truncate(0); err != nil {
		return fmt.Errorf("write to the lock file: %w", err)
	}
	if _, err := file.WriteAt([]byte(identity(db.files[0].info)), 0); err != nil {
		return fmt.Errorf("write to the lock file: %w", err)
	}
	return nil
}

func lockFile(file *os.File, how int, wait time.Duration) error {
	for started := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
		if err == nil || time.Since(started) >= wait {
			return err
		}
	}
}

// identity is the same for two files only if they are one.
func identity(info os.FileInfo) string {
	s := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

// CheckWorkersFile returns an error if a running worker has another SQLite file open than the one
// at address.
func CheckWorkersFile(address string) error {
	path, ok := sqlitePath(address)
	if !ok {
		return nil
	}
	lock, err := os.Open(path + ".lock")
	if err != nil {
		return nil // there is no worker, or its own check reports the lock
	}
	defer lock.Close()
	if lockFile(lock, syscall.LOCK_SH, 0) == nil {
		return nil // no worker is running
	}
	worked, err := io.ReadAll(io.LimitReader(lock, 100))
	if err != nil || len(worked) == 0 {
		return nil // it is just starting
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%s was removed %w", path, ErrFileGone)
	}
	if identity(info) != string(worked) {
		return fmt.Errorf("%s was replaced %w", path, ErrFileGone)
	}
	return nil
}
