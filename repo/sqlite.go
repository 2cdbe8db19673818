package repo

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"

	"papermap-worker/worker/failpoint"
)

func openSQLite(ctx context.Context, path string) (*DB, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, fmt.Errorf("opening the database: %s is a folder, not a file", path)
	}
	file := "file:" + (&url.URL{Path: path}).EscapedPath()
	// Settings stand in the address because a PRAGMA by Exec would reach one connection of the pool alone.
	const common = "?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=5000&_foreign_keys=on&_stmt_cache_size=64&_mutex=no" // the pool is the mutex
	// For a CHECK with a list of words SQLite builds a table of them each time that a row is written, which made a provisioned
	// tenant's writes take a sixth longer. What the program writes are constants of its own; other programs are checked, and
	// CheckIntegrity checks all rows.
	write, err := sqlx.Open("sqlite3", file+common+"&_txlock=immediate&_ignore_check_constraints=1")
	if err != nil {
		return nil, fmt.Errorf("opening the database %s: %w", path, err)
	}
	write.SetMaxOpenConns(1)
	if err := pingPatiently(ctx, write); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the database %s: %w", path, damaged(err)), write.Close())
	}
	read, err := sqlx.Open("sqlite3", file+common+"&_query_only=1&_cache_size=-512") // 512 KiB each: the system caches the file
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the database %s: %w", path, damaged(err)), write.Close())
	}
	read.SetMaxOpenConns(4)
	db := &DB{dialect: goose.DialectSQLite3, path: path, read: pool{DB: read}, write: write, now: time.Now}
	db.group = &group{
		write: write, now: func() time.Time { return db.now() },
		queue: make(chan *job), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go db.group.run()
	return db, nil
}

// pingPatiently makes the first connection, and tries for as long as _busy_timeout. Where two at once turn a new file into one with a
// write-ahead log, SQLite refuses the second without waiting.
func pingPatiently(ctx context.Context, db *sqlx.DB) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := db.PingContext(ctx)
		var e sqlite3.Error
		if !errors.As(err, &e) || e.Code != sqlite3.ErrBusy || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

// damaged adds what to do to an error that means that the file is broken, or was never a database.
func damaged(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB) {
		return fmt.Errorf("the file is damaged or no database (%w): restore it from a backup, or correct DATABASE_URL", err)
	}
	return err
}

// Lock keeps other processes from working on the same SQLite file, until Close or the end of the process, however that
// comes. The commands that look and settle need no lock. Replicas share a PostgreSQL database, where Lock does nothing.
func (db *DB) Lock() error {
	if db.dialect != goose.DialectSQLite3 {
		return nil
	}
	file, err := os.OpenFile(db.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the database: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		return fmt.Errorf("another worker has the database %s: stop it, or use PostgreSQL to run several (%w)", db.path, err)
	}
	db.lock = file
	return nil
}

// CheckIntegrity reads the whole file and returns an error when it is damaged. PostgreSQL looks after itself.
func (db *DB) CheckIntegrity(ctx context.Context) error {
	if db.dialect != goose.DialectSQLite3 {
		return nil
	}
	var result string
	if err := db.read.GetContext(ctx, &result, "PRAGMA quick_check(1)"); err != nil {
		return fmt.Errorf("checking the database file: %w", damaged(err))
	}
	switch {
	case strings.HasPrefix(result, "CHECK constraint"):
		return fmt.Errorf("a row of the database holds a word that this program does not write (%s): correct the row", result)
	case result != "ok":
		return fmt.Errorf("the database file is damaged (%s): restore it from a backup", result)
	}
	return nil
}

// maxGroup bounds how long one transaction keeps readers of its result waiting.
const maxGroup = 128

var errClosed = errors.New("the database is closed")

// group is the group commit: one goroutine that writes for everybody.
type group struct {
	write *sqlx.DB
	now   func() time.Time
	queue chan *job
	stop  chan struct{} // closed by close: no more jobs are taken
	done  chan struct{} // closed when the last transaction has ended
	once  sync.Once
}

func (g *group) close() {
	g.once.Do(func() { close(g.stop) })
	<-g.done
}

// job is a write that waits for its group.
type job struct {
	ctx  context.Context // never ends
	do   work
	err  error
	done chan struct{}
}

// update runs do with whatever else waits. Once begun it is not abandoned when ctx ends: the caller learns what became
// of it, and SQLite, which rolls the whole transaction back when a statement is interrupted, does not take the group
// with it. So do gets a context that does not end.
func (g *group) update(ctx context.Context, do work) error {
	j := &job{ctx: context.WithoutCancel(ctx), do: do, done: make(chan struct{})}
	select {
	case g.queue <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-g.stop:
		return errClosed
	}
	<-j.done
	return j.err
}

// run commits the jobs that wait, as many as there are at once in one transaction, until close.
func (g *group) run() {
	defer close(g.done)
	for {
		var jobs []*job
		select {
		case j := <-g.queue:
			jobs = append(jobs, j)
		case <-g.stop:
			return
		}
		runtime.Gosched() // those who are about to write come with this group
	gather:
		for len(jobs) < maxGroup {
			select {
			case j := <-g.queue:
				jobs = append(jobs, j)
			default:
				break gather
			}
		}
		if err := g.commit(jobs); err != nil {
			for _, j := range jobs {
				j.err = err
			}
		}
		for _, j := range jobs {
			close(j.done)
		}
	}
}

// commit runs the jobs in one transaction. One that fails is left out, and the others run once more: that is rare, and
// a savepoint for each would cost more. An error of commit itself means that nothing of any was written.
func (g *group) commit(jobs []*job) error {
	for {
		failed, err := g.together(jobs)
		if err != nil || failed < 0 {
			return err
		}
		jobs = slices.Delete(slices.Clone(jobs), failed, failed+1)
	}
}

// together runs the jobs and commits them, or nothing and returns the first that failed; -1 when none did.
func (g *group) together(jobs []*job) (failed int, err error) {
	ctx := context.Background()
	conn, err := g.write.Connx(ctx) // a sql.Tx would start a goroutine for each of its queries, to watch a context that does not end
	if err == nil {
		defer conn.Close()
		_, err = conn.ExecContext(ctx, "BEGIN IMMEDIATE")
	}
	if err != nil {
		return -1, fmt.Errorf("beginning a transaction: %w", err)
	}
	t := &tx{on: conn, driver: g.write.DriverName(), now: at(g.now())}
	for i, j := range jobs {
		if j.err = attempt(j.ctx, j.do, t); j.err != nil {
			rollback(ctx, conn)
			return i, nil
		}
	}
	failpoint.Hit(failpoint.Commit)
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		rollback(ctx, conn)
		return -1, fmt.Errorf("committing: %w", err)
	}
	failpoint.Hit(failpoint.Committed)
	return -1, nil
}

// rollback ends the transaction, unless SQLite has done so by itself, as it does when the disk is full.
func rollback(ctx context.Context, conn *sqlx.Conn) {
	_ = conn.Raw(func(raw any) error {
		if raw.(*sqlite3.SQLiteConn).AutoCommit() {
			return nil
		}
		if _, err := raw.(*sqlite3.SQLiteConn).ExecContext(ctx, "ROLLBACK", nil); err != nil {
			return driver.ErrBadConn // it is closed, which ends the transaction too
		}
		return nil
	})
}

// attempt turns a panic into an error: one caller's bug must not take the others' writes with it.
func attempt(ctx context.Context, do work, t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a transaction: %v", p)
		}
	}()
	return do(ctx, t)
}
