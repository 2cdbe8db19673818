package proof_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
	"papermap-worker/worker/proof"
)

// TestHotTenantsDoNotDeadlock runs two workers on PostgreSQL, which get nothing but events about the
// same 64 tenants, so that their batches want each other's rows all the time. The short form
// publishes for 3 s. The long one:
//
//	go test ./worker/proof -run TestHotTenants -v -chaos.time 1m
func TestHotTenantsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "hot", pgtest.Need(t, postgres), 1, 1, "LOG_LEVEL=warn")
	var workers []*process
	for i := range 2 {
		p, err := s.startWorker(fmt.Sprintf("worker%d", i))
		s.must(err)
		t.Cleanup(p.kill)
		workers = append(workers, p)
	}
	limit := *chaosTime
	if short() {
		limit = 3 * time.Second
	}
	l := &load{s: s, random: rand.New(rand.NewPCG(1, 1)), start: time.Now().Add(-time.Hour)}
	for i := range 64 {
		l.tenants = append(l.tenants, &tenant{id: fmt.Sprint("hot-", i)})
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	kinds := []string{"created", "created", "suspended", "resumed", "deleted"}
	for sleep(ctx, 3*time.Millisecond) {
		l.about(l.tenants[l.random.IntN(len(l.tenants))], kinds[l.random.IntN(len(kinds))])
		s.must(l.publish(ctx, l.queue[0]))
		l.queue = nil
	}
	t.Logf("%d events", len(l.published))
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
