package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

type deadCmd struct {
	List    deadListCmd    `cmd:"" help:"List dead letters, oldest first."`
	Show    deadShowCmd    `cmd:"" help:"Show one with its headers and data."`
	Replay  deadReplayCmd  `cmd:"" help:"Publish their events again, with the identity and time that they had."`
	Discard deadDiscardCmd `cmd:"" help:"Delete them for good."`
}

// deadFilter is what selects dead letters on a command line.
type deadFilter struct {
	Type     string `help:"Only events of this type, such as tenant.created."`
	Code     string `help:"Only those of this error code."`
	TenantID string `name:"tenant" help:"Only those of this tenant."`
	Since    string `help:"Only those that died since then: RFC 3339, or a time ago such as 2h."`
	Before   string `help:"Only those that died before then."`
	Limit    int    `default:"1000" help:"At most so many."`
}

// parse reads the filter; given says whether it selects at all.
func (f deadFilter) parse(now time.Time) (filter events.DeadFilter, given bool, err error) {
	filter = events.DeadFilter{Type: f.Type, Code: f.Code, TenantID: f.TenantID}
	if filter.Since, err = moment("--since", f.Since, now); err != nil {
		return filter, false, err
	}
	if filter.Before, err = moment("--before", f.Before, now); err != nil {
		return filter, false, err
	}
	return filter, f.Type+f.Code+f.TenantID+f.Since+f.Before != "", atLeastOne(f.Limit)
}

// moment reads a time as people give it: RFC 3339, or how long ago. Empty is the zero time.
func moment(name, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, &usageError{fmt.Sprintf("%s %q: use RFC 3339 such as 2025-01-31T12:00:00Z, or a time ago such as 2h", name, text)}
	}
	return t, nil
}

type deadListCmd struct {
	deadFilter
	JSON bool `help:"Print JSON."`
	natsSettings
}

func (c *deadListCmd) Run(a *app) error {
	filter, _, err := c.deadFilter.parse(time.Now())
	if err != nil {
		return err
	}
	bus, done, err := c.connect(a)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	list, err := bus.DeadLetters(ctx, filter, c.Limit)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.stdout, "no dead letters")
		return nil
	}
	return deadTable(list).print(a.stdout)
}

func deadTable(list []events.DeadLetter) table {
	rows := table{{"SEQUENCE", "EVENT", "TENANT", "EVENT ID", "TIME", "CODE", "SIDE EFFECT", "ERROR"}}
	for _, d := range list {
		rows = append(rows, []string{
			fmt.Sprint(d.Sequence), d.Type, d.TenantID, d.EventID, d.Time.UTC().Format(time.DateTime), d.Code, d.SideEffect, d.Error,
		})
	}
	return rows
}

type deadShowCmd struct {
	Sequence uint64 `arg:"" help:"Its number, as dead list shows it."`
	JSON     bool   `help:"Print JSON."`
	natsSettings
}

func (c *deadShowCmd) Run(a *app) error {
	bus, done, err := c.connect(a)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	list, err := bus.DeadLetters(ctx, events.DeadFilter{Sequences: []uint64{c.Sequence}}, 1)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return noDeadLetter(c.Sequence)
	}
	d := list[0]
	if c.JSON {
		return printJSON(a.stdout, d)
	}
	rows := table{
		{"sequence", fmt.Sprint(d.Sequence)}, {"event", d.Type}, {"tenant", d.TenantID}, {"event id", d.EventID}, {"event time", d.EventTime},
		{"died", d.Time.UTC().Format(time.RFC3339)}, {"code", d.Code}, {"error", d.Error}, {"attempts", fmt.Sprint(d.Attempts)},
		{"side effect", d.SideEffect}, {"stream sequence", fmt.Sprint(d.StreamSequence)},
	}
	if d.Truncated != "" {
		rows = append(rows, []string{"cut from", d.Truncated})
	}
	for _, name := range slices.Sorted(maps.Keys(d.Header)) {
		if !strings.HasPrefix(name, "Papermap-") || strings.HasPrefix(name, "Papermap-Original-") {
			rows = append(rows, []string{"header " + name, strings.Join(d.Header[name], ", ")})
		}
	}
	if err := rows.print(a.stdout); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "\n%s\n\n%s\n", printableLines(string(d.Data)), advice(d))
	return err
}

// advice says what an operator can do about a dead letter.
func advice(d events.DeadLetter) string {
	replay := fmt.Sprintf("put right what the error names, then `papermap-worker dead replay %d`, or `dead discard %d`", d.Sequence, d.Sequence)
	switch {
	case d.Truncated != "":
		return "It cannot be replayed, because it was too large to be kept whole. Publish it again from its source."
	case d.SideEffect == "done" || d.SideEffect == "maybe":
		return "Papermap may have made a dashboard for it: see `papermap-worker attempts list`. Then " + replay + "."
	case strings.HasPrefix(d.Code, "INVALID_"):
		return fmt.Sprintf("The event itself is wrong and a replay would end here again: let its publisher send a right one, then `papermap-worker dead discard %d`.", d.Sequence)
	}
	return "To go on: " + replay + "."
}

func noDeadLetter(sequence uint64) error {
	return fmt.Errorf("there is no dead letter %d: `papermap-worker dead list` shows them", sequence)
}

// deadSelection says which dead letters a command acts on.
type deadSelection struct {
	Sequences []uint64 `arg:"" optional:"" name:"sequence" help:"Their numbers, as dead list shows them."`
	All       bool     `help:"All dead letters."`
	DryRun    bool     `help:"Show which, and change nothing."`
	deadFilter
	natsSettings
}

// each lets do act on the selected dead letters, and says of each what became of it. One that fails does not keep the
// others from their turn.
func (c *deadSelection) each(a *app, done string, do func(context.Context, *events.Bus, events.DeadLetter) error) error {
	filter, given, err := c.deadFilter.parse(time.Now())
	if err != nil {
		return err
	}
	if given = given || len(c.Sequences) > 0; given == c.All {
		return &usageError{"name the dead letters by their sequence numbers or by filters, or use --all; --dry-run shows which"}
	}
	filter.Sequences = c.Sequences
	bus, disconnect, err := c.connect(a)
	if err != nil {
		return err
	}
	defer disconnect()
	list, err := bus.DeadLetters(a.ctx, filter, c.Limit)
	if err != nil {
		return err
	}
	for _, n := range c.Sequences {
		if !slices.ContainsFunc(list, func(d events.DeadLetter) bool { return d.Sequence == n }) {
			return noDeadLetter(n)
		}
	}
	if c.DryRun {
		if err := deadTable(list).print(a.stdout); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "\n%d would be %s\n", len(list), done)
		return err
	}
	failed := 0
	for _, d := range list {
		if a.ctx.Err() != nil {
			return fmt.Errorf("stopped: %w", a.ctx.Err())
		}
		if err := do(a.ctx, bus, d); err != nil {
			failed++
			fmt.Fprintf(a.stdout, "dead letter %d: %v\n", d.Sequence, err)
			continue
		}
		fmt.Fprintf(a.stdout, "%s dead letter %d: %s %s\n", done, d.Sequence, d.Type, printable(d.EventID))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d dead letters could not be %s", failed, len(list), done)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.stdout, "no dead letters are selected")
	}
	return nil
}

type deadReplayCmd struct{ deadSelection }

func (c *deadReplayCmd) Run(a *app) error {
	return c.each(a, "replayed", func(ctx context.Context, bus *events.Bus, d events.DeadLetter) error { return bus.Replay(ctx, d) })
}

type deadDiscardCmd struct{ deadSelection }

func (c *deadDiscardCmd) Run(a *app) error {
	return c.each(a, "discarded", func(ctx context.Context, bus *events.Bus, d events.DeadLetter) error {
		return bus.Discard(ctx, d.Sequence)
	})
}

type replayCmd struct {
	Since  string `required:"" help:"Events stored since then: RFC 3339, or a time ago such as 2h. Take a time before the backup."`
	DryRun bool   `help:"Count, and change nothing."`
	natsSettings
}

// Run brings a database that was restored from an older backup up to the stream. First it records the dashboards that
// the stream tells of, so that they are not made a second time; then it publishes the tenants' events again. Because
// state follows from the events' own times, doing so twice, or for events that are in the backup, changes nothing.
func (c *replayCmd) Run(a *app) error {
	since, err := moment("--since", c.Since, time.Now())
	if err != nil {
		return err
	}
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	bus, done, err := c.connect(a)
	if err != nil {
		return err
	}
	defer done()

	count := 0
	created := map[string]time.Time{}                 // when each tenant's newest tenant.created so far happened
	dashboards := map[string]repo.Dashboard{}         // the newest of each tenant
	changes := map[string]map[repo.Status]time.Time{} // the newest of each kind and tenant
	err = bus.Since(a.ctx, since, func(p events.Past) error {
		if d := p.Dashboard; d != nil {
			dashboards[d.TenantID] = repo.Dashboard{
				TenantID: d.TenantID, WorkspaceID: d.WorkspaceID, ID: d.DashboardID, Title: d.Title, CreatedEvent: created[d.TenantID],
			}
			return nil
		}
		switch data := p.Data.(type) {
		case events.TenantCreated:
			if p.Time.After(created[data.TenantID]) {
				created[data.TenantID] = p.Time
			}
		case events.TenantChange:
			if changes[data.TenantID] == nil {
				changes[data.TenantID] = map[repo.Status]time.Time{}
			}
			if to, _ := worker.ChangedTo(p.Type); p.Time.After(changes[data.TenantID][to]) {
				changes[data.TenantID][to] = p.Time
			}
		}
		count++
		return nil
	})
	if err != nil {
		return err
	}
	unknown := 0
	for tenantID, d := range dashboards {
		m, err := db.Mapping(a.ctx, tenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return err
		}
		if m.DashboardID == d.ID {
			continue
		}
		unknown++
		if c.DryRun {
			continue
		}
		for to, when := range changes[tenantID] { // first, or a tenant that was suspended since would get tokens until its event is back
			if _, err := db.Change(a.ctx, repo.Change{TenantID: tenantID, WorkspaceID: d.WorkspaceID, To: to, EventTime: when}); err != nil {
				return err
			}
		}
		if err := db.Adopt(a.ctx, d); err != nil {
			return err
		}
	}
	if c.DryRun {
		fmt.Fprintf(a.stdout, "%d dashboards would be recorded and %d events published again\n", unknown, count)
		return nil
	}
	fmt.Fprintf(a.stdout, "recorded %d dashboards that the database did not know\n", unknown)
	published := 0
	err = bus.Since(a.ctx, since, func(p events.Past) error {
		if p.Dashboard != nil {
			return nil
		}
		if err := bus.PublishAgain(a.ctx, p); err != nil {
			return fmt.Errorf("after %d of %d events: %w", published, count, err)
		}
		published++
		return nil
	})
	if err == nil {
		fmt.Fprintf(a.stdout, "published %d events again\n", published)
	}
	return err
}

// printableLines keeps a stranger's text from moving the cursor. JSON is laid out.
func printableLines(text string) string {
	var value json.RawMessage
	if json.Unmarshal([]byte(text), &value) == nil {
		if pretty, err := json.MarshalIndent(value, "", "  "); err == nil {
			text = string(pretty)
		}
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSuffix(printable(line+" "), " ")
	}
	return strings.Join(lines, "\n")
}
