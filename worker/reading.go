package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	runBeat    = 10 * time.Second // of a lease of 25
)

// reading is a run at work in this process.
type reading struct {
	w      *Worker
	ws     *workspace
	run    *repo.Run
	log    *slog.Logger
	waited string // what the run was last said to wait for

	// Of the pass: what the API said of its pages, beside the run's row, which a commit may be writing.
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
	defer r.w.metrics.reading(r.ws.ID, 0, 0)
	for {
		whole, err := r.pass(ctx)
		switch {
		case err != nil:
			return err
		case whole:
			return r.w.db.EndRun(ctx, r.run, repo.RunDone, "", r.synced(ctx))
		case r.run.Pass >= mostPasses:
			r.run.Pass = mostPasses
			return r.w.db.EndRun(ctx, r.run, repo.Incomplete, fmt.Sprintf("the totals shifted in each of %d passes", mostPasses), nil)
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
			WorkspaceID: r.run.WorkspaceID, TenantID: r.run.TenantID, FromPeriod: r.run.FromPeriod, ToPeriod: r.run.ToPeriod,
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
// crash. They are committed in their order, as many at once as are there.
//
// whole says that nothing is missing. When rows come or go meanwhile, some may slip from a page that is still to be read to
// one that has been: then the pass ends at once, to be made again. Only the last one goes on to the end all the same.
func (r *reading) pass(ctx context.Context) (whole bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	most := r.w.cfg.UsageConcurrency
	results, committed := make(chan fetched, most), make(chan error, 1)
	var failed error // of the first page that could not be read
	shifted := false
	asked, ready, committing := 0, map[int]papermap.UsagePage{}, 0
	next, checkpoint, last := r.run.NextPage, r.run.NextPage, r.run.Pages
	query := papermap.UsageQuery{TenantID: r.run.TenantID, FromPeriod: r.run.FromPeriod, ToPeriod: r.run.ToPeriod, PerPage: usagePage}
	r.pages, r.total, r.size, r.first = r.run.Pages, r.run.Total, 0, papermap.UsageRow{}
	if done := int64(r.run.NextPage - 1); done > 0 {
		r.size = int((r.run.Read + r.run.Rejected) / done)
	}
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
			r.w.metrics.reading(r.ws.ID, r.run.NextPage-1, r.pages)
			var batch []repo.Page
			for len(batch) < r.w.db.PagesTogether() && !shifted {
				page, ok := ready[checkpoint]
				if !ok {
					break
				}
				delete(ready, checkpoint)
				if fits, endless := r.fits(checkpoint, page); !fits {
					if shifted = r.run.Pass < mostPasses || endless; shifted {
						break // it is not recorded: whoever goes on after a crash here reads it, and sees the same
					}
					r.run.Pass = mostPasses + 1 // to be recorded with the page
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
				return false, nil
			case failed != nil: // and what came before is recorded
				return false, failed
			case asked == 0 && r.w.draining.Load(): // what was asked for is recorded
				return false, errDraining
			case asked == 0 && next > last:
				return r.run.Pass <= mostPasses && (r.run.Total < 0 || r.run.Read+r.run.Rejected == r.run.Total), nil
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
			r.log.InfoContext(ctx, "syncing usage", "pages_done", checkpoint-committing-1, "pages", r.pages)
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

// fits says whether a page goes with those before it, and takes over what the first one tells of all, or one that does not
// fit. endless means that nobody knows of an end, and that none will come: the API knows no pages.
func (r *reading) fits(number int, page papermap.UsagePage) (fits, endless bool) {
	rows, total := len(page.Rows)+len(page.Rejected), int64(page.Total)
	if r.size == 0 {
		r.size = rows
	}
	pages := page.Pages
	if number > 1 && r.total < 0 && r.pages == 0 {
		pages, total = 0, -1 // the first page said nothing that can be believed
	}
	switch {
	case pages > mostPages:
		pages = 0 // nonsense, or more than anybody reads
	case pages >= 0:
	case number > 1 && total == r.total:
		pages = r.pages
	case total > 0 && r.size > 0: // however many rows the API gives where 100 were asked for
		pages = (page.Total + r.size - 1) / r.size
	default:
		pages = 0
	}
	var first papermap.UsageRow
	if len(page.Rows) > 0 {
		first = page.Rows[0]
	}
	same := number > 1 && first == r.first && first.TenantID != ""
	fits = number == 1 || !same && pages == r.pages && total == r.total && rows <= r.size && (number >= pages || rows == r.size)
	r.first = first
	if number == 1 || !fits {
		r.pages, r.total = pages, total
		r.run.Pages, r.run.Total = pages, total // to be recorded with it
	}
	return fits, pages == 0 && (same || number > mostPages)
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
