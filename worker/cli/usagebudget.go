package cli

import (
	"errors"
	"fmt"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// usageBudgetCmd is about budgets, which say how many credits a tenant should use in a month.
type usageBudgetCmd struct {
	List  budgetListCmd  `cmd:"" help:"List budgets."`
	Set   budgetSetCmd   `cmd:"" help:"Set a tenant's budget, or '*' for each tenant without its own."`
	Unset budgetUnsetCmd `cmd:"" help:"Remove a budget."`
}

type budgetListCmd struct{ jsonFlag }

func (c *budgetListCmd) Run(a *app, db *repo.DB) error {
	list, err := db.Budgets(a.ctx)
	if err != nil {
		return err
	}
	rows := table{{"TENANT", "CREDITS", "THRESHOLDS"}}
	for _, b := range list {
		rows.add(b.TenantID, b.Credits, b.Thresholds)
	}
	return c.printList(a.stdout, list, rows, "no budgets: `papermap-worker usage budget set` sets one")
}

// budgetTenant is the tenant whose budget it is; * is not a tenant's id here.
type budgetTenant string

func (t budgetTenant) Validate() error { return events.ValidateTenantID(string(t)) }

type budgetSetCmd struct {
	TenantID   budgetTenant `arg:"" name:"tenant" help:"Tenant id, or '*'."`
	Credits    string       `required:"" help:"Credits per month and workspace. 0: no budget."`
	Thresholds string       `default:"80,100" help:"Percentages of the budget to announce."`
}

// budget checks the flags.
func (c *budgetSetCmd) budget() (repo.Budget, error) {
	thresholds, err := repo.ParsePercents(c.Thresholds)
	if err != nil {
		return repo.Budget{}, err
	}
	return repo.NewBudget(string(c.TenantID), c.Credits, thresholds)
}

func (c *budgetSetCmd) Validate() error {
	if c.Credits == "" {
		return nil // the parser says that it is missing
	}
	_, err := c.budget()
	return err
}

func (c *budgetSetCmd) Run(a *app, db *repo.DB) error {
	b, err := c.budget()
	if err != nil {
		return usageErrorf("%v", err)
	}
	if err := worker.SetBudget(a.ctx, db, b); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "the budget of %s is %s credits, thresholds %s\n",
		printable(b.TenantID), b.Credits, b.Thresholds)
	return err
}

type budgetUnsetCmd struct {
	TenantID budgetTenant `arg:"" name:"tenant" help:"Tenant id, or '*'."`
}

func (c *budgetUnsetCmd) Run(a *app, db *repo.DB) error {
	err := worker.UnsetBudget(a.ctx, db, string(c.TenantID))
	if errors.Is(err, repo.ErrNotFound) {
		return fmt.Errorf("%s has no budget of its own: `papermap-worker usage budget list` lists them",
			printable(string(c.TenantID)))
	}
	if err == nil {
		_, err = fmt.Fprintf(a.stdout, "%s no longer has a budget of its own\n",
			printable(string(c.TenantID)))
	}
	return err
}

// budgetShare is a row's share of the tenant's budget.
func budgetShare(u repo.Usage) string {
	if u.Budget == "" {
		return " "
	}
	return fmt.Sprintf("%d %% of %s", u.BudgetPercent(), u.Budget)
}
