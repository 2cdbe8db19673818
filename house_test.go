package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// mayImport says which packages of this project a package may import, as docs/architecture.md has it. One that is not
// here may import none, but for package main, which may import all. Tests are not asked.
var mayImport = map[string][]string{
	"papermap-worker/worker/ops":         {"papermap-worker/events", "papermap-worker/repo", "papermap-worker/worker", "papermap-worker/worker/ops/console"},
	"papermap-worker/worker/ops/console": {"papermap-worker/events", "papermap-worker/repo", "papermap-worker/worker"},
	"papermap-worker/worker/proof/bench": {"papermap-worker/papermap"},
	"papermap-worker/worker":             {"papermap-worker/events", "papermap-worker/papermap", "papermap-worker/repo"},
	"papermap-worker/repo":               {"papermap-worker/schema"},
	"papermap-worker/papermap/simulator": {"papermap-worker/papermap"},
	"papermap-worker/schema/schematest":  {"papermap-worker/schema"},
	"papermap-worker/worker/proof": {
		"papermap-worker/events", "papermap-worker/papermap", "papermap-worker/papermap/simulator", "papermap-worker/repo", "papermap-worker/schema/schematest",
	},
}

// everybodys is empty in a release build, and so may be imported by all.
const everybodys = "papermap-worker/worker/failpoint"

// testHelpers are for tests alone.
var testHelpers = []string{"papermap-worker/schema/schematest", "papermap-worker/worker/proof"}

func TestPackagesImportOnlyWhatTheyMay(t *testing.T) {
	const program = "papermap-worker"
	list, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for d := json.NewDecoder(bytes.NewReader(list)); ; {
		var p struct {
			ImportPath string
			Imports    []string // without those of tests
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		imports[p.ImportPath] = p.Imports
	}
	for name, list := range imports {
		for _, i := range list {
			ours := i == program || strings.HasPrefix(i, program+"/")
			if ours && i != everybodys && !slices.Contains(mayImport[name], i) && (name != program || slices.Contains(testHelpers, i)) {
				t.Errorf("%s imports %s and may import only %v of this project", name, i, mayImport[name])
			}
		}
	}
	for name, allowed := range mayImport { // or this test would hold nothing together
		for _, i := range allowed {
			if !slices.Contains(imports[name], i) {
				t.Errorf("%s does not import %s: take it out here and in docs/architecture.md", name, i)
			}
		}
	}
}

func TestREADMEBeginsWithTwoCommands(t *testing.T) {
	_, fence, _ := strings.Cut(readme(t), "\n```sh first\n")
	fence, _, _ = strings.Cut(fence, "```\n")
	if want := "go run . demo\ngo test ./...\n"; fence != want {
		t.Errorf("README's first commands are\n%s\nwant\n%s", fence, want)
	}
}

// standard are settings that README names and OpenTelemetry's library reads. It reads more, which its manual tells.
var standard = []string{
	"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_SERVICE_NAME",
	"OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SDK_DISABLED",
}

func TestREADMENamesEachSetting(t *testing.T) {
	_, section, _ := strings.Cut(readme(t), "\n## Configuration\n")
	section, _, _ = strings.Cut(section, "\n## ")

	code := slices.Clone(standard)
	for _, name := range variables(t) {
		if !strings.HasSuffix(name, "_FILE") || strings.HasPrefix(name, "NATS_NKEY") || strings.HasPrefix(name, "PAPERMAP_WORKSPACES") { // as README says, of a secret
			code = append(code, name)
		}
	}
	slices.Sort(code)
	if diff := cmp.Diff(code, named(section)); diff != "" {
		t.Errorf("config.go (-) and README's table (+) differ:\n%s", diff)
	}
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var variableForm = regexp.MustCompile("`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[a-z]+)?`")

// named lists the variables that a text names, sorted. NAME_FILE is README's word for any.
func named(text string) []string {
	set := map[string]bool{}
	for _, m := range variableForm.FindAllStringSubmatch(text, -1) {
		set[m[1]] = m[1] != "NAME_FILE"
	}
	return sorted(set)
}

// variables lists the environment variables that config.go reads, sorted: those of env tags, and the secrets with
// their _FILE.
func variables(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			if n.Tag != nil {
				tag, _ := strconv.Unquote(n.Tag.Value)
				if name := reflect.StructTag(tag).Get("env"); name != "" {
					set[name] = true
				}
			}
		case *ast.CallExpr:
			called, ok := n.Fun.(*ast.SelectorExpr)
			if ok && called.Sel.Name == "secret" {
				name, err := strconv.Unquote(n.Args[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				set[name], set[name+"_FILE"] = true, true
			}
		}
		return true
	})
	return sorted(set)
}

func sorted(set map[string]bool) []string {
	var list []string
	for name, in := range set {
		if in {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}
