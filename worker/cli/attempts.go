package cli

import (
	"errors"
	"fmt"
	"strings"

	"papermap-worker/repo"
	"papermap-worker/worker"
)

// attemptsCmd is about create requests: Papermap has no way to look up what became of one whose
// answer was lost, so a person looks for its mark in Papermap's page.
type attemptsCmd struct {
	List    attemptsListCmd    `cmd:"" help:"List create requests that may have created a dashboard."`
	Resolve attemptsResolveCmd `cmd:"" help:"Remove one from the list, after looking for its mark."`
	Settle  attemptsResolveCmd `cmd:"" hidden:""` // its former name
}

// attemptsResolveCmd is for an operator who has looked for the attempt's dashboard in Papermap, and
// deleted it there if it was not the tenant's.
type attemptsResolveCmd struct {
	ID string `arg:"" name:"attempt" help:"Attempt id, its mark, or the id of a replaced dashboard."`
}

func (c *attemptsResolveCmd) Run(a *app, db *repo.DB) error {
	err := worker.ResolveAttempt(a.ctx, db, strings.TrimPrefix(c.ID, "pmw:"))
	if errors.Is(err, repo.ErrNotFound) {
		return fmt.Errorf("attempt %q not found: see `papermap-worker attempts list`", c.ID)
	}
	if err == nil {
		fmt.Fprintf(a.stdout, "resolved attempt %s\n", c.ID)
	}
	return err
}

// attemptsListCmd lists possible orphans: attempts whose dashboard may exist without a tenant.
type attemptsListCmd struct{ jsonFlag }

func (c *attemptsListCmd) Run(a *app, db *repo.DB) error {
	list, err := db.PossibleOrphans(a.ctx)
	if err != nil {
		return err
	}
	rows := table{{
		"TENANT", "OUTCOME", "TITLE TO LOOK FOR", "MARK IN DESCRIPTION", "TIME", "DASHBOARD", "ERROR",
	}}
	for _, t := range list {
		rows.add(t.TenantID, t.Outcome, t.Title, t.Mark, shortTime(t.StartedAt), t.DashboardID, t.Error)
	}
	return c.printList(a.stdout, list, rows, "every create request has a known outcome")
}
