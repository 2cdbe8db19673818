package console

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// usageView is usage over all tenants.
type usageView struct {
	Months   []repo.MonthlyUsage
	Read     time.Time // when the sums were
	Period   string    // of the most
	Top      []topRow
	Over     []repo.Usage // who has used most of a budget in that month
	Runs     []repo.Run
	Working  bool // a run is in flight
	From, To string
	Range    string // months that are shown: 6, 12, 24 or all
}

// ranges are how many months a chart may show; the first is the default.
var ranges = []string{"12", "6", "24", "all"}

// Ranges are the choices, in the order of their length.
func (usageView) Ranges() []string { return []string{"6", "12", "24", "all"} }

// Shown are the newest months, as many as the visitor chose.
func (u usageView) Shown() []repo.MonthlyUsage {
	n, err := strconv.Atoi(u.Range)
	if err != nil {
		return u.Months
	}
	return u.Months[max(0, len(u.Months)-n):]
}

type topRow struct {
	repo.Usage
	Name string
}

// sums keeps what costs a reading of all rows, for a while.
type sums struct {
	mu     sync.Mutex
	read   time.Time
	months []repo.MonthlyUsage
	top    map[string]most // by month
}

// most is who used most in a month, in credits and of their budgets.
type most struct{ credits, budgets []repo.Usage }

const (
	sumsLive   = time.Minute
	maxTop     = 10
	maxOver    = 50
	nearBudget = 80 // percent of a budget, from which a tenant is listed
	maxRuns    = 20
	maxRejects = 50 // of a run
)

// of returns the months and the most usage of one of them: of the newest when period is empty.
func (s *sums) of(
	ctx context.Context, db *repo.DB, period string, now time.Time,
) (months []repo.MonthlyUsage, top most, read time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.months == nil || now.Sub(s.read) > sumsLive {
		list, err := db.UsageByMonth(ctx)
		if err != nil {
			return nil, top, now, err
		}
		s.months, s.read, s.top = list, now, map[string]most{}
		if len(list) == 0 {
			s.months = nil // look again: the first run may end any moment
			return nil, top, now, nil
		}
	}
	if period == "" {
		period = s.months[len(s.months)-1].Period
	}
	if _, known := s.top[period]; !known {
		if top.credits, err = db.TopUsage(ctx, period, maxTop); err != nil {
			return nil, top, now, err
		}
		if top.budgets, err = db.OverBudget(ctx, period, nearBudget, maxOver); err != nil {
			return nil, top, now, err
		}
		s.top[period] = top
	}
	return s.months, s.top[period], s.read, nil
}

// forget drops the sums, so that they are read again.
func (s *sums) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.months = nil
}

func (c *Console) usage(rw http.ResponseWriter, v *visit) error {
	ctx := v.Context()
	u := usageView{Period: v.URL.Query().Get("month")}
	if u.Range = v.URL.Query().Get("range"); !slices.Contains(ranges, u.Range) {
		u.Range = ranges[0]
	}
	if u.Period != "" && events.ValidatePeriod(u.Period) != nil {
		return refuse(http.StatusBadRequest, "A month is written YYYY-MM.")
	}
	runs, err := c.db.Runs(ctx, "", maxRuns)
	if err != nil {
		return err
	}
	u.Runs = runs
	for _, r := range runs {
		u.Working = u.Working || r.Status == repo.RunRunning
		if r.FinishedAt.After(c.sums.readAt()) {
			c.sums.forget()
		}
	}
	var top most
	if u.Months, top, u.Read, err = c.sums.of(ctx, c.db, u.Period, c.now()); err != nil {
		return err
	}
	u.Over = top.budgets
	for _, row := range top.credits {
		m, err := c.db.Mapping(ctx, row.TenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return err
		}
		row.Unknown = err != nil
		u.Top = append(u.Top, topRow{row, shortName(m.Title)})
	}
	if n := len(u.Months); n > 0 {
		if u.Period == "" {
			u.Period = u.Months[n-1].Period
		}
		u.From, u.To = u.Months[0].Period, u.Months[n-1].Period
	}
	return c.show(rw, v, "usage", "Usage", u)
}

func (s *sums) readAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read
}

// runView is a usage run with what was wrong in it.
type runView struct {
	repo.Run
	Rejects []repo.RejectedRow
	Changes []repo.UsageChange
}

func (c *Console) usageRun(rw http.ResponseWriter, v *visit) error {
	run, rejected, changes, err := c.db.RunDetails(v.Context(), v.URL.Query().Get("id"), maxRejects)
	if errors.Is(err, repo.ErrNotFound) {
		return refuse(http.StatusNotFound, "There is no such usage run.")
	}
	if err != nil {
		return err
	}
	return c.show(rw, v, "run", "Usage run", runView{run, rejected, changes})
}

// csvTime is how long a download may go on without a row being taken.
const csvTime = time.Minute

// usageCSV writes row by row, however many there are. It is for people and their spreadsheets, so
// an id that would be a formula there has a quote before it (worker.WriteUsageCSV): programs take
// it off again, or ask REST, NATS or `usage export --format json`, where ids are as they are.
func (c *Console) usageCSV(rw http.ResponseWriter, v *visit) error {
	q := v.URL.Query()
	f := repo.UsageFilter{FromPeriod: q.Get("from"), ToPeriod: q.Get("to"), TenantID: q.Get("tenant")}
	for _, period := range []string{f.FromPeriod, f.ToPeriod} {
		if period != "" && events.ValidatePeriod(period) != nil {
			return refuse(http.StatusBadRequest, "A month is written YYYY-MM.")
		}
	}
	if f.TenantID != "" && events.ValidateTenantID(f.TenantID) != nil {
		return refuse(http.StatusBadRequest, "That is no tenant id.")
	}
	rw.Header().Set("Content-Type", "text/csv; charset=utf-8")
	rw.Header().Set("Content-Disposition", `attachment; filename="usage.csv"`)
	control := http.NewResponseController(rw)
	out := bufio.NewWriterSize(rw, 1<<16)
	rows := 0
	err := worker.WriteUsageCSV(out, func(each func(repo.Usage) error) error {
		return c.db.EachUsage(v.Context(), f, func(u repo.Usage) error {
			if rows%1000 == 0 {
				err := control.SetWriteDeadline(time.Now().Add(csvTime))
				if err != nil && !errors.Is(err, http.ErrNotSupported) {
					return fmt.Errorf("extend the deadline of a download: %w", err)
				}
			}
			rows++
			return each(u)
		})
	})
	if err = errors.Join(err, out.Flush()); err != nil && v.Context().Err() == nil {
		c.log.Error("usage download interrupted", "rows", rows, "error", err)
		panic(http.ErrAbortHandler) // a whole file must not look like a part of it, nor the other way round
	}
	return nil
}
