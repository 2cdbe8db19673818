// Package workertest is the harness of tests that need a whole worker: it starts a NATS server, the
// Papermap simulator, a database and any number of workers, and takes them down again.
//
// A test describes what it needs in [Options] and gets a [World]. It publishes events and sends
// requests as the services around the worker do, waits with [World.Eventually], and inspects the
// result: in the database, in the streams, at the simulator.
//
//	func TestWorkerCreatesADashboard(t *testing.T) {
//		workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
//			w.Create("acme")
//			w.Eventually(w.Are(repo.Active, "acme"))
//			w.Opens(w.Token("acme"), "Dashboard - acme")
//		})
//	}
//
// # Time
//
// [Virtual] runs the world in a testing/synctest bubble, where the clock jumps whenever every
// goroutine waits: leases, redeliveries, pauses and schedules take no time, with the durations of
// production. There are no sockets in a bubble: NATS and HTTP go through pipes, and each worker's
// pipe to NATS can be cut ([Instance.Cut]). [Start] makes the same world outside of a bubble, for
// tests of sockets and of the real clock.
//
// # What every test checks
//
// When a test ends, the world stops its workers and checks what must always hold: every event in
// the stream fits its schema, the database agrees with what the simulator did, and no secret,
// signature or token was written anywhere.
package workertest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the drivers of World.SQL
	"github.com/jmoiron/sqlx"
	_ "github.com/mattn/go-sqlite3"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
)

// The workspaces that every world has. Their secrets are canaries: when a test ends, they must be
// nowhere.
var (
	WorkspaceA = workspace("a")
	WorkspaceB = workspace("b")
)

func workspace(name string) papermap.Workspace {
	pair := func(id, secret string) papermap.KeyPair {
		return papermap.KeyPair{ID: id, Secret: papermap.NewSecret(secret)}
	}
	return papermap.Workspace{
		ID:       "ws-" + name,
		Key:      pair("ak_"+name, "sk_canary_api_"+name),
		EmbedKey: pair("ak_"+name+"_embed", "sk_canary_embed_"+name),
	}
}

// The durable consumers of the worker, on the stream PAPERMAP.
const (
	MainConsumer   = "papermap-worker"
	AccessConsumer = "papermap-worker-access"
)

// Options is how a test's world differs from a single worker on SQLite.
type Options struct {
	Config   func(*worker.Config) // changes the workers' configuration
	Faults   []string             // the simulator's first faults, as simulator.ParseFault reads them
	Now      func() time.Time     // Papermap's clock; nil: the host's
	Postgres string               // address of an empty PostgreSQL database; empty: SQLite
	Workers  int                  // how many are started; 0: one
	NoWorker bool                 // none is started

	// Migrate brings the empty database up to date; nil: DB.Migrate does.
	Migrate func(*repo.DB) error

	// Disk is the size of a disk of its own for all files, in bytes, which needs root. 0: none.
	Disk int

	Begin     time.Time // of virtual time; zero: in the middle of a month
	Unchecked bool      // the test checks itself what is left at its end

	// DatabaseAhead is how far PostgreSQL's clock is ahead of all others, in virtual time.
	DatabaseAhead time.Duration
	DatabaseTick  time.Duration // how far it lags behind at most; 0: 250 ms

	// NATS starts the NATS server, with its files in dir; nil: events/embedded does.
	NATS func(dir string) (NATS, error)
}

// NATS is a NATS server in this process, such as an embedded.Server.
type NATS interface {
	nats.InProcessConnProvider
	URL() string
	Close()
}

// World is everything that a worker works with, and its workers.
type World struct {
	Dir       string // of all files
	Address   string // of the database, as DATABASE_URL has it
	Simulator *simulator.Simulator
	API       *API
	HTTP      *http.Client // reaches the simulator
	Conn      *nats.Conn   // the publishers' and callers' connection
	JS        jetstream.JetStream
	DB        *repo.DB // the test's own connection to the workers' database
	SQL       *sqlx.DB // the same, without repo
	Config    worker.Config
	Bus       events.Options
	Logs      *Logs
	LogLevel  slog.Level  // of the workers that are started from now on
	Workers   []*Instance // in the order of their start

	t         testing.TB
	virtual   *Network      // nil outside of a bubble
	ahead     time.Duration // PostgreSQL's clock
	tick      time.Duration // of it
	startNATS func(dir string) (NATS, error)

	mu     sync.Mutex
	server NATS     // nil while it is stopped
	tokens []string // minted in this test
}

// Logs keeps what was logged, at every level, as JSON lines.
type Logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Block makes writes to the log wait until release is called.
func (l *Logs) Block() (release func()) {
	l.mu.Lock()
	return l.mu.Unlock
}

// Start starts a world with sockets and the real clock. It is taken down, and checked, when the
// test ends.
func Start(t testing.TB, o Options) *World {
	t.Helper()
	bubbles.RLock()
	t.Cleanup(bubbles.RUnlock)
	ClearPools()
	return start(t, o, nil)
}

func start(t testing.TB, o Options, virtual *Network) *World {
	t.Helper()
	w := &World{
		t: t, virtual: virtual, ahead: o.DatabaseAhead, Dir: tempDir(t), Logs: &Logs{},
		LogLevel: slog.LevelDebug, tick: cmp.Or(o.DatabaseTick, clockTick),
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("WORKER_TEST_LOG") != "" {
			t.Log(w.Logs.String())
		}
	})
	if o.Disk > 0 {
		w.Must(syscall.Mount("tmpfs", w.Dir, "tmpfs", 0, fmt.Sprint("size=", o.Disk)))
		t.Cleanup(func() {
			if err := syscall.Unmount(w.Dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	w.startAPI(o)
	w.startNATS = o.NATS
	if o.NATS == nil {
		w.startNATS = w.startEmbedded
	}
	w.StartNATS()
	t.Cleanup(w.StopNATS)
	w.Conn = w.Connect()
	t.Cleanup(w.Conn.Close)
	var err error
	w.JS, err = jetstream.New(w.Conn)
	w.Must(err)
	w.openDatabase(o)

	w.Config = worker.Config{
		Workspaces: []papermap.Workspace{WorkspaceA, WorkspaceB}, EmbedURL: w.API.URL + "/embedded/dashboard",
		Timeout: 10 * time.Second, TokenTTL: time.Hour, TokenMaxTTL: 2 * time.Hour, TokenAudit: 1000,
		Concurrency: 64, MaxAttempts: 10, Grace: 20 * time.Second, Build: worker.Build{Version: "0.0.0-test"},
	}
	for i := range w.Config.Workspaces {
		w.Config.Workspaces[i].APIURL = w.API.URL
	}
	if virtual != nil {
		w.Config.Dial = virtual.Dial
	}
	if o.Config != nil {
		o.Config(&w.Config)
	}
	w.Bus = events.Options{
		URL: w.server.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP",
		ManageStreams: true,
		Replicas:      1, MaxAge: 720 * time.Hour, Name: "worker", Wait: true,
	}
	w.ensureStreams()
	js := w.JS // of this server, even if the test replaces w.JS
	t.Cleanup(func() {
		for _, i := range w.Workers {
			i.Stop()
		}
		if o.Unchecked {
			return
		}
		// The test may have stopped the server, of which a connection learns a little later.
		if w.serving() && js.Conn().IsConnected() {
			schematest.CheckStream(t, js)
		}
		w.checkBooks()
		w.checkSecrets()
	})
	if o.NoWorker {
		return w
	}
	for range max(1, o.Workers) {
		w.StartWorker()
	}
	return w
}

// tempDir is t.TempDir on a file system in memory where there is one with enough room: these tests
// are not about the disk, and on a slow one fsync takes most of their time.
func tempDir(t testing.TB) string {
	t.Helper()
	const memory, enough = "/dev/shm", 1 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < enough {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "papermap-worker-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// openDatabase opens the database and brings it to the newest schema.
func (w *World) openDatabase(o Options) {
	w.t.Helper()
	file := filepath.Join(w.Dir, "papermap.db")
	w.Address = "sqlite:" + file
	driver, source := "sqlite3", "file:"+file+"?_busy_timeout=5000"
	if o.Postgres != "" {
		w.Address = o.Postgres
		driver, source = "pgx", o.Postgres
	}
	var err error
	w.SQL, err = sqlx.Open(driver, source)
	w.Must(err)
	w.t.Cleanup(func() { _ = w.SQL.Close() })
	if w.virtual != nil && o.Postgres != "" {
		w.virtualPostgres()
	}
	w.DB = w.OpenDB()
	w.t.Cleanup(func() { _ = w.DB.Close() })
	if o.Migrate == nil {
		o.Migrate = func(db *repo.DB) error {
			_, err := db.Migrate(w.t.Context())
			return err
		}
	}
	w.Must(o.Migrate(w.DB))
}

// Shared reports whether the database is PostgreSQL, which several workers can share.
func (w *World) Shared() bool { return w.SQL.DriverName() == "pgx" }

// OpenDB opens another connection to the workers' database. The caller closes it.
func (w *World) OpenDB() *repo.DB {
	w.t.Helper()
	db, err := repo.Open(w.t.Context(), w.Address)
	w.Must(err)
	return db
}

// StartNATS starts the NATS server, again on the same port and files if it was stopped.
func (w *World) StartNATS() {
	w.t.Helper()
	server, err := w.startNATS(filepath.Join(w.Dir, "jetstream"))
	w.Must(err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server = server
}

func (w *World) startEmbedded(dir string) (NATS, error) {
	if w.virtual != nil {
		return embedded.StartInProcess(dir)
	}
	port := 0
	if address, _ := url.Parse(w.Bus.URL); address != nil {
		port, _ = strconv.Atoi(address.Port())
	}
	return embedded.Start(dir, port)
}

// StopNATS stops the NATS server. Its files stay.
func (w *World) StopNATS() {
	w.mu.Lock()
	server := w.server
	w.server = nil
	w.mu.Unlock()
	if server != nil {
		server.Close()
	}
}

// serving says whether the NATS server runs.
func (w *World) serving() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.server != nil
}

// InProcessConn makes a connection to the NATS server. It implements nats.InProcessConnProvider.
func (w *World) InProcessConn() (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.server == nil {
		return nil, errors.New("the NATS server is stopped")
	}
	return w.server.InProcessConn()
}

// Connect makes a connection of a publisher or a caller to NATS, which reconnects forever. The
// caller closes it.
func (w *World) Connect() *nats.Conn {
	w.t.Helper()
	options := []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond)}
	if w.virtual != nil {
		options = append(options, nats.InProcessServer(w))
	}
	nc, err := nats.Connect(w.server.URL(), options...)
	w.Must(err)
	return nc
}

// ensureStreams makes the streams as a worker does.
func (w *World) ensureStreams() {
	w.t.Helper()
	o := w.Bus
	if w.virtual != nil {
		o.InProcess = w
	}
	bus, err := events.Connect(o, slog.New(slog.DiscardHandler))
	w.Must(err)
	defer bus.Close(w.t.Context())
	w.Must(bus.EnsureStreams(w.t.Context()))
}

// Must ends the test if one of its own steps failed.
func (w *World) Must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// Soon limits what has no promised time of its own. It is long, for busy machines.
const Soon = time.Minute

// Eventually waits until check returns nil. It ends the test with check's last error when that
// takes longer than [Soon], or ten minutes of a virtual clock.
func (w *World) Eventually(check func() error) {
	w.t.Helper()
	within := Soon
	if w.virtual != nil {
		within = 10 * time.Minute
	}
	Eventually(w.t, within, check)
}

// Eventually waits until check returns nil, and ends the test with its last error when that takes
// longer than within. It checks every 20 ms at first, and less often the longer it has waited.
func Eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := check()
		waited := time.Since(began)
		if err == nil {
			return
		}
		if waited > within {
			t.Fatalf("not within %v: %v", within, err)
		}
		<-time.After(min(max(20*time.Millisecond, waited/10), 5*time.Second))
	}
}
