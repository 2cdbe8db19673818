package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

const (
	usagePage  = 100 // rows; the API's most
	mostPasses = 4   // a run begins again at most three times
	mostPages  = 1 << 20
	runBeat    = repo.RunLease / 3
)

// syncUsage makes the runs that a usage.sync asks for, one workspace after the other. Those that have ended stay ended
// when the event comes again.
func (w *Worker) syncUsage(ctx context.Context, e events.Event, data events.UsageSync) error {
	list := w.cfg.Workspaces
	if data.WorkspaceID == "" && data.TenantID != "" {
		m, err := w.db.Mapping(ctx, data.TenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return err
		}
		data.WorkspaceID = m.WorkspaceID
	}
	if data.WorkspaceID != "" {
		ws, err := w.knownWorkspace(data.WorkspaceID)
		if err != nil {
			return err
		}
		list = []papermap.Workspace{ws.Workspace}
	}
	from, to := periods(w.now(), data.FromPeriod, data.ToPeriod)
	var errs []error
	for _, ws := range list {
		errs = append(errs, w.syncWorkspace(ctx, e, w.workspaces[ws.ID], repo.Run{
			WorkspaceID: ws.ID, EventID: e.ID, TenantID: data.TenantID, FromPeriod: from, ToPeriod: to,
		}))
	}
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	for _, err := range errs { // as long as one run may go on, the event must come again
		if permanent := (*events.Permanent)(nil); !errors.As(err, &permanent) {
			return err
		}
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// periods fills in the months that are not given: the previous and the current one, as far as they are in order.
func periods(now time.Time, from, to string) (string, string) {
	const form = "2006-01"
	now = now.UTC()
	current := now.Format(form)
	previous := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC).Format(form)
	if to == "" {
		to = max(current, from)
	}
	if from == "" {
		from = min(previous, to)
	}
	return from, to
}

// syncWorkspace makes one run, or goes on with it. Unless the run has ended, its error brings the event back.
func (w *Worker) syncWorkspace(ctx context.Context, e events.Event, ws *workspace, want repo.Run) error {
	tick := strings.HasPrefix(e.ID, tickPrefix)
	log := w.log.With("workspace_id", ws.ID, "event_id", e.ID)
	if tick && w.tooLate(e.ID) {
		skipped, err := w.db.SkipRun(ctx, want, "it waited too long")
		if skipped {
			log.WarnContext(ctx, "skipped a scheduled usage run: it waited so long that a newer one does its work")
		}
		if skipped || err != nil { // else it has begun, and goes on
			return err
		}
	}
	run, err := w.db.StartRun(ctx, want, tick)
	switch {
	case errors.Is(err, repo.ErrRunOver):
		return nil
	case errors.Is(err, repo.ErrRunBusy) && run.Status == repo.Skipped:
		log.WarnContext(ctx, "skipped a scheduled usage run: the one before is still at work")
		return nil
	case errors.Is(err, repo.ErrRunBusy):
		return &events.Retry{After: busyWait, Err: err}
	case err != nil:
		return err
	}
	r := &reading{w: w, ws: ws, run: &run, log: log, waited: run.Error}
	err = r.read(ctx)
	var api *papermap.Error
	switch {
	case err == nil:
	case errors.As(err, &api) && (api.Class == papermap.Refused || api.Class == papermap.Configuration && run.TenantID != ""):
		// The path of one tenant's usage is not documented, so 404 there says nothing of the workspace.
		log.ErrorContext(ctx, "a usage run failed: Papermap refuses", "tenant_id", run.TenantID, "error", err)
		if err := w.db.EndRun(ctx, &run, repo.RunFailed, api.Error(), nil); err != nil {
			return err
		}
		w.metrics.ended(run)
		if tick { // the next one tries again
			return nil
		}
		return &events.Permanent{Code: "API_REFUSED", Err: err}
	default:
		return r.leave(ctx, e, err)
	}
	ring(w.outbox)
	w.metrics.ended(run)
	attrs := []any{"status", run.Status, "rows", run.Read, "written_rows", run.Written, "rejected_rows", run.Rejected, "changed_rows", run.Changed,
		"from_period", run.FromPeriod, "to_period", run.ToPeriod, "took", run.FinishedAt.Sub(run.StartedAt.Time).String()}
	if run.Status == repo.Incomplete {
		log.WarnContext(ctx, "a usage run is incomplete: the totals shifted each time that they were read", attrs...)
	} else {
		log.InfoContext(ctx, "synced usage", attrs...)
	}
	return nil
}

// reading is a run at work in this process.
type reading struct {
	w      *Worker
	ws     *workspace
	run    *repo.Run
	log    *slog.Logger
	waited string // what the run was last said to wait for

	// Of the pass: what the first page said, beside the run's row, which a commit may be writing.
	pages int               // 0 when nobody knows
	total int64             // -1 when nobody knows
	size  int               // rows of a page that is not the last
	first papermap.UsageRow // of the page before
}

// leave gives the run up for now, with the reason, and has the event come back to go on with it.
func (r *reading) leave(ctx context.Context, e events.Event, cause error) error {
	ctx = context.WithoutCancel(ctx)
	var api *papermap.Error
	waits := errors.As(cause, &api)
	if waits && api.Error() != r.waited {
		r.log.WarnContext(ctx, "a usage run waits for Papermap and goes on where it stopped", "page", r.run.NextPage, "error", api)
		if err := r.w.db.KeepRun(ctx, r.run, api.Error()); err != nil {
			return err
		}
	}
	if err := r.w.db.LeaveRun(ctx, r.run); err != nil {
		return err
	}
	switch {
	case r.w.draining.Load():
		return &events.Retry{Err: cause} // another replica may go on at once
	case waits:
		return &events.Retry{After: max(events.Delay(e.Deliveries), api.RetryAfter), Err: cause}
	}
	return cause
}

// read reads the run's pages from its checkpoint on, again from the first when the totals shift, and ends the run.
func (r *reading) read(ctx context.Context) error {
	for {
		shifted, err := r.pass(ctx)
		switch {
		case err != nil:
			return err
		case !shifted:
			return r.w.db.EndRun(ctx, r.run, repo.RunDone, "", r.synced(ctx))
		case r.run.Pass >= mostPasses:
			return r.w.db.EndRun(ctx, r.run, repo.Incomplete, fmt.Sprintf("the totals shifted in each of %d passes", r.run.Pass), nil)
		}
		r.log.InfoContext(ctx, "usage shifted while it was read; reading it again", "pass", r.run.Pass)
		if err := r.w.db.RestartRun(ctx, r.run); err != nil {
			return err
		}
	}
}

func (r *reading) synced(ctx context.Context) func(tenants int) (repo.Notice, error) {
	return func(tenants int) (repo.Notice, error) {
		n, err := notice(events.TypeUsageSynced, events.UsageSynced{
			WorkspaceID: r.run.WorkspaceID, FromPeriod: r.run.FromPeriod, ToPeriod: r.run.ToPeriod,
			Tenants: tenants, Rows: r.run.Read, RejectedRows: r.run.Rejected, ChangedRows: r.run.Changed,
		})
		r.w.causes.note(ctx, n)
		return n, err
	}
}

// errDraining means that the worker stops, and another goes on with the run.
var errDraining = errors.New("the worker is draining")

// fetched is a page that was asked for.
type fetched struct {
	number int
	page   papermap.UsagePage
	err    error
}

// pass reads the pages from the checkpoint to the last. At most Config.UsageConcurrency of them are asked for at once, and
// twice as many are on their way, from being asked for until they are committed: so many may be asked for again after a
// crash. They are committed in their order, as many at once as are there. shifted says that rows came or went meanwhile, so
// that some may have slipped from a page that was still to be read to one that had been.
func (r *reading) pass(ctx context.Context) (shifted bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	most := r.w.cfg.UsageConcurrency
	results, committed := make(chan fetched, most), make(chan error, 1)
	var failed error // of the first page that could not be read
	asked, ready, committing := 0, map[int]papermap.UsagePage{}, 0
	next, checkpoint, last := r.run.NextPage, r.run.NextPage, r.run.Pages
	query := papermap.UsageQuery{TenantID: r.run.TenantID, FromPeriod: r.run.FromPeriod, ToPeriod: r.run.ToPeriod, PerPage: usagePage}
	r.pages, r.total, r.size, r.first = r.run.Pages, r.run.Total, 0, papermap.UsageRow{}
	defer func() {
		for cancel(); asked > 0; asked-- {
			<-results
		}
		if committing > 0 {
			err = errors.Join(err, <-committed)
		}
	}()
	if last == 0 {
		last = next // which says how many there are
	}
	beat := time.NewTicker(runBeat)
	defer beat.Stop()
	for {
		if committing == 0 { // while a commit is under way, the run's row is its
			var batch []repo.Page
			for len(batch) < r.w.db.PagesTogether() && !shifted {
				page, ok := ready[checkpoint]
				if !ok {
					break
				}
				delete(ready, checkpoint)
				if shifted = r.compare(checkpoint, page); shifted {
					break // it is not recorded: whoever goes on after a crash here reads it, and sees the same
				}
				if last = r.pages; last == 0 && page.More && len(page.Rows)+len(page.Rejected) > 0 {
					last = checkpoint + 1 // nobody knows how many there are: one after the other, until one is empty
				}
				batch = append(batch, recordable(checkpoint, page))
				checkpoint++
			}
			switch committing = len(batch); {
			case committing > 0:
				go func() { committed <- r.record(ctx, batch) }()
			case shifted:
				return true, nil
			case failed != nil: // and what came before is recorded
				return false, failed
			case asked == 0 && r.w.draining.Load(): // what was asked for is recorded
				return false, errDraining
			case asked == 0 && next > last:
				return r.run.Total >= 0 && r.run.Read+r.run.Rejected != r.run.Total, nil
			}
		}
		for ; next <= last && asked < most && asked+len(ready)+committing < 2*most && !shifted && failed == nil && !r.w.draining.Load(); next++ {
			asked++
			query.Page = next
			go func(query papermap.UsageQuery) { results <- r.fetch(ctx, query) }(query)
		}
		select {
		case f := <-results:
			asked--
			if f.err == nil {
				ready[f.number] = f.page
			} else if failed == nil {
				failed = f.err
			}
		case err := <-committed:
			if committing = 0; err != nil {
				return false, err
			}
		case <-beat.C:
			if committing > 0 {
				break
			}
			if err := r.w.db.KeepRun(ctx, r.run, r.run.Error); err != nil {
				return false, err
			}
		}
	}
}

func (r *reading) record(ctx context.Context, pages []repo.Page) error {
	failpoint.Hit(failpoint.UsageRecord)
	err := r.w.db.RecordPages(ctx, r.run, pages)
	failpoint.Hit(failpoint.UsageRecorded)
	return err
}

func (r *reading) fetch(ctx context.Context, query papermap.UsageQuery) fetched {
	page, err := r.ws.api.Usage(ctx, query)
	var api *papermap.Error
	for errors.As(err, &api) && api.Deferred && api.Status == 0 && !r.w.draining.Load() && sleep(ctx, time.Second) {
		page, err = r.ws.api.Usage(ctx, query) // there was no turn within our own rate limit: the page waits for one
	}
	failpoint.Hit(failpoint.UsagePage)
	return fetched{query.Page, page, err}
}

// compare says whether a page contradicts those before it, and keeps the sizes that the first one tells.
func (r *reading) compare(number int, page papermap.UsagePage) (shifted bool) {
	rows := len(page.Rows) + len(page.Rejected)
	if r.size == 0 {
		r.size = rows
	}
	pages, total := max(page.Pages, 0), int64(page.Total)
	if pages > mostPages {
		pages = 0 // nonsense, or more than anybody reads
	}
	var first papermap.UsageRow
	if len(page.Rows) > 0 {
		first = page.Rows[0]
	}
	if same := first == r.first && first.TenantID != ""; pages == 0 && number > 1 && (same || number > mostPages) {
		return true // an API that knows no pages would go on for ever
	}
	r.first = first
	if number == 1 {
		r.pages, r.total = pages, total
		r.run.Pages, r.run.Total = pages, total // to be recorded with it
	}
	return pages != r.pages || total != r.total || number < pages && rows != r.size
}

// recordable is a page as the database takes it.
func recordable(number int, page papermap.UsagePage) repo.Page {
	p := repo.Page{Number: number, Rows: make([]repo.UsageRow, len(page.Rows))}
	for i, row := range page.Rows {
		p.Rows[i] = repo.UsageRow(row)
	}
	for _, row := range page.Rejected {
		p.Rejected = append(p.Rejected, repo.Reject{Place: row.Index, Reason: row.Reason, Raw: row.Raw})
	}
	return p
}
