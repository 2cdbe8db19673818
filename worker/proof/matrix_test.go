package proof_test

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/proof"
)

// The versions of NATS are those of the programs given. The version of PostgreSQL is the one that is
// installed, or the server's at TEST_POSTGRES_URL, which is not restarted.
//
//	go test ./worker/proof -run TestVersions -v -timeout 30m -matrix.nats /opt/2.10/nats-server
var matrixNATS = flag.String("matrix.nats", "", "paths of NATS servers to run the worker with, with commas")

// part is something that is restarted under load.
type part struct {
	name    string
	restart func() error
}

// combination is a NATS server and a database with which the worker has to work.
type combination struct {
	*system
	workers []*process
	parts   []part
	env     []string // of the workers
}

func TestVersionsOfNATSAndDatabasesWorkTogether(t *testing.T) {
	if *matrixNATS == "" {
		t.Skip("run it with -matrix.nats and paths of NATS servers")
	}
	databases := map[string]func(*testing.T, string) *combination{
		"SQLite": onSQLite, "PostgreSQL": onPostgres, "PgBouncer": onPgBouncer,
	}
	for _, program := range strings.Split(*matrixNATS, ",") {
		for _, database := range []string{"SQLite", "PostgreSQL", "PgBouncer"} {
			t.Run(filepath.Base(filepath.Dir(program))+" "+database, func(t *testing.T) {
				databases[database](t, program).run()
			})
		}
	}
}

func onSQLite(t *testing.T, program string) *combination {
	c := &combination{system: newSystemOn(t, program, "sqlite", "")}
	c.must(c.startWorkers(1))
	c.parts = []part{{"NATS", c.restartNATS}, {"the worker", c.killWorker}}
	return c
}

func onPostgres(t *testing.T, program string) *combination {
	server, address := ownServer(t)
	c := &combination{system: newSystemOn(t, program, "postgres", address)}
	c.must(c.startWorkers(2))
	c.parts = []part{{"NATS", c.restartNATS}, {"PostgreSQL", server.Restart}, {"a worker", c.killWorker}}
	return c
}

func onPgBouncer(t *testing.T, program string) *combination {
	server, address := ownServer(t)
	through, restart := pgtest.RestartablePgBouncer(t, address)
	c := &combination{
		system: newSystemOn(t, program, "pgbouncer", address), env: []string{"DATABASE_URL=" + through},
	}
	c.must(c.startWorkers(2))
	c.parts = []part{
		{"NATS", c.restartNATS}, {"PostgreSQL", server.Restart}, {"PgBouncer", restart},
		{"a worker", c.killWorker},
	}
	return c
}

// ownServer starts a PostgreSQL server that can be restarted.
func ownServer(t *testing.T) (server *pgtest.Server, database string) {
	pgtest.Need(t, postgres)
	if !postgres.Private() {
		t.Skip("it restarts the server, so it needs one of its own")
	}
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server, server.Database(t)
}

func newSystemOn(t *testing.T, program, name, database string) *system {
	s := &system{t: t, name: name, database: database, broker: program}
	s.start(1, 1, "WORKER_CONCURRENCY=16")
	s.sim.SetUsage(workspace.ID, simulator.Usage{Tenants: usageTenants})
	return s
}

func (c *combination) startWorkers(n int) error {
	for i := range n {
		p, err := c.startWorker(fmt.Sprintf("worker%d", i), c.env...)
		if err != nil {
			return err
		}
		c.workers = append(c.workers, p)
		c.t.Cleanup(func() { c.workers[i].kill() })
	}
	return nil
}

func (c *combination) restartNATS() error { return c.nats[0].restart(500 * time.Millisecond) }

func (c *combination) killWorker() (err error) {
	c.workers[0].kill()
	c.workers[0], err = c.startWorker("worker0", c.env...)
	return err
}

// run restarts each part under load. Then Check must find nothing wrong.
func (c *combination) run() {
	t := c.t
	l := newLoad(c.system, randomOf(1, "load"))
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var group sync.WaitGroup
	var history proof.History
	l.begin(ctx, &group, 30, randomOf(1, "tokens"), &history)
	var restarted []string
	for _, p := range c.parts {
		sleep(ctx, 4*time.Second)
		if err := p.restart(); err != nil {
			t.Errorf("restart %s: %v", p.name, err)
		}
		restarted = append(restarted, p.name)
	}
	sleep(ctx, 4*time.Second)
	end()
	group.Wait()
	version := c.nc.ConnectedServerVersion()
	var database string
	query := "SELECT sqlite_version()"
	if c.sql.DriverName() == "pgx" {
		query = "SHOW server_version"
	}
	c.must(c.sql.GetContext(t.Context(), &database, query))
	c.waitQuiet(2 * time.Minute)
	for _, p := range c.workers {
		p.terminate(t)
	}
	h := l.judge(history)
	t.Logf("NATS %s, %s %s: restarted %s; %d events, %d tenants, %d dashboards, %d events out, %d usage runs",
		version, c.name, database, strings.Join(restarted, ", "), len(h.Published), len(h.Mappings),
		len(h.Dashboards), len(h.Out), len(h.Runs))
}
