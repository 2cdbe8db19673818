package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"papermap-worker/repo/pgtest"
)

// postgres is the server of the tests on PostgreSQL; nil where there is none.
var postgres *pgtest.Server

func TestMain(m *testing.M) {
	code := pgtest.Main(m, &postgres)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// onBoth runs a test on each kind of database: openTest opens the one that the subtest is for.
func onBoth(t *testing.T, test func(*testing.T)) {
	t.Run("SQLite", test)
	t.Run("PostgreSQL", test)
}

var ctx = context.Background()

// openTest opens a new, migrated database whose clock stands still until pass moves it. Every test that is not about
// SQLite's file gets its database here.
func openTest(t testing.TB) *DB {
	t.Helper()
	address := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	if strings.Contains(t.Name(), "/PostgreSQL") {
		address = pgtest.Need(t, postgres)
	}
	db := openAddress(t, address)
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // SQLite's connection that writes checks less than this does
		if err := db.CheckIntegrity(ctx); err != nil && !strings.Contains(err.Error(), "database is closed") {
			t.Error(err)
		}
	})
	db.now = func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }
	return db
}

// openFile opens the SQLite file until the test ends.
func openFile(t testing.TB, path string) *DB {
	t.Helper()
	return openAddress(t, "sqlite:"+path)
}

func openAddress(t testing.TB, address string) *DB {
	t.Helper()
	db, err := Open(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// pass moves the database's clock. No other goroutine may be writing.
func pass(db *DB, d time.Duration) {
	now := db.now
	db.now = func() time.Time { return now().Add(d) }
}

// fataler is a *testing.T, a *testing.B or a *rapid.T.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// minute is the event time n: small numbers keep the tests readable.
func minute(n int) time.Time { return time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC) }

// created is a tenant.created of the minute n, stored as the message of that name.
func created(tenant string, n int, message string) Created {
	return Created{
		TenantID: tenant, WorkspaceID: "w", Title: "Dashboard - " + tenant, EventID: "event-" + message, EventTime: minute(n), Message: message,
	}
}

func begin(t fataler, db *DB, e Created) Claim { t.Helper(); return beginWith(t, db, e, false) }

func beginWith(t fataler, db *DB, e Created, hold bool) Claim {
	t.Helper()
	c, err := db.Begin(ctx, e, hold)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// claim begins to provision a tenant that is free.
func claim(t fataler, db *DB, tenant string) Claim {
	t.Helper()
	c := begin(t, db, created(tenant, 10, "m-"+tenant))
	if c.Step != Create {
		t.Fatalf("beginning gave step %d, want Create", c.Step)
	}
	return c
}

// dashboard is the id of the dashboard that a claim's attempt makes.
func dashboard(c Claim) string { return "dashboard-" + c.Attempt.ID }

func finish(t fataler, db *DB, c Claim) (recorded bool) {
	t.Helper()
	recorded, err := db.Finish(ctx, c, dashboard(c), 200, note("created-"+c.Attempt.ID))
	if err != nil {
		t.Fatal(err)
	}
	return recorded
}

func note(eventID string) Notice {
	return Notice{EventID: eventID, Type: "dashboard.test", Data: []byte(`{"n":1}`)}
}

// unaccepted is a failure that is tried again at once.
var unaccepted = Failure{Result: Result{Outcome: NotAccepted, HTTPStatus: 503, Error: "busy"}, Code: "API_FAILED", Most: 10}

// ambiguous is a failure whose dashboard may exist.
var ambiguous = Failure{Result: Result{Outcome: Uncertain, Error: "timeout"}, Code: "API_FAILED", Most: 10}

func fail(t fataler, db *DB, c Claim, f Failure) Mapping {
	t.Helper()
	f.FailedNotice, f.HeldNotice = note("failed-"+c.Attempt.ID), note("held-"+c.Attempt.ID)
	m, err := db.Fail(ctx, c, f)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func change(t fataler, db *DB, tenant string, to Status, n int) (changed bool) {
	t.Helper()
	changed, err := db.Change(ctx, Change{TenantID: tenant, WorkspaceID: "w", To: to, EventTime: minute(n)})
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func mapping(t fataler, db *DB, tenant string) Mapping {
	t.Helper()
	m, err := db.Mapping(ctx, tenant)
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	return m
}

func attempts(t fataler, db *DB, tenant string) []Attempt {
	t.Helper()
	list, err := db.Attempts(ctx, tenant)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func outcomes(t fataler, db *DB, tenant string) (list []Outcome) {
	t.Helper()
	for _, a := range attempts(t, db, tenant) {
		list = append(list, a.Outcome)
	}
	return list
}

// unsent lists the event ids that wait in the outbox.
func unsent(t fataler, db *DB, limit int) (ids []string) {
	t.Helper()
	list, err := db.Unsent(ctx, limit)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		ids = append(ids, o.EventID)
	}
	return ids
}

// same fails the test when got is not want.
func same(t fataler, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func TestMappingsAreListedInPagesAndByStatus(t *testing.T) {
	onBoth(t, testMappingsAreListedInPagesAndByStatus)
}

func testMappingsAreListedInPagesAndByStatus(t *testing.T) {
	db := openTest(t)
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
		{"", "", 10, "B a b c d"}, {"", "", 2, "B a"}, {"", "a", 2, "b c"}, {"", "d", 2, ""}, {"", "", 0, ""},
		{Active, "", 10, "B a c d"}, {Active, "a", 1, "c"}, {Deleted, "", 10, "b"}, {Held, "", 10, ""},
	} {
		list, err := db.Mappings(ctx, test.status, test.after, test.limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range list {
			got = append(got, m.TenantID)
		}
		same(t, fmt.Sprintf("%+v", test), strings.Join(got, " "), test.want)
	}
}

func TestUncertainAttemptsAreTheUnknownTheOrphanedAndTheLongSent(t *testing.T) {
	onBoth(t, testUncertainAttemptsAreTheUnknownTheOrphanedAndTheLongSent)
}

func testUncertainAttemptsAreTheUnknownTheOrphanedAndTheLongSent(t *testing.T) {
	db := openTest(t)
	finish(t, db, claim(t, db, "made"))
	fail(t, db, claim(t, db, "refused"), unaccepted)
	claim(t, db, "crashed")
	pass(db, time.Millisecond)
	fail(t, db, claim(t, db, "unknown"), ambiguous)
	pass(db, time.Millisecond)
	slept := claim(t, db, "orphaned")
	pass(db, Lease)
	finish(t, db, claim(t, db, "orphaned"))
	finish(t, db, slept)
	claim(t, db, "young")
	pass(db, Lease) // exactly: young may still be at work

	list, err := db.UncertainAttempts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range list {
		got = append(got, fmt.Sprintf("%s %s %q %s", u.TenantID, u.Outcome, u.Title, u.Status))
	}
	same(t, "uncertain attempts, oldest first", got, []string{
		`crashed sent "Dashboard - crashed" creating`, `unknown unknown "Dashboard - unknown" pending`,
		`orphaned orphaned "Dashboard - orphaned" active`,
	})

	pass(db, time.Millisecond)
	if list, _ = db.UncertainAttempts(ctx); len(list) != 4 || list[3].TenantID != "young" {
		t.Fatalf("an attempt sent longer ago than a lease is not the last of %+v", list)
	}
}

func TestOutboxIsWrittenWithItsChangeOrNotAtAll(t *testing.T) {
	onBoth(t, testOutboxIsWrittenWithItsChangeOrNotAtAll)
}

func testOutboxIsWrittenWithItsChangeOrNotAtAll(t *testing.T) {
	db := openTest(t)
	c := claim(t, db, "a")
	same(t, "after a claim", unsent(t, db, 10), []string(nil))
	finish(t, db, c)
	first, err := db.Unsent(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "after the change", first, []Outgoing{{
		ID: first[0].ID, EventID: "created-" + c.Attempt.ID, TenantID: "a", Type: "dashboard.test", Data: []byte(`{"n":1}`), CreatedAt: at(db.now()),
	}})

	// An event that cannot be written takes its change with it.
	b := claim(t, db, "b")
	before := mapping(t, db, "b")
	if _, err := db.Finish(ctx, b, "d", 200, note(first[0].EventID)); err == nil {
		t.Fatal("two events of one id were accepted")
	}
	f := ambiguous
	f.Hold, f.HeldNotice = true, note(first[0].EventID)
	if _, err := db.Fail(ctx, b, f); err == nil {
		t.Fatal("two events of one id were accepted")
	}
	same(t, "the mapping after changes that were rolled back", mapping(t, db, "b"), before)
	same(t, "the attempt after changes that were rolled back", outcomes(t, db, "b"), []Outcome{Sent})
	same(t, "the outbox after changes that were rolled back", len(unsent(t, db, 10)), 1)
}

func TestNothingIsAnnouncedOfATenantDeletedMeanwhile(t *testing.T) {
	onBoth(t, testNothingIsAnnouncedOfATenantDeletedMeanwhile)
}

func testNothingIsAnnouncedOfATenantDeletedMeanwhile(t *testing.T) {
	db := openTest(t)
	for tenant, end := range map[string]func(Claim){
		"made":   func(c Claim) { finish(t, db, c) },
		"failed": func(c Claim) { fail(t, db, c, Failure{Result: unaccepted.Result, Permanent: true}) },
		"held":   func(c Claim) { fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true}) },
	} {
		c := claim(t, db, tenant)
		change(t, db, tenant, Deleted, 11)
		end(c)
		same(t, "the outbox after "+tenant, unsent(t, db, 10), []string(nil))
		same(t, "the status of "+tenant, mapping(t, db, tenant).Status, Deleted)
	}
	same(t, "a dashboard that was made is known", mapping(t, db, "made").DashboardID != "", true)
}

func TestUnsentKeepsATenantsOrderAndMarkSentTakesOnlyItsOwn(t *testing.T) {
	onBoth(t, testUnsentKeepsATenantsOrderAndMarkSentTakesOnlyItsOwn)
}

func testUnsentKeepsATenantsOrderAndMarkSentTakesOnlyItsOwn(t *testing.T) {
	db := openTest(t)
	want := map[string][]string{}
	for range 3 { // each tenant fails, then starts a new generation
		for _, tenant := range []string{"b", "a"} {
			c := begin(t, db, created(tenant, 10, fmt.Sprint("m", len(want[tenant]))))
			fail(t, db, c, Failure{Result: unaccepted.Result, Permanent: true})
			want[tenant] = append(want[tenant], "failed-"+c.Attempt.ID)
		}
	}
	list, err := db.Unsent(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, o := range list {
		got[o.TenantID] = append(got[o.TenantID], o.EventID)
	}
	same(t, "each tenant's events", got, want)

	// A row is found although younger ones were sent before it.
	if err := db.MarkSent(ctx, []int64{list[0].ID, list[3].ID, list[5].ID}); err != nil {
		t.Fatal(err)
	}
	same(t, "what is left", unsent(t, db, 100), []string{list[1].EventID, list[2].EventID, list[4].EventID})
	same(t, "what is left, two at most", unsent(t, db, 2), []string{list[1].EventID, list[2].EventID})
	if err := db.MarkSent(ctx, nil); err != nil {
		t.Fatal(err)
	}
	same(t, "after marking none", len(unsent(t, db, 100)), 3)
}

func TestPruneSentDeletesOnlyWhatWasSentLongAgo(t *testing.T) {
	onBoth(t, testPruneSentDeletesOnlyWhatWasSentLongAgo)
}

func testPruneSentDeletesOnlyWhatWasSentLongAgo(t *testing.T) {
	db := openTest(t)
	for _, tenant := range []string{"a", "b", "c", "d", "waits"} {
		finish(t, db, claim(t, db, tenant))
	}
	list, err := db.Unsent(ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	send := func(from, to int) {
		for _, o := range list[from:to] {
			if err := db.MarkSent(ctx, []int64{o.ID}); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(0, 3)
	pass(db, time.Hour)
	send(3, 4)
	for _, test := range []struct {
		after time.Duration
		limit int
		left  int
	}{{0, 10, 5}, {time.Millisecond, 2, 3}, {0, 2, 2}, {0, 2, 2}, {time.Hour, 10, 1}, {1000 * time.Hour, 10, 1}} {
		pass(db, test.after)
		if err := db.PruneSent(ctx, time.Hour, test.limit); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := db.read.GetContext(ctx, &left, "SELECT COUNT(*) FROM outbox"); err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprintf("rows left after %+v", test), left, test.left)
	}
	same(t, "unsent", unsent(t, db, 10), []string{list[4].EventID})
}

func TestALeaseHasOneHolderAndPassesOnAfterItsTimeOrWhenDropped(t *testing.T) {
	onBoth(t, testALeaseHasOneHolderAndPassesOnAfterItsTimeOrWhenDropped)
}

func testALeaseHasOneHolderAndPassesOnAfterItsTimeOrWhenDropped(t *testing.T) {
	db := openTest(t)
	take := func(name, holder string, want bool) {
		t.Helper()
		got, err := db.TakeLease(ctx, name, holder, time.Minute)
		if err != nil || got != want {
			t.Fatalf("%s takes %s: %v, %v; want %v", holder, name, got, err, want)
		}
	}
	drop := func(name, holder string) {
		t.Helper()
		if err := db.DropLease(ctx, name, holder); err != nil {
			t.Fatal(err)
		}
	}
	take("relay", "a", true)
	take("relay", "b", false)
	take("sync", "b", true)
	pass(db, 50*time.Second)
	take("relay", "a", true) // prolonged, to 1:50
	pass(db, time.Minute)
	take("relay", "b", false) // 1:50 is not after 1:50
	pass(db, time.Millisecond)
	take("relay", "b", true)
	take("relay", "a", false)
	drop("relay", "a") // has it no longer
	take("relay", "a", false)
	drop("relay", "b")
	take("relay", "a", true)
}

// What was to end before begins anew, so that nobody waits longer than a lease or the longest retry.
func TestAClockThatIsSetBackStopsNothingForLong(t *testing.T) {
	onBoth(t, testAClockThatIsSetBackStopsNothingForLong)
}

func testAClockThatIsSetBackStopsNothingForLong(t *testing.T) {
	db := openTest(t)
	claim(t, db, "killed")
	fail(t, db, claim(t, db, "put off"), Failure{Result: ambiguous.Result, Retry: 10 * time.Second, Most: 10})
	take := func(holder string, want bool) {
		t.Helper()
		if got, err := db.TakeLease(ctx, "relay", holder, 20*time.Second); err != nil || got != want {
			t.Fatalf("%s takes the lease: %v, %v; want %v", holder, got, err, want)
		}
	}
	take("killed", true)
	pass(db, -time.Second)
	take("beside it", false) // a little is no jump
	pass(db, -time.Hour)
	take("next", true)
	for tenant, longest := range map[string]time.Duration{"killed": Lease, "put off": maxRetry} {
		c := begin(t, db, created(tenant, 10, "m-"+tenant))
		same(t, tenant, []any{c.Step, c.Wait}, []any{Wait, longest})
	}
	pass(db, Lease)
	claim(t, db, "killed")
	pass(db, maxRetry-Lease)
	claim(t, db, "put off")
}

func TestATenantIsClaimedOnlyForTheWorkspaceWhereItWasBegun(t *testing.T) {
	onBoth(t, testATenantIsClaimedOnlyForTheWorkspaceWhereItWasBegun)
}

func testATenantIsClaimedOnlyForTheWorkspaceWhereItWasBegun(t *testing.T) {
	db := openTest(t)
	fail(t, db, claim(t, db, "a"), unaccepted)
	e := created("a", 20, "of another workspace")
	e.WorkspaceID = "other"
	c := begin(t, db, e)
	same(t, "step, stage and workspace", []any{c.Step, c.Mapping.Stage, c.Mapping.WorkspaceID}, []any{Elsewhere, Pending, "w"})
	same(t, "attempts", outcomes(t, db, "a"), []Outcome{NotAccepted})
	e.Entered = "w"
	c = begin(t, db, e)
	same(t, "step and workspace for the one that it is in", []any{c.Step, c.Attempt.WorkspaceID}, []any{Create, "w"})
}

func TestEachColumnOfAMappingIsSavedAlone(t *testing.T) {
	onBoth(t, func(t *testing.T) {
		db := openTest(t)
		claim(t, db, "a")
		fields := reflect.TypeFor[Mapping]()
		for i := range fields.NumField() {
			field := fields.Field(i)
			if slices.Contains([]string{"TenantID", "CreatedAt", "UpdatedAt"}, field.Name) { // which never change, or always
				continue
			}
			for _, zero := range []bool{false, true} {
				var want Mapping
				err := db.update(ctx, func(ctx context.Context, x *tx) error {
					m, err := x.known(ctx, "a")
					if err != nil {
						return err
					}
					switch v := reflect.ValueOf(&m.Mapping).Elem().Field(i).Addr().Interface().(type) {
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
					err = x.save(ctx, m)
					want = m.Mapping
					return err
				})
				if err != nil {
					t.Fatal(field.Name, err)
				}
				same(t, field.Name, mapping(t, db, "a"), want)
			}
		}
	})
}
