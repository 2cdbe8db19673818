package worker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// Strangers read readiness: it says what kind of trouble Papermap makes, and not what Papermap says.
func TestReadinessDoesNotShowPapermapsWords(t *testing.T) {
	virtual(t, options{
		Faults: []string{"status=401 body=`{\"message\":\"key of customer 4711 is barred\"}`"},
	}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.paused("workspace ws-a is paused: Papermap refuses the credentials"))
		if s := w.Workers[0].State(); strings.Contains(strings.Join(s.Reasons, " "), "4711") {
			t.Errorf("readiness says %q", s.Reasons)
		}
		if p := w.Workers[0].Pause("ws-a"); !strings.Contains(p.Reason, "4711") {
			t.Errorf("the console says %q", p.Reason)
		}
	})
}

// disconnect makes the server close the connection of this name. The worker connects again a second
// later.
func (s natsServer) disconnect(t *testing.T, name string) {
	t.Helper()
	list, err := s.Connz(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Conns {
		if c.Name == name {
			if err := s.DisconnectClientByID(c.Cid); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("the worker has no connection named %q", name)
}

func TestReadinessNeedsTheConnectionsForEventsAndTokensOnly(t *testing.T) {
	var nats natsServer
	start := func(dir string) (workertest.NATS, error) {
		s, err := startInProcess(&server.Options{StoreDir: dir})
		nats = natsServer{s}
		return nats, err
	}
	virtual(t, options{NATS: start}, func(t *testing.T, w *world) {
		worked := 0
		for _, c := range []struct {
			connection string
			ready      bool
			consuming  string
			reason     string
		}{
			{"worker requests", false, "yes", "requests are not answered: no connection to NATS"},
			{"worker requests of tenants", true, "yes", ""},
			{"worker reading", true, "yes", ""},
			{"worker", false, "no", "no connection to NATS"},
		} {
			// This opens one for reading.
			_, err := w.Workers[0].Bus.DeadLetters(t.Context(), events.DeadFilter{}, 1)
			w.Must(err)
			nats.disconnect(t, c.connection)
			holds := func() error {
				s := w.Workers[0].State()
				if s.Ready != c.ready || s.Consuming != c.consuming ||
					!strings.HasPrefix(strings.Join(s.Reasons, "; "), c.reason) ||
					c.reason == "" && len(s.Reasons) > 0 {
					return fmt.Errorf("without the connection %q: %+v", c.connection, s)
				}
				return nil
			}
			w.Eventually(holds)
			if c.consuming == "yes" {
				worked++
				tenant := fmt.Sprint("t", worked)
				w.Create(tenant)
				w.Eventually(w.Are(repo.Active, tenant))
				w.PublishAt(time.Now(), "tenant.suspended", tenant)
				w.Eventually(w.Are(repo.Suspended, tenant))
				w.Must(holds())
			}
			w.Eventually(workertest.That("ready", func() bool {
				s := w.Workers[0].State()
				return s.Ready && len(s.Reasons) == 0
			}))
		}
	})
}

// What doctor calls fatal about the database is what readiness says.
func TestReadinessFindsADatabaseOfAnotherVersion(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.SQL.MustExec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)")
		w.Eventually(workertest.That("not ready", func() bool { return !w.Workers[0].State().Ready }))
		said := w.Workers[0].State().Reasons
		doctor := worker.CheckDatabase(t.Context(), w.DB, false)
		if len(said) != 1 || len(doctor) != 1 || said[0] != doctor[0].String() {
			t.Errorf("readiness says %q, doctor %q", said, doctor)
		}
		w.SQL.MustExec("DELETE FROM goose_db_version WHERE version_id = 99999")
		w.Eventually(workertest.That("ready", func() bool { return w.Workers[0].State().Ready }))
	})
}

func TestLogHasNoLineForEachEventWhileTheDatabaseFails(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.SQL.MustExec("ALTER TABLE tenant_dashboards RENAME TO gone")
		tenants := names("t", 200)
		w.Create(tenants...)
		const line = `"level":"WARN","msg":"event failed`
		w.Eventually(w.Logged("event failed and will be redelivered", 400))
		if n := strings.Count(w.Logs.String(), line); n < 1 || n > 5 {
			t.Errorf("%d lines about events that failed", n)
		}
		w.SQL.MustExec("ALTER TABLE gone RENAME TO tenant_dashboards")
		w.Eventually(w.Are(repo.Active, tenants...))
	})
}
