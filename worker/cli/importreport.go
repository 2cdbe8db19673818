package cli

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-json-experiment/json"

	"papermap-worker/repo"
)

// importResult is what became of a row, as --json prints it.
type importResult struct {
	Line        int    `json:"line"`
	TenantID    string `json:"tenant_id"`
	Result      string `json:"result"`
	DashboardID string `json:"dashboard_id,omitempty"`
	Error       string `json:"error,omitempty"`
}

// missingTenant is a tenant that the file lacks, as --json prints it.
type missingTenant struct {
	TenantID    string `json:"tenant_id"`
	Result      string `json:"result"`
	DashboardID string `json:"dashboard_id,omitempty"`
}

// importSample is how many rows of each result a plan shows.
const importSample = 20

// importPlan counts the rows of a file by what is to be done about them.
type importPlan struct {
	rows, acts, publishes, adopts int
	counts                        map[string]int
	sample                        map[string][]importResult
}

func newImportPlan() *importPlan {
	return &importPlan{counts: map[string]int{}, sample: map[string][]importResult{}}
}

func (p *importPlan) add(v verdict) {
	p.rows++
	p.counts[v.Result]++
	if v.acts() {
		p.acts++
	}
	if v.publish {
		p.publishes++
		if v.Result == resultAdopted {
			p.adopts++
		}
	}
	if len(p.sample[v.Result]) < importSample {
		p.sample[v.Result] = append(p.sample[v.Result], v.importResult)
	}
}

// print prints the counts, and the first rows of each result.
func (p *importPlan) print(w io.Writer) error {
	rows := table{{"LINE", "TENANT", "RESULT", "DASHBOARD", "ERROR"}}
	for _, result := range importResults {
		for _, r := range p.sample[result] {
			rows.add(r.Line, r.TenantID, r.Result, r.DashboardID, r.Error)
		}
		if more := p.counts[result] - len(p.sample[result]); more > 0 {
			rows.add("…", fmt.Sprintf("%d more", more), result, "", "")
		}
	}
	fmt.Fprintf(w, "Plan: %s\n\n", countResults(p.rows, p.counts))
	if err := rows.print(w); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// countResults is the number of rows and of each result.
func countResults(rows int, counts map[string]int) string {
	var list []string
	for _, result := range importResults {
		list = append(list, fmt.Sprintf("%s %d", result, counts[result]))
	}
	return fmt.Sprintf("%s: %s", count(rows, "row"), strings.Join(list, ", "))
}

// importOutput takes the results of rows as they become known.
type importOutput struct {
	out    io.Writer
	json   bool
	rows   int
	counts map[string]int

	// Rows that need a person. They are in files because there can be as many as the input has.
	listed *os.File // of the list at the end
	list   *bufio.Writer
	path   string   // of the report; empty: none
	report *os.File // written beside it
	csv    *csv.Writer
}

// newImportOutput returns one that writes results to out, and a report to path unless that is empty.
func newImportOutput(out io.Writer, asJSON bool, path string) (o *importOutput, err error) {
	o = &importOutput{out: out, json: asJSON, counts: map[string]int{}, path: path}
	if !asJSON {
		if o.listed, err = os.CreateTemp("", "papermap-import-*"); err != nil {
			return nil, fmt.Errorf("keep the results: %w", err)
		}
		if err := os.Remove(o.listed.Name()); err != nil {
			return nil, fmt.Errorf("keep the results: %w", err)
		}
		o.list = bufio.NewWriter(o.listed)
	}
	if path == "" {
		return o, nil
	}
	o.report, err = os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		o.close()
		return nil, fmt.Errorf("write the report: %w", err)
	}
	o.csv = csv.NewWriter(o.report)
	return o, o.csv.Write(append(importColumns[:], errorColumn))
}

// add takes the result of a row.
func (o *importOutput) add(row *importRow, r importResult) error {
	o.rows++
	o.counts[r.Result]++
	if o.csv != nil && needsPerson(r.Result) {
		var texts []string
		for _, text := range row.fields() {
			texts = append(texts, *text)
		}
		if err := o.csv.Write(append(texts, r.Error)); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	if o.json {
		line, err := json.Marshal(r)
		if err != nil { // a text is not valid UTF-8, which is the row's problem
			r.TenantID = strings.ToValidUTF8(r.TenantID, "\uFFFD")
			r.DashboardID = strings.ToValidUTF8(r.DashboardID, "\uFFFD")
			if line, err = json.Marshal(r); err != nil {
				return fmt.Errorf("print JSON: %w", err)
			}
		}
		_, err = fmt.Fprintln(o.out, visibleJSON(string(line)))
		return err
	}
	if needsPerson(r.Result) {
		_, err := fmt.Fprintf(o.list, "line %d  %s  %s  %s\n",
			r.Line, printable(r.TenantID), r.Result, printable(r.Error))
		return err
	}
	return nil
}

// missing takes a tenant that the file lacks.
func (o *importOutput) missing(m repo.Mapping) error {
	if !o.json {
		_, err := fmt.Fprintf(o.out, "missing  %s  %s\n", printable(m.TenantID), printable(m.DashboardID))
		return err
	}
	line, err := json.Marshal(missingTenant{m.TenantID, "missing", m.DashboardID})
	if err == nil {
		_, err = fmt.Fprintln(o.out, visibleJSON(string(line)))
	}
	return err
}

// end prints the rows that need a person and the counts, and moves the report to its place.
func (o *importOutput) end(title string) error {
	if !o.json {
		if err := o.list.Flush(); err != nil {
			return fmt.Errorf("list the results: %w", err)
		}
		_, err := o.listed.Seek(0, io.SeekStart)
		if err == nil {
			err = copyAll(o.out, o.listed)
		}
		if err == nil {
			_, err = fmt.Fprintf(o.out, "%s: %s\n", title, countResults(o.rows, o.counts))
		}
		if err != nil {
			return fmt.Errorf("list the results: %w", err)
		}
	}
	if o.csv == nil {
		return nil
	}
	o.csv.Flush()
	err := errors.Join(o.csv.Error(), o.report.Sync())
	if err == nil {
		err = os.Rename(o.report.Name(), o.path)
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// bad is the number of rows that need a person.
func (o *importOutput) bad() int {
	return o.counts[resultConflict] + o.counts[resultInvalid] + o.counts[resultFailed]
}

// close removes what end did not move to its place.
func (o *importOutput) close() {
	for _, f := range []*os.File{o.listed, o.report} {
		if f != nil {
			_ = f.Close()
			_ = os.Remove(f.Name()) // it is gone unless the import was broken off
		}
	}
}
