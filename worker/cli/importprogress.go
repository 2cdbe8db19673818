package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/worker"
)

// importProgress shows how far an import is: a bar on a terminal, else a line from time to time.
type importProgress struct {
	out             io.Writer
	terminal, quiet bool
	total           int
	shown           time.Time
	rows            int // when it was shown
}

const (
	progressBar  = 100 * time.Millisecond // between two changes of the bar
	progressLine = 10 * time.Second       // between two lines
)

func (p *importProgress) update(o *importOutput) {
	every := progressLine
	if p.terminal {
		every = progressBar
	}
	if p.shown.IsZero() {
		p.shown = time.Now()
	}
	if p.quiet || p.total == 0 || p.rows == o.rows || time.Since(p.shown) < every {
		return
	}
	p.shown, p.rows = time.Now(), o.rows
	if p.terminal {
		share := min(1, float64(o.rows)/float64(p.total))
		fmt.Fprintf(p.out, "%s%s %3.0f %%  %d of %d rows", clearLine, bar(share), 100*share, o.rows, p.total)
		return
	}
	fmt.Fprintf(p.out, "%d of %s\n", o.rows, countResults(p.total, o.counts))
}

// clear removes the bar, so that something else can be printed.
func (p *importProgress) clear() {
	if p.terminal && !p.quiet {
		fmt.Fprint(p.out, clearLine)
	}
}

// importWaiting says why no row is finishing.
type importWaiting struct {
	log    *slog.Logger
	ready  func(context.Context) (body []byte, err error) // the worker's own report
	last   time.Time                                      // that something was finished
	asked  time.Time
	reason string // of a pause, when the worker was last asked; empty: none
	paused string // the reason that was logged; empty: none
	warned bool   // that nothing happens, for whatever reason
}

const (
	askAfter  = 3 * time.Second // nothing was finished
	askEvery  = 5 * time.Second
	warnAfter = 30 * time.Second
)

func newImportWaiting(log *slog.Logger, s httpSettings) *importWaiting {
	return &importWaiting{log: log, last: time.Now(), ready: healthCmd{s}.readiness}
}

// look is called after each look at the rows, with whether some were finished.
func (w *importWaiting) look(ctx context.Context, finished bool, show *importProgress) {
	now := time.Now()
	if finished {
		if w.paused != "" || w.warned {
			show.clear()
			w.log.Info("the import continues")
		}
		w.last, w.paused, w.warned = now, "", false
		return
	}
	if now.Sub(w.last) < askAfter {
		return
	}
	switch w.isPaused(ctx); {
	case w.reason != "" && w.reason != w.paused:
		show.clear()
		w.log.Warn("Papermap is paused; the import waits", "reason", w.reason)
		w.paused = w.reason
	case w.reason == "" && w.paused == "" && !w.warned && now.Sub(w.last) > warnAfter:
		show.clear()
		w.log.Warn("no row was finished for a while: is a worker running? "+
			"`papermap-worker health` and `papermap-worker doctor` say what is wrong",
			"for", warnAfter.String())
		w.warned = true
	}
}

// isPaused reports whether the worker does not create dashboards because of Papermap.
func (w *importWaiting) isPaused(ctx context.Context) bool {
	if now := time.Now(); now.Sub(w.asked) >= askEvery {
		w.asked, w.reason = now, w.pause(ctx)
	}
	return w.reason != ""
}

// pause is why the worker does not create dashboards; empty if it does, or if it cannot be asked.
func (w *importWaiting) pause(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	body, err := w.ready(ctx)
	var s worker.State
	if err != nil || json.Unmarshal(body, &s) != nil || s.Consuming != "paused" {
		return ""
	}
	return strings.Join(s.Reasons, "; ")
}
