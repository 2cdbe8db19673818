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
	"unicode/utf8"
)

const (
	// MaxUsagePage is the longest page that the API gives, in rows.
	MaxUsagePage = 100
	// MaxTenantID is the longest tenant id of a usage row that is believed, in code points.
	MaxTenantID = 255

	defaultHistoryPath = "/api/v1/external/workspaces/{workspace_id}/tenants/{tenant_id}/usage"

	maxRawRow = 500 // code points
)

// UsageQuery asks for one page of a workspace's usage.
type UsageQuery struct {
	TenantID             string // only this tenant's history; empty: all tenants
	FromPeriod, ToPeriod string // YYYY-MM, both included; empty: as the API has it
	Page, PerPage        int    // from 1; at most MaxUsagePage
}

// UsageRow is one tenant's absolute total of one month.
type UsageRow struct {
	TenantID string
	Period   string // YYYY-MM
	Credits  string // plain decimal notation without a sign, leading zeros or trailing zeros of a fraction ("0", "12.5")
	Requests int64  // 0 also when the API does not say
}

// RejectedRow is a row that cannot be used.
type RejectedRow struct {
	Index  int    // in the page, from 0
	Reason string // one line, nothing of what was sent
	Raw    string // the row as it was sent but for our secrets: valid UTF-8 without NUL, at most 500 code points
}

// UsagePage is one page of usage.
type UsagePage struct {
	Rows     []UsageRow
	Rejected []RejectedRow
	Total    int  // rows over all pages; -1 when the API does not say
	Pages    int  // number of pages; -1 when the API says neither that, nor both Total and the length of a page
	More     bool // whether a page comes after this one: what the API says, else whether page < pages, else whether this one has rows, or of one tenant is full
}

// Usage reads one page of usage. Every error is an [*Error]: what makes no sense as a whole is one, and Retryable; a row
// that makes no sense is rejected by itself. A row without a number of requests is taken to have none: the API charges
// by credits, and without those a row is rejected.
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
			page, err = readUsage(a, q)
			return err
		},
	})
	if failed != nil {
		return UsagePage{}, failed
	}
	for i := range page.Rejected {
		page.Rejected[i].Raw = cutRaw(page.Rejected[i].Raw, c.redactor(""))
	}
	return page, nil
}

func (q UsageQuery) check() error {
	for _, period := range []string{q.FromPeriod, q.ToPeriod} {
		if period != "" && (len(period) != len("2006-01") || parsePeriod(period) == "") {
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
		path = strings.NewReplacer("{workspace_id}", segment(c.ws.ID), "{tenant_id}", segment(q.TenantID)).Replace(c.o.HistoryPath)
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

// segment is s as one segment of a path. What would mean this folder or the one above is encoded, too.
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// signaturePattern is a signature, be it ours of this request or another one.
var signaturePattern = regexp.MustCompile(`[0-9a-f]{64}`)

// cutRaw makes a row that somebody else wrote fit to be kept.
func cutRaw(raw string, hide *strings.Replacer) string {
	raw = signaturePattern.ReplaceAllString(hide.Replace(strings.ToValidUTF8(raw, "\ufffd")), "[redacted]")
	runes := 0
	for i := range raw {
		if runes == maxRawRow-1 && utf8.RuneCountInString(raw[i:]) > 1 {
			return raw[:i] + "…"
		}
		runes++
	}
	return raw
}
