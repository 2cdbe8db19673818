package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/events"
	"papermap-worker/worker"
)

// deadCmd is about dead letters: events that cannot be processed. Each is in the stream of dead
// letters under its sequence number, with the reason in its headers, until it is replayed or
// discarded.
type deadCmd struct {
	List    deadListCmd    `cmd:"" help:"List dead letters, oldest first."`
	Show    deadShowCmd    `cmd:"" help:"Show one with its headers and data."`
	Replay  deadReplayCmd  `cmd:"" help:"Publish their events again, with the same id and time."`
	Discard deadDiscardCmd `cmd:"" help:"Delete them."`
}

// deadFilter selects dead letters.
type deadFilter struct {
	Type     string    `help:"Event type, such as tenant.created."`
	Code     string    `help:"Error code."`
	TenantID string    `name:"tenant" help:"Tenant."`
	Since    timeOrAgo `help:"Earliest time: RFC 3339, or a time ago such as 2h."`
	Before   timeOrAgo `help:"Latest time."`
	Limit    limit     `default:"1000" help:"Maximum number."`
}

func (f deadFilter) filter(sequences ...uint64) events.DeadFilter {
	return events.DeadFilter{
		Type: f.Type, Code: f.Code, TenantID: f.TenantID, Since: f.Since.Time, Before: f.Before.Time,
		Sequences: sequences,
	}
}

// deadListCmd reads the stream until it has found as many as the limit.
type deadListCmd struct {
	deadFilter
	jsonFlag
	natsSettings `group:"NATS"`
}

func (c *deadListCmd) Run(a *app, bus *events.Bus) error {
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	if c.JSON {
		return c.printJSON(ctx, a.stdout, bus)
	}
	list, err := bus.DeadLetters(ctx, c.filter(), int(c.Limit))
	if err != nil {
		return err
	}
	return c.printList(a.stdout, list, deadTable(list), "no dead letters")
}

// printJSON prints them with their data, one at a time: a list of all could be too large for memory.
func (c *deadListCmd) printJSON(ctx context.Context, w io.Writer, bus *events.Bus) error {
	before := "[\n  "
	err := bus.EachDeadLetter(ctx, c.filter(), int(c.Limit), func(d events.DeadLetter) error {
		_, err := io.WriteString(w, before)
		before = ",\n  "
		if err == nil {
			err = writeJSON(w, d, jsontext.WithIndentPrefix("  "))
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case before == "[\n  ": // none
		_, err = fmt.Fprintln(w, "[]")
	default:
		_, err = fmt.Fprintln(w, "\n]")
	}
	return err
}

// deadTable has a row for each dead letter.
func deadTable(list []events.DeadLetter) table {
	rows := table{{"SEQUENCE", "EVENT", "TENANT", "EVENT ID", "TIME", "CODE", "SIDE EFFECT", "ERROR"}}
	for _, d := range list {
		when := d.Time.UTC().Format(dateTime)
		rows.add(d.Sequence, d.Type, d.TenantID, d.EventID, when, d.Code, d.SideEffect, d.Error)
	}
	return rows
}

// deadShowCmd shows one dead letter, and what an operator can do about it.
type deadShowCmd struct {
	Sequence uint64 `arg:"" help:"Sequence number."`
	Raw      bool   `xor:"form" help:"Print the data alone, as it is and whole."`
	JSON     bool   `xor:"form" help:"Print JSON."`

	natsSettings `group:"NATS"`
}

func (c *deadShowCmd) Run(a *app, bus *events.Bus) error {
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	d, err := bus.DeadLetter(ctx, c.Sequence)
	switch {
	case errors.Is(err, events.ErrNoDeadLetter):
		return noDeadLetter(c.Sequence)
	case err != nil:
		return err
	case c.JSON:
		return printJSON(a.stdout, d)
	case c.Raw:
		_, err := a.stdout.Write(d.Data)
		return err
	}
	if err := deadDetails(d).print(a.stdout); err != nil {
		return err
	}
	text, whole := events.Layout(d.Data)
	if text = printableLines(text); !whole {
		text += fmt.Sprintf("\n… it has %d bytes: `papermap-worker dead show %d --raw` prints all",
			len(d.Data), d.Sequence)
	}
	advice, _ := worker.ExplainDeadLetter(d)
	if _, err = fmt.Fprintf(a.stdout, "\n%s\n\n", text); err != nil {
		return err
	}
	printText(a.stdout, advice)
	return nil
}

// deadDetails has the original headers as well, but not those that the worker added.
func deadDetails(d events.DeadLetter) table {
	rows := table{
		{"sequence", fmt.Sprint(d.Sequence)}, {"event", d.Type}, {"tenant", d.TenantID},
		{"event id", d.EventID}, {"event time", d.EventTime}, {"died", d.Time.UTC().Format(time.RFC3339)},
		{"code", d.Code}, {"error", d.Error}, {"attempts", fmt.Sprint(d.Attempts)},
		{"side effect", d.SideEffect}, {"stream sequence", fmt.Sprint(d.StreamSequence)},
	}
	if d.Truncated != "" {
		rows.add("truncated from", d.Truncated)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Header)) {
		if !strings.HasPrefix(name, "Papermap-") || strings.HasPrefix(name, "Papermap-Original-") {
			rows.add("header "+name, strings.Join(d.Header[name], ", "))
		}
	}
	return rows
}

// noDeadLetter is the error for a sequence number under which there is none.
func noDeadLetter(sequence uint64) error {
	return fmt.Errorf("there is no dead letter %d: `papermap-worker dead list` shows them", sequence)
}

// deadSelection is the dead letters that a command acts on.
type deadSelection struct {
	Sequences []uint64 `arg:"" optional:"" name:"sequence" help:"Sequence numbers."`
	All       bool     `help:"All dead letters."`
	DryRun    bool     `help:"Show which ones, and change nothing."`
	confirmFlag
	deadFilter
	natsSettings `group:"NATS"`
}

// Validate refuses a selection that is empty by mistake: all are selected by --all alone.
func (c *deadSelection) Validate() error {
	if given := len(c.Sequences) > 0 || c.deadFilter != (deadFilter{Limit: c.Limit}); given == c.All {
		return errors.New("select dead letters by number or filter, or use --all; --dry-run lists them")
	}
	return nil
}

// each asks, calls do for the selected dead letters and prints the results; verb is what do does, done
// its past participle. After a failure it continues with the next.
func (c *deadSelection) each(
	a *app, bus *events.Bus, verb, done string, do func(events.DeadLetter) error,
) error {
	list, err := bus.DeadLetters(a.ctx, c.filter(c.Sequences...), int(c.Limit))
	if err != nil {
		return err
	}
	for _, n := range c.Sequences {
		if !slices.ContainsFunc(list, func(d events.DeadLetter) bool { return d.Sequence == n }) {
			return noDeadLetter(n)
		}
	}
	if c.DryRun {
		err := deadTable(list).print(a.stdout)
		fmt.Fprintf(a.stdout, "\n%d would be %s\n", len(list), done)
		return err
	}
	if len(list) > 0 {
		if err := c.confirm(a, verb+" "+count(len(list), "dead letter")+"?"); err != nil {
			return err
		}
	}
	failed := 0
	for _, d := range list {
		if a.ctx.Err() != nil {
			return &interruptedError{"the remaining dead letters were not " + done}
		}
		if err := do(d); err != nil {
			failed++
			fmt.Fprintf(a.stdout, "dead letter %d: %v\n", d.Sequence, err)
			continue
		}
		fmt.Fprintf(a.stdout, "%s dead letter %d: %s %s\n", done, d.Sequence, d.Type, printable(d.EventID))
	}
	switch {
	case failed > 0:
		return fmt.Errorf("%d of %s could not be %s", failed, count(len(list), "dead letter"), done)
	case len(list) == 0:
		fmt.Fprintln(a.stdout, "no dead letters selected")
	}
	return nil
}

// deadReplayCmd publishes events again as they were, with their identity and time, so a worker that
// has processed one in the meantime ignores it. A dead letter is deleted when the stream has its
// event.
type deadReplayCmd struct{ deadSelection }

func (c *deadReplayCmd) Run(a *app, bus *events.Bus) error {
	return c.each(a, bus, "Publish the events again of", "replayed", func(d events.DeadLetter) error {
		d, err := bus.DeadLetter(a.ctx, d.Sequence) // with its data
		if err != nil {
			return err
		}
		return worker.ReplayDeadLetter(a.ctx, bus, d, a.record)
	})
}

// deadDiscardCmd deletes dead letters for good. Their events stay in the stream, but are not
// processed.
type deadDiscardCmd struct{ deadSelection }

func (c *deadDiscardCmd) Run(a *app, bus *events.Bus) error {
	return c.each(a, bus, "Delete", "discarded", func(d events.DeadLetter) error {
		return worker.DiscardDeadLetter(a.ctx, bus, d, a.record)
	})
}
