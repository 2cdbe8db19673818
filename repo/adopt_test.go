package repo

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"papermap-worker/repo/pgtest"
)

// Every state, and what a tenant.created that names dashboard D makes of it at minutes 5, 20 and 21:
// one entry for all three, or one for each. The step, and the status and generation committed with
// it. The last column is what becomes of the attempts.
var adoptions = []struct{ state, want, outcomes string }{
	{"", "Adopted/active/1", ""},
	{"s12", "Adopted/suspended/1 Adopted/suspended/1 Adopted/suspended/1", ""},
	{"r12", "Adopted/active/1", ""},
	{"d20", "Done/deleted/1 Done/deleted/1 Adopted/active/1", ""},
	{"d20 s25", "Done/deleted/1 Done/deleted/1 Adopted/suspended/1", ""},

	{"c10 retry", "Adopted/active/1", "refused"},
	{"c10 later", "Adopted/active/1", "refused"},
	{"c10", "Wait/creating/1", "sent"},
	{"c10 lapse", "Adopted/active/1", "unknown"},
	{"c10 unknown", "Adopted/active/1", "unknown"},
	{"c10 hold", "Adopted/active/1", "unknown"},
	{"c10 refuse", "Adopted/active/2", "refused"},
	{"c10 make", "Done/active/1 Conflict/active/1 Conflict/active/1", "created"},
	{"c20 make", "Done/active/1 Conflict/active/1 Conflict/active/1", "created"},
	{"c10 make c30", "Done/active/1 Conflict/active/1 Conflict/active/1", "created"},
	{"a10=D", "Done/active/1", ""},
	{"a10=other", "Done/active/1 Conflict/active/1 Conflict/active/1", ""},
	{"a21=other", "Done/active/1 Done/active/1 Conflict/active/1", ""},
	{"c10 make replace", "Done/active/1", "orphaned"}, // the correction is newer than all of them
	{"a10=other replace", "Done/active/1", ""},

	{"c10 retry s12", "Adopted/suspended/1", "refused"},
	{"c10 s12", "Wait/suspended/1", "sent"},
	{"c10 s12 lapse", "Adopted/suspended/1", "unknown"},
	{"c10 hold s12", "Adopted/suspended/1", "unknown"},
	{"c10 refuse s12", "Adopted/suspended/2", "refused"},
	{"c10 make s12", "Done/suspended/1 Conflict/suspended/1 Conflict/suspended/1", "created"},
	{"a10=D s12", "Done/suspended/1", ""},

	{"c10 retry d20", "Done/deleted/1 Done/deleted/1 Adopted/active/2", "refused"},
	{"c10 d20", "Done/deleted/1 Done/deleted/1 Adopted/active/2", "sent"},
	{"c10 hold d20", "Done/deleted/1 Done/deleted/1 Adopted/active/2", "unknown"},
	{"c10 refuse d20", "Done/deleted/1 Done/deleted/1 Adopted/active/2", "refused"},
	{"c10 make d20", "Done/deleted/1 Done/deleted/1 Adopted/active/2", "created"},
	{"a10=D d20", "Done/deleted/1 Done/deleted/1 Adopted/active/2", ""},
	{"a10=other d20", "Done/deleted/1 Done/deleted/1 Adopted/active/2", ""},
	{"c10 make d20 s25", "Done/deleted/1 Done/deleted/1 Adopted/suspended/2", "created"},
	{"a10=other d20 c21 make", "Done/active/2 Done/active/2 Conflict/active/2", "created"},
}

func TestAdoptionMeetsEveryState(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, row := range adoptions {
			want := strings.Fields(row.want)
			for i, n := range []int{5, 20, 21} {
				want := want[min(i, len(want)-1)]
				tenant := fmt.Sprint(row.state, " then ", n)
				play(t, db, tenant, row.state)
				before, out := mapping(t, db, tenant), len(unsent(t, db, 10_000))
				id := "of " + tenant + "D"
				c := adopt(t, db, adopting(tenant, n, id))
				m := c.Mapping
				same(t, tenant, fmt.Sprintf("%s/%s/%d", stepNames[c.Step], m.Status, m.Generation), want)
				same(t, tenant+", whether it waits", c.Wait > 0, c.Step == StepWait)
				announced := unsent(t, db, 10_000)[out:]
				if c.Step != StepAdopted {
					same(t, tenant+", all but the access", provisioning(m), provisioning(before))
					same(t, tenant+", events out", len(announced), 0)
					continue
				}
				var outcomes []string
				for _, a := range attempts(t, db, tenant) {
					outcomes = append(outcomes, string(a.Outcome))
				}
				same(t, tenant+", attempts", strings.Join(outcomes, " "), row.outcomes)
				same(t, tenant+", its dashboard", m.DashboardID, id)
				same(t, tenant+", events out", announced, []string{
					fmt.Sprintf("%s is %s with %q in generation %d", tenant, m.Status, id, m.Generation)})
				same(t, tenant+", fenced", m.Epoch > before.Epoch, true)
				again := adopt(t, db, adopting(tenant, n, id))
				same(t, tenant+", again", []any{again.Step, again.Mapping}, []any{StepDone, m})
			}
		}
	})
}

func TestAdoptionTakesItsDetails(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		details := func(m Mapping) []string {
			return []string{m.WorkspaceID, m.Title, m.Description, m.CreatedBy}
		}
		e := adopting("new", 10, "D")
		e.Title, e.Description, e.CreatedBy, e.WorkspaceID = "", "about", "import", "w2"
		same(t, "a new tenant", details(adopt(t, db, e).Mapping), []string{"w2", "", "about", "import"})

		play(t, db, "named", "c10 retry")
		e = adopting("named", 20, "E")
		e.Title, e.WorkspaceID, e.NamesWorkspace = "", "w2", true
		same(t, "an event that names its workspace", details(adopt(t, db, e).Mapping),
			[]string{"w2", "Dashboard - named", "", ""})

		play(t, db, "unnamed", "c10 retry")
		e = adopting("unnamed", 20, "F")
		e.Title, e.WorkspaceID, e.Description, e.CreatedBy = "Theirs", "default", "about", "import"
		same(t, "one that does not", details(adopt(t, db, e).Mapping),
			[]string{"w", "Theirs", "about", "import"})
		owner, err := db.DashboardTenant(ctx, "w", "F")
		must(t, err)
		same(t, "whose dashboard it is", owner, "unnamed")

		e = adopting("new", 20, "D")
		e.WorkspaceID, e.NamesWorkspace = "w3", true
		same(t, "the same id in another workspace", adopt(t, db, e).Step, StepConflict)
	})
}

// A holder that still works on a tenant which was adopted has lost it.
func TestAdoptionFencesTheHolder(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		slept := claim(t, db, "a")
		same(t, "while its lease lasts", adopt(t, db, adopting("a", 20, "D")).Step, StepWait)
		pass(db, Lease)
		want := adopt(t, db, adopting("a", 20, "D")).Mapping
		same(t, "whether its dashboard is recorded", finish(t, db, slept), false)
		same(t, "the mapping after it", mapping(t, db, "a"), want)
		same(t, "its attempt", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned})
		same(t, "possible orphans", uncertain(t, db), []string{"a"})

		slept = claim(t, db, "b")
		pass(db, Lease)
		want = adopt(t, db, adopting("b", 20, "E")).Mapping
		fail(t, db, slept, unaccepted)
		same(t, "the mapping after a failure", mapping(t, db, "b"), want)
		same(t, "its event", begin(t, db, created("b", 10, "m-b")).Step, StepDone)
	})
}

// An id that was ever recorded for a tenant stays that tenant's.
func TestAdoptionRefusesAnothersDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		play(t, db, "active", "a10=1")
		play(t, db, "deleted", "a10=1 d20")
		play(t, db, "again", "a10=1 d20 a21=2")
		play(t, db, "replaced", "a10=1 replace")
		slept := claim(t, db, "orphan")
		pass(db, Lease)
		adopt(t, db, adopting("orphan", 20, "of orphan"))
		finish(t, db, slept)
		for _, id := range []string{"of active1", "of deleted1", "of again1", "of again2", "of replaced1",
			mapping(t, db, "replaced").DashboardID, dashboard(slept), "of orphan"} {
			for _, state := range []string{"", "s12", "d12", "c10", "c10 retry", "c10 lapse", "c10 hold",
				"c10 refuse", "c10 make", "c10 make d12"} {
				tenant := "rival of " + id + " " + state
				play(t, db, tenant, state)
				before := snapshot(t, db, tenant)
				_, err := db.Adopt(ctx, adopting(tenant, 20, id), announceState)
				if !errors.Is(err, ErrTaken) {
					t.Errorf("%s: %v, want ErrTaken", tenant, err)
				}
				same(t, tenant+", the error", strings.HasPrefix(fmt.Sprint(err),
					fmt.Sprintf("adopt dashboard %q for tenant %q: ", id, tenant)), true)
				same(t, tenant, snapshot(t, db, tenant), before)
			}
			// It changes nothing if the event has no effect anyway.
			play(t, db, "late "+id, "d30")
			same(t, "of a tenant deleted since", adopt(t, db, adopting("late "+id, 20, id)).Step, StepDone)
		}
		for tenant, id := range map[string]string{"deleted": "of deleted1", "again": "of again2"} {
			c := adopt(t, db, adopting(tenant, 40, id))
			same(t, tenant+": its own", c.Mapping.DashboardID, id)
		}
	})
}

// Many tenants want one dashboard at once, by two connections as two replicas have them.
func TestAdoptionOfOneDashboardHasOneWinner(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		replicas := []*DB{db, db}
		if db.path == "" {
			other := openAddress(t, pgtest.Shared(t, postgres))
			other.now = db.now
			replicas[1] = other
		}
		for round := range 10 {
			id := fmt.Sprint("wanted ", round)
			errs := make([]error, 8)
			var all sync.WaitGroup
			for i := range errs {
				all.Go(func() {
					e := adopting(fmt.Sprint(id, " by ", i), 10, id)
					_, errs[i] = replicas[i%2].Adopt(ctx, e, announceState)
				})
			}
			all.Wait()
			won := 0
			for i, err := range errs {
				m := mapping(t, db, fmt.Sprint(id, " by ", i))
				switch {
				case err == nil:
					won++
					same(t, "the winner's dashboard", m.DashboardID, id)
				case !errors.Is(err, ErrTaken):
					t.Error(err)
				default:
					same(t, "a row of one that was refused", m, Mapping{})
				}
			}
			same(t, "winners", won, 1)
		}
	})
}

// An event that comes too late to give its dashboard counts for the status as if it had come in time.
func TestAdoptionInConflictCountsForTheStatus(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		play(t, db, "a", "c10 make")
		same(t, "the event", adopt(t, db, adopting("a", 30, "D")).Step, StepConflict)
		change(t, db, "a", Deleted, 20)
		same(t, "a deletion from before it", mapping(t, db, "a").Status, Active)
		play(t, db, "b", "c10 make d20")
		adopt(t, db, adopting("b", 30, "D"))
		same(t, "in the other order", mapping(t, db, "b").Status, Active)
	})
}

// Whatever order events come in, whose dashboard an id is never changes, and a rival is refused.
func TestAdoptionsNeverShareADashboard(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		owners := map[string]string{}
		for i := range rapid.IntRange(1, 20).Draw(t, "operations") {
			o := operation{
				kind: rapid.SampledFrom([]string{
					"adopt", "adopt", "delete", "suspend", "replace", "restore",
				}).Draw(t, "kind"),
				tenant: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"),
				minute: rapid.IntRange(1, 5).Draw(t, "minute"),
				id:     rapid.SampledFrom([]string{"d1", "d2", "d3"}).Draw(t, "id"),
			}
			m.now = at(m.now.Add(time.Second))
			var out outcomeOf
			j := o.job(i, nil, &out)
			m.run(t, j)
			if errors.Is(j.err, ErrTaken) {
				same(t, "the dashboard's tenant is another",
					owners[o.id] != "" && owners[o.id] != o.tenant, true)
			}
			for key, owner := range m.owners {
				if owner.TenantID == "" {
					continue
				}
				if before := owners[key.DashboardID]; before != "" {
					same(t, "the tenant of "+key.DashboardID, owner.TenantID, before)
				}
				owners[key.DashboardID] = owner.TenantID
			}
			checkMemory(t, m)
		}
	})
}
