package proof_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/proof"
)

// TestHotTenantsDoNotDeadlock runs two workers on PostgreSQL, for which nothing but events about the
// same 64 tenants waits, so that full batches want each other's rows all the time. The short form has
// 3,000 events, the long one 300 for each second:
//
//	go test ./worker/proof -run TestHotTenants -v -timeout 30m -chaos.time 1m
func TestHotTenantsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	// A batch gives up a lock after 250 ms: a deadlock is to be found before.
	database := pgtest.Need(t, postgres) + "&deadlock_timeout=20ms"
	s := newSystem(t, "hot", database, 1, 1, "LOG_LEVEL=warn", "WORKER_CONCURRENCY=64")
	events := 3000
	if !short() {
		events = int(300 * chaosTime.Seconds())
	}
	l := newLoad(s, rand.New(rand.NewPCG(1, 1)))
	l.start = time.Now().Add(-time.Hour)
	for i := range 64 {
		l.tenants = append(l.tenants, &tenant{id: fmt.Sprint("hot-", i)})
	}
	kinds := []string{"created", "created", "suspended", "resumed", "deleted"}
	for range events {
		l.about(l.tenants[l.random.IntN(len(l.tenants))], kinds[l.random.IntN(len(kinds))])
		s.must(l.publish(t.Context(), l.queue[0]))
		l.queue = nil
	}
	var workers []*process
	for i := range 2 {
		p, err := s.startWorker(fmt.Sprintf("worker%d", i))
		s.must(err)
		t.Cleanup(p.kill)
		workers = append(workers, p)
	}
	s.waitQuiet(2 * time.Minute)
	for _, p := range workers {
		p.terminate(t)
	}
	var deadlocks int
	s.must(s.sql.GetContext(t.Context(), &deadlocks,
		"SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
	if deadlocks > 0 {
		t.Errorf("the server ended %d deadlocks (40P01)", deadlocks)
	}
	s.check(proof.History{Published: l.published})
}
