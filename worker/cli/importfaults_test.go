package cli

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker/workertest"
)

// importFaults are faults of the API while a file is imported. None of them refuses a create for good.
var importFaults = [][]string{
	{"on=create status=503 rate=0.5"}, {"on=create status=402 rate=0.5"},
	{"on=create status=429 retry-after=45 rate=0.3"}, {"on=create drop=after rate=0.3"},
	{"on=create drop=before rate=0.5"}, {"status=401"},
}

// slowCreates leave time for something to fail.
const slowCreates = "on=create delay=3s"

// An import is repeated until it ends by itself, whatever fails meanwhile. Then each tenant is active, and
// another import has nothing to do.
func TestImportEndsWhateverFails(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			workertest.Virtual(t, workertest.Options{}, func(t *testing.T, w *workertest.World) {
				importUnderFaults(t, w, seed)
			})
		})
	}
}

func importUnderFaults(t *testing.T, w *workertest.World, seed uint64) {
	const tenants = 120
	var rows []string
	for n := range tenants {
		rows = append(rows, fmt.Sprintf("t%03d,T,%s", n, []string{"", fmt.Sprintf("d-%03d", n)}[n%2]))
	}
	w.SetFaults(slowCreates)
	var newest atomic.Pointer[workertest.Instance]
	newest.Store(w.Workers[0])
	done := make(chan struct{})
	var failing sync.WaitGroup
	failing.Go(func() { failNow(w, rand.New(rand.NewPCG(seed, 1)), &newest, done) })
	stop := sync.OnceFunc(func() {
		close(done)
		failing.Wait()
	})
	defer stop()
	random, imports := rand.New(rand.NewPCG(seed, 2)), 0
	for ended := false; !ended; imports++ {
		time.Sleep(5 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+random.IntN(100))*time.Second)
		got, err := importOnce(ctx, w, &newest, rows)
		cancel()
		ended = err == nil
		if ended && len(got) != tenants {
			t.Errorf("%d results of %d rows", len(got), tenants)
		}
		for _, r := range got {
			if strings.Contains(r, ":") {
				t.Errorf("result %q", r)
			}
		}
		if imports > 200 {
			t.Fatalf("the import does not end: %d results, %v", len(got), err)
		}
	}
	stop()
	w.SetFaults()
	got, err := importOnce(t.Context(), w, &newest, rows)
	if err != nil || len(got) != tenants {
		t.Errorf("the last import has %d results, %v", len(got), err)
	}
	for _, r := range got {
		if !strings.HasSuffix(r, " unchanged") {
			t.Errorf("result of the last import: %q", r)
		}
	}
	for n := range tenants {
		tenant := fmt.Sprintf("t%03d", n)
		m := w.Mapping(tenant)
		if m.Status != repo.Active || n%2 == 1 && (w.Creates(tenant) > 0 || m.DashboardID != rows[n][7:]) {
			t.Errorf("tenant %s is %s with dashboard %q after %d creates", tenant, m.Status, m.DashboardID,
				w.Creates(tenant))
		}
	}
	t.Logf("%d imports", imports)
}

// importOnce imports the rows through a connection of its own, as a process would.
func importOnce(
	ctx context.Context, w *workertest.World, newest *atomic.Pointer[workertest.Instance],
	rows []string,
) ([]string, error) {
	i := &importer{w: w, inFlight: 4, newest: newest.Load}
	var bus *events.Bus
	i.connect = func() (*events.Bus, error) {
		o := w.Bus
		o.InProcess = w
		var err error
		bus, err = events.Connect(o, slog.New(slog.DiscardHandler))
		return bus, err
	}
	defer func() {
		if bus != nil {
			bus.Close(context.Background())
		}
	}()
	return i.rows(ctx, rows...)
}

// failNow makes one thing after the other go wrong, until done.
func failNow(
	w *workertest.World, random *rand.Rand, newest *atomic.Pointer[workertest.Instance], done <-chan struct{},
) {
	pause := func(most time.Duration) bool {
		select {
		case <-done:
			return false
		case <-time.After(time.Duration(random.Int64N(int64(most)))):
			return true
		}
	}
	for pause(20 * time.Second) {
		switch random.IntN(4) {
		case 0:
			w.StopNATS()
			pause(90 * time.Second)
			w.StartNATS()
		case 1:
			newest.Load().Kill()
			pause(time.Minute)
			newest.Store(w.StartWorker())
		default:
			w.SetFaults(append(importFaults[random.IntN(len(importFaults))], slowCreates)...)
		}
	}
}
