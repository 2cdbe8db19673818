package worker_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestEventFormsMakeTheSameRow(t *testing.T) {
	onBoth(t, options{}, func(t *testing.T, w *world) {
		data := func(tenant string) string {
			return `{"tenant_id":"` + tenant + `","name":"Müller & Söhne","description":"of \"Köln\"",` +
				`"created_by":"signup","unknown":[1]}`
		}
		when := time.Now().UTC().Format(time.RFC3339Nano)
		w.Publish(events.TypeTenantCreated, data("plain"), "Nats-Msg-Id", "id-plain")
		w.Publish(events.TypeTenantCreated, data("binary"), "CE-SpecVersion", "1.0", "ce-id", "id-binary",
			"ce-source", "/crm", "ce-type", "tenant.created", "ce-time", when)
		w.Publish(events.TypeTenantCreated,
			`{"specversion":"1.0","id":"id-structured","source":"/crm","type":"tenant.created",`+
				`"time":"`+when+`","data":`+data("structured")+`}`)
		tenants := []string{"plain", "binary", "structured"}
		w.Eventually(w.Are(repo.Active, tenants...))

		row := func(tenant string) map[string]any {
			columns := map[string]any{}
			w.Must(w.SQL.QueryRowx(w.SQL.Rebind("SELECT * FROM tenant_dashboards WHERE tenant_id = ?"),
				tenant).MapScan(columns))
			if id := columns["created_event_id"]; id != "id-"+tenant {
				t.Errorf("%s: event id %q", tenant, id)
			}
			for _, own := range []string{"tenant_id", "dashboard_id", "created_event_id", "created_event",
				"dashboard_event", "created_at", "updated_at"} {
				if columns[own] == nil {
					t.Errorf("%s: %s is NULL", tenant, own)
				}
				delete(columns, own)
			}
			return columns
		}
		for _, tenant := range tenants[1:] {
			if diff := cmp.Diff(row("plain"), row(tenant)); diff != "" {
				t.Errorf("rows of plain JSON (-) and %s (+):\n%s", tenant, diff)
			}
		}
		m := w.Mapping("plain")
		if m.Title != "Dashboard - Müller & Söhne" || m.Description != `of "Köln"` ||
			m.CreatedBy != "signup" || m.WorkspaceID != "ws-a" || m.Generation != 1 {
			t.Errorf("mapping %+v", m)
		}
		for _, d := range w.Simulator.Dashboards() {
			if want := w.Attempts(d.TenantID)[0].Mark; d.Title != m.Title ||
				d.Description != m.Description+"\n\n"+want || d.WorkspaceID != "ws-a" {
				t.Errorf("made %+v, want mark %s", d, want)
			}
		}
	})
}

func TestCopiesOfAnEventMakeOneDashboard(t *testing.T) {
	onBoth(t, options{Faults: []string{"on=create delay=200ms"}}, func(t *testing.T, w *world) {
		for len(w.Workers) < 2 {
			w.StartWorker()
		}
		const copies, connections = 100, 8
		var publishers sync.WaitGroup
		for n := range connections {
			publishers.Go(func() {
				nc := w.Connect()
				defer nc.Close()
				js, err := jetstream.New(nc)
				for i := n; i < copies && err == nil; i += connections {
					same := &nats.Msg{Subject: "papermap.events.tenant.created",
						Data: []byte(object("tenant_id", "same-id", "name", "N")), Header: nats.Header{
							"ce-specversion": {"1.0"}, "ce-id": {"one-id"}, "ce-source": {"/crm"},
						}}
					if _, err = js.PublishMsg(t.Context(), same); err == nil {
						_, err = js.Publish(t.Context(), same.Subject,
							[]byte(object("tenant_id", "no-id", "name", "N")))
					}
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		publishers.Wait()
		w.Eventually(w.Handled)
		for _, tenant := range []string{"same-id", "no-id"} {
			if n := w.Creates(tenant); n != 1 || len(w.Dashboards(tenant)) != 1 {
				t.Errorf("%s: %d create requests, %d dashboards, want one", tenant, n,
					len(w.Dashboards(tenant)))
			}
			if s := w.Status(tenant); s != repo.Active || w.Outcomes(tenant) != "created" {
				t.Errorf("%s: status %s, attempts %s", tenant, s, w.Outcomes(tenant))
			}
		}
		w.Eventually(workertest.That("two events dashboard.created", func() bool {
			return len(w.Stored("PAPERMAP", "papermap.events.dashboard.created")) == 2
		}))
		w.NoDeadLetters()
	})
}

// Somebody with psql, a backup or a stuck replica holds the rows of two tenants for longer than
// lock_timeout allows.
func TestLockedRowDelaysItsOwnEventsOnly(t *testing.T) {
	const attempts = 2
	o := options{NoWorker: true, Config: func(c *worker.Config) { c.MaxAttempts = attempts }}
	onPostgres(t, o, func(t *testing.T, w *world) {
		w.Address += "&lock_timeout=100ms"
		w.StartWorker()
		w.Create("active")
		w.Publish(events.TypeTenantResumed, object("tenant_id", "new")) // makes a row
		w.Eventually(w.Are(repo.Active, "active"))
		w.Eventually(w.Are(repo.Pending, "new"))

		lock, err := w.SQL.Beginx()
		w.Must(err)
		defer lock.Rollback()
		_, err = lock.Exec("SELECT 1 FROM tenant_dashboards FOR UPDATE")
		w.Must(err)
		w.Publish(events.TypeTenantSuspended, object("tenant_id", "active"))
		w.Create("new", "free")
		w.Eventually(w.Are(repo.Active, "free"))
		w.Eventually(func() error { // more often than MAX_ATTEMPTS allows, if such failures counted
			if n := strings.Count(w.Logs.String(),
				"canceling statement due to lock timeout"); n < 2*(attempts+1) {
				return fmt.Errorf("%d statements were canceled", n)
			}
			return nil
		})
		w.Must(lock.Rollback())
		w.Eventually(w.Are(repo.Suspended, "active"))
		w.Eventually(w.Are(repo.Active, "new"))
		if n := len(w.DeadLetters()); n > 0 || w.Creates("new") != 1 {
			t.Errorf("%d dead letters, %d creates", n, w.Creates("new"))
		}
	})
}

func TestRefusedCreateFailsTheTenantUntilPublishedAgain(t *testing.T) {
	onBoth(t, options{Faults: []string{"tenant=t count=1 status=400"}}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Handled)
		if m := w.Mapping("t"); m.Status != repo.Failed || m.Generation != 1 || w.Outcomes("t") != "refused" {
			t.Errorf("mapping %+v, attempts %s", m, w.Outcomes("t"))
		}
		letters := w.DeadLetters()
		if len(letters) != 1 {
			t.Fatalf("%d dead letters", len(letters))
		}
		h := letters[0].Header
		if letters[0].Subject != "papermap.dead.tenant.created" || h.Get("Papermap-Side-Effect") != "none" ||
			h.Get("Papermap-Error-Code") != "API_REFUSED" ||
			h.Get("Papermap-Attempts") != "1" || !strings.Contains(h.Get("Papermap-Error"), "status 400") {
			t.Errorf("dead letter %s %v", letters[0].Subject, h)
		}
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.Eventually(w.Handled)
		if m := w.Mapping("t"); m.Generation != 2 || w.Outcomes("t") != "refused created" ||
			len(w.DeadLetters()) != 1 {
			t.Errorf("mapping %+v, attempts %s, %d dead letters", m, w.Outcomes("t"), len(w.DeadLetters()))
		}
	})
}

func TestLostAnswerIsHeld(t *testing.T) {
	o := options{Config: func(c *worker.Config) { c.Hold = true },
		Faults: []string{"on=create count=1 drop=after"}}
	onBoth(t, o, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Held, "t"))
		w.Eventually(w.Handled)
		w.Create("t") // and stays so, whatever comes
		w.Eventually(w.Handled)
		if w.Status("t") != repo.Held || w.Outcomes("t") != "unknown" || w.Creates("t") != 1 ||
			len(w.DeadLetters()) != 0 {
			t.Errorf("%s, attempts %s, %d requests, %d dead letters", w.Status("t"), w.Outcomes("t"),
				w.Creates("t"), len(w.DeadLetters()))
		}
		w.Eventually(w.Relayed)
		if got, want := w.Announced("t"), []string{"dashboard.held " +
			w.Attempts("t")[0].ID}; !slices.Equal(got, want) {
			t.Errorf("announced %q, want %q", got, want)
		}
	})
}

func TestLostAnswerIsRecreated(t *testing.T) {
	o := options{Workers: 2, Faults: []string{"on=create count=1 drop=after"}}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		made := w.Dashboards("t")
		if len(made) != 2 || w.Outcomes("t") != "unknown created" ||
			w.Mapping("t").DashboardID != made[1].ID {
			t.Errorf("%d dashboards, attempts %s, mapping %s", len(made), w.Outcomes("t"),
				w.Mapping("t").DashboardID)
		}
		orphans, err := w.DB.PossibleOrphans(t.Context())
		if err != nil || len(orphans) != 1 || orphans[0].Mark != made[0].Mark ||
			orphans[0].Title != made[0].Title {
			t.Errorf("possible orphans %+v, %v; the lost one is %+v", orphans, err, made[0])
		}
	})
}

// The event that is published again must fit into what the worker takes, too.
func TestHeldTenantIsCreatedAgainHoweverLongItsTexts(t *testing.T) {
	o := options{Config: func(c *worker.Config) { c.Hold = true },
		Faults: []string{"on=create count=2 drop=after"}}
	virtual(t, o, func(t *testing.T, w *world) {
		long := func(n int) string { return strings.Repeat("🙂", n) }
		titles := map[string]string{"named": "Dashboard - " + long(1000), "titled": long(1000)}
		w.Publish(events.TypeTenantCreated,
			object("tenant_id", "named", "name", long(1000), "description", long(10_000), "created_by",
				long(255)))
		w.Publish(events.TypeTenantCreated,
			object("tenant_id", "titled", "name", "N", "title", long(1000), "description", long(10_000)))
		w.Eventually(w.Are(repo.Held, "named", "titled"))
		for tenant, title := range titles {
			_, err := w.DB.Recreate(t.Context(), tenant, worker.TenantCreatedAgain)
			w.Must(err)
			w.Eventually(w.Are(repo.Active, tenant))
			if m := w.Mapping(tenant); m.Title != title {
				t.Errorf("%s has a title of %d characters, want %d", tenant, utf8.RuneCountInString(m.Title),
					utf8.RuneCountInString(title))
			}
		}
		w.NoDeadLetters()
	})
}

func TestLateAnswerOfAnOldGenerationIsOrphaned(t *testing.T) {
	onBoth(t, options{}, func(t *testing.T, w *world) {
		began := time.Now().Add(-time.Hour)
		release := w.API.HoldAnswers()
		w.PublishAt(began, events.TypeTenantCreated, "t")
		w.Eventually(w.Sent(1))
		w.API.Intercept(nil)
		w.PublishAt(began.Add(time.Minute), events.TypeTenantDeleted, "t")
		w.Eventually(w.Are(repo.Deleted, "t"))
		w.PublishAt(began.Add(2*time.Minute), events.TypeTenantCreated, "t")
		w.Eventually(w.Are(repo.Active, "t"))
		release()
		w.Eventually(w.Handled)
		made := w.Dashboards("t")
		m := w.Mapping("t")
		if len(made) != 2 || m.DashboardID != made[1].ID || m.Status != repo.Active || m.Generation != 2 {
			t.Fatalf("made %+v, mapping %+v", made, m)
		}
		attempts := w.Attempts("t")
		if w.Outcomes("t") != "orphaned created" || attempts[0].DashboardID != made[0].ID ||
			attempts[0].Mark != made[0].Mark {
			t.Errorf("attempts %+v", attempts)
		}
		w.Eventually(w.Relayed)
		if got := w.Announced("t"); len(got) != 1 || !strings.Contains(got[0], made[1].ID) {
			t.Errorf("announced %q", got)
		}
	})
}

func TestDashboardIsNeverRecordedForTwoTenants(t *testing.T) {
	onBoth(t, options{Config: func(c *worker.Config) { c.Hold = true }}, func(t *testing.T, w *world) {
		w.Create("first")
		w.Eventually(w.Are(repo.Active, "first"))
		id := w.Mapping("first").DashboardID
		w.SetFaults("tenant=second status=200 body=`{\"success\":true,\"data\":{\"dashboard_id\":\"" + id +
			"\"}}`")
		w.Create("second")
		w.Eventually(w.Are(repo.Held, "second"))
		if m := w.Mapping("second"); m.DashboardID != "" || w.Outcomes("second") != "unknown" ||
			w.Attempts("second")[0].DashboardID != id {
			t.Errorf("mapping %+v, attempts %+v", m, w.Attempts("second"))
		}
		if !strings.Contains(w.Logs.String(), "another tenant's dashboard") {
			t.Error("the log does not tell of it")
		}
	})
}

// What the API echoes is kept from logs, database, dead letters and events; start looks for it in
// all of them.
func TestEchoedSecretsAreStoredNowhere(t *testing.T) {
	for _, status := range []int{200, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503} {
		run := virtual
		if status == 422 {
			run = onBoth // it has a dead letter
		}
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			run(t, options{Config: func(c *worker.Config) { c.Hold = true }}, func(t *testing.T, w *world) {
				w.Create("before")
				w.Eventually(w.Are(repo.Active, "before"))
				w.Token("before")
				w.API.Intercept(func(rw http.ResponseWriter, r *http.Request) {
					// a look at the clock: its client cannot know the others' secrets
					if r.Header.Get("X-Workspace-ID") != workertest.WorkspaceA.ID {
						w.Simulator.ServeHTTP(rw, r)
						return
					}
					echo := fmt.Sprintf("signature %s of key %s with sk_canary_api_a or sk_canary_embed_a",
						r.Header.Get("X-Signature"), r.Header.Get("X-API-Key-ID"))
					rw.Header().Set("Location", "https://papermap.invalid/?q="+strings.ReplaceAll(echo, " ",
						"+"))
					rw.WriteHeader(status)
					_ = json.MarshalWrite(rw, map[string]any{"success": false, "message": echo,
						"code": r.Header.Get("X-Signature")})
				})
				w.Create("t")
				w.Eventually(func() error {
					if w.API.Requests(http.MethodPost) < 2 || w.Status("t") == repo.Creating {
						return fmt.Errorf("not tried yet")
					}
					return nil
				})
				attempt := w.Attempts("t")[0]
				if attempt.Error == "" || attempt.HTTPStatus != status {
					t.Errorf("attempt %+v", attempt)
				}
			})
		})
	}
}

// blockWrites keeps the workers from writing mappings until unblock: on SQLite each try fails, on
// PostgreSQL it waits for a lock.
func (w *world) blockWrites() (unblock func()) {
	w.t.Helper()
	conn, err := w.SQL.Connx(w.t.Context())
	w.Must(err)
	begin := "CREATE TRIGGER away BEFORE UPDATE ON tenant_dashboards BEGIN SELECT RAISE(ABORT, 'away'); END"
	end := "DROP TRIGGER away"
	if w.Shared() {
		begin, end = "BEGIN; LOCK TABLE tenant_dashboards IN EXCLUSIVE MODE", "ROLLBACK"
	}
	_, err = conn.ExecContext(w.t.Context(), begin)
	w.Must(err)
	return func() {
		w.t.Helper()
		_, err := conn.ExecContext(w.t.Context(), end)
		w.Must(err)
		w.Must(conn.Close())
	}
}

func TestKnownOutcomeIsNotRepeatedAfterTheDatabaseWasAway(t *testing.T) {
	o := options{NoWorker: true, Faults: []string{"tenant=refused status=422"}}
	onBoth(t, o, func(t *testing.T, w *world) {
		if w.Shared() {
			w.Address += "&lock_timeout=100ms"
		}
		w.StartWorker()
		release := w.API.HoldAnswers()
		w.Create("made", "refused")
		w.Eventually(w.Sent(2))
		unblock := w.blockWrites()
		release()
		w.API.Intercept(nil)
		w.Eventually(w.Logged("cannot record the outcome of a create", 2))
		unblock()
		w.Eventually(w.Are(repo.Active, "made"))
		w.Eventually(w.Are(repo.Failed, "refused"))
		w.Eventually(w.Handled)
		for tenant, want := range map[string]string{"made": "created", "refused": "refused"} {
			if n := w.Creates(tenant); n != 1 || w.Outcomes(tenant) != want {
				t.Errorf("%s: %d requests, attempts %s, want one that is %s", tenant, n, w.Outcomes(tenant),
					want)
			}
		}
	})
}

// One row of provision_attempts is one call, also for an event that names another workspace than
// the tenant's.
func TestPausedOrMissingWorkspaceMakesNoAttempts(t *testing.T) {
	onBoth(t, options{NoWorker: true}, func(t *testing.T, w *world) {
		claim, err := w.DB.Begin(t.Context(), repo.Created{
			TenantID: "gone", WorkspaceID: "ws-gone", Title: "T", EventID: "before", EventTime: time.Now(),
			Message: "before",
		}, false)
		w.Must(err)
		_, err = w.DB.Fail(t.Context(), claim,
			repo.Failure{Result: repo.Result{Outcome: repo.OutcomeRefused}, Deferral: true}, nil)
		w.Must(err)
		w.Simulator.RevokeKey("ak_b")
		w.StartWorker()
		w.Publish(events.TypeTenantCreated,
			object("tenant_id", "paused", "name", "N", "workspace_id", "ws-b"))
		w.Eventually(w.paused("workspace ws-b is paused"))
		w.Create("paused", "gone") // for the default workspace, which is open
		w.Eventually(func() error {
			if waits := strings.Count(w.Logs.String(), "the workspace is paused"); waits < 6 {
				return fmt.Errorf("offered %d times", waits)
			}
			return nil
		})
		if dead := w.DeadLetters(); len(dead) != 1 ||
			dead[0].Header.Get("Papermap-Error-Code") != "UNKNOWN_WORKSPACE" {
			t.Errorf("dead letters %+v", dead)
		}
		_, report, err := w.Workers[0].Report(t.Context(), "gone")
		w.Must(err)
		if want := "workspace ws-gone, which is not configured"; !strings.Contains(report.Summary, want) ||
			!strings.Contains(strings.Join(report.Next, " "), "dead replay 1") {
			t.Errorf("the report says %q, %q", report.Summary, report.Next)
		}
		if n, a := w.Creates("paused"), w.Attempts("paused"); n != len(a) || w.Outcomes("gone") != "refused" {
			t.Errorf("paused: %d requests, attempts %+v; gone: attempts %s", n, a, w.Outcomes("gone"))
		}
		w.Simulator.AddKey("ws-b", workertest.WorkspaceB.Key)
		workertest.Eventually(t, recovery, w.Are(repo.Active, "paused"))
		if m := w.Mapping("paused"); m.WorkspaceID != "ws-b" {
			t.Errorf("it was made in %s", m.WorkspaceID)
		}
	})
}
