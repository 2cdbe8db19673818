package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
)

// natsLog is the worker's log, to wait for a line and to read.
type natsLog struct {
	mu    sync.Mutex
	text  strings.Builder
	grown chan struct{}
}

func (l *natsLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.grown <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *natsLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *natsLog) wait(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	for !strings.Contains(l.String(), text) {
		select {
		case <-l.grown:
		case <-ctx.Done():
			t.Fatalf("the worker never logged %q, but:\n%s", text, l)
		}
	}
}

// natsJob is a worker that runs on a server, with those who use it.
type natsJob struct {
	ctx    context.Context
	server *server.Server
	config serveConfig
	log    *natsLog
	stop   func() // drains the worker; everything that it published has then reached the server
}

// startNATSJob runs the worker as its role, with the reply prefixes that the file wants; without a role on a bare server.
func startNATSJob(t *testing.T, s *server.Server, role string, replyPrefixes ...string) *natsJob {
	t.Helper()
	p, err := startParts(t.TempDir(), 0, 0, simulator.Usage{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	j := &natsJob{ctx: ctx, server: s, config: p.config, log: &natsLog{grown: make(chan struct{}, 1)}}
	j.config.bus = j.options(role)
	j.config.bus.Wait = true
	j.config.worker.ReplyPrefixes = replyPrefixes
	working, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- serve(working, j.config, slog.New(slog.NewTextHandler(j.log, nil))) }()
	j.stop = sync.OnceFunc(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("the worker failed: %v", err)
		}
	})
	t.Cleanup(j.stop)
	j.log.wait(ctx, t, "stream=PAPERMAP_DEAD")
	return j
}

// options are those of a role on the job's server.
func (j *natsJob) options(role string) events.Options {
	o := j.config.bus
	o.URL, o.Wait, o.Name = j.server.ClientURL(), false, "test of "+role
	if role != "" {
		o.User, o.Password, o.InboxPrefix = role, natsPassword(role), natsRoles[role].inbox
	}
	return o
}

// bus connects as a role, on the job's server or another one.
func (j *natsJob) bus(t *testing.T, role string, other ...*server.Server) *events.Bus {
	t.Helper()
	o := j.options(role)
	for _, s := range other {
		o.URL = s.ClientURL()
	}
	bus, err := events.Connect(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("connecting as %s: %v", role, err)
	}
	t.Cleanup(func() { bus.Close(context.Background()) })
	return bus
}

// publish publishes an event as a role and returns when the stream has stored it.
func (j *natsJob) publish(t *testing.T, bus *events.Bus, eventType, data string) {
	t.Helper()
	for {
		_, err := bus.Publish(j.ctx, events.Outgoing{Type: eventType, Data: []byte(data)})
		if err == nil {
			return
		}
		if !errors.Is(err, jetstream.ErrNoStreamResponse) || pause(j.ctx, 20*time.Millisecond) != nil { // interest has not come as far yet
			t.Fatalf("publishing %s: %v", eventType, err)
		}
	}
}

// run has the worker do every kind of its work once: two dashboards, tokens, a suspension.
func (j *natsJob) run(t *testing.T, publisher, backend *events.Bus) {
	t.Helper()
	for _, tenant := range []string{"org-123", "org-999"} {
		j.publish(t, publisher, events.TypeTenantCreated, fmt.Sprintf(`{"tenant_id":%q,"name":"Acme Corp"}`, tenant))
		if err := waitActive(j.ctx, backend, tenant); err != nil {
			t.Fatal(err)
		}
		if token, err := requestToken(j.ctx, backend, tenant, 0); err != nil || token.Token == "" {
			t.Fatalf("token %+v, error %v", token, err)
		}
	}
	j.publish(t, publisher, events.TypeTenantSuspended, `{"tenant_id":"org-999"}`)
	for {
		_, err := requestToken(j.ctx, backend, "org-999", 0)
		var refused *events.ServiceError
		if errors.As(err, &refused) && refused.Code == "TENANT_SUSPENDED" {
			break
		}
		if err != nil || pause(j.ctx, 10*time.Millisecond) != nil {
			t.Fatalf("waiting for the suspension: %v", err)
		}
	}
}

// deadLetter publishes an event that cannot be handled and has the operator find it.
func (j *natsJob) deadLetter(t *testing.T, publisher, operator *events.Bus) {
	t.Helper()
	j.publish(t, publisher, events.TypeTenantDeleted, `{"tenant":"is missing"}`)
	for {
		dead, err := operator.DeadLetters(j.ctx, events.DeadFilter{}, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(dead) == 1 && dead[0].Type == events.TypeTenantDeleted {
			break
		}
		if err := pause(j.ctx, 10*time.Millisecond); err != nil || len(dead) > 0 {
			t.Fatalf("dead letters %+v, want the one event (%v)", dead, err)
		}
	}
}

// clean stops the worker and fails the test if the server ever refused it something.
func (j *natsJob) clean(t *testing.T) {
	t.Helper()
	j.stop()
	for line := range strings.Lines(j.log.String()) {
		if strings.Contains(strings.ToLower(line), "permissions violation") || strings.Contains(line, "NATS reported an error") || strings.Contains(line, "level=ERROR") {
			t.Errorf("the worker's rights are not enough: %s", line)
		}
	}
}

// nextDashboard returns the tenant of the next dashboard.created.
func nextDashboard(t *testing.T, sub *nats.Subscription) string {
	t.Helper()
	m, err := sub.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatalf("waiting for dashboard.created: %v", err)
	}
	if m.Subject != "papermap.events.dashboard.created" {
		t.Fatalf("got an event on %s", m.Subject)
	}
	_, after, _ := strings.Cut(string(m.Data), `"tenant_id":"`)
	tenant, _, _ := strings.Cut(after, `"`)
	return tenant
}

func TestNATSEachRoleOfOneAccountDoesItsWork(t *testing.T) {
	for name, flags := range map[string]map[string]bool{"as it is": nil, "acks in the coming form": {"js_ack_fc_v2": true}} {
		t.Run(name, func(t *testing.T) {
			s := startNATS(t, "server.conf", func(o *server.Options) { o.FeatureFlags = flags })
			j := startNATSJob(t, s, "worker", "_INBOX_backend", "_INBOX_tenant")

			operator, observer := natsDial(t, s, "operator"), natsDial(t, s, "observer")
			live := natsWatch(t, observer, "papermap.events.dashboard.*")
			makeObserver(t, operator, `"ack_policy":"none","deliver_subject":"papermap.observer.dashboard"`)
			publisher := j.bus(t, "publisher")
			j.run(t, publisher, j.bus(t, "backend"))
			j.deadLetter(t, publisher, j.bus(t, "operator"))

			durable := natsWatch(t, observer, "papermap.observer.dashboard") // late, and misses nothing
			for _, sub := range []*nats.Subscription{live, durable} {
				if first, second := nextDashboard(t, sub), nextDashboard(t, sub); first != "org-123" || second != "org-999" {
					t.Errorf("%s told of %s and %s", sub.Subject, first, second)
				}
			}
			pingWorker(t, operator)
			if err := observer.LastError(); err != nil {
				t.Errorf("observer: %v", err)
			}
			j.clean(t)
		})
	}
}

// makeObserver makes the consumer dashboard-observer as README tells.
func makeObserver(t *testing.T, operator *nats.Conn, how string) {
	t.Helper()
	reply, err := operator.Request("$JS.API.CONSUMER.CREATE.PAPERMAP.dashboard-observer.papermap.events.dashboard.*",
		[]byte(`{"stream_name":"PAPERMAP","config":{"durable_name":"dashboard-observer","filter_subject":"papermap.events.dashboard.*",`+how+`}}`), 5*time.Second)
	if err != nil || strings.Contains(string(reply.Data), `"error"`) {
		t.Fatalf("making the observer's consumer: %v, %v", reply, err)
	}
}

func pingWorker(t *testing.T, operator *nats.Conn) {
	t.Helper()
	reply, err := operator.Request("$SRV.PING", nil, 5*time.Second)
	if err != nil || !strings.Contains(string(reply.Data), `"name":"papermap-worker"`) {
		t.Errorf("$SRV.PING as operator: %v, %v", reply, err)
	}
}

func TestNATSEachRoleOfFourAccountsDoesItsWork(t *testing.T) {
	s := startNATS(t, "accounts.conf")
	j := startNATSJob(t, s, "worker")
	operator, observer := natsDial(t, s, "operator"), natsDial(t, s, "observer")
	live := natsWatch(t, observer, "papermap.events.dashboard.*")
	makeObserver(t, operator, `"ack_policy":"explicit"`)
	publisher := j.bus(t, "publisher")
	j.run(t, publisher, j.bus(t, "backend"))
	j.deadLetter(t, publisher, j.bus(t, "operator"))
	nextDashboard(t, live)

	js, err := jetstream.NewWithAPIPrefix(observer, "papermap.js")
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.Consumer(j.ctx, "PAPERMAP", "dashboard-observer")
	if err != nil {
		t.Fatal(err)
	}
	batch, err := consumer.Fetch(2, jetstream.FetchMaxWait(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for msg := range batch.Messages() {
		if err := msg.DoubleAck(j.ctx); err != nil {
			t.Errorf("acknowledging %s: %v", msg.Subject(), err)
		}
	}
	info, err := consumer.Info(j.ctx)
	if err != nil || info.AckFloor.Consumer != 2 || info.NumPending != 0 {
		t.Errorf("the observer's consumer: %+v, %v; want both events acknowledged", info, err)
	}
	pingWorker(t, operator)
	if err := observer.LastError(); err != nil {
		t.Errorf("observer: %v", err)
	}
	j.clean(t)
}

func TestNATSALeafNodePassesOnItsRolesWorkAndNoMore(t *testing.T) {
	hub := startNATS(t, "server.conf")
	j := startNATSJob(t, hub, "worker", "_INBOX_backend", "_INBOX_tenant")
	v, err := hub.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("LEAF_URL", fmt.Sprintf(`"nats-leaf://leaf:%s@127.0.0.1:%d"`, natsPassword("leaf"), v.LeafNode.Port))
	leaf := startNATS(t, "leaf.conf") // with the inspector, who has all rights at the leaf

	backend := j.bus(t, "backend", leaf)
	answered := func() error {
		_, err := requestToken(j.ctx, backend, "org-unknown", 0)
		var refused *events.ServiceError
		if errors.As(err, &refused) && refused.Code == "TENANT_NOT_FOUND" {
			return nil
		}
		return fmt.Errorf("got %w", err)
	}
	for err := answered(); err != nil; err = answered() { // until the leaf knows of the worker
		if pause(j.ctx, 10*time.Millisecond) != nil {
			t.Fatalf("no answer over the leaf: %v", err)
		}
	}
	atHub, intruder := natsDial(t, hub, "inspector"), natsDial(t, leaf, "inspector")
	out := natsWatch(t, atHub, "papermap.events.dashboard.created")
	j.run(t, j.bus(t, "publisher", leaf), backend)
	nextDashboard(t, out)
	nextDashboard(t, out)

	// Whoever has taken over the leaf can send what its two roles can, and nothing else …
	var sent, got []*nats.Subscription
	for _, subject := range []string{
		"papermap.rpc.embed-token.org-123", "papermap.events.dashboard.held", "papermap.dead.tenant.created", "papermap.observer.dashboard", "$SRV.INFO",
		"_INBOX_worker.x",
	} {
		sent = append(sent, natsWatch(t, atHub, subject))
	}
	before := natsState(t, hub)
	for _, sub := range sent {
		if err := intruder.Publish(sub.Subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, call := range []string{"INFO", "DELETE"} { // these are counted in the state
		if err := intruder.Publish("$JS.API.STREAM."+call+".PAPERMAP", nil); err != nil {
			t.Fatal(err)
		}
	}
	// … and get nothing but the answers to them.
	for _, subject := range []string{"papermap.events.dashboard.>", "papermap.rpc.dashboard", "_INBOX_worker.>", "_INBOX_operator.>", "$SRV.>"} {
		got = append(got, natsWatch(t, intruder, subject))
	}
	if err := answered(); err != nil { // the hub has now seen all that
		t.Fatal(err)
	}
	if after := natsState(t, hub); after != before {
		t.Errorf("JetStream before:\n%s\nafter:\n%s", before, after)
	}
	j.publish(t, j.bus(t, "publisher"), events.TypeTenantCreated, `{"tenant_id":"org-hub","name":"Of the hub"}`)
	if err := waitActive(j.ctx, j.bus(t, "backend"), "org-hub"); err != nil {
		t.Error(err)
	}
	pingWorker(t, natsDial(t, hub, "operator"))
	if err := answered(); err != nil { // behind all that the hub may have sent
		t.Fatal(err)
	}
	for _, sub := range sent {
		if n := natsSeen(t, atHub, sub); n > 0 {
			t.Errorf("%d messages on %s came from the leaf", n, sub.Subject)
		}
	}
	for _, sub := range got {
		if n := natsSeen(t, intruder, sub); n > 0 {
			t.Errorf("%d messages on %s came to the leaf", n, sub.Subject)
		}
	}
	j.clean(t)
}

func TestNATSAnOperatorIsToldATenantsStoryWithoutTheStreamThatItMayNotRead(t *testing.T) {
	j := startNATSJob(t, startNATS(t, "server.conf"), "worker", "_INBOX_backend", "_INBOX_tenant")
	publisher := j.bus(t, "publisher")
	j.publish(t, publisher, events.TypeTenantCreated, `{"tenant_id":"acme","name":"Acme"}`)
	j.publish(t, publisher, events.TypeTenantSuspended, `{"tenant_id":"acme","reason":7}`)
	env := []string{
		"DATABASE_URL=" + j.config.database, "NATS_URL=" + j.server.ClientURL(), "NATS_USER=operator", "NATS_PASSWORD=" + natsPassword("operator"),
		"NATS_INBOX_PREFIX=" + natsRoles["operator"].inbox,
	}
	eventually(t, 40*time.Second, func() error {
		p := start(t, env, "tenants", "show", "acme")
		if code := p.wait(t, 20*time.Second); code != 0 {
			t.Fatalf("exit code %d: %s", code, p.text())
		}
		for _, want := range []string{`It has dashboard \S+\.\n→ It has 1 dead letters: `, "attempt +created ", "dead letter +tenant.suspended ", "Left out: the stream's events: .* a user who may not read it"} {
			if !matches(want, p.text()) {
				return fmt.Errorf("it does not say %q:\n%s", want, p.text())
			}
		}
		if strings.Contains(p.text(), "Left out: dead letters") {
			return errors.New(p.text())
		}
		return nil
	})
}
