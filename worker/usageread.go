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
	usagePage = 100 // rows; the API's maximum
	maxPasses = 4   // a run starts over at most three times
	maxPages  = 1 << 20
	runBeat   = 10 * time.Second // of a lease of 25 s

	maxRowsInHand = 10_000 // unless one page has more
)

var errDraining = errors.New("shutting down")

// usageReader reads the pages of one run and records them in their order.
//
// The API paginates a list that changes while it is read: when rows come or go, others may move
// from a page that is still to be read to one that was read. If a pass shows signs of that, it has
// shifted, and the run starts over. Only the last pass continues to the end, and the run is then
// incomplete. Signs are a page that repeats the one before, counts that change between pages, and a
// short page that is not the last. Recorded rows stay: each is the total that the API reported for
// its tenant and month, whichever pass read it.
//
// Pages are requested concurrently and recorded in order, each batch in one transaction with the
// run's checkpoint (NextPage). A worker that resumes the run begins there.
type usageReader struct {
	*usageSync
	ws  *workspace
	run *repo.Run
	log *slog.Logger

	size  int               // rows of a page that is not the last; 0 while unknown
	first papermap.UsageRow // of the page before
}

// read reads the pages from the run's checkpoint on and ends the run.
func (r *usageReader) read(ctx context.Context) error {
	defer r.progress(0, 0)
	for {
		complete, err := r.pass(ctx)
		switch {
		case err != nil:
			return err
		case complete:
			return r.complete(ctx)
		case r.run.Pass >= maxPasses:
			why := fmt.Sprintf("the totals shifted in each of %d passes", maxPasses)
			return r.db.EndRun(ctx, r.run, repo.RunIncomplete, why)
		}
		r.log.InfoContext(ctx, "usage totals changed during the run; reading again", "pass", r.run.Pass)
		if err := r.db.RestartRun(ctx, r.run); err != nil {
			return err
		}
	}
}

// progress sets the metrics of a run of all tenants; others are short.
func (r *usageReader) progress(done, pages int) {
	if r.run.TenantID == "" {
		r.metrics.runProgress(r.ws.ID, done, pages)
	}
}

// complete ends a run that read every page, with its usage.synced.
func (r *usageReader) complete(ctx context.Context) error {
	tenants, err := r.db.RunTenants(ctx, r.run)
	if err != nil {
		return err
	}
	e, err := newOutboxEvent(events.TypeUsageSynced, events.UsageSynced{
		WorkspaceID: r.run.WorkspaceID, TenantID: r.run.TenantID, FromPeriod: r.run.FromPeriod,
		ToPeriod: r.run.ToPeriod, Tenants: tenants, Rows: r.run.Read, RejectedRows: r.run.Rejected,
		ChangedRows: r.run.Changed,
	})
	if err != nil {
		return err
	}
	r.spans.remember(ctx, e.EventID)
	return r.db.CompleteRun(ctx, r.run, e)
}

// pass reads the pages from the checkpoint to the last. It records all that have arrived in one
// transaction. complete is true if nothing is missing. It is false, without an error, if the pass
// has shifted.
func (r *usageReader) pass(ctx context.Context) (complete bool, err error) {
	r.size, r.first = 0, papermap.UsageRow{}
	if done := int64(r.run.Done()); done > 0 {
		r.size = int((r.run.Read + r.run.Rejected) / done)
	}
	query := papermap.UsageQuery{ // the fetcher's goroutines must not read r.run
		TenantID: r.run.TenantID, FromPeriod: r.run.FromPeriod, ToPeriod: r.run.ToPeriod, PerPage: usagePage,
	}
	f := newPageFetcher(ctx, r.run.NextPage, r.concurrent,
		func(ctx context.Context, number int) (papermap.UsagePage, error) {
			query := query
			query.Page = number
			return r.fetch(ctx, query)
		})
	defer f.stop()
	beat := time.NewTicker(runBeat)
	defer beat.Stop()
	last := max(r.run.Pages, r.run.NextPage)
	for r.run.NextPage <= last {
		r.progress(r.run.Done(), r.run.Pages)
		f.limit = r.together()
		f.request(last)
		if err := r.wait(ctx, f, beat); err != nil {
			return false, err
		}
		var batch []repo.Page
		fits := true
		number, limit := r.run.NextPage, r.db.PagesTogether()
		for ; number <= last && len(batch) < limit && f.ready(); number++ {
			var page papermap.UsagePage
			if page, err = f.next(); err != nil {
				break
			}
			if fits = r.accept(number, page); !fits {
				break // not recorded: after a crash it is read again, with the same result
			}
			batch = append(batch, pageRows(number, page))
			if last = r.run.Pages; last == 0 && page.More && len(page.Rows)+len(page.Rejected) > 0 {
				last = number + 1 // the API gives no count: one page after the other, until one is empty
			}
		}
		if len(batch) > 0 {
			if err := r.record(ctx, batch); err != nil {
				return false, err
			}
		}
		if err != nil || !fits {
			return false, err
		}
	}
	counted := r.run.Total < 0 || r.run.Read+r.run.Rejected == r.run.Total
	return counted && !r.run.Shifted, nil
}

// together returns how many pages may be in memory at the same time: fewer if the API gives pages that
// are much longer than requested.
func (r *usageReader) together() int {
	return min(r.concurrent, max(1, maxRowsInHand/max(1, r.size)))
}

// wait waits for the next page. Meanwhile it extends the run's lease and logs the progress.
func (r *usageReader) wait(ctx context.Context, f *pageFetcher, beat *time.Ticker) error {
	for {
		select {
		case <-f.queue[0].arrived:
			return nil
		case <-beat.C:
			r.log.InfoContext(ctx, "syncing usage", "pages_done", r.run.Done(), "pages", r.run.Pages,
				"rows", r.run.Read)
			if err := r.db.KeepRun(ctx, r.run, r.run.Error); err != nil {
				return err
			}
		}
	}
}

func (r *usageReader) record(ctx context.Context, pages []repo.Page) error {
	failpoint.Hit(failpoint.UsageRecord)
	err := r.db.RecordPages(ctx, r.run, pages, func(t repo.Threshold) (repo.OutboxEvent, error) {
		e, err := thresholdEvent(t)
		r.spans.remember(ctx, e.EventID)
		return e, err
	})
	failpoint.Hit(failpoint.UsageRecorded)
	return err
}

// fetch requests one page. It waits while the client's own rate limit has no turn for it.
func (r *usageReader) fetch(ctx context.Context, query papermap.UsageQuery) (papermap.UsagePage, error) {
	for {
		if r.draining() {
			return papermap.UsagePage{}, errDraining
		}
		page, err := r.ws.api.Usage(ctx, query)
		var api *papermap.Error
		noTurn := errors.As(err, &api) && api.Deferred && api.Status == 0
		if !noTurn || r.draining() || !events.Sleep(ctx, time.Second) {
			failpoint.Hit(failpoint.UsagePage)
			return page, err
		}
	}
}

// accept checks what a page says about the whole list. It returns false if the pass ends here,
// because the page does not fit those before it.
func (r *usageReader) accept(number int, page papermap.UsagePage) bool {
	rows := len(page.Rows) + len(page.Rejected)
	if r.size == 0 {
		r.size = rows
	}
	pages, total := r.counts(number, page)
	var first papermap.UsageRow
	if len(page.Rows) > 0 {
		first = page.Rows[0]
	}
	repeated := number > 1 && first == r.first && first.TenantID != ""
	r.first = first
	fits := number == 1 || !repeated && pages == r.run.Pages && total == r.run.Total && rows <= r.size &&
		(number >= pages || rows == r.size)
	if number == 1 || !fits {
		r.run.Pages, r.run.Total = pages, total // recorded with the page
	}
	if fits {
		return true
	}
	// Without a count, a page that repeats the one before means that the API ignores page numbers.
	endless := pages == 0 && (repeated || number > maxPages)
	if endless || r.run.Pass < maxPasses {
		return false
	}
	r.run.Shifted = true
	return true
}

// counts returns the number of pages and rows according to a page, or 0 and -1 if they are unknown.
func (r *usageReader) counts(number int, page papermap.UsagePage) (pages int, total int64) {
	pages, total = page.Pages, int64(page.Total)
	if number > 1 && r.run.Total < 0 && r.run.Pages == 0 {
		return 0, -1 // the first page had no counts that make sense
	}
	switch {
	case pages > maxPages:
		return 0, total
	case pages >= 0:
		return pages, total
	case number > 1 && total == r.run.Total:
		return r.run.Pages, total
	case total > 0 && r.size > 0: // however many rows the API gives where 100 were asked for
		return (page.Total + r.size - 1) / r.size, total
	}
	return 0, total
}

// pageRows converts a page to the database's rows.
func pageRows(number int, page papermap.UsagePage) repo.Page {
	p := repo.Page{Number: number, Rows: make([]repo.UsageRow, len(page.Rows))}
	for i, row := range page.Rows {
		p.Rows[i] = repo.UsageRow(row)
	}
	for _, row := range page.Rejected {
		p.Rejected = append(p.Rejected, repo.Reject{Place: row.Index, Reason: row.Reason, Raw: row.Raw})
	}
	return p
}
