package simulator

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/papermap"
)

// Usage is what a workspace has used. Generated tenants have one row in every month; their rows are computed when they are
// asked for, so that a workspace may be of any size. The zero value is a workspace without usage.
type Usage struct {
	Tenants  int                // how many are generated
	TenantID func(i int) string // of the generated tenant i, from 0, each another; nil: org-0000000, org-0000001 …
	Seed     uint64             // other seeds, other numbers

	// Rows of named tenants. One of a generated tenant takes the place of that tenant's row of the month; the others come
	// after all generated ones, by tenant, then period.
	Rows []UsageRow

	// Corrections is how often a tenant's totals were corrected. Each correction makes all of them smaller (but for 0).
	Corrections map[string]int

	// BadEvery makes every BadEvery-th generated row one that cannot be used: without tenant, without credits, without
	// period, with negative credits, with credits that are a text, in turn. 0: none.
	BadEvery int

	// Style is how the API writes: one of UsageStyles, "" for the first. They differ in the place of the list, the names
	// of all fields, the forms of numbers and times, and in the pagination.
	Style string

	// BeforeRequest is called before the workspace's usage request n, from 1, is answered, and may change u for it and
	// those that follow: tenants appear or vanish, totals shrink. It must not call the simulator.
	BeforeRequest func(n int, u *Usage)
}

// UsageRow is a row of a named tenant, good or bad.
type UsageRow struct {
	TenantID string // empty: the row has none
	Period   string // YYYY-MM, or another text, which is sent as it is and in every answer; empty: the row has none
	Credits  string // JSON text, sent as it is: 12.5, "12.50", 1e3, -1, "many"; empty: the row has none
	Requests int64
}

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

// usageState is the usage of a workspace in use.
type usageState struct {
	Usage
	requests int

	// What the fields above make of Rows.
	override map[[2]string]*UsageRow // by tenant and period
	sorted   []*UsageRow             // all
}

// SetUsage sets a workspace's usage. It panics when u makes no sense.
func (s *Simulator) SetUsage(workspaceID string, u Usage) {
	state := &usageState{Usage: u}
	state.prepare()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usages[workspaceID] = state
}

// ChangeUsage lets change alter a workspace's usage between two requests. It must not call the simulator.
func (s *Simulator) ChangeUsage(workspaceID string, change func(u *Usage)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.usageOf(workspaceID)
	change(&state.Usage)
	state.prepare()
}

// UsageTotals returns the rows of a workspace that can be used, from one period to another, as a client should have them:
// generated tenants in their order, then the others by tenant, then period.
func (s *Simulator) UsageTotals(workspaceID, fromPeriod, toPeriod string) ([]papermap.UsageRow, error) {
	u, months, err := s.snapshot(workspaceID, fromPeriod, toPeriod)
	if err != nil {
		return nil, err
	}
	rows := make([]papermap.UsageRow, 0, u.Tenants*len(months))
	u.totals(months, func(r papermap.UsageRow) { rows = append(rows, r) })
	return rows, nil
}

// UsageChecksum is the SHA-256, in hex, of the rows as lines tenant|period|credits|requests, sorted as bytes, each with a
// newline at its end. The order of rows does not matter.
func UsageChecksum(rows []papermap.UsageRow) string {
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = r.TenantID + "|" + r.Period + "|" + r.Credits + "|" + strconv.FormatInt(r.Requests, 10) + "\n"
	}
	slices.Sort(lines)
	sum := sha256.New()
	for _, line := range lines {
		_, _ = io.WriteString(sum, line)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// serveUsage answers UsageTotals as JSON lines, or with ?checksum=1 how many there are and their checksum.
func (s *Simulator) serveUsage(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	workspace, from, to := query.Get("workspace"), query.Get("from_period"), query.Get("to_period")
	if query.Get("checksum") == "1" {
		rows, err := s.UsageTotals(workspace, from, to)
		if err != nil {
			writeProblem(w, err)
			return
		}
		writeJSON(w, struct {
			Rows     int    `json:"rows"`
			Checksum string `json:"checksum"`
		}{len(rows), UsageChecksum(rows)})
		return
	}
	u, months, err := s.snapshot(workspace, from, to)
	if err != nil {
		writeProblem(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := bufio.NewWriterSize(w, 64<<10)
	u.totals(months, func(r papermap.UsageRow) {
		_, _ = fmt.Fprintf(lines, `{"tenant_id":%s,"period":"%s","credits":"%s","requests":%d}`+"\n", appendQuoted(nil, r.TenantID), r.Period, r.Credits, r.Requests)
	})
	_ = lines.Flush()
}

// snapshot is a workspace's usage as of now, apart from what changes later.
func (s *Simulator) snapshot(workspaceID, fromPeriod, toPeriod string) (*usageState, []string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	months, err := monthsOf(fromPeriod, toPeriod, s.now())
	if err != nil {
		return nil, nil, err
	}
	u := &usageState{Usage: s.usageOf(workspaceID).Usage}
	u.Corrections, u.Rows = maps.Clone(u.Corrections), slices.Clone(u.Rows)
	u.prepare()
	return u, months, nil
}

// usageOf returns a workspace's usage. s.mu is held.
func (s *Simulator) usageOf(workspaceID string) *usageState {
	state := s.usages[workspaceID]
	if state == nil {
		state = &usageState{}
		s.usages[workspaceID] = state
	}
	return state
}

// prepare checks u and makes ready what answers are made from.
func (u *usageState) prepare() {
	if _, known := styles[u.style()]; !known || u.Tenants < 0 || u.BadEvery < 0 {
		panic(fmt.Sprintf("simulator: usage with style %q, %d tenants, every %d. bad", u.Style, u.Tenants, u.BadEvery))
	}
	u.override, u.sorted = map[[2]string]*UsageRow{}, nil
	for i := range u.Rows {
		r := &u.Rows[i]
		u.sorted = append(u.sorted, r)
		if isMonth(r.Period) {
			u.override[[2]string{r.TenantID, r.Period}] = r
		}
	}
	slices.SortStableFunc(u.sorted, func(a, b *UsageRow) int {
		return strings.Compare(a.TenantID+"\x00"+a.Period, b.TenantID+"\x00"+b.Period)
	})
}

func (u *usageState) style() string {
	if u.Style == "" {
		return UsageStyles[0]
	}
	return u.Style
}

func (u *usageState) id(i int) string {
	if u.TenantID != nil {
		return u.TenantID(i)
	}
	if i >= 10_000_000 {
		return "org-" + strconv.Itoa(i)
	}
	var id [11]byte
	copy(id[:], "org-")
	for at := len(id) - 1; at >= len("org-"); at-- {
		id[at] = byte('0' + i%10)
		i /= 10
	}
	return string(id[:])
}

// indexOf is the number of a generated tenant, or -1.
func (u *usageState) indexOf(tenant string) int {
	if u.TenantID == nil {
		i, err := strconv.Atoi(strings.TrimPrefix(tenant, "org-"))
		if err == nil && i >= 0 && i < u.Tenants && u.id(i) == tenant {
			return i
		}
		return -1
	}
	for i := range u.Tenants {
		if u.TenantID(i) == tenant {
			return i
		}
	}
	return -1
}

// added are the rows that take no generated row's place, of one tenant or with "" of all.
func (u *usageState) added(months []string, tenant string) []*UsageRow {
	var rows []*UsageRow
	for _, r := range u.sorted {
		month := isMonth(r.Period)
		switch {
		case tenant != "" && r.TenantID != tenant,
			month && !slices.Contains(months, r.Period),
			month && u.indexOf(r.TenantID) >= 0:
			continue
		}
		rows = append(rows, r)
	}
	return rows
}

// generate returns the numbers of a generated tenant in a month.
func (u *usageState) generate(tenant, month string) (micros, requests int64) {
	h := hash(hash(u.Seed, tenant), month)
	if h%64 != 0 { // every 64th has used nothing
		micros = int64(mix(h) % 10_000_000_000)
		micros -= micros % [...]int64{1, 10, 100, 1_000, 10_000, 100_000, 1_000_000}[h>>8%7] // six to no digits after the point
	}
	requests = int64(mix(h+1) % 100_000)
	for n := range u.Corrections[tenant] {
		h = mix(h + uint64(n) + 2)
		micros, requests = int64(h%uint64(max(micros, 1))), int64(h%uint64(max(requests, 1)))
	}
	return micros, requests
}

// hash is FNV-1a, mixed. It need not be good, only cheap.
func hash(seed uint64, s string) uint64 {
	h := seed ^ 14695981039346656037
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finalizer of SplitMix64.
func mix(h uint64) uint64 {
	h += 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// The ways in which a generated row can be bad.
const (
	noTenant = iota
	noCredits
	noPeriod
	negativeCredits
	textCredits
	badKinds
	notBad = -1
)

// badness is how the row of generated tenant i in a month is bad. It does not depend on what else was asked for.
func (u *usageState) badness(i int, month string) int {
	if u.BadEvery == 0 {
		return notBad
	}
	year, _ := strconv.Atoi(month[:4])
	number, _ := strconv.Atoi(month[5:])
	n := i + year*12 + number
	if n%u.BadEvery != 0 {
		return notBad
	}
	return n / u.BadEvery % badKinds
}

// totals gives each row that can be used to row.
func (u *usageState) totals(months []string, row func(papermap.UsageRow)) {
	explicit := func(r *UsageRow) {
		credits, ok := plainCredits(r.Credits)
		tenantOK := r.TenantID != "" && utf8.ValidString(r.TenantID) && utf8.RuneCountInString(r.TenantID) <= papermap.MaxTenantID &&
			!strings.ContainsFunc(r.TenantID, unicode.IsControl)
		if ok && tenantOK && r.Requests >= 0 && isMonth(r.Period) {
			row(papermap.UsageRow{TenantID: r.TenantID, Period: r.Period, Credits: credits, Requests: r.Requests})
		}
	}
	for i := range u.Tenants {
		tenant := u.id(i)
		for _, month := range months {
			if r := u.override[[2]string{tenant, month}]; r != nil {
				explicit(r)
			} else if u.badness(i, month) == notBad {
				micros, requests := u.generate(tenant, month)
				row(papermap.UsageRow{TenantID: tenant, Period: month, Credits: string(appendMicros(nil, micros)), Requests: requests})
			}
		}
	}
	for _, r := range u.added(months, "") {
		explicit(r)
	}
}

var creditsPattern = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$`)

// plainCredits is what a client must make of an explicit row's credits. It calculates, where the client edits texts.
func plainCredits(text string) (string, bool) {
	if strings.HasPrefix(text, `"`) && strings.HasSuffix(text, `"`) && len(text) > 1 {
		text = text[1 : len(text)-1]
	}
	if !creditsPattern.MatchString(text) {
		return "", false
	}
	value, ok := new(big.Rat).SetString(text)
	most, _ := new(big.Rat).SetString("1e20")
	if !ok || value.Sign() < 0 || value.Cmp(most) >= 0 {
		return "", false
	}
	plain := value.FloatString(12)
	if back, _ := new(big.Rat).SetString(plain); back.Cmp(value) != 0 {
		return "", false // it has more digits after the point
	}
	return strings.TrimSuffix(strings.TrimRight(plain, "0"), "."), true
}

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
