package worker

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"golang.org/x/time/rate"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker/failpoint"
)

const (
	// leaseMargin is how long before the end of its lease a request is abandoned.
	leaseMargin = 3 * time.Second
	// unknownWait is the shortest wait before a create with an unknown outcome is repeated. If the
	// API has gone down, the breakers of all replicas have tripped by then, and one possible orphan
	// per tenant is enough.
	unknownWait = 3 * time.Second
	// busyWait is the average wait before an event checks again whether another holder of its
	// tenant, or of its workspace's usage, is done.
	busyWait = 2 * time.Second
	// writeRetryMax is the approximate wait between retries of writing an outcome while the
	// database fails.
	writeRetryMax = 5 * time.Second
)

// MaxTimeout is the longest PAPERMAP_TIMEOUT: a request must end before its lease does.
const MaxTimeout = repo.Lease - leaseMargin - papermap.RetryBudget

// busyDelay is random, so that events that wait together do not all come back together.
func busyDelay() time.Duration { return busyWait/2 + rand.N(busyWait) }

// provisioner handles tenant.created: it creates the tenant's dashboard and records it.
//
// Papermap's create is not idempotent and a dashboard cannot be looked up, so the order of steps
// matters: the attempt is committed before its request is sent (repo.Begin), and its outcome before
// the event is acknowledged (repo.Finish or repo.Fail). What a killed worker leaves behind:
//
//   - before Begin: nothing;
//   - between Begin and the recorded outcome: an attempt "sent". The event is redelivered after the
//     consumer's AckWait, waits until the claim's lease ends, and the next claim records the attempt
//     as "unknown", a possible orphan;
//   - after the recorded outcome: a tenant that is done. The redelivered event changes nothing.
//
// The claim separates two workers with copies of one event: its epoch fences off the one whose
// lease has ended, which can then only record its dashboard as orphaned.
type provisioner struct {
	workspaces  workspaces
	db          *repo.DB
	log         *slog.Logger
	metrics     *metrics
	spans       *spanByEvent
	hold        bool                  // as Config.Hold
	maxAttempts int                   // counted failures after which a tenant has failed for good
	changed     func(tenantID string) // called after each change of a mapping that other replicas may cache
	wakeRelay   func()                // called after each event out
	unwritten   *rate.Limiter         // of log lines about outcomes that cannot be recorded
}

// handle gives the tenant its dashboard, unless it has one, must not have one, or another worker is
// creating it.
func (p *provisioner) handle(ctx context.Context, e events.Event, data events.TenantCreated) error {
	ws, err := p.workspaces.ofEvent(data.WorkspaceID)
	if err != nil {
		return err
	}
	c := repo.Created{
		TenantID: data.TenantID, WorkspaceID: ws.ID, NamesWorkspace: data.WorkspaceID != "",
		Title: titleOf(data), Description: data.Description, CreatedBy: data.CreatedBy,
		DashboardID: data.DashboardID, EventID: e.ID, EventTime: e.Time, Message: e.Message,
	}
	if c.DashboardID != "" {
		return p.adopt(ctx, e, c)
	}
	return p.provision(ctx, ws, e, c)
}

// titleOf is the dashboard's title. It is empty for an adopted dashboard whose event has no title.
func titleOf(data events.TenantCreated) string {
	if data.Title != "" || strings.TrimSpace(data.Name) == "" {
		return data.Title
	}
	return titlePrefix + data.Name
}

// adopt assigns an existing dashboard to the tenant. It calls no API, so it needs no permit of the
// workspace's breaker.
func (p *provisioner) adopt(ctx context.Context, e events.Event, c repo.Created) error {
	claim, err := p.db.Adopt(ctx, c, func(m repo.Mapping) (repo.OutboxEvent, error) {
		out, err := DashboardCreatedEvent(m)
		p.spans.remember(ctx, out.EventID)
		return out, err
	})
	switch {
	case errors.Is(err, repo.ErrTaken):
		return permanent(CodeTaken, "%w", err)
	case err != nil:
		return err
	}
	switch claim.Step {
	case repo.StepAdopted:
		p.wakeRelay()
		p.changed(c.TenantID)
		p.log.InfoContext(ctx, "adopted a dashboard", "tenant_id", c.TenantID, "event_id", e.ID,
			"workspace_id", claim.Mapping.WorkspaceID, "dashboard_id", c.DashboardID)
	case repo.StepWait:
		return retry(min(claim.Wait, busyDelay()), "a dashboard is being created for the tenant")
	case repo.StepConflict:
		return conflict(claim.Mapping.DashboardID)
	}
	return nil
}

// Codes of adoptions that are refused.
const (
	CodeTaken    = "DASHBOARD_TAKEN"
	CodeConflict = "DASHBOARD_CONFLICT"
)

// conflict refuses to adopt a dashboard for a tenant that already has another.
func conflict(has string) error {
	return permanent(CodeConflict, "the tenant has dashboard %q: "+
		"`papermap-worker tenants resolve --replace` corrects it", has)
}

// provision claims the tenant, if ws is where it belongs and is not paused, and creates its
// dashboard.
func (p *provisioner) provision(ctx context.Context, ws *workspace, e events.Event, c repo.Created) error {
	if err := p.yieldToUntried(ctx, ws, c.TenantID); err != nil {
		return err
	}
	permit, err := ws.breaker.acquire()
	if err != nil {
		return &events.Retry{After: events.Delay(e.Deliveries), Err: err}
	}
	failpoint.Hit(failpoint.Begin)
	c.AllowedWorkspace = ws.ID
	claim, err := p.db.Begin(ctx, c, p.hold)
	if err != nil || claim.Step != repo.StepCreate {
		permit.cancel()
	}
	if err != nil {
		return err
	}
	a := &attempt{p, ws, e, claim}
	switch claim.Step {
	case repo.StepCreate: // the claim is ours
		failpoint.Hit(failpoint.Claimed)
		return a.create(ctx, permit)
	case repo.StepWait:
		after := claim.Wait
		if claim.Mapping.Stage == repo.Creating {
			after = min(after, busyDelay())
		}
		return retry(after, "the tenant is being provisioned, or waits for its next try")
	case repo.StepElsewhere: // its workspace differs from the event's
		other, ok := p.workspaces.find(claim.Mapping.WorkspaceID)
		if !ok {
			return permanent(codeUnknownWorkspace, "tenant %q belongs to workspace %q, which is not "+
				"configured: add it to PAPERMAP_WORKSPACES_FILE, then replay this",
				c.TenantID, claim.Mapping.WorkspaceID)
		}
		return p.provision(ctx, other, e, c)
	case repo.StepRefused:
		return p.deadLetter(ctx, claim.Mapping)
	case repo.StepRecordOutcome: // of a worker that was killed
		return a.recordFailure(ctx, unknownOutcome("the worker stopped before an answer came"), "")
	}
	return nil
}

func unknownOutcome(message string) error {
	return &papermap.Error{Class: papermap.Unknown, Message: message}
}

// yieldToUntried returns a Retry for a tenant that failed before, while a trial is reserved for
// others.
func (p *provisioner) yieldToUntried(ctx context.Context, ws *workspace, tenantID string) error {
	if !ws.breaker.prefersUntried() {
		return nil
	}
	m, err := p.db.Mapping(ctx, tenantID)
	switch {
	case errors.Is(err, repo.ErrNotFound):
		return nil
	case err == nil && !m.FailedAt.IsZero():
		return retry(untriedFirst, "after a pause, tenants that never failed go first")
	}
	return err
}

// attempt is a claim of a tenant, and the create that it is for.
type attempt struct {
	*provisioner
	ws    *workspace
	event events.Event
	claim repo.Claim
}

// create creates the claimed tenant's dashboard and records the outcome.
func (a *attempt) create(ctx context.Context, permit permit) error {
	log := a.log.With("tenant_id", a.claim.Mapping.TenantID, "event_id", a.event.ID)
	dashboard, err := a.call(ctx)
	failpoint.Hit(failpoint.Answered)
	permit.done(err)
	if err != nil {
		return a.recordFailure(ctx, err, "")
	}
	recorded, err := a.record(ctx, dashboard)
	failpoint.Hit(failpoint.Recorded)
	switch {
	case errors.Is(err, repo.ErrTaken):
		log.ErrorContext(ctx, "Papermap returned another tenant's dashboard",
			"dashboard_id", dashboard.ID, "error", err)
		cause := unknownOutcome("the answer names another tenant's dashboard")
		return a.recordFailure(ctx, cause, dashboard.ID)
	case err != nil:
		return err
	case !recorded:
		log.WarnContext(ctx, "dashboard created after the claim expired; "+
			"recorded as orphaned", "dashboard_id", dashboard.ID, "attempt", a.claim.Attempt.ID)
		a.metrics.attempts.WithLabelValues(string(repo.OutcomeOrphaned)).Inc()
		return retry(busyDelay(), "the claim passed to another worker")
	}
	a.wakeRelay()
	a.metrics.attempts.WithLabelValues(string(repo.OutcomeCreated)).Inc()
	a.changed(a.claim.Mapping.TenantID)
	log.InfoContext(ctx, "created a dashboard", "workspace_id", a.ws.ID, "dashboard_id", dashboard.ID)
	return nil
}

// call sends the create request. It ends leaseMargin before the lease does, so that the outcome can
// be recorded while this worker still holds the tenant.
func (a *attempt) call(ctx context.Context) (papermap.Dashboard, error) {
	deadline := a.claim.Until.Add(-leaseMargin)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if !time.Now().Before(deadline) { // the host slept; ctx may not have noticed
		return papermap.Dashboard{}, &papermap.Error{
			Class: papermap.Retryable, Deferred: true, Message: "the lease ended before the request was sent",
		}
	}
	failpoint.Hit(failpoint.Send)
	m := a.claim.Mapping
	return a.ws.api.CreateDashboard(ctx, papermap.NewDashboard{
		TenantID: m.TenantID, Title: m.Title,
		Description: strings.TrimSpace(m.Description + "\n\n" + a.claim.Attempt.Mark),
	})
}

// record writes the dashboard. recorded is false if the claim has passed to another worker.
func (a *attempt) record(ctx context.Context, dashboard papermap.Dashboard) (recorded bool, err error) {
	err = a.retryUntilWritten(ctx, func(ctx context.Context) error {
		recorded, err = a.db.Finish(ctx, a.claim, dashboard.ID, dashboard.Status, a.announce(ctx))
		if errors.Is(err, repo.ErrTaken) {
			return backoff.Permanent(err)
		}
		return err
	})
	return recorded, err
}

// retryUntilWritten writes the outcome of a create, however long the database is unreachable: if
// the outcome were lost, the create would be repeated. Once ctx has ended, after the grace period
// of a stop, it gives up after one try.
func (p *provisioner) retryUntilWritten(ctx context.Context, write func(context.Context) error) error {
	return backoff.RetryNotify(
		func() error { return write(context.WithoutCancel(ctx)) },
		backoff.WithContext(backoff.NewExponentialBackOff(
			backoff.WithMaxElapsedTime(0), backoff.WithMaxInterval(writeRetryMax)), ctx),
		func(err error, _ time.Duration) {
			if p.unwritten.Allow() { // it affects every create in flight
				p.log.WarnContext(ctx, "cannot record the outcome of a create; retrying",
					"error", err)
			}
		},
	)
}

// recordFailure records a create that produced no usable dashboard. It returns the error that
// decides what happens to the event: a Retry, a Permanent, or nil for a held tenant.
func (a *attempt) recordFailure(ctx context.Context, cause error, dashboardID string) error {
	failure := a.classify(ctx, a.event, cause)
	failure.Result.DashboardID = dashboardID
	var m repo.Mapping
	err := a.retryUntilWritten(ctx, func(ctx context.Context) (err error) {
		m, err = a.db.Fail(ctx, a.claim, failure, a.announce(ctx))
		return err
	})
	if err != nil {
		return err
	}
	a.metrics.attempts.WithLabelValues(string(failure.Result.Outcome)).Inc()
	log := a.log.With("tenant_id", m.TenantID, "event_id", a.event.ID)
	log.DebugContext(ctx, "creating a dashboard failed", "error", cause, "stage", m.Stage)
	switch m.Stage {
	case repo.Failed:
		a.wakeRelay()
		return a.deadLetter(ctx, m)
	case repo.Held:
		a.wakeRelay()
		log.WarnContext(ctx, "tenant held: create has an unknown outcome; "+
			"resolve it with `papermap-worker tenants resolve`", "attempt", a.claim.Attempt.ID)
		return nil
	}
	return &events.Retry{After: failure.RetryAfter, Err: cause}
}

// classify returns what a failed create means for its tenant, by the class of its error:
//
//   - Refused: the request is wrong. The tenant has failed, the event becomes a dead letter.
//   - Credentials, Configuration, Quota: nothing was processed, and no event is at fault. A deferral.
//   - Retryable: provably not processed. A deferral if Papermap asked to come later (429,
//     Retry-After), else a failure that counts.
//   - Unknown, and any other error: it may have been processed. The tenant is held, or the create
//     is repeated and the attempt becomes a possible orphan, as configured.
func (p *provisioner) classify(ctx context.Context, e events.Event, cause error) repo.Failure {
	f := repo.Failure{
		Result:      repo.Result{Outcome: repo.OutcomeRefused, Error: cause.Error()},
		Code:        "API_FAILED",
		MaxFailures: p.maxAttempts,
		RetryAfter:  events.Delay(e.Deliveries),
		Deferral:    ctx.Err() != nil, // the worker is stopping
	}
	var api *papermap.Error
	if !errors.As(cause, &api) {
		api = &papermap.Error{Class: papermap.Unknown}
	}
	f.Result.HTTPStatus = api.Status
	switch api.Class {
	case papermap.Refused:
		f.Permanent, f.Code = true, "API_REFUSED"
	case papermap.Credentials, papermap.Configuration, papermap.Quota:
		f.Deferral = true
	case papermap.Retryable:
		f.Deferral = f.Deferral || api.Deferred
		f.RetryAfter = max(f.RetryAfter, api.RetryAfter)
	default:
		f.Result.Outcome = repo.OutcomeUnknown
		f.Hold = p.hold
		f.RetryAfter = max(f.RetryAfter, unknownWait)
	}
	return f
}

// announce makes the outbox event for the outcome of the claim, by the tenant's stage.
func (a *attempt) announce(ctx context.Context) repo.Announce {
	return func(m repo.Mapping) (e repo.OutboxEvent, err error) {
		switch m.Stage {
		case repo.Failed:
			e, err = newOutboxEvent(events.TypeDashboardFailed, events.DashboardFailed{
				TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, Code: m.FailedCode, Message: m.FailedError,
			})
		case repo.Held:
			e, err = newOutboxEvent(events.TypeDashboardHeld, events.DashboardHeld{
				TenantID: m.TenantID, WorkspaceID: m.WorkspaceID, Attempt: a.claim.Attempt.ID,
			})
		case repo.Pending:
			e, err = TenantCreatedAgain(m)
		default:
			e, err = DashboardCreatedEvent(m)
		}
		a.spans.remember(ctx, e.EventID)
		return e, err
	}
}

// deadLetter is the error that makes the event of a failed tenant a dead letter.
func (p *provisioner) deadLetter(ctx context.Context, m repo.Mapping) error {
	attempts, err := p.db.Attempts(ctx, m.TenantID)
	if err != nil {
		return err
	}
	return &events.Permanent{
		Code: m.FailedCode, Err: errors.New(m.FailedError), Attempts: m.Failures,
		SideEffect: sideEffect(attempts, m.Generation),
	}
}

// sideEffect returns what a generation's attempts may have done at Papermap: none, maybe or done.
func sideEffect(attempts []repo.Attempt, generation int) string {
	effect := "none"
	for _, a := range attempts {
		if a.Generation != generation {
			continue
		}
		switch a.Outcome {
		case repo.OutcomeCreated, repo.OutcomeOrphaned:
			return "done"
		case repo.OutcomeSent, repo.OutcomeUnknown:
			effect = "maybe"
		}
	}
	return effect
}
