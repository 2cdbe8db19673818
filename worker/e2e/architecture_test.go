package e2e

import (
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const program = "papermap-worker"

// mayImport lists, without the program's name before them, the packages of this project that a
// package may import, as docs/architecture.md has it. One that is not here may import none. Imports
// of tests do not count.
var mayImport = map[string]string{
	".": "worker/cli",
	"worker/cli": "events events/embedded papermap papermap/simulator repo " +
		"worker worker/ops worker/ops/console",

	"worker/ops":         "events repo worker worker/ops/console worker/ops/embed",
	"worker/ops/console": "events repo worker",
	"worker":             "events papermap repo",
	"repo":               "schema",

	"papermap/simulator": "papermap",

	// For tests alone.
	"schema/schematest": "schema",
	"worker/proof":      "events papermap papermap/simulator repo schema/schematest",
	"worker/workertest": "events events/embedded papermap papermap/simulator repo schema/schematest worker",
}

// importedByAll is empty in a release build, and so may be imported by all.
const importedByAll = program + "/worker/failpoint"

func TestImportsFollowArchitecture(t *testing.T) {
	t.Parallel()
	list, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`,
		"./...").Output()
	must(t, err)
	imports := map[string][]string{}
	for line := range strings.Lines(string(list)) {
		words := strings.Fields(line)
		imports[words[0]] = words[1:]
	}
	for name, list := range imports {
		folder := path.Clean(strings.TrimPrefix(strings.TrimPrefix(name, program), "/"))
		allowed := strings.Fields(mayImport[folder])
		for _, i := range list {
			ours := i == program || strings.HasPrefix(i, program+"/")
			if ours && i != importedByAll && !slices.Contains(allowed, strings.TrimPrefix(i, program+"/")) {
				t.Errorf("%s imports %s and may import only %v of this project", name, i, allowed)
			}
		}
	}
	for name, allowed := range mayImport { // a rule that permits more than is used would hide a new import
		for i := range strings.FieldsSeq(allowed) {
			if !slices.Contains(imports[path.Join(program, name)], program+"/"+i) {
				t.Errorf("%s does not import %s: remove it here and from docs/architecture.md", name, i)
			}
		}
	}
}
