package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/papermap/simulator"
	"papermap-worker/worker"
)

// All environments, two processes for each, take half a minute:
// go test ./worker/e2e -run TestReadiness -v -args -verdicts
var verdicts = flag.Bool("verdicts", false, "compare doctor, readiness and log in all broken environments")

// verdict is what doctor, `/readyz` and serve must say of an environment.
type verdict int

const (
	unready verdict = iota // doctor fails, /readyz is 503
	paused                 // doctor fails, /readyz is 200 with a reason: tokens and suspensions still work
	refused                // doctor fails, serve exits with 1
)

// brokenEnvironment is a worker's environment that somebody has broken.
type brokenEnvironment struct {
	name   string
	slow   bool                                         // only with -verdicts
	before func(t *testing.T, s *system) (env []string) // before the worker starts
	after  func(t *testing.T, s *system)                // when it is ready; nil: it never is
	want   verdict
	words  string // what all three say
}

// stream makes the stream of events with its subjects and a change.
func stream(change func(*jetstream.StreamConfig)) func(*testing.T, *system) []string {
	return func(t *testing.T, s *system) []string {
		config := jetstream.StreamConfig{Name: "PAPERMAP", Discard: jetstream.DiscardNew}
		for _, name := range []string{"tenant.created", "tenant.suspended", "tenant.resumed",
			"tenant.deleted",
			"usage.sync", "usage.synced", "usage.threshold", "dashboard.created", "dashboard.failed",
			"dashboard.held"} {
			config.Subjects = append(config.Subjects, subjects.Event(name))
		}
		change(&config)
		return withStream(config)(t, s)
	}
}

// withRights runs the worker as a user with these permissions on a server of its own.
func withRights(p server.Permissions) func(*testing.T, *system) []string {
	return func(t *testing.T, _ *system) []string {
		s := startNATS(t, "", func(o *server.Options) {
			o.Users = []*server.User{{Username: "worker", Password: "worker", Permissions: &p}}
		})
		return []string{"NATS_URL=" + s.ClientURL(), "NATS_USER=worker", "NATS_PASSWORD=worker"}
	}
}

func deny(publish ...string) server.Permissions {
	return server.Permissions{Publish: &server.SubjectPermission{Deny: publish}}
}

// onPostgres runs the worker on a migrated PostgreSQL database in which statements were executed.
// %s in them stands for the database's name.
func onPostgres(statements ...string) func(*testing.T, *system) []string {
	return func(t *testing.T, s *system) []string {
		s.usePostgres(t)
		run(t, s.env, "migrate")
		db := openSQL(t, s.database)
		var name string
		must(t, db.Get(&name, "SELECT current_database()"))
		for _, statement := range statements {
			db.MustExec(strings.ReplaceAll(statement, "%s", name))
		}
		return []string{"DATABASE_URL=" + s.database}
	}
}

// migrated runs statements in a migrated SQLite database.
func migrated(statements ...string) func(*testing.T, *system) []string {
	return func(t *testing.T, s *system) []string {
		run(t, s.env, "migrate")
		for _, statement := range statements {
			openSQL(t, s.database).MustExec(statement)
		}
		return nil
	}
}

// fault gives the API a fault.
func fault(rules ...simulator.Fault) func(*testing.T, *system) []string {
	return func(_ *testing.T, s *system) []string {
		s.sim.SetFaults(rules...)
		return nil
	}
}

// createTenant makes the worker call the API.
func createTenant(t *testing.T, s *system) {
	for i := range 12 {
		publishCreated(t, s.rawJetStream(t), fmt.Sprintf("org-%d", i))
	}
}

var brokenEnvironments = []brokenEnvironment{
	// NATS
	{name: "NATS unreachable", slow: true,
		before: with("NATS_URL=nats://127.0.0.1:1"), words: "no connection to NATS"},
	{name: "NATS refuses the password", before: func(t *testing.T, _ *system) []string {
		s := startNATS(t, "server.conf")
		return []string{"NATS_URL=" + s.ClientURL(), "NATS_USER=worker", "NATS_PASSWORD=" + passwordCanary}
	}, words: "Authorization Violation"},
	{name: "NATS too old", slow: true, before: func(t *testing.T, s *system) []string {
		to := strings.TrimPrefix(s.nats.URL(), "nats://")
		return []string{"NATS_URL=nats://" + relay(t, "127.0.0.1:0", to, func(greeting string) string {
			return strings.Replace(greeting, `"version":"`+server.VERSION+`"`, `"version":"2.9.25"`, 1)
		})}
	}, words: "the NATS server has version 2.9.25, and the worker needs 2.10 or newer"},
	{name: "NATS gone later", slow: true,
		before: with(), after: func(_ *testing.T, s *system) { s.nats.Close() },
		words: "no connection to NATS"},
	{name: "no JetStream", before: func(t *testing.T, _ *system) []string {
		s := startNATS(t, "", func(o *server.Options) { o.JetStream = false })
		return []string{"NATS_URL=" + s.ClientURL()}
	}, words: "is not enabled for this account"},
	{name: "streams that are missing and may not be made", slow: true,
		before: with("NATS_MANAGE_STREAMS=false"),
		words:  "it does not exist, and NATS_MANAGE_STREAMS is false"},
	{name: "stream without a subject", slow: true, before: func(t *testing.T, s *system) []string {
		stream(func(c *jetstream.StreamConfig) { c.Subjects = c.Subjects[1:] })(t, s)
		return []string{"NATS_MANAGE_STREAMS=false"}
	}, words: "it does not take subject papermap.events.tenant.created"},
	{name: "stream that drops events of a subject",
		before: stream(func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }),
		words:  "max_msgs_per_subject is 1"},
	{name: "stream of another retention", slow: true,
		before: stream(func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }),
		words:  "its retention is Interest"},
	{name: "stream that drops old events", slow: true,
		before: stream(func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }),
		words:  "discard is old"},
	{name: "stream without acknowledgements", slow: true,
		before: stream(func(c *jetstream.StreamConfig) { c.NoAck = true }), words: "no_ack is set"},
	{name: "stream with rollups", slow: true,
		before: stream(func(c *jetstream.StreamConfig) { c.AllowRollup = true }),
		words:  "allow_rollup_hdrs is set"},
	{name: "stream that changes subjects", slow: true,
		before: stream(func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{
				Source: "papermap.events.usage.sync", Destination: "papermap.events.usage.async"}
		}), words: "subject_transform is set"},
	{name: "stream that is full", slow: true, before: func(t *testing.T, s *system) []string {
		stream(func(c *jetstream.StreamConfig) { c.MaxMsgs = 1 })(t, s)
		publishCreated(t, s.rawJetStream(t), "org-1")
		return nil
	}, words: "it is full, and accepts nothing more"},
	{name: "stream of small messages", slow: true,
		before: stream(func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1024 }),
		words:  "max_msg_size is 1024 bytes"},
	{name: "another stream has the events",
		before: withStream(jetstream.StreamConfig{
			Name: "ALL", Subjects: []string{"papermap.events.tenant.*"}}),
		words: "stream ALL takes papermap.events.tenant.created"},
	{name: "consumer that is paused", before: func(t *testing.T, s *system) []string {
		stream(func(*jetstream.StreamConfig) {})(t, s)
		until := time.Now().Add(time.Hour)
		_, err := s.rawJetStream(t).CreateConsumer(t.Context(), "PAPERMAP", jetstream.ConsumerConfig{
			Durable: "papermap-worker", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: -1,
			AckWait: 15 * time.Second, PauseUntil: &until,
			FilterSubjects: []string{"papermap.events.tenant.created", "papermap.events.usage.sync"},
		})
		must(t, err)
		return nil
	}, words: "it is paused for"},
	{name: "no right to publish events out", before: withRights(deny("papermap.events.dashboard.created")),
		words: "this user may not publish papermap.events.dashboard.created: events out wait"},
	{name: "no right to publish dead letters", slow: true,
		before: withRights(deny("papermap.dead.tenant.created")),
		words:  "this user may not publish papermap.dead.tenant.created"},
	{name: "no right to take requests for tokens", slow: true, before: withRights(server.Permissions{
		Subscribe: &server.SubjectPermission{Deny: []string{"papermap.rpc.embed-token"}},
	}), words: "this user may not subscribe to papermap.rpc.embed-token: callers get no responders"},
	{name: "no right to answer", slow: true, before: func(t *testing.T, s *system) []string {
		return append(withRights(deny("_INBOX_backend.>"))(t, s), "NATS_REPLY_PREFIXES=_INBOX_backend")
	}, words: "this user may not answer to _INBOX_backend.>"},
	{name: "no right to make the stream", slow: true, before: withRights(deny("$JS.API.STREAM.CREATE.>")),
		words: "it does not exist, and this user may not create it"},
	{name: "account that requires max_bytes", slow: true, before: func(t *testing.T, _ *system) []string {
		s := startNATS(t, "")
		must(t, s.GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
			"": {MaxMemory: -1, MaxStore: 1 << 30, MaxStreams: -1, MaxConsumers: -1,
				MaxBytesRequired: true}}))
		return []string{"NATS_URL=" + s.ClientURL()}
	}, words: "the account requires max_bytes"},
	{name: "account that is full", slow: true, before: func(t *testing.T, s *system) []string {
		n := startNATS(t, "")
		must(t, n.GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
			"": {MaxMemory: -1, MaxStore: 1024, MaxStreams: -1, MaxConsumers: -1}}))
		return []string{"NATS_URL=" + n.ClientURL()}
	}, words: "the account's storage is full: 0 of 1024 bytes"},

	// The database
	{name: "SQLite file in a folder that is not there", slow: true,
		before: with("DATABASE_URL=sqlite:nowhere/papermap.db"),
		want:   refused, words: "there is no folder nowhere for the database"},
	{name: "SQLite file that is none", slow: true, before: func(t *testing.T, s *system) []string {
		must(t, os.WriteFile(s.db, []byte(strings.Repeat("no database ", 1000)), 0o600))
		return nil
	}, want: refused, words: "damaged or no database"},
	{name: "SQLite file with a damaged page", slow: true, before: func(t *testing.T, s *system) []string {
		run(t, s.env, "migrate")
		data, err := os.ReadFile(s.db)
		must(t, err)
		copy(data[len(data)/2/4096*4096:], strings.Repeat("\xff", 4096))
		must(t, os.WriteFile(s.db, data, 0o600))
		return nil
	}, want: refused, words: "damaged"},
	{name: "SQLite file that was removed", before: with(),
		after: func(t *testing.T, s *system) { must(t, os.Remove(s.db)) },
		words: "was removed while the worker was running"},
	{name: "SQLite file that was replaced", slow: true, before: with(), after: func(t *testing.T, s *system) {
		data, err := os.ReadFile(s.db)
		must(t, err)
		must(t, os.Rename(s.db, s.db+".old"))
		must(t, os.WriteFile(s.db, data, 0o600))
	}, words: "was replaced while the worker was running"},
	{name: "SQLite database that takes no writes", slow: true,
		before: with(), after: func(t *testing.T, s *system) {
			openSQL(t, s.database).MustExec("DROP TABLE leases")
		}, words: "no such table"},
	{name: "database behind, and not to be migrated", slow: true,
		before: func(t *testing.T, s *system) []string {
			migrated("DELETE FROM goose_db_version WHERE version_id > 1")(t, s)
			return []string{"DATABASE_MIGRATE=false"}
		}, want: refused, words: "behind this program"},
	{name: "database of a newer program",
		before: migrated("INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)"),
		want:   refused, words: "newer than this program"},
	{name: "database migrated by a newer program later", slow: true,
		before: with(), after: func(t *testing.T, s *system) {
			openSQL(t, s.database).MustExec(
				"INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")
		}, words: "newer than this program"},
	{name: "PostgreSQL unreachable",
		before: with("DATABASE_URL=postgres://worker:" + passwordCanary + "@127.0.0.1:1/db"),
		words:  "connecting to PostgreSQL"},
	{name: "PostgreSQL database that is not there", slow: true,
		before: func(t *testing.T, _ *system) []string {
			return []string{"DATABASE_URL=" + strings.Replace(postgres(t), "?", "_none?", 1)}
		}, want: refused, words: "does not exist"},
	{name: "PostgreSQL read-only", slow: true,
		before: onPostgres("ALTER DATABASE %s SET default_transaction_read_only = on"),
		words:  "read-only transaction"},
	{name: "PostgreSQL table that is missing", slow: true, before: onPostgres("DROP TABLE leases"),
		words: "leases"},

	// Papermap
	{name: "wrong secret", before: with("PAPERMAP_SECRET_KEY=sk_wrong"), after: createTenant, want: paused,
		words: "Papermap refuses the credentials"},
	{name: "API elsewhere", slow: true, before: func(_ *testing.T, s *system) []string {
		return []string{"PAPERMAP_API_URL=" + s.api.URL + "/nowhere"}
	}, after: createTenant, want: paused, words: "Papermap's API is not at PAPERMAP_API_URL"},
	{name: "API unreachable", slow: true,
		before: with("PAPERMAP_API_URL=http://127.0.0.1:1"), after: createTenant,
		want: paused, words: "calls to Papermap keep failing"},
	{name: "API that fails", slow: true, before: fault(simulator.Fault{Status: 500}), after: createTenant,
		want: paused, words: "calls to Papermap keep failing"},
	{name: "quota used up", slow: true, before: fault(simulator.Fault{Status: 402}), after: createTenant,
		want: paused, words: "Papermap says that the workspace's quota is used up"},
	{name: "clock eleven minutes off", slow: true, before: apiElevenMinutesAhead, after: createTenant,
		want: paused, words: "the host's clock is"},

	// REST
	{name: "key set of REST that is not there", slow: true, before: func(_ *testing.T, s *system) []string {
		return []string{"HTTP_JWT_JWKS=" + s.db + ".keys", "HTTP_JWT_AUDIENCE=papermap"}
	}, want: refused, words: "papermap.db.keys: no such file"},
}

// Whatever is broken, doctor, `/readyz` and the log come to the same verdict in the same words.
func TestReadinessDoctorAndLogSayTheSame(t *testing.T) {
	t.Parallel()
	for _, c := range brokenEnvironments {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.slow && !*verdicts {
				t.Skip("run it with -args -verdicts")
			}
			s := newSystem(t)
			env := append(s.env, c.before(t, s)...)
			p := start(t, env, "serve")
			if c.want == refused {
				if code := p.wait(t); code != 1 {
					t.Errorf("serve: exit code %d", code)
				}
			} else {
				address := p.address(t)
				if c.after != nil {
					ready(t, address)
					c.after(t, s)
				}
				eventually(t, func() error { return c.readiness(address) })
			}
			p.says(t, c.words)
			code, text := doctor(t, env)
			if code != 1 || !strings.Contains(text, c.words) {
				t.Errorf("doctor does not say %q: exit code %d:\n%s", c.words, code, text)
			}
			if strings.Contains(text+p.text(), "CANARY") {
				t.Error("they show a secret")
			}
		})
	}
}

// readiness returns nil if `/readyz` gives the verdict, in the words.
func (c brokenEnvironment) readiness(address string) error {
	want := http.StatusServiceUnavailable
	if c.want == paused {
		want = http.StatusOK
	}
	answer, body, err := read(http.Get("http://" + address + "/readyz"))
	if err != nil {
		return err
	}
	var s worker.State
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		return err
	}
	if answer.StatusCode != want || !strings.Contains(strings.Join(s.Reasons, "\n"), c.words) {
		return fmt.Errorf("/readyz does not say %q: status %d: %s", c.words, answer.StatusCode, body)
	}
	return nil
}
