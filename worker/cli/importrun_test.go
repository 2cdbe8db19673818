package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/micro"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// importer imports rows in a world in virtual time.
type importer struct {
	w        *workertest.World
	inFlight int
	recreate bool
	connect  func() (*events.Bus, error) // nil: the first worker's
	newest   func() *workertest.Instance // the worker that tells whether it is paused; nil: the first
	log      bytes.Buffer
	run      *importRun
}

// rows imports rows of the columns tenant_id, name, dashboard_id and, optionally, workspace_id. It
// returns "line result" or "line result: error" for each, in the order in which they were finished.
func (i *importer) rows(ctx context.Context, rows ...string) (results []string, err error) {
	ctx = worker.WithActor(ctx, operator())
	var text bytes.Buffer
	text.WriteString("tenant_id,name,dashboard_id,workspace_id\n")
	for _, row := range rows {
		fmt.Fprintln(&text, row+strings.Repeat(",", 3-strings.Count(row, ",")))
		if cells := strings.Split(row, ","); strings.HasPrefix(cells[2], "d-") { // it was there before
			i.w.Simulator.Adopt(simulator.Dashboard{
				ID: cells[2], TenantID: cells[0], WorkspaceID: workertest.WorkspaceA.ID,
			})
		}
	}
	file := &importFile{tempFile(text.Bytes())}
	defer file.close()
	p, err := newPlanner(ctx, i.w.DB, i.recreate)
	i.w.Must(err)
	var out bytes.Buffer
	o, err := newImportOutput(&out, true, "")
	i.w.Must(err)
	c := &importCmd{InFlight: max(1, i.inFlight), JSON: true}
	plan, err := c.plan(ctx, file, p, o)
	i.w.Must(err)
	a := &app{ctx: ctx, log: slog.New(slog.NewTextHandler(&i.log, nil)), stdout: &out}
	i.run = newImportRun(a, c, p, o, plan)
	defer i.run.close()
	if i.run.connect = i.connect; i.connect == nil {
		i.run.connect = func() (*events.Bus, error) { return i.w.Workers[0].Bus, nil }
	}
	i.run.waiting.ready = func(context.Context) ([]byte, error) {
		if i.newest != nil {
			return json.Marshal(i.newest().State())
		}
		return json.Marshal(i.w.Workers[0].State())
	}
	err = i.run.run(file)
	for line := range strings.Lines(out.String()) {
		var r importResult
		i.w.Must(json.Unmarshal([]byte(line), &r))
		result := fmt.Sprintf("%d %s", r.Line, r.Result)
		if r.Error != "" {
			result += ": " + r.Error
		}
		results = append(results, result)
	}
	return results, err
}

// tempFile is a file of this text without a name.
func tempFile(text []byte) *os.File {
	file, err := os.CreateTemp("", "import-*")
	if err == nil {
		_ = os.Remove(file.Name())
		_, err = file.Write(text)
	}
	if err != nil {
		panic(err)
	}
	return file
}

func TestImportFollowsEachRowToItsEnd(t *testing.T) {
	o := workertest.Options{Config: func(c *worker.Config) { c.Hold = true }}
	workertest.Virtual(t, o, func(t *testing.T, w *workertest.World) {
		w.SetFaults("on=create tenant=refused status=422", "on=create tenant=lost drop=after")
		w.Create("there", "gone")
		w.Eventually(w.Are(repo.Active, "there", "gone"))
		w.Publish(events.TypeTenantDeleted, `{"tenant_id":"gone"}`)
		w.Publish(events.TypeTenantSuspended, `{"tenant_id":"suspended"}`)
		w.Eventually(w.Are(repo.Deleted, "gone"))
		w.Eventually(w.Are(repo.Suspended, "suspended"))
		there := w.Mapping("there").DashboardID
		rows := []string{
			"new,New,", "adopter,,d-1", "there,There,", "there2,," + there, "gone,Gone,",
			"refused,R,", "lost,L,", "suspended,S,", ",,",
		}
		i := &importer{w: w}
		got, err := i.rows(t.Context(), rows...)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range got { // of texts that others wrote, the beginning
			head, detail, _ := strings.Cut(line, ": ")
			word, _, _ := strings.Cut(detail, " ")
			got[n] = strings.TrimSpace(head + " " + word)
		}
		want := []string{
			"4 unchanged", "5 conflict dashboard", "6 conflict the", "10 invalid line", "2 created",
			"3 adopted", "7 failed API_REFUSED:", "8 failed held:", "9 created",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		if n := w.Creates("adopter"); n != 0 || w.Mapping("adopter").DashboardID != "d-1" {
			t.Errorf("%d create calls for a tenant that adopts, dashboard %s", n,
				w.Mapping("adopter").DashboardID)
		}
		stored := len(w.Stored("PAPERMAP", "papermap.events.tenant.created"))
		i.recreate = true
		got, err = i.rows(t.Context(), "new,New,", "adopter,,d-1", "there,,", "gone,Gone,")
		if err != nil {
			t.Fatal(err)
		}
		want = []string{"2 unchanged", "3 unchanged",
			"4 invalid: line 4, column 7: \"name\" is missing or blank", "5 created"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("results of the second import (-want +got):\n%s", diff)
		}
		if n := len(w.Stored("PAPERMAP", "papermap.events.tenant.created")); n != stored+1 {
			t.Errorf("the second import published %d events", n-stored)
		}
	})
}

// A tenant whose retry is far away holds up no other: its row gives up its place, and is finished in
// the end.
func TestImportGivesUpThePlaceOfARowThatWaitsForARetry(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		w.SetFaults("on=create tenant=slow status=429 retry-after=300 count=1")
		started := time.Now()
		got, err := (&importer{w: w, inFlight: 1}).rows(t.Context(), "slow,Slow,", "b,B,", "c,,d-c")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"3 created", "4 adopted", "2 created"}, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		if took := time.Since(started); took < 4*time.Minute || took > 10*time.Minute {
			t.Errorf("it took %v", took)
		}
	})
}

// While Papermap is paused, the import says so and publishes no more than it may.
func TestImportWaitsWhilePapermapIsPaused(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		w.SetFaults("on=create status=402")
		ended := make(chan error, 1)
		i := &importer{w: w, inFlight: 2}
		var got []string
		go func() {
			var err error
			got, err = i.rows(t.Context(), "a,A,", "b,B,", "c,C,", "d,D,", "e,E,")
			ended <- err
		}()
		time.Sleep(10 * time.Minute)
		if n := len(w.Stored("PAPERMAP", "papermap.events.tenant.created")); n != 2 {
			t.Errorf("%d events were published during the pause, want 2", n)
		}
		w.SetFaults()
		if err := <-ended; err != nil || len(got) != 5 {
			t.Errorf("results %q, %v", got, err)
		}
		for _, want := range []string{"Papermap is paused; the import waits", "quota",
			"the import continues"} {
			if !strings.Contains(i.log.String(), want) {
				t.Errorf("%q is not in the log: %s", want, i.log.String())
			}
		}
	})
}

// Two imports of one file at the same time, and one that was broken off, repeat nothing.
func TestImportRepeatsNothing(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		var rows []string
		for n := range 60 {
			rows = append(rows, fmt.Sprintf("t%02d,T,%s", n, []string{"", fmt.Sprintf("d-%02d", n)}[n%2]))
		}
		w.SetFaults("on=create delay=200ms")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		broken := &importer{w: w, inFlight: 4}
		got, err := broken.rows(ctx, rows...)
		if !errors.Is(err, context.DeadlineExceeded) || len(got) == 0 || len(got) == len(rows) {
			t.Fatalf("the first import was not broken off: %d rows, %v", len(got), err)
		}
		type end struct {
			results []string
			err     error
		}
		ends := make(chan end)
		for range 2 {
			go func() {
				results, err := (&importer{w: w, inFlight: 4}).rows(t.Context(), rows...)
				ends <- end{results, err}
			}()
		}
		for range 2 {
			e := <-ends
			if e.err != nil || len(e.results) != len(rows) {
				t.Errorf("%d results, %v", len(e.results), e.err)
			}
			for _, r := range e.results {
				if _, result, _ := strings.Cut(r, " "); needsPerson(result) || strings.Contains(result, ":") {
					t.Errorf("result %q", r)
				}
			}
		}
		for n := range 60 {
			tenant := fmt.Sprintf("t%02d", n)
			if creates := w.Creates(tenant); creates != 1-n%2 || w.Mapping(tenant).Generation != 1 {
				t.Errorf("tenant %s has %d create calls in generation %d", tenant, creates,
					w.Mapping(tenant).Generation)
			}
		}
	})
}

// A worker that does not know dashboard_id would create a dashboard for each row that adopts one.
func TestImportRefusesToAdoptBesideOldReplicas(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		old, err := micro.AddService(w.Conn, micro.Config{Name: "papermap-worker", Version: "0.0.1"})
		w.Must(err)
		w.Must(w.Conn.Flush()) // the server knows it
		i := &importer{w: w}
		got, err := i.rows(t.Context(), "a,A,", "b,,d-b")
		if err == nil || !strings.Contains(err.Error(), "version 0.0.1") || len(got) > 0 {
			t.Errorf("results %q, error %v", got, err)
		}
		if n := len(w.Stored("PAPERMAP", "papermap.events.tenant.created")); n != 0 {
			t.Errorf("%d events were published", n)
		}
		if got, err := i.rows(t.Context(), "a,A,"); err != nil || len(got) != 1 {
			t.Errorf("rows without dashboard_id: results %q, error %v", got, err)
		}
		w.Must(old.Stop())
		w.Must(w.Conn.Flush())
		if got, err := i.rows(t.Context(), "b,,d-b"); err != nil || len(got) != 1 {
			t.Errorf("after the upgrade: results %q, error %v", got, err)
		}
	})
}

// What NATS lost is published again under the same id.
func TestImportOutlivesAnOutageOfNATS(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		w.SetFaults("on=create delay=1s")
		ended := make(chan error, 1)
		var got []string
		go func() {
			var err error
			got, err = (&importer{w: w, inFlight: 2}).rows(t.Context(),
				"a,A,", "b,B,", "c,C,", "d,D,", "e,,d-e")
			ended <- err
		}()
		time.Sleep(1500 * time.Millisecond)
		w.StopNATS()
		time.Sleep(20 * time.Second)
		w.StartNATS()
		if err := <-ended; err != nil || len(got) != 5 {
			t.Errorf("results %q, %v", got, err)
		}
		for _, tenant := range []string{"a", "b", "c", "d"} {
			if n := w.Creates(tenant); n != 1 {
				t.Errorf("tenant %s has %d create calls", tenant, n)
			}
		}
	})
}

// A row that becomes a dead letter leaves nothing in the database.
func TestImportSeesDeadLettersAfterAnOutageOfNATS(t *testing.T) {
	workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
		w.SetFaults("on=create delay=1s")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		ended := make(chan error, 1)
		var got []string
		go func() {
			var err error
			got, err = (&importer{w: w, inFlight: 1}).rows(ctx, "a,A,", "b,B,,unknown-workspace", "c,C,")
			ended <- err
		}()
		time.Sleep(500 * time.Millisecond)
		w.StopNATS()
		time.Sleep(5 * time.Second)
		w.StartNATS()
		dead := func(r string) bool { return strings.HasPrefix(r, "3 failed: UNKNOWN_WORKSPACE") }
		if err := <-ended; err != nil || len(got) != 3 || !slices.ContainsFunc(got, dead) {
			t.Errorf("results %q, %v", got, err)
		}
	})
}
