package main

import (
	"database/sql"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"papermap-worker/papermap/simulator"
	"papermap-worker/repo/pgtest"
)

// Three workers share a PostgreSQL database. One is killed, one is replaced as in a rolling restart, and nothing is lost
// or recorded twice (promises 1 to 4 of README).
func TestReplicasOnPostgresLoseNothingThroughAKillAndARollingRestart(t *testing.T) {
	t.Parallel()
	const tenants = 300
	address := pgtest.ForTest(t)
	s := newSystem(t, simulator.Fault{On: "create", Delay: 50 * time.Millisecond})
	s.env = append(s.env, "WORKER_CONCURRENCY=8", "DATABASE_URL="+address)
	js := s.jetStream(t)
	killed, replaced := start(t, s.env, "serve"), start(t, s.env, "serve")
	workers := []*process{start(t, s.env, "serve")}
	for _, w := range []*process{killed, replaced, workers[0]} {
		w.address(t)
	}
	for i := range tenants {
		publishCreated(t, js, tenantName(i))
	}
	s.requests(t, tenants/4)
	killed.kill()
	s.requests(t, tenants/2)
	replaced.signal(t, syscall.SIGTERM)
	if code := replaced.wait(t, 30*time.Second); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	workers = append(workers, start(t, s.env, "serve"))

	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	announced := map[string]string{}
	eventually(t, 90*time.Second, func() error {
		s.announcements(t, js, announced)
		if active := len(s.active(t, db)); active < tenants || len(announced) < tenants {
			return fmt.Errorf("of %d tenants, %d are active and %d were announced", tenants, active, len(announced))
		}
		return nil
	})
	eventually(t, 40*time.Second, func() error {
		if info := consumer(t, js, "papermap-worker"); info.NumPending+uint64(info.NumAckPending) > 0 {
			return fmt.Errorf("%d events wait and %d are unacknowledged", info.NumPending, info.NumAckPending)
		}
		return nil
	})
	for _, w := range workers {
		w.signal(t, syscall.SIGTERM)
	}
	for _, w := range workers {
		if code := w.wait(t, 30*time.Second); code != 0 {
			t.Errorf("exit code %d after SIGTERM", code)
		}
		if strings.Count(w.text(), `"msg":"created a dashboard"`) == 0 {
			t.Error("a worker had no share of the work")
		}
	}
	s.checkRecords(t, db, announced)
}

func TestSecondWorkerOnOneSQLiteFileIsRefused(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	first := start(t, s.env, "serve")
	first.address(t)
	second := start(t, s.env, "serve")
	if code := second.wait(t, 10*time.Second); code != 1 || !strings.Contains(second.text(), "another worker has the database") {
		t.Errorf("exit code %d: %s", code, second.text())
	}
	first.kill()
	third := start(t, s.env, "serve")
	third.address(t) // a killed worker leaves no lock behind
}
