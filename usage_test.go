package main

import (
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

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
		page := pages * (n + 1) / (*usageKills + 1) * (90 + random.IntN(20)) / 100
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
	t.Logf("%d rows: first run %v with %d kills, second %v, %d requests for %d pages, peak memory of a worker %d MiB",
		len(want), took.Round(time.Millisecond), *usageKills, time.Since(from).Round(time.Millisecond), requests, pages, max(peak, peakMemory(t, worker))>>20)
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
