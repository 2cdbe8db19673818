package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// publishCmd publishes what the services around the worker publish, to try things out and to
// repair. It checks an event as the worker would, before it is sent.
type publishCmd struct {
	TenantCreated   publishCreatedCmd `cmd:"" help:"Create a tenant's dashboard."`
	TenantSuspended publishChangeCmd  `cmd:"" help:"Refuse a tenant tokens."`
	TenantResumed   publishChangeCmd  `cmd:"" help:"Allow a tenant tokens again."`
	TenantDeleted   publishChangeCmd  `cmd:"" help:"Delete a tenant."`
	UsageSync       publishUsageCmd   `cmd:"" help:"Sync usage now."`
}

// publishFlags are those of every event.
type publishFlags struct {
	WorkspaceID  string `help:"Workspace. Default: the worker's default one; for usage-sync all."`
	EventID      string `help:"Event id. Default: a new one."`
	Wait         bool   `help:"Wait for the outcome, and exit with 1 if it failed."`
	httpSettings `group:"REST and console"`
	natsSettings `group:"NATS"`
}

// prepare returns an event in plain JSON, without the fields that are empty, and a connection to
// publish it on. It refuses an event that the worker would refuse.
func (f publishFlags) prepare(a *app, eventType string, fields map[string]string) (
	bus *events.Bus, e events.Outgoing, err error) {
	fields["workspace_id"] = f.WorkspaceID
	if e, err = worker.NewEvent(eventType, fields, time.Now()); err != nil {
		return nil, e, usageErrorf("the worker would refuse the event: %v", err)
	}
	e.ID = cmp.Or(f.EventID, e.ID)
	bus, err = f.connect(a)
	return bus, e, err
}

// publish is prepare and the function publish together, and waits if that was asked for.
func (f publishFlags) publish(a *app, eventType string, fields map[string]string) error {
	bus, e, err := f.prepare(a, eventType, fields)
	if err != nil {
		return err
	}
	if f.Wait {
		return f.follow(a, bus, e, func(w *waiting) error {
			if eventType == events.TypeUsageSync {
				return w.forRuns(a.ctx, a.stdout)
			}
			return w.forTenant(a.ctx, a.stdout, fields["tenant_id"])
		})
	}
	_, err = publish(a, bus, e)
	return err
}

// publish publishes an event and says so.
func publish(a *app, bus *events.Bus, e events.Outgoing) (bool, error) {
	ctx, cancel := context.WithTimeout(a.ctx, 10*time.Second)
	defer cancel()
	duplicate := false
	err := worker.Audit(ctx, worker.EventEntry(e), a.record, func() (err error) {
		duplicate, err = bus.Publish(ctx, e)
		return err
	})
	switch {
	case err != nil:
		return false, err
	case duplicate:
		fmt.Fprintf(a.stdout, "%s %s was published before; this copy was dropped\n", e.Type, e.ID)
	default:
		fmt.Fprintf(a.stdout, "published %s, event id %s\n", e.Type, e.ID)
	}
	return duplicate, nil
}

// publishCreatedCmd gives a tenant a dashboard, unless it has one.
type publishCreatedCmd struct {
	TenantID    string `arg:"" name:"tenant" help:"Tenant id."`
	Name        string `help:"Tenant name. The title is 'Dashboard - NAME'."`
	Title       string `help:"Title instead."`
	Description string `help:"Description of the dashboard."`
	CreatedBy   string `help:"Creator, for the records."`
	DashboardID string `help:"Papermap's dashboard, if the tenant has one already. Then --name is optional."`
	publishFlags
}

func (c *publishCreatedCmd) Validate() error {
	if c.Name == "" && c.DashboardID == "" {
		return errors.New("missing flags: --name=STRING, or --dashboard-id=STRING of a dashboard that exists")
	}
	return nil
}

func (c *publishCreatedCmd) Run(a *app) error {
	return c.publish(a, events.TypeTenantCreated, map[string]string{
		"tenant_id": c.TenantID, "name": c.Name, "title": c.Title, "description": c.Description,
		"created_by": c.CreatedBy, "dashboard_id": c.DashboardID,
	})
}

// publishChangeCmd is for the three events that change a tenant's access. They have the same
// fields; the type follows from the command's name.
type publishChangeCmd struct {
	TenantID string `arg:"" name:"tenant" help:"Tenant id."`
	Reason   string `help:"Reason, for the log."`
	publishFlags
}

func (c *publishChangeCmd) Run(a *app, k *kong.Context) error {
	eventType := strings.Replace(k.Selected().Name, "-", ".", 1)
	return c.publish(a, eventType, map[string]string{"tenant_id": c.TenantID, "reason": c.Reason})
}

// publishUsageCmd asks for a usage sync, of the previous and the current month unless others are
// given. With --wait, it follows the runs that a worker makes of it, and fails if one did not read
// all.
type publishUsageCmd struct {
	TenantID   string `help:"Tenant. Default: all."`
	FromPeriod string `help:"First month, YYYY-MM."`
	ToPeriod   string `help:"Last month, YYYY-MM."`
	publishFlags
}

func (c *publishUsageCmd) Run(a *app) error {
	fields := map[string]string{"tenant_id": c.TenantID, "from_period": c.FromPeriod, "to_period": c.ToPeriod}
	return c.publish(a, events.TypeUsageSync, fields)
}

// forRuns waits until all runs of the event have ended, and prints their results. On a terminal it
// shows their progress.
func (w *waiting) forRuns(ctx context.Context, out io.Writer) error {
	var list []repo.Run
	err := poll(ctx, 200*time.Millisecond, func() (done bool, err error) {
		if err := w.died(); err != nil {
			return false, err
		}
		if list, err = w.db.Runs(ctx, w.event.ID, 1000); err != nil {
			return false, err
		}
		running := slices.IndexFunc(list, func(r repo.Run) bool { return r.Status == repo.RunRunning })
		switch reason := w.paused(); {
		case len(list) > 0 && running < 0:
			return true, nil
		case reason != "":
			w.notes.say("waiting: " + printable(reason))
		case len(list) == 0:
			w.notes.say("waiting for a worker, or for another run of the workspace (Ctrl-C stops waiting)")
		case w.notes.terminal:
			w.notes.say(progress(list[running])) // the newest: others wait for their turn
		default:
			w.notes.say(strings.TrimSpace("waiting: workspace " + list[running].WorkspaceID + " is read " +
				printable(list[running].Error)))
		}
		return false, nil
	})
	if w.notes.terminal {
		w.notes.say("")
	}
	if ctx.Err() != nil && err != nil {
		return &interruptedError{"the run continues; `papermap-worker usage runs` shows its progress"}
	}
	if err != nil {
		return err
	}
	return printRuns(out, list)
}

// printRuns prints the results of runs that have ended. It returns an error if some did not read
// all.
func printRuns(out io.Writer, list []repo.Run) error {
	failed := 0
	for _, r := range list {
		fmt.Fprintln(out, runLine(r))
		if r.Rejected+r.Changed > 0 {
			fmt.Fprintf(out, "`papermap-worker usage run %s` lists rejected rows and lower totals\n", r.ID)
		}
		if r.Status == repo.RunFailed || r.Status == repo.RunIncomplete {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %s did not read all", failed, count(len(list), "run"))
	}
	return nil
}

// progress is a run as one line of a terminal.
func progress(r repo.Run) string {
	switch {
	case r.Pass == 0:
		return r.WorkspaceID + "  waiting for its turn"
	case r.Pages == 0:
		text := fmt.Sprintf("%s  page %d  %s  %s", r.WorkspaceID, r.NextPage-1, count(r.Read, "row"), r.Error)
		return strings.TrimSpace(text)
	}
	share := min(1, float64(r.NextPage-1)/float64(r.Pages))
	done := fmt.Sprintf("%s %3.0f %%", bar(share), 100*share)
	return strings.TrimSpace(fmt.Sprintf("%s  %s  %s  %s",
		r.WorkspaceID, done, count(r.Read, "row"), r.Error))
}

// clearLine moves to the start of a terminal's line and clears it.
const clearLine = "\r\x1b[K"
