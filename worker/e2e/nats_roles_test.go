package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsJob is a worker that runs on a server, with its publishers and callers.
type natsJob struct {
	server *server.Server
	worker *process
	system *system // its simulator and database
	stop   func()  // drains the worker; everything that it published has then reached the server
}

// startNATSJob runs the worker as its role, with the reply prefixes that the file wants; without a
// role on a bare server.
func startNATSJob(t *testing.T, s *server.Server, role string, replyPrefixes ...string) *natsJob {
	t.Helper()
	j := &natsJob{server: s, system: newSystem(t)}
	env := append(j.system.env, j.env(role)...)
	env = append(env, "NATS_REPLY_PREFIXES="+strings.Join(replyPrefixes, ","), "LOG_LEVEL=info")
	j.worker = start(t, env, "serve")
	j.stop = sync.OnceFunc(func() { j.worker.stop(t) })
	j.worker.says(t, `"stream":"PAPERMAP_DEAD"`)
	return j
}

// env are the settings of NATS of a role on the job's server.
func (j *natsJob) env(role string) []string {
	return append(natsSettings(role), "NATS_URL="+j.server.ClientURL())
}

// natsSettings are those of a role, without the server.
func natsSettings(role string) []string {
	if role == "" {
		return nil
	}
	return []string{"NATS_USER=" + role, "NATS_PASSWORD=" + natsPassword(role),
		"NATS_INBOX_PREFIX=" + natsRoles[role].inbox}
}

// publishStored publishes an event and returns when the stream has stored it.
func publishStored(t *testing.T, nc *nats.Conn, eventType, data string) {
	t.Helper()
	eventually(t, func() error {
		ack, err := nc.Request("papermap.events."+eventType, []byte(data), 5*time.Second)
		if errors.Is(err, nats.ErrNoResponders) { // interest has not come as far yet
			return err
		}
		if err != nil || !strings.Contains(string(ack.Data), `"stream":"PAPERMAP"`) {
			t.Fatalf("publishing %s: %v, %v", eventType, ack, err)
		}
		return nil
	})
}

// refusedWith returns nil when a request for the tenant's token is refused with the code.
func refusedWith(nc *nats.Conn, tenant, code string) error {
	reply, err := nc.Request("papermap.rpc.embed-token", fmt.Appendf(nil, `{"tenant_id":%q}`, tenant),
		5*time.Second)
	if err == nil && !strings.Contains(string(reply.Data), code) {
		err = fmt.Errorf("not refused with %s: %s", code, reply.Data)
	}
	return err
}

// run has the worker do every kind of its work once: two dashboards, tokens, a suspension.
func (j *natsJob) run(t *testing.T, publisher, backend *nats.Conn) {
	t.Helper()
	for _, tenant := range []string{"org-123", "org-999"} {
		event := fmt.Sprintf(`{"tenant_id":%q,"name":"Acme Corp"}`, tenant)
		publishStored(t, publisher, "tenant.created", event)
		eventually(t, func() error { return hasStatus(backend, tenant, "active") })
		reply := ask(t, backend, "papermap.rpc.embed-token", fmt.Sprintf(`{"tenant_id":%q}`, tenant))
		if !strings.Contains(string(reply.Data), `"token":"`) {
			t.Fatalf("no token but %s", reply.Data)
		}
	}
	publishStored(t, publisher, "tenant.suspended", `{"tenant_id":"org-999"}`)
	eventually(t, func() error { return refusedWith(backend, "org-999", "TENANT_SUSPENDED") })
}

// deadLetter publishes an event that cannot be handled and has the operator find it.
func (j *natsJob) deadLetter(t *testing.T, publisher *nats.Conn) {
	t.Helper()
	publishStored(t, publisher, "tenant.deleted", `{"tenant":"is missing"}`)
	list := prints(t, `"type": "tenant.deleted"`, j.env("operator"), "dead", "list", "--json")
	if strings.Count(list, `"type": "`) != 1 {
		t.Errorf("dead letters %s, want the one event", list)
	}
}

// imports has the operator import a tenant, with a dashboard and without.
func (j *natsJob) imports(t *testing.T) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tenants.csv")
	must(t, os.WriteFile(file, []byte("tenant_id,name,dashboard_id\norg-i1,One,\norg-i2,,dash-i2\n"), 0o600))
	text := run(t, append(j.env("operator"), "DATABASE_URL="+j.system.database), "import", file)
	if !strings.Contains(text, "Done: 2 rows: created 1, adopted 1,") ||
		strings.Contains(text, "ermissions") {
		t.Errorf("the import printed %s", text)
	}
}

// clean stops the worker and fails the test if the server ever refused it something.
func (j *natsJob) clean(t *testing.T) {
	t.Helper()
	j.stop()
	for line := range strings.Lines(j.worker.text()) {
		if strings.Contains(strings.ToLower(line), "permissions violation") ||
			strings.Contains(line, "NATS reported an error") || strings.Contains(line, `"level":"ERROR"`) {
			t.Errorf("the worker's rights are not enough: %s", line)
		}
	}
}

func TestNATSRolesWorkInOneAccount(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string]map[string]bool{"as it is": nil,
		"acks in the coming form": {"js_ack_fc_v2": true}} {
		t.Run(name, func(t *testing.T) {
			s := startNATS(t, "server.conf", func(o *server.Options) { o.FeatureFlags = flags })
			j := startNATSJob(t, s, "worker", "_INBOX_backend", "_INBOX_tenant.{tenant}")

			operator, observer := natsDial(t, s, "operator"), natsDial(t, s, "observer")
			live := natsWatch(t, observer, "papermap.events.dashboard.*")
			makeObserver(t, operator, `"ack_policy":"none","deliver_subject":"papermap.observer.dashboard"`)
			publisher := natsDial(t, s, "publisher")
			j.run(t, publisher, natsDial(t, s, "backend"))
			j.deadLetter(t, publisher)

			durable := natsWatch(t, observer, "papermap.observer.dashboard") // late, and misses nothing
			for _, sub := range []*nats.Subscription{live, durable} {
				if first, second := nextDashboard(t, sub), nextDashboard(t, sub); first != "org-123" ||
					second != "org-999" {
					t.Errorf("%s announced %s and %s", sub.Subject, first, second)
				}
			}
			j.imports(t)
			pingWorker(t, operator)
			if err := observer.LastError(); err != nil {
				t.Errorf("observer: %v", err)
			}
			j.clean(t)
		})
	}
}

// makeObserver makes the consumer dashboard-observer as README says.
func makeObserver(t *testing.T, operator *nats.Conn, how string) {
	t.Helper()
	const subject = "$JS.API.CONSUMER.CREATE.PAPERMAP.dashboard-observer.papermap.events.dashboard.*"
	config := `"durable_name":"dashboard-observer","filter_subject":"papermap.events.dashboard.*",` + how
	request := `{"stream_name":"PAPERMAP","config":{` + config + `}}`
	if reply := ask(t, operator, subject, request); strings.Contains(string(reply.Data), `"error"`) {
		t.Fatalf("making the observer's consumer: %s", reply.Data)
	}
}

func pingWorker(t *testing.T, operator *nats.Conn) {
	t.Helper()
	if reply := ask(t, operator, "$SRV.PING", ""); !matches(`"name":"papermap-worker"`, string(reply.Data)) {
		t.Errorf("$SRV.PING as operator: %s", reply.Data)
	}
}

func TestNATSRolesWorkInFourAccounts(t *testing.T) {
	t.Parallel()
	s := startNATS(t, "accounts.conf")
	j := startNATSJob(t, s, "worker")
	operator, observer := natsDial(t, s, "operator"), natsDial(t, s, "observer")
	live := natsWatch(t, observer, "papermap.events.dashboard.*")
	makeObserver(t, operator, `"ack_policy":"explicit"`)
	publisher := natsDial(t, s, "publisher")
	j.run(t, publisher, natsDial(t, s, "backend"))
	j.deadLetter(t, publisher)
	nextDashboard(t, live)

	js, err := jetstream.NewWithAPIPrefix(observer, "papermap.js")
	must(t, err)
	consumer, err := js.Consumer(t.Context(), "PAPERMAP", "dashboard-observer")
	must(t, err)
	batch, err := consumer.Fetch(2, jetstream.FetchMaxWait(5*time.Second))
	must(t, err)
	for msg := range batch.Messages() {
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Errorf("acknowledging %s: %v", msg.Subject(), err)
		}
	}
	info, err := consumer.Info(t.Context())
	if err != nil || info.AckFloor.Consumer != 2 || info.NumPending != 0 {
		t.Errorf("the observer's consumer: %+v, %v; want both events acknowledged", info, err)
	}
	pingWorker(t, operator)
	if err := observer.LastError(); err != nil {
		t.Errorf("observer: %v", err)
	}
	j.clean(t)
}

func TestNATSLeafNodePassesOnlyItsRoles(t *testing.T) {
	t.Parallel()
	hub := startNATS(t, "server.conf")
	j := startNATSJob(t, hub, "worker", "_INBOX_backend", "_INBOX_tenant.{tenant}")
	v, err := hub.Varz(nil)
	must(t, err)
	conf := readFile(t, "docs/nats/leaf.conf")
	url := fmt.Sprintf(`"nats-leaf://leaf:%s@127.0.0.1:%d"`, natsPassword("leaf"), v.LeafNode.Port)
	file := tempFile(t, "leaf.conf", strings.ReplaceAll(conf, "$LEAF_URL", url))
	leaf := startNATS(t, file) // with the inspector, which has all rights at the leaf

	backend := natsDial(t, leaf, "backend")
	answered := func() error { return refusedWith(backend, "org-unknown", "TENANT_NOT_FOUND") }
	eventually(t, answered) // when the leaf knows of the worker
	atHub, intruder := natsDial(t, hub, "inspector"), natsDial(t, leaf, "inspector")
	out := natsWatch(t, atHub, "papermap.events.dashboard.created")
	j.run(t, natsDial(t, leaf, "publisher"), backend)
	nextDashboard(t, out)
	nextDashboard(t, out)

	// Whoever takes over the leaf can send what its two roles can, and nothing else …
	var sent, got []*nats.Subscription
	for _, subject := range []string{
		"papermap.rpc.embed-token.org-123", "papermap.events.dashboard.held", "papermap.dead.tenant.created",
		"papermap.observer.dashboard", "$SRV.INFO", "_INBOX_worker.x",
	} {
		sent = append(sent, natsWatch(t, atHub, subject))
	}
	before := natsState(t, hub)
	for _, sub := range sent {
		must(t, intruder.Publish(sub.Subject, nil))
	}
	for _, call := range []string{"INFO", "DELETE"} { // these are counted in the state
		must(t, intruder.Publish("$JS.API.STREAM."+call+".PAPERMAP", nil))
	}
	// … and get nothing but the answers to them.
	for _, subject := range []string{"papermap.events.dashboard.>", "papermap.rpc.dashboard",
		"_INBOX_worker.>", "_INBOX_operator.>", "$SRV.>"} {
		got = append(got, natsWatch(t, intruder, subject))
	}
	must(t, answered()) // the hub has now seen all that
	if after := natsState(t, hub); after != before {
		t.Errorf("JetStream before:\n%s\nafter:\n%s", before, after)
	}
	publishStored(t, natsDial(t, hub, "publisher"), "tenant.created",
		`{"tenant_id":"org-hub","name":"Of the hub"}`)
	atHubBackend := natsDial(t, hub, "backend")
	eventually(t, func() error { return hasStatus(atHubBackend, "org-hub", "active") })
	pingWorker(t, natsDial(t, hub, "operator"))
	must(t, answered()) // behind all that the hub may have sent
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

func TestNATSOperatorGetsTenantReportWithoutStream(t *testing.T) {
	t.Parallel()
	j := startNATSJob(t, startNATS(t, "server.conf"), "worker", "_INBOX_backend", "_INBOX_tenant.{tenant}")
	publisher := natsDial(t, j.server, "publisher")
	publishStored(t, publisher, "tenant.created", `{"tenant_id":"acme","name":"Acme"}`)
	publishStored(t, publisher, "tenant.suspended", `{"tenant_id":"acme","reason":7}`)
	env := append(j.env("operator"), "DATABASE_URL="+j.system.database)
	text := prints(t, `(?s)It has dashboard \S+\.\n→ Dead letters: 1. .*dead letter +tenant.suspended `,
		env, "tenants", "show", "acme")
	if !matches("attempt +created ", text) || strings.Contains(text, "Left out: dead letters") ||
		!matches("Left out: the stream's events: .* a user who may not read it", text) {
		t.Errorf("it prints\n%s", text)
	}
}
