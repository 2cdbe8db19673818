package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// devCmd runs a worker on an embedded stack until it is interrupted, for a person who wants to look
// around. Its data stays in a folder, and is there again the next time.
type devCmd struct {
	Dir           string `default:".papermap-dev" help:"Data folder."`
	NATSPort      int    `name:"nats-port" default:"4222" help:"Port of the embedded NATS server."`
	SimulatorPort int    `default:"8090" help:"Port of the Papermap simulator."`
	HTTPAddr      string `name:"http-addr" default:"127.0.0.1:8080" help:"Address of the console and health."`
	Tenants       int    `help:"Add this many sample tenants, some of them with problems, and their usage."`
}

// Run runs the worker and its stack until it is interrupted.
func (c *devCmd) Run(a *app) error {
	if err := c.checkPorts(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	s, err := startLocalStack(a, c.Dir, c.NATSPort, c.SimulatorPort, "--http-addr="+c.HTTPAddr,
		"--embed-token-audit=10", "--papermap-on-ambiguous=hold") // so that there is something to resolve
	if err != nil {
		return err
	}
	p := a.parser()
	s.config.http.Console.Dev, s.config.http.Console.Token = true, p.consoleToken(p.secret("CONSOLE_TOKEN"))
	if err := p.err(); err != nil {
		return err
	}
	s.simulator.SetUsage(s.config.worker.Workspaces[0].ID, devUsage(c.Tenants, time.Now()))
	bus, err := s.connect(a)
	if err != nil {
		return err
	}
	if s.config.http.JWT.Secret, err = devSecret(c.secretFile()); err != nil {
		return err
	}
	s.config.http.Example, err = newExample(bus, s.config.worker.EmbedURL, a.log)
	if err != nil {
		return err
	}
	fmt.Fprint(a.stdout, c.guide(s))
	return s.run(a, true, func(ctx context.Context) error {
		filled, err := c.fill(ctx, a, s, bus)
		if filled && err == nil {
			fmt.Fprint(a.stderr, "\n"+c.guide(s)) // again, below the log of the tenants, in its order
		}
		return err
	})
}

// checkPorts returns an error that names each port that is taken, and its flag.
func (c *devCmd) checkPorts() error {
	var taken []string
	for _, p := range []struct{ flag, addr, other string }{
		{"--nats-port", fmt.Sprintf("127.0.0.1:%d", c.NATSPort), "0"},
		{"--simulator-port", fmt.Sprintf("127.0.0.1:%d", c.SimulatorPort), "0"},
		{"--http-addr", c.HTTPAddr, "127.0.0.1:0"},
	} {
		if p.addr == "off" {
			continue
		}
		listener, err := net.Listen("tcp", p.addr)
		if err == nil {
			err = listener.Close()
		}
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			taken = append(taken, fmt.Sprintf("%s is in use by another program: "+
				"stop that, or use %s=%s (any free port)", p.addr, p.flag, p.other))
		case err != nil:
			taken = append(taken, fmt.Sprintf("%s: %v", p.flag, err))
		}
	}
	if len(taken) > 0 {
		return errors.New(strings.Join(taken, "\n  "))
	}
	return nil
}

// programName is how a person started this program: as it would be typed again.
func programName() string {
	path, err := os.Executable()
	if err == nil && strings.Contains(path, string(filepath.Separator)+"go-build") {
		return "go run ."
	}
	if found, err := exec.LookPath("papermap-worker"); err == nil {
		a, _ := os.Stat(found)
		if b, err := os.Stat(path); err == nil && os.SameFile(a, b) {
			return "papermap-worker"
		}
	}
	return os.Args[0]
}

// secretFile has the key of REST tokens.
func (c *devCmd) secretFile() string { return filepath.Join(c.Dir, "jwt-secret") }

// devSecret returns the secret in a file, which it makes the first time.
func devSecret(file string) (string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		data = []byte(rand.Text() + rand.Text())
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("the key of REST tokens: %w", err)
	}
	return string(data), nil
}

// guide says what to try.
func (c *devCmd) guide(s *localStack) string {
	settings := "DATABASE_URL=" + s.config.database
	if c.NATSPort != 4222 {
		settings += " NATS_URL=" + s.nats.URL()
	}
	return fmt.Sprintf(`console    http://%[1]s/
example    http://%[1]s/example (a product's page with dashboards)
NATS       %[2]s
Papermap   %[3]s/simulator/state (a simulator)
health     http://%[1]s/readyz

Try, from another terminal:
  export %[4]s
  %[7]s publish tenant-created org-1 --name 'Acme Corp'
  %[7]s token org-1 --url
  %[7]s tenants list
  %[7]s publish usage-sync --wait
  %[7]s usage show
  %[7]s publish tenant-suspended org-1
  JWT=$(HTTP_JWT_SECRET_FILE=%[6]s %[7]s jwt --scope papermap:admin)
  curl -H "Authorization: Bearer $JWT" http://%[1]s/api/v1/dashboards

Ctrl-C stops it; the data stays in %[5]s.
`, c.HTTPAddr, s.nats.URL(), s.server.URL, settings, c.Dir, c.secretFile(), programName())
}

// devTenant is the id of invented tenant i, from 0.
func devTenant(i int) string { return fmt.Sprintf("org-%05d", i+1) }

// devName is the name of invented tenant i; the words repeat in another order.
func devName(i int) string {
	first := strings.Fields("Harbour Northwind Kestrel Alder Lumen Quarry Saffron Tidal Orchard Willow")
	second := strings.Fields("Trading Logistics Foods Health Studio Energy Robotics Legal Media")
	return first[i%len(first)] + " " + second[i*7%len(second)]
}

// devTrouble is what is wrong with an invented tenant. It follows from the tenant's number, so that
// each run shows the same.
func devTrouble(i int) string {
	switch {
	case i%71 == 6:
		return "held"
	case i%97 == 11:
		return "refused"
	case i%41 == 17:
		return events.TypeTenantSuspended
	case i%83 == 23:
		return events.TypeTenantDeleted
	}
	return ""
}

// devFaults are Papermap's answers to the creates of tenants in trouble, and some 429s for others.
func devFaults(tenants int) []simulator.Fault {
	faults := []simulator.Fault{{On: "create", Status: 429, RetryAfter: "1", Rate: 0.03, Count: 12}}
	for i := range tenants {
		f := simulator.Fault{On: "create", Tenant: devTenant(i), Count: 1}
		switch devTrouble(i) {
		case "held":
			f.Drop = "after"
		case "refused":
			f.Status, f.Body = 422, `{"message":"created_by is no member of the workspace","status_code":422}`
		default:
			continue
		}
		faults = append([]simulator.Fault{f}, faults...) // before the one for all
	}
	return faults
}

// devMonths is how many months of usage are synced, up to the present one.
const devMonths = 7

// devUsage is what the tenants have used in every month, with some rows that cannot be used, and
// one of a tenant that the worker does not know.
func devUsage(tenants int, now time.Time) simulator.Usage {
	u := simulator.Usage{Tenants: tenants, TenantID: devTenant, Seed: 7, BadEvery: 60}
	if tenants > 0 {
		u.Rows = []simulator.UsageRow{{
			TenantID: "org-test-old", Period: now.UTC().Format("2006-01"), Credits: "41.5", Requests: 12,
		}}
	}
	return u
}

// devInvalid are events that become dead letters.
var devInvalid = []struct{ eventType, data string }{
	{events.TypeTenantCreated, `{"tenant_id":"org-typo","name":"Typo Ltd"`},
	{events.TypeTenantCreated, `{"tenant_id":"org-twice","name":"Twice Inc","name":"Twice GmbH"}`},
	{events.TypeTenantCreated, `{"tenant_id":"org-nameless"}`},
	{events.TypeTenantCreated,
		`{"tenant_id":"org-elsewhere","name":"Elsewhere AB","workspace_id":"ws-retired"}`},
	{events.TypeTenantSuspended, `{"tenant_id":" org-00003","reason":"unpaid"}`},
	{events.TypeUsageSync, `{"from_period":"2026-13"}`},
}

// fill makes the tenants that do not exist yet, and their history. It returns whether there were any.
func (c *devCmd) fill(
	ctx context.Context, a *app, s *localStack, bus *events.Bus,
) (filled bool, err error) {
	db, err := repo.Open(ctx, s.config.database)
	if err != nil {
		return false, err
	}
	defer db.Close()
	migrated := func() (bool, error) { return db.CheckSchema(ctx) == nil, nil }
	if err := poll(ctx, 50*time.Millisecond, migrated); err != nil {
		return false, err
	}
	known, err := restoreSimulator(ctx, db, s.simulator)
	if err != nil || c.Tenants <= 0 {
		return false, err
	}
	created, changed := c.events(known)
	if len(created) == 0 {
		return false, nil
	}
	s.simulator.SetFaults(devFaults(c.Tenants)...)
	if err := errors.Join(bus.PublishAll(ctx, created)...); err != nil {
		return false, err
	}
	if err := waitProvisioned(ctx, db, len(known)+len(created)); err != nil {
		return false, err
	}
	if err := errors.Join(bus.PublishAll(ctx, changed)...); err != nil {
		return false, err
	}
	for i := range c.Tenants {
		if devTrouble(i) == "held" && i%3 == 1 { // its first create stays a possible orphan
			_, err := worker.Recreate(ctx, db, devTenant(i))
			if err != nil && !errors.Is(err, repo.ErrNotHeld) {
				return false, err
			}
		}
	}
	for range 2 { // the second time, a tenant's totals went down
		if err := devSync(ctx, db, bus); err != nil {
			return false, err
		}
		s.simulator.ChangeUsage(s.config.worker.Workspaces[0].ID, func(u *simulator.Usage) {
			u.Corrections = map[string]int{devTenant(0): 1}
		})
	}
	a.log.Info("added sample tenants", "tenants", len(created))
	return true, nil
}

// events returns the events that create the tenants that are not known, and those that follow.
func (c *devCmd) events(known map[string]bool) (created, changed []events.Outgoing) {
	event := func(eventType, data string) events.Outgoing {
		return events.Outgoing{ID: uuid.NewString(), Type: eventType, Data: []byte(data)}
	}
	for i := range c.Tenants {
		id := devTenant(i)
		if known[id] {
			continue
		}
		data := fmt.Sprintf(`{"tenant_id":%q,"name":%q}`, id, devName(i))
		created = append(created, event(events.TypeTenantCreated, data))
		if change := devTrouble(i); strings.HasPrefix(change, "tenant.") {
			changed = append(changed, event(change, fmt.Sprintf(`{"tenant_id":%q}`, id)))
		}
	}
	if len(known) == 0 {
		for _, e := range devInvalid {
			changed = append(changed, event(e.eventType, e.data))
		}
	}
	return created, changed
}

// restoreSimulator gives the simulator, which forgets when it stops, its dashboards back. It
// returns the tenants.
func restoreSimulator(ctx context.Context, db *repo.DB, sim *simulator.Simulator) (map[string]bool, error) {
	known := map[string]bool{}
	list, err := db.Mappings(ctx, "", "", math.MaxInt32)
	for _, m := range list {
		known[m.TenantID] = true
		if m.DashboardID != "" {
			sim.Adopt(simulator.Dashboard{
				ID: m.DashboardID, WorkspaceID: m.WorkspaceID, TenantID: m.TenantID,
				Title: m.Title, Description: m.Description, CreatedAt: m.CreatedAt.Time,
			})
		}
	}
	return known, err
}

// waitProvisioned waits until so many tenants exist and none is waiting for a dashboard.
func waitProvisioned(ctx context.Context, db *repo.DB, tenants int) error {
	err := poll(ctx, 100*time.Millisecond, func() (bool, error) {
		s, err := db.Stats(ctx)
		all := 0
		for _, n := range s.Tenants {
			all += n
		}
		return all >= tenants && s.Tenants[repo.Pending]+s.Tenants[repo.Creating] == 0, err
	})
	if err != nil {
		return fmt.Errorf("wait for %d tenants: %w", tenants, err)
	}
	return nil
}

// devSync has the usage of devMonths synced and waits for it.
func devSync(ctx context.Context, db *repo.DB, bus *events.Bus) error {
	now := time.Now().UTC()
	first := time.Date(now.Year(), now.Month()-devMonths+1, 1, 0, 0, 0, 0, time.UTC)
	months := map[string]string{"from_period": first.Format("2006-01"), "to_period": now.Format("2006-01")}
	e, err := worker.NewEvent(events.TypeUsageSync, months, now)
	if err != nil {
		return err
	}
	if _, err := bus.Publish(ctx, e); err != nil {
		return err
	}
	err = poll(ctx, 100*time.Millisecond, func() (bool, error) {
		runs, err := db.Runs(ctx, e.ID, 1)
		return len(runs) > 0 && runs[0].Status != repo.RunRunning, err
	})
	if err != nil {
		return fmt.Errorf("wait for a usage run: %w", err)
	}
	return nil
}
