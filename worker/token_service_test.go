package worker_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// tokenFrom requests a token on a tenant's own subject.
func (w *world) tokenFrom(subject, body string) worker.EmbedToken {
	w.t.Helper()
	reply := w.request("embed-token."+subject, body)
	var token worker.EmbedToken
	if err := json.Unmarshal(reply.Data, &token); err != nil || token.Token == "" {
		w.t.Fatalf("request %s of %s: no token but %v %s", body, subject, reply.Header, reply.Data)
	}
	w.tokens = append(w.tokens, token.Token)
	return token
}

func TestATenantsOwnSubjectGivesItsTokenAlone(t *testing.T) {
	onBoth(t, testATenantsOwnSubjectGivesItsTokenAlone)
}

func testATenantsOwnSubjectGivesItsTokenAlone(t *testing.T) {
	w := start(t, options{})
	subjects := map[string]string{
		"org-1": "org-1", "org.1": "org%2E1", "Acme Corp": "Acme%20Corp", "100%": "100%25", "100%2E": "100%252E", "a*b>c": "a%2Ab%3Ec", "müller 🙂": "müller%20🙂",
		"a\u00a0b": "a%C2%A0b", "mu\u0308ller": "mu\u0308ller", "embed-token": "embed-token",
		"x" + strings.Repeat("\u3000", 253) + "x": "x" + strings.Repeat("%E3%80%80", 253) + "x", // the longest that a subject can get
	}
	for tenant := range subjects {
		w.create(tenant)
	}
	for tenant, subject := range subjects {
		eventually(t, soon, w.are(repo.Active, tenant))
		for range 4 { // from the database and from memory, on every replica
			for _, body := range []string{
				``, object("tenant_id", tenant), object("tenant_id", tenant, "workspace_id", "ws-a"), `{"ttl_seconds":60}`, `{}`, `{"tenant_id":"","other":1}`,
			} {
				token := w.tokenFrom(subject, body)
				claims, err := papermap.ParseToken(token.Token)
				w.must(err)
				if token.TenantID != tenant || claims.TenantID != tenant || claims.DashboardID != w.mapping(tenant).DashboardID {
					t.Errorf("subject %s, body %s: a token of tenant %q, %+v", subject, body, token.TenantID, claims)
				}
			}
			other := "org-1"
			if tenant == other {
				other = "org.1"
			}
			for _, body := range []string{
				object("tenant_id", other), object("tenant_id", "unknown"), `{"tenant_id":"\u006frg-nobody"}`, object("tenant_id", strings.ToUpper(tenant)+"X"),
			} {
				w.refused("embed-token."+subject, body, 403, "TENANT_MISMATCH")
			}
			for _, body := range []string{
				object("tenant_id", tenant, "workspace_id", "ws-b"), `{"ttl_seconds":0}`, `{"tenant_id":7}`, `null`, ` `, `{"tenant_id":"` + tenant + `"}{}`,
			} {
				w.refused("embed-token."+subject, body, 400, "INVALID_REQUEST")
			}
		}
		w.opens(w.tokenFrom(subject, ""), html.EscapeString("Dashboard - "+tenant))
	}
	for _, subject := range []string{
		"org%2e1", "org%2D1", "%6Frg-1", "org-1%", "org-1%2", "m%C3%BCller%20🙂", "müller%20%F0%9F%99%82", "a\u00a0b", "a%C2", "100%",
	} {
		w.refused("embed-token."+subject, "", 400, "INVALID_REQUEST")
		w.refused("embed-token."+subject, object("tenant_id", "org-1"), 400, "INVALID_REQUEST")
	}
	for _, subject := range []string{"%20org-1", "org-1%0A", "%00", strings.Repeat("x", 256)} { // encoded well, but no tenant ids
		w.refused("embed-token."+subject, "", 400, "INVALID_REQUEST")
	}
	w.refused("embed-token.org-2", "", 404, "TENANT_NOT_FOUND")
	for _, subject := range []string{"org.1", "org-1.x"} {
		if _, err := w.nc.Request("papermap.rpc.embed-token."+subject, nil, 5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("a subject of two tokens, %s: %v", subject, err)
		}
	}
}

func TestATokensLifeIsCappedOnATenantsOwnSubject(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	for asked, want := range map[string]int64{"1": 1, "7200": 7200, "7201": 7200, "999999999": 7200, "1000000000": 7200, "9223372036854775807": 7200, "99999999999999999999": 7200} {
		before := time.Now().Unix()
		if life := w.tokenFrom("t", `{"tenant_id":"t","ttl_seconds":`+asked+`}`).ExpiresAt - before; life < want || life > want+10 {
			t.Errorf("asked for %s, got %d s, want %d", asked, life, want)
		}
	}
}

func TestATenantsRateIsItsOwnAndGoesOnWhenItsMappingIsReadAnew(t *testing.T) {
	onBoth(t, testATenantsRateIsItsOwnAndGoesOnWhenItsMappingIsReadAnew)
}

func testATenantsRateIsItsOwnAndGoesOnWhenItsMappingIsReadAnew(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	w := start(t, options{noWorker: true, config: func(c *worker.Config) {
		c.TokenRate, c.TokenBurst = 0.5, 3
		c.Clock = func() time.Time { return time.Unix(0, clock.Load()) }
	}})
	w.startWorker() // one: each process counts for itself
	w.create("a", "b")
	eventually(t, soon, w.are(repo.Active, "a", "b"))

	limited := func(tenant string, after int) {
		t.Helper()
		for _, endpoint := range []string{"embed-token", "embed-token." + tenant} {
			if got := w.refused(endpoint, object("tenant_id", tenant), 429, "RATE_LIMITED"); got != after {
				t.Errorf("%s: retry_after is %d, want %d", tenant, got, after)
			}
		}
	}
	w.token(object("tenant_id", "a"))
	w.tokenFrom("a", "") // both subjects count together
	w.token(object("tenant_id", "a", "workspace_id", "ws-a"))
	limited("a", 2)
	limited("a", 2)                                                                       // a refusal costs nothing
	w.refused("embed-token", `{"tenant_id":"a","ttl_seconds":0}`, 400, "INVALID_REQUEST") // and comes after the request's own faults
	for range 3 {
		w.token(object("tenant_id", "b"))
	}
	limited("b", 2)

	w.must(w.nc.Publish("papermap.changed", []byte("a"))) // a mapping has changed: it is read anew
	w.must(w.nc.Flush())
	for range 10 {
		limited("a", 2)
	}
	for _, change := range []struct{ eventType, status string }{{events.TypeTenantSuspended, "403"}, {events.TypeTenantResumed, "429"}} {
		w.publish(change.eventType, object("tenant_id", "a"))
		eventually(t, soon, func() error { // the worker forgets it a moment after the commit
			reply := w.request("embed-token", object("tenant_id", "a"))
			if got := reply.Header.Get("Nats-Service-Error-Code"); got != change.status {
				return fmt.Errorf("after %s: %q %s", change.eventType, got, reply.Data)
			}
			return nil
		})
	}
	limited("a", 2)

	clock.Add(int64(1500 * time.Millisecond))
	limited("a", 1)
	clock.Add(int64(500 * time.Millisecond))
	w.token(object("tenant_id", "a"))
	limited("a", 2)
	clock.Add(int64(time.Hour)) // no more than the burst is saved up
	for range 3 {
		w.token(object("tenant_id", "a"))
	}
	limited("a", 2)

	// What is in memory is no longer believed after 4 s, and is read anew.
	began := time.Now()
	eventually(t, soon, func() error {
		limited("a", 2)
		if time.Since(began) < 5*time.Second {
			return errors.New("it is still believed")
		}
		return nil
	})
}

// The vectors were computed by other programs in other languages.
func TestTheServiceAnswersEveryGoldenToken(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../papermap/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Tokens []struct {
			KeyID      string `json:"api_key_id"`
			Secret     string `json:"secret_key"`
			Workspace  string `json:"workspace_id"`
			Tenant     string `json:"tenant_id"`
			Dashboard  string `json:"dashboard_id"`
			ValidUntil int64  `json:"valid_until"`
			Token      string `json:"token"`
			EmbedURL   string `json:"embed_url"`
		} `json:"tokens"`
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors.Tokens) == 0 {
		t.Fatal(err, "no vectors read")
	}
	for i, v := range vectors.Tokens {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := start(t, options{noWorker: true, config: func(c *worker.Config) {
				c.Workspaces = []papermap.Workspace{{
					ID: v.Workspace, APIURL: c.Workspaces[0].APIURL, Key: workspaceA.Key, EmbedKey: papermap.KeyPair{ID: v.KeyID, Secret: papermap.NewSecret(v.Secret)},
				}}
				c.EmbedURL = "https://papermap.ai/embedded/dashboard"
				c.Clock = func() time.Time { return time.Unix(v.ValidUntil, 999_999_999).Add(-c.TokenTTL) } // fractions are cut
			}})
			w.intercept(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(rw, `{"success":true,"message":"","data":{"dashboard_id":%q}}`, v.Dashboard)
			})
			w.startWorker()
			w.create(v.Tenant)
			eventually(t, soon, w.are(repo.Active, v.Tenant))
			defer func() { // the simulator's books know nothing of the vector's dashboard
				w.workers[0].stop()
				_, err := w.sql.Exec("DELETE FROM tenant_dashboards")
				w.must(err)
			}()
			for _, token := range []worker.EmbedToken{
				w.token(object("tenant_id", v.Tenant)), w.token(object("tenant_id", v.Tenant)), w.tokenFrom(events.EncodeTenant(v.Tenant), ""),
			} {
				want := worker.EmbedToken{
					Token: v.Token, TenantID: v.Tenant, WorkspaceID: v.Workspace, DashboardID: v.Dashboard, ExpiresAt: v.ValidUntil, RefreshAfter: v.ValidUntil - 720,
					EmbedURL: v.EmbedURL,
				}
				if token != want {
					t.Errorf("got  %+v\nwant %+v", token, want)
				}
			}
		})
	}
}

func TestAFloodOfUnknownTenantsCostsLittleAndDelaysNobody(t *testing.T) {
	// Not in parallel with other tests: it looks at the memory of the process.
	for _, name := range []string{"SQLite", "PostgreSQL"} {
		t.Run(name, testAFloodOfUnknownTenantsCostsLittleAndDelaysNobody)
	}
}

func testAFloodOfUnknownTenantsCostsLittleAndDelaysNobody(t *testing.T) {
	w := start(t, options{noWorker: true})
	i := w.startWorker()
	w.create("known")
	eventually(t, soon, w.are(repo.Active, "known"))
	w.token(object("tenant_id", "known"))
	scans := func() (n int) { // of the table of mappings, by whatever way
		w.must(w.sql.Get(&n, "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'tenant_dashboards'"))
		return n
	}
	before := heap()

	const flood, atOnce = 50_000, 512
	slots := make(chan struct{}, atOnce)
	var unknown, tooMany, otherwise atomic.Int64
	inbox := nats.NewInbox()
	sub, err := w.nc.Subscribe(inbox, func(m *nats.Msg) {
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
	w.must(err)
	began := time.Now()
	for n := range flood {
		select {
		case slots <- struct{}{}:
		case <-time.After(soon):
			t.Fatalf("no answers after %d requests", n)
		}
		w.must(w.nc.PublishRequest("papermap.rpc.embed-token", inbox, fmt.Appendf(nil, `{"tenant_id":"%016x-%016x"}`, rand.Uint64(), rand.Uint64())))
		if n%500 == 0 {
			w.token(object("tenant_id", "known"))
		}
	}
	eventually(t, soon, func() error {
		if len(slots) > 0 {
			return fmt.Errorf("%d requests have no answer", len(slots))
		}
		return nil
	})
	took := time.Since(began)
	w.must(sub.Unsubscribe())
	allowed := int64(2000 + 2000*took.Seconds() + 32) // what may be saved up, so many a second, and those under way at once
	t.Logf("%d requests in %v: %d unknown, %d refused; at most %d lookups", flood, took.Round(time.Millisecond), unknown.Load(), tooMany.Load(), allowed)
	// Every id is another, so each that was found to be unknown was looked up.
	if unknown.Load() > allowed || unknown.Load() == 0 || otherwise.Load() > 0 {
		t.Errorf("%d tenants were looked up, at most %d may be; %d answers were something else", unknown.Load(), allowed, otherwise.Load())
	}
	if grown := heap() - before; grown > 12<<20 { // 20,000 ids are kept, and the audit's lines by this test
		t.Errorf("the heap grew by %d bytes", grown)
	}
	w.token(object("tenant_id", "known"))
	if w.shared {
		i.stop() // its connections then have told what they did
		eventually(t, soon, func() error {
			if n := scans(); n < int(unknown.Load()) {
				return fmt.Errorf("the server counts %d scans of %d lookups so far", n, unknown.Load())
			}
			return nil
		})
		if n := int64(scans()); n > allowed+1000 { // the known tenant, and this test's own
			t.Errorf("the server counts %d scans, at most %d lookups may be", n, allowed)
		}
	}
}

// heap is how many bytes of it are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what has a finalizer goes now
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestASuspensionEndsTokensWithin5Seconds(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"SQLite", "PostgreSQL"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{noWorker: true})
			w.suspendUnderLoad()
		})
		t.Run(name+" while replicas cannot hear each other", func(t *testing.T) {
			t.Parallel()
			w := start(t, options{noWorker: true})
			w.deafen()
			w.suspendUnderLoad()
			if n := strings.Count(w.logs.String(), `Permissions Violation for Subscription to \"papermap.changed\"`); n < 2 {
				t.Errorf("%d of 2 workers may not hear what changes", n)
			}
		})
	}
}

// deafen puts a server in the place of the world's, on which the workers may not hear what has changed.
func (w *world) deafen() {
	w.t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: filepath.Join(w.dir, "deaf"), NoSigs: true, NoLog: true,
		Users: []*server.User{
			{Username: "worker", Password: "canary_nats", Permissions: &server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{"papermap.changed"}}}},
			{Username: "test", Password: "test"},
		},
	})
	w.must(err)
	go s.Start()
	w.t.Cleanup(func() {
		for _, i := range w.workers {
			i.stop()
		}
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		w.t.Fatal("the NATS server did not start")
	}
	w.bus.URL, w.bus.User, w.bus.Password = s.ClientURL(), "worker", "canary_nats"
	w.nc, err = nats.Connect(s.ClientURL(), nats.UserInfo("test", "test"))
	w.must(err)
	w.t.Cleanup(w.nc.Close)
	w.js, err = jetstream.New(w.nc)
	w.must(err)
	w.ensureStreams()
}

// suspendUnderLoad starts two workers and suspends 100 tenants, one after the other, while tokens are requested for all.
func (w *world) suspendUnderLoad() {
	w.t.Helper()
	w.startWorker()
	w.startWorker()
	tenants := names("org", 100)
	w.create(tenants...)
	eventually(w.t, soon, w.are(repo.Active, tenants...))

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
				sent := time.Now() // the answer is of later
				reply, err := w.nc.Request("papermap.rpc.embed-token", []byte(object("tenant_id", tenants[n])), 10*time.Second)
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
						w.t.Errorf("%s got a token that was requested %v after the commit of its suspension", tenants[n], sent.Sub(s.committed))
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
	eventually(w.t, soon, func() error {
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
		w.must(w.sql.Select(&suspended, "SELECT tenant_id FROM tenant_dashboards WHERE status = 'suspended'"))
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
		w.publish(events.TypeTenantSuspended, object("tenant_id", tenant))
		for seen() <= n {
			<-pace.C
		}
	}
	eventually(w.t, soon, func() error {
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
			w.tokens = append(w.tokens, states[n].first)
		}
	}
	w.t.Logf("the last token was requested %v after its suspension was seen in the database", latest)
	for n := range w.workers {
		if !strings.Contains(w.logs.String(), fmt.Sprintf(`"msg":"minted an embed token","worker":%d,`, n)) {
			w.t.Errorf("worker %d has answered nothing", n)
		}
	}
}

func TestTokensStopWhileTheClockIsWrong(t *testing.T) {
	t.Parallel()
	for name, direction := range map[string]time.Duration{"behind": 1, "ahead": -1} { // of Papermap's
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var skew atomic.Int64
			w := start(t, options{noWorker: true, now: func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }})
			i := w.startWorker()
			w.create("t")
			eventually(t, soon, w.are(repo.Active, "t"))
			if s := i.State(t.Context()); !s.Ready || len(s.Reasons) > 0 {
				t.Errorf("with a right clock: %+v", s)
			}
			clockIs := func(off string) func() error {
				return func() error {
					s := i.State(t.Context())
					reason := slices.IndexFunc(s.Reasons, func(r string) bool { return strings.Contains(r, "the host's clock is "+off) })
					if !s.Ready || (reason < 0) != (off == "") || off == "" && len(s.Reasons) > 0 {
						return fmt.Errorf("state %+v, want one that is ready, its clock off by %q", s, off)
					}
					return nil
				}
			}
			skew.Store(int64(direction * 90 * time.Second))
			w.publish(events.TypeUsageSync, `{}`) // any answer of the API tells its time
			eventually(t, soon, clockIs("1m"))
			w.token(object("tenant_id", "t"))

			skew.Store(int64(direction * 10 * time.Minute))
			w.publish(events.TypeUsageSync, `{}`)
			eventually(t, soon, func() error {
				if reply := w.request("embed-token", object("tenant_id", "t")); reply.Header.Get("Nats-Service-Error-Code") == "" {
					return errors.New("a token all the same")
				}
				return nil
			})
			for _, endpoint := range []string{"embed-token", "embed-token.t"} {
				if after := w.refused(endpoint, object("tenant_id", "t"), 503, "UNAVAILABLE"); after < 1 {
					t.Error("no retry_after")
				}
			}
			w.request("dashboard", object("tenant_id", "t")) // which does not live by the clock

			skew.Store(0) // and nobody calls the API: the worker itself asks again
			eventually(t, soon, func() error {
				if reply := w.request("embed-token", object("tenant_id", "t")); reply.Header.Get("Nats-Service-Error-Code") != "" {
					return fmt.Errorf("no token: %s", reply.Data)
				}
				return nil
			})
			eventually(t, soon, clockIs(""))
			w.opens(w.token(object("tenant_id", "t")), "Dashboard - t")
		})
	}
}

func TestTokensOfAReplacedPairStayValidUntilItIsRevoked(t *testing.T) {
	onBoth(t, testTokensOfAReplacedPairStayValidUntilItIsRevoked)
}

func testTokensOfAReplacedPairStayValidUntilItIsRevoked(t *testing.T) {
	w := start(t, options{})
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	old := w.token(object("tenant_id", "t"))
	refusedByPapermap := func(token worker.EmbedToken) {
		t.Helper()
		answer, err := http.Get(token.EmbedURL)
		w.must(err)
		if answer.Body.Close(); answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("status %d, want 401", answer.StatusCode)
		}
	}

	next := papermap.KeyPair{ID: "ak_a_embed_2", Secret: papermap.NewSecret("sk_canary_embed_a_2")}
	w.sim.AddKey("ws-a", next) // Papermap has both now
	w.config.Workspaces[0].EmbedKey = next
	for _, replaced := range slices.Clone(w.workers) { // one after the other: somebody always answers
		w.startWorker()
		replaced.stop()
		w.token(object("tenant_id", "t"))
	}
	for range 10 {
		fresh := w.token(object("tenant_id", "t"))
		claims, err := papermap.ParseToken(fresh.Token)
		w.must(err)
		if claims.APIKeyID != next.ID {
			t.Errorf("signed with %s", claims.APIKeyID)
		}
		w.opens(fresh, "Dashboard - t")
	}
	w.opens(old, "Dashboard - t")

	w.sim.RevokeKey(workspaceA.EmbedKey.ID)
	refusedByPapermap(old)
	w.opens(w.token(object("tenant_id", "t")), "Dashboard - t")
	w.create("after") // the API's own pair is another, and works on
	eventually(t, soon, w.are(repo.Active, "after"))
}

func TestEachWorkspaceSignsWithItsOwnPair(t *testing.T) {
	onBoth(t, testEachWorkspaceSignsWithItsOwnPair)
}

func testEachWorkspaceSignsWithItsOwnPair(t *testing.T) {
	w := start(t, options{})
	tenants := map[string]papermap.Workspace{}
	for n, tenant := range names("org", 20) {
		tenants[tenant] = []papermap.Workspace{workspaceA, workspaceB}[n%2]
		w.publish(events.TypeTenantCreated, object("tenant_id", tenant, "name", tenant, "workspace_id", tenants[tenant].ID))
	}
	for tenant := range tenants {
		eventually(t, soon, w.are(repo.Active, tenant))
	}
	for range 5 { // interleaved, so that most expire in the same second
		for tenant, ws := range tenants {
			claims, err := papermap.ParseToken(w.token(object("tenant_id", tenant)).Token)
			w.must(err)
			if err := claims.Verify(ws.EmbedKey, time.Now()); err != nil || claims.WorkspaceID != ws.ID || claims.TenantID != tenant || claims.DashboardID != w.mapping(tenant).DashboardID {
				t.Errorf("%s of %s: %v, %+v", tenant, ws.ID, err, claims)
			}
		}
	}
	for tenant := range tenants {
		w.opens(w.token(object("tenant_id", tenant)), "Dashboard - "+tenant)
	}
}

// What checkSecrets looks for is found wherever it begins in a text that was encoded as a whole.
func TestFormsOfASecretAreFoundInEncodedTexts(t *testing.T) {
	t.Parallel()
	const secret = "sk_canary/+ü&=?"
	for before := range 6 {
		for after := range 6 {
			text := strings.Repeat("<", before) + secret + strings.Repeat(">", after)
			for name, encoded := range map[string]string{
				"raw": text, "hex": fmt.Sprintf("%x", text), "HEX": fmt.Sprintf("%X", text), "base64": base64.StdEncoding.EncodeToString([]byte(text)),
				"base64 of URLs": base64.RawURLEncoding.EncodeToString([]byte(text)), "query": url.QueryEscape(text), "path": url.PathEscape(text),
			} {
				if !slices.ContainsFunc(formsOf(secret), func(form []byte) bool { return strings.Contains(encoded, string(form)) }) {
					t.Errorf("not found in %s, as %s", encoded, name)
				}
			}
		}
	}
}

// A log that is slow to take lines costs lines, not tokens.
func TestABlockedLogDelaysNoTokens(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	w.token(object("tenant_id", "t"))
	w.logs.mu.Lock()
	defer w.logs.mu.Unlock()
	for n := range 3000 { // more than are kept to be written
		reply, err := w.nc.Request("papermap.rpc.embed-token", []byte(object("tenant_id", "t")), 5*time.Second)
		if err != nil || !strings.HasPrefix(string(reply.Data), `{"token":"`) {
			t.Fatalf("token no. %d while nobody reads the log: %v, %+v", n+1, err, reply)
		}
	}
}

// A worker that has nothing to ask of Papermap finds out by itself that its clock is wrong.
func TestAWrongClockIsNoticedAlsoWhenNothingIsAskedOfPapermap(t *testing.T) {
	t.Parallel()
	var skew atomic.Int64
	w := start(t, options{noWorker: true, now: func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }})
	i := w.startWorker()
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	i.stop()
	skew.Store(int64(-10 * time.Minute))
	w.startWorker()
	eventually(t, soon, func() error {
		if reply := w.request("embed-token", object("tenant_id", "t")); reply.Header.Get("Nats-Service-Error-Code") != "503" {
			return fmt.Errorf("answered %.100s", reply.Data)
		}
		return nil
	})
}
