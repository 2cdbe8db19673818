package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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
	RefreshAfter int64  `json:"refresh_after"` // when 80 % of the life are over
	EmbedURL     string `json:"embed_url"`
}

// Dashboard is the answer to a request for a tenant's mapping.
type Dashboard struct {
	TenantID    string      `json:"tenant_id"`
	WorkspaceID string      `json:"workspace_id"`
	DashboardID *string     `json:"dashboard_id"` // null until known
	Title       string      `json:"title"`
	Status      repo.Status `json:"status"`
	CreatedAt   repo.Time   `json:"created_at"`
	UpdatedAt   repo.Time   `json:"updated_at"`
}

func (w *Worker) endpoints() []events.Endpoint {
	return []events.Endpoint{
		{Name: "embed-token", Handle: w.embedToken, Quick: w.quickToken},
		{Name: "embed-token", PerToken: true, Handle: w.embedToken, Quick: w.quickToken},
		{Name: "dashboard", Handle: w.dashboard},
		{Name: "usage", Handle: w.usage},
	}
}

// tokenRequest is what a request for a token asks for.
type tokenRequest struct {
	tenantID, workspaceID []byte
	ttl                   int64 // seconds; 0 when none is asked for
}

// quickToken answers from memory. Whatever is not plain is left to embedToken, which says what is wrong.
func (w *Worker) quickToken(dst []byte, r events.Request) (reply []byte, v events.Verdict, err error) {
	q := tokenRequest{tenantID: []byte(r.Token)}
	if len(r.Data) > 0 {
		var ok bool
		if q, ok = parsePlain(r.Data); !ok {
			return nil, events.Wait, nil
		}
	}
	if r.Token != "" && (!plainToken(r.Token) || r.Token != string(q.tenantID)) {
		return nil, events.Wait, nil
	}
	began := time.Now()
	known, stale, err := w.tenants.peek(q.tenantID, began)
	switch {
	case stale:
		return nil, events.WaitAhead, nil
	case known == nil && err == nil:
		return nil, events.Wait, nil
	case err == nil:
		reply, err = w.answerToken(r.Trace, dst, known, q, w.mintTime(began))
	}
	w.metrics.memory.Inc()
	w.metrics.answered(err, time.Since(began))
	return reply, events.Answered, err
}

// plainToken says whether a subject's token is surely the tenant id itself, with nothing that is or must be encoded.
func plainToken(token string) bool {
	for i := range len(token) {
		if c := token[i]; c <= ' ' || c >= 0x7f || c == '%' || c == '*' || c == '>' {
			return false
		}
	}
	return true
}

// embedToken reads the request as strictly as an event, and the tenant from the database when it is not in memory.
func (w *Worker) embedToken(ctx context.Context, r events.Request) (reply []byte, err error) {
	began := time.Now()
	defer func() { w.metrics.answered(err, time.Since(began)) }()
	var tenantID, workspaceID string
	var ttl *int64
	if len(r.Data) > 0 || r.Token == "" {
		if err := events.DecodeObject(r.Data, map[string]any{"tenant_id": &tenantID, "workspace_id": &workspaceID, "ttl_seconds": &ttl}); err != nil {
			return nil, invalid(err)
		}
	}
	if r.Token != "" {
		ofSubject, err := events.DecodeTenant(r.Token)
		if err != nil {
			return nil, invalid(err)
		}
		if tenantID != "" && tenantID != ofSubject {
			return nil, &events.ServiceError{Status: 403, Code: "TENANT_MISMATCH", Message: `"tenant_id" is not the tenant of the subject`}
		}
		tenantID = ofSubject
	}
	q := tokenRequest{tenantID: []byte(tenantID), workspaceID: []byte(workspaceID)}
	if ttl != nil {
		if q.ttl = *ttl; q.ttl < 1 {
			return nil, invalid(errors.New(`"ttl_seconds" must be at least 1`))
		}
	}
	if err := events.ValidateTenantID(tenantID); err != nil {
		return nil, invalid(err)
	}
	known, err := w.tenants.get(ctx, tenantID)
	if err != nil {
		return nil, err
	}
	return w.answerToken(ctx, nil, known, q, w.mintTime(time.Now()))
}

// mintTime is now, which was just read, unless the worker has a clock of its own.
func (w *Worker) mintTime(now time.Time) time.Time {
	if w.cfg.Clock != nil {
		return w.cfg.Clock()
	}
	return now
}

// answerToken appends the answer for a tenant: a token for the mapping's own workspace and dashboard, or why there is none.
func (w *Worker) answerToken(ctx context.Context, dst []byte, t *tenant, q tokenRequest, now time.Time) ([]byte, error) {
	switch {
	case len(q.workspaceID) > 0 && string(q.workspaceID) != t.ws.ID:
		return nil, invalid(errors.New(`"workspace_id" is not the tenant's`))
	case t.refused != nil:
		return nil, t.refused
	case t.ws.api == nil:
		return nil, fmt.Errorf("workspace %q of tenant %q is not configured", t.ws.ID, t.id)
	}
	if err := t.ws.clockAllows(); err != nil {
		return nil, err
	}
	if w.cfg.TokenRate > 0 {
		if r := w.tenants.limiter(t.id, rate.Limit(w.cfg.TokenRate), w.cfg.TokenBurst).ReserveN(now, 1); r.DelayFrom(now) > 0 {
			wait := r.DelayFrom(now)
			r.CancelAt(now)
			return nil, &events.ServiceError{
				Status: 429, Code: "RATE_LIMITED", Message: "too many tokens for this tenant; keep a token until refresh_after",
				RetryAfter: int(math.Ceil(wait.Seconds())),
			}
		}
	}
	life := w.cfg.TokenTTL
	if q.ttl > 0 {
		life = time.Duration(min(q.ttl, int64(w.cfg.TokenMaxTTL/time.Second))) * time.Second
	}
	from := now.Truncate(time.Second)
	expires := from.Add(life)

	dst = append(dst, `{"token":"`...)
	begin := len(dst)
	dst, err := t.ws.minter.AppendToken(dst, t.id, t.dashboardID, expires)
	if err != nil {
		return nil, fmt.Errorf("tenant %q: %w", t.id, err)
	}
	end := len(dst)
	dst = append(dst, '"')
	for _, f := range [...]struct{ name, value string }{
		{`,"tenant_id":`, t.id}, {`,"workspace_id":`, t.ws.ID}, {`,"dashboard_id":`, t.dashboardID},
	} {
		dst = append(dst, f.name...)
		if dst, err = jsontext.AppendQuote(dst, f.value); err != nil {
			return nil, fmt.Errorf("tenant %q: %w", t.id, err)
		}
	}
	dst = append(dst, `,"expires_at":`...)
	dst = strconv.AppendInt(dst, expires.Unix(), 10)
	dst = append(dst, `,"refresh_after":`...)
	dst = strconv.AppendInt(dst, from.Add(life*8/10).Unix(), 10)
	dst = append(dst, `,"embed_url":`...)
	dst = append(dst, w.embedPage...)
	padding := end
	for dst[padding-1] == '=' {
		padding--
	}
	dst = append(dst, dst[begin:padding]...)
	for range end - padding { // all that needs encoding in a query
		dst = append(dst, "%3D"...)
	}
	dst = papermap.AppendEmbedQuery(dst, t.ws.ID, t.dashboardID)
	dst = append(dst, `"}`...)
	w.minted.add(t.ws.ID, t.id, now)
	w.audit.minted(ctx, t, now, expires, dst[begin:end])
	return dst, nil
}

// tokenRefused returns the documented error unless the mapping is active.
func tokenRefused(status repo.Status) *events.ServiceError {
	switch status {
	case repo.Active:
		return nil
	case repo.Suspended:
		return &events.ServiceError{Status: 403, Code: "TENANT_SUSPENDED", Message: "the tenant is suspended"}
	case repo.Deleted:
		return &events.ServiceError{Status: 410, Code: "TENANT_DELETED", Message: "the tenant was deleted"}
	}
	retry := map[repo.Status]int{repo.Pending: 2, repo.Creating: 2, repo.Held: 60, repo.Failed: 60}[status]
	return &events.ServiceError{
		Status: 409, Code: "DASHBOARD_NOT_READY", Message: fmt.Sprintf("the tenant has no dashboard yet: it is %s", status), RetryAfter: retry,
	}
}

// loadTenant reads a mapping and prepares it for minting.
func (w *Worker) loadTenant(ctx context.Context, tenantID string) (*tenant, error) {
	w.metrics.database.Inc()
	m, err := w.db.Mapping(ctx, tenantID)
	if err != nil {
		return nil, err
	}
	both := m.TenantID + m.DashboardID // in memory as one text
	t := &tenant{id: both[:len(m.TenantID)], dashboardID: both[len(m.TenantID):], ws: w.workspaces[m.WorkspaceID], refused: tokenRefused(m.Status)}
	if t.ws == nil {
		t.ws = &workspace{Workspace: papermap.Workspace{ID: m.WorkspaceID}}
	}
	return t, nil
}

// audit writes down who got tokens, at most so many lines a second: each token is worth a line, a flood is not. A log that
// is slow to take them delays no token.
type audit struct {
	limiter *rate.Limiter
	lines   chan auditLine // to write; what does not fit is left out
	leftOut atomic.Int64
}

// auditLine is a token without it: its fingerprint is the first 16 hex digits of its SHA-256.
type auditLine struct {
	ctx         context.Context // for the trace that the line is of
	tenant      *tenant
	expires     time.Time
	fingerprint [8]byte
}

func newAudit(perSecond int) *audit {
	return &audit{limiter: rate.NewLimiter(rate.Limit(perSecond), perSecond), lines: make(chan auditLine, 1024)}
}

func (a *audit) minted(ctx context.Context, t *tenant, now, expires time.Time, token []byte) {
	if a.limiter.AllowN(now, 1) {
		sum := sha256.Sum256(token)
		select {
		case a.lines <- auditLine{ctx, t, expires, [8]byte(sum[:8])}:
			return
		default:
		}
	}
	a.leftOut.Add(1)
}

// write writes the lines until ctx ends, then those that are left.
func (a *audit) write(ctx context.Context, log *slog.Logger) {
	write := func(l auditLine) {
		log.InfoContext(l.ctx, "minted an embed token", "tenant_id", l.tenant.id, "workspace_id", l.tenant.ws.ID, "dashboard_id", l.tenant.dashboardID,
			"expires", l.expires.UTC(), "fingerprint", hex.EncodeToString(l.fingerprint[:]), "left_out", a.leftOut.Swap(0))
	}
	for ctx.Err() == nil {
		select {
		case l := <-a.lines:
			write(l)
		case <-ctx.Done():
		}
	}
	for len(a.lines) > 0 {
		write(<-a.lines)
	}
}

func (w *Worker) dashboard(ctx context.Context, r events.Request) ([]byte, error) {
	var tenantID, workspaceID string
	if err := events.DecodeObject(r.Data, map[string]any{"tenant_id": &tenantID, "workspace_id": &workspaceID}); err != nil {
		return nil, invalid(err)
	}
	if err := events.ValidateTenantID(tenantID); err != nil {
		return nil, invalid(err)
	}
	m, err := w.db.Mapping(ctx, tenantID)
	if errors.Is(err, repo.ErrNotFound) {
		return nil, errUnknownTenant
	}
	if err != nil {
		return nil, err
	}
	if workspaceID != "" && workspaceID != m.WorkspaceID {
		return nil, invalid(errors.New(`"workspace_id" is not the tenant's`))
	}
	return json.Marshal(dashboardOf(m))
}

func invalid(err error) *events.ServiceError {
	return &events.ServiceError{Status: 400, Code: "INVALID_REQUEST", Message: err.Error()}
}

// parsePlain reads a request that is written plainly: the known names, once each, texts without escapes, a whole number.
func parsePlain(data []byte) (q tokenRequest, ok bool) {
	if !utf8.Valid(data) {
		return q, false
	}
	p := plain{data}
	for open := byte('{'); !p.is('}'); open = ',' {
		if !p.is(open) {
			return q, false
		}
		name, ok := p.text()
		if !ok || !p.is(':') {
			return q, false
		}
		switch {
		case string(name) == "tenant_id" && q.tenantID == nil:
			q.tenantID, ok = p.text()
		case string(name) == "workspace_id" && q.workspaceID == nil:
			q.workspaceID, ok = p.text()
		case string(name) == "ttl_seconds" && q.ttl == 0:
			q.ttl, ok = p.number()
		default:
			ok = false
		}
		if !ok {
			return q, false
		}
	}
	p.space()
	return q, len(p.rest) == 0 && len(q.tenantID) > 0
}

// plain is JSON that is still to be read, as far as it is plain.
type plain struct{ rest []byte }

func (p *plain) space() {
	for len(p.rest) > 0 && (p.rest[0] == ' ' || p.rest[0] == '\n' || p.rest[0] == '\t' || p.rest[0] == '\r') {
		p.rest = p.rest[1:]
	}
}

func (p *plain) is(c byte) bool {
	p.space()
	if len(p.rest) == 0 || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// text reads a string that is not empty and has no escapes.
func (p *plain) text() ([]byte, bool) {
	if !p.is('"') {
		return nil, false
	}
	for i, c := range p.rest {
		switch {
		case c == '"':
			text := p.rest[:i]
			p.rest = p.rest[i+1:]
			return text, i > 0
		case c < ' ' || c == '\\':
			return nil, false
		}
	}
	return nil, false
}

// number reads a whole number from 1 to 999,999,999.
func (p *plain) number() (n int64, ok bool) {
	p.space()
	for len(p.rest) > 0 && p.rest[0] >= '0' && p.rest[0] <= '9' && n < 100_000_000 {
		n = n*10 + int64(p.rest[0]-'0')
		if p.rest = p.rest[1:]; n == 0 {
			return 0, false
		}
	}
	return n, n > 0
}
