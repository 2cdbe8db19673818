package proof_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
	"papermap-worker/worker/proof"
)

// run is a worker with everything around it, and what the test has seen of it.
type run struct {
	t       *testing.T
	system  proof.System
	sim     *simulator.Simulator
	bus     *events.Bus
	nc      *nats.Conn
	history proof.History
	logs    logs
}

type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (r *run) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// start starts a worker on the database at address, of that driver, with an API that has the faults.
func start(t *testing.T, driver, address, data string, faults ...string) *run {
	t.Helper()
	r := &run{t: t}
	ws := papermap.Workspace{
		ID: "ws-a", Key: papermap.KeyPair{ID: "ak_a", Secret: papermap.NewSecret("sk_canary_api")}, EmbedKey: papermap.KeyPair{ID: "ak_a_embed", Secret: papermap.NewSecret("sk_canary_embed")},
	}
	var rules []simulator.Fault
	for _, text := range faults {
		f, err := simulator.ParseFault(text)
		r.must(err)
		rules = append(rules, f)
	}
	r.sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{ws}, Faults: rules})
	api, err := simulator.Serve(r.sim, "127.0.0.1:0")
	r.must(err)
	t.Cleanup(api.Close)
	ws.APIURL = api.URL

	server, err := embedded.Start(filepath.Join(t.TempDir(), "jetstream"), 0)
	r.must(err)
	t.Cleanup(server.Close)
	r.nc, err = nats.Connect(server.URL())
	r.must(err)
	t.Cleanup(r.nc.Close)
	js, err := jetstream.New(r.nc)
	r.must(err)
	t.Cleanup(func() { schematest.CheckStream(t, js) })

	log := slog.New(slog.NewJSONHandler(&r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	subjects := events.Subjects{Prefix: "papermap"}
	r.bus, err = events.Connect(events.Options{
		URL: server.URL(), Subjects: subjects, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1, MaxAge: time.Hour, Wait: true,
	}, log)
	r.must(err)
	db, err := repo.Open(t.Context(), address)
	r.must(err)
	_, err = db.Migrate(t.Context())
	r.must(err)
	sql, err := sqlx.Open(driver, data)
	r.must(err)
	t.Cleanup(func() { _ = sql.Close() })

	w := worker.New(worker.Config{
		Workspaces: []papermap.Workspace{ws}, EmbedURL: api.URL + "/embedded/dashboard", Timeout: 2 * time.Second, TokenTTL: time.Hour, TokenMaxTTL: 2 * time.Hour,
		Concurrency: 16, MaxAttempts: 10, Grace: 20 * time.Second, Version: "0.0.0-test",
	}, db, r.bus, log)
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		r.bus.Close(context.Background())
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	r.system = proof.System{DB: sql, Repo: db, JetStream: js, Stream: "PAPERMAP", Subjects: subjects, Simulator: api.URL}
	r.history = proof.History{Workspaces: []papermap.Workspace{ws}, LongestLife: 2 * time.Hour}
	r.eventually(func() error {
		if s := w.State(t.Context()); !s.Ready {
			return fmt.Errorf("the worker is not ready: %v", s.Reasons)
		}
		return nil
	})
	return r
}

func (r *run) eventually(check func() error) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
		<-look.C
	}
}

// publish publishes p, as plain JSON unless it has an id or a time, and notes what the stream said.
func (r *run) publish(p proof.Published) {
	r.t.Helper()
	msg := r.message(p)
	ack, err := r.system.JetStream.PublishMsg(r.t.Context(), msg)
	r.must(err)
	p.Sequence = ack.Sequence
	r.history.Published = append(r.history.Published, p)
}

func (r *run) message(p proof.Published) *nats.Msg {
	msg := &nats.Msg{Subject: r.system.Subjects.Event(p.Type), Header: nats.Header{}, Data: p.Data}
	if p.EventID != "" {
		msg.Header = nats.Header{"ce-specversion": {"1.0"}, "ce-id": {p.EventID}, "ce-source": {"/test"}}
		if !p.Time.IsZero() {
			msg.Header["ce-time"] = []string{p.Time.UTC().Format(time.RFC3339Nano)}
		}
	}
	return msg
}

// about is an event of the type about a tenant.
func about(eventType, tenant string) proof.Published {
	return proof.Published{Type: eventType, Tenant: tenant, Data: fmt.Appendf(nil, `{"tenant_id":%q,"name":%q}`, tenant, tenant)}
}

// happened is the event with a time and an id of its own.
func happened(p proof.Published, when time.Time) proof.Published {
	p.EventID, p.Time = fmt.Sprint(p.Type, when.UnixNano()), when
	return p
}

func (r *run) ask(tenant string) proof.Token {
	r.t.Helper()
	token, err := proof.Ask(r.t.Context(), r.nc, r.system.Subjects, tenant)
	r.must(err)
	r.history.Tokens = append(r.history.Tokens, token)
	return token
}

func (r *run) quiet() {
	r.t.Helper()
	r.eventually(func() error { return proof.Quiet(r.t.Context(), r.system) })
}

func (r *run) collect() proof.History {
	r.t.Helper()
	r.history.Texts = map[string]string{"log": r.logs.String()}
	h, err := proof.Collect(r.t.Context(), r.system, r.history)
	r.must(err)
	return h
}

func TestARealRunKeepsItsPromisesOnSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "papermap.db")
	testRealRun(t, "sqlite3", "sqlite:"+path, "file:"+path+"?_busy_timeout=5000")
}

func TestARealRunKeepsItsPromisesOnPostgreSQL(t *testing.T) {
	address := pgtest.ForTest(t)
	testRealRun(t, "pgx", address, address)
}

func testRealRun(t *testing.T, driver, address, data string) {
	r := start(t, driver, address, data,
		"tenant=lost drop=after count=1", "tenant=busy status=429 retry-after=1 count=1", "tenant=bad status=422", "tenant=odd status=500 effect=true count=1")
	now := time.Now()
	created, suspended, resumed, deleted := events.TypeTenantCreated, events.TypeTenantSuspended, events.TypeTenantResumed, events.TypeTenantDeleted
	for _, p := range []proof.Published{
		about(created, "acme"), about(created, "acme"), about(created, "lost"), about(created, "busy"), about(created, "odd"), about(created, "bad"),
		about(created, "größe / %2E"),
		// Two tenants whose events come in the wrong order.
		happened(about(deleted, "again"), now.Add(-2*time.Minute)), happened(about(created, "again"), now.Add(-time.Minute)), happened(about(created, "again"), now.Add(-3*time.Minute)),
		happened(about(resumed, "hush"), now.Add(-3*time.Minute)), happened(about(suspended, "hush"), now.Add(-2*time.Minute)), happened(about(created, "hush"), now.Add(-4*time.Minute)),
		{Type: created, Data: []byte(`{"tenant_id":"x","tenant_id":"y","name":"Two"}`), Poison: true},
		{Type: suspended, Tenant: "nowhere", Data: []byte(`{"tenant_id":"nowhere","workspace_id":"ws-unknown"}`), Poison: true, EventID: "poison-1", Time: now},
		{Type: events.TypeUsageSync, Data: []byte(`{}`)},
	} {
		r.publish(p)
	}
	// The acknowledgement of one is lost, another never reaches the stream.
	lost := about(deleted, "gone")
	_, err := r.system.JetStream.PublishMsg(t.Context(), r.message(lost))
	r.must(err)
	r.history.Published = append(r.history.Published, lost, about(created, "never"))
	r.quiet()

	if token := r.ask("acme"); token.Text == "" {
		t.Fatalf("acme got no token: %+v", token)
	}
	if token := r.ask("hush"); token.Code != "TENANT_SUSPENDED" {
		t.Fatalf("hush is suspended, and got %+v", token)
	}
	r.publish(about(suspended, "acme"))
	r.quiet()
	m, err := r.system.Repo.Mapping(t.Context(), "acme")
	r.must(err)
	commit, ok := proof.Seen(m, time.Now())
	if !ok {
		t.Fatalf("acme is %s, not suspended", m.Status)
	}
	r.history.Commits = append(r.history.Commits, commit)
	if token := r.ask("acme"); token.Code != "TENANT_SUSPENDED" {
		t.Fatalf("acme is suspended, and got %+v", token)
	}
	r.publish(about(resumed, "acme"))
	r.publish(about(deleted, "lost"))
	r.publish(about(created, "lost"))
	r.quiet()
	r.ask("acme")

	// An operator replays a dead letter: it is an event more, of the same identity.
	dead := r.collect().Dead
	i := slices.IndexFunc(dead, func(d proof.Dead) bool { return d.Code == "API_REFUSED" })
	if i < 0 {
		t.Fatalf("there is no refused event among %d dead letters", len(dead))
	}
	replay := &nats.Msg{Subject: r.system.Subjects.Event(dead[i].Type), Data: dead[i].Data, Header: nats.Header{
		"Papermap-Event-Id": {dead[i].EventID}, "Papermap-Event-Time": {dead[i].EventTime},
	}}
	_, err = r.system.JetStream.PublishMsg(t.Context(), replay)
	r.must(err)
	r.quiet()

	h := r.collect()
	for _, v := range proof.Check(h) {
		t.Error(v)
	}
	// Check has nothing to say of what was not collected.
	if len(h.Published) != len(r.history.Published)+1 {
		t.Errorf("%d entries are published, want one more than %d: the replay", len(h.Published), len(r.history.Published))
	}
	for _, p := range h.Published {
		if (p.Tenant == "never") != p.StoredAt.IsZero() || (p.Sequence == 0) != p.StoredAt.IsZero() {
			t.Errorf("%s of %q is number %d, stored at %v", p.Type, p.Tenant, p.Sequence, p.StoredAt)
		}
	}
	r.complete(h)

	// What is true of this run is not true of one in which somebody tampered with the database.
	_, err = r.system.DB.ExecContext(t.Context(), "UPDATE tenant_dashboards SET dashboard_id = 'stolen' WHERE tenant_id = 'busy'")
	r.must(err)
	_, err = r.system.DB.ExecContext(t.Context(), "INSERT INTO tenant_usage VALUES ('ws-a', 'acme', '2026-04', '12.5', 3, '2026-05-01T00:00:00.000Z'), ('ws-a', 'acme', '2026-00', '1', 3, '2026-05-01T00:00:00.000Z')")
	r.must(err)
	found := map[string]string{}
	for _, v := range proof.Check(r.collect()) {
		found[v.Invariant] = v.Tenant
	}
	if len(found) != 3 || found[proof.DashboardExists] != "busy" || found[proof.CreatedProven] != "busy" || found[proof.UsageValid] != "acme" {
		t.Errorf("found %v", found)
	}
}

// complete holds what was collected against what each part says of itself.
func (r *run) complete(h proof.History) {
	r.t.Helper()
	same := func(what string, got, want any) {
		r.t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			r.t.Errorf("%s (- as they are, + as they were collected):\n%s", what, diff)
		}
	}
	same("requests", h.Requests, r.sim.Log())
	same("dashboards", h.Dashboards, r.sim.Dashboards())
	mappings, err := r.system.Repo.Mappings(r.t.Context(), "", "", 100)
	r.must(err)
	same("mappings", h.Mappings, mappings)
	attempts := map[string]repo.Attempt{}
	for _, m := range mappings {
		list, err := r.system.Repo.Attempts(r.t.Context(), m.TenantID)
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
	letters, err := r.bus.DeadLetters(r.t.Context(), events.DeadFilter{}, 100)
	r.must(err)
	for i := range letters {
		letters[i].Header, letters[i].TenantID = nil, "" // the one is kept beside it, the other is read out of the data
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
	if len(h.Mappings) != 9 || len(h.Dead) != 4 || len(h.Waiting) != 2 || len(h.Requests) < 12 || len(h.Outbox) < 9 {
		r.t.Errorf("collected %d mappings, %d dead letters, %d consumers, %d requests, %d rows of the outbox",
			len(h.Mappings), len(h.Dead), len(h.Waiting), len(h.Requests), len(h.Outbox))
	}
}

// What `tenants resolve --recreate` puts into the outbox is an event in, and among the events out as well.
func TestATenantThatIsCreatedAgainIsNoViolation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "papermap.db")
	r := start(t, "sqlite3", "sqlite:"+path, "file:"+path+"?_busy_timeout=5000")
	event := happened(about(events.TypeTenantCreated, "acme"), time.Now())
	claim, err := r.system.Repo.Begin(t.Context(), repo.Created{
		TenantID: "acme", WorkspaceID: "ws-a", Title: "Dashboard - acme", EventID: event.EventID, EventTime: event.Time, Message: "1",
	}, true)
	r.must(err)
	_, err = r.system.Repo.Fail(t.Context(), claim, repo.Failure{
		Result: repo.Result{Outcome: repo.Uncertain, Error: "no answer"}, Hold: true,
		HeldNotice: repo.Notice{
			EventID: "held", Type: events.TypeDashboardHeld, Data: fmt.Appendf(nil, `{"tenant_id":"acme","workspace_id":"ws-a","attempt":%q}`, claim.Attempt.ID),
		},
	})
	r.must(err)
	r.publish(event)
	r.quiet()
	_, err = r.system.Repo.Recreate(t.Context(), "acme", worker.CreatedAgain)
	r.must(err)
	r.eventually(func() error {
		m, err := r.system.Repo.Mapping(t.Context(), "acme")
		if err == nil && m.Status != repo.Active {
			err = fmt.Errorf("acme is %s", m.Status)
		}
		return err
	})
	r.quiet()
	h := r.collect()
	for _, v := range proof.Check(h) {
		t.Error(v)
	}
	var out []string
	for _, o := range h.Out {
		out = append(out, o.Type)
	}
	if want := []string{events.TypeDashboardHeld, events.TypeTenantCreated, events.TypeDashboardCreated}; !slices.Equal(out, want) || len(h.Published) != 2 {
		t.Errorf("events out %v, want %v; %d in, want 2", out, want, len(h.Published))
	}
}

func TestCollectRefusesAnEventThatTheHistoryDoesNotKnow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "papermap.db")
	r := start(t, "sqlite3", "sqlite:"+path, "file:"+path)
	_, err := r.system.JetStream.PublishMsg(t.Context(), r.message(about(events.TypeTenantDeleted, "stranger")))
	r.must(err)
	r.quiet()
	if _, err := proof.Collect(t.Context(), r.system, r.history); err == nil {
		t.Error("there is no error")
	} else if want := "reading stream PAPERMAP: event 1 (tenant.deleted): it is in the stream, but not in the history"; err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestQuietSaysWhatWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "papermap.db")
	r := start(t, "sqlite3", "sqlite:"+path, "file:"+path, "on=create status=429 retry-after=900")
	r.publish(about(events.TypeTenantCreated, "acme"))
	r.eventually(func() error {
		attempts, err := r.system.Repo.Attempts(t.Context(), "acme")
		if err == nil && (len(attempts) == 0 || attempts[0].Outcome == repo.Sent) {
			err = errors.New("it was not tried yet")
		}
		return err
	})
	if err := proof.Quiet(t.Context(), r.system); err == nil {
		t.Error("an event waits for its turn, and all is called quiet")
	}
	found := proof.Check(r.collect())
	if !slices.ContainsFunc(found, func(v proof.Violation) bool { return v.Invariant == proof.NothingWaits }) {
		t.Errorf("found %v", found)
	}
}
