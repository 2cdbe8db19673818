package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// Whatever the delays and errors of the database, the order of its answers, the announcements that are
// lost and the tenants that leave memory: a token is for a dashboard with which the tenant was active at
// most tenantLife before, and each token is counted once.
func TestTokensFollowTheDatabaseHoweverItAnswers(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) { newTokenStory(t, seed).run() })
	}
}

// tokenStory is a minute of random requests, changes and writes of counts, in virtual time.
type tokenStory struct {
	t    *testing.T
	seed uint64
	s    *tokenService
	slow atomic.Bool // the database

	mu      sync.Mutex
	random  *rand.Rand
	history map[string][]storyState // by tenant
	minted  map[string]int64
	written map[string]int64
}

// storyTenants are the tenants' ids.
const storyTenants = "abcdefg"

type storyState struct {
	from      time.Time
	status    repo.Status // empty: the tenant is unknown
	dashboard string
}

func newTokenStory(t *testing.T, seed uint64) *tokenStory {
	began := time.Now()
	ws := configured(papermap.Workspace{
		ID: "w", APIURL: "http://127.0.0.1:1",
		EmbedKey: papermap.KeyPair{ID: "k", Secret: papermap.NewSecret("s")},
	})
	y := &tokenStory{
		t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 1)),
		history: map[string][]storyState{}, minted: map[string]int64{}, written: map[string]int64{},
	}
	for _, id := range storyTenants {
		y.history[string(id)] = []storyState{{from: began, dashboard: "first"}}
	}
	y.s = newTokenService(workspaces{byID: map[string]*workspace{"w": ws}}, nil, newMetrics(Build{}),
		tokenLimits{ttl: time.Hour, maxTTL: time.Hour}, func() time.Time { // a month ends meanwhile
			return time.Date(2026, 1, 31, 23, 59, 40, 0, time.UTC).Add(time.Since(began))
		}, 100)
	y.s.cache.load = func(ctx context.Context, id string) (*tenant, error) {
		list, err := y.load(ctx, []string{id})
		if err == nil && len(list) == 0 {
			err = repo.ErrNotFound
		}
		if err != nil {
			return nil, err
		}
		return list[0], nil
	}
	y.slow.Store(true)
	y.s.cache.known.size = []int{2, 3, 5, 100}[seed%4]
	return y
}

func (y *tokenStory) run() {
	ctx, stop := context.WithCancel(y.t.Context())
	var all sync.WaitGroup
	repeat := func(pause time.Duration, do func()) {
		all.Go(func() {
			for ctx.Err() == nil {
				do()
				time.Sleep(y.upTo(pause))
			}
		})
	}
	all.Go(func() { y.s.cache.renewals(ctx, y.load) })
	for range 6 {
		repeat(200*time.Millisecond, func() { y.request(y.tenant()) })
	}
	repeat(1500*time.Millisecond, y.change)
	repeat(3*time.Second, func() { y.write(true) })
	time.Sleep(time.Minute)
	stop()
	all.Wait()
	time.Sleep(tenantLife) // all queries have ended, and what they read is too old

	y.slow.Store(false)
	for id := range y.history {
		if now := y.now(id); now.status == repo.Active {
			if token := y.request(id); token.DashboardID != now.dashboard {
				y.t.Errorf("seed %d: %s has %q in the end, and got %q", y.seed, id, now.dashboard,
					token.DashboardID)
			}
		}
	}
	y.write(false)
	for id, n := range y.minted {
		if y.written[id] != n {
			y.t.Errorf("seed %d: %d of %d tokens of %s are counted", y.seed, y.written[id], n, id)
		}
	}
	if len(y.minted) == 0 {
		y.t.Errorf("seed %d: no tokens", y.seed)
	}
}

func (y *tokenStory) n(n int) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.random.IntN(n)
}

func (y *tokenStory) upTo(d time.Duration) time.Duration { return time.Duration(y.n(int(d))) + 1 }

func (y *tokenStory) tenant() string { return string(storyTenants[y.n(len(storyTenants))]) }

func (y *tokenStory) now(id string) storyState {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.history[id][len(y.history[id])-1]
}

// load is a query: its answer is of a time between its beginning and its end.
func (y *tokenStory) load(ctx context.Context, ids []string) (list []*tenant, err error) {
	if err := y.delay(ctx); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if now := y.now(id); now.status != "" {
			list = append(list, y.s.tenantOf(repo.Mapping{
				TenantID: id, WorkspaceID: "w", DashboardID: now.dashboard, Status: now.status,
			}))
		}
	}
	return list, y.delay(ctx)
}

func (y *tokenStory) delay(ctx context.Context) error {
	if !y.slow.Load() {
		return nil
	}
	if y.n(40) == 0 {
		return errors.New("no database")
	}
	longest := []time.Duration{5, 5, 5, 50, 50, 600, 2500}[y.n(7)] * time.Millisecond
	if !events.Sleep(ctx, y.upTo(longest)) {
		return ctx.Err()
	}
	return nil
}

// change changes a tenant. Two of three changes are announced.
func (y *tokenStory) change() {
	id := y.tenant()
	next := y.now(id)
	next.status = []repo.Status{
		repo.Active, repo.Active, repo.Suspended, repo.Deleted, repo.Pending,
	}[y.n(5)]
	if y.n(3) == 0 {
		next.dashboard = fmt.Sprint(y.n(1000))
	}
	y.mu.Lock()
	next.from = time.Now()
	y.history[id] = append(y.history[id], next)
	y.mu.Unlock()
	if y.n(3) > 0 {
		time.Sleep(y.upTo(30 * time.Millisecond))
		y.s.cache.invalidate(id)
	}
}

// request requests a token, as the endpoint does, and checks what it gets.
func (y *tokenStory) request(id string) (token EmbedToken) {
	reply, result, err := y.s.tokenFromCache(nil, events.Request{
		Data: fmt.Appendf(nil, `{"tenant_id":%q}`, id), Trace: y.t.Context(),
	})
	switch {
	case result != events.FastAnswered:
		token, err = y.s.embedToken(y.t.Context(), TokenRequest{TenantID: id})
	case err == nil:
		err = json.Unmarshal(reply, &token)
	}
	at := time.Now()
	y.mu.Lock()
	defer y.mu.Unlock()
	if err != nil {
		return EmbedToken{} // refusals are checked elsewhere
	}
	y.minted[id]++
	if token.TenantID != id || token.WorkspaceID != "w" {
		y.t.Errorf("seed %d: a token of %s in %s for %s", y.seed, token.TenantID, token.WorkspaceID, id)
	}
	states := y.history[id]
	for i, state := range states {
		ended := i+1 < len(states) && !states[i+1].from.After(at.Add(-tenantLife))
		if !ended && state.status == repo.Active && state.dashboard == token.DashboardID {
			return token
		}
	}
	y.t.Errorf("seed %d: %s got a token for %q at %v; it was %v", y.seed, id, token.DashboardID, at, states)
	return token
}

// write is tokenCounts.write to a database that may fail.
func (y *tokenStory) write(mayFail bool) {
	c := y.s.counts
	for left := c.left(); left > 0; {
		batch := c.batch()
		if time.Sleep(y.upTo(20 * time.Millisecond)); mayFail && y.n(2) == 0 {
			return
		}
		y.mu.Lock()
		for _, r := range batch {
			y.written[r.TenantID] += r.Tokens
		}
		y.mu.Unlock()
		c.written(len(batch))
		left -= len(batch)
	}
}
