package simulator

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/big"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"papermap-worker/papermap"
)

// Usage is a workspace's usage. Generated tenants have one row in every month, computed on demand,
// so that a workspace can have any size. The zero value is a workspace without usage.
type Usage struct {
	Tenants int `json:"tenants"` // how many are generated

	// TenantID returns the id of generated tenant i, from 0, a different one for each; nil:
	// org-0000000, org-0000001 …
	TenantID func(i int) string `json:"-"`
	Seed     uint64             `json:"seed"` // another seed makes other numbers

	// Rows are those of named tenants. One of a generated tenant replaces that tenant's row of the
	// month; the others come after all generated ones, by tenant, then period.
	Rows []UsageRow `json:"rows"`

	// Corrections counts, by tenant, how often its totals were corrected. Each correction makes all
	// of them smaller, except 0.
	Corrections map[string]int `json:"corrections"`

	// BadEvery makes every BadEvery-th generated row unusable: without tenant, without credits,
	// without period, with negative credits, with credits that are text, in turn. 0: none.
	BadEvery int `json:"bad_every"`

	// Style is how the API writes: one of UsageStyles, "" for the first. They differ in where the
	// list is, the names of all fields, the forms of numbers and times, and the pagination.
	Style string `json:"style"`

	// Names replaces names of the style's fields, such as credits_consumed, by names that a client
	// may not know.
	Names map[string]string `json:"names"`

	// BeforeRequest is called before the workspace's usage request n, from 1, is answered, and may
	// change u for it and those that follow: tenants appear or vanish, totals shrink. It must not
	// call the simulator.
	BeforeRequest func(n int, u *Usage) `json:"-"`
}

// UsageRow is a row of a named tenant, good or bad.
type UsageRow struct {
	TenantID string `json:"tenant_id"` // empty: the row has none

	// Period is YYYY-MM, or another text, which is sent as it is and in every answer; empty: the
	// row has none.
	Period string `json:"period"`

	// Credits is JSON, sent as it is: 12.5, "12.50", 1e3, -1, "many"; empty: the row has none.
	Credits  string `json:"credits"`
	Requests int64  `json:"requests"`
}

// usageState is a workspace's usage, prepared for answers.
type usageState struct {
	Usage
	requests int

	// Derived from Rows.
	override map[[2]string]*UsageRow // by tenant and period
	sorted   []*UsageRow             // all
}

// SetUsage sets a workspace's usage. It panics if u is invalid.
func (s *Simulator) SetUsage(workspaceID string, u Usage) {
	state := &usageState{Usage: u}
	state.prepare()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usages[workspaceID] = state
}

// ChangeUsage calls change with a workspace's usage, between two requests. change must not call the
// simulator.
func (s *Simulator) ChangeUsage(workspaceID string, change func(u *Usage)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.usageOf(workspaceID)
	change(&state.Usage)
	state.prepare()
}

// UsageTotals returns the usable rows of a workspace, from one period to another (YYYY-MM, both
// included), as a client should read them: generated tenants in their order, then the others by
// tenant, then period.
func (s *Simulator) UsageTotals(workspaceID, fromPeriod, toPeriod string) ([]papermap.UsageRow, error) {
	u, months, err := s.snapshot(workspaceID, fromPeriod, toPeriod)
	if err != nil {
		return nil, err
	}
	rows := make([]papermap.UsageRow, 0, u.Tenants*len(months))
	u.totals(months, func(r papermap.UsageRow) { rows = append(rows, r) })
	return rows, nil
}

// UsageChecksum returns the SHA-256, in hex, of the rows as lines tenant|period|credits|requests,
// sorted as bytes, each with a newline at its end. The order of rows does not matter.
func UsageChecksum(rows []papermap.UsageRow) string {
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = fmt.Sprintf("%s|%s|%s|%d\n", r.TenantID, r.Period, r.Credits, r.Requests)
	}
	slices.Sort(lines)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(lines, ""))))
}

// snapshot returns a copy of a workspace's usage, and the months from one period to another.
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

// check returns why u is invalid.
func (u *usageState) check() error {
	if _, known := styles[cmp.Or(u.Style, UsageStyles[0])]; !known {
		return fmt.Errorf("usage with style %q: must be one of %s", u.Style, strings.Join(UsageStyles, ", "))
	}
	if u.Tenants < 0 || u.BadEvery < 0 {
		return fmt.Errorf("usage of %d tenants, bad every %d: must not be negative", u.Tenants, u.BadEvery)
	}
	return nil
}

// prepare derives the data for answers from the exported fields.
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

func (u *usageState) id(i int) string {
	if u.TenantID != nil {
		return u.TenantID(i)
	}
	return fmt.Sprintf("org-%07d", i)
}

// indexOf returns the number of a generated tenant, or -1.
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

// added returns the named rows that replace no generated one, of one tenant, or of all for "".
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

// generate returns the numbers of a generated tenant in a month, always the same for one seed.
func (u *usageState) generate(tenant, month string) (micros, requests int64) {
	stream := fnv.New64a()
	_, _ = io.WriteString(stream, tenant+" "+month)
	random := rand.New(rand.NewPCG(u.Seed, stream.Sum64()))
	if random.IntN(64) > 0 { // one in 64 has used nothing
		micros = random.Int64N(10_000_000_000)
		// zero to six digits after the decimal point
		micros -= micros % [...]int64{1, 10, 100, 1_000, 10_000, 100_000, 1_000_000}[random.IntN(7)]
	}
	requests = random.Int64N(100_000)
	for range u.Corrections[tenant] {
		micros, requests = random.Int64N(max(micros, 1)), random.Int64N(max(requests, 1))
	}
	return micros, requests
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

// badness returns how the row of generated tenant i in a month is bad. It does not depend on the
// rest of the query.
func (u *usageState) badness(i int, month string) int {
	if u.BadEvery == 0 {
		return notBad
	}
	t, _ := time.Parse("2006-01", month)
	n := i + t.Year()*12 + int(t.Month())
	if n%u.BadEvery != 0 {
		return notBad
	}
	return n / u.BadEvery % badKinds
}

// totals calls row with each usable row.
func (u *usageState) totals(months []string, row func(papermap.UsageRow)) {
	explicit := func(r *UsageRow) {
		credits, ok := plainCredits(r.Credits)
		tenantOK := r.TenantID != "" && utf8.ValidString(r.TenantID) &&
			utf8.RuneCountInString(r.TenantID) <= papermap.MaxTenantID &&
			!strings.ContainsFunc(r.TenantID, unicode.IsControl)
		if ok && tenantOK && r.Requests >= 0 && isMonth(r.Period) {
			row(papermap.UsageRow{
				TenantID: r.TenantID, Period: r.Period, Credits: credits, Requests: r.Requests,
			})
		}
	}
	for i := range u.Tenants {
		tenant := u.id(i)
		for _, month := range months {
			if r := u.override[[2]string{tenant, month}]; r != nil {
				explicit(r)
			} else if u.badness(i, month) == notBad {
				micros, requests := u.generate(tenant, month)
				row(papermap.UsageRow{
					TenantID: tenant, Period: month, Credits: plainMicros(micros), Requests: requests,
				})
			}
		}
	}
	for _, r := range u.added(months, "") {
		explicit(r)
	}
}

var creditsPattern = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$`)

// plainCredits returns the value that a client must read from a named row's credits. It calculates
// with fractions, so that it does not share the client's mistakes.
func plainCredits(text string) (string, bool) {
	if strings.HasPrefix(text, `"`) && strings.HasSuffix(text, `"`) && len(text) > 1 {
		text = text[1 : len(text)-1]
	}
	if !creditsPattern.MatchString(text) {
		return "", false
	}
	value, ok := new(big.Rat).SetString(text)
	limit, _ := new(big.Rat).SetString("1e20")
	if !ok || value.Sign() < 0 || value.Cmp(limit) >= 0 {
		return "", false
	}
	plain := value.FloatString(12)
	if back, _ := new(big.Rat).SetString(plain); back.Cmp(value) != 0 {
		return "", false // it has more digits after the point
	}
	return strings.TrimSuffix(strings.TrimRight(plain, "0"), "."), true
}
