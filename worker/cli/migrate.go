package cli

import (
	"fmt"

	"papermap-worker/repo"
)

// migrateCmd changes the database before a new version is started, where DATABASE_MIGRATE is false;
// else serve does so itself.
type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" default:"1" help:"Apply the missing migrations."`
	Status migrateStatusCmd `cmd:"" help:"List the migrations."`
}

// migrateUpCmd creates a database that does not exist yet.
type migrateUpCmd struct{}

func (migrateUpCmd) Run(a *app) error {
	address, err := a.databaseURL()
	if err != nil {
		return err
	}
	db, err := a.openDatabase(address)
	if err != nil {
		return err
	}
	applied, err := db.MigrateWhenFree(a.ctx, func(waits bool) { logMigrationWait(a.log, waits) })
	for _, name := range applied {
		fmt.Fprintln(a.stdout, "applied", name)
	}
	if err == nil && len(applied) == 0 {
		fmt.Fprintln(a.stdout, "the database is up to date")
	}
	return err
}

// migrateStatusCmd lists this program's migrations, oldest first, and which were applied. It changes
// nothing, and creates no file.
type migrateStatusCmd struct{ jsonFlag }

func (c migrateStatusCmd) Run(a *app) error {
	address, err := a.databaseURL()
	if err != nil {
		return err
	}
	list, err := repo.NoMigrations(address)
	if repo.Exists(address) == nil {
		var db *repo.DB
		if db, err = a.openDatabase(address); err == nil {
			list, err = db.Migrations(a.ctx)
		}
	}
	if err != nil {
		return err
	}
	rows := table{{"VERSION", "NAME", "APPLIED"}}
	for _, m := range list {
		rows.add(m.Version, m.Name, map[bool]string{true: "yes", false: "no"}[m.Applied])
	}
	return c.print(a.stdout, list, rows)
}
