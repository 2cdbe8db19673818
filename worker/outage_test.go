package worker_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// A longer one: go test -run TestAnOutage -v ./worker -args -worker.outage 1m
var outage = flag.Duration("worker.outage", 3*time.Second, "how long the API answers nothing but an error, twice")

// Promise 5, under load: tenants keep coming while the API answers only 401, and then only 500.
func TestAnOutageOfTheAPIKillsNoEventAndRepeatsNoCreate(t *testing.T) {
	onBoth(t, testAnOutageOfTheAPIKillsNoEventAndRepeatsNoCreate)
}

func testAnOutageOfTheAPIKillsNoEventAndRepeatsNoCreate(t *testing.T) {
	w := start(t, options{})
	w.create("before", "suspended")
	eventually(t, soon, w.are(repo.Active, "before", "suspended"))
	for _, status := range []int{401, 500} {
		w.setFaults(fmt.Sprintf("status=%d", status))
		began := time.Now()
		tenants := names(fmt.Sprint("first-", status), 20*len(w.workers)) // so many at once that each gate shuts, before any is tried again
		w.create(tenants...)
		eventually(t, soon, w.paused("workspace ws-a is paused"))
		once := 0 // from which tenant on none was tried twice
		if time.Since(began) > 700*time.Millisecond {
			once = len(tenants) // the machine is busy, and the first to fail were due again
		}
		load := time.NewTicker(50 * time.Millisecond)
		defer load.Stop()
		for end := time.Now().Add(*outage); time.Now().Before(end); <-load.C {
			tenant := fmt.Sprintf("t-%d-%d", status, len(tenants))
			tenants = append(tenants, tenant)
			w.create(tenant)
			switch len(tenants) % 40 {
			case 10:
				w.publish(events.TypeTenantSuspended, object("tenant_id", "suspended"))
				eventually(t, soon, w.are(repo.Suspended, "suspended"))
			case 30:
				w.publish(events.TypeTenantResumed, object("tenant_id", "suspended"))
				eventually(t, soon, w.are(repo.Active, "suspended"))
			}
			w.token(object("tenant_id", "before"))
		}
		for _, tenant := range tenants[once:] {
			if n := w.creates(tenant); n > 1 {
				t.Errorf("%d creates were sent for %s while the API answered only %d", n, tenant, status)
			}
		}
		if n := len(w.dead()); n > 0 {
			t.Errorf("%d dead letters while the API answered only %d", n, status)
		}
		w.setFaults()
		from := time.Now()
		eventually(t, recovery, w.are(repo.Active, tenants...))
		t.Logf("%d: %d tenants waited %v, active %v after the end", status, len(tenants), *outage, time.Since(from).Round(time.Millisecond))
	}
}
