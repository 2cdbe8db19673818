package cli

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A table for a terminal is made to fit its width, in steps, until it does: ids, times and titles are
// shortened, columns that say nothing are left out, long cells are cut, the last column is wrapped at
// spaces. If that is not enough, each row is printed as a block of lines, with nothing cut.

const (
	columnGap = 2
	lastWidth = 16 // what the last column needs to be wrapped
)

var (
	fullID   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	fullTime = regexp.MustCompile(`^20\d\d-(\d\d-\d\d \d\d:\d\d):\d\d(\.\d+)?Z$`)
)

// hasHeading reports whether the first row is one.
func (t table) hasHeading() bool {
	return len(t) > 0 && !slices.ContainsFunc(t[0], func(cell string) bool {
		return cell != strings.ToUpper(cell)
	})
}

// fit prints the table on a terminal of that width.
func (t table) fit(w io.Writer, width int, colour bool) error {
	heading := t.hasHeading()
	full := t
	if t.width() > width {
		t = t.shortened(heading)
	}
	for _, longest := range []int{1 << 20, 36, 28, 20, 14} {
		cut := t.cut(longest)
		if rest := width - cut.leading(); cut.width() <= width || rest >= lastWidth || !heading {
			return cut.printLines(w, max(rest, 8), heading, colour)
		}
	}
	return full.printBlocks(w, width, colour)
}

// widths are those of the columns.
func (t table) widths() (list []int) {
	for _, row := range t {
		for i, cell := range row {
			if i == len(list) {
				list = append(list, 0)
			}
			list[i] = max(list[i], utf8.RuneCountInString(cell))
		}
	}
	return list
}

// width is that of the table.
func (t table) width() int {
	list := t.widths()
	if len(list) == 0 {
		return 0
	}
	return t.leading() + list[len(list)-1]
}

// leading is the width of all columns but the last, with the gaps between them.
func (t table) leading() (sum int) {
	list := t.widths()
	for _, n := range list[:max(0, len(list)-1)] {
		sum += n + columnGap
	}
	return sum
}

// shortened shortens ids, times and titles, and leaves out columns without a heading, with nothing in
// them, and the workspace if there is only one.
func (t table) shortened(heading bool) table {
	var out table
	for i, row := range t {
		cells := slices.Clone(row)
		for j, cell := range cells {
			switch {
			case !heading || i == 0:
			case fullID.MatchString(cell):
				cells[j] = cell[:8] + "…"
			case fullTime.MatchString(cell):
				cells[j] = fullTime.FindStringSubmatch(cell)[1] + "Z"
			case t[0][j] == "TITLE":
				cells[j] = strings.TrimPrefix(cell, "Dashboard - ")
			}
		}
		out = append(out, cells)
	}
	if !heading || len(t) < 2 {
		return out
	}
	for j := len(out[0]) - 1; j > 0; j-- {
		if idle(out, j) {
			for i := range out {
				out[i] = slices.Delete(out[i], j, j+1)
			}
		}
	}
	return out
}

// idle reports whether a column can be left out.
func idle(t table, column int) bool {
	values := map[string]bool{}
	for _, row := range t[1:] {
		if cell := strings.TrimSpace(row[column]); cell != "" && cell != "-" {
			values[cell] = true
		}
	}
	switch strings.TrimSpace(t[0][column]) {
	case "":
		return column > 0
	case "WORKSPACE":
		return len(values) < 2
	}
	return len(values) == 0
}

// cut shortens all cells but the last of each row, and but marks, which people look for as a whole.
func (t table) cut(longest int) table {
	var out table
	for _, row := range t {
		cells := slices.Clone(row)
		for j, cell := range cells[:max(0, len(cells)-1)] {
			if utf8.RuneCountInString(cell) > longest && !strings.HasPrefix(cell, "pmw:") {
				cells[j] = string([]rune(cell)[:longest-1]) + "…"
			}
		}
		out = append(out, cells)
	}
	return out
}

// printLines prints a row on a line, and what the last column has more below it.
func (t table) printLines(w io.Writer, last int, heading, colour bool) error {
	widths, indent := t.widths(), t.leading()
	for i, row := range t {
		var line strings.Builder
		for j, cell := range row[:max(0, len(row)-1)] {
			fill := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)+columnGap)
			if colour && (i > 0 || !heading) && t.isStatus(j, row, heading) {
				cell = coloured(cell)
			}
			line.WriteString(cell + fill)
		}
		if len(row) == 0 {
			continue
		}
		for n, text := range wrap(row[len(row)-1], last) {
			if colour && (i > 0 || !heading) && t.isStatus(len(row)-1, row, heading) {
				text = coloured(text)
			}
			if n > 0 {
				line.WriteString("\n" + strings.Repeat(" ", indent))
			}
			line.WriteString(text)
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line.String(), " ")); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// printBlocks prints each row as lines of a heading and a value.
func (t table) printBlocks(w io.Writer, width int, colour bool) error {
	for i, row := range t[1:] {
		if i > 0 {
			fmt.Fprintln(w)
		}
		var block table
		for j, cell := range row {
			if text := strings.TrimSpace(cell); text != "" && text != "-" &&
				strings.TrimSpace(t[0][j]) != "" {
				block = append(block, []string{strings.ToLower(t[0][j]), cell})
			}
		}
		if err := block.printLines(w, max(width-block.leading(), 8), false, colour); err != nil {
			return err
		}
	}
	return nil
}

// isStatus reports whether a cell is the status of something.
func (t table) isStatus(column int, row []string, heading bool) bool {
	if heading {
		return slices.Contains([]string{"STATUS", "OUTCOME", "RESULT", " "}, t[0][column])
	}
	return column == 1 && slices.Contains([]string{"status", "outcome", "result"}, row[0])
}

// colours are those of statuses, as codes of a terminal.
var colours = map[string]string{
	"active": "32", "done": "32", "created": "32", "adopted": "32", "ok": "32",
	"pending": "33", "creating": "33", "running": "33", "skipped": "33", "warn": "33", "incomplete": "33",
	"unknown": "33", "conflict": "33",
	"failed": "31", "held": "31", "ERROR": "31", "orphaned": "31", "invalid": "31",
	"suspended": "35", "deleted": "2",
}

func coloured(cell string) string {
	if code := colours[cell]; code != "" {
		return "\x1b[" + code + "m" + cell + "\x1b[0m"
	}
	return cell
}

// wantsColour reports whether a terminal should show colours: see https://no-color.org.
func wantsColour() bool { return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" }
