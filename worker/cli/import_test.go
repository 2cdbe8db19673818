package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// readImport reads a file with this text, and returns a line for each row: its problems, or its
// fields.
func readImport(t *testing.T, text string) ([]string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tenants")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := openImport(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	var got []string
	_, err = file.rows(func(rows []importRow) error {
		for _, r := range rows {
			row := fmt.Sprintf("%d:", r.line)
			for i, text := range r.fields() {
				if *text != "" && len(r.problems) == 0 {
					row += fmt.Sprintf(" %s=%q", importColumns[i], *text)
				}
			}
			got = append(got, strings.TrimSpace(row+" "+strings.Join(r.problems, "; ")))
		}
		return nil
	})
	return got, err
}

func TestImportReadsBothFormats(t *testing.T) {
	long := strings.Repeat("x", 1001)
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"CSV with columns in any order, quotes and empty lines",
			"name,dashboard_id,tenant_id\n\"Beta, \"\"B\"\"\",,b\n\n,d-1,c\n",
			[]string{`2: tenant_id="b" name="Beta, \"B\""`, `4: tenant_id="c" dashboard_id="d-1"`}},
		{"CSV with a byte order mark, CRLF and no last line break",
			"\uFEFFtenant_id,name,title\r\na,A,\"two\r\nlines\"\r\nb,B,",
			[]string{`2: tenant_id="a" name="A" title="two\nlines"`, `4: tenant_id="b" name="B"`}},
		{"a report fed back", "tenant_id,name,error\na,A,\"it was, wrong\"\n",
			[]string{`2: tenant_id="a" name="A"`}},
		{"JSON Lines with a byte order mark and blank lines",
			"\uFEFF\n{\"name\":\"A\",\"tenant_id\":\"a\",\"title\":null}\r\n\n " +
				"{\"tenant_id\":\"b\",\"dashboard_id\":\"d\"}",
			[]string{`2: tenant_id="a" name="A"`, `4: tenant_id="b" dashboard_id="d"`}},
		{"all problems of a row at once", "tenant_id,name,title,workspace_id\n\"a\tb\", ," + long + ",w \n",
			[]string{`2: line 2, column 1: "tenant_id" has control characters; ` +
				`line 2, column 7: "name" is missing or blank; ` +
				`line 2, column 9: "title" has more than 1000 characters; ` +
				`line 2, column 1011: "workspace_id" has leading or trailing white space`}},
		{"invalid UTF-8", "tenant_id,name\na\xff,\xffA\n",
			[]string{`2: line 2, column 1: "tenant_id" is not valid UTF-8; ` +
				`line 2, column 4: "name" is not valid UTF-8`}},
		{"ids twice", "tenant_id,name,dashboard_id,workspace_id\na,A,,\nb,,d,\na,A,d,\nc,,d,w\n",
			[]string{`2: tenant_id="a" name="A"`, `3: tenant_id="b" dashboard_id="d"`,
				`4: line 4, column 1: "tenant_id" is the same as in line 2; ` +
					`line 4, column 5: "dashboard_id" is the same as in line 3`,
				`5: tenant_id="c" workspace_id="w" dashboard_id="d"`}},
		{"CSV rows that cannot be read", "tenant_id,name\na\na,b,c\n\"a\"b,A\nc,C\n",
			[]string{`2: line 2, column 1: it has 1 columns, and the header line has 2`,
				`3: line 3, column 1: it has 3 columns, and the header line has 2`,
				`4: line 4, column 3: extraneous or missing " in quoted-field`, `5: tenant_id="c" name="C"`}},
		{"JSON rows with problems",
			`{"tenant_id":7,"Name":"A","name":"A","name":"B"}` + "\n" + `[1]` + "\n" +
				`{"tenant_id":"a"` + "\n" + `{"tenant_id":"a" "name"}` + "\n" + `{} {}` + "\n" + `{}`,
			[]string{`1: line 1, column 14: "tenant_id" must be a string; ` +
				`line 1, column 16: unknown field "Name"; line 1, column 38: "name" appears twice`,
				`2: line 2, column 1: it is not a JSON object`,
				`3: line 3, column 17: the JSON ends too early`,
				`4: line 4, column 18: invalid JSON`,
				`5: line 5, column 3: unexpected data after the JSON object`,
				`6: line 6, column 1: "tenant_id" is missing or empty; ` +
					`line 6, column 1: "name" is missing or blank`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readImport(t, tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

func TestImportRefusesAFileItCannotRead(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"columns that are unknown, twice or missing", "tenant,name,dashbord_id,name\n",
			`unknown column "tenant"; unknown column "dashbord_id"; column "name" appears twice; ` +
				`column "tenant_id" is missing`},
		{"an empty file", "\uFEFF\n\n", "the file is empty"},
		{"UTF-16", "\xff\xfet\x00", "UTF-16"},
		{"a quote that never ends", "tenant_id,name\na,\"" + strings.Repeat("x\n", maxImportRow),
			"is a quote missing?"},
		{"a long line of JSON", `{"a":"` + strings.Repeat("x", maxImportRow), "line 1 has more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if rows, err := readImport(t, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("rows %q, error %v, want %q", rows, err, tt.want)
			}
		})
	}
}

// What can be read only once is read again from a copy, which nobody else can read or find.
func TestImportKeepsStandardInput(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "tenant_id,name\na,A\n")
	w.Close()
	file, err := openImport("-", r)
	if err != nil {
		t.Fatal(err)
	}
	defer file.close()
	for range 2 {
		rows := 0
		_, err := file.rows(func(list []importRow) error { rows += len(list); return nil })
		if err != nil || rows != 1 {
			t.Errorf("%d rows, %v", rows, err)
		}
	}
	info, err := file.file.Stat()
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("left to be found: %v", left)
	}
}

// A file of a million rows is not held in memory, and neither are its ids.
func TestImportFindsIDsAgainByTheirHashes(t *testing.T) {
	var table lineTable
	ids := newImportIDs()
	const n = 100_000
	for i := range uint32(n) {
		if first := table.add(ids.hash(fmt.Sprint(i)), i+1); first != 0 {
			t.Fatalf("%d is said to be the same as %d", i+1, first)
		}
	}
	places := 0
	for i := range table {
		places += len(table[i].lines)
	}
	if places > n*3/2 {
		t.Errorf("%d places for %d ids", places, n)
	}
	for i := range uint32(n) {
		if first := table.add(ids.hash(fmt.Sprint(i)), n+1); first != i+1 {
			t.Fatalf("%d is said to be the same as %d", i+1, first)
		}
	}
	if line := table.line(ids.hash("other")); line != 0 {
		t.Errorf("an id that was not added has line %d", line)
	}
}

func TestImportJudgesARowByItsTenant(t *testing.T) {
	state := func(stage repo.Status, dashboard string, created, deleted int64) repo.TenantState {
		return repo.TenantState{
			TenantID: "t", WorkspaceID: "w", DashboardID: dashboard, Stage: stage,
			CreatedEvent: created, DeletedEvent: deleted,
		}
	}
	states := map[string]repo.TenantState{
		"only suspended": state("none", "", 0, 0), "pending": state(repo.Pending, "", 1, 0),
		"creating": state(repo.Creating, "", 1, 0), "active": state(repo.Active, "d", 1, 0),
		"held": state(repo.Held, "", 1, 0), "failed": state(repo.Failed, "", 1, 0),
		"deleted": state(repo.Active, "d", 1, 2), "only deleted": state("none", "", 0, 2),
		"created again": state(repo.Active, "d", 3, 2),
	}
	owners := map[string][]repo.DashboardOwner{
		"d":     {{WorkspaceID: "w", DashboardID: "d", TenantID: "t"}},
		"taken": {{WorkspaceID: "w", DashboardID: "taken", TenantID: "other"}},
		"far":   {{WorkspaceID: "w2", DashboardID: "far", TenantID: "other"}},
	}
	for _, tt := range []struct {
		tenant, dashboard, workspace string
		recreate                     bool
		want                         string
	}{
		{"unknown", "", "", false, "publish created"}, {"unknown", "new", "", false, "publish adopted"},
		{"unknown", "taken", "", false, "conflict"}, {"unknown", "far", "", false, "conflict"},
		{"unknown", "far", "w", false, "publish adopted"}, {"unknown", "d", "", false, "publish adopted"},
		{"only suspended", "", "", false, "publish created"},
		{"only suspended", "new", "", false, "publish adopted"},
		{"pending", "", "", false, "follow unchanged"}, {"pending", "new", "", false, "publish adopted"},
		{"pending", "far", "", false, "publish adopted"}, {"pending", "taken", "", false, "conflict"},
		{"creating", "", "", false, "follow unchanged"}, {"creating", "new", "", false, "publish adopted"},
		{"active", "", "", false, "unchanged"}, {"active", "d", "", false, "unchanged"},
		{"active", "d", "w", false, "unchanged"}, {"active", "d", "w2", false, "conflict"},
		{"active", "new", "", false, "conflict"}, {"active", "taken", "", false, "conflict"},
		{"held", "", "", false, "conflict"}, {"held", "new", "", false, "publish adopted"},
		{"failed", "", "", false, "publish created"}, {"failed", "new", "", false, "publish adopted"},
		{"failed", "far", "", false, "conflict"},
		{"deleted", "", "", false, "conflict"}, {"deleted", "d", "", false, "conflict"},
		{"deleted", "", "", true, "publish created"}, {"deleted", "d", "", true, "publish adopted"},
		{"deleted", "taken", "", true, "conflict"},
		{"only deleted", "", "", false, "conflict"}, {"only deleted", "", "", true, "publish created"},
		{"created again", "", "", false, "unchanged"},
	} {
		facts := importFacts{states: map[string]repo.TenantState{}, owners: owners}
		if s, known := states[tt.tenant]; known {
			facts.states["t"] = s
		}
		row := &importRow{TenantCreated: events.TenantCreated{
			TenantID: "t", Name: "T", DashboardID: tt.dashboard, WorkspaceID: tt.workspace,
		}}
		v := (&planner{recreate: tt.recreate}).judge(row, facts)
		got := v.Result
		switch {
		case v.publish:
			got = "publish " + got
		case v.follow:
			got = "follow " + got
		}
		if got != tt.want {
			t.Errorf("%+v: got %s (%s)", tt, got, v.Error)
		}
		if (v.Error != "") != needsPerson(v.Result) {
			t.Errorf("%+v: %s with error %q", tt, v.Result, v.Error)
		}
	}
}

// The report is written beside its place and moved there at the end, so that the file that is
// imported can be it.
func TestImportReportReplacesTheFileOnlyAtTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tenants.csv")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ends := range []bool{false, true} {
		o, err := newImportOutput(io.Discard, false, path)
		if err != nil {
			t.Fatal(err)
		}
		row := &importRow{TenantCreated: events.TenantCreated{TenantID: "a", Title: "T, 1"}, line: 2}
		for _, result := range []string{resultCreated, resultInvalid} {
			if err := o.add(row, row.result(result, "because")); err != nil {
				t.Fatal(err)
			}
		}
		want := "before"
		if ends {
			want = "tenant_id,name,title,description,workspace_id,dashboard_id,created_by,error\n" +
				"a,,\"T, 1\",,,,,because\n"
			if err := o.end("Done"); err != nil {
				t.Fatal(err)
			}
		}
		o.close()
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("ended %v: %q, %v", ends, got, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestImportAsksOnTheTerminal(t *testing.T) {
	for answer, ok := range map[string]bool{"y\n": true, " YES \n": true, "n\n": false, "\n": false,
		"": false} {
		var shown strings.Builder
		tty := struct {
			io.Reader
			io.Writer
		}{strings.NewReader(answer), &shown}
		if err := ask(t.Context(), tty, "Go on?"); (err == nil) != ok || shown.String() != "Go on?" {
			t.Errorf("answer %q: %v; shown %q", answer, err, shown.String())
		}
	}
}
