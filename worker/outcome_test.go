package worker_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// announced is what the stream tells of a tenant's dashboard: the events out in their order, as "type first-field …".
func (w *world) announced(tenant string) []string {
	w.t.Helper()
	var list []string
	seen := map[string]bool{}
	for _, msg := range w.stored("PAPERMAP", "papermap.events.dashboard.*") {
		var e struct {
			SpecVersion, ID, Source, Type, Subject, Time, DataContentType string
			Data                                                          map[string]string
		}
		if err := json.Unmarshal(msg.Data, &e); err != nil {
			w.t.Fatalf("%s: %v", msg.Data, err)
		}
		if e.Subject != tenant {
			continue
		}
		when, err := time.Parse(time.RFC3339Nano, e.Time)
		if err != nil || time.Since(when).Abs() > 5*time.Minute || e.SpecVersion != "1.0" || e.ID == "" || e.Source == "" ||
			msg.Subject != "papermap.events."+e.Type || e.DataContentType != "application/json" ||
			msg.Header.Get("content-type") != "application/cloudevents+json" || msg.Header.Get("Nats-Msg-Id") != e.ID ||
			e.Data["tenant_id"] != tenant || e.Data["workspace_id"] == "" {
			w.t.Errorf("no good event: %v %s", msg.Header, msg.Data)
		}
		if seen[e.ID] {
			continue // at least once
		}
		seen[e.ID] = true
		var fields []string
		for _, name := range []string{"dashboard_id", "title", "attempt", "code", "message"} {
			if v := e.Data[name]; v != "" {
				fields = append(fields, v)
			}
		}
		if len(fields) != len(e.Data)-2 {
			w.t.Errorf("fields that no one knows: %s", msg.Data)
		}
		list = append(list, strings.TrimSpace(e.Type+" "+strings.Join(fields, " ")))
	}
	return list
}

// relayed is a check that no event out waits in the database.
func (w *world) relayed() error {
	waiting, err := w.db.Unsent(w.t.Context(), 10)
	if err == nil && len(waiting) > 0 {
		err = fmt.Errorf("%d events out wait", len(waiting))
	}
	return err
}

func TestEveryStateChangeIsAnnouncedOnceAndInOrder(t *testing.T) {
	onBoth(t, testEveryStateChangeIsAnnouncedOnceAndInOrder)
}

func testEveryStateChangeIsAnnouncedOnceAndInOrder(t *testing.T) {
	w := start(t, options{
		config: func(c *worker.Config) { c.Hold = true },
		faults: []string{"tenant=refused count=1 status=422 body=`{\"message\":\"title is too dull\",\"code\":\"DULL\"}`", "tenant=held drop=after"},
	})
	began := time.Now().Add(-time.Hour)
	for minute, eventType := range []string{
		events.TypeTenantCreated, events.TypeTenantDeleted, events.TypeTenantCreated, events.TypeTenantSuspended, events.TypeTenantResumed,
	} {
		w.at(began.Add(time.Duration(minute)*time.Minute), eventType, "twice")
		if minute < 2 {
			w.at(began.Add(time.Duration(minute)*time.Minute), events.TypeTenantCreated, "refused") // the second is a new generation
			w.create("held")
		}
		eventually(t, soon, w.settled)
	}
	eventually(t, soon, w.relayed)

	var twice, refused []simulator.Dashboard = w.made("twice"), w.made("refused")
	if len(twice) != 2 || len(refused) != 1 || len(w.made("held")) != 1 {
		t.Fatalf("made %v", w.sim.Dashboards())
	}
	for tenant, want := range map[string][]string{
		"twice":   {"dashboard.created " + twice[0].ID + " Dashboard - twice", "dashboard.created " + twice[1].ID + " Dashboard - twice"},
		"refused": {"dashboard.failed API_REFUSED papermap (refused): status 422: DULL: title is too dull", "dashboard.created " + refused[0].ID + " Dashboard - refused"},
		"held":    {"dashboard.held " + w.attempts("held")[0].ID},
	} {
		if got := w.announced(tenant); !slices.Equal(got, want) {
			t.Errorf("%s: announced\n%q, want\n%q", tenant, got, want)
		}
	}
	var rows, sent int
	w.must(w.sql.QueryRow("SELECT COUNT(*), COUNT(sent_at) FROM outbox").Scan(&rows, &sent))
	if rows != 5 || sent != rows {
		t.Errorf("%d rows in the outbox, %d marked as sent, want 5", rows, sent)
	}
	if m := w.mapping("twice"); m.Status != repo.Active || m.Generation != 2 || m.DashboardID != twice[1].ID {
		t.Errorf("mapping %+v", m)
	}
}

func TestARefusedCreateFailsTheTenantUntilItIsPublishedAgain(t *testing.T) {
	onBoth(t, testARefusedCreateFailsTheTenantUntilItIsPublishedAgain)
}

func testARefusedCreateFailsTheTenantUntilItIsPublishedAgain(t *testing.T) {
	w := start(t, options{faults: []string{"tenant=t count=1 status=400"}})
	w.create("t")
	eventually(t, soon, w.settled)
	if m := w.mapping("t"); m.Status != repo.Failed || m.Generation != 1 || w.outcomes("t") != "refused" {
		t.Errorf("mapping %+v, attempts %s", m, w.outcomes("t"))
	}
	letters := w.dead()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters", len(letters))
	}
	h := letters[0].Header
	if letters[0].Subject != "papermap.dead.tenant.created" || h.Get("Papermap-Side-Effect") != "none" || h.Get("Papermap-Error-Code") != "API_REFUSED" ||
		h.Get("Papermap-Attempts") != "1" || !strings.Contains(h.Get("Papermap-Error"), "status 400") {
		t.Errorf("dead letter %s %v", letters[0].Subject, h)
	}
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	eventually(t, soon, w.settled)
	if m := w.mapping("t"); m.Generation != 2 || w.outcomes("t") != "refused created" || len(w.dead()) != 1 {
		t.Errorf("mapping %+v, attempts %s, %d dead letters", m, w.outcomes("t"), len(w.dead()))
	}
}

func TestALostAnswerIsHeldAsConfigured(t *testing.T) {
	onBoth(t, testALostAnswerIsHeldAsConfigured)
}

func testALostAnswerIsHeldAsConfigured(t *testing.T) {
	w := start(t, options{config: func(c *worker.Config) { c.Hold = true }, faults: []string{"on=create count=1 drop=after"}})
	w.create("t")
	eventually(t, soon, w.are(repo.Held, "t"))
	eventually(t, soon, w.settled)
	w.create("t") // and stays so, whatever comes
	eventually(t, soon, w.settled)
	if w.status("t") != repo.Held || w.outcomes("t") != "unknown" || w.creates("t") != 1 || len(w.dead()) != 0 {
		t.Errorf("%s, attempts %s, %d requests, %d dead letters", w.status("t"), w.outcomes("t"), w.creates("t"), len(w.dead()))
	}
	eventually(t, soon, w.relayed)
	if got, want := w.announced("t"), []string{"dashboard.held " + w.attempts("t")[0].ID}; !slices.Equal(got, want) {
		t.Errorf("announced %q, want %q", got, want)
	}
}

func TestALostAnswerIsRecreatedAsConfigured(t *testing.T) {
	onBoth(t, testALostAnswerIsRecreatedAsConfigured)
}

func testALostAnswerIsRecreatedAsConfigured(t *testing.T) {
	w := start(t, options{faults: []string{"on=create count=1 drop=after"}})
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	made := w.made("t")
	if len(made) != 2 || w.outcomes("t") != "unknown created" || w.mapping("t").DashboardID != made[1].ID {
		t.Errorf("%d dashboards, attempts %s, mapping %s", len(made), w.outcomes("t"), w.mapping("t").DashboardID)
	}
	orphans, err := w.db.UncertainAttempts(t.Context())
	if err != nil || len(orphans) != 1 || orphans[0].Mark != made[0].Mark || orphans[0].Title != made[0].Title {
		t.Errorf("possible orphans %+v, %v; the lost one is %+v", orphans, err, made[0])
	}
}

// The event that is published again must fit into what the worker takes, too.
func TestAHeldTenantIsCreatedAgainHoweverLongItsTexts(t *testing.T) {
	onBoth(t, testAHeldTenantIsCreatedAgainHoweverLongItsTexts)
}

func testAHeldTenantIsCreatedAgainHoweverLongItsTexts(t *testing.T) {
	w := start(t, options{config: func(c *worker.Config) { c.Hold = true }, faults: []string{"on=create count=2 drop=after"}})
	long := func(n int) string { return strings.Repeat("🙂", n) }
	titles := map[string]string{"named": "Dashboard - " + long(1000), "titled": long(1000)}
	w.publish(events.TypeTenantCreated, object("tenant_id", "named", "name", long(1000), "description", long(10_000), "created_by", long(255)))
	w.publish(events.TypeTenantCreated, object("tenant_id", "titled", "name", "N", "title", long(1000), "description", long(10_000)))
	eventually(t, soon, w.are(repo.Held, "named", "titled"))
	for tenant, title := range titles {
		_, err := w.db.Recreate(t.Context(), tenant, worker.CreatedAgain)
		w.must(err)
		eventually(t, soon, w.are(repo.Active, tenant))
		if m := w.mapping(tenant); m.Title != title {
			t.Errorf("%s has a title of %d characters, want %d", tenant, utf8.RuneCountInString(m.Title), utf8.RuneCountInString(title))
		}
	}
	if n := len(w.dead()); n > 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestAnAnswerThatComesAfterItsGenerationIsOrphaned(t *testing.T) {
	onBoth(t, testAnAnswerThatComesAfterItsGenerationIsOrphaned)
}

func testAnAnswerThatComesAfterItsGenerationIsOrphaned(t *testing.T) {
	w := start(t, options{})
	began := time.Now().Add(-time.Hour)
	release := w.holdAnswers()
	w.at(began, events.TypeTenantCreated, "t")
	eventually(t, soon, w.sent(1))
	w.intercept(nil)
	w.at(began.Add(time.Minute), events.TypeTenantDeleted, "t")
	eventually(t, soon, w.are(repo.Deleted, "t"))
	w.at(began.Add(2*time.Minute), events.TypeTenantCreated, "t")
	eventually(t, soon, w.are(repo.Active, "t"))
	release()
	eventually(t, soon, w.settled)
	made := w.made("t")
	m := w.mapping("t")
	if len(made) != 2 || m.DashboardID != made[1].ID || m.Status != repo.Active || m.Generation != 2 {
		t.Fatalf("made %+v, mapping %+v", made, m)
	}
	attempts := w.attempts("t")
	if w.outcomes("t") != "orphaned created" || attempts[0].DashboardID != made[0].ID || attempts[0].Mark != made[0].Mark {
		t.Errorf("attempts %+v", attempts)
	}
	eventually(t, soon, w.relayed)
	if got := w.announced("t"); len(got) != 1 || !strings.Contains(got[0], made[1].ID) {
		t.Errorf("announced %q", got)
	}
}

func TestADashboardIsNeverRecordedForTwoTenants(t *testing.T) {
	onBoth(t, testADashboardIsNeverRecordedForTwoTenants)
}

func testADashboardIsNeverRecordedForTwoTenants(t *testing.T) {
	w := start(t, options{config: func(c *worker.Config) { c.Hold = true }})
	w.create("first")
	eventually(t, soon, w.are(repo.Active, "first"))
	id := w.mapping("first").DashboardID
	w.setFaults("tenant=second status=200 body=`{\"success\":true,\"data\":{\"dashboard_id\":\"" + id + "\"}}`")
	w.create("second")
	eventually(t, soon, w.are(repo.Held, "second"))
	if m := w.mapping("second"); m.DashboardID != "" || w.outcomes("second") != "unknown" || w.attempts("second")[0].DashboardID != id {
		t.Errorf("mapping %+v, attempts %+v", m, w.attempts("second"))
	}
	if !strings.Contains(w.logs.String(), "belongs to another tenant") {
		t.Error("the log does not tell of it")
	}
}

// What the API echoes is kept from logs, database, dead letters and events; start looks for it in all of them.
func TestEchoedSecretsAreKeptNowhere(t *testing.T) {
	onBoth(t, testEchoedSecretsAreKeptNowhere)
}

func testEchoedSecretsAreKeptNowhere(t *testing.T) {
	for _, status := range []int{200, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			w := start(t, options{config: func(c *worker.Config) { c.Hold = true }})
			w.create("before")
			eventually(t, soon, w.are(repo.Active, "before"))
			w.token(object("tenant_id", "before"))
			w.intercept(func(rw http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-Workspace-ID") != workspaceA.ID { // a look at the clock: its client cannot know the others' secrets
					w.sim.ServeHTTP(rw, r)
					return
				}
				echo := fmt.Sprintf("signature %s of key %s with sk_canary_api_a or sk_canary_embed_a", r.Header.Get("X-Signature"), r.Header.Get("X-API-Key-ID"))
				rw.Header().Set("Location", "https://papermap.invalid/?q="+strings.ReplaceAll(echo, " ", "+"))
				rw.WriteHeader(status)
				_ = json.NewEncoder(rw).Encode(map[string]any{"success": false, "message": echo, "code": r.Header.Get("X-Signature")})
			})
			w.create("t")
			eventually(t, soon, func() error {
				if w.front.seen(http.MethodPost) < 2 || w.status("t") == repo.Creating {
					return fmt.Errorf("not tried yet")
				}
				return nil
			})
			attempt := w.attempts("t")[0]
			if attempt.Error == "" || attempt.HTTPStatus != status {
				t.Errorf("attempt %+v", attempt)
			}
		})
	}
}

// lockDatabase lets nobody else write until unlock.
func (w *world) lockDatabase() (unlock func()) {
	w.t.Helper()
	conn, err := w.sql.Connx(w.t.Context())
	w.must(err)
	begin := "BEGIN IMMEDIATE"
	if w.shared {
		begin = "BEGIN; LOCK TABLE tenant_dashboards IN EXCLUSIVE MODE"
	}
	_, err = conn.ExecContext(w.t.Context(), begin)
	w.must(err)
	return func() {
		w.t.Helper()
		_, err := conn.ExecContext(w.t.Context(), "ROLLBACK")
		w.must(err)
		w.must(conn.Close())
	}
}

func TestAKnownOutcomeIsNotRepeatedWhenTheDatabaseWasAway(t *testing.T) {
	onBoth(t, testAKnownOutcomeIsNotRepeatedWhenTheDatabaseWasAway)
}

func testAKnownOutcomeIsNotRepeatedWhenTheDatabaseWasAway(t *testing.T) {
	w := start(t, options{faults: []string{"tenant=refused status=422"}})
	release := w.holdAnswers()
	w.create("made", "refused")
	eventually(t, soon, w.sent(2))
	unlock := w.lockDatabase()
	release()
	w.intercept(nil)
	eventually(t, soon, func() error {
		if n := strings.Count(w.logs.String(), "cannot record what came of a create"); n < 2 {
			return fmt.Errorf("%d outcomes could not be written so far", n)
		}
		return nil
	})
	unlock()
	eventually(t, soon, w.are(repo.Active, "made"))
	eventually(t, soon, w.are(repo.Failed, "refused"))
	eventually(t, soon, w.settled)
	for tenant, want := range map[string]string{"made": "created", "refused": "refused"} {
		if n := w.creates(tenant); n != 1 || w.outcomes(tenant) != want {
			t.Errorf("%s: %d requests, attempts %s, want one that is %s", tenant, n, w.outcomes(tenant), want)
		}
	}
}

// One row of provision_attempts is one call, also for an event that names another workspace than the tenant's.
func TestATenantsWorkspaceThatIsPausedOrGoneMakesNoAttempts(t *testing.T) {
	onBoth(t, testATenantsWorkspaceThatIsPausedOrGoneMakesNoAttempts)
}

func testATenantsWorkspaceThatIsPausedOrGoneMakesNoAttempts(t *testing.T) {
	w := start(t, options{noWorker: true})
	claim, err := w.db.Begin(t.Context(), repo.Created{
		TenantID: "gone", WorkspaceID: "ws-gone", Title: "T", EventID: "before", EventTime: time.Now(), Message: "before",
	}, false)
	w.must(err)
	_, err = w.db.Fail(t.Context(), claim, repo.Failure{Result: repo.Result{Outcome: repo.NotAccepted}, Deferral: true})
	w.must(err)
	w.sim.RevokeKey("ak_b")
	w.startWorker()
	w.publish(events.TypeTenantCreated, object("tenant_id", "paused", "name", "N", "workspace_id", "ws-b"))
	eventually(t, soon, w.paused("workspace ws-b is paused"))
	w.create("paused", "gone") // for the default workspace, which is open
	eventually(t, soon, func() error {
		waits, gone := strings.Count(w.logs.String(), "the workspace is paused"), strings.Count(w.logs.String(), "is not configured any more")
		if waits < 6 || gone < 3 {
			return fmt.Errorf("offered %d and %d times", waits, gone)
		}
		return nil
	})
	if n, a := w.creates("paused"), w.attempts("paused"); n != len(a) || w.outcomes("gone") != "refused" {
		t.Errorf("paused: %d requests, attempts %+v; gone: attempts %s", n, a, w.outcomes("gone"))
	}
	w.sim.AddKey("ws-b", workspaceB.Key)
	eventually(t, recovery, w.are(repo.Active, "paused"))
	if m := w.mapping("paused"); m.WorkspaceID != "ws-b" {
		t.Errorf("it was made in %s", m.WorkspaceID)
	}
}

func TestAnEventOutThatIsTooLargeKeepsOnlyItsTenantsBack(t *testing.T) {
	onBoth(t, testAnEventOutThatIsTooLargeKeepsOnlyItsTenantsBack)
}

func testAnEventOutThatIsTooLargeKeepsOnlyItsTenantsBack(t *testing.T) {
	w := start(t, options{})
	const rows = 300 // more than are read at once, behind the first of two tenants
	for i := range rows {
		text := "x"
		if i < 2 {
			text = strings.Repeat("x", 1<<20)
		}
		_, err := w.sql.Exec(w.sql.Rebind("INSERT INTO outbox (event_id, tenant_id, type, data, created_at) VALUES (?, ?, ?, ?, ?)"),
			fmt.Sprint("large-", i), fmt.Sprint("large-", i%2), events.TypeDashboardCreated, `"`+text+`"`, "2026-01-01T00:00:00.000Z")
		w.must(err)
	}
	w.create("a")
	eventually(t, soon, func() error {
		if told := w.announced("a"); len(told) != 1 {
			return fmt.Errorf("announced: %q", told)
		}
		return nil
	})
	said := func() int { return strings.Count(w.logs.String(), "cannot publish events out") }
	eventually(t, soon, func() error { // whoever relays says so when its pass is over
		if said() < 1 {
			return fmt.Errorf("the log does not say that some wait")
		}
		return nil
	})
	if n := said(); n > 4*len(w.workers) {
		t.Errorf("the log says %d times that some wait", n)
	}
	eventually(t, soon, func() error {
		list, err := w.db.Unsent(t.Context(), 2*rows)
		if err == nil && len(list) != rows {
			err = fmt.Errorf("%d events wait, want %d", len(list), rows)
		}
		return err
	})
}
