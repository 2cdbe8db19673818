package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/worker"
)

// parts are a NATS server and a Papermap simulator inside this process, with the configuration of a worker that
// uses them. They ignore PAPERMAP_* of the environment and call no host but loopback.
type parts struct {
	nats      *embedded.Server
	simulator *simulator.Server
	api       *simulator.Simulator // that it serves
	config    serveConfig
}

func startParts(dir string, natsPort, simulatorPort int, usage simulator.Usage) (*parts, error) {
	workspace := papermap.Workspace{
		ID: "ws-local", Key: papermap.KeyPair{ID: "ak_local", Secret: papermap.NewSecret("sk_local_0123456789")},
		EmbedKey: papermap.KeyPair{ID: "ak_local_embed", Secret: papermap.NewSecret("sk_local_embed_0123456789")},
	}
	api := simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}})
	api.SetUsage(workspace.ID, usage)
	sim, err := simulator.Serve(api, fmt.Sprintf("127.0.0.1:%d", simulatorPort))
	if err != nil {
		return nil, err
	}
	server, err := embedded.Start(filepath.Join(dir, "jetstream"), natsPort)
	if err != nil {
		sim.Close()
		return nil, err
	}
	workspace.APIURL = sim.URL
	return &parts{nats: server, simulator: sim, api: api, config: serveConfig{
		worker: worker.Config{
			Workspaces: []papermap.Workspace{workspace}, EmbedURL: sim.URL + "/embedded/dashboard", Timeout: 10 * time.Second,
			TokenTTL: time.Hour, TokenMaxTTL: time.Hour, Concurrency: 64, MaxAttempts: 10, Grace: 25 * time.Second,
			UsageConcurrency: 8,
		},
		bus: events.Options{
			URL: server.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1,
			MaxAge: 720 * time.Hour, Name: "papermap-worker", Wait: true,
		},
		database: "sqlite:" + filepath.Join(dir, "papermap.db"), migrate: true,
	}}, nil
}

func (p *parts) close() {
	p.nats.Close()
	p.simulator.Close()
}

type demoCmd struct {
	Verbose bool `short:"v" help:"Show the worker's log as well."`
}

// Run does what a company's services would do, against a worker that runs beside it.
func (c *demoCmd) Run(a *app) error {
	if err := a.problems.err(); err != nil {
		return err
	}
	log := a.log
	if !c.Verbose {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := os.MkdirTemp("", "papermap-demo-")
	if err != nil {
		return fmt.Errorf("making a temporary folder: %w", err)
	}
	defer os.RemoveAll(dir)
	p, err := startParts(dir, 0, 0, demoUsage(time.Now()))
	if err != nil {
		return err
	}
	defer p.close()
	fmt.Fprintf(a.stdout, "NATS with JetStream at %s, Papermap simulator at %s, SQLite in %s\n\n", p.nats.URL(), p.simulator.URL, dir)

	working, stop := context.WithCancel(a.ctx)
	defer stop()
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	stopped := make(chan error, 1)
	go func() {
		err := serve(working, p.config, log)
		cancel() // nobody is left who could do what the demo waits for
		stopped <- err
	}()
	err = demo(ctx, a.stdout, p, log)
	stop()
	return errors.Join(err, <-stopped)
}

// demoTenants are published in the three forms of an event.
var demoTenants = []struct{ id, name, form string }{
	{"org-acme", "Acme Corp", "plain JSON"},
	{"org-globex", "Globex", "CloudEvents binary"},
	{"org-initech", "Initech", "CloudEvents structured"},
	{"org-müller", "Müller & Söhne", "plain JSON"},
}

func demo(ctx context.Context, out io.Writer, p *parts, log *slog.Logger) error {
	options := p.config.bus
	options.Name = "demo"
	bus, err := events.Connect(options, log)
	if err != nil {
		return err
	}
	defer bus.Close(ctx)
	if err := bus.EnsureStreams(ctx); err != nil {
		return err
	}
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
		if err := waitActive(ctx, bus, t.id); err != nil {
			return err
		}
		token, err := requestToken(ctx, bus, t.id, 0)
		if err != nil {
			return err
		}
		if err := openEmbedded(ctx, token.EmbedURL); err != nil {
			return fmt.Errorf("tenant %q: %w", t.id, err)
		}
		rows = append(rows, []string{t.id, token.DashboardID, time.Unix(token.ExpiresAt, 0).UTC().Format(time.RFC3339), "token accepted"})
	}
	if err := rows.print(out); err != nil {
		return err
	}
	if err := demoSync(ctx, out, bus); err != nil {
		return err
	}

	last := demoTenants[len(demoTenants)-1].id
	data, err := json.Marshal(map[string]string{"tenant_id": last, "reason": "demo"})
	if err != nil {
		return fmt.Errorf("encoding an event: %w", err)
	}
	if _, err := bus.Publish(ctx, events.Outgoing{Type: events.TypeTenantSuspended, Data: data}); err != nil {
		return err
	}
	for {
		_, err := requestToken(ctx, bus, last, 0)
		var refused *events.ServiceError
		if errors.As(err, &refused) && refused.Code == "TENANT_SUSPENDED" {
			break
		}
		if err != nil {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the suspension of tenant %q: %w", last, err)
		}
	}
	fmt.Fprintf(out, "\npublished tenant.suspended for %s: its next token was refused\n", last)
	return nil
}

// demoUsage is what the demo's tenants have used at Papermap this month.
func demoUsage(now time.Time) simulator.Usage {
	var u simulator.Usage
	for i, t := range demoTenants {
		u.Rows = append(u.Rows, simulator.UsageRow{
			TenantID: t.id, Period: now.UTC().Format("2006-01"), Credits: fmt.Sprintf("%d.%d", 40*(i+1), 25*(i%3)+5), Requests: int64(130 * (4 - i)),
		})
	}
	return u
}

// demoSync has the usage synced and asks for it, as billing would.
func demoSync(ctx context.Context, out io.Writer, bus *events.Bus) error {
	if _, err := bus.Publish(ctx, events.Outgoing{ID: uuid.NewString(), Type: events.TypeUsageSync, Data: []byte("{}")}); err != nil {
		return err
	}
	var answer worker.Usage
	for answer.Total < len(demoTenants) {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for usage (%d of %d rows): %w", answer.Total, len(demoTenants), err)
		}
		reply, err := bus.Request(ctx, "usage", []byte("{}"))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(reply, &answer); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
	}
	fmt.Fprint(out, "\npublished usage.sync\n\n")
	rows := table{{"TENANT", "MONTH", "CREDITS", "REQUESTS"}}
	for _, u := range answer.Usage {
		rows = append(rows, []string{u.TenantID, u.Period, u.Credits, fmt.Sprint(u.Requests)})
	}
	return rows.print(out)
}

// tenantCreated makes the event as a publisher would, in one of the three forms.
func tenantCreated(tenantID, name, form string) (events.Outgoing, error) {
	data, err := json.Marshal(map[string]string{"tenant_id": tenantID, "name": name})
	if err != nil {
		return events.Outgoing{}, fmt.Errorf("encoding an event: %w", err)
	}
	id := uuid.NewString()
	switch form {
	case "CloudEvents binary":
		return events.Outgoing{ID: id, Type: events.TypeTenantCreated, Data: data, Header: nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {id}, "ce-source": {"/signup"}, "ce-type": {events.TypeTenantCreated},
		}}, nil
	case "CloudEvents structured":
		return events.Structured(id, events.TypeTenantCreated, tenantID, time.Now(), data)
	}
	return events.Outgoing{ID: id, Type: events.TypeTenantCreated, Data: data}, nil
}

// waitActive waits until the tenant has its dashboard.
func waitActive(ctx context.Context, bus *events.Bus, tenantID string) error {
	request, err := json.Marshal(map[string]string{"tenant_id": tenantID})
	if err != nil {
		return fmt.Errorf("encoding a request: %w", err)
	}
	for {
		reply, err := bus.Request(ctx, "dashboard", request)
		var m worker.Dashboard
		if err == nil {
			err = json.Unmarshal(reply, &m)
		}
		if err == nil && m.Status == "active" {
			return nil
		}
		if waited := pause(ctx, 20*time.Millisecond); waited != nil {
			return fmt.Errorf("waiting for the dashboard of tenant %q (status %q): %w", tenantID, m.Status, errors.Join(waited, err))
		}
	}
}

// openEmbedded opens the address as an iframe would, and returns why Papermap refuses it.
func openEmbedded(ctx context.Context, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("opening the embedded dashboard: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("opening the embedded dashboard: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("papermap refused the token: status %d", answer.StatusCode)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type simulateCmd struct {
	Addr        string   `default:"127.0.0.1:8090" help:"Where to listen."`
	Fault       []string `sep:"none" help:"A fault rule, such as 'status=503 retry-after=1 rate=0.1' or 'drop=after rate=0.05'; may be repeated."`
	WorkspaceID string   `default:"ws-local" help:"The workspace that is accepted."`
	KeyID       string   `name:"api-key-id" default:"ak_local" help:"Id of its API key."`
	SecretKey   string   `env:"SIMULATOR_SECRET_KEY" default:"sk_local_0123456789" help:"Its secret; for tests, never a real one."`
	Nested      bool     `help:"Answer in the guide's shape: the dashboard id at data.data.dashboard_id."`
}

func (c *simulateCmd) Run(a *app) error {
	options := simulator.Options{NestedAnswer: c.Nested, Workspaces: []papermap.Workspace{{
		ID: c.WorkspaceID, Key: papermap.KeyPair{ID: c.KeyID, Secret: papermap.NewSecret(c.SecretKey)},
	}}}
	for _, text := range c.Fault {
		fault, err := simulator.ParseFault(text)
		if err != nil {
			return &usageError{err.Error()}
		}
		options.Faults = append(options.Faults, fault)
	}
	server, err := simulator.Serve(simulator.New(options), c.Addr)
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Fprintf(a.stdout, "Papermap simulator at %s\n\n  export PAPERMAP_API_URL=%s PAPERMAP_EMBED_URL=%s/embedded/dashboard PAPERMAP_WORKSPACE_ID=%s PAPERMAP_API_KEY_ID=%s PAPERMAP_SECRET_KEY=%s\n\nWhat it did: %s/simulator/state\nUsage to sync, of 20,000 tenants: curl -X PUT '%s/simulator/usage?workspace=%s' -d '{\"tenants\":20000}'\n",
		server.URL, server.URL, server.URL, c.WorkspaceID, c.KeyID, c.SecretKey, server.URL, server.URL, url.QueryEscape(c.WorkspaceID))
	<-a.ctx.Done()
	return nil
}
