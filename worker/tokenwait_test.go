package worker_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/worker/workertest"
)

// While what answers hangs, many more requests come than there are workers: each is refused when its
// own time is up, and requests of another kind are answered at once.
func TestRequestsAreRefusedInTimeWhileAnswersHang(t *testing.T) {
	virtual(t, options{NoWorker: true}, func(t *testing.T, w *world) {
		o := w.Bus
		o.InProcess = w.World
		bus, err := events.Connect(o, slog.New(slog.DiscardHandler))
		w.Must(err)
		defer bus.Close(t.Context())
		const limit = 1300 * time.Millisecond
		hangs := func(ctx context.Context, _ events.Request) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		answers := func(context.Context, events.Request) ([]byte, error) { return []byte("{}"), nil }
		service, err := bus.Serve("1.0.0", nil,
			events.Endpoint{Name: "embed-token", Handle: hangs, Timeout: limit},
			events.Endpoint{Name: "dashboard", Handle: answers})
		w.Must(err)
		defer service.Stop()
		time.Sleep(time.Second) // the server gets its subscriptions
		var callers sync.WaitGroup
		ask := func(endpoint, status string, within time.Duration) {
			callers.Go(func() {
				began := time.Now()
				reply, err := w.Conn.Request("papermap.rpc."+endpoint, nil, 10*time.Second)
				if err != nil || workertest.Refusal(reply) != status {
					t.Errorf("%s: %v, %v", endpoint, reply, err)
				}
				if took := time.Since(began); took > within {
					t.Errorf("%s: answered after %v", endpoint, took)
				}
			})
		}
		for range 10 {
			for range 100 {
				ask("embed-token", "503", limit)
			}
			ask("dashboard", "", 0)
			time.Sleep(limit / 3)
		}
		callers.Wait()
	})
}

func TestTenantsOwnSubjectAnswersNoOtherTenantsInbox(t *testing.T) {
	virtual(t, options{NoWorker: true}, func(t *testing.T, w *world) {
		o := w.Bus
		o.InProcess = w.World
		bus, err := events.Connect(o, slog.New(slog.DiscardHandler))
		w.Must(err)
		defer bus.Close(t.Context())
		answers := func(context.Context, events.Request) ([]byte, error) { return []byte("{}"), nil }
		service, err := bus.Serve("1.0.0", []string{"_INBOX_tenant.{tenant}", "_INBOX_backend"},
			events.Endpoint{Name: "embed-token", Handle: answers},
			events.Endpoint{Name: "embed-token", PerToken: true, Handle: answers})
		w.Must(err)
		defer service.Stop()
		time.Sleep(time.Second) // the server gets its subscriptions
		for reply, want := range map[string]int{
			"_INBOX_tenant.org-1.x": 1, "_INBOX_tenant.org-1.x.y": 1, "_INBOX.x": 1,
			"_INBOX_tenant.org-2.x": 0, "_INBOX_tenant.org-1": 0, "_INBOX_tenant.org-12.x": 0,
			"_INBOX_tenant.x": 0, "_INBOX_other.org-1.x": 0,
		} {
			sub, err := w.Conn.SubscribeSync(reply)
			w.Must(err)
			w.Must(w.Conn.PublishRequest("papermap.rpc.embed-token.org-1", reply, nil))
			time.Sleep(time.Second)
			if n, _, _ := sub.Pending(); n != want {
				t.Errorf("%s got %d answers, want %d", reply, n, want)
			}
		}
		// A backend may ask for any tenant, on either subject.
		for _, subject := range []string{"papermap.rpc.embed-token", "papermap.rpc.embed-token.org-1"} {
			sub, err := w.Conn.SubscribeSync("_INBOX_backend.x")
			w.Must(err)
			w.Must(w.Conn.PublishRequest(subject, "_INBOX_backend.x", nil))
			if _, err := sub.NextMsg(time.Second); err != nil {
				t.Error(subject, err)
			}
			w.Must(sub.Unsubscribe())
		}
	})
}
