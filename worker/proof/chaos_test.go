package proof_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
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
	"papermap-worker/worker/failpoint"
	"papermap-worker/worker/proof"
)

// The long campaign, which ends after 200 kills when each place was hit at least 5 times in each system:
//
//	go test ./worker/proof -run TestNothingIsLostHoweverItIsKilled -v -timeout 60m -chaos.time 45m -chaos.kills 200
var (
	chaosTime  = flag.Duration("chaos.time", 38*time.Second, "how long workers are killed and everything around them fails, at most")
	chaosSeed  = flag.Uint64("chaos.seed", 0, "of all choices; 0 takes one from the clock")
	chaosPlace = flag.String("chaos.place", "", "the only place to be hit; empty for all in turn")
	chaosKills = flag.Int64("chaos.kills", 0, "stop after so many SIGKILLs, each place hit 5 times; 0 for no such end")
)

// places are the failpoints that can be hit again and again. failpoint.Migrated is hit by the first worker of each system, and in
// TestAMigrationThatIsKilledGoesOnWhereItStopped.
var places = []string{
	failpoint.Begin, failpoint.Claimed, failpoint.Send, failpoint.Sent, failpoint.Answered, failpoint.Commit, failpoint.Committed, failpoint.Recorded,
	failpoint.Acked, failpoint.DeadStored, failpoint.ChangeBegin, failpoint.ChangeDone, failpoint.OutboxRead, failpoint.OutboxSent, failpoint.Draining,
	failpoint.UsagePage, failpoint.UsageRecord, failpoint.UsageRecorded,
}

// bouts are what the API does for some seconds: the faults of the first that hits a request.
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

// inTurn are the places that this run hits.
func inTurn() []string {
	if *chaosPlace != "" {
		return []string{*chaosPlace}
	}
	return slices.Clone(places)
}

// TestNothingIsLostHoweverItIsKilled runs two workers on PostgreSQL and one on SQLite through kills, stops, and faults of
// everything around them. Then all is put right, and Check must find nothing wrong with what is left.
func TestNothingIsLostHoweverItIsKilled(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	p := build(t)
	var total tally
	t.Run("systems", func(t *testing.T) {
		t.Run("PostgreSQL", func(t *testing.T) {
			t.Parallel()
			newChaos(t, p, seed, &total, 2).run()
		})
		t.Run("SQLite", func(t *testing.T) {
			t.Parallel()
			newChaos(t, p, seed+1, &total, 1).run()
		})
	})
	t.Logf("seed %d, in all:\n%s", seed, total.table())
	if t.Failed() {
		t.Logf("again: go test ./worker/proof -run %s -v -timeout 60m -chaos.seed %d -chaos.time %v -chaos.kills %d", t.Name(), seed, *chaosTime, *chaosKills)
	}
}

// tally counts what was done and what came of it.
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
	replicas int
	seed     uint64
	total    *tally
	begun    time.Time
	sleeps   atomic.Bool  // one worker is stopped, or is to be
	away     atomic.Int64 // until when (Unix ns) the database may be away, so that a worker cannot start

	mu  sync.Mutex
	bag []string       // places to be hit next
	hit map[string]int // by place
}

func newChaos(t *testing.T, p programs, seed uint64, total *tally, replicas int) *chaos {
	c := &chaos{replicas: replicas, seed: seed, total: total, hit: map[string]int{}}
	dir, err := os.MkdirTemp("", "papermap-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			_ = os.RemoveAll(dir)
			return
		}
		t.Logf("kept: %s", dir)
		logs, _ := filepath.Glob(filepath.Join(dir, "worker*.log"))
		for _, path := range logs {
			t.Logf("the end of %s:\n%s", path, tail(path, 4000))
		}
	})
	name, database := "sqlite", ""
	if replicas > 1 {
		name, database = "postgres", pgtest.Need(t, postgres)
	}
	env := []string{"WORKER_CONCURRENCY=16"}
	if c.random("mode").IntN(2) == 0 {
		env = append(env, "PAPERMAP_ON_AMBIGUOUS=hold")
	}
	t.Logf("%s, %v", name, env)
	c.system = newSystem(t, name, p, []*natsServer{newNATS(t, p, dir, "nats")}, dir, database, seed, env...)
	c.sim.SetUsage(workspace.ID, simulator.Usage{Tenants: usageTenants, Seed: seed})
	c.load = &load{s: c.system, random: c.random("load")}
	return c
}

// random is a source of its own for each who chooses, so that their choices do not depend on who comes first.
func (c *chaos) random(who string) *rand.Rand {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d %s", c.seed, who))
	return rand.New(rand.NewChaCha8(seed))
}

func (c *chaos) count(what string) { c.total.add(c.name+": "+what, 1) }

// run does its worst, then puts all right and checks what is left.
func (c *chaos) run() {
	t := c.t
	c.begun = time.Now()
	ctx, end := context.WithTimeout(t.Context(), *chaosTime)
	defer end()
	var history proof.History
	var doers sync.WaitGroup
	doers.Go(func() {
		if err := c.load.run(ctx, 15); err != nil {
			t.Error(err)
		}
	})
	doers.Go(func() { history.Tokens = c.load.tokens(ctx, c.random("tokens")) })
	doers.Go(func() { history.Commits = c.load.commits(ctx) })
	doers.Go(func() { history.Outages = c.fail(ctx, c.random("api")) })
	doers.Go(func() { c.brokers(ctx, c.random("nats")) })
	if c.replicas > 1 && postgres.Private() {
		doers.Go(func() { c.databases(ctx, c.random("database")) })
	}
	for i := range c.replicas {
		doers.Go(func() { c.killer(ctx, i, c.random(fmt.Sprint("killer", i))) })
	}
	doers.Go(func() { c.watch(ctx, end) })
	doers.Wait()

	c.sim.SetFaults()
	var left []*process
	for i := range c.replicas {
		p, err := c.startWorker(fmt.Sprintf("worker%d", i))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.kill)
		left = append(left, p)
	}
	quiet := time.Now() // the usage runs that wait take turns, one every two seconds
	if err := waitFor(t.Context(), 2*time.Minute, c.quiet); err != nil {
		t.Errorf("still not quiet: %v", err)
	}
	t.Logf("%s: quiet after %v", c.name, time.Since(quiet).Round(100*time.Millisecond))
	for _, p := range left {
		p.signal(syscall.SIGTERM)
		c.expectExit(p, "after SIGTERM at the end")
	}
	for _, place := range inTurn() {
		if c.hit[place] == 0 {
			t.Logf("%s: no worker was killed at %s", c.name, place)
		}
	}
	history.Published = c.load.published
	var err error
	if history.Reported, err = c.load.reported(); err != nil {
		t.Error(err)
	}
	c.report(c.check(history))
}

// watch ends the campaign when there were kills enough, and tells how far it is.
func (c *chaos) watch(ctx context.Context, end func()) {
	for said := time.Now(); sleep(ctx, 200*time.Millisecond); {
		if time.Since(said) > 30*time.Second {
			said = time.Now()
			c.t.Logf("%s after %v: %d kills in both systems, places hit here: %v", c.name, time.Since(c.begun).Round(time.Second), c.total.kills.Load(), c.hits())
		}
		if *chaosKills > 0 && c.total.kills.Load() >= *chaosKills && c.leastHit() >= 5 {
			end()
		}
	}
}

func (c *chaos) hits() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.hit)
}

func (c *chaos) leastHit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	least := math.MaxInt
	for _, place := range inTurn() {
		least = min(least, c.hit[place])
	}
	return least
}

// draw takes the next place to be hit: all of them, in random order, before any a second time.
func (c *chaos) draw(random *rand.Rand) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.bag) == 0 {
		c.bag = inTurn()
		random.Shuffle(len(c.bag), func(i, j int) { c.bag[i], c.bag[j] = c.bag[j], c.bag[i] })
	}
	place := c.bag[0]
	c.bag = c.bag[1:]
	return place
}

// killer starts a worker again and again, each time to be ended in some way, until ctx ends.
func (c *chaos) killer(ctx context.Context, slot int, random *rand.Rand) {
	log := fmt.Sprintf("worker%d", slot)
	for life := 0; ctx.Err() == nil; life++ {
		place, action, nth := "", "kill", 1+random.IntN(4)
		switch n := random.IntN(100); {
		case life == 0 && slot == 0:
			place, nth = failpoint.Migrated, 1
		case (life == 1 && slot == 0 && c.replicas > 1 || n < 4) && c.sleeps.CompareAndSwap(false, true): // past its lease, while another works
			place, action = []string{failpoint.Send, failpoint.Sent, failpoint.Answered}[random.IntN(3)], "stop"
		case n < 75:
			switch place = c.draw(random); place {
			case failpoint.DeadStored:
				nth = 1
			case failpoint.Draining: // at the signal, or after the first event in hand
				nth = 1 + random.IntN(2)
			}
		}
		var env []string
		if place != "" {
			env = []string{fmt.Sprintf("PAPERMAP_FAILPOINT=%s=%s@%d", place, action, nth)}
		}
		p, err := c.startWorker(log, env...)
		if err != nil {
			c.t.Error(err)
			return
		}
		switch {
		case place == failpoint.Draining, place == "" && random.IntN(5) == 0:
			c.live(ctx, p, time.Duration(500+random.IntN(4000))*time.Millisecond)
			p.signal(syscall.SIGTERM)
			select {
			case <-p.done:
			case <-time.After(45 * time.Second):
				c.t.Errorf("%s: a worker still runs 45 s after SIGTERM; the end of its log:\n%s", c.name, tail(p.log.Name(), 3000))
			}
		case place == "":
			c.live(ctx, p, time.Duration(300+random.IntN(5000))*time.Millisecond)
		case action == "stop":
			if waitFor(ctx, 10*time.Second, func() error {
				if !p.stopped() {
					return errors.New("not stopped")
				}
				return nil
			}) == nil {
				c.count("stopped past its lease at " + place)
				time.Sleep(repo.Lease + 4*time.Second) // so that another has taken it over, whatever else ends
				p.signal(syscall.SIGCONT)
				c.live(ctx, p, 3*time.Second)
			}
			c.sleeps.Store(false)
			place = "" // what comes now is a death like any other
		default:
			c.live(ctx, p, 6*time.Second)
		}
		c.bury(p, place)
	}
}

// live waits until the process ends by itself, at most for d, or until ctx ends.
func (c *chaos) live(ctx context.Context, p *process, d time.Duration) {
	select {
	case <-p.done:
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// bury kills a process that has not ended, and counts how it ended.
func (c *chaos) bury(p *process, place string) {
	select {
	case <-p.done:
	default:
		p.kill()
		c.count("killed at a random time")
		c.total.kills.Add(1)
		if place != "" {
			c.mu.Lock()
			c.bag = append(c.bag, place) // it was not reached
			c.mu.Unlock()
		}
		_ = p.log.Close()
		return
	}
	defer p.log.Close()
	signal, code := p.ended()
	switch {
	case signal == syscall.SIGKILL && strings.Contains(p.output(), "failpoint "+place+": "):
		c.count("killed at " + place)
		c.total.kills.Add(1)
		c.mu.Lock()
		c.hit[place]++
		c.mu.Unlock()
	case signal == 0 && code == 0:
		c.count("drained")
	case time.Now().UnixNano() < c.away.Load():
		c.count("did not start without its database")
		time.Sleep(100 * time.Millisecond)
	default:
		out := p.output()
		c.t.Errorf("%s: a worker ended by itself (signal %v, code %d):\n%s", c.name, signal, code, out[max(0, len(out)-3000):])
	}
}

// expectExit waits for the process to end with code 0.
func (c *chaos) expectExit(p *process, when string) {
	select {
	case <-p.done:
		if signal, code := p.ended(); signal != 0 || code != 0 {
			c.t.Errorf("%s: signal %v, code %d", when, signal, code)
		}
	case <-time.After(40 * time.Second):
		c.t.Errorf("%s: still running", when)
	}
}

// fail lets the API and the way to it fail, and says when nothing worked.
func (c *chaos) fail(ctx context.Context, random *rand.Rand) (outages []proof.Window) {
	for {
		var faults []simulator.Fault
		bout := bouts[random.IntN(len(bouts))]
		for _, text := range bout {
			f, err := simulator.ParseFault(text)
			if err != nil {
				panic(err)
			}
			faults = append(faults, f)
		}
		c.sim.SetFaults(faults...)
		c.proxy.refuse.Store(false)
		c.proxy.delay.Store(0)
		switch random.IntN(8) {
		case 0:
			c.proxy.cut()
			c.count("cut the connections to the API")
		case 1:
			c.proxy.cut()
			c.proxy.refuse.Store(true)
			c.count("refused connections to the API")
		case 2:
			c.proxy.delay.Store(int64(100 * time.Millisecond))
		}
		outage := proof.Window{From: time.Now()}
		more := sleep(ctx, time.Duration(1000+random.IntN(3000))*time.Millisecond)
		if outage.To = time.Now(); bout[0] == "status=503" {
			outages = append(outages, outage)
		}
		if !more {
			break
		}
	}
	c.proxy.refuse.Store(false)
	c.proxy.delay.Store(0)
	return outages
}

// brokers kills the NATS server now and then.
func (c *chaos) brokers(ctx context.Context, random *rand.Rand) {
	for sleep(ctx, time.Duration(10+random.IntN(10))*time.Second) {
		if err := c.nats[0].restart(time.Duration(random.IntN(2000)) * time.Millisecond); err != nil {
			c.t.Error(err)
			return
		}
		c.count("NATS killed")
	}
}

// databases restarts PostgreSQL as a crash would, once a minute and at least once.
func (c *chaos) databases(ctx context.Context, random *rand.Rand) {
	wait := min(*chaosTime/4, time.Minute)
	for sleep(ctx, wait+time.Duration(random.Int64N(int64(wait)))) {
		wait = time.Minute
		c.away.Store(math.MaxInt64)
		if err := postgres.Restart(); err != nil {
			c.t.Error(err)
			return
		}
		c.away.Store(time.Now().Add(3 * time.Second).UnixNano())
		c.count("PostgreSQL restarted")
	}
}

// report counts what there was to be checked.
func (c *chaos) report(h proof.History) {
	for what, n := range map[string]int{
		"events published": len(h.Published), "tenants": len(h.Mappings), "dashboards": len(h.Dashboards), "requests to the API": len(h.Requests),
		"requests for tokens": len(h.Tokens), "dead letters": len(h.Dead), "events out": len(h.Out), "usage rows": len(h.Usage), "suspensions and deletions seen": len(h.Commits),
	} {
		c.total.add(c.name+": "+what, n)
	}
	for _, a := range h.Attempts {
		c.count("attempts " + string(a.Outcome))
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
