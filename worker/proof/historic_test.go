package proof_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var historicFolder = flag.String("historic", "", "where TestHistoricBugs keeps its programs and results")

// A historic bug is a mutant with a line "Repaired:" that names the commit.

// method is one way to look for a bug: programs with tests, run until one of them fails.
type method struct {
	name string
	runs func(m mutant) []testRun
}

// testRun is one start of a package's tests, which is ended at its limit. The limits are generous,
// because the machine may be busy: what the tests do is given by their arguments.
type testRun struct {
	dir   string // of the package
	limit time.Duration
	args  string
}

// proofDir is the package with the tests of whole workers.
const proofDir = "worker/proof"

// Tests with random input, and those of all input in a small scope. The rest are unit tests.
const (
	propertyTests = "TestMappingStatus|TestDecisionsTogether|TestBatchesWrite|TestAdoptionsNever|" +
		"TestOutcomeOfACreate|TestCreatedFieldsRecord|TestModel"
	exploration = "TestExplore"
)

// wholeWorkers are the packages of which a worker consists, which the methods of proofDir run. The
// others are run by a command, or serve HTTP.
var wholeWorkers = []string{"repo", "events", "papermap", "worker"}

var methods = []method{
	{"unit test", func(m mutant) (runs []testRun) { // that was written for it
		for _, arguments := range m.tests {
			if words := strings.Fields(arguments); words[0] != "./"+proofDir {
				runs = append(runs, testRun{words[0][2:], 3 * time.Minute, "-test.run " + words[2] + "$"})
			}
		}
		return runs
	}},
	{"property tests", func(m mutant) []testRun {
		const form = "-rapid.checks 200 -rapid.nofailfile -test.run " + propertyTests
		own := testRun{m.in(), 2 * time.Minute, form}
		switch m.in() {
		case "repo":
			return []testRun{own, {proofDir, 2 * time.Minute, form}}
		case "papermap", "worker":
			return []testRun{own}
		}
		return nil
	}},
	{"exploration", func(m mutant) []testRun {
		if m.in() != "repo" {
			return nil
		}
		return []testRun{{"repo", 2 * time.Minute, "-test.run " + exploration}}
	}},
	{"simulation", func(m mutant) []testRun {
		return m.ofAWorker(testRun{proofDir, 5 * time.Minute, "-sim.seed 101 -test.run TestSimulation"})
	}},
	{"chaos", func(m mutant) []testRun {
		return m.ofAWorker(testRun{proofDir, 3 * time.Minute, "-test.run TestKillsLoseNothing -chaos.seed 3"})
	}},
}

// in is the package of the mutant, by its path in the repository.
func (m mutant) in() string { return strings.TrimPrefix(filepath.ToSlash(m.dir), "../../") }

// ofAWorker returns the runs if a worker consists of the mutant's package.
func (m mutant) ofAWorker(runs ...testRun) []testRun {
	if !slices.Contains(wholeWorkers, m.in()) {
		return nil
	}
	return runs
}

// TestHistoricBugs re-introduces bugs that were repaired, one at a time, looks for each by every
// method, and prints which finds it and after how long. Without -historic it shows only that all of
// them can be built at once. -mutants selects the bugs. Results are kept in the folder of -historic,
// so that a run can be stopped and continued. Delete the folder when the code has changed.
//
//	go test ./worker/proof -run TestHistoricBugs -v -timeout 3h -args -historic /tmp/historic
func TestHistoricBugs(t *testing.T) {
	// Without a bug every method passes.
	none := mutant{about: "no bug", dir: "../../repo", tests: []string{"./repo -run TestLeaseHasOneHolder"}}
	bugs := map[string]mutant{"none": none}
	for _, path := range mutantPaths(t) {
		m, err := readMutant(path)
		if err != nil {
			t.Fatal(err)
		}
		if m.repaired != "" {
			bugs[strings.TrimSuffix(filepath.Base(path), ".mutant")] = m
		}
	}
	b := newHistoricBuild(t, cmp.Or(*historicFolder, t.TempDir()), bugs)
	if *historicFolder == "" {
		return
	}
	results := b.readResults(t)
	wanted := regexp.MustCompile(*mutants)
	names := slices.Sorted(maps.Keys(bugs))
	names = slices.DeleteFunc(names, func(name string) bool { return !wanted.MatchString(name) })
	for _, by := range methods {
		for _, name := range names {
			key := name + "\t" + by.name
			if results[key] == "" {
				results[key] = b.look(t, name, by.runs(bugs[name]))
				b.appendResult(t, key+"\t"+results[key])
				t.Logf("%s, %s: %s", name, by.name, results[key])
			}
		}
	}
	fmt.Print(resultTable(bugs, names, results))
}

// look makes the runs until one fails. It returns a cell of the table: what failed, after how long,
// and with how many seconds of processor time. Building is not counted.
func (b *historicBuild) look(t *testing.T, bug string, runs []testRun) string {
	if err := os.WriteFile(b.choice(), []byte(bug), 0o600); err != nil {
		t.Fatal(err)
	}
	var took, computed time.Duration
	cell := func(found string) string {
		return fmt.Sprintf("%s, %.0f s (%.1f)", found, took.Seconds(), computed.Seconds())
	}
	for _, r := range runs {
		name := strings.ReplaceAll(r.dir, "/", "-") + ".test"
		program := b.program(t, name, "test", "-c", "-vet=off", "./"+r.dir)
		if r.dir == proofDir {
			b.program(t, "papermap-worker", "build", "papermap-worker")
			b.program(t, "nats-server", "build", "github.com/nats-io/nats-server/v2")
			r.args += " -programs " + b.folder
		}
		began := time.Now()
		out, state, err := r.run(t.Context(), program)
		took += time.Since(began)
		computed += state.UserTime() + state.SystemTime()
		by := symptom.FindAllString(out, -1)
		switch {
		case by != nil:
			return cell(causes(by))
		case err != nil:
			t.Fatalf("%s, %s %s: %v\n%s", bug, r.dir, r.args, err, out[max(0, len(out)-2000):])
		}
	}
	if runs == nil {
		return "not reached"
	}
	return cell("no")
}

// symptom is what tests print that found something.
var symptom = regexp.MustCompile(`violation of [a-z-]+|--- FAIL: \S+|panic: [^\n[]{0,60}`)

// run returns what the tests printed until their end, their first failure or their limit. The
// programs that they started end with them. It returns an error for another end.
func (r testRun) run(ctx context.Context, program string) (string, *os.ProcessState, error) {
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"-test.failfast"}, strings.Fields(r.args)...)...)
	cmd.Dir = filepath.Join("..", "..", r.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out := &untilFailure{end: func() { time.AfterFunc(time.Second, cancel) }}
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	if ctx.Err() != nil {
		err = nil
	}
	return out.String(), cmd.ProcessState, err
}

// untilFailure collects what tests print, and calls end at the first failure: parallel tests would
// go on.
type untilFailure struct {
	bytes.Buffer
	end func()
}

func (u *untilFailure) Write(text []byte) (int, error) {
	if bytes.Contains(text, []byte("--- FAIL")) {
		u.end()
	}
	return u.Buffer.Write(text)
}

// causes shortens what was found to the promises that were broken, or to the tests that failed.
func causes(found []string) string {
	slices.Sort(found)
	found = slices.Compact(found)
	for _, prefix := range []string{"violation of ", "--- FAIL: ", "panic: "} {
		var list []string
		for _, f := range found {
			if cause, ok := strings.CutPrefix(f, prefix); ok {
				cause, _, _ = strings.Cut(cause, "/")
				list = append(list, "`"+strings.TrimSpace(cause)+"`")
			}
		}
		if list = slices.Compact(list); list != nil {
			return strings.Join(list[:min(3, len(list))], ", ")
		}
	}
	return "it ended with an error"
}

func (b *historicBuild) readResults(t *testing.T) map[string]string {
	results := map[string]string{}
	text, err := os.ReadFile(filepath.Join(b.folder, "results.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Split(strings.TrimSpace(line), "\t"); len(words) == 3 {
			results[words[0]+"\t"+words[1]] = words[2]
		}
	}
	return results
}

func (b *historicBuild) appendResult(t *testing.T, line string) {
	f, err := os.OpenFile(filepath.Join(b.folder, "results.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(line + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// resultTable is the table of docs/historic-bugs.md.
func resultTable(bugs map[string]mutant, names []string, results map[string]string) string {
	var b strings.Builder
	b.WriteString("| bug | fixed in |")
	for _, by := range methods {
		fmt.Fprintf(&b, " %s |", by.name)
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", len(methods)+2) + "\n")
	for _, name := range names {
		fmt.Fprintf(&b, "| `%s`: %s | %s |", name, bugs[name].about, bugs[name].repaired)
		for _, by := range methods {
			fmt.Fprintf(&b, " %s |", cmp.Or(results[name+"\t"+by.name], "not run"))
		}
		b.WriteString("\n")
	}
	return b.String()
}
