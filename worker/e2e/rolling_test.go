package e2e

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"papermap-worker/papermap"
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
		var token worker.EmbedToken
		var claims papermap.Claims
		reply, err := nc.Request("papermap.rpc.embed-token."+tenant, nil, 5*time.Second)
		if err == nil {
			err = json.Unmarshal(reply.Data, &token)
		}
		if err == nil {
			claims, err = papermap.ParseToken(token.Token)
		}
		if err != nil { // no responders, no answer, or no token
			c.t.Errorf("requesting a token for %s: %v, %v", tenant, err, reply)
			continue
		}
		c.mu.Lock()
		c.minted[claims.APIKeyID]++
		c.latest[claims.APIKeyID] = token
		c.mu.Unlock()
		if n%20 == 0 {
			if err := openEmbedded(token.EmbedURL); err != nil {
				c.t.Errorf("a token of key %s that was just minted: %v", claims.APIKeyID, err)
			}
		}
	}
}

// Two workers share a PostgreSQL database. Under load, both pairs of keys are changed as
// SECURITY.md says, each by a restart of one replica after the other. No event is lost or repeated,
// every request for a token is answered, Papermap refuses nothing; and tokens of an old pair open
// their dashboards until that pair is revoked.
func TestRollingRestartsRotateKeysWithoutLoss(t *testing.T) {
	t.Parallel()
	s := newSystem(t, "on=create delay=30ms")
	s.usePostgres(t)
	embed := papermap.KeyPair{ID: "ak_embed", Secret: papermap.NewSecret("sk_embed")}
	newAPI := papermap.KeyPair{ID: "ak_new", Secret: papermap.NewSecret("sk_new")}
	newEmbed := papermap.KeyPair{ID: "ak_embed_new", Secret: papermap.NewSecret("sk_embed_new")}
	s.sim.AddKey(testWorkspace.ID, embed)
	settings := func(api, embed papermap.KeyPair) []string {
		return append(slices.Clone(s.env), "WORKER_CONCURRENCY=8",
			"PAPERMAP_API_KEY_ID="+api.ID, "PAPERMAP_SECRET_KEY="+api.Secret.Reveal(),
			"PAPERMAP_EMBED_API_KEY_ID="+embed.ID, "PAPERMAP_EMBED_SECRET_KEY="+embed.Secret.Reveal())
	}
	js := s.jetStream(t)
	first := settings(testWorkspace.Key, embed)
	replicas := []*process{startReady(t, first), startReady(t, first)}
	// restart replaces one replica after the other, with settings that the load does not notice.
	restart := func(env []string) {
		t.Helper()
		for i, old := range replicas {
			before := len(s.sim.Log())
			old.stop(t)
			replicas[i] = startReady(t, env)
			s.requests(t, before+100) // in the middle of the work
		}
	}
	const tenants = 20 // that tokens are requested for
	published := publishTenants(t, js, tenants)
	callers := &tokenCallers{t: t, minted: map[string]int{}, latest: map[string]worker.EmbedToken{}}
	for _, p := range published {
		s.status(t, p.Tenant, "active")
		callers.tenants = append(callers.tenants, p.Tenant)
	}
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	t.Cleanup(func() { stop(); load.Wait() })
	for range 4 {
		load.Go(func() { callers.run(ctx, js.Conn()) })
	}
	load.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; <-tick.C {
			published = append(published, publishCreated(t, js, tenantName(len(published))))
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
		return openEmbedded(token.EmbedURL)
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
	s.requests(t, len(s.sim.Log())+100) // the load continues
	stop()
	load.Wait()

	h := s.prove(t, js, published)
	// a worker that drains leaves no outcome open, so none was made again
	if len(h.Dashboards) != len(published) {
		t.Errorf("%d dashboards were made for %d tenants", len(h.Dashboards), len(published))
	}
	for _, r := range h.Requests {
		if r.Status != http.StatusOK {
			t.Errorf("Papermap answered %d to request %d", r.Status, r.Seq)
		}
	}
	t.Logf("%d tenants; tokens by key: %v", len(published), callers.minted)
	if callers.minted[embed.ID] == 0 || callers.minted[newEmbed.ID] == 0 || len(callers.minted) != 2 {
		t.Errorf("tokens by key: %v", callers.minted)
	}
}
