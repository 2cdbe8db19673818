package proof_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/shopspring/decimal"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/failpoint"
	"papermap-worker/worker/proof"
	"papermap-worker/worker/workertest"
)

// publish publishes in bursts, with quiet hours between them, until ctx ends.
func (s *simulation) publish(ctx context.Context) {
	random, l := s.random("pace"), s.load
	for sleep(ctx, time.Duration(random.ExpFloat64()*float64(pace(30*time.Minute)))) {
		n, pause := 1+random.IntN(8), 20*time.Second
		if random.IntN(12) == 0 { // an import
			n, pause = 40, 20*time.Millisecond
		}
		for range n {
			l.next()
			i := random.IntN(min(len(l.queue), 12))
			e := l.queue[i]
			l.queue = slices.Delete(l.queue, i, i+1)
			if err := l.publish(ctx, e); err != nil {
				s.t.Error(err)
				return
			}
			sleep(ctx, time.Duration(random.Int64N(int64(pause))))
		}
	}
	for _, e := range l.queue {
		if err := l.publish(context.Background(), e); err != nil {
			s.t.Error(err)
		}
	}
}

// askTokens requests tokens until ctx ends. Before each request it looks whether the tenant is
// suspended or deleted; if so, it asks again when that must be in force everywhere.
func (s *simulation) askTokens(ctx context.Context, random *rand.Rand) {
	for sleep(ctx, time.Duration(random.ExpFloat64()*float64(pace(5*time.Minute)))) {
		s.load.mu.Lock()
		id := "unknown"
		if n := len(s.load.tenants); n > 0 {
			id = s.load.tenants[random.IntN(n)].id
		}
		s.load.mu.Unlock()
		for range 2 {
			if m, err := s.DB.Mapping(ctx, id); err == nil {
				if c, ok := proof.Seen(m, time.Now()); ok {
					s.history.Commits = append(s.history.Commits, c)
				}
			}
			request, cancel := context.WithTimeout(ctx, 3*time.Second)
			if t, err := proof.RequestToken(request, s.system.nc, subjects, id); err == nil {
				s.history.Tokens = append(s.history.Tokens, t)
			}
			cancel()
			sleep(ctx, 5500*time.Millisecond)
		}
	}
}

// create creates tenants with the call of REST and the console, until ctx ends. Each is created
// once, so that its answer must be right forever.
func (s *simulation) create(ctx context.Context, random *rand.Rand) {
	for n := 0; sleep(ctx, time.Duration(random.ExpFloat64()*float64(pace(40*time.Minute)))); n++ {
		_, i := s.running(random)
		if i == nil {
			continue
		}
		fields := map[string]string{"tenant_id": fmt.Sprint("rest-", n), "name": fmt.Sprint("Number ", n)}
		data, err := json.Marshal(fields, json.Deterministic(true))
		if err != nil {
			s.t.Error(err)
			return
		}
		s.load.gate.Lock() // no stream is archived in between
		s.load.mu.Lock()
		s.load.published = append(s.load.published, proof.Published{
			Type: events.TypeTenantCreated, Tenant: fields["tenant_id"], Data: data,
		})
		s.load.mu.Unlock()
		answering, cancel := context.WithTimeout(ctx, 5*time.Second)
		d, err := i.Create(answering, fields)
		cancel()
		s.load.gate.Unlock()
		switch {
		case err == nil && d.DashboardID != nil:
			s.created[d.TenantID] = *d.DashboardID
			s.count.add("created by a call", 1)
		case err == nil:
			s.count.add("created by a call, not active within 5 s", 1)
		default:
			s.count.add("calls that failed", 1)
		}
	}
}

// checkCreated compares the answers to create with what is recorded.
func (s *simulation) checkCreated(h proof.History) {
	for _, m := range h.Mappings {
		want, ok := s.created[m.TenantID]
		if ok && (m.DashboardID != want || m.Status != repo.Active) {
			s.t.Errorf("violation: %s was created with dashboard %s, and is %s with %s", m.TenantID, want,
				m.Status, m.DashboardID)
		}
		delete(s.created, m.TenantID)
	}
	for id := range s.created {
		s.t.Errorf("violation: %s was created, and is unknown", id)
	}
}

// growing are tenants whose usage of the current month grows.
const growing = 8

// setBudgets sets the budget of every tenant, of some their own, and the usage of the workspaces.
func (s *simulation) setBudgets() {
	for _, ws := range s.system.workspaces {
		s.Simulator.SetUsage(ws.ID, simulator.Usage{Tenants: 40, Seed: s.seed})
	}
	month := time.Now().Format("2006-01")
	rows, err := s.Simulator.UsageTotals(s.system.workspaces[0].ID, month, month)
	s.Must(err)
	slices.SortFunc(rows, func(a, b papermap.UsageRow) int {
		return decimal.RequireFromString(a.Credits).Cmp(decimal.RequireFromString(b.Credits))
	})
	middle := rows[len(rows)/2].Credits // about half of them reach it
	s.budgets = map[string]repo.Budget{}
	set := func(tenant, credits string, percents ...int) {
		b, err := repo.NewBudget(tenant, credits, percents)
		s.Must(err)
		s.Must(worker.SetBudget(s.t.Context(), s.DB, b))
		s.budgets[tenant] = b
	}
	set(repo.EveryTenant, middle, 50, 100)
	set(rows[0].TenantID, "0", 100)
	set(rows[1].TenantID, "0.01", 80, 100, 200)
	for i := range growing {
		set(fmt.Sprint("growing-", i), "1000", 10, 50, 80, 100, 120)
	}
}

// grow lets usage grow until some hours before the end.
func (s *simulation) grow(ctx context.Context, random *rand.Rand) {
	totals := map[[2]string]int{}
	for sleep(ctx, pace(2*time.Hour)) && time.Until(s.end) > 3*time.Hour {
		month := time.Now().UTC().Format("2006-01")
		for i := range growing {
			totals[[2]string{fmt.Sprint("growing-", i), month}] += random.IntN(20)
		}
		var rows []simulator.UsageRow
		for k, n := range totals {
			rows = append(rows, simulator.UsageRow{
				TenantID: k[0], Period: k[1], Credits: fmt.Sprint(n), Requests: int64(n),
			})
		}
		for _, ws := range s.system.workspaces {
			s.Simulator.ChangeUsage(ws.ID, func(u *simulator.Usage) { u.Rows = rows })
		}
	}
}

// checkBudgets checks that each threshold that recorded usage has reached was announced once, and
// no other. Usage only grows here, and budgets stay as they are.
func (s *simulation) checkBudgets(h proof.History, begin time.Time) {
	type key struct {
		Workspace string `json:"workspace_id"`
		Tenant    string `json:"tenant_id"`
		Period    string `json:"period"`
		Percent   int    `json:"percent"`
	}
	announced := map[key]map[string]bool{} // by event id: a copy has the same
	for _, o := range h.Out {
		if o.Type != events.TypeUsageThreshold {
			continue
		}
		var k key
		s.Must(json.Unmarshal(o.Data, &k))
		if announced[k] == nil {
			announced[k] = map[string]bool{}
		}
		announced[k][o.ID] = true
	}
	s.count.add("thresholds announced", len(announced))
	first := begin.AddDate(0, 0, -begin.Day()).Format("2006-01") // the month before
	for _, u := range h.Usage {
		b, own := s.budgets[u.TenantID]
		if !own {
			b = s.budgets[repo.EveryTenant]
		}
		for _, percent := range b.Thresholds {
			k := key{u.WorkspaceID, u.TenantID, u.Period, percent}
			amount := decimal.RequireFromString(b.Credits).Mul(decimal.New(int64(percent), -2))
			due := 0
			if u.Period >= first && !amount.IsZero() &&
				!decimal.RequireFromString(u.Credits).LessThan(amount) {
				due = 1
			}
			if n := len(announced[k]); n != due {
				s.t.Errorf("violation: %+v with %s credits was announced %d times, want %d",
					k, u.Credits, n, due)
			}
			delete(announced, k)
		}
	}
	for k := range announced {
		s.t.Errorf("violation: %+v was announced, and there is no such usage", k)
	}
}

// migrate brings the database up to date. With failpoints the first process dies between two
// migrations.
func (s *simulation) migrate(db *repo.DB) (err error) {
	const last = 8 // of the hits at which it may die
	s.setPlace(failpoint.Migrated, 1+s.random("migrate").IntN(last))
	defer s.setPlace("", 0)
	died := func() (died bool) {
		defer func() { died = recover() != nil }()
		_, err = db.Migrate(context.Background())
		return false
	}
	if died() {
		_, err = db.Migrate(context.Background())
	}
	return err
}

// running draws one of the workers; nil if it does not run.
func (s *simulation) running(random *rand.Rand) (slot int, i *workertest.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot = random.IntN(len(s.workers))
	return slot, s.workers[slot]
}
