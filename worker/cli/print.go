package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// table is rows of cells for people; the first row may be a heading.
type table [][]string

// add adds a row of cells, which are formatted as by fmt.Print.
func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = fmt.Sprint(cell)
	}
	*t = append(*t, row)
}

// print aligns the cells in columns; on a terminal it makes them fit. What is not printable in them is
// replaced.
func (t table) print(w io.Writer) error {
	var safe table
	for _, row := range t {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = printable(cell)
		}
		safe = append(safe, cells)
	}
	if onTerminal(w) {
		return safe.fit(w, terminalWidth(w, 80), wantsColour())
	}
	tw := tabwriter.NewWriter(w, 0, 0, columnGap, ' ', 0)
	for _, cells := range safe {
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printText prints a line; on a terminal it is broken between words.
func printText(w io.Writer, text string) {
	lines := []string{text}
	if onTerminal(w) {
		lines = wrap(text, terminalWidth(w, 80))
	}
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
}

// jsonFlag is the flag of commands that print for people or for programs.
type jsonFlag struct {
	JSON bool `help:"Print JSON."`
}

// print prints value as JSON if that was asked for, else rows.
func (f jsonFlag) print(w io.Writer, value any, rows table) error {
	if f.JSON {
		return printJSON(w, value)
	}
	return rows.print(w)
}

// printList is print for rows with a heading. It prints the text none instead when there are no
// others.
func (f jsonFlag) printList(w io.Writer, value any, rows table, none string) error {
	if f.JSON || len(rows) > 1 {
		return f.print(w, value, rows)
	}
	_, err := fmt.Fprintln(w, none)
	return err
}

// printable escapes what could move the cursor or break the table, and what is invisible, so that no
// id looks like another one: others choose the names that are printed.
func printable(cell string) string {
	if cell == "" {
		return "-"
	}
	return events.Visible(cell)
}

// printableLines escapes what could move the cursor in lines of text.
func printableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = events.Visible(line)
	}
	return strings.Join(lines, "\n")
}

// printJSON prints indented JSON with a line break at its end. An empty list is [], not null. What is
// invisible on a terminal is escaped, which JSON's readers undo.
func printJSON(w io.Writer, v any) error {
	err := writeJSON(w, v)
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	return err
}

func writeJSON(w io.Writer, v any, options ...json.Options) error {
	options = append(options, jsontext.WithIndent("  "), json.FormatNilSliceAsNull(false))
	data, err := json.Marshal(v, options...)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err = io.WriteString(w, visibleJSON(string(data)))
	return err
}

// visibleJSON escapes invisible characters, which JSON permits in strings alone, as JSON does.
func visibleJSON(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch {
		case r == '\n' || !events.Invisible(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

// unixTime writes seconds since the epoch for people.
func unixTime(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// count is a number with its noun: "1 tenant", "2 tenants".
func count[N int | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// dateTime is the form of times in tables, in UTC.
const dateTime = time.DateTime + "Z"

// shortTime writes a time in UTC to the second; empty for none.
func shortTime(t repo.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(dateTime)
}

// bar draws a share, 0 to 1, in 24 cells, rounded to an eighth of one.
func bar(share float64) string {
	const width = 24
	eighths := int(share*width*8 + 0.5)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return fmt.Sprintf("%-*s", width, text)
}
