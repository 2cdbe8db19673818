package simulator

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"papermap-worker/papermap"
)

// Usage is what a workspace has used. Generated tenants have one row in every month; their rows are computed when they are
// asked for, so that a workspace may be of any size. The zero value is a workspace without usage.
type Usage struct {
	Tenants  int                `json:"tenants"` // how many are generated
	TenantID func(i int) string `json:"-"`       // of the generated tenant i, from 0, each another; nil: org-0000000, org-0000001 …
	Seed     uint64             `json:"seed"`    // other seeds, other numbers

	// Rows of named tenants. One of a generated tenant takes the place of that tenant's row of the month; the others come
	// after all generated ones, by tenant, then period.
	Rows []UsageRow `json:"rows"`

	// Corrections is how often a tenant's totals were corrected. Each correction makes all of them smaller (but for 0).
	Corrections map[string]int `json:"corrections"`

	// BadEvery makes every BadEvery-th generated row one that cannot be used: without tenant, without credits, without
	// period, with negative credits, with credits that are a text, in turn. 0: none.
	BadEvery int `json:"bad_every"`

	// Style is how the API writes: one of UsageStyles, "" for the first. They differ in the place of the list, the names
	// of all fields, the forms of numbers and times, and in the pagination.
	Style string `json:"style"`

	// BeforeRequest is called before the workspace's usage request n, from 1, is answered, and may change u for it and
	// those that follow: tenants appear or vanish, totals shrink. It must not call the simulator.
	BeforeRequest func(n int, u *Usage) `json:"-"`
}

// UsageRow is a row of a named tenant, good or bad.
type UsageRow struct {
	TenantID string `json:"tenant_id"` // empty: the row has none
	Period   string `json:"period"`    // YYYY-MM, or another text, which is sent as it is and in every answer; empty: the row has none
	Credits  string `json:"credits"`   // JSON text, sent as it is: 12.5, "12.50", 1e3, -1, "many"; empty: the row has none
	Requests int64  `json:"requests"`
}

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

// replaceUsage is SetUsage from outside: the body is a Usage in JSON.
func (s *Simulator) replaceUsage(w http.ResponseWriter, r *http.Request) {
	var u Usage
	if err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxBody), &u, json.RejectUnknownMembers(true)); err != nil {
		writeProblem(w, fmt.Errorf(`body must be a JSON object such as {"tenants":20000,"bad_every":100,"style":"meta"}: %w`, err))
		return
	}
	if err := (&usageState{Usage: u}).check(); err != nil {
		writeProblem(w, err)
		return
	}
	s.SetUsage(r.URL.Query().Get("workspace"), u)
	w.WriteHeader(http.StatusNoContent)
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

// check returns why u makes no sense.
func (u *usageState) check() error {
	if _, known := styles[u.style()]; !known {
		return fmt.Errorf("usage with style %q: must be one of %s", u.Style, strings.Join(UsageStyles, ", "))
	}
	if u.Tenants < 0 || u.BadEvery < 0 {
		return fmt.Errorf("usage of %d tenants, every %d. bad: must not be negative", u.Tenants, u.BadEvery)
	}
	return nil
}

// prepare makes ready what answers are made from.
func (u *usageState) prepare() {
	if err := u.check(); err != nil {
		panic("simulator: " + err.Error())
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
