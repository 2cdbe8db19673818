package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/robfig/cron/v3"

	"papermap-worker/events"
)

// Schedule says when usage is synced. Its slots are the same for everybody who computes them, whenever they began.
type Schedule struct {
	every time.Duration // at multiples since the Unix epoch; 0: cron
	cron  cron.Schedule
}

// ParseSchedule reads five-field cron, @hourly and its kin, or "@every 15m". All is UTC.
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
		return nil, fmt.Errorf("neither five-field cron, nor @hourly, @daily and so on, nor @every 15m: %w", err)
	}
	if c.Next(time.Unix(0, 0).UTC()).IsZero() {
		return nil, errors.New("it names a day that never comes")
	}
	return &Schedule{cron: c}, nil
}

// Next is the first slot after t.
func (s *Schedule) Next(t time.Time) time.Time {
	if s.every > 0 {
		return s.Last(t).Add(s.every)
	}
	return s.cron.Next(t.UTC())
}

// Last is the newest slot that is not after t.
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

// tickPrefix begins the event ids of scheduled syncs.
const tickPrefix = "usage-tick."

// schedule publishes a usage.sync for each workspace in each slot, until ctx ends. Every replica does so, under the same
// event ids, so one tick is one run however many replicas there are, and whatever their clocks say. The slot before
// the start is published too: it may have passed while nobody ran.
func (w *Worker) schedule(ctx context.Context) {
	if w.cfg.Schedule == nil {
		return
	}
	const look = time.Second // so often the clock is read: it may be set while we wait
	said := false
	for slot := w.cfg.Schedule.Last(w.now()); ; {
		err := w.tick(ctx, slot)
		switch {
		case err == nil:
			slot, said = w.cfg.Schedule.Next(slot), false
		case ctx.Err() == nil && !said:
			w.log.Warn("cannot publish the usage schedule's tick; trying again", "slot", slot, "error", err)
			said = true
		}
		for wait := look; wait > 0; {
			if !sleep(ctx, min(wait, look)) {
				return
			}
			if next := w.cfg.Schedule.Next(w.now()); slot.After(next) { // the clock was set back
				slot = next
			}
			wait = slot.Sub(w.now())
		}
		if last := w.cfg.Schedule.Last(w.now()); last.After(slot) { // the clock jumped, or publishing failed for long
			slot = last
		}
	}
}

// tick publishes one slot's events. They name the slot's months, whatever the clock of the worker that makes the run.
func (w *Worker) tick(ctx context.Context, slot time.Time) error {
	from, to := periods(slot, "", "")
	for id := range w.workspaces {
		data, err := json.Marshal(map[string]string{"workspace_id": id, "from_period": from, "to_period": to}, json.Deterministic(true))
		if err != nil {
			return fmt.Errorf("encoding a tick: %w", err)
		}
		publishing, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err = w.bus.Publish(publishing, events.Outgoing{ID: fmt.Sprintf("%s%s.%d", tickPrefix, id, slot.Unix()), Type: events.TypeUsageSync, Data: data})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}
