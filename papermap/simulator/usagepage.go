package simulator

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/papermap"
)

// UsageStyles are the ways in which the API may write usage. Together they have every name that a client must know.
var UsageStyles = []string{"pagination", "meta", "flat", "none", "items", "records"}

// style is one way to write usage. head and tail enclose the rows.
type style struct {
	tenant, credits, requests, period string
	number                            func(dst []byte, micros int64) []byte // of generated credits
	requestsForm                      string                                // around the digits: before|after
	periodForm                        string                                // after YYYY-MM
	head                              string
	tail                              func(dst []byte, page, perPage, total int) []byte
}

var styles = map[string]style{
	"pagination": {
		"tenant_id", "credits_consumed", "request_count", "period_start", appendMicros, "|", "-01 00:00:00",
		`"usage":[`,
		func(dst []byte, page, perPage, total int) []byte {
			return fmt.Appendf(dst, `],"pagination":{"page":%d,"per_page":%d,"total":%d,"total_pages":%d}}}`, page, perPage, total, pagesOf(total, perPage))
		},
	},
	"meta": {
		"tenant", "credits_used", "requests", "period", appendQuotedMicros, `"|"`, "",
		`"data":{"usage":[`,
		func(dst []byte, page, perPage, total int) []byte {
			return fmt.Appendf(dst, `]}},"meta":{"total_records":%d,"has_next":%t}}`, total, page < pagesOf(total, perPage))
		},
	},
	"flat": {
		"external_tenant_id", "total_credits", "total_requests", "billing_period_start", appendMicros, "|.0", "-01T00:00:00Z",
		`"tenants":[`,
		func(dst []byte, page, perPage, total int) []byte {
			return fmt.Appendf(dst, `],"total":"%d","pages":"%d"}}`, total, pagesOf(total, perPage))
		},
	},
	"none": {
		"tenant_id", "credits", "requests", "start", appendExponent, "|", "-01",
		"", // the list is data itself
		func(dst []byte, _, _, _ int) []byte { return append(dst, "]}"...) },
	},
	"items": {
		"tenant_id", "credits_used", "request_count", "period", appendMicros, "|", "",
		`"items":[`,
		func(dst []byte, page, perPage, total int) []byte {
			return fmt.Appendf(dst, `],"meta":{"page":%d,"per_page":%d,"total":%d,"pages":%d}}}`, page, perPage, total, pagesOf(total, perPage))
		},
	},
	"records": {
		"tenant", "credits_consumed", "requests", "period_start", appendQuotedMicros, "|", "-01T00:00:00+00:00",
		`"records":[`,
		func(dst []byte, page, perPage, total int) []byte {
			return fmt.Appendf(dst, `]},"pagination":{"has_more":%t}}`, page < pagesOf(total, perPage))
		},
	},
}

func pagesOf(total, perPage int) int { return (total + perPage - 1) / perPage }

// usage answers the tenant usage of a workspace, or of one tenant in it. s.mu is held.
func (s *Simulator) usage(c *call) answer {
	if refusal, ok := s.checkSignature(c); !ok {
		return refusal
	}
	workspace, tenant := c.http.PathValue("workspace"), c.http.PathValue("tenant")
	if workspace != c.entry.WorkspaceID {
		return failure(http.StatusForbidden, "Workspace of the path is not the workspace of X-Workspace-ID")
	}
	query := c.http.URL.Query()
	months, err := monthsOf(query.Get("from_period"), query.Get("to_period"), c.now)
	if err != nil {
		return failure(http.StatusBadRequest, err.Error())
	}
	page, ok := numberIn(query, "page", 1, 1<<31-1)
	if !ok {
		return failure(http.StatusBadRequest, "page must be 1 or more")
	}
	perPage, ok := numberIn(query, "per_page", 50, papermap.MaxUsagePage)
	if !ok {
		return failure(http.StatusBadRequest, "per_page must be 1 to 100")
	}
	u := s.usageOf(workspace)
	if u.requests++; u.BeforeRequest != nil {
		u.BeforeRequest(u.requests, &u.Usage)
		u.prepare()
	}
	return answer{status: http.StatusOK, body: u.page(workspace, tenant, months, page, perPage)}
}

// page writes the answer's body.
func (u *usageState) page(workspace, tenant string, months []string, page, perPage int) []byte {
	look := styles[u.style()]
	body := make([]byte, 0, 512+perPage*200)
	body = append(body, `{"success":true,"message":"Tenant usage retrieved successfully","data":`...)
	if look.head == "" {
		body = append(body, '[')
	} else {
		body = append(appendQuoted(append(body, `{"workspace_id":`...), workspace), ',')
		if tenant != "" {
			body = append(appendQuoted(append(body, `"tenant_id":`...), tenant), ',')
		}
		body = append(body, look.head...)
	}

	firstTenant, tenants := 0, u.Tenants
	if tenant != "" {
		if firstTenant, tenants = u.indexOf(tenant), 1; firstTenant < 0 {
			tenants = 0
		}
	}
	added := u.added(months, tenant)
	generated := tenants * len(months)
	total := generated + len(added)
	begin := min((page-1)*perPage, total)
	for row := begin; row < min(begin+perPage, total); row++ {
		if row > begin {
			body = append(body, ',')
		}
		if row >= generated {
			body = look.appendExplicit(body, added[row-generated])
			continue
		}
		i, month := firstTenant+row/len(months), months[row%len(months)]
		id := u.id(i)
		if r := u.override[[2]string{id, month}]; r != nil {
			body = look.appendExplicit(body, r)
		} else {
			body = look.appendGenerated(body, u, id, month, u.badness(i, month), tenant != "")
		}
	}
	return look.tail(body, page, perPage, total)
}

func (l *style) appendGenerated(dst []byte, u *usageState, tenant, month string, bad int, history bool) []byte {
	micros, requests := u.generate(tenant, month)
	switch {
	case bad == noTenant && history: // where a row needs to name none
		tenant += " and another"
	case bad == noTenant:
		tenant = ""
	case bad == noPeriod:
		month = ""
	}
	dst = l.appendTenant(dst, tenant)
	if bad != noCredits {
		dst = appendName(dst, l.credits)
		switch bad {
		case negativeCredits:
			dst = append(dst, '-')
			dst = appendMicros(dst, micros+1)
		case textCredits:
			dst = append(dst, `"unlimited"`...)
		default:
			dst = l.number(dst, micros)
		}
	}
	return l.appendRest(dst, month, requests)
}

func (l *style) appendExplicit(dst []byte, r *UsageRow) []byte {
	dst = l.appendTenant(dst, r.TenantID)
	if r.Credits != "" {
		dst = append(appendName(dst, l.credits), r.Credits...)
	}
	return l.appendRest(dst, r.Period, r.Requests)
}

func (l *style) appendTenant(dst []byte, tenant string) []byte {
	dst = append(dst, '{')
	if tenant != "" {
		dst = appendQuoted(appendName(dst, l.tenant), tenant)
	}
	return dst
}

func (l *style) appendRest(dst []byte, period string, requests int64) []byte {
	before, after, _ := strings.Cut(l.requestsForm, "|")
	dst = append(appendName(dst, l.requests), before...)
	dst = append(strconv.AppendInt(dst, requests, 10), after...)
	switch {
	case period == "":
	case !isMonth(period):
		dst = appendQuoted(appendName(dst, l.period), period)
	default:
		dst = append(appendName(dst, l.period), '"')
		dst = append(append(append(dst, period...), l.periodForm...), '"')
		if l.period == "period_start" {
			dst = append(appendName(dst, "period_end"), '"')
			dst = append(append(dst, period...), '-')
			dst = append(strconv.AppendInt(dst, daysIn(period), 10), ` 23:59:59"`...)
		}
	}
	return append(dst, '}')
}

func daysIn(period string) int64 {
	year, _ := strconv.Atoi(period[:4])
	month, _ := strconv.Atoi(period[5:])
	return int64(time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day())
}

// appendName appends a member's name, after a comma unless it is the object's first.
func appendName(dst []byte, name string) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	dst = append(append(dst, '"'), name...)
	return append(dst, '"', ':')
}

// appendQuoted appends s as a JSON string. Bytes that are not UTF-8 stay as they are, if nothing needs an escape.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == '"' || s[i] == '\\' {
			dst, _ = jsontext.AppendQuote(dst, s) // its error is that of such bytes, which it replaces
			return dst
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}

// appendMicros writes millionths in plain decimal notation, without zeros that say nothing.
func appendMicros(dst []byte, micros int64) []byte {
	dst = strconv.AppendInt(dst, micros/1_000_000, 10)
	fraction := micros % 1_000_000
	if fraction == 0 {
		return dst
	}
	dst = append(dst, '.')
	for unit := int64(100_000); fraction > 0; unit /= 10 {
		dst = append(dst, byte('0'+fraction/unit))
		fraction %= unit
	}
	return dst
}

// appendQuotedMicros writes them as a text that always has six digits after the point.
func appendQuotedMicros(dst []byte, micros int64) []byte {
	dst = strconv.AppendInt(append(dst, '"'), micros/1_000_000, 10)
	point := len(dst)
	dst = strconv.AppendInt(dst, 1_000_000+micros%1_000_000, 10) // the 1 makes room for the point
	dst[point] = '.'
	return append(dst, '"')
}

func appendExponent(dst []byte, micros int64) []byte {
	return append(strconv.AppendInt(dst, micros, 10), "e-6"...)
}

// monthsOf lists the months that a query asks for. Without an end it is the current month, without a beginning the end.
func monthsOf(from, to string, now time.Time) ([]string, error) {
	switch {
	case from != "" && !isMonth(from):
		return nil, errors.New("from_period must be YYYY-MM")
	case to != "" && !isMonth(to):
		return nil, errors.New("to_period must be YYYY-MM")
	}
	if to == "" {
		to = now.UTC().Format("2006-01")
	}
	if from == "" {
		from = to
	}
	var months []string
	month, err := time.Parse("2006-01", from)
	for ; err == nil && month.Format("2006-01") <= to; month = month.AddDate(0, 1, 0) {
		if months = append(months, month.Format("2006-01")); len(months) > 1200 {
			return nil, errors.New("from_period to to_period must be at most 100 years")
		}
	}
	return months, err
}

// isMonth says whether s is YYYY-MM.
func isMonth(s string) bool {
	if len(s) != 7 || s[4] != '-' || s[5:] < "01" || s[5:] > "12" {
		return false
	}
	for _, i := range []int{0, 1, 2, 3, 5, 6} {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// numberIn reads a number from 1 to highest, or standard when the query does not have it.
func numberIn(query url.Values, name string, standard, highest int) (int, bool) {
	if !query.Has(name) {
		return standard, true
	}
	n, err := strconv.Atoi(query.Get(name))
	return n, err == nil && n >= 1 && n <= highest
}
