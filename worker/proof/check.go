package proof

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"

	"papermap-worker/events"
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
	UsageTrue  = "usage-true"  // it is what the API reports; after a run that is done all of it is there
	UsageRun   = "usage-run"   // one for each event, which ends, and is told of once when it is done
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
		c.outbox, c.outTrue, c.tokens, c.usageValid, c.usageTrue, c.usageRuns, c.secrets,
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
