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
	// coldLookups is how many tenants that are not in memory are looked up at once: the other workers are for those that
	// are, and whose mapping is to be read anew.
	coldLookups = events.ServiceWorkers * 3 / 4
)

// tenant is what minting needs of a mapping, small because there may be very many in memory.
type tenant struct {
	id, workspaceID, dashboardID string
	status                       repo.Status
	ws                           *workspace    // nil when it is not configured
	limiter                      *rate.Limiter // nil: no limit
	until                        time.Time     // believed so long
}

// believed says whether the mapping may still be used: by the clock that cannot be set, and by the one that goes on while
// the host sleeps.
func (t *tenant) believed(now time.Time) bool {
	return now.Before(t.until) && now.UnixNano() < t.until.UnixNano()
}

// tenants keeps mappings in memory: filled on demand, bounded, and never believed for long. A change that this or another
// replica makes drops its tenant at once.
type tenants struct {
	load    func(ctx context.Context, tenantID string) (*tenant, error)
	flights singleflight.Group
	lookups *rate.Limiter // of tenants that turned out to be unknown
	cold    chan struct{} // held by lookups of tenants that are not in memory

	mu      sync.Mutex
	known   generations[*tenant]
	unknown generations[time.Time] // until when
}

func newTenants(load func(context.Context, string) (*tenant, error)) *tenants {
	return &tenants{
		load: load, lookups: rate.NewLimiter(lookups, lookups), cold: make(chan struct{}, coldLookups),
		known: generations[*tenant]{most: mostTenants / 2}, unknown: generations[time.Time]{most: mostUnknown / 2},
	}
}

// peek returns a tenant from memory, or an error for one that is known to be unknown or must not be looked up now, or
// neither.
func (t *tenants) peek(tenantID []byte, now time.Time) (*tenant, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, _ := t.known.get(tenantID)
	switch {
	case known != nil && known.believed(now):
		return known, nil
	case known == nil:
		return nil, t.refusal(tenantID, now)
	}
	return nil, nil
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
	case known != nil && known.believed(now):
		return known, nil
	case known == nil:
		select {
		case t.cold <- struct{}{}:
			defer func() { <-t.cold }()
		default:
			return nil, errTooManyLookups
		}
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
	if read := loaded.(*tenant); read.believed(time.Now()) {
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
