package worker

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"papermap-worker/papermap"
)

// pageFetcher requests pages concurrently and hands them out in their order.
//
//	f := newPageFetcher(ctx, 1, 4, draining, fetch)
//	defer f.stop()
//	f.ask(10)             // as many of the pages 1 to 10 as the window allows
//	<-f.queue[0].done
//	page, err := f.next() // page 1
//
// At most limit requests are in flight, and twice as many pages have been asked for and not been
// handed out: so many may be requested again after a crash. After a page that fails, none are
// requested.
type pageFetcher struct {
	cancel  context.CancelFunc
	limit   int
	asked   int            // pages up to this one
	queue   []*fetchedPage // asked for and not handed out, in order
	todo    chan *fetchedPage
	workers sync.WaitGroup
	failed  atomic.Int64 // the first page that failed; MaxInt64: none
}

type fetchedPage struct {
	number int
	done   chan struct{} // closed when the page has arrived
	page   papermap.UsagePage
	err    error
}

var errNotRequested = errors.New("a page before it failed")

// newPageFetcher hands out pages from number first on. Once draining reports true, pages that have
// not been requested fail with errDraining.
func newPageFetcher(
	ctx context.Context, first, limit int, draining func() bool,
	fetch func(ctx context.Context, number int) (papermap.UsagePage, error),
) *pageFetcher {
	ctx, cancel := context.WithCancel(ctx)
	f := &pageFetcher{cancel: cancel, limit: limit, asked: first - 1, todo: make(chan *fetchedPage, 2*limit)}
	f.failed.Store(math.MaxInt64)
	for range limit {
		f.workers.Go(func() {
			for p := range f.todo {
				switch {
				case int64(p.number) > f.failed.Load():
					p.err = errNotRequested
				case draining():
					p.err = errDraining
				default:
					p.page, p.err = fetch(ctx, p.number)
				}
				if p.err != nil {
					f.fail(int64(p.number))
				}
				close(p.done)
			}
		})
	}
	return f
}

func (f *pageFetcher) fail(number int64) {
	for old := f.failed.Load(); number < old && !f.failed.CompareAndSwap(old, number); {
		old = f.failed.Load()
	}
}

// ask asks for the pages up to last, as far as the window allows.
func (f *pageFetcher) ask(last int) {
	for f.asked < last && len(f.queue) < 2*f.limit {
		f.asked++
		p := &fetchedPage{number: f.asked, done: make(chan struct{})}
		f.queue = append(f.queue, p)
		f.todo <- p
	}
}

// arrived reports whether next would return at once.
func (f *pageFetcher) arrived() bool {
	if len(f.queue) == 0 {
		return false
	}
	select {
	case <-f.queue[0].done:
		return true
	default:
		return false
	}
}

// next waits for the next page in order.
func (f *pageFetcher) next() (papermap.UsagePage, error) {
	p := f.queue[0]
	<-p.done
	f.queue = f.queue[1:]
	return p.page, p.err
}

// stop cancels the requests in flight and waits for them to return.
func (f *pageFetcher) stop() {
	f.cancel()
	close(f.todo)
	f.workers.Wait()
}
