// Mutate changes one line of the core at a time and runs the short tests of its package on that. A
// change that no test notices has survived: either a test is missing, or the change makes no
// difference.
//
//	go run ./worker/proof/mutate -packages repo,events -limit 50 -seed 1
//
// A package is built once, with each mutant behind a switch that an environment variable turns on.
// The working tree is not touched: the changed files are an overlay. Results are appended to a log,
// one line each. Mutants that are in the log are not run again, so a run can be stopped and
// continued. A mutant is known by its function and text, and not by its line, so that the log
// survives changes elsewhere in the file.
//
// With -explore, the exploration of repo's decisions runs alone, on the mutants of repo.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"
)

// target is a package with the files that are changed and the tests that are run: the shortest that
// are meant to notice.
type target struct {
	name, dir string
	files     []string
	run       string // a regular expression of tests
}

var targets = []target{
	{
		"repo", "repo",
		[]string{"decide.go", "provision.go", "mapping.go", "resolve.go", "adopt.go", "attempts.go"},
		"^Test(Explore|Decisions|AuditEntr|Adopt|Begin|Fail|Finish|Generation|Old|Resolve|Recreate|Replace" +
			"|Restore|Mapping|OutboxOmits|OutboxIsWritten|PossibleOrphans|BatchRollsBack|BatchesWrite)",
	},
	{
		"events", "events",
		[]string{"retry.go", "decode.go"},
		"^Test(Delay|Decode|Binary|Envelopes|EventTime|Identity|Messages|Tenant|TimeOf|TimeThat|Unknown" +
			"|Usage|SchemasAndDecoder|Replays)",
	},
	{
		"papermap", "papermap",
		[]string{"sign.go", "classify.go"},
		"^Test(Signature|Token|Classify|Retry|Answer|Error|Reason|Redactor|Expired|SecretNever" +
			"|Truncate|UsageFailure)",
	},
	{
		"worker", "worker",
		[]string{"provision.go"},
		"^Test(Provisioner|Classify|SideEffect|Adoption|TenantCreated|EventForms|Copies|Refused|Lost|Held" +
			"|Late|Dashboard|Redelivered|CreateEnds|InvalidEvents|Paused|Failing|MaxAttempts|KilledWorkers" +
			"|KnownOutcome)",
	},
}

var (
	packages = flag.String("packages", "", "the targets, comma-separated (default: all)")
	limit    = flag.Int("limit", 0, "how many mutants to run (0: all)")
	seed     = flag.Uint64("seed", 1, "of the order in which they are run")
	logPath  = flag.String("log", "mutants.log", "where results are kept")
	timeout  = flag.Duration("timeout", 2*time.Minute, "of one mutant's tests")
	again    = flag.Bool("survivors", false, "run those again that the log says survived")
	list     = flag.Bool("list", false, "print the mutants without running them")
	runOnly  = flag.String("run", "", "a regular expression of the tests to be run instead of the target's")
	summary  = flag.Bool("summary", false, "print the log's table and survivors without running anything")
	states   = flag.Int("explore", 0, "states for the exploration of repo, which alone is run on its mutants")
)

func main() {
	flag.Parse()
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	results, err := readLog(*logPath)
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if *states > 0 {
		return explore(ctx, folder)
	}
	mutants, programs, err := all(ctx, folder)
	switch {
	case err != nil:
		return err
	case *summary:
		printSummary(mutants, results)
		return nil
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	random.Shuffle(len(mutants), func(i, j int) { mutants[i], mutants[j] = mutants[j], mutants[i] })
	for n := 0; len(mutants) > 0 && (*limit == 0 || n < *limit); mutants = mutants[1:] {
		m := mutants[0]
		if before := results[m.key()]; before != "" && (!*again || before != "survived") {
			continue
		}
		n++
		if *list {
			fmt.Printf("%s:%d\t%s\n", m.path(), m.line, m.key())
			continue
		}
		began := time.Now()
		passed, output := m.target.test(ctx, programs[m.target.name], m.number, *timeout)
		results[m.key()] = "killed"
		if passed {
			results[m.key()] = "survived"
		}
		line := fmt.Sprintf("%s\t%s\t%.1fs\t%s\n", results[m.key()], m.key(), time.Since(began).Seconds(),
			strings.Join(failed(output), " "))
		fmt.Print(line)
		if err := appendLog(*logPath, line); err != nil {
			return err
		}
	}
	return nil
}

// all returns the mutants of the wanted targets, in the order of their files, and by target the
// program with its tests. It checks that these pass without a mutant.
func all(ctx context.Context, folder string) (mutants []mutant, programs map[string]string, err error) {
	programs = map[string]string{}
	for _, t := range targets {
		if *packages != "" && !slices.Contains(strings.Split(*packages, ","), t.name) {
			continue
		}
		if *runOnly != "" {
			t.run = *runOnly
		}
		exports, err := exportsOf(ctx, t.dir)
		if err != nil {
			return nil, nil, err
		}
		made, changed, err := load(t, exports)
		if err != nil {
			return nil, nil, err
		}
		mutants = append(mutants, made...)
		if *list || *summary {
			continue
		}
		if programs[t.name], err = t.buildTest(ctx, changed, folder); err != nil {
			return nil, nil, err
		}
		began := time.Now()
		if passed, output := t.test(ctx, programs[t.name], 0, *timeout); !passed {
			return nil, nil, fmt.Errorf("the tests of %s fail without a mutant:\n%s", t.name, output)
		}
		took := time.Since(began).Seconds()
		fmt.Printf("# %s: %d mutants, whose tests take %.1fs\n", t.name, len(made), took)
	}
	if len(mutants) == 0 {
		return nil, nil, errors.New("no target has one of these names")
	}
	return mutants, programs, nil
}

// failed names the tests that failed, and else why there is no such name.
func failed(output string) (names []string) {
	for line := range strings.Lines(output) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); ok {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, name)
		}
	}
	switch {
	case len(names) > 0:
	case strings.Contains(output, "panic: test timed out"):
		names = []string{"timeout"}
	case strings.Contains(output, "panic:"):
		names = []string{"panic"}
	}
	return names
}

func readLog(path string) (map[string]string, error) {
	results := map[string]string{}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return results, nil
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) >= 2 {
			results[fields[1]] = fields[0]
		}
	}
	return results, err
}

func appendLog(path, line string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

// printSummary prints how many mutants of each file were killed, and those that survived.
func printSummary(mutants []mutant, results map[string]string) {
	type row struct{ all, killed, survived int }
	rows := map[string]*row{}
	var files []string
	var survivors []mutant
	for _, m := range mutants {
		r := rows[m.path()]
		if r == nil {
			r = &row{}
			rows[m.path()] = r
			files = append(files, m.path())
		}
		r.all++
		switch results[m.key()] {
		case "killed":
			r.killed++
		case "survived":
			r.survived++
			survivors = append(survivors, m)
		}
	}
	fmt.Println("| file | mutants | run | killed | survived |\n| --- | --- | --- | --- | --- |")
	for _, file := range files {
		r := rows[file]
		fmt.Printf("| `%s` | %d | %d | %d | %d |\n", file, r.all, r.killed+r.survived, r.killed, r.survived)
	}
	slices.SortStableFunc(survivors, func(a, b mutant) int {
		return cmp.Or(cmp.Compare(a.path(), b.path()), cmp.Compare(a.line, b.line))
	})
	for _, m := range survivors {
		fmt.Printf("%s:%d\t%s\n", m.path(), m.line, m.key())
	}
}
