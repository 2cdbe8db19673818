package worker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestRelayAnnouncesEachStateChangeOnceAndInOrder(t *testing.T) {
	onBoth(t, options{
		Config: func(c *worker.Config) { c.Hold = true },
		Faults: []string{
			"tenant=refused count=1 status=422 body=`{\"message\":\"title is too dull\",\"code\":\"DULL\"}`",
			"tenant=held drop=after",
		},
	}, func(t *testing.T, w *world) {
		began := time.Now().Add(-time.Hour)
		for minute, eventType := range []string{
			events.TypeTenantCreated, events.TypeTenantDeleted, events.TypeTenantCreated,
			events.TypeTenantSuspended, events.TypeTenantResumed,
		} {
			w.PublishAt(began.Add(time.Duration(minute)*time.Minute), eventType, "twice")
			if minute < 2 {
				// the second is a new generation
				w.PublishAt(began.Add(time.Duration(minute)*time.Minute), events.TypeTenantCreated, "refused")
				w.Create("held")
			}
			w.Eventually(w.Handled)
		}
		w.Eventually(w.Relayed)

		twice, refused := w.Dashboards("twice"), w.Dashboards("refused")
		if len(twice) != 2 || len(refused) != 1 || len(w.Dashboards("held")) != 1 {
			t.Fatalf("made %v", w.Simulator.Dashboards())
		}
		for tenant, want := range map[string][]string{
			"twice": {"dashboard.created " + twice[0].ID + " Dashboard - twice",
				"dashboard.created " + twice[1].ID + " Dashboard - twice"},
			"refused": {
				"dashboard.failed API_REFUSED papermap (refused): status 422: DULL: title is too dull",
				"dashboard.created " + refused[0].ID + " Dashboard - refused",
			},
			"held": {"dashboard.held " + w.Attempts("held")[0].ID},
		} {
			if got := w.Announced(tenant); !slices.Equal(got, want) {
				t.Errorf("%s: announced\n%q, want\n%q", tenant, got, want)
			}
		}
		var rows, sent int
		w.Must(w.SQL.QueryRow("SELECT COUNT(*), COUNT(sent_at) FROM outbox").Scan(&rows, &sent))
		if rows != 5 || sent != rows {
			t.Errorf("%d rows in the outbox, %d marked as sent, want 5", rows, sent)
		}
		if m := w.Mapping("twice"); m.Status != repo.Active || m.Generation != 2 ||
			m.DashboardID != twice[1].ID {
			t.Errorf("mapping %+v", m)
		}
	})
}

func TestRelayHoldsBackOnlyTheTenantOfATooLargeEvent(t *testing.T) {
	onBoth(t, options{}, func(t *testing.T, w *world) {
		const rows = 300 // more than are read at once, behind the first of two tenants
		for i := range rows {
			text := "x"
			if i < 2 {
				text = strings.Repeat("x", 1<<20)
			}
			_, err := w.SQL.Exec(w.SQL.Rebind(
				"INSERT INTO outbox (event_id, tenant_id, type, data, created_at) VALUES (?, ?, ?, ?, ?)"),
				fmt.Sprint("large-", i), fmt.Sprint("large-", i%2), events.TypeDashboardCreated, `"`+text+`"`,
				"2026-01-01T00:00:00.000Z")
			w.Must(err)
		}
		w.Create("a")
		w.Eventually(workertest.That("one event out", func() bool { return len(w.Announced("a")) == 1 }))
		logged := func() int { return strings.Count(w.Logs.String(), "cannot publish outgoing events") }
		// the relay logs it at the end of its pass
		w.Eventually(workertest.That("the log says that some wait", func() bool { return logged() >= 1 }))
		if n := logged(); n > 4*len(w.Workers) {
			t.Errorf("the log says %d times that some wait", n)
		}
		w.Eventually(func() error {
			list, err := w.DB.Unsent(t.Context(), 2*rows)
			if err == nil && len(list) != rows {
				err = fmt.Errorf("%d events wait, want %d", len(list), rows)
			}
			return err
		})
	})
}

func TestRelayPublishesWhatAStoppedWorkerLeft(t *testing.T) {
	onBoth(t, options{}, func(t *testing.T, w *world) {
		release := w.API.HoldAnswers()
		w.Create("t")
		w.Eventually(w.Sent(1))
		w.StopNATS()
		release()
		w.Eventually(w.Are(repo.Active, "t")) // committed, and cannot be published
		for _, i := range w.Workers {
			if s := i.State(); s.Ready || s.Consuming != "no" {
				t.Errorf("without NATS the state is %+v", s)
			}
			i.Stop()
		}
		if err := w.Relayed(); err == nil {
			t.Fatal("the event was published without a server")
		}
		w.StartNATS()
		w.StartWorker()
		w.Eventually(w.Relayed)
		workertest.Eventually(t, takeUp, w.Handled)
		if got := w.Announced("t"); len(got) != 1 || len(w.Dashboards("t")) != 1 {
			t.Errorf("announced %q, made %v", got, w.Dashboards("t"))
		}
	})
}

func TestRelayPublishesOnlyWithTheLease(t *testing.T) {
	virtual(t, options{NoWorker: true}, func(t *testing.T, w *world) {
		const other = "another replica"
		if taken, err := w.DB.TakeLease(t.Context(), "outbox", other, 20*time.Second); err != nil || !taken {
			t.Fatalf("took the lease: %t, %v", taken, err)
		}
		w.StartWorker()
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		time.Sleep(10 * time.Second) // many polls of the outbox
		if err := w.Relayed(); err == nil {
			t.Error("published while another replica has the lease")
		}
		w.Must(w.DB.DropLease(t.Context(), "outbox", other))
		workertest.Eventually(t, time.Second, w.Relayed)
	})
}

func TestRelayIsAReplicaWithAConnection(t *testing.T) {
	onPostgres(t, options{Workers: 2}, func(t *testing.T, w *world) {
		w.Create("first")
		w.Eventually(w.Are(repo.Active, "first"))
		w.Eventually(w.Relayed)
		for i, cut := range w.Workers { // one of them is the relay
			cut.Cut()
			tenants := names(fmt.Sprint("cut-", i), 5)
			w.Create(tenants...)
			w.Eventually(w.Are(repo.Active, tenants...))
			workertest.Eventually(t, 5*time.Second, w.Relayed)
			cut.Restore()
			w.Eventually(workertest.That("connected again", func() bool { return cut.State().Ready }))
		}
	})
}

func TestRelayDropsItsLeaseAfterAFailedBatch(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		limit := func(messages int64) {
			t.Helper()
			stream, err := w.JS.Stream(t.Context(), "PAPERMAP")
			w.Must(err)
			config := stream.CachedInfo().Config
			config.MaxMsgs = messages
			_, err = w.JS.UpdateStream(t.Context(), config)
			w.Must(err)
		}
		const trouble, over = "cannot publish outgoing events", "publishing outgoing events again"
		release := w.API.HoldAnswers()
		w.Create("t")
		w.Eventually(w.Sent(1))
		limit(1) // the stream is full
		release()
		w.Eventually(w.Logged(trouble, 1))
		taken, err := w.DB.TakeLease(t.Context(), "outbox", "another replica", 20*time.Second)
		if err != nil || !taken {
			t.Errorf("the lease is not free: %t, %v", taken, err)
		}
		w.Must(w.DB.DropLease(t.Context(), "outbox", "another replica"))
		time.Sleep(time.Minute) // many more tries
		limit(-1)
		workertest.Eventually(t, 10*time.Second, w.Relayed)
		w.Eventually(w.Logged(over, 1))
		for _, text := range []string{trouble, over} {
			if n := strings.Count(w.Logs.String(), text); n != 1 {
				t.Errorf("%q was logged %d times", text, n)
			}
		}
	})
}

// Other processes write events, too, and do not wake it.
func TestRelayPollsOftenWhileItHasItsLease(t *testing.T) {
	virtual(t, options{Unchecked: true}, func(t *testing.T, w *world) {
		write := func(tenant string) {
			t.Helper()
			c, err := w.DB.Begin(t.Context(), repo.Created{
				TenantID: tenant, WorkspaceID: "ws-a", EventID: tenant, EventTime: time.Now(),
				Message: tenant,
			}, false)
			w.Must(err)
			_, err = w.DB.Finish(t.Context(), c, tenant, 200, worker.DashboardCreatedEvent)
			w.Must(err)
		}
		for i := range 6 {
			time.Sleep(time.Minute)
			write(fmt.Sprint("idle-", i))
			workertest.Eventually(t, 4100*time.Millisecond, w.Relayed)
			time.Sleep(time.Duration(14_100+700*i) * time.Millisecond) // others cannot take it yet
			write(fmt.Sprint("led-", i))
			workertest.Eventually(t, 600*time.Millisecond, w.Relayed)
		}
	})
}

func TestRelayDropsItsLeaseOnStop(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.Eventually(w.Relayed)
		take := func() bool {
			taken, err := w.DB.TakeLease(t.Context(), "outbox", "another replica", time.Minute)
			w.Must(err)
			return taken
		}
		if take() {
			t.Fatal("the relay published without the lease")
		}
		w.Workers[0].Stop()
		if !take() {
			t.Error("the lease is not free although its holder has stopped")
		}
	})
}
