package repo

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"errors"

	"github.com/google/uuid"
)

// Lease is how long a claimed tenant is kept from other workers. A holder must send nothing after
// it; the work of a killed holder is taken up after it. Contract: within 30 s.
const Lease = 25 * time.Second

// maxRetry is the longest that a tenant waits for its next try: what Papermap may ask for with
// Retry-After.
const maxRetry = 15 * time.Minute

// ErrTaken means that the dashboard id belongs to another tenant.
var ErrTaken = errors.New("the dashboard id belongs to another tenant")

// Step is what the caller of Begin has to do.
type Step int

const (
	// StepDone: nothing. The event is superseded, or was recorded before.
	StepDone Step = iota
	// StepCreate: create the dashboard now. The caller holds the claim, and its attempt is
	// committed as sent.
	StepCreate
	// StepWait: come back after Claim.Wait. Another worker holds the claim, or a retry is not due
	// yet.
	StepWait
	// StepRecordOutcome: call Fail. The caller holds the claim, and the attempt of an earlier
	// holder has no outcome. Only with hold.
	StepRecordOutcome
	// StepRefused: end as failed, as this message has before.
	StepRefused
	// StepElsewhere: begin again for the workspace of Claim.Mapping, in which the caller may not
	// create.
	StepElsewhere
)

// Claim is the right to provision one tenant, as Begin gave it. It is good for one Finish or Fail,
// by the worker that got it, until another Begin, a person's Resolve or a new generation has raised
// the epoch of the mapping.
type Claim struct {
	Step    Step
	Mapping Mapping       // as committed
	Attempt Attempt       // with StepCreate the new one; with StepRecordOutcome the earlier holder's
	Message string        // the stored message that is handled
	Wait    time.Duration // with StepWait: how long until it is worth coming back
	Until   time.Time     // with StepCreate: the end of the lease by this process's monotonic clock
}

// Begin records the intent to give the tenant a dashboard. When that is to be done now and no other
// worker does it, it claims the tenant and commits a new attempt as sent, all in one transaction,
// before the caller sends anything.
//
// A tenant stays in the workspace where its generation started. Begin claims it for
// e.AllowedWorkspace alone, because an attempt is a call.
//
// An attempt of an earlier holder that is still "sent" has an unknown outcome. With hold, Begin
// hands it over for its outcome to be recorded; without, it makes another.
func (db *DB) Begin(ctx context.Context, e Created, hold bool) (Claim, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Claim{}, fmt.Errorf("make an attempt id: %w", err)
	}
	started := time.Now()
	db.lastBegin.Store(started.UnixNano())
	var c Claim
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lockOrMake(ctx, e.TenantID, e.WorkspaceID)
		if err != nil {
			return err
		}
		c = Claim{Message: e.Message, Until: started.Add(Lease)}
		switch m.applyCreated(e) {
		case noEffect:
			c.Step = StepDone
		case failAgain:
			c.Step = StepRefused
		case provision:
			if c.Wait = t.wait(&m.Mapping); c.Wait > 0 {
				c.Step = StepWait
			} else if m.WorkspaceID != cmp.Or(e.AllowedWorkspace, e.WorkspaceID) {
				c.Step = StepElsewhere
			} else if err := t.claim(ctx, &m.Mapping, &c, id.String(), hold); err != nil {
				return err
			}
		}
		err = t.save(ctx, m)
		c.Mapping = m.Mapping
		return err
	}, "begin to provision tenant %q", e.TenantID)
	if err != nil {
		return Claim{}, err
	}
	return c, nil
}

// wait is how long the tenant may not be claimed yet; not positive when it may. No lease and no
// retry is further off than the longest possible: if one is, the clock was set back, and its time
// starts anew.
func (t *tx) wait(m *Mapping) time.Duration {
	longest := maxRetry
	if m.Stage == Creating {
		longest = Lease
	}
	if m.ClaimableAt.Sub(t.now.Time) > longest {
		m.ClaimableAt = at(t.now.Add(longest))
	}
	return m.ClaimableAt.Sub(t.now.Time)
}

// claim gives the tenant to the caller. An attempt that an earlier holder left without an outcome
// is handed over with hold, else recorded as unknown.
func (t *tx) claim(ctx context.Context, m *Mapping, c *Claim, attemptID string, hold bool) error {
	first := m.Epoch == 1 // no worker has claimed the tenant yet, so there is no attempt
	m.Epoch++
	m.setStage(Creating, at(t.now.Add(Lease)))
	if hold && !first {
		err := t.get(ctx, &c.Attempt, selectAttempt+` WHERE tenant_id = ? AND generation = ?
			AND outcome = 'sent' ORDER BY started_at DESC LIMIT 1`, m.TenantID, m.Generation)
		if err == nil {
			c.Step = StepRecordOutcome
		}
		if err != ErrNotFound {
			return err
		}
	}
	if !first {
		err := t.exec(ctx, `UPDATE provision_attempts SET outcome = 'unknown',
			error = 'the worker stopped before an answer came', finished_at = ?
			WHERE tenant_id = ? AND outcome = 'sent'`, t.now, m.TenantID)
		if err != nil {
			return err
		}
	}
	c.Step = StepCreate
	c.Attempt = Attempt{
		ID: attemptID, WorkspaceID: m.WorkspaceID, TenantID: m.TenantID, Generation: m.Generation,
		Mark: "pmw:" + attemptID, Outcome: OutcomeSent, StartedAt: t.now,
	}
	return t.exec(ctx, `INSERT INTO provision_attempts
		(id, workspace_id, tenant_id, generation, mark, outcome, started_at)
		VALUES (?, ?, ?, ?, ?, 'sent', ?)`,
		attemptID, m.WorkspaceID, m.TenantID, m.Generation, c.Attempt.Mark, t.now)
}

// Finish records the dashboard that the claim's attempt made, the HTTP status of the answer that
// named it, and the event of announce with it. When the claim is no longer the current one the
// attempt is recorded as orphaned instead, and recorded is false. It returns ErrTaken, and records
// nothing, when the dashboard belongs to another tenant. To repeat it changes nothing.
func (db *DB) Finish(
	ctx context.Context, c Claim, dashboardID string, httpStatus int, announce Announce,
) (recorded bool, err error) {
	result := Result{Outcome: OutcomeCreated, DashboardID: dashboardID, HTTPStatus: httpStatus}
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lockOrMake(ctx, c.Mapping.TenantID, c.Mapping.WorkspaceID)
		if err != nil {
			return err
		}
		if recorded = m.Stage == Active && m.DashboardID == dashboardID; recorded {
			return nil // by a try whose answer was lost, or by a person who found it at Papermap
		}
		if recorded = m.Epoch == c.Mapping.Epoch; !recorded {
			return t.recordOrphan(ctx, c.Attempt.ID, result)
		}
		if err := t.activate(ctx, m, dashboardID); err != nil {
			return err
		}
		if err := t.recordOutcome(ctx, c.Attempt.ID, result); err != nil {
			return err
		}
		return t.announce(ctx, &m.Mapping, announce)
	}, "record dashboard %q of tenant %q", dashboardID, c.Mapping.TenantID)
	return recorded && err == nil, err
}

// recordOrphan records that the attempt made a dashboard that is not the mapping's. A person who
// resolved the attempt before cannot have known this dashboard, so it is listed again.
func (t *tx) recordOrphan(ctx context.Context, attemptID string, r Result) error {
	r.Outcome = OutcomeOrphaned
	if err := t.recordOutcome(ctx, attemptID, r); err != nil {
		return err
	}
	return t.exec(ctx, "UPDATE provision_attempts SET settled_at = NULL WHERE id = ?", attemptID)
}

// activate makes the dashboard the mapping's, or returns ErrTaken.
func (t *tx) activate(ctx context.Context, m *mappingRow, dashboardID string) error {
	// By an attempt for another tenant; if it is another's mapping's, the table's unique key says
	// so.
	taken, err := t.exists(ctx,
		"provision_attempts WHERE workspace_id = ? AND dashboard_id = ? AND tenant_id <> ?",
		m.WorkspaceID, dashboardID, m.TenantID)
	if err != nil {
		return err
	}
	if taken {
		return ErrTaken
	}
	m.DashboardID = dashboardID
	m.clearFailures()
	m.setStage(Active, Time{})
	if err = t.save(ctx, m); t.db.dialect.isUnique(err) {
		return ErrTaken
	}
	return err
}

// Failure is a create call that made no dashboard that can be recorded.
type Failure struct {
	Result Result
	Code   string // why, for programs: the code of dashboard.failed

	// What becomes of the tenant: the first that is set. With none it is tried again after
	// RetryAfter.
	Permanent bool // failed at once
	Hold      bool // held until an operator resolves it

	Deferral    bool          // does not count: a pause, a 429, a Retry-After
	RetryAfter  time.Duration // no worker claims the tenant before
	MaxFailures int           // counted failures after which the tenant is failed
}

// Fail records that the claim's attempt failed and returns the mapping that follows from it:
// pending to be tried again, held, or failed. A failure counts only if another tenant's create
// succeeded in the workspace since this tenant's previous failure: otherwise the API is at fault
// and not the event. When the claim is no longer the current one, only the attempt is recorded. To
// repeat it changes nothing.
//
// announce is called for a tenant that ends as Failed or Held, and for one that was held meanwhile
// and becomes Pending because nothing was made after all.
func (db *DB) Fail(ctx context.Context, c Claim, f Failure, announce Announce) (after Mapping, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lockOrMake(ctx, c.Mapping.TenantID, c.Mapping.WorkspaceID)
		if err != nil {
			return err
		}
		switch {
		case m.Epoch != c.Mapping.Epoch:
			err = t.failStale(ctx, m, c, f.Result, announce)
		case m.Stage == Creating: // else it is recorded, by a try whose answer was lost
			err = t.fail(ctx, m, c, f, announce)
		}
		after = m.Mapping
		return err
	}, "record a failed create of tenant %q", c.Mapping.TenantID)
	if err != nil {
		return Mapping{}, err
	}
	return after, nil
}

// fail is Fail for the current claim.
func (t *tx) fail(ctx context.Context, m *mappingRow, c Claim, f Failure, announce Announce) (err error) {
	if c.Step == StepRecordOutcome {
		f, err = t.recordAbandonedOutcome(ctx, c.Attempt.ID, f)
	} else {
		err = t.recordOutcome(ctx, c.Attempt.ID, f.Result)
	}
	if err != nil {
		return err
	}
	stage, claimable := Pending, at(t.now.Add(f.RetryAfter))
	switch {
	case f.Permanent:
		stage = Failed
	case f.Hold:
		stage = Held
	case !f.Deferral:
		if err := t.countFailure(ctx, &m.Mapping); err != nil {
			return err
		}
		if m.Failures >= f.MaxFailures {
			stage = Failed
		}
	}
	if stage == Failed {
		m.FailedMessage = c.Message
	}
	if stage != Pending {
		claimable = Time{}
	}
	m.FailedCode, m.FailedError = f.Code, f.Result.Error
	m.setStage(stage, claimable)
	if err := t.save(ctx, m); err != nil || stage == Pending {
		return err
	}
	return t.announce(ctx, &m.Mapping, announce)
}

// countFailure adds a failure if another tenant's create succeeded since the last one.
func (t *tx) countFailure(ctx context.Context, m *Mapping) error {
	if !m.FailedAt.IsZero() {
		succeeded, err := t.exists(ctx, `provision_attempts
			WHERE workspace_id = ? AND outcome = 'created' AND finished_at > ? AND tenant_id <> ?`,
			m.WorkspaceID, m.FailedAt, m.TenantID)
		if err != nil {
			return err
		}
		if succeeded {
			m.Failures++
		}
	}
	m.FailedAt = t.now
	return nil
}

// failStale is Fail for a holder that slept through its lease. A tenant that was held for its
// attempt goes on when the holder knows that nothing was made.
func (t *tx) failStale(ctx context.Context, m *mappingRow, c Claim, r Result, announce Announce) error {
	if c.Step == StepRecordOutcome { // the attempt was not the caller's, and others know more of it
		return nil
	}
	if err := t.recordStaleOutcome(ctx, c.Attempt.ID, r); err != nil {
		return err
	}
	heldForIt := m.Stage == Held && m.Generation == c.Mapping.Generation && m.Wanted()
	if !heldForIt || r.Outcome != OutcomeRefused {
		return nil
	}
	uncertain, err := t.exists(ctx, `provision_attempts WHERE tenant_id = ? AND generation = ?
		AND outcome NOT IN ('created', 'refused')`, m.TenantID, m.Generation)
	if err != nil || uncertain {
		return err
	}
	m.Epoch++
	m.setStage(Pending, Time{})
	if err := t.save(ctx, m); err != nil {
		return err
	}
	return t.announce(ctx, &m.Mapping, announce)
}
