package worker

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// Pages are handed out in their order, and no more are requested than the limit allows.
func TestPageFetcherHandsOutPagesInOrder(t *testing.T) {
	release := make([]chan struct{}, 11)
	for i := range release {
		release[i] = make(chan struct{})
	}
	requested := make(chan int, 11)
	f := newPageFetcher(t.Context(), 1, 3, func(_ context.Context, number int) (papermap.UsagePage, error) {
		requested <- number
		<-release[number]
		return papermap.UsagePage{Total: number}, nil
	})
	defer f.stop()
	for number := 1; number <= 10; number += 2 {
		f.request(10)
		if n := len(f.queue); n != min(3, 11-number) {
			t.Errorf("at page %d, %d are requested", number, n)
		}
		if number < 10 {
			close(release[number+1]) // the later one first
		}
		close(release[number])
		for n := range 2 {
			if page, err := f.next(); err != nil || page.Total != number+n {
				t.Errorf("page %d is %d, %v", number+n, page.Total, err)
			}
		}
	}
	if len(requested) != 10 {
		t.Errorf("%d of 10 pages were requested", len(requested))
	}
}

// A panic while a page is read ends the run, and not the process.
func TestUsageRunFailsWhenReadingAPagePanics(t *testing.T) {
	db, err := repo.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	ws := &workspace{Workspace: papermap.Workspace{ID: "ws"}} // has no client
	s := &usageSync{
		workspaces: workspaces{list: []*workspace{ws}, byID: map[string]*workspace{"ws": ws}}, db: db,
		log: slog.New(slog.DiscardHandler), metrics: newMetrics(Build{}), slots: make(chan struct{}, 1),
		turns: map[string]*usageTurn{"ws": newUsageTurn(db, "ws", 2)}, concurrent: 2,
		draining: func() bool { return false },
	}
	err = s.handle(t.Context(), events.Event{ID: "e", Message: "1"}, events.UsageSync{
		FromPeriod: "2026-01", ToPeriod: "2026-01",
	})
	var permanent *events.Permanent
	if !errors.As(err, &permanent) || !strings.Contains(err.Error(), "reading page 1 panicked: ") {
		t.Errorf("the event ends with %v", err)
	}
	list, err := db.Runs(t.Context(), "e", 1)
	if err != nil || len(list) != 1 || list[0].Status != repo.RunFailed ||
		!strings.HasPrefix(list[0].Error, "reading page 1 panicked: ") {
		t.Errorf("runs %+v (%v)", list, err)
	}
}
