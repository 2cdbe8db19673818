package cli

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/shopspring/decimal"

	"papermap-worker/repo"
	"papermap-worker/worker"
)

// usageCmd shows what usage syncs have written into the database. It does not ask Papermap.
type usageCmd struct {
	Show   usageShowCmd   `cmd:"" help:"Show usage by tenant and month."`
	Export usageExportCmd `cmd:"" help:"Export usage, for programs."`
	Runs   usageRunsCmd   `cmd:"" help:"List sync runs, newest first."`
	Run    usageRunCmd    `cmd:"" help:"Show a sync run: rejected rows, and totals that went down."`
	Budget usageBudgetCmd `cmd:"" help:"Show and set budgets, which announce usage that reaches them."`
}

// usageFilter selects usage.
type usageFilter struct {
	TenantID    string `name:"tenant" help:"Tenant."`
	WorkspaceID string `help:"Workspace."`
	From        month  `help:"First month, YYYY-MM."`
	To          month  `help:"Last month, YYYY-MM."`
}

func (f usageFilter) Validate() error {
	if f.From != "" && f.To != "" && f.From > f.To {
		return fmt.Errorf("--from %s is after --to %s", f.From, f.To)
	}
	return nil
}

func (f usageFilter) filter() repo.UsageFilter {
	return repo.UsageFilter{
		WorkspaceID: f.WorkspaceID, TenantID: f.TenantID, FromPeriod: string(f.From), ToPeriod: string(f.To),
	}
}

// usageShowCmd shows a page of usage, by workspace, tenant and month, with its sum.
type usageShowCmd struct {
	usageFilter
	Limit  limit  `default:"1000" help:"Maximum rows."`
	Format string `default:"table" enum:"table,csv,json" help:"table, csv or json."`
	JSON   bool   `help:"Same as --format json."`
}

func (c *usageShowCmd) Run(a *app, db *repo.DB) error {
	list, total, err := db.Usage(a.ctx, c.filter(), 0, int(c.Limit))
	if err != nil {
		return err
	}
	if c.JSON {
		c.Format = "json"
	}
	if c.Format == "table" && total == 0 {
		fmt.Fprintln(a.stderr, "no such usage: `papermap-worker usage runs` lists what was synced, and "+
			"`papermap-worker publish usage-sync --wait` syncs it")
		return nil
	}
	sumOf, rest := "in all", ""
	if total > len(list) {
		sumOf = fmt.Sprintf("in these %d", len(list))
		rest = fmt.Sprintf("\n%d of %s: use --limit, or usage export for all\n", len(list),
			count(total, "row"))
	}
	err = writeUsage(a.stdout, c.Format, sumOf, func(do func(repo.Usage) error) (err error) {
		for i := 0; i < len(list) && err == nil; i++ {
			err = do(list[i])
		}
		return err
	})
	if err == nil && c.Format == "table" {
		fmt.Fprint(a.stderr, rest)
	}
	return err
}

// usageExportCmd writes all usage that the filter selects, in constant memory but for a table.
type usageExportCmd struct {
	usageFilter
	Format string `default:"csv" enum:"csv,json,table" help:"csv, json, or table."`
}

// Run writes row by row, however many there are.
func (c *usageExportCmd) Run(a *app, db *repo.DB) error {
	out := bufio.NewWriterSize(a.stdout, 1<<16)
	err := writeUsage(out, c.Format, "in all", func(do func(repo.Usage) error) error {
		return db.EachUsage(a.ctx, c.filter(), do)
	})
	return errors.Join(err, out.Flush())
}

// writeUsage writes the rows that each passes to its argument. Only a table is kept in memory, to
// align it; its last row is the sum, under the name sumOf.
func writeUsage(w io.Writer, format, sumOf string, each func(func(repo.Usage) error) error) error {
	switch format {
	case "csv":
		return worker.WriteUsageCSV(w, each)
	case "json":
		out := jsontext.NewEncoder(w)
		if err := out.WriteToken(jsontext.BeginArray); err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		if err := each(func(u repo.Usage) error { return json.MarshalEncode(out, u) }); err != nil {
			return err // the array stays open: half an export must not look whole
		}
		return out.WriteToken(jsontext.EndArray)
	}
	var list []repo.Usage
	if err := each(func(u repo.Usage) error { list = append(list, u); return nil }); err != nil {
		return err
	}
	return usageTable(list, sumOf).print(w)
}

// usageTable draws a bar for each row's share of the largest credits shown.
func usageTable(list []repo.Usage, sumOf string) table {
	credits := make([]decimal.Decimal, len(list))
	var largest, sum decimal.Decimal
	requests := int64(0)
	for i, u := range list {
		credits[i], _ = decimal.NewFromString(u.Credits) // 0 for what another program wrote
		largest, sum = decimal.Max(largest, credits[i]), sum.Add(credits[i])
		requests += u.Requests
	}
	rows := table{{"TENANT", "WORKSPACE", "MONTH", "CREDITS", " ", "REQUESTS", "READ", "BUDGET", "NOTE"}}
	for i, u := range list {
		share := 0.0
		if largest.IsPositive() {
			share = credits[i].Div(largest).InexactFloat64()
		}
		rows.add(u.TenantID, u.WorkspaceID, u.Period, u.Credits, bar(share), u.Requests,
			shortTime(u.SyncedAt), budgetShare(u), usageNote(u))
	}
	rows.add(sumOf, " ", " ", sum, " ", requests, " ", " ", " ")
	return rows
}

func usageNote(u repo.Usage) string {
	switch {
	case u.Unknown:
		return "unknown tenant"
	case u.Unattributed:
		return "unattributed"
	}
	return " "
}

// usageRunsCmd lists runs of syncs. An event without a workspace has one for each.
type usageRunsCmd struct {
	Limit limit `default:"20" help:"Maximum number."`
	jsonFlag
}

func (c *usageRunsCmd) Run(a *app, db *repo.DB) error {
	list, err := db.Runs(a.ctx, "", int(c.Limit))
	if err != nil {
		return err
	}
	rows := table{{
		"STARTED", "WORKSPACE", "TENANT", "MONTHS", "STATUS", "PAGES", "ROWS", "WRITTEN", "REJECTED",
		"WENT DOWN", "ID", "ERROR",
	}}
	for _, r := range list {
		pages := fmt.Sprint(r.NextPage - 1)
		if r.Pages > 0 {
			pages += fmt.Sprint(" of ", r.Pages)
		}
		rows.add(shortTime(r.StartedAt), r.WorkspaceID, cmp.Or(r.TenantID, "all"),
			r.FromPeriod+" to "+r.ToPeriod, r.Status, pages, r.Read, r.Written, r.Rejected, r.Changed,
			r.ID, r.Error)
	}
	return c.printList(a.stdout, list, rows, "usage was never synced")
}

// usageRunCmd shows what was odd in a run: the raw rows that it rejected, and totals that became
// smaller.
type usageRunCmd struct {
	ID    string `arg:"" optional:"" help:"Id of the run or its event. Default: the newest run."`
	Limit limit  `default:"100" help:"Maximum rows of each kind."`
	jsonFlag
}

// runDetails is a run in JSON.
type runDetails struct {
	repo.Run
	Rejects []repo.RejectedRow `json:"rejects"`
	Changes []repo.UsageChange `json:"changes"`
}

func (c *usageRunCmd) Run(a *app, db *repo.DB) error {
	runs := 1000 // an event has a run for each workspace
	if c.ID == "" {
		runs = 1
	}
	list, err := db.Runs(a.ctx, c.ID, runs)
	if err != nil {
		return err
	}
	if len(list) == 0 { // then it may be a run's id
		list = []repo.Run{{ID: c.ID}}
	}
	var all []runDetails
	for _, r := range list {
		var d runDetails
		d.Run, d.Rejects, d.Changes, err = db.RunDetails(a.ctx, r.ID, int(c.Limit))
		if errors.Is(err, repo.ErrNotFound) {
			return errors.New("no such usage run: `papermap-worker usage runs` lists them")
		}
		if err != nil {
			return err
		}
		all = append(all, d)
	}
	if c.JSON {
		return printJSON(a.stdout, all)
	}
	for _, d := range all {
		if err := d.print(a.stdout); err != nil {
			return err
		}
	}
	return nil
}

// print leaves out the tables that would be empty.
func (d runDetails) print(out io.Writer) error {
	fmt.Fprintf(out, "run %s of event %s\n%s\n", d.ID, d.EventID, runLine(d.Run))
	if len(d.Rejects) > 0 {
		rows := table{{"PAGE", "PLACE", "REJECTED BECAUSE", "AS IT CAME"}}
		for _, r := range d.Rejects {
			rows.add(r.Page, r.Place, r.Reason, r.Raw)
		}
		if err := rows.print(out); err != nil {
			return err
		}
	}
	if len(d.Changes) > 0 {
		rows := table{{"WENT DOWN", "MONTH", "CREDITS", "NOW", "REQUESTS", "NOW"}}
		for _, c := range d.Changes {
			rows.add(c.TenantID, c.Period, c.OldCredits, c.NewCredits, c.OldRequests, c.NewRequests)
		}
		return rows.print(out)
	}
	return nil
}

// runLine is a run in a line.
func runLine(r repo.Run) string {
	of := "workspace " + r.WorkspaceID
	if r.TenantID != "" {
		of = "tenant " + r.TenantID + " of " + of
	}
	text := fmt.Sprintf("%s, %s to %s: %s, %s, %d written, %d rejected, %d went down %s",
		of, r.FromPeriod, r.ToPeriod, r.Status, count(r.Read, "row"), r.Written, r.Rejected,
		r.Changed, r.Error)
	return printable(strings.TrimSpace(text))
}
