package repo

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// memory is tables without a database: what the decisions of a batch are tested against.
type memory struct {
	mappings map[string]Mapping
	attempts map[string]Attempt
	owners   map[dashboardKey]owner
	outbox   []string // event ids
	now      Time
}

func newMemory() *memory {
	return &memory{mappings: map[string]Mapping{}, attempts: map[string]Attempt{},
		owners: map[dashboardKey]owner{}, now: at(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))}
}

// run decides the jobs in one batch and keeps what that comes to.
func (m *memory) run(t fataler, jobs ...*job) {
	t.Helper()
	f := newFacts()
	for _, tenant := range tenantsOf(jobs) {
		if row, ok := m.mappings[tenant]; ok {
			f.mappings[tenant] = row
		}
	}
	s := decide(f, m.now, jobs)
	for rounds := 0; !s.wanted.none(); rounds++ {
		if rounds > 5 {
			t.Fatalf("decisions ask for ever more: %+v", s.wanted)
		}
		m.read(f, s.wanted)
		s = decide(f, m.now, jobs)
	}
	m.apply(t, s)
}

// read reads what decisions have asked for.
func (m *memory) read(f *facts, w wanted) {
	ofTenant := func(tenant string, outcomes ...Outcome) (list []Attempt) {
		for _, id := range slices.Sorted(maps.Keys(m.attempts)) {
			a := m.attempts[id]
			if a.TenantID == tenant && (outcomes == nil || slices.Contains(outcomes, a.Outcome)) {
				list = append(list, a)
			}
		}
		return list
	}
	for _, tenant := range w.sent {
		f.sent[tenant] = ofTenant(tenant, OutcomeSent)
	}
	for _, tenant := range w.attempts {
		f.attempts[tenant] = ofTenant(tenant)
	}
	for _, key := range w.owners {
		f.owners[key] = m.owners[key]
	}
	for _, key := range w.succeeded {
		f.succeeded[key] = false
		for _, a := range m.attempts {
			if a.WorkspaceID == key.workspaceID && a.TenantID != key.tenantID &&
				a.Outcome == OutcomeCreated && a.FinishedAt.After(key.since.Time) {
				f.succeeded[key] = true
			}
		}
	}
}

// apply keeps what a set comes to, as its statements would.
func (m *memory) apply(t fataler, s *set) {
	t.Helper()
	for _, x := range s.tenants {
		if x.made {
			m.mappings[x.TenantID] = x.Mapping
		}
		for _, a := range x.attempts {
			_, known := m.attempts[a.ID]
			if known != a.stored {
				t.Fatalf("attempt %s: known %v, written as known %v", a.ID, known, a.stored)
			}
			if !a.stored || a.changed || a.resolved {
				resolved := m.attempts[a.ID].ResolvedAt
				if a.resolved {
					resolved = a.ResolvedAt
				}
				a.Attempt.ResolvedAt = resolved
				m.attempts[a.ID] = a.Attempt
			}
		}
	}
	for key, o := range s.claims {
		if before := m.owners[key].TenantID; before != "" && before != o.TenantID {
			t.Fatalf("dashboard %v of %s was given to %s, too", key, before, o.TenantID)
		}
		m.owners[key] = o
	}
	for _, o := range s.outbox {
		m.outbox = append(m.outbox, o.EventID)
	}
}

// operation is a job that a test has done, by name.
type operation struct {
	kind, tenant string
	minute       int    // of its event
	claim        int    // of those that batches before it made
	id           string // of the dashboard that it names
	workspace    string
}

func (o operation) String() string {
	return fmt.Sprintf("%s %s %d #%d %s", o.kind, o.tenant, o.minute, o.claim, o.id)
}

var operationKinds = []string{"create", "create", "create", "create with hold", "suspend", "resume",
	"delete", "finish", "finish", "finish", "retry", "unknown", "unknown made", "hold", "refuse", "count",
	"resolve", "recreate", "replace", "adopt", "adopt", "restore", "panic", "fail"}

var operationFailures = map[string]Failure{
	"retry": unaccepted, "unknown": ambiguous, "count": {Result: unaccepted.Result, MaxFailures: 1},
	"hold": {Result: ambiguous.Result, Hold: true}, "refuse": {Result: unaccepted.Result, Permanent: true},
	"unknown made": ambiguous,
}

// outcomeOf is what an operation has come to.
type outcomeOf struct {
	text  string
	claim *Claim
}

// job makes the operation's job, which notes its outcome. n is unique to the operation.
func (o operation) job(n int, claims []Claim, out *outcomeOf) *job {
	j := &job{ctx: ctx, done: make(chan struct{}), tenantID: o.tenant, workspaceID: o.workspace}
	announce := func(m Mapping) (OutboxEvent, error) {
		return note(fmt.Sprintf("%d %s %s %s", n, m.TenantID, m.Stage, m.DashboardID)), nil
	}
	_, fails := operationFailures[o.kind]
	var c Claim
	if fails || o.kind == "finish" {
		if len(claims) == 0 {
			o.kind = "suspend"
		} else {
			c = claims[o.claim%len(claims)]
			j.tenantID = c.Mapping.TenantID
		}
	}
	j.known = slices.Contains([]string{"resolve", "recreate", "replace"}, o.kind)
	j.decide = func(d *decision) (err error) {
		*out = outcomeOf{} // it may decide again
		*out = outcomeOf{}
		switch o.kind {
		case "create", "create with hold":
			e := created(o.tenant, o.minute, fmt.Sprint("m", o.minute))
			e.WorkspaceID = o.workspace
			var made Claim
			made, err = d.begin(e, fmt.Sprintf("a%04d", n), o.kind == "create with hold")
			out.text = fmt.Sprint(made.Step, made.Wait)
			if made.Step == StepCreate || made.Step == StepRecordOutcome {
				out.claim = &made
			}
		case "suspend", "resume", "delete":
			to := map[string]Status{"suspend": Suspended, "resume": Active, "delete": Deleted}[o.kind]
			out.text = fmt.Sprint(d.change(Change{o.tenant, o.workspace, to, minute(o.minute)}))
		case "finish":
			var recorded bool
			r := Result{Outcome: OutcomeCreated, DashboardID: o.id, HTTPStatus: 200}
			recorded, err = d.finish(c, r, announce)
			out.text = fmt.Sprint(recorded)
		case "resolve":
			err = d.resolveHeld(announce, func(d *decision) error { return d.resolve(o.id) })
		case "recreate":
			err = d.resolveHeld(announce, (*decision).recreate)
		case "replace":
			err = d.replace(d.DashboardID, o.id, announce)
		case "adopt":
			e := created(o.tenant, o.minute, fmt.Sprint("m", o.minute))
			e.WorkspaceID, e.DashboardID = o.workspace, o.id
			var c Claim
			if c, err = d.adopt(e, announce); err == nil {
				out.text = stepNames[c.Step]
			}
		case "restore":
			err = d.restore(Dashboard{TenantID: o.tenant, WorkspaceID: o.workspace, ID: o.id,
				CreatedEvent: minute(o.minute), SetAt: minute(o.minute)})
		case "panic":
			d.Title, d.Epoch = "wrong", 1000
			d.save()
			panic("oh")
		case "fail":
			d.attempts = append(d.attempts, attemptRow{Attempt: Attempt{ID: "wrong"}})
			return errors.New("no")
		default:
			f := operationFailures[o.kind]
			if o.kind == "unknown made" {
				f.Result.DashboardID = o.id
			}
			err = d.fail(c, f, announce)
			out.text = fmt.Sprintf("%s-%d", d.Stage, d.Failures)
		}
		return err
	}
	return j
}

// batchOf makes the jobs of some operations. done returns what each has come to and adds the claims
// that were made.
func batchOf(from int, batch []operation, claims *[]Claim) (jobs []*job, done func() []string) {
	outcomes := make([]outcomeOf, len(batch))
	for i, o := range batch {
		jobs = append(jobs, o.job(from+i, *claims, &outcomes[i]))
	}
	return slices.Clone(jobs), func() (texts []string) {
		for i, out := range outcomes {
			if jobs[i].err != nil {
				out.text = "" // the writing may refuse what was decided
			}
			texts = append(texts, fmt.Sprint(batch[i], ": ", out.text, " ", jobs[i].err))
			if jobs[i].err == nil && out.claim != nil {
				*claims = append(*claims, *out.claim)
			}
		}
		return texts
	}
}

type batchOfOperations struct {
	after      time.Duration
	operations []operation
}

var batchesGenerator = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) batchOfOperations {
	return batchOfOperations{
		after: rapid.SampledFrom([]time.Duration{0, time.Second, Lease}).Draw(t, "after"),
		operations: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) operation {
			return operation{
				kind:   rapid.SampledFrom(operationKinds).Draw(t, "kind"),
				tenant: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"),
				minute: rapid.IntRange(1, 4).Draw(t, "minute"),
				claim:  rapid.IntRange(0, 9).Draw(t, "claim"),
				id:     rapid.SampledFrom([]string{"d1", "d2", "d3", "d4"}).Draw(t, "id"),
			}
		}), 1, 6).Draw(t, "operations"),
	}
}), 1, 10)

// A batch comes to what its jobs come to one by one: each sees all that was decided before.
func TestDecisionsTogetherAreThoseOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		together, single := newMemory(), newMemory()
		var claims, singleClaims []Claim
		n := 0
		for _, b := range batchesGenerator.Draw(t, "batches") {
			together.now = at(together.now.Add(b.after))
			single.now = together.now
			jobs, done := batchOf(n, b.operations, &claims)
			together.run(t, jobs...)
			alone, aloneDone := batchOf(n, b.operations, &singleClaims)
			for _, j := range alone {
				single.run(t, j)
			}
			same(t, "what the operations have come to", done(), aloneDone())
			same(t, "mappings", together.mappings, single.mappings)
			same(t, "attempts", together.attempts, single.attempts)
			same(t, "owners", together.owners, single.owners)
			same(t, "events out", together.outbox, single.outbox)
			checkMemory(t, together)
			n += len(b.operations)
		}
	})
}

// checkMemory checks what must hold after every batch.
func checkMemory(t fataler, m *memory) {
	t.Helper()
	for tenant, row := range m.mappings {
		if row.DashboardID != "" {
			owner := m.owners[dashboardKey{row.WorkspaceID, row.DashboardID}]
			same(t, "the owner of a mapping's dashboard", owner.TenantID, tenant)
		}
		same(t, "a tenant has a dashboard when it is active, and then alone", row.DashboardID != "",
			row.Stage == Active)
		status := row
		status.deriveStatus()
		same(t, "status", row.Status, status.Status)
	}
	sent := map[string]int{}
	for _, a := range m.attempts {
		if a.Outcome == OutcomeSent {
			sent[a.TenantID]++
		}
		if a.Outcome == OutcomeCreated || a.Outcome == OutcomeOrphaned {
			same(t, "the dashboard of an attempt is known", a.DashboardID != "", true)
		}
	}
	for tenant, n := range sent {
		if n > 1 {
			t.Fatalf("%d attempts of tenant %s are sent at once", n, tenant)
		}
	}
}

// The same operations, in the same batches, leave the same rows in a database.
func TestBatchesWriteWhatWasDecided(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := 0
		rapid.Check(t, func(t *rapid.T) {
			run++
			prefix := fmt.Sprintf("run%04d-", run)
			m := newMemory()
			var claims, dbClaims []Claim
			n := run * 1000
			for _, b := range batchesGenerator.Draw(t, "batches") {
				m.now = at(m.now.Add(b.after))
				db.now = func() time.Time { return m.now.Time }
				for i, o := range b.operations {
					o.tenant, o.id, o.workspace = prefix+o.tenant, prefix+o.id, prefix
					b.operations[i] = o
				}
				jobs, done := batchOf(n, b.operations, &claims)
				m.run(t, jobs...)
				jobs, dbDone := batchOf(n, b.operations, &dbClaims)
				db.batches.write(slices.Clone(jobs), false, func() {})
				for _, j := range jobs {
					<-j.done
				}
				taken := func(j *job) bool { return errors.Is(j.err, ErrTaken) }
				if len(jobs) > 1 && slices.ContainsFunc(jobs, taken) {
					return // the rest of such a batch is written one by one, in any order
				}
				same(t, "what the operations have come to", dbDone(), done())
				n += len(b.operations)
			}
			same(t, "the database", stored(t, db, prefix), m.stored())
		})
	})
}

func (m *memory) stored() []any {
	var owners []owner
	for _, o := range m.owners {
		if o.TenantID != "" {
			owners = append(owners, o)
		}
	}
	slices.SortFunc(owners, func(a, b owner) int { return cmp.Compare(a.DashboardID, b.DashboardID) })
	sorted := func(ids []string) []string { return append([]string{}, ids...) }
	return []any{
		append([]Mapping{}, slices.SortedFunc(maps.Values(m.mappings), func(a, b Mapping) int {
			return cmp.Compare(a.TenantID, b.TenantID)
		})...),
		append([]Attempt{}, slices.SortedFunc(maps.Values(m.attempts), func(a, b Attempt) int {
			return cmp.Compare(a.ID, b.ID)
		})...),
		append([]owner{}, owners...), sorted(m.outbox),
	}
}

// stored is what the tables hold of the tenants whose ids begin so.
func stored(t fataler, db *DB, prefix string) []any {
	t.Helper()
	like := " WHERE tenant_id LIKE '" + prefix + "%' ORDER BY "
	mappings, attempts, owners, out := []Mapping{}, []Attempt{}, []owner{}, []string{}
	must(t, db.read.SelectContext(ctx, &mappings, mappingTable.selects+like+"tenant_id"))
	must(t, db.read.SelectContext(ctx, &attempts, attemptTable.selects+like+"id"))
	must(t, db.read.SelectContext(ctx, &owners, ownerTable.selects+like+"dashboard_id"))
	must(t, db.read.SelectContext(ctx, &out, "SELECT event_id FROM outbox"+like+"id"))
	return []any{mappings, attempts, owners, out}
}

// Batches of one instant and what each of their operations comes to.
// A holder that was suspended past its lease and the one that took over are written together.
func TestDecisionsOfTwoHoldersKeepTheirAttemptsApart(t *testing.T) {
	m := newMemory()
	var claims []Claim
	n := 0
	for _, batch := range [][]operation{
		{{kind: "create", tenant: "a", minute: 1}},
		{{kind: "create", tenant: "a", minute: 1}},
		{{kind: "finish", claim: 0, id: "d1"}, {kind: "finish", claim: 1, id: "d2"}},
	} {
		jobs, done := batchOf(n, batch, &claims)
		m.run(t, jobs...)
		done()
		n += len(batch)
		m.now = at(m.now.Add(Lease))
	}
	first, second := m.attempts["a0000"], m.attempts["a0001"]
	same(t, "the late one", []any{first.Outcome, first.DashboardID}, []any{OutcomeOrphaned, "d1"})
	same(t, "the other", []any{second.Outcome, second.DashboardID}, []any{OutcomeCreated, "d2"})
}

func TestDecisionsSeeThoseBeforeThem(t *testing.T) {
	for _, test := range []struct{ batches, want string }{
		// The first of rivals for a dashboard has it; one that fails leaves it to the next.
		{"create a, create b; finish a d1, finish b d1", "true, ErrTaken"},
		{"create a, create b; finish b d1, finish a d1", "true, ErrTaken"},
		{"adopt a d1, adopt b d1, adopt a d1", "Adopted, ErrTaken, done"},
		{"fail a, adopt b d1", "no, Adopted"},
		{"restore a d1, restore b d1, adopt b d1, restore a d1", "ok, ErrTaken, ErrTaken, ok"},
		{"adopt a d1, panic a, adopt b d1, suspend a", "Adopted, panic, ErrTaken, true"},
		{"adopt a d1; replace a d2, adopt b d1, adopt b d2", "ok, ErrTaken, ErrTaken"},
		// One tenant's events come in their order.
		{"create a, create a", "create, wait"},
		{"suspend a, create a, delete a, create a", "true, create, true, done"},
		{"create a; finish a d1, create a, delete a", "true, done, true"},
		{"create a; unknown a, create a", "pending-0, create"},
		{"create a; hold a, recreate a, create a", "held-0, ok, create"},
		{"create a; hold a, resolve a d1, finish a d1", "held-0, ok, true"},
		{"create a; hold a, resolve a d1, finish a d2", "held-0, ok, false"},
		{"create a; delete a, finish a d1", "true, true"},
		// A success of another tenant counts for a failure behind it.
		{"create a; retry a; create a, create b; finish b d1, count a", "true, failed-1"},
		{"create a; retry a; create a, create b; count a, finish b d1", "pending-0, true"},
		{"create a; retry a; create a, create b; retry b, count a", "pending-0, pending-0"},
		// What is not known is made, or is not.
		{"resolve a d1, suspend a, recreate a", "ErrNotFound, true, ErrNotHeld"},
	} {
		m := newMemory()
		var claims []Claim
		n, last := 0, []string(nil)
		for batch := range strings.SplitSeq(test.batches, "; ") {
			var operations []operation
			for _, text := range strings.Split(batch, ", ") {
				words := append(strings.Fields(text), "")
				o := operation{kind: words[0], tenant: words[1], id: words[2], minute: 2}
				if o.kind == "delete" {
					o.minute = 3
				}
				for i, c := range claims { // the newest of the tenant
					if c.Mapping.TenantID == o.tenant {
						o.claim = i
					}
				}
				operations = append(operations, o)
			}
			m.now = at(m.now.Add(time.Millisecond))
			jobs, done := batchOf(n, operations, &claims)
			m.run(t, jobs...)
			last = done()
			n += len(operations)
		}
		var got []string
		for _, text := range last {
			_, text, _ = strings.Cut(text, ": ")
			got = append(got, outcomeWord(text))
		}
		same(t, test.batches, strings.Join(got, ", "), test.want)
	}
}

// outcomeWord shortens what an operation has come to.
func outcomeWord(text string) string {
	result, failure, _ := strings.Cut(text, " ")
	for word, err := range map[string]error{"ErrTaken": ErrTaken, "ErrNotHeld": ErrNotHeld,
		"ErrNotFound": ErrNotFound, "panic": errors.New("panic")} {
		if strings.HasPrefix(failure, err.Error()) {
			return word
		}
	}
	if failure == "no" {
		return "no"
	}
	steps := map[string]string{"0": "done", "1": "create", "2": "wait", "Done": "done", "Wait": "wait"}
	if step, ok := steps[result]; ok {
		return step
	}
	if result == "" {
		return "ok"
	}
	return result
}
