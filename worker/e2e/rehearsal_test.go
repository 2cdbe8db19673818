package e2e

import (
	"context"
	"flag"
	"strings"
	"sync"
	"testing"
	"time"

	"papermap-worker/worker"
)

var upgradeFrom = flag.String("upgrade.from", "", "program of the previous version; empty: no rehearsal")

// A program that is older than its database might write what the newer one does not expect.
func TestServeRefusesDatabaseOfNewerProgram(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	run(t, s.env, "migrate")
	openSQL(t, s.database).MustExec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")
	for _, args := range [][]string{{"serve"}, {"migrate"}, {"tenants", "list"}} {
		p := start(t, s.env, args...)
		if code := p.wait(t); code != 1 || !strings.Contains(p.text(), "database version 999, program version ") ||
			!strings.Contains(p.text(), "run the newer version, or restore a backup") {
			t.Errorf("%v: exit code %d: %s", args, code, p.text())
		}
	}
}

// Two replicas on PostgreSQL are upgraded under load, one after the other, from the program that the
// flag -upgrade.from names. No event is lost, no dashboard is made twice, every request for a token
// is answered. Then the old program is started again. If the upgrade migrated the database, it is
// refused.
func TestRollingUpgradeAndDowngrade(t *testing.T) {
	if *upgradeFrom == "" {
		t.Skip("needs the program of the previous version: .ci/rehearse COMMIT builds it")
	}
	s := newSystem(t, "on=create delay=30ms")
	s.usePostgres(t)
	env := append(s.env, "WORKER_CONCURRENCY=8")
	startOld := func() *process {
		t.Helper()
		p := startProgram(t, *upgradeFrom, env, "serve")
		ready(t, p.address(t))
		return p
	}
	js := s.jetStream(t)
	db := openSQL(t, s.database)
	schema := func() (version int) {
		t.Helper()
		must(t, db.Get(&version, "SELECT max(version_id) FROM goose_db_version"))
		return version
	}
	replicas := []*process{startOld(), startOld()}
	before := schema()
	published := publishTenants(t, js, 20)
	callers := &tokenCallers{t: t, minted: map[string]int{}, latest: map[string]worker.EmbedToken{}}
	for _, p := range published {
		s.status(t, p.Tenant, "active")
		callers.tenants = append(callers.tenants, p.Tenant)
	}
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	t.Cleanup(func() { stop(); load.Wait() })
	load.Go(func() { callers.run(ctx, js.Conn()) })
	load.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			published = append(published, publishCreated(t, js, tenantName(len(published))))
		}
	})
	for i, old := range replicas {
		requests := len(s.sim.Log())
		old.stop(t)
		replicas[i] = startReady(t, env)
		s.requests(t, requests+100) // in the middle of the work
	}
	stop()
	load.Wait()
	h := s.prove(t, js, published)
	if len(h.Dashboards) != len(published) {
		t.Errorf("%d dashboards were made for %d tenants", len(h.Dashboards), len(published))
	}
	t.Logf("schema %d to %d; %d tenants; tokens by key: %v", before, schema(), len(published), callers.minted)

	replicas[0].stop(t)
	if before == schema() {
		startOld().stop(t)
		return
	}
	old := startProgram(t, *upgradeFrom, env, "serve")
	if code := old.wait(t); code != 1 || !strings.Contains(old.text(), "the database is newer than this program") {
		t.Errorf("the old program on the new database: exit code %d: %s", code, tail(old.text(), 2000))
	}
	t.Logf("the old program said: %s", tail(old.text(), 300))
}
