package worker

import (
	"context"
	"errors"
	"slices"
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

	// renewBefore is how long before the end of its life a mapping that is in use is read again, so
	// that no request waits for the database.
	renewBefore  = time.Second
	renewAtOnce  = 100                    // mappings in one query
	renewalPause = 250 * time.Millisecond // after a query that failed

	maxTenants = 200_000 // in memory
	maxUnknown = 20_000

	// maxLookups is how many queries per second all unknown tenants together may cause.
	maxLookups = 2000
)

// tenant is what minting needs of a mapping: 80 bytes and a text, because very many may be in
// memory.
type tenant struct {
	id, dashboardID string
	ws              *workspace           // without a client if it is not configured
	refused         *events.ServiceError // why there are no tokens; nil: there are

	// The cache's lock guards all below.

	// It is fresh until both times: on the monotonic clock, since the cache was made, which cannot
	// be set; and on the wall clock, in Unix nanoseconds, which continues while the host sleeps.
	until time.Duration
	wall  int64

	renewing bool   // its mapping is being read again
	minted   uint32 // tokens that tokenCounts has not collected yet
	volume   volume
}

// replaces makes t the tenant's entry instead of old.
func (t *tenant) replaces(old *tenant) {
	t.volume = old.volume
	t.volume.now += old.minted
}

// sameAs reports whether both entries give the same tokens.
func (t *tenant) sameAs(o *tenant) bool {
	return t.refused == nil && o.refused == nil && t.ws == o.ws && t.dashboardID == o.dashboardID
}

// tenantCache keeps mappings in memory: filled on demand, bounded, and used for a few seconds at
// most. A change by this or another replica invalidates its tenant at once.
type tenantCache struct {
	load    func(ctx context.Context, tenantID string) (*tenant, error)
	flights singleflight.Group
	lookups *rate.Limiter // of tenants that turned out to be unknown
	start   time.Time

	renew chan struct{} // holds an element while renewal may not be empty

	mu      sync.Mutex
	known   twoGenCache[*tenant]
	renewal []*tenant              // whose mappings are to be read again
	unknown twoGenCache[time.Time] // until when
	rates   twoGenCache[*rate.Limiter]
}

func newTenantCache(load func(context.Context, string) (*tenant, error)) *tenantCache {
	return &tenantCache{
		load: load, lookups: rate.NewLimiter(maxLookups, maxLookups), start: time.Now(),
		renew:   make(chan struct{}, 1),
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
	if known, ok := c.known.get(tenantID); ok {
		if !c.fresh(known, now) {
			return nil, true, nil
		}
		if !known.renewing && known.refused == nil && !c.fresh(known, now.Add(renewBefore)) {
			c.queueRenewal(known)
		}
		return known, false, nil
	}
	until, _ := c.unknown.get(tenantID)
	switch {
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
		t := loaded.Val.(*tenant)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.fresh(t, time.Now()) {
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
	return c.keep(t, asked), nil
}

// keep puts a mapping into memory that was queried at asked, and returns its entry. The caller has
// locked the cache.
func (c *tenantCache) keep(t *tenant, asked time.Time) *tenant {
	life := tenantLife
	if t.refused != nil {
		life = unknownLife
	}
	known, ok := c.known.get([]byte(t.id))
	if ok && t.sameAs(known) {
		c.setLife(known, asked, life)
		return known
	}
	if ok {
		t.replaces(known)
	}
	c.setLife(t, asked, life)
	c.known.put(t.id, t) // the same copy of the id as in t
	return t
}

// queueRenewal has a mapping read again by renewals. The caller has locked the cache.
func (c *tenantCache) queueRenewal(t *tenant) {
	t.renewing = true
	c.renewal = append(c.renewal, t)
	select {
	case c.renew <- struct{}{}:
	default:
	}
}

// renewals reads queued mappings again, many in one query, until ctx ends.
func (c *tenantCache) renewals(
	ctx context.Context, load func(ctx context.Context, tenantIDs []string) ([]*tenant, error),
) {
	for {
		select {
		case <-c.renew:
		case <-ctx.Done():
			return
		}
		for batch := c.nextRenewal(); len(batch) > 0 && ctx.Err() == nil; batch = c.nextRenewal() {
			if err := c.renewAll(ctx, batch, load); err != nil { // requests will meet the same error
				events.Sleep(ctx, renewalPause)
			}
		}
	}
}

func (c *tenantCache) nextRenewal() []*tenant {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(renewAtOnce, len(c.renewal))
	batch := slices.Clone(c.renewal[:n])
	clear(c.renewal[:n])
	c.renewal = c.renewal[n:]
	return batch
}

func (c *tenantCache) renewAll(
	ctx context.Context, batch []*tenant,
	load func(ctx context.Context, tenantIDs []string) ([]*tenant, error),
) error {
	ids := make([]string, len(batch))
	for i, t := range batch {
		ids[i] = t.id
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, renewBefore)
	defer cancel()
	loaded, err := load(ctx, ids)
	c.mu.Lock()
	defer c.mu.Unlock()
	current := map[string]bool{} // not changed since the query began
	for _, t := range batch {
		t.renewing = false
		now, _ := c.known.get([]byte(t.id))
		current[t.id] = now == t
	}
	for _, t := range loaded {
		if current[t.id] {
			c.keep(t, asked)
		}
	}
	return err
}

// each calls do for each tenant in memory. It must be short: nobody gets a token meanwhile.
func (c *tenantCache) each(do func(*tenant)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.known.young {
		do(t)
	}
	for id, t := range c.known.old {
		if _, ok := c.known.young[id]; !ok {
			do(t)
		}
	}
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
		// It stays known, so that its next query goes ahead of unknown ones.
		expired := &tenant{id: known.id, dashboardID: known.dashboardID, ws: known.ws, refused: known.refused}
		expired.replaces(known)
		c.known.put(known.id, expired)
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
