package proof_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"papermap-worker/worker/failpoint"
	"papermap-worker/worker/proof"
	"papermap-worker/worker/workertest"
)

// fault is one thing that goes wrong, by itself: without the others it is the same.
type fault struct {
	number     int
	at, length time.Duration
	kind       string
	seed       uint64
}

func (f fault) String() string {
	return fmt.Sprintf("%d: %s at %v for %v", f.number, f.kind, f.at.Round(time.Second),
		f.length.Round(time.Second))
}

// faultKind is a kind of fault: how often it is drawn, how long it is at most, and what it does.
// begin returns how it ends; nil: by itself.
type faultKind struct {
	name    string
	weight  int
	longest time.Duration
	begin   func(s *simulation, random *rand.Rand, length time.Duration) (end func())
}

var faultKinds = []faultKind{
	{"API", 10, 3 * time.Hour, (*simulation).failAPI},
	{"worker cut off from NATS", 4, 10 * time.Minute, (*simulation).cutOff},
	{"NATS stopped", 3, 5 * time.Minute, (*simulation).stopNATS},
	{"worker stopped", 3, 20 * time.Minute, (*simulation).stopWorker},
	{"worker killed", 4, 20 * time.Minute, (*simulation).killWorker},
	{"killed at a failpoint", 16, 4 * time.Hour, (*simulation).arm},
	{"database refuses writes", 3, 3 * time.Minute, (*simulation).refuseWrites},
	{"database connections cut", 3, time.Second, (*simulation).cutDatabase},
	{"consumer deleted", 1, time.Second, (*simulation).deleteConsumer},
	{"consumer changed", 1, time.Second, (*simulation).changeConsumer},
	{"stream changed", 2, 10 * time.Minute, (*simulation).changeStream},
	{"Papermap's clock off", 2, 2 * time.Hour, (*simulation).turnClock},
	{"stream rebuilt", 2, time.Second, (*simulation).rebuildStream},
	{"stream of dead letters deleted", 1, time.Second, (*simulation).deleteDeadStream},
	{"disk full", 2, 5 * time.Minute, (*simulation).fillDisk},
}

// plan draws the faults of a run.
func (s *simulation) plan(length time.Duration, skewed bool) (list []fault) {
	random := s.random("plan")
	total := 0
	for _, k := range faultKinds {
		total += k.weight
	}
	mean := float64(pace(15 * time.Minute))
	for at := time.Duration(0); ; {
		at += time.Duration(random.ExpFloat64() * mean)
		if at >= length {
			break
		}
		n, i := random.IntN(total), 0
		for ; n >= faultKinds[i].weight; i++ {
			n -= faultKinds[i].weight
		}
		k := faultKinds[i]
		// Most are short, some are long.
		length := time.Duration(float64(pace(k.longest)) * random.Float64() * random.Float64())
		list = append(list, fault{len(list), at, length, k.name, random.Uint64()})
	}
	keep := map[int]bool{}
	for text := range strings.SplitSeq(*simOnly, ",") {
		if n, err := strconv.Atoi(text); err == nil {
			keep[n] = true
		}
	}
	return slices.DeleteFunc(list, func(f fault) bool {
		return *simOnly != "" && !keep[f.number] || f.kind == "Papermap's clock off" && !skewed ||
			f.kind == "killed at a failpoint" && !failpoint.Enabled ||
			f.kind == "database connections cut" && s.database == "SQLite" ||
			f.kind == "disk full" && !ownDisk()
	})
}

// begin makes a fault happen.
func (s *simulation) begin(f fault) {
	i := slices.IndexFunc(faultKinds, func(k faultKind) bool { return k.name == f.kind })
	if *simTrace {
		s.t.Logf("%s %v", time.Now().Format(time.DateTime), f)
	}
	s.count.add(f.kind, 1)
	if end := faultKinds[i].begin(s, rand.New(rand.NewPCG(f.seed, 0)), f.length); end != nil {
		s.at(time.Now().Add(f.length), end)
	}
}

// simBouts are faults of the API beside those of the chaos test. An outage answers nothing else.
var simBouts = [][]string{
	{"on=create status=403 rate=0.3"},
	{"on=create status=404 rate=0.2"},
	{"on=create status=408 rate=0.2"},
	{"on=create status=409 rate=0.2"},
	{"on=create status=402 rate=0.2"},
	{"on=create status=400 rate=0.05"},
	{"on=create status=504 effect=true rate=0.2"},
	{"on=create drop=after rate=0.5"},
	{"on=usage status=500 rate=0.3"},
	{"on=usage truncate=true rate=0.2", "on=usage drop=before rate=0.2"},
	{"on=usage delay=12s rate=0.2"},
	{"on=create status=200 body=<html> content-type=text/html rate=0.1"},
	{"delay=9s rate=0.3"},
	{"drop=before"},
	{"status=500"},
	{"status=401"},
	{"status=403"},
	{"status=503 retry-after=30"},
	{"status=429 retry-after=60 rate=0.8"},
}

func (s *simulation) failAPI(random *rand.Rand, _ time.Duration) (end func()) {
	list := slices.Concat(bouts[3:], simBouts)
	bout := list[random.IntN(len(list))]
	s.count.add("API: "+bout[0], 1)
	s.attached++
	turn := s.attached
	s.SetFaults(bout...)
	from := time.Now()
	return func() {
		if turn != s.attached {
			return // another has replaced it; an outage that was cut short is not counted
		}
		s.SetFaults()
		switch bout[0] {
		case "status=503", "status=500", "status=401", "status=403":
			s.history.Outages = append(s.history.Outages, proof.Window{From: from, To: time.Now()})
		}
	}
}

func (s *simulation) cutOff(random *rand.Rand, _ time.Duration) (end func()) {
	_, i := s.running(random)
	if i == nil {
		return nil
	}
	i.Cut()
	return i.Restore
}

func (s *simulation) stopNATS(*rand.Rand, time.Duration) (end func()) {
	if s.natsDown {
		return nil
	}
	s.natsDown = true
	s.StopNATS()
	return func() {
		s.StartNATS()
		s.natsDown = false
	}
}

func (s *simulation) stopWorker(random *rand.Rand, _ time.Duration) (end func()) {
	slot, i := s.running(random)
	if i == nil {
		return nil
	}
	s.set(slot, nil)
	i.Stop()
	return func() { s.restart(slot) }
}

func (s *simulation) killWorker(random *rand.Rand, _ time.Duration) (end func()) {
	slot, i := s.running(random)
	if i == nil {
		return nil
	}
	s.set(slot, nil)
	i.Kill()
	return func() { s.restart(slot) }
}

// restart starts the worker of a slot, later if it cannot start now.
func (s *simulation) restart(slot int) {
	if s.workers[slot] != nil {
		return
	}
	i, err := s.Launch()
	if err != nil {
		s.count.add("a worker could not start", 1)
		s.at(time.Now().Add(time.Second), func() { s.restart(slot) })
		return
	}
	s.set(slot, i)
}

// set changes the worker of a slot; nil: it has none.
func (s *simulation) set(slot int, i *workertest.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workers[slot] = i
}

// restartAll starts those that are still away.
func (s *simulation) restartAll() {
	s.reap()
	for slot := range s.workers {
		s.restart(slot)
	}
}

// arm makes the next hits of a failpoint end every worker at once, as with their machine.
func (s *simulation) arm(random *rand.Rand, length time.Duration) (end func()) {
	places := slices.DeleteFunc(places(), func(p string) bool {
		return p == failpoint.Commit && !s.Shared() // SQLite finishes a transaction that has started
	})
	s.setPlace(places[random.IntN(len(places))], 1+random.IntN(2))
	until := time.Now().Add(length)
	pause := time.Duration(random.Int64N(int64(time.Minute)))
	var look func()
	look = func() {
		late := time.Now().After(until)
		if late {
			s.setPlace("", 0)
		}
		if s.reap() {
			s.at(time.Now().Add(pause), s.restartAll)
		} else if !late {
			s.at(time.Now().Add(5*time.Second), look)
		}
	}
	s.at(time.Now().Add(5*time.Second), look)
	return nil
}

// setPlace sets the failpoint to be hit next.
func (s *simulation) setPlace(place string, nth int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed, s.nth = place, nth
}

// hit is called at each failpoint, by the worker's goroutines.
func (s *simulation) hit(place string) {
	s.mu.Lock()
	if place != s.armed {
		s.mu.Unlock()
		return
	}
	if s.nth--; s.nth > 0 {
		s.mu.Unlock()
		return
	}
	s.armed = ""
	s.count.add("killed at "+place, 1)
	if place == failpoint.Migrated {
		s.mu.Unlock()
		panic("killed") // to migrate
	}
	var dying []*workertest.Instance
	for _, i := range s.workers {
		if i != nil && !s.gone[i] {
			s.gone[i] = true
			dying = append(dying, i)
		}
	}
	s.mu.Unlock()
	if place == failpoint.Commit {
		s.endSessions() // before the caller commits
	}
	for _, i := range dying {
		i.Sever()
	}
}

// reap ends what is left of the workers that died at a failpoint, if any did.
func (s *simulation) reap() (any bool) {
	for slot, i := range s.workers {
		s.mu.Lock()
		dead := s.gone[i]
		s.mu.Unlock()
		if i != nil && dead {
			i.Kill()
			s.set(slot, nil)
			any = true
		}
	}
	return any
}

// turnClock makes Papermap's clock wrong.
func (s *simulation) turnClock(random *rand.Rand, _ time.Duration) (end func()) {
	off := time.Duration(random.IntN(180)-90) * time.Second
	if off.Abs() > s.off {
		s.history.Clocks += off.Abs() - s.off
		s.off = off.Abs()
	}
	s.ahead.Store(int64(off))
	return func() { s.ahead.Store(0) }
}
