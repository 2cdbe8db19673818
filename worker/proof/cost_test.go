package proof_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/proof"
)

// TestCostPerTenant prints what tenants cost: processor time of the worker, of PostgreSQL and of
// NATS, and bytes of each table, of the streams and of the write-ahead log. docs/sizing.md has the
// results. Without -cost.tenants it does little and fails only if a step cannot be done.
//
//	TMPDIR=/var/tmp go test ./worker/proof -run TestCostPerTenant -v -timeout 60m \
//		-cost.tenants 5000 -cost.syncs 720 -cost.tokens 60s
//
// TMPDIR is a folder on a disk: in memory, nothing that SQLite writes is counted. The server of
// TEST_POSTGRES_URL must run on this machine. Without it, PostgreSQL runs without fsync and full-page
// writes, as in all tests.
var (
	costTenants = flag.Int("cost.tenants", 0, "tenants of which TestCostPerTenant measures the cost")
	costSyncs   = flag.Int("cost.syncs", 24, "hourly usage syncs of each kind that it makes")
	costTokens  = flag.Duration("cost.tokens", 10*time.Second, "time for which it requests tokens")
)

func TestCostPerTenant(t *testing.T) {
	if *costTenants == 0 {
		t.Skip("run it with -cost.tenants")
	}
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) {
			address := ""
			if database == "PostgreSQL" {
				address = pgtest.Need(t, postgres)
			}
			c := &cost{system: newSystem(t, "cost", address, 1, 1), tenants: *costTenants}
			var err error
			c.worker, err = c.startWorker("worker0", "LOG_LEVEL=info", "WORKER_CONCURRENCY=256")
			c.must(err)
			defer c.worker.terminate(t)
			c.waitQuiet(time.Minute)

			c.measure("sign-up", "tenant", c.tenants, c.signUps)
			c.measure("first usage sync of two months", "tenant", c.tenants, func() int { return c.sync(0) })
			for _, growing := range []int{0, 10, 100} {
				name := fmt.Sprintf("usage sync of two months, %d %% of the rows changed", growing)
				c.measure(name, "tenant and sync", c.tenants**costSyncs, func() int {
					for range *costSyncs {
						c.sync(growing)
					}
					return 0
				})
			}
			c.must(c.askEach(0, min(c.tenants, 1000))) // until they are in memory
			c.measure("token", "request", 0, func() int {
				latencies, err := c.askNATS(subjects.RPC("embed-token"), 64, *costTokens,
					min(c.tenants, 1000))
				c.must(err)
				return len(latencies)
			})
		})
	}
}

// cost is a system of which the cost is measured.
type cost struct {
	*system
	worker  *process
	tenants int
	synced  int // usage syncs so far
}

// signUps publishes tenant.created for each tenant and waits until nothing is left to be done.
func (c *cost) signUps() int {
	for i := range c.tenants {
		_, err := c.js.PublishAsync(subjects.Event("tenant.created"),
			fmt.Appendf(nil, `{"tenant_id":"org-%07d","name":"Customer number %d"}`, i, i))
		c.must(err)
	}
	<-c.js.PublishAsyncComplete()
	c.waitQuiet(30 * time.Minute)
	return 0
}

// sync makes the usage of some tenants grow, in percent, and waits until a sync has recorded it.
func (c *cost) sync(growing int) int {
	now := time.Now().UTC()
	months := []string{now.AddDate(0, 0, -now.Day()).Format("2006-01"), now.Format("2006-01")}
	c.synced++
	var rows []simulator.UsageRow
	for i := range c.tenants {
		n := i
		if i%100 < growing {
			n += c.synced
		}
		for _, month := range months {
			rows = append(rows, simulator.UsageRow{
				TenantID: fmt.Sprintf("org-%07d", i), Period: month, Credits: fmt.Sprintf("%d.25", n),
				Requests: int64(n),
			})
		}
	}
	c.sim.SetUsage(workspace.ID, simulator.Usage{Rows: rows})
	_, err := c.js.Publish(c.t.Context(), subjects.Event("usage.sync"), []byte("{}"))
	c.must(err)
	eventually(c.t, 10*time.Minute, func() error {
		if err := proof.Quiet(c.t.Context(), c.view()); err != nil {
			return err
		}
		var done int
		err := c.sql.GetContext(c.t.Context(), &done, "SELECT COUNT(*) FROM usage_runs WHERE status = 'done'")
		if err == nil && done != c.synced {
			err = fmt.Errorf("%d of %d syncs are done", done, c.synced)
		}
		return err
	})
	return 0
}

// measure prints what do has cost, divided by n or by what it returns.
func (c *cost) measure(name, unit string, n int, do func() int) {
	c.t.Helper()
	before, start := c.read(), time.Now()
	n += do()
	after, took := c.read(), time.Since(start)
	c.t.Logf("%s: %d in %v, per %s:", name, n, took.Round(time.Millisecond), unit)
	for i, f := range after {
		var old float64
		for _, b := range before {
			if b.name == f.name {
				old = b.value
			}
		}
		switch {
		case f.unit == "MiB": // as it is
			c.t.Logf("  %-38s %10.1f MiB", f.name, after[i].value)
		case f.value != old:
			c.t.Logf("  %-38s %10.2f %s", f.name, (f.value-old)/float64(n), f.unit)
		}
	}
}

// figure is something that grows with use, or memory in MiB.
type figure struct {
	name, unit string
	value      float64
}

// read reads all figures.
func (c *cost) read() (all []figure) {
	c.t.Helper()
	add := func(name, unit string, value float64) { all = append(all, figure{name, unit, value}) }
	add("CPU time of the worker", "us", c.processorTime(c.worker.cmd.Process.Pid))
	add("CPU time of NATS", "us", c.processorTime(c.nats[0].process.cmd.Process.Pid))
	add("anonymous memory of the worker", "MiB", c.number("status", "RssAnon")/1024)
	add("bytes written to files by the worker", "bytes", c.number("io", "write_bytes"))
	add("requests of the API", "", float64(len(c.sim.Log())))
	info, err := os.Stat(c.worker.log.Name())
	c.must(err)
	add("bytes in the log", "bytes", float64(info.Size()))
	for _, name := range []string{"PAPERMAP", "PAPERMAP_DEAD"} {
		stream, err := c.js.Stream(c.t.Context(), name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		c.must(err)
		add("bytes in stream "+name, "bytes", float64(stream.CachedInfo().State.Bytes))
	}
	if strings.HasPrefix(c.database, "sqlite:") {
		return append(all, c.sqliteTables()...)
	}
	var backend int
	c.must(c.sql.GetContext(c.t.Context(), &backend, "SELECT pg_backend_pid()"))
	add("CPU time of PostgreSQL", "us", c.processorTime(c.family(backend)...))
	var wal float64
	c.must(c.sql.GetContext(c.t.Context(), &wal, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
	add("bytes in the write-ahead log", "bytes", wal)
	return append(all, c.postgresTables()...)
}

func (c *cost) postgresTables() (all []figure) {
	c.t.Helper()
	rows, err := c.sql.QueryContext(c.t.Context(), `SELECT relname, pg_table_size(oid), pg_indexes_size(oid)
		FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname`)
	c.must(err)
	defer rows.Close()
	for rows.Next() {
		var name string
		var table, indexes float64
		c.must(rows.Scan(&name, &table, &indexes))
		all = append(all, figure{"bytes in " + name, "bytes", table},
			figure{"bytes in indexes of " + name, "bytes", indexes})
	}
	c.must(rows.Err())
	return all
}

// sqliteTables asks the program sqlite3, because the worker's SQLite has no table of sizes.
func (c *cost) sqliteTables() (all []figure) {
	c.t.Helper()
	out, err := exec.CommandContext(c.t.Context(), "sqlite3", strings.TrimPrefix(c.database, "sqlite:"),
		`SELECT m.tbl_name, m.type, SUM(s.pgsize) FROM dbstat('main', 1) s JOIN sqlite_schema m USING (name)
		GROUP BY 1, 2`).Output()
	c.must(err)
	for line := range strings.Lines(string(out)) {
		part := strings.Split(strings.TrimSpace(line), "|")
		var bytes float64
		_, err := fmt.Sscan(part[2], &bytes)
		c.must(err)
		name := "bytes in "
		if part[1] == "index" {
			name = "bytes in indexes of "
		}
		all = append(all, figure{name + part[0], "bytes", bytes})
	}
	return all
}

// stat returns the fields of /proc/PID/stat after the program's name: 0 is the state, 1 the parent, 11
// to 14 are user and system time, its own and of the children that it has waited for.
func stat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])), err
}

// processorTime is that of processes and of their children that have ended, in microseconds, to a
// hundredth of a second.
func (c *cost) processorTime(pids ...int) (us float64) {
	c.t.Helper()
	for _, pid := range pids {
		fields, err := stat(pid)
		if err != nil {
			continue // it has ended, and its parent, the last one, has its time
		}
		for _, field := range fields[11:15] {
			ticks, err := strconv.Atoi(field)
			c.must(err)
			us += float64(ticks) * 1e4
		}
	}
	return us
}

// family returns the parent of a process and all that the parent has started.
func (c *cost) family(pid int) []int {
	c.t.Helper()
	fields, err := stat(pid)
	c.must(err)
	parent := fields[1]
	children, err := os.ReadFile(fmt.Sprintf("/proc/%s/task/%s/children", parent, parent))
	c.must(err)
	var pids []int
	for _, field := range append(strings.Fields(string(children)), parent) {
		pid, err := strconv.Atoi(field)
		c.must(err)
		pids = append(pids, pid)
	}
	return pids
}

// number reads a number from one of the worker's files in /proc.
func (c *cost) number(file, name string) (n float64) {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.worker.cmd.Process.Pid, file))
	c.must(err)
	_, rest, _ := strings.Cut("\n"+string(text), "\n"+name+":")
	_, err = fmt.Sscan(rest, &n)
	c.must(err)
	return n
}
