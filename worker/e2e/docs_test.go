package e2e

import (
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// pages are README and the documents under docs, by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	list := map[string]string{}
	for _, path := range []string{"README.md", "SECURITY.md", "CHANGELOG.md"} {
		list[path] = readFile(t, path)
	}
	must(t, filepath.WalkDir("docs", func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.Name() == "node_modules" {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			list[path] = readFile(t, path)
		}
		return err
	}))
	return list
}

func TestREADMEIsShort(t *testing.T) {
	t.Parallel()
	if n := len(strings.Fields(readFile(t, "README.md"))); n > 1000 {
		t.Errorf("README has %d words, want at most 1,000: move something to docs", n)
	}
}

func TestDocumentsAreInTheIndex(t *testing.T) {
	t.Parallel()
	index := readFile(t, "docs/README.md")
	for path := range pages(t) {
		name, ok := strings.CutPrefix(path, "docs/")
		if ok && !strings.Contains(name, "/") && name != "README.md" &&
			!strings.Contains(index, "]("+name+")") {
			t.Errorf("docs/README.md does not list %s", name)
		}
	}
}

var (
	fenced  = regexp.MustCompile("(?ms)^ *```.*?^ *```$") // a block of code
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

// sources is the program's code that matches the patterns, without tests.
func sources(t *testing.T, patterns ...string) string {
	t.Helper()
	var code strings.Builder
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		must(t, err)
		for _, path := range files {
			if !strings.HasSuffix(path, "_test.go") {
				code.WriteString(readFile(t, path))
			}
		}
	}
	return code.String()
}

// anchors are the fragments that GitHub gives a document's headings.
func anchors(document string) []string {
	var list []string
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(document, ""), -1) {
		text := regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		list = append(list, strings.ReplaceAll(text, " ", "-"))
	}
	return list
}

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	documents := pages(t)
	for path, text := range documents {
		for _, m := range link.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.Scheme != "" {
				continue // elsewhere
			}
			target := path
			if u.Path != "" {
				target = filepath.Join(filepath.Dir(path), u.Path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s: %v", path, m[1], err)
			} else if u.Fragment != "" && !slices.Contains(anchors(documents[target]), u.Fragment) {
				t.Errorf("%s: %s: no such heading", path, m[1])
			}
		}
	}
}

func TestLinesOfDocumentsAreShort(t *testing.T) {
	t.Parallel()
	for path, text := range pages(t) {
		if filepath.Dir(path) != "docs" && path != "README.md" && path != "CHANGELOG.md" {
			continue
		}
		code := false
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				code = !code
			}
			table := strings.HasPrefix(strings.TrimSpace(line), "|")
			if n := utf8.RuneCountInString(line); n > 100 && !code && !table && strings.Contains(line, " ") {
				t.Errorf("%s: a line of %d characters: %s", path, n, line)
			}
		}
	}
}

// commands are the commands in a document's blocks "sh run", in order.
func commands(document string) string {
	var list []string
	block := regexp.MustCompile("(?ms)^ *```sh run\n(.*?)^ *```$")
	for _, m := range block.FindAllStringSubmatch(document, -1) {
		list = append(list, m[1])
	}
	return strings.Join(list, "")
}

func TestDocumentedCommandsRun(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.env = append(s.env, "HTTP_JWT_SECRET=a secret of the tests that is long enough")
	worker := startReady(t, s.env)
	defer worker.stop(t)
	s.env = append(s.env, "HTTP_ADDR="+worker.address(t))
	run(t, s.env, "publish", "tenant-created", "org-123", "--name", "Acme Corp")
	s.status(t, "org-123", "active")
	ran := 0
	for path, text := range pages(t) {
		script := strings.ReplaceAll(commands(text), "127.0.0.1:8080", worker.address(t))
		if script == "" {
			continue
		}
		ran++
		t.Run(path, func(t *testing.T) {
			c := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
			c.Dir = t.TempDir()
			c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, s.env...)
			if output, err := c.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, script, tail(string(output), 2000))
			}
		})
	}
	if ran < 4 {
		t.Errorf("%d documents have commands to run", ran)
	}
}

func TestDocumentedNATSCommandsWork(t *testing.T) {
	t.Parallel()
	s, nc := runWorker(t)
	js := s.jetStream(t)
	pub := regexp.MustCompile(`nats (pub|request) (papermap\.\S+) '(\{[^']*\})'`)
	var requests [][]string
	published := 0
	for path, text := range pages(t) {
		if strings.Contains(path, "/examples/") || strings.Contains(path, "/nats/") {
			continue // they have tests of their own
		}
		for _, m := range pub.FindAllStringSubmatch(text, -1) {
			if m[1] == "request" {
				requests = append(requests, m)
				continue
			}
			published++
			_, err := js.Publish(t.Context(), m[2], []byte(m[3]))
			must(t, err)
		}
	}
	if published < 2 || len(requests) < 2 {
		t.Fatalf("the documents have %d nats pub and %d nats request", published, len(requests))
	}
	s.status(t, "org-123", "active")
	for _, m := range requests {
		reply := ask(t, nc, m[2], m[3])
		if code := reply.Header.Get("Nats-Service-Error-Code"); code != "" {
			t.Errorf("%s: %s %s", m[0], code, reply.Data)
		}
	}
}

func TestDocumentedCommandsExist(t *testing.T) {
	t.Parallel()
	known := map[string]bool{} // commands, and groups such as "dead"
	for _, name := range named(`(?m)^  ([a-z-]+(?: [a-z-]+){0,2})(?:  |$)`, run(t, nil, "--help")) {
		words := strings.Fields(name)
		known[name], known[words[0]] = true, known[words[0]] || len(words) == 1
		known[strings.Join(words[:min(2, len(words))], " ")] = true
	}
	inCode := regexp.MustCompile("(?s)```.*?```|`[^`]+`")
	call := regexp.MustCompile(`papermap-worker ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?`)
	for path, text := range pages(t) {
		if path == "CHANGELOG.md" {
			continue // it may name former commands
		}
		for _, code := range inCode.FindAllString(text, -1) {
			for _, m := range call.FindAllStringSubmatch(code, -1) {
				leaf, exists := known[m[1]]
				if !exists || !leaf && m[2] != "" && !known[m[1]+" "+m[2]] {
					t.Errorf("%s: there is no command %s", path, m[0])
				}
			}
		}
	}
}

// TestRunbookQuotesWhatThereIs looks for the log messages and panels that the runbook names.
func TestRunbookQuotesWhatThereIs(t *testing.T) {
	t.Parallel()
	runbook := strings.Join(strings.Fields(readFile(t, "docs/operations.md")), " ")
	code := sources(t, "events/*.go", "worker/*.go")
	messages := named(`log line "([^"]+)"`, runbook)
	for _, message := range messages {
		if !strings.Contains(code, `"`+message) {
			t.Errorf("no log message begins with %q", message)
		}
	}
	panels := named(`panel "([^"]+)"`, runbook)
	dashboard := readFile(t, "docs/observability/grafana-dashboard.json")
	for _, panel := range panels {
		if !strings.Contains(dashboard, `"title": "`+panel+`"`) {
			t.Errorf("the dashboard has no panel %q", panel)
		}
	}
	if len(messages) < 3 || len(panels) < 3 {
		t.Errorf("the runbook names the messages %q and the panels %q", messages, panels)
	}
}

func TestDocumentedFaultsAreRules(t *testing.T) {
	t.Parallel()
	_, section, _ := strings.Cut(readFile(t, "docs/testing.md"), "\n## Faults\n")
	faults := named("(?m)^\\| `([^`]+)` \\|", section)
	if len(faults) < 5 {
		t.Errorf("docs/testing.md has the faults %q", faults)
	}
	for _, fault := range faults {
		if _, err := simulator.ParseFault(fault); err != nil {
			t.Errorf("docs/testing.md: %s: %v", fault, err)
		}
	}
}

// TestErrorsAreDocumented compares docs/errors.md with the source: the checks of doctor, the kinds of
// pauses, the reasons of refused requests, the statuses, and that the messages exist.
func TestErrorsAreDocumented(t *testing.T) {
	t.Parallel()
	source := sources(t, "events/*.go", "repo/*.go", "worker/*.go", "worker/cli/*.go", "worker/ops/*.go",
		"worker/ops/console/*.go")
	document := readFile(t, "docs/errors.md")
	column := func(heading string) []string { // the first one of the section's tables
		_, text, _ := strings.Cut(document, "\n## "+heading+"\n")
		text, _, _ = strings.Cut(text, "\n## ")
		return named("(?m)^\\| `([^`]+?)(?: …)?` \\|", text)
	}
	checks := named(`(?:Finding\{|Check: +|databaseCheck = |const check = |f\.(?:ok|warn|fail)\(|check := )`+
		`"([^",]+?),? *(?:workspace )?"`, source)
	var documented []string
	for _, name := range column("Doctor and readiness") {
		name, _, _ = strings.Cut(name, ",")
		documented = append(documented, name)
	}
	for heading, lists := range map[string][2][]string{
		"Doctor and readiness": {checks, documented},
		"Pauses":               {named(`\bPause[A-Z]\w+ += "([a-z]+)"`, source), column("Pauses")},
		"REST and console": {named(`(?:Refused\(\S+, |return )"([a-z]+_[a-z]+)"`, source),
			column("REST and console")},
	} {
		if diff := cmp.Diff(lists[0], lists[1]); diff != "" {
			t.Errorf("%s: the source (-) and docs/errors.md (+):\n%s", heading, diff)
		}
	}
	var statuses []string
	for _, status := range repo.Statuses() {
		statuses = append(statuses, string(status))
	}
	slices.Sort(statuses)
	if diff := cmp.Diff(statuses, column("Tenants")); diff != "" {
		t.Errorf("statuses (-) and docs/errors.md (+):\n%s", diff)
	}
	for _, message := range column("Commands") {
		if !strings.Contains(source, message) {
			t.Errorf("no error contains %q", message)
		}
	}
}

// TestDocumentedCodesAreComplete compares the tables of codes with the source.
func TestDocumentedCodesAreComplete(t *testing.T) {
	t.Parallel()
	source := sources(t, "events/*.go", "worker/*.go")
	answers := named(`serviceError\(\d+, "([A-Z]+(?:_[A-Z]+)*)"`, source)
	dead := slices.DeleteFunc(named(`(?:\b[Cc]ode\w+ += |Code: +)"([A-Z]+_[A-Z_]+)"`, source),
		func(code string) bool { return slices.Contains(answers, code) })
	section := func(path, heading string) string { // its tables
		_, text, _ := strings.Cut(readFile(t, path), "\n## "+heading+"\n")
		text, _, _ = strings.Cut(text, "\n## ")
		return strings.Join(regexp.MustCompile(`(?m)^\|.*$`).FindAllString(text, -1), "\n")
	}
	documented := func(text string) []string {
		return slices.DeleteFunc(named("`([A-Z]+(?:_[A-Z]+)*)`", text), func(name string) bool {
			return slices.Contains(variables(t), name)
		})
	}
	if diff := cmp.Diff(dead, documented(section("docs/events.md", "Dead letters"))); diff != "" {
		t.Errorf("codes of dead letters in the source (-) and docs/events.md (+):\n%s", diff)
	}
	listed := section("docs/tokens.md", "Errors") + "\n" + section("docs/rest.md", "Calls")
	if diff := cmp.Diff(answers, slices.DeleteFunc(documented(listed),
		func(name string) bool { return name == "POST" || name == "GET" })); diff != "" {
		t.Errorf("codes of answers in the source (-) and docs/tokens.md and rest.md (+):\n%s", diff)
	}
}

// Each promise of SECURITY.md names the tests that show it.
func TestSecurityPromisesHaveTests(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	must(t, filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, name := range named(`(?m)^func (Test\w+)\(`, readFile(t, path)) {
			tests[name] = true
		}
		return nil
	}))
	promises := regexp.MustCompile(`(?ms)^## What it promises$(.*?)^## `).
		FindString(readFile(t, "SECURITY.md"))
	rows := regexp.MustCompile(`(?m)^\| (\S.*) \| (.*) \|$`).FindAllStringSubmatch(promises, -1)
	if len(rows) < 10 {
		t.Fatalf("only %d promises were read", len(rows))
	}
	for _, row := range rows[2:] { // after the table's head
		names := named("`(\\w+)`", row[2])
		if len(names) == 0 {
			t.Errorf("nothing shows: %s", row[1])
		}
		for _, name := range names {
			if !tests[name] {
				t.Errorf("there is no %s, which shows: %s", name, row[1])
			}
		}
	}
}
