package console

import (
	"context"
	"net/http"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// overview is what an operator looks at first: what needs attention, then how the worker does.
type overview struct {
	State    worker.State
	Needs    []need
	Without  []without // tenants without a dashboard, the first of them
	Missing  int       // how many there are
	Rates    []pace
	Backlog  []events.Backlog
	NoNATS   string // why the backlog is not known
	Unsent   int
	Oldest   time.Duration // of the outbox
	Statuses []statusCount
	Tenants  int
	Run      *repo.Run // the newest
}

// need is something that an operator has to look at.
type need struct {
	Level      string // bad or warn
	Count      int
	What, Why  string
	Link, Text string
}

// without is a tenant without a dashboard, and why.
type without struct {
	repo.Mapping
	Why, Next string // Next: what to do first
	Attempts  []repo.Attempt
}

type statusCount struct {
	Status  repo.Status
	N       int
	Meaning string
}

const (
	listed     = 12 // tenants without a dashboard on the overview, of each status
	outboxLong = 30 * time.Second
	natsTime   = 2 * time.Second
)

func (c *Console) overview(rw http.ResponseWriter, v *visit) error {
	ctx := v.Context()
	s, err := c.db.Stats(ctx)
	if err != nil {
		return err
	}
	o := overview{State: c.w.State(), Rates: c.rates.list(), Unsent: s.Unsent, Oldest: s.UnsentAge}
	dead := c.backlog(ctx, &o)
	for _, status := range repo.Statuses() {
		o.Statuses = append(o.Statuses, statusCount{status, s.Tenants[status], meaning[status]})
		o.Tenants += s.Tenants[status]
	}
	for _, status := range []repo.Status{repo.Held, repo.Failed, repo.Pending, repo.Creating} {
		if s.Tenants[status] == 0 {
			continue
		}
		list, err := c.withoutDashboard(ctx, status, listed)
		if err != nil {
			return err
		}
		o.Missing += s.Tenants[status]
		o.Without = append(o.Without, list...)
	}
	runs, err := c.db.Runs(ctx, "", 20)
	if err != nil {
		return err
	}
	if len(runs) > 0 {
		o.Run = &runs[0]
	}
	o.needs(s, dead, runs)
	return c.show(rw, v, "overview", "Overview", o)
}

// backlog reads what waits in NATS. The page is shown without it, too.
func (c *Console) backlog(ctx context.Context, o *overview) (dead int) {
	ctx, cancel := context.WithTimeout(ctx, natsTime)
	defer cancel()
	err := c.bus.Connected()
	if err == nil {
		o.Backlog, dead, err = c.bus.Backlog(ctx)
	}
	if err != nil {
		o.NoNATS = err.Error()
	}
	return dead
}

// one is a noun, in the plural unless there is one.
func one(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// needs lists what an operator has to look at, the worst first.
func (o *overview) needs(s repo.Stats, dead int, runs []repo.Run) {
	add := func(level string, n int, what, why, link, text string) {
		if n > 0 {
			o.Needs = append(o.Needs, need{level, n, what, why, link, text})
		}
	}
	add("bad", s.Tenants[repo.Held], one(s.Tenants[repo.Held], "held tenant"),
		"It is not known whether Papermap made their dashboards. Look for the marks there.",
		"/attention", "Resolve them")
	add("bad", s.Tenants[repo.Failed], one(s.Tenants[repo.Failed], "failed tenant"),
		"Papermap refused, or it failed too often. Their events are dead letters.",
		"/tenants?status=failed", "See why")
	add("bad", dead, one(dead, "dead letter"),
		"Events that cannot be handled as they are. Replay or discard them.",
		"/dead", "Look at them")
	orphans := max(0, s.PossibleOrphans-s.Tenants[repo.Held])
	add("warn", orphans, one(orphans, "possible orphan"),
		"Creates that may have left a dashboard behind at Papermap, the oldest from "+
			duration(s.PossibleOrphanAge)+" ago.", "/attention#attempts", "Look for them")
	if s.Unsent > 0 && s.UnsentAge > outboxLong {
		add("warn", s.Unsent, "events out that wait",
			"They could not be published for "+duration(s.UnsentAge)+". NATS may be away.",
			"#flow", "See the flow")
	}
	seen := map[string]bool{}
	for _, r := range runs { // the newest of each workspace counts
		if r.Status == repo.RunSkipped || seen[r.WorkspaceID] {
			continue
		}
		seen[r.WorkspaceID] = true
		if r.Status == repo.RunFailed || r.Status == repo.RunIncomplete {
			add("warn", 1, "usage run "+string(r.Status), "Workspace "+r.WorkspaceID+": "+r.Error,
				"/usage", "See the runs")
		}
		if r.Status == repo.RunDone && r.Rejected > 0 {
			add("warn", int(r.Rejected), one(int(r.Rejected), "rejected usage row"),
				"The last run of workspace "+r.WorkspaceID+" could not use them.",
				"/usage/run?id="+r.ID, "See them")
		}
	}
}

// withoutDashboard lists tenants of a status that have no dashboard, and explains each.
func (c *Console) withoutDashboard(ctx context.Context, status repo.Status, limit int) ([]without, error) {
	mappings, err := c.db.Search(ctx, repo.Search{Status: status}, repo.Cursor{Limit: limit})
	if err != nil {
		return nil, err
	}
	var list []without
	for _, m := range mappings {
		attempts, err := c.db.Attempts(ctx, m.TenantID)
		if err != nil {
			return nil, err
		}
		f := worker.Facts{Mapping: m, Known: true, Attempts: attempts, Pause: c.w.Pause(m.WorkspaceID)}
		summary, advice := worker.Explain(f, c.now())
		_, why, _ := strings.Cut(summary, ": ") // the heading says that it has no dashboard
		t := without{Mapping: m, Why: why, Attempts: attempts}
		if len(advice) > 0 {
			t.Next = advice[0]
		}
		list = append(list, t)
	}
	return list, nil
}
