package proof_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
	"papermap-worker/worker/proof"
)

// run is a system with one worker, and what the test has seen of it.
type run struct {
	*system
	history proof.History
}

// start starts a worker and waits until it consumes. The API has the faults.
func start(t *testing.T, name, database string, faults ...string) *run {
	t.Helper()
	r := &run{system: newSystem(t, name, database, 1, 1)}
	r.setFaults(faults...)
	p, err := r.startWorker("worker0")
	r.must(err)
	t.Cleanup(func() { p.terminate(t) })
	eventually(t, 20*time.Second, r.quiet)
	return r
}

// setFaults replaces the API's faults.
func (s *system) setFaults(texts ...string) {
	s.t.Helper()
	faults := make([]simulator.Fault, len(texts))
	for i, text := range texts {
		var err error
		faults[i], err = simulator.ParseFault(text)
		s.must(err)
	}
	s.sim.SetFaults(faults...)
}

// publish publishes p, as plain JSON unless it has an id, and records what the stream acknowledged.
func (r *run) publish(p proof.Published) {
	r.t.Helper()
	p.Sequence = r.send(p)
	r.history.Published = append(r.history.Published, p)
}

// send publishes p, of which the history knows nothing yet, and returns its sequence.
func (r *run) send(p proof.Published) uint64 {
	r.t.Helper()
	msg := &nats.Msg{Subject: subjects.Event(p.Type), Header: nats.Header{}, Data: p.Data}
	if p.EventID != "" {
		msg.Header = nats.Header{"ce-specversion": {"1.0"}, "ce-id": {p.EventID}, "ce-source": {"/test"}}
		if !p.Time.IsZero() {
			msg.Header["ce-time"] = []string{p.Time.UTC().Format(time.RFC3339Nano)}
		}
	}
	ack, err := r.js.PublishMsg(r.t.Context(), msg)
	r.must(err)
	return ack.Sequence
}

// about is an event of the type about a tenant.
func about(eventType, tenant string) proof.Published {
	data := fmt.Appendf(nil, `{"tenant_id":%q,"name":%q}`, tenant, tenant)
	return proof.Published{Type: eventType, Tenant: tenant, Data: data}
}

// eventAt is an event with a time and an id of its own.
func eventAt(when time.Time, eventType, tenant string) proof.Published {
	p := about(eventType, tenant)
	p.EventID, p.Time = fmt.Sprint(p.Type, when.UnixNano()), when
	return p
}

func (r *run) requestToken(tenant string) proof.Token {
	r.t.Helper()
	token, err := proof.RequestToken(r.t.Context(), r.nc, subjects, tenant)
	r.must(err)
	r.history.Tokens = append(r.history.Tokens, token)
	return token
}

func TestCheckAcceptsARealRunOnSQLite(t *testing.T) {
	t.Parallel()
	testRealRun(t, "real-sqlite", "")
}

func TestCheckAcceptsARealRunOnPostgreSQL(t *testing.T) {
	t.Parallel()
	testRealRun(t, "real-postgres", pgtest.Need(t, postgres))
}

func testRealRun(t *testing.T, name, database string) {
	r := start(t, name, database, "tenant=lost drop=after count=1",
		"tenant=busy status=429 retry-after=1 count=1",
		"tenant=bad status=422", "tenant=odd status=500 effect=true count=1")
	quiet := func() { eventually(t, time.Minute, r.quiet) }
	suspended, resumed := events.TypeTenantSuspended, events.TypeTenantResumed
	created, deleted := events.TypeTenantCreated, events.TypeTenantDeleted
	r.publishMixture()
	quiet()

	if token := r.requestToken("acme"); token.Text == "" {
		t.Fatalf("acme got no token: %+v", token)
	}
	if token := r.requestToken("hush"); token.Code != "TENANT_SUSPENDED" {
		t.Fatalf("hush is suspended, and got %+v", token)
	}
	r.publish(about(suspended, "acme"))
	quiet()
	m, err := r.db.Mapping(t.Context(), "acme")
	r.must(err)
	commit, ok := proof.Seen(m, time.Now())
	if !ok {
		t.Fatalf("acme is %s, not suspended", m.Status)
	}
	r.history.Commits = append(r.history.Commits, commit)
	if token := r.requestToken("acme"); token.Code != "TENANT_SUSPENDED" {
		t.Fatalf("acme is suspended, and got %+v", token)
	}
	r.publish(about(resumed, "acme"))
	r.publish(about(deleted, "lost"))
	r.publish(about(created, "lost"))
	quiet()
	r.requestToken("acme")

	// An operator replays a dead letter: it is an event more, of the same identity.
	dead := r.collect(r.history).Dead
	i := slices.IndexFunc(dead, func(d proof.Dead) bool { return d.Code == "API_REFUSED" })
	if i < 0 {
		t.Fatalf("there is no refused event among %d dead letters", len(dead))
	}
	replay := &nats.Msg{Subject: subjects.Event(dead[i].Type), Data: dead[i].Data, Header: nats.Header{
		"Papermap-Event-Id": {dead[i].EventID}, "Papermap-Event-Time": {dead[i].EventTime},
	}}
	_, err = r.js.PublishMsg(t.Context(), replay)
	r.must(err)
	quiet()

	h := r.check(r.history)
	// Check has nothing to say of what was not collected.
	if len(h.Published) != len(r.history.Published)+1 {
		t.Errorf("%d entries are published, want one more than %d: the replay", len(h.Published),
			len(r.history.Published))
	}
	for _, p := range h.Published {
		if (p.Tenant == "never") != p.StoredAt.IsZero() || (p.Sequence == 0) != p.StoredAt.IsZero() {
			t.Errorf("%s of %q is number %d, stored at %v", p.Type, p.Tenant, p.Sequence, p.StoredAt)
		}
	}
	r.compareParts(h)

	// The same run contradicts a database that was tampered with.
	for _, statement := range []string{
		"UPDATE tenant_dashboards SET dashboard_id = 'stolen' WHERE tenant_id = 'busy'",
		`INSERT INTO tenant_usage VALUES
			('ws-proof', 'acme', '2026-04', '12.5', 3, '2026-05-01T00:00:00.000Z'),
			('ws-proof', 'acme', '2026-00', '1', 3, '2026-05-01T00:00:00.000Z')`,
	} {
		_, err = r.sql.ExecContext(t.Context(), statement)
		r.must(err)
	}
	found := map[string]string{}
	for _, v := range proof.Check(r.collect(r.history)) {
		found[v.Invariant] = v.Tenant
	}
	want := map[string]string{
		proof.DashboardExists: "busy", proof.CreatedProven: "busy", proof.UsageValid: "acme",
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("tenants by invariant (-want +got):\n%s", diff)
	}
}

// publishMixture publishes good events in the wrong order, poison, and one whose acknowledgement is
// lost.
func (r *run) publishMixture() {
	now := time.Now()
	ago := func(minutes int) time.Time { return now.Add(-time.Duration(minutes) * time.Minute) }
	created, suspended := events.TypeTenantCreated, events.TypeTenantSuspended
	resumed, deleted := events.TypeTenantResumed, events.TypeTenantDeleted
	for _, p := range []proof.Published{
		about(created, "acme"), about(created, "acme"), about(created, "lost"), about(created, "busy"),
		about(created, "odd"), about(created, "bad"), about(created, "größe / %2E"),
		// Two tenants whose events come in the wrong order.
		eventAt(ago(2), deleted, "again"), eventAt(ago(1), created, "again"),
		eventAt(ago(3), created, "again"),
		eventAt(ago(3), resumed, "hush"), eventAt(ago(2), suspended, "hush"),
		eventAt(ago(4), created, "hush"),
		{Type: created, Data: []byte(`{"tenant_id":"x","tenant_id":"y","name":"Two"}`), Poison: true},
		{
			Type: suspended, Tenant: "nowhere",
			Data: []byte(`{"tenant_id":"nowhere","workspace_id":"ws-unknown"}`), Poison: true,
			EventID: "poison-1", Time: now,
		},
		{Type: events.TypeUsageSync, Data: []byte(`{}`)},
	} {
		r.publish(p)
	}
	// The acknowledgement of one is lost, another never reaches the stream.
	lost := about(deleted, "gone")
	r.send(lost)
	r.history.Published = append(r.history.Published, lost, about(created, "never"))
}

// compareParts compares what was collected with what each part reports itself.
func (r *run) compareParts(h proof.History) {
	r.t.Helper()
	same := func(what string, got, want any) {
		r.t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			r.t.Errorf("%s (- as they are, + as they were collected):\n%s", what, diff)
		}
	}
	mappings, err := r.db.Mappings(r.t.Context(), "", "", 100)
	r.must(err)
	same("mappings", h.Mappings, mappings)
	attempts := map[string]repo.Attempt{}
	for _, m := range mappings {
		list, err := r.db.Attempts(r.t.Context(), m.TenantID)
		r.must(err)
		for _, a := range list {
			attempts[a.ID] = a
		}
	}
	collected := map[string]repo.Attempt{}
	for _, a := range h.Attempts {
		collected[a.ID] = a
	}
	same("attempts", collected, attempts)
	var letters []events.DeadLetter
	r.must(r.withBus(func(ctx context.Context, bus *events.Bus) (err error) {
		return bus.EachDeadLetter(ctx, events.DeadFilter{}, 100, func(d events.DeadLetter) error {
			letters = append(letters, d)
			return nil
		})
	}))
	for i := range letters {
		// the one is kept beside it, the other is read out of the data
		letters[i].Header, letters[i].TenantID = nil, ""
	}
	var dead []events.DeadLetter
	for _, d := range h.Dead {
		dead = append(dead, d.DeadLetter)
	}
	same("dead letters", dead, letters)
	var rows, out []string
	for _, o := range h.Outbox {
		rows = append(rows, o.EventID)
		if o.SentAt.IsZero() {
			r.t.Errorf("%s %s was not sent", o.Type, o.EventID)
		}
	}
	for _, o := range h.Out {
		out = append(out, o.ID)
	}
	slices.Sort(rows)
	slices.Sort(out)
	same("events out", out, rows)
	if len(h.Mappings) != 9 || len(h.Dead) != 4 || len(h.Waiting) != 2 || len(h.Requests) < 12 ||
		len(h.Outbox) < 9 {
		r.t.Errorf("collected %d mappings, %d dead letters, %d consumers, %d requests, %d rows of the outbox",
			len(h.Mappings), len(h.Dead), len(h.Waiting), len(h.Requests), len(h.Outbox))
	}
}

// What `tenants resolve --recreate` puts into the outbox is an event in and an event out.
func TestCheckAcceptsATenantThatIsRecreated(t *testing.T) {
	t.Parallel()
	r := start(t, "recreated", "")
	event := eventAt(time.Now(), events.TypeTenantCreated, "acme")
	claim, err := r.db.Begin(t.Context(), repo.Created{
		TenantID: "acme", WorkspaceID: workspace.ID, Title: "Dashboard - acme", EventID: event.EventID,
		EventTime: event.Time, Message: "1",
	}, true)
	r.must(err)
	_, err = r.db.Fail(t.Context(), claim, repo.Failure{
		Result: repo.Result{Outcome: repo.OutcomeUnknown, Error: "no answer"}, Hold: true,
	}, func(repo.Mapping) (repo.OutboxEvent, error) {
		return repo.OutboxEvent{
			EventID: "held", Type: events.TypeDashboardHeld,
			Data: fmt.Appendf(nil, `{"tenant_id":"acme","workspace_id":"ws-proof","attempt":%q}`,
				claim.Attempt.ID),
		}, nil
	})
	r.must(err)
	r.publish(event)
	eventually(t, time.Minute, r.quiet)
	_, err = r.db.Recreate(t.Context(), "acme", worker.TenantCreatedAgain)
	r.must(err)
	eventually(t, time.Minute, func() error {
		m, err := r.db.Mapping(t.Context(), "acme")
		if err == nil && m.Status != repo.Active {
			err = fmt.Errorf("acme is %s", m.Status)
		}
		return err
	})
	eventually(t, time.Minute, r.quiet)
	h := r.check(r.history)
	var out []string
	for _, o := range h.Out {
		out = append(out, o.Type)
	}
	want := []string{events.TypeDashboardHeld, events.TypeTenantCreated, events.TypeDashboardCreated}
	if !slices.Equal(out, want) || len(h.Published) != 2 {
		t.Errorf("events out %v, want %v; %d in, want 2", out, want, len(h.Published))
	}
}

func TestCollectRefusesAnUnknownEvent(t *testing.T) {
	t.Parallel()
	r := start(t, "stranger", "")
	r.send(about(events.TypeTenantDeleted, "stranger"))
	eventually(t, time.Minute, r.quiet)
	want := "reading stream PAPERMAP: event 1 (tenant.deleted): it is in the stream, but not in the history"
	if _, err := proof.Collect(t.Context(), r.view(), r.history); fmt.Sprint(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestQuietReportsAWaitingEvent(t *testing.T) {
	t.Parallel()
	r := start(t, "waiting", "", "on=create status=429 retry-after=900")
	r.publish(about(events.TypeTenantCreated, "acme"))
	eventually(t, time.Minute, func() error {
		attempts, err := r.db.Attempts(t.Context(), "acme")
		if err == nil && (len(attempts) == 0 || attempts[0].Outcome == repo.OutcomeSent) {
			err = errors.New("it was not tried yet")
		}
		return err
	})
	if err := proof.Quiet(t.Context(), r.view()); err == nil {
		t.Error("an event waits for its turn, and all is called quiet")
	}
	found := proof.Check(r.collect(r.history))
	if !slices.ContainsFunc(found,
		func(v proof.Violation) bool { return v.Invariant == proof.NothingWaits }) {
		t.Errorf("found %v", found)
	}
}
