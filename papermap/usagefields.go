package papermap

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/shopspring/decimal"
)

// Accepted names of the usage report's members. The API documents neither them nor the places of
// the list and the pagination. So there are aliases: the first name of a list that has a value
// counts, and null is no value. To accept another name, add it here, and for rows in docs/usage.md.
var (
	tenantNames   = []string{"tenant_id", "tenant", "external_tenant_id"}
	creditsNames  = []string{"credits_consumed", "credits_used", "total_credits", "credits"}
	requestsNames = []string{"request_count", "requests", "total_requests"}
	periodNames   = []string{"period", "period_start", "billing_period_start", "start"}

	// In data or data.data; itself: the list takes the place of that object.
	listNames = []string{"usage", itself, "items", "tenants", "records"}

	// In data, data.data or the answer; itself: the numbers are members of that object.
	paginationNames = []string{"pagination", "meta", itself}
	pageNames       = []string{"page"}
	perPageNames    = []string{"per_page"}
	totalNames      = []string{"total", "total_records"}
	pagesNames      = []string{"total_pages", "pages"}
	moreNames       = []string{"has_next", "has_more"}
)

const itself = ""

// readRow reads one element of the list. problem says why it cannot be used, and quotes nothing of
// it.
func readRow(v jsontext.Value, q UsageQuery) (row UsageRow, problem string) {
	m := readMembers(v)
	if m == nil {
		return row, "not an object"
	}
	row.TenantID = q.TenantID // the default, as one tenant's history need not repeat it
	if tenant := m.first(tenantNames); tenant != nil {
		if row.TenantID, problem = parseTenant(tenant); problem != "" {
			return row, problem
		}
	}
	switch {
	case row.TenantID == "":
		return row, "no tenant"
	case q.TenantID != "" && row.TenantID != q.TenantID:
		return row, "it is another tenant's than was asked for"
	}

	credits := m.first(creditsNames)
	if credits == nil {
		return row, "no credits"
	}
	number, problem := parseDecimal(credits)
	if problem != "" {
		return row, "credits are " + problem
	}
	row.Credits = number.String()

	if requests := m.first(requestsNames); requests != nil {
		n, ok := parseWhole(requests)
		if !ok {
			return row, "requests are not a whole number from 0"
		}
		row.Requests = n
	}

	period := m.first(periodNames)
	if period == nil {
		return row, "no period"
	}
	row.Period = parsePeriod(text(period))
	switch {
	case row.Period == "":
		return row, "period is not a month from 2000-01 to 2999-12"
	case q.FromPeriod != "" && row.Period < q.FromPeriod, q.ToPeriod != "" && row.Period > q.ToPeriod:
		return row, "period is outside those asked for"
	}
	return row, ""
}

// parseTenant reads a tenant id and never changes it, so that two ids cannot become one.
func parseTenant(v jsontext.Value) (id, problem string) {
	if v.Kind() != '"' {
		return "", "tenant is not a string"
	}
	unquoted, err := jsontext.AppendUnquote(nil, v)
	switch id = string(unquoted); {
	case err != nil:
		return "", "tenant is not valid UTF-8"
	case id == "":
		return "", "tenant is empty"
	case utf8.RuneCountInString(id) > MaxTenantID:
		return "", fmt.Sprintf("tenant is longer than %d characters", MaxTenantID)
	case strings.ContainsFunc(id, unicode.IsControl):
		return "", "tenant has control characters"
	}
	return id, ""
}

const (
	maxIntegerDigits  = 20 // of credits
	maxFractionDigits = 12
	maxNumberText     = 8192 // bytes as sent: the time to parse digits grows with their square
)

var tooManyDigits = fmt.Sprintf("of more than %d digits or %d after the point",
	maxIntegerDigits, maxFractionDigits)

var numberPattern = regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$`)

// parseDecimal reads a non-negative JSON number, or one in a string. Whatever the exponent, the
// work is limited: package decimal refuses exponents beyond ±10,000, and the number's size is
// checked before its zeros are written out.
func parseDecimal(v jsontext.Value) (d decimal.Decimal, problem string) {
	if len(v) > maxNumberText {
		return d, tooManyDigits
	}
	s := ""
	if kind := v.Kind(); kind == '0' || kind == '"' {
		s = text(v)
	}
	mantissa := numberPattern.FindStringSubmatch(s)
	switch {
	case mantissa == nil:
		return d, "not a number"
	case strings.Trim(mantissa[1], "0.") == "":
		return d, ""
	case s[0] == '-':
		return d, "negative"
	}
	d, err := decimal.NewFromString(s)
	if err != nil || d.NumDigits()+int(d.Exponent()) > maxIntegerDigits ||
		!d.Truncate(maxFractionDigits).Equal(d) {
		return decimal.Zero, tooManyDigits
	}
	return d, ""
}

// parseWhole reads a non-negative integer, which may also be written as 3.0, 3e2 or in a string.
func parseWhole(v jsontext.Value) (int64, bool) {
	d, problem := parseDecimal(v)
	if problem != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(d.String(), 10, 64)
	return n, err == nil
}

// periodLayouts are the ways to write a period: a month, or a date in it with or without time and
// zone.
var periodLayouts = []string{
	"2006-01", time.DateTime, time.DateOnly, time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00",
}

// parsePeriod returns the month that s names or contains as YYYY-MM, or "" if it is not from
// 2000-01 to 2999-12. A time with a zone is converted to UTC, one without is used as written.
func parsePeriod(s string) string {
	for _, layout := range periodLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			if t = t.UTC(); t.Year() < 2000 || t.Year() > 2999 {
				return ""
			}
			return t.Format("2006-01")
		}
	}
	return ""
}
