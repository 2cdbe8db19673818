package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// Usage is the answer to a request for usage.
type Usage struct {
	Usage []UsageRow `json:"usage"`
	Page  int        `json:"page"`
	Total int        `json:"total"` // rows on all pages
}

// UsageRow is a tenant's total of one month. Credits are a decimal text, exact.
type UsageRow struct {
	TenantID    string    `json:"tenant_id"`
	WorkspaceID string    `json:"workspace_id"`
	Period      string    `json:"period"`
	Credits     string    `json:"credits"`
	Requests    int64     `json:"requests"`
	SyncedAt    repo.Time `json:"synced_at"`
}

const mostPerPage = 400 // rows in one answer: with the longest ids they fit into a message of 1 MiB

// usage answers what was synced. It calls no API.
func (w *Worker) usage(ctx context.Context, r events.Request) ([]byte, error) {
	var f repo.UsageFilter
	var page, perPage *int64
	if err := events.DecodeObject(r.Data, map[string]any{
		"tenant_id": &f.TenantID, "workspace_id": &f.WorkspaceID, "from_period": &f.FromPeriod, "to_period": &f.ToPeriod, "page": &page, "per_page": &perPage,
	}); err != nil {
		return nil, invalid(err)
	}
	if f.TenantID != "" {
		if err := events.ValidateTenantID(f.TenantID); err != nil {
			return nil, invalid(err)
		}
	}
	if strings.ContainsRune(f.WorkspaceID, 0) {
		return nil, invalid(errors.New(`"workspace_id" has a NUL character`))
	}
	if f.TenantID != "" && f.WorkspaceID != "" {
		m, err := w.db.Mapping(ctx, f.TenantID)
		if err == nil && m.WorkspaceID != f.WorkspaceID {
			return nil, invalid(errors.New(`"workspace_id" is not the tenant's`))
		}
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return nil, err
		}
	}
	for _, period := range []string{f.FromPeriod, f.ToPeriod} {
		if period == "" {
			continue
		}
		if err := events.ValidatePeriod(period); err != nil {
			return nil, invalid(err)
		}
	}
	number, size := int64(1), int64(100)
	if page != nil {
		number = *page
	}
	if perPage != nil {
		size = *perPage
	}
	if number < 1 || size < 1 || size > mostPerPage || number > 1<<31 {
		return nil, invalid(errors.New(`"page" begins with 1, and "per_page" is 1 to 400`))
	}
	list, total, err := w.db.Usage(ctx, f, int((number-1)*size), int(size))
	if err != nil {
		return nil, err
	}
	answer := Usage{Usage: make([]UsageRow, len(list)), Page: int(number), Total: total}
	for i, u := range list {
		answer.Usage[i] = UsageRow{u.TenantID, u.WorkspaceID, u.Period, u.Credits, u.Requests, u.SyncedAt}
	}
	return json.Marshal(answer)
}

// tokenCounts counts minted tokens in memory, so that minting writes nothing. A crash loses the last few seconds: what
// counts is whether a tenant had any in a month.
type tokenCounts struct {
	mu     sync.Mutex
	counts map[tokenCountKey]int64
}

type tokenCountKey struct {
	workspaceID, tenantID string
	month                 int // since the year 0
}

func (k tokenCountKey) period() string { return fmt.Sprintf("%04d-%02d", k.month/12, k.month%12+1) }

const (
	countsEvery    = 5 * time.Second
	countsTogether = 500 // in one transaction
)

func (c *tokenCounts) add(workspaceID, tenantID string, now time.Time) {
	year, month, _ := now.UTC().Date()
	c.count(tokenCountKey{workspaceID, tenantID, year*12 + int(month) - 1}, 1)
}

// keepTokenCounts writes the counts every few seconds, and once more when ctx ends.
func (w *Worker) keepTokenCounts(ctx context.Context) {
	for said, more := false, true; more; {
		more = sleep(ctx, countsEvery)
		writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), countsEvery)
		err := w.minted.write(writing, w.db)
		cancel()
		if err != nil && !said {
			w.log.Warn("cannot record how many tokens were minted; keeping count", "error", err)
		}
		said = err != nil
	}
}

func (c *tokenCounts) write(ctx context.Context, db *repo.DB) error {
	c.mu.Lock()
	counts := c.counts
	c.counts = nil
	c.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b tokenCountKey) int { // in one order everywhere, or replicas would wait for each other
		return cmp.Or(cmp.Compare(a.workspaceID, b.workspaceID), cmp.Compare(a.tenantID, b.tenantID), cmp.Compare(a.month, b.month))
	})
	for batch := range slices.Chunk(keys, countsTogether) {
		list := make([]repo.TokenCount, len(batch))
		for i, k := range batch {
			list[i] = repo.TokenCount{WorkspaceID: k.workspaceID, TenantID: k.tenantID, Period: k.period(), Tokens: counts[k]}
		}
		if err := db.AddTokens(ctx, list); err != nil {
			for _, k := range keys { // for the next time
				c.count(k, counts[k])
			}
			return err
		}
		keys = keys[len(batch):]
	}
	return nil
}

func (c *tokenCounts) count(k tokenCountKey, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[tokenCountKey]int64{}
	}
	c.counts[k] += n
}
