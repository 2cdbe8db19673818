package main

import (
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
)

// The large run: go test -run TestUsageIsExact -v -timeout 30m . -args -usage.tenants 1000000 -usage.kills 20
var (
	usageTenants = flag.Int("usage.tenants", 6000, "tenants of the usage test")
	usageKills   = flag.Int("usage.kills", 1, "SIGKILLs in the usage test")
	usageSeed    = flag.Uint64("usage.seed", 0, "seed of the moments of the SIGKILLs; 0: another each time")
)

// Promise 7: whatever happens to the workers, each row is what the API reports, to the credit; what was committed is not
// asked for again; and a run that finds nothing new writes nothing.
func TestUsageIsExactToTheCreditThroughKills(t *testing.T) {
	t.Parallel()
	for name, address := range map[string]func(*testing.T) string{
		"SQLite":     func(*testing.T) string { return "" },
		"PostgreSQL": func(t *testing.T) string { return pgtest.ForTest(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t)
			if url := address(t); url != "" {
				s.env = append(s.env, "DATABASE_URL="+url)
			}
			testUsageIsExact(t, s)
		})
	}
}

func testUsageIsExact(t *testing.T, s *system) {
	const month, concurrency = "2026-10", 8
	seed := *usageSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-usage.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pages := (*usageTenants + 99) / 100
	s.sim.SetUsage(testWorkspace.ID, simulator.Usage{Tenants: *usageTenants, Seed: seed})
	s.env = append(s.env, "USAGE_SYNC_SCHEDULE=off", fmt.Sprint("USAGE_SYNC_CONCURRENCY=", concurrency), "LOG_LEVEL=info")
	want, err := s.sim.UsageTotals(testWorkspace.ID, month, month)
	if err != nil {
		t.Fatal(err)
	}

	worker := start(t, s.env, "serve")
	worker.address(t)
	s.jetStream(t)
	sync := func(id string) {
		p := start(t, s.env, "publish", "usage-sync", "--from-period", month, "--to-period", month, "--event-id", id)
		if code := p.wait(t, 20*time.Second); code != 0 {
			t.Fatal(p.text())
		}
	}
	address := strings.TrimPrefix(lastSetting(s.env, "DATABASE_URL"), "DATABASE_URL=")
	db, err := repo.Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	run := func(id string) repo.Run {
		list, err := db.Runs(t.Context(), id, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			return repo.Run{}
		}
		return list[0]
	}

	// The first run, with its worker killed now and then.
	from := time.Now()
	sync("first")
	peak := 0
	for n := range *usageKills {
		page := pages * (20*n + random.IntN(20)) / (20 * *usageKills) // each somewhere in a part of its own
		eventually(t, 5*time.Minute, func() error {
			if r := run("first"); r.NextPage < page {
				return fmt.Errorf("%s at page %d", r.Status, r.NextPage)
			}
			return nil
		})
		peak = max(peak, peakMemory(t, worker))
		worker.kill()
		worker = start(t, s.env, "serve")
	}
	done := func(id string) func() error {
		return func() error {
			if r := run(id); r.Status != repo.RunDone {
				return fmt.Errorf("%s at page %d %s", r.Status, r.NextPage, r.Error)
			}
			return nil
		}
	}
	eventually(t, 15*time.Minute, done("first"))
	took, peak := time.Since(from), max(peak, peakMemory(t, worker))
	requests := s.usageRequests()
	if most := pages + *usageKills*2*concurrency; requests > most || requests < pages { // half asked for, half not committed yet
		t.Errorf("%d requests for %d pages and %d kills with %d pages on their way: want at most %d", requests, pages, *usageKills, 2*concurrency, most)
	}
	r := run("first")
	if r.Written != int64(len(want)) || r.Read != int64(len(want)) || r.Pass != 1 {
		t.Errorf("the run says %+v, want %d rows read and written in one pass", r, len(want))
	}
	compareUsage(t, db, want)

	// Another finds nothing new, and writes nothing.
	before := newestSync(t, db)
	from = time.Now()
	sync("second")
	eventually(t, 15*time.Minute, done("second"))
	if r := run("second"); r.Written != 0 || r.Read != int64(len(want)) {
		t.Errorf("the second run wrote %d rows and read %d, want 0 and %d", r.Written, r.Read, len(want))
	}
	if after := newestSync(t, db); after != before {
		t.Errorf("rows were written anew at %s, the newest had been of %s", after, before)
	}
	peak = max(peak, peakMemory(t, worker))
	if *usageTenants >= 1_000_000 && peak > 100<<20 { // a small run says nothing of a large one
		t.Errorf("a worker took %d MiB of memory, want at most 100", peak>>20)
	}
	t.Logf("%d rows: first run %v with %d kills, second %v, %d requests for %d pages, peak memory of a worker %d MiB",
		len(want), took.Round(time.Millisecond), *usageKills, time.Since(from).Round(time.Millisecond), requests, pages, peak>>20)
	worker.kill()
}

func lastSetting(env []string, name string) string {
	last := ""
	for _, setting := range env {
		if strings.HasPrefix(setting, name+"=") {
			last = setting
		}
	}
	return last
}

func (s *system) usageRequests() int {
	n := 0
	for _, r := range s.sim.Log() {
		if r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/tenant-usage") && r.Query != "per_page=1" { // or it only asks the time
			n++
		}
	}
	return n
}

// compareUsage compares the table with what the API reports, row by row and as one checksum.
func compareUsage(t *testing.T, db *repo.DB, want []papermap.UsageRow) {
	t.Helper()
	have := make([]papermap.UsageRow, 0, len(want))
	err := db.EachUsage(t.Context(), repo.UsageFilter{}, func(u repo.Usage) error {
		have = append(have, papermap.UsageRow{TenantID: u.TenantID, Period: u.Period, Credits: u.Credits, Requests: u.Requests})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := simulator.UsageChecksum(have), simulator.UsageChecksum(want); a != b || len(have) != len(want) {
		t.Errorf("%d rows with checksum %s, the API reports %d with %s", len(have), a, len(want), b)
	}
}

// newestSync is when the newest row of usage was written.
func newestSync(t *testing.T, db *repo.DB) string {
	t.Helper()
	var newest time.Time
	err := db.EachUsage(t.Context(), repo.UsageFilter{}, func(u repo.Usage) error {
		if u.SyncedAt.After(newest) {
			newest = u.SyncedAt.Time
		}
		return nil
	})
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		t.Fatal(err)
	}
	return newest.Format(time.RFC3339Nano)
}

var peakForm = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakMemory is the most memory that a process has had so far, in bytes.
func peakMemory(t *testing.T, p *process) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	match := peakForm.FindSubmatch(status)
	if match == nil {
		t.Fatal("no VmHWM")
	}
	kilobytes, _ := strconv.Atoi(string(match[1]))
	return kilobytes << 10
}

// Who waits for a sync that became a dead letter is told so, and why.
func TestWaitingForASyncThatIsRefusedEnds(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	worker := start(t, s.env, "serve")
	worker.address(t)
	s.jetStream(t)
	p := start(t, s.env, "publish", "usage-sync", "--workspace-id", "ws-typo", "--wait")
	if code := p.wait(t, 20*time.Second); code != 1 || !strings.Contains(p.text(), "the event became dead letter 1: UNKNOWN_WORKSPACE: ") {
		t.Errorf("exit code %d: %s", code, p.text())
	}
	worker.kill()
}

// Who waits for a sync of two workspaces sees how far each is, and waits for both, also while the second waits for its turn.
func TestWaitingForASyncWaitsForEveryWorkspaceAndShowsItsProgress(t *testing.T) {
	t.Parallel()
	db, err := repo.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	of := func(workspace string) repo.Run {
		return repo.Run{WorkspaceID: workspace, EventID: "e", FromPeriod: "2026-01", ToPeriod: "2026-01"}
	}
	begin := func(workspace string) repo.Run {
		run, err := db.StartRun(t.Context(), of(workspace), time.Now(), false)
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	end := func(run repo.Run, status repo.RunStatus) {
		err := db.EndRun(t.Context(), &run, status, "", func(int) (repo.Notice, error) { return repo.Notice{EventID: run.ID, Type: "usage.synced"}, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.PlanRuns(t.Context(), []repo.Run{of("ws-a"), of("ws-b")}); err != nil {
		t.Fatal(err)
	}

	screen, file := &process{}, &process{} // as they take what is written
	ended := make(chan error, 2)
	go func() { ended <- waitForRuns(t.Context(), screen, true, db, "e", nil) }()
	go func() { ended <- waitForRuns(t.Context(), file, false, db, "e", nil) }()
	shows := func(text string) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if !strings.Contains(screen.text(), clearLine+text) {
				return fmt.Errorf("the terminal shows %q, want %q", tail(screen.text(), 300), text)
			}
			return nil
		})
	}
	shows("ws-")
	run := begin("ws-a")
	shows("ws-a  page 0  0 rows")
	run.Pages = 4
	if err := db.RecordPages(t.Context(), &run, []repo.Page{{Number: 1, Rows: []repo.UsageRow{{TenantID: "x", Period: "2026-01", Credits: "1"}}}}); err != nil {
		t.Fatal(err)
	}
	shows("ws-a  ██████                    25 %  1 rows")
	end(run, repo.RunDone)
	shows("ws-b  waits for its turn")
	select {
	case err := <-ended:
		t.Errorf("it ended before the second run: %v\n%s%s", err, screen.text(), file.text())
	default:
	}
	end(begin("ws-b"), repo.Incomplete)
	for range 2 {
		if err := <-ended; err == nil || err.Error() != "1 of 2 runs did not read all" {
			t.Errorf("it ended with %v", err)
		}
	}
	const first, second = "workspace ws-a, 2026-01 to 2026-01: done, 1 rows, 1 written,", "workspace ws-b, 2026-01 to 2026-01: incomplete, 0 rows,"
	for _, out := range []*process{screen, file} {
		if text := out.text(); !strings.Contains(text, first) || !strings.Contains(text, second) {
			t.Errorf("in the end it says %q", text)
		}
	}
	if strings.ContainsAny(file.text(), "\r\x1b█") {
		t.Errorf("what is no terminal gets %q", file.text())
	}
}

// Months, slots and times are UTC's also where it is tomorrow already.
func TestAWorkerInKiritimatiCountsInUTC(t *testing.T) {
	t.Parallel()
	if _, err := time.LoadLocation("Pacific/Kiritimati"); err != nil {
		t.Fatal(err)
	}
	s := newSystem(t)
	s.sim.SetUsage(testWorkspace.ID, simulator.Usage{Tenants: 3})
	s.env = append(s.env, "TZ=Pacific/Kiritimati", "USAGE_SYNC_SCHEDULE=@daily")
	worker := start(t, s.env, "serve")
	worker.address(t)
	js := s.jetStream(t)
	msg := nats.NewMsg("papermap.events.usage.sync")
	msg.Data = []byte("{}")
	msg.Header.Set("Nats-Msg-Id", "e")
	msg.Header.Set("Papermap-Event-Time", "2025-01-31T23:59:59Z") // in Kiritimati it is February
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	db := s.openSQL(t)
	var runs [][]string
	eventually(t, time.Minute, func() error {
		runs = query(t, db, "SELECT event_id, from_period, to_period, started_at FROM usage_runs WHERE status = 'done' ORDER BY event_id")
		if len(runs) != 2 {
			return fmt.Errorf("%d of 2 runs are done: %v", len(runs), runs)
		}
		return nil
	})
	if r := runs[0]; r[0] != "e" || r[1] != "2024-12" || r[2] != "2025-01" {
		t.Errorf("the run of the last second of January reads %v", r)
	}
	slot, err := strconv.ParseInt(strings.TrimPrefix(runs[1][0], "usage-tick."+testWorkspace.ID+"."), 10, 64)
	if at := time.Unix(slot, 0).UTC(); err != nil || at.Truncate(24*time.Hour) != at || runs[1][2] != at.Format("2006-01") {
		t.Errorf("the tick %v is of %s", runs[1], at)
	}
	for _, r := range query(t, db, "SELECT synced_at FROM tenant_usage UNION SELECT started_at FROM usage_runs") {
		if at := parseTime(t, r[0]); time.Since(at).Abs() > time.Hour {
			t.Errorf("a time is %s, and it is %s", r[0], time.Now().UTC())
		}
	}
	export := start(t, s.env, "usage", "export", "--from", "2025-01", "--to", "2025-01")
	if code := export.wait(t, 20*time.Second); code != 0 || strings.Count(export.text(), time.Now().UTC().Format(",2006-01-02T15")) != 3 && time.Now().Minute() > 1 {
		t.Errorf("exit code %d: %s", code, export.text())
	}
	worker.kill()
}

// An export takes as much memory for many rows as for few.
func TestAnExportHoldsNoMoreThanARow(t *testing.T) {
	t.Parallel()
	const rows = 200_000
	address := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	env := []string{"DATABASE_URL=" + address}
	if code := start(t, env, "migrate").wait(t, 20*time.Second); code != 0 {
		t.Fatal("migrate failed")
	}
	db, err := sql.Open("sqlite3", "file:"+strings.TrimPrefix(address, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, err = db.ExecContext(t.Context(), `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO tenant_usage SELECT 'ws', printf('org-%0100d', i), '2026-01', '1.5', i, '2026-02-01T00:00:00.000Z' FROM n`, rows)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"csv", "json"} {
		var most [2]int64
		for i, month := range []string{"2026-02", "2026-01"} { // none, and all
			p := start(t, env, "usage", "export", "--format", format, "--from", month)
			if code := p.wait(t, time.Minute); code != 0 {
				t.Fatal(p.text())
			}
			if n := strings.Count(p.text(), "org-0"); n != i*rows {
				t.Errorf("%s of %s has %d rows", format, month, n)
			}
			most[i] = p.cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
		}
		if more := most[1] - most[0]; more > 20<<10 { // KiB; all rows are 30 MB
			t.Errorf("an export of %d rows as %s took %d MiB more than one of none", rows, format, more>>10)
		}
	}
}
