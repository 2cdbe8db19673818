package proof_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/repo"
)

// go test ./worker/proof -run TestDamagedJetStream -v -timeout 3h -args -damage.nats 24
var (
	damagesNATS = flag.Int("damage.nats", 0, "how often each part of JetStream's files is damaged")
	damageSeed  = flag.Uint64("damage.seed", 1, "seed of the first round; the next ones count up from it")
)

// stored is one event that the stream acknowledged.
type stored struct {
	sequence uint64
	tenant   string
	kind     string // created or suspended
	phase    int    // 0: handled before the damage; 1: waiting then; 2: published later
}

func (e stored) id() string { return e.kind + "-" + e.tenant }

// ledger publishes events and keeps what was acknowledged.
type ledger struct {
	*system
	acked []stored
}

// publish publishes one event and waits for its acknowledgement. The header makes most of a
// file consist of messages in which a flipped bit matters.
func (l *ledger) publish(ctx context.Context, phase int, kind, tenant string) error {
	e := stored{tenant: tenant, kind: kind, phase: phase}
	msg := &nats.Msg{
		Subject: subjects.Event("tenant." + kind),
		Data:    fmt.Appendf(nil, `{"tenant_id":%q,"name":"n"}`, tenant),
		Header:  nats.Header{nats.MsgIdHdr: {e.id()}, "Padding": {strings.Repeat("x", 7000)}},
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ack, err := l.js.PublishMsg(ctx, msg)
	if err == nil {
		e.sequence = ack.Sequence
		l.acked = append(l.acked, e)
	}
	return err
}

const damageEvents = 60 // of each phase

// publishWaiting publishes new tenants, and suspensions of those that exist.
func (l *ledger) publishWaiting(ctx context.Context) {
	for i := range damageEvents / 2 {
		l.must(l.publish(ctx, 1, "created", fmt.Sprintf("waiting-%d", i)))
		l.must(l.publish(ctx, 1, "suspended", fmt.Sprintf("handled-%d", i)))
	}
}

// storedFiles are the files of the NATS servers and of the database, with events that were handled and
// events that wait.
type storedFiles struct {
	dir     string
	servers int
	acked   []stored
}

func newStoredFiles(t *testing.T, servers int) storedFiles {
	t.Helper()
	s := &system{t: t, name: "stored", prepare: func(string) error { return nil }}
	s.start(servers, 1, storedSettings(servers)...)
	worker, err := s.startWorker("worker0")
	s.must(err)
	t.Cleanup(worker.kill)
	l := &ledger{system: s}
	eventually(t, time.Minute, func() error { return l.publish(t.Context(), 0, "created", "handled-0") })
	for i := range damageEvents - 1 {
		l.must(l.publish(t.Context(), 0, "created", fmt.Sprintf("handled-%d", i+1)))
	}
	s.waitQuiet(time.Minute)
	worker.terminate(t)
	l.publishWaiting(t.Context())
	_, err = s.sql.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
	s.must(err)
	for _, n := range s.nats {
		n.process.terminate(t)
	}
	dir := t.TempDir()
	s.must(os.CopyFS(dir, os.DirFS(s.dir)))
	return storedFiles{dir, servers, l.acked}
}

func storedSettings(servers int) []string {
	return []string{
		"WORKER_CONCURRENCY=16", "NATS_STREAM_MAX_BYTES=2000000",
		fmt.Sprint("NATS_STREAM_REPLICAS=", servers),
	}
}

// damageKind is what is damaged, and how.
type damageKind struct {
	name  string
	files *regexp.Regexp
	way   string // "flip" a bit, or "truncate"
}

// damage damages one of the node's files, and returns its name.
func (k damageKind) damage(node string, random *rand.Rand) (string, error) {
	var files []string
	err := filepath.WalkDir(node, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > 0 && k.files.MatchString(filepath.ToSlash(path)) {
			files = append(files, path)
		}
		return err
	})
	if len(files) == 0 {
		return "", errors.Join(err, errors.New("there is no such file"))
	}
	path := files[random.IntN(len(files))]
	// In place, since a server that runs has the file open.
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	at := random.Int64N(info.Size())
	name := strings.TrimPrefix(path, node)
	if k.way == "truncate" {
		return fmt.Sprintf("%s to %d of %d bytes", name, at, info.Size()), file.Truncate(at)
	}
	b := make([]byte, 1)
	if _, err := file.ReadAt(b, at); err != nil {
		return "", err
	}
	b[0] ^= 1 << random.IntN(8)
	_, err = file.WriteAt(b, at)
	return fmt.Sprintf("%s at %d of %d bytes", name, at, info.Size()), err
}

// TestDamagedJetStream damages one file of a NATS server. What the stream acknowledged must still be
// handled, or what is missing must be visible. No tenant may get a second dashboard or a state that
// its events do not have.
func TestDamagedJetStream(t *testing.T) {
	if *damagesNATS == 0 {
		t.Skip("run it with -args -damage.nats 24")
	}
	for _, servers := range []int{1, 3} {
		t.Run(fmt.Sprintf("servers=%d", servers), func(t *testing.T) {
			files := newStoredFiles(t, servers)
			counts := map[string]*tally{}
			for i := range *damagesNATS { // in rounds, so that what there is after an early end is even
				for _, k := range damageKinds(servers) {
					t.Run(fmt.Sprintf("%s/%d", k.name, i), func(t *testing.T) {
						if counts[k.name] == nil {
							counts[k.name] = &tally{}
						}
						files.run(t, k, *damageSeed+uint64(i), counts[k.name])
						t.Logf("so far, %d servers, %s:\n%s", servers, k.name, counts[k.name].table())
					})
				}
			}
		})
	}
}

// damageKinds are the parts of the files and the ways to damage them.
func damageKinds(servers int) (kinds []damageKind) {
	const stream = `/\$G/streams/PAPERMAP/`
	const raft = `/(msgs/|meta|peers|tav|snapshots/)`
	parts := []struct{ name, files string }{
		{"messages", stream + `msgs/\d+\.blk$`},
		{"index", stream + `msgs/index\.db$`},
		{"settings of the stream", stream + `meta\.(inf|sum)$`},
		{"consumers", stream + `obs/.*/(o\.dat|meta\.inf|meta\.sum)$`},
		{"log of the stream", `/_js_/S-R3F.*` + raft},
		{"logs of the consumers", `/_js_/C-R3F.*` + raft},
		{"log of the cluster", `/_js_/_meta_` + raft},
	}
	if servers == 1 {
		parts = parts[:4]
	}
	for _, part := range parts {
		for _, way := range []string{"flip", "truncate"} {
			kinds = append(kinds, damageKind{part.name + ", " + way, regexp.MustCompile(part.files), way})
		}
	}
	return kinds
}

// run damages a copy of the files, lets a worker handle what is left, and counts what came of it.
func (f storedFiles) run(t *testing.T, k damageKind, seed uint64, count *tally) {
	random := rand.New(rand.NewPCG(seed, 7))
	s := &system{t: t, name: "damaged", prepare: func(dir string) error {
		return os.CopyFS(dir, os.DirFS(f.dir))
	}}
	s.start(f.servers, 1, storedSettings(f.servers)...)
	d := &damagedRun{
		ledger: &ledger{system: s, acked: slices.Clone(f.acked)}, count: count, k: k,
		node: random.IntN(f.servers), random: random,
	}
	if f.servers > 1 {
		d.leader()
	}
	d.damageNode()
	d.startWorkerOnce()
	d.afterwards()
	d.judge()
}

// damagedRun is one run with one damaged file.
type damagedRun struct {
	*ledger
	k       damageKind
	node    int // the damaged server
	random  *rand.Rand
	count   *tally
	what    string // was damaged
	worker  *process
	refused bool // the stream takes no event
}

// damageNode damages the files of a server that was stopped or runs, and starts it again. Then, with
// three, another server is restarted, and the damaged one made the leader.
func (d *damagedRun) damageNode() {
	n, running := d.nats[d.node], d.random.IntN(2) == 0
	if running {
		d.damage(n)
	} else {
		d.stop(n)
		d.damage(n)
	}
	for i := range 10 { // for the other servers alone, or after the damage; a single one may be down
		_ = d.publish(d.t.Context(), 1, "created", fmt.Sprintf("during-%d", i))
		if len(d.nats) == 1 && !running {
			break
		}
	}
	if running {
		if d.random.IntN(2) == 0 {
			d.startWorkerOnce()
		}
		d.stop(n)
	}
	d.must(n.start())
	if len(d.nats) == 1 {
		return
	}
	if d.random.IntN(2) == 0 {
		d.startWorkerOnce()
	}
	d.waitHealthy(15 * time.Second)
	other := (d.node + 1 + d.random.IntN(2)) % 3
	d.must(d.nats[other].restart(500 * time.Millisecond))
	d.waitHealthy(15 * time.Second)
	d.promote()
}

func (d *damagedRun) damage(n *natsServer) {
	var err error
	d.what, err = d.k.damage(n.dir, d.random)
	d.must(err)
}

// stop ends a server, in an orderly way or not.
func (d *damagedRun) stop(n *natsServer) {
	if d.random.IntN(2) == 0 {
		_ = n.process.cmd.Process.Signal(syscall.SIGTERM)
		n.process.wait(d.t.Context(), 20*time.Second)
	}
	n.process.kill()
}

// waitHealthy waits until the stream's copies are up to date, or for a while.
func (d *damagedRun) waitHealthy(limit time.Duration) {
	_ = waitFor(d.t.Context(), limit, func() error {
		ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Second)
		defer cancel()
		stream, err := d.js.Stream(ctx, "PAPERMAP")
		if err != nil {
			return err
		}
		info := stream.CachedInfo().Cluster
		for _, replica := range info.Replicas {
			if !replica.Current {
				return errors.New("not up to date")
			}
		}
		if info.Leader == "" || len(info.Replicas) < 2 {
			return errors.New("incomplete")
		}
		return nil
	})
}

// promote makes the damaged server the leader of the stream, if it lets itself.
func (d *damagedRun) promote() {
	name := fmt.Sprintf("node%d", d.node)
	err := waitFor(d.t.Context(), 10*time.Second, func() error {
		ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Second)
		defer cancel()
		stream, err := d.js.Stream(ctx, "PAPERMAP")
		if err != nil {
			return err
		}
		if stream.CachedInfo().Cluster.Leader == name {
			return nil
		}
		_, _ = d.nc.RequestWithContext(ctx, "$JS.API.STREAM.LEADER.STEPDOWN.PAPERMAP",
			fmt.Appendf(nil, `{"placement":{"preferred":%q}}`, name))
		return errors.New("another server leads")
	})
	if err == nil {
		d.count.add("  the damaged server led the stream", 1)
	}
}

func (d *damagedRun) startWorkerOnce() {
	if d.worker != nil {
		return
	}
	var err error
	d.worker, err = d.startWorker("worker0")
	d.must(err)
	d.t.Cleanup(d.worker.kill)
}

// afterwards publishes events after the damage, if the stream takes them.
func (d *damagedRun) afterwards() {
	err := waitFor(d.t.Context(), 20*time.Second, func() error {
		return d.publish(d.t.Context(), 2, "created", "after-0")
	})
	if err != nil {
		d.refused = true
		return
	}
	for i := range 19 {
		_ = d.publish(d.t.Context(), 2, "created", fmt.Sprintf("after-%d", i+1))
	}
}

// kept returns the acknowledged events that the stream still has.
func (l *ledger) kept() map[string]bool {
	kept := map[string]bool{}
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	stream, err := l.js.Stream(ctx, "PAPERMAP")
	if err != nil {
		return kept
	}
	for _, e := range l.acked {
		if msg, err := stream.GetMsg(ctx, e.sequence); err == nil && msg.Header.Get(nats.MsgIdHdr) == e.id() {
			kept[e.id()] = true
		}
	}
	return kept
}

// wrong returns the first tenant whose state is not that of the events that were handled or kept.
func (l *ledger) wrong(kept map[string]bool) error {
	mappings, err := l.db.Mappings(l.t.Context(), "", "", 1e6)
	if err != nil {
		return err
	}
	status := map[string]repo.Status{}
	for _, m := range mappings {
		status[m.TenantID] = m.Status
	}
	for _, e := range l.acked {
		want := repo.Active
		if e.kind == "suspended" {
			want = repo.Suspended
		}
		if e.phase > 0 && kept[e.id()] && status[e.tenant] != want {
			return fmt.Errorf("%s is kept, and the tenant is %q", e.id(), status[e.tenant])
		}
	}
	return nil
}

// judge counts what came of the run. A tenant with two dashboards fails the test, and an event that the
// stream has and that was not handled.
func (d *damagedRun) judge() {
	kept := d.kept()
	state := waitFor(d.t.Context(), time.Minute, func() error { return d.wrong(kept) })
	found := d.findings()
	if d.worker.wait(d.t.Context(), 0) {
		d.t.Errorf("the worker ended: %s", d.worker.tail(2000))
	}
	d.worker.kill()
	d.secondDashboards()
	lost := d.lost(kept)
	what := "everything kept"
	switch {
	case d.refused:
		what = "the stream is refused"
	case state != nil:
		what = "kept, but not handled"
		if found == nil {
			d.t.Error(state)
		}
	case lost != [3]int{}:
		what = "events missing"
	}
	visible := "nothing says so"
	if len(found) > 0 {
		visible = "visible"
	}
	d.count.add(what+", "+visible, 1)
	if !d.refused {
		d.count.add("  events that had been handled, missing", lost[0])
		d.count.add("  events that waited, missing", lost[1])
		d.count.add("  events published after the restart, missing", lost[2])
	}
	d.t.Logf("DAMAGED %s: %s, missing %v of %d, state %v, found %q", d.what, what, lost, len(d.acked), state,
		found)
	if found == nil && what != "everything kept" {
		d.t.Logf("the server's warnings:\n%s", warnings(d.nats[d.node].process))
	}
}

// lost counts the acknowledged events that the stream does not have, by phase.
func (l *ledger) lost(kept map[string]bool) (n [3]int) {
	for _, e := range l.acked {
		if !kept[e.id()] {
			n[e.phase]++
		}
	}
	return n
}

// secondDashboards fails the test if a tenant has two. The simulator has none of those that were made
// before the files were copied.
func (l *ledger) secondDashboards() {
	creates := map[string]int{}
	for _, d := range l.sim.Dashboards() {
		creates[d.TenantID]++
		if creates[d.TenantID] > 1 || strings.HasPrefix(d.TenantID, "handled-") {
			l.t.Errorf("tenant %s has two dashboards", d.TenantID)
		}
	}
}
