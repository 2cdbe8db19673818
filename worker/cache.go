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
	// tenantLife is how long a mapping is believed. Promise 6 gives 5 s, and the reading of it counts.
	tenantLife = 4 * time.Second
	// unknownLife is how long a tenant is believed to be unknown, or not to be active: nobody is kept waiting for long
	// when that changes.
	unknownLife = time.Second

	mostTenants = 200_000 // in memory
	mostUnknown = 20_000

	// lookups per second that unknown tenants may cause at the database, all together.
	lookups = 2000
)

// tenant is what minting needs of a mapping: 64 bytes and a text, because there may be very many in memory.
type tenant struct {
	id, dashboardID string
	ws              *workspace           // without a client when it is not configured
	refused         *events.ServiceError // why there are no tokens; nil: there are

	// Believed so long by the clock that cannot be set, from when the worker began, and by the one that goes on while the
	// host sleeps, in Unix nanoseconds.
	until time.Duration
	wall  int64
}

// tenants keeps mappings in memory: filled on demand, bounded, and never believed for long. A change that this or another
// replica makes drops its tenant at once.
type tenants struct {
	load    func(ctx context.Context, tenantID string) (*tenant, error)
	flights singleflight.Group
	lookups *rate.Limiter // of tenants that turned out to be unknown
	began   time.Time

	mu      sync.Mutex
	known   generations[*tenant]
	unknown generations[time.Time] // until when
	rates   generations[*rate.Limiter]
}

func newTenants(load func(context.Context, string) (*tenant, error)) *tenants {
	return &tenants{
		load: load, lookups: rate.NewLimiter(lookups, lookups), began: time.Now(),
		known: generations[*tenant]{most: mostTenants / 2}, unknown: generations[time.Time]{most: mostUnknown / 2},
		rates: generations[*rate.Limiter]{most: mostTenants / 2},
	}
}

// believe sets how long a mapping is believed that was asked for at a time.
func (t *tenants) believe(m *tenant, asked time.Time, life time.Duration) {
	m.until, m.wall = asked.Sub(t.began)+life, asked.Add(life).UnixNano()
}

func (t *tenants) believed(m *tenant, now time.Time) bool {
	return now.Sub(t.began) < m.until && now.UnixNano() < m.wall
}

// limiter is the tenant's own, which goes on however often the mapping is read anew.
func (t *tenants) limiter(tenantID string, limit rate.Limit, burst int) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.rates.get([]byte(tenantID))
	if !ok {
		l = rate.NewLimiter(limit, burst)
		t.rates.put(tenantID, l)
	}
	return l
}

// peek returns a tenant from memory, or an error for one that is known to be unknown or must not be looked up now, or
// neither. stale says that there is one in memory, which is only to be read anew.
func (t *tenants) peek(tenantID []byte, now time.Time) (m *tenant, stale bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, _ := t.known.get(tenantID)
	switch {
	case known != nil && t.believed(known, now):
		return known, false, nil
	case known == nil:
		return nil, false, t.refusal(tenantID, now)
	}
	return nil, true, nil
}

// refusal is why a tenant that is not in memory is not looked up, or nil. t.mu is held.
func (t *tenants) refusal(tenantID []byte, now time.Time) error {
	if until, ok := t.unknown.get(tenantID); ok && now.Before(until) {
		return errUnknownTenant
	}
	if t.lookups.TokensAt(now) < 1 {
		return errTooManyLookups
	}
	return nil
}

var (
	errUnknownTenant  = &events.ServiceError{Status: 404, Code: "TENANT_NOT_FOUND", Message: "the tenant is unknown: was tenant.created published for it?"}
	errTooManyLookups = &events.ServiceError{Status: 503, Code: "UNAVAILABLE", Message: "too many requests for tenants that are not known; try again", RetryAfter: 1}
	errLateReading    = &events.ServiceError{Status: 503, Code: "UNAVAILABLE", Message: "the database answered too late to be believed; try again", RetryAfter: 1}
)

// get returns a tenant, from memory or from the database, which several requests for one tenant ask once.
func (t *tenants) get(ctx context.Context, tenantID string) (*tenant, error) {
	t.mu.Lock()
	now := time.Now() // behind the lock: a limiter whose clock goes back allows too much
	known, _ := t.known.get([]byte(tenantID))
	var refusal error
	if known == nil {
		refusal = t.refusal([]byte(tenantID), now)
	}
	t.mu.Unlock()
	switch {
	case refusal != nil:
		return nil, refusal
	case known != nil && t.believed(known, now):
		return known, nil
	}
	loaded, err, _ := t.flights.Do(tenantID, func() (any, error) {
		asked := time.Now()
		loading, cancel := context.WithTimeout(context.WithoutCancel(ctx), tenantLife) // a later answer is not believed
		m, err := t.load(loading, tenantID)
		cancel()
		t.mu.Lock()
		defer t.mu.Unlock()
		if errors.Is(err, repo.ErrNotFound) {
			t.lookups.ReserveN(time.Now(), 1) // into debt, too: several may have been let in for one token
			t.unknown.put(tenantID, asked.Add(unknownLife))
			return nil, errUnknownTenant
		}
		if err != nil {
			return nil, err
		}
		life := tenantLife
		if m.refused != nil {
			life = unknownLife
		}
		t.believe(m, asked, life)
		t.known.put(m.id, m) // one copy of the id for both
		return m, nil
	})
	if err != nil {
		return nil, err
	}
	if read := loaded.(*tenant); t.believed(read, time.Now()) {
		return read, nil
	}
	return nil, errLateReading
}

// size is how many tenants are in memory.
func (t *tenants) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.known.young) + len(t.known.old)
}

// drop forgets a tenant whose mapping has changed. A reading of it that is under way may still be of before, and is then
// believed for tenantLife, no longer.
func (t *tenants) drop(tenantID string) {
	t.flights.Forget(tenantID)
	t.mu.Lock()
	defer t.mu.Unlock()
	if known, ok := t.known.get([]byte(tenantID)); ok {
		expired := *known
		expired.until = 0
		t.known.put(known.id, &expired) // known all the same, and so read ahead of others
	}
	t.unknown.drop(tenantID)
}

// generations is a map that forgets what has not been used for the longest, roughly: when it is full, the younger half
// becomes the older, and the older is forgotten.
type generations[V any] struct {
	most       int // in each
	young, old map[string]V
}

func (g *generations[V]) get(key []byte) (V, bool) {
	v, ok := g.young[string(key)]
	if !ok {
		if v, ok = g.old[string(key)]; ok {
			g.put(string(key), v)
		}
	}
	return v, ok
}

func (g *generations[V]) put(key string, v V) {
	if len(g.young) >= g.most {
		g.old, g.young = g.young, nil
	}
	if g.young == nil {
		g.young = map[string]V{}
	}
	g.young[key] = v
}

func (g *generations[V]) drop(key string) {
	delete(g.young, key)
	delete(g.old, key)
}
