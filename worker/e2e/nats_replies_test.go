package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A caller chooses the subject of its answer, and a NATS server does not ask whether the caller
// might publish there: the answer is the responder's. These tests hold what keeps a chosen reply
// subject from streams and from the JetStream API, and why the files of docs/nats give or refuse
// some rights.

var craftedReplies = []string{
	"$JS.API.STREAM.PURGE.PAPERMAP", "$JS.API.STREAM.DELETE.PAPERMAP", "$JS.API.STREAM.DELETE.PAPERMAP_DEAD",
	"$JS.API.STREAM.MSG.DELETE.PAPERMAP",
	"$JS.API.CONSUMER.DELETE.PAPERMAP.papermap-worker", "$JS.API.CONSUMER.CREATE.PAPERMAP.papermap-worker",
	"$JS.API.STREAM.CREATE.PAPERMAP", "$JS.API.STREAM.UPDATE.PAPERMAP",
	"papermap.events.tenant.created", "papermap.events.usage.sync", "papermap.events.dashboard.created",
	"papermap.dead.tenant.created", "papermap.dead.x", "papermap.rpc.embed-token", "$SRV.PING",
	"$SYS.REQ.SERVER.PING",
	"_INBOX_worker.x", "_INBOXES.x", "_INBOX", "INBOX.x",
}

// workersOwn are those where the worker itself may publish.
var workersOwn = []string{
	"$JS.API.CONSUMER.CREATE.PAPERMAP.papermap-worker", "$JS.API.STREAM.CREATE.PAPERMAP",
	"$JS.API.STREAM.UPDATE.PAPERMAP", "$JS.API.CONSUMER.DELETE.PAPERMAP.papermap-worker",
	"papermap.events.dashboard.created", "papermap.dead.tenant.created",
	"papermap.events.tenant.created", "papermap.events.usage.sync",
}

// natsState is everything of JetStream that a crafted reply could change: streams, messages,
// consumers, calls of the API.
func natsState(t *testing.T, s *server.Server) string {
	t.Helper()
	info, err := s.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true, Config: true})
	must(t, err)
	var lines []string
	for _, a := range info.AccountDetails {
		for _, stream := range a.Streams {
			line := fmt.Sprintf("%s in %s: %v, messages %d to %d (%d), consumers", stream.Name, a.Name,
				stream.Config.Subjects, stream.State.FirstSeq, stream.State.LastSeq, stream.State.Msgs)
			var consumers []string
			for _, c := range stream.Consumer {
				consumers = append(consumers, fmt.Sprintf("%s %v", c.Name, c.Config.FilterSubjects))
			}
			slices.Sort(consumers)
			lines = append(lines, line+" "+strings.Join(consumers, ", "))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// natsWatch subscribes, and returns when the server knows of it.
func natsWatch(t *testing.T, nc *nats.Conn, subject string) *nats.Subscription {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	if err == nil {
		err = nc.Flush()
	}
	must(t, err)
	return sub
}

// natsSeen counts what the server has delivered to the subscription up to now.
func natsSeen(t *testing.T, nc *nats.Conn, sub *nats.Subscription) int {
	t.Helper()
	must(t, nc.Flush())
	n, _, err := sub.Pending()
	must(t, err)
	return n
}

// healthCheck matches the audit of what the worker asks to check its account, streams and consumers.
var healthCheck = regexp.MustCompile(`"subject":"\$JS\.API\.(INFO"|(STREAM|CONSUMER)\.INFO\.)`)

func TestNATSCraftedRepliesReachNoStreamAndNoAPI(t *testing.T) {
	t.Parallel()
	readme := readFile(t, "docs/nats/README.md")
	list := "`" + strings.Join(craftedReplies, "` `") + "`"
	if !strings.Contains(strings.ReplaceAll(readme, "\n", " "), list) {
		t.Errorf("docs/nats/README.md does not list what is tried:\n%s", list)
	}
	for name, c := range map[string]struct {
		file, worker, publisher, backend, inspector string
		prefixes                                    []string
	}{
		"no permissions": {}, // the worker's own rule
		"permissions of one account": {"server.conf", "worker", "publisher", "backend", "inspector",
			[]string{"_INBOX_backend", "_INBOX_tenant.{tenant}"}},
		"permissions of four accounts": {"accounts.conf", "worker", "publisher", "backend", "inspector", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := startNATS(t, c.file)
			inspector := natsDial(t, s, c.inspector)
			out := natsWatch(t, inspector, "papermap.events.dashboard.created")
			j := startNATSJob(t, s, c.worker, c.prefixes...)
			j.run(t, natsDial(t, s, c.publisher), natsDial(t, s, c.backend))
			nextDashboard(t, out)
			nextDashboard(t, out)

			before := natsState(t, s)
			var silent []*nats.Subscription
			for _, subject := range []string{"$JS.EVENT.ADVISORY.>", "papermap.events.>", "papermap.dead.>",
				"_INBOX_worker.x", "_INBOXES.>", "_INBOX", "INBOX.>"} {
				silent = append(silent, natsWatch(t, inspector, subject))
			}
			requests := natsWatch(t, inspector, "papermap.rpc.>")
			caller := natsDial(t, s, c.backend)
			bodies := []string{`{"tenant_id":"org-123"}`, `{"tenant_id":"org-999"}`, `{}`, ``}
			sent := 0
			for _, endpoint := range []string{"papermap.rpc.embed-token", "papermap.rpc.dashboard"} {
				for _, reply := range craftedReplies {
					for _, body := range bodies {
						must(t, caller.PublishRequest(endpoint, reply, []byte(body)))
						sent++
					}
				}
				reply := ask(t, caller, endpoint, `{"tenant_id":"org-123"}`)
				if !strings.Contains(string(reply.Data), "dashboard_id") {
					t.Errorf("an honest request after them: %s", reply.Data)
				}
				sent++
			}
			if c.file != "" {
				pingWithReplies(t, s)
			}
			j.stop()
			for _, sub := range silent {
				for range natsSeen(t, inspector, sub) {
					m, err := sub.NextMsg(time.Second)
					must(t, err)
					if !healthCheck.Match(m.Data) {
						t.Errorf("a message on %s: %s %q", sub.Subject, m.Subject, m.Data)
					}
				}
			}
			// there an answer may come back as a request, by the import
			if n := natsSeen(t, inspector, requests); n != sent && c.file != "accounts.conf" {
				t.Errorf("%d requests arrived, %d were sent", n, sent)
			}
			if after := natsState(t, s); after != before {
				t.Errorf("JetStream before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// pingWithReplies has every role send $SRV.PING, which the micro library answers on any subject:
// permissions are all that there is.
func pingWithReplies(t *testing.T, s *server.Server) {
	t.Helper()
	for _, role := range []string{"publisher", "backend", "tenant-org-123", "observer", "operator"} {
		nc := natsDial(t, s, role)
		for _, reply := range craftedReplies {
			if role == "operator" && slices.Contains(workersOwn, reply) {
				continue // it can have the worker write where the worker may; README.md says so
			}
			must(t, nc.PublishRequest("$SRV.PING", reply, nil))
		}
		must(t, nc.Flush())
	}
	pingWorker(t, natsDial(t, s, "operator"))
}

// publishWithReply publishes events with a chosen reply subject, which gets the stream's publish
// ack.
func publishWithReply(t *testing.T, s *server.Server, replies ...string) {
	t.Helper()
	publisher := natsDial(t, s, "publisher")
	for _, reply := range replies {
		m := &nats.Msg{Subject: "papermap.events.tenant.created", Reply: reply, Data: []byte("{}")}
		must(t, publisher.PublishMsg(m))
	}
	ask(t, publisher, "papermap.events.tenant.created", "{}") // stored behind them
}

// makeStreams makes the two streams with the worker's rights.
func makeStreams(t *testing.T, s *server.Server) {
	t.Helper()
	worker := natsDial(t, s, "worker")
	for name, subjects := range map[string]string{"PAPERMAP": "papermap.events.>",
		"PAPERMAP_DEAD": "papermap.dead.>"} {
		config := fmt.Sprintf(`{"name":%q,"subjects":[%q]}`, name, subjects)
		reply := ask(t, worker, "$JS.API.STREAM.CREATE."+name, config)
		if strings.Contains(string(reply.Data), `"error"`) {
			t.Fatalf("making %s: %s", name, reply.Data)
		}
	}
}

func TestNATSPublishAckPurgesUnlessServerIsStrict(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{true, false} {
		s := startNATS(t, "server.conf", func(o *server.Options) { o.NoJetStreamStrict = !strict })
		makeStreams(t, s)
		inspector := natsDial(t, s, "inspector")
		calls := natsWatch(t, inspector, "$JS.EVENT.ADVISORY.API")
		// the ack's "seq" reads as "purge up to"
		publishWithReply(t, s, "", "", "$JS.API.STREAM.PURGE.PAPERMAP")
		if _, err := calls.NextMsg(5 * time.Second); err != nil {
			t.Fatalf("the API was not called: %v", err)
		}
		if state := natsState(t, s); strings.Contains(state, "messages 1 to 4") != strict {
			t.Errorf("strict %v:\n%s", strict, state)
		}
	}
}

func TestNATSPublishAckReachesStreamsOfItsAccount(t *testing.T) {
	t.Parallel()
	for file, reached := range map[string]bool{"server.conf": true, "accounts.conf": false} {
		s := startNATS(t, file)
		makeStreams(t, s)
		inspector := natsDial(t, s, "inspector")
		dead := natsWatch(t, inspector, "papermap.dead.>")
		publishWithReply(t, s, "papermap.dead.tenant.created")
		if n := natsSeen(t, inspector, dead); (n == 1) != reached {
			t.Errorf("%s: %d messages among the dead letters, reached should be %v", file, n, reached)
		}
	}
}

// This is why the observer of server.conf may neither pull nor acknowledge, and why the operator is
// trusted with the account.
func TestNATSPullOrAckRightCanDeleteStreams(t *testing.T) {
	t.Parallel()
	for right, subject := range map[string]string{"pull": "$JS.API.CONSUMER.MSG.NEXT.PAPERMAP.c",
		"acknowledge": "$JS.ACK.PAPERMAP.c.1.1.1.1.0"} {
		s := startNATS(t, "server.conf", func(o *server.Options) {
			o.Users = append(o.Users, &server.User{
				Username: "with one right", Password: "x", Account: o.Users[0].Account,
				Permissions: &server.Permissions{
					Publish: &server.SubjectPermission{Allow: []string{subject}},
				},
			})
		})
		makeStreams(t, s)
		publishWithReply(t, s)
		inspector := natsDial(t, s, "inspector")
		deleted := natsWatch(t, inspector, "$JS.EVENT.ADVISORY.STREAM.DELETED.PAPERMAP_DEAD")
		ask(t, inspector, "$JS.API.CONSUMER.DURABLE.CREATE.PAPERMAP.c",
			`{"stream_name":"PAPERMAP","config":{"durable_name":"c","ack_policy":"explicit"}}`)
		if right == "acknowledge" {
			ask(t, inspector, "$JS.API.CONSUMER.MSG.NEXT.PAPERMAP.c", "")
		}
		nc, err := nats.Connect(s.ClientURL(), nats.UserInfo("with one right", "x"), nats.Timeout(patience))
		must(t, err)
		defer nc.Close()
		for range 2 { // the second pull finds no message, and gets an empty body
			body := map[string]string{"pull": `{"batch":1,"no_wait":true}`}[right]
			must(t, nc.PublishRequest(subject, "$JS.API.STREAM.DELETE.PAPERMAP_DEAD", []byte(body)))
		}
		must(t, nc.Flush())
		if _, err := deleted.NextMsg(5 * time.Second); err != nil {
			t.Errorf("%s: the stream was not deleted (%v): the server has learnt, and README.md can say less",
				right, err)
		}
	}
}

func TestNATSObserverAccountReachesOnlyItsConsumer(t *testing.T) {
	t.Parallel()
	s := startNATS(t, "accounts.conf")
	makeStreams(t, s)
	publishWithReply(t, s)
	makeObserver(t, natsDial(t, s, "operator"), `"ack_policy":"explicit"`)
	worker := natsDial(t, s, "worker")
	for range 3 {
		ask(t, worker, "papermap.events.dashboard.created", "{}")
	}
	observer := natsDial(t, s, "observer")
	const next = "papermap.js.CONSUMER.MSG.NEXT.PAPERMAP.dashboard-observer"
	before := natsState(t, s)
	m := ask(t, observer, next, "")
	if m.Subject != "papermap.events.dashboard.created" {
		t.Fatalf("pulled %v", m)
	}
	for _, reply := range craftedReplies {
		for _, subject := range []string{m.Reply, next} {
			must(t, observer.PublishRequest(subject, reply, nil))
		}
		must(t, observer.PublishRequest(next, reply, []byte(`{"batch":1,"no_wait":true}`)))
	}
	ask(t, observer, next, `{"batch":1,"no_wait":true}`) // behind them, and answered
	if after := natsState(t, s); after != before {
		t.Errorf("JetStream before:\n%s\nafter:\n%s", before, after)
	}
}

// This is why accounts.conf keeps callers and publishers in accounts of their own.
func TestNATSAccountImportingBothLetsCallersPublish(t *testing.T) {
	t.Parallel()
	for _, importsBoth := range []bool{false, true} {
		conf := readFile(t, "docs/nats/accounts.conf")
		text := conf
		if importsBoth {
			const export = `{service: "papermap.events.tenant.deleted", accounts: [PUBLISHERS`
			first := regexp.MustCompile(`(?s)  CALLERS \{.*?    imports: \[\n`).FindString(text)
			text = strings.Replace(text, export, export+", CALLERS", 1)
			text = strings.Replace(text, first,
				first+`{service: {account: PAPERMAP, subject: "papermap.events.tenant.deleted"}}`+"\n", 1)
		}
		s := startNATS(t, tempFile(t, "accounts.conf", text))
		inspector := natsDial(t, s, "inspector")
		published := natsWatch(t, inspector, "papermap.events.>")
		worker, caller := natsDial(t, s, "worker"), natsDial(t, s, "tenant-org-123")
		echoTokenRequests(t, worker)
		const subject = "papermap.rpc.embed-token.org-123"
		must(t, caller.PublishRequest(subject, "papermap.events.tenant.deleted", nil))
		ask(t, caller, subject, "")
		if n := natsSeen(t, inspector, published); (n == 1) != importsBoth {
			t.Errorf("imports both %v: %d events", importsBoth, n)
		}
	}
}
