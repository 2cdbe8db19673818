package repo

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/jmoiron/sqlx"
	"github.com/mattn/go-sqlite3"

	"papermap-worker/worker/failpoint"
)

// maxGroup limits how long the callers of one transaction wait for each other.
const maxGroup = 128 // writes

var errClosed = errors.New("the database is closed")

// group is the group commit of SQLite: one goroutine writes for all callers, those that wait at the
// same time in one transaction. While it waits for the disk the next group gathers by itself, so
// there is no delay to configure.
//
// The jobs of a group run one after the other, in the order in which they came, and see each
// other's writes. A caller gets its answer only after the COMMIT is on disk (synchronous=FULL).
type group struct {
	db    *DB
	queue chan *job
	stop  chan struct{} // closed by close: no more jobs are accepted
	done  chan struct{} // closed when the last transaction has ended
	once  sync.Once
}

// job is a write that waits for its group.
type job struct {
	ctx  context.Context // never ends
	do   txFunc
	err  error
	done chan struct{}
}

func newGroup(db *DB) *group {
	g := &group{db: db, queue: make(chan *job), stop: make(chan struct{}), done: make(chan struct{})}
	go g.run()
	return g
}

func (g *group) close() {
	g.once.Do(func() { close(g.stop) })
	<-g.done
}

// update runs do with whatever else waits. Once accepted it is not abandoned when ctx ends: the
// caller learns what became of it, and SQLite, which rolls the whole transaction back when a
// statement is interrupted, does not lose the others' writes. So do gets a context that does not
// end.
func (g *group) update(ctx context.Context, do txFunc) error {
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
			jobs = g.gather(j)
		case <-g.stop:
			return
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

// gather adds the jobs that wait already to the first one.
func (g *group) gather(first *job) []*job {
	jobs := []*job{first}
	runtime.Gosched() // goroutines that are about to write join this group
	for len(jobs) < maxGroup {
		select {
		case j := <-g.queue:
			jobs = append(jobs, j)
		default:
			return jobs
		}
	}
	return jobs
}

// commit runs the jobs in one transaction. One that fails is left out, and the others run once
// more: that is rare, and a savepoint for each would cost about a third. An error of commit itself
// means that nothing of any was written.
func (g *group) commit(jobs []*job) error {
	for {
		failed, err := g.tryCommit(jobs)
		if err != nil || failed < 0 {
			return err
		}
		jobs = slices.Delete(slices.Clone(jobs), failed, failed+1)
	}
}

// tryCommit runs the jobs and commits them, or writes nothing and returns the index of the first
// that failed; -1 when none did.
func (g *group) tryCommit(jobs []*job) (failed int, err error) {
	ctx := context.Background()
	// Not a sql.Tx, which starts a goroutine for each of its queries, to watch a context that does
	// not end.
	conn, err := g.db.write.Connx(ctx)
	if err == nil {
		defer conn.Close()
		_, err = conn.ExecContext(ctx, "BEGIN IMMEDIATE")
	}
	if err != nil {
		return -1, fmt.Errorf("begin a transaction: %w", err)
	}
	t := &tx{db: g.db, on: conn, now: at(g.db.now())}
	for i, j := range jobs {
		if j.err = recovered(j.ctx, j.do, t); j.err != nil {
			rollback(ctx, conn)
			return i, nil
		}
	}
	failpoint.Hit(failpoint.Commit)
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		rollback(ctx, conn)
		return -1, fmt.Errorf("commit: %w", err)
	}
	failpoint.Hit(failpoint.Committed)
	return -1, nil
}

// rollback ends the transaction, unless SQLite has done so by itself, as it does when the disk is
// full.
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

// recovered runs do and turns a panic into an error: one caller's bug must not take the others'
// writes with it.
func recovered(ctx context.Context, do txFunc, t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a transaction: %v", p)
		}
	}()
	return do(ctx, t)
}
