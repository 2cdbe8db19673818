package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"papermap-worker/events"
)

// importColumns are the columns of an import file, and of its report, in the order of fields.
var importColumns = [...]string{
	"tenant_id", "name", "title", "description", "workspace_id", "dashboard_id", "created_by",
}

func (r *importRow) fields() [len(importColumns)]*string {
	return [...]*string{
		&r.TenantID, &r.Name, &r.Title, &r.Description, &r.WorkspaceID, &r.DashboardID, &r.CreatedBy,
	}
}

// errorColumn is what a report has more than the file. It is ignored when the report is fed back.
const errorColumn = "error"

const (
	importChunk    = 1000    // rows that are looked up in the database together
	importChunkMax = 4 << 20 // bytes of them
	maxImportRow   = 1 << 20 // bytes of a row
)

// importRow is a row of an import file.
type importRow struct {
	events.TenantCreated
	line     int
	at       [len(importColumns)]position // where the fields begin
	unread   [len(importColumns)]bool     // fields that are there, and whose text could not be read
	broken   bool                         // what is left of it says nothing
	problems []string                     // all that makes it invalid
	size     int                          // bytes, about
}

// position is a place in the file. Columns count bytes.
type position struct{ line, column int }

func (p position) String() string { return fmt.Sprintf("line %d, column %d", p.line, p.column) }

// problem notes what is wrong at a place.
func (r *importRow) problem(at position, format string, args ...any) {
	if at.line == 0 { // a field that is not there
		at = position{r.line, 1}
	}
	r.problems = append(r.problems, fmt.Sprintf("%v: %s", at, fmt.Sprintf(format, args...)))
}

// breaks notes what makes the row unreadable.
func (r *importRow) breaks(at position, format string, args ...any) {
	r.broken = true
	r.problem(at, format, args...)
}

// set sets the field of a column and notes where it begins.
func (r *importRow) set(column int, text string, at position) {
	*r.fields()[column], r.at[column] = text, at
	r.size += len(text)
}

// of is where the field of a name begins.
func (r *importRow) of(name string) position { return r.at[columnOf(name)] }

// columnOf is the index of a column in importColumns, -1 for an unknown name.
func columnOf(name string) int { return slices.Index(importColumns[:], name) }

// validate notes what the worker would refuse.
func (r *importRow) validate() {
	if r.broken {
		return
	}
	for _, e := range r.Validate() {
		if !r.unread[columnOf(e.Field)] {
			r.problem(r.of(e.Field), "%v", e.Err)
		}
	}
}

// importFile is a file of tenants: CSV with a header line, or JSON Lines. It is read more than once.
type importFile struct{ file *os.File }

// openImport opens a file. What can be read only once is copied to a temporary file, which is the
// user's alone and vanishes with the process, also if that is killed.
func openImport(path string, stdin *os.File) (*importFile, error) {
	in := stdin
	if path != "-" {
		var err error
		if in, err = os.Open(path); err != nil {
			return nil, err
		}
	}
	if info, err := in.Stat(); path != "-" && (err != nil || info.Mode().IsRegular()) {
		return &importFile{in}, err
	}
	if path != "-" {
		defer in.Close()
	}
	kept, err := os.CreateTemp("", "papermap-import-*") // its mode is 0600
	if err != nil {
		return nil, fmt.Errorf("keep the input: %w", err)
	}
	if err := errors.Join(os.Remove(kept.Name()), copyAll(kept, in)); err != nil {
		return nil, errors.Join(fmt.Errorf("keep the input: %w", err), kept.Close())
	}
	return &importFile{kept}, nil
}

func copyAll(to io.Writer, from io.Reader) error {
	_, err := io.Copy(to, from)
	return err
}

func (f *importFile) close() { _ = f.file.Close() }

// rows reads the file from its beginning, and calls do with some rows at a time, which are checked.
// do must not keep the slice. It returns the ids of the file.
func (f *importFile) rows(do func([]importRow) error) (*importIDs, error) {
	if _, err := f.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(f.file, 64<<10)
	next, err := rowReader(in)
	if err != nil {
		return nil, err
	}
	ids := newImportIDs()
	chunk, size := make([]importRow, 0, importChunk), 0
	for {
		row, err := next()
		if err != nil && err != io.EOF {
			return nil, err
		}
		if err == nil {
			row.validate()
			ids.add(&row)
			chunk, size = append(chunk, row), size+row.size
		}
		if len(chunk) == importChunk || size > importChunkMax || err == io.EOF && len(chunk) > 0 {
			if err := do(chunk); err != nil {
				return nil, err
			}
			clear(chunk)
			chunk, size = chunk[:0], 0
		}
		if err == io.EOF {
			return ids, nil
		}
	}
}

// rowReader returns what reads one row after the other, and io.EOF at the end. A file whose first
// character is { is JSON Lines.
func rowReader(in *bufio.Reader) (next func() (importRow, error), err error) {
	start, err := in.Peek(3)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte("\uFEFF")):
		_, _ = in.Discard(3)
	case bytes.HasPrefix(start, []byte{0xff, 0xfe}), bytes.HasPrefix(start, []byte{0xfe, 0xff}):
		return nil, errors.New("the file is UTF-16: save it as UTF-8")
	}
	blank := 0 // lines before the first that is not
	for {
		c, _, err := in.ReadRune()
		switch {
		case err == io.EOF:
			return nil, errors.New("the file is empty: CSV needs a header line with tenant_id")
		case err != nil:
			return nil, err
		case c == '\n':
			blank++
		case c == '{':
			return jsonRows(in, blank), in.UnreadRune()
		case !unicode.IsSpace(c):
			if err := in.UnreadRune(); err != nil {
				return nil, err
			}
			return csvRows(in, blank)
		}
	}
}

// checkNames returns an error that names all that is wrong with the columns.
func checkNames(names []string) error {
	var problems []string
	for i, name := range names {
		switch {
		case name != errorColumn && columnOf(name) < 0:
			problems = append(problems, fmt.Sprintf("unknown column %q", name))
		case slices.Contains(names[:i], name):
			problems = append(problems, fmt.Sprintf("column %q appears twice", name))
		}
	}
	if !slices.Contains(names, "tenant_id") {
		problems = append(problems, "column \"tenant_id\" is missing")
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("the header line: %s; the columns are %s",
		strings.Join(problems, "; "), strings.Join(importColumns[:], ", "))
}
