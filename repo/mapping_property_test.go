package repo

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// event is what is published: of the kind c, s, r, d, or a for a tenant.created that names a dashboard
// of the tenant, with a small time, so that many are equal.
type event struct {
	tenant string
	kind   byte
	minute int
	id     string // with a
}

// oracle is the contract's sentence on state, over all events of a tenant, once provisioning is
// done.
func oracle(events []event) Status {
	newerThanAll := func(e event, kind byte) bool {
		return !slices.ContainsFunc(events,
			func(o event) bool { return o.kind == kind && o.minute >= e.minute })
	}
	has := slices.ContainsFunc(events, func(e event) bool {
		return (e.kind == 'c' || e.kind == 'a') && newerThanAll(e, 'd')
	})
	deleted := slices.ContainsFunc(events, func(e event) bool { return e.kind == 'd' })
	suspended := slices.ContainsFunc(events, func(e event) bool {
		return e.kind == 's' && newerThanAll(e, 'd') &&
			!slices.ContainsFunc(events, func(o event) bool { return o.kind == 'r' && o.minute > e.minute })
	})
	switch {
	case deleted && !has:
		return Deleted
	case suspended:
		return Suspended
	case has:
		return Active
	}
	return Pending
}

func TestMappingStatusIgnoresOrderCopiesCrashesAndFailures(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		run := 0
		rapid.Check(t, func(t *rapid.T) {
			events := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) event {
				return event{
					tenant: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tenant"),
					kind:   rapid.SampledFrom([]byte("ccaasrd")).Draw(t, "kind"),
					minute: rapid.IntRange(1, 4).Draw(t, "minute"),
					id:     rapid.SampledFrom([]string{"1", "2"}).Draw(t, "id"),
				}
			}), 1, 8).Draw(t, "events")
			var messages []int // indexes of events
			for i := range events {
				for range rapid.IntRange(1, 2).Draw(t, "copies") {
					messages = append(messages, i)
				}
			}
			for range 2 {
				run++
				order := rapid.Permutation(messages).Draw(t, "order")
				disturbed(t, db, fmt.Sprintf("run%d-", run), events, order)
			}
		})
	})
}

// disturbed delivers the messages in this order, until each is done, with random
// failures.
func disturbed(t *rapid.T, db *DB, run string, events []event, order []int) {
	type message struct {
		event
		id string
	}
	var queue []message
	for i, e := range order {
		queue = append(queue, message{events[e], fmt.Sprint(run, "message", i)})
	}
	// by tenant: events delivered, dashboards at Papermap
	seen, made := map[string][]event{}, map[string][]string{}
	adopted := map[string]bool{}
	var asleep []Claim
	wake := func() {
		c := asleep[0]
		asleep = asleep[1:]
		made[c.Mapping.TenantID] = append(made[c.Mapping.TenantID], dashboard(c))
		finish(t, db, c)
	}
	idle := 0
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		tenant := run + m.tenant
		word := fmt.Sprintf("%c%d", m.kind, m.minute)
		if m.kind == 'a' {
			word += "=" + m.event.id
		}
		c := deliver(t, db, tenant, word, m.id)
		if c.Step == StepAdopted {
			adopted[c.Mapping.DashboardID] = true
		}
		seen[tenant] = append(seen[tenant], m.event)
		again := c.Step == StepWait
		if idle++; c.Step == StepCreate {
			idle = 0
			same(t, "a dashboard is to be made for a deleted tenant", oracle(seen[tenant]) == Deleted, false)
			accident := "none"
			if len(attempts(t, db, tenant)) < 6 {
				accident = rapid.SampledFrom([]string{"none", "crash", "crash after", "sleep", "refused",
					"unknown", "unknown made"}).Draw(t, "accident")
			}
			if again = accident != "none"; accident == "none" || accident == "crash after" ||
				accident == "unknown made" {
				made[tenant] = append(made[tenant], dashboard(c))
			}
			switch accident {
			case "none":
				same(t, "recorded", finish(t, db, c), true)
			case "sleep":
				asleep = append(asleep, c)
			case "refused":
				fail(t, db, c, unaccepted)
			case "unknown", "unknown made":
				fail(t, db, c, ambiguous)
			}
		}
		if again {
			queue = append(queue, m)
		}
		if idle > len(queue) { // all wait for a lease
			pass(db, Lease)
			idle = 0
		}
		if len(asleep) > 0 && (len(queue) == 0 || rapid.Bool().Draw(t, "wake")) {
			wake()
		}
		check(t, db, seen, made, adopted, len(queue) == 0)
	}
	for len(asleep) > 0 {
		wake()
		check(t, db, seen, made, adopted, true)
	}
}

// check is what must hold at every commit; done says that nothing is left to be delivered.
func check(t *rapid.T, db *DB, seen map[string][]event, made map[string][]string, adopted map[string]bool,
	done bool) {
	owner := map[string]string{}
	for tenant, events := range seen {
		m := mapping(t, db, tenant)
		status := m.Status
		if !done && (status == Pending || status == Creating) && oracle(events) == Active {
			status = Active // on the way
		}
		same(t, "status after "+fmt.Sprint(events), status, oracle(events))
		if id := m.DashboardID; id != "" {
			same(t, "a dashboard on two tenants", owner[id], "")
			owner[id] = tenant
			same(t, "a dashboard that was made for the tenant, or adopted",
				slices.Contains(made[tenant], id) || adopted[id], true)
		}
		same(t, "a tenant that is done and wanted has a dashboard",
			m.DashboardID != "" || !done || !m.Wanted(), true)
		bound := m.Generation
		for _, o := range outcomes(t, db, tenant) {
			if o == OutcomeSent || o == OutcomeUnknown || o == OutcomeOrphaned {
				bound++
			}
		}
		if len(made[tenant]) > bound {
			t.Fatalf("%d dashboards, but generations and attempts allow for %d", len(made[tenant]), bound)
		}
	}
}
