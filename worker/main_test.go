package worker_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/goleak"

	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// postgres is the server of the worlds on PostgreSQL; nil where there is none.
var postgres *pgtest.Server

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" { // each of its processes would start a database
		os.Exit(m.Run())
	}
	code := pgtest.Main(m, &postgres)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

type options = workertest.Options

// world is a workertest.World with what only the tests of this package need.
type world struct {
	*workertest.World
	t *testing.T
}

var (
	object = workertest.Object
	names  = workertest.Names
)

// virtual runs a scenario in virtual time.
func virtual(t *testing.T, o options, scenario func(*testing.T, *world)) {
	t.Helper()
	workertest.Virtual(t, o, func(t *testing.T, w *workertest.World) { scenario(t, &world{w, t}) })
}

// subtest is virtual as a subtest of t.
func subtest(t *testing.T, name string, o options, scenario func(*testing.T, *world)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { virtual(t, o, scenario) })
}

// onPostgres is virtual with an empty PostgreSQL database, which these tests use one after the other.
func onPostgres(t *testing.T, o options, scenario func(*testing.T, *world)) {
	t.Helper()
	o.Postgres = pgtest.SharedEmpty(t, postgres)
	virtual(t, o, scenario)
}

// onBoth runs a scenario with one worker on SQLite and with two that share PostgreSQL, unless o
// says how many.
func onBoth(t *testing.T, o options, scenario func(*testing.T, *world)) {
	t.Helper()
	subtest(t, "SQLite", o, scenario)
	t.Run("PostgreSQL with two workers", func(t *testing.T) {
		o := o
		o.Workers = max(2, o.Workers)
		onPostgres(t, o, scenario)
	})
}

// natsServer is a NATS server with options that the embedded one lacks.
type natsServer struct{ *server.Server }

// startInProcess starts a NATS server that only connections in the process reach.
func startInProcess(o *server.Options) (*server.Server, error) {
	o.DontListen, o.JetStream, o.NoSigs, o.NoLog = true, true, true, true
	s, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("the NATS server did not start")
	}
	return s, nil
}

func (s natsServer) URL() string { return s.ClientURL() }

func (s natsServer) Close() {
	s.Shutdown()
	s.WaitForShutdown()
}

// recovery is how soon everything must be done after Papermap is available again.
const recovery = 30 * time.Second

// paused is a check that every worker is paused, for this reason.
func (w *world) paused(reason string) func() error {
	return func() error {
		for _, i := range w.Workers {
			if err := i.Paused(reason)(); err != nil {
				return err
			}
		}
		return nil
	}
}

// consuming counts the workers that consume and have nothing to complain of.
func (w *world) consuming() int {
	n := 0
	for _, i := range w.Workers {
		if s := i.State(); s.Ready && s.Consuming == "yes" && len(s.Reasons) == 0 {
			n++
		}
	}
	return n
}

// pausesLogged counts the pauses that the log tells of.
func (w *world) pausesLogged() int {
	return strings.Count(w.Logs.String(), `"msg":"paused creating dashboards`)
}

func schedule(t *testing.T, text string) *worker.Schedule {
	t.Helper()
	s, err := worker.ParseSchedule(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return s
}

// clock is one that a test sets. It stands still.
type clock struct{ nanoseconds atomic.Int64 }

func (c *clock) set(now time.Time) { c.nanoseconds.Store(now.UnixNano()) }

func (c *clock) now() time.Time { return time.Unix(0, c.nanoseconds.Load()).In(kiritimati) }

// takeUp is how soon what a killed worker had in flight must be taken over.
const takeUp = 30 * time.Second
