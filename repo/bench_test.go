package repo

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const goroutines = 64

// provisionAll gives b.N tenants a dashboard, from 64 goroutines. Through turn, if there is one,
// one write goes at a time, so that it has a transaction to itself.
func provisionAll(b *testing.B, turn sync.Locker) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		b.Run(database, func(b *testing.B) {
			db := openTest(b)
			db.now = map[bool]func() time.Time{true: time.Now}[database == "SQLite"]
			write := func(do func()) {
				if turn != nil {
					turn.Lock()
					defer turn.Unlock()
				}
				do()
			}
			var next atomic.Int64
			b.SetParallelism((goroutines + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			used := processorTime()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					tenant := fmt.Sprint("tenant-", next.Add(1))
					var c Claim
					var err error
					write(func() { c, err = db.Begin(ctx, created(tenant, 10, "m"), false) })
					if err == nil {
						write(func() { _, err = db.Finish(ctx, c, dashboard(c), 200, announce(tenant)) })
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tenants/s")
			b.ReportMetric(float64((processorTime()-used).Microseconds())/float64(b.N), "cpu-us/tenant")
		})
	}
}

// processorTime is what this process has used; PostgreSQL's is not in it.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkProvision and BenchmarkOneTransactionPerWrite differ in that writes share transactions
// alone.
func BenchmarkProvision(b *testing.B) { provisionAll(b, nil) }

func BenchmarkOneTransactionPerWrite(b *testing.B) { provisionAll(b, &sync.Mutex{}) }

func BenchmarkMapping(b *testing.B) {
	db := openTest(b)
	const tenants = 1000
	for i := range tenants {
		finish(b, db, claim(b, db, fmt.Sprint("tenant-", i)))
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := db.Mapping(ctx, fmt.Sprint("tenant-", i%tenants)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
