package worker

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// refusalLines is how many refused HTTP requests are logged per second.
const refusalLines = 10

// refusals counts refused HTTP requests, and limits their log lines.
type refusals struct {
	total *prometheus.CounterVec
	lines *rate.Limiter
	left  atomic.Int64 // not logged since the last line
}

func newRefusals(total *prometheus.CounterVec) *refusals {
	return &refusals{total: total, lines: rate.NewLimiter(refusalLines, refusalLines)}
}

// Refused counts a refused HTTP request, and logs it unless there are too many. actor is empty if it
// is not known.
func (w *Worker) Refused(r *http.Request, reason, actor string, why error) {
	w.refusals.total.WithLabelValues(reason).Inc()
	if !w.refusals.lines.AllowN(time.Now(), 1) {
		w.refusals.left.Add(1)
		return
	}
	w.log.WarnContext(r.Context(), "an HTTP request was refused", "reason", reason, "method", r.Method,
		"path", beginning(r.URL.Path, 200), "remote", r.RemoteAddr, "actor", cmp.Or(actor, "unknown"),
		"error", beginning(why.Error(), 200), "left_out", w.refusals.left.Swap(0))
}

// beginning cuts a text that a stranger chose to a number of characters.
func beginning(text string, limit int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if utf8.RuneCountInString(text) <= limit {
		return text
	}
	return string([]rune(text)[:limit]) + "…"
}

// CreateUnknown is Create for a caller who may create the tenant only while it is unknown. For a
// tenant whose dashboard is being created, it waits and publishes nothing.
func (a *API) CreateUnknown(ctx context.Context, fields map[string]string) (Dashboard, error) {
	asked := a.now() // before the mapping is read: an event that deletes it meanwhile is newer
	m, err := a.db.Mapping(ctx, fields["tenant_id"])
	switch {
	case err != nil && !errors.Is(err, repo.ErrNotFound):
		return Dashboard{}, err
	case err == nil && (m.Status == repo.Deleted || m.Status == repo.Suspended):
		return Dashboard{}, tokenRefused(m.Status)
	case err == nil && m.Wanted() && (m.Stage == repo.Held || m.Stage == repo.Failed):
		return Dashboard{}, tokenRefused(m.Status)
	case err == nil && m.Wanted():
		return a.awaitCreated(ctx, m.CreatedEventID, dashboardOf(m))
	}
	id, err := a.publishAt(ctx, ActionCreate, events.TypeTenantCreated, fields, asked)
	if err != nil {
		return Dashboard{}, err
	}
	return a.awaitCreated(ctx, id, Dashboard{TenantID: fields["tenant_id"], Status: repo.Pending})
}
