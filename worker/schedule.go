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
)

// Schedule is when usage is synced. All replicas compute the same slots, whenever they were
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

// tickPrefix begins the event ids of scheduled syncs; isTick recognizes them by it.
const tickPrefix = "usage-tick."

func tickID(workspaceID string, slot time.Time) string {
	return fmt.Sprintf("%s%s.%d", tickPrefix, workspaceID, slot.Unix())
}

func isTick(eventID string) bool { return strings.HasPrefix(eventID, tickPrefix) }

// scheduler publishes a usage.sync for each workspace in each slot. Every replica does, under the
// same event ids, so that one tick is one run however many replicas there are, and whatever their
// clocks say.
type scheduler struct {
	schedule   *Schedule // nil: off
	workspaces workspaces
	bus        *events.Bus
	log        *slog.Logger
	now        func() time.Time
}

// run publishes the newest slot until ctx ends, beginning with the one before now, in which no
// worker may have been running. It reads the clock every second and remembers one slot only, so
// that it does not matter if the clock is set: a slot that is published again has the same event
// id.
func (s *scheduler) run(ctx context.Context) {
	if s.schedule == nil {
		return
	}
	var warned logOnce
	var published time.Time
	for more := true; more; more = events.Sleep(ctx, time.Second) {
		slot := s.schedule.Last(s.now())
		if slot.Equal(published) {
			continue
		}
		err := s.publish(ctx, slot)
		if warned.begins(err != nil) && ctx.Err() == nil {
			s.log.Warn("cannot publish the usage schedule's tick; trying again", "slot", slot, "error", err)
		}
		if err == nil {
			published = slot
		}
	}
}

// publish publishes one slot's events. They name the slot's months, so that it does not matter when
// they are handled.
func (s *scheduler) publish(ctx context.Context, slot time.Time) error {
	from, to := periods(slot, "", "")
	for _, ws := range s.workspaces.list {
		fields := map[string]string{"workspace_id": ws.ID, "from_period": from, "to_period": to}
		e, err := NewEvent(events.TypeUsageSync, fields, slot)
		if err != nil {
			return err
		}
		e.ID = tickID(ws.ID, slot)
		publishing, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err = s.bus.Publish(publishing, e)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}
