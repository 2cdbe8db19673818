package e2e

import (
	"strings"
	"testing"
)

// Three workers share a PostgreSQL database. One is killed, one is replaced as in a rolling
// restart, and nothing is lost or recorded twice (promises 1 to 4 of README).
func TestReplicasLoseNothingThroughKillAndRestart(t *testing.T) {
	const tenants = 300
	s := newSystem(t, "on=create delay=400ms") // enough work is left when the last worker has started
	s.usePostgres(t)
	s.env = append(s.env, "WORKER_CONCURRENCY=8")
	js := s.jetStream(t)
	killed, replaced := start(t, s.env, "serve"), start(t, s.env, "serve")
	workers := []*process{start(t, s.env, "serve")}
	for _, w := range []*process{killed, replaced, workers[0]} {
		w.address(t)
	}
	published := publishTenants(t, js, tenants)
	s.requests(t, tenants/4)
	killed.kill()
	workers = append(workers, start(t, s.env, "serve"))
	s.requests(t, tenants/2)
	replaced.stop(t)
	t.Parallel() // while the lease of the killed one passes
	s.prove(t, js, published)
	for _, w := range workers {
		w.stop(t)
		if strings.Count(w.text(), `"msg":"created a dashboard"`) == 0 {
			t.Error("a worker had no share of the work")
		}
	}
}

func TestSQLiteFileRefusesSecondWorker(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	first := start(t, s.env, "serve")
	first.address(t)
	second := start(t, s.env, "serve")
	if code := second.wait(t); code != 1 ||
		!strings.Contains(second.text(), "another worker has the database") {
		t.Errorf("exit code %d: %s", code, second.text())
	}
	first.kill()
	third := start(t, s.env, "serve")
	third.address(t) // a killed worker leaves no lock behind
}
