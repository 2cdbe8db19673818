package worker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// tokenAudit logs who got tokens, up to a maximum number of lines per second. A slow log delays no
// token: lines that do not fit are counted and left out.
type tokenAudit struct {
	limiter *rate.Limiter
	refused *rate.Limiter // of lines about tokens that were refused
	lines   chan auditLine
	leftOut atomic.Int64 // lines about minted tokens
}

// auditLine is a minted token, without the token, or a refused request for a suspended or deleted
// tenant.
type auditLine struct {
	ctx         context.Context // for the line's trace
	tenant      *tenant
	expires     time.Time
	fingerprint [8]byte // the beginning of its SHA-256
}

func newTokenAudit(perSecond int) *tokenAudit {
	return &tokenAudit{
		limiter: rate.NewLimiter(rate.Limit(perSecond), perSecond), refused: rate.NewLimiter(1, 10),
		lines: make(chan auditLine, 1024),
	}
}

// asked logs a token request for a tenant that is suspended or deleted.
func (a *tokenAudit) asked(ctx context.Context, t *tenant, now time.Time) {
	notReady := t.refused.Status == http.StatusConflict
	if notReady || !a.refused.AllowN(now, 1) {
		return
	}
	select {
	case a.lines <- auditLine{ctx: ctx, tenant: t}:
	default:
	}
}

func (a *tokenAudit) minted(ctx context.Context, t *tenant, now, expires time.Time, token []byte) {
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

// run writes the lines until ctx ends, then the remaining ones.
func (a *tokenAudit) run(ctx context.Context, log *slog.Logger) {
	write := func(l auditLine) {
		if l.tenant.refused != nil {
			log.WarnContext(l.ctx, "a token was asked for after the tenant was suspended or deleted",
				"tenant_id", l.tenant.id, "code", l.tenant.refused.Code,
				"actor", cmp.Or(ActorOf(l.ctx).Name, "nats"))
			return
		}
		log.InfoContext(l.ctx, "minted an embed token", "tenant_id", l.tenant.id,
			"workspace_id", l.tenant.ws.ID, "dashboard_id", l.tenant.dashboardID, "expires", l.expires.UTC(),
			"fingerprint", hex.EncodeToString(l.fingerprint[:]), "actor", cmp.Or(ActorOf(l.ctx).Name, "nats"),
			"left_out", a.leftOut.Swap(0))
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

// tokenCounts counts minted tokens per tenant and month in memory, so that minting writes nothing.
// A crash loses the last few seconds. That is acceptable: the counts only have to show whether a
// tenant had any tokens in a month.
type tokenCounts struct {
	volume *tokenVolume

	mu     sync.Mutex
	counts map[tokenCountKey]int64
}

type tokenCountKey struct {
	workspaceID, tenantID string
	month                 int // since the year 0
}

func (k tokenCountKey) period() string { return fmt.Sprintf("%04d-%02d", k.month/12, k.month%12+1) }

const (
	countsEvery = 5 * time.Second
	countsBatch = 500 // rows in one transaction
)

func (c *tokenCounts) add(workspaceID, tenantID string, now time.Time) {
	year, month, _ := now.UTC().Date()
	c.addN(tokenCountKey{workspaceID, tenantID, year*12 + int(month) - 1}, 1)
}

func (c *tokenCounts) addN(k tokenCountKey, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[tokenCountKey]int64{}
	}
	c.counts[k] += n
}

// run writes the counts every few seconds, and once more when ctx ends.
func (c *tokenCounts) run(ctx context.Context, db *repo.DB, log *slog.Logger) {
	var warned logOnce
	for more := true; more; {
		more = events.Sleep(ctx, countsEvery)
		writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), countsEvery)
		err := c.write(writing, db)
		cancel()
		c.volume.judge(time.Now(), log)
		if warned.begins(err != nil) {
			log.Warn("cannot save token counts; retrying", "error", err)
		}
	}
}

func (c *tokenCounts) write(ctx context.Context, db *repo.DB) error {
	c.mu.Lock()
	counts := c.counts
	c.counts = nil
	c.mu.Unlock()
	keys := slices.Collect(maps.Keys(counts))
	for batch := range slices.Chunk(keys, countsBatch) {
		rows := make([]repo.TokenCount, len(batch))
		for i, k := range batch {
			rows[i] = repo.TokenCount{
				WorkspaceID: k.workspaceID, TenantID: k.tenantID, Period: k.period(), Tokens: counts[k],
			}
		}
		if err := db.AddTokens(ctx, rows); err != nil {
			for _, k := range keys { // keep the counts for the next write
				c.addN(k, counts[k])
			}
			return err
		}
		for _, r := range rows {
			c.volume.add(r.TenantID, r.Tokens)
		}
		keys = keys[len(batch):]
	}
	return nil
}
