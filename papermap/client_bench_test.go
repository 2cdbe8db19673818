package papermap

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkCreate creates dashboards at an API that takes 5 ms for each, with so many in flight.
func BenchmarkCreate(b *testing.B) {
	for _, overTLS := range []bool{false, true} {
		for _, inFlight := range []int64{64, 256} {
			b.Run(fmt.Sprintf("tls=%v/inflight=%d", overTLS, inFlight), func(b *testing.B) {
				benchmarkCreate(b, overTLS, inFlight)
			})
		}
	}
}

func benchmarkCreate(b *testing.B, overTLS bool, inFlight int64) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(5 * time.Millisecond)
		_, _ = io.WriteString(w, created)
	}))
	start := srv.Start
	if overTLS {
		start = srv.StartTLS
	}
	start()
	defer srv.Close()
	c := NewClient(Workspace{ID: "ws-1", APIURL: srv.URL}, ClientOptions{})
	defer c.Close()
	if overTLS {
		trust(c, srv)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	var calls sync.WaitGroup
	b.ResetTimer()
	for range inFlight {
		calls.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := c.CreateDashboard(b.Context(), anyDashboard); err != nil {
					b.Error(err)
				}
			}
		})
	}
	calls.Wait()
}
