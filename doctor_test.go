package main

import (
	"bufio"
	"database/sql"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// doctor runs the command and returns its exit code and what it printed.
func doctor(t *testing.T, env []string) (int, string) {
	t.Helper()
	p := start(t, env, "doctor")
	return p.wait(t, 30*time.Second), p.text()
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

// stream makes a stream.
func (s *system) stream(t *testing.T, config jetstream.StreamConfig) {
	t.Helper()
	nc, err := nats.Connect(s.nats.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err == nil {
		_, err = js.CreateStream(t.Context(), config)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDoctorFindsNothingWrongWithAWorkerThatWorks(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	worker := start(t, append(s.env, "USAGE_SYNC_SCHEDULE=off"), "serve")
	address := worker.address(t)
	eventually(t, 20*time.Second, func() error {
		if code, text := health(t, address); code != 0 {
			return fmt.Errorf("health: %s", text)
		}
		return nil
	})
	before := len(s.sim.Dashboards())
	code, text := doctor(t, s.env)
	if code != 0 || strings.Contains(text, "ERROR") {
		t.Errorf("exit code %d:\n%s", code, text)
	}
	for _, want := range []string{
		"NATS server +version 2", "stream PAPERMAP ", "stream PAPERMAP_DEAD ", "consumer papermap-worker ", "consumer papermap-worker-access ", "database +SQLite 3[.0-9]+, whole, up to date; ",
		"Papermap, workspace ws-test, key ak_test +it answers, and takes the key", "clock +it agrees",
	} {
		if !matches(want, text) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	if len(s.sim.Dashboards()) != before {
		t.Error("it made a dashboard")
	}
}

// A set-up that is broken is named, with what to do, and the exit code says so.
func TestDoctorNamesWhatIsBrokenAndWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name   string
		breaks func(t *testing.T, s *system) (env []string)
		code   int
		says   []string // patterns
	}{
		{"wrong secret", func(*testing.T, *system) []string { return []string{"PAPERMAP_SECRET_KEY=sk_wrong"} }, 1,
			[]string{"ERROR +Papermap, workspace ws-test, key ak_test +papermap \\(credentials\\)", "→ check key id, secret and workspace id"}},
		{"embed pair that was revoked", func(*testing.T, *system) []string {
			return []string{"PAPERMAP_EMBED_API_KEY_ID=ak_embed", "PAPERMAP_EMBED_SECRET_KEY=sk_wrong"}
		}, 1, []string{"ok +Papermap, workspace ws-test, key ak_test ", "ERROR +Papermap, workspace ws-test, key ak_embed +papermap \\(credentials\\)"}},
		{"API elsewhere", func(_ *testing.T, s *system) []string { return []string{"PAPERMAP_API_URL=" + s.api.URL + "/nowhere"} }, 1,
			[]string{"ERROR +Papermap.*\\(configuration\\)", "→ the API is not where PAPERMAP_API_URL says"}},
		{"API unreachable", func(_ *testing.T, s *system) []string { return []string{"PAPERMAP_API_URL=http://127.0.0.1:1"} }, 1,
			[]string{"ERROR +Papermap.*nothing was sent", "→ can this host reach the address"}},
		{"clock eleven minutes off", func(t *testing.T, s *system) []string {
			other, err := simulator.Serve(simulator.New(simulator.Options{
				Workspaces: []papermap.Workspace{testWorkspace}, Now: func() time.Time { return time.Now().Add(11 * time.Minute) },
			}), "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(other.Close)
			return []string{"PAPERMAP_API_URL=" + other.URL}
		}, 1, []string{"ERROR +clock +the host's clock is 1(0m59|1m0)", "→ set it; no tokens are minted"}},
		{"API that asks to wait", func(t *testing.T, s *system) []string {
			f, err := simulator.ParseFault("status=429 retry-after=60")
			if err != nil {
				t.Fatal(err)
			}
			s.sim.SetFaults(f)
			return nil
		}, 0, []string{"warn +Papermap, workspace ws-test, key ak_test .*429", "→ try again later; the worker waits, too"}},
		{"key set of REST that is not there", func(_ *testing.T, s *system) []string { return []string{"HTTP_JWT_JWKS=" + s.db + ".keys"} }, 1,
			[]string{"ERROR +REST keys .*papermap.db.keys: no such file", "→ correct HTTP_JWT_JWKS"}},
		{"key set of REST that does not answer", func(*testing.T, *system) []string { return []string{"HTTP_JWT_JWKS=https://127.0.0.1:1/keys"} }, 0,
			[]string{"warn +REST keys .*connection refused", "→ until it answers, callers' tokens are refused"}},
		{"NATS unreachable", func(*testing.T, *system) []string { return []string{"NATS_URL=nats://127.0.0.1:1"} }, 1,
			[]string{"ERROR +NATS +connecting to NATS", "→ is the server running"}},
		{"NATS refuses the password", func(t *testing.T, _ *system) []string {
			s := startNATS(t, "server.conf")
			return []string{"NATS_URL=" + s.ClientURL(), "NATS_USER=worker", "NATS_PASSWORD=" + passwordCanary}
		}, 1, []string{"ERROR +NATS +connecting to NATS .*Authorization Violation", "→ .*are the credentials"}},
		{"NATS too old", func(t *testing.T, s *system) []string {
			return []string{"NATS_URL=nats://" + olderNATS(t, s.nats.URL())}
		}, 1, []string{"ERROR +NATS server +the NATS server has version 2\\.9\\.25, and the worker needs 2\\.10 or newer", "→ upgrade it to 2\\.10 or newer"}},
		{"streams that are missing and may not be made", func(*testing.T, *system) []string { return []string{"NATS_MANAGE_STREAMS=false"} }, 1,
			[]string{"ERROR +stream PAPERMAP +it does not exist, and NATS_MANAGE_STREAMS is false", "→ create it, or set NATS_MANAGE_STREAMS=true"}},
		{"consumer that somebody has changed", func(t *testing.T, s *system) []string {
			consumer := jetstream.ConsumerConfig{Durable: "papermap-worker", FilterSubject: "papermap.events.>", AckPolicy: jetstream.AckExplicitPolicy}
			if _, err := s.jetStream(t).CreateConsumer(t.Context(), "PAPERMAP", consumer); err != nil {
				t.Fatal(err)
			}
			return nil
		}, 0, []string{"warn +consumer papermap-worker +somebody has changed it", "→ restart the worker"}},
		{"no JetStream", func(t *testing.T, _ *system) []string {
			s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true})
			if err != nil {
				t.Fatal(err)
			}
			go s.Start()
			t.Cleanup(s.Shutdown)
			s.ReadyForConnections(10 * time.Second)
			return []string{"NATS_URL=" + s.ClientURL()}
		}, 1, []string{"ERROR +JetStream +it is not enabled", "→ start the server with JetStream"}},
		{"no right to create streams", func(t *testing.T, _ *system) []string {
			s := startNATS(t, "server.conf")
			return []string{"NATS_URL=" + s.ClientURL(), "NATS_USER=publisher", "NATS_PASSWORD=" + natsPassword("publisher"), "NATS_INBOX_PREFIX=_INBOX_publisher"}
		}, 1, []string{"ERROR +stream PAPERMAP ", "→ give (it|the user) the permissions of docs/nats"}},
		{"stream without our subjects", func(t *testing.T, s *system) []string {
			s.stream(t, jetstream.StreamConfig{Name: "PAPERMAP", Subjects: []string{"other.>"}})
			return nil
		}, 1, []string{"ERROR +stream PAPERMAP +it does not take subject papermap.events.tenant.created", "→ add the subject"}},
		{"stream of another retention, in memory", func(t *testing.T, s *system) []string {
			s.stream(t, jetstream.StreamConfig{
				Name: "PAPERMAP", Subjects: []string{"papermap.events.>"}, Retention: jetstream.InterestPolicy, Storage: jetstream.MemoryStorage, MaxAge: time.Hour,
			})
			return nil
		}, 1, []string{
			"ERROR +stream PAPERMAP +its retention is", "warn +stream PAPERMAP +it is kept in memory", "warn +stream PAPERMAP +it keeps events for 1h",
			"warn +stream PAPERMAP +it takes papermap.events.> as well",
		}},
		{"stream that keeps tokens", func(t *testing.T, s *system) []string {
			s.stream(t, jetstream.StreamConfig{Name: "ALL", Subjects: []string{"papermap.rpc.>", "_INBOX.>"}, NoAck: true})
			return nil
		}, 1, []string{"ERROR +other streams +stream ALL .* keeps requests for tokens", "ERROR +other streams +stream ALL .* keeps answers, with the tokens in them"}},
		{"stream that takes the events", func(t *testing.T, s *system) []string {
			s.stream(t, jetstream.StreamConfig{Name: "ALL", Subjects: []string{"papermap.events.tenant.*"}})
			return nil
		}, 1, []string{"ERROR +other streams +stream ALL takes papermap.events.tenant.created, so PAPERMAP cannot"}},
		{"SQLite file in a folder that is not there", func(_ *testing.T, s *system) []string {
			return []string{"DATABASE_URL=sqlite:" + filepath.Join(filepath.Dir(s.db), "nowhere", "papermap.db")}
		}, 1, []string{"ERROR +database +there is none yet, and no folder .*/nowhere", "→ make the folder, or correct DATABASE_URL"}},
		{"SQLite file with a damaged page", func(t *testing.T, s *system) []string {
			if code := start(t, s.env, "migrate").wait(t, 20*time.Second); code != 0 {
				t.Fatal("migrate failed")
			}
			data, err := os.ReadFile(s.db)
			if err != nil {
				t.Fatal(err)
			}
			copy(data[len(data)/2/4096*4096:], strings.Repeat("\xff", 4096))
			if err := os.WriteFile(s.db, data, 0o600); err != nil {
				t.Fatal(err)
			}
			return nil
		}, 1, []string{"ERROR +database +(the database file is damaged|.*malformed)", "→ restore it from a backup, then `papermap-worker replay --since` a time before that"}},
		{"PostgreSQL unreachable", func(*testing.T, *system) []string {
			return []string{"DATABASE_URL=postgres://worker:" + passwordCanary + "@127.0.0.1:1/db"}
		}, 1, []string{"ERROR +database +connecting to PostgreSQL", "→ start the server, or correct DATABASE_URL"}},
		{"database behind, and not to be migrated", func(t *testing.T, s *system) []string {
			if err := os.WriteFile(s.db, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"DATABASE_MIGRATE=false"}
		}, 1, []string{"ERROR +database .*behind this program", "→ run `papermap-worker migrate`"}},
		{"database of a newer program", func(t *testing.T, s *system) []string {
			if code := start(t, s.env, "migrate").wait(t, 20*time.Second); code != 0 {
				t.Fatal("migrate failed")
			}
			db, err := sql.Open("sqlite3", "file:"+s.db)
			if err == nil {
				_, err = db.ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")
			}
			if err != nil {
				t.Fatal(err)
			}
			db.Close()
			return nil
		}, 1, []string{"ERROR +database .*newer than this program", "→ run the newer program"}},
		{"database file that is none", func(t *testing.T, s *system) []string {
			if err := os.WriteFile(s.db, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
			return nil
		}, 1, []string{"ERROR +database .*damaged or no database", "→ correct DATABASE_URL"}},
		{"wrong settings", func(*testing.T, *system) []string {
			return []string{"MAX_ATTEMPTS=many", "USAGE_SYNC_SCHEDULE=61 * * * *"}
		}, 2,
			[]string{"ERROR +configuration +MAX_ATTEMPTS: ", "ERROR +configuration +USAGE_SYNC_SCHEDULE: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
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
				t.Error("it tells a secret")
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}

// olderNATS relays to a server and changes the version in its greeting: no older server can be had beside the one that is
// built in.
func olderNATS(t *testing.T, address string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		near, err := listener.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		far, err := net.Dial("tcp", strings.TrimPrefix(address, "nats://"))
		if err != nil {
			return
		}
		answers := bufio.NewReader(far)
		greeting, err := answers.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(near, strings.Replace(greeting, `"version":"`+server.VERSION+`"`, `"version":"2.9.25"`, 1)); err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(far, near)
			_ = far.Close()
		}()
		_, _ = io.Copy(near, answers)
	}()
	return listener.Addr().String()
}
