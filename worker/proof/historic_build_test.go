package proof_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// All historic bugs are in one build, because linking takes longer than many tests. A function that
// a bug changes is there in both forms, and a third with its name chooses:
//
//	func (c *Consumer) handle(a0 context.Context, a1 *delivery) {
//		switch historicBug { case "panic-on-a-foreign-subject": c.handleBug7(a0, a1); return }
//		c.handleOriginal(a0, a1)
//	}
//
// A file names the bug that is present, so that it is so in all processes.

// bugSwitch is added to each changed package.
const bugSwitch = `package %s

import "os"

var historicBug = func() string {
	name, _ := os.ReadFile(%q)
	return string(name)
}()
`

// historicBuild is the folder with what is built. It is kept, so that a run can be continued.
type historicBuild struct {
	folder string
	flags  string // for the go command
}

func newHistoricBuild(t *testing.T, folder string, bugs map[string]mutant) *historicBuild {
	folder, err := filepath.Abs(folder)
	if err == nil {
		err = os.MkdirAll(folder, 0o755)
	}
	b := &historicBuild{folder, "-overlay=" + filepath.Join(folder, "overlay.json")}
	if err == nil {
		err = b.writeOverlay(bugs)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *historicBuild) choice() string { return filepath.Join(b.folder, "present") }

func (b *historicBuild) writeOverlay(bugs map[string]mutant) error {
	files := map[string]*switchedFile{} // by path
	for n, name := range slices.Sorted(maps.Keys(bugs)) {
		changed, err := bugs[name].apply()
		if err != nil {
			return err
		}
		for path, text := range changed {
			if files[path] == nil {
				if files[path], err = newSwitchedFile(path); err != nil {
					return err
				}
			}
			if err := files[path].add(name, fmt.Sprint("Bug", n), text); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	replace := map[string]string{}
	for path, f := range files {
		path, err := filepath.Abs(path)
		if err == nil {
			_, _, err = functionsOf(f.text())
		}
		if err != nil {
			return err
		}
		added := filepath.Join(filepath.Dir(path), "historicbug.go")
		for place, text := range map[string]string{
			path: f.text(), added: fmt.Sprintf(bugSwitch, f.ast.Name, b.choice()),
		} {
			replace[place] = filepath.Join(b.folder, strings.ReplaceAll(place[1:], "/", "-"))
			if err := os.WriteFile(replace[place], []byte(text), 0o600); err != nil {
				return err
			}
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace}, json.Deterministic(true))
	return errors.Join(err, os.WriteFile(filepath.Join(b.folder, "overlay.json"), text, 0o600))
}

// program returns a package's test binary, or program, with failpoints, and builds it if it is
// missing.
func (b *historicBuild) program(t *testing.T, name string, command ...string) string {
	path := filepath.Join(b.folder, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	of := len(command) - 1
	flags := []string{"-ldflags=-s -w", "-tags", "failpoints", "-o", path}
	args := slices.Concat(command[:of], flags, command[of:])
	if out, err := goCommand(t, b.flags, args...); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// switchedFile is a file whose changed functions exist in several forms.
type switchedFile struct {
	source    string
	ast       *ast.File
	functions map[string]*ast.FuncDecl
	forms     map[string][]form // by function
}

// form is a function as a bug has it.
type form struct{ bug, suffix, text string }

func newSwitchedFile(path string) (*switchedFile, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &switchedFile{source: string(text), forms: map[string][]form{}}
	f.ast, f.functions, err = functionsOf(f.source)
	return f, err
}

// functionsOf parses a file and returns its functions by receiver and name.
func functionsOf(source string) (file *ast.File, list map[string]*ast.FuncDecl, err error) {
	list = map[string]*ast.FuncDecl{}
	if file, err = parser.ParseFile(token.NewFileSet(), "", source, parser.SkipObjectResolution); err != nil {
		return nil, nil, err
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			receiver := ""
			if f.Recv != nil {
				receiver = textOf(source, f.Recv)
			}
			list[receiver+f.Name.Name] = f
		}
	}
	return file, list, nil
}

// textOf is the text of a node of a file that was parsed alone.
func textOf(source string, n ast.Node) string { return source[n.Pos()-1 : n.End()-1] }

// renamed is a function's text with another name.
func renamed(source string, f *ast.FuncDecl, suffix string) string {
	return source[f.Pos()-1:f.Name.End()-1] + suffix + source[f.Name.End()-1:f.End()-1]
}

// add adds the functions of a bug's file that differ.
func (f *switchedFile) add(bug, suffix, text string) error {
	_, theirs, err := functionsOf(text)
	if err != nil {
		return err
	}
	found := false
	for name, ours := range f.functions {
		if theirs[name] != nil && textOf(text, theirs[name]) != textOf(f.source, ours) {
			f.forms[name] = append(f.forms[name], form{bug, suffix, renamed(text, theirs[name], suffix)})
			found = true
		}
	}
	if !found {
		return errors.New("it changes no function")
	}
	return nil
}

// text is the file with all forms.
func (f *switchedFile) text() string {
	text, end := "", 0
	for _, d := range f.ast.Decls {
		function, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		for name, forms := range f.forms {
			if f.functions[name] != function {
				continue
			}
			text += f.source[end:function.Pos()-1] + f.choose(function, forms) + "\n\n" +
				renamed(f.source, function, "Original")
			end = int(function.End()) - 1
			for _, other := range forms {
				text += "\n\n" + other.text
			}
		}
	}
	return text + f.source[end:]
}

// choose is the function that calls the form that is wanted.
func (f *switchedFile) choose(function *ast.FuncDecl, forms []form) string {
	var parameters, arguments []string
	for _, field := range function.Type.Params.List {
		for range max(1, len(field.Names)) {
			name, spread := fmt.Sprint("a", len(arguments)), ""
			if _, ok := field.Type.(*ast.Ellipsis); ok {
				spread = "..."
			}
			parameters = append(parameters, name+" "+textOf(f.source, field.Type))
			arguments = append(arguments, name+spread)
		}
	}
	receiver, object := "", ""
	if function.Recv != nil {
		receiver, object = "(r "+textOf(f.source, function.Recv.List[0].Type)+") ", "r."
	}
	results, give, end := "", "", "; return"
	if function.Type.Results != nil {
		results, give, end = " "+textOf(f.source, function.Type.Results), "return ", ""
	}
	call := func(suffix string) string {
		return give + object + function.Name.Name + suffix + "(" + strings.Join(arguments, ", ") + ")"
	}
	cases := ""
	for _, other := range forms {
		cases += fmt.Sprintf("\tcase %q:\n\t\t%s%s\n", other.bug, call(other.suffix), end)
	}
	return fmt.Sprintf("func %s%s(%s)%s {\n\tswitch historicBug {\n%s\t}\n\t%s\n}", receiver,
		function.Name.Name, strings.Join(parameters, ", "), results, cases, call("Original"))
}
