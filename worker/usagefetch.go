package worker

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"papermap-worker/papermap"
)

// pageFetcher requests pages concurrently and returns them in order.
//
//	f := newPageFetcher(ctx, 1, 4, fetch)
//	defer f.stop()
//	f.request(10)        // as many of the pages 1 to 10 as may be in flight
//	<-f.queue[0].arrived
//	page, err := f.next() // page 1
//
// At most limit pages are requested but not yet returned. After a crash, that many may be requested
// again.
type pageFetcher struct {
	ctx     context.Context
	cancel  context.CancelFunc
	limit   int
	fetch   func(ctx context.Context, number int) (papermap.UsagePage, error)
	last    int            // the last page that was requested
	queue   []*fetchedPage // requested and not yet returned, in order
	running sync.WaitGroup
}

type fetchedPage struct {
	arrived chan struct{} // closed when page and err are final
	page    papermap.UsagePage
	err     error
}

// panicError is a panic while a page was read.
type panicError struct {
	page  int
	value any
	stack string
}

func (e *panicError) Error() string {
	return fmt.Sprintf("reading page %d panicked: %v", e.page, e.value)
}

// newPageFetcher returns pages from number first on.
func newPageFetcher(
	ctx context.Context, first, limit int,
	fetch func(ctx context.Context, number int) (papermap.UsagePage, error),
) *pageFetcher {
	ctx, cancel := context.WithCancel(ctx)
	return &pageFetcher{ctx: ctx, cancel: cancel, limit: limit, fetch: fetch, last: first - 1}
}

// request requests the pages up to last, as far as the limit allows.
func (f *pageFetcher) request(last int) {
	for f.last < last && len(f.queue) < f.limit {
		f.last++
		number, p := f.last, &fetchedPage{arrived: make(chan struct{})}
		f.queue = append(f.queue, p)
		f.running.Go(func() {
			defer close(p.arrived)
			defer func() {
				if value := recover(); value != nil {
					p.err = &panicError{number, value, string(debug.Stack())}
				}
			}()
			p.page, p.err = f.fetch(f.ctx, number)
		})
	}
}

// ready reports whether next would return at once.
func (f *pageFetcher) ready() bool {
	if len(f.queue) == 0 {
		return false
	}
	select {
	case <-f.queue[0].arrived:
		return true
	default:
		return false
	}
}

// next waits for the next page in order.
func (f *pageFetcher) next() (papermap.UsagePage, error) {
	p := f.queue[0]
	<-p.arrived
	f.queue = f.queue[1:]
	return p.page, p.err
}

// stop cancels the requests in flight and waits for them to return.
func (f *pageFetcher) stop() {
	f.cancel()
	f.running.Wait()
}
