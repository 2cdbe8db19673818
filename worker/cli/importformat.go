package cli

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// rowLimit is a reader that fails when it has read too much for one row.
type rowLimit struct {
	r    io.Reader
	left int
}

var errLongRow = fmt.Errorf("a row has more than %d bytes: is a quote missing?", maxImportRow)

func (l *rowLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errLongRow
	}
	n, err := l.r.Read(p)
	l.left -= n
	return n, err
}

// csvRows reads CSV, RFC 4180, whose first line is the header. Lines counts those before it.
func csvRows(in io.Reader, lines int) (next func() (importRow, error), err error) {
	limited := &rowLimit{r: in, left: maxImportRow}
	r := csv.NewReader(limited)
	r.FieldsPerRecord, r.ReuseRecord = -1, true
	header, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("read the header line: %w", err)
	}
	names := slices.Clone(header)
	for i, name := range names {
		names[i] = strings.TrimSpace(name)
	}
	if err := checkNames(names); err != nil {
		return nil, err
	}
	columns := make([]int, len(names))
	for i, name := range names {
		columns[i] = columnOf(name)
	}
	line := 1
	return func() (importRow, error) {
		limited.left = maxImportRow
		record, err := r.Read()
		row := importRow{}
		wrong := (*csv.ParseError)(nil)
		switch {
		case err == io.EOF:
			return row, err
		case errors.As(err, &wrong):
			row.line = wrong.StartLine + lines
			row.breaks(position{wrong.Line + lines, wrong.Column}, "%v", wrong.Err)
			return row, nil
		case err != nil:
			return row, fmt.Errorf("after line %d: %w", line, err)
		}
		line, _ = r.FieldPos(0)
		line += lines
		row.line = line
		if len(record) != len(names) {
			row.breaks(position{}, "it has %d columns, and the header line has %d", len(record), len(names))
		}
		for i := range min(len(record), len(names)) {
			if columns[i] >= 0 {
				l, c := r.FieldPos(i)
				row.set(columns[i], record[i], position{l + lines, c})
			}
		}
		return row, nil
	}, nil
}

// jsonRows reads JSON Lines. Lines counts those that were read before; lines that are blank are left
// out.
func jsonRows(in *bufio.Reader, lines int) (next func() (importRow, error)) {
	s := bufio.NewScanner(in)
	s.Buffer(make([]byte, 0, 64<<10), maxImportRow)
	return func() (importRow, error) {
		for s.Scan() {
			lines++
			if text := s.Bytes(); len(bytes.TrimSpace(text)) > 0 {
				row := importRow{line: lines}
				row.readJSON(text)
				return row, nil
			}
		}
		err := s.Err()
		switch {
		case errors.Is(err, bufio.ErrTooLong):
			err = fmt.Errorf("line %d has more than %d bytes", lines+1, maxImportRow)
		case err == nil:
			err = io.EOF
		}
		return importRow{}, err
	}
}

// readJSON reads the row of a line.
func (r *importRow) readJSON(text []byte) {
	d := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(true))
	invalid := func(err error) {
		what, at := "the JSON ends too early", len(text)
		if s := (*jsontext.SyntacticError)(nil); errors.As(err, &s) && !errors.Is(err, io.ErrUnexpectedEOF) {
			what, at = "invalid JSON", int(s.ByteOffset)
		}
		r.breaks(position{r.line, at + 1}, "%s", what)
	}
	if start, err := d.ReadToken(); err != nil {
		invalid(err)
		return
	} else if start.Kind() != '{' {
		r.breaks(position{r.line, 1}, "it is not a JSON object")
		return
	}
	for d.PeekKind() != '}' {
		token, err := d.ReadToken()
		if err != nil {
			invalid(err)
			return
		}
		name := token.String()
		nameAt := position{r.line, int(d.InputOffset()) - len(name) - 1}
		value, err := d.ReadValue()
		if err != nil {
			invalid(err)
			return
		}
		at := position{r.line, int(d.InputOffset()) - len(value) + 1}
		switch column := columnOf(name); {
		case name == errorColumn:
		case column < 0:
			r.problem(nameAt, "unknown field %q", name)
		case r.at[column].line > 0:
			r.problem(nameAt, "%q appears twice", name)
		default:
			r.readField(column, value, at)
		}
	}
	if _, err := d.ReadToken(); err != nil {
		invalid(err)
		return
	}
	end := position{r.line, int(d.InputOffset()) + 1}
	if _, err := d.ReadToken(); err != io.EOF {
		r.breaks(end, "unexpected data after the JSON object")
	}
}

// readField reads the value of a column. One that is null is empty.
func (r *importRow) readField(column int, value jsontext.Value, at position) {
	r.at[column] = at
	if value.Kind() == 'n' {
		return
	}
	if value.Kind() != '"' {
		r.unread[column] = true
		r.problem(at, "%q must be a string", importColumns[column])
		return
	}
	text, err := jsontext.AppendUnquote(nil, value)
	if err != nil {
		r.unread[column] = true
		r.problem(at, "%q is not valid UTF-8", importColumns[column])
		return
	}
	r.set(column, string(text), at)
}
