package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// connect opens a connection for one command, which does not wait for a server that is not there.
func (s natsSettings) connect(a *app) (*events.Bus, func(), error) {
	p := a.problems
	options, traces := s.parse(&p), p.tracing()
	if err := p.err(); err != nil {
		return nil, nil, err
	}
	tracer, log, stopTracing, err := startTracing(traces, a.log)
	if err != nil {
		return nil, nil, err
	}
	options.Name, options.Tracer = "papermap-worker-cli", tracer
	bus, err := events.Connect(options, log)
	if err != nil {
		stopTracing()
		return nil, nil, fmt.Errorf("%w: is the server running, and is NATS_URL right?", err)
	}
	return bus, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), 2*time.Second)
		defer cancel()
		bus.Close(closing)
		stopTracing()
	}, nil
}

type publishCmd struct {
	TenantCreated   publishCreatedCmd `cmd:"" help:"A new tenant, who gets a dashboard."`
	TenantSuspended publishChangeCmd  `cmd:"" help:"A tenant gets no tokens until it is resumed."`
	TenantResumed   publishChangeCmd  `cmd:"" help:"A suspended tenant gets tokens again."`
	TenantDeleted   publishChangeCmd  `cmd:"" help:"A tenant is gone."`
	UsageSync       publishUsageCmd   `cmd:"" help:"Sync usage now."`
}

// publishFlags are those of every event.
type publishFlags struct {
	WorkspaceID string `help:"The workspace; by default the worker's default one, and for usage-sync every one."`
	EventID     string `help:"Identity of the event; by default a new one."`
	natsSettings
}

type publishCreatedCmd struct {
	TenantID    string `arg:"" name:"tenant" help:"Id of the tenant."`
	Name        string `required:"" help:"Name of the tenant; the dashboard's title becomes 'Dashboard - NAME'."`
	Title       string `help:"Another title."`
	Description string `help:"The dashboard's description."`
	CreatedBy   string `help:"Who caused it."`
	publishFlags
}

func (c *publishCreatedCmd) Run(a *app) error {
	return c.publish(a, events.TypeTenantCreated, map[string]string{
		"tenant_id": c.TenantID, "name": c.Name, "title": c.Title, "description": c.Description, "created_by": c.CreatedBy,
	})
}

type publishChangeCmd struct {
	TenantID string `arg:"" name:"tenant" help:"Id of the tenant."`
	Reason   string `help:"Why, for the log."`
	publishFlags
}

func (c *publishChangeCmd) Run(a *app, k *kong.Context) error {
	return c.publish(a, strings.Replace(k.Selected().Name, "-", ".", 1), map[string]string{"tenant_id": c.TenantID, "reason": c.Reason})
}

// publish publishes an event, once it is one that the worker takes.
func (f publishFlags) publish(a *app, eventType string, fields map[string]string) error {
	e, err := f.event(eventType, fields)
	if err != nil {
		return err
	}
	bus, done, err := f.connect(a)
	if err != nil {
		return err
	}
	defer done()
	return publish(a, bus, e)
}

// event makes an event in plain JSON, without the fields that are empty, and refuses one that the worker would not take.
func (f publishFlags) event(eventType string, fields map[string]string) (events.Outgoing, error) {
	fields["workspace_id"] = f.WorkspaceID
	for name, value := range fields {
		if value == "" {
			delete(fields, name)
		}
	}
	data, err := json.Marshal(fields, json.Deterministic(true))
	if err != nil {
		return events.Outgoing{}, &usageError{fmt.Sprintf("the event cannot be encoded: %v", err)}
	}
	e := events.Outgoing{ID: f.EventID, Type: eventType, Data: data}
	if e.ID == "" {
		e.ID = uuid.NewString()
	}
	if _, err := events.Decode(events.Raw{Type: eventType, Data: data, Time: time.Now()}); err != nil {
		return events.Outgoing{}, &usageError{fmt.Sprintf("the worker would refuse the event: %v", err)}
	}
	return e, nil
}

func publish(a *app, bus *events.Bus, e events.Outgoing) error {
	ctx, cancel := context.WithTimeout(a.ctx, 10*time.Second)
	defer cancel()
	duplicate, err := bus.Publish(ctx, e)
	if err != nil {
		return err
	}
	if duplicate {
		fmt.Fprintf(a.stdout, "%s %s was published before; this copy was dropped\n", e.Type, e.ID)
		return nil
	}
	fmt.Fprintf(a.stdout, "published %s, event id %s\n", e.Type, e.ID)
	return nil
}

type tokenCmd struct {
	TenantID string        `arg:"" name:"tenant" help:"Id of the tenant."`
	TTL      time.Duration `name:"ttl" help:"Life of the token; the worker caps it."`
	URL      bool          `name:"url" help:"Print the iframe's address alone."`
	JSON     bool          `help:"Print JSON."`
	natsSettings
}

func (c *tokenCmd) Run(a *app) error {
	bus, done, err := c.connect(a)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(a.ctx, 10*time.Second)
	defer cancel()
	token, err := requestToken(ctx, bus, c.TenantID, c.TTL)
	if err != nil {
		return err
	}
	switch {
	case c.URL:
		_, err = fmt.Fprintln(a.stdout, token.EmbedURL)
		return err
	case c.JSON:
		return printJSON(a.stdout, token)
	}
	unix := func(t int64) string { return time.Unix(t, 0).UTC().Format(time.RFC3339) }
	return table{
		{"tenant", token.TenantID}, {"workspace", token.WorkspaceID}, {"dashboard", token.DashboardID},
		{"expires", unix(token.ExpiresAt)}, {"refresh after", unix(token.RefreshAfter)}, {"token", token.Token}, {"address", token.EmbedURL},
	}.print(a.stdout)
}

// requestToken asks the worker for a tenant's token; ttl 0 leaves its life to the worker.
func requestToken(ctx context.Context, bus *events.Bus, tenantID string, ttl time.Duration) (worker.EmbedToken, error) {
	var token worker.EmbedToken
	fields := map[string]any{"tenant_id": tenantID}
	if ttl != 0 {
		fields["ttl_seconds"] = int64(ttl / time.Second)
	}
	request, err := json.Marshal(fields)
	if err != nil {
		return token, fmt.Errorf("encoding a request: %w", err)
	}
	reply, err := bus.Request(ctx, "embed-token", request)
	if err != nil {
		return token, err
	}
	if err := json.Unmarshal(reply, &token); err != nil {
		return token, fmt.Errorf("reading the answer: %w", err)
	}
	return token, nil
}

type tenantsCmd struct {
	List tenantsListCmd `cmd:"" help:"List mappings."`
	Show tenantsShowCmd `cmd:"" help:"Tell why a tenant has a dashboard or not: its mapping, events, attempts and dead letters, and what to do."`

	Resolve tenantsResolveCmd `cmd:"" help:"Settle a held tenant: a create has an unknown outcome."`
}

type tenantsListCmd struct {
	Status string `help:"Only those of this status: pending, creating, active, held, failed, suspended or deleted."`
	After  string `help:"Begin after this tenant id."`
	Limit  int    `default:"1000" help:"At most so many."`
	JSON   bool   `help:"Print JSON."`
}

func (c *tenantsListCmd) Run(a *app) error {
	if err := atLeastOne(c.Limit); err != nil {
		return err
	}
	if c.Status != "" && !slices.Contains(repo.Statuses(), repo.Status(c.Status)) {
		return &usageError{fmt.Sprintf("--status %q: use one of %v", c.Status, repo.Statuses())}
	}
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	list, err := db.Mappings(a.ctx, repo.Status(c.Status), c.After, c.Limit)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, list)
	}
	rows := table{{"TENANT", "STATUS", "DASHBOARD", "WORKSPACE", "TITLE", "UPDATED", "ERROR"}}
	for _, m := range list {
		rows = append(rows, []string{m.TenantID, string(m.Status), m.DashboardID, m.WorkspaceID, m.Title, shortTime(m.UpdatedAt), m.FailedError})
	}
	if len(list) == c.Limit {
		defer fmt.Fprintf(a.stdout, "\nThere may be more: --after %q\n", list[len(list)-1].TenantID)
	}
	return rows.print(a.stdout)
}

type tenantsShowCmd struct {
	TenantID string `arg:"" name:"tenant" help:"Id of the tenant."`
	JSON     bool   `help:"Print JSON."`
	natsSettings
}

// Run tells a tenant's story. What NATS knows of it is left out, and said to be, when NATS cannot be reached.
func (c *tenantsShowCmd) Run(a *app) error {
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	bus, done, unreachable := c.connect(a)
	if wrong := (*usageError)(nil); errors.As(unreachable, &wrong) {
		return unreachable
	}
	if unreachable == nil {
		defer done()
	}
	story, err := worker.TellStory(a.ctx, db, bus, c.TenantID, time.Now())
	if unreachable != nil {
		story.LeftOut = append(story.LeftOut, fmt.Sprintf("the stream's events and the dead letters: %v", unreachable))
	}
	switch {
	case errors.Is(err, repo.ErrNotFound) && len(story.LeftOut) > 0:
		return fmt.Errorf("%w What was left out: %s", unknownTenant(c.TenantID), strings.Join(story.LeftOut, "; "))
	case errors.Is(err, repo.ErrNotFound):
		return unknownTenant(c.TenantID)
	case err != nil:
		return err
	case c.JSON:
		return printJSON(a.stdout, story)
	}
	return printStory(a.stdout, story)
}

func printStory(w io.Writer, s worker.Story) error {
	fmt.Fprintln(w, printable(s.Answer))
	for _, line := range s.Next {
		fmt.Fprintln(w, "→", printable(line))
	}
	fmt.Fprintln(w)
	if s.Known {
		rows := table{
			{"tenant", s.TenantID}, {"status", string(s.Status)}, {"workspace", s.WorkspaceID}, {"dashboard", s.DashboardID}, {"title", s.Title},
			{"generation", fmt.Sprint(s.Generation)}, {"created", shortTime(s.CreatedAt)}, {"updated", shortTime(s.UpdatedAt)},
		}
		if s.FailedError != "" {
			rows = append(rows, []string{"last error", s.FailedError})
		}
		if err := rows.print(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	rows := table{{"TIME", "KIND", "WHAT", "ID", "DETAIL"}}
	for _, m := range s.History {
		rows = append(rows, []string{m.Time.UTC().Format("2006-01-02 15:04:05.000"), m.Kind, m.What, m.ID, m.Detail})
	}
	if err := rows.print(w); err != nil {
		return err
	}
	for _, line := range s.LeftOut {
		fmt.Fprintf(w, "\nLeft out: %s\n", printable(line))
	}
	return nil
}

type tenantsResolveCmd struct {
	TenantID    string `arg:"" name:"tenant" help:"Id of the tenant."`
	DashboardID string `help:"The tenant has this dashboard: the one at Papermap with the attempt's mark in its description."`
	Recreate    bool   `help:"No such dashboard is at Papermap, or it was deleted there: create another."`
}

func (c *tenantsResolveCmd) Run(a *app) error {
	if (c.DashboardID != "") == c.Recreate {
		return &usageError{"use one of --dashboard-id ID and --recreate: look for the marks of `papermap-worker attempts list` in Papermap's page first"}
	}
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	var m repo.Mapping
	if c.Recreate {
		m, err = worker.Recreate(a.ctx, db, c.TenantID)
	} else {
		m, err = worker.Resolve(a.ctx, db, c.TenantID, c.DashboardID)
	}
	switch {
	case errors.Is(err, worker.ErrDashboardID):
		return &usageError{fmt.Sprintf("--dashboard-id %q is no dashboard id", printable(c.DashboardID))}
	case errors.Is(err, repo.ErrNotFound):
		return unknownTenant(c.TenantID)
	case err != nil:
		return err
	case c.Recreate:
		fmt.Fprintf(a.stdout, "tenant %s is %s; the running worker creates another dashboard\n", printable(m.TenantID), m.Status)
	default:
		fmt.Fprintf(a.stdout, "tenant %s is %s with dashboard %s\n", printable(m.TenantID), m.Status, printable(m.DashboardID))
	}
	return nil
}

func unknownTenant(id string) error {
	return fmt.Errorf("tenant %q is unknown: was tenant.created published for it?", id)
}

type attemptsCmd struct {
	List   attemptsListCmd   `cmd:"" help:"List create requests that may have left a dashboard behind."`
	Settle attemptsSettleCmd `cmd:"" help:"Take one off the list, after looking for its mark in Papermap's page."`
}

type attemptsSettleCmd struct {
	ID string `arg:"" name:"attempt" help:"Id of the attempt: the mark without pmw: before it."`
}

func (c *attemptsSettleCmd) Run(a *app) error {
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	err = db.SettleAttempt(a.ctx, strings.TrimPrefix(c.ID, "pmw:"))
	if errors.Is(err, repo.ErrNotFound) {
		return fmt.Errorf("there is no attempt %q: `papermap-worker attempts list` shows them", c.ID)
	}
	if err == nil {
		fmt.Fprintf(a.stdout, "settled attempt %s\n", c.ID)
	}
	return err
}

type attemptsListCmd struct {
	JSON bool `help:"Print JSON."`
}

func (c *attemptsListCmd) Run(a *app) error {
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	list, err := db.UncertainAttempts(a.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.stdout, "every create request has a known outcome")
		return nil
	}
	rows := table{{"TENANT", "OUTCOME", "TITLE TO LOOK FOR", "MARK IN DESCRIPTION", "TIME", "DASHBOARD", "ERROR"}}
	for _, t := range list {
		rows = append(rows, []string{t.TenantID, string(t.Outcome), t.Title, t.Mark, shortTime(t.StartedAt), t.DashboardID, t.Error})
	}
	return rows.print(a.stdout)
}

func atLeastOne(limit int) error {
	if limit < 1 {
		return &usageError{fmt.Sprintf("--limit %d: use 1 or more", limit)}
	}
	return nil
}

// table is rows of cells for people; the first row may be a heading.
type table [][]string

func (t table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range t {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, printable(cell))
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

// printable keeps what a stranger chose as a name from moving the cursor or breaking the table.
func printable(cell string) string {
	if cell == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, cell)
}

func printJSON(w io.Writer, v any) error {
	if err := json.MarshalWrite(w, v, jsontext.WithIndent("  "), json.FormatNilSliceAsNull(false)); err != nil {
		return fmt.Errorf("printing JSON: %w", err)
	}
	_, err := fmt.Fprintln(w)
	return err
}

func shortTime(t repo.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateTime)
}
