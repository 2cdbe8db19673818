package proof_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
	"papermap-worker/worker/failpoint"
	"papermap-worker/worker/proof"
)

// The short form has every kind of fault and takes a few seconds. What a dead or stopped worker
// leaves claimed or in flight expires by system.expire. From 30 s on it is the long form, which
// waits for the leases, fills disks, and fails if a failpoint was not hit or a fault did not happen
// in each system. It needs root, to mount the disks. With -chaos.kills it ends after as many kills,
// when each failpoint was hit: once, or once per 100 kills.
//
//	go test ./worker/proof -run TestKills -v -timeout 60m -chaos.time 45m -chaos.kills 200
var (
	chaosTime  = flag.Duration("chaos.time", 8*time.Second, "longest time with kills and faults")
	chaosSeed  = flag.Uint64("chaos.seed", 0, "seed of all choices; 0 takes one from the clock")
	chaosPlace = flag.String("chaos.place", "", "the only failpoint to hit; empty for all in turn")
	chaosKills = flag.Int64("chaos.kills", 0, "end after this many kills; 0 for no such end")
)

// short reports whether this is the short form.
func short() bool { return *chaosTime < 30*time.Second }

// places returns the failpoints to hit. failpoint.Migrated can be hit only once in a database: the
// first worker of each system hits it, and TestMigrateResumesAfterAKill does.
func places() []string {
	if *chaosPlace != "" {
		return []string{*chaosPlace}
	}
	return slices.DeleteFunc(failpoint.All(), func(place string) bool { return place == failpoint.Migrated })
}

// bouts are sets of faults that the API has for a while: the first fault of a bout that matches a
// request is applied.
var bouts = [][]string{
	{"delay=20ms"},
	{"delay=20ms"},
	{"delay=20ms"},
	{"on=create drop=after rate=0.05", "delay=20ms"},
	{"on=create drop=after rate=0.05", "delay=20ms"},
	{"on=create status=503 retry-after=1 rate=0.3", "delay=20ms"},
	{"on=create status=429 retry-after=2 rate=0.3", "delay=20ms"},
	{"on=create drop=before rate=0.15", "on=create drop=after rate=0.1", "delay=20ms"},
	{"on=create status=500 effect=true rate=0.15", "on=create status=502 rate=0.1", "delay=50ms"},
	{"on=create truncate=true rate=0.15", "on=create status=200 effect=true rate=0.05"},
	{"on=create delay=11s rate=0.05", "on=create delay=3s rate=0.1", "delay=10ms"},
	{"on=create status=422 rate=0.1", "delay=20ms"},
	{"status=503"},
	{"status=401 count=4", "delay=20ms"},
}

// TestKillsLoseNothing runs two workers on PostgreSQL and one on SQLite through kills, stops, and
// faults of everything around them. Then the faults end, and Check must find nothing wrong with
// what is left.
func TestKillsLoseNothing(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	var total tally
	t.Run("systems", func(t *testing.T) {
		t.Run("PostgreSQL", func(t *testing.T) {
			t.Parallel()
			newChaos(t, seed, &total, 2).run()
		})
		t.Run("SQLite", func(t *testing.T) {
			t.Parallel()
			newChaos(t, seed+1, &total, 1).run()
		})
	})
	t.Logf("seed %d, in all:\n%s", seed, total.table())
	if t.Failed() {
		t.Logf("again: go test ./worker/proof -run TestKills -chaos.seed %d -chaos.time %v -chaos.kills %d",
			seed, *chaosTime, *chaosKills)
	}
}

// tally counts what was done, and the results.
type tally struct {
	kills  atomic.Int64
	mu     sync.Mutex
	counts map[string]int
}

func (c *tally) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[what] += n
}

func (c *tally) table() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(c.counts)) {
		fmt.Fprintf(&b, "%6d  %s\n", c.counts[what], what)
	}
	return b.String()
}

// chaos is one system and what happens to it.
type chaos struct {
	*system
	load     *load
	postgres *pgtest.Server // if it may be killed
	replicas int
	seed     uint64
	total    *tally
	started  time.Time
	links    []*proxy     // between each worker and NATS
	stopping atomic.Bool  // one worker is stopped, or is to be
	turn     sync.Mutex   // held while the NATS server is killed, or what it stores is destroyed
	away     atomic.Int64 // until when (Unix ns) the database may be down, so that a worker cannot start

	mu   sync.Mutex
	next []string       // places to be hit next
	stop []string       // places to be stopped at next
	hit  map[string]int // by place
}

func newChaos(t *testing.T, seed uint64, total *tally, replicas int) *chaos {
	c := &chaos{replicas: replicas, seed: seed, total: total, hit: map[string]int{}}
	name, database := "sqlite", ""
	if replicas > 1 {
		name, database = "postgres", pgtest.Need(t, postgres)
		if postgres.Private() {
			database = c.ownPostgres(t)
		}
	}
	env := []string{"WORKER_CONCURRENCY=16"}
	if c.random("mode").IntN(2) == 0 {
		env = append(env, "PAPERMAP_ON_AMBIGUOUS=hold")
	}
	t.Logf("%s, %v", name, env)
	c.system = &system{t: t, name: name, database: database, disks: !short()}
	c.system.start(1, seed, env...)
	c.must(c.forgetSoon(t.Context()))
	c.sim.SetUsage(workspace.ID, simulator.Usage{Tenants: usageTenants, Seed: seed})
	c.load = newLoad(c.system, c.random("load"))
	for range replicas {
		c.links = append(c.links, startProxy(t, c.system.nats[0].url()))
	}
	return c
}

// ownPostgres starts a PostgreSQL server that can be killed without harm to other tests.
func (c *chaos) ownPostgres(t *testing.T) (database string) {
	server, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	c.postgres = server
	return server.Database(t)
}

// random returns the source of one goroutine's choices, so that they do not depend on what the
// others choose.
func (c *chaos) random(name string) *rand.Rand { return randomOf(c.seed, name) }

func randomOf(of uint64, name string) *rand.Rand {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d %s", of, name))
	return rand.New(rand.NewChaCha8(seed))
}

func (c *chaos) count(what string) { c.total.add(c.name+": "+what, 1) }

// run makes everything fail for a while, then ends the faults and checks what is left.
func (c *chaos) run() {
	t := c.t
	c.started = time.Now()
	ctx, end := context.WithTimeout(t.Context(), *chaosTime)
	defer end()
	rate := 15 // events a second
	if short() {
		rate = 30
	}
	var history proof.History
	var group sync.WaitGroup
	c.load.begin(ctx, &group, rate, c.random("tokens"), &history)
	group.Go(func() { history.Outages = c.faults(ctx, c.random("api")) })
	group.Go(func() { c.brokers(ctx, c.random("nats")) })
	group.Go(func() { c.cutOffs(ctx, c.random("links")) })
	group.Go(func() { c.destroy(ctx, c.random("storage")) })
	if c.postgres != nil {
		group.Go(func() { c.databases(ctx, c.random("database")) })
	}
	for i := range c.replicas {
		group.Go(func() { c.killer(ctx, i, c.random(fmt.Sprint("killer", i))) })
	}
	group.Go(func() { c.watch(ctx, end) })
	group.Wait()

	c.sim.SetFaults()
	if short() {
		c.expire(t.Context(), true)
	}
	var workers []*process
	for i := range c.replicas {
		p, err := c.startReplica(i)
		c.must(err)
		t.Cleanup(p.kill)
		workers = append(workers, p)
	}
	limit := 2 * time.Minute
	if !short() { // after a stream was made again, all usage of its events is read again
		limit = 10 * time.Minute
	}
	c.waitQuiet(limit)
	for _, p := range workers {
		p.terminate(t)
	}
	c.reportMissed()
	history.Duplicates = duplicateWindow()
	c.report(c.load.judge(history))
}

// reportMissed reports what was to happen and did not. The short form has no time for everything.
func (c *chaos) reportMissed() {
	c.t.Helper()
	report := c.t.Errorf
	if short() {
		report = c.t.Logf
	}
	if c.leastHit() == 0 {
		missed := slices.DeleteFunc(places(), func(place string) bool { return c.hit[place] > 0 })
		report("%s: no worker was killed at %v", c.name, missed)
	}
	happened := c.total.table()
	for _, fault := range c.faultsDue() {
		if !strings.Contains(happened, "  "+c.name+": "+fault) {
			report("%s: it never happened: %s", c.name, fault)
		}
	}
}

// watch calls end when there were enough kills, and logs progress.
func (c *chaos) watch(ctx context.Context, end func()) {
	for logged := time.Now(); sleep(ctx, 200*time.Millisecond); {
		if time.Since(logged) > 30*time.Second {
			logged = time.Now()
			c.mu.Lock()
			c.t.Logf("%s after %v: %d kills in both systems, places hit here: %v",
				c.name, time.Since(c.started).Round(time.Second), c.total.kills.Load(), c.hit)
			c.mu.Unlock()
		}
		hits := max(1, int(*chaosKills)/100)
		if *chaosKills > 0 && c.total.kills.Load() >= *chaosKills && c.leastHit() >= hits {
			end()
		}
	}
}

func (c *chaos) hits(place string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hit[place]
}

func (c *chaos) leastHit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	least := math.MaxInt
	for _, place := range places() {
		least = min(least, c.hit[place])
	}
	return least
}

// drawPlace takes the next place to be hit: all of them, in random order, before any a second time.
func (c *chaos) drawPlace(random *rand.Rand) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return drawFrom(&c.next, places(), random)
}

// drawStop takes the next place where a worker is to be stopped. The relay's are not for the short
// form: its lease cannot end early, because the holder goes by its own clock.
func (c *chaos) drawStop(random *rand.Rand) string {
	places := []string{failpoint.Send, failpoint.Sent, failpoint.Answered, failpoint.DeadStored}
	if !short() {
		places = append(places, failpoint.OutboxRead, failpoint.OutboxSent)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return drawFrom(&c.stop, places, random)
}

// drawFrom takes one element of all from bag, which it fills in random order when it is empty.
func drawFrom[T any](bag *[]T, all []T, random *rand.Rand) T {
	if len(*bag) == 0 {
		*bag = slices.Clone(all)
		random.Shuffle(len(*bag), func(i, j int) { (*bag)[i], (*bag)[j] = (*bag)[j], (*bag)[i] })
	}
	first := (*bag)[0]
	*bag = (*bag)[1:]
	return first
}

// life is one worker's: how it is to end.
type life struct {
	place  string        // of the failpoint; empty for none
	action string        // "kill", "stop", or "term" for SIGTERM
	nth    int           // hit of the place
	limit  time.Duration // after which it is killed if it still runs
}

// draw chooses the next worker's life.
func (c *chaos) draw(slot, generation int, random *rand.Rand) life {
	most, limit := 4, 6*time.Second
	if short() {
		most, limit = 2, 2*time.Second
	}
	l := life{action: "kill", nth: 1 + random.IntN(most), limit: limit}
	due := generation%12 == 1 && slot == 0 && (c.replicas > 1 || !short())
	switch n := random.IntN(100); {
	case generation == 0 && slot == 0:
		l.place, l.nth = failpoint.Migrated, 1
	case (due || n < 4) && c.stopping.CompareAndSwap(false, true): // past its lease, while another works
		l.action, l.place = "stop", c.drawStop(random)
	case n < 75:
		l.place = c.drawPlace(random)
		if c.hits(l.place) == 0 && !short() { // on a slow machine a worker gets no further than this
			l.nth, l.limit = 1, 4*limit
		}
		switch l.place {
		case failpoint.DeadStored:
			l.nth = 1
		case failpoint.Draining: // at the signal, or after the first event in flight
			l.action = "term"
			if c.hits(l.place) > 0 {
				l.nth = 1 + random.IntN(2)
			}
			l.limit = l.limit/12 + time.Duration(random.Int64N(int64(l.limit*2/3)))
		}
	default:
		if random.IntN(5) == 0 {
			l.action = "term"
		}
		l.limit = limit/20 + time.Duration(random.Int64N(int64(limit*5/6)))
	}
	return l
}

// killer starts a worker again and again, each time to be ended in some way, until ctx ends.
func (c *chaos) killer(ctx context.Context, slot int, random *rand.Rand) {
	for generation := 0; ctx.Err() == nil; generation++ {
		l := c.draw(slot, generation, random)
		var env []string
		if l.place != "" {
			action := strings.Replace(l.action, "term", "kill", 1)
			env = []string{fmt.Sprintf("PAPERMAP_FAILPOINT=%s=%s@%d", l.place, action, l.nth)}
		}
		p, err := c.startReplica(slot, env...)
		if err != nil {
			c.t.Error(err)
			return
		}
		switch l.action {
		case "term":
			p.wait(ctx, l.limit)
			_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
			if !p.wait(context.Background(), 45*time.Second) {
				c.t.Errorf("%s: a worker still runs 45 s after SIGTERM; end of its log:\n%s", c.name,
					p.tail(3000))
			}
		case "stop":
			if waitFor(ctx, 10*time.Second, p.stopped) == nil {
				c.outliveLease(ctx, p, l)
			}
			c.stopping.Store(false)
			l.place = "" // from here it ends like any other
		default:
			p.wait(ctx, l.limit)
		}
		c.bury(p, l.place)
	}
}

// outliveLease keeps a stopped worker stopped until another could have taken over what it had
// claimed.
func (c *chaos) outliveLease(ctx context.Context, p *process, l life) {
	c.count(asleep + l.place)
	if short() {
		c.expire(ctx, false)
		sleep(ctx, 2*time.Second) // for another to take over
	} else {
		time.Sleep(repo.Lease + 4*time.Second) // whatever else ends
	}
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	p.wait(ctx, l.limit/2)
}

// bury kills a process that has not ended, and counts how it ended.
func (c *chaos) bury(p *process, place string) {
	defer p.log.Close()
	select {
	case <-p.done:
	default:
		p.kill()
		c.count("killed at a random time")
		c.total.kills.Add(1)
		c.drawAgain(place)
		return
	}
	signal, code := p.exit()
	switch {
	case signal == syscall.SIGKILL && strings.Contains(p.output(), "failpoint "+place+": "):
		c.count("killed at " + place)
		c.total.kills.Add(1)
		c.mu.Lock()
		c.hit[place]++
		c.mu.Unlock()
	case signal == 0 && code == 0:
		c.count("drained")
		c.drawAgain(place)
	case signal == syscall.SIGTERM && p.output() == "":
		c.count("terminated before it had started")
		c.drawAgain(place)
	case time.Now().UnixNano() < c.away.Load():
		c.count("did not start without its database")
		time.Sleep(100 * time.Millisecond)
	default:
		c.t.Errorf("%s: a worker ended by itself (signal %v, code %d):\n%s", c.name, signal, code,
			p.tail(3000))
	}
}

// drawAgain puts a failpoint that was not reached back into the bag.
func (c *chaos) drawAgain(place string) {
	if place == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = append(c.next, place)
}

// report logs how much there was to check.
func (c *chaos) report(h proof.History) {
	for what, n := range map[string]int{
		"events published": len(h.Published), "tenants": len(h.Mappings), "dashboards": len(h.Dashboards),
		"requests to the API": len(h.Requests), "requests for tokens": len(h.Tokens),
		"dead letters": len(h.Dead), "events out": len(h.Out), "usage rows": len(h.Usage),
		"suspensions and deletions seen": len(h.Commits),
	} {
		c.total.add(c.name+": "+what, n)
	}
	for _, a := range h.Attempts {
		c.count("attempts " + string(a.Outcome))
	}
	for _, m := range h.Mappings {
		if strings.HasPrefix(m.DashboardID, adoptedPrefix) {
			c.count("tenants with an adopted dashboard")
		}
	}
	for _, d := range h.Dead {
		if d.Code == worker.CodeTaken || d.Code == worker.CodeConflict {
			c.count("adoptions refused: " + d.Code)
		}
	}
	for _, r := range h.Runs {
		c.count("usage runs " + string(r.Status))
	}
	for _, t := range h.Tokens {
		if t.Text != "" {
			c.count("tokens")
		}
	}
}
