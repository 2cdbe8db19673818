package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/shopspring/decimal"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker/workertest"
)

// The large run: go test ./worker/e2e -run TestThresholdsAreAnnouncedOnce -v -timeout 60m -args
// -budget.tenants 100000 -budget.kills 20
var (
	budgetTenants = flag.Int("budget.tenants", 300, "tenants of the budget test")
	budgetKills   = flag.Int("budget.kills", 2, "kills of workers in the 20 syncs of the budget test")
)

// reached is what usage.threshold announces once.
type reached struct {
	tenant  string
	percent int
}

// Two workers sync totals that rise, fall and are corrected, and are killed meanwhile. Each threshold
// that a total has reached is announced once.
func TestThresholdsAreAnnouncedOnceThroughKills(t *testing.T) {
	const syncs, own = 20, 10 // each tenth tenant has a budget of its own
	t.Parallel()
	s := newSystem(t)
	s.usePostgres(t)
	js := s.jetStream(t)
	s.env = append(s.env, "USAGE_SYNC_SCHEDULE=off")
	run(t, s.env, "migrate")
	run(t, s.env, "usage", "budget", "set", "*", "--credits", "1000", "--thresholds", "50,80,100")
	for i := 0; i < 10*own; i += own {
		run(t, s.env, "usage", "budget", "set", budgetTenant(i), "--credits", "400", "--thresholds", "90")
	}
	workers := []*process{start(t, s.env, "serve"), start(t, s.env, "serve")}
	for _, w := range workers {
		w.address(t)
	}
	db := openRepo(t, s.database)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	month := time.Now().UTC().Format("2006-01")
	totals := make([]int64, *budgetTenants)
	want := map[reached]bool{}
	for n := range syncs {
		rows := make([]simulator.UsageRow, len(totals))
		for i := range totals {
			totals[i] = max(0, totals[i]+random.Int64N(160)-40)
			rows[i] = simulator.UsageRow{TenantID: budgetTenant(i), Period: month,
				Credits: fmt.Sprint(totals[i]), Requests: int64(n)}
			budget, thresholds := int64(1000), []int{50, 80, 100}
			if i%own == 0 && i < 10*own {
				budget, thresholds = 400, []int{90}
			}
			for _, percent := range thresholds {
				if totals[i]*100 >= budget*int64(percent) {
					want[reached{budgetTenant(i), percent}] = true
				}
			}
		}
		s.sim.SetUsage(testWorkspace.ID, simulator.Usage{Rows: rows})
		id := fmt.Sprint("sync-", n)
		run(t, s.env, "publish", "usage-sync", "--from-period", month, "--to-period", month, "--event-id", id)
		if victim := n * *budgetKills / syncs; victim < (n+1)**budgetKills/syncs {
			span := 100*time.Millisecond + time.Duration(len(totals))*50*time.Microsecond // about as long
			time.Sleep(time.Duration(random.Int64N(int64(span))))                         // anywhere in it
			victim %= len(workers)
			workers[victim].kill()
			workers[victim] = start(t, s.env, "serve")
		}
		workertest.Eventually(t, 5*time.Minute, func() error {
			list, err := db.Runs(t.Context(), id, 1)
			if err == nil && (len(list) == 0 || list[0].Status != repo.RunDone) {
				err = fmt.Errorf("%s is not done: %+v", id, list)
			}
			return err
		})
	}
	eventually(t, func() error {
		unsent, err := db.Unsent(t.Context(), 1)
		if err == nil && len(unsent) > 0 {
			err = fmt.Errorf("event %s waits", unsent[0].EventID)
		}
		return err
	})
	got := map[reached]string{} // the event
	for _, e := range thresholdEvents(t, js) {
		key := reached{e.Data.TenantID, e.Data.Percent}
		credits, budget := decimal.RequireFromString(e.Data.Credits), decimal.RequireFromString(e.Data.Budget)
		switch {
		case got[key] != "" && got[key] != e.ID:
			t.Errorf("%+v was announced twice", key)
		case !want[key]:
			t.Errorf("%+v was announced, and not reached", key)
		case e.Data.Period != month || e.Data.WorkspaceID != testWorkspace.ID ||
			credits.Mul(decimal.NewFromInt(100)).LessThan(budget.Mul(decimal.NewFromInt(int64(key.percent)))):
			t.Errorf("%+v was announced as %+v", key, e.Data)
		}
		got[key] = e.ID
	}
	for key := range want {
		if got[key] == "" {
			t.Errorf("%+v was reached, and not announced", key)
		}
	}
	t.Logf("%d thresholds of %d tenants", len(want), *budgetTenants)
	for _, w := range workers {
		w.stop(t)
	}
}

func budgetTenant(i int) string { return fmt.Sprintf("org-%06d", i) }

// thresholdEvent is a usage.threshold as consumers get it.
type thresholdEvent struct {
	ID   string                `json:"id"`
	Data events.UsageThreshold `json:"data"`
}

// thresholdEvents reads all usage.threshold of the stream.
func thresholdEvents(t *testing.T, js jetstream.JetStream) (list []thresholdEvent) {
	t.Helper()
	stream, err := js.Stream(t.Context(), "PAPERMAP")
	must(t, err)
	c, err := stream.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"papermap.events.usage.threshold"}})
	must(t, err)
	info, err := c.Info(t.Context())
	must(t, err)
	for range info.NumPending {
		msg, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		must(t, err)
		var e thresholdEvent
		must(t, json.Unmarshal(msg.Data(), &e))
		list = append(list, e)
	}
	return list
}
