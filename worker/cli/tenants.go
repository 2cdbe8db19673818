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

	"papermap-worker/repo"
	"papermap-worker/worker"
)

// tenantsCmd is about the mappings of tenants to dashboards, as the database has them.
type tenantsCmd struct {
	List    tenantsListCmd    `cmd:"" help:"List tenants."`
	Show    tenantsShowCmd    `cmd:"" help:"Explain why a tenant has a dashboard or not, and what to do."`
	Resolve tenantsResolveCmd `cmd:"" help:"Settle a held tenant, or replace a wrong dashboard."`
}

// tenantsListCmd lists mappings in the order of tenant ids, a page at a time.
type tenantsListCmd struct {
	Status status `help:"pending, creating, active, held, failed, suspended or deleted."`
	Search string `help:"How the tenant id or the name begins."`
	After  string `help:"Tenant id to start after."`
	Limit  limit  `default:"1000" help:"Maximum number."`
	jsonFlag
}

func (c *tenantsListCmd) Run(a *app, db *repo.DB) error {
	list, err := c.list(a.ctx, db)
	if err != nil {
		return err
	}
	rows := table{{"TENANT", "STATUS", "DASHBOARD", "WORKSPACE", "TITLE", "UPDATED", "ERROR"}}
	for _, m := range list {
		updated := shortTime(m.UpdatedAt)
		rows.add(m.TenantID, m.Status, m.DashboardID, m.WorkspaceID, m.Title, updated, m.FailedError)
	}
	if len(list) == int(c.Limit) && !c.JSON {
		defer fmt.Fprintf(a.stderr, "\nThere may be more: --after %q\n", list[len(list)-1].TenantID)
	}
	return c.print(a.stdout, list, rows)
}

// list returns the tenants, in the order of their ids.
func (c *tenantsListCmd) list(ctx context.Context, db *repo.DB) ([]repo.Mapping, error) {
	if c.Search == "" {
		return db.Mappings(ctx, repo.Status(c.Status), c.After, int(c.Limit))
	}
	byID, err := db.Search(ctx, repo.Search{Status: repo.Status(c.Status), TenantID: c.Search},
		repo.Cursor{After: c.After, Limit: int(c.Limit)})
	if err != nil {
		return nil, err
	}
	list, after := byID, ""
	for { // names are in another order, so all that begin so are read
		byName, err := db.Search(ctx, repo.Search{Status: repo.Status(c.Status), Name: c.Search},
			repo.Cursor{After: after, Limit: searchPage})
		if err != nil {
			return nil, err
		}
		for _, m := range byName {
			if m.TenantID > c.After {
				list = append(list, m)
			}
		}
		if len(byName) < searchPage {
			break
		}
		after = byName[len(byName)-1].TenantID
	}
	slices.SortFunc(list, func(a, b repo.Mapping) int { return strings.Compare(a.TenantID, b.TenantID) })
	list = slices.CompactFunc(list, func(a, b repo.Mapping) bool { return a.TenantID == b.TenantID })
	return list[:min(len(list), int(c.Limit))], nil
}

// searchPage is how many tenants are read at a time.
const searchPage = 1000

// tenantsShowCmd answers why a tenant has no dashboard: in its first line, with what to do in the
// next, then with all that happened to the tenant.
type tenantsShowCmd struct {
	TenantID     string `arg:"" name:"tenant" help:"Tenant id."`
	JSON         bool   `help:"Print JSON."`
	natsSettings `group:"NATS"`
}

// Run prints a tenant's report. Without NATS it lacks the events and dead letters, and says so.
func (c *tenantsShowCmd) Run(a *app, db *repo.DB) error {
	bus, unreachable := c.connect(a)
	if wrong := (*usageError)(nil); errors.As(unreachable, &wrong) {
		return unreachable
	}
	facts, err := worker.LoadFacts(a.ctx, db, bus, c.TenantID)
	if unreachable != nil {
		missing := fmt.Sprintf("the stream's events and the dead letters: %v", unreachable)
		facts.LeftOut = append(facts.LeftOut, missing)
	}
	switch {
	case errors.Is(err, repo.ErrNotFound) && len(facts.LeftOut) > 0:
		missing := strings.Join(facts.LeftOut, "; ")
		return fmt.Errorf("%w What was left out: %s", unknownTenant(c.TenantID), missing)
	case errors.Is(err, repo.ErrNotFound):
		return unknownTenant(c.TenantID)
	case err != nil:
		return err
	case c.JSON:
		return printJSON(a.stdout, facts.Report(time.Now()))
	}
	return printReport(a.stdout, facts.Report(time.Now()))
}

// printReport prints a report for people; all texts in it may come from others.
func printReport(w io.Writer, s worker.TenantReport) error {
	printText(w, printable(s.Summary))
	for _, line := range s.Next {
		printText(w, "→ "+printable(line))
	}
	fmt.Fprintln(w)
	if s.Known {
		rows := table{
			{"tenant", s.TenantID}, {"status", string(s.Status)}, {"workspace", s.WorkspaceID},
			{"dashboard", s.DashboardID}, {"title", s.Title}, {"generation", fmt.Sprint(s.Generation)},
			{"created", shortTime(s.CreatedAt)}, {"updated", shortTime(s.UpdatedAt)},
		}
		if s.FailedError != "" {
			rows.add("last error", s.FailedError)
		}
		if err := rows.print(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	rows := table{{"TIME", "KIND", "WHAT", "ID", "DETAIL"}}
	for _, m := range s.History {
		rows.add(m.Time.UTC().Format("2006-01-02 15:04:05.000Z"), m.Kind, m.What, m.ID, m.Detail)
	}
	if err := rows.print(w); err != nil {
		return err
	}
	for _, line := range s.LeftOut {
		fmt.Fprintf(w, "\nLeft out: %s\n", printable(line))
	}
	return nil
}

// tenantsResolveCmd decides about a tenant that is held, because whether Papermap made its
// dashboard is unknown (PAPERMAP_ON_AMBIGUOUS=hold), or corrects the dashboard of one that has a wrong
// one. The running worker takes it from there.
type tenantsResolveCmd struct {
	TenantID    string `arg:"" name:"tenant" help:"Tenant id."`
	DashboardID string `help:"Papermap's dashboard with the attempt's mark in its description."`
	Recreate    bool   `help:"Create another for a held tenant: Papermap has none with the mark."`
	Replace     bool   `help:"Replace the dashboard that the tenant has by the one of --dashboard-id."`
	confirmFlag
}

func (c *tenantsResolveCmd) Validate() error {
	switch {
	case (c.DashboardID != "") == c.Recreate:
		return errors.New("use one of --dashboard-id ID and --recreate: " +
			"look for the marks of `papermap-worker attempts list` in Papermap first")
	case c.Replace && c.Recreate:
		return errors.New("use --replace with --dashboard-id ID")
	}
	return nil
}

func (c *tenantsResolveCmd) Run(a *app, db *repo.DB) error {
	m, result, err := c.resolve(a, db)
	switch {
	case errors.Is(err, worker.ErrDashboardID):
		return usageErrorf("--dashboard-id: invalid dashboard id %q", printable(c.DashboardID))
	case errors.Is(err, repo.ErrNotFound):
		return unknownTenant(c.TenantID)
	case errors.Is(err, repo.ErrNotHeld) && c.DashboardID != "":
		return fmt.Errorf("%w; --replace corrects the dashboard of a tenant that has one", err)
	case err == nil:
		_, err = fmt.Fprintf(a.stdout, "tenant %s is %s%s\n", printable(m.TenantID), m.Status, result)
	}
	return err
}

// resolve does what the flags say, and says what follows from it.
func (c *tenantsResolveCmd) resolve(a *app, db *repo.DB) (m repo.Mapping, result string, err error) {
	if m, err = db.Mapping(a.ctx, c.TenantID); err != nil {
		return m, "", err
	}
	if c.Recreate {
		question := fmt.Sprintf("Create another dashboard for tenant %s?", c.TenantID)
		if err = c.confirm(a, question); err == nil {
			m, err = worker.Recreate(a.ctx, db, c.TenantID)
		}
		return m, "; the running worker creates another dashboard", err
	}
	with := " with dashboard " + printable(c.DashboardID)
	if c.Replace && m.DashboardID == c.DashboardID {
		return m, with + ", as before", nil
	}
	if err = c.confirmDashboard(a, db, m); err != nil {
		return m, "", err
	}
	if !c.Replace {
		m, err = worker.Resolve(a.ctx, db, c.TenantID, c.DashboardID)
		return m, with, err
	}
	old := m.DashboardID
	m, err = worker.Replace(a.ctx, db, c.TenantID, old, c.DashboardID)
	return m, fmt.Sprintf("%s instead of %s, which `papermap-worker attempts list` shows until you have "+
		"looked for it at Papermap", with, printable(old)), err
}

// confirmDashboard asks whether the tenant is to have the dashboard, and warns of an unusual id.
func (c *tenantsResolveCmd) confirmDashboard(a *app, db *repo.DB, m repo.Mapping) error {
	warning, err := worker.DashboardWarning(a.ctx, db, m, c.DashboardID)
	if err != nil {
		return err
	}
	if warning != "" {
		fmt.Fprintf(a.stderr, "warning: %s\n", printable(warning))
	}
	question := fmt.Sprintf("Give tenant %s dashboard %s?", c.TenantID, c.DashboardID)
	if c.Replace {
		question = fmt.Sprintf("Give tenant %s dashboard %s instead of %s?", c.TenantID, c.DashboardID,
			cmp.Or(m.DashboardID, "none"))
	}
	return c.confirm(a, question)
}

// unknownTenant is the error for a tenant without a row in the database.
func unknownTenant(id string) error {
	return fmt.Errorf("tenant %q is unknown: was tenant.created published for it?", id)
}
