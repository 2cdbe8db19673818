package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

type devCmd struct {
	Dir           string `default:".papermap-dev" help:"Folder for the data."`
	NATSPort      int    `name:"nats-port" default:"4222" help:"Port of the embedded NATS server."`
	SimulatorPort int    `default:"8090" help:"Port of the Papermap simulator."`
	HTTPAddr      string `name:"http-addr" default:"127.0.0.1:8080" help:"Where the console and health are served."`
	Tenants       int    `help:"Fill it with this many made-up tenants, some of them in trouble, and their usage."`
}

// Run runs the worker and its parts until it is interrupted.
func (c *devCmd) Run(a *app) error {
	if err := a.problems.err(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	p, err := startParts(c.Dir, c.NATSPort, c.SimulatorPort, devUsage(c.Tenants, time.Now(), false))
	if err != nil {
		return err
	}
	defer p.close()
	p.config.http.Addr, p.config.http.Console.Dev = c.HTTPAddr, true
	p.config.worker.Hold = true // so that there is something to settle
	p.config.worker.TokenAudit = 10
	if p.config.worker.Schedule, err = worker.ParseSchedule("@hourly"); err != nil {
		return err
	}
	working, stop := context.WithCancel(a.ctx)
	defer stop()
	stopped := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		err := serve(working, p.config, a.log)
		close(ended)
		stopped <- err
	}()
	filling, cancel := context.WithCancel(working)
	defer cancel()
	go func() {
		<-ended // then nobody is left who could do what the filling waits for
		cancel()
	}()

	fmt.Fprint(a.stdout, c.guide(p))
	if err := c.fill(filling, p, a.log); err != nil && filling.Err() == nil {
		stop()
		return errors.Join(err, <-stopped)
	}
	return <-stopped
}

// guide tells a person what to try.
func (c *devCmd) guide(p *parts) string {
	nats := ""
	if c.NATSPort != 4222 {
		nats = "NATS_URL=" + p.nats.URL() + " "
	}
	database := "DATABASE_URL=" + p.config.database + " "
	return strings.Join([]string{
		"console    http://" + c.HTTPAddr + "/",
		"NATS       " + p.nats.URL(),
		"Papermap   " + p.simulator.URL + "/simulator/state (a simulator)",
		"health     http://" + c.HTTPAddr + "/readyz",
		"",
		"Try, from another terminal:",
		"  " + nats + "papermap-worker publish tenant-created org-1 --name 'Acme Corp'",
		"  " + nats + "papermap-worker token org-1 --url",
		"  " + database + "papermap-worker tenants list",
		"  " + nats + database + "papermap-worker publish usage-sync --wait",
		"  " + database + "papermap-worker usage show",
		"  " + nats + "papermap-worker publish tenant-suspended org-1",
		"",
		"Ctrl-C stops it; the data stays in " + c.Dir + ".",
		"",
	}, "\n")
}

// Made-up tenants. What is wrong with one follows from its number, so that each run shows the same.

func devTenant(i int) string { return fmt.Sprintf("org-%05d", i+1) }

func devName(i int) string {
	first := []string{"Harbour", "Northwind", "Blue Fern", "Kestrel", "Alder", "Lumen", "Quarry", "Saffron", "Tidal", "Orchard", "Granite", "Meridian", "Willow", "Copper", "Juniper", "Beacon", "Marlow", "Cobalt", "Thistle", "Ember", "Skylark", "Foundry", "Rowan"}
	second := []string{"Trading", "Logistics", "& Sons", "Analytics", "Foods", "Health", "Studio", "Energy", "Partners", "Robotics", "Textiles", "Mobility", "Coffee", "Systems", "Legal", "Clinics", "Outdoor", "Media", "Finance"}
	third := []string{"", " Ltd", " GmbH", " Inc", " SA", " AB", " Oy"}
	return first[i%len(first)] + " " + second[i*7%len(second)] + third[i/len(first)%len(third)]
}

const mostInTrouble = 2000 // tenants that may be in trouble: faults are rules, which are looked through for each request

func devHeld(i int) bool      { return i < mostInTrouble && i%71 == 6 }
func devRefused(i int) bool   { return i < mostInTrouble && i%97 == 11 }
func devSuspended(i int) bool { return i < mostInTrouble && i%41 == 17 }
func devDeleted(i int) bool   { return i < mostInTrouble && i%83 == 23 }

// devFaults is what goes wrong at Papermap while the tenants are made.
func devFaults(tenants int) []simulator.Fault {
	refusals := []string{"title is longer than 100 characters", "The workspace has reached its number of dashboards", "created_by is no member of the workspace"}
	list := []simulator.Fault{{On: "create", Status: 429, RetryAfter: "1", Rate: 0.03, Count: 12}}
	for i := range min(tenants, mostInTrouble) {
		f := simulator.Fault{On: "create", Tenant: devTenant(i), Count: 1}
		switch {
		case devHeld(i) && i%2 == 0:
			f.Drop = "after"
		case devHeld(i):
			f.Status, f.Effect = 500, true
		case devRefused(i):
			f.Status, f.Body = 422, fmt.Sprintf(`{"success":false,"message":%q,"status_code":422}`, refusals[i%len(refusals)])
		default:
			continue
		}
		list = append([]simulator.Fault{f}, list...)
	}
	return list
}

const devMonths = 7

// devUsage is what the tenants have used: more from month to month, with some rows that make no sense. corrected is how
// Papermap sees it after it has thought again about three of them.
func devUsage(tenants int, now time.Time, corrected bool) simulator.Usage {
	if tenants > mostInTrouble { // rows one by one are for an amount that a person looks at
		return simulator.Usage{Tenants: tenants, TenantID: devTenant, BadEvery: 5_000}
	}
	var u simulator.Usage
	random := rand.New(rand.NewPCG(7, 11))
	for i := range tenants {
		size, joined := math.Exp(4*random.Float64()), i%5
		for m := range devMonths {
			use := size * (1 + 0.13*float64(m)) * (0.7 + 0.6*random.Float64())
			if m < joined || devHeld(i) || devRefused(i) {
				continue
			}
			if corrected && i%160 == 40 && m == devMonths-2 {
				use *= 0.8
			}
			u.Rows = append(u.Rows, simulator.UsageRow{TenantID: devTenant(i), Period: devMonth(now, m), Credits: fmt.Sprintf("%.3f", use), Requests: int64(use * 9)})
		}
	}
	if tenants > 0 {
		last := devMonth(now, devMonths-1)
		u.Rows = append(u.Rows,
			simulator.UsageRow{TenantID: "org-test-old", Period: last, Credits: "41.5", Requests: 12},
			simulator.UsageRow{TenantID: devTenant(0), Period: "last month", Credits: "3", Requests: 1},
			simulator.UsageRow{Period: last, Credits: "8.25", Requests: 40},
			simulator.UsageRow{TenantID: "org-refund", Period: last, Credits: "-12.5", Requests: 3})
	}
	return u
}

// devMonth is the month number m of those that are shown, the last of which is now's.
func devMonth(now time.Time, m int) string {
	year, month, _ := now.UTC().Date()
	return time.Date(year, month+time.Month(m-devMonths+1), 1, 0, 0, 0, 0, time.UTC).Format("2006-01")
}

// devBroken are events that nobody can handle, by their types.
var devBroken = []struct{ eventType, data string }{
	{events.TypeTenantCreated, `{"tenant_id":"org-typo","name":"Typo Ltd"`},
	{events.TypeTenantCreated, `{"tenant_id":"org-twice","name":"Twice Inc","name":"Twice GmbH"}`},
	{events.TypeTenantCreated, `{"tenant_id":"org-nameless"}`},
	{events.TypeTenantCreated, `{"tenant_id":"org-elsewhere","name":"Elsewhere AB","workspace_id":"ws-retired"}`},
	{events.TypeTenantSuspended, `{"tenant_id":" org-00003","reason":"unpaid"}`},
	{events.TypeUsageSync, `{"from_period":"2026-13"}`},
}

// fill makes the tenants that are not there yet, and what happens to them.
func (c *devCmd) fill(ctx context.Context, p *parts, log *slog.Logger) error {
	db, err := repo.Open(ctx, p.config.database)
	if err != nil {
		return err
	}
	defer db.Close()
	for db.CheckSchema(ctx) != nil { // the worker is about to make it
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	known, err := remind(ctx, db, p.api)
	if err != nil || c.Tenants <= 0 {
		return err
	}
	bus, err := events.Connect(p.config.bus, log)
	if err != nil {
		return err
	}
	defer bus.Close(ctx)
	if err := bus.EnsureStreams(ctx); err != nil {
		return err
	}
	p.api.SetFaults(devFaults(c.Tenants)...)
	var created, after []events.Outgoing
	for i := range c.Tenants {
		id := devTenant(i)
		if known[id] {
			continue
		}
		e, err := tenantCreated(id, devName(i), "plain JSON")
		if err != nil {
			return err
		}
		created = append(created, e)
		for eventType, is := range map[string]bool{events.TypeTenantSuspended: devSuspended(i), events.TypeTenantDeleted: devDeleted(i)} {
			if is {
				after = append(after, events.Outgoing{ID: uuid.NewString(), Type: eventType, Data: fmt.Appendf(nil, `{"tenant_id":%q}`, id)})
			}
		}
	}
	if len(created) == 0 {
		return nil
	}
	if len(known) == 0 {
		for _, b := range devBroken {
			after = append(after, events.Outgoing{ID: uuid.NewString(), Type: b.eventType, Data: []byte(b.data)})
		}
	}
	if err := errors.Join(bus.PublishAll(ctx, created)...); err != nil {
		return err
	}
	if err := waitSettled(ctx, db, len(known)+len(created)); err != nil {
		return err
	}
	if err := errors.Join(bus.PublishAll(ctx, after)...); err != nil {
		return err
	}
	if err := c.use(ctx, p, db, bus); err != nil {
		return err
	}
	log.Info("filled it with made-up tenants", "tenants", len(created))
	return nil
}

// remind tells the simulator, which forgets when it stops, of the dashboards that it made, and returns the tenants.
func remind(ctx context.Context, db *repo.DB, api *simulator.Simulator) (known map[string]bool, err error) {
	known = map[string]bool{}
	for after := ""; ; {
		list, err := db.Mappings(ctx, "", after, 1000)
		if err != nil || len(list) == 0 {
			return known, err
		}
		for _, m := range list {
			known[m.TenantID], after = true, m.TenantID
			if m.DashboardID != "" {
				api.Adopt(simulator.Dashboard{
					ID: m.DashboardID, WorkspaceID: m.WorkspaceID, TenantID: m.TenantID, Title: m.Title, Description: m.Description, CreatedAt: m.CreatedAt.Time,
				})
			}
		}
	}
}

// waitSettled waits until no tenant waits for its dashboard.
func waitSettled(ctx context.Context, db *repo.DB, tenants int) error {
	for {
		s, err := db.Stats(ctx)
		if err != nil {
			return err
		}
		all := 0
		for _, n := range s.Tenants {
			all += n
		}
		if all >= tenants && s.Tenants[repo.Pending]+s.Tenants[repo.Creating] == 0 {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for %d tenants: %w", tenants, err)
		}
	}
}

// use does what people and Papermap would have done meanwhile: settle a tenant, ask for tokens, use dashboards, correct
// what was counted.
func (c *devCmd) use(ctx context.Context, p *parts, db *repo.DB, bus *events.Bus) error {
	for i := range min(c.Tenants, mostInTrouble) {
		if devHeld(i) && i%3 == 1 { // its first create stays a possible orphan
			if _, err := worker.Recreate(ctx, db, devTenant(i)); err != nil && !errors.Is(err, repo.ErrNotHeld) {
				return err
			}
		}
	}
	now := time.Now()
	var counts []repo.TokenCount
	for i := range min(c.Tenants, mostInTrouble) {
		for m := range devMonths {
			if i%9 != 4 {
				counts = append(counts, repo.TokenCount{WorkspaceID: p.config.worker.Workspaces[0].ID, TenantID: devTenant(i), Period: devMonth(now, m), Tokens: int64(3 + i%40)})
			}
		}
	}
	if err := db.AddTokens(ctx, counts); err != nil {
		return err
	}
	for i := range min(c.Tenants, 25) {
		var refused *events.ServiceError
		if _, err := requestToken(ctx, bus, devTenant(i), 0); err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	for _, corrected := range []bool{false, true} {
		p.api.SetUsage(p.config.worker.Workspaces[0].ID, devUsage(c.Tenants, now, corrected))
		id := uuid.NewString()
		data, err := json.Marshal(map[string]string{"from_period": devMonth(now, 0), "to_period": devMonth(now, devMonths-1)})
		if err != nil {
			return fmt.Errorf("encoding an event: %w", err)
		}
		if _, err := bus.Publish(ctx, events.Outgoing{ID: id, Type: events.TypeUsageSync, Data: data}); err != nil {
			return err
		}
		if err := waitRun(ctx, db, id); err != nil {
			return err
		}
	}
	return nil
}

// waitRun waits until the usage run that an event asked for has ended.
func waitRun(ctx context.Context, db *repo.DB, eventID string) error {
	for {
		runs, err := db.Runs(ctx, eventID, 1)
		if err != nil || len(runs) > 0 && runs[0].Status != repo.Running {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for a usage run: %w", err)
		}
	}
}
