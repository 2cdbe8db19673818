package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/term"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

type usageCmd struct {
	Show   usageShowCmd   `cmd:"" help:"Show tenants' usage by month."`
	Export usageExportCmd `cmd:"" help:"Write all of it, for programs."`
	Runs   usageRunsCmd   `cmd:"" help:"List the runs that synced it, the newest first."`
	Run    usageRunCmd    `cmd:"" help:"Show one run, the rows that it rejected and the totals that went down."`
}

// usageFilter is what selects usage on a command line.
type usageFilter struct {
	TenantID    string `name:"tenant" help:"Only this tenant."`
	WorkspaceID string `help:"Only this workspace."`
	FromPeriod  string `name:"from" help:"First month, YYYY-MM."`
	ToPeriod    string `name:"to" help:"Last month, YYYY-MM."`
}

func (f usageFilter) parse() (repo.UsageFilter, error) {
	for name, period := range map[string]string{"--from": f.FromPeriod, "--to": f.ToPeriod} {
		if period == "" {
			continue
		}
		if err := events.ValidatePeriod(period); err != nil {
			return repo.UsageFilter{}, &usageError{fmt.Sprintf("%s: %v", name, err)}
		}
	}
	if f.FromPeriod != "" && f.ToPeriod != "" && f.FromPeriod > f.ToPeriod {
		return repo.UsageFilter{}, &usageError{fmt.Sprintf("--from %s is after --to %s", f.FromPeriod, f.ToPeriod)}
	}
	return repo.UsageFilter{WorkspaceID: f.WorkspaceID, TenantID: f.TenantID, FromPeriod: f.FromPeriod, ToPeriod: f.ToPeriod}, nil
}

type usageShowCmd struct {
	usageFilter
	Limit  int    `default:"1000" help:"At most so many rows."`
	Format string `default:"table" enum:"table,csv,json" help:"table, csv or json."`
	JSON   bool   `help:"The same as --format json."`
}

func (c *usageShowCmd) Run(a *app) error {
	if err := atLeastOne(c.Limit); err != nil {
		return err
	}
	filter, err := c.usageFilter.parse()
	if err != nil {
		return err
	}
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	list, total, err := db.Usage(a.ctx, filter, 0, c.Limit)
	if err != nil {
		return err
	}
	each := func(do func(repo.Usage) error) error {
		for _, u := range list {
			if err := do(u); err != nil {
				return err
			}
		}
		return nil
	}
	switch {
	case c.JSON || c.Format == "json":
		return writeUsageJSON(a.stdout, each)
	case c.Format == "csv":
		return worker.WriteUsageCSV(a.stdout, each)
	case total == 0:
		fmt.Fprintln(a.stdout, "no such usage: `papermap-worker usage runs` lists what was synced, and `papermap-worker publish usage-sync --wait` syncs it")
		return nil
	}
	sumOf := "in all"
	if total > len(list) {
		sumOf = fmt.Sprintf("in these %d", len(list))
	}
	if err := usageTable(list, sumOf).print(a.stdout); err != nil {
		return err
	}
	if total > len(list) {
		fmt.Fprintf(a.stdout, "\n%d of %d rows: --limit shows more, usage export writes all\n", len(list), total)
	}
	return nil
}

const barWidth = 24

// usageTable draws a bar for each row's share of the largest credits shown.
func usageTable(list []repo.Usage, sumOf string) table {
	credits, most := make([]*big.Rat, len(list)), new(big.Rat)
	sum, requests := new(big.Rat), int64(0)
	for i, u := range list {
		credits[i], _ = new(big.Rat).SetString(u.Credits)
		if credits[i] == nil { // somebody else wrote it
			credits[i] = new(big.Rat)
		}
		sum.Add(sum, credits[i])
		requests += u.Requests
		if credits[i].Cmp(most) > 0 {
			most = credits[i]
		}
	}
	rows := table{{"TENANT", "WORKSPACE", "MONTH", "CREDITS", " ", "REQUESTS", "READ", "NOTE"}}
	for i, u := range list {
		share := 0.0
		if most.Sign() > 0 {
			share, _ = new(big.Rat).Quo(credits[i], most).Float64() // for a bar, not for money
		}
		rows = append(rows, []string{u.TenantID, u.WorkspaceID, u.Period, u.Credits, bar(share, barWidth), fmt.Sprint(u.Requests), shortTime(u.SyncedAt), usageNote(u)})
	}
	return append(rows, []string{sumOf, " ", " ", decimal(sum), " ", fmt.Sprint(requests), " ", " "})
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

// decimal writes a sum of decimals, which has at most as many digits behind the point as those have: 12.
func decimal(r *big.Rat) string {
	text := r.FloatString(12)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// bar draws a share of width cells, an eighth of a cell exactly.
func bar(share float64, width int) string {
	eighths := int(share*float64(width)*8 + 0.5)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return text + strings.Repeat(" ", width-len([]rune(text)))
}

type usageExportCmd struct {
	usageFilter
	Format string `default:"csv" enum:"csv,json,table" help:"csv, json, or table."`
}

// Run writes row by row, however many there are.
func (c *usageExportCmd) Run(a *app) error {
	filter, err := c.usageFilter.parse()
	if err != nil {
		return err
	}
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	each := func(do func(repo.Usage) error) error { return db.EachUsage(a.ctx, filter, do) }
	out := bufio.NewWriterSize(a.stdout, 1<<16)
	switch c.Format {
	case "json":
		err = writeUsageJSON(out, each)
	case "table":
		var list []repo.Usage
		if err = each(func(u repo.Usage) error { list = append(list, u); return nil }); err == nil {
			err = usageTable(list, "in all").print(out)
		}
	default:
		err = worker.WriteUsageCSV(out, each)
	}
	return errors.Join(err, out.Flush())
}

func writeUsageJSON(w io.Writer, each func(func(repo.Usage) error) error) error {
	separator := "[\n  "
	err := each(func(u repo.Usage) error {
		if _, err := io.WriteString(w, separator); err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		separator = ",\n  "
		if err := json.MarshalWrite(w, u); err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	end := "\n]\n"
	if separator == "[\n  " {
		end = "[]\n"
	}
	if _, err := io.WriteString(w, end); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

type usageRunsCmd struct {
	Limit int  `default:"20" help:"At most so many."`
	JSON  bool `help:"Print JSON."`
}

func (c *usageRunsCmd) Run(a *app) error {
	if err := atLeastOne(c.Limit); err != nil {
		return err
	}
	db, list, err := openRuns(a, "", c.Limit)
	if err != nil {
		return err
	}
	defer db.Close()
	if c.JSON {
		return printJSON(a.stdout, list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.stdout, "usage was never synced")
		return nil
	}
	rows := table{{"STARTED", "WORKSPACE", "TENANT", "MONTHS", "STATUS", "PAGES", "ROWS", "WRITTEN", "REJECTED", "WENT DOWN", "ID", "ERROR"}}
	for _, r := range list {
		rows = append(rows, []string{
			shortTime(r.StartedAt), r.WorkspaceID, cmp.Or(r.TenantID, "all"), r.FromPeriod + " to " + r.ToPeriod, string(r.Status), runPages(r),
			fmt.Sprint(r.Read), fmt.Sprint(r.Written), fmt.Sprint(r.Rejected), fmt.Sprint(r.Changed), r.ID, r.Error,
		})
	}
	return rows.print(a.stdout)
}

// openRuns opens the database, which the caller closes, and lists runs: the newest, or those of one event.
func openRuns(a *app, eventID string, limit int) (*repo.DB, []repo.Run, error) {
	db, err := openMigrated(a)
	if err != nil {
		return nil, nil, err
	}
	list, err := db.Runs(a.ctx, eventID, limit)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, list, nil
}

func runPages(r repo.Run) string {
	if r.Pages == 0 {
		return fmt.Sprint(r.NextPage - 1)
	}
	return fmt.Sprintf("%d of %d", r.NextPage-1, r.Pages)
}

type usageRunCmd struct {
	ID    string `arg:"" optional:"" help:"The run's id, or that of the event that asked for it; without one, the newest run."`
	Limit int    `default:"100" help:"At most so many rows of each kind."`
	JSON  bool   `help:"Print JSON."`
}

// runDetails is a run in JSON.
type runDetails struct {
	repo.Run
	Rejects []repo.RejectedRow `json:"rejects"`
	Changes []repo.UsageChange `json:"changes"`
}

func (c *usageRunCmd) Run(a *app) error {
	if err := atLeastOne(c.Limit); err != nil {
		return err
	}
	most := 1000 // workspaces, for each of which an event has a run
	if c.ID == "" {
		most = 1
	}
	db, list, err := openRuns(a, c.ID, most)
	if err != nil {
		return err
	}
	defer db.Close()
	if len(list) == 0 { // then it may be a run's id
		list = []repo.Run{{ID: c.ID}}
	}
	var all []runDetails
	for _, r := range list {
		var d runDetails
		if d.Run, d.Rejects, d.Changes, err = db.RunDetails(a.ctx, r.ID, c.Limit); errors.Is(err, repo.ErrNotFound) {
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

func (d runDetails) print(out io.Writer) error {
	fmt.Fprintf(out, "run %s of event %s\n%s\n", d.ID, d.EventID, runLine(d.Run))
	if len(d.Rejects) > 0 {
		rows := table{{"PAGE", "PLACE", "REJECTED BECAUSE", "AS IT CAME"}}
		for _, r := range d.Rejects {
			rows = append(rows, []string{fmt.Sprint(r.Page), fmt.Sprint(r.Place), r.Reason, r.Raw})
		}
		if err := rows.print(out); err != nil {
			return err
		}
	}
	if len(d.Changes) > 0 {
		rows := table{{"WENT DOWN", "MONTH", "CREDITS", "NOW", "REQUESTS", "NOW"}}
		for _, c := range d.Changes {
			rows = append(rows, []string{c.TenantID, c.Period, c.OldCredits, c.NewCredits, fmt.Sprint(c.OldRequests), fmt.Sprint(c.NewRequests)})
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
	return printable(strings.TrimSpace(fmt.Sprintf("%s, %s to %s: %s, %d rows, %d written, %d rejected, %d went down %s",
		of, r.FromPeriod, r.ToPeriod, r.Status, r.Read, r.Written, r.Rejected, r.Changed, r.Error)))
}

type publishUsageCmd struct {
	TenantID   string `help:"Sync one tenant only."`
	FromPeriod string `help:"First month, YYYY-MM."`
	ToPeriod   string `help:"Last month, YYYY-MM."`
	Wait       bool   `help:"Wait until it is done, with its progress, which is read from the database (DATABASE_URL)."`
	publishFlags
}

func (c *publishUsageCmd) Run(a *app) error {
	fields := map[string]string{"tenant_id": c.TenantID, "from_period": c.FromPeriod, "to_period": c.ToPeriod}
	if !c.Wait {
		return c.publish(a, events.TypeUsageSync, fields)
	}
	e, err := c.event(events.TypeUsageSync, fields)
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
	dead := make(chan events.DeadLetter, 1)
	stop, err := bus.OnDead(a.ctx, e.Type, func(d events.DeadLetter) {
		if d.EventID != e.ID {
			return
		}
		select {
		case dead <- d:
		default: // one is enough
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	if err := publish(a, bus, e); err != nil {
		return err
	}
	return waitForRuns(a.ctx, a.stdout, onTerminal(a.stdout), db, e.ID, dead)
}

func onTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

const clearLine = "\r\x1b[K"

// waitForRuns waits until all runs that an event asked for have ended, or the event itself has, as a dead letter. On a
// terminal it shows how far they are.
func waitForRuns(ctx context.Context, out io.Writer, terminal bool, db *repo.DB, eventID string, dead <-chan events.DeadLetter) error {
	show := func(line string) {
		if terminal {
			fmt.Fprint(out, clearLine+line)
		}
	}
	for {
		list, err := db.Runs(ctx, eventID, 1000)
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(slices.Clone(list), func(r repo.Run) bool { return r.Status != repo.Running })
		if len(list) > 0 && len(left) == 0 {
			show("")
			return printRuns(out, list)
		}
		switch {
		case len(left) > 0:
			show(progress(left[0])) // the newest: others wait for their turn
		case len(list) == 0:
			show("waits for a worker, or for another run of the workspace")
		}
		select {
		case d := <-dead:
			show("")
			return fmt.Errorf("the event became dead letter %d: %s: %s", d.Sequence, d.Code, d.Error)
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			show("")
			return fmt.Errorf("waiting for the usage run: %w; `papermap-worker usage runs` shows how far it is", ctx.Err())
		}
	}
}

// printRuns says what became of runs that have ended; its error, that they did not read all.
func printRuns(out io.Writer, list []repo.Run) error {
	failed := 0
	for _, r := range list {
		fmt.Fprintln(out, runLine(r))
		if r.Rejected+r.Changed > 0 {
			fmt.Fprintf(out, "`papermap-worker usage run %s` lists the rows that were rejected or went down\n", r.ID)
		}
		if r.Status == repo.RunFailed || r.Status == repo.Incomplete {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d runs did not read all", failed, len(list))
	}
	return nil
}

// progress is a run as one line of a terminal.
func progress(r repo.Run) string {
	switch {
	case r.Pass == 0:
		return r.WorkspaceID + "  waits for its turn"
	case r.Pages == 0:
		return strings.TrimSpace(fmt.Sprintf("%s  page %d  %d rows  %s", r.WorkspaceID, r.NextPage-1, r.Read, r.Error))
	}
	share := min(1, float64(r.NextPage-1)/float64(r.Pages))
	return strings.TrimSpace(fmt.Sprintf("%s  %s %3.0f %%  %d rows  %s", r.WorkspaceID, bar(share, barWidth), 100*share, r.Read, r.Error))
}
