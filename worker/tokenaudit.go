package worker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"slices"
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
// A crash loses the last few seconds, and a database that takes no writes for long may lose more.
// That is acceptable: the counts only have to show whether a tenant had any tokens in a month.
type tokenCounts struct {
	volume  *tokenVolume
	tenants *tenantCache // its lock guards the fields below

	period   string    // the month, as YYYY-MM, in which tokens are counted now
	from, to int64     // its beginning and end, in Unix seconds
	minted   []*tenant // with tokens that are not in rows yet
	rows     []repo.TokenCount
}

const (
	countsEvery = 5 * time.Second
	countsBatch = 500 // rows in one transaction
)

// add counts a token of a tenant.
func (c *tokenCounts) add(t *tenant, now time.Time) {
	c.tenants.mu.Lock()
	defer c.tenants.mu.Unlock()
	if at := now.Unix(); at < c.from || at >= c.to {
		c.collect(len(c.minted))
		c.setMonth(now.UTC())
	}
	if t.minted == 0 {
		if len(c.minted) >= maxTenants {
			return // nothing could be written for long, while tenants left memory and came back
		}
		c.minted = append(c.minted, t)
	}
	t.minted++
}

func (c *tokenCounts) setMonth(now time.Time) {
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	c.period, c.from, c.to = first.Format("2006-01"), first.Unix(), first.AddDate(0, 1, 0).Unix()
}

// collect moves the tokens of the first n tenants to rows.
func (c *tokenCounts) collect(n int) {
	for _, t := range c.minted[:n] {
		c.rows = append(c.rows, repo.TokenCount{
			WorkspaceID: t.ws.ID, TenantID: t.id, Period: c.period, Tokens: int64(t.minted),
		})
		t.volume.now += t.minted
		t.minted = 0
	}
	clear(c.minted[:n])
	c.minted = c.minted[n:]
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

// write writes the counts that there are now. After an error the next write continues.
func (c *tokenCounts) write(ctx context.Context, db *repo.DB) error {
	for left := c.left(); left > 0; {
		batch := c.batch()
		if err := db.AddTokens(ctx, batch); err != nil {
			return err
		}
		c.written(len(batch))
		left -= len(batch)
	}
	return nil
}

// left is the number of rows that are still to be written.
func (c *tokenCounts) left() int {
	c.tenants.mu.Lock()
	defer c.tenants.mu.Unlock()
	return len(c.rows) + len(c.minted)
}

// batch returns the first rows.
func (c *tokenCounts) batch() []repo.TokenCount {
	c.tenants.mu.Lock()
	defer c.tenants.mu.Unlock()
	if len(c.rows) == 0 {
		c.collect(min(countsBatch, len(c.minted)))
	}
	return c.rows[:min(countsBatch, len(c.rows))]
}

// written drops the first n rows.
func (c *tokenCounts) written(n int) {
	c.tenants.mu.Lock()
	defer c.tenants.mu.Unlock()
	if c.rows = slices.Delete(c.rows, 0, n); len(c.rows) == 0 && cap(c.rows) > 2*countsBatch {
		c.rows = nil // it was large because a month has ended
	}
}
