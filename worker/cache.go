package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/repo"
)

const (
	// tenantLife is how long a mapping may be used, counted from the start of its query. Promise 6
	// allows 5 s from the commit of a change, and the query may have started before the commit.
	tenantLife = 4 * time.Second
	// unknownLife is how long a tenant counts as unknown or not active. It is short, so that a new
	// tenant soon gets tokens.
	unknownLife = time.Second

	maxTenants = 200_000 // in memory
	maxUnknown = 20_000

	// maxLookups is how many queries per second all unknown tenants together may cause.
	maxLookups = 2000
)

// tenant is what minting needs of a mapping: 64 bytes and a text, because very many may be in
// memory.
type tenant struct {
	id, dashboardID string
	ws              *workspace           // without a client if it is not configured
	refused         *events.ServiceError // why there are no tokens; nil: there are

	// It is fresh until both times: on the monotonic clock, since the cache was made, which cannot
	// be set; and on the wall clock, in Unix nanoseconds, which continues while the host sleeps.
	until time.Duration
	wall  int64
}

// tenantCache keeps mappings in memory: filled on demand, bounded, and used for a few seconds at
// most. A change by this or another replica invalidates its tenant at once.
type tenantCache struct {
	load    func(ctx context.Context, tenantID string) (*tenant, error)
	flights singleflight.Group
	lookups *rate.Limiter // of tenants that turned out to be unknown
	start   time.Time

	mu      sync.Mutex
	known   twoGenCache[*tenant]
	unknown twoGenCache[time.Time] // until when
	rates   twoGenCache[*rate.Limiter]
}

func newTenantCache(load func(context.Context, string) (*tenant, error)) *tenantCache {
	return &tenantCache{
		load: load, lookups: rate.NewLimiter(maxLookups, maxLookups), start: time.Now(),
		known:   twoGenCache[*tenant]{size: maxTenants / 2},
		unknown: twoGenCache[time.Time]{size: maxUnknown / 2},
		rates:   twoGenCache[*rate.Limiter]{size: maxTenants / 2},
	}
}

// setLife sets how long a mapping is fresh, from the time of its query.
func (c *tenantCache) setLife(t *tenant, asked time.Time, life time.Duration) {
	t.until, t.wall = asked.Sub(c.start)+life, asked.Add(life).UnixNano()
}

func (c *tenantCache) fresh(t *tenant, now time.Time) bool {
	return now.Sub(c.start) < t.until && now.UnixNano() < t.wall
}

// limiter returns the tenant's rate limiter, which outlives the cached mapping.
func (c *tenantCache) limiter(tenantID string, limit rate.Limit, burst int) *rate.Limiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.rates.get([]byte(tenantID))
	if !ok {
		l = rate.NewLimiter(limit, burst)
		c.rates.put(tenantID, l)
	}
	return l
}

// lookup returns a fresh tenant from memory. For one that is known to be unknown, or must not be
// queried now, it returns an error. If it returns neither, the tenant has to be queried; stale
// means that an old mapping is in memory.
func (c *tenantCache) lookup(tenantID []byte, now time.Time) (t *tenant, stale bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, _ := c.known.get(tenantID)
	until, _ := c.unknown.get(tenantID)
	switch {
	case known != nil && c.fresh(known, now):
		return known, false, nil
	case known != nil:
		return nil, true, nil
	case now.Before(until):
		return nil, false, errUnknownTenant
	case c.lookups.TokensAt(now) < 1:
		return nil, false, errTooManyLookups
	}
	return nil, false, nil
}

var (
	errUnknownTenant = serviceError(404, "TENANT_NOT_FOUND", 0,
		"the tenant is unknown: was tenant.created published for it?")
	errTooManyLookups = serviceError(503, "UNAVAILABLE", 1,
		"too many requests for tenants that are not known; try again")
	errLateAnswer = serviceError(503, "UNAVAILABLE", 1, "the database answered too late; try again")
)

// get returns a tenant from memory or from the database. Concurrent requests for one tenant share
// one query.
func (c *tenantCache) get(ctx context.Context, tenantID string) (*tenant, error) {
	if known, _, err := c.lookup([]byte(tenantID), time.Now()); known != nil || err != nil {
		return known, err
	}
	flight := c.flights.DoChan(tenantID, func() (any, error) { return c.query(ctx, tenantID) })
	select {
	case loaded := <-flight:
		if loaded.Err != nil {
			return nil, loaded.Err
		}
		if t := loaded.Val.(*tenant); c.fresh(t, time.Now()) {
			return t, nil
		}
	case <-ctx.Done():
	}
	return nil, errLateAnswer
}

// query loads a tenant into memory. It continues when ctx ends, because others may wait for its
// answer, but only as long as the answer could be used.
func (c *tenantCache) query(ctx context.Context, tenantID string) (*tenant, error) {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tenantLife)
	defer cancel()
	t, err := c.load(ctx, tenantID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, repo.ErrNotFound) {
		c.lookups.ReserveN(time.Now(), 1) // into debt, too: several may have been let in for one token
		c.unknown.put(tenantID, asked.Add(unknownLife))
		return nil, errUnknownTenant
	}
	if err != nil {
		return nil, err
	}
	life := tenantLife
	if t.refused != nil {
		life = unknownLife
	}
	c.setLife(t, asked, life)
	c.known.put(t.id, t) // the same copy of the id as in t
	return t, nil
}

// size is how many tenants are in memory.
func (c *tenantCache) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.known.young) + len(c.known.old)
}

// invalidate makes the next request for a tenant query its changed mapping. A query in flight may
// still return the old mapping, which is then used for at most tenantLife.
func (c *tenantCache) invalidate(tenantID string) {
	c.flights.Forget(tenantID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.known.get([]byte(tenantID)); ok {
		expired := *known
		expired.until = 0
		c.known.put(known.id, &expired) // it stays known, so that its next query goes ahead of unknown ones
	}
	c.unknown.drop(tenantID)
}

// twoGenCache is a bounded map that evicts roughly what was least recently used: when the young
// half is full it becomes the old one, and the old one is dropped.
type twoGenCache[V any] struct {
	size       int // of each half
	young, old map[string]V
}

func (g *twoGenCache[V]) get(key []byte) (V, bool) {
	v, ok := g.young[string(key)]
	if !ok {
		if v, ok = g.old[string(key)]; ok {
			g.put(string(key), v)
		}
	}
	return v, ok
}

func (g *twoGenCache[V]) put(key string, v V) {
	if len(g.young) >= g.size {
		g.old, g.young = g.young, nil
	}
	if g.young == nil {
		g.young = map[string]V{}
	}
	g.young[key] = v
}

func (g *twoGenCache[V]) drop(key string) {
	delete(g.young, key)
	delete(g.old, key)
}
