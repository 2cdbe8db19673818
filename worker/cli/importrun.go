package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

const (
	importRetryWait = 30 * time.Second // for a retry, after which a row gives up its place
	importLater     = 5 * time.Second  // between two looks at a row without a place
	maxWithoutPlace = 1000             // rows

	importPollMin = 10 * time.Millisecond // between two looks at the rows in their places
	importPollMax = 500 * time.Millisecond

	importOutage = time.Minute // of NATS or the database, after which the import is broken off
)

// importRun publishes events for rows, and follows each to its end.
type importRun struct {
	ctx     context.Context
	log     *slog.Logger
	planner *planner
	out     *importOutput
	show    *importProgress
	waiting *importWaiting

	connect  func() (*events.Bus, error)
	bus      *events.Bus // nil until there is something to be published
	adopts   bool        // rows adopt dashboards, by the plan
	stopDead func()

	inFlight int
	flights  map[string]*flight // by tenant id
	dead     deadLetters
	poll     time.Duration
}

// flight is a row whose tenant is not finished.
type flight struct {
	row     importRow
	verdict verdict
	event   events.Outgoing
	when    int64     // the event's time
	started time.Time // when it got its place
	later   time.Time // when to look again; zero while it has its place
}

// deadLetters are those of the events that are followed, by event id.
type deadLetters struct {
	mu   sync.Mutex
	list map[string]*events.DeadLetter // nil: followed
}

func (d *deadLetters) add(letter events.DeadLetter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.list[letter.EventID]; ok {
		d.list[letter.EventID] = &letter
	}
}

func (d *deadLetters) follow(eventID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list[eventID] = nil
}

func (d *deadLetters) of(eventID string) *events.DeadLetter {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list[eventID]
}

func (d *deadLetters) forget(eventID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.list, eventID)
}

func newImportRun(a *app, c *importCmd, p *planner, out *importOutput, plan *importPlan) *importRun {
	return &importRun{
		ctx: a.ctx, log: a.log, planner: p, out: out, inFlight: c.InFlight, adopts: plan.adopts > 0,
		connect: func() (*events.Bus, error) { return c.natsSettings.connect(a) },
		flights: map[string]*flight{}, dead: deadLetters{list: map[string]*events.DeadLetter{}},
		show: &importProgress{
			out: a.stdout, terminal: onTerminal(a.stdout), quiet: c.JSON, total: plan.rows,
		},
		waiting: newImportWaiting(a.log, c.httpSettings),
		poll:    importPollMin,
	}
}

func (r *importRun) close() {
	if r.stopDead != nil {
		r.stopDead()
	}
}

// run imports the rows of the file, and returns when all are finished.
func (r *importRun) run(file *importFile) error {
	defer r.show.clear()
	_, err := file.rows(r.chunk)
	for err == nil && len(r.flights) > 0 {
		err = r.wait()
	}
	return err
}

// chunk imports some rows. It returns when each has its place or a result.
func (r *importRun) chunk(rows []importRow) error {
	todo, err := r.sift(rows)
	for err == nil && len(todo) > 0 {
		free := min(r.free(), len(todo))
		if free == 0 {
			err = r.wait()
			continue
		}
		err = r.start(todo[:free])
		todo = todo[free:]
	}
	r.show.update(r.out)
	return err
}

// sift takes the results of the rows about which nothing is to be done, and returns the others.
func (r *importRun) sift(rows []importRow) (todo []importRow, err error) {
	facts, err := r.read(rows)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		if v := r.planner.judge(&rows[i], facts); v.acts() {
			todo = append(todo, rows[i])
		} else if err := r.out.add(&rows[i], v.importResult); err != nil {
			return nil, err
		}
	}
	return todo, nil
}

func (r *importRun) read(rows []importRow) (f importFacts, err error) {
	err = r.persist(func() error {
		f, err = r.planner.read(r.ctx, rows)
		return err
	})
	return f, err
}

// free is how many more rows can be started.
func (r *importRun) free() int {
	placed := 0
	for _, f := range r.flights {
		if f.later.IsZero() {
			placed++
		}
	}
	if len(r.flights)-placed >= maxWithoutPlace {
		return 0
	}
	return r.inFlight - placed
}

// start decides about the rows once more, by what the database has now, and publishes their events
// with the time of that.
func (r *importRun) start(rows []importRow) error {
	if err := r.prepare(); err != nil {
		return err
	}
	var now time.Time
	err := r.persist(func() (err error) {
		now, err = r.bus.StreamTime(r.ctx)
		return err
	})
	if err != nil {
		return err
	}
	facts, err := r.read(rows)
	if err != nil {
		return err
	}
	var list []*flight
	for i := range rows {
		f := &flight{row: rows[i], verdict: r.planner.judge(&rows[i], facts), started: time.Now()}
		if !f.verdict.acts() {
			if err := r.out.add(&f.row, f.verdict.importResult); err != nil {
				return err
			}
			continue
		}
		if f.verdict.publish {
			if err := f.makeEvent(now, facts.states[f.row.TenantID]); err != nil {
				return err
			}
			r.dead.follow(f.event.ID)
			list = append(list, f)
		}
		r.flights[f.row.TenantID] = f
	}
	r.poll = importPollMin
	return r.publish(list)
}

// prepare connects to NATS before the first event.
func (r *importRun) prepare() error {
	if r.bus != nil {
		return nil
	}
	bus, err := r.connect()
	if err != nil {
		return err
	}
	if r.adopts {
		if err := checkReplicas(r.ctx, bus); err != nil {
			return err
		}
	}
	r.stopDead, err = bus.OnDead(r.ctx, events.TypeTenantCreated, r.dead.add)
	r.bus = bus
	return err
}

// makeEvent makes the row's event of a time, or right after what is known of the tenant if that is
// later by somebody's clock.
func (f *flight) makeEvent(now time.Time, s repo.TenantState) error {
	if newest := max(s.CreatedEvent, s.DeletedEvent); newest >= now.UnixNano() {
		now = time.Unix(0, newest).Add(time.Millisecond)
	}
	data := map[string]string{}
	for i, text := range f.row.fields() {
		data[importColumns[i]] = *text
	}
	e, err := worker.NewEvent(events.TypeTenantCreated, data, now)
	if err != nil {
		return fmt.Errorf("line %d: %w", f.row.line, err)
	}
	f.event, f.when = e.WithTime(now), now.UnixNano()
	return nil
}

// publish publishes the events at once, after they are in the audit log. What was not acknowledged is
// published again under the same id.
func (r *importRun) publish(list []*flight) error {
	if len(list) == 0 {
		return nil
	}
	if err := r.persist(func() error { return r.audit(r.ctx, list, nil) }); err != nil {
		return err
	}
	err := r.persist(func() error {
		if len(list) == 0 {
			return nil
		}
		if err := r.bus.Connected(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(r.ctx, 10*time.Second)
		defer cancel()
		var batch []events.Outgoing
		for _, f := range list {
			batch = append(batch, f.event)
		}
		var left []*flight
		var failed error
		for i, err := range r.bus.PublishAll(ctx, batch) {
			switch {
			case errors.Is(err, events.ErrTooLarge):
				err = r.auditFailure(list[i:i+1], err)
				if err := r.finish(list[i], list[i].row.result(resultFailed, err.Error())); err != nil {
					return err
				}
			case err != nil:
				left, failed = append(left, list[i]), err
			}
		}
		list = left
		return failed
	})
	if err != nil {
		return r.auditFailure(list, err)
	}
	return nil
}

// audit writes the audit log's entries about events that are to be published, or that could not be.
func (r *importRun) audit(ctx context.Context, list []*flight, failed error) error {
	var entries []repo.AuditEntry
	for _, f := range list {
		e := worker.EventEntry(f.event)
		if failed != nil {
			e = worker.FailedEntry(e, failed)
		}
		entries = append(entries, worker.ActorOf(ctx).Entry(e))
	}
	return r.planner.db.Audit(ctx, entries...)
}

// auditFailure is audit also after an interrupt, and returns why it failed.
func (r *importRun) auditFailure(list []*flight, failed error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), auditWait)
	defer cancel()
	return errors.Join(failed, r.audit(ctx, list, failed))
}

// finish takes the result of a row, and frees its place.
func (r *importRun) finish(f *flight, result importResult) error {
	delete(r.flights, f.row.TenantID)
	r.dead.forget(f.event.ID)
	return r.out.add(&f.row, result)
}

// wait pauses, then looks at the unfinished rows.
func (r *importRun) wait() error {
	if !events.Sleep(r.ctx, r.poll) {
		return r.ctx.Err()
	}
	r.poll = min(importPollMax, r.poll*3/2)
	done := r.out.rows
	if err := r.look(); err != nil {
		return err
	}
	if r.out.rows > done {
		r.poll = importPollMin
	}
	r.show.update(r.out)
	r.waiting.look(r.ctx, r.out.rows > done, r.show)
	return nil
}

// look looks at the rows that have their place, and at those whose time has come.
func (r *importRun) look() error {
	now := time.Now()
	var due []string
	for id, f := range r.flights {
		if !f.later.After(now) {
			due = append(due, id)
		}
	}
	slices.Sort(due)
	states := map[string]repo.TenantState{}
	for ids := range slices.Chunk(due, importChunk) {
		err := r.persist(func() error {
			found, err := r.planner.db.TenantStates(r.ctx, ids)
			maps.Copy(states, found)
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, id := range due {
		f, s := r.flights[id], states[id]
		if result, ok := f.outcome(s, r.dead.of(f.event.ID)); ok {
			if err := r.finish(f, result); err != nil {
				return err
			}
		} else if !f.later.IsZero() || f.waitsForRetry(s, now) && !r.waiting.isPaused(r.ctx) {
			f.later = now.Add(importLater)
		}
	}
	return nil
}

// waitsForRetry reports whether the row has waited so long for a retry, or will, that another can have
// its place.
func (f *flight) waitsForRetry(s repo.TenantState, now time.Time) bool {
	return s.Stage == repo.Pending && s.FailedError != "" &&
		(now.Sub(f.started) > importRetryWait || s.ClaimableAt.Sub(now) > importRetryWait)
}

// outcome returns the row's result, unless the tenant is unfinished. It goes by the tenant's state
// alone, whoever caused it.
func (f *flight) outcome(s repo.TenantState, dead *events.DeadLetter) (importResult, bool) {
	row, handled := &f.row, s.CreatedEvent >= f.when
	creates := row.DashboardID == ""
	switch {
	case s.Wanted() && s.Stage == repo.Active && row.differs(s):
		return row.besides(s).importResult, true
	case s.Wanted() && s.Stage == repo.Active:
		result := row.result(f.verdict.Result, "")
		result.DashboardID = s.DashboardID
		return result, true
	case s.Deleted() && s.DeletedEvent >= f.when:
		return row.result(resultConflict, "the tenant was deleted meanwhile"), true
	case dead != nil && (dead.Code == worker.CodeTaken || dead.Code == worker.CodeConflict):
		return row.result(resultConflict, dead.Error), true
	case dead != nil:
		return row.result(resultFailed, fmt.Sprintf("%s: %s", dead.Code, dead.Error)), true
	case creates && handled && s.Stage == repo.Held:
		return row.result(resultFailed, "held: it is unknown whether a dashboard was created: "+
			"`papermap-worker tenants show` says what to do"), true
	case creates && handled && s.Stage == repo.Failed:
		return row.result(resultFailed, fmt.Sprintf("%s: %s", s.FailedCode, s.FailedError)), true
	}
	return importResult{}, false
}

// persist calls do again while it fails, for a while: NATS or the database may be restarting. What do
// publishes has the same id each time.
func (r *importRun) persist(do func() error) error {
	started, logged := time.Now(), false
	for {
		err := do()
		if err == nil || r.ctx.Err() != nil || time.Since(started) > importOutage {
			return errors.Join(err, r.ctx.Err())
		}
		if !logged {
			r.show.clear()
			r.log.Warn("NATS or the database cannot be used; the import waits", "error", err)
			logged = true
		}
		if !events.Sleep(r.ctx, time.Second) {
			return r.ctx.Err()
		}
	}
}
