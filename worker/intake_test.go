package worker_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

func TestTheThreeFormsOfAnEventMakeTheSameRow(t *testing.T) {
	onBoth(t, testTheThreeFormsOfAnEventMakeTheSameRow)
}

func testTheThreeFormsOfAnEventMakeTheSameRow(t *testing.T) {
	w := start(t, options{})
	data := func(tenant string) string {
		return `{"tenant_id":"` + tenant + `","name":"Müller & Söhne","description":"of \"Köln\"","created_by":"signup","unknown":[1]}`
	}
	when := time.Now().UTC().Format(time.RFC3339Nano)
	w.publish(events.TypeTenantCreated, data("plain"), "Nats-Msg-Id", "id-plain")
	w.publish(events.TypeTenantCreated, data("binary"), "CE-SpecVersion", "1.0", "ce-id", "id-binary", "ce-source", "/crm", "ce-type", "tenant.created", "ce-time", when)
	w.publish(events.TypeTenantCreated, `{"specversion":"1.0","id":"id-structured","source":"/crm","type":"tenant.created","time":"`+when+`","data":`+data("structured")+`}`)
	tenants := []string{"plain", "binary", "structured"}
	eventually(t, soon, w.are(repo.Active, tenants...))

	row := func(tenant string) map[string]any {
		columns := map[string]any{}
		w.must(w.sql.QueryRowx(w.sql.Rebind("SELECT * FROM tenant_dashboards WHERE tenant_id = ?"), tenant).MapScan(columns))
		if id := columns["created_event_id"]; id != "id-"+tenant {
			t.Errorf("%s: event id %q", tenant, id)
		}
		for _, own := range []string{"tenant_id", "dashboard_id", "created_event_id", "created_event", "created_at", "updated_at"} {
			if columns[own] == nil {
				t.Errorf("%s: %s is NULL", tenant, own)
			}
			delete(columns, own)
		}
		return columns
	}
	for _, tenant := range tenants[1:] {
		if diff := cmp.Diff(row("plain"), row(tenant)); diff != "" {
			t.Errorf("rows of plain JSON (-) and %s (+):\n%s", tenant, diff)
		}
	}
	m := w.mapping("plain")
	if m.Title != "Dashboard - Müller & Söhne" || m.Description != `of "Köln"` || m.CreatedBy != "signup" || m.WorkspaceID != "ws-a" || m.Generation != 1 {
		t.Errorf("mapping %+v", m)
	}
	for _, d := range w.sim.Dashboards() {
		if want := w.attempts(d.TenantID)[0].Mark; d.Title != m.Title || d.Description != m.Description+"\n\n"+want || d.WorkspaceID != "ws-a" {
			t.Errorf("made %+v, want mark %s", d, want)
		}
	}
}

func TestAHundredCopiesOnTwoWorkersMakeOneDashboard(t *testing.T) {
	onBoth(t, testAHundredCopiesOnTwoWorkersMakeOneDashboard)
}

func testAHundredCopiesOnTwoWorkersMakeOneDashboard(t *testing.T) {
	w := start(t, options{faults: []string{"on=create delay=200ms"}})
	for len(w.workers) < 2 {
		w.startWorker()
	}
	const copies, connections = 100, 8
	var publishers sync.WaitGroup
	for n := range connections {
		publishers.Go(func() {
			nc, err := nats.Connect(w.nats.URL())
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			for i := n; i < copies && err == nil; i += connections {
				same := &nats.Msg{Subject: "papermap.events.tenant.created", Data: []byte(object("tenant_id", "same-id", "name", "N")), Header: nats.Header{
					"ce-specversion": {"1.0"}, "ce-id": {"one-id"}, "ce-source": {"/crm"},
				}}
				if _, err = js.PublishMsg(t.Context(), same); err == nil {
					_, err = js.Publish(t.Context(), same.Subject, []byte(object("tenant_id", "no-id", "name", "N")))
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	publishers.Wait()
	eventually(t, soon, w.settled)
	for _, tenant := range []string{"same-id", "no-id"} {
		if n := w.creates(tenant); n != 1 || len(w.made(tenant)) != 1 {
			t.Errorf("%s: %d create requests, %d dashboards, want one", tenant, n, len(w.made(tenant)))
		}
		if s := w.status(tenant); s != repo.Active || w.outcomes(tenant) != "created" {
			t.Errorf("%s: status %s, attempts %s", tenant, s, w.outcomes(tenant))
		}
	}
	eventually(t, soon, func() error { // nothing is left to be said
		if n := len(w.stored("PAPERMAP", "papermap.events.dashboard.created")); n != 2 {
			return fmt.Errorf("%d events dashboard.created, want 2", n)
		}
		return nil
	})
	if n := len(w.dead()); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// poison are events that can never be handled: code, body, headers.
var poison = [][]string{
	{"INVALID_JSON", ``},
	{"INVALID_JSON", `null`},
	{"INVALID_JSON", `["tenant_id"]`},
	{"INVALID_JSON", `{"tenant_id":"bad","name":"N","tenant_id":"bad2"}`},
	{"INVALID_JSON", `{"tenant_id":"bad","name":"N"}{}`},
	{"INVALID_JSON", "{\"tenant_id\":\"bad\xff\",\"name\":\"N\"}"},
	{"INVALID_FIELD", `{"tenant_id":7,"name":"N"}`},
	{"INVALID_FIELD", `{"tenant_id":" bad","name":"N"}`},
	{"INVALID_ENVELOPE", `{"tenant_id":"bad","name":"N"}`, "ce-specversion", "1.0", "ce-id", "1", "ce-type", "tenant.deleted"},
	{"UNKNOWN_WORKSPACE", `{"tenant_id":"bad","name":"N","workspace_id":"ws-none"}`},
}

func TestAThousandEventsThroughFaultsLoseNothing(t *testing.T) {
	onBoth(t, testAThousandEventsThroughFaultsLoseNothing)
}

func testAThousandEventsThroughFaultsLoseNothing(t *testing.T) {
	w := start(t, options{faults: []string{
		"on=create rate=0.1 status=503 retry-after=1", "on=create rate=0.025 drop=before", "on=create rate=0.025 drop=after",
	}})
	terminated, err := w.nc.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.PAPERMAP." + mainConsumer)
	w.must(err)
	tenants := names("good", 1000-len(poison))
	bad := map[string][]string{} // by stream sequence
	for i, tenant := range tenants {
		if i%99 == 0 {
			p := poison[len(bad)]
			bad[strconv.FormatUint(w.publish(events.TypeTenantCreated, p[1], p[2:]...), 10)] = p
		}
		w.create(tenant)
	}
	if len(bad) != len(poison) {
		t.Fatalf("published %d of %d bad payloads", len(bad), len(poison))
	}
	eventually(t, 2*soon, func() error {
		if err := w.settled(); err != nil {
			return err
		}
		return w.are(repo.Active, tenants...)()
	})

	for _, letter := range w.dead() {
		h := letter.Header
		p, ok := bad[h.Get("Papermap-Stream-Sequence")]
		if !ok {
			t.Errorf("dead letter of a good event, or a second one: %v", h)
			continue
		}
		delete(bad, h.Get("Papermap-Stream-Sequence"))
		if string(letter.Data) != p[1] || h.Get("Papermap-Error-Code") != p[0] || h.Get("Papermap-Attempts") != "1" || h.Get("Papermap-Side-Effect") != "none" || h.Get("Papermap-Error") == "" {
			t.Errorf("dead letter of %v: %q %v", p, letter.Data, h)
		}
	}
	for _, p := range bad {
		t.Errorf("no dead letter of %v", p)
	}
	for range poison { // the server's own word that each was delivered once
		msg, err := terminated.NextMsg(soon)
		w.must(err)
		var advisory struct {
			Deliveries int `json:"deliveries"`
		}
		w.must(json.Unmarshal(msg.Data, &advisory))
		if advisory.Deliveries != 1 {
			t.Errorf("terminated after %d deliveries: %s", advisory.Deliveries, msg.Data)
		}
	}
	for n := range w.workers {
		if !strings.Contains(w.logs.String(), fmt.Sprintf(`"msg":"created a dashboard","worker":%d,`, n)) {
			t.Errorf("worker %d had no share of the work", n)
		}
	}
	lost := 0
	for _, r := range w.requests("create") {
		if !strings.HasPrefix(r.TenantID, "good-") {
			t.Errorf("a bad payload reached the API: %+v", r)
		}
		if r.Status == 0 {
			lost++
		}
	}
	uncertain, err := w.db.UncertainAttempts(t.Context())
	w.must(err)
	if len(uncertain) != lost || lost == 0 {
		t.Errorf("%d requests were lost, %d attempts are uncertain", lost, len(uncertain))
	}
	if more := len(w.sim.Dashboards()) - len(tenants); more < 0 || more > lost {
		t.Errorf("%d dashboards more than tenants", more)
	}
}

// step is an event and its time in minutes.
type step struct {
	eventType string
	minute    int
}

func TestStateFollowsFromTheEventsTimesInEveryOrder(t *testing.T) {
	onBoth(t, testStateFollowsFromTheEventsTimesInEveryOrder)
}

func testStateFollowsFromTheEventsTimesInEveryOrder(t *testing.T) {
	const created, suspended, resumed, deleted = events.TypeTenantCreated, events.TypeTenantSuspended, events.TypeTenantResumed, events.TypeTenantDeleted
	w := start(t, options{})
	type tenant struct {
		id        string
		steps     []step
		status    repo.Status
		dashboard bool
	}
	var tenants []tenant
	for i, c := range []struct {
		steps     []step
		status    repo.Status
		dashboard bool // there must be one, whatever the order
	}{
		{[]step{{created, 1}}, repo.Active, true},
		{[]step{{suspended, 1}}, repo.Suspended, false},
		{[]step{{deleted, 1}}, repo.Deleted, false},
		{[]step{{created, 1}, {deleted, 2}}, repo.Deleted, false},
		{[]step{{created, 1}, {deleted, 1}}, repo.Deleted, false},
		{[]step{{deleted, 1}, {created, 2}}, repo.Active, true},
		{[]step{{created, 1}, {suspended, 2}}, repo.Suspended, true},
		{[]step{{suspended, 1}, {created, 2}}, repo.Suspended, true},
		{[]step{{created, 1}, {suspended, 2}, {resumed, 3}}, repo.Active, true},
		{[]step{{created, 1}, {suspended, 2}, {resumed, 2}}, repo.Suspended, true},
		{[]step{{created, 1}, {deleted, 2}, {created, 3}}, repo.Active, true},
		{[]step{{suspended, 1}, {deleted, 2}, {created, 3}}, repo.Active, true},
		{[]step{{created, 1}, {deleted, 2}, {created, 3}, {suspended, 4}}, repo.Suspended, true},
	} {
		for n, order := range permutations(c.steps) {
			tenants = append(tenants, tenant{fmt.Sprintf("t-%d-%d", i, n), order, c.status, c.dashboard})
		}
	}
	began := time.Now().Add(-time.Hour)
	for round := range 4 { // the two consumers run beside each other: only a settled round is before the next
		for _, tenant := range tenants {
			if round < len(tenant.steps) {
				s := tenant.steps[round]
				w.at(began.Add(time.Duration(s.minute)*time.Minute), s.eventType, tenant.id)
			}
		}
		eventually(t, soon, w.settled)
	}
	for _, tenant := range tenants {
		m := w.mapping(tenant.id)
		if m.Status != tenant.status || tenant.dashboard && m.DashboardID == "" {
			t.Errorf("%v: status %s, dashboard %q; want %s", tenant.steps, m.Status, m.DashboardID, tenant.status)
		}
	}
	if n := len(w.dead()); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func permutations(list []step) [][]step {
	if len(list) < 2 {
		return [][]step{list}
	}
	var all [][]step
	for i, first := range list {
		for _, rest := range permutations(slices.Delete(slices.Clone(list), i, i+1)) {
			all = append(all, append([]step{first}, rest...))
		}
	}
	return all
}

func TestATenantWhoseCreateHangsDelaysNobody(t *testing.T) {
	onBoth(t, testATenantWhoseCreateHangsDelaysNobody)
}

func testATenantWhoseCreateHangsDelaysNobody(t *testing.T) {
	w := start(t, options{
		config: func(c *worker.Config) { c.Concurrency, c.Timeout, c.Grace = 4, worker.MaxTimeout, 100*time.Millisecond },
		faults: []string{"tenant=hangs delay=1m"},
	})
	w.create("hangs")
	others := names("other", 50)
	w.create(others...)
	for _, p := range poison { // nor do these
		w.publish(events.TypeTenantCreated, p[1], p[2:]...)
	}
	late := names("late", 50)
	w.create(late...)
	eventually(t, soon, w.are(repo.Active, others[:20]...))
	if s := w.status("hangs"); s != repo.Creating { // its request has timed out
		t.Errorf("the tenant whose create hangs is %s: the others waited for it", s)
	}
	eventually(t, soon, w.are(repo.Active, append(others, late...)...))
}
