package worker

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// syncUsage makes the runs that a usage.sync asks for, one workspace after the other. Those that have ended stay ended
// when the event comes again.
func (w *Worker) syncUsage(ctx context.Context, e events.Event, data events.UsageSync) error {
	select { // a run takes as long as it takes, and must leave slots for tenants
	case w.runs <- struct{}{}:
		defer func() { <-w.runs }()
	default:
		return &events.Retry{After: busy(), Err: errors.New("as many usage runs are at work as may be at once")}
	}
	list := w.cfg.Workspaces
	if data.WorkspaceID == "" && data.TenantID != "" {
		m, err := w.db.Mapping(ctx, data.TenantID)
		if err != nil && !errors.Is(err, repo.ErrNotFound) {
			return err
		}
		data.WorkspaceID = m.WorkspaceID
	}
	if data.WorkspaceID != "" {
		ws, err := w.knownWorkspace(data.WorkspaceID)
		if err != nil {
			return err
		}
		list = []papermap.Workspace{ws.Workspace}
	}
	from, to := periods(e.Time, data.FromPeriod, data.ToPeriod)
	var runs []repo.Run
	for _, ws := range list {
		runs = append(runs, repo.Run{WorkspaceID: ws.ID, EventID: e.ID, TenantID: data.TenantID, FromPeriod: from, ToPeriod: to})
	}
	if len(runs) > 1 {
		if err := w.db.PlanRuns(ctx, runs); err != nil {
			return err
		}
	}
	var waits, refused error
	for _, run := range runs {
		err := w.syncWorkspace(ctx, e, run)
		if permanent := (*events.Permanent)(nil); errors.As(err, &permanent) {
			refused = cmp.Or(refused, err)
		} else {
			waits = cmp.Or(waits, err)
		}
	}
	return cmp.Or(waits, refused) // as long as one run may go on, the event must come again
}

// periods fills in the months that are not given: the previous and the current one, as far as they are in order.
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

// syncWorkspace makes one run, or goes on with it. Unless the run has ended, its error brings the event back.
func (w *Worker) syncWorkspace(ctx context.Context, e events.Event, want repo.Run) error {
	tick := strings.HasPrefix(e.ID, tickPrefix)
	refused := func(err error) error {
		if tick { // the next one tries again
			return nil
		}
		return &events.Permanent{Code: "API_REFUSED", Err: err}
	}
	log := w.log.With("workspace_id", want.WorkspaceID, "event_id", e.ID)
	run, err := w.db.StartRun(ctx, want, e.Stored, tick)
	switch {
	case errors.Is(err, repo.ErrRunOver) && run.Status == repo.RunFailed:
		return refused(errors.New(run.Error))
	case errors.Is(err, repo.ErrRunOver):
		return nil
	case errors.Is(err, repo.ErrRunBusy):
		return &events.Retry{After: busy(), Err: err}
	case err != nil:
		return err
	case run.Status == repo.Skipped:
		w.metrics.ended(run)
		log.WarnContext(ctx, "skipped a scheduled usage run: another does its work", "reason", run.Error)
		return nil
	}
	r := &reading{w: w, ws: w.workspaces[want.WorkspaceID], run: &run, log: log, waited: run.Error}
	err = r.read(ctx)
	var api *papermap.Error
	switch {
	case err == nil:
	case errors.As(err, &api) && (api.Class == papermap.Refused || api.Class == papermap.Configuration && run.TenantID != ""):
		// The path of one tenant's usage is not documented, so 404 there says nothing of the workspace.
		log.ErrorContext(ctx, "a usage run failed: Papermap refuses", "tenant_id", run.TenantID, "error", err)
		if err := w.db.EndRun(ctx, &run, repo.RunFailed, api.Error(), nil); err != nil {
			return err
		}
		w.metrics.ended(run)
		return refused(err)
	default:
		return r.leave(ctx, e, err)
	}
	ring(w.outbox)
	w.metrics.ended(run)
	attrs := []any{"status", run.Status, "rows", run.Read, "written_rows", run.Written, "rejected_rows", run.Rejected, "changed_rows", run.Changed,
		"from_period", run.FromPeriod, "to_period", run.ToPeriod, "took", run.FinishedAt.Sub(run.StartedAt.Time).String()}
	if run.Status == repo.Incomplete {
		log.WarnContext(ctx, "a usage run is incomplete: the totals shifted each time that they were read", attrs...)
	} else {
		log.InfoContext(ctx, "synced usage", attrs...)
	}
	return nil
}
