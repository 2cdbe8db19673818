package worker_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestTokenCountsAreWrittenByTenantAndMonth(t *testing.T) {
	var now clock
	now.set(time.Date(2026, 3, 31, 23, 59, 59, 0, time.UTC)) // in Kiritimati it is April
	virtual(t, options{Config: func(c *worker.Config) { c.Clock = now.now }}, func(t *testing.T, w *world) {
		w.Create("a", "b")
		w.Eventually(w.Are(repo.Active, "a", "b"))
		for range 3 {
			w.TokenFor(`{"tenant_id":"a"}`)
		}
		w.TokenFor(`{"tenant_id":"b"}`)
		w.Refused("embed-token", `{"tenant_id":"nobody"}`, 404, "TENANT_NOT_FOUND")
		w.Request("dashboard", `{"tenant_id":"b"}`)
		counts := func() (list []string) {
			w.Must(w.SQL.Select(&list, `
				SELECT workspace_id || ' ' || tenant_id || ' ' || period || ' ' || tokens
				FROM token_counts ORDER BY 1`))
			return list
		}
		first := []string{"ws-a a 2026-03 3", "ws-a b 2026-03 1"}
		// every few seconds
		w.Eventually(workertest.That("counts of the first month",
			func() bool { return slices.Equal(counts(), first) }))
		now.set(time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC))
		w.TokenFor(`{"tenant_id":"a"}`)
		w.Workers[0].Stop()
		second := []string{"ws-a a 2026-03 3", "ws-a a 2026-04 1", "ws-a b 2026-03 1"}
		if got := counts(); !slices.Equal(got, second) {
			t.Errorf("counts after the stop %q, want %q", got, second)
		}

		w.StartWorker()
		w.TokenFor(`{"tenant_id":"a"}`)
		w.Workers[1].Stop()
		if got := counts(); got[1] != "ws-a a 2026-04 2" {
			t.Errorf("counts after another stop %q", got)
		}
	})
}

// A log that is slow to take lines costs lines, not tokens.
func TestBlockedLogDelaysNoTokens(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		w.Token("t")
		release := w.Logs.Block()
		defer release()
		for n := range 3000 { // more than are kept to be written
			reply, err := w.Conn.Request("papermap.rpc.embed-token", []byte(object("tenant_id", "t")),
				5*time.Second)
			if err != nil || !strings.HasPrefix(string(reply.Data), `{"token":"`) {
				t.Fatalf("token no. %d while the log is blocked: %v, %+v", n+1, err, reply)
			}
		}
	})
}

// Whoever asks for tokens of a tenant that was suspended or deleted is logged, at most 10 lines at once.
func TestTokensAskedForAfterSuspensionAreLogged(t *testing.T) {
	virtual(t, options{}, func(t *testing.T, w *world) {
		w.Create("a", "b")
		w.Eventually(w.Are(repo.Active, "a", "b"))
		w.Publish("tenant.suspended", `{"tenant_id":"a"}`)
		w.Publish("tenant.deleted", `{"tenant_id":"b"}`)
		w.Eventually(w.Are(repo.Suspended, "a"))
		w.Eventually(w.Are(repo.Deleted, "b"))
		for range 30 {
			w.Refused("embed-token", `{"tenant_id":"a"}`, 403, "TENANT_SUSPENDED")
		}
		time.Sleep(time.Minute)
		w.Refused("embed-token", `{"tenant_id":"b"}`, 410, "TENANT_DELETED")
		w.Eventually(workertest.That("the lines", func() bool {
			text := w.Logs.String()
			return strings.Count(text, `"tenant_id":"a","code":"TENANT_SUSPENDED","actor":"nats"`) == 10 &&
				strings.Count(text, `"tenant_id":"b","code":"TENANT_DELETED","actor":"nats"`) == 1
		}))
	})
}
