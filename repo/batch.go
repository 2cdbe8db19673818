package repo

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"papermap-worker/worker/failpoint"
)

const (
	maxBatch = 128 // jobs: limits how long the callers of one transaction wait for each other
	maxTries = 10  // of a transaction that had to give way to another
)

var errClosed = errors.New("the database is closed")

// job is one caller's part of a transaction: a decision about one tenant, or statements of its own.
type job struct {
	ctx                   context.Context // never ends; its span is the caller's
	tenantID, workspaceID string          // the workspace is for the row of a new tenant
	known                 bool            // an unknown tenant is ErrNotFound, else it gets a row
	urgent                bool            // a suspension, or what a person waits for
	decide                func(*decision) error

	do txFunc // instead of decide; on SQLite alone, where all writes share one lane

	err  error
	done chan struct{} // closed when err is final
}

// batches writes for all callers: jobs that wait at the same time share one transaction. While a
// batch is written the next gathers by itself, so there is no delay to configure.
//
// There is one lane of batches on SQLite, which has one writer. On PostgreSQL there are some, and a
// job's lane follows from its tenant, so that lanes do not wait for each other's rows; one more is
// for urgent jobs. A job whose row is locked by another process, and each job of a batch that
// failed, gets a transaction of its own beside the lanes.
//
// A caller gets its answer only after the COMMIT is on disk.
type batches struct {
	db     *DB
	lanes  []chan *job
	urgent chan *job     // one of the lanes
	single chan struct{} // has a place for each transaction beside the lanes; nil: there are none
	seed   maphash.Seed

	stop    chan struct{} // closed by close: no more jobs are accepted
	once    sync.Once
	running sync.WaitGroup
}

// newBatches starts so many lanes, of which the last is for urgent jobs if there are several.
func newBatches(db *DB, lanes, singles int) *batches {
	b := &batches{db: db, seed: maphash.MakeSeed(), stop: make(chan struct{})}
	for range lanes {
		lane := make(chan *job)
		b.lanes = append(b.lanes, lane)
		b.running.Go(func() { b.run(lane) })
	}
	b.urgent = b.lanes[lanes-1]
	if lanes > 1 {
		b.lanes = b.lanes[:lanes-1]
	}
	if singles > 0 {
		b.single = make(chan struct{}, singles)
	}
	return b
}

// close waits for the jobs that were accepted.
func (b *batches) close() {
	b.once.Do(func() { close(b.stop) })
	b.running.Wait()
}

// do has the job done with whatever else waits. Once accepted it is not abandoned when ctx ends: the
// caller learns what became of it.
func (b *batches) do(ctx context.Context, j *job) error {
	j.ctx, j.done = context.WithoutCancel(ctx), make(chan struct{})
	lane := b.urgent
	if !j.urgent {
		lane = b.lanes[maphash.String(b.seed, j.tenantID)%uint64(len(b.lanes))]
	}
	select {
	case lane <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.stop:
		return errClosed
	}
	<-j.done
	return j.err
}

// run writes the jobs that wait in the lane, as many as there are at once in one transaction, until
// close.
func (b *batches) run(lane chan *job) {
	for {
		select {
		case j := <-lane:
			b.write(gather(lane, j), false)
		case <-b.stop:
			return
		}
	}
}

// gather adds the jobs that wait already to the first one.
func gather(lane chan *job, first *job) []*job {
	jobs := []*job{first}
	runtime.Gosched() // goroutines that are about to write join this batch
	for len(jobs) < maxBatch {
		select {
		case j := <-lane:
			jobs = append(jobs, j)
		default:
			return jobs
		}
	}
	return jobs
}

// write does the jobs in one transaction, or, where that fails, each in one of its own. Alone means
// that the one job waits for its row, if another process has it locked.
func (b *batches) write(jobs []*job, alone bool) {
	for try := 1; ; try++ {
		err := b.commit(&jobs, alone, try == 1)
		var lost *lostCommit
		if err != nil && !errors.As(err, &lost) {
			for _, j := range jobs {
				j.err = nil // no job was left out of what was written
			}
		}
		switch {
		case errors.As(err, &lost): // the lane does not wait for the answer
			b.running.Go(func() { answer(jobs, b.db.lookUpCommit(lost.id, lost.error)) })
			return
		case try < maxTries && errors.Is(err, errConflict):
			continue
		case try < maxTries && hasCode(err, serializationFailure, deadlockDetected):
			time.Sleep(rand.N(time.Duration(try) * 5 * time.Millisecond))
			continue
		case len(jobs) > 1 && isStatementError(err):
			for _, j := range jobs {
				b.alone(j)
			}
			return
		default:
			answer(jobs, err)
			return
		}
	}
}

// alone does a job in a transaction of its own, beside the lane if there is a connection for that.
func (b *batches) alone(j *job) {
	if b.single == nil {
		b.write([]*job{j}, true)
		return
	}
	b.running.Go(func() {
		b.single <- struct{}{}
		defer func() { <-b.single }()
		b.write([]*job{j}, true)
	})
}

// answer gives the jobs their answers. A job that was left out has its own.
func answer(jobs []*job, err error) {
	for _, j := range jobs {
		if j.err == nil {
			j.err = err
		}
		close(j.done)
	}
}

// statementError is a statement of a batch that the database refused: the fault may be in one of its
// jobs.
type statementError struct{ error }

func (e statementError) Unwrap() error { return e.error }

func isStatementError(err error) bool {
	var e statementError
	return errors.As(err, &e) || errors.Is(err, errConflict)
}

// errConflict means that a row which a batch was to insert was inserted by another transaction since
// the batch has read: it has to read again.
var errConflict = errors.New("another transaction was first, again and again")

// lostCommit is a COMMIT that got no answer: its outcome has to be looked up.
type lostCommit struct {
	error
	id string // of the transaction
}

func (e *lostCommit) Unwrap() error { return e.error }

// commit does the jobs in one transaction: it reads the mappings and locks them, reads the clock,
// decides, with as many reads of more facts as that takes, and writes. When it returns an error
// nothing was written, unless that is a lostCommit. Jobs whose rows are locked are taken out of the
// list. The first try takes dashboards for new.
func (b *batches) commit(jobs *[]*job, alone, first bool) error {
	ctx, cancel := b.db.read.limit(traceOf(*jobs))
	defer cancel()
	return b.db.session(ctx, func(s *session) error {
		f, err := s.begin(ctx, tenantsOf(*jobs), alone)
		if err != nil {
			return err
		}
		*jobs = slices.DeleteFunc(*jobs, func(j *job) bool {
			locked := s.locked[j.tenantID]
			if locked {
				b.alone(j)
			}
			return locked
		})
		decisions, err := s.statements(ctx, *jobs)
		if err != nil {
			return err
		}
		f.newDashboards = first
		result := decide(f, s.now, decisions)
		for rounds := 1; !result.wanted.none(); rounds++ {
			if rounds == maxTries {
				return errors.New("a decision asks for ever more")
			}
			if err := s.readFacts(ctx, f, result.wanted); err != nil {
				return err
			}
			result = decide(f, s.now, decisions)
		}
		if err := s.write(ctx, result); err != nil {
			return err
		}
		failpoint.Hit(failpoint.Commit)
		err = s.commit(ctx)
		failpoint.Hit(failpoint.Committed)
		return err
	})
}

// statements does the jobs that have statements of their own, each within a savepoint unless it is
// alone, and returns the others.
func (s *session) statements(ctx context.Context, jobs []*job) (decisions []*job, err error) {
	if len(jobs) == 1 && jobs[0].do != nil {
		return nil, recovered(jobs[0].ctx, jobs[0].do, s.tx())
	}
	for _, j := range jobs {
		if j.do == nil {
			decisions = append(decisions, j)
			continue
		}
		if err := s.run(ctx, &statement{text: "SAVEPOINT job", untraced: true}); err != nil {
			return nil, err
		}
		if j.err = recovered(j.ctx, j.do, s.tx()); j.err != nil {
			if err := s.run(ctx, &statement{text: "ROLLBACK TO job", untraced: true}); err != nil {
				return nil, err // the database has rolled the transaction back, as it does on a full disk
			}
		}
		if err := s.run(ctx, &statement{text: "RELEASE job", untraced: true}); err != nil {
			return nil, err
		}
	}
	return decisions, nil
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

// tenantsOf lists the tenants of the jobs, each once, in the order in which they are locked.
func tenantsOf(jobs []*job) []string {
	var tenants []string
	for _, j := range jobs {
		if j.decide != nil {
			tenants = append(tenants, j.tenantID)
		}
	}
	slices.Sort(tenants)
	return slices.Compact(tenants)
}

// traceOf is a context that does not end, within the span of a job that is traced: the batch's
// statements are shown to one of its callers.
func traceOf(jobs []*job) context.Context {
	for _, j := range jobs {
		if span := trace.SpanFromContext(j.ctx); span.IsRecording() {
			return trace.ContextWithSpan(context.Background(), span)
		}
	}
	return context.Background()
}
