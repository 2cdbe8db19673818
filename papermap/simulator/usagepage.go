package simulator

import (
	"cmp"
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

// UsageStyles are the formats in which the API may write usage. Together they use every name that a
// client must accept.
var UsageStyles = []string{"pagination", "meta", "flat", "none", "items", "records"}

// style is one way to write usage.
type style struct {
	tenant, credits, requests, period string // the names of a row's members

	number       func(micros int64) string // how generated credits are written, from millionths
	requestsForm string                    // how requests are written, a format
	periodForm   string                    // what follows YYYY-MM
	head         string                    // before the rows; empty: the list is data itself
	tail         string                    // after the rows; see end
}

var styles = map[string]style{
	"pagination": {
		"tenant_id", "credits_consumed", "request_count", "period_start",
		plainMicros, "%d", "-01 00:00:00", `"usage":[`,
		`],"pagination":{"page":{page},"per_page":{per_page},"total":{total},"total_pages":{pages}}}}`,
	},
	"meta": {
		"tenant", "credits_used", "requests", "period",
		quotedMicros, `"%d"`, "", `"data":{"usage":[`,
		`]}},"meta":{"total_records":{total},"has_next":{more}}}`,
	},
	"flat": {
		"external_tenant_id", "total_credits", "total_requests", "billing_period_start",
		plainMicros, "%d.0", "-01T00:00:00Z", `"tenants":[`,
		`],"total":"{total}","pages":"{pages}"}}`,
	},
	"none": {
		"tenant_id", "credits", "requests", "start",
		exponentMicros, "%d", "-01", "", "]}",
	},
	"items": {
		"tenant_id", "credits_used", "request_count", "period",
		plainMicros, "%d", "", `"items":[`,
		`],"meta":{"page":{page},"per_page":{per_page},"total":{total},"pages":{pages}}}}`,
	},
	"records": {
		"tenant", "credits_consumed", "requests", "period_start",
		quotedMicros, "%d", "-01T00:00:00+00:00", `"records":[`,
		`]},"pagination":{"has_more":{more}}}`,
	},
}

// rename returns the style with other names of a row's members.
func (l style) rename(names map[string]string) style {
	for _, name := range []*string{&l.tenant, &l.credits, &l.requests, &l.period} {
		*name = cmp.Or(names[*name], *name)
	}
	return l
}

// end returns what follows the rows: the tail with {page}, {per_page}, {total}, {pages} and {more}
// filled in.
func (l style) end(page, perPage, total int) string {
	pages := (total + perPage - 1) / perPage
	return strings.NewReplacer("{page}", strconv.Itoa(page), "{per_page}", strconv.Itoa(perPage),
		"{total}", strconv.Itoa(total), "{pages}", strconv.Itoa(pages),
		"{more}", strconv.FormatBool(page < pages)).Replace(l.tail)
}

// plainMicros writes millionths in plain decimal notation, without trailing zeros.
func plainMicros(micros int64) string {
	text := fmt.Sprintf("%d.%06d", micros/1_000_000, micros%1_000_000)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// quotedMicros writes millionths as a text that always has six digits after the decimal point.
func quotedMicros(micros int64) string {
	return fmt.Sprintf(`"%d.%06d"`, micros/1_000_000, micros%1_000_000)
}

func exponentMicros(micros int64) string { return strconv.FormatInt(micros, 10) + "e-6" }

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

// page writes the body of one page: the generated rows by tenant, then month, and after them the
// named rows that replace none.
func (u *usageState) page(workspace, tenant string, months []string, page, perPage int) []byte {
	look := styles[cmp.Or(u.Style, UsageStyles[0])].rename(u.Names)
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
	start := min((page-1)*perPage, total)
	for n := start; n < min(start+perPage, total); n++ {
		if n > start {
			body = append(body, ',')
		}
		var row UsageRow
		if n < generated {
			row = u.sentRow(look, firstTenant+n/len(months), months[n%len(months)], tenant != "")
		} else {
			row = *added[n-generated]
		}
		body = look.appendRow(body, row)
	}
	return append(body, look.end(page, perPage, total)...)
}

// sentRow returns the row of generated tenant i in a month as it is sent: the named row in its
// place, if there is one, and a bad row where BadEvery has one.
func (u *usageState) sentRow(look style, i int, month string, history bool) UsageRow {
	id := u.id(i)
	if named := u.override[[2]string{id, month}]; named != nil {
		return *named
	}
	micros, requests := u.generate(id, month)
	row := UsageRow{TenantID: id, Period: month, Credits: look.number(micros), Requests: requests}
	switch u.badness(i, month) {
	case noTenant:
		row.TenantID = ""
		if history { // where a row need not name one
			row.TenantID = id + " and another"
		}
	case noCredits:
		row.Credits = ""
	case noPeriod:
		row.Period = ""
	case negativeCredits:
		row.Credits = "-" + plainMicros(micros+1)
	case textCredits:
		row.Credits = `"unlimited"`
	}
	return row
}

// appendRow writes a row as a JSON object. What is empty is left out.
func (l style) appendRow(dst []byte, row UsageRow) []byte {
	dst = append(dst, '{')
	if row.TenantID != "" {
		dst = append(appendQuoted(appendName(dst, l.tenant), row.TenantID), ',')
	}
	if row.Credits != "" {
		dst = append(append(appendName(dst, l.credits), row.Credits...), ',')
	}
	dst = fmt.Appendf(appendName(dst, l.requests), l.requestsForm, row.Requests)
	switch {
	case row.Period == "":
	case !isMonth(row.Period):
		dst = appendQuoted(appendName(append(dst, ','), l.period), row.Period)
	default:
		dst = fmt.Appendf(dst, `,"%s":"%s%s"`, l.period, row.Period, l.periodForm)
		if l.period == "period_start" {
			dst = fmt.Appendf(dst, `,"period_end":"%s-%d 23:59:59"`, row.Period, daysIn(row.Period))
		}
	}
	return append(dst, '}')
}

func daysIn(period string) int {
	month, _ := time.Parse("2006-01", period)
	return month.AddDate(0, 1, -1).Day()
}

func appendName(dst []byte, name string) []byte {
	return append(append(append(dst, '"'), name...), `":`...)
}

// appendQuoted appends s as a JSON string. Bytes that are not UTF-8 stay as they are, if nothing
// needs an escape.
func appendQuoted(dst []byte, s string) []byte {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) {
		dst, _ = jsontext.AppendQuote(dst, s) // its error is that of such bytes, which it replaces
		return dst
	}
	return append(append(append(dst, '"'), s...), '"')
}

// monthsOf lists the months that a query asks for. The end defaults to the current month, the
// beginning to the end.
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

// isMonth reports whether s is YYYY-MM.
func isMonth(s string) bool {
	_, err := time.Parse("2006-01", s)
	return err == nil
}

// numberIn reads a number from 1 to highest, or standard if the query does not have it.
func numberIn(query url.Values, name string, standard, highest int) (int, bool) {
	if !query.Has(name) {
		return standard, true
	}
	n, err := strconv.Atoi(query.Get(name))
	return n, err == nil && n >= 1 && n <= highest
}
