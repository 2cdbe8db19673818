package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// Schedule is when usage is synced. All replicas compute the same slots, no matter when they
// started.
type Schedule struct {
	every time.Duration // slots at multiples since the Unix epoch; 0: by cron
	cron  cron.Schedule
}

// ParseSchedule parses five-field cron, a descriptor such as @hourly, or "@every 15m", all in UTC.
func ParseSchedule(text string) (*Schedule, error) {
	if rest, ok := strings.CutPrefix(text, "@every "); ok {
		every, err := time.ParseDuration(strings.TrimSpace(rest))
		if err != nil || every < time.Second {
			return nil, errors.New("@every takes a time of at least 1s, such as @every 15m")
		}
		return &Schedule{every: every}, nil
	}
	if strings.Contains(text, "TZ=") {
		return nil, errors.New("schedules are in UTC and take no time zone")
	}
	parser := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)
	c, err := parser.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("neither five-field cron, nor @hourly, nor @every 15m: %w", err)
	}
	if c.Next(time.Unix(0, 0).UTC()).IsZero() {
		return nil, errors.New("it names a day that never comes")
	}
	return &Schedule{cron: c}, nil
}

// Next returns the first slot after t.
func (s *Schedule) Next(t time.Time) time.Time {
	if s.every > 0 {
		return s.Last(t).Add(s.every)
	}
	return s.cron.Next(t.UTC())
}

// Last returns the newest slot that is not after t.
func (s *Schedule) Last(t time.Time) time.Time {
	if s.every > 0 {
		return time.Unix(0, t.UnixNano()-t.UnixNano()%int64(s.every)).UTC()
	}
	back := time.Minute
	for s.cron.Next(t.UTC().Add(-back)).After(t) { // cron only looks ahead
		back *= 2
	}
	slot := s.cron.Next(t.UTC().Add(-back))
	for {
		next := s.cron.Next(slot)
		if next.After(t) {
			return slot
		}
		slot = next
	}
}

// scheduler schedules a usage sync of each workspace in each slot. Every replica does so. The
// database accepts each slot once, whatever the replicas' clocks say, and the relay publishes its
// usage.sync. Only slots are compared, never times of different clocks.
type scheduler struct {
	schedule *Schedule // nil: off
	sync     *usageSync
	log      *slog.Logger
	now      func() time.Time
}

// run schedules the newest slot until ctx ends. It begins with the slot before now, because no
// worker may have been running then. It reads the clock every second and remembers only one slot,
// so that setting the clock does no harm.
func (s *scheduler) run(ctx context.Context) {
	if s.schedule == nil {
		return
	}
	var warned logOnce
	var scheduled, next time.Time
	for more := true; more; more = events.Sleep(ctx, time.Second) {
		now := s.now()
		if !now.Before(scheduled) && now.Before(next) {
			continue
		}
		slot := s.schedule.Last(now)
		err := s.add(ctx, slot)
		if warned.begins(err != nil) && ctx.Err() == nil {
			s.log.Warn("cannot schedule usage syncs; retrying", "slot", slot, "error", err)
		}
		if err == nil {
			scheduled, next = slot, s.schedule.Next(slot)
		}
	}
}

// add schedules the runs of one slot. They read the slot's months, no matter when they start.
func (s *scheduler) add(ctx context.Context, slot time.Time) error {
	from, to := periods(slot, "", "")
	for _, ws := range s.sync.workspaces.list {
		sync, err := newOutboxEvent(events.TypeUsageSync, map[string]string{
			"workspace_id": ws.ID, "from_period": from, "to_period": to,
		})
		if err != nil {
			return err
		}
		run, isNew, err := s.sync.db.ScheduleRun(ctx, repo.Run{
			WorkspaceID: ws.ID, EventID: sync.EventID, EventSource: sourceHash(events.Source),
			Slot: repo.Time{Time: slot}, FromPeriod: from, ToPeriod: to,
		}, sync)
		switch {
		case err != nil:
			return err
		case isNew && run.Status == repo.RunSkipped:
			s.sync.skipped(ctx, run)
		case isNew:
			s.sync.wakeRelay()
		}
	}
	return nil
}
