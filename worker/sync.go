package worker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// usageSync handles usage.sync: it reads usage from Papermap and records it, one run per workspace.
//
// An event that has to wait for others is redelivered after delays that grow, because thousands may
// wait.
type usageSync struct {
	workspaces workspaces
	db         *repo.DB
	log        *slog.Logger
	metrics    *metrics
	spans      *spanByEvent
	slots      chan struct{}         // one for each event in flight; fewer than slots of the consumer
	turns      map[string]*usageTurn // by workspace
	concurrent int                   // pages requested at the same time
	draining   func() bool           // the worker is stopping
	wakeRelay  func()
}

// handle makes the runs that a usage.sync asks for, one workspace after the other. Runs that have
// ended are not repeated when the event is redelivered.
func (s *usageSync) handle(ctx context.Context, e events.Event, data events.UsageSync) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return retry(turnDelay.Delay(e.Deliveries), "the maximum number of usage runs is in flight")
	}
	runs, err := s.plan(ctx, e, data)
	if err != nil {
		return err
	}
	var again, refused error
	for _, run := range runs {
		err := s.run(ctx, e, run)
		if permanent := (*events.Permanent)(nil); errors.As(err, &permanent) {
			refused = cmp.Or(refused, err)
		} else {
			again = cmp.Or(again, err)
		}
	}
	return cmp.Or(again, refused) // while one run may continue, the event must come again
}

// plan returns the runs that the event asks for. Several runs are recorded at once, so that anyone
// who waits for them knows their number from the beginning.
func (s *usageSync) plan(ctx context.Context, e events.Event, data events.UsageSync) ([]repo.Run, error) {
	workspaceID := data.WorkspaceID
	if workspaceID == "" && data.TenantID != "" {
		m, err := s.db.Mapping(ctx, data.TenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return nil, err
		}
		workspaceID = m.WorkspaceID
	}
	list := s.workspaces.list
	if workspaceID != "" {
		ws, err := s.workspaces.ofEvent(workspaceID)
		if err != nil {
			return nil, err
		}
		list = []*workspace{ws}
	}
	from, to := periods(e.Time, data.FromPeriod, data.ToPeriod)
	var runs []repo.Run
	for _, ws := range list {
		runs = append(runs, repo.Run{
			WorkspaceID: ws.ID, EventID: e.ID, EventSource: sourceHash(e.Source), Message: e.Message,
			TenantID: data.TenantID, FromPeriod: from, ToPeriod: to,
		})
	}
	if len(runs) == 1 {
		return runs, nil
	}
	return runs, s.db.PlanRuns(ctx, runs)
}

// periods fills in missing months: the previous and the current one, but never a range in the wrong
// order.
func periods(now time.Time, from, to string) (string, string) {
	const form = "2006-01"
	now = now.UTC()
	current := now.Format(form)
	previous := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC).Format(form)
	if to == "" {
		to = max(current, from)
	}
	if from == "" {
		from = min(previous, to)
	}
	return from, to
}

// sourceHash identifies an event's source in a run, because sources may be long and contain any
// text.
func sourceHash(source string) string {
	if source == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(source))
	return hex.EncodeToString(sum[:16])
}

// turnDelay are the delays of events that have to wait for others. They are shorter than a lease,
// so that another worker soon takes over the turn of a killed one.
var turnDelay = events.Backoff{Base: time.Second, Max: 4 * time.Second}

// run makes or resumes one run when it has the workspace's turn. An error that is not permanent
// makes the server redeliver the event.
func (s *usageSync) run(ctx context.Context, e events.Event, want repo.Run) (err error) {
	turn := s.turns[want.WorkspaceID]
	holder, err := turn.enter(ctx, want.TenantID)
	switch {
	case errors.Is(err, errTurnTaken):
		return &events.Retry{After: turnDelay.Delay(e.Deliveries), Err: err}
	case err != nil:
		return err
	}
	defer func() {
		if leaveErr := turn.leave(ctx, want.TenantID, holder, err); leaveErr != nil {
			s.log.WarnContext(ctx, "cannot release usage lease",
				"workspace_id", want.WorkspaceID, "error", leaveErr)
		}
	}()
	run, err := s.db.StartRun(ctx, want, holder)
	switch {
	case errors.Is(err, repo.ErrRunOver):
		return s.over(ctx, run)
	case err != nil:
		return err
	}
	log := s.log.With("workspace_id", want.WorkspaceID, "event_id", e.ID)
	reader := &usageReader{usageSync: s, ws: s.workspaces.byID[want.WorkspaceID], run: &run, log: log}
	lastError := run.Error
	if err := reader.read(ctx); err != nil {
		why := failure(err, run)
		if why == "" {
			return s.interrupt(ctx, e, &run, lastError, err)
		}
		var stack string
		if panicked := (*panicError)(nil); errors.As(err, &panicked) {
			stack = panicked.stack
		}
		log.ErrorContext(ctx, "a usage run failed", "tenant_id", run.TenantID, "error", err, "stack", stack)
		if err := s.db.EndRun(ctx, &run, repo.RunFailed, why); err != nil {
			return err
		}
		s.metrics.runEnded(run)
		return s.over(ctx, run)
	}
	s.wakeRelay()
	s.metrics.runEnded(run)
	attrs := []any{
		"status", run.Status, "rows", run.Read, "written_rows", run.Written, "rejected_rows", run.Rejected,
		"changed_rows", run.Changed, "from_period", run.FromPeriod, "to_period", run.ToPeriod,
		"took", run.FinishedAt.Sub(run.StartedAt.Time).String(),
	}
	if run.Status == repo.RunIncomplete {
		log.WarnContext(ctx, "usage run incomplete: totals kept changing", attrs...)
	} else {
		log.InfoContext(ctx, "synced usage", attrs...)
	}
	return nil
}

// over returns the outcome of the event of a run that has ended. A failed scheduled run makes no
// dead letter, because the next one retries.
func (s *usageSync) over(ctx context.Context, run repo.Run) error {
	switch {
	case run.Status == repo.RunSkipped:
		s.skipped(ctx, run)
	case run.Status == repo.RunFailed && run.Slot.IsZero():
		return &events.Permanent{Code: "API_REFUSED", Err: errors.New(run.Error)}
	}
	return nil
}

// skipped reports a scheduled run that another run covers.
func (s *usageSync) skipped(ctx context.Context, run repo.Run) {
	s.metrics.runEnded(run)
	s.log.WarnContext(ctx, "skipped a scheduled usage run: another run covers it", "reason", run.Error,
		"workspace_id", run.WorkspaceID, "event_id", run.EventID, "slot", run.Slot.Time)
}

// failure returns why an error ends the run, because retrying the request cannot help. It is empty
// if a retry can help. The path of one tenant's usage is not documented, so a 404 there does not
// mean that the workspace is misconfigured.
func failure(err error, run repo.Run) string {
	var api *papermap.Error
	var panicked *panicError
	switch {
	case errors.As(err, &panicked):
		return panicked.Error()
	case errors.As(err, &api) && (api.Class == papermap.Refused ||
		api.Class == papermap.Configuration && run.TenantID != ""):
		return api.Error()
	}
	return ""
}

// interrupt leaves the run at its checkpoint and returns the error that makes the server redeliver
// the event. lastError is the error that the run waited for before.
func (s *usageSync) interrupt(
	ctx context.Context, e events.Event, run *repo.Run, lastError string, cause error,
) error {
	ctx = context.WithoutCancel(ctx)
	var api *papermap.Error
	waits := errors.As(cause, &api)
	if waits && api.Error() != lastError {
		s.log.WarnContext(ctx, "a Papermap error interrupted a usage run; it will resume at its checkpoint",
			"workspace_id", run.WorkspaceID, "event_id", e.ID, "page", run.NextPage, "error", api)
		if err := s.db.KeepRun(ctx, run, api.Error()); err != nil {
			return err
		}
	}
	switch {
	case s.draining():
		return &events.Retry{Err: cause} // another replica may continue at once
	case waits:
		return &events.Retry{After: max(events.Delay(e.Deliveries), api.RetryAfter), Err: cause}
	}
	return cause
}
