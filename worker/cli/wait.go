package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// notes tells a person what a command waits for: on a terminal in one line that changes, elsewhere in
// a line for each change.
type notes struct {
	w        io.Writer
	terminal bool
	last     string
}

// say shows a text, unless it is shown already; empty clears the line.
func (n *notes) say(text string) {
	switch {
	case text == n.last:
	case n.terminal:
		fmt.Fprint(n.w, clearLine+text)
	case text != "":
		fmt.Fprintln(n.w, text)
	}
	n.last = text
}

// pauseOf returns a function that asks the worker's /readyz whether Papermap is paused, at most once a
// second; it returns the reason, or an empty text if it is not, or not known.
func (c httpSettings) pauseOf(ctx context.Context) func() string {
	reason, asked := "", time.Time{}
	return func() string {
		if time.Since(asked) < time.Second {
			return reason
		}
		asking, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, body, err := healthCmd{c}.request(asking)
		var state struct {
			Consuming string   `json:"consuming"`
			Reasons   []string `json:"reasons"`
		}
		reason, asked = "", time.Now()
		if err == nil && json.Unmarshal(body, &state) == nil && state.Consuming == "paused" {
			reason = strings.Join(state.Reasons, "; ")
		}
		return reason
	}
}

// waiting is an event that was published, and what there is to follow it.
type waiting struct {
	notes  notes
	db     *repo.DB
	event  events.Outgoing
	since  int64 // the stream's time before the event, in Unix nanoseconds; 0 for a copy of an old one
	dead   <-chan events.DeadLetter
	paused func() string
}

// follow publishes an event, and waits for what becomes of it.
func (f publishFlags) follow(
	a *app, bus *events.Bus, e events.Outgoing, await func(*waiting) error,
) error {
	db, err := a.database()
	if err != nil {
		return err
	}
	dead := make(chan events.DeadLetter, 1)
	stop, err := bus.OnDead(a.ctx, e.Type, func(d events.DeadLetter) {
		if d.EventID == e.ID && len(dead) == 0 { // one is enough; only this function sends
			dead <- d
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	since, err := bus.StreamTime(a.ctx)
	if err != nil {
		return err
	}
	duplicate, err := publish(a, bus, e)
	if err != nil {
		return err
	}
	w := &waiting{
		notes: notes{w: a.stderr, terminal: onTerminal(a.stderr)}, db: db, event: e,
		since: since.UnixNano(), dead: dead, paused: f.pauseOf(a.ctx),
	}
	if duplicate {
		w.since = 1
	}
	w.notes.say(waitsForWorker)
	return await(w)
}

// died returns an error if the event became a dead letter.
func (w *waiting) died() error {
	select {
	case d := <-w.dead:
		return fmt.Errorf("the event became dead letter %d: %s: %s", d.Sequence, d.Code, d.Error)
	default:
		return nil
	}
}

// forTenant waits until the event of a tenant is in force, and prints the outcome.
func (w *waiting) forTenant(ctx context.Context, out io.Writer, tenantID string) error {
	var m repo.Mapping
	err := poll(ctx, 100*time.Millisecond, func() (done bool, err error) {
		if err := w.died(); err != nil {
			return false, err
		}
		m, err = w.db.Mapping(ctx, tenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return false, err
		}
		if w.settled(m) {
			return true, nil
		}
		w.notes.say(w.waitsFor(m))
		return false, nil
	})
	if w.notes.terminal {
		w.notes.say("")
	}
	if ctx.Err() != nil && err != nil {
		return &interruptedError{"the event stays published; `papermap-worker tenants show " +
			printable(tenantID) + "` says what became of it"}
	}
	if err != nil {
		return err
	}
	return printOutcome(out, w.event.Type, m)
}

// settled reports whether the event, or a later one, was recorded and nothing more follows from it.
func (w *waiting) settled(m repo.Mapping) bool {
	switch {
	case m.DeletedEvent >= w.since:
		return true
	case w.event.Type == events.TypeTenantSuspended:
		return m.SuspendedEvent >= w.since
	case w.event.Type == events.TypeTenantResumed:
		return m.ResumedEvent >= w.since
	case w.event.Type == events.TypeTenantCreated:
		final := m.Stage == repo.Active || m.Stage == repo.Held || m.Stage == repo.Failed
		return final && m.CreatedEvent >= w.since
	}
	return false
}

// waitsFor says what an event waits for.
func (w *waiting) waitsFor(m repo.Mapping) string {
	if reason := w.paused(); reason != "" {
		return "waiting: " + printable(reason)
	}
	if m.FailedError != "" && m.CreatedEvent >= w.since {
		return "waiting: the last try failed; the worker will retry: " + printable(m.FailedError)
	}
	return waitsForWorker
}

const waitsForWorker = "waiting for a worker (Ctrl-C stops waiting; the event stays published)"

// printOutcome prints what became of a tenant, and returns an error if that is not what the event
// wanted.
func printOutcome(out io.Writer, eventType string, m repo.Mapping) error {
	tenant, text := printable(m.TenantID), string(m.Status)
	switch {
	case eventType != events.TypeTenantCreated:
	case m.Status == repo.Deleted:
		return fmt.Errorf("tenant %s is deleted: a later event deleted it", tenant)
	case m.Stage == repo.Held:
		return fmt.Errorf("tenant %s is held: %s: `papermap-worker tenants show %[1]s` says what to do",
			tenant, m.FailedError)
	case m.Stage == repo.Failed:
		return fmt.Errorf("tenant %s has no dashboard: %s: %s", tenant, m.FailedCode, m.FailedError)
	default:
		text += " with dashboard " + printable(m.DashboardID)
	}
	_, err := fmt.Fprintf(out, "tenant %s is %s\n", tenant, text)
	return err
}
