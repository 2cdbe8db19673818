package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// mutant is one change of a file.
type mutant struct {
	target target
	number int // of the switch in the package that turns it on
	file   string
	line   int
	name   string // function, change and number of its kind, which identify it within the file
}

func (m *mutant) path() string { return filepath.Join(m.target.dir, m.file) }
func (m *mutant) key() string  { return m.path() + " " + m.name }

// switches is the file that is added to the package. Each mutant is behind a switch, so that one
// program, which is built once, contains all of them:
//
//	if a < b { … }     becomes     if (mutant == 7 && (a <= b) || mutant != 7 && (a < b)) { … }
const switches = `package %s

import (
	"os"
	"strconv"
)

var mutant, _ = strconv.Atoi(os.Getenv("MUTANT"))

func mutate[T any](number int, original, other T) T {
	if mutant == number {
		return other
	}
	return original
}
`

// mutator makes the mutants of one file by text that is inserted before and after expressions and
// statements.
type mutator struct {
	target   target
	file     string
	source   string
	fset     *token.FileSet
	info     *types.Info
	pkg      *types.Package
	function string
	next     *int
	names    map[string]int
	made     []mutant

	before, after map[int][]string // by offset
}

// text is the file with all mutants.
func (m *mutator) text() string {
	var b strings.Builder
	for i := 0; i <= len(m.source); i++ {
		for _, s := range slices.Backward(m.after[i]) { // the innermost ends first
			b.WriteString(s)
		}
		for _, s := range m.before[i] {
			b.WriteString(s)
		}
		if i < len(m.source) {
			b.WriteByte(m.source[i])
		}
	}
	return b.String()
}

func (m *mutator) offset(p token.Pos) int { return m.fset.Position(p).Offset }

func (m *mutator) code(n ast.Node) string { return m.source[m.offset(n.Pos()):m.offset(n.End())] }

func (m *mutator) wrap(n ast.Node, before, after string) {
	from, to := m.offset(n.Pos()), m.offset(n.End())
	m.before[from] = append(m.before[from], before)
	m.after[to] = append(m.after[to], after)
}

// add adds a mutant and returns the number of its switch.
func (m *mutator) add(n ast.Node, with string) int {
	name := strings.Join(strings.Fields(fmt.Sprintf("%s: %s → %s", m.function, m.code(n), with)), " ")
	m.names[name]++
	if again := m.names[name]; again > 1 {
		name += fmt.Sprintf(" #%d", again)
	}
	*m.next++
	m.made = append(m.made, mutant{m.target, *m.next, m.file, m.fset.Position(n.Pos()).Line, name})
	return *m.next
}

// condition adds mutants of a condition: other code in its place.
func (m *mutator) condition(n ast.Expr, others ...string) {
	if t := m.info.TypeOf(n); t == nil || !types.Identical(t.Underlying(), types.Typ[types.Bool]) &&
		!types.Identical(t.Underlying(), types.Typ[types.UntypedBool]) {
		return
	}
	for _, other := range others {
		k := m.add(n, other)
		m.wrap(n, fmt.Sprintf("(mutant == %d && (%s) || mutant != %d && (", k, other, k), "))")
	}
}

// value adds a mutant of an expression that is not a condition.
func (m *mutator) value(n ast.Expr, other string) {
	t := m.info.TypeOf(n)
	basic, ok := t.Underlying().(*types.Basic)
	if !ok || basic.Info()&types.IsInteger == 0 || basic.Info()&types.IsUntyped != 0 {
		return
	}
	known := true
	name := types.TypeString(t, func(p *types.Package) string {
		if p == m.pkg {
			return ""
		}
		known = known && strings.Contains(m.source, strconv.Quote(p.Path()))
		return p.Name()
	})
	if !known {
		return // the file does not import the type's package
	}
	m.wrap(n, fmt.Sprintf("mutate[%s](%d, ", name, m.add(n, other)), ", "+other+")")
}

// statement adds mutants of a statement: others in its place.
func (m *mutator) statement(n ast.Stmt, others ...string) {
	for _, other := range others {
		k := m.add(n, other)
		if other != "" {
			m.wrap(n, fmt.Sprintf("if mutant == %d { %s } else { ", k, other), " }")
		} else {
			m.wrap(n, fmt.Sprintf("if mutant != %d { ", k), " }")
		}
	}
}

func (m *mutator) walk(f *ast.File) {
	for _, d := range f.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
			m.function = f.Name.Name
			ast.Inspect(f.Body, m.visit)
		}
	}
}

// visit adds the mutants of a node.
func (m *mutator) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GenDecl:
		return n.Tok != token.CONST
	case *ast.BlockStmt:
		m.block(n.List)
	case *ast.CaseClause:
		m.block(n.Body)
	case *ast.IfStmt:
		m.condition(n.Cond, "!("+m.code(n.Cond)+")")
	case *ast.SwitchStmt:
		if n.Tag == nil {
			for _, c := range n.Body.List {
				for _, condition := range c.(*ast.CaseClause).List {
					m.condition(condition, "!("+m.code(condition)+")")
				}
			}
		}
	case *ast.BinaryExpr:
		m.binary(n)
	case *ast.UnaryExpr:
		if n.Op == token.NOT {
			m.condition(n, m.code(n.X))
		}
	case *ast.Ident:
		if other := map[string]string{"true": "false", "false": "true"}[n.Name]; other != "" {
			m.condition(n, other)
		}
	case *ast.BasicLit:
		if number, err := strconv.Atoi(n.Value); n.Kind == token.INT && err == nil {
			m.value(n, strconv.Itoa(number+1))
		}
	case *ast.CallExpr:
		m.call(n)
	}
	return true
}

// block leaves out statements, or one side of a double assignment. Declarations are needed.
func (m *mutator) block(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.ExprStmt, *ast.IncDecStmt:
			m.statement(s, "")
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				continue
			}
			m.statement(s, "")
			if len(s.Lhs) > 1 && len(s.Lhs) == len(s.Rhs) {
				for i := range s.Lhs {
					m.statement(s, without(m, s.Lhs, i)+" = "+without(m, s.Rhs, i))
				}
			}
		}
	}
}

// without is the list of expressions without one of them.
func without(m *mutator, list []ast.Expr, i int) string {
	var codes []string
	for j, e := range list {
		if j != i {
			codes = append(codes, m.code(e))
		}
	}
	return strings.Join(codes, ", ")
}

var operators = map[token.Token]string{
	token.LSS: "<=", token.LEQ: "<", token.GTR: ">=", token.GEQ: ">", token.EQL: "!=", token.NEQ: "==",
	token.LAND: "||", token.LOR: "&&", token.ADD: "-", token.SUB: "+", token.MUL: "/", token.QUO: "*",
}

// binary replaces an operator by its neighbor, and leaves out one side of a condition.
func (m *mutator) binary(n *ast.BinaryExpr) {
	other := "(" + m.code(n.X) + ") " + operators[n.Op] + " (" + m.code(n.Y) + ")"
	switch n.Op {
	case token.LAND, token.LOR:
		m.condition(n, other, m.code(n.X), m.code(n.Y))
	case token.LSS, token.LEQ, token.GTR, token.GEQ, token.EQL, token.NEQ:
		m.condition(n, other)
	case token.ADD, token.SUB:
		if m.info.Types[n].Value == nil {
			m.value(n, other)
		}
	}
}

// call swaps arguments of the same type, and max and min.
func (m *mutator) call(n *ast.CallExpr) {
	if f, ok := n.Fun.(*ast.Ident); ok {
		switch f.Name {
		case "max":
			m.value(n, "min"+strings.TrimPrefix(m.code(n), "max"))
		case "min":
			m.value(n, "max"+strings.TrimPrefix(m.code(n), "min"))
		}
	}
	for i := range len(n.Args) - 1 {
		a, b := n.Args[i], n.Args[i+1]
		if !m.variable(a) || !m.variable(b) || !types.Identical(m.info.TypeOf(a), m.info.TypeOf(b)) {
			continue
		}
		k := m.add(n, strings.Replace(m.code(n), m.code(a)+", "+m.code(b), m.code(b)+", "+m.code(a), 1))
		m.wrap(a, fmt.Sprintf("mutate(%d, ", k), ", "+m.code(b)+")")
		m.wrap(b, fmt.Sprintf("mutate(%d, ", k), ", "+m.code(a)+")")
	}
}

// variable reports whether an expression is a variable, perhaps a field.
func (m *mutator) variable(e ast.Expr) bool {
	switch e.(type) {
	case *ast.Ident, *ast.SelectorExpr:
		return m.info.Types[e].Addressable()
	}
	return false
}

// load reads a target's package with its types and makes the mutants of its files. It returns them
// and the changed files, by path.
func load(t target, exports map[string]string) (mutants []mutant, changed map[string]string, err error) {
	fset := token.NewFileSet()
	names, err := sources(t.dir)
	if err != nil {
		return nil, nil, err
	}
	var files []*ast.File
	for _, name := range names {
		f, err := parser.ParseFile(fset, filepath.Join(t.dir, name), nil, 0)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{},
		Defs: map[*ast.Ident]types.Object{}}
	pkg, err := (&types.Config{Importer: importerOf(fset, exports)}).Check(t.dir, fset, files, info)
	if err != nil {
		return nil, nil, err
	}
	next := 0
	changed = map[string]string{}
	for i, name := range names {
		if !slices.Contains(t.files, name) {
			continue
		}
		source, err := os.ReadFile(filepath.Join(t.dir, name))
		if err != nil {
			return nil, nil, err
		}
		m := &mutator{target: t, file: name, source: string(source), fset: fset, info: info, pkg: pkg,
			next: &next, names: map[string]int{}, before: map[int][]string{}, after: map[int][]string{}}
		m.walk(files[i])
		mutants = append(mutants, m.made...)
		changed[filepath.Join(t.dir, name)] = m.text()
	}
	changed[filepath.Join(t.dir, "mutate_switches.go")] = fmt.Sprintf(switches, pkg.Name())
	return mutants, changed, nil
}
