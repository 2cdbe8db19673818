package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/worker"
)

// demoCmd runs the whole main job once on an embedded stack (see localStack): dashboards, tokens
// that the simulator accepts, usage, a suspension. It exits with 1 when a step fails.
type demoCmd struct {
	Verbose bool `short:"v" help:"Show the worker's log as well."`
}

// Run does what a company's services would do, against a worker that runs beside it.
func (c *demoCmd) Run(a *app) error {
	if !c.Verbose {
		a.log = slog.New(slog.DiscardHandler)
	}
	dir, err := os.MkdirTemp("", "papermap-demo-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	a.closers = append(a.closers, func() { _ = os.RemoveAll(dir) })
	s, err := startLocalStack(a, dir, 0, 0, "--http-addr=off", "--usage-sync-schedule=off",
		"--embed-token-audit=0")
	if err != nil {
		return err
	}
	s.simulator.SetUsage(s.config.worker.Workspaces[0].ID, demoUsage(time.Now()))
	fmt.Fprintf(a.stdout, "NATS with JetStream at %s, Papermap simulator at %s, SQLite in %s\n\n",
		s.nats.URL(), s.server.URL, dir)
	return s.run(a, false, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		bus, err := s.connect(a)
		if err != nil {
			return err
		}
		for _, step := range []func(context.Context, io.Writer, *events.Bus) error{
			demoDashboards, demoSync, demoSuspend,
		} {
			if err := step(ctx, a.stdout, bus); err != nil {
				return err
			}
		}
		return nil
	})
}

// demoTenants are published in the three forms of an event.
var demoTenants = []struct{ id, name, form string }{
	{"org-acme", "Acme Corp", "plain JSON"},
	{"org-globex", "Globex", "CloudEvents binary"},
	{"org-initech", "Initech", "CloudEvents structured"},
	{"org-müller", "Müller & Söhne", "plain JSON"},
}

// demoDashboards publishes the tenants, and requests a token for each when it has its dashboard.
func demoDashboards(ctx context.Context, out io.Writer, bus *events.Bus) error {
	for _, t := range demoTenants {
		e, err := tenantCreated(t.id, t.name, t.form)
		if err != nil {
			return err
		}
		if _, err := bus.Publish(ctx, e); err != nil {
			return err
		}
		fmt.Fprintf(out, "published tenant.created for %s (%s)\n", t.id, t.form)
	}
	fmt.Fprintln(out)
	rows := table{{"TENANT", "DASHBOARD", "TOKEN EXPIRES", "PAPERMAP SAYS"}}
	for _, t := range demoTenants {
		token, err := awaitToken(ctx, bus, t.id, "")
		if err != nil {
			return err
		}
		status, _, err := httpGet(ctx, http.DefaultClient, token.EmbedURL) // as an iframe would
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("papermap refused the token: status %d", status)
		}
		if err != nil {
			return fmt.Errorf("tenant %q: %w", t.id, err)
		}
		rows.add(t.id, token.DashboardID, unixTime(token.ExpiresAt), "token accepted")
	}
	return rows.print(out)
}

// awaitToken requests a token for a tenant until it gets one, or if refusal is not empty until it
// is refused with that code.
func awaitToken(ctx context.Context, bus *events.Bus, tenantID, refusal string) (worker.EmbedToken, error) {
	var token worker.EmbedToken
	var answer error
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		token, answer = requestToken(ctx, bus, tenantID, 0)
		if refusal == "" {
			return answer == nil, nil
		}
		refused, ok := errors.AsType[*events.ServiceError](answer)
		return ok && refused.Code == refusal, nil
	})
	if err != nil {
		err = fmt.Errorf("request tokens for tenant %q: %w", tenantID, errors.Join(err, answer))
	}
	return token, err
}

// tenantCreated makes the event as a publisher would, in one of the three forms.
func tenantCreated(tenantID, name, form string) (events.Outgoing, error) {
	fields := map[string]string{"tenant_id": tenantID, "name": name}
	e, err := worker.NewEvent(events.TypeTenantCreated, fields, time.Now())
	if err != nil {
		return e, err
	}
	switch form {
	case "CloudEvents binary":
		e.Header = nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {e.ID}, "ce-source": {"/signup"}, "ce-type": {e.Type},
		}
	case "CloudEvents structured":
		return events.Structured(e.ID, e.Type, tenantID, time.Now(), e.Data)
	}
	return e, nil
}

// demoUsage is what the demo's tenants have used at Papermap this month.
func demoUsage(now time.Time) simulator.Usage {
	var u simulator.Usage
	for i, t := range demoTenants {
		u.Rows = append(u.Rows, simulator.UsageRow{
			TenantID: t.id, Period: now.UTC().Format("2006-01"),
			Credits: fmt.Sprintf("%d.%d", 40*(i+1), 25*(i%3)+5), Requests: int64(130 * (4 - i)),
		})
	}
	return u
}

// demoSync has the usage synced and requests it, as billing would.
func demoSync(ctx context.Context, out io.Writer, bus *events.Bus) error {
	sync := events.Outgoing{ID: uuid.NewString(), Type: events.TypeUsageSync, Data: []byte("{}")}
	if _, err := bus.Publish(ctx, sync); err != nil {
		return err
	}
	var answer worker.UsagePage
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		err := request(ctx, bus, "usage", struct{}{}, &answer)
		return answer.Total == len(demoTenants), err
	})
	if err != nil {
		return fmt.Errorf("wait for usage (%d of %d rows): %w", answer.Total, len(demoTenants), err)
	}
	fmt.Fprint(out, "\npublished usage.sync\n\n")
	rows := table{{"TENANT", "MONTH", "CREDITS", "REQUESTS"}}
	for _, u := range answer.Usage {
		rows.add(u.TenantID, u.Period, u.Credits, u.Requests)
	}
	return rows.print(out)
}

// demoSuspend suspends a tenant and waits until it gets no token.
func demoSuspend(ctx context.Context, out io.Writer, bus *events.Bus) error {
	last := demoTenants[len(demoTenants)-1].id
	fields := map[string]string{"tenant_id": last, "reason": "demo"}
	e, err := worker.NewEvent(events.TypeTenantSuspended, fields, time.Now())
	if err != nil {
		return err
	}
	if _, err := bus.Publish(ctx, e); err != nil {
		return err
	}
	if _, err := awaitToken(ctx, bus, last, "TENANT_SUSPENDED"); err != nil {
		return err
	}
	fmt.Fprintf(out, "\npublished tenant.suspended for %s: its next token was refused\n", last)
	return nil
}
