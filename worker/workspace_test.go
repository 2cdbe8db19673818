package worker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/workertest"
)

func TestTokensStopWhileTheClockIsWrong(t *testing.T) {
	for name, direction := range map[string]time.Duration{"behind": 1, "ahead": -1} { // of Papermap's
		t.Run(name, func(t *testing.T) {
			var skew atomic.Int64
			now := func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
			o := options{NoWorker: true, Now: now}
			virtual(t, o, func(t *testing.T, w *world) {
				i := w.StartWorker()
				w.Create("t")
				w.Eventually(w.Are(repo.Active, "t"))
				if s := i.State(); !s.Ready || len(s.Reasons) > 0 {
					t.Errorf("with a right clock: %+v", s)
				}
				clockIs := func(off string) func() error {
					return func() error {
						s := i.State()
						reason := slices.IndexFunc(s.Reasons,
							func(r string) bool { return strings.Contains(r, "the host's clock is "+off) })
						if !s.Ready || (reason < 0) != (off == "") || off == "" && len(s.Reasons) > 0 {
							return fmt.Errorf("state %+v, want one that is ready, its clock off by %q", s,
								off)
						}
						return nil
					}
				}
				skew.Store(int64(direction * 90 * time.Second))
				w.Publish(events.TypeUsageSync, `{}`) // any answer of the API tells its time
				w.Eventually(clockIs("1m"))
				w.Token("t")

				skew.Store(int64(direction * 10 * time.Minute))
				w.Publish(events.TypeUsageSync, `{}`)
				w.Eventually(func() error {
					if reply := w.Request("embed-token",
						object("tenant_id", "t")); workertest.Refusal(reply) == "" {
						return errors.New("a token all the same")
					}
					return nil
				})
				for _, endpoint := range []string{"embed-token", "embed-token.t"} {
					if after := w.Refused(endpoint, object("tenant_id", "t"), 503, "UNAVAILABLE"); after < 1 {
						t.Error("no retry_after")
					}
				}
				w.Request("dashboard", object("tenant_id", "t")) // which does not live by the clock

				skew.Store(0) // and no request calls the API: the worker itself asks again
				w.Eventually(func() error {
					if reply := w.Request("embed-token",
						object("tenant_id", "t")); workertest.Refusal(reply) != "" {
						return fmt.Errorf("no token: %s", reply.Data)
					}
					return nil
				})
				w.Eventually(clockIs(""))
				w.Opens(w.Token("t"), "Dashboard - t")
			})
		})
	}
}

// A worker that has nothing to ask of Papermap finds out by itself that its clock is wrong.
func TestWrongClockIsNoticedWithoutRequests(t *testing.T) {
	var skew atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	o := options{NoWorker: true, Now: now}
	virtual(t, o, func(t *testing.T, w *world) {
		i := w.StartWorker()
		w.Create("t")
		w.Eventually(w.Are(repo.Active, "t"))
		i.Stop()
		skew.Store(int64(-10 * time.Minute))
		w.StartWorker()
		w.Eventually(func() error {
			if reply := w.Request("embed-token",
				object("tenant_id", "t")); workertest.Refusal(reply) != "503" {
				return fmt.Errorf("answered %.100s", reply.Data)
			}
			return nil
		})
	})
}
