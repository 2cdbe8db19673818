package proof_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

var mutants = flag.String("mutants", "", "regular expression of names in mutants/ to build and test")

// mutant is a build with one mistake. Its file says in the first line what is wrong, in lines
// "Test:" with which arguments of go test (package, -run, name) it is caught, in one "In:" the
// package, and then the edits: lines with - become lines with +. An edit names no file and no line,
// and white space does not matter, so that it survives moves within a package. A line "Repaired:"
// names the commit that repaired the mistake, if it is one of an earlier version.
type mutant struct {
	about, dir, repaired string
	tests                []string
	edits                []edit
}

type edit struct{ before, after []string }

func readMutant(path string) (m mutant, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	m.about = lines[0]
	for _, line := range lines[1:] {
		mark, rest, _ := strings.Cut(line, " ")
		last := len(m.edits) - 1
		switch mark {
		case "Test:":
			m.tests = append(m.tests, rest)
		case "Repaired:":
			m.repaired = rest
		case "In:":
			m.dir = filepath.Join("..", "..", rest)
		case "-":
			if last < 0 || m.edits[last].after != nil {
				m.edits = append(m.edits, edit{})
				last++
			}
			m.edits[last].before = append(m.edits[last].before, strings.TrimSpace(rest))
		case "+":
			m.edits[last].after = append(m.edits[last].after, rest)
		default:
			return m, fmt.Errorf("%s: what is %q?", path, line)
		}
	}
	if m.dir == "" || m.tests == nil || m.edits == nil {
		return m, fmt.Errorf("%s has no package, test or edit", path)
	}
	return m, nil
}

// apply returns the changed files of the package by path.
func (m mutant) apply() (map[string]string, error) {
	names, err := filepath.Glob(filepath.Join(m.dir, "*.go"))
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if !strings.HasSuffix(name, "_test.go") {
			files[name] = string(text)
		}
	}
	changed := map[string]string{}
	for _, e := range m.edits {
		words := strings.Fields(regexp.QuoteMeta(strings.Join(e.before, " ")))
		form, places := regexp.MustCompile(strings.Join(words, `\s+`)), 0
		for name, text := range files {
			if at := form.FindAllStringIndex(text, -1); at != nil {
				places += len(at)
				files[name] = text[:at[0][0]] + strings.Join(e.after, "\n") + text[at[0][1]:]
				changed[name] = files[name]
			}
		}
		if places != 1 {
			return nil, fmt.Errorf("%d places in %s are like %q, want 1", places, m.dir, e.before)
		}
	}
	return changed, nil
}

// overlay writes the changed files and returns flags for the go command that put them in the place
// of the real ones.
func (m mutant) overlay(dir string) (string, error) {
	changed, err := m.apply()
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for name, text := range changed {
		real, absErr := filepath.Abs(name)
		replace[real] = filepath.Join(dir, filepath.Base(name))
		if err := errors.Join(absErr, os.WriteFile(replace[real], []byte(text), 0o600)); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	path := filepath.Join(dir, "overlay.json")
	return "-overlay=" + path, errors.Join(err, os.WriteFile(path, text, 0o600))
}

// goCommand runs the go command on the repository with more GOFLAGS.
func goCommand(t *testing.T, flags string, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = filepath.Join("..", ".."), append(os.Environ(),
		"GOFLAGS="+os.Getenv("GOFLAGS")+" "+flags)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// passes runs go test with a mutant's arguments.
func passes(t *testing.T, flags, arguments string) (string, error) {
	return goCommand(t, flags, append([]string{"test", "-count=1", "-timeout", "5m"},
		strings.Fields(arguments)...)...)
}

// mutantPaths are all files in mutants/.
func mutantPaths(t *testing.T) []string {
	paths, err := filepath.Glob("mutants/*.mutant")
	if err != nil || len(paths) < 65 {
		t.Fatalf("%d mutants, error %v", len(paths), err)
	}
	return paths
}

// mutantFiles calls do for each file in mutants/ whose name matches.
func mutantFiles(t *testing.T, expression string, do func(*testing.T, mutant)) {
	for _, path := range mutantPaths(t) {
		name := strings.TrimSuffix(filepath.Base(path), ".mutant")
		if !regexp.MustCompile(expression).MatchString(name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			m, err := readMutant(path)
			if err != nil {
				t.Fatal(err)
			}
			do(t, m)
		})
	}
}

func TestMutantsStillApply(t *testing.T) {
	mutantFiles(t, "", func(t *testing.T, m mutant) {
		if _, err := m.apply(); err != nil {
			t.Error(err)
		}
		for _, arguments := range m.tests { // go test passes when there is no such test
			words := strings.Fields(arguments)
			if exists, err := hasTest(filepath.Join("..", "..", words[0]), words[2]); err != nil || !exists {
				t.Errorf("no test for go test %s, error %v", arguments, err)
			}
		}
	})
}

// hasTest reports whether the package in dir has the test.
func hasTest(dir, name string) (bool, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	for _, path := range paths {
		text, readErr := os.ReadFile(path)
		if strings.Contains(string(text), "func "+name+"(t ") {
			return true, nil
		}
		err = errors.Join(err, readErr)
	}
	return false, err
}

// TestMutants shows that each mistake is caught; mutants/run calls it. Without -mutants there is
// nothing to do: it would take as long as the whole suite, many times.
func TestMutants(t *testing.T) {
	if *mutants == "" {
		return
	}
	checked := map[string]bool{} // tests that pass without a mistake
	mutantFiles(t, *mutants, func(t *testing.T, m mutant) {
		flags, err := m.overlay(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if out, err := goCommand(t, flags, "build", "-tags", "failpoints", "./..."); err != nil {
			t.Fatalf("it does not build, so that nothing can be caught: %v\n%s", err, out)
		}
		for _, arguments := range m.tests {
			if !checked[arguments] {
				if out, err := passes(t, "", arguments); err != nil {
					t.Fatalf("go test %s fails without the mistake: %v\n%s", arguments, err, out)
				}
				checked[arguments] = true
			}
			if out, err := passes(t, flags, arguments); err != nil {
				by := regexp.MustCompile(`violation of [a-z-]+`).FindAllString(out, -1)
				if by == nil {
					by = regexp.MustCompile(`--- FAIL: \S+|panic: .*`).FindAllString(out, -1)
				}
				slices.Sort(by)
				by = slices.Compact(by)
				t.Logf("%s\ncaught by go test %s: %q", m.about, arguments, by)
				return
			}
		}
		t.Errorf("%s\nNOT CAUGHT", m.about)
	})
}
