package papermap

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

const maxUsageRows = 100_000 // in one answer, so that one of 8 MiB takes no more memory than some times that

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

// page is what was read, with what its pagination says as far as that makes sense.
func (r *usageReader) page() (UsagePage, error) {
	pages, total := r.number("total_pages", "pages"), r.number("total", "total_records")
	page, perPage := r.number("page"), r.number("per_page")
	next := r.next()
	asked, rows := r.query, len(r.rows)+len(r.rejected)

	// Numbers that contradict each other or what we see are as good as none. Pages may be 0 or 1 when there are no rows, and
	// shorter than was asked for when the API does not say how long they are.
	longest := perPage
	if longest < 1 {
		longest = asked.PerPage
	}
	if total >= 0 && (asked.Page-1)*min(longest, rows)+rows > total {
		total = -1
	}
	if total >= 0 && asked.Page == 1 && next != nil && *next && rows >= total {
		pages, total = -1, -1 // it counts the rows of a page, perhaps
	}
	switch {
	case total < 0:
	case perPage > 0 && pages < 0:
		pages = (total + perPage - 1) / perPage
	case perPage > 0 && max(pages, 1) != max((total+perPage-1)/perPage, 1),
		perPage < 1 && pages >= 0 && (pages < (total+longest-1)/longest || pages > max(total, 1)):
		pages, total = -1, -1
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
	case asked.TenantID != "":
		p.More = rows >= asked.PerPage // a row for each month, at a path that may know no pages
	default:
		p.More = rows > 0 // a page may be shorter than was asked for and not be the last
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
