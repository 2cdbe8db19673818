package repo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"papermap-worker/repo/pgtest"
)

// suspendTogether suspends the tenants in one batch; seen gets the clock of each decision.
func suspendTogether(db *DB, tenants []string, seen func(i int, now Time)) []*job {
	return decideTogether(db, tenants, func(i int, d *decision) error {
		d.change(Change{TenantID: tenants[i], To: Suspended, EventTime: minute(1)})
		seen(i, d.now)
		return nil
	})
}

func TestBatchLeavesOutAJobWhoseStatementFails(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		claims := beginTogether(t, db, numbered("t", 5), 10)
		finishOne := func(i int, d *decision) error {
			_, err := d.finish(claims[i], Result{Outcome: OutcomeCreated, DashboardID: fmt.Sprint("d", i)},
				announce(fmt.Sprint("event-", i/2))) // 0 and 1 are the same, and 2 and 3
			return err
		}
		jobs := decideTogether(db, tenantsOfClaims(claims), finishOne)
		failed := map[int]int{}
		for i, j := range jobs {
			status := mapping(t, db, j.tenantID).Status
			if j.err != nil {
				failed[i/2]++
				same(t, "a tenant whose job failed", status, Creating)
				continue
			}
			same(t, "a tenant whose job was done", status, Active)
		}
		same(t, "jobs that failed, by event", failed, map[int]int{0: 1, 1: 1})
		same(t, "events out", len(unsent(t, db, 10)), 3)
		same(t, "owners", count(t, db, "dashboard_owners"), 3)
	})
}

// A replica of a version that knows no owners has recorded it.
func TestBatchRefusesADashboardOfAnOlderReplica(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		insertTenants(t, db, [3]string{"older", "", string(Active)})
		decideOn(t, db, "older", func(d *decision) { d.DashboardID = "theirs" })
		same(t, "owners", count(t, db, "dashboard_owners"), 0)
		claims := beginTogether(t, db, numbered("t", 3), 10)
		jobs := decideTogether(db, tenantsOfClaims(claims), func(i int, d *decision) error {
			id := map[bool]string{true: "theirs", false: dashboard(claims[i])}[i == 1]
			_, err := d.finish(claims[i], Result{Outcome: OutcomeCreated, DashboardID: id}, announce(id))
			return err
		})
		for i, j := range jobs {
			if errors.Is(j.err, ErrTaken) != (i == 1) || j.err != nil && i != 1 {
				t.Errorf("finishing %d: %v", i, j.err)
			}
		}
		same(t, "owners", count(t, db, "dashboard_owners"), 2)
	})
}

// rival is a transaction of another replica that goes on until release.
func rival(t *testing.T, db *DB, statements ...string) (release func(end string)) {
	t.Helper()
	conn, err := db.write.Connx(ctx)
	must(t, err)
	for _, st := range append([]string{"BEGIN"}, statements...) {
		if _, err := conn.ExecContext(ctx, st); err != nil {
			t.Fatal(err)
		}
	}
	return func(end string) {
		if _, err := conn.ExecContext(ctx, end); err != nil {
			t.Error(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// waiting waits until a transaction waits for a lock.
func waiting(t *testing.T, db *DB) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		const blocked = "pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
		if count(t, db, blocked) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing waits for a lock")
		}
	}
}

// onPostgres opens a database whose clock is the server's.
func onPostgres(t *testing.T) *DB {
	t.Helper()
	db := openPostgresTest(t, pgtest.Need(t, postgres))
	if _, err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestBatchGoesOnWithoutALockedRow(t *testing.T) {
	db := onPostgres(t)
	tenants := numbered("t", 5)
	noErrors(t, suspendTogether(db, tenants, func(int, Time) {}))
	release := rival(t, db, "SELECT FROM tenant_dashboards WHERE tenant_id = 't-002' FOR UPDATE")
	released := make(chan time.Time, 1)
	times := make([]Time, len(tenants))
	var others sync.WaitGroup
	others.Go(func() {
		waiting(t, db) // the one job, for its row
		for _, tenant := range []string{"t-000", "t-004", "new"} {
			if _, err := db.Change(ctx, Change{TenantID: tenant, WorkspaceID: "w", To: Active,
				EventTime: minute(5)}); err != nil {
				t.Error(err)
			}
		}
		released <- time.Now()
		release("COMMIT")
	})
	noErrors(t, decideTogether(db, tenants, func(i int, d *decision) error {
		d.change(Change{TenantID: tenants[i], To: Deleted, EventTime: minute(3)})
		times[i] = d.now
		return nil
	}))
	others.Wait()
	end := at(<-released)
	for i, tenant := range tenants {
		same(t, tenant+" is deleted", mapping(t, db, tenant).DeletedEvent, eventTime(minute(3)))
		// The clock is read when the lock is held, and not before.
		same(t, tenant+" was decided after the lock was released", !times[i].Before(end.Time), i == 2)
	}
}

func TestBatchBeginsAgainWhenARowAppears(t *testing.T) {
	db := onPostgres(t)
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		release := rival(t, db, `INSERT INTO tenant_dashboards (tenant_id, workspace_id, status, stage,
			created_event, created_at, updated_at) VALUES ('`+end+`-001', 'theirs', 'pending', 'pending', 1,
			now(), now())`)
		go func() {
			waiting(t, db)
			release(end)
		}()
		noErrors(t, suspendTogether(db, numbered(end, 3), func(int, Time) {}))
		for _, tenant := range numbered(end, 3) {
			m := mapping(t, db, tenant)
			same(t, tenant, m.Status, Suspended)
			theirs := end == "COMMIT" && tenant == end+"-001"
			same(t, tenant+": workspace", m.WorkspaceID == "theirs", theirs)
		}
	}
}

// A replica is frozen between an INSERT and its COMMIT.
func TestBatchDoesNotWaitForAFrozenInsert(t *testing.T) {
	db := onPostgres(t)
	release := rival(t, db, `INSERT INTO tenant_dashboards (tenant_id, workspace_id, status, created_at,
		updated_at) VALUES ('t-001', 'theirs', 'pending', now(), now())`)
	done := make(chan string, 3)
	var jobs []*job
	for _, tenant := range numbered("t", 3) {
		j := &job{ctx: ctx, done: make(chan struct{}), tenantID: tenant, decide: func(d *decision) error {
			d.change(Change{TenantID: tenant, To: Suspended, EventTime: minute(1)})
			return nil
		}}
		jobs = append(jobs, j)
		go func() { <-j.done; done <- tenant }()
	}
	db.batches.write(append([]*job(nil), jobs...), false, func() {})
	first := []string{<-done, <-done}
	slices.Sort(first)
	same(t, "tenants that did not wait", first, []string{"t-000", "t-002"})
	release("COMMIT")
	same(t, "the tenant that did", <-done, "t-001")
	noErrors(t, jobs)
	same(t, "its status", mapping(t, db, "t-001").Status, Suspended)
}

func TestBatchAsksWhoWasFirstToHaveADashboard(t *testing.T) {
	db := onPostgres(t)
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		claims := beginTogether(t, db, numbered(end, 3), 10)
		release := rival(t, db,
			"INSERT INTO dashboard_owners VALUES ('w', '"+dashboard(claims[1])+"', 'rival')")
		go func() {
			waiting(t, db)
			release(end)
		}()
		jobs := decideTogether(db, tenantsOfClaims(claims), func(i int, d *decision) error {
			r := Result{Outcome: OutcomeCreated, DashboardID: dashboard(claims[i])}
			_, err := d.finish(claims[i], r, announce(r.DashboardID))
			return err
		})
		for i, j := range jobs {
			taken := end == "COMMIT" && i == 1
			if errors.Is(j.err, ErrTaken) != taken || j.err != nil && !taken {
				t.Errorf("%s: finishing %d: %v", end, i, j.err)
			}
		}
	}
}

// A COMMIT whose answer is lost keeps no other batch of its lane from being written.
func TestBatchLooksUpALostCommitBesideItsLane(t *testing.T) {
	db, proxy := openThroughProxy(t)
	for _, delivered := range []bool{true, false} {
		proxy.deliver.Store(delivered)
		proxy.lose.Store(true)
		tenants := numbered(fmt.Sprint(delivered), 3)
		jobs := suspendTogether(db, tenants, func(int, Time) {})
		for i, j := range jobs {
			same(t, "a job was done", j.err == nil, delivered)
			same(t, "its tenant is known", mapping(t, db, tenants[i]).Status == Suspended, delivered)
		}
	}
}

// The COMMIT of the first tenant takes until the test releases it.
func TestBatchIsWrittenWhileTheLastOneIsCommitted(t *testing.T) {
	db := onPostgres(t)
	db.write.MustExec(`
		CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0
			AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
		CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON tenant_dashboards DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (NEW.tenant_id = 'first') EXECUTE FUNCTION wait()`)
	release := rival(t, db, "SELECT pg_advisory_xact_lock(1)")
	suspend := func(ctx context.Context, tenant string) error {
		_, err := db.Change(ctx,
			Change{TenantID: tenant, WorkspaceID: "w", To: Suspended, EventTime: minute(1)})
		return err
	}
	first := make(chan error)
	go func() { first <- suspend(ctx, "first") }()
	waiting(t, db)
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, tenant := range numbered("t", 3) {
		must(t, suspend(limited, tenant))
		same(t, "a later tenant's status", mapping(t, db, tenant).Status, Suspended)
	}
	same(t, "rows of the first tenant", count(t, db, "tenant_dashboards WHERE tenant_id = 'first'"), 0)
	release("COMMIT")
	must(t, <-first)
	same(t, "the first tenant's status", mapping(t, db, "first").Status, Suspended)
}

// Two replicas get events for the same few tenants, many at once.
func TestBatchesOfReplicasDoNotDeadlock(t *testing.T) {
	address := pgtest.Need(t, postgres)
	replicas := []*DB{openPostgresTest(t, address), openPostgresTest(t, address)}
	if _, err := replicas[0].Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	const hot, callers, rounds = 64, 64, 12
	tenants := numbered("hot", hot)
	var group sync.WaitGroup
	for n, db := range replicas {
		for caller := range callers {
			group.Go(func() {
				random := rand.New(rand.NewPCG(uint64(n), uint64(caller)))
				for round := range rounds {
					if err := provisionHot(db, random, tenants[random.IntN(hot)], round); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	group.Wait()
	var deadlocks int
	must(t, replicas[0].write.GetContext(ctx, &deadlocks,
		"SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
	same(t, "deadlocks", deadlocks, 0)
	dashboards := map[string]bool{}
	for _, tenant := range tenants {
		for _, a := range attempts(t, replicas[0], tenant) {
			same(t, "an attempt is sent", a.Outcome == OutcomeSent, false)
		}
		if m := mapping(t, replicas[0], tenant); m.DashboardID != "" {
			same(t, "a dashboard of two tenants", dashboards[m.DashboardID], false)
			dashboards[m.DashboardID] = true
		}
	}
}

// provisionHot handles an event for the tenant: one of all kinds.
func provisionHot(db *DB, random *rand.Rand, tenant string, round int) error {
	now := time.Now()
	if to := []Status{Suspended, Active, Deleted, "", "", "", ""}[random.IntN(7)]; to != "" {
		_, err := db.Change(ctx, Change{TenantID: tenant, WorkspaceID: "w", To: to, EventTime: now})
		return err
	}
	e := created(tenant, 0, "m")
	e.EventTime = now
	c, err := db.Begin(ctx, e, false)
	if err != nil || c.Step != StepCreate {
		return err
	}
	if random.IntN(3) == 0 {
		_, err = db.Fail(ctx, c, unaccepted, announce("failed-"+c.Attempt.ID))
		return err
	}
	// Two claims may make the same dashboard.
	id := fmt.Sprintf("d-%d-%d", round, random.IntN(200))
	_, err = db.Finish(context.WithoutCancel(ctx), c, id, 200, announce("created-"+c.Attempt.ID))
	if errors.Is(err, ErrTaken) {
		_, err = db.Fail(ctx, c, unaccepted, announce("taken-"+c.Attempt.ID))
	}
	if err != nil && strings.Contains(err.Error(), "deadlock") {
		err = fmt.Errorf("replica: %w", err)
	}
	return err
}
