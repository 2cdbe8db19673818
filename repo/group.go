package repo

import (
	"context"
	"errors"
	"fmt"
)

// maxGroup bounds how long one transaction keeps readers of its result waiting.
const maxGroup = 128

var errClosed = errors.New("the database is closed")

// job is a write that waits for its group.
type job struct {
	ctx  context.Context // never ends
	do   func(context.Context, *tx) error
	err  error
	done chan struct{}
}

// update runs do in a transaction and returns when it is committed, or was rolled back. Once begun it is not
// abandoned when ctx ends: the caller learns what became of it, and SQLite, which rolls the whole transaction back
// when a statement is interrupted, does not take the group with it. So do gets a context that does not end.
func (db *DB) update(ctx context.Context, do func(context.Context, *tx) error) error {
	j := &job{ctx: context.WithoutCancel(ctx), do: do, done: make(chan struct{})}
	select {
	case db.queue <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.stop:
		return errClosed
	}
	<-j.done
	return j.err
}

// commitGroups commits the jobs that wait, as many as there are at once in one transaction, until Close.
func (db *DB) commitGroups() {
	defer close(db.done)
	for {
		var group []*job
		select {
		case j := <-db.queue:
			group = append(group, j)
		case <-db.stop:
			return
		}
	gather:
		for len(group) < maxGroup {
			select {
			case j := <-db.queue:
				group = append(group, j)
			default:
				break gather
			}
		}
		if err := db.commit(group); err != nil {
			for _, j := range group {
				j.err = err
			}
		}
		for _, j := range group {
			close(j.done)
		}
	}
}

// commit runs the group in one transaction. A job that fails is rolled back alone; an error of commit itself means
// that nothing of the group was written.
func (db *DB) commit(group []*job) error {
	ctx := context.Background()
	sqlTx, err := db.write.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	defer sqlTx.Rollback() // after a commit this does nothing
	t := &tx{Tx: sqlTx, now: at(db.now())}
	for _, j := range group {
		if err := t.exec(ctx, "SAVEPOINT job"); err != nil {
			return fmt.Errorf("setting a savepoint: %w", err)
		}
		if j.err = attempt(j, t); j.err != nil {
			if err := t.exec(ctx, "ROLLBACK TO job"); err != nil {
				return fmt.Errorf("rolling back after %q: %w", j.err, err)
			}
		}
		if err := t.exec(ctx, "RELEASE job"); err != nil {
			return fmt.Errorf("releasing a savepoint: %w", err)
		}
	}
	if err := sqlTx.Commit(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// attempt turns a panic into an error: one caller's bug must not take the others' writes with it.
func attempt(j *job, t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a transaction: %v", p)
		}
	}()
	return j.do(j.ctx, t)
}
