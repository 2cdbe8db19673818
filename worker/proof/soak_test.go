package proof_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/proof"
	"papermap-worker/worker/workertest"
)

// The seed is that of -chaos.seed. It needs root, to mount the disks that it fills.
//
//	go test ./worker/proof -run TestSoak -v -timeout 3h -soak.time 2h
var soakTime = flag.Duration("soak.time", 0, "how long TestSoak runs; 0 skips it")

// The load of a soak on each system.
const (
	soakRate     = 5                      // events a second
	soakTokens   = 100 * time.Millisecond // between two requests for tokens
	soakSync     = 5 * time.Minute        // between two usage syncs
	soakUsage    = 1000                   // tenants with usage
	soakChanging = 100                    // of those, how many have more usage at each sync
)

// soakTenants is after how many there are no new ones: so many that they are there after the warm-up.
func soakTenants() int { return int(min(200, *soakTime/(12*time.Second))) }

// soak is a system whose workers live as long as it does and are measured meanwhile.
type soak struct {
	*chaos
	workers []*process
	http    []string // their addresses
	samples []sample
	synced  time.Time
	syncs   int
}

// TestSoakUsesNoMoreAndMore runs two workers on PostgreSQL and one on SQLite under a light, steady
// load, with a fault every 10 to 20 s that no worker dies of. The workers' memory, goroutines,
// descriptors and write-ahead logs must not grow, nor tables that have a row per tenant. Then Check
// must find nothing wrong with what is left.
func TestSoakUsesNoMoreAndMore(t *testing.T) {
	if *soakTime == 0 {
		t.Skip("without -soak.time")
	}
	seed := *chaosSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	var total tally
	t.Run("systems", func(t *testing.T) {
		for i, name := range []string{"PostgreSQL", "SQLite"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				newSoak(t, seed+uint64(i), &total, 2-i).run()
			})
		}
	})
	t.Logf("seed %d, in all:\n%s", seed, total.table())
}

func newSoak(t *testing.T, seed uint64, total *tally, replicas int) *soak {
	s := &soak{chaos: &chaos{replicas: replicas, seed: seed, total: total}}
	name, database := "sqlite", ""
	if replicas > 1 {
		if pgtest.Need(t, postgres); !postgres.Private() {
			t.Skip("the PostgreSQL server may not be restarted")
		}
		name, database = "postgres", s.ownPostgres(t)
	}
	s.system = &system{t: t, name: name, database: database, disks: true}
	s.system.start(1, seed, "LOG_LEVEL=info")
	s.load = &load{s: s.system, random: s.random("load"), pause: soakTokens, choose: s.choose}
	s.setFaults("delay=20ms")
	s.sim.SetUsage(workspace.ID, simulator.Usage{Tenants: soakUsage, Seed: seed, Rows: s.usage()})
	for i := range replicas {
		s.links = append(s.links, startProxy(t, s.nats[0].url()))
		port, err := workertest.FreePort()
		s.must(err)
		s.http = append(s.http, fmt.Sprintf("127.0.0.1:%d", port))
		p, err := s.startReplica(i, "HTTP_ADDR="+s.http[i])
		s.must(err)
		t.Cleanup(p.kill)
		s.workers = append(s.workers, p)
	}
	eventually(t, time.Minute, s.ready)
	return s
}

// ready returns nil when all workers have started.
func (s *soak) ready() error {
	for _, address := range s.http {
		answer, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", address, answer.Status)
		}
	}
	return nil
}

// usage returns the rows that are different at each sync.
func (s *soak) usage() []simulator.UsageRow {
	rows := make([]simulator.UsageRow, soakChanging)
	for i := range rows {
		rows[i] = simulator.UsageRow{
			TenantID: fmt.Sprintf("org-%07d", i), Period: usageTo,
			Credits: fmt.Sprintf("%d.5", 100*s.syncs+i), Requests: int64(s.syncs),
		}
	}
	return rows
}

// choose queues the load's next events: new tenants at first, then changes of those there are.
func (s *soak) choose() {
	l := s.load
	if time.Since(s.synced) > soakSync {
		s.synced = time.Now()
		s.sync()
		return
	}
	switch n := l.random.IntN(100); {
	case n < 2:
		l.poisoned()
	case len(l.tenants) < soakTenants():
		l.next()
	case n < 10:
		l.queue = append(l.queue, l.sent[l.random.IntN(len(l.sent))])
	default:
		kinds := []string{"suspended", "resumed", "suspended", "resumed", "created", "deleted", "created"}
		l.about(l.tenants[l.random.IntN(len(l.tenants))], kinds[l.random.IntN(len(kinds))])
	}
}

// sync changes the usage at the API and queues a usage.sync.
func (s *soak) sync() {
	s.syncs++
	s.sim.ChangeUsage(workspace.ID, func(u *simulator.Usage) { u.Rows = s.usage() })
	s.load.sync(true)
}

func (s *soak) run() {
	t := s.t
	s.started = time.Now()
	ctx, end := context.WithTimeout(t.Context(), *soakTime)
	defer end()
	var history proof.History
	var group sync.WaitGroup
	s.load.begin(ctx, &group, soakRate, s.random("tokens"), &history)
	group.Go(func() { history.Outages = s.trouble(ctx, s.random("faults")) })
	group.Go(func() { s.measureAll(ctx) })
	for _, p := range s.workers {
		group.Go(func() {
			if p.wait(ctx, 2**soakTime) {
				t.Errorf("%s: a worker ended; end of its log:\n%s", s.name, p.tail(3000))
				end()
			}
		})
	}
	group.Wait()

	s.sync() // so that the newest usage is read
	for _, e := range s.load.queue {
		s.must(s.load.publish(t.Context(), e))
	}
	s.waitQuiet(10 * time.Minute)
	s.judge()
	for _, p := range s.workers {
		p.terminate(t)
	}
	s.report(s.load.judge(history))
}

// soakFault is a kind of fault, as it is logged and counted. do returns when it is over.
type soakFault struct {
	name string
	do   func(context.Context, *rand.Rand) error
}

// trouble makes a fault every 10 to 20 s until ctx ends, and returns when the API answered nothing.
func (s *soak) trouble(ctx context.Context, random *rand.Rand) (outages []proof.Window) {
	all := []soakFault{
		{apiCut, s.cutAPI},
		{apiRefused, s.refuseAPI},
		{"slow connections to the API", s.slowAPI},
		{cutOff, s.cutLink},
		{cutOff + " for a while", s.cutLinkLonger},
		{natsKilled, s.killNATS},
		{"a worker stopped for seconds", s.pause},
		{"a worker stopped past its leases", s.pauseLonger},
		{"deleting a consumer", s.deleteConsumer},
		{"filling JetStream's disk", s.fillNATS},
	}
	if s.replicas == 1 {
		all = append(all, soakFault{"filling the database's disk", s.fillDatabase})
	} else {
		all = append(all, soakFault{postgresKilled, s.restartPostgres})
	}
	for _, bout := range bouts {
		if len(bout) == 1 && bout[0] == "delay=20ms" {
			continue
		}
		all = append(all, soakFault{"the API: " + strings.Join(bout, "; "),
			func(ctx context.Context, random *rand.Rand) error {
				outage := proof.Window{From: time.Now()}
				s.setFaults(bout...)
				s.lasting(ctx, random)
				s.setFaults("delay=20ms")
				if outage.To = time.Now(); bout[0] == "status=503" {
					outages = append(outages, outage)
				}
				return nil
			}})
	}
	var bag []soakFault
	next := time.Now()
	for {
		next = later(next, 10*time.Second+time.Duration(random.Int64N(int64(10*time.Second))))
		if !sleep(ctx, time.Until(next)) {
			return outages
		}
		f := drawFrom(&bag, all, random)
		s.t.Logf("fault %s %v: %s", s.name, time.Since(s.started).Round(time.Second), f.name)
		s.count("fault: " + f.name)
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		err := f.do(after, random)
		cancel()
		if err != nil {
			s.t.Errorf("%s: %s: %v", s.name, f.name, err)
			return outages
		}
	}
}

// later returns the time d after t, or now if that has passed.
func later(t time.Time, d time.Duration) time.Time {
	if t = t.Add(d); t.Before(time.Now()) {
		return time.Now()
	}
	return t
}

// lasting waits as long as most faults last.
func (s *soak) lasting(ctx context.Context, random *rand.Rand) {
	sleep(ctx, 2*time.Second+time.Duration(random.Int64N(int64(6*time.Second))))
}

func (s *soak) cutAPI(context.Context, *rand.Rand) error {
	s.proxy.cut()
	return nil
}

func (s *soak) refuseAPI(ctx context.Context, random *rand.Rand) error {
	s.proxy.refuse.Store(true)
	s.proxy.cut()
	s.lasting(ctx, random)
	s.proxy.refuse.Store(false)
	return nil
}

func (s *soak) slowAPI(ctx context.Context, random *rand.Rand) error {
	s.proxy.delay.Store(int64(500 * time.Millisecond))
	s.lasting(ctx, random)
	s.proxy.delay.Store(0)
	return nil
}

func (s *soak) cutLink(_ context.Context, random *rand.Rand) error {
	s.links[random.IntN(len(s.links))].cut()
	return nil
}

func (s *soak) cutLinkLonger(ctx context.Context, random *rand.Rand) error {
	link := s.links[random.IntN(len(s.links))]
	link.refuse.Store(true)
	link.cut()
	sleep(ctx, time.Duration(random.Int64N(int64(40*time.Second))))
	link.refuse.Store(false)
	return nil
}

func (s *soak) killNATS(_ context.Context, random *rand.Rand) error {
	return s.nats[0].restart(time.Duration(random.Int64N(int64(5 * time.Second))))
}

func (s *soak) restartPostgres(context.Context, *rand.Rand) error { return s.postgres.Restart() }

func (s *soak) pause(ctx context.Context, random *rand.Rand) error {
	return s.stop(ctx, random, 2*time.Second+time.Duration(random.Int64N(int64(6*time.Second))))
}

func (s *soak) pauseLonger(ctx context.Context, random *rand.Rand) error {
	return s.stop(ctx, random, repo.Lease+4*time.Second)
}

// stop stops a worker and continues it.
func (s *soak) stop(ctx context.Context, random *rand.Rand, d time.Duration) error {
	process := s.workers[random.IntN(len(s.workers))].cmd.Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop a worker: %w", err)
	}
	sleep(ctx, d)
	if err := process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("continue a worker: %w", err)
	}
	return nil
}
