package repo

import (
	"flag"
	"fmt"
	"hash/maphash"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	exploreStates  = flag.Int("explore.states", 0, "states that TestExplore looks at in each scope; 0: a few")
	exploreScope   = flag.String("explore.scope", "", "the only scope that TestExplore looks at")
	exploreMutants = flag.Int("explore.mutants", 0, "how many mutants worker/proof/mutate has built in")
)

// scopes are what is explored: few events, but each order of them, and each accident at each step.
var scopes = []scope{
	{name: "recreate", kinds: []uint8{kindCreated, kindDeleted}, events: [2]uint8{2, 1}, times: 2, faults: 1},
	{name: "hold", kinds: []uint8{kindCreated, kindDeleted}, events: [2]uint8{2, 0}, times: 2, faults: 2,
		operations: 1, hold: 1},
	{name: "access", kinds: []uint8{kindCreated, kindDeleted, kindSuspended, kindResumed},
		events: [2]uint8{3, 0}, times: 3},
	{name: "adoption", kinds: []uint8{kindCreated, kindAdopt, kindAdoptOther, kindDeleted},
		events: [2]uint8{2, 1}, times: 2, faults: 1},
	{name: "operators", kinds: []uint8{kindCreated, kindAdopt, kindDeleted}, events: [2]uint8{2, 0},
		times: 2, faults: 2, operations: 2, hold: 1, clock: true},
	{name: "rivals", kinds: []uint8{kindCreated, kindAdopt}, events: [2]uint8{1, 1}, times: 1, faults: 2,
		operations: 1, hold: 1},
}

// wide are the scopes of the long form.
var wide = []scope{
	{name: "all", kinds: []uint8{kindCreated, kindAdopt, kindDeleted, kindSuspended, kindResumed},
		events: [2]uint8{3, 2}, times: 3, faults: 2},
	{name: "all with hold", kinds: []uint8{kindCreated, kindAdopt, kindDeleted, kindSuspended, kindResumed},
		events: [2]uint8{3, 2}, times: 3, faults: 2, operations: 1, hold: 1, clock: true},
}

// TestExplore goes through everything that can happen in a small scope, breadth first: the decisions
// are the real ones, and the stream, the workers, Papermap and time are a model. Every decision is
// compared with what the contract says, and every state with the promises. A failure is printed as
// the shortest history that leads to it.
//
//	go test ./repo -run TestExplore -v -timeout 1h -args -explore.states 20000000
func TestExplore(t *testing.T) {
	list, states := scopes, 1<<15
	if *exploreStates > 0 {
		list, states = append(list, wide...), *exploreStates
	}
	decisions := map[modelDecision]bool{}
	for i := range list {
		sc := &list[i]
		if *exploreScope != "" && *exploreScope != sc.name {
			continue
		}
		e := newExploration(sc, states)
		e.run(t)
		if *exploreMutants > 0 {
			e.collect(decisions)
		}
	}
	exploreEachMutant(t, decisions)
}

// exploration is a search. States are known by a hash of 64 bits; how each was reached is kept, so
// that a history can be made again.
type exploration struct {
	scope    *scope
	limit    int
	seed     maphash.Seed
	deciders []decider

	hashes []atomic.Uint64 // a hash table
	steps  []step          // by place in the table: how the state was reached first
	count  atomic.Int64    // of states

	wrong   sync.Mutex
	failure string
	history []modelAction
}

type step struct {
	from uint32 // the place of the state before, plus one
	by   modelAction
}

// node is a state that is to be looked at, with its place in the table.
type node struct {
	state modelState
	place uint32
}

func newExploration(sc *scope, limit int) *exploration {
	size := 1 << 12
	for size < limit*3/2 {
		size *= 2
	}
	e := &exploration{scope: sc, limit: limit, seed: maphash.MakeSeed(),
		deciders: make([]decider, runtime.GOMAXPROCS(0)),
		hashes:   make([]atomic.Uint64, size), steps: make([]step, size)}
	for i := range e.deciders {
		e.deciders[i].known = map[modelDecision]modelResult{}
	}
	return e
}

func (e *exploration) start() modelState {
	return modelState{faults: e.scope.faults, operations: e.scope.operations}
}

// run searches until every state was seen, or the limit is reached.
func (e *exploration) run(t *testing.T) {
	began := time.Now()
	first := e.start()
	place, _ := e.add(&first, step{})
	level := [][]node{{{first, place}}}
	depth := 0
	for ; len(level) > 0 && e.failure == "" && int(e.count.Load()) < e.limit; depth++ {
		level = e.next(level)
	}
	if e.failure != "" {
		t.Fatal(e.story())
	}
	calls, complete := 0, "all of them"
	for i := range e.deciders {
		calls += e.deciders[i].calls
	}
	if len(level) > 0 {
		complete = "not all"
	}
	took := time.Since(began)
	t.Logf("%s: %d states, %s, %d steps deep, in %v (%.0f a second); %d different decisions", e.scope.name,
		e.count.Load(), complete, depth, took.Round(time.Millisecond), float64(e.count.Load())/took.Seconds(),
		calls)
}

// next looks at the states of one level, and returns those of the next one.
func (e *exploration) next(level [][]node) (following [][]node) {
	var group sync.WaitGroup
	parts := make(chan []node)
	found := make([][][]node, len(e.deciders))
	for i := range e.deciders {
		group.Go(func() {
			list := make([]node, 0, 1024)
			for part := range parts {
				for n := range part {
					list = e.follow(&part[n], &e.deciders[i], list)
					if len(list) > 900 {
						found[i], list = append(found[i], list), make([]node, 0, 1024)
					}
				}
			}
			if len(list) > 0 {
				found[i] = append(found[i], list)
			}
		})
	}
	for _, part := range level {
		parts <- part
	}
	close(parts)
	group.Wait()
	for _, lists := range found {
		following = append(following, lists...)
	}
	return following
}

// follow adds the states that follow to the list, unless they are known.
func (e *exploration) follow(n *node, x *decider, list []node) []node {
	if int(e.count.Load()) >= e.limit {
		return list
	}
	var room [96]modelAction
	for _, a := range e.scope.actions(&n.state, room[:0]) {
		s := n.state
		possible, wrong := e.scope.apply(x, &s, a)
		if wrong == "" && possible {
			wrong = e.scope.broken(&s)
		}
		if wrong != "" {
			e.fail(n.place, a, wrong)
			return list
		}
		if !possible {
			continue
		}
		if place, fresh := e.add(&s, step{n.place + 1, a}); fresh {
			list = append(list, node{s, place})
		}
	}
	return list
}

// add adds a state to the table, unless it or its mirror image is in it.
func (e *exploration) add(s *modelState, by step) (place uint32, fresh bool) {
	mirrored := s.mirrored()
	hash := max(1, min(maphash.Comparable(e.seed, *s), maphash.Comparable(e.seed, mirrored)))
	for i := int(hash) & (len(e.hashes) - 1); ; i = (i + 1) & (len(e.hashes) - 1) {
		switch e.hashes[i].Load() {
		case hash:
			return uint32(i), false
		case 0:
			if !e.hashes[i].CompareAndSwap(0, hash) {
				i-- // look again
				continue
			}
			e.steps[i] = by
			e.count.Add(1)
			return uint32(i), true
		}
	}
}

// fail keeps the first failure, which is one of the shortest.
func (e *exploration) fail(place uint32, last modelAction, why string) {
	e.wrong.Lock()
	defer e.wrong.Unlock()
	if e.failure != "" {
		return
	}
	e.failure, e.history = why, []modelAction{last}
	for e.steps[place].from != 0 {
		e.history = append([]modelAction{e.steps[place].by}, e.history...)
		place = e.steps[place].from - 1
	}
}

// story tells the history of the failure.
func (e *exploration) story() string {
	var b strings.Builder
	fmt.Fprintf(&b, "scope %s, after %d steps:\n", e.scope.name, len(e.history))
	s, x := e.start(), decider{known: map[modelDecision]modelResult{}}
	for i, a := range e.history {
		before := s
		_, _ = e.scope.apply(&x, &s, a)
		fmt.Fprintf(&b, "%3d. %s\n", i+1, before.tell(a))
		for t := range s.tenants {
			if s.tenants[t] != before.tenants[t] {
				fmt.Fprintf(&b, "       %s\n", s.tellTenant(t))
			}
		}
	}
	return b.String() + e.failure
}
