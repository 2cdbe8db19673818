package repo

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestAdoptedDashboardIsNotCreatedAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		adopt := func(tenant, id string, n int) Mapping {
			t.Helper()
			d := Dashboard{TenantID: tenant, WorkspaceID: "w", ID: id, Title: "Dashboard - " + id}
			if n > 0 {
				d.CreatedEvent = minute(n)
			}
			must(t, db.Restore(ctx, d))
			return mapping(t, db, tenant)
		}
		for tenant, before := range map[string]string{"new": "", "suspended": "s12", "claimed": "c10",
			"retried": "c10 retry", "held": "c10 hold", "failed": "c10 refuse"} {
			play(t, db, tenant, before)
			m := adopt(tenant, "of "+tenant, 10)
			want := Active
			if tenant == "suspended" {
				want = Suspended
			}
			same(t, tenant, []any{m.Status, m.DashboardID, m.Title, m.Generation},
				[]any{want, "of " + tenant, "Dashboard - of " + tenant, 1})
			same(t, tenant+": its event, published again", begin(t, db, created(tenant, 10, "again")).Step,
				StepDone)
			pass(db, time.Millisecond)
			same(t, tenant+": adopted twice", adopt(tenant, "of "+tenant, 10), m)
		}

		play(t, db, "older", "c10 make")
		m := adopt("older", "newer", 30) // the backup has generation 1, the stream has generation 2
		same(t, "another generation", []any{m.Status, m.DashboardID, m.Generation}, []any{Active, "newer", 2})
		change(t, db, "older", Deleted, 20)
		same(t, "the deletion between them, published again", mapping(t, db, "older").Status, Active)
		change(t, db, "older", Deleted, 40)
		same(t, "one after them", mapping(t, db, "older").Status, Deleted)

		play(t, db, "deleted", "d20")
		same(t, "a tenant deleted since", adopt("deleted", "of deleted", 10).Status, Deleted)
		same(t, "an event older than the stream", adopt("eldest", "of eldest", 0).Status, Active)
		// of held, failed and older before: adopting announces nothing
		same(t, "events out", len(unsent(t, db, 100)), 3)

		play(t, db, "later", "c30")
		adopt("later", "of later", 10)
		change(t, db, "later", Deleted, 20)
		same(t, "a tenant of a later event", mapping(t, db, "later").Status, Active)

		slept := claim(t, db, "fenced")
		m = adopt("fenced", "of fenced", 10)
		same(t, "a holder from before", finish(t, db, slept), false)
		same(t, "the mapping after it", mapping(t, db, "fenced"), m)

		before := snapshot(t, db, "held")
		err := db.Restore(ctx, Dashboard{TenantID: "held", WorkspaceID: "w", ID: "of new"})
		if !errors.Is(err, ErrTaken) {
			t.Errorf("another tenant's dashboard: %v, want ErrTaken", err)
		}
		same(t, "after another tenant's dashboard", snapshot(t, db, "held"), before)
	})
}

func TestAdoptIgnoresKnownDashboards(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		c := claim(t, db, "a")
		finish(t, db, c)
		older := dashboard(c)
		if _, err := db.Change(ctx, Change{TenantID: "a", WorkspaceID: c.Mapping.WorkspaceID, To: Deleted,
			EventTime: time.Unix(1_000_000, 0)}); err != nil {
			t.Fatal(err)
		}
		begin(t, db, created("a", 2_000_000, "again"))
		before := mapping(t, db, "a")
		must(t, db.Restore(ctx, Dashboard{TenantID: "a", WorkspaceID: c.Mapping.WorkspaceID, ID: older,
			Title: "old"}))
		same(t, "the mapping", mapping(t, db, "a"), before)
	})
}

// The worker has made a dashboard of its own while the stream was read.
func TestAdoptOrphansTheReplacedDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		adopt := func(tenant string) {
			t.Helper()
			must(t, db.Restore(ctx, Dashboard{TenantID: tenant, WorkspaceID: "w", ID: "of " + tenant,
				CreatedEvent: minute(30)}))
		}
		c := claim(t, db, "a")
		finish(t, db, c)
		adopt("a")
		same(t, "the dashboard", mapping(t, db, "a").DashboardID, "of a")
		same(t, "its attempts", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned})
		same(t, "possible orphans", uncertain(t, db), []string{"a"})

		play(t, db, "deleted between", "c10 make d20")
		adopt("deleted between")
		same(t, "attempts of a generation that had ended", outcomes(t, db, "deleted between"),
			[]Outcome{OutcomeCreated})
		same(t, "possible orphans", uncertain(t, db), []string{"a"})
	})
}

func TestReplaceCorrectsTheDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for tenant, state := range map[string]string{"created": "c10 make", "adopted": "a10=1",
			"suspended": "c10 make s12", "resolved": "c10 hold"} {
			play(t, db, tenant, state)
			if tenant == "resolved" {
				resolve(t, db, tenant, "wrong")
			}
			before, out := mapping(t, db, tenant), len(unsent(t, db, 100))
			pass(db, time.Hour)
			id := "right for " + tenant
			m := replace(t, db, tenant, id)
			same(t, tenant, []any{m.Status, m.DashboardID, m.Generation, m.Title},
				[]any{before.Status, id, 1, before.Title})
			same(t, tenant+": events out", unsent(t, db, 100)[out:],
				[]string{fmt.Sprintf("%s is %s with %q in generation 1", tenant, m.Status, id)})
			pass(db, time.Hour)
			same(t, tenant+": the same again", replace(t, db, tenant, id), m)
			same(t, tenant+": events out of that", len(unsent(t, db, 100)), out+1)

			orphans, err := db.PossibleOrphans(ctx)
			must(t, err)
			same(t, tenant+": possible orphans", []any{len(orphans), orphans[0].TenantID,
				orphans[0].DashboardID, orphans[0].Outcome, orphans[0].Status},
				[]any{1, tenant, before.DashboardID, OutcomeOrphaned, m.Status})
			stats, err := db.Stats(ctx)
			must(t, err)
			same(t, tenant+": possible orphans that are counted", stats.PossibleOrphans, 1)
			list, err := db.Replaced(ctx, tenant)
			must(t, err)
			same(t, tenant+": replaced", list, []ReplacedDashboard{{
				DashboardID: before.DashboardID, ReplacedAt: m.UpdatedAt, Open: tenant == "adopted",
			}})
			must(t, db.ResolveAttempt(ctx, orphans[0].ID))
			same(t, tenant+": possible orphans, once a person has looked", uncertain(t, db), []string(nil))
			if err := db.ResolveAttempt(ctx, id); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: the present dashboard taken off the list: %v, want ErrNotFound", tenant, err)
			}
		}
	})
}

// Ids are unique within a workspace only: an attempt in another one has made another dashboard.
func TestReplaceLeavesAttemptsOfOtherWorkspaces(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		slept := claim(t, db, "a")
		pass(db, Lease)
		e := adopting("a", 20, "D")
		e.WorkspaceID, e.NamesWorkspace = "w2", true
		adopt(t, db, e)
		same(t, "whether its dashboard is recorded", finish(t, db, slept), false)
		replace(t, db, "a", dashboard(slept))
		same(t, "the attempt in the first workspace", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned})
		must(t, db.ResolveAttempt(ctx, slept.Attempt.ID))
		replace(t, db, "a", "E")
		same(t, "possible orphans", uncertain(t, db), []string{"a", "a"}) // the replaced dashboards
	})
}

// An operator who changes their mind gives the tenant the dashboard that it had.
func TestReplaceCanBeTakenBack(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		play(t, db, "a", "c10 make")
		made, n := mapping(t, db, "a").DashboardID, 0
		replace := func(t fataler, db *DB, tenant, id string) {
			t.Helper()
			n++
			_, err := db.Replace(ctx, tenant, mapping(t, db, tenant).DashboardID, id,
				announce(fmt.Sprint("event ", n)))
			must(t, err)
		}
		for range 2 {
			pass(db, time.Second)
			replace(t, db, "a", "other")
			same(t, "its attempt", outcomes(t, db, "a"), []Outcome{OutcomeOrphaned})
			same(t, "possible orphans", uncertain(t, db), []string{"a"})
			pass(db, time.Second)
			replace(t, db, "a", made)
			same(t, "its attempt, back", outcomes(t, db, "a"), []Outcome{OutcomeCreated})
			same(t, "possible orphans, back", uncertain(t, db), []string{"a"}) // the other
			must(t, db.ResolveAttempt(ctx, "other"))
			same(t, "possible orphans, looked for", uncertain(t, db), []string(nil))
		}
	})
}

func TestReplaceRefusesWhatItCannotCorrect(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		play(t, db, "owner", "a10=1 replace")
		for _, script := range []string{"s12", "c10", "c10 retry", "c10 hold", "c10 refuse", "c10 make d20",
			"c10 make d20 c21"} {
			play(t, db, script, script)
			before := snapshot(t, db, script)
			if _, err := db.Replace(ctx, script, "", "new", announceState); !errors.Is(err, ErrNotActive) {
				t.Errorf("%s: %v, want ErrNotActive", script, err)
			}
			same(t, script, snapshot(t, db, script), before)
		}
		play(t, db, "a", "c10 make")
		before, present := snapshot(t, db, "a"), mapping(t, db, "a").DashboardID
		for old, test := range map[string]struct {
			id   string
			want error
		}{
			"another":     {"new", ErrReplaced},
			present:       {"of owner1", ErrTaken},
			present + " ": {"new", ErrReplaced},
		} {
			if _, err := db.Replace(ctx, "a", old, test.id, announceState); !errors.Is(err, test.want) {
				t.Errorf("%q for %q: %v, want %v", test.id, old, err, test.want)
			}
			same(t, "the tenant", snapshot(t, db, "a"), before)
		}
		if _, err := db.Replace(ctx, "nobody", "", "new", announceState); !errors.Is(err, ErrNotFound) {
			t.Errorf("an unknown tenant: %v, want ErrNotFound", err)
		}
	})
}

func TestOriginSaysHowTheTenantGotItsDashboard(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for state, want := range map[string]Origin{
			"c10":                      OriginCreated,
			"c10 make":                 OriginCreated,
			"a10=D":                    OriginAdopted,
			"c10 hold a20=D":           OriginAdopted,
			"a10=D s12":                OriginAdopted,
			"a10=D d20":                OriginAdopted,
			"a10=D d20 c30":            OriginCreated, // of no dashboard yet
			"a10=D d20 c30 make":       OriginCreated,
			"c10 make d20 a30=D":       OriginAdopted,
			"a10=D a20=other":          OriginAdopted, // a conflict
			"c10 make replace":         OriginReplaced,
			"a10=D replace":            OriginReplaced,
			"c10 make replace d20 c30": OriginCreated,
		} {
			play(t, db, state, state)
			same(t, state, mapping(t, db, state).Origin, want)
		}
		play(t, db, "held", "c10 hold")
		same(t, "resolved, as one that a create made", resolve(t, db, "held", "found").Origin, OriginCreated)

		restore := func(tenant, id string, adopted bool) Origin {
			must(t, db.Restore(ctx, Dashboard{TenantID: tenant, WorkspaceID: "w", ID: id, Adopted: adopted,
				CreatedEvent: minute(10)}))
			return mapping(t, db, tenant).Origin
		}
		same(t, "restored", restore("restored", "made", false), OriginCreated)
		same(t, "restored, adopted", restore("restored, adopted", "named", true), OriginAdopted)
		same(t, "restored in place of another",
			restore("restored, adopted", "another", false), OriginReplaced)

		names, err := db.TenantNames(ctx, "", 100)
		must(t, err)
		for _, n := range names {
			same(t, n.TenantID+" in the index", n.Origin, mapping(t, db, n.TenantID).Origin)
		}
	})
}
