package proof_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// The model is what the contract says of a tenant, written down a second time and without SQL. Random commands are given to
// it and to the database; whatever can be seen of the two must be the same after each. Package repo's own property test
// has the order of events and the loss of holders; here are also what a person settles, replays, holds and refusals.

// modelAttempt is one create request.
type modelAttempt struct {
	id         string
	generation int
	outcome    repo.Outcome
	dashboard  string
	settled    bool // a person has looked after it
	made       bool // there is a dashboard at Papermap, whoever knows of it
}

func (a *modelAttempt) makes() string { return "dashboard-" + a.id }

type modelTenant struct {
	created, deleted, suspended, resumed int // minutes of the newest events
	stage                                repo.Status
	generation                           int
	dashboard                            string
	claim                                int  // grows whenever somebody takes the tenant over
	busy                                 bool // nobody may claim it
	failed                               string
	attempts                             []*modelAttempt
	out                                  []string
}

func (m *modelTenant) wanted() bool { return m.created > m.deleted }

func (m *modelTenant) status() repo.Status {
	switch {
	case m.deleted > 0 && !m.wanted():
		return repo.Deleted
	case m.suspended > m.deleted && m.suspended >= m.resumed:
		return repo.Suspended
	case m.stage == "":
		return repo.Pending
	}
	return m.stage
}

// uncertain says whether there may be a dashboard that nobody has recorded.
func (m *modelTenant) uncertain() bool {
	return slices.ContainsFunc(m.attempts, func(a *modelAttempt) bool {
		return a.generation == m.generation && (a.outcome == repo.Sent || a.outcome == repo.Uncertain || a.outcome == repo.Orphaned)
	})
}

// begin is a tenant.created that arrives. With repo.Create and repo.Settle it returns the attempt to go on with.
func (m *modelTenant) begin(minute int, message string, hold bool) (repo.Step, *modelAttempt) {
	switch {
	case minute <= m.deleted:
		return repo.Done, nil // superseded
	case m.stage == repo.Failed && m.failed == message:
		return repo.Refused, nil
	case m.stage == "" || m.stage == repo.Failed || !m.wanted():
		if m.stage != "" {
			m.generation++
		}
		m.stage, m.dashboard, m.busy = repo.Pending, "", false
		m.claim++
	}
	m.created = max(m.created, minute)
	switch {
	case m.stage == repo.Active || m.stage == repo.Held:
		return repo.Done, nil
	case m.busy:
		return repo.Wait, nil
	}
	m.claim++
	m.busy, m.stage = true, repo.Creating
	for _, a := range slices.Backward(m.attempts) {
		if hold && a.outcome == repo.Sent && a.generation == m.generation {
			return repo.Settle, a
		}
	}
	for _, a := range m.attempts {
		if a.outcome == repo.Sent {
			a.outcome = repo.Uncertain
		}
	}
	a := &modelAttempt{generation: m.generation, outcome: repo.Sent}
	m.attempts = append(m.attempts, a)
	return repo.Create, a
}

func (m *modelTenant) tell(eventType string) {
	if m.wanted() {
		m.out = append(m.out, eventType)
	}
}

// hand is a holder that has not come back yet. It may be asleep.
type hand struct {
	tenant string
	claim  repo.Claim
	taken  int // the model's claim when it took the tenant
	a      *modelAttempt
	minute int
}

type machine struct {
	db       *repo.DB
	sql      *sqlx.DB
	run      string
	hold     bool
	messages int
	tenants  map[string]*modelTenant
	hands    []*hand
	again    []modelEvent // what can be delivered once more
}

type modelEvent struct {
	tenant, message string
	minute          int
}

var modelBegun = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(minute int) time.Time { return modelBegun.Add(time.Duration(minute) * time.Minute) }

func (x *machine) tenant(t *rapid.T) (string, *modelTenant) {
	id := x.run + rapid.SampledFrom([]string{"a", "a", "a", "b"}).Draw(t, "tenant")
	if x.tenants[id] == nil {
		x.tenants[id] = &modelTenant{generation: 1}
	}
	return id, x.tenants[id]
}

func (x *machine) deliver(t *rapid.T, e modelEvent) {
	m := x.tenants[e.tenant]
	step, a := m.begin(e.minute, e.message, x.hold)
	c, err := x.db.Begin(t.Context(), repo.Created{
		TenantID: e.tenant, WorkspaceID: "w", Title: "Dashboard - " + e.tenant, EventID: fmt.Sprint("event-", e.minute), EventTime: at(e.minute), Message: e.message,
	}, x.hold)
	must(t, err)
	same(t, "what is to be done", c.Step, step)
	switch step {
	case repo.Create:
		a.id = c.Attempt.ID
		x.hands = append(x.hands, &hand{e.tenant, c, m.claim, a, e.minute})
	case repo.Settle:
		same(t, "the attempt to be settled", c.Attempt.ID, a.id)
		x.hands = append(x.hands, &hand{e.tenant, c, m.claim, a, e.minute})
	}
}

func (x *machine) created(t *rapid.T) {
	id, _ := x.tenant(t)
	x.messages++
	e := modelEvent{id, fmt.Sprint("message-", x.messages), rapid.IntRange(1, 6).Draw(t, "minute")}
	x.again = append(x.again, e)
	x.deliver(t, e)
}

func (x *machine) redelivered(t *rapid.T) {
	if len(x.again) > 0 {
		x.deliver(t, rapid.SampledFrom(x.again).Draw(t, "event"))
	}
}

// replayed is an event that is published again: its identity and time are the same, the message is another.
func (x *machine) replayed(t *rapid.T) {
	if len(x.again) > 0 {
		e := rapid.SampledFrom(x.again).Draw(t, "event")
		x.messages++
		e.message = fmt.Sprint("message-", x.messages)
		x.deliver(t, e)
	}
}

func (x *machine) changed(t *rapid.T) {
	id, m := x.tenant(t)
	minute := rapid.IntRange(1, 6).Draw(t, "minute")
	to := rapid.SampledFrom([]repo.Status{repo.Suspended, repo.Active, repo.Deleted}).Draw(t, "to")
	newest := map[repo.Status]*int{repo.Suspended: &m.suspended, repo.Active: &m.resumed, repo.Deleted: &m.deleted}[to]
	*newest = max(*newest, minute)
	_, err := x.db.Change(t.Context(), repo.Change{TenantID: id, WorkspaceID: "w", To: to, EventTime: at(minute)})
	must(t, err)
}

// take picks a holder that comes back.
func (x *machine) take(t *rapid.T) (*hand, *modelTenant) {
	if len(x.hands) == 0 {
		return nil, nil
	}
	i := rapid.IntRange(0, len(x.hands)-1).Draw(t, "holder")
	h := x.hands[i]
	x.hands = slices.Delete(x.hands, i, i+1)
	return h, x.tenants[h.tenant]
}

// answered is a holder whose request was answered with a dashboard.
func (x *machine) answered(t *rapid.T) {
	h, m := x.take(t)
	if h == nil || h.claim.Step == repo.Settle {
		return // killed
	}
	h.a.made = true
	recorded := m.stage == repo.Active && m.dashboard == h.a.makes() // known from a person
	switch {
	case recorded:
	case m.claim == h.taken:
		recorded = true
		m.stage, m.dashboard, m.busy = repo.Active, h.a.makes(), false
		h.a.outcome, h.a.dashboard = repo.Made, h.a.makes()
		m.tell(events.TypeDashboardCreated)
	default:
		h.a.outcome, h.a.dashboard, h.a.settled = repo.Orphaned, h.a.makes(), false
	}
	mapping := h.claim.Mapping
	mapping.DashboardID = h.a.makes()
	n, err := worker.DashboardCreated(mapping)
	must(t, err)
	got, err := x.db.Finish(t.Context(), h.claim, h.a.makes(), 200, n)
	must(t, err)
	same(t, "recorded", got, recorded)
}

// failed is a holder whose request failed in some way, or that settles what another left.
func (x *machine) failed(t *rapid.T) {
	h, m := x.take(t)
	if h == nil {
		return
	}
	way := rapid.SampledFrom([]string{"refused", "retryable", "unknown", "unknown", "unknown, made"}).Draw(t, "way")
	if h.claim.Step == repo.Settle {
		way = "unknown"
	}
	f := repo.Failure{
		Result: repo.Result{Outcome: repo.NotAccepted, Error: way}, Code: "API_FAILED", Most: 1e6,
		FailedNotice: notice(events.TypeDashboardFailed, h), HeldNotice: notice(events.TypeDashboardHeld, h),
		AgainNotice: notice(events.TypeTenantCreated, h),
	}
	switch way {
	case "refused":
		f.Permanent = true
	case "unknown", "unknown, made":
		f.Result.Outcome, f.Hold = repo.Uncertain, x.hold
		h.a.made = h.a.made || way != "unknown"
	}
	hold := f.Hold
	switch {
	case h.claim.Step == repo.Settle && h.a.outcome != repo.Sent: // whose attempt it is has come back, and knows more
		hold = h.a.outcome != repo.NotAccepted
	case h.claim.Step == repo.Settle && m.claim != h.taken: // nor does one that slept itself
	case h.a.outcome != repo.Made: // else a person knew it
		h.a.outcome, h.a.dashboard = f.Result.Outcome, ""
	}
	if m.claim == h.taken {
		m.stage, m.busy = repo.Pending, false
		switch {
		case f.Permanent:
			m.stage, m.failed = repo.Failed, h.claim.Message
			m.tell(events.TypeDashboardFailed)
		case hold:
			m.stage = repo.Held
			m.tell(events.TypeDashboardHeld)
		}
	} else if m.stage == repo.Held && m.generation == h.claim.Mapping.Generation && f.Result.Outcome == repo.NotAccepted && m.wanted() && !m.uncertain() {
		m.claim++ // it was held for nothing, and goes on
		m.stage, m.busy = repo.Pending, false
		m.tell(events.TypeTenantCreated)
	}
	_, err := x.db.Fail(t.Context(), h.claim, f)
	must(t, err)
}

func notice(eventType string, h *hand) repo.Notice {
	return repo.Notice{EventID: fmt.Sprintf("%s-%s-%d", eventType, h.claim.Attempt.ID, h.claim.Mapping.Epoch), Type: eventType, Data: []byte("{}")}
}

// expired lets the claim or the wait of a tenant end.
func (x *machine) expired(t *rapid.T) {
	id, m := x.tenant(t)
	m.busy = false
	_, err := x.sql.ExecContext(t.Context(), "UPDATE tenant_dashboards SET claimable_at = NULL WHERE tenant_id = ?", id)
	must(t, err)
}

// leftBehind is a tenant whose holder does not come back in time: an event of it is delivered once more.
func (x *machine) leftBehind(t *rapid.T) {
	x.expired(t)
	x.redelivered(t)
}

// resolved is a person who found a dashboard of the tenant at Papermap, or thinks so.
func (x *machine) resolved(t *rapid.T) {
	id, m := x.tenant(t)
	found := []string{"found-" + id}
	for _, a := range m.attempts {
		if a.generation == m.generation && (a.outcome == repo.Uncertain || a.outcome == repo.Orphaned) {
			found = append(found, a.makes())
		}
	}
	dashboard := rapid.SampledFrom(found).Draw(t, "found")
	_, err := x.db.Resolve(t.Context(), id, dashboard, worker.DashboardCreated)
	if m.stage != repo.Held {
		refused(t, err, "a tenant that is not held was resolved")
		return
	}
	must(t, err)
	m.claim++
	m.stage, m.dashboard, m.busy = repo.Active, dashboard, false
	m.tell(events.TypeDashboardCreated)
	var settled *modelAttempt
	for _, a := range m.attempts {
		if a.generation == m.generation && (a.outcome == repo.Uncertain && (settled == nil || settled.outcome != repo.Orphaned) ||
			a.outcome == repo.Orphaned && a.dashboard == dashboard) {
			settled = a
		}
	}
	if settled != nil {
		settled.outcome, settled.dashboard, settled.settled = repo.Made, dashboard, true
	}
}

// recreated is a person who found none.
func (x *machine) recreated(t *rapid.T) {
	id, m := x.tenant(t)
	after, err := x.db.Recreate(t.Context(), id, worker.CreatedAgain)
	if m.stage != repo.Held || !m.wanted() {
		refused(t, err, "a tenant that is not held, or deleted, is created again")
		return
	}
	must(t, err)
	m.claim++
	m.stage, m.busy = repo.Pending, false
	m.tell(events.TypeTenantCreated)

	unsent, err := x.db.Unsent(t.Context(), 1e6)
	must(t, err)
	row := unsent[len(unsent)-1]
	same(t, "identity and time of the event", []any{row.OriginalID, row.OriginalTime}, []any{after.CreatedEventID, at(m.created).UnixNano()})
	e, err := events.Structured(row.EventID, row.Type, row.TenantID, row.CreatedAt.Time, row.Data)
	must(t, err)
	e = e.As(row.OriginalID, time.Unix(0, row.OriginalTime))
	read, err := events.Decode(events.Raw{Type: row.Type, Header: e.Header, Data: e.Data, Sequence: 1, Time: time.Now()})
	must(t, err)
	data, ok := read.Data.(events.TenantCreated)
	same(t, "the event as it is read", []any{ok, read.ID, read.Time, data.TenantID, "Dashboard - " + data.Name}, []any{true, row.OriginalID, at(m.created), id, after.Title})
	x.messages++
	x.again = append(x.again, modelEvent{id, fmt.Sprint("message-", x.messages), m.created})
}

// lookedAfter is a person who takes an attempt off the list of possible orphans.
func (x *machine) lookedAfter(t *rapid.T) {
	_, m := x.tenant(t)
	if len(m.attempts) == 0 {
		return
	}
	a := rapid.SampledFrom(m.attempts).Draw(t, "attempt")
	err := x.db.SettleAttempt(t.Context(), a.id)
	if a.outcome != repo.Uncertain && a.outcome != repo.Orphaned {
		refused(t, err, "an attempt with a known outcome was settled")
		return
	}
	must(t, err)
	a.settled = true
}

// check compares all that can be seen.
func (x *machine) check(t *rapid.T) {
	uncertain, err := x.db.UncertainAttempts(t.Context())
	must(t, err)
	listed := map[string]bool{}
	for _, u := range uncertain {
		listed[u.ID] = true
	}
	for id, m := range x.tenants {
		row, err := x.db.Mapping(t.Context(), id)
		if errors.Is(err, repo.ErrNotFound) {
			same(t, "what is known of a tenant without a row", *m, modelTenant{generation: 1})
			continue
		}
		must(t, err)
		same(t, "status, generation and dashboard of "+id, []any{row.Status, row.Generation, row.DashboardID}, []any{m.status(), m.generation, m.dashboard})
		list, err := x.db.Attempts(t.Context(), id)
		must(t, err)
		var got, want []string
		for _, a := range list {
			got = append(got, fmt.Sprint(a.ID, a.Generation, a.Outcome, a.DashboardID, listed[a.ID]))
		}
		made, bound := 0, m.generation
		for _, a := range m.attempts {
			orphan := a.outcome == repo.Uncertain || a.outcome == repo.Orphaned
			want = append(want, fmt.Sprint(a.id, a.generation, a.outcome, a.dashboard, orphan && !a.settled))
			if a.made {
				made++
			}
			if orphan || a.outcome == repo.Sent {
				bound++
			}
		}
		same(t, "attempts of "+id+", and whether they are listed as possible orphans", got, want)
		if made > bound {
			t.Fatalf("%s has %d dashboards at Papermap, and generations and attempts allow for %d", id, made, bound)
		}
		var out []string
		must(t, x.sql.SelectContext(t.Context(), &out, "SELECT type FROM outbox WHERE tenant_id = ? ORDER BY id", id))
		same(t, "events out of "+id, strings.Join(out, " "), strings.Join(m.out, " "))
	}
}

func TestDatabaseDoesWhatTheModelDoes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "model.db")
	db, err := repo.Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	beside, err := sqlx.Open("sqlite3", "file:"+path+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = beside.Close() })
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		x := &machine{db: db, sql: beside, run: fmt.Sprintf("run%d-", runs), hold: rapid.Bool().Draw(t, "hold"), tenants: map[string]*modelTenant{}}
		t.Repeat(map[string]func(*rapid.T){
			"created": x.created, "redelivered": x.redelivered, "replayed": x.replayed, "changed": x.changed, "answered": x.answered, "failed": x.failed,
			"expired": x.expired, "left behind": x.leftBehind, "resolved": x.resolved, "recreated": x.recreated, "looked after": x.lookedAfter, "": x.check,
		})
	})
}

func must(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t *rapid.T, err error, what string) {
	t.Helper()
	if err == nil {
		t.Fatal(what)
	}
}

func same(t *rapid.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(modelTenant{})); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}
