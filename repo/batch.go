package repo

import (
	"context"
	"errors"
	"fmt"
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

// job is one caller's part of a transaction: a decision about one tenant, events out that were
// published, or its own statements.
type job struct {
	ctx                   context.Context // never ends; its span is the caller's
	tenantID, workspaceID string          // the workspace is for the row of a new tenant
	known                 bool            // an unknown tenant is ErrNotFound, else it gets a row
	urgent                bool            // a suspension, or what a person waits for
	decide                func(*decision) error

	sent []int64 // instead of decide: ids of events out

	audit []AuditEntry // recorded with what was decided, or by themselves

	do txFunc // instead of decide; on SQLite alone, where all writes share one lane

	err  error
	done chan struct{} // closed when err is final
}

// batches writes for all callers: jobs that wait at the same time share one transaction. While one
// batch is written, the next one gathers, so there is no delay to configure.
//
// SQLite, which has one writer, has one lane of batches. PostgreSQL has a second lane for urgent
// jobs, and there a lane's next batch begins while the last one is committed. There are no more
// lanes, because a full batch costs the server much less than several small ones. A job whose row
// is locked, and each job of a failed batch, gets its own transaction beside the lanes.
//
// A caller gets its answer only after the COMMIT is on disk.
type batches struct {
	db             *DB
	common, urgent *lane         // the same on SQLite
	single         chan struct{} // one element for each transaction beside the lanes; nil: there are none

	stop    chan struct{} // closed by close: no more jobs are accepted
	once    sync.Once
	running sync.WaitGroup
}

// lane is a queue of jobs.
type lane struct {
	jobs chan *job
	turn chan struct{} // holds an element from the first job of a batch until its COMMIT is sent
}

// newBatches starts the lanes.
func newBatches(db *DB) *batches {
	b := &batches{db: db, stop: make(chan struct{})}
	if db.sets == nil {
		b.common = b.lane(1)
		b.urgent = b.common
		return b
	}
	b.common, b.urgent = b.lane(lanePipeline), b.lane(lanePipeline)
	b.single = make(chan struct{}, postgresSingles)
	return b
}

// lane starts a lane with the given number of concurrent transactions. All but one of them wait for
// their COMMIT.
func (b *batches) lane(transactions int) *lane {
	l := &lane{jobs: make(chan *job), turn: make(chan struct{}, 1)}
	for range transactions {
		b.running.Go(func() { b.run(l) })
	}
	return l
}

// close waits for the accepted jobs.
func (b *batches) close() {
	b.once.Do(func() { close(b.stop) })
	b.running.Wait()
}

// do adds the job to the next batch and waits for it. An accepted job is not abandoned when ctx
// ends, so that the caller learns its outcome.
func (b *batches) do(ctx context.Context, j *job) error {
	j.ctx, j.done = context.WithoutCancel(ctx), make(chan struct{})
	l := b.common
	if j.urgent {
		l = b.urgent
	}
	select {
	case l.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.stop:
		return errClosed
	}
	<-j.done
	return j.err
}

// run writes the jobs that wait in the lane, as many as there are in one transaction, until close.
func (b *batches) run(l *lane) {
	for {
		select {
		case l.turn <- struct{}{}:
		case <-b.stop:
			return
		}
		next := sync.OnceFunc(func() { <-l.turn })
		select {
		case j := <-l.jobs:
			b.write(gather(l.jobs, j), false, next)
			next()
		case <-b.stop:
			next()
			return
		}
	}
}

// gather adds the waiting jobs to the first one.
func gather(waiting chan *job, first *job) []*job {
	jobs := []*job{first}
	runtime.Gosched() // goroutines that are about to write join this batch
	for len(jobs) < maxBatch {
		select {
		case j := <-waiting:
			jobs = append(jobs, j)
		default:
			return jobs
		}
	}
	return jobs
}

// write runs the jobs in one transaction, or if that fails, each in its own. Alone means that a
// single job waits for its row if another transaction has locked it. write calls next before the
// COMMIT.
func (b *batches) write(jobs []*job, alone bool, next func()) {
	for try := 1; ; try++ {
		err := b.commit(&jobs, alone, try == 1, next)
		var lost *lostCommit
		if err != nil && !errors.As(err, &lost) {
			for _, j := range jobs {
				j.err = nil // every job was written
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

// alone runs a job in its own transaction, beside the lane if there is a connection for that.
func (b *batches) alone(j *job) {
	if b.single == nil {
		b.write([]*job{j}, true, func() {})
		return
	}
	b.running.Go(func() {
		b.single <- struct{}{}
		defer func() { <-b.single }()
		b.write([]*job{j}, true, func() {})
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

// statementError is a statement of a batch that the database refused: one of its jobs may be at
// fault.
type statementError struct{ error }

func (e statementError) Unwrap() error { return e.error }

func isStatementError(err error) bool {
	var e statementError
	return errors.As(err, &e) || errors.Is(err, errConflict)
}

// errConflict means that another transaction inserted a row since the batch looked for it: the
// batch has to read again.
var errConflict = errors.New("too many transaction conflicts")

// lostCommit is a COMMIT that got no answer: its outcome has to be looked up.
type lostCommit struct {
	error
	id string // of the transaction
}

func (e *lostCommit) Unwrap() error { return e.error }

// commit runs the jobs in one transaction: it reads the mappings and locks them, reads the clock,
// decides, reads more facts and decides again as often as needed, and writes. If it returns an
// error, nothing was written, unless that is a lostCommit. Jobs whose rows are locked are removed
// from the list. The first try assumes that dashboards are new.
func (b *batches) commit(jobs *[]*job, alone, first bool, next func()) error {
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
				return errors.New("a decision asks for facts without end")
			}
			if err := s.readFacts(ctx, f, result.wanted); err != nil {
				return err
			}
			result = decide(f, s.now, decisions)
		}
		if err := s.write(ctx, result); err != nil {
			return err
		}
		next()
		failpoint.Hit(failpoint.Commit)
		err = s.commit(ctx)
		failpoint.Hit(failpoint.Committed)
		return err
	})
}

// statements runs the jobs that have their own statements, each within a savepoint unless it is
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

// recovered runs do and turns a panic into an error: a bug in one job must not undo the writes of
// the others.
func recovered(ctx context.Context, do txFunc, t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a transaction: %v", p)
		}
	}()
	return do(ctx, t)
}

// tenantsOf lists the tenants of the jobs, each once, in locking order.
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

// traceOf is a context that does not end, within the span of one traced job: the batch's statements
// appear in the trace of one of its callers.
func traceOf(jobs []*job) context.Context {
	for _, j := range jobs {
		if span := trace.SpanFromContext(j.ctx); span.IsRecording() {
			return trace.ContextWithSpan(context.Background(), span)
		}
	}
	return context.Background()
}
