package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
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
		fmt.Fprintln(a.stdout, "no usage: `papermap-worker publish usage-sync --wait` syncs it, and `papermap-worker usage runs` lists what was done")
		return nil
	}
	if err := usageTable(list).print(a.stdout); err != nil {
		return err
	}
	if total > len(list) {
		fmt.Fprintf(a.stdout, "\n%d of %d rows: --limit shows more, usage export writes all\n", len(list), total)
	}
	return nil
}

const barWidth = 24

// usageTable draws a bar for each row's share of the largest credits shown.
func usageTable(list []repo.Usage) table {
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
	return append(rows, []string{"in all", " ", " ", decimal(sum), " ", fmt.Sprint(requests), " ", " "})
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
			err = usageTable(list).print(out)
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
	db, err := openMigrated(a)
	if err != nil {
		return err
	}
	defer db.Close()
	list, err := db.Runs(a.ctx, "", c.Limit)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.stdout, "usage was never synced")
		return nil
	}
	rows := table{{"STARTED", "WORKSPACE", "MONTHS", "STATUS", "PAGES", "ROWS", "WRITTEN", "REJECTED", "WENT DOWN", "ERROR"}}
	for _, r := range list {
		rows = append(rows, []string{
			shortTime(r.StartedAt), r.WorkspaceID, r.FromPeriod + " to " + r.ToPeriod, string(r.Status), runPages(r),
			fmt.Sprint(r.Read), fmt.Sprint(r.Written), fmt.Sprint(r.Rejected), fmt.Sprint(r.Changed), r.Error,
		})
	}
	return rows.print(a.stdout)
}

func runPages(r repo.Run) string {
	if r.Pages == 0 {
		return fmt.Sprint(r.NextPage - 1)
	}
	return fmt.Sprintf("%d of %d", r.NextPage-1, r.Pages)
}

// waitForRuns shows the progress of the runs that an event asked for until all have ended.
func waitForRuns(ctx context.Context, a *app, db *repo.DB, eventID string) error {
	file, ok := a.stdout.(*os.File)
	terminal := ok && term.IsTerminal(int(file.Fd()))
	for {
		list, err := db.Runs(ctx, eventID, 1000)
		if err != nil {
			return err
		}
		ended, failed := len(list) > 0, 0
		for _, r := range list {
			if terminal {
				fmt.Fprintf(a.stdout, "\r\x1b[K%s", progress(r))
			}
			switch r.Status {
			case repo.Running:
				ended = false
			case repo.RunFailed, repo.Incomplete:
				failed++
			}
		}
		if ended {
			if terminal {
				fmt.Fprint(a.stdout, "\r\x1b[K")
			}
			for _, r := range list {
				fmt.Fprintf(a.stdout, "workspace %s, %s to %s: %s, %d rows, %d written, %d rejected, %d went down %s\n",
					r.WorkspaceID, r.FromPeriod, r.ToPeriod, r.Status, r.Read, r.Written, r.Rejected, r.Changed, r.Error)
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d runs did not read all", failed, len(list))
			}
			return nil
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the usage run: %w; `papermap-worker usage runs` shows how far it is", err)
		}
	}
}

// progress is a run as one line of a terminal.
func progress(r repo.Run) string {
	if r.Pages == 0 {
		return fmt.Sprintf("%s  page %d  %d rows", r.WorkspaceID, r.NextPage-1, r.Read)
	}
	share := float64(r.NextPage-1) / float64(r.Pages)
	return fmt.Sprintf("%s  %s %3.0f %%  %d rows  %s", r.WorkspaceID, bar(share, barWidth), 100*share, r.Read, r.Error)
}
