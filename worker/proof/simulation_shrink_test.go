package proof_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"papermap-worker/worker/failpoint"
)

// flags are those that repeat the run.
func (s *simulation) flags(length time.Duration) []string {
	days := fmt.Sprint(length.Hours() / 24)
	return []string{"-sim.seed", fmt.Sprint(s.seed), "-sim.days", days, "-sim.part", days,
		fmt.Sprintf("-sim.dense=%v", dense())}
}

// shrink looks for a short list of faults with which the run fails, too: it leaves out ever smaller
// pieces of the list, and keeps what is left if that fails as well. Each try is a process.
func (s *simulation) shrink(t *testing.T, plan []fault, length time.Duration) {
	left := *simShrink
	if left == 0 {
		return
	}
	fails := func(list []fault) bool {
		left--
		numbers := "none"
		for _, f := range list {
			numbers += fmt.Sprint(",", f.number)
		}
		args := append(s.flags(length), "-test.run", "TestSimulation.*/"+s.database, "-sim.only", numbers)
		return exec.Command(os.Args[0], args...).Run() != nil
	}
	for size := (len(plan) + 1) / 2; size > 0 && left > 0; {
		again := false
		for from := 0; from < len(plan) && left > 0; {
			rest := append(append([]fault{}, plan[:from]...), plan[min(from+size, len(plan)):]...)
			if fails(rest) {
				plan, again = rest, true
			} else {
				from += size
			}
		}
		if size == 1 && !again {
			break
		}
		size = max(1, size/2)
	}
	var numbers, lines []string
	for _, f := range plan {
		numbers, lines = append(numbers, fmt.Sprint(f.number)), append(lines, f.String())
	}
	t.Logf("it fails with -sim.only %s (failpoints %v):\n%s", strings.Join(numbers, ","), failpoint.Enabled,
		strings.Join(lines, "\n"))
}
