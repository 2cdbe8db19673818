package main

import (
	"database/sql"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/papermap/simulator"
)

// kill is what a killed worker left.
type kill struct {
	at     time.Time
	inHand []string // tenants whose events it had got and not finished
}

// A killed worker loses nothing, whatever it was at, and its successor takes up what it had in hand (promises 1 to 4
// of README).
func TestKilledWorkerLosesNothing(t *testing.T) {
	t.Parallel()
	const tenants = 500
	s := newSystem(t, simulator.Fault{On: "create", Delay: 10 * time.Millisecond})
	s.env = append(s.env, "WORKER_CONCURRENCY=32") // slow enough that it is killed in the middle
	js := s.jetStream(t)
	for i := range tenants { // tenant i has sequence i+1
		publishCreated(t, js, tenantName(i))
	}
	worker := start(t, s.env, "serve")
	db := s.openSQL(t)
	var kills []kill
	seen := map[string]bool{}
	for _, requests := range []int{tenants / 5, tenants / 2, tenants * 3 / 4} {
		s.requests(t, requests)
		worker.kill()
		k := kill{at: time.Now()}
		active := s.active(t, db)
		for i := range consumer(t, js, "papermap-worker").Delivered.Stream {
			if name := tenantName(int(i)); active[name] == "" && !seen[name] {
				k.inHand = append(k.inHand, name)
				seen[name] = true
			}
		}
		kills = append(kills, k)
		worker = start(t, s.env, "serve")
	}
	eventually(t, 90*time.Second, func() error {
		if n := len(s.active(t, db)); n < tenants {
			return fmt.Errorf("%d of %d tenants are active", n, tenants)
		}
		return nil
	})
	for i, k := range kills {
		begun, done := s.takenUp(t, db, k)
		t.Logf("kill %d: %d tenants in hand; after it, the last of them was claimed again after %v and done after %v", i+1, len(k.inHand), begun, done)
		if len(k.inHand) == 0 {
			t.Errorf("kill %d hit nothing", i+1)
		}
	}
	eventually(t, 40*time.Second, func() error {
		for _, name := range []string{"papermap-worker", "papermap-worker-access"} {
			if info := consumer(t, js, name); info.NumPending+uint64(info.NumAckPending) > 0 {
				return fmt.Errorf("%s: %d events wait and %d are unacknowledged", name, info.NumPending, info.NumAckPending)
			}
		}
		return nil
	})
	announced := map[string]string{}
	eventually(t, 40*time.Second, func() error {
		s.announcements(t, js, announced)
		if len(announced) < tenants {
			return fmt.Errorf("%d of %d tenants were announced", len(announced), tenants)
		}
		return nil
	})
	worker.signal(t, syscall.SIGTERM)
	if code := worker.wait(t, 15*time.Second); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	if r := query(t, db, "PRAGMA integrity_check"); len(r) != 1 || r[0][0] != "ok" {
		t.Errorf("integrity_check: %v", r)
	}
	s.checkRecords(t, db, announced)
}

func tenantName(i int) string { return fmt.Sprintf("org-%03d", i) }

// active reads the dashboards of the active tenants.
func (s *system) active(t *testing.T, db *sql.DB) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, r := range query(t, db, "SELECT tenant_id, dashboard_id FROM tenant_dashboards WHERE status = 'active'") {
		found[r[0]] = r[1]
	}
	return found
}

// takenUp says how long after the kill the last of its tenants was claimed for the attempt that made its dashboard, and
// when that was done.
func (s *system) takenUp(t *testing.T, db *sql.DB, k kill) (begun, done time.Duration) {
	t.Helper()
	for _, tenant := range k.inHand {
		for _, r := range query(t, db, "SELECT started_at, finished_at FROM provision_attempts WHERE outcome = 'created' AND tenant_id = ?", tenant) {
			begun, done = max(begun, parseTime(t, r[0]).Sub(k.at)), max(done, parseTime(t, r[1]).Sub(k.at))
		}
	}
	return begun, done
}

func parseTime(t *testing.T, text string) time.Time {
	t.Helper()
	when, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

// announcements reads which dashboards were announced for which tenants.
func (s *system) announcements(t *testing.T, js jetstream.JetStream, found map[string]string) {
	t.Helper()
	c, err := js.OrderedConsumer(t.Context(), "PAPERMAP", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"papermap.events.dashboard.created"}, InactiveThreshold: time.Second, // it is asked again and again
	})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := c.FetchNoWait(10_000)
	if err != nil {
		t.Fatal(err)
	}
	for msg := range batch.Messages() {
		var e struct {
			Data struct {
				TenantID    string `json:"tenant_id"`
				DashboardID string `json:"dashboard_id"`
			} `json:"data"`
		}
		if err := json.Unmarshal(msg.Data(), &e); err != nil {
			t.Fatal(err)
		}
		if other, ok := found[e.Data.TenantID]; ok && other != e.Data.DashboardID {
			t.Fatalf("tenant %s was announced with dashboards %s and %s", e.Data.TenantID, other, e.Data.DashboardID)
		}
		found[e.Data.TenantID] = e.Data.DashboardID
	}
}

// checkRecords holds the database and the events out against what the simulator did.
func (s *system) checkRecords(t *testing.T, db *sql.DB, announced map[string]string) {
	t.Helper()
	mappings := map[string]string{}
	allowed := map[string]int{} // dashboards that a tenant may have at Papermap
	for _, r := range query(t, db, "SELECT tenant_id, dashboard_id, generation, status FROM tenant_dashboards") {
		if r[2] != "1" || r[3] != "active" {
			t.Errorf("tenant %s is %s in generation %s", r[0], r[3], r[2])
		}
		mappings[r[0]] = r[1]
		allowed[r[0]]++
		if announced[r[0]] != r[1] {
			t.Errorf("tenant %s has dashboard %s, and %q was announced", r[0], r[1], announced[r[0]])
		}
	}
	type attempt struct{ tenant, outcome, dashboard string }
	attempts := map[string]attempt{} // by mark
	outcomes := map[string]int{}
	for _, r := range query(t, db, "SELECT mark, tenant_id, outcome, COALESCE(dashboard_id, '') FROM provision_attempts") {
		attempts[r[0]] = attempt{r[1], r[2], r[3]}
		outcomes[r[2]]++
		if r[2] == "sent" || r[2] == "unknown" || r[2] == "orphaned" {
			allowed[r[1]]++
		}
	}
	t.Logf("attempts by outcome: %v; dashboards at Papermap: %d", outcomes, len(s.sim.Dashboards()))
	owner := map[string]string{}
	count := map[string]int{}
	for _, d := range s.sim.Dashboards() {
		a, ok := attempts[d.Mark]
		switch {
		case !ok:
			t.Errorf("dashboard %s of tenant %s is in no attempt", d.ID, d.TenantID)
		case a.tenant != d.TenantID:
			t.Errorf("dashboard %s of tenant %s is in an attempt of tenant %s", d.ID, d.TenantID, a.tenant)
		case a.outcome == "created" && (a.dashboard != d.ID || mappings[d.TenantID] != d.ID):
			t.Errorf("dashboard %s of tenant %s is not the one of its attempt (%s) and mapping (%s)", d.ID, d.TenantID, a.dashboard, mappings[d.TenantID])
		case a.outcome == "refused":
			t.Errorf("dashboard %s of tenant %s was made by an attempt that is recorded as refused", d.ID, d.TenantID)
		}
		owner[d.ID] = d.TenantID
		count[d.TenantID]++
	}
	for tenant, id := range mappings {
		if owner[id] != tenant {
			t.Errorf("tenant %s has dashboard %s, which is %q's", tenant, id, owner[id])
		}
		if count[tenant] > allowed[tenant] {
			t.Errorf("tenant %s has %d dashboards, and only %d generations and uncertain attempts", tenant, count[tenant], allowed[tenant])
		}
	}
	if len(mappings) != len(announced) {
		t.Errorf("%d tenants, %d announced", len(mappings), len(announced))
	}
}

// query reads rows of texts.
func query(t *testing.T, db *sql.DB, text string, args ...any) [][]string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), text, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for rows.Next() {
		row := make([]string, len(columns))
		into := make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		all = append(all, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
