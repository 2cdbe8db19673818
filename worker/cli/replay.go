package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// replayCmd is the second half of restoring a backup; docs/operations.md has the first.
type replayCmd struct {
	Since  timeOrAgo `required:"" help:"Time before the backup: RFC 3339, or a time ago such as 2h."`
	DryRun bool      `help:"Count, and change nothing."`
	confirmFlag
	natsSettings `group:"NATS"`
}

// Run brings a database that was restored from an older backup up to the stream. First it records
// the dashboards of the stream's events, so that they are not created a second time; then it
// publishes the tenants' events again. State follows from the events' own times, so a second
// replay, or one of events that are in the backup, changes nothing.
func (c *replayCmd) Run(a *app, db *repo.DB, bus *events.Bus) error {
	state, err := scanState(a.ctx, bus, c.Since.Time)
	if err != nil {
		return err
	}
	unknown, err := state.restore(a.ctx, db, true)
	if err != nil {
		return err
	}
	if c.DryRun {
		fmt.Fprintf(a.stdout, "%s would be recorded and %s published again\n",
			count(unknown, "dashboard"), count(state.events, "event"))
		return nil
	}
	question := fmt.Sprintf("Record %s and publish %s again?", count(unknown, "dashboard"),
		count(state.events, "event"))
	if err := c.confirm(a, question); err != nil {
		return err
	}
	e := repo.AuditEntry{Action: worker.ActionReplay, Detail: "since " + c.Since.UTC().Format(time.RFC3339)}
	return worker.Audit(a.ctx, e, db.Audit, func() error { return c.replay(a, db, bus, state) })
}

// replay changes the database, then publishes.
func (c *replayCmd) replay(a *app, db *repo.DB, bus *events.Bus, state *streamState) error {
	unknown, err := state.restore(a.ctx, db, false)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "recorded %s that the database did not know\n", count(unknown, "dashboard"))
	published, tooLarge := 0, 0
	err = bus.ScanSince(a.ctx, c.Since.Time, func(p events.StoredEvent) error {
		if p.Dashboard != nil {
			return nil
		}
		switch err := bus.Republish(a.ctx, p); {
		case errors.Is(err, events.ErrTooLarge):
			tooLarge++
			fmt.Fprintf(a.stdout, "not published: %s %s, message %d of the stream: %v\n",
				p.Type, p.ID, p.Raw.Sequence, err)
			return nil
		case err != nil:
			return fmt.Errorf("publish again, after %d of %d events: %w", published, state.events, err)
		}
		published++
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "published %s again\n", count(published, "event"))
	if tooLarge > 0 {
		return fmt.Errorf("%d events are too large to be published again with their identity: "+
			"publish them from their source", tooLarge)
	}
	return nil
}

// adoption is a dashboard that a tenant.created names.
type adoption struct{ tenantID, dashboardID string }

// streamState is what the events of the stream say about tenants.
type streamState struct {
	events     int                         // that a worker consumes
	dashboards map[string][]repo.Dashboard // by tenant, in the stream's order
	changes    map[string][]repo.Change    // of access, by tenant, in the stream's order
}

// scanState reads the stream from a time on. Dashboards are those that workers announced in it, so
// they are known also where the database is older.
func scanState(ctx context.Context, bus *events.Bus, since time.Time) (*streamState, error) {
	s := &streamState{dashboards: map[string][]repo.Dashboard{}, changes: map[string][]repo.Change{}}
	created := map[string]time.Time{} // the newest tenant.created so far, by tenant
	adopted := map[adoption]bool{}
	seen := map[string]bool{} // ids of dashboards' events: a late copy is not the newest
	return s, bus.ScanSince(ctx, since, func(e events.StoredEvent) error {
		if d := e.Dashboard; d != nil {
			if seen[e.ID] {
				return nil
			}
			seen[e.ID] = true
			s.dashboards[d.TenantID] = append(s.dashboards[d.TenantID], repo.Dashboard{
				TenantID: d.TenantID, WorkspaceID: d.WorkspaceID, ID: d.DashboardID, Title: d.Title,
				CreatedEvent: created[d.TenantID], SetAt: e.Time,
				Adopted: adopted[adoption{d.TenantID, d.DashboardID}],
			})
			return nil
		}
		switch data := e.Data.(type) {
		case events.TenantCreated:
			if data.DashboardID != "" {
				adopted[adoption{data.TenantID, data.DashboardID}] = true
			}
			if e.Time.After(created[data.TenantID]) {
				created[data.TenantID] = e.Time
			}
		case events.TenantChange:
			to, _ := worker.AccessStatus(e.Type)
			s.changes[data.TenantID] = append(s.changes[data.TenantID],
				repo.Change{TenantID: data.TenantID, To: to, EventTime: e.Time})
		}
		s.events++
		return nil
	})
}

// restore records the dashboards that the database does not know, and returns how many; with dryRun
// it only counts. Those that a tenant had before its newest are recorded, too, or an event that was
// refused because of them could be accepted when it is published again.
func (s *streamState) restore(ctx context.Context, db *repo.DB, dryRun bool) (unknown int, err error) {
	for tenantID, list := range s.dashboards {
		var missing []repo.Dashboard
		for _, d := range list {
			known, err := db.KnowsDashboard(ctx, d)
			if err != nil {
				return unknown, err
			}
			if !known {
				missing = append(missing, d)
			}
		}
		unknown += len(missing)
		if dryRun || len(missing) == 0 {
			continue
		}
		// Changes come first, or a tenant that was suspended since would get tokens until its event
		// is back.
		for _, c := range s.changes[tenantID] {
			c.WorkspaceID = missing[0].WorkspaceID
			if _, err := db.Change(ctx, c); err != nil {
				return unknown, err
			}
		}
		for _, d := range missing {
			if err := db.Restore(ctx, d); err != nil {
				return unknown, err
			}
		}
	}
	return unknown, nil
}
