package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo/pgtest"
	"papermap-worker/worker"
)

// tokenCallers request tokens all the time, and look at Papermap whether some of them are good.
type tokenCallers struct {
	t       *testing.T
	tenants []string

	mu     sync.Mutex
	minted map[string]int // by the id of the key that signed
	latest map[string]worker.EmbedToken
}

// run requests tokens until ctx ends, and takes nothing else for an answer.
func (c *tokenCallers) run(ctx context.Context, nc *nats.Conn) {
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		tenant := c.tenants[n%len(c.tenants)]
		reply, err := nc.Request("papermap.rpc.embed-token."+tenant, nil, 5*time.Second)
		if err != nil { // no responders, or no answer
			c.t.Errorf("requesting a token for %s: %v", tenant, err)
			continue
		}
		var token worker.EmbedToken
		if err := json.Unmarshal(reply.Data, &token); err != nil {
			c.t.Errorf("the answer for %s: %v", tenant, err)
			continue
		}
		claims, err := papermap.ParseToken(token.Token)
		if err != nil {
			c.t.Errorf("no token for %s: %v, %s", tenant, err, reply.Data)
			continue
		}
		c.mu.Lock()
		c.minted[claims.APIKeyID]++
		c.latest[claims.APIKeyID] = token
		c.mu.Unlock()
		if n%20 == 0 {
			if err := openEmbedded(context.WithoutCancel(ctx), token.EmbedURL); err != nil {
				c.t.Errorf("a token of key %s that was just minted: %v", claims.APIKeyID, err)
			}
		}
	}
}

// Two workers share a PostgreSQL database. Under load, both pairs of keys are changed as SECURITY.md says, each by a restart of
// one replica after the other. No event is lost or repeated, every request for a token is answered, Papermap refuses nothing;
// and tokens of an old pair open their dashboards until that pair is revoked.
func TestRollingRestartsThatRotateBothPairsLoseNoEventAndNoToken(t *testing.T) {
	t.Parallel()
	address := pgtest.ForTest(t)
	s := newSystem(t, simulator.Fault{On: "create", Delay: 30 * time.Millisecond})
	embed := papermap.KeyPair{ID: "ak_embed", Secret: papermap.NewSecret("sk_embed")}
	newAPI, newEmbed := papermap.KeyPair{ID: "ak_new", Secret: papermap.NewSecret("sk_new")}, papermap.KeyPair{ID: "ak_embed_new", Secret: papermap.NewSecret("sk_embed_new")}
	s.sim.AddKey(testWorkspace.ID, embed)
	settings := func(api, embed papermap.KeyPair) []string {
		return append(slices.Clone(s.env), "WORKER_CONCURRENCY=8", "DATABASE_URL="+address,
			"PAPERMAP_API_KEY_ID="+api.ID, "PAPERMAP_SECRET_KEY="+api.Secret.Reveal(), "PAPERMAP_EMBED_API_KEY_ID="+embed.ID, "PAPERMAP_EMBED_SECRET_KEY="+embed.Secret.Reveal())
	}
	js := s.jetStream(t)
	nc := js.Conn()
	replicas := []*process{startReady(t, settings(testWorkspace.Key, embed)), startReady(t, settings(testWorkspace.Key, embed))}
	// restart replaces one replica after the other, with settings that the load does not notice.
	restart := func(env []string) {
		t.Helper()
		for i, old := range replicas {
			before := len(s.sim.Log())
			old.signal(t, syscall.SIGTERM)
			if code := old.wait(t, 30*time.Second); code != 0 {
				t.Errorf("exit code %d after SIGTERM", code)
			}
			replicas[i] = startReady(t, env)
			s.requests(t, before+100) // in the middle of the work
		}
	}

	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	published := 20
	for i := range published {
		publishCreated(t, js, tenantName(i))
	}
	eventually(t, 20*time.Second, func() error {
		if n := len(s.active(t, db)); n < published {
			return fmt.Errorf("%d of %d tenants are active", n, published)
		}
		return nil
	})
	callers := &tokenCallers{t: t, minted: map[string]int{}, latest: map[string]worker.EmbedToken{}}
	for i := range published {
		callers.tenants = append(callers.tenants, tenantName(i))
	}
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	t.Cleanup(func() { stop(); load.Wait() })
	for range 4 {
		load.Go(func() { callers.run(ctx, nc) })
	}
	load.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			data := fmt.Appendf(nil, `{"tenant_id":%q,"name":"Company"}`, tenantName(published))
			if _, err := js.Publish(context.WithoutCancel(ctx), "papermap.events.tenant.created", data); err != nil {
				t.Error(err)
				return
			}
			published++
		}
	})

	s.sim.AddKey(testWorkspace.ID, newAPI)
	restart(settings(newAPI, embed))
	s.sim.RevokeKey(testWorkspace.Key.ID)

	s.sim.AddKey(testWorkspace.ID, newEmbed)
	restart(settings(newAPI, newEmbed))
	open := func(key papermap.KeyPair) error {
		callers.mu.Lock()
		token := callers.latest[key.ID]
		callers.mu.Unlock()
		return openEmbedded(t.Context(), token.EmbedURL)
	}
	for _, key := range []papermap.KeyPair{embed, newEmbed} {
		if err := open(key); err != nil {
			t.Errorf("a token of key %s while both pairs are good: %v", key.ID, err)
		}
	}
	s.sim.RevokeKey(embed.ID)
	if err := open(embed); err == nil {
		t.Error("a token of the old pair is good after that was revoked")
	}
	before := len(s.sim.Log())
	s.requests(t, before+100) // the load goes on
	stop()
	load.Wait()

	announced := map[string]string{}
	eventually(t, 30*time.Second, func() error {
		s.announcements(t, js, announced)
		if info := consumer(t, js, "papermap-worker"); info.NumPending+uint64(info.NumAckPending) > 0 || len(announced) < published {
			return fmt.Errorf("of %d events %d wait and %d are in hand; %d tenants were announced", published, info.NumPending, info.NumAckPending, len(announced))
		}
		return nil
	})
	s.checkRecords(t, db, announced)
	if len(announced) != published {
		t.Errorf("%d tenants were published, %d have a dashboard", published, len(announced))
	}
	if n := len(s.sim.Dashboards()); n != published { // who drains leaves no outcome open, so none was made again
		t.Errorf("%d dashboards were made for %d tenants", n, published)
	}
	for _, r := range s.sim.Log() {
		if r.Status != 200 {
			t.Errorf("Papermap answered %d to request %d", r.Status, r.Seq)
		}
	}
	t.Logf("%d tenants; tokens by key: %v", published, callers.minted)
	if callers.minted[embed.ID] == 0 || callers.minted[newEmbed.ID] == 0 || len(callers.minted) != 2 {
		t.Errorf("tokens by key: %v", callers.minted)
	}
}

// startReady starts a worker and returns when it says that it is ready.
func startReady(t *testing.T, env []string) *process {
	t.Helper()
	p := start(t, env, "serve")
	address := p.address(t)
	eventually(t, 20*time.Second, func() error {
		if code, text := health(t, address); code != 0 {
			return errors.New(text)
		}
		return nil
	})
	return p
}
