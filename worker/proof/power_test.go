package proof_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker/proof"
)

// With -power.synchronous OFF or NORMAL the worker is built with that setting of SQLite: then the test
// must fail.
//
//	go test ./worker/proof -run TestPowerFailure -v -timeout 1h -args -power 60
var (
	powerCuts        = flag.Int("power", 0, "power failures of a worker on SQLite")
	powerSynchronous = flag.String("power.synchronous", "FULL", "the worker's PRAGMA synchronous")
	powerSeed        = flag.Uint64("power.seed", 1, "seed of the power failures")
)

// powerTest is a worker on SQLite whose disk loses what was not synced.
type powerTest struct {
	*system
	program, recorder, folder string
	load                      *load

	mu    sync.Mutex
	acked map[uint64]time.Time // when NATS had an event's acknowledgement, by its sequence
}

// TestPowerFailureLosesNoCommit ends a worker on SQLite under load again and again, as a power failure
// does: its disk keeps what was synced, and perhaps parts of the rest. Then Check must find
// nothing wrong. In between, the files of random moments of a life must have all that was
// acknowledged by then.
func TestPowerFailureLosesNoCommit(t *testing.T) {
	if *powerCuts == 0 {
		t.Skip("run it with -args -power 60")
	}
	p := newPowerTest(t)
	random := randomOf(*powerSeed, "power")
	l := p.load
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var history proof.History
	var group sync.WaitGroup
	group.Go(func() { history.Tokens = l.tokens(ctx, randomOf(*powerSeed, "tokens")) })
	group.Go(func() {
		if err := l.run(ctx, 25); err != nil {
			t.Error(err)
		}
	})
	var count tally
	for i := range *powerCuts {
		disk, err := newDisk(p.folder)
		p.must(err)
		record := filepath.Join(p.dir, "record")
		_ = os.Remove(record)
		worker, err := launch(filepath.Join(p.dir, "worker0.log"), p.program, append([]string{
			"HTTP_ADDR=off", "LD_PRELOAD=" + p.recorder, "RECORD_DIR=" + p.folder, "RECORD_LOG=" + record,
		}, p.env...), "serve")
		p.must(err)
		t.Cleanup(worker.kill)
		_ = waitFor(ctx, time.Minute, func() error {
			if strings.Contains(worker.output(), `"msg":"started"`) {
				return nil
			}
			return errors.New("not started")
		})
		sleep(ctx, time.Duration(random.Int64N(int64(4*time.Second))))
		if worker.wait(ctx, 0) {
			t.Fatalf("the worker ended:\n%s", worker.tail(2000))
		}
		worker.kill()
		operations, err := readOperations(record)
		p.must(err)
		how := failures[i%len(failures)]
		for _, o := range operations {
			if disk.apply(o); o.what == "write" && random.IntN(20) == 0 {
				how := failures[random.IntN(len(failures))]
				p.inspect(how, disk.fail(how, random), o.at, &count)
			}
		}
		count.add("operations recorded", len(operations))
		files := disk.fail(how, random)
		p.must(put(p.folder, files))
		p.inspect("put back: "+how, files, time.Now().UnixNano(), &count)
	}
	end()
	group.Wait()

	p.database = ""
	p.openDatabase()
	p.expire(t.Context(), true)
	worker, err := launch(filepath.Join(p.dir, "worker0.log"), p.program, append([]string{"HTTP_ADDR=off"},
		p.env...), "serve")
	p.must(err)
	t.Cleanup(worker.kill)
	p.waitQuiet(10 * time.Minute)
	worker.terminate(t)
	var result string
	p.must(p.sql.Get(&result, "PRAGMA integrity_check"))
	if result != "ok" {
		t.Errorf("integrity_check: %s", result)
	}
	h := l.judge(history)
	t.Logf("%d power failures, synchronous=%s: %d events, %d tenants, %d dashboards\n%s", *powerCuts,
		*powerSynchronous, len(h.Published), len(h.Mappings), len(h.Dashboards), count.table())
}

func newPowerTest(t *testing.T) *powerTest {
	p := &powerTest{
		system: &system{t: t, name: "power"}, acked: map[uint64]time.Time{}, program: build(t).worker,
	}
	p.prepare = func(dir string) error {
		p.folder = filepath.Join(dir, "database")
		return os.Mkdir(p.folder, 0o700)
	}
	p.recorder = filepath.Join(built.dir, "recordwrites.so")
	p.run(".", "gcc", "-O1", "-shared", "-fPIC", "-o", p.recorder, "testdata/recordwrites.c")
	if *powerSynchronous != "FULL" {
		p.program = p.weakened(*powerSynchronous)
	}
	p.start(1, *powerSeed, "WORKER_CONCURRENCY=16")
	p.load = &load{s: p.system, random: randomOf(*powerSeed, "load")}
	p.sim.SetUsage(workspace.ID, simulator.Usage{Tenants: 100})
	// A second connection would checkpoint the log, and nothing of that is recorded.
	p.must(p.db.Close())
	p.must(p.sql.Close())
	_, err := p.nc.Subscribe("$JS.ACK.PAPERMAP.>", func(m *nats.Msg) {
		part := strings.Split(m.Subject, ".") // $JS ACK stream consumer deliveries sequence ...
		sequence, err := strconv.ParseUint(part[5], 10, 64)
		if kind := string(m.Data); err == nil && (kind == "" || kind == "+ACK") {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.acked[sequence].IsZero() {
				p.acked[sequence] = time.Now()
			}
		}
	})
	p.must(err)
	return p
}

func (p *powerTest) run(dir, program string, args ...string) {
	command := exec.Command(program, args...)
	command.Dir = dir
	if out, err := command.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// weakened builds the worker with another setting of PRAGMA synchronous.
func (p *powerTest) weakened(synchronous string) string {
	root, err := filepath.Abs("../..")
	p.must(err)
	source := filepath.Join(root, "repo/sqlite.go")
	text, err := os.ReadFile(source)
	p.must(err)
	changed := strings.Replace(string(text), "_synchronous=FULL", "_synchronous="+synchronous, 1)
	if changed == string(text) {
		p.t.Fatal("repo/sqlite.go does not set synchronous=FULL")
	}
	replaced, overlay := filepath.Join(built.dir, "sqlite.go"), filepath.Join(built.dir, "overlay.json")
	p.must(os.WriteFile(replaced, []byte(changed), 0o600))
	p.must(os.WriteFile(overlay, fmt.Appendf(nil, `{"Replace":{%q:%q}}`, source, replaced), 0o600))
	program := filepath.Join(built.dir, "papermap-worker-"+synchronous)
	p.run(root, "go", "build", "-overlay", overlay, "-tags", "failpoints", "-o", program, "papermap-worker")
	return program
}

// inspect opens a copy of the files and counts what came of them: they must be intact, and have each
// event whose acknowledgement NATS had by then.
func (p *powerTest) inspect(how string, files map[string][]byte, at int64, count *tally) {
	dir := p.t.TempDir()
	defer os.RemoveAll(dir)
	p.must(put(dir, files))
	if files["papermap.db"] == nil {
		count.add(how+": no file yet", 1)
		return
	}
	db, err := sqlx.Open("sqlite3", "file:"+filepath.Join(dir, "papermap.db")+"?_busy_timeout=5000")
	p.must(err)
	defer db.Close()
	var result string
	if err := db.Get(&result, "PRAGMA integrity_check"); err != nil || result != "ok" {
		p.t.Errorf("%s: integrity_check: %s, error %v", how, result, err)
	}
	missing, total := p.missing(db, at)
	if missing > 0 {
		p.t.Errorf("%s: violation: %d of %d acknowledged events are not in the database", how, missing, total)
	}
	count.add(how, 1)
	count.add("acknowledged events missing", missing)
	count.add("acknowledged events looked for", total)
}

// missing counts the acknowledged events of tenants that the database does not know: neither them
// nor a later deletion.
func (p *powerTest) missing(db *sqlx.DB, at int64) (missing, total int) {
	rows := map[string]map[string]int64{}
	var list []repo.Mapping
	if err := db.Select(&list, "SELECT tenant_id, created_event, suspended_event, resumed_event, "+
		"deleted_event FROM tenant_dashboards"); err != nil &&
		!strings.Contains(err.Error(), "no such table") {
		p.t.Error(err)
	}
	for _, m := range list {
		rows[m.TenantID] = map[string]int64{
			"tenant.created": m.CreatedEvent, "tenant.suspended": m.SuspendedEvent,
			"tenant.resumed": m.ResumedEvent, "tenant.deleted": m.DeletedEvent,
		}
	}
	p.load.mu.Lock()
	defer p.load.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	counted := map[uint64]bool{}
	for _, e := range p.load.published {
		when, acked := p.acked[e.Sequence]
		ignored := e.Poison || e.Type == events.TypeUsageSync
		if !acked || ignored || counted[e.Sequence] || when.UnixNano() > at {
			continue
		}
		counted[e.Sequence] = true
		row, known := rows[e.Tenant]
		total++
		if !known || !e.Time.IsZero() && max(row[e.Type], row["tenant.deleted"]) < e.Time.UnixNano() {
			missing++
		}
	}
	return missing, total
}
