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
	Tenant    string // empty when it concerns no tenant in particular
	Detail    string // what contradicts what
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: tenant %q: %s", v.Invariant, v.Tenant, v.Detail)
}

// The invariants, each with the promise that it stands for.
const (
	// Events in.
	EventEnded   = "event-ended"   // a stored event is recorded, superseded or a dead letter
	NothingWaits = "nothing-waits" // no event is left unhandled when the run is quiet
	FinalStatus  = "final-status"  // a tenant's status follows from the times of its events alone

	// Dashboards.

	OneDashboard      = "one-dashboard"      // a tenant has one row, a dashboard is in one row
	DashboardExists   = "dashboard-exists"   // it was made by an attempt of that tenant, or adopted
	DashboardRecorded = "dashboard-recorded" // a dashboard that was made is in a mapping or an attempt
	DashboardBound    = "dashboard-bound"    // at most one per generation and uncertain attempt
	GenerationCause   = "generation-cause"   // a generation follows a deletion, a failure or a hold
	AdoptionTrue      = "adoption-true"      // an adopted dashboard has one tenant, and is announced

	// Create requests.
	CreateMarked   = "create-marked"   // it has the mark of an attempt that was committed before
	MarkSentOnce   = "mark-sent-once"  // again only after an answer that nothing was processed
	KnownOutcome   = "known-outcome"   // nothing is sent for an attempt that is known to have ended
	CreatedProven  = "created-proven"  // the API answered so, and the dashboard is recorded
	RefusedProven  = "refused-proven"  // a refused attempt was not processed
	PoisonHarmless = "poison-harmless" // a poison event becomes a dead letter and does nothing else

	// Dead letters.
	DeadLetterTrue = "dead-letter-true" // a dead letter is one event, once, with its data and identity
	DeadLetterDue  = "dead-letter-due"  // a good event became one only because of the API's answers
	OutageSpares   = "outage-spares"    // no event becomes a dead letter because of an outage

	// Events out.
	OutPublished = "out-published" // each row of the outbox was published
	OutOrder     = "out-order"     // in the order of the rows, for each tenant
	OutCause     = "out-cause"     // nothing was published without a row
	OutTrue      = "out-true"      // they say what was recorded, and everything recorded is in them

	// Tokens.
	TokenSigned  = "token-signed"  // well-formed, with the workspace's embed key
	TokenLife    = "token-life"    // not expired, not beyond the longest life
	TokenMapping = "token-mapping" // for the workspace and dashboard that the tenant has
	TokenRevoked = "token-revoked" // none later than 5 s after a suspension or deletion

	// Usage.
	UsageValid = "usage-valid" // one row for a tenant and month, in the documented form
	UsageTrue  = "usage-true"  // as the API reports it, and complete after a run that is done
	UsageRun   = "usage-run"   // one for each event, which ends, with one usage.synced when done

	NoSecret = "no-secret" // no secret, token or signature in any text
)

// Check returns what in a history contradicts the worker's promises, and nothing when all were
// kept. The run must have become [Quiet], with an API that worked at the end; otherwise events that
// still wait are violations.
func Check(h History) []Violation {
	c := newChecker(h)
	for _, check := range []func(){
		c.eventsEnded, c.nothingWaits, c.finalStatus,
		c.oneDashboard, c.dashboardsExist, c.dashboardsRecorded, c.dashboardBound, c.generationCause,
		c.adoptions,
		c.createsMarked, c.marksSentOnce, c.knownOutcomes, c.createdProven, c.refusedProven,
		c.poisonHarmless, c.deadLettersTrue, c.deadLettersDue, c.outageSpares,
		c.outbox, c.outTrue, c.tokens, c.usageValid, c.usageTrue, c.usageRuns, c.secrets,
	} {
		check()
	}
	return c.found
}

// checker is a history with indexes.
type checker struct {
	History
	found []Violation

	stored   []Published               // one for each message in the stream, in its order
	good     map[string][]Published    // of those, by tenant, the ones that are not poison or taken
	rows     map[string]repo.Mapping   // the first of each tenant
	attempts map[string][]repo.Attempt // by tenant, oldest first
	byMark   map[string]repo.Attempt
	byID     map[string]simulator.Dashboard
	creates  []simulator.Request            // in the order of their effects
	sends    map[string][]simulator.Request // of those, by mark
	dead     map[uint64][]Dead              // by the sequence of the event

	copyTaken map[string]bool // by tenant and dashboard: an adoption was refused, see taken
}

func newChecker(h History) *checker {
	c := &checker{
		History: h, good: map[string][]Published{}, rows: map[string]repo.Mapping{},
		attempts: map[string][]repo.Attempt{}, byMark: map[string]repo.Attempt{},
		byID: map[string]simulator.Dashboard{}, sends: map[string][]simulator.Request{},
		dead: map[uint64][]Dead{}, copyTaken: map[string]bool{},
	}
	for _, d := range h.Dead {
		c.dead[d.StreamSequence] = append(c.dead[d.StreamSequence], d)
	}
	for _, m := range h.Mappings {
		if _, again := c.rows[m.TenantID]; !again {
			c.rows[m.TenantID] = m
		}
	}
	for _, p := range h.Published {
		if p.Adopts != "" && !p.Lost && c.refused(p, codeTaken) {
			c.copyTaken[p.Tenant+" "+p.Adopts] = true
		}
	}
	seen := map[uint64]bool{}
	for _, p := range h.Published {
		if p.Sequence == 0 || seen[p.Sequence] {
			continue
		}
		seen[p.Sequence] = true
		c.stored = append(c.stored, p)
		if !p.Poison && p.Type != events.TypeUsageSync && !c.taken(p) {
			c.good[p.Tenant] = append(c.good[p.Tenant], p)
		}
	}
	slices.SortStableFunc(c.stored, func(a, b Published) int { return cmp.Compare(a.Sequence, b.Sequence) })
	for _, a := range h.Attempts {
		c.attempts[a.TenantID] = append(c.attempts[a.TenantID], a)
		c.byMark[a.Mark] = a
	}
	for _, list := range c.attempts {
		slices.SortStableFunc(list, func(a, b repo.Attempt) int {
			return a.StartedAt.Compare(b.StartedAt.Time)
		})
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
	return c
}

func (c *checker) report(invariant, tenant, format string, args ...any) {
	c.found = append(c.found, Violation{invariant, tenant, fmt.Sprintf(format, args...)})
}

// has reports whether a good event of the type names the tenant.
func (c *checker) has(tenant, eventType string) bool {
	return slices.ContainsFunc(c.good[tenant], func(p Published) bool { return p.Type == eventType })
}

// uncertain reports whether there may be a dashboard that is not recorded.
func uncertain(o repo.Outcome) bool {
	return o == repo.OutcomeSent || o == repo.OutcomeUnknown || o == repo.OutcomeOrphaned
}

// stamp is a time as the reports show it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// tick is the resolution of times in the database, which truncates: the event may have been this
// much later.
const tick = time.Millisecond

// after reports whether a is certainly later than b, although they may be readings of different
// clocks.
func (c *checker) after(a, b time.Time) bool { return a.After(b.Add(tick + c.Clocks)) }

// when is the time that counts for the tenant's state: the event's own, unless it has none or one
// too far in the future.
func (p Published) when() time.Time {
	if p.Time.IsZero() || p.Time.After(p.StoredAt.Add(5*time.Minute)) {
		return p.StoredAt
	}
	return p.Time
}

// message is the identity of an event that was published without one.
func (p Published) message() string {
	return fmt.Sprintf("%d-%d", p.Sequence%numbersPerStream, p.StoredAt.UnixNano())
}

// state is what a tenant is after its events.
type state struct {
	wanted    bool // to have a dashboard
	suspended bool
	deleted   bool // ever
}

// fold applies the events in the order of their times. Of events at the same time the later in this
// order wins: a deletion ends what was before it or at the same time, and a suspension wins over a
// resumption.
func fold(list []Published) (s state) {
	order := []string{
		events.TypeTenantCreated, events.TypeTenantResumed,
		events.TypeTenantSuspended, events.TypeTenantDeleted,
	}
	rank := func(p Published) int { return slices.Index(order, p.Type) }
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Published) int {
		return cmp.Or(a.when().Compare(b.when()), cmp.Compare(rank(a), rank(b)))
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
