package repo

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMappingsListsPagesAndByStatus(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		if _, err := db.Mapping(ctx, "a"); !errors.Is(err, ErrNotFound) {
			t.Fatalf("an unknown tenant gave %v, want ErrNotFound", err)
		}
		for _, tenant := range []string{"d", "b", "a", "c", "B"} {
			finish(t, db, claim(t, db, tenant))
			pass(db, time.Millisecond)
		}
		change(t, db, "b", Deleted, 20)
		for _, test := range []struct {
			status Status
			after  string
			limit  int
			want   string
		}{
			{"", "", 10, "B a b c d"}, {"", "", 2, "B a"}, {"", "a", 2, "b c"}, {"", "d", 2, ""},
			{"", "", 0, ""},
			{Active, "", 10, "B a c d"}, {Active, "a", 1, "c"}, {Deleted, "", 10, "b"}, {Held, "", 10, ""},
		} {
			list, err := db.Mappings(ctx, test.status, test.after, test.limit)
			must(t, err)
			var got []string
			for _, m := range list {
				got = append(got, m.TenantID)
			}
			same(t, fmt.Sprintf("%+v", test), strings.Join(got, " "), test.want)
		}
	})
}

func TestMappingSavesEachColumnAlone(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		claim(t, db, "a")
		fields := reflect.TypeFor[Mapping]()
		for i := range fields.NumField() {
			field := fields.Field(i)
			// which never change, or always
			if slices.Contains([]string{"TenantID", "CreatedAt", "UpdatedAt"}, field.Name) {
				continue
			}
			for _, zero := range []bool{false, true} {
				want := decideOn(t, db, "a", func(d *decision) {
					switch v := reflect.ValueOf(&d.Mapping).Elem().Field(i).Addr().Interface().(type) {
					case *Status:
						*v = map[bool]Status{false: Held, true: Failed}[zero]
					case *string:
						*v = map[bool]string{false: "other"}[zero]
					case *int:
						*v = map[bool]int{false: 7}[zero]
					case *int64:
						*v = map[bool]int64{false: 7}[zero]
					case *Time:
						*v = map[bool]Time{false: at(db.now().Add(time.Hour))}[zero]
					}
				})
				same(t, field.Name, mapping(t, db, "a"), want)
			}
		}
	})
}

func TestMappingAccessWithoutEvents(t *testing.T) {
	for to, want := range map[Status]bool{Suspended: false, Deleted: false, Active: true} {
		newest, inForce := new(Mapping).Access(to)
		same(t, string(to), []any{newest, inForce}, []any{int64(0), want})
	}
}

// Every state, and what a created, suspended, resumed and deleted of three times each make of it:
// one entry for all three, or one for each. For created the step that is to be taken, and the
// status and generation committed with it. created 5 20 21, suspended and resumed 5 12 25, deleted
// 5 10 25
var transitions = []struct{ state, created, suspended, resumed, deleted string }{
	{"", "Create/creating/1", "suspended", "pending", "deleted"},
	{"s12", "Create/suspended/1", "suspended", "suspended suspended pending", "deleted"},
	{"r12", "Create/creating/1", "pending suspended suspended", "pending", "deleted"},
	{"d20", "Done/deleted/1 Done/deleted/1 Create/creating/1", "deleted", "deleted", "deleted"},
	{"d20 s25", "Done/deleted/1 Done/deleted/1 Create/suspended/1", "deleted", "deleted", "deleted"},

	{"c10 retry", "Create/creating/1", "suspended", "pending", "pending deleted deleted"},
	{"c10 later", "Wait/pending/1", "suspended", "pending", "pending deleted deleted"},
	{"c10", "Wait/creating/1", "suspended", "creating", "creating deleted deleted"},
	{"c10 lapse", "Create/creating/1", "suspended", "creating", "creating deleted deleted"},
	{"c10 make", "Done/active/1", "suspended", "active", "active deleted deleted"},
	{"c10 hold", "Done/held/1", "suspended", "held", "held deleted deleted"},
	{"c10 refuse", "Create/creating/2", "suspended", "failed", "failed deleted deleted"},

	{"c10 retry s12", "Create/suspended/1", "suspended", "suspended suspended pending",
		"suspended deleted deleted"},
	{"c10 s12", "Wait/suspended/1", "suspended", "suspended suspended creating", "suspended deleted deleted"},
	{"c10 make s12", "Done/suspended/1", "suspended", "suspended suspended active",
		"suspended deleted deleted"},
	{"c10 hold s12", "Done/suspended/1", "suspended", "suspended suspended held",
		"suspended deleted deleted"},
	{"c10 refuse s12", "Create/suspended/2", "suspended", "suspended suspended failed",
		"suspended deleted deleted"},
	{"c10 make s12 r12", "Done/suspended/1", "suspended", "suspended suspended active",
		"suspended deleted deleted"},
	{"c10 make s12 r13", "Done/active/1", "active active suspended", "active", "active deleted deleted"},

	{"c10 retry d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 later d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make d10", "Done/deleted/1 Create/creating/2 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 hold d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 refuse d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make s12 d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make s20 d20", "Done/deleted/1 Done/deleted/1 Create/creating/2", "deleted", "deleted", "deleted"},
	{"c10 make d20 s25", "Done/deleted/1 Done/deleted/1 Create/suspended/2", "deleted", "deleted", "deleted"},

	// Created again: what is older than the deletion no longer counts.
	{"c10 make d20 c21 make", "Done/active/2", "active active suspended", "active", "active active deleted"},
	{"c10 make d20 c21 retry", "Done/pending/2 Done/pending/2 Create/creating/2",
		"pending pending suspended", "pending", "pending pending deleted"},
}

func TestMappingEveryStateMeetsEveryEvent(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, row := range transitions {
			t.Run(row.state, func(t *testing.T) {
				for _, column := range []struct{ events, want string }{
					{"c5 c20 c21", row.created}, {"s5 s12 s25", row.suspended}, {"r5 r12 r25", row.resumed},
					{"d5 d10 d25", row.deleted},
				} {
					want := strings.Fields(column.want)
					for i, event := range strings.Fields(column.events) {
						want := want[min(i, len(want)-1)]
						tenant := row.state + " then " + event
						play(t, db, tenant, row.state)
						before := mapping(t, db, tenant)
						c := deliver(t, db, tenant, event, "another message")
						after := mapping(t, db, tenant)
						got := string(after.Status)
						if event[0] == 'c' {
							got = fmt.Sprintf("%s/%s/%d", stepNames[c.Step], after.Status, after.Generation)
							same(t, tenant+": the claim's mapping against the committed one", c.Mapping,
								after)
						}
						same(t, tenant, got, want)
						if c.Step == StepCreate {
							finish(t, db, c)
							after := mapping(t, db, tenant)
							same(t, tenant+", finished", string(after.Status),
								strings.ReplaceAll(strings.Split(want, "/")[1], "creating", "active"))
							same(t, tenant+", its dashboard", after.DashboardID, dashboard(c))
						} else if before.TenantID != "" {
							same(t, tenant+", all but the access", provisioning(after), provisioning(before))
						}
					}
				}
			})
		}
	})
}

// The newest tenant.created has become a dead letter, and an older one began the next generation.
// Nothing else would finish that if a deletion between the two made the older one superseded.
func TestOldEventFinishesTheGenerationThatItBegan(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		play(t, db, "a", "c30 refuse c10 retry d15")
		same(t, "before", mapping(t, db, "a").Status, Pending)
		same(t, "an event that began nothing", deliver(t, db, "a", "c12", "another").Step, StepDone)
		c := deliver(t, db, "a", "c10", "c10")
		same(t, "the event that began the generation", c.Step, StepCreate)
		finish(t, db, c)
		same(t, "after", mapping(t, db, "a").Status, Active)
		change(t, db, "a", Deleted, 30)
		same(t, "deleted, and delivered again", deliver(t, db, "a", "c10", "c10").Step, StepDone)
	})
}

// provisioning is what suspended, resumed and deleted leave as it is, and a created that changes
// nothing.
func provisioning(m Mapping) Mapping {
	m.Status, m.UpdatedAt, m.CreatedEventID = "", Time{}, ""
	m.CreatedEvent, m.DeletedEvent, m.SuspendedEvent, m.ResumedEvent = 0, 0, 0, 0
	return m
}

func TestMappingIgnoresCopiesOfEvents(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for _, script := range []string{"c10", "c10 make", "c10 hold", "c10 refuse", "c10 make d20", "s12",
			"r12", "d20", "c10 make s12"} {
			play(t, db, script, script)
			before := mapping(t, db, script)
			pass(db, time.Millisecond)
			for _, event := range strings.Fields(script) {
				if strings.ContainsAny(event, "0123456789") {
					deliver(t, db, script, event, event)
				}
			}
			same(t, script, mapping(t, db, script), before)
		}
	})
}

// Of several events of a kind the newest counts, also when an older one arrives after it.
func TestMappingTakesTheNewestEventOfAKind(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		for script, want := range map[string]Status{
			"c10 make s40 s20 r30":         Suspended,
			"c10 make s15 r40 r20 s30":     Active,
			"c10 make d40 d20 c30":         Deleted,
			"c10 make d40 d20 c50 s30 r30": Creating,
		} {
			play(t, db, script, script)
			same(t, script, mapping(t, db, script).Status, want)
		}
	})
}

func TestMappingNewestEventIsOfAnyKind(t *testing.T) {
	for _, m := range []Mapping{
		{CreatedEvent: 9, DeletedEvent: 2, SuspendedEvent: 3, ResumedEvent: 4},
		{CreatedEvent: 2, DeletedEvent: 9, SuspendedEvent: 3, ResumedEvent: 4},
		{CreatedEvent: 2, DeletedEvent: 3, SuspendedEvent: 9, ResumedEvent: 4},
		{CreatedEvent: 2, DeletedEvent: 3, SuspendedEvent: 4, ResumedEvent: 9},
	} {
		same(t, fmt.Sprintf("%+v", m), m.NewestEvent(), int64(9))
	}
}

func TestGenerationTakesDetailsFromItsEvent(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		play(t, db, "a", "d5 c10 make d20")
		same(t, "an event of a tenant that exists", mapping(t, db, "a").Title, "Dashboard - a")
		e := created("a", 30, "m2")
		e.WorkspaceID, e.Title, e.Description, e.CreatedBy = "w2", "New", "about", "me"
		c := begin(t, db, e)
		m := c.Mapping
		same(t, "generation 2", []any{m.Generation, m.WorkspaceID, m.Title, m.Description, m.CreatedBy,
			m.Failures, m.FailedCode, m.FailedError, m.DashboardID},
			[]any{2, "w2", "New", "about", "me", 0, "", "", ""})
		same(t, "its attempt", c.Attempt, Attempt{
			ID: c.Attempt.ID, WorkspaceID: "w2", TenantID: "a", Generation: 2, Mark: "pmw:" + c.Attempt.ID,
			Outcome: OutcomeSent, StartedAt: at(db.now()),
		})
		same(t, "the attempt as committed", attempts(t, db, "a")[1], c.Attempt)
		e.Title, e.WorkspaceID = "Other", "w3"
		same(t, "an event of a tenant that is being provisioned", begin(t, db, e).Mapping, m)
	})
}
