package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/repo"
	"papermap-worker/worker"
)

// auditCmd shows who did what, newest first.
type auditCmd struct {
	TenantID  string    `help:"Tenant."`
	Since     timeOrAgo `help:"Earliest time: RFC 3339, or a time ago such as 2h."`
	Limit     int       `help:"Maximum number. Default: 1000, and no limit with --json-lines."`
	JSONLines bool      `name:"json-lines" help:"Print JSON lines, for export."`
	jsonFlag
}

func (c *auditCmd) Validate() error {
	switch {
	case c.Limit < 0:
		return errors.New("--limit: use 1 or more")
	case c.JSON && c.JSONLines:
		return errors.New("use one of --json and --json-lines")
	}
	return nil
}

// auditPage is how many entries are read at a time.
const auditPage = 1000

func (c *auditCmd) Run(a *app, db *repo.DB) error {
	filter := repo.AuditFilter{TenantID: c.TenantID, Since: c.Since.Time}
	if c.JSONLines {
		return exportAudit(a, db, filter, c.Limit)
	}
	limit := c.Limit
	if limit == 0 {
		limit = auditPage
	}
	list, err := db.AuditLog(a.ctx, filter, limit)
	if err != nil {
		return err
	}
	rows := table{{"TIME", "ACTOR", "VIA", "ACTION", "TENANT", "EVENT ID", "DETAIL"}}
	for _, e := range list {
		rows.add(shortTime(e.At), e.Actor, e.Via, e.Action, e.TenantID, e.EventID, e.Detail)
	}
	return c.printList(a.stdout, list, rows, "no audit entries")
}

// exportAudit prints at most limit entries, one a line; 0: all.
func exportAudit(a *app, db *repo.DB, filter repo.AuditFilter, limit int) error {
	out := bufio.NewWriter(a.stdout)
	for left := limit; limit == 0 || left > 0; left -= auditPage {
		page := auditPage
		if limit > 0 {
			page = min(page, left)
		}
		list, err := db.AuditLog(a.ctx, filter, page)
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		for _, e := range list {
			if err := printLine(out, e); err != nil {
				return err
			}
		}
		if len(list) < page {
			break
		}
		filter.Before = list[len(list)-1].ID
	}
	return out.Flush()
}

func printLine(w io.Writer, v any) error {
	err := json.MarshalWrite(w, v)
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// operator is who runs the command.
func operator() worker.Actor {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	return worker.Actor{Via: worker.ViaCLI, Name: "cli:" + name}
}

// auditWait is how long a command that needs no database otherwise waits for it.
const auditWait = 2 * time.Second

// record writes an entry of the audit log for a command that needs no database otherwise. Where the
// database cannot be used, it warns once, and the command goes on.
func (a *app) record(ctx context.Context, list ...repo.AuditEntry) error {
	if a.unaudited {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, auditWait)
	defer cancel()
	type result struct {
		db  *repo.DB
		err error
	}
	done := make(chan result, 1)
	known := a.auditLog
	go func() { // a write that waits for another program's would not end with ctx
		db, err := known, error(nil)
		if db == nil {
			db, err = a.openAuditLog(ctx)
		}
		if err == nil {
			err = db.Audit(ctx, list...)
		}
		done <- result{db, err}
	}()
	var r result
	select {
	case r = <-done:
		if known == nil && r.db != nil {
			a.auditLog = r.db
			a.closers = append(a.closers, func() { _ = r.db.Close() })
		}
	case <-ctx.Done():
		go func() {
			if late := <-done; late.db != nil && known == nil {
				_ = late.db.Close()
			}
		}()
		r.err = fmt.Errorf("it did not answer within %v: %w", auditWait, ctx.Err())
	}
	if r.err != nil {
		a.unaudited = true
		a.log.Warn("the database cannot be used, so this is not recorded in the audit log", "error", r.err)
	}
	return nil
}

// openAuditLog opens the database, if it exists at this program's version.
func (a *app) openAuditLog(ctx context.Context) (*repo.DB, error) {
	address, err := a.databaseURL()
	if err == nil {
		err = repo.Exists(address)
	}
	if err != nil {
		return nil, err
	}
	db, err := repo.OpenLimited(ctx, address, repo.CommandConns)
	if err != nil {
		return nil, err
	}
	return db, db.CheckSchema(ctx)
}
