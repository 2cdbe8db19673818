package proof

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// Violation is a contradiction between what was promised and what was seen.
type Violation struct {
	Invariant string
	Tenant    string // empty when it is no one tenant's
	Detail    string // what contradicts what
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: tenant %q: %s", v.Invariant, v.Tenant, v.Detail)
}

// The invariants.
const (
	EventEnded   = "event-ended"   // a stored event is recorded, superseded or a dead letter
	NothingWaits = "nothing-waits" // after quiet
	FinalStatus  = "final-status"  // follows from the times of the events alone

	OneDashboard      = "one-dashboard"      // a tenant has one row, a dashboard is in one row
	DashboardExists   = "dashboard-exists"   // a recorded dashboard was made, by an attempt of that tenant
	DashboardRecorded = "dashboard-recorded" // a dashboard that was made is in a mapping or an attempt
	DashboardBound    = "dashboard-bound"    // a tenant has no more than its generations and uncertain attempts allow
	GenerationCause   = "generation-cause"   // a generation follows a deletion, a failure or a hold

	CreateMarked   = "create-marked"   // a create request has the mark of an attempt that was committed before
	MarkSentOnce   = "mark-sent-once"  // again only after the API said that it did not process it
	KnownOutcome   = "known-outcome"   // nothing is sent for what is known to have ended
	CreatedProven  = "created-proven"  // an attempt that says created was answered so, and its dashboard recorded
	RefusedProven  = "refused-proven"  // an attempt that says refused was not processed
	PoisonHarmless = "poison-harmless" // a poison event becomes a dead letter and does nothing else

	DeadLetterTrue = "dead-letter-true" // a dead letter is one event, once, with its data and identity
	DeadLetterDue  = "dead-letter-due"  // a good event is a dead letter only because the API refused or failed it
	OutageSpares   = "outage-spares"    // no event becomes a dead letter because of an outage

	OutPublished = "out-published" // what is in the outbox was published
	OutOrder     = "out-order"     // in order for each tenant
	OutCause     = "out-cause"     // and nothing else
	OutTrue      = "out-true"      // and it says what was recorded, of all that was

	TokenSigned  = "token-signed"  // well-formed, with the workspace's embed key
	TokenLife    = "token-life"    // not expired, not beyond the longest life
	TokenMapping = "token-mapping" // for the tenant's recorded workspace and dashboard, while it could be active
	TokenRevoked = "token-revoked" // none 5 s after a suspension or deletion

	UsageValid = "usage-valid" // one row for a tenant and month, in the documented form
	NoSecret   = "no-secret"   // in any text
)

// Check returns what in a history contradicts the worker's promises; nothing when all were kept. The history is one of a
// run that has ended quietly, with an API that worked at the end.
func Check(h History) []Violation {
	c := newChecker(h)
	for _, check := range []func(){
		c.eventsEnded, c.nothingWaits, c.finalStatus,
		c.oneDashboard, c.dashboardsExist, c.dashboardsRecorded, c.dashboardBound, c.generationCause,
		c.createsMarked, c.marksSentOnce, c.knownOutcomes, c.createdProven, c.refusedProven,
		c.poisonHarmless, c.deadLettersTrue, c.deadLettersDue, c.outageSpares,
		c.outbox, c.outTrue, c.tokens, c.usage, c.secrets,
	} {
		check()
	}
	return c.found
}

// checker holds a history and the ways to find things in it.
type checker struct {
	History
	found []Violation

	stored   []Published               // one for each message in the stream, in its order
	good     map[string][]Published    // of those, the ones that are not poison and name a tenant
	rows     map[string]repo.Mapping   // the first of each tenant
	attempts map[string][]repo.Attempt // by tenant, oldest first
	byMark   map[string]repo.Attempt
	byID     map[string]simulator.Dashboard
	creates  []simulator.Request            // in the order of their effects
	sends    map[string][]simulator.Request // of those, by mark
	dead     map[uint64][]Dead              // by the sequence of the event
}

func newChecker(h History) *checker {
	c := &checker{
		History: h, good: map[string][]Published{}, rows: map[string]repo.Mapping{}, attempts: map[string][]repo.Attempt{},
		byMark: map[string]repo.Attempt{}, byID: map[string]simulator.Dashboard{}, sends: map[string][]simulator.Request{}, dead: map[uint64][]Dead{},
	}
	seen := map[uint64]bool{}
	for _, p := range h.Published {
		if p.Sequence == 0 || seen[p.Sequence] {
			continue
		}
		seen[p.Sequence] = true
		c.stored = append(c.stored, p)
		if !p.Poison && p.Type != events.TypeUsageSync {
			c.good[p.Tenant] = append(c.good[p.Tenant], p)
		}
	}
	slices.SortStableFunc(c.stored, func(a, b Published) int { return cmp.Compare(a.Sequence, b.Sequence) })
	for _, m := range h.Mappings {
		if _, again := c.rows[m.TenantID]; !again {
			c.rows[m.TenantID] = m
		}
	}
	for _, a := range h.Attempts {
		c.attempts[a.TenantID] = append(c.attempts[a.TenantID], a)
		c.byMark[a.Mark] = a
	}
	for _, list := range c.attempts {
		slices.SortStableFunc(list, func(a, b repo.Attempt) int { return a.StartedAt.Compare(b.StartedAt.Time) })
	}
	for _, d := range h.Dashboards {
		c.byID[d.ID] = d
	}
	for _, r := range h.Requests {
		if r.Method == http.MethodPost {
			c.creates = append(c.creates, r)
		}
	}
	slices.SortStableFunc(c.creates, func(a, b simulator.Request) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, r := range c.creates {
		c.sends[r.Mark] = append(c.sends[r.Mark], r)
	}
	for _, d := range h.Dead {
		c.dead[d.StreamSequence] = append(c.dead[d.StreamSequence], d)
	}
	return c
}

func (c *checker) report(invariant, tenant, format string, args ...any) {
	c.found = append(c.found, Violation{Invariant: invariant, Tenant: tenant, Detail: fmt.Sprintf(format, args...)})
}

// The database keeps milliseconds, cut off: what it says happened at a time may have happened this much later.
const tick = time.Millisecond

// after says that a is later than b for sure, although different clocks may have told them.
func (c *checker) after(a, b time.Time) bool { return a.After(b.Add(tick + c.Clocks)) }

// when is the time that counts for the tenant's state.
func (p Published) when() time.Time {
	if p.Time.IsZero() || p.Time.After(p.StoredAt.Add(5*time.Minute)) {
		return p.StoredAt
	}
	return p.Time
}

// message is the identity that an event without one has.
func (p Published) message() string { return fmt.Sprintf("%d-%d", p.Sequence, p.StoredAt.UnixNano()) }

// state is what a tenant is after its events.
type state struct {
	wanted, suspended, deleted bool // deleted: ever
}

// fold applies the events in the order of their times. Where those are equal the later in this order wins: a deletion ends
// what was before it or at the same time, and a suspension beats a resumption.
func fold(list []Published) (s state) {
	order := []string{events.TypeTenantCreated, events.TypeTenantResumed, events.TypeTenantSuspended, events.TypeTenantDeleted}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Published) int {
		return cmp.Or(a.when().Compare(b.when()), cmp.Compare(slices.Index(order, a.Type), slices.Index(order, b.Type)))
	})
	for _, p := range list {
		switch p.Type {
		case events.TypeTenantCreated:
			s.wanted = true
		case events.TypeTenantResumed:
			s.suspended = false
		case events.TypeTenantSuspended:
			s.suspended = true
		case events.TypeTenantDeleted:
			s = state{deleted: true}
		}
	}
	return s
}

// status is what the tenant's row must show if its dashboard could be made.
func (s state) status() repo.Status {
	switch {
	case s.deleted && !s.wanted:
		return repo.Deleted
	case s.suspended:
		return repo.Suspended
	case s.wanted:
		return repo.Active
	}
	return repo.Pending
}

func (c *checker) eventsEnded() {
	for _, p := range c.stored {
		what := fmt.Sprintf("%s (sequence %d, of %s)", p.Type, p.Sequence, p.when().Format(time.RFC3339Nano))
		switch {
		case p.StoredAt.IsZero():
			c.report(EventEnded, p.Tenant, "%s was acknowledged and is not in the stream", what)
			continue
		case p.Poison || len(c.dead[p.Sequence]) > 0:
			continue
		case p.Type == events.TypeUsageSync:
			if !slices.ContainsFunc(c.Out, func(o Out) bool { return o.Type == events.TypeUsageSynced && o.Sequence > p.Sequence }) {
				c.report(EventEnded, p.Tenant, "%s was acknowledged, and there is neither a later usage.synced nor a dead letter of it", what)
			}
			continue
		}
		m, known := c.rows[p.Tenant]
		recorded := map[string]int64{
			events.TypeTenantCreated: max(m.CreatedEvent, m.DeletedEvent), events.TypeTenantSuspended: m.SuspendedEvent,
			events.TypeTenantResumed: m.ResumedEvent, events.TypeTenantDeleted: m.DeletedEvent,
		}[p.Type]
		switch {
		case !known:
			c.report(EventEnded, p.Tenant, "%s was acknowledged, and there is neither a row of the tenant nor a dead letter", what)
		case recorded < p.when().UnixNano():
			c.report(EventEnded, p.Tenant, "%s was acknowledged; the row knows of none later than %s, and there is no dead letter",
				what, time.Unix(0, recorded).UTC().Format(time.RFC3339Nano))
		}
	}
}

func (c *checker) nothingWaits() {
	for _, w := range c.Waiting {
		if w.Pending > 0 || w.InHand > 0 {
			c.report(NothingWaits, "", "consumer %s: %d events wait and %d are in hand", w.Consumer, w.Pending, w.InHand)
		}
	}
}

func (c *checker) finalStatus() {
	for _, tenant := range slices.Sorted(maps.Keys(c.good)) {
		m, known := c.rows[tenant]
		if !known {
			continue // that is eventsEnded's
		}
		s := fold(c.good[tenant])
		stage := repo.Active // what provisioning must have come to
		switch {
		case m.Stage == repo.Failed && c.failedForGood(tenant), m.Stage == repo.Held && c.uncertain(m):
			stage = m.Stage
		}
		want := s.status()
		if want == repo.Active {
			want = stage
		}
		switch {
		case m.Status != want:
			c.report(FinalStatus, tenant, "the row says %s (stage %s), its %d events say %s", m.Status, m.Stage, len(c.good[tenant]), want)
		case s.wanted && m.Stage != stage:
			c.report(FinalStatus, tenant, "the tenant is to have a dashboard, and its row is at stage %s", m.Stage)
		case s.wanted && m.Stage == repo.Active && m.DashboardID == "":
			c.report(FinalStatus, tenant, "the row says that there is a dashboard, and has none")
		}
	}
}

// failedForGood says whether a tenant.created of the tenant is a dead letter.
func (c *checker) failedForGood(tenant string) bool {
	return slices.ContainsFunc(c.good[tenant], func(p Published) bool {
		return p.Type == events.TypeTenantCreated && len(c.dead[p.Sequence]) > 0
	})
}

// uncertain says whether the generation has an attempt to be settled.
func (c *checker) uncertain(m repo.Mapping) bool {
	return slices.ContainsFunc(c.attempts[m.TenantID], func(a repo.Attempt) bool {
		return a.Generation == m.Generation && (a.Outcome == repo.Uncertain || a.Outcome == repo.Sent || a.Outcome == repo.Orphaned)
	})
}

func (c *checker) oneDashboard() {
	tenants, owners := map[string]bool{}, map[string]string{}
	for _, m := range c.Mappings {
		if tenants[m.TenantID] {
			c.report(OneDashboard, m.TenantID, "the tenant has two rows")
			continue
		}
		tenants[m.TenantID] = true
		if owner, taken := owners[m.DashboardID]; taken && m.DashboardID != "" {
			c.report(OneDashboard, m.TenantID, "dashboard %s is in the row of tenant %q, too", m.DashboardID, owner)
		}
		owners[m.DashboardID] = m.TenantID
	}
}

func (c *checker) dashboardsExist() {
	checked := map[string]bool{}
	check := func(where, id, tenant, workspace string) {
		if id == "" || checked[where+id] { // twice the same is oneDashboard's
			return
		}
		checked[where+id] = true
		d, made := c.byID[id]
		a := c.byMark[d.Mark]
		switch {
		case !made:
			c.report(DashboardExists, tenant, "%s has dashboard %s, which Papermap never made", where, id)
		case a.TenantID != tenant || d.TenantID != tenant:
			c.report(DashboardExists, tenant, "%s has dashboard %s, which was made for tenant %q (mark %q, of an attempt for %q)",
				where, id, d.TenantID, d.Mark, a.TenantID)
		case d.WorkspaceID != workspace:
			c.report(DashboardExists, tenant, "%s says workspace %s, and dashboard %s was made in %s", where, workspace, id, d.WorkspaceID)
		}
	}
	for _, m := range c.Mappings {
		check("the row", m.DashboardID, m.TenantID, m.WorkspaceID)
	}
	for _, a := range c.Attempts {
		if a.Outcome == repo.Made || a.Outcome == repo.Orphaned {
			check("attempt "+a.ID, a.DashboardID, a.TenantID, a.WorkspaceID)
		}
	}
}

func (c *checker) dashboardsRecorded() {
	recorded := map[string]string{}
	for _, a := range c.Attempts {
		recorded[a.DashboardID] = a.TenantID
	}
	for _, m := range c.Mappings {
		recorded[m.DashboardID] = m.TenantID
	}
	for _, d := range c.Dashboards {
		if c.byMark[d.Mark].TenantID != d.TenantID && recorded[d.ID] != d.TenantID {
			c.report(DashboardRecorded, d.TenantID, "Papermap made dashboard %s (mark %q), and no row or attempt of the tenant has its id or mark", d.ID, d.Mark)
		}
	}
}

func (c *checker) dashboardBound() {
	made := map[string]int{}
	for _, d := range c.Dashboards {
		made[d.TenantID]++
	}
	for _, tenant := range slices.Sorted(maps.Keys(made)) {
		uncertain := 0
		for _, a := range c.attempts[tenant] {
			if a.Outcome == repo.Sent || a.Outcome == repo.Uncertain || a.Outcome == repo.Orphaned {
				uncertain++
			}
		}
		if generations := c.rows[tenant].Generation; made[tenant] > generations+uncertain {
			c.report(DashboardBound, tenant, "Papermap made %d dashboards; %d generations and %d uncertain attempts allow fewer", made[tenant], generations, uncertain)
		}
	}
}

func (c *checker) generationCause() {
	ends := map[string]int{} // by tenant
	for _, o := range c.Outbox {
		if o.Type == events.TypeDashboardFailed || o.Type == events.TypeDashboardHeld {
			ends[o.TenantID]++
		}
	}
	for _, m := range c.Mappings {
		deletions := map[int64]bool{}
		for _, p := range c.good[m.TenantID] {
			if p.Type == events.TypeTenantDeleted {
				deletions[p.when().UnixNano()] = true
			}
		}
		if m.Generation > 1+len(deletions)+ends[m.TenantID] {
			c.report(GenerationCause, m.TenantID, "the row is at generation %d, after %d deletions and %d failures or holds",
				m.Generation, len(deletions), ends[m.TenantID])
		}
	}
}

func (c *checker) createsMarked() {
	for _, r := range c.creates {
		a, known := c.byMark[r.Mark]
		switch {
		case !known:
			c.report(CreateMarked, r.TenantID, "API request %d has mark %q, which is no attempt's", r.Seq, r.Mark)
		case a.TenantID != r.TenantID || a.WorkspaceID != r.WorkspaceID:
			c.report(CreateMarked, r.TenantID, "API request %d, in workspace %s, has the mark of attempt %s, which is for tenant %q in %s",
				r.Seq, r.WorkspaceID, a.ID, a.TenantID, a.WorkspaceID)
		case c.after(a.StartedAt.Time, r.Time):
			c.report(CreateMarked, r.TenantID, "API request %d came %v before its attempt %s was recorded", r.Seq, a.StartedAt.Sub(r.Time), a.ID)
		}
	}
}

// unprocessed says whether the answer to a create request means that nothing was done.
func unprocessed(r simulator.Request) bool {
	switch {
	case r.Status == http.StatusConflict:
		return false
	case r.Status == http.StatusServiceUnavailable:
		return fault(r).RetryAfter != ""
	}
	return r.Status >= 300 && r.Status < 500
}

// answered is when the answer to a request left, if one did.
func answered(r simulator.Request) time.Time { return r.Time.Add(fault(r).Delay) }

// fault is the rule that was applied to a request; the zero rule if it is none of this simulator's.
func fault(r simulator.Request) simulator.Fault {
	if r.Fault == "" {
		return simulator.Fault{}
	}
	f, err := simulator.ParseFault(r.Fault)
	if err != nil {
		return simulator.Fault{}
	}
	return f
}

func (c *checker) marksSentOnce() {
	for _, mark := range slices.Sorted(maps.Keys(c.sends)) {
		sends := c.sends[mark]
		for i, r := range sends[1:] {
			before := sends[i]
			if mark == "" { // that is createsMarked's
				continue
			}
			switch {
			case !unprocessed(before):
				c.report(MarkSentOnce, r.TenantID, "API request %d has mark %s again, and request %d may have been processed (status %d)",
					r.Seq, mark, before.Seq, before.Status)
			case answered(before).After(r.Time.Add(c.Clocks)):
				c.report(MarkSentOnce, r.TenantID, "API request %d has mark %s again, before request %d was answered", r.Seq, mark, before.Seq)
			}
		}
	}
}

func (c *checker) knownOutcomes() {
	for _, a := range c.Attempts {
		if a.Outcome == repo.Sent || a.Outcome == repo.Uncertain {
			continue // a holder that slept may still send after others gave it up
		}
		for _, r := range c.sends[a.Mark] {
			if c.after(r.Time, a.FinishedAt.Time) {
				c.report(KnownOutcome, a.TenantID, "API request %d was sent %v after its attempt %s had ended as %s",
					r.Seq, r.Time.Sub(a.FinishedAt.Time), a.ID, a.Outcome)
			}
		}
		for _, b := range c.attempts[a.TenantID] {
			if a.Outcome == repo.Made && b.Generation <= a.Generation && c.after(b.StartedAt.Time, a.FinishedAt.Time) {
				c.report(KnownOutcome, a.TenantID, "attempt %s began %v after attempt %s had made the dashboard of generation %d",
					b.ID, b.StartedAt.Sub(a.FinishedAt.Time), a.ID, a.Generation)
			}
		}
	}
}

func (c *checker) createdProven() {
	for _, a := range c.Attempts { // one that a person has settled is that person's word
		if a.Outcome != repo.Made {
			continue
		}
		if a.SettledAt.IsZero() && !slices.ContainsFunc(c.sends[a.Mark], func(r simulator.Request) bool {
			return r.DashboardID == a.DashboardID && (r.Status == http.StatusOK || r.Status == http.StatusCreated) && !fault(r).Truncate &&
				!c.after(answered(r), a.FinishedAt.Time)
		}) {
			c.report(CreatedProven, a.TenantID, "attempt %s says that it made dashboard %q, and no API request with its mark was answered so before",
				a.ID, a.DashboardID)
		}
		if m := c.rows[a.TenantID]; m.Generation < a.Generation || m.Generation == a.Generation && m.DashboardID != a.DashboardID {
			c.report(CreatedProven, a.TenantID, "attempt %s made dashboard %q for generation %d; the row has %q, generation %d",
				a.ID, a.DashboardID, a.Generation, m.DashboardID, m.Generation)
		}
	}
}

func (c *checker) refusedProven() {
	for _, a := range c.Attempts {
		if a.Outcome != repo.NotAccepted {
			continue
		}
		for _, r := range c.sends[a.Mark] {
			if !unprocessed(r) {
				c.report(RefusedProven, a.TenantID, "attempt %s says refused, and API request %d may have been processed (status %d, dashboard %q)",
					a.ID, r.Seq, r.Status, r.DashboardID)
			}
		}
	}
}

func (c *checker) poisonHarmless() {
	for _, p := range c.stored {
		if !p.Poison {
			continue
		}
		if len(c.dead[p.Sequence]) == 0 {
			c.report(PoisonHarmless, p.Tenant, "the poison %s (sequence %d) did not become a dead letter", p.Type, p.Sequence)
		}
		for _, d := range c.dead[p.Sequence] {
			if d.SideEffect != "none" || d.Attempts > 1 {
				c.report(PoisonHarmless, p.Tenant, "the dead letter of the poison %s (sequence %d) says side effect %q after %d attempts",
					p.Type, p.Sequence, d.SideEffect, d.Attempts)
			}
		}
	}
	for _, r := range c.creates {
		if !slices.ContainsFunc(c.good[r.TenantID], func(p Published) bool { return p.Type == events.TypeTenantCreated }) {
			c.report(PoisonHarmless, r.TenantID, "API request %d creates a dashboard, and no good tenant.created names the tenant", r.Seq)
		}
	}
	for _, m := range c.Mappings {
		if len(c.good[m.TenantID]) == 0 {
			c.report(PoisonHarmless, m.TenantID, "there is a row (%s), and no good event names the tenant", m.Status)
		}
	}
}

// duplicateWindow is how long a stream drops messages with an id that it has.
const duplicateWindow = 2 * time.Minute

func (c *checker) deadLettersTrue() {
	stored := map[uint64]Published{}
	for _, p := range c.stored {
		stored[p.Sequence] = p
	}
	first := map[uint64]Dead{}
	for _, d := range c.Dead {
		p, known := stored[d.StreamSequence]
		wrong := func(format string, args ...any) {
			c.report(DeadLetterTrue, p.Tenant, "dead letter %d of event %d: "+format, append([]any{d.Sequence, d.StreamSequence}, args...)...)
		}
		if !known || p.Type != d.Type {
			wrong("it is a %s, and no such event was published", d.Type)
			continue
		}
		if f, again := first[d.StreamSequence]; again && (d.id() != f.id() || d.Time.Sub(f.Time) < duplicateWindow) {
			wrong("there is a second one, with id %s beside %s, %v later", d.id(), f.id(), d.Time.Sub(f.Time))
		} else if !again {
			first[d.StreamSequence] = d
		}
		if why := d.differs(p.Data); why != "" {
			wrong("%s", why)
		}
		id := cmp.Or(p.EventID, p.message())
		if d.EventID != id && (!p.Poison || d.EventID != p.message()) { // the id of a poison event may not be readable
			wrong("its identity is %q, the event's is %q", d.EventID, id)
		}
		when, err := time.Parse(time.RFC3339Nano, d.EventTime)
		if err != nil || !when.Equal(p.when()) && (!p.Poison || !when.Equal(p.StoredAt)) {
			wrong("its time is %q, the event's is %s", d.EventTime, p.when().UTC().Format(time.RFC3339Nano))
		}
	}
}

func (d Dead) id() string { return d.Header.Get(nats.MsgIdHdr) }

// differs says how the dead letter's data differ from the event's, where they may have been cut.
func (d Dead) differs(data []byte) string {
	cut := d.Header.Get("Papermap-Data-Truncated")
	switch {
	case cut == "" && !bytes.Equal(d.Data, data):
		return fmt.Sprintf("its %d bytes of data are not the event's %d", len(d.Data), len(data))
	case cut != "" && (!bytes.HasPrefix(data, d.Data) || cut != fmt.Sprintf("%d %x", len(data), sha256.Sum256(data))):
		return fmt.Sprintf("it was cut from %s, and the event has %d bytes that differ", cut, len(data))
	}
	return ""
}

// The codes with which the API can end an event.
const (
	apiRefused = "API_REFUSED"
	apiFailed  = "API_FAILED"
)

func (c *checker) deadLettersDue() {
	for _, p := range c.stored {
		for _, d := range c.dead[p.Sequence] {
			var due bool
			switch {
			case p.Poison:
				continue
			case p.Type == events.TypeUsageSync:
				due = !strings.HasPrefix(d.Code, "INVALID_") && !strings.HasPrefix(d.Code, "UNKNOWN_")
			case p.Type == events.TypeTenantCreated && d.Code == apiRefused:
				due = slices.ContainsFunc(c.creates, func(r simulator.Request) bool { return r.TenantID == p.Tenant && refuses(r.Status) })
			case p.Type == events.TypeTenantCreated && d.Code == apiFailed:
				_, due = c.lastFailure(p.Tenant, d.Time)
			}
			if !due {
				c.report(DeadLetterDue, p.Tenant, "the good %s (sequence %d) became a dead letter with code %s: %s; nothing that the API answered explains it",
					p.Type, p.Sequence, d.Code, d.Error)
			}
		}
	}
}

// refuses says whether a status means that the same request will never be taken.
func refuses(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusTooManyRequests:
		return false
	}
	return status >= 400 && status < 500
}

// lastFailure is the tenant's last attempt before a moment that made no dashboard for its mapping.
func (c *checker) lastFailure(tenant string, before time.Time) (last repo.Attempt, ok bool) {
	for _, a := range c.attempts[tenant] {
		if (a.Outcome == repo.NotAccepted || a.Outcome == repo.Uncertain) && !c.after(a.FinishedAt.Time, before) {
			last, ok = a, true
		}
	}
	return last, ok
}

func (c *checker) outageSpares() {
	for _, p := range c.stored {
		for _, d := range c.dead[p.Sequence] {
			if p.Poison || d.Code != apiRefused && d.Code != apiFailed {
				continue
			}
			from, to := d.Time, d.Time
			if a, ok := c.lastFailure(p.Tenant, d.Time); ok && p.Type == events.TypeTenantCreated {
				from, to = a.StartedAt.Time, a.FinishedAt.Time
				if d.Code == apiFailed && c.counts(a) {
					continue
				}
			}
			for _, w := range c.Outages {
				if !from.Before(w.From) && !to.After(w.To) {
					c.report(OutageSpares, p.Tenant, "%s (sequence %d) became a dead letter (%s) because of a call at %s, when the API worked for nobody from %s to %s",
						p.Type, p.Sequence, d.Code, from.Format(time.RFC3339Nano), w.From.Format(time.RFC3339Nano), w.To.Format(time.RFC3339Nano))
				}
			}
		}
	}
}

// counts says whether a failure is the tenant's own: since its previous one another tenant had a success.
func (c *checker) counts(a repo.Attempt) bool {
	previous, ok := c.lastFailure(a.TenantID, a.StartedAt.Add(-tick))
	return ok && slices.ContainsFunc(c.Attempts, func(b repo.Attempt) bool {
		return b.TenantID != a.TenantID && b.WorkspaceID == a.WorkspaceID && b.Outcome == repo.Made &&
			b.FinishedAt.After(previous.FinishedAt.Time) && !b.FinishedAt.After(a.FinishedAt.Time)
	})
}

func (c *checker) outbox() {
	rows, published := map[string]OutboxRow{}, map[string]uint64{} // by event id
	for _, r := range c.Outbox {
		rows[r.EventID] = r
	}
	for _, o := range c.Out {
		r, known := rows[o.ID]
		if !known || r.Type != o.Type || r.TenantID != o.Tenant || !sameJSON(r.Data, o.Data) {
			c.report(OutCause, o.Tenant, "%s %s (sequence %d) was published, and the outbox has no such row", o.Type, o.ID, o.Sequence)
		}
		if at, again := published[o.ID]; !again || o.Sequence < at {
			published[o.ID] = o.Sequence
		}
	}
	latest := map[string]OutboxRow{} // by tenant
	for _, r := range slices.SortedFunc(slices.Values(c.Outbox), func(a, b OutboxRow) int { return cmp.Compare(a.ID, b.ID) }) {
		at, done := published[r.EventID]
		if !done {
			c.report(OutPublished, r.TenantID, "%s %s is in the outbox and was not published (sent_at %v)", r.Type, r.EventID, r.SentAt)
			continue
		}
		if before, any := latest[r.TenantID]; any && published[before.EventID] > at {
			c.report(OutOrder, r.TenantID, "%s %s was published before %s %s, which happened first", r.Type, r.EventID, before.Type, before.EventID)
		}
		latest[r.TenantID] = r
	}
}

func sameJSON(a, b []byte) bool {
	x, y := jsontext.Value(slices.Clone(a)), jsontext.Value(slices.Clone(b))
	return x.Canonicalize() == nil && y.Canonicalize() == nil && bytes.Equal(x, y)
}

func (c *checker) outTrue() {
	announced := map[string]bool{} // attempts
	for _, o := range c.Outbox {
		var data struct {
			TenantID    string `json:"tenant_id"`
			WorkspaceID string `json:"workspace_id"`
			DashboardID string `json:"dashboard_id"`
			Attempt     string `json:"attempt"`
		}
		if o.Type == events.TypeUsageSynced {
			continue
		}
		if err := json.Unmarshal(o.Data, &data); err != nil || data.TenantID != o.TenantID {
			c.report(OutTrue, o.TenantID, "%s %s is about tenant %q: %v", o.Type, o.EventID, data.TenantID, err)
			continue
		}
		i := slices.IndexFunc(c.attempts[o.TenantID], func(a repo.Attempt) bool {
			return a.WorkspaceID == data.WorkspaceID && (o.Type != events.TypeDashboardCreated || a.Outcome == repo.Made && a.DashboardID == data.DashboardID) &&
				(o.Type != events.TypeDashboardHeld || a.ID == data.Attempt)
		})
		if i < 0 {
			c.report(OutTrue, o.TenantID, "%s %s says %s, and no attempt of the tenant does", o.Type, o.EventID, o.Data)
		} else if o.Type == events.TypeDashboardCreated {
			announced[c.attempts[o.TenantID][i].ID] = true
		}
	}
	for _, a := range c.Attempts {
		deleted := slices.ContainsFunc(c.good[a.TenantID], func(p Published) bool { return p.Type == events.TypeTenantDeleted })
		if a.Outcome == repo.Made && !announced[a.ID] && !deleted { // of a tenant that is deleted meanwhile nothing is told
			c.report(OutTrue, a.TenantID, "attempt %s made dashboard %s, and no dashboard.created tells of it", a.ID, a.DashboardID)
		}
	}
}

// revocation is how long after the commit of a suspension or deletion a token may still be minted.
const revocation = 5 * time.Second

func (c *checker) tokens() {
	commits := map[string][]Commit{}
	for _, m := range c.Mappings { // a row that was never changed again shows when it became what it is
		if commit, ok := Seen(m, m.UpdatedAt.Add(tick)); ok {
			commits[m.TenantID] = append(commits[m.TenantID], commit)
		}
	}
	for _, commit := range c.Commits {
		commits[commit.Tenant] = append(commits[commit.Tenant], commit)
	}
	for _, t := range c.Tokens {
		if t.Text == "" {
			continue
		}
		claims, err := papermap.ParseToken(t.Text)
		if err != nil {
			c.report(TokenSigned, t.Tenant, "the token answered at %s: %v", t.Answered.Format(time.RFC3339Nano), err)
			continue
		}
		c.tokenSigned(t, claims)
		c.tokenMapping(t, claims)
		until := time.Unix(claims.ValidUntil, 0)
		if !until.After(t.Asked) || until.After(t.Answered.Add(c.LongestLife)) {
			c.report(TokenLife, t.Tenant, "the token asked for at %s and answered at %s is valid until %s; the longest life is %v",
				t.Asked.Format(time.RFC3339Nano), t.Answered.Format(time.RFC3339Nano), until.Format(time.RFC3339), c.LongestLife)
		}
		for _, commit := range commits[t.Tenant] {
			if t.Asked.After(commit.At.Add(revocation+c.Clocks)) && !c.undone(commit, t.Answered) {
				c.report(TokenRevoked, t.Tenant, "a token was minted %v after the tenant was seen %s, and nothing had made it active again",
					t.Answered.Sub(commit.At), commit.Status)
				break
			}
		}
	}
}

func (c *checker) tokenSigned(t Token, claims papermap.Claims) {
	signed := slices.ContainsFunc(c.Workspaces, func(w papermap.Workspace) bool {
		key := w.EmbedKey
		if key.ID == "" {
			key = w.Key
		}
		return w.ID == claims.WorkspaceID && key.ID == claims.APIKeyID && papermap.Sign(key.Secret, w.ID, claims.ValidUntil) == claims.Signature
	})
	if !signed || len(strconv.FormatInt(claims.ValidUntil, 10)) != 10 {
		c.report(TokenSigned, t.Tenant, "the token for workspace %s, key %s, until %d is not signed with that workspace's embed key, or the time has not ten digits",
			claims.WorkspaceID, claims.APIKeyID, claims.ValidUntil)
	}
}

func (c *checker) tokenMapping(t Token, claims papermap.Claims) {
	if claims.TenantID != t.Tenant || claims.WorkspaceID != t.Workspace || claims.DashboardID != t.Dashboard || claims.ValidUntil != t.Expires {
		c.report(TokenMapping, t.Tenant, "the token is for tenant %q, workspace %s, dashboard %s until %d; its answer says workspace %s, dashboard %s, until %d",
			claims.TenantID, claims.WorkspaceID, claims.DashboardID, claims.ValidUntil, t.Workspace, t.Dashboard, t.Expires)
		return
	}
	made := func(a repo.Attempt) bool { return a.Outcome == repo.Made }
	i := slices.IndexFunc(c.attempts[t.Tenant], func(a repo.Attempt) bool {
		return made(a) && a.DashboardID == claims.DashboardID && a.WorkspaceID == claims.WorkspaceID && !c.after(a.FinishedAt.Time, t.Answered)
	})
	if i < 0 {
		c.report(TokenMapping, t.Tenant, "a token was minted at %s for workspace %s and dashboard %q, which no attempt had made by then",
			t.Answered.Format(time.RFC3339Nano), claims.WorkspaceID, claims.DashboardID)
		return
	}
	old := c.attempts[t.Tenant][i]
	for _, a := range c.attempts[t.Tenant] {
		if made(a) && a.Generation > old.Generation && c.after(t.Asked, a.FinishedAt.Add(revocation)) {
			c.report(TokenMapping, t.Tenant, "a token was minted for dashboard %s of generation %d, %v after generation %d had %s",
				old.DashboardID, old.Generation, t.Asked.Sub(a.FinishedAt.Time), a.Generation, a.DashboardID)
		}
	}
}

// undone says whether events that were stored by then can have made the tenant active after the commit. Which of them
// the worker had seen is not known, so the best case counts.
func (c *checker) undone(commit Commit, by time.Time) bool {
	later := func(eventType string, than int64, orAt bool) func(Published) bool {
		return func(p Published) bool {
			when := p.when().UnixNano()
			return p.Type == eventType && (when > than || orAt && when == than) && !c.after(p.StoredAt, by)
		}
	}
	list := c.good[commit.Tenant]
	if commit.Status == repo.Deleted {
		return slices.ContainsFunc(list, later(events.TypeTenantCreated, commit.Event, false))
	}
	if slices.ContainsFunc(list, later(events.TypeTenantResumed, commit.Event, false)) {
		return true
	}
	return slices.ContainsFunc(list, func(p Published) bool { // deleted, and made anew
		return later(events.TypeTenantDeleted, commit.Event, true)(p) && slices.ContainsFunc(list, later(events.TypeTenantCreated, p.when().UnixNano(), false))
	})
}

var (
	periodForm  = regexp.MustCompile(`^2\d{3}-(0[1-9]|1[0-2])$`)
	creditsForm = regexp.MustCompile(`^\d{1,20}(\.\d+)?$`)
)

func (c *checker) usage() {
	type key struct{ workspace, tenant, period string }
	seen := map[key]bool{}
	for _, u := range c.Usage {
		k := key{u.WorkspaceID, u.TenantID, u.Period}
		if seen[k] || !periodForm.MatchString(u.Period) || !creditsForm.MatchString(u.Credits) || u.Requests < 0 {
			c.report(UsageValid, u.TenantID, "the usage in workspace %s and period %q (%q credits, %d requests) stands there twice or has a wrong form",
				u.WorkspaceID, u.Period, u.Credits, u.Requests)
		}
		seen[k] = true
	}
}

// secrets looks for planted secrets, the workspaces' own, and tokens and their signatures, in every text but the
// publishers' and the answers with the tokens.
func (c *checker) secrets() {
	type needle struct{ what, text string }
	var needles []needle
	canaries := slices.Clone(c.Canaries)
	for _, w := range c.Workspaces {
		canaries = append(canaries, string(w.Key.Secret), string(w.EmbedKey.Secret))
	}
	for i, canary := range canaries {
		if canary == "" {
			continue
		}
		for form, text := range forms(canary) {
			needles = append(needles, needle{fmt.Sprintf("secret no. %d (%s)", i+1, form), text})
		}
	}
	for i, t := range c.Tokens {
		if claims, err := papermap.ParseToken(t.Text); err == nil && t.Text != "" {
			needles = append(needles, needle{fmt.Sprintf("token no. %d", i+1), t.Text}, needle{fmt.Sprintf("the signature of token no. %d", i+1), claims.Signature})
		}
	}
	slices.SortFunc(needles, func(a, b needle) int { return strings.Compare(a.what, b.what) })

	var texts haystack
	texts.add("Texts", reflect.ValueOf(c.Texts))
	for _, part := range []struct {
		name string
		list any
	}{
		{"Requests", c.Requests}, {"Dashboards", c.Dashboards}, {"Mappings", c.Mappings}, {"Attempts", c.Attempts},
		{"Outbox", c.Outbox}, {"Usage", c.Usage}, {"Out", c.Out}, {"Dead", c.Dead},
	} {
		texts.add(part.name, reflect.ValueOf(part.list))
	}
	all := texts.text.String()
	for _, n := range needles {
		if n.text == "" {
			continue
		}
		if i := strings.Index(all, n.text); i >= 0 {
			c.report(NoSecret, "", "%s is in %s", n.what, texts.at(i))
		}
	}
}

// haystack is many texts in one, to be searched at once.
type haystack struct {
	text   strings.Builder
	starts []int
	names  []string
}

// add takes every string and byte slice in v, whatever it is made of.
func (h *haystack) add(name string, v reflect.Value) {
	keep := func(text string) {
		h.starts, h.names = append(h.starts, h.text.Len()), append(h.names, name)
		h.text.WriteString(text + "\x00")
	}
	switch v.Kind() {
	case reflect.String:
		keep(v.String())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				h.add(name+"."+f.Name, v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			keep(string(v.Bytes()))
			return
		}
		for i := range v.Len() {
			h.add(fmt.Sprintf("%s[%d]", name, i), v.Index(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			h.add(name+" (a key)", k)
			h.add(fmt.Sprintf("%s[%q]", name, k), v.MapIndex(k))
		}
	}
}

// at names the text at a place.
func (h *haystack) at(place int) string {
	return h.names[sort.SearchInts(h.starts, place+1)-1]
}

// forms are the ways in which a secret could stand in a text.
func forms(secret string) map[string]string {
	f := map[string]string{
		"raw": secret, "hex": hex.EncodeToString([]byte(secret)), "upper-case hex": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"in a query": url.QueryEscape(secret), "in a path": url.PathEscape(secret),
	}
	quoted := strconv.Quote(secret)
	f["quoted"] = quoted[1 : len(quoted)-1]
	// In base64 three bytes are four characters, so what stands before the secret shifts it. Only the characters that
	// are the secret's alone are looked for.
	for shift, own := range []int{0, 2, 3} {
		shifted := append(make([]byte, shift), secret...)
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "URL-safe base64": base64.RawURLEncoding} {
			text := encoding.EncodeToString(shifted)
			if len(shifted)%3 != 0 {
				text = text[:len(text)-1]
			}
			f[fmt.Sprintf("%s, shifted by %d", name, shift)] = text[min(own, len(text)):]
		}
	}
	return f
}
