package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const turnOn = `package repo

func init() { turnOn = func(number int) { mutant = number } }
`

// explore prints which mutants of package repo the exploration of its decisions finds, and those that
// it does not.
func explore(ctx context.Context, folder string) error {
	t := targets[0]
	exports, err := exportsOf(ctx, t.dir)
	if err != nil {
		return err
	}
	mutants, changed, err := load(t, exports)
	if err != nil {
		return err
	}
	changed[filepath.Join(t.dir, "mutate_explore_test.go")] = turnOn
	program, err := t.buildTest(ctx, changed, folder)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-test.run", "^TestExplore$", "-test.v", "-test.timeout", "2h",
		"-explore.mutants", fmt.Sprint(len(mutants)), "-explore.states", fmt.Sprint(*states))
	cmd.Dir, cmd.Stderr = t.dir, os.Stderr
	out, err := cmd.Output()
	results := map[string]string{}
	for line := range strings.Lines(string(out)) {
		var number int
		var found string
		if n, _ := fmt.Sscanf(line, "mutant %d %s", &number, &found); n < 2 {
			fmt.Print(line)
		} else if results[mutants[number-1].key()] = "killed"; found != "found" {
			results[mutants[number-1].key()] = "survived"
		}
	}
	printSummary(mutants, results)
	return err
}
