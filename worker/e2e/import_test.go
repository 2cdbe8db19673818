package e2e

import (
	"bytes"
	"encoding/csv"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// The large run: go test ./worker/e2e -run TestKilledImport -v -timeout 60m -args -import.rows 10000
// -import.kills 10 -import.delay 50ms
var (
	importRows  = flag.Int("import.rows", 400, "rows of the import test; a multiple of 40")
	importKills = flag.Int("import.kills", 1, "kills of the import and of the worker in the import test")
	importDelay = flag.Duration("import.delay", 5*time.Millisecond, "Papermap's in the import test")
)

// importCase is a row of the import test, and its result.
type importCase struct{ row, want string }

// importCases are n rows: 60 % are created, 30 % adopt, 5 % are there, and 2.5 % each are conflicts
// and invalid. seed is a file of the tenants that are there before.
func importCases(n int) (cases []importCase, seed string) {
	before := bytes.NewBufferString("tenant_id,name,dashboard_id\n")
	for i := range n {
		id := fmt.Sprintf("org-%05d", i)
		c := importCase{id + ",Company " + id + ",", "created"}
		switch kind := i % 40; {
		case kind >= 24 && kind < 36:
			c = importCase{id + ",,adopted-" + id, "adopted"}
		case kind == 36:
			fmt.Fprintf(before, "%s,There,\n", id)
			c = importCase{id + ",There,", "unchanged"}
		case kind == 37:
			fmt.Fprintf(before, "%s,,there-%s\n", id, id)
			c = importCase{id + ",,there-" + id, "unchanged"}
		case kind == 38:
			fmt.Fprintf(before, "%s,,there-%s\n", id, id)
			c = importCase{id + ",,other-" + id, "conflict"}
			if i%80 == 38 { // the dashboard of another tenant
				c.row = "thief-" + id + ",,there-" + id
			}
		case kind == 39:
			c = importCase{id + ", ,", "invalid"}
			if i%80 == 39 { // a tenant that the file has already
				c.row = fmt.Sprintf("org-%05d,Again,", i-39)
			}
		}
		cases = append(cases, c)
	}
	return cases, before.String()
}

// An import and a worker are killed within it. The next import finishes the rest and repeats nothing,
// and its report is right to the row.
func TestKilledImportIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "on=create delay="+importDelay.String())
	js := s.jetStream(t)
	worker := startReady(t, s.env)
	cases, seed := importCases(*importRows)
	dir := t.TempDir()
	file, before, report := filepath.Join(dir, "tenants.csv"), filepath.Join(dir, "seed.csv"),
		filepath.Join(dir, "report.csv")
	text := bytes.NewBufferString("tenant_id,name,dashboard_id\n")
	for _, c := range cases {
		fmt.Fprintln(text, c.row)
	}
	must(t, os.WriteFile(file, text.Bytes(), 0o600))
	must(t, os.WriteFile(before, []byte(seed), 0o600))
	run(t, s.env, "import", before)

	for range *importKills {
		killed := start(t, s.env, "import", file)
		s.requests(t, len(s.sim.Log()) + *importRows / *importKills / 4)
		worker.kill()
		killed.kill()
		if strings.Contains(killed.text(), "Done") {
			t.Fatal("the import was finished before it was killed")
		}
		worker = startReady(t, s.env)
	}
	results := s.importResults(t, file, "--report", report)
	var bad []string
	for i, c := range cases {
		r := results[i+2]
		done := r.Result == "unchanged" && (c.want == "created" || c.want == "adopted") // by the first import
		if r.Result != c.want && !done {
			t.Errorf("line %d, %s: %+v, want %s", i+2, c.row, r, c.want)
		}
		if c.want == "conflict" || c.want == "invalid" {
			bad = append(bad, c.row)
		}
	}
	if got := reportRows(t, report); !slices.Equal(got, bad) {
		t.Errorf("the report has %d rows, want %d", len(got), len(bad))
	}

	db := openRepo(t, s.database)
	list, err := db.Mappings(t.Context(), "", "", len(cases)+1)
	must(t, err)
	calls := 0
	for _, m := range list {
		attempts, err := db.Attempts(t.Context(), m.TenantID)
		must(t, err)
		uncertain := 0
		for _, a := range attempts {
			if a.Outcome == repo.OutcomeUnknown || a.Outcome == repo.OutcomeOrphaned {
				uncertain++
			}
		}
		if m.Status != repo.Active || m.Generation != 1 || len(attempts) > 1+uncertain {
			t.Errorf("tenant %s is %s in generation %d after %d attempts, %d of them uncertain",
				m.TenantID, m.Status, m.Generation, len(attempts), uncertain)
		}
		calls += len(attempts)
	}
	if made := len(s.sim.Dashboards()); made > calls || len(list) != len(cases)*39/40 {
		t.Errorf("%d tenants, %d dashboards made by %d create calls", len(list), made, calls)
	}
	stored := lastCreated(t, js)
	for line, r := range s.importResults(t, file) {
		if want := cases[line-2].want; r.Result != want &&
			(r.Result != "unchanged" || needsCorrection(want)) {
			t.Errorf("the third import: %+v, want %s", r, want)
		}
	}
	if last := lastCreated(t, js); last != stored {
		t.Errorf("the third import published an event, %d after %d", last, stored)
	}
}

// importRow is what import --json prints of a row.
type importRow struct {
	Line        int    `json:"line"`
	TenantID    string `json:"tenant_id"`
	Result      string `json:"result"`
	DashboardID string `json:"dashboard_id"`
	Error       string `json:"error"`
}

// importResults imports a file of which some rows must be corrected, and returns the results by line.
func (s *system) importResults(t *testing.T, file string, flags ...string) map[int]importRow {
	t.Helper()
	p := start(t, s.env, append([]string{"import", file, "--json"}, flags...)...)
	if code := p.wait(t); code != 1 {
		t.Fatalf("exit code %d, want 1: %s", code, tail(p.text(), 2000))
	}
	results := map[int]importRow{}
	for line := range strings.Lines(p.text()) {
		if !strings.HasPrefix(line, `{"line"`) {
			continue // of the log
		}
		var r importRow
		must(t, json.Unmarshal([]byte(line), &r))
		if _, twice := results[r.Line]; twice || needsCorrection(r.Result) != (r.Error != "") {
			t.Errorf("result %+v, twice: %v", r, twice)
		}
		results[r.Line] = r
	}
	return results
}

func needsCorrection(result string) bool {
	return result == "conflict" || result == "invalid" || result == "failed"
}

// reportRows are the rows of a report, as the file had them, in the file's order.
func reportRows(t *testing.T, path string) (rows []string) {
	t.Helper()
	file, err := os.Open(path)
	must(t, err)
	defer file.Close()
	list, err := csv.NewReader(file).ReadAll()
	must(t, err)
	for _, cells := range list[1:] { // tenant_id, name, …, dashboard_id, created_by, error
		rows = append(rows, cells[0]+","+cells[1]+","+cells[5])
	}
	return rows
}

// lastCreated is the sequence of the last tenant.created.
func lastCreated(t *testing.T, js jetstream.JetStream) uint64 {
	t.Helper()
	stream, err := js.Stream(t.Context(), "PAPERMAP")
	must(t, err)
	msg, err := stream.GetLastMsgForSubject(t.Context(), subjects.Event(events.TypeTenantCreated))
	must(t, err)
	return msg.Sequence
}
