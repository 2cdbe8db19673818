package repo

import (
	"context"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// recordStatements returns the statements that sessions run from now on, also those that no span
// shows, and how many there were of each.
func recordStatements(db *DB) (list func() []statement) {
	var mu sync.Mutex
	var recorded []statement
	add := func(statements ...*statement) {
		mu.Lock()
		defer mu.Unlock()
		for _, st := range statements {
			recorded = append(recorded, *st)
		}
	}
	within := db.session
	db.session = func(ctx context.Context, do func(*session) error) error {
		return within(ctx, func(s *session) error {
			run, commit := s.run, s.commit
			s.run = func(ctx context.Context, list ...*statement) error {
				add(list...)
				return run(ctx, list...)
			}
			s.commit = func(ctx context.Context) error {
				add(&statement{text: "COMMIT"})
				return commit(ctx)
			}
			return do(s)
		})
	}
	return func() []statement {
		mu.Lock()
		defer mu.Unlock()
		list := recorded
		recorded = nil
		return list
	}
}

// decideTogether has the decisions made in one batch and returns its jobs.
func decideTogether(db *DB, tenants []string, decide func(i int, d *decision) error) (jobs []*job) {
	for i, tenant := range tenants {
		jobs = append(jobs, &job{ctx: ctx, done: make(chan struct{}), tenantID: tenant, workspaceID: "w",
			decide: func(d *decision) error { return decide(i, d) }})
	}
	db.batches.write(append([]*job(nil), jobs...), false, func() {})
	for _, j := range jobs {
		<-j.done
	}
	return jobs
}

// noErrors fails the test if one of the jobs has failed.
func noErrors(t fataler, jobs []*job) {
	t.Helper()
	for _, j := range jobs {
		must(t, j.err)
	}
}

func numbered(prefix string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%03d", prefix, i))
	}
	return names
}

// beginTogether claims the tenants in one batch.
func beginTogether(t fataler, db *DB, tenants []string, minute int) []Claim {
	t.Helper()
	claims := make([]Claim, len(tenants))
	noErrors(t, decideTogether(db, tenants, func(i int, d *decision) (err error) {
		id := fmt.Sprintf("%s-%d-%d", tenants[i], minute, d.now.UnixNano())
		claims[i], err = d.begin(created(tenants[i], minute, "m"), id, false)
		return err
	}))
	return claims
}

func finishTogether(t fataler, db *DB, claims []Claim) {
	t.Helper()
	noErrors(t, decideTogether(db, tenantsOfClaims(claims), func(i int, d *decision) error {
		r := Result{Outcome: OutcomeCreated, DashboardID: dashboard(claims[i]), HTTPStatus: 200}
		_, err := d.finish(claims[i], r, announce("created-"+claims[i].Attempt.ID))
		return err
	}))
}

func failTogether(t fataler, db *DB, claims []Claim, f Failure) {
	t.Helper()
	noErrors(t, decideTogether(db, tenantsOfClaims(claims), func(i int, d *decision) error {
		return d.fail(claims[i], f, announce("failed-"+claims[i].Attempt.ID))
	}))
}

func tenantsOfClaims(claims []Claim) (tenants []string) {
	for _, c := range claims {
		tenants = append(tenants, c.Mapping.TenantID)
	}
	return tenants
}

func TestBatchTakesFewStatements(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		const tenants = 64
		recorded := recordStatements(db)
		claims := beginTogether(t, db, numbered("t", tenants), 10)
		started := len(recorded())
		finishTogether(t, db, claims)
		finished := len(recorded())
		t.Logf("%d statements to begin with %d tenants, %d to finish", started, tenants, finished)
		if each := float64(started+finished) / tenants; each > 0.3 {
			t.Errorf("%.2f statements for each tenant, want at most 0.3", each)
		}
		for _, c := range claims {
			same(t, "status", mapping(t, db, c.Mapping.TenantID).Status, Active)
		}
	})
}

func TestBatchMarksEventsOutAsSent(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		finishTogether(t, db, beginTogether(t, db, numbered("t", 5), 10))
		rows, err := db.Unsent(ctx, 10)
		must(t, err)
		recorded := recordStatements(db)
		jobs := []*job{{sent: []int64{rows[3].ID, rows[0].ID}}, {sent: []int64{rows[1].ID}}}
		for _, j := range jobs {
			j.ctx, j.done = ctx, make(chan struct{})
		}
		db.batches.write(slices.Clone(jobs), false, func() {})
		noErrors(t, jobs)
		var updates int
		for _, st := range recorded() {
			if strings.HasPrefix(st.text, "UPDATE") {
				updates++
			}
		}
		same(t, "updates of both jobs", updates, 1)
		same(t, "events that wait", unsent(t, db, 10), []string{rows[2].EventID, rows[4].EventID})
	})
}

var planRows = flag.Int("plan-rows", 20_000, "rows in the tables whose plans are looked at")

// fillPlanTables fills the tables past the rules, without letting the database count what is in
// them.
func fillPlanTables(t *testing.T, db *DB, rows int) {
	t.Helper()
	clock := "TIMESTAMPTZ '2026-01-01'"
	if db.path != "" {
		clock = "'2026-01-01T00:00:00.000Z'"
	} else {
		for table := range strings.FieldsSeq("tenant_dashboards provision_attempts dashboard_owners outbox") {
			db.write.MustExec("ALTER TABLE " + table + " SET (autovacuum_enabled = off)")
		}
	}
	const chunk = 20_000
	for from := 0; from < rows; from += chunk {
		series := fmt.Sprintf(`WITH RECURSIVE s (n) AS (SELECT %d UNION ALL
			SELECT n + 1 FROM s WHERE n < %d) `, from+1, min(from+chunk, rows))
		for _, insert := range []string{
			`tenant_dashboards (tenant_id, workspace_id, dashboard_id, status, stage, created_at, updated_at)
				%s SELECT 'filled-' || n, 'w', 'd-' || n, 'active', 'active', ` + clock + ", " + clock,
			`provision_attempts (id, workspace_id, tenant_id, generation, mark, outcome, dashboard_id,
				started_at, finished_at) %s SELECT 'a-' || n, 'w', 'filled-' || n, 1, 'pmw:a-' || n,
				CASE n %% 10 WHEN 0 THEN 'sent' ELSE 'created' END, 'd-' || n, ` + clock + ", " + clock,
			`dashboard_owners (workspace_id, dashboard_id, tenant_id) %s
				SELECT 'w', 'd-' || n, 'filled-' || n`,
			`outbox (event_id, tenant_id, type, data, created_at, sent_at) %s SELECT 'e-' || n,
				'filled-' || n, 'x', '{}', ` + clock + ", " + clock,
		} {
			db.write.MustExec("INSERT INTO " + fmt.Sprintf(insert, series) + " FROM s")
		}
	}
}

func TestSetsAreReadAndWrittenByIndex(t *testing.T) {
	onBoth(t, func(t *testing.T, db *DB) {
		started := time.Now()
		fillPlanTables(t, db, *planRows)
		t.Logf("%d rows after %s", *planRows, time.Since(started).Round(time.Millisecond))
		recorded := recordStatements(db)
		tenants := numbered("t", 64)
		for range 2 { // the second time after a failure, the third after a worker that stopped
			failTogether(t, db, beginTogether(t, db, tenants, 10), unaccepted)
			pass(db, time.Second)
		}
		beginTogether(t, db, tenants, 10)
		pass(db, Lease)
		slept := beginTogether(t, db, tenants, 10)
		pass(db, Lease)
		finishTogether(t, db, beginTogether(t, db, tenants, 10))
		finishTogether(t, db, slept)
		held(t, db, "held")
		resolve(t, db, "held", "found")
		must(t, db.Restore(ctx, Dashboard{TenantID: "adopted", WorkspaceID: "w", ID: "of adopted"}))
		must(t, db.MarkSent(ctx, []int64{1, 2, 3}))

		scan := regexp.MustCompile(`Seq Scan on (tenant|provision|dashboard|outbox)|` +
			`SCAN [a-z]*_?[a-z]+(\n|$)`)
		explain := map[bool]string{true: "EXPLAIN QUERY PLAN ", false: "EXPLAIN "}[db.path != ""]
		seen := map[string]bool{}
		for _, st := range recorded() {
			if seen[st.text] || !strings.Contains(st.text, " FROM ") {
				continue
			}
			seen[st.text] = true
			plan := planOf(t, db, explain+st.text, st.args)
			t.Logf("%s\n%s", strings.Join(strings.Fields(st.text), " "), plan)
			if scan.MatchString(plan) {
				t.Errorf("a table is scanned:\n%s\n%s", st.text, plan)
			}
		}
		if len(seen) < 10 {
			t.Errorf("%d statements were explained", len(seen))
		}
	})
}

// planOf explains a statement within a session.
func planOf(t *testing.T, db *DB, query string, args []any) string {
	t.Helper()
	var plan []struct {
		ID, Parent, NotUsed int
		Detail              string
		Step                string `db:"QUERY PLAN"`
	}
	must(t, db.session(ctx, func(s *session) error {
		if _, err := s.begin(ctx, nil, false); err != nil {
			return err
		}
		if err := s.run(ctx, &statement{text: query, args: args, into: &plan}); err != nil {
			return err
		}
		return s.commit(ctx)
	}))
	var steps []string
	for _, step := range plan {
		steps = append(steps, step.Detail+step.Step)
	}
	return strings.Join(steps, "\n")
}
