package repo

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// The decisions of a batch. Nothing in this file, and no job's decide, uses a database or a clock.
// A decision is a pure function of facts that were read, so it is tested without a database and can
// be repeated.
//
// The facts that a decision needs are not declared. It asks for them. A fact that was not yet read
// is added to set.wanted, and the decision ends with errNotRead. The caller reads the wanted facts
// of all decisions together, and repeats all decisions from the start:
//
//	for {
//		s := decide(f, now, jobs)
//		if s.wanted.none() {
//			return s // holds what is to be written
//		}
//		… read s.wanted into f …
//	}

// errNotRead ends a decision that has asked for a fact that was not yet read.
var errNotRead = errors.New("not read yet")

// facts are the contents of the database, as far as they were read. The mappings are locked.
type facts struct {
	mappings  map[string]Mapping     // by tenant; an unknown tenant has none
	sent      map[string][]Attempt   // by tenant: the attempts that are sent
	attempts  map[string][]Attempt   // by tenant: all of them
	owners    map[dashboardKey]owner // of a dashboard; without a tenant: none
	succeeded map[sinceKey]bool

	// Whether dashboards whose owner was not read count as new. Nearly all of them are. If one is
	// not, its INSERT fails, and the decisions are repeated with owners read.
	newDashboards bool
}

func newFacts() *facts {
	return &facts{
		mappings: map[string]Mapping{}, sent: map[string][]Attempt{}, attempts: map[string][]Attempt{},
		owners: map[dashboardKey]owner{}, succeeded: map[sinceKey]bool{},
	}
}

// dashboardKey is what identifies a dashboard: ids are unique within a workspace.
type dashboardKey struct{ WorkspaceID, DashboardID string }

// sinceKey asks whether a create of another tenant has succeeded in the workspace since a time.
type sinceKey struct {
	workspaceID, tenantID string
	since                 Time
}

// wanted are the facts that decisions have asked for and that were not read. A list may contain
// duplicates.
type wanted struct {
	sent, attempts []string // tenants
	owners         []dashboardKey
	succeeded      []sinceKey
}

func (w *wanted) none() bool {
	return len(w.sent)+len(w.attempts)+len(w.owners)+len(w.succeeded) == 0
}

// set is the result of the decisions of one batch. Each decision sees those before it, including
// those about other tenants.
type set struct {
	facts  *facts
	now    Time
	wanted wanted

	tenants map[string]*tenant     // the tenants of the decisions
	claims  map[dashboardKey]owner // dashboards that got a tenant, or whose times changed
	created []attemptRow           // attempts that are created, as far as they were read
	outbox  []OutboxRow
	sent    []int64 // ids of events out that were published
	audit   []AuditEntry
}

// tenant is all that a decision may change of one tenant.
type tenant struct {
	Mapping
	stored   bool // the row is in the table
	made     bool // it is, or is to be inserted
	attempts []attemptRow
}

// attemptRow is an attempt, and which of its parts to write.
type attemptRow struct {
	Attempt
	stored   bool // in the table
	changed  bool // its outcome, and what belongs to that
	resolved bool // the same, and ResolvedAt
}

// decide makes the jobs' decisions one after the other. A job whose decision fails or panics gets
// that error and changes nothing.
func decide(f *facts, now Time, jobs []*job) *set {
	s := &set{facts: f, now: now, tenants: map[string]*tenant{}, claims: map[dashboardKey]owner{}}
	for _, j := range jobs {
		if j.decide != nil {
			j.err = s.decide(j)
		}
		s.sent = append(s.sent, j.sent...)
		for _, e := range j.audit {
			if j.err == nil {
				s.audit = append(s.audit, e.row(now))
			}
		}
	}
	return s
}

func (s *set) decide(j *job) (err error) {
	d := &decision{tenant: s.tenant(j), set: s, now: s.now}
	if !d.made && j.known {
		return ErrNotFound
	}
	d.before = d.Mapping
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a transaction: %v", p)
		}
	}()
	if err := j.decide(d); err != nil {
		return err
	}
	s.keep(d)
	return nil
}

// tenant returns a copy of what is known about the job's tenant.
func (s *set) tenant(j *job) tenant {
	if t := s.tenants[j.tenantID]; t != nil {
		c := *t
		c.attempts = slices.Clone(t.attempts)
		return c
	}
	var t tenant
	t.Mapping, t.stored = s.facts.mappings[j.tenantID]
	if t.made = t.stored; !t.stored {
		t.Mapping = Mapping{
			TenantID: j.tenantID, WorkspaceID: j.workspaceID,
			Status: Pending, Stage: none, Generation: 1, CreatedAt: s.now,
		}
	}
	list, all := s.facts.attempts[j.tenantID]
	if !all {
		list = s.facts.sent[j.tenantID]
	}
	for _, a := range list {
		t.attempts = append(t.attempts, attemptRow{Attempt: a, stored: true})
	}
	return t
}

// keep adds a decision to the set.
func (s *set) keep(d *decision) {
	s.tenants[d.TenantID] = &d.tenant
	maps.Copy(s.claims, d.claims)
	for _, a := range d.attempts {
		if a.Outcome == OutcomeCreated {
			s.created = append(s.created, a)
		}
	}
	s.outbox = append(s.outbox, d.outbox...)
}

// decision is what one job's decide sees and changes: the tenant's mapping, its attempts, events
// out, and which dashboards become the tenant's. Its changes count only if it returns nil.
type decision struct {
	tenant
	before Mapping // when the decision began
	now    Time    // of the clock that leases go by
	set    *set
	claims map[dashboardKey]owner
	outbox []OutboxRow
}

// save marks the mapping to be written in its current state.
func (d *decision) save() {
	if !d.made || d.Mapping != d.before {
		d.made, d.UpdatedAt = true, d.now
	}
}

// attempt returns the tenant's attempt with that id. One that was not read is as in the claim: only
// its changes will be written.
func (d *decision) attempt(claimed Attempt) *attemptRow {
	i := slices.IndexFunc(d.attempts, func(a attemptRow) bool { return a.ID == claimed.ID })
	if i < 0 {
		i = len(d.attempts)
		d.attempts = append(d.attempts, attemptRow{Attempt: claimed, stored: true})
	}
	return &d.attempts[i]
}

// sent returns the tenant's attempts that are sent.
func (d *decision) sent() (list []*attemptRow, err error) {
	_, known := d.set.facts.sent[d.TenantID]
	_, all := d.set.facts.attempts[d.TenantID]
	if d.stored && !known && !all {
		d.set.wanted.sent = append(d.set.wanted.sent, d.TenantID)
		return nil, errNotRead
	}
	return d.where(func(a *attemptRow) bool { return a.Outcome == OutcomeSent }), nil
}

// history returns those of all the tenant's attempts that match.
func (d *decision) history(match func(*attemptRow) bool) ([]*attemptRow, error) {
	if _, all := d.set.facts.attempts[d.TenantID]; !all {
		d.set.wanted.attempts = append(d.set.wanted.attempts, d.TenantID)
		return nil, errNotRead
	}
	return d.where(match), nil
}

func (d *decision) where(match func(*attemptRow) bool) (list []*attemptRow) {
	for i := range d.attempts {
		if a := &d.attempts[i]; match(a) {
			list = append(list, a)
		}
	}
	return list
}

// record records how an attempt ended. A dashboard that it names belongs to the tenant from then
// on, unless it is another's.
func (d *decision) record(a *attemptRow, r Result) error {
	a.Outcome, a.DashboardID, a.HTTPStatus, a.Error = r.Outcome, r.DashboardID, r.HTTPStatus, r.Error
	a.FinishedAt, a.changed = d.now, true
	if r.DashboardID == "" {
		return nil
	}
	_, err := d.own(owner{WorkspaceID: a.WorkspaceID, DashboardID: r.DashboardID})
	return err
}

// own makes the dashboard the tenant's forever, with the times given. If it is another tenant's, it
// returns that tenant.
func (d *decision) own(o owner) (other string, err error) {
	known, err := d.owner(o.key(), d.set.facts.newDashboards)
	if err != nil || known.TenantID != "" && known.TenantID != d.TenantID {
		return known.TenantID, err
	}
	o.TenantID = d.TenantID
	if o.SetAt.IsZero() {
		o.SetAt = known.SetAt
	}
	if o.ReplacedAt.IsZero() {
		o.ReplacedAt = known.ReplacedAt
	}
	if d.claims == nil {
		d.claims = map[dashboardKey]owner{}
	}
	d.claims[o.key()] = o
	return "", nil
}

// owner returns the dashboard's owner. A dashboard that was not read may be assumed to be new.
func (d *decision) owner(key dashboardKey, takeForNew bool) (owner, error) {
	for _, claims := range []map[dashboardKey]owner{d.claims, d.set.claims, d.set.facts.owners} {
		if o, known := claims[key]; known {
			return o, nil
		}
	}
	if !takeForNew {
		d.set.wanted.owners = append(d.set.wanted.owners, key)
		return owner{}, errNotRead
	}
	return owner{}, nil
}

// succeededSince reports whether a create of another tenant has succeeded in the workspace since.
func (d *decision) succeededSince(since Time) (bool, error) {
	for _, a := range d.set.created {
		if a.WorkspaceID == d.WorkspaceID && a.TenantID != d.TenantID && a.FinishedAt.After(since.Time) {
			return true, nil
		}
	}
	key := sinceKey{d.WorkspaceID, d.TenantID, since}
	succeeded, known := d.set.facts.succeeded[key]
	if !known {
		d.set.wanted.succeeded = append(d.set.wanted.succeeded, key)
		return false, errNotRead
	}
	return succeeded, nil
}

// announce adds the mapping's event to the outbox, unless the tenant was deleted in the meantime.
func (d *decision) announce(announce Announce) error {
	if !d.Wanted() {
		return nil
	}
	e, err := announce(d.Mapping)
	if err != nil {
		return err
	}
	d.outbox = append(d.outbox, newOutboxRow(d.TenantID, e, d.now))
	return nil
}

// after is the time plus a duration.
func (d *decision) after(duration time.Duration) Time { return at(d.now.Add(duration)) }
