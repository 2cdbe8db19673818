package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

const (
	// leaseMargin is how long before the end of its lease a holder's request is given up.
	leaseMargin = 3 * time.Second
	// unknownWait is how soon a create of unknown outcome is repeated at the earliest: if the API has gone down, the gates of all
	// replicas have shut by then, and one possible orphan for each tenant is enough.
	unknownWait = 3 * time.Second
	// busyWait is how soon an event looks again whether the holder of its tenant, or of its workspace's usage, is done: so
	// soon on the average, and each another time, or those that wait together would all come together.
	busyWait = 2 * time.Second
	// insistEvery is about how often an outcome is tried to be written while the database fails.
	insistEvery = 5 * time.Second

	titlePrefix = "Dashboard - "
)

// MaxTimeout is the longest PAPERMAP_TIMEOUT: a request must end before its lease does.
const MaxTimeout = repo.Lease - leaseMargin - papermap.RetryBudget

func busy() time.Duration { return busyWait/2 + rand.N(busyWait) }

// provision gives the tenant its dashboard, unless it has one, must not have one, or somebody else is at it.
func (w *Worker) provision(ctx context.Context, e events.Event, data events.TenantCreated) error {
	about(ctx, data.TenantID)
	ws, err := w.knownWorkspace(data.WorkspaceID)
	if err != nil {
		return err
	}
	title := data.Title
	if title == "" {
		title = titlePrefix + data.Name
	}
	return w.provisionIn(ctx, ws, e, repo.Created{
		TenantID: data.TenantID, WorkspaceID: ws.ID, Title: title, Description: data.Description, CreatedBy: data.CreatedBy,
		EventID: e.ID, EventTime: e.Time, Message: e.Message,
	})
}

// provisionIn does so if ws is where the tenant belongs, and is not paused.
func (w *Worker) provisionIn(ctx context.Context, ws *workspace, e events.Event, created repo.Created) error {
	if ws.gate.wantsUntried() {
		m, err := w.db.Mapping(ctx, created.TenantID)
		switch {
		case err == nil && !m.FailedAt.IsZero():
			return &events.Retry{After: untriedFirst, Err: errors.New("after a pause, tenants that never failed go first")}
		case err != nil && !errors.Is(err, repo.ErrNotFound):
			return err
		}
	}
	turn, err := ws.gate.enter()
	if err != nil {
		return &events.Retry{After: events.Delay(e.Deliveries), Err: err}
	}
	failpoint.Hit(failpoint.Begin)
	created.Entered = ws.ID
	claim, err := w.db.Begin(ctx, created, w.cfg.Hold)
	if err != nil || claim.Step != repo.Create {
		ws.gate.unused(turn)
	}
	if err != nil {
		return err
	}
	switch claim.Step {
	case repo.Wait:
		after := claim.Wait
		if claim.Mapping.Stage == repo.Creating {
			after = min(after, busy())
		}
		return &events.Retry{After: after, Err: errors.New("the tenant is being provisioned, or waits for its next try")}
	case repo.Elsewhere: // it was begun in another workspace than the event names, and stays there
		other, ok := w.workspaceOf(claim.Mapping.WorkspaceID)
		if !ok {
			return fmt.Errorf("tenant %q belongs to workspace %q, which is not configured any more", created.TenantID, claim.Mapping.WorkspaceID)
		}
		return w.provisionIn(ctx, other, e, created)
	case repo.Refused:
		return w.permanent(ctx, claim.Mapping)
	case repo.Settle:
		return w.failed(ctx, e, claim, &papermap.Error{Class: papermap.Unknown, Message: "the worker stopped before an answer came"}, "")
	case repo.Create:
		failpoint.Hit(failpoint.Claimed)
		return w.create(ctx, e, claim, ws, turn)
	}
	return nil
}

// create makes the claimed tenant's dashboard and records what came of it.
func (w *Worker) create(ctx context.Context, e events.Event, claim repo.Claim, ws *workspace, turn uint64) error {
	m := claim.Mapping
	dashboard, err := w.call(ctx, claim, ws)
	failpoint.Hit(failpoint.Answered)
	ws.gate.leave(turn, err)
	if err != nil {
		return w.failed(ctx, e, claim, err, "")
	}
	recorded, err := w.record(ctx, claim, dashboard)
	failpoint.Hit(failpoint.Recorded)
	switch {
	case errors.Is(err, repo.ErrTaken):
		w.log.ErrorContext(ctx, "Papermap answered with a dashboard that belongs to another tenant",
			"tenant_id", m.TenantID, "dashboard_id", dashboard.ID, "event_id", e.ID)
		return w.failed(ctx, e, claim, &papermap.Error{Class: papermap.Unknown, Message: "the answer names another tenant's dashboard"}, dashboard.ID)
	case err != nil:
		return err
	case !recorded:
		w.log.WarnContext(ctx, "a dashboard was made after its claim had passed to another; recorded as orphaned",
			"tenant_id", m.TenantID, "dashboard_id", dashboard.ID, "attempt", claim.Attempt.ID, "event_id", e.ID)
		w.metrics.attempts.WithLabelValues(string(repo.Orphaned)).Inc()
		return &events.Retry{After: busy(), Err: errors.New("the claim passed to another worker")}
	}
	ring(w.outbox)
	w.metrics.attempts.WithLabelValues(string(repo.Made)).Inc()
	w.changed(m.TenantID)
	w.log.InfoContext(ctx, "created a dashboard", "tenant_id", m.TenantID, "workspace_id", ws.ID, "dashboard_id", dashboard.ID, "event_id", e.ID)
	return nil
}

// call sends the create request, within the lease.
func (w *Worker) call(ctx context.Context, claim repo.Claim, ws *workspace) (papermap.Dashboard, error) {
	deadline := claim.Until.Add(-leaseMargin)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if !time.Now().Before(deadline) { // we slept; ctx may not know yet
		return papermap.Dashboard{}, &papermap.Error{Class: papermap.Retryable, Deferred: true, Message: "the lease ended before the request was sent"}
	}
	failpoint.Hit(failpoint.Send)
	m := claim.Mapping
	return ws.api.CreateDashboard(ctx, papermap.NewDashboard{
		TenantID: m.TenantID, Title: m.Title, Description: strings.TrimSpace(m.Description + "\n\n" + claim.Attempt.Mark),
	})
}

// record writes the dashboard.
func (w *Worker) record(ctx context.Context, claim repo.Claim, dashboard papermap.Dashboard) (recorded bool, err error) {
	m := claim.Mapping
	m.DashboardID = dashboard.ID
	n, err := DashboardCreated(m)
	if err != nil {
		return false, err
	}
	w.causes.note(ctx, n)
	err = w.insist(ctx, func(ctx context.Context) error {
		recorded, err = w.db.Finish(ctx, claim, dashboard.ID, dashboard.Status, n)
		if errors.Is(err, repo.ErrTaken) {
			return backoff.Permanent(err)
		}
		return err
	})
	return recorded, err
}

// insist writes what came of a create, however long the database is away: lost, it would be repeated. It gives up after one
// try when ctx has ended, which is when the grace of a stop is over.
func (w *Worker) insist(ctx context.Context, write func(context.Context) error) error {
	said := false
	return backoff.RetryNotify(
		func() error { return write(context.WithoutCancel(ctx)) },
		backoff.WithContext(backoff.NewExponentialBackOff(backoff.WithMaxElapsedTime(0), backoff.WithMaxInterval(insistEvery)), ctx),
		func(err error, _ time.Duration) {
			if !said {
				w.log.WarnContext(ctx, "cannot record what came of a create; trying until it works", "error", err)
			}
			said = true
		},
	)
}

// failed records a create that made no dashboard to keep, and returns what settles the event.
func (w *Worker) failed(ctx context.Context, e events.Event, claim repo.Claim, cause error, dashboardID string) error {
	failure, err := w.failure(ctx, e, claim, cause, dashboardID)
	if err != nil {
		return err
	}
	var m repo.Mapping
	err = w.insist(ctx, func(ctx context.Context) error {
		m, err = w.db.Fail(ctx, claim, failure)
		return err
	})
	if err != nil {
		return err
	}
	w.metrics.attempts.WithLabelValues(string(failure.Result.Outcome)).Inc()
	w.log.DebugContext(ctx, "creating a dashboard failed", "tenant_id", m.TenantID, "error", cause, "stage", m.Stage, "event_id", e.ID)
	switch m.Stage {
	case repo.Failed:
		ring(w.outbox)
		return w.permanent(ctx, m)
	case repo.Held:
		ring(w.outbox)
		w.log.WarnContext(ctx, "held a tenant: a create has an unknown outcome; settle it with `papermap-worker tenants resolve`",
			"tenant_id", m.TenantID, "attempt", claim.Attempt.ID, "event_id", e.ID)
		return nil
	}
	return &events.Retry{After: failure.Retry, Err: cause}
}

// failure says what a failed create means, from its error's class.
func (w *Worker) failure(ctx context.Context, e events.Event, claim repo.Claim, cause error, dashboardID string) (f repo.Failure, err error) {
	f = repo.Failure{
		Result:   repo.Result{Outcome: repo.NotAccepted, Error: cause.Error(), DashboardID: dashboardID},
		Code:     "API_FAILED",
		Most:     w.cfg.MaxAttempts,
		Retry:    events.Delay(e.Deliveries),
		Deferral: ctx.Err() != nil, // we are stopping: nobody's failure
	}
	var api *papermap.Error
	if !errors.As(cause, &api) {
		api = &papermap.Error{Class: papermap.Unknown}
	}
	f.Result.HTTPStatus = api.Status
	switch api.Class {
	case papermap.Refused:
		f.Permanent, f.Code = true, "API_REFUSED"
	case papermap.Credentials, papermap.Configuration:
		f.Deferral = true
	case papermap.Retryable:
		f.Deferral = f.Deferral || api.Deferred
		f.Retry = max(f.Retry, api.RetryAfter)
	default:
		f.Result.Outcome = repo.Uncertain
		f.Hold = w.cfg.Hold
		f.Retry = max(f.Retry, unknownWait)
	}
	m := claim.Mapping
	f.FailedNotice, err = notice(events.TypeDashboardFailed, events.DashboardFailed{
		TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, Code: f.Code, Message: f.Result.Error,
	})
	if err != nil {
		return f, err
	}
	if f.AgainNotice, err = CreatedAgain(m); err != nil {
		return f, err
	}
	f.HeldNotice, err = notice(events.TypeDashboardHeld, events.DashboardHeld{
		TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, Attempt: claim.Attempt.ID,
	})
	w.causes.note(ctx, f.FailedNotice, f.AgainNotice, f.HeldNotice)
	return f, err
}

// permanent is the error that makes a failed tenant's event a dead letter.
func (w *Worker) permanent(ctx context.Context, m repo.Mapping) error {
	attempts, err := w.db.Attempts(ctx, m.TenantID)
	if err != nil {
		return err
	}
	return &events.Permanent{Code: m.FailedCode, Err: errors.New(m.FailedError), Attempts: m.Failures, SideEffect: sideEffect(attempts, m.Generation)}
}

// sideEffect says what a generation's attempts may have done at Papermap.
func sideEffect(attempts []repo.Attempt, generation int) string {
	effect := "none"
	for _, a := range attempts {
		if a.Generation != generation {
			continue
		}
		switch a.Outcome {
		case repo.Made, repo.Orphaned:
			return "done"
		case repo.Sent, repo.Uncertain:
			effect = "maybe"
		}
	}
	return effect
}

// DashboardCreated is the event that tells of the mapping's dashboard.
func DashboardCreated(m repo.Mapping) (repo.Notice, error) {
	return notice(events.TypeDashboardCreated, events.DashboardCreated{
		TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, DashboardID: m.DashboardID, Title: m.Title,
	})
}

// CreatedAgain is the mapping's own tenant.created once more, as far as it is recorded: a title that was not made from a name
// stands for the name, too.
func CreatedAgain(m repo.Mapping) (repo.Notice, error) {
	data := map[string]string{"tenant_id": m.TenantID, "workspace_id": m.WorkspaceID, "description": m.Description, "created_by": m.CreatedBy}
	if name, made := strings.CutPrefix(m.Title, titlePrefix); made && strings.TrimSpace(name) != "" {
		data["name"] = name
	} else {
		data["name"], data["title"] = m.Title, m.Title
	}
	n, err := notice(events.TypeTenantCreated, data)
	n.OriginalID, n.OriginalTime = m.CreatedEventID, m.CreatedEvent
	return n, err
}

// notice makes the event that tells of a state change.
func notice(eventType string, data any) (repo.Notice, error) {
	body, err := json.Marshal(data)
	if err != nil {
		return repo.Notice{}, fmt.Errorf("encoding %s: %w", eventType, err)
	}
	id, err := uuid.NewV7() // in order of time, as an index likes it
	if err != nil {
		return repo.Notice{}, fmt.Errorf("making an event id: %w", err)
	}
	return repo.Notice{EventID: id.String(), Type: eventType, Data: body}, nil
}
