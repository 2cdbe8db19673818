package repo

import (
	"fmt"
	"testing"
)

// turnOn turns on a mutant of worker/proof/mutate, which adds the file that sets it. 0: none.
var turnOn func(mutant int)

// collect adds the different decisions that the exploration has met.
func (e *exploration) collect(to map[modelDecision]bool) {
	for i := range e.deciders {
		for in := range e.deciders[i].known {
			to[in] = true
		}
	}
}

// exploreEachMutant repeats the decisions with each mutant, until one does not come to what the
// contract says. This finds the mutants that an exploration of the same states finds, without
// repeating the exploration: until a mutant decides otherwise, it leads to the same states.
func exploreEachMutant(t *testing.T, decisions map[modelDecision]bool) {
	for n := 1; n <= *exploreMutants; n++ {
		turnOn(n)
		found := "not found"
		for in := range decisions {
			if wrongWith(&in) {
				found = "found"
				break
			}
		}
		turnOn(0)
		fmt.Printf("mutant %d %s\n", n, found)
	}
	if *exploreMutants > 0 {
		t.Logf("%d different decisions", len(decisions))
	}
}

func wrongWith(in *modelDecision) (wrong bool) {
	defer func() { wrong = wrong || recover() != nil }()
	out, why := decideModel(in)
	return why != "" || in.wrong(&out) != ""
}
