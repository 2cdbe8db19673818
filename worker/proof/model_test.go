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

// holder is a worker that has claimed a tenant and may come back at any time, or never.
type holder struct {
	tenant string
	claim  repo.Claim
	epoch  int // the model's claim when it claimed the tenant
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
	holders  []*holder
	past     []modelEvent // may be delivered again
}

type modelEvent struct {
	tenant, message string
	minute          int
}

func at(minute int) time.Time { return time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC) }

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
		TenantID: e.tenant, WorkspaceID: "w", Title: "Dashboard - " + e.tenant,
		EventID: fmt.Sprint("event-", e.minute), EventTime: at(e.minute), Message: e.message,
	}, x.hold)
	must(t, err)
	same(t, "step", c.Step, step)
	switch step {
	case repo.StepCreate:
		a.id = c.Attempt.ID
		x.holders = append(x.holders, &holder{e.tenant, c, m.claim, a, e.minute})
	case repo.StepRecordOutcome:
		same(t, "attempt left", c.Attempt.ID, a.id)
		x.holders = append(x.holders, &holder{e.tenant, c, m.claim, a, e.minute})
	}
}

func (x *machine) newMessage() string { x.messages++; return fmt.Sprint("message-", x.messages) }

func (x *machine) created(t *rapid.T) {
	id, _ := x.tenant(t)
	e := modelEvent{id, x.newMessage(), rapid.IntRange(1, 6).Draw(t, "minute")}
	x.past = append(x.past, e)
	x.deliver(t, e)
}

func (x *machine) redelivered(t *rapid.T) {
	if len(x.past) > 0 {
		x.deliver(t, rapid.SampledFrom(x.past).Draw(t, "event"))
	}
}

// replayed is an event that is published again: with its identity and time, as another message.
func (x *machine) replayed(t *rapid.T) {
	if len(x.past) > 0 {
		e := rapid.SampledFrom(x.past).Draw(t, "event")
		e.message = x.newMessage()
		x.deliver(t, e)
	}
}

func (x *machine) changed(t *rapid.T) {
	id, m := x.tenant(t)
	minute := rapid.IntRange(1, 6).Draw(t, "minute")
	to := rapid.SampledFrom([]repo.Status{repo.Suspended, repo.Active, repo.Deleted}).Draw(t, "to")
	newest := map[repo.Status]*int{
		repo.Suspended: &m.suspended, repo.Active: &m.resumed, repo.Deleted: &m.deleted,
	}[to]
	*newest = max(*newest, minute)
	_, err := x.db.Change(t.Context(),
		repo.Change{TenantID: id, WorkspaceID: "w", To: to, EventTime: at(minute)})
	must(t, err)
}

// take returns a holder that comes back.
func (x *machine) take(t *rapid.T) (*holder, *modelTenant) {
	if len(x.holders) == 0 {
		return nil, nil
	}
	i := rapid.IntRange(0, len(x.holders)-1).Draw(t, "holder")
	h := x.holders[i]
	x.holders = slices.Delete(x.holders, i, i+1)
	return h, x.tenants[h.tenant]
}

// answered is a holder whose request was answered with a dashboard.
func (x *machine) answered(t *rapid.T) {
	h, m := x.take(t)
	if h == nil || h.claim.Step == repo.StepRecordOutcome {
		return // killed
	}
	h.a.made = true
	recorded := m.stage == repo.Active && m.dashboard == h.a.makes() // an operator found it
	switch {
	case recorded:
	case m.claim == h.epoch:
		recorded = true
		m.stage, m.dashboard, m.busy = repo.Active, h.a.makes(), false
		h.a.outcome, h.a.dashboard = repo.OutcomeCreated, h.a.makes()
		m.announce(events.TypeDashboardCreated)
	default:
		h.a.outcome, h.a.dashboard, h.a.resolved = repo.OutcomeOrphaned, h.a.makes(), false
	}
	got, err := x.db.Finish(t.Context(), h.claim, h.a.makes(), 200, worker.DashboardCreatedEvent)
	must(t, err)
	same(t, "recorded", got, recorded)
}

// failed is a holder whose request failed in some way, or that records the outcome of another's.
func (x *machine) failed(t *rapid.T) {
	h, m := x.take(t)
	if h == nil {
		return
	}
	ways := []string{"refused", "retryable", "unknown", "unknown", "unknown, made"}
	way := rapid.SampledFrom(ways).Draw(t, "way")
	if h.claim.Step == repo.StepRecordOutcome {
		way = "unknown"
	}
	f := repo.Failure{
		Result: repo.Result{Outcome: repo.OutcomeRefused, Error: way}, Code: "API_FAILED", MaxFailures: 1e6,
	}
	switch way {
	case "refused":
		f.Permanent = true
	case "unknown", "unknown, made":
		f.Result.Outcome, f.Hold = repo.OutcomeUnknown, x.hold
		h.a.made = h.a.made || way != "unknown"
	}
	hold := f.Hold
	switch {
	case h.claim.Step == repo.StepRecordOutcome && h.a.outcome != repo.OutcomeSent: // its holder is back
		hold = h.a.outcome != repo.OutcomeRefused
	case h.claim.Step == repo.StepRecordOutcome && m.claim != h.epoch: // the holder was itself suspended
	case h.a.outcome != repo.OutcomeCreated: // else an operator found it
		h.a.outcome, h.a.dashboard = f.Result.Outcome, ""
	}
	if m.claim == h.epoch {
		m.stage, m.busy = repo.Pending, false
		switch {
		case f.Permanent:
			m.stage, m.failed = repo.Failed, h.claim.Message
			m.announce(events.TypeDashboardFailed)
		case hold:
			m.stage = repo.Held
			m.announce(events.TypeDashboardHeld)
		}
	} else if m.stage == repo.Held && m.generation == h.claim.Mapping.Generation &&
		f.Result.Outcome == repo.OutcomeRefused && m.wanted() && !m.uncertain() {
		m.claim++ // there was no reason to hold it
		m.stage, m.busy = repo.Pending, false
		m.announce(events.TypeTenantCreated)
	}
	_, err := x.db.Fail(t.Context(), h.claim, f, h.announce)
	must(t, err)
}

func (h *holder) announce(m repo.Mapping) (repo.OutboxEvent, error) {
	eventType := map[repo.Status]string{
		repo.Failed: events.TypeDashboardFailed, repo.Held: events.TypeDashboardHeld,
		repo.Pending: events.TypeTenantCreated,
	}[m.Stage]
	return repo.OutboxEvent{
		EventID: fmt.Sprintf("%s-%s-%d", eventType, h.claim.Attempt.ID, h.claim.Mapping.Epoch),
		Type:    eventType, Data: []byte("{}"),
	}, nil
}

// expired ends the claim or the wait of a tenant.
func (x *machine) expired(t *rapid.T) {
	id, m := x.tenant(t)
	m.busy = false
	_, err := x.sql.ExecContext(t.Context(),
		"UPDATE tenant_dashboards SET claimable_at = NULL WHERE tenant_id = ?", id)
	must(t, err)
}

// leftBehind is a tenant whose holder does not come back before an event is delivered once more.
func (x *machine) leftBehind(t *rapid.T) {
	x.expired(t)
	x.redelivered(t)
}

// resolved is an operator who found a dashboard of the tenant at Papermap, or believes so.
func (x *machine) resolved(t *rapid.T) {
	id, m := x.tenant(t)
	found := []string{"found-" + id}
	for _, a := range m.attempts {
		if a.generation == m.generation && (a.outcome == repo.OutcomeUnknown ||
			a.outcome == repo.OutcomeOrphaned) {
			found = append(found, a.makes())
		}
	}
	dashboard := rapid.SampledFrom(found).Draw(t, "found")
	_, err := x.db.Resolve(t.Context(), id, dashboard, worker.DashboardCreatedEvent)
	if m.stage != repo.Held {
		refused(t, err, "a tenant that is not held was resolved")
		return
	}
	must(t, err)
	m.claim++
	m.stage, m.dashboard, m.busy = repo.Active, dashboard, false
	m.announce(events.TypeDashboardCreated)
	var of *modelAttempt // that made it: the orphan with this dashboard, or the last unknown one
	for _, a := range m.attempts {
		orphan := a.outcome == repo.OutcomeOrphaned && a.dashboard == dashboard
		unknown := a.outcome == repo.OutcomeUnknown && (of == nil || of.outcome != repo.OutcomeOrphaned)
		if a.generation == m.generation && (orphan || unknown) {
			of = a
		}
	}
	if of != nil {
		of.outcome, of.dashboard, of.resolved = repo.OutcomeCreated, dashboard, true
	}
}

// recreated is an operator who found none.
func (x *machine) recreated(t *rapid.T) {
	id, m := x.tenant(t)
	after, err := x.db.Recreate(t.Context(), id, worker.TenantCreatedAgain)
	if m.stage != repo.Held || !m.wanted() {
		refused(t, err, "a tenant that is not held, or deleted, is created again")
		return
	}
	must(t, err)
	m.claim++
	m.stage, m.busy = repo.Pending, false
	m.announce(events.TypeTenantCreated)

	unsent, err := x.db.Unsent(t.Context(), 1e6)
	must(t, err)
	row := unsent[len(unsent)-1]
	same(t, "identity and time of the event", []any{row.OriginalID, row.OriginalTime},
		[]any{after.CreatedEventID, at(m.created).UnixNano()})
	e, err := events.Structured(row.EventID, row.Type, row.TenantID, row.CreatedAt.Time, row.Data)
	must(t, err)
	e = e.WithIdentity(row.OriginalID, time.Unix(0, row.OriginalTime))
	read, err := events.Decode(events.Raw{
		Type: row.Type, Header: e.Header, Data: e.Data, Sequence: 1, Time: time.Now(),
	})
	must(t, err)
	data, ok := read.Data.(events.TenantCreated)
	same(t, "decoded event", []any{ok, read.ID, read.Time, data.TenantID, "Dashboard - " + data.Name},
		[]any{true, row.OriginalID, at(m.created), id, after.Title})
	x.past = append(x.past, modelEvent{id, x.newMessage(), m.created})
}

// attemptResolved is an operator who takes an attempt off the list of possible orphans.
func (x *machine) attemptResolved(t *rapid.T) {
	_, m := x.tenant(t)
	if len(m.attempts) == 0 {
		return
	}
	a := rapid.SampledFrom(m.attempts).Draw(t, "attempt")
	err := x.db.ResolveAttempt(t.Context(), a.id)
	if !a.doubtful() {
		refused(t, err, "an attempt with a known outcome was resolved")
		return
	}
	must(t, err)
	a.resolved = true
}

// check compares everything that can be seen.
func (x *machine) check(t *rapid.T) {
	uncertain, err := x.db.PossibleOrphans(t.Context())
	must(t, err)
	listed := map[string]bool{}
	for _, u := range uncertain {
		listed[u.ID] = true
	}
	for id, m := range x.tenants {
		row, err := x.db.Mapping(t.Context(), id)
		if errors.Is(err, repo.ErrNotFound) {
			same(t, "tenant without a row", *m, modelTenant{generation: 1})
			continue
		}
		must(t, err)
		same(t, "status, generation and dashboard of "+id,
			[]any{row.Status, row.Generation, row.DashboardID}, []any{m.status(), m.generation, m.dashboard})
		list, err := x.db.Attempts(t.Context(), id)
		must(t, err)
		var got, want []string
		for _, a := range list {
			got = append(got, fmt.Sprint(a.ID, a.Generation, a.Outcome, a.DashboardID, listed[a.ID]))
		}
		made, bound := 0, m.generation
		for _, a := range m.attempts {
			orphan := a.doubtful() && !a.resolved
			want = append(want, fmt.Sprint(a.id, a.generation, a.outcome, a.dashboard, orphan))
			if a.made {
				made++
			}
			if a.doubtful() || a.outcome == repo.OutcomeSent {
				bound++
			}
		}
		same(t, "attempts of "+id+", and whether they are possible orphans", got, want)
		if made > bound {
			t.Fatalf("%s has %d dashboards at Papermap, more than the bound of %d", id, made, bound)
		}
		var out []string
		const query = "SELECT type FROM outbox WHERE tenant_id = ? ORDER BY id"
		must(t, x.sql.SelectContext(t.Context(), &out, query, id))
		same(t, "events out of "+id, strings.Join(out, " "), strings.Join(m.out, " "))
	}
}

func TestModelAgreesWithDatabase(t *testing.T) {
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
	var runs int
	rapid.Check(t, func(t *rapid.T) {
		runs++
		x := &machine{
			db: db, sql: beside, run: fmt.Sprintf("run%d-", runs), hold: rapid.Bool().Draw(t, "hold"),
			tenants: map[string]*modelTenant{},
		}
		t.Repeat(map[string]func(*rapid.T){
			"created": x.created, "redelivered": x.redelivered, "replayed": x.replayed,
			"changed": x.changed, "answered": x.answered, "failed": x.failed, "expired": x.expired,
			"left behind": x.leftBehind, "resolved": x.resolved, "recreated": x.recreated,
			"attempt resolved": x.attemptResolved, "": x.check,
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
