package cli

import (
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func model(t *testing.T) *kong.Kong {
	t.Helper()
	var g grammar
	return newKong(&g, kong.Name("papermap-worker"))
}

// runCLI runs a command in this process.
func runCLI(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	build := Build{Version: "1.2.3", Commit: "5effc81", Date: "2026-01-31T12:00:00Z"}
	code = Run(build, args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestHelpHasEachCommandOnceWithAnExample(t *testing.T) {
	var listed []string
	for _, purpose := range purposes {
		listed = append(listed, strings.Fields(purpose.commands)...)
	}
	for _, node := range model(t).Model.Children {
		if !slices.Contains(listed, node.Name) {
			t.Errorf("the overview lacks %s", node.Name)
		}
	}
	for _, c := range completions(model(t).Model.Node)[1:] {
		if example := examples[c.path[1:]]; !strings.Contains(example, "papermap-worker ") {
			t.Errorf("the help of%s has no example", c.path)
		}
	}
}

func TestHelpWithoutACommandIsTheOverview(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"-h"}, {"help"}} {
		code, out, _ := runCLI(args...)
		if code != 0 || !strings.Contains(out, "\n"+purposes[0].title) {
			t.Errorf("%q: exit code %d: %s", args, code, out)
		}
	}
	code, out, _ := runCLI("dead", "--help")
	if code != 0 || !strings.Contains(out, "dead replay") || strings.Contains(out, purposes[0].title) {
		t.Errorf("dead --help: exit code %d: %s", code, out)
	}
}

func TestOverviewFitsTheTerminal(t *testing.T) {
	for _, width := range []int{80, 100} {
		var out bytes.Buffer
		must(t, printOverview(&out, model(t).Model, width))
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 100 ||
				n > width && strings.HasPrefix(line, "  ") {
				t.Errorf("%d columns: %q has %d", width, line, n)
			}
		}
	}
}

// A wrong flag is never overlooked because a command does not need it.
func TestWrongLogLevelIsRefusedByEachCommand(t *testing.T) {
	arguments := map[string]string{
		" token": "x", " tenants show": "x", " tenants resolve": "x --recreate", " attempts resolve": "x",
		" dead show": "1", " dead replay": "--all", " dead discard": "--all", " replay": "--since 1h",
		" console-user": "x --role viewer", " jwt": "--scope x", " completion": "bash",
		" publish tenant-created": "x --name x", " publish tenant-suspended": "x",
		" publish tenant-resumed": "x", " publish tenant-deleted": "x", " backup": "x", " restore-check": "x",
		" import": "x", " usage budget set": "x --credits 1 --thresholds 80", " usage budget unset": "x",
	}
	t.Chdir(t.TempDir())
	for _, name := range []string{"HTTP_JWT_SECRET", "PAPERMAP_SECRET_KEY", "DATABASE_URL", "NATS_URL"} {
		t.Setenv(name, "")
	}
	list := completions(model(t).Model.Node)[1:]
	for _, c := range list {
		group := slices.ContainsFunc(list,
			func(o completed) bool { return strings.HasPrefix(o.path, c.path+" ") })
		if group || c.path == " help" || c.path == " dev" || c.path == " demo" {
			continue
		}
		args := append(strings.Fields(c.path), strings.Fields(arguments[c.path])...)
		code, _, text := runCLI(append(args, "--log-level=loud")...)
		if code != 2 || !strings.Contains(text, "LOG_LEVEL") && c.path != " doctor" {
			t.Errorf("%s: exit code %d: %s", c.path, code, text)
		}
	}
}

func TestWrongCommandLinesAreExplainedInPlainWords(t *testing.T) {
	for line, want := range map[string]string{
		"dead list --limit abc":    `--limit: expected a whole number but got "abc"`,
		"dead show abc":            `expected a whole number but got "abc"`,
		"token x --ttl soon":       `expected a duration such as 30s or 1h but got "soon"`,
		"dev --nats-port=x":        `expected a whole number but got "x"`,
		"tenants lst":              `did you mean "list"`,
		"usage exprt":              `did you mean "export"`,
		"tenants list --stattus x": `did you mean "--status"`,
		"completion tcsh":          `must be one of "bash","zsh","fish"`,
		"token --url=maybe x":      `use true or false, not "maybe"`,
	} {
		args := strings.Fields(line)
		code, out, text := runCLI(args...)
		if code != 2 || out != "" || !strings.Contains(text, want) {
			t.Errorf("%s: exit code %d: %q, %q", line, code, out, text)
		}
		for _, word := range []string{"int64", " bit ", "(string)", "strconv", "time:"} {
			if strings.Contains(text, word) {
				t.Errorf("%s: %q is a word of Go's: %s", line, word, text)
			}
		}
		if !strings.Contains(text, "Try `papermap-worker "+args[0]) {
			t.Errorf("%s: the hint does not name the command: %s", line, text)
		}
	}
}

func TestVersionNamesCommitDateAndGo(t *testing.T) {
	code, want, _ := runCLI("version")
	const prefix = "1.2.3\ncommit 5effc81\ndate 2026-01-31T12:00:00Z\ngo1."
	if code != 0 || !strings.HasPrefix(want, prefix) {
		t.Errorf("exit code %d: %s", code, want)
	}
	if _, got, _ := runCLI("--version"); got != want {
		t.Errorf("--version prints %q, version %q", got, want)
	}
}

func TestCompletionWorksInEachShell(t *testing.T) {
	run := func(shell, script string) string {
		t.Helper()
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed", shell)
			return ""
		}
		cmd := exec.CommandContext(t.Context(), shell, "-c", script)
		cmd.Dir = t.TempDir()
		output, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", shell, err, output)
		}
		return string(output)
	}
	_, bash, _ := runCLI("completion", "bash")
	complete := func(words ...string) string {
		var list []string
		for _, w := range words {
			list = append(list, quoted(w))
		}
		return run("bash",
			fmt.Sprintf("%s\nCOMP_WORDS=(papermap-worker %s)\nCOMP_CWORD=%d\n_papermap_worker\n"+
				`echo "${COMPREPLY[*]}"`, bash, strings.Join(list, " "), len(words)))
	}
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"ten"}, "tenants\n"},
		{[]string{"--log-level", "debug", "tenants", "l"}, "list\n"},
		{[]string{"tenants", "list", "--st"}, "--status\n"},
		{[]string{"tenants", "list", "--status", "he"}, "held\n"},
		{[]string{"tenants", "list", "--status", "=", "he"}, "held\n"},
		{[]string{"completion", ""}, "bash zsh fish"},
		{[]string{"publish", "tenant-c"}, "tenant-created\n"},
		{[]string{"backup", "/no-such-"}, "\n"},
	} {
		if got := complete(c.words...); !strings.HasPrefix(got, c.want) {
			t.Errorf("bash completes %v to %q, want %q", c.words, got, c.want)
		}
	}
	_, zsh, _ := runCLI("completion", "zsh")
	if got := run("zsh", "compdef() { echo defined $2 }\n"+zsh); got != "" &&
		got != "defined papermap-worker\n" {
		t.Errorf("zsh: %q", got)
	}
	_, fish, _ := runCLI("completion", "fish")
	got := run("fish", fish+"\ncomplete -C 'papermap-worker tenants l'\n"+
		"complete -C 'papermap-worker tenants list --status he'")
	if got != "" && (!strings.Contains(got, "list\tList tenants.") || !strings.Contains(got, "held")) {
		t.Errorf("fish: %q", got)
	}
}
