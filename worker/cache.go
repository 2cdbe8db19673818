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

// tenant is what minting needs of a mapping, small because there may be very many in memory.
type tenant struct {
	id, workspaceID, dashboardID string
	status                       repo.Status
	ws                           *workspace    // nil when it is not configured
	limiter                      *rate.Limiter // nil: no limit
	until                        time.Time     // believed so long
}

// tenants keeps mappings in memory: filled on demand, bounded, and never believed for long. A change that this or another
// replica makes drops its tenant at once.
type tenants struct {
	load    func(ctx context.Context, tenantID string) (*tenant, error)
	flights singleflight.Group
	lookups *rate.Limiter

	mu      sync.Mutex
	known   generations[*tenant]
	unknown generations[time.Time] // until when
}

func newTenants(load func(context.Context, string) (*tenant, error)) *tenants {
	return &tenants{
		load: load, lookups: rate.NewLimiter(lookups, lookups),
		known: generations[*tenant]{most: mostTenants / 2}, unknown: generations[time.Time]{most: mostUnknown / 2},
	}
}

// peek returns a tenant from memory, or nil.
func (t *tenants) peek(tenantID []byte, now time.Time) *tenant {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, _ := t.known.get(tenantID)
	if known == nil || now.After(known.until) {
		return nil
	}
	return known
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
	unknownUntil, _ := t.unknown.get([]byte(tenantID))
	isUnknown := now.Before(unknownUntil)
	tooMany := known == nil && !isUnknown && !t.lookups.AllowN(now, 1)
	t.mu.Unlock()
	switch {
	case known != nil && now.Before(known.until):
		return known, nil
	case isUnknown:
		return nil, errUnknownTenant
	case tooMany:
		return nil, errTooManyLookups
	}
	loaded, err, _ := t.flights.Do(tenantID, func() (any, error) {
		asked := time.Now()
		loading, cancel := context.WithTimeout(context.WithoutCancel(ctx), tenantLife) // a later answer is not believed
		m, err := t.load(loading, tenantID)
		cancel()
		t.mu.Lock()
		defer t.mu.Unlock()
		if errors.Is(err, repo.ErrNotFound) {
			t.unknown.put(tenantID, asked.Add(unknownLife))
			return nil, errUnknownTenant
		}
		if err != nil {
			return nil, err
		}
		m.until = asked.Add(tenantLife)
		if m.status != repo.Active {
			m.until = asked.Add(unknownLife)
		}
		if known != nil {
			m.limiter = known.limiter
		}
		t.known.put(m.id, m) // one copy of the id for both
		return m, nil
	})
	if err != nil {
		return nil, err
	}
	if read := loaded.(*tenant); time.Now().Before(read.until) {
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
		expired.until = time.Time{}
		t.known.put(known.id, &expired) // its rate goes on
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
