package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Lease is how long a claimed tenant is kept from other workers. Its holder must send nothing after
// that. Another worker then takes over the work of a killed holder. Contract: within 30 s.
const Lease = 25 * time.Second

// maxRetry is the longest that a tenant waits for its next try: the maximum that Retry-After may
// ask for.
const maxRetry = 15 * time.Minute

// ErrTaken means that the dashboard id belongs to another tenant.
var ErrTaken = errors.New("the dashboard id belongs to another tenant")

// Taken returns ErrTaken with the name of the tenant.
func Taken(owner string) error { return fmt.Errorf("%w, %q", ErrTaken, owner) }

// Step is what the caller of Begin must do.
type Step int

const (
	// StepDone: nothing. The event is superseded, or was recorded before.
	StepDone Step = iota
	// StepCreate: create the dashboard now. The caller holds the claim, and its attempt is
	// committed as sent.
	StepCreate
	// StepWait: retry after Claim.Wait. Another worker holds the claim, or a retry is not due yet.
	StepWait
	// StepRecordOutcome: call Fail. The caller holds the claim, and the attempt of an earlier
	// holder may have created a dashboard. Only with hold.
	StepRecordOutcome
	// StepRefused: end as failed, as this message did before.
	StepRefused
	// StepElsewhere: begin again for the workspace of Claim.Mapping, in which the caller may not
	// create.
	StepElsewhere
	// StepAdopted: nothing. Adopt has recorded the dashboard.
	StepAdopted
	// StepConflict: refuse the event. The tenant keeps its other dashboard.
	StepConflict
)

// Claim is the right to provision one tenant, as Begin gave it. It is valid for one Finish or Fail,
// by the worker that got it, until another Begin, a person's Resolve or a new generation raises the
// epoch of the mapping.
type Claim struct {
	Step    Step
	Mapping Mapping       // as committed
	Attempt Attempt       // with StepCreate the new one; with StepRecordOutcome the earlier holder's
	Message string        // the stored message that is handled
	Event   int64         // its event's time, in Unix nanoseconds
	Wait    time.Duration // with StepWait: how long to wait before a retry
	Until   time.Time     // with StepCreate: the end of the lease by this process's monotonic clock
}

// Begin records the intent to give the tenant a dashboard. If that has to be done now and no other
// worker does it, Begin claims the tenant and commits a new attempt as sent, all in one
// transaction, before the caller sends anything.
//
// A tenant stays in the workspace where its generation started. Begin claims it only for
// e.AllowedWorkspace, because an attempt is an API call.
//
// An attempt of an earlier holder that recorded no outcome before its lease ended may have created a
// dashboard. With hold, Begin returns it so that its outcome is recorded. Without hold, it makes
// another attempt.
func (db *DB) Begin(ctx context.Context, e Created, hold bool) (Claim, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Claim{}, fmt.Errorf("make an attempt id: %w", err)
	}
	started := time.Now()
	db.lastBegin.Store(started.UnixNano())
	var c Claim
	err = db.decide(ctx, &job{
		tenantID: e.TenantID, workspaceID: e.WorkspaceID,
		decide: func(d *decision) (err error) {
			c, err = d.begin(e, id.String(), hold)
			return err
		},
	}, "begin to provision tenant %q", e.TenantID)
	if err != nil {
		return Claim{}, err
	}
	c.Until = started.Add(Lease)
	return c, nil
}

func (d *decision) begin(e Created, attemptID string, hold bool) (Claim, error) {
	c := Claim{Message: e.Message, Event: eventTime(e.EventTime)}
	switch d.applyCreated(e) {
	case noEffect:
		c.Step = StepDone
	case failAgain:
		c.Step = StepRefused
	case provision:
		if c.Wait = d.wait(); c.Wait > 0 {
			c.Step = StepWait
		} else if d.WorkspaceID != cmp.Or(e.AllowedWorkspace, e.WorkspaceID) {
			c.Step = StepElsewhere
		} else if err := d.claim(&c, attemptID, hold); err != nil {
			return c, err
		}
	}
	d.save()
	c.Mapping = d.Mapping
	return c, nil
}

// wait is how long it takes until the tenant may be claimed; zero or less means now.
func (d *decision) wait() time.Duration {
	longest := maxRetry
	if d.Stage == Creating {
		longest = Lease
	}
	d.ClaimableAt = notBeyond(d.ClaimableAt, d.now, longest)
	return d.ClaimableAt.Sub(d.now.Time)
}

// claim gives the tenant to the caller. If an earlier holder recorded no outcome, hold decides what
// happens to its attempt: it is returned, unless it is known by now that it created nothing, or it is
// recorded as unknown.
func (d *decision) claim(c *Claim, attemptID string, hold bool) error {
	first := d.Epoch == 1 // no worker has claimed the tenant yet, so there is no attempt
	abandoned := d.Stage == Creating
	d.Epoch++
	d.setStage(Creating, d.after(Lease))
	if abandoned && hold {
		newest, err := d.newestAttempt()
		if err != nil {
			return err
		}
		if newest != nil && newest.Outcome != OutcomeRefused {
			c.Step, c.Attempt = StepRecordOutcome, newest.Attempt
			return nil
		}
	}
	if !first {
		if err := d.giveUpSent(); err != nil {
			return err
		}
	}
	c.Step = StepCreate
	c.Attempt = Attempt{
		ID: attemptID, WorkspaceID: d.WorkspaceID, TenantID: d.TenantID, Generation: d.Generation,
		Mark: "pmw:" + attemptID, Outcome: OutcomeSent, StartedAt: d.now,
	}
	d.attempts = append(d.attempts, attemptRow{Attempt: c.Attempt})
	return nil
}

// newestAttempt returns the newest attempt of the generation, or nil.
func (d *decision) newestAttempt() (*attemptRow, error) {
	list, err := d.history(func(a *attemptRow) bool { return a.Generation == d.Generation })
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return slices.MaxFunc(list, func(a, b *attemptRow) int {
		return cmp.Or(a.StartedAt.Compare(b.StartedAt.Time), cmp.Compare(a.ID, b.ID))
	}), nil
}

// giveUpSent records the tenant's attempts that are sent as unknown: their holders' leases have
// ended.
func (d *decision) giveUpSent() error {
	abandoned, err := d.sent()
	if err != nil {
		return err
	}
	const why = "the worker stopped before an answer came"
	for _, a := range abandoned {
		if err := d.record(a, Result{Outcome: OutcomeUnknown, Error: why}); err != nil {
			return err
		}
	}
	return nil
}

// Finish records the dashboard that the claim's attempt created, the HTTP status of the answer that
// named it, and the event of announce. If the claim is no longer the current one, the attempt is
// recorded as orphaned instead, and recorded is false. It returns ErrTaken, and records nothing, if
// the dashboard belongs to another tenant. It is idempotent.
func (db *DB) Finish(
	ctx context.Context, c Claim, dashboardID string, httpStatus int, announce Announce,
) (recorded bool, err error) {
	result := Result{Outcome: OutcomeCreated, DashboardID: dashboardID, HTTPStatus: httpStatus}
	err = db.decide(ctx, &job{
		tenantID: c.Mapping.TenantID, workspaceID: c.Mapping.WorkspaceID,
		decide: func(d *decision) (err error) {
			recorded, err = d.finish(c, result, announce)
			return err
		},
	}, "record dashboard %q of tenant %q", dashboardID, c.Mapping.TenantID)
	return recorded, err
}

func (d *decision) finish(c Claim, r Result, announce Announce) (recorded bool, err error) {
	if d.Stage == Active && d.DashboardID == r.DashboardID {
		return true, nil // recorded before, or found at Papermap by a person
	}
	a := d.attempt(c.Attempt)
	if d.Epoch != c.Mapping.Epoch {
		// It is not the mapping's. A person who resolved the attempt before cannot have known this
		// dashboard, so it is listed again.
		r.Outcome = OutcomeOrphaned
		a.ResolvedAt, a.resolved = Time{}, true
		return false, d.record(a, r)
	}
	if err := d.activate(r.DashboardID, OriginCreated, c.Event); err != nil {
		return false, err
	}
	if err := d.record(a, r); err != nil {
		return false, err
	}
	return true, d.announce(announce)
}

// activate makes the dashboard the mapping's, with its origin and the time of the event or the
// correction, or returns ErrTaken.
func (d *decision) activate(dashboardID string, origin Origin, event int64) error {
	other, err := d.own(owner{WorkspaceID: d.WorkspaceID, DashboardID: dashboardID, SetAt: d.now})
	if err != nil {
		return err
	}
	if other != "" {
		return Taken(other)
	}
	d.DashboardID, d.Origin, d.DashboardEvent = dashboardID, origin, event
	d.clearFailures()
	d.setStage(Active, Time{})
	d.save()
	return nil
}

// Failure is a create call that produced no dashboard to record.
type Failure struct {
	Result Result
	Code   string // why, for programs: the code of dashboard.failed

	// What happens to the tenant: the first that is set. If none is, it is retried after
	// RetryAfter.
	Permanent bool // failed at once
	Hold      bool // held until an operator resolves it

	Deferral    bool          // does not count: a pause, a 429, a Retry-After
	RetryAfter  time.Duration // no worker claims the tenant before
	MaxFailures int           // counted failures after which the tenant is failed
}

// Fail records that the claim's attempt failed and returns the resulting mapping: pending and to be
// retried, held, or failed. A failure counts only if another tenant's create succeeded in the
// workspace since this tenant's previous failure; otherwise the API is at fault and not the event.
// If the claim is no longer the current one, only the attempt is recorded. Fail is idempotent.
//
// announce is called for a tenant that ends as Failed or Held, and for one that was held in the
// meantime and becomes Pending because nothing was created after all.
func (db *DB) Fail(ctx context.Context, c Claim, f Failure, announce Announce) (after Mapping, err error) {
	err = db.decide(ctx, &job{
		tenantID: c.Mapping.TenantID, workspaceID: c.Mapping.WorkspaceID,
		decide: func(d *decision) (err error) {
			err = d.fail(c, f, announce)
			after = d.Mapping
			return err
		},
	}, "record a failed create of tenant %q", c.Mapping.TenantID)
	if err != nil {
		return Mapping{}, err
	}
	return after, nil
}

func (d *decision) fail(c Claim, f Failure, announce Announce) error {
	switch {
	case d.Epoch != c.Mapping.Epoch:
		return d.failStale(c, f.Result, announce)
	case d.Stage == Creating:
		return d.failCurrent(c, f, announce)
	}
	return nil // it is recorded, by a try whose answer was lost
}

// failCurrent is Fail for the current claim.
func (d *decision) failCurrent(c Claim, f Failure, announce Announce) (err error) {
	a := d.attempt(c.Attempt)
	if c.Step == StepRecordOutcome {
		if a, err = d.ofClaim(c); err != nil {
			return err
		}
		f = f.abandoned(&a.Attempt)
	}
	if a.Outcome == OutcomeSent {
		if err := d.record(a, f.Result); err != nil {
			return err
		}
	}
	stage, claimable := Pending, d.after(f.RetryAfter)
	switch {
	case f.Permanent:
		stage = Failed
	case f.Hold:
		stage = Held
	case !f.Deferral:
		if err := d.countFailure(); err != nil {
			return err
		}
		if d.Failures >= f.MaxFailures {
			stage = Failed
		}
	}
	if stage == Failed {
		d.FailedMessage = c.Message
	}
	if stage != Pending {
		claimable = Time{}
	}
	d.FailedCode, d.FailedError = f.Code, f.Result.Error
	d.setStage(stage, claimable)
	d.save()
	if stage == Pending {
		return nil
	}
	return d.announce(announce)
}

// ofClaim returns the claim's attempt as it is recorded now: an earlier holder, or a person, may
// have changed it since the claim.
func (d *decision) ofClaim(c Claim) (*attemptRow, error) {
	list, err := d.history(func(a *attemptRow) bool { return a.ID == c.Attempt.ID })
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// countFailure adds a failure if another tenant's create succeeded since the last one.
func (d *decision) countFailure() error {
	if !d.FailedAt.IsZero() {
		succeeded, err := d.succeededSince(d.FailedAt)
		if err != nil {
			return err
		}
		if succeeded {
			d.Failures++
		}
	}
	d.FailedAt = d.now
	return nil
}

// failStale is Fail for a holder that was suspended past its lease. A tenant that is held because
// of its attempt is released if the holder knows that nothing was created.
func (d *decision) failStale(c Claim, r Result, announce Announce) error {
	if c.Step == StepRecordOutcome { // the attempt was not the caller's, and others know more of it
		return nil
	}
	a, err := d.ofClaim(c)
	if err != nil {
		return err
	}
	if a.Outcome != OutcomeCreated { // else a person has found that it made the mapping's dashboard
		if err := d.record(a, r); err != nil {
			return err
		}
	}
	heldForIt := d.Stage == Held && d.Generation == c.Mapping.Generation && d.Wanted()
	if !heldForIt || r.Outcome != OutcomeRefused {
		return nil
	}
	uncertain, err := d.history(func(a *attemptRow) bool {
		return a.Generation == d.Generation && a.Outcome != OutcomeCreated && a.Outcome != OutcomeRefused
	})
	if err != nil || len(uncertain) > 0 {
		return err
	}
	d.Epoch++
	d.setStage(Pending, Time{})
	d.save()
	return d.announce(announce)
}
