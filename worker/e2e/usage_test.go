package e2e

import (
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker/workertest"
)

// The large run: go test ./worker/e2e -run TestUsageIsExact -v -timeout 30m -args -usage.tenants
// 1000000 -usage.kills 20
var (
	usageTenants = flag.Int("usage.tenants", 6000, "tenants of the usage test")
	usageKills   = flag.Int("usage.kills", 1, "SIGKILLs in the usage test")
	usageSeed    = flag.Uint64("usage.seed", 0, "seed of the moments of the SIGKILLs; 0: another each time")
)

// Promise 7: whatever happens to the workers, each row is what the API reports, to the credit; what
// was committed is not asked for again; and a run that finds nothing new writes nothing.
func TestUsageIsExactThroughKills(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { testUsageIsExact(t, newSystem(t)) })
	t.Run("PostgreSQL", func(t *testing.T) {
		s := newSystem(t)
		s.usePostgres(t)
		testUsageIsExact(t, s)
	})
	t.Parallel() // while the leases of the killed workers pass
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
	s.env = append(s.env, fmt.Sprint("USAGE_SYNC_CONCURRENCY=", concurrency), "LOG_LEVEL=info")
	want, err := s.sim.UsageTotals(testWorkspace.ID, month, month)
	must(t, err)

	worker := start(t, s.env, "serve")
	worker.address(t)
	s.jetStream(t)
	sync := func(id string) {
		run(t, s.env, "publish", "usage-sync", "--from-period", month, "--to-period", month, "--event-id", id)
	}
	db := openRepo(t, s.database)
	run := func(id string) repo.Run {
		list, err := db.Runs(t.Context(), id, 1)
		must(t, err)
		if len(list) == 0 {
			return repo.Run{}
		}
		return list[0]
	}

	// The first run, with its worker killed now and then.
	from := time.Now()
	sync("first")
	var peak int64
	peakOf := func(p *process) int64 { kib, _ := memoryOf(p, "VmHWM"); return kib }
	for n := range *usageKills {
		page := pages * (20*n + random.IntN(20)) / (20 * *usageKills) // each somewhere in a part of its own
		workertest.Eventually(t, 5*time.Minute, func() error {
			if r := run("first"); r.NextPage < page {
				return fmt.Errorf("%s at page %d", r.Status, r.NextPage)
			}
			return nil
		})
		peak = max(peak, peakOf(worker))
		worker.kill()
		worker = start(t, s.env, "serve")
	}
	t.Parallel()
	done := func(id string) func() error {
		return func() error {
			if r := run(id); r.Status != repo.RunDone {
				return fmt.Errorf("%s at page %d %s", r.Status, r.NextPage, r.Error)
			}
			return nil
		}
	}
	workertest.Eventually(t, 15*time.Minute, done("first"))
	took, peak := time.Since(from), max(peak, peakOf(worker))
	requests := s.usageRequests()
	// half asked for, half not committed yet
	if limit := pages + *usageKills*2*concurrency; requests > limit || requests < pages {
		t.Errorf("%d requests for %d pages and %d kills with %d pages on their way: want at most %d",
			requests, pages, *usageKills, 2*concurrency, limit)
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
	workertest.Eventually(t, 15*time.Minute, done("second"))
	if r := run("second"); r.Written != 0 || r.Read != int64(len(want)) {
		t.Errorf("the second run wrote %d rows and read %d, want 0 and %d", r.Written, r.Read, len(want))
	}
	if after := newestSync(t, db); after != before {
		t.Errorf("rows were written anew at %s, the newest had been of %s", after, before)
	}
	peak = max(peak, peakOf(worker))
	if *usageTenants >= 1_000_000 && peak > 100<<10 { // a small run says nothing of a large one
		t.Errorf("a worker took %d MiB of memory, want at most 100", peak>>10)
	}
	t.Logf("%d rows: first run %v with %d kills, second %v, %d requests for %d pages, peak memory %d MiB",
		len(want), took, *usageKills, time.Since(from), requests, pages, peak>>10)
}

func (s *system) usageRequests() int {
	n := 0
	for _, r := range s.sim.Log() {
		// or it only asks the time
		if r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/tenant-usage") &&
			r.Query != "per_page=1" {
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
		have = append(have, papermap.UsageRow{TenantID: u.TenantID, Period: u.Period, Credits: u.Credits,
			Requests: u.Requests})
		return nil
	})
	must(t, err)
	if a, b := simulator.UsageChecksum(have), simulator.UsageChecksum(want); a != b ||
		len(have) != len(want) {
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

// memoryOf is a number of a running process's status in KiB: VmRSS, or its peak VmHWM. The peak that
// wait4 reports includes the memory of the process that started it.
func memoryOf(p *process, name string) (kib int64, running bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	_, text, found := strings.Cut(string(status), name+":")
	if err != nil || !found { // it has ended
		return 0, false
	}
	kib, err = strconv.ParseInt(strings.Fields(text)[0], 10, 64)
	return kib, err == nil
}

// memoryUntilEnd waits until a process has ended, and returns its peak in KiB.
func memoryUntilEnd(p *process) (peak int64) {
	for {
		kib, running := memoryOf(p, "VmHWM")
		if !running {
			return peak
		}
		peak = kib
		time.Sleep(5 * time.Millisecond)
	}
}

// A publisher that waits for a sync gets the reason when that became a dead letter.
func TestPublishWaitEndsWithDeadLetter(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	start(t, s.env, "serve").address(t)
	s.jetStream(t)
	p := start(t, s.env, "publish", "usage-sync", "--workspace-id", "ws-typo", "--wait")
	if code := p.wait(t); code != 1 ||
		!strings.Contains(p.text(), "the event became dead letter 1: UNKNOWN_WORKSPACE: ") {
		t.Errorf("exit code %d: %s", code, p.text())
	}
}

// Months, slots and times are UTC's also where it is tomorrow already.
func TestUsageMonthsAreUTC(t *testing.T) {
	t.Parallel()
	if _, err := time.LoadLocation("Pacific/Kiritimati"); err != nil {
		t.Fatal(err)
	}
	s := newSystem(t)
	s.sim.SetUsage(testWorkspace.ID, simulator.Usage{Tenants: 3})
	s.env = append(s.env, "TZ=Pacific/Kiritimati", "USAGE_SYNC_SCHEDULE=@daily")
	start(t, s.env, "serve").address(t)
	js := s.jetStream(t)
	msg := nats.NewMsg("papermap.events.usage.sync")
	msg.Data = []byte("{}")
	msg.Header.Set("Nats-Msg-Id", "e")
	msg.Header.Set("Papermap-Event-Time", "2025-01-31T23:59:59Z") // in Kiritimati it is February
	_, err := js.PublishMsg(t.Context(), msg)
	must(t, err)
	db := openRepo(t, s.database)
	var runs []repo.Run
	eventually(t, func() (err error) {
		runs, err = db.Runs(t.Context(), "", 10)
		slices.SortFunc(runs, func(a, b repo.Run) int { return a.Slot.Compare(b.Slot.Time) })
		done := func(r repo.Run) bool { return r.Status == repo.RunDone }
		if err == nil && (len(runs) != 2 || !done(runs[0]) || !done(runs[1])) {
			err = fmt.Errorf("not two runs that are done: %v", runs)
		}
		return err
	})
	if r := runs[0]; r.EventID != "e" || r.FromPeriod != "2024-12" || r.ToPeriod != "2025-01" {
		t.Errorf("the run of the last second of January reads %v", r)
	}
	if at := runs[1].Slot.Time; at.Truncate(24*time.Hour) != at || time.Since(at) > 25*time.Hour ||
		runs[1].ToPeriod != at.Format("2006-01") {
		t.Errorf("the tick %v is of %s", runs[1], at)
	}
	var times []string // as they are in the file
	must(t, openSQL(t, s.database).Select(&times,
		"SELECT synced_at || '' FROM tenant_usage UNION SELECT started_at || '' FROM usage_runs"))
	for _, text := range times {
		if at, err := time.Parse(time.RFC3339, text); err != nil || time.Since(at).Abs() > time.Hour {
			t.Errorf("a time is %s, and it is %s", text, time.Now().UTC())
		}
	}
	export := start(t, s.env, "usage", "export", "--from", "2025-01", "--to", "2025-01")
	if code := export.wait(t); code != 0 ||
		strings.Count(export.text(), time.Now().UTC().Format(",2006-01-02T15")) != 3 &&
			time.Now().Minute() > 1 {
		t.Errorf("exit code %d: %s", code, export.text())
	}
}

// An export takes as much memory for many rows as for few.
func TestExportMemoryIsConstant(t *testing.T) {
	t.Parallel()
	const rows = 200_000
	address := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	env := []string{"DATABASE_URL=" + address}
	run(t, env, "migrate")
	openSQL(t, address).MustExec(`
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO tenant_usage
		SELECT 'ws', printf('org-%0100d', i), '2026-01', '1.5', i, '2026-02-01T00:00:00.000Z' FROM n`, rows)
	for _, format := range []string{"csv", "json"} {
		var peak [2]int64
		var size int64                                         // of all rows as they are written
		for i, month := range []string{"2026-02", "2026-01"} { // none, and all
			p := start(t, env, "usage", "export", "--format", format, "--from", month)
			peak[i] = memoryUntilEnd(p)
			if code := p.wait(t); code != 0 {
				t.Fatal(p.text())
			}
			if n := strings.Count(p.text(), "org-0"); n != i*rows {
				t.Errorf("%s of %s has %d rows", format, month, n)
			}
			size = int64(len(p.text()))
		}
		if more := peak[1] - peak[0]; more<<10 > size*2/3 { // what is kept shows; garbage varies
			t.Errorf("an export of %d rows as %s took %d MiB more than one of none", rows, format, more>>10)
		}
	}
}
