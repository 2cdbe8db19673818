package papermap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	// MaxUsagePage is the longest page that the API gives, in rows.
	MaxUsagePage = 100
	// MaxTenantID is the longest tenant id of a usage row that is believed, in code points.
	MaxTenantID = 255

	defaultHistoryPath = "/api/v1/external/workspaces/{workspace_id}/tenants/{tenant_id}/usage"

	maxIntegerDigits  = 20 // of credits
	maxFractionDigits = 12
	maxRawRow         = 500     // code points
	maxUsageRows      = 100_000 // in one answer, so that one of 8 MiB takes no more memory than some times that
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
	Pages    int  // number of pages; -1 when it cannot be told
	More     bool // whether a page comes after this one: what the API says, else whether page < pages, else whether this one is full
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

// readUsage takes a page out of a 2xx. The names of fields are not documented, nor is where the list stands; this is the
// one place that knows what they may be.
func readUsage(a answer, q UsageQuery) (UsagePage, error) {
	if a.status != http.StatusOK {
		return UsagePage{}, errors.New("not 200")
	}
	if !mayBeJSON(a.header.Get("Content-Type")) {
		return UsagePage{}, errors.New("not declared as JSON") // a page of something between us and the API
	}
	r := usageReader{
		query: q, body: a.body, json: jsontext.NewDecoder(bytes.NewBuffer(a.body), lenient),
		listRank: noList, rows: make([]UsageRow, 0, q.PerPage), periods: make(map[string]string, 2),
	}
	if err := r.answer(); err != nil {
		return UsagePage{}, err
	}
	return r.page()
}

// usageReader reads an answer in one pass. What is found early and turns out not to be the best place is dropped.
type usageReader struct {
	query UsageQuery
	body  []byte
	json  *jsontext.Decoder

	success  []byte
	listRank int // of the list that rows and rejected are from: the lower the better
	rows     []UsageRow
	rejected []RejectedRow
	paging   [inItself + 1][topLevel + 1]map[string][]byte // by where it stands, best first: its fields, as sent

	periods map[string]string // by what was sent
	scratch []byte
}

// Where a list may stand in data, and where pagination may stand at each level, best first.
const (
	inUsage = iota
	isItself
	inItems
	inTenants
	inRecords
	noList = 100

	inPagination = 0
	inMeta       = 1
	inItself     = 2

	inData     = 0
	inDataData = 1
	topLevel   = 2
)

// sentRow is what a row may consist of, as sent: the aliases of each field, best first.
type sentRow struct {
	tenant, requests [3][]byte
	credits, period  [4][]byte
}

func (s *sentRow) field(name []byte) *[]byte {
	switch string(name) {
	case "tenant_id":
		return &s.tenant[0]
	case "tenant":
		return &s.tenant[1]
	case "external_tenant_id":
		return &s.tenant[2]
	case "credits_consumed":
		return &s.credits[0]
	case "credits_used":
		return &s.credits[1]
	case "total_credits":
		return &s.credits[2]
	case "credits":
		return &s.credits[3]
	case "request_count":
		return &s.requests[0]
	case "requests":
		return &s.requests[1]
	case "total_requests":
		return &s.requests[2]
	case "period":
		return &s.period[0]
	case "period_start":
		return &s.period[1]
	case "billing_period_start":
		return &s.period[2]
	case "start":
		return &s.period[3]
	}
	return nil
}

// first is the value of the first alias that has one; null is none.
func first(aliases ...[]byte) []byte {
	for _, v := range aliases {
		if v != nil && v[0] != 'n' {
			return v
		}
	}
	return nil
}

var errNotJSON = errors.New("not a JSON object")

func (r *usageReader) answer() error {
	if r.json.PeekKind() != '{' {
		return errNotJSON
	}
	err := r.object(func(name []byte) (err error) {
		switch string(name) {
		case "success":
			r.success, err = r.value()
			return err
		case "data":
			return r.data(inData)
		}
		return r.pagingOr(topLevel, name)
	})
	if err != nil {
		return err
	}
	if len(bytes.TrimLeft(r.body[r.json.InputOffset():], " \t\r\n")) > 0 {
		return errNotJSON // something follows it
	}
	if string(r.success) == "false" {
		_, message := reason(r.body)
		return fmt.Errorf("success is false: %s", message)
	}
	if r.listRank == noList {
		return errors.New("no list of usage in it")
	}
	return nil
}

// data reads data or data.data: the list of rows, or an object with it.
func (r *usageReader) data(level int) error {
	switch r.json.PeekKind() {
	case '[':
		return r.list(isItself, level)
	case '{':
	default:
		_, err := r.value()
		return err
	}
	return r.object(func(name []byte) error {
		list := r.json.PeekKind() == '['
		switch {
		case string(name) == "usage" && list:
			return r.list(inUsage, level)
		case string(name) == "items" && list:
			return r.list(inItems, level)
		case string(name) == "tenants" && list:
			return r.list(inTenants, level)
		case string(name) == "records" && list:
			return r.list(inRecords, level)
		case string(name) == "data" && level == inData:
			return r.data(inDataData)
		}
		return r.pagingOr(level, name)
	})
}

// pagingOr reads the value of a member that may belong to pagination, or skips it.
func (r *usageReader) pagingOr(level int, name []byte) error {
	place := inPagination
	switch string(name) {
	case "meta":
		place = inMeta
		fallthrough
	case "pagination":
		if r.json.PeekKind() == '{' {
			return r.object(func(name []byte) error { return r.pagingField(place, level, name) })
		}
	}
	return r.pagingField(inItself, level, name)
}

func (r *usageReader) pagingField(place, level int, name []byte) error {
	v, err := r.value()
	switch string(name) {
	case "total_pages", "pages", "total", "total_records", "page", "per_page", "has_next", "has_more":
		fields := &r.paging[place][level]
		if *fields == nil {
			*fields = map[string][]byte{}
		}
		(*fields)[string(name)] = v
	}
	return err
}

// object reads an object: member is given each name and must read the value.
func (r *usageReader) object(member func(name []byte) error) error {
	if _, err := r.json.ReadToken(); err != nil {
		return errNotJSON
	}
	for r.json.PeekKind() != '}' {
		name, err := r.value()
		if err != nil {
			return err
		}
		if err := member(unquoted(name)); err != nil {
			return err
		}
	}
	_, err := r.json.ReadToken()
	return err
}

// value reads a value and returns it as it was sent.
func (r *usageReader) value() ([]byte, error) {
	v, err := r.json.ReadValue()
	if err != nil {
		return nil, errNotJSON
	}
	end := r.json.InputOffset() // v itself is only good until the next read
	return r.body[int(end)-len(v) : end], nil
}

// unquoted is a string's content, and nil for another value. Invalid UTF-8 and lone surrogates are replaced.
func unquoted(v []byte) []byte {
	switch {
	case len(v) == 0 || v[0] != '"':
		return nil
	case bytes.IndexByte(v, '\\') < 0:
		return v[1 : len(v)-1]
	}
	s, _ := jsontext.AppendUnquote(nil, v)
	return s
}

// list reads a list of rows, if it stands at a better place than the one before.
func (r *usageReader) list(alias, level int) error {
	rank := 2*alias + level
	if rank > r.listRank {
		_, err := r.value()
		return err
	}
	r.listRank, r.rows, r.rejected = rank, r.rows[:0], nil
	if _, err := r.json.ReadToken(); err != nil {
		return errNotJSON
	}
	for index := 0; r.json.PeekKind() != ']'; index++ {
		if index == maxUsageRows {
			return fmt.Errorf("more than %d rows where %d were asked for", maxUsageRows, r.query.PerPage)
		}
		if err := r.row(index); err != nil {
			return err
		}
	}
	_, err := r.json.ReadToken()
	return err
}

func (r *usageReader) row(index int) error {
	var sent sentRow
	start := int(r.json.InputOffset())
	why := "not an object"
	if r.json.PeekKind() == '{' {
		if _, err := r.json.ReadToken(); err != nil {
			return errNotJSON
		}
		for r.json.PeekKind() != '}' {
			name, err := r.value()
			if err != nil {
				return err
			}
			v, err := r.value()
			if err != nil {
				return err
			}
			if field := sent.field(unquoted(name)); field != nil {
				*field = v
			}
		}
		if _, err := r.json.ReadToken(); err != nil {
			return errNotJSON
		}
		why = r.use(&sent)
	} else if _, err := r.value(); err != nil {
		return err
	}
	if why != "" {
		raw := bytes.TrimLeft(r.body[start:r.json.InputOffset()], ", \t\r\n")
		r.rejected = append(r.rejected, RejectedRow{Index: index, Reason: why, Raw: string(raw)})
	}
	return nil
}

// use adds a row, or says why it cannot be used.
func (r *usageReader) use(sent *sentRow) (why string) {
	tenant := r.query.TenantID
	text := r.scratch[:0]
	if v := first(sent.tenant[:]...); v != nil {
		var why string
		if text, why = appendTenant(text, v); why != "" {
			return why
		}
		if tenant != "" && tenant != string(text) {
			return "it is another tenant's than was asked for"
		}
	} else if tenant == "" {
		return "no tenant"
	}
	tenantLength := len(text)

	v := first(sent.credits[:]...)
	if v == nil {
		return "no credits"
	}
	text, why = appendDecimal(text, v)
	r.scratch = text
	if why != "" {
		return "credits are " + why
	}

	var requests int64
	if v := first(sent.requests[:]...); v != nil {
		var ok bool
		if requests, ok = wholeNumber(v); !ok {
			return "requests are not a whole number from 0"
		}
	}

	v = first(sent.period[:]...)
	if v == nil {
		return "no period"
	}
	period, known := r.periods[string(v)]
	if !known {
		period = parsePeriod(string(unquoted(v)))
		r.periods[string(v)] = period
	}
	switch {
	case period == "":
		return "period is not a month from 2000-01 to 2999-12"
	case r.query.FromPeriod != "" && period < r.query.FromPeriod, r.query.ToPeriod != "" && period > r.query.ToPeriod:
		return "period is outside those asked for"
	}

	both := string(text) // one allocation for two texts
	if tenantLength > 0 {
		tenant = both[:tenantLength]
	}
	r.rows = append(r.rows, UsageRow{TenantID: tenant, Period: period, Credits: both[tenantLength:], Requests: requests})
	return ""
}

// appendTenant appends the tenant id that v holds, or says why it holds none. Two ids never become one.
func appendTenant(dst, v []byte) (text []byte, why string) {
	if v[0] != '"' {
		return dst, "tenant is not a string"
	}
	start := len(dst)
	dst, err := jsontext.AppendUnquote(dst, v)
	id := dst[start:]
	switch {
	case err != nil:
		return dst, "tenant is not valid UTF-8"
	case len(id) == 0:
		return dst, "tenant is empty"
	case len(id) > MaxTenantID && utf8.RuneCount(id) > MaxTenantID:
		return dst, fmt.Sprintf("tenant is longer than %d characters", MaxTenantID)
	case bytes.ContainsFunc(id, unicode.IsControl):
		return dst, "tenant has control characters"
	}
	return dst, ""
}

// appendDecimal appends the number that v holds, a JSON number or the same in a string, in plain decimal notation. It
// never makes more digits than it may keep, whatever the exponent.
func appendDecimal(dst, v []byte) (text []byte, why string) {
	const notNumber = "not a number"
	s := v
	switch v[0] {
	case '"':
		s = unquoted(v)
	case '{', '[', 't', 'f':
		return dst, notNumber
	}
	negative := false
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		negative, s = s[0] == '-', s[1:]
	}

	// The value is 0.d₁d₂d₃… × 10^point, where d₁ and the last digit are not 0.
	var digits [maxIntegerDigits + maxFractionDigits]byte
	n, zeros, point := 0, 0, 0 // zeros: read, and to be kept if another digit follows
	tooLong, inFraction, anyDigit := false, false, false
	i := 0
scan:
	for ; i < len(s); i++ {
		d := s[i]
		switch {
		case d == '.' && !inFraction:
			inFraction = true
			continue
		case d < '0' || d > '9':
			break scan
		case d == '0' && n == 0:
			if inFraction {
				point--
			}
		case d == '0':
			zeros++
		case n+zeros >= len(digits):
			tooLong = true // and so it stays: integer and fraction together have more digits than allowed
		default:
			for ; zeros > 0; zeros-- {
				digits[n] = '0'
				n++
			}
			digits[n] = d
			n++
		}
		anyDigit = true
		if !inFraction && n > 0 {
			point++
		}
	}
	if !anyDigit {
		return dst, notNumber
	}
	if i < len(s) {
		exponent, ok := parseExponent(s[i:])
		if !ok {
			return dst, notNumber
		}
		point += exponent
	}
	switch {
	case n == 0:
		return append(dst, '0'), ""
	case negative:
		return dst, "negative"
	case tooLong, point > maxIntegerDigits, n-point > maxFractionDigits:
		return dst, fmt.Sprintf("of more than %d digits or %d after the point", maxIntegerDigits, maxFractionDigits)
	case point <= 0:
		dst = append(dst, "0."...)
		for ; point < 0; point++ {
			dst = append(dst, '0')
		}
		return append(dst, digits[:n]...), ""
	case point >= n:
		dst = append(dst, digits[:n]...)
		for ; point > n; point-- {
			dst = append(dst, '0')
		}
		return dst, ""
	}
	dst = append(dst, digits[:point]...)
	dst = append(dst, '.')
	return append(dst, digits[point:n]...), ""
}

// parseExponent reads e5, E+5 or e-5. One too large to matter is cut to what still is.
func parseExponent(s []byte) (int, bool) {
	const enough = 1 << 30 // no answer has so many digits that an exponent beyond could be made up for
	if s[0] != 'e' && s[0] != 'E' {
		return 0, false
	}
	s = s[1:]
	negative := false
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		negative, s = s[0] == '-', s[1:]
	}
	exponent := 0
	for _, d := range s {
		if d < '0' || d > '9' {
			return 0, false
		}
		exponent = min(exponent*10+int(d-'0'), enough)
	}
	if negative {
		exponent = -exponent
	}
	return exponent, len(s) > 0
}

// wholeNumber reads a number from 0, which may also be written as 3.0, 3e2 or in a string.
func wholeNumber(v []byte) (int64, bool) {
	var buffer [maxIntegerDigits + maxFractionDigits + 2]byte
	text, why := appendDecimal(buffer[:0], v)
	if why != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil
}

// parsePeriod is the month that s names or lies in, or empty if it is none from 2000-01 to 2999-12: 2025-01, a date, or
// a date and time, in UTC if it has a zone and as written if it has none.
func parsePeriod(s string) string {
	for _, layout := range []string{
		"2006-01", "2006-01-02 15:04:05", time.DateOnly, time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00",
	} {
		if t, err := time.Parse(layout, s); err == nil {
			if t = t.UTC(); t.Year() < 2000 || t.Year() > 2999 {
				return ""
			}
			return t.Format("2006-01")
		}
	}
	return ""
}

// page is what was read, with what its pagination says as far as that makes sense.
func (r *usageReader) page() (UsagePage, error) {
	pages, total := r.number("total_pages", "pages"), r.number("total", "total_records")
	page, perPage := r.number("page"), r.number("per_page")
	next := r.next()
	asked, rows := r.query, len(r.rows)+len(r.rejected)
	if perPage < 1 {
		perPage = asked.PerPage
	}

	// Numbers that contradict each other or what we see are as good as none. Pages may be 0 or 1 when there are no rows.
	if total >= 0 && (asked.Page-1)*min(perPage, rows)+rows > total {
		total = -1
	}
	if total >= 0 {
		fromTotal := (total + perPage - 1) / perPage
		switch {
		case pages < 0:
			pages = fromTotal
		case max(pages, 1) != max(fromTotal, 1):
			pages, total = -1, -1
		}
	}
	if page >= 0 && page != asked.Page || rows > 0 && pages >= 0 && asked.Page > pages {
		pages = -1
	}
	p := UsagePage{Rows: r.rows, Rejected: r.rejected, Total: total, Pages: pages}
	switch {
	case next != nil:
		if p.More = *next; pages >= 0 && p.More != (asked.Page < pages) {
			p.Pages = -1
		}
	case pages >= 0:
		p.More = asked.Page < pages
	default:
		p.More = rows >= min(perPage, asked.PerPage)
	}
	return p, nil
}

// number is the first of the pagination's fields so named that holds a number, at the best place, or -1.
func (r *usageReader) number(aliases ...string) int {
	for v := range r.pagingValues(aliases) {
		if n, ok := wholeNumber(v); ok && n <= 1<<40 {
			return int(n)
		}
	}
	return -1
}

// next is what the API says of a next page, or nil.
func (r *usageReader) next() *bool {
	for v := range r.pagingValues([]string{"has_next", "has_more"}) {
		if b, err := strconv.ParseBool(strings.Trim(string(v), `"`)); err == nil {
			return &b
		}
	}
	return nil
}

func (r *usageReader) pagingValues(aliases []string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for place := range r.paging {
			for _, fields := range r.paging[place] {
				for _, alias := range aliases {
					if v := fields[alias]; v != nil && !yield(v) {
						return
					}
				}
			}
		}
	}
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
