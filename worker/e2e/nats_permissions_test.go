package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// These tests load the files of docs/nats into a real server, with free ports and a temporary
// store, and let every role do its work there, and try the work of the others.

// natsRoles are the users of the files, each with its inbox prefix and the variable of its
// password.
var natsRoles = map[string]struct{ inbox, variable string }{
	"worker":          {"_INBOX_worker", "WORKER_PASSWORD"},
	"worker-headless": {"_INBOX_worker", ""}, // has the worker's password
	"publisher":       {"_INBOX_publisher", "PUBLISHER_PASSWORD"},
	"backend":         {"_INBOX_backend", "BACKEND_PASSWORD"},
	"tenant-org-123":  {"_INBOX_tenant.org-123", "ORG_123_PASSWORD"},
	"operator":        {"_INBOX_operator", "OPERATOR_PASSWORD"},
	"observer":        {"_INBOX_observer", "OBSERVER_PASSWORD"},
	"leaf":            {"", "LEAF_PASSWORD"},
	// is in no file: the test's own, without limits, in the account PAPERMAP
	"inspector": {"_INBOX_inspector", ""},
}

func natsPassword(role string) string {
	return "password-of-" + strings.TrimSuffix(role, "-headless")
}

// startNATS runs a server with a file of docs/nats or at an absolute path; without a file it has
// JetStream and asks for no password.
func startNATS(t *testing.T, file string, change ...func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{JetStream: true}
	if file != "" {
		var err error
		if !filepath.IsAbs(file) {
			file = filepath.Join("docs", "nats", file)
		}
		if o, err = server.ProcessConfigFile(file); err != nil {
			t.Fatalf("loading %s: %v", file, err)
		}
	}
	for _, a := range o.Accounts {
		if a.Name == "PAPERMAP" {
			o.Users = append(o.Users, &server.User{Username: "inspector", Password: natsPassword("inspector"),
				Account: a})
		}
	}
	o.Host, o.Port, o.StoreDir, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, t.TempDir(), true, true
	if o.LeafNode.Port != 0 {
		o.LeafNode.Host, o.LeafNode.Port = "127.0.0.1", server.RANDOM_PORT
	}
	for _, f := range change {
		f(o)
	}
	s, err := server.NewServer(o)
	must(t, err)
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	return s
}

// natsDial connects as a role.
func natsDial(t *testing.T, s *server.Server, role string) *nats.Conn {
	t.Helper()
	// read with LastError
	options := []nats.Option{nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}
	if r := natsRoles[role]; role != "" {
		options = append(options, nats.UserInfo(role, natsPassword(role)), nats.CustomInboxPrefix(r.inbox))
	}
	nc, err := nats.Connect(s.ClientURL(), append(options, nats.Timeout(patience))...)
	if err != nil {
		t.Fatalf("connecting as %s: %v", role, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// natsAllowed does one thing, which the connection has not done before, and says whether the server
// allowed it.
func natsAllowed(t *testing.T, nc *nats.Conn, verb, subject string) bool {
	t.Helper()
	var err error
	refusal := fmt.Sprintf("Subscription to %q", subject)
	switch verb {
	case "publish":
		refusal = fmt.Sprintf("Publish to %q", subject)
		err = nc.Publish(subject, nil)
	case "subscribe":
		_, err = nc.SubscribeSync(subject)
	case "queue":
		refusal += ` using queue "q"`
		_, err = nc.QueueSubscribeSync(subject, "q")
	}
	if err == nil {
		err = nc.Flush() // a refusal comes before the answer to this
	}
	if err != nil {
		t.Fatalf("%s %s: %v", verb, subject, err)
	}
	err = nc.LastError()
	return !errors.Is(err, nats.ErrPermissionViolation) || !strings.HasSuffix(err.Error(), refusal)
}

// natsActions are what roles do and must not do, and who may in server.conf. accounts is who may in
// accounts.conf, where that differs.
var natsActions = []struct{ does, verb, subject, roles, accounts string }{
	{"publish an event in", "publish", "papermap.events.tenant.created",
		"worker worker-headless publisher operator", ""},
	{"", "publish", "papermap.events.tenant.suspended", "worker publisher operator", ""},
	{"", "publish", "papermap.events.tenant.resumed", "worker publisher operator", ""},
	{"", "publish", "papermap.events.tenant.deleted", "worker publisher operator", ""},
	{"", "publish", "papermap.events.usage.sync", "worker worker-headless publisher operator", ""},
	{"publish an event out", "publish", "papermap.events.dashboard.created", "worker worker-headless", ""},
	{"", "publish", "papermap.events.usage.synced", "worker worker-headless", ""},
	{"tell workers that a tenant has changed", "publish", "papermap.changed", "worker worker-headless", ""},
	{"hear of it", "subscribe", "papermap.changed", "worker worker-headless", ""},
	{"store a dead letter", "publish", "papermap.dead.tenant.created", "worker worker-headless", ""},
	{"request any tenant's token", "publish", "papermap.rpc.embed-token", "backend", ""},
	{"request org-123's token", "publish", "papermap.rpc.embed-token.org-123", "tenant-org-123", ""},
	{"request another tenant's", "publish", "papermap.rpc.embed-token.org-999", "", ""},
	{"request a mapping", "publish", "papermap.rpc.dashboard", "backend", ""},
	{"request usage", "publish", "papermap.rpc.usage", "backend", ""},
	{"find the worker with nats micro", "publish", "$SRV.PING", "operator", ""},
	{"", "publish", "$SRV.STATS.papermap-worker", "operator", ""},

	{"serve requests for tokens", "subscribe", "papermap.rpc.embed-token", "worker worker-headless", ""},
	{"", "queue", "papermap.rpc.embed-token", "worker worker-headless", ""},
	{"", "queue", "papermap.rpc.embed-token.*", "worker worker-headless", ""},
	{"", "queue", "papermap.rpc.embed-token.org-123", "worker worker-headless", ""},
	{"serve other requests", "queue", "papermap.rpc.dashboard", "worker worker-headless", ""},
	{"", "queue", "papermap.rpc.usage", "worker worker-headless", ""},
	{"", "subscribe", "papermap.rpc.>", "worker worker-headless", ""},
	{"pass for the worker in nats micro", "subscribe", "$SRV.PING", "worker worker-headless", ""},
	{"read the worker's inbox", "subscribe", "_INBOX_worker.>", "worker worker-headless", ""},
	{"read the publisher's inbox", "subscribe", "_INBOX_publisher.>", "publisher", ""},
	{"read the backend's inbox", "subscribe", "_INBOX_backend.>", "backend", ""},
	{"read org-123's inbox", "subscribe", "_INBOX_tenant.org-123.>", "tenant-org-123", ""},
	{"read another tenant's inbox", "subscribe", "_INBOX_tenant.org-999.>", "", ""},
	{"read the operator's inbox", "subscribe", "_INBOX_operator.>", "operator", ""},
	{"read any inbox", "subscribe", "_INBOX.>", "", ""},
	{"", "subscribe", "_INBOX_tenant.>", "", ""},
	{"", "subscribe", "_R_.>", "", ""},
	{"read the events out, live", "subscribe", "papermap.events.dashboard.*", "observer", ""},
	{"read the events out, durably", "subscribe", "papermap.observer.dashboard", "observer", "-"},
	{"", "publish", "papermap.js.CONSUMER.MSG.NEXT.PAPERMAP.dashboard-observer", "", "observer"},
	{"", "publish", "$JS.ACK.PAPERMAP.dashboard-observer.1.1.1.1.1", "", "observer"},
	{"read the events in", "subscribe", "papermap.events.tenant.*", "", ""},
	{"read dead letters, live", "subscribe", "papermap.dead.>", "", ""},
	{"read everything", "subscribe", "papermap.>", "", ""},
	{"", "subscribe", ">", "", ""},
	{"watch JetStream's advisories", "subscribe", "$JS.EVENT.ADVISORY.>", "", ""},

	{"look at a stream", "publish", "$JS.API.STREAM.INFO.PAPERMAP", "worker worker-headless operator", ""},
	{"", "publish", "$JS.API.STREAM.INFO.PAPERMAP_DEAD", "worker worker-headless operator", ""},
	{"", "publish", "$JS.API.STREAM.INFO.OTHER", "", ""},
	{"list streams", "publish", "$JS.API.STREAM.LIST", "operator", ""},
	{"look at consumers", "publish", "$JS.API.CONSUMER.INFO.PAPERMAP.papermap-worker",
		"worker worker-headless operator", ""},
	{"make the worker's streams", "publish", "$JS.API.STREAM.CREATE.PAPERMAP", "worker worker-headless", ""},
	{"make another stream", "publish", "$JS.API.STREAM.CREATE.OTHER", "", ""},
	{"change the worker's stream", "publish", "$JS.API.STREAM.UPDATE.PAPERMAP", "worker worker-headless", ""},
	{"purge a stream", "publish", "$JS.API.STREAM.PURGE.PAPERMAP", "", ""},
	{"", "publish", "$JS.API.STREAM.PURGE.PAPERMAP_DEAD", "", ""},
	{"delete a stream", "publish", "$JS.API.STREAM.DELETE.PAPERMAP", "", ""},
	{"read one event in", "publish", "$JS.API.STREAM.MSG.GET.PAPERMAP", "worker worker-headless", ""},
	{"read one dead letter", "publish", "$JS.API.STREAM.MSG.GET.PAPERMAP_DEAD", "worker operator", ""},
	{"delete one event in", "publish", "$JS.API.STREAM.MSG.DELETE.PAPERMAP", "", ""},
	{"delete one dead letter", "publish", "$JS.API.STREAM.MSG.DELETE.PAPERMAP_DEAD", "worker operator", ""},
	{"make the worker's consumers", "publish", "$JS.API.CONSUMER.CREATE.PAPERMAP.papermap-worker",
		"worker worker-headless", ""},
	{"", "publish", "$JS.API.CONSUMER.CREATE.PAPERMAP.papermap-worker-access", "worker worker-headless", ""},
	{"make the observer's consumer", "publish",
		"$JS.API.CONSUMER.CREATE.PAPERMAP.dashboard-observer.papermap.events.dashboard.*", "operator", ""},
	{"", "publish", "$JS.API.CONSUMER.CREATE.PAPERMAP.dashboard-observer", "worker", ""},
	{"remove it", "publish", "$JS.API.CONSUMER.DELETE.PAPERMAP.dashboard-observer", "worker operator", ""},
	{"make another consumer", "publish", "$JS.API.CONSUMER.CREATE.PAPERMAP.other", "worker", ""},
	{"", "publish", "$JS.API.CONSUMER.DURABLE.CREATE.PAPERMAP.other", "", ""},
	{"delete the worker's consumer", "publish", "$JS.API.CONSUMER.DELETE.PAPERMAP.papermap-worker",
		"worker", ""},
	{"take the worker's events", "publish", "$JS.API.CONSUMER.MSG.NEXT.PAPERMAP.papermap-worker",
		"worker worker-headless", ""},
	{"acknowledge them", "publish", "$JS.ACK.PAPERMAP.papermap-worker.1.1.1.1.1",
		"worker worker-headless", ""},
	{"", "publish", "$JS.ACK.hub.hash.PAPERMAP.papermap-worker.1.1.1.1.1.x", "worker worker-headless", ""},
	{"list dead letters", "publish", "$JS.API.CONSUMER.CREATE.PAPERMAP_DEAD.x", "worker operator", ""},
	{"", "publish", "$JS.API.CONSUMER.MSG.NEXT.PAPERMAP_DEAD.x", "worker operator", ""},
	{"", "publish", "$JS.API.CONSUMER.DELETE.PAPERMAP_DEAD.x", "worker operator", ""},
	{"write to the worker's inbox", "publish", "_INBOX_worker.x", "", ""},
	{"write to a caller's inbox", "publish", "_INBOX_backend.x", "worker worker-headless", "-"},
	{"", "publish", "_INBOX_tenant.org-123.x", "worker worker-headless", "-"},
	{"answer imported requests", "publish", "_R_.x", "", "worker worker-headless"},
	{"use the server's own account", "publish", "$SYS.REQ.SERVER.PING", "", ""},
}

func TestNATSPermissionsMatchDocumentation(t *testing.T) {
	t.Parallel()
	readme := readFile(t, "docs/nats/README.md")
	roles := []string{"worker", "worker-headless", "publisher", "backend", "tenant-org-123",
		"operator", "observer"}
	for _, file := range []string{"server.conf", "accounts.conf"} {
		t.Run(file, func(t *testing.T) {
			s := startNATS(t, file)
			table := "| in " + file + ", who may | | " + strings.Join(roles, " | ") +
				" |\n| --- | --- |" + strings.Repeat(" :-: |", len(roles)) + "\n"
			cells := make(map[string][]string) // by action
			for _, role := range roles {
				nc := natsDial(t, s, role)
				for _, a := range natsActions {
					want := a.roles
					if file == "accounts.conf" && a.accounts != "" {
						want = a.accounts
					}
					allowed := natsAllowed(t, nc, a.verb, a.subject)
					if allowed != slices.Contains(strings.Fields(want), role) {
						t.Errorf("%s: %s %s: allowed %v, want %v", role, a.verb, a.subject, allowed, !allowed)
					}
					key := a.verb + " " + a.subject
					cells[key] = append(cells[key], map[bool]string{true: "yes", false: "–"}[allowed])
				}
			}
			for _, a := range natsActions {
				table += fmt.Sprintf("| %s | %s `%s` | %s |\n", a.does, a.verb, a.subject,
					strings.Join(cells[a.verb+" "+a.subject], " | "))
			}
			t.Logf("\n%s", table)
			if !strings.Contains(readme+"\n", "\n"+table+"\n") {
				t.Errorf("docs/nats/README.md does not have this table; put it there")
			}
		})
	}
}

// echoTokenRequests answers tenants' requests for tokens, as the worker, with their subject.
func echoTokenRequests(t *testing.T, worker *nats.Conn) {
	t.Helper()
	_, err := worker.QueueSubscribe("papermap.rpc.embed-token.*", "q",
		func(m *nats.Msg) { _ = m.Respond([]byte(m.Subject)) })
	must(t, err)
	must(t, worker.Flush())
}

func TestNATSTenantCallerReachesOnlyItsTenant(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"server.conf", "accounts.conf"} {
		t.Run(file, func(t *testing.T) {
			s := startNATS(t, file)
			worker, caller := natsDial(t, s, "worker"), natsDial(t, s, "tenant-org-123")
			echoTokenRequests(t, worker)
			const own = "papermap.rpc.embed-token.org-123"
			if reply := ask(t, caller, own, ""); string(reply.Data) != own {
				t.Errorf("its own tenant: %s", reply.Data)
			}
			for _, subject := range []string{"papermap.rpc.embed-token.org-999",
				"papermap.rpc.embed-token.org-1234", "papermap.rpc.embed-token", "papermap.rpc.dashboard"} {
				reply, err := caller.Request(subject, []byte(`{"tenant_id":"org-123"}`), 100*time.Millisecond)
				if err == nil {
					t.Errorf("%s was answered: %s", subject, reply.Data)
				}
				if natsAllowed(t, caller, "publish", subject) {
					t.Errorf("%s was not refused", subject)
				}
			}
		})
	}
}
