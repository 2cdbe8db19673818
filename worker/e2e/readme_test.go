package e2e

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestREADMEBeginsWithTwoCommands(t *testing.T) {
	t.Parallel()
	_, fence, _ := strings.Cut(readFile(t, "README.md"), "\n```sh first\n")
	fence, _, _ = strings.Cut(fence, "```\n")
	if want := "go run . demo\ngo test ./...\n"; fence != want {
		t.Errorf("README's first commands are\n%s\nwant\n%s", fence, want)
	}
}

// standard are settings that docs/configuration.md names and OpenTelemetry reads. It reads more, as
// its manual says.
var standard = []string{
	"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS",
	"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG",
	"OTEL_SDK_DISABLED",
}

func TestConfigurationNamesEachSetting(t *testing.T) {
	t.Parallel()
	code := slices.Clone(standard)
	for _, name := range variables(t) {
		// as the document says, of a secret
		if !strings.HasSuffix(name, "_FILE") || strings.HasPrefix(name, "NATS_NKEY") ||
			strings.HasPrefix(name, "PAPERMAP_WORKSPACES") || strings.HasPrefix(name, "CONSOLE_USERS") {
			code = append(code, name)
		}
	}
	slices.Sort(code)
	var rows strings.Builder
	for line := range strings.Lines(readFile(t, "docs/configuration.md")) {
		if strings.HasPrefix(line, "| `") {
			rows.WriteString(strings.Split(line, " | ")[0])
		}
	}
	documented := named("`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", rows.String())
	if diff := cmp.Diff(code, documented); diff != "" {
		t.Errorf("config.go (-) and docs/configuration.md (+) differ:\n%s", diff)
	}
}

func TestConfigurationNamesEachDefault(t *testing.T) {
	t.Parallel()
	document := readFile(t, "docs/configuration.md")
	setting := regexp.MustCompile("`(?:group:\"[^\"]*\" )?name:\"([a-z-]+)\" default:\"([^\"]+)\"")
	for _, m := range setting.FindAllStringSubmatch(readFile(t, "worker/cli/config.go"), -1) {
		name := strings.ToUpper(strings.ReplaceAll(m[1], "-", "_"))
		if row := "| `" + name + "` | `" + m[2] + "` |"; !strings.Contains(document, row) {
			t.Errorf("docs/configuration.md has no row %s", row)
		}
	}
}

// readFile returns a file of the repository.
func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

// named lists, sorted and once each, what the group of a pattern matches in a text.
func named(pattern, text string) []string {
	var list []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// variables lists the environment variables that config.go reads, sorted: those of its flags, and
// the secrets with their _FILE.
func variables(t *testing.T) []string {
	t.Helper()
	source := readFile(t, "worker/cli/config.go")
	var list []string
	for _, name := range named("`(?:group:\"[^\"]*\" )?name:\"([a-z-]+)\"", source) {
		list = append(list, strings.ToUpper(strings.ReplaceAll(name, "-", "_")))
	}
	for _, name := range named(`\.secret\("([A-Z_]+)"\)`, source) {
		list = append(list, name, name+"_FILE")
	}
	slices.Sort(list)
	return list
}
