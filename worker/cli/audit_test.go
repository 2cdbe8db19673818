package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// notAudited are the commands that are in no audit log, and why.
var notAudited = map[string]string{
	"serve": "what the worker does by itself is nobody's action", "demo": "as serve", "dev": "as serve",
	"simulate":   "it is no part of the worker",
	"migrate up": "the database has its own list of migrations", "token": "a token has its line in the log",
	"migrate status": "it reads", "health": "it reads", "tenants list": "it reads",
	"tenants show": "it reads", "attempts list": "it reads", "dead list": "it reads",
	"dead show": "it reads", "audit": "it reads",
	"usage show": "it reads", "usage export": "it reads", "usage runs": "it reads", "usage run": "it reads",
	"restore-check": "it reads", "backup": "it reads the database", "help": "it prints",
	"usage budget list": "it reads", "completion": "it prints", "man": "it prints", "doctor": "it reads",
	"version": "it reads", "jwt": "it prints", "console-user": "it prints",
}

// auditedCommand is a command line, and what the audit log has of it.
type auditedCommand struct {
	line     string // ATTEMPT: an attempt's id; DASHBOARD: what was made for the tenant held
	action   string
	tenantID string
	event    bool // it is done by an event, or is about one
}

var auditedCommands = map[string]auditedCommand{
	"publish tenant-created":   {"publish tenant-created new --name New", "create", "new", true},
	"publish tenant-suspended": {"publish tenant-suspended new --reason unpaid", "suspend", "new", true},
	"publish tenant-resumed":   {"publish tenant-resumed new", "resume", "new", true},
	"publish tenant-deleted":   {"publish tenant-deleted new", "delete", "new", true},
	"publish usage-sync":       {"publish usage-sync --from-period 2026-01", "sync", "", true},
	"tenants resolve":          {"tenants resolve held --dashboard-id DASHBOARD", "resolve", "held", false},
	"attempts resolve":         {"attempts resolve pmw:ATTEMPT", "resolve-attempt", "again", false},
	"attempts settle":          {"attempts settle ATTEMPT", "resolve-attempt", "again", false},
	"dead replay":              {"dead replay 1", "replay-dead-letter", "broken", true},
	"dead discard":             {"dead discard 1", "discard-dead-letter", "broken", true},
	"replay":                   {"replay --since 1h", "replay", "", false},
	"import":                   {"import --yes IMPORT", "create", "imported", true},
	"usage budget set":         {"usage budget set * --credits 10", "budget-set", "*", false},
	"usage budget unset":       {"usage budget unset *", "budget-unset", "*", false},
}

// commands are the names of all commands that do something.
func commands(t *testing.T) (names []string) {
	t.Helper()
	var g grammar
	k := newKong(&g, kong.Name("papermap-worker"))
	for _, leaf := range k.Model.Leaves(false) {
		names = append(names, strings.TrimPrefix(leaf.FullPath(), "papermap-worker "))
	}
	return names
}

// auditWorld is a world whose tenant held is held, with one attempt of the tenant again that may
// have made a dashboard, and one dead letter.
func auditWorld(t *testing.T) *workertest.World {
	t.Helper()
	w := workertest.Start(t, workertest.Options{
		Faults: []string{"on=create tenant=held drop=after count=1",
			"on=create tenant=again drop=after count=1"},
		Config: func(c *worker.Config) { c.Hold, c.Workspaces = true, c.Workspaces[:1] },
	})
	w.Create("held")
	w.Create("again")
	w.Eventually(w.Are(repo.Held, "held", "again"))
	w.Publish(events.TypeTenantCreated, `{"tenant_id":"broken","name":"x","workspace_id":"none"}`)
	w.Eventually(func() error {
		list, err := w.Workers[0].Bus.DeadLetters(t.Context(), events.DeadFilter{}, 10)
		if err == nil && len(list) != 1 {
			err = fmt.Errorf("%d dead letters", len(list))
		}
		return err
	})
	setEnvironment(t, map[string]string{"NATS_URL": w.Bus.URL, "DATABASE_URL": w.Address})
	return w
}

// run runs a command and returns what it wrote to standard error.
func run(t *testing.T, args ...string) (stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if code := Run(Build{}, args, &out, &errs); code != 0 {
		t.Fatalf("%q exits with %d: %s%s", args, code, out.String(), errs.String())
	}
	return errs.String()
}

func TestAuditLogHasEveryCommandThatChangesSomething(t *testing.T) {
	me, err := user.Current()
	must(t, err)
	all := commands(t)
	for name := range notAudited {
		if !slices.Contains(all, name) {
			t.Errorf("there is no command %q", name)
		}
	}
	w := auditWorld(t)
	file := filepath.Join(t.TempDir(), "import.csv")
	must(t, os.WriteFile(file, []byte("tenant_id,name\nimported,Imported\n"), 0o600))
	before := int64(0)
	for _, name := range all {
		if notAudited[name] != "" {
			continue
		}
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			c, ok := auditedCommands[name]
			if !ok {
				t.Fatal("the audit log is not tested for this command")
			}
			if strings.HasPrefix(name, "dead ") { // its predecessor may have been replayed
				c.line = strings.Replace(c.line, "1", fmt.Sprint(newestDeadLetter(t, w)), 1)
			}
			line := strings.NewReplacer("ATTEMPT", w.Attempts("again")[0].ID,
				"DASHBOARD", w.Dashboards("held")[0].ID, "IMPORT", file).Replace(c.line)
			run(t, strings.Fields(line)...)
			list, err := w.DB.AuditLog(t.Context(), repo.AuditFilter{}, 1000)
			must(t, err)
			i := slices.IndexFunc(list, func(e repo.AuditEntry) bool { return e.ID == before })
			if i < 0 {
				i = len(list)
			}
			if i != 1 {
				t.Fatalf("%d new entries, want one: %+v", i, list[:i])
			}
			e := list[0]
			before = e.ID
			if e.Actor != "cli:"+me.Username || e.Via != "cli" || e.Action != c.action ||
				e.TenantID != c.tenantID || (e.EventID != "") != c.event {
				t.Errorf("%+v", e)
			}
		})
	}
}

// newestDeadLetter waits for a dead letter: a replayed event becomes another.
func newestDeadLetter(t *testing.T, w *workertest.World) (sequence uint64) {
	t.Helper()
	w.Eventually(func() error {
		list, err := w.Workers[0].Bus.DeadLetters(t.Context(), events.DeadFilter{}, 10)
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("no dead letter")
		}
		if err == nil {
			sequence = list[len(list)-1].Sequence
		}
		return err
	})
	return sequence
}

// A service that publishes has no database. One that is locked counts as none, too.
func TestCommandsThatNeedNoDatabaseGoOnWithoutIt(t *testing.T) {
	w := auditWorld(t)
	const warning = "not recorded in the audit log"
	for name, address := range map[string]string{
		"no file": "sqlite:" + t.TempDir() + "/none.db", "no server": "postgres://127.0.0.1:1/none",
		"no address": "none", "locked": w.Address,
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Setenv("DATABASE_URL", address)
			if address == w.Address {
				conn, err := w.SQL.Conn(t.Context())
				must(t, err)
				defer conn.Close()
				_, err = conn.ExecContext(t.Context(), "BEGIN IMMEDIATE")
				must(t, err)
				defer func() { _, _ = conn.ExecContext(context.Background(), "ROLLBACK") }()
			}
			if stderr := run(t, "publish", "usage-sync"); strings.Count(stderr, warning) != 1 {
				t.Errorf("stderr: %s", stderr)
			}
		})
	}
}

func TestAuditPrintsAndExportsTheLog(t *testing.T) {
	db, err := repo.Open(t.Context(), "sqlite:"+t.TempDir()+"/test.db")
	must(t, err)
	defer db.Close()
	_, err = db.Migrate(t.Context())
	must(t, err)
	const entries = 2*auditPage + 500
	for i := range entries {
		e := repo.AuditEntry{Actor: "cli:me", Via: "cli", Action: "sync", Detail: fmt.Sprint(i)}
		must(t, db.Audit(t.Context(), e))
	}
	lines := func(c auditCmd) []string {
		t.Helper()
		var out bytes.Buffer
		must(t, c.Run(&app{ctx: t.Context(), stdout: &out}, db))
		return strings.Split(strings.TrimSpace(out.String()), "\n")
	}
	for limit, want := range map[int]int{0: entries, 1: 1, auditPage: auditPage,
		auditPage + 1: auditPage + 1} {
		all := lines(auditCmd{JSONLines: true, Limit: limit})
		if len(all) != want {
			t.Errorf("limit %d: %d lines", limit, len(all))
		}
		for i, line := range all {
			if detail := fmt.Sprintf(`"detail":"%d"}`, entries-1-i); !strings.HasSuffix(line, detail) {
				t.Fatalf("line %d is %s", i, line)
			}
		}
	}
	if table := lines(auditCmd{}); len(table) != 1+auditPage || !strings.HasPrefix(table[0], "TIME") {
		t.Errorf("%d rows: %s", len(table), table[0])
	}
	for _, c := range []auditCmd{{Limit: -1}, {JSONLines: true, jsonFlag: jsonFlag{JSON: true}}} {
		if c.Validate() == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
