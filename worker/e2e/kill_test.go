package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker/proof"
	"papermap-worker/worker/workertest"
)

// A killed worker loses nothing, whatever it was at, and its successor takes up what it had in
// flight (promises 1 to 4 of README).
func TestKilledWorkerLosesNothing(t *testing.T) {
	const tenants = 500
	s := newSystem(t, "on=create delay=10ms")
	s.env = append(s.env, "WORKER_CONCURRENCY=32") // slow enough that it is killed in the middle
	js := s.jetStream(t)
	published := publishTenants(t, js, tenants) // tenant i has sequence i+1
	worker := start(t, s.env, "serve")
	db := openSQL(t, s.database)
	type kill struct {
		at       time.Time
		inFlight []string // tenants whose events it had got and not finished
	}
	var kills []kill
	seen := map[string]bool{}
	for _, requests := range []int{tenants / 5, tenants / 2, tenants * 3 / 4} {
		s.requests(t, requests)
		worker.kill()
		k := kill{at: time.Now()}
		var active []string
		must(t, db.Select(&active, "SELECT tenant_id FROM tenant_dashboards WHERE status = 'active'"))
		for i := range consumer(t, js, events.MainConsumer).Delivered.Stream {
			if name := tenantName(int(i)); !slices.Contains(active, name) && !seen[name] {
				k.inFlight = append(k.inFlight, name)
				seen[name] = true
			}
		}
		kills = append(kills, k)
		worker = start(t, s.env, "serve")
	}
	t.Parallel() // while the leases of the killed ones pass
	h := s.prove(t, js, published)
	for i, k := range kills {
		if len(k.inFlight) == 0 {
			t.Errorf("kill %d hit nothing", i+1)
		}
		var claimed, done time.Duration // the last of them, after the kill
		for _, a := range h.Attempts {
			if a.Outcome == repo.OutcomeCreated && slices.Contains(k.inFlight, a.TenantID) {
				claimed = max(claimed, a.StartedAt.Sub(k.at))
				done = max(done, a.FinishedAt.Sub(k.at))
			}
		}
		t.Logf("kill %d: %d tenants in flight, claimed again within %v and done within %v",
			i+1, len(k.inFlight), claimed, done)
	}
	worker.stop(t)
	var integrity string
	must(t, db.Get(&integrity, "PRAGMA integrity_check"))
	if integrity != "ok" {
		t.Errorf("integrity_check: %v", integrity)
	}
}

func tenantName(i int) string { return fmt.Sprintf("org-%03d", i) }

// publishTenants publishes so many new tenants.
func publishTenants(t *testing.T, js jetstream.JetStream, n int) (list []proof.Published) {
	t.Helper()
	for i := range n {
		list = append(list, publishCreated(t, js, tenantName(i)))
	}
	return list
}

// publishCreated publishes a new tenant. The test fails if the stream does not store it.
func publishCreated(t *testing.T, js jetstream.JetStream, tenant string) proof.Published {
	t.Helper()
	p := proof.Published{
		Type: events.TypeTenantCreated, Tenant: tenant,
		Data: fmt.Appendf(nil, `{"tenant_id":%q,"name":"Company"}`, tenant),
	}
	ack, err := js.Publish(t.Context(), subjects.Event(p.Type), p.Data)
	if err != nil {
		t.Error(err)
		return p
	}
	p.Sequence = ack.Sequence
	return p
}

// prove does what history does. Every tenant must be active, in its first generation.
func (s *system) prove(t *testing.T, js jetstream.JetStream, published []proof.Published) proof.History {
	t.Helper()
	h := s.history(t, js, proof.History{Published: published})
	for _, m := range h.Mappings {
		if m.Generation != 1 || m.Status != repo.Active {
			t.Errorf("tenant %s is %s in generation %d", m.TenantID, m.Status, m.Generation)
		}
	}
	if len(h.Mappings) != len(published) {
		t.Errorf("%d tenants were published, %d have a mapping", len(published), len(h.Mappings))
	}
	outcomes := map[repo.Outcome]int{}
	for _, a := range h.Attempts {
		outcomes[a.Outcome]++
	}
	t.Logf("attempts by outcome: %v; dashboards at Papermap: %d", outcomes, len(h.Dashboards))
	return h
}

// history waits until nothing is left to be done, completes h, and holds what the worker recorded
// and published against what was published to it and what the simulator did.
func (s *system) history(t *testing.T, js jetstream.JetStream, h proof.History) proof.History {
	t.Helper()
	run := proof.System{
		DB: openSQL(t, s.database), Repo: openRepo(t, s.database), JetStream: js, Stream: "PAPERMAP",
		Subjects: subjects, Simulator: s.sim,
	}
	workertest.Eventually(t, 2*time.Minute, func() error { return proof.Quiet(t.Context(), run) })
	h.Workspaces, h.LongestLife = []papermap.Workspace{testWorkspace}, time.Hour
	h, err := proof.Collect(t.Context(), run, h)
	must(t, err)
	for _, v := range proof.Check(h) {
		t.Error(v)
	}
	return h
}
