package console

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(os.Exit))
}

const token = "console_canary_0123456789"

// world is a worker with everything that it works with, and its console.
type world struct {
	t       testing.TB
	sim     *simulator.Simulator
	nats    *embedded.Server
	bus     *events.Bus
	db      *repo.DB
	sql     *sqlx.DB
	logs    *logs
	console *Console
	base    string
	client  *http.Client // follows no redirect and keeps no cookie
	session *http.Cookie
}

// logs keeps what was logged.
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

// start starts a worker that holds what is uncertain, and its console, and stops them when the test ends. Then the log must
// know no secret.
func start(t testing.TB, c Config, faults ...simulator.Fault) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, logs: &logs{}, client: &http.Client{
		Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	workspace := papermap.Workspace{
		ID: "ws-a", Key: papermap.KeyPair{ID: "ak_a", Secret: papermap.NewSecret("sk_canary_api")}, EmbedKey: papermap.KeyPair{ID: "ak_embed", Secret: papermap.NewSecret("sk_canary_embed")},
	}
	w.sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}, Seed: 1, Faults: faults})
	api, err := simulator.Serve(w.sim, "127.0.0.1:0")
	w.must(err)
	t.Cleanup(api.Close)
	workspace.APIURL = api.URL
	w.nats, err = embedded.Start(filepath.Join(dir, "jetstream"), 0)
	w.must(err)
	t.Cleanup(func() { w.nats.Close() })

	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	file := filepath.Join(dir, "papermap.db")
	w.db, err = repo.Open(context.Background(), "sqlite:"+file)
	w.must(err)
	t.Cleanup(func() { _ = w.db.Close() })
	_, err = w.db.Migrate(context.Background())
	w.must(err)
	w.sql, err = sqlx.Open("sqlite3", "file:"+file+"?_busy_timeout=5000")
	w.must(err)
	t.Cleanup(func() { _ = w.sql.Close() })
	w.bus, err = events.Connect(events.Options{
		URL: w.nats.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1,
		MaxAge: time.Hour, Name: "worker", Wait: true,
	}, log)
	w.must(err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		w.bus.Close(ctx)
	})
	work := worker.New(worker.Config{
		Workspaces: []papermap.Workspace{workspace}, EmbedURL: api.URL + "/embedded/dashboard", Timeout: 10 * time.Second, Hold: true,
		TokenTTL: time.Hour, TokenMaxTTL: time.Hour, TokenAudit: 100, Concurrency: 64, MaxAttempts: 10, Grace: time.Second, Version: "0.0.0-test",
	}, w.db, w.bus, log)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		if err := work.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ran
		for _, canary := range []string{token, "sk_canary", "eyJ"} {
			if strings.Contains(w.logs.String(), canary) {
				t.Errorf("the log has %q in it", canary)
			}
		}
	})
	w.eventually(func() error {
		if s := work.State(t.Context()); !s.Ready {
			return fmt.Errorf("the worker is not ready: %v", s.Reasons)
		}
		return nil
	})
	w.console = New(ctx, c, work, log)
	served := httptest.NewServer(w.console)
	w.base = served.URL
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		served.Close()
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) eventually(check func() error) {
	w.t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	deadline := time.Now().Add(time.Minute)
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
		<-look.C
	}
}

// publish publishes an event in as an upstream service would.
func (w *world) publish(eventType, data string) {
	w.t.Helper()
	_, err := w.bus.Publish(w.t.Context(), events.Outgoing{Type: eventType, Data: []byte(data)})
	w.must(err)
}

// becomes waits until a tenant has a status.
func (w *world) becomes(tenantID string, status repo.Status) repo.Mapping {
	w.t.Helper()
	var m repo.Mapping
	w.eventually(func() (err error) {
		if m, err = w.db.Mapping(w.t.Context(), tenantID); err == nil && m.Status != status {
			err = fmt.Errorf("tenant %s is %s, not %s", tenantID, m.Status, status)
		}
		return err
	})
	return m
}

// letters waits until there are so many dead letters.
func (w *world) letters(n int) []events.DeadLetter {
	w.t.Helper()
	var list []events.DeadLetter
	w.eventually(func() (err error) {
		if list, err = w.bus.DeadLetters(w.t.Context(), events.DeadFilter{}, 100); err == nil && len(list) != n {
			err = fmt.Errorf("%d dead letters, not %d", len(list), n)
		}
		return err
	})
	return list
}

// reply is what came of a request.
type reply struct {
	status int
	header http.Header
	body   string
}

// ask sends a request, with a form when it has fields, and with the world's session. change may alter it before.
func (w *world) ask(method, path string, fields url.Values, change ...func(*http.Request)) reply {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path, strings.NewReader(fields.Encode()))
	w.must(err)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if w.session != nil {
		req.AddCookie(w.session)
	}
	for _, do := range change {
		do(req)
	}
	resp, err := w.client.Do(req)
	w.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	w.must(err)
	return reply{resp.StatusCode, resp.Header, string(text)}
}

func (w *world) get(path string) reply {
	w.t.Helper()
	r := w.ask("GET", path, nil)
	if r.status != http.StatusOK {
		w.t.Fatalf("GET %s: %d\n%s", path, r.status, r.body)
	}
	return r
}

// act does an action and follows to where it leads.
func (w *world) act(path string, fields url.Values) reply {
	w.t.Helper()
	r := w.ask("POST", path, fields)
	if r.status != http.StatusSeeOther {
		w.t.Fatalf("POST %s: %d\n%s", path, r.status, r.body)
	}
	return w.get(r.header.Get("Location"))
}

// login logs in for the requests that follow.
func (w *world) login() *http.Cookie {
	w.t.Helper()
	r := w.ask("POST", "/login", url.Values{"token": {token}})
	if r.status != http.StatusSeeOther {
		w.t.Fatalf("logging in: %d\n%s", r.status, r.body)
	}
	w.session = cookie(r, sessionCookie)
	return w.session
}

func cookie(r reply, name string) *http.Cookie {
	for _, c := range (&http.Response{Header: r.header}).Cookies() {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// trouble makes one tenant of each kind, and dead letters: "good" is active, "held" is held, "refused" failed.
func (w *world) trouble() {
	w.t.Helper()
	for _, id := range []string{"good", "held", "refused"} {
		w.publish(events.TypeTenantCreated, fmt.Sprintf(`{"tenant_id":%q,"name":%q}`, id, "The "+id+" ones"))
	}
	w.becomes("good", repo.Active)
	w.becomes("held", repo.Held)
	w.becomes("refused", repo.Failed)
	w.letters(1) // so that it has the number 1
	w.publish(events.TypeTenantCreated, `{"tenant_id":"broken"`)
	w.letters(2)
}

// inTrouble are the faults that trouble needs.
var inTrouble = []simulator.Fault{
	{On: "create", Tenant: "held", Drop: "after", Count: 1},
	{On: "create", Tenant: "refused", Status: 422, Body: `{"success":false,"message":"The workspace is full","status_code":422}`, Count: 1},
}
