package cli

import (
	"fmt"

	"papermap-worker/repo"
)

// backupCmd copies the database while workers run.
type backupCmd struct {
	File string `arg:"" help:"File to write. An existing file is replaced once the copy is checked."`
	jsonFlag
}

func (c *backupCmd) Run(a *app) error {
	address, err := a.databaseURL()
	if err != nil {
		return err
	}
	if err := repo.Exists(address); err != nil {
		return err
	}
	b, err := repo.WriteBackup(a.ctx, address, c.File)
	if err != nil {
		return err
	}
	return printBackup(a, c.jsonFlag, "backed up", c.File, b)
}

// restoreCheckCmd says whether a backup could be restored. It needs no setting.
type restoreCheckCmd struct {
	File string `arg:"" help:"Backup to check."`
	jsonFlag
}

func (c *restoreCheckCmd) Run(a *app) error {
	if err := a.parser().err(); err != nil {
		return err
	}
	b, err := repo.CheckBackup(a.ctx, c.File)
	if err != nil {
		return err
	}
	return printBackup(a, c.jsonFlag, "can be restored:", c.File, b)
}

func printBackup(a *app, f jsonFlag, done, file string, b repo.Backup) error {
	if f.JSON {
		return printJSON(a.stdout, b)
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s: %s, version %d, %s, %s, %s\n", done, printable(file), b.Engine,
		b.Version, count(b.Tenants, "tenant"), count(b.Attempts, "create request"),
		count(b.Usage, "usage row"))
	return err
}
