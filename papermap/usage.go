package papermap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

const (
	// MaxUsagePage is the longest page that the API gives, in rows.
	MaxUsagePage = 100
	// MaxTenantID is the longest tenant id that is accepted in a usage row, in code points.
	MaxTenantID = 255

	defaultHistoryPath = "/api/v1/external/workspaces/{workspace_id}/tenants/{tenant_id}/usage"

	maxRawRow = 500 // code points of RejectedRow.Raw
)

// UsageQuery asks for one page of a workspace's usage.
type UsageQuery struct {
	TenantID             string // only this tenant's history; empty: all tenants
	FromPeriod, ToPeriod string // YYYY-MM, both included; empty: the API's default
	Page, PerPage        int    // Page counts from 1; PerPage is 1 to MaxUsagePage
}

// UsageRow is one tenant's absolute total of one month.
type UsageRow struct {
	TenantID string
	Period   string // YYYY-MM

	// Credits is in plain decimal notation, without sign, leading zeros, or trailing zeros of a
	// fraction: "0", "12.5". It has at most 20 integer and 12 fraction digits.
	Credits  string
	Requests int64 // 0 also when the API gives none
}

// RejectedRow is a row that cannot be used.
type RejectedRow struct {
	Index  int    // in the page, from 0
	Reason string // one line that quotes nothing of the row
	Raw    string // the row as sent, but for our secrets: valid UTF-8 without NUL, at most 500 code points
}

// UsagePage is one page of usage.
type UsagePage struct {
	Rows     []UsageRow
	Rejected []RejectedRow
	Total    int // rows over all pages; -1: not known
	Pages    int // number of pages; -1: not known, and not to be had from Total and the page length

	// More reports whether a page comes after this one: what the API says, else whether page <
	// Pages, else whether this page has rows (of one tenant: is full).
	More bool
}

// Usage reads one page of usage. Every error is an [*Error]. An unusable page is an error that is
// Retryable; an unusable row is only rejected. A row without a number of requests counts as 0
// requests, because the API charges by credits. A row without credits is rejected.
func (c *Client) Usage(ctx context.Context, q UsageQuery) (UsagePage, error) {
	if err := q.check(); err != nil {
		return UsagePage{}, &Error{Class: Refused, Message: "nothing was sent: " + err.Error()}
	}
	var page UsagePage
	route := "usage"
	if q.TenantID != "" {
		route = "history"
	}
	failed := c.call(ctx, request{
		route: route, method: http.MethodGet, path: c.usagePath(q), maxBody: maxUsageBody,
		read: func(a answer) (err error) {
			page, err = storableUsage(a, q)
			return err
		},
	})
	if failed != nil {
		return UsagePage{}, failed
	}
	return page, nil
}

// storableUsage is readUsage with rejected rows that are fit to store.
func storableUsage(a answer, q UsageQuery) (UsagePage, error) {
	page, err := readUsage(a, q)
	if err != nil || len(page.Rejected) == 0 {
		return page, err
	}
	hide := a.hide()
	for i := range page.Rejected {
		page.Rejected[i].Raw = storableRow(page.Rejected[i].Raw, hide)
	}
	return page, nil
}

func (q UsageQuery) check() error {
	for _, period := range []string{q.FromPeriod, q.ToPeriod} {
		if period != "" && parsePeriod(period) != period {
			return fmt.Errorf("%q is not a period from 2000-01 to 2999-12", period)
		}
	}
	switch {
	case q.FromPeriod != "" && q.ToPeriod != "" && q.FromPeriod > q.ToPeriod:
		return fmt.Errorf("period %s is after %s", q.FromPeriod, q.ToPeriod)
	case q.Page < 1:
		return errors.New("pages count from 1")
	case q.PerPage < 1 || q.PerPage > MaxUsagePage:
		return fmt.Errorf("a page has 1 to %d rows", MaxUsagePage)
	}
	return nil
}

func (c *Client) usagePath(q UsageQuery) string {
	path := "/api/v1/external/workspaces/" + url.PathEscape(c.ws.ID) + "/tenant-usage"
	if q.TenantID != "" {
		ids := strings.NewReplacer("{workspace_id}", segment(c.ws.ID), "{tenant_id}", segment(q.TenantID))
		path = ids.Replace(c.o.HistoryPath)
	}
	query := url.Values{"page": {strconv.Itoa(q.Page)}, "per_page": {strconv.Itoa(q.PerPage)}}
	if q.FromPeriod != "" {
		query.Set("from_period", q.FromPeriod)
	}
	if q.ToPeriod != "" {
		query.Set("to_period", q.ToPeriod)
	}
	return path + "?" + query.Encode()
}

// segment escapes s as one segment of a path. The dots of "." and ".." are escaped too.
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// signaturePattern matches a signature, this request's or another's.
var signaturePattern = regexp.MustCompile(`(?i)[0-9a-f]{64}`)

// storableRow makes a row as sent fit for RejectedRow.Raw. Secrets are removed first, so that
// truncation leaves no part of one.
func storableRow(raw string, hide redactor) string {
	raw = hide.Replace(strings.ToValidUTF8(beginning(raw), "\ufffd"))
	return truncate(signaturePattern.ReplaceAllString(raw, redacted), maxRawRow)
}
