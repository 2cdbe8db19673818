package worker

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// EmbedToken is the answer to a request for an embed token. Times are Unix seconds.
type EmbedToken struct {
	Token        string `json:"token"`
	TenantID     string `json:"tenant_id"`
	WorkspaceID  string `json:"workspace_id"`
	DashboardID  string `json:"dashboard_id"`
	ExpiresAt    int64  `json:"expires_at"`
	RefreshAfter int64  `json:"refresh_after"` // after 80 % of the token's life
	ExpiresIn    int64  `json:"expires_in"`    // seconds, for those whose clock may be wrong
	EmbedURL     string `json:"embed_url"`
}

// tokenWait is how long a token request may wait for the database. Callers wait 2 s; they must have
// an error by then.
const tokenWait = 1300 * time.Millisecond

// tokenLimits are the settings of tokens.
type tokenLimits struct {
	ttl, maxTTL time.Duration // default and maximum life
	rate        float64       // tokens per second and tenant; 0: no limit
	burst       int
}

// tokenService mints embed tokens. It calls no API: a token is a signature with the workspace's
// embed key over the mapping's workspace and dashboard.
//
// Promise 6: a suspended or deleted tenant gets no token more than 5 s after the commit. The
// replica that commits invalidates its own cache and announces the change to the others. If that
// message is lost, or the database answers late, tenantLife still limits the age of a mapping.
//
// Two paths lead to the same answer: embedToken, and tokenFromCache, which answers common requests
// for tenants in memory without allocations.
type tokenService struct {
	workspaces workspaces
	db         *repo.DB
	metrics    *metrics
	limits     tokenLimits
	clock      func() time.Time // nil: the host's

	cache  *tenantCache
	counts *tokenCounts
	audit  *tokenAudit
}

func newTokenService(
	all workspaces, db *repo.DB, m *metrics, limits tokenLimits, clock func() time.Time,
	auditRate int,
) *tokenService {
	s := &tokenService{
		workspaces: all, db: db, metrics: m, limits: limits, clock: clock,
		audit: newTokenAudit(auditRate),
	}
	s.cache = newTenantCache(s.loadTenant)
	s.counts = &tokenCounts{
		tenants: s.cache, volume: &tokenVolume{unusual: m.unusual, tenants: s.cache},
	}
	return s
}

// tokenFromCache is the endpoint's Fast: it appends the answer to dst if the request has the common
// form and its tenant is in memory.
func (s *tokenService) tokenFromCache(
	dst []byte, r events.Request,
) (reply []byte, result events.FastResult, err error) {
	q, ok := parseSimpleRequest(r)
	if !ok {
		return nil, events.FastQueue, nil
	}
	start := time.Now()
	t, stale, err := s.cache.lookup(q.tenantID, start)
	switch {
	case stale:
		return nil, events.FastQueueFirst, nil
	case t == nil && err == nil:
		return nil, events.FastQueue, nil
	case err == nil:
		reply, err = s.appendToken(r.Trace, dst, t, q, s.now(start))
	}
	s.metrics.memory.Inc()
	s.metrics.tokenAnswered(err, time.Since(start))
	return reply, events.FastAnswered, err
}

// embedToken mints a token. It queries the database for a tenant that is not in memory.
func (s *tokenService) embedToken(ctx context.Context, r TokenRequest) (token EmbedToken, err error) {
	start := time.Now()
	defer func() { s.metrics.tokenAnswered(err, time.Since(start)) }()
	q, err := r.validate()
	if err != nil {
		return token, err
	}
	waiting, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	t, err := s.cache.get(waiting, r.TenantID)
	if err != nil {
		return token, err
	}
	now := s.now(time.Now())
	life, err := s.authorize(ctx, t, q, now)
	if err != nil {
		return token, err
	}
	return s.token(ctx, t, now, life)
}

// token mints a token as a reply.
func (s *tokenService) token(
	ctx context.Context, t *tenant, now time.Time, life tokenLife,
) (EmbedToken, error) {
	signed, err := s.mint(ctx, nil, t, now, life.expires)
	if err != nil {
		return EmbedToken{}, err
	}
	return EmbedToken{
		Token: string(signed), TenantID: t.id, WorkspaceID: t.ws.ID, DashboardID: t.dashboardID,
		ExpiresAt: life.expires.Unix(), RefreshAfter: life.refreshAfter.Unix(),
		ExpiresIn: life.expires.Unix() - now.Unix(),
		EmbedURL:  papermap.EmbedURL(t.ws.EmbedURL, string(signed), t.ws.ID, t.dashboardID),
	}, nil
}

// now is hostTime, which was just read, unless the service has its own clock.
func (s *tokenService) now(hostTime time.Time) time.Time {
	if s.clock != nil {
		return s.clock()
	}
	return hostTime
}

// tokenLife is when a token expires and when its holder should ask for the next one.
type tokenLife struct{ expires, refreshAfter time.Time }

// authorize returns the lifetime of a token for the tenant, or why it gets none.
func (s *tokenService) authorize(
	ctx context.Context, t *tenant, q tokenRequest, now time.Time,
) (tokenLife, error) {
	switch {
	case len(q.workspaceID) > 0 && string(q.workspaceID) != t.ws.ID:
		return tokenLife{}, errOtherWorkspace
	case t.refused != nil:
		s.audit.asked(ctx, t, now)
		return tokenLife{}, t.refused
	case t.ws.api == nil:
		return tokenLife{}, errNotConfigured
	}
	if err := t.ws.checkClock(); err != nil {
		return tokenLife{}, err
	}
	if err := s.checkRate(t, now); err != nil {
		return tokenLife{}, err
	}
	life := s.limits.ttl
	if q.ttl > 0 {
		life = time.Duration(min(q.ttl, int64(s.limits.maxTTL/time.Second))) * time.Second
	}
	return lifeFrom(now, life), nil
}

func lifeFrom(now time.Time, life time.Duration) tokenLife {
	from := now.Truncate(time.Second)
	return tokenLife{from.Add(life), from.Add(life * 8 / 10)}
}

// checkRate takes one token of the tenant's rate limit.
func (s *tokenService) checkRate(t *tenant, now time.Time) error {
	if s.limits.rate == 0 {
		return nil
	}
	r := s.cache.limiter(t.id, rate.Limit(s.limits.rate), s.limits.burst).ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	r.CancelAt(now)
	return serviceError(429, "RATE_LIMITED", int(math.Ceil(wait.Seconds())),
		"too many tokens for this tenant; keep a token until refresh_after")
}

// mint appends a token to dst, counts it and logs it.
func (s *tokenService) mint(
	ctx context.Context, dst []byte, t *tenant, now, expires time.Time,
) ([]byte, error) {
	signed, err := t.ws.minter.AppendToken(dst, t.id, t.dashboardID, expires)
	if err != nil {
		return nil, fmt.Errorf("tenant %q: %w", t.id, err)
	}
	s.counts.add(t, now)
	s.audit.minted(ctx, t, now, expires, signed[len(dst):])
	return signed, nil
}

// appendToken appends the JSON of the EmbedToken that embedToken would return. It is written by
// hand because it must not allocate.
func (s *tokenService) appendToken(
	ctx context.Context, dst []byte, t *tenant, q tokenRequest, now time.Time,
) ([]byte, error) {
	life, err := s.authorize(ctx, t, q, now)
	if err != nil {
		return nil, err
	}
	dst = append(dst, `{"token":"`...)
	start := len(dst)
	if dst, err = s.mint(ctx, dst, t, now, life.expires); err != nil {
		return nil, err
	}
	end := len(dst)
	dst = append(dst, '"')
	for _, f := range [...]struct{ name, value string }{
		{`,"tenant_id":`, t.id}, {`,"workspace_id":`, t.ws.ID}, {`,"dashboard_id":`, t.dashboardID},
	} {
		dst = append(dst, f.name...)
		dst, _ = papermap.AppendQuote(dst, f.value) // no token is minted for invalid UTF-8
	}
	dst = append(dst, `,"expires_at":`...)
	dst = strconv.AppendInt(dst, life.expires.Unix(), 10)
	dst = append(dst, `,"refresh_after":`...)
	dst = strconv.AppendInt(dst, life.refreshAfter.Unix(), 10)
	dst = append(dst, `,"expires_in":`...)
	dst = strconv.AppendInt(dst, life.expires.Unix()-now.Unix(), 10)
	dst = append(dst, `,"embed_url":`...)
	dst = append(dst, t.ws.embedJSON...)
	padding := end
	for dst[padding-1] == '=' {
		padding--
	}
	dst = append(dst, dst[start:padding]...)
	for range end - padding { // nothing else of base64url needs encoding in a query
		dst = append(dst, "%3D"...)
	}
	dst = papermap.AppendEmbedQuery(dst, t.ws.ID, t.dashboardID)
	return append(dst, `"}`...), nil
}

var errNotConfigured = serviceError(503, "UNAVAILABLE", 60,
	"the tenant's workspace is not configured: set PAPERMAP_WORKSPACES_FILE")

// tokenRefused returns the documented error unless the mapping is active.
func tokenRefused(status repo.Status) *events.ServiceError {
	switch status {
	case repo.Active:
		return nil
	case repo.Suspended:
		return serviceError(403, "TENANT_SUSPENDED", 0, "the tenant is suspended")
	case repo.Deleted:
		return serviceError(410, "TENANT_DELETED", 0, "the tenant was deleted")
	}
	retryAfter := 60
	if status == repo.Pending || status == repo.Creating {
		retryAfter = 2
	}
	return serviceError(409, "DASHBOARD_NOT_READY", retryAfter,
		"the tenant has no dashboard yet: it is "+string(status))
}

// loadTenant reads a mapping.
func (s *tokenService) loadTenant(ctx context.Context, tenantID string) (*tenant, error) {
	s.metrics.database.Inc()
	m, err := s.db.Mapping(ctx, tenantID)
	if err != nil {
		return nil, err
	}
	return s.tenantOf(m), nil
}

// loadTenants is loadTenant for several, in one query.
func (s *tokenService) loadTenants(ctx context.Context, tenantIDs []string) ([]*tenant, error) {
	s.metrics.database.Add(float64(len(tenantIDs)))
	list, err := s.db.MappingsOf(ctx, tenantIDs)
	loaded := make([]*tenant, len(list))
	for i, m := range list {
		loaded[i] = s.tenantOf(m)
	}
	return loaded, err
}

// tenantOf prepares a mapping for minting.
func (s *tokenService) tenantOf(m repo.Mapping) *tenant {
	ids := m.TenantID + m.DashboardID // one allocation for both
	t := &tenant{
		id: ids[:len(m.TenantID)], dashboardID: ids[len(m.TenantID):],
		ws: s.workspaces.byID[m.WorkspaceID], refused: tokenRefused(m.Status),
	}
	if t.ws == nil {
		t.ws = &workspace{Workspace: papermap.Workspace{ID: m.WorkspaceID}}
	}
	return t
}
