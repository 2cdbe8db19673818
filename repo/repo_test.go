package repo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"papermap-worker/repo/pgtest"
)

func openPostgresTest(t *testing.T, address string) *DB {
	t.Helper()
	db, err := Open(t.Context(), address)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// postgres is the server of the tests on PostgreSQL; nil where there is none.
var postgres *pgtest.Server

func TestMain(m *testing.M) {
	flag.Parse()
	long := false // the long form of the property tests is a step of its own in .ci/run
	flag.Visit(func(f *flag.Flag) { long = long || f.Name == "rapid.checks" })
	if !long {
		_ = flag.Set("rapid.checks", "20")
	}
	code := pgtest.Main(m, &postgres)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// onBoth runs a test on each kind of database: openTest opens the one that the subtest is for.
func onBoth(t *testing.T, test func(t *testing.T, db *DB)) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) { test(t, openTest(t)) })
	}
}

var ctx = context.Background()

// openTest opens a new, migrated database whose clock stands still until pass moves it. Every test
// that is not about SQLite's file gets its database here.
func openTest(t testing.TB) *DB {
	t.Helper()
	address := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	if strings.Contains(t.Name(), "/PostgreSQL") {
		address = pgtest.Shared(t, postgres)
	}
	db := openAddress(t, address)
	if db.path == "" && db.CheckSchema(ctx) == nil {
		db.write.MustExec(pgtest.Empty)
	} else if _, err := db.Migrate(ctx); err != nil {
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
	must(t, err)
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
		TenantID: tenant, WorkspaceID: "w", Title: "Dashboard - " + tenant, EventID: "event-" + message,
		EventTime: minute(n), Message: message,
	}
}

func must(t fataler, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func begin(t fataler, db *DB, e Created) Claim { t.Helper(); return beginWith(t, db, e, false) }

func beginWith(t fataler, db *DB, e Created, hold bool) Claim {
	t.Helper()
	c, err := db.Begin(ctx, e, hold)
	must(t, err)
	return c
}

// claim begins to provision a tenant that is free.
func claim(t fataler, db *DB, tenant string) Claim {
	t.Helper()
	c := begin(t, db, created(tenant, 10, "m-"+tenant))
	if c.Step != StepCreate {
		t.Fatalf("beginning gave step %d, want Create", c.Step)
	}
	return c
}

// dashboard is the id of the dashboard that a claim's attempt makes.
func dashboard(c Claim) string { return "dashboard-" + c.Attempt.ID }

func finish(t fataler, db *DB, c Claim) (recorded bool) {
	t.Helper()
	recorded, err := db.Finish(ctx, c, dashboard(c), 200, announce("created-"+c.Attempt.ID))
	must(t, err)
	return recorded
}

func note(eventID string) OutboxEvent {
	return OutboxEvent{EventID: eventID, Type: "dashboard.test", Data: []byte(`{"n":1}`)}
}

func announce(eventID string) Announce {
	return func(Mapping) (OutboxEvent, error) { return note(eventID), nil }
}

// unaccepted is a failure that is tried again at once.
var unaccepted = Failure{Result: Result{Outcome: OutcomeRefused, HTTPStatus: 503, Error: "busy"},
	Code: "API_FAILED", MaxFailures: 10}

// ambiguous is a failure whose dashboard may exist.
var ambiguous = Failure{Result: Result{Outcome: OutcomeUnknown, Error: "timeout"}, Code: "API_FAILED",
	MaxFailures: 10}

func fail(t fataler, db *DB, c Claim, f Failure) Mapping {
	t.Helper()
	m, err := db.Fail(ctx, c, f, func(m Mapping) (OutboxEvent, error) {
		return note(string(m.Stage) + "-" + c.Attempt.ID), nil
	})
	must(t, err)
	return m
}

func change(t fataler, db *DB, tenant string, to Status, n int) (changed bool) {
	t.Helper()
	changed, err := db.Change(ctx, Change{TenantID: tenant, WorkspaceID: "w", To: to, EventTime: minute(n)})
	must(t, err)
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
	must(t, err)
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
	must(t, err)
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

// decideOn changes a tenant's mapping past the rules and returns it.
func decideOn(t fataler, db *DB, tenant string, change func(*decision)) (m Mapping) {
	t.Helper()
	must(t, db.decide(ctx, &job{tenantID: tenant, workspaceID: "w", decide: func(d *decision) error {
		change(d)
		d.save()
		m = d.Mapping
		return nil
	}}, "change tenant %q", tenant))
	return m
}

// insertTenants writes mappings past the rules: id, title and status each.
func insertTenants(t testing.TB, db *DB, rows ...[3]string) {
	t.Helper()
	for _, r := range rows {
		decideOn(t, db, r[0], func(d *decision) {
			d.Title, d.Status, d.Stage = r[1], Status(r[2]), Pending
		})
	}
}

// held brings a new tenant to where a person has to look: a create of minute 10 has an unknown
// outcome.
func held(t fataler, db *DB, tenant string) Claim {
	t.Helper()
	c := claim(t, db, tenant)
	same(t, "stage", fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true}).Stage, Held)
	return c
}

// announceState makes an event that shows the mapping as it is committed.
func announceState(m Mapping) (OutboxEvent, error) {
	n := note(fmt.Sprintf("%s is %s with %q in generation %d", m.TenantID, m.Status, m.DashboardID,
		m.Generation))
	n.OriginalID, n.OriginalTime = m.CreatedEventID, m.CreatedEvent
	return n, nil
}

func resolve(t fataler, db *DB, tenant, dashboardID string) Mapping {
	t.Helper()
	m, err := db.Resolve(ctx, tenant, dashboardID, announceState)
	must(t, err)
	same(t, "the mapping that Resolve returns", m, mapping(t, db, tenant))
	return m
}

func recreate(t fataler, db *DB, tenant string) Mapping {
	t.Helper()
	m, err := db.Recreate(ctx, tenant, announceState)
	must(t, err)
	same(t, "the mapping that Recreate returns", m, mapping(t, db, tenant))
	return m
}

// uncertain lists the tenants of the possible orphans that are not resolved.
func uncertain(t fataler, db *DB) (tenants []string) {
	t.Helper()
	list, err := db.PossibleOrphans(ctx)
	must(t, err)
	for _, u := range list {
		tenants = append(tenants, u.TenantID)
	}
	return tenants
}

// snapshot is all that a write which is refused must leave as it is.
func snapshot(t fataler, db *DB, tenant string) []any {
	t.Helper()
	return []any{mapping(t, db, tenant), attempts(t, db, tenant), unsent(t, db, 100)}
}

var stepNames = map[Step]string{StepDone: "Done", StepCreate: "Create", StepWait: "Wait",
	StepRecordOutcome: "RecordOutcome", StepRefused: "Refused", StepElsewhere: "Elsewhere",
	StepAdopted: "Adopted", StepConflict: "Conflict"}

// adopting is a tenant.created of the minute n that names a dashboard.
func adopting(tenant string, n int, id string) Created {
	e := created(tenant, n, fmt.Sprint("adopting ", id, " at ", n))
	e.DashboardID = id
	return e
}

func adopt(t fataler, db *DB, e Created) Claim {
	t.Helper()
	c, err := db.Adopt(ctx, e, announceState)
	must(t, err)
	same(t, "the mapping that Adopt returns", c.Mapping, mapping(t, db, e.TenantID))
	return c
}

func replace(t fataler, db *DB, tenant, dashboardID string) Mapping {
	t.Helper()
	m, err := db.Replace(ctx, tenant, mapping(t, db, tenant).DashboardID, dashboardID, announceState)
	must(t, err)
	same(t, "the mapping that Replace returns", m, mapping(t, db, tenant))
	return m
}

// deliver hands an event over once: c, a, s, r or d for created, created with a dashboard, suspended,
// resumed or deleted, and its minute; with a also "=" and the end of the dashboard's id. A created
// comes as the stored message of the name given; only then is there a claim.
func deliver(t fataler, db *DB, tenant, event, message string) Claim {
	t.Helper()
	number, id, _ := strings.Cut(event[1:], "=")
	n, err := strconv.Atoi(number)
	must(t, err)
	if event[0] == 'a' {
		return adopt(t, db, adopting(tenant, n, "of "+tenant+id))
	}
	if event[0] == 'c' {
		return begin(t, db, created(tenant, n, message))
	}
	before := mapping(t, db, tenant).Status
	if before == "" {
		before = Pending // what a tenant's row begins with
	}
	changed := change(t, db, tenant, map[byte]Status{'s': Suspended, 'r': Active, 'd': Deleted}[event[0]], n)
	same(t, fmt.Sprintf("whether %s changed the status of %q", event, tenant), changed,
		mapping(t, db, tenant).Status != before)
	return Claim{}
}

// play brings a new tenant into a state: "c10 make d20" is created at minute 10, its dashboard
// made, deleted at minute 20.
func play(t fataler, db *DB, tenant, script string) {
	t.Helper()
	var c Claim
	for _, step := range strings.Fields(script) {
		switch step {
		case "make":
			same(t, "recorded", finish(t, db, c), true)
		case "retry":
			fail(t, db, c, unaccepted)
		case "later":
			f := unaccepted
			f.RetryAfter = maxRetry
			fail(t, db, c, f)
		case "hold":
			fail(t, db, c, Failure{Result: ambiguous.Result, Hold: true})
		case "refuse":
			fail(t, db, c, Failure{Result: unaccepted.Result, Permanent: true})
		case "lapse":
			pass(db, Lease)
		case "unknown":
			fail(t, db, c, ambiguous)
		case "replace":
			replace(t, db, tenant, "corrected of "+tenant)
		default:
			c = deliver(t, db, tenant, step, step)
		}
	}
}

// count counts the rows that a query's WHERE selects.
func count(t fataler, db *DB, from string) (n int) {
	t.Helper()
	must(t, db.read.GetContext(ctx, &n, "SELECT COUNT(*) FROM "+from))
	return n
}
