package proof_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
	"papermap-worker/worker/failpoint"
	"papermap-worker/worker/proof"
	"papermap-worker/worker/workertest"
)

// Whole workers in virtual time: weeks of load and faults in minutes. A run can be repeated by its
// seed, though not its interleaving. With -tags failpoints workers are also killed between two
// statements.
//
//	go test -tags failpoints ./worker/proof -run TestSimulation -v -timeout 60m -args -sim.days 20
//
// When a run fails, -sim.shrink searches for the shortest list of faults with which it still fails.
// -sim.only repeats a run with those faults alone.
var (
	simDays   = flag.Float64("sim.days", 0, "simulated days on each database; 0 for the short form")
	simTime   = flag.Duration("sim.time", 0, "begin no more runs after this time; 0 for no limit")
	simPart   = flag.Float64("sim.part", 10, "simulated days of one run; each has a seed of its own")
	simSeed   = flag.Uint64("sim.seed", 0, "seed of load and faults; 0 takes one from the clock")
	simOnly   = flag.String("sim.only", "", "numbers of the faults to keep, such as 3,17; none for no faults")
	simShrink = flag.Int("sim.shrink", 0, "when a run fails, repeat it at most this often with fewer faults")
	simDense  = flag.Bool("sim.dense", false, "everything comes ten times as often, as in the short form")
	simTrace  = flag.Bool("sim.trace", false, "print each fault as it begins")
)

// Simulated minutes of the short form, in which everything comes ten times as often.
const shortSQLite, shortPostgres = 30, 5

// TestSimulationKeepsEveryPromise runs one worker on SQLite and several on PostgreSQL through a
// seeded schedule of load and faults. Then the faults end, and Check must find nothing wrong.
func TestSimulationKeepsEveryPromise(t *testing.T) {
	seed := *simSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) {
			left, part := *simDays, min(*simPart, *simDays)
			if left == 0 {
				minutes := map[string]float64{"SQLite": shortSQLite, "PostgreSQL": shortPostgres}[database]
				left, part = minutes/60/24, minutes/60/24
			}
			began, days := time.Now(), 0.0
			for n := seed; left > 1e-6 && !t.Failed(); n++ {
				if *simTime > 0 && time.Since(began) > *simTime {
					break
				}
				length := time.Duration(min(left, part) * float64(24*time.Hour)).Round(time.Minute)
				t.Run(fmt.Sprint("seed ", n), func(t *testing.T) {
					simulate(t, database, n, length)
				})
				days += min(left, part)
				left -= part
			}
			if *simDays > 0 {
				t.Logf("%s, from seed %d: %.3g days in %v", database, seed, days,
					time.Since(began).Round(time.Second))
			}
		})
	}
}

// simulation is a world, and what happens to it.
type simulation struct {
	*workertest.World
	t        *testing.T
	system   *system
	load     *load
	seed     uint64
	database string
	length   time.Duration
	exact    bool // each hour's budgets are judged by the right month, or by that of the next hour
	end      time.Time
	count    tally
	history  proof.History
	ahead    atomic.Int64  // Papermap's clock, in ns
	off      time.Duration // the most that it was off
	agenda   []action
	workers  []*workertest.Instance // nil while one is away
	attached int                    // turns of the API's faults
	natsDown bool                   // it is stopped, or has no disk
	stream   jetstream.StreamConfig // of events, at the beginning
	budgets  map[string]repo.Budget // by tenant
	created  map[string]string      // dashboards by tenant, as create answered

	mu    sync.Mutex
	armed string // the failpoint to be hit next, empty: none
	nth   int
	gone  map[*workertest.Instance]bool // severed at a failpoint
}

// random returns the source of one kind of choice, so that it does not depend on the others.
func (s *simulation) random(name string) *rand.Rand {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d %s", s.seed, name))
	return rand.New(rand.NewChaCha8(seed))
}

// simulate runs one part, in a bubble of its own.
func simulate(t *testing.T, database string, seed uint64, length time.Duration) {
	s := &simulation{
		seed: seed, database: database, length: length,
		gone: map[*workertest.Instance]bool{}, created: map[string]string{},
	}
	failpoint.Watch(s.hit)
	defer failpoint.Watch(func(string) {})
	random := s.random("world")
	o := workertest.Options{
		NoWorker: true, Unchecked: true, Migrate: s.migrate,
		// Soon after the beginning the month ends.
		Begin: time.Date(2027, time.January, 1, 0, 0, 0, 0, time.UTC).
			Add(-length * time.Duration(random.IntN(100)) / 200),
		Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) },
	}
	hold, replicas, skewed := random.IntN(3) == 0, 1, random.IntN(4) == 0
	if database == "PostgreSQL" {
		o.Postgres = pgtest.Need(t, postgres)
		replicas = 2 + random.IntN(2)
		if skewed {
			o.DatabaseAhead = time.Duration(random.IntN(180)-90) * time.Second
		}
	}
	s.exact = length >= 3*time.Hour || database == "SQLite" && !skewed
	if ownDisk() {
		o.Disk = diskSize
	}
	o.DatabaseTick = time.Second // each is a statement
	s.history.Clocks = o.DatabaseAhead.Abs() + o.DatabaseTick + 100*time.Millisecond
	o.Config = func(c *worker.Config) {
		c.Concurrency, c.UsageConcurrency, c.Hold = 16, 4, hold
		c.Schedule, _ = worker.ParseSchedule("@hourly")
	}
	plan := s.plan(length, skewed)
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // the heap is small
	began := time.Now()
	workertest.Virtual(t, o, func(t *testing.T, w *workertest.World) {
		s.t, s.World, s.end = t, w, time.Now().Add(length)
		s.run(replicas, plan)
	})
	workertest.ClearPools()
	took := time.Since(began)
	t.Logf("%s, seed %d, %d workers, hold %v, skewed %v: %v in %v, %.0f times real time\n%s", database,
		seed, replicas, hold, skewed, length, took.Round(time.Millisecond), float64(length)/float64(took),
		s.count.table())
	if t.Failed() {
		t.Logf("again, with failpoints %v: go test ./worker/proof -run 'TestSimulation.*/%s' -v -args %s",
			failpoint.Enabled, database, strings.Join(s.flags(length), " "))
		s.shrink(t, plan, length)
	}
}

// run is what happens in the bubble.
func (s *simulation) run(replicas int, plan []fault) {
	s.connect()
	for range replicas {
		s.workers = append(s.workers, s.StartWorker())
	}
	begin, first := time.Now(), s.measure()

	for day := time.Now().Add(24 * time.Hour); day.Before(s.end); day = day.Add(24 * time.Hour) {
		s.at(day, func() { s.t.Logf("%s: %v", time.Now().Format(time.DateTime), s.measure()) })
	}
	ctx, stop := context.WithDeadline(context.Background(), s.end)
	defer stop()
	var group sync.WaitGroup
	group.Go(func() { s.publish(ctx) })
	group.Go(func() { s.askTokens(ctx, s.random("tokens")) })
	group.Go(func() { s.create(ctx, s.random("create")) })
	group.Go(func() { s.grow(ctx, s.random("grow")) })
	s.follow(plan)
	group.Wait()

	s.SetFaults()
	s.ahead.Store(0)
	s.restartAll()
	workertest.Eventually(s.t, 3*time.Hour, s.system.quiet)
	last := s.measure()
	s.t.Logf("at the beginning: %v\nat the end: %v", first, last)
	if last.goroutines > 2*first.goroutines {
		s.t.Errorf("%d goroutines at the beginning, %d at the end", first.goroutines, last.goroutines)
	}
	for _, i := range s.Workers {
		i.Stop()
	}
	s.judge(begin)
}

// connect makes the system that load and checks use.
func (s *simulation) connect() {
	w := s.World
	nc, err := nats.Connect("", nats.InProcessServer(w), nats.MaxReconnects(-1),
		nats.ReconnectWait(time.Second), nats.ReconnectBufSize(-1))
	w.Must(err)
	s.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	w.Must(err)
	w.Conn.Close() // it reconnects more often
	w.LogLevel = slog.LevelInfo
	s.system = &system{
		t: s.t, name: s.database, dir: w.Dir, sim: w.Simulator, nc: nc, js: js, sql: w.SQL, db: w.DB,
		workspaces: []papermap.Workspace{workertest.WorkspaceA, workertest.WorkspaceB},
	}
	stream, err := js.Stream(s.t.Context(), "PAPERMAP")
	w.Must(err)
	s.stream = stream.CachedInfo().Config
	s.setBudgets()
	s.load = newLoad(s.system, s.random("load"))
	s.load.start = time.Now().Add(-time.Hour)
	s.load.patience = 6000 // NATS may be stopped for minutes
}

// mostChecked is the longest run that is checked: streams and outbox keep events for 30 days.
const mostChecked = 29 * 24 * time.Hour

// judge checks what the run has left.
func (s *simulation) judge(begin time.Time) {
	s.Must(os.WriteFile(filepath.Join(s.Dir, "worker.log"), []byte(s.Logs.String()), 0o600))
	if s.length > mostChecked {
		s.t.Log("not checked: the stream and the outbox no longer have all events")
		return
	}
	s.history.Published = s.load.published
	archive := s.load.archive
	s.history.Streams, s.history.Out = archive.Streams, archive.Out
	s.history.DeadStreams, s.history.Dead = archive.DeadStreams, archive.Dead
	last := time.Now().Format("2006-01")
	for _, ws := range s.system.workspaces {
		rows, err := s.Simulator.UsageTotals(ws.ID, usageFrom, last)
		s.Must(err)
		for _, r := range rows {
			s.history.Reported = append(s.history.Reported, proof.UsageRow{
				WorkspaceID: ws.ID, TenantID: r.TenantID, Period: r.Period, Credits: r.Credits,
				Requests: r.Requests,
			})
		}
	}
	h := s.system.check(s.history)
	s.checkCreated(h)
	if s.exact {
		s.checkBudgets(h, begin)
	}
	for what, n := range map[string]int{
		"events published": len(h.Published), "tenants": len(h.Mappings),
		"requests to the API": len(h.Requests),
		"requests for tokens": len(h.Tokens), "dead letters": len(h.Dead), "events out": len(h.Out),
		"usage runs": len(h.Runs), "attempts": len(h.Attempts),
	} {
		s.count.add(what, n)
	}
}

// measurement is what must not grow without end.
type measurement struct {
	goroutines int
	files      int   // open ones, and sockets
	heap, wal  int64 // bytes
	rows       map[string]int
}

func (m measurement) String() string {
	return fmt.Sprintf("%d goroutines, %d open files, heap %d KiB (with the test's history), WAL %d KiB, "+
		"rows %v", m.goroutines, m.files, m.heap>>10, m.wal>>10, m.rows)
}

var tables = []string{
	"tenant_dashboards", "provision_attempts", "outbox", "leases", "usage_runs", "tenant_usage",
}

func (s *simulation) measure() (m measurement) {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m = measurement{goroutines: runtime.NumGoroutine(), heap: int64(stats.HeapAlloc), rows: map[string]int{}}
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		m.files = len(list)
	}
	if info, err := os.Stat(filepath.Join(s.Dir, "papermap.db-wal")); err == nil {
		m.wal = info.Size()
	}
	for _, table := range tables {
		var n int
		s.Must(s.SQL.Get(&n, "SELECT COUNT(*) FROM "+table))
		m.rows[table] = n
	}
	return m
}

// pace shortens a time in the short form and with -sim.dense.
func pace(long time.Duration) time.Duration {
	if dense() {
		return long / 10
	}
	return long
}

func dense() bool { return *simDays == 0 || *simDense }

// action is what the simulation does at a moment.
type action struct {
	at time.Time
	do func()
}

// at puts an action on the agenda.
func (s *simulation) at(when time.Time, do func()) {
	i, _ := slices.BinarySearchFunc(s.agenda, when, func(a action, t time.Time) int {
		return cmp.Or(a.at.Compare(t), -1) // after those of the same time
	})
	s.agenda = slices.Insert(s.agenda, i, action{when, do})
}

// follow makes the faults of the plan happen and end, one after the other.
func (s *simulation) follow(plan []fault) {
	start := time.Now()
	for _, f := range plan {
		s.at(start.Add(f.at), func() { s.begin(f) })
	}
	for len(s.agenda) > 0 {
		next := s.agenda[0]
		s.agenda = s.agenda[1:]
		time.Sleep(time.Until(next.at))
		next.do()
	}
	time.Sleep(time.Until(s.end))
}
