package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	contract "papermap-worker/schema/schematest"
	"papermap-worker/worker"
	"papermap-worker/worker/proof"
)

// go test ./worker/e2e -run TestUpgrade -v -args -upgrade.from 224488c   # the last commit of 0.1
var upgradeFrom = flag.String("upgrade.from", "",
	"commit or tag of the version to upgrade from; empty: no upgrade")

// previousVersion builds that version once, from the repository's history.
var previousVersion = sync.OnceValues(func() (program string, err error) {
	commit := *upgradeFrom
	if err := exec.Command("git", "cat-file", "-e", commit+"^{commit}").Run(); err != nil {
		return "", fmt.Errorf("the repository has no commit %s; is the clone shallow? %w", commit, err)
	}
	dir := filepath.Join(sharedDir, "previous")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	program = filepath.Join(dir, "papermap-worker-previous")
	script := `git archive "$0" | tar -x -C "$1" && cd "$1" && go build -o "$2" .`
	if out, err := exec.Command("sh", "-c", script, commit, dir, program).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", commit, err, out)
	}
	return program, nil
})

// upgradeRun is a system that is upgraded while events are published to it.
type upgradeRun struct {
	*system
	t   *testing.T
	old string // the program of the previous version
	js  jetstream.JetStream

	published []proof.Published // by publish, and only read after the load has ended
	callers   *tokenCallers
}

func newUpgradeRun(t *testing.T) *upgradeRun {
	if *upgradeFrom == "" {
		t.Skip("builds the version that -args -upgrade.from names")
	}
	old, err := previousVersion()
	if err != nil {
		without(t, "%v", err)
	}
	u := &upgradeRun{system: newSystem(t, "on=create delay=30ms"), t: t, old: old}
	u.env = append(u.env, "WORKER_CONCURRENCY=8")
	u.sim.SetUsage(testWorkspace.ID, simulator.Usage{Tenants: 300, Seed: 1})
	return u
}

// startOld starts a worker of the previous version, which makes the streams as it did.
func (u *upgradeRun) startOld() *process {
	u.t.Helper()
	p := startProgram(u.t, u.old, u.env, "serve")
	ready(u.t, p.address(u.t))
	return p
}

// prepare has the previous version create the tenants that tokens are requested for.
func (u *upgradeRun) prepare() {
	u.t.Helper()
	u.js = u.rawJetStream(u.t)
	u.t.Cleanup(func() { contract.CheckStream(u.t, u.js) })
	u.published = publishTenants(u.t, u.js, 20)
	u.callers = &tokenCallers{t: u.t, minted: map[string]int{}, latest: map[string]worker.EmbedToken{}}
	for _, p := range u.published {
		u.status(u.t, p.Tenant, "active")
		u.callers.tenants = append(u.callers.tenants, p.Tenant)
	}
}

// inBackground runs a part of the load. The function that it returns ends it.
func (u *upgradeRun) inBackground(run func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(u.t.Context())
	var group sync.WaitGroup
	group.Go(func() { run(ctx) })
	stop = func() { cancel(); group.Wait() }
	u.t.Cleanup(stop)
	return stop
}

// publish publishes events of every kind until ctx ends: new tenants, of whom some are suspended,
// resumed or deleted, and usage syncs.
func (u *upgradeRun) publish(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		tenant := fmt.Sprintf("load-%04d", n)
		u.event(events.TypeTenantCreated, tenant, fmt.Sprintf(`{"tenant_id":%q,"name":"Company"}`, tenant))
		other := fmt.Sprintf("load-%04d", max(0, n-20))
		named := fmt.Sprintf(`{"tenant_id":%q}`, other)
		switch n % 10 {
		case 3:
			u.event(events.TypeTenantSuspended, other, named)
			u.event(events.TypeTenantResumed, other, named)
		case 6:
			u.event(events.TypeTenantSuspended, other, named)
		case 9:
			u.event(events.TypeTenantDeleted, other, named)
		}
		if n%40 == 20 {
			u.event(events.TypeUsageSync, "", `{"from_period":"2026-10","to_period":"2026-10"}`)
		}
		<-tick.C
	}
}

func (u *upgradeRun) event(eventType, tenant, data string) {
	p := proof.Published{Type: eventType, Tenant: tenant, Data: []byte(data)}
	ack, err := u.js.Publish(context.WithoutCancel(u.t.Context()), subjects.Event(eventType), p.Data)
	if err != nil {
		u.t.Errorf("publishing %s: %v", eventType, err)
	} else {
		p.Sequence = ack.Sequence
	}
	u.published = append(u.published, p)
}

// schema is the version of the database's schema.
func (u *upgradeRun) schema() (version int) {
	u.t.Helper()
	must(u.t, openSQL(u.t, u.database).Get(&version, "SELECT max(version_id) FROM goose_db_version"))
	return version
}

// more waits until the load has led to more requests.
func (u *upgradeRun) more() {
	u.t.Helper()
	u.requests(u.t, len(u.sim.Log())+100)
}

// check expects that every promise was kept, that no outcome was left open, so that no dashboard was
// made twice, and that all usage is what the API reports.
func (u *upgradeRun) check() {
	u.t.Helper()
	const month = "2026-10"
	totals, err := u.sim.UsageTotals(testWorkspace.ID, month, month)
	must(u.t, err)
	var reported []proof.UsageRow
	for _, total := range totals {
		reported = append(reported, proof.UsageRow{WorkspaceID: testWorkspace.ID, TenantID: total.TenantID,
			Period: month, Credits: total.Credits, Requests: total.Requests})
	}
	h := u.history(u.t, u.js, proof.History{Published: u.published, Reported: reported})
	for _, a := range h.Attempts {
		if a.Outcome != repo.OutcomeCreated {
			u.t.Errorf("the attempt of %s ended %s: %s", a.TenantID, a.Outcome, a.Error)
		}
	}
	for _, d := range h.Dead {
		u.t.Errorf("event %d became a dead letter: %s", d.StreamSequence, d.Error)
	}
	done := 0
	for _, r := range h.Runs {
		if r.Status == repo.RunDone {
			done++
		}
	}
	u.t.Logf("%d events, %d tenants, %d dashboards, %d of %d usage runs done, tokens by key %v",
		len(u.published), len(h.Mappings), len(h.Dashboards), done, len(h.Runs), u.callers.minted)
	info, err := u.js.Stream(u.t.Context(), "PAPERMAP")
	must(u.t, err)
	want, takes := subjects.Event(events.TypeUsageThreshold), info.CachedInfo().Config.Subjects
	if !slices.Contains(takes, want) {
		u.t.Errorf("the stream does not take %s, only %v", want, takes)
	}
	if code, text := doctor(u.t, u.env); code != 0 {
		u.t.Errorf("doctor: exit code %d:\n%s", code, text)
	}
}

// Two replicas of the previous version on PostgreSQL are replaced one after the other under load. No event
// is lost or repeated, and every request for a token is answered.
func TestUpgradeOfTwoReplicasLosesNothing(t *testing.T) {
	t.Parallel()
	u := newUpgradeRun(t)
	u.usePostgres(t)
	replicas := []*process{u.startOld(), u.startOld()}
	u.prepare()
	stopTokens := u.inBackground(func(ctx context.Context) { u.callers.run(ctx, u.js.Conn()) })
	stopEvents := u.inBackground(u.publish)
	u.more()
	for i, old := range replicas {
		old.stop(t)
		replicas[i] = startReady(t, u.env)
		u.more() // the first time with both versions side by side
	}
	stopEvents()
	stopTokens()
	u.check()
}

// On SQLite the one worker is stopped, and the new one started.
func TestUpgradeOfSQLiteWorkerLosesNothing(t *testing.T) {
	t.Parallel()
	u := newUpgradeRun(t)
	old := u.startOld()
	before := u.schema()
	u.prepare()
	stopTokens := u.inBackground(func(ctx context.Context) { u.callers.run(ctx, u.js.Conn()) })
	stopEvents := u.inBackground(u.publish)
	u.more()
	stopTokens() // nobody answers in between
	old.stop(t)
	upgraded := startReady(t, u.env)
	stopTokens = u.inBackground(func(ctx context.Context) { u.callers.run(ctx, u.js.Conn()) })
	u.more()
	stopEvents()
	stopTokens()
	u.check()
	upgraded.stop(t)
	if before == u.schema() {
		return // the previous version may start again
	}
	back := startProgram(t, u.old, u.env, "serve")
	if code := back.wait(t); code != 1 || !matches("newer than this program", back.text()) {
		t.Errorf("the previous version with the new database: exit code %d, %s", code, back.text())
	}
}

// A program that is older than its database might write what the newer one does not expect.
func TestServeRefusesDatabaseOfNewerProgram(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	run(t, s.env, "migrate")
	openSQL(t, s.database).MustExec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")
	for _, args := range [][]string{{"serve"}, {"migrate"}, {"tenants", "list"}} {
		p := start(t, s.env, args...)
		code, text := p.wait(t), p.text()
		if code != 1 || !matches("database version 999, program version .*: run the newer version", text) {
			t.Errorf("%v: exit code %d: %s", args, code, text)
		}
	}
}
