package worker_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"papermap-worker/events"
)

// BenchmarkPoison is how long good tenants wait, from publishing to their dashboard at Papermap,
// alone and with a tenth of poison between them.
func BenchmarkPoison(b *testing.B) {
	const tenants = 3000
	p99 := func(poisoned bool) time.Duration {
		var waits []time.Duration
		pipelineLoad(b, func(publish func(eventType, data string) time.Time) map[string]time.Time {
			published := map[string]time.Time{}
			for i := range tenants {
				if poisoned && i%10 == 0 {
					publish(events.TypeTenantCreated, poisons()[i/10%30].data)
				}
				tenant := fmt.Sprintf("t-%d", i)
				published[tenant] = publish(events.TypeTenantCreated,
					object("tenant_id", tenant, "name", tenant))
				time.Sleep(2 * time.Millisecond) // a steady load, below what the worker can do
			}
			return published
		}, func(wait time.Duration) { waits = append(waits, wait) })
		slices.Sort(waits)
		return waits[len(waits)*99/100]
	}
	var clean, poisoned time.Duration
	for b.Loop() {
		clean += p99(false)
		poisoned += p99(true)
	}
	b.ReportMetric(float64(poisoned)/float64(clean), "p99_of_clean")
	b.ReportMetric(clean.Seconds()*1000/float64(b.N), "clean_ms")
	b.ReportMetric(0, "ns/op")
}
