package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// importCmd gives dashboards to the tenants of a file, which existed before the worker. It first reads
// the whole file and plans, then publishes tenant.created for the rows that would change something,
// and follows each to its end. Another import of the same file, at any time, repeats nothing: what to
// do about a row is decided by what the database has.
type importCmd struct {
	File            string `arg:"" help:"CSV with a header line, or JSON Lines; -: standard input."`
	InFlight        int    `default:"16" help:"Events that are published and not finished, at most."`
	DryRun          bool   `help:"Print the plan, and publish nothing."`
	Yes             bool   `help:"Do not ask."`
	JSON            bool   `help:"Print a JSON object for each row."`
	Report          string `placeholder:"FILE" help:"CSV of the rows to be corrected, to be imported again."`
	Missing         bool   `help:"Also list the tenants that the worker has and the file lacks."`
	RecreateDeleted bool   `help:"Give deleted tenants of the file a dashboard again."`
	natsSettings    `group:"NATS"`
	httpSettings    `group:"Worker"`
}

// importMemory is what Go's runtime tries to stay below. The ids of a million rows are most of it.
const importMemory = 56 << 20

func (c *importCmd) Validate() error {
	if c.InFlight < 1 || c.InFlight > 1000 {
		return errors.New("--in-flight: use 1 to 1000")
	}
	return nil
}

func (c *importCmd) Run(a *app, db *repo.DB) error {
	debug.SetMemoryLimit(importMemory)
	file, err := openImport(c.File, os.Stdin)
	if err != nil {
		return err
	}
	defer file.close()
	p, err := newPlanner(a.ctx, db, c.RecreateDeleted)
	if err != nil {
		return err
	}
	out, err := newImportOutput(a.stdout, c.JSON, c.Report)
	if err != nil {
		return err
	}
	defer out.close()
	plan, err := c.plan(a.ctx, file, p, out)
	if err != nil {
		return c.interrupted(a, err, nil)
	}
	if !c.JSON {
		if err := plan.print(a.stdout); err != nil {
			return err
		}
	}
	if c.DryRun {
		if err := out.end("Dry run"); err != nil {
			return err
		}
		return unlessDone(out.bad(), out.rows, "would not be imported")
	}
	if err := c.confirm(a, plan); err != nil {
		return err
	}
	r := newImportRun(a, c, p, out, plan)
	defer r.close()
	if err := r.run(file); err != nil {
		return c.interrupted(a, err, out)
	}
	if err := out.end("Done"); err != nil {
		return err
	}
	return unlessDone(out.bad(), out.rows, "were not imported")
}

// interrupted says what is left when the import was broken off.
func (c *importCmd) interrupted(a *app, err error, out *importOutput) error {
	switch {
	case a.ctx.Err() == nil && out == nil:
		return err
	case a.ctx.Err() == nil:
		return fmt.Errorf("after %s: %w; run it again: it repeats nothing", count(out.rows, "row"), err)
	case out == nil:
		return errors.New("interrupted: nothing was published")
	}
	return fmt.Errorf("interrupted after %s: the worker finishes what was published; "+
		"run it again: it repeats nothing", count(out.rows, "row"))
}

func unlessDone(bad, rows int, what string) error {
	if bad > 0 {
		return fmt.Errorf("%d of %d rows %s", bad, rows, what)
	}
	return nil
}

// plan reads the whole file. With --dry-run its results go to out.
func (c *importCmd) plan(
	ctx context.Context, file *importFile, p *planner, out *importOutput,
) (*importPlan, error) {
	plan := newImportPlan()
	ids, err := file.rows(func(rows []importRow) error {
		facts, err := p.read(ctx, rows)
		if err != nil {
			return err
		}
		for i := range rows {
			v := p.judge(&rows[i], facts)
			plan.add(v)
			if c.DryRun {
				if err := out.add(&rows[i], v.importResult); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil && c.Missing {
		err = listMissing(ctx, p.db, ids, out)
	}
	return plan, err
}

// listMissing lists the tenants that are not deleted and not in the file.
func listMissing(ctx context.Context, db *repo.DB, ids *importIDs, out *importOutput) error {
	missing, after := 0, ""
	for {
		list, err := db.Mappings(ctx, "", after, importChunk)
		if err != nil {
			return err
		}
		for _, m := range list {
			after = m.TenantID
			if m.Status == repo.Deleted || ids.has(m.TenantID) {
				continue
			}
			missing++
			if err := out.missing(m); err != nil {
				return err
			}
		}
		if len(list) < importChunk {
			break
		}
	}
	if out.json {
		return nil
	}
	_, err := fmt.Fprintf(out.out, "%d tenants of the worker are not in the file\n\n", missing)
	return err
}

// confirm asks whether to go on if a person started the command. The question goes to the terminal
// itself, because the input or the output can be a file.
func (c *importCmd) confirm(a *app, plan *importPlan) error {
	if c.Yes || plan.publishes == 0 || !onTerminal(a.stdout) && !onTerminal(os.Stdin) {
		return nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("ask whether to go on: %w; use --yes", err)
	}
	question := fmt.Sprintf("Publish %s of tenant.created, %d to adopt a dashboard? [y/N] ",
		count(plan.publishes, "event"), plan.adopts)
	return ask(a.ctx, tty, question)
}

// ask returns nil if the answer is yes. It leaves the terminal open if the context ends first.
func ask(ctx context.Context, tty io.ReadWriter, question string) error {
	if _, err := io.WriteString(tty, question); err != nil {
		return fmt.Errorf("ask whether to go on: %w", err)
	}
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(tty).ReadString('\n')
		answer <- line
	}()
	select {
	case <-ctx.Done():
		return errors.New("interrupted: nothing was published")
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		return errors.New("not confirmed: nothing was published")
	}
}

// checkReplicas refuses to have dashboards adopted while a worker runs that would create another
// instead.
func checkReplicas(ctx context.Context, bus *events.Bus) error {
	replicas, err := bus.Replicas(ctx)
	if err != nil {
		return err
	}
	var old []string
	for _, r := range replicas {
		if !r.Adopts {
			old = append(old, fmt.Sprintf("%s (version %s)", printable(r.ID), printable(r.Version)))
		}
	}
	if len(old) == 0 {
		return nil
	}
	return fmt.Errorf("these workers do not know dashboard_id and would create a dashboard for each row: "+
		"%s; upgrade them first", strings.Join(old, ", "))
}
