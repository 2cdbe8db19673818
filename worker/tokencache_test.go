package worker_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

// Not in parallel with other tests: it looks at the memory of the process.
func TestFloodOfUnknownTenantsCostsLittleAndDelaysNoTokens(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { testFloodOfUnknownTenants(t, options{}) })
	t.Run("PostgreSQL", func(t *testing.T) {
		testFloodOfUnknownTenants(t, options{Postgres: pgtest.Need(t, postgres)})
	})
}

func testFloodOfUnknownTenants(t *testing.T, o options) {
	workertest.Virtual(t, o, func(t *testing.T, w *workertest.World) {
		i := w.Workers[0]
		w.Create("known")
		w.Eventually(w.Are(repo.Active, "known"))
		w.Token("known")
		scans := func() (n int) { // of the table of mappings, by whatever way
			w.Must(w.SQL.Get(&n, `SELECT seq_scan + idx_scan FROM pg_stat_user_tables
				WHERE relname = 'tenant_dashboards'`))
			return n
		}
		before := heap()

		const flood, atOnce = 30_000, 512
		slots := make(chan struct{}, atOnce)
		var unknown, tooMany, otherwise atomic.Int64
		inbox := nats.NewInbox()
		sub, err := w.Conn.Subscribe(inbox, func(m *nats.Msg) {
			switch {
			case strings.Contains(string(m.Data), `"TENANT_NOT_FOUND"`):
				unknown.Add(1)
			case strings.Contains(string(m.Data), `"UNAVAILABLE"`):
				tooMany.Add(1)
			default:
				otherwise.Add(1)
			}
			<-slots
		})
		w.Must(err)
		began := time.Now()
		for n := range flood {
			select {
			case slots <- struct{}{}:
			case <-time.After(workertest.Soon):
				t.Fatalf("no answers after %d requests", n)
			}
			w.Must(w.Conn.PublishRequest("papermap.rpc.embed-token", inbox,
				fmt.Appendf(nil, `{"tenant_id":"%016x-%016x"}`, rand.Uint64(), rand.Uint64())))
			if n%500 == 0 {
				w.Token("known")
			}
		}
		w.Eventually(workertest.That("every request has an answer", func() bool { return len(slots) == 0 }))
		took := time.Since(began)
		w.Must(sub.Unsubscribe())
		// what may be saved up, so many a second, and those under way at once
		allowed := int64(2000 + 2000*took.Seconds() + 32)
		t.Logf("%d requests in %v: %d unknown, %d refused; at most %d lookups", flood,
			took.Round(time.Millisecond), unknown.Load(), tooMany.Load(), allowed)
		// Every id is another, so each that was found to be unknown was looked up.
		if unknown.Load() > allowed || unknown.Load() == 0 || otherwise.Load() > 0 {
			t.Errorf("%d tenants were looked up, at most %d may be; %d answers were something else",
				unknown.Load(), allowed, otherwise.Load())
		}
		// 20,000 ids are kept, and the audit's lines by this test
		if grown := heap() - before; grown > 12<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		w.Token("known")
		if w.Shared() {
			i.Stop() // its connections then have reported their statistics
			w.Eventually(workertest.That("the server counts a scan for each lookup", func() bool {
				return scans() >= int(unknown.Load())
			}))
			if n := int64(scans()); n > allowed+1000 { // the known tenant, and this test's own
				t.Errorf("the server counts %d scans, at most %d lookups may be", n, allowed)
			}
		}
	})
}

// heap is how many bytes of it are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what has a finalizer goes now
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestTokensEndWithin5SecondsOfASuspension(t *testing.T) {
	onBoth(t, options{NoWorker: true}, func(t *testing.T, w *world) { w.suspendUnderLoad() })
}

func TestTokensEndWithin5SecondsOfASuspensionThatReplicasCannotHearOf(t *testing.T) {
	virtual(t, options{NoWorker: true, NATS: startDeaf}, func(t *testing.T, w *world) {
		w.Bus.User, w.Bus.Password = "worker", "canary_nats"
		w.suspendUnderLoad()
		if n := strings.Count(w.Logs.String(),
			`Permissions Violation for Subscription to \"papermap.changed\"`); n < 2 {
			t.Errorf("%d of 2 workers may not hear what changes", n)
		}
	})
}

// startDeaf starts a NATS server on which the user named worker may not hear what has changed.
func startDeaf(dir string) (workertest.NATS, error) {
	deny := &server.SubjectPermission{Deny: []string{"papermap.changed"}}
	s, err := startInProcess(&server.Options{
		StoreDir: dir, NoAuthUser: "test", Users: []*server.User{
			{Username: "worker", Password: "canary_nats", Permissions: &server.Permissions{Subscribe: deny}},
			{Username: "test", Password: "test"},
		},
	})
	return natsServer{s}, err
}

// suspendUnderLoad starts two workers and suspends 100 tenants, one after the other, while tokens
// are requested for all.
func (w *world) suspendUnderLoad() {
	w.t.Helper()
	w.StartWorker()
	w.StartWorker()
	tenants := names("org", 100)
	w.Create(tenants...)
	w.Eventually(w.Are(repo.Active, tenants...))

	type state struct {
		sync.Mutex
		tokens    int
		first     string
		committed time.Time // or a little later; zero until then
		last      time.Time // when a token was requested, at the latest, that was got
		refusedAt time.Time // requested after the 5 s and refused
	}
	states := make([]state, len(tenants))
	ctx, cancel := context.WithCancel(w.t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	for first := range 4 {
		load.Go(func() {
			for n := first; ctx.Err() == nil; n++ {
				n %= len(tenants)
				time.Sleep(5 * time.Millisecond)
				sent := time.Now() // the answer is of later
				reply, err := w.Conn.Request("papermap.rpc.embed-token",
					[]byte(object("tenant_id", tenants[n])), 10*time.Second)
				if err != nil {
					w.t.Errorf("requesting a token: %v", err)
					return
				}
				s := &states[n]
				s.Lock()
				over := !s.committed.IsZero() && sent.After(s.committed.Add(5*time.Second))
				switch {
				case strings.HasPrefix(string(reply.Data), `{"token":"`):
					if s.tokens++; s.tokens == 1 {
						var first worker.EmbedToken
						_ = json.Unmarshal(reply.Data, &first) // it begins as one does
						s.first = first.Token
					}
					s.last = sent
					if over {
						w.t.Errorf("%s got a token that was requested %v after the commit of its suspension",
							tenants[n], sent.Sub(s.committed))
					}
				case strings.Contains(string(reply.Data), `"TENANT_SUSPENDED"`):
					if over {
						s.refusedAt = sent
					}
				default:
					w.t.Errorf("%s: %s", tenants[n], reply.Data)
				}
				s.Unlock()
			}
		})
	}
	w.Eventually(func() error {
		for n := range states {
			s := &states[n]
			s.Lock()
			got := s.tokens
			s.Unlock()
			if got < 10 {
				return fmt.Errorf("%s got %d tokens so far", tenants[n], got)
			}
		}
		return nil
	})

	seen := func() int { // notes which suspensions are committed by now, and counts them
		var suspended []string
		w.Must(w.SQL.Select(&suspended, "SELECT tenant_id FROM tenant_dashboards WHERE status = 'suspended'"))
		now := time.Now()
		for _, tenant := range suspended {
			s := &states[slices.Index(tenants, tenant)]
			s.Lock()
			if s.committed.IsZero() {
				s.committed = now
			}
			s.Unlock()
		}
		return len(suspended)
	}
	pace := time.NewTicker(50 * time.Millisecond) // over 5 s, so that readings of every age are met
	defer pace.Stop()
	for n, tenant := range tenants {
		w.Publish(events.TypeTenantSuspended, object("tenant_id", tenant))
		for seen() <= n {
			<-pace.C
		}
	}
	w.Eventually(func() error {
		for n := range states {
			s := &states[n]
			s.Lock()
			refused := s.refusedAt.Sub(s.committed)
			s.Unlock()
			if refused < 6*time.Second {
				return fmt.Errorf("%s was not refused yet 6 s after the commit", tenants[n])
			}
		}
		return nil
	})
	cancel()
	load.Wait()
	var latest time.Duration
	for n := range states {
		latest = max(latest, states[n].last.Sub(states[n].committed))
		if n < 5 {
			w.Minted(states[n].first)
		}
	}
	w.t.Logf("the last token was requested %v after its suspension was seen in the database", latest)
	for n := range w.Workers {
		if !strings.Contains(w.Logs.String(), fmt.Sprintf(`"msg":"minted an embed token","worker":%d,`, n)) {
			w.t.Errorf("worker %d has answered nothing", n)
		}
	}
}

func TestSuspendedTenantGetsNoTokenFromAnyReplica(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		for len(w.Workers) < 3 {
			w.StartWorker()
		}
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		for range 3 {
			w.Publish(events.TypeTenantSuspended, object("tenant_id", "t"))
			w.Eventually(w.Are(repo.Suspended, "t"))
			answers := func(refused bool) func() error {
				return func() error {
					for range 20 { // any of the three answers
						reply := w.Request("embed-token", object("tenant_id", "t"))
						if got := workertest.Refusal(reply); (got != "") != refused {
							return fmt.Errorf("answer %q %s", got, reply.Data)
						}
					}
					return nil
				}
			}
			workertest.Eventually(t, 5*time.Second, answers(true)) // promise 6
			for range 20 {
				w.Refused("embed-token", object("tenant_id", "t"), 403, "TENANT_SUSPENDED")
			}
			w.Publish(events.TypeTenantResumed, object("tenant_id", "t"))
			w.Eventually(w.Are(repo.Active, "t"))
			workertest.Eventually(t, 5*time.Second, answers(false))
		}
	})
}
