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
