package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// doctor runs the command and returns its exit code and what it printed.
func doctor(t *testing.T, env []string) (int, string) {
	t.Helper()
	p := start(t, env, "doctor")
	return p.wait(t), p.text()
}

func TestDoctorPassesWithWorkingWorker(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	startReady(t, s.env)
	before := len(s.sim.Dashboards())
	code, text := doctor(t, s.env)
	if code != 0 || strings.Contains(text, "ERROR") {
		t.Errorf("exit code %d:\n%s", code, text)
	}
	for _, want := range []string{
		"NATS server +version 2", "stream PAPERMAP ", "stream PAPERMAP_DEAD ", "consumer papermap-worker ",
		"consumer papermap-worker-access ", "database +SQLite 3[.0-9]+, undamaged, up to date; ",
		"Papermap, workspace ws-test, key ak_test +it answers, and accepts the key", "clock +it agrees",
		"ok +usage, workspace ws-test +there is none from .* could not be checked",
	} {
		if !matches(want, text) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	if len(s.sim.Dashboards()) != before {
		t.Error("it made a dashboard")
	}
}

// with changes settings, and nothing else of a system.
func with(settings ...string) func(*testing.T, *system) []string {
	return func(*testing.T, *system) []string { return settings }
}

// withStream makes a stream.
func withStream(config jetstream.StreamConfig) func(*testing.T, *system) []string {
	return func(t *testing.T, s *system) []string {
		_, err := s.rawJetStream(t).CreateStream(t.Context(), config)
		must(t, err)
		return nil
	}
}

// brokenSystems are set-ups, each with the exit code of doctor and patterns of what it says.
var brokenSystems = []struct {
	name   string
	breaks func(t *testing.T, s *system) (env []string)
	code   int
	says   []string
}{
	{"wrong secret", with("PAPERMAP_SECRET_KEY=sk_wrong"), 1, []string{
		"ERROR +Papermap, workspace ws-test, key ak_test +Papermap refuses the credentials: " +
			"papermap \\(credentials\\)",
		"→ check PAPERMAP_API_KEY_ID, PAPERMAP_SECRET_KEY and PAPERMAP_WORKSPACE_ID"}},
	{"embed pair that was revoked",
		with("PAPERMAP_EMBED_API_KEY_ID=ak_embed", "PAPERMAP_EMBED_SECRET_KEY=sk_wrong"), 1, []string{
			"ok +Papermap, workspace ws-test, key ak_test ",
			"ERROR +Papermap, workspace ws-test, key ak_embed +Papermap refuses the credentials: " +
				"papermap \\(credentials\\)"}},
	{"API elsewhere", func(_ *testing.T, s *system) []string {
		return []string{"PAPERMAP_API_URL=" + s.api.URL + "/nowhere"}
	}, 1, []string{
		"ERROR +Papermap.*\\(configuration\\)", "→ correct the address"}},
	{"API unreachable", with("PAPERMAP_API_URL=http://127.0.0.1:1"), 1, []string{
		"ERROR +Papermap.*nothing was sent", "→ can this host reach the address"}},
	{"clock eleven minutes off", apiElevenMinutesAhead, 1,
		[]string{"ERROR +clock +the host's clock is 1(0m59|1m0)", "→ set it; no tokens are minted"}},
	{"API that asks to wait", func(t *testing.T, s *system) []string {
		s.sim.SetFaults(simulator.Fault{Status: 429, RetryAfter: "60"})
		return nil
	}, 0, []string{
		"warn +Papermap, workspace ws-test, key ak_test .*429",
		"→ try again later; the worker waits, too"}},
	{"usage with names of its own", func(_ *testing.T, s *system) []string {
		s.sim.SetUsage(testWorkspace.ID, simulator.Usage{Tenants: 3,
			Names: map[string]string{"credits_consumed": "creditsUsed"}})
		return nil
	}, 1, []string{
		"ok +Papermap, workspace ws-test, key ak_test ",
		"ERROR +usage, workspace ws-test +no row has credits .*creditsUsed",
		"→ no usage can be recorded; add the right name"}},
	{"key set of REST that is not there", func(_ *testing.T, s *system) []string {
		return []string{"HTTP_JWT_JWKS=" + s.db + ".keys", "HTTP_JWT_AUDIENCE=papermap"}
	}, 1, []string{"ERROR +REST keys .*papermap.db.keys: no such file", "→ correct HTTP_JWT_JWKS"}},
	{"key set of REST that does not answer", with("HTTP_JWT_JWKS=https://127.0.0.1:1/keys",
		"HTTP_JWT_AUDIENCE=papermap"), 0, []string{
		"warn +REST keys .*connection refused", "→ until it answers, callers' tokens are refused"}},
	{"NATS unreachable", with("NATS_URL=nats://127.0.0.1:1"), 1, []string{
		"ERROR +NATS +no connection to NATS", "→ is the server running"}},
	{"NATS refuses the password", func(t *testing.T, _ *system) []string {
		s := startNATS(t, "server.conf")
		return []string{"NATS_URL=" + s.ClientURL(), "NATS_USER=worker", "NATS_PASSWORD=" + passwordCanary}
	}, 1, []string{
		"ERROR +NATS +no connection to NATS .*Authorization Violation", "→ .*are the credentials"}},
	{"NATS too old", func(t *testing.T, s *system) []string {
		// there is no older server beside the one that is built in
		to := strings.TrimPrefix(s.nats.URL(), "nats://")
		return []string{"NATS_URL=nats://" + relay(t, "127.0.0.1:0", to, func(greeting string) string {
			return strings.Replace(greeting, `"version":"`+server.VERSION+`"`, `"version":"2.9.25"`, 1)
		})}
	}, 1, []string{
		"ERROR +NATS server +the NATS server has version 2\\.9\\.25, and the worker needs 2\\.10 or newer",
		"→ upgrade it to 2\\.10 or newer"}},
	{"streams that are missing and may not be made", with("NATS_MANAGE_STREAMS=false"), 1, []string{
		"ERROR +stream PAPERMAP +it does not exist, and NATS_MANAGE_STREAMS is false",
		"→ create it, or set NATS_MANAGE_STREAMS=true"}},
	{"consumer that was changed", func(t *testing.T, s *system) []string {
		_, err := s.jetStream(t).CreateConsumer(t.Context(), "PAPERMAP", jetstream.ConsumerConfig{
			Durable: "papermap-worker", FilterSubject: "papermap.events.>",
			AckPolicy: jetstream.AckExplicitPolicy,
		})
		must(t, err)
		return nil
	}, 0, []string{"warn +consumer papermap-worker +its settings were changed: ", "→ restart the worker"}},
	{"no JetStream", func(t *testing.T, _ *system) []string {
		s := startNATS(t, "", func(o *server.Options) { o.JetStream = false })
		return []string{"NATS_URL=" + s.ClientURL()}
	}, 1, []string{"ERROR +JetStream +it is not enabled", "→ start the server with JetStream"}},
	{"no right to create streams", func(t *testing.T, _ *system) []string {
		s := startNATS(t, "server.conf")
		return append(natsSettings("publisher"), "NATS_URL="+s.ClientURL())
	}, 1, []string{"ERROR +stream PAPERMAP ", "→ give (it|the user) the permissions of docs/nats"}},
	{"stream without our subjects",
		withStream(jetstream.StreamConfig{Name: "PAPERMAP", Subjects: []string{"other.>"}}), 1, []string{
			"ERROR +stream PAPERMAP +it does not take subject papermap.events.tenant.created",
			"→ add the subject"}},
	{"stream of another retention, in memory", withStream(jetstream.StreamConfig{
		Name: "PAPERMAP", Subjects: []string{"papermap.events.>"},
		Retention: jetstream.InterestPolicy, Storage: jetstream.MemoryStorage, MaxAge: time.Hour,
	}), 1, []string{
		"ERROR +stream PAPERMAP +its retention is", "warn +stream PAPERMAP +it is kept in memory",
		"warn +stream PAPERMAP +it keeps events for 1h",
		"warn +stream PAPERMAP +it takes papermap.events.> as well"}},
	{"stream that keeps tokens", withStream(jetstream.StreamConfig{
		Name: "ALL", Subjects: []string{"papermap.rpc.>", "_INBOX.>"}, NoAck: true,
	}), 1, []string{
		"ERROR +other streams +stream ALL .* keeps requests for tokens",
		"ERROR +other streams +stream ALL .* keeps answers, with the tokens in them"}},
	{"stream that takes the events",
		withStream(jetstream.StreamConfig{Name: "ALL", Subjects: []string{"papermap.events.tenant.*"}}), 1,
		[]string{"ERROR +other streams +stream ALL takes papermap.events.tenant.created, " +
			"so PAPERMAP cannot"}},
	{"SQLite file in a folder that is not there", with("DATABASE_URL=sqlite:nowhere/papermap.db"), 1,
		[]string{"ERROR +database +there is no folder nowhere for the database",
			"→ make the folder, or correct DATABASE_URL"}},
	{"SQLite file with a damaged page", func(t *testing.T, s *system) []string {
		run(t, s.env, "migrate")
		data, err := os.ReadFile(s.db)
		must(t, err)
		copy(data[len(data)/2/4096*4096:], strings.Repeat("\xff", 4096))
		must(t, os.WriteFile(s.db, data, 0o600))
		return nil
	}, 1, []string{"ERROR +database +(the database file is damaged|.*malformed)",
		"→ restore it from a backup, then `papermap-worker replay --since` a time before that"}},
	{"PostgreSQL unreachable",
		with("DATABASE_URL=postgres://worker:" + passwordCanary + "@127.0.0.1:1/db"), 1, []string{
			"ERROR +database +connecting to PostgreSQL", "→ start the server, or correct DATABASE_URL"}},
	{"empty database, and not to be migrated", func(t *testing.T, s *system) []string {
		must(t, os.WriteFile(s.db, nil, 0o600))
		return []string{"DATABASE_MIGRATE=false"}
	}, 1, []string{"ERROR +database +there is none yet", "→ run `papermap-worker migrate`"}},
	{"database behind, and not to be migrated", func(t *testing.T, s *system) []string {
		run(t, s.env, "migrate")
		openSQL(t, s.database).MustExec("DELETE FROM goose_db_version WHERE version_id > 1")
		return []string{"DATABASE_MIGRATE=false"}
	}, 1, []string{"ERROR +database .*behind this program", "→ run `papermap-worker migrate`"}},
	{"database of a newer program", func(t *testing.T, s *system) []string {
		run(t, s.env, "migrate")
		openSQL(t, s.database).MustExec(
			"INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")
		return nil
	}, 1, []string{"ERROR +database .*newer than this program", "→ run the newer program"}},
	{"database file that is none", func(t *testing.T, s *system) []string {
		must(t, os.WriteFile(s.db, []byte(strings.Repeat("no database ", 1000)), 0o600))
		return nil
	}, 1, []string{"ERROR +database .*damaged or no database", "→ correct DATABASE_URL"}},
	{"wrong settings", with("MAX_ATTEMPTS=many", "USAGE_SYNC_SCHEDULE=61 * * * *"), 2, []string{
		"ERROR +configuration +MAX_ATTEMPTS: ", "ERROR +configuration +USAGE_SYNC_SCHEDULE: "}},
}

// A set-up that is broken is named, with what to do, and the exit code says so.
func TestDoctorNamesProblemsAndRemedies(t *testing.T) {
	t.Parallel()
	for _, c := range brokenSystems {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t)
			code, text := doctor(t, append(s.env, c.breaks(t, s)...))
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.says {
				if !matches(want, text) {
					t.Errorf("it does not say %q", want)
				}
			}
			if strings.Contains(text, "CANARY") {
				t.Error("it prints a secret")
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}

// apiElevenMinutesAhead starts another API, whose clock is eleven minutes ahead of this host's.
func apiElevenMinutesAhead(t *testing.T, _ *system) []string {
	other, err := simulator.Serve(simulator.New(simulator.Options{
		Workspaces: []papermap.Workspace{testWorkspace},
		Now:        func() time.Time { return time.Now().Add(11 * time.Minute) },
	}), "127.0.0.1:0")
	must(t, err)
	t.Cleanup(other.Close)
	return []string{"PAPERMAP_API_URL=" + other.URL}
}
