package worker_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
)

// postgres is the server of the worlds on PostgreSQL; nil where there is none.
var postgres *pgtest.Server

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" { // each of its processes would start a database
		os.Exit(m.Run())
	}
	_ = flag.Set("test.parallel", "16") // the tests mostly wait for leases, delays and probes
	code := pgtest.Main(m, &postgres)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// onBoth runs a scenario, in parallel, with one worker on SQLite and with two that share PostgreSQL: start makes the world
// that the subtest is for.
func onBoth(t *testing.T, scenario func(*testing.T)) {
	t.Parallel()
	for _, name := range []string{"SQLite", "PostgreSQL with two workers"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t)
		})
	}
}

// The workspaces that every world has. The secrets are canaries: no test may leave one anywhere, see checkSecrets.
var (
	workspaceA = papermap.Workspace{
		ID: "ws-a", Key: papermap.KeyPair{ID: "ak_a", Secret: papermap.NewSecret("sk_canary_api_a")}, EmbedKey: papermap.KeyPair{ID: "ak_a_embed", Secret: papermap.NewSecret("sk_canary_embed_a")},
	}
	workspaceB = papermap.Workspace{
		ID: "ws-b", Key: papermap.KeyPair{ID: "ak_b", Secret: papermap.NewSecret("sk_canary_api_b")}, EmbedKey: papermap.KeyPair{ID: "ak_b_embed", Secret: papermap.NewSecret("sk_canary_embed_b")},
	}
)

const (
	mainConsumer   = "papermap-worker"
	accessConsumer = "papermap-worker-access"
)

// options is what a test wants to be different.
type options struct {
	config   func(*worker.Config)
	faults   []string         // as simulator.ParseFault reads them
	now      func() time.Time // Papermap's clock; nil: the host's
	noWorker bool             // the test starts its own
}

// world is everything that a worker works with, and its workers.
type world struct {
	t       *testing.T
	dir     string
	shared  bool   // the database is PostgreSQL, for two workers
	address string // of the database
	sim     *simulator.Simulator
	front   *front
	nats    *embedded.Server
	nc      *nats.Conn // the publishers' and callers' connection
	js      jetstream.JetStream
	db      *repo.DB // the test's own look at the workers' database
	sql     *sqlx.DB
	config  worker.Config
	bus     events.Options
	logs    *logs
	tokens  []string // minted in this test

	workers []*instance
}

// front stands before the simulator: it keeps the signatures that it sees, and answers itself while it is told to.
type front struct {
	behind http.Handler
	answer atomic.Pointer[http.HandlerFunc]

	mu         sync.Mutex
	signatures map[string]bool
	requests   map[string]int // signed ones, by method
}

func (f *front) seen(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[method]
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s := r.Header.Get("X-Signature"); s != "" {
		f.mu.Lock()
		f.signatures[s] = true
		f.requests[r.Method]++
		f.mu.Unlock()
	}
	if answer := f.answer.Load(); answer != nil {
		(*answer)(w, r)
		return
	}
	f.behind.ServeHTTP(w, r)
}

// logs keeps what was logged, at every level.
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

// start starts a NATS server, a Papermap simulator, a database and its workers, and stops them when the test ends.
// Then it checks what must hold whatever happened: the events, the books and the secrets.
func start(t *testing.T, o options) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), shared: strings.Contains(t.Name(), "/PostgreSQL"), logs: &logs{}}
	file := filepath.Join(w.dir, "papermap.db")
	w.address = "sqlite:" + file
	driver, source := "sqlite3", "file:"+file+"?_busy_timeout=5000"
	if w.shared {
		w.address = pgtest.Need(t, postgres)
		driver, source = "pgx", w.address
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("WORKER_TEST_LOG") != "" {
			t.Log(w.logs.String())
		}
	})

	w.sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspaceA, workspaceB}, Seed: 1, Now: o.now})
	w.setFaults(o.faults...)
	w.front = &front{behind: w.sim, signatures: map[string]bool{}, requests: map[string]int{}}
	api, err := simulator.Serve(w.front, "127.0.0.1:0")
	w.must(err)
	t.Cleanup(api.Close)

	w.nats, err = embedded.Start(filepath.Join(w.dir, "jetstream"), 0)
	w.must(err)
	t.Cleanup(func() { w.nats.Close() })
	w.nc, err = nats.Connect(w.nats.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	w.must(err)
	t.Cleanup(w.nc.Close)
	w.js, err = jetstream.New(w.nc)
	w.must(err)

	w.config = worker.Config{
		Workspaces: []papermap.Workspace{workspaceA, workspaceB}, EmbedURL: api.URL + "/embedded/dashboard", Timeout: 10 * time.Second,
		TokenTTL: time.Hour, TokenMaxTTL: 2 * time.Hour, TokenAudit: 1000, Concurrency: 64, MaxAttempts: 10, Grace: 20 * time.Second,
		Version: "0.0.0-test",
	}
	for i := range w.config.Workspaces {
		w.config.Workspaces[i].APIURL = api.URL
	}
	if o.config != nil {
		o.config(&w.config)
	}
	w.bus = events.Options{
		URL: w.nats.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1,
		MaxAge: time.Hour, Name: "worker", Wait: true,
	}
	w.db = w.openDB()
	t.Cleanup(func() { _ = w.db.Close() })
	_, err = w.db.Migrate(t.Context())
	w.must(err)
	w.sql, err = sqlx.Open(driver, source)
	w.must(err)
	t.Cleanup(func() { _ = w.sql.Close() })
	w.ensureStreams()

	js := w.js // of this server, whatever the test puts in its place
	t.Cleanup(func() {
		for _, i := range w.workers {
			i.stop()
		}
		if js.Conn().IsConnected() { // the test may have ended the server
			schematest.CheckStream(t, js)
		}
		w.checkBooks()
		w.checkSecrets()
	})
	if !o.noWorker {
		w.startWorker()
		if w.shared {
			w.startWorker()
		}
	}
	return w
}

func (w *world) openDB() *repo.DB {
	w.t.Helper()
	db, err := repo.Open(w.t.Context(), w.address)
	w.must(err)
	return db
}

// ensureStreams makes the streams as a worker does.
func (w *world) ensureStreams() {
	w.t.Helper()
	bus, err := events.Connect(w.bus, slog.New(slog.DiscardHandler))
	w.must(err)
	defer bus.Close(w.t.Context())
	w.must(bus.EnsureStreams(w.t.Context()))
}

// must ends the test on an error of the test's own doing.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) setFaults(texts ...string) {
	w.t.Helper()
	var faults []simulator.Fault
	for _, text := range texts {
		f, err := simulator.ParseFault(text)
		w.must(err)
		faults = append(faults, f)
	}
	w.sim.SetFaults(faults...)
}

// intercept makes the API answer by h instead of the simulator, or with nil by the simulator again.
func (w *world) intercept(h http.HandlerFunc) {
	if h == nil {
		w.front.answer.Store(nil)
		return
	}
	w.front.answer.Store(&h)
}

// holdAnswers makes the API do at once what it is asked and keep its answers until release.
func (w *world) holdAnswers() (release func()) {
	held := make(chan struct{})
	w.intercept(func(rw http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		w.sim.ServeHTTP(answer, r)
		select {
		case <-held:
		case <-r.Context().Done():
		}
		maps.Copy(rw.Header(), answer.Header())
		rw.WriteHeader(answer.Code)
		_, _ = rw.Write(answer.Body.Bytes())
	})
	return func() { close(held) }
}

// instance is a running worker with its own connections, as one process would have.
type instance struct {
	*worker.Worker
	world  *world
	db     *repo.DB
	bus    *events.Bus
	cancel context.CancelFunc
	ran    chan struct{} // closed when Run has returned
	closed sync.Once
}

// startWorker starts a worker on the world's database and waits until it is ready. Call it once more for a replica.
func (w *world) startWorker() *instance {
	w.t.Helper()
	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})).With("worker", len(w.workers))
	i := &instance{world: w, db: w.openDB(), ran: make(chan struct{})}
	var err error
	i.bus, err = events.Connect(w.bus, log)
	w.must(err)
	i.Worker = worker.New(w.config, i.db, i.bus, log)
	var ctx context.Context
	ctx, i.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(i.ran)
		if err := i.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}()
	w.workers = append(w.workers, i)
	eventually(w.t, 20*time.Second, func() error {
		if s := i.State(w.t.Context()); !s.Ready {
			return fmt.Errorf("the worker is not ready: %v", s.Reasons)
		}
		return nil
	})
	return i
}

// stop asks the worker to drain, waits until it has and closes what it had open.
func (i *instance) stop() {
	i.world.t.Helper()
	i.cancel()
	select {
	case <-i.ran:
	case <-time.After(i.world.config.Grace + 10*time.Second):
		i.world.t.Fatal("Run did not return within the grace and a little")
	}
	i.close(true)
}

// kill ends the worker as SIGKILL would, as far as others can see: from now on it writes nothing to the database and
// tells NATS nothing. Requests that are on their way to Papermap are cut.
func (i *instance) kill() {
	i.close(false)
	i.cancel()
	select {
	case <-i.ran:
	case <-time.After(i.world.config.Grace + 10*time.Second):
		i.world.t.Fatal("Run did not return after a kill")
	}
}

func (i *instance) close(cleanly bool) {
	i.closed.Do(func() {
		if !cleanly {
			_ = i.db.Close()
			i.bus.Close(canceled())
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		i.bus.Close(ctx)
		if err := i.db.Close(); err != nil {
			i.world.t.Errorf("closing the database: %v", err)
		}
	})
}

// canceled makes a Close that takes a context end at once.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// eventually waits until check returns nil, and fails the test with its last error when that takes longer than within.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		<-look.C
	}
}

// soon is for what a busy machine may take its time for, not for what has a promised time.
const soon = time.Minute
