package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Lease is how long a claimed tenant is kept from others. A holder must send nothing after it; a killed holder's
// work is taken up again after it. Contract: within 30 s.
const Lease = 25 * time.Second

// maxRetry is the longest that a tenant waits for its next try: what Papermap may ask for with Retry-After.
const maxRetry = 15 * time.Minute

// ErrTaken means that the dashboard id belongs to another tenant.
var ErrTaken = errors.New("the dashboard id belongs to another tenant")

// Step is what Begin found to be done.
type Step int

const (
	Done      Step = iota // nothing: superseded, or recorded before
	Create                // the caller holds the claim and its attempt is committed as sent: create the dashboard now
	Wait                  // somebody else holds the claim, or a retry is not due yet
	Settle                // the caller holds the claim, and an attempt of an earlier holder has an unknown outcome (only with hold)
	Refused               // this message has ended as failed before: end it the same way
	Elsewhere             // the tenant belongs to another workspace than the caller may create in
)

// Claim is the right to provision one tenant, as Begin gave it.
type Claim struct {
	Step    Step
	Mapping Mapping       // as committed
	Attempt Attempt       // with Create: the new one, outcome sent; with Settle: the earlier holder's
	Message string        // the stored message that is handled
	Wait    time.Duration // with Wait: how long until it is worth coming back
	Until   time.Time     // with Create: the end of the lease by this process's monotonic clock
}

// Begin records the intent to give the tenant a dashboard. When that is to be done now and nobody else does it, it
// claims the tenant and commits a new attempt as sent, all in one transaction, before the caller sends anything.
//
// A tenant stays in the workspace where it was begun. Begin claims it for e.Entered alone, because an attempt is a call.
//
// An attempt of an earlier holder that is still "sent" has an unknown outcome. With hold, Begin hands it over to be
// settled instead of making another.
func (db *DB) Begin(ctx context.Context, e Created, hold bool) (Claim, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Claim{}, fmt.Errorf("making an attempt id: %w", err)
	}
	started := time.Now()
	db.begun.Store(started.UnixNano())
	var c Claim
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lock(ctx, e.TenantID, e.WorkspaceID)
		if err != nil {
			return err
		}
		c = Claim{Message: e.Message}
		switch m.accept(e) {
		case nothing:
			c.Step = Done
		case asBefore:
			c.Step = Refused
		case provision:
			if c.Wait = t.wait(&m.Mapping); c.Wait > 0 {
				c.Step = Wait
				break
			}
			if m.WorkspaceID != cmp.Or(e.Entered, e.WorkspaceID) {
				c.Step = Elsewhere
				break
			}
			if err := t.claim(ctx, &m.Mapping, &c, id.String(), hold); err != nil {
				return err
			}
		}
		if err := t.save(ctx, m); err != nil {
			return err
		}
		c.Mapping = m.Mapping
		return nil
	})
	if err != nil {
		return Claim{}, fmt.Errorf("beginning to provision tenant %q: %w", e.TenantID, err)
	}
	c.Until = started.Add(Lease)
	return c, nil
}

// wait is how long nobody may claim the tenant. No lease and no retry is further off than the longest: if one is, the clock
// was set back, and its time begins anew.
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

// claim gives the tenant to the caller and settles or hands over what an earlier holder left.
func (t *tx) claim(ctx context.Context, m *Mapping, c *Claim, attemptID string, hold bool) error {
	first := m.Epoch == 1 // nobody has claimed the tenant yet, so nobody can have left an attempt
	m.Epoch++
	m.ClaimableAt = at(t.now.Add(Lease))
	m.Stage = Creating
	m.show()
	if hold && !first {
		err := t.get(ctx, &c.Attempt, "SELECT "+attemptColumns+` FROM provision_attempts
			WHERE tenant_id = ? AND generation = ? AND outcome = 'sent' ORDER BY started_at DESC LIMIT 1`, m.TenantID, m.Generation)
		if err == nil {
			c.Step = Settle
			return nil
		}
		if err != ErrNotFound {
			return err
		}
	}
	if !first {
		err := t.exec(ctx, `UPDATE provision_attempts SET outcome = 'unknown', error = 'the worker stopped before an answer came', finished_at = ?
			WHERE tenant_id = ? AND outcome = 'sent'`, t.now, m.TenantID)
		if err != nil {
			return err
		}
	}
	c.Step = Create
	c.Attempt = Attempt{
		ID: attemptID, WorkspaceID: m.WorkspaceID, TenantID: m.TenantID, Generation: m.Generation,
		Mark: "pmw:" + attemptID, Outcome: Sent, StartedAt: t.now,
	}
	return t.exec(ctx, `INSERT INTO provision_attempts (id, workspace_id, tenant_id, generation, mark, outcome, started_at)
		VALUES (?, ?, ?, ?, ?, 'sent', ?)`, attemptID, m.WorkspaceID, m.TenantID, m.Generation, c.Attempt.Mark, t.now)
}

// Finish records the dashboard that the claim's attempt made, the status of the answer that named it, and n with it. When the claim is no longer the
// current one the attempt is recorded as orphaned instead, and recorded is false. It returns ErrTaken, and records
// nothing, when the dashboard belongs to another tenant.
func (db *DB) Finish(ctx context.Context, c Claim, dashboardID string, httpStatus int, n Notice) (recorded bool, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lock(ctx, c.Mapping.TenantID, c.Mapping.WorkspaceID)
		if err != nil {
			return err
		}
		if recorded = m.Stage == Active && m.DashboardID == dashboardID; recorded {
			return nil // by a try whose answer was lost, or by a person who found it at Papermap
		}
		if recorded = m.Epoch == c.Mapping.Epoch; !recorded {
			if err := t.exec(ctx, "UPDATE provision_attempts SET settled_at = NULL WHERE id = ?", c.Attempt.ID); err != nil { // whoever settled it did not know this dashboard
				return err
			}
			return t.settle(ctx, c.Attempt.ID, Result{Outcome: Orphaned, DashboardID: dashboardID, HTTPStatus: httpStatus})
		}
		if err := t.activate(ctx, m, dashboardID); err != nil {
			return err
		}
		if err := t.settle(ctx, c.Attempt.ID, Result{Outcome: Made, DashboardID: dashboardID, HTTPStatus: httpStatus}); err != nil {
			return err
		}
		if !m.Wanted() { // deleted meanwhile: the dashboard is recorded, but there is nothing to announce
			return nil
		}
		return t.notify(ctx, m.TenantID, n)
	})
	if err != nil {
		return false, fmt.Errorf("recording dashboard %q for tenant %q: %w", dashboardID, c.Mapping.TenantID, err)
	}
	return recorded, nil
}

// activate makes the dashboard the mapping's, or returns ErrTaken.
func (t *tx) activate(ctx context.Context, m *mappingRow, dashboardID string) error {
	var taken bool // by an attempt for another tenant; if it is another's mapping's, the table says so itself
	err := t.get(ctx, &taken, "SELECT EXISTS (SELECT 1 FROM provision_attempts WHERE workspace_id = ? AND dashboard_id = ? AND tenant_id <> ?)",
		m.WorkspaceID, dashboardID, m.TenantID)
	if err != nil {
		return err
	}
	if taken {
		return ErrTaken
	}
	m.Stage, m.DashboardID, m.ClaimableAt = Active, dashboardID, Time{}
	m.Failures, m.FailedAt, m.FailedCode, m.FailedError = 0, Time{}, "", ""
	m.show()
	if err = t.save(ctx, m); isUnique(err) {
		return ErrTaken
	}
	return err
}

// Failure is a create call that made no dashboard that can be recorded.
type Failure struct {
	Result Result
	Code   string // why, for people's programs

	// What becomes of the tenant, the first that is set; with none it is tried again after Retry.
	Permanent bool // failed at once
	Hold      bool // held until an operator settles it

	Deferral bool          // not a failure at all: a pause, a 429, a Retry-After
	Retry    time.Duration // nobody claims the tenant before
	Most     int           // counted failures after which the tenant is failed

	FailedNotice, HeldNotice Notice // the event for a tenant that ends so
	AgainNotice              Notice // its tenant.created again, for one that was held meanwhile and need not be
}

// Fail records that the claim's attempt failed and returns the mapping that follows from it: pending to be tried
// again, held, or failed. A failure counts only if another tenant's create succeeded in the workspace since this
// tenant's previous failure: otherwise the API is at fault and not the event. When the claim is no longer the
// current one, only the attempt is recorded. To repeat it changes nothing.
func (db *DB) Fail(ctx context.Context, c Claim, f Failure) (Mapping, error) {
	var after Mapping
	err := db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lock(ctx, c.Mapping.TenantID, c.Mapping.WorkspaceID)
		if err != nil {
			return err
		}
		if m.Epoch != c.Mapping.Epoch {
			defer func() { after = m.Mapping }()
			if c.Step == Settle { // it was not the caller's, who knows less of it than anybody
				return nil
			}
			if err := t.settleStale(ctx, c.Attempt.ID, f.Result); err != nil {
				return err
			}
			return t.release(ctx, m, c, f)
		}
		if after = m.Mapping; m.Stage != Creating {
			return nil // by a try whose answer was lost
		}
		if c.Step == Settle {
			if f, err = t.settleLeft(ctx, c.Attempt.ID, f); err != nil {
				return err
			}
		} else if err := t.settle(ctx, c.Attempt.ID, f.Result); err != nil {
			return err
		}
		m.Stage, m.ClaimableAt = Pending, at(t.now.Add(f.Retry))
		switch {
		case f.Permanent:
			m.Stage = Failed
		case f.Hold:
			m.Stage = Held
		case !f.Deferral:
			if err := t.count(ctx, &m.Mapping); err != nil {
				return err
			}
			if m.Failures >= f.Most {
				m.Stage = Failed
			}
		}
		if m.Stage != Pending {
			m.ClaimableAt = Time{}
		}
		if m.Stage == Failed {
			m.FailedMessage = c.Message
		}
		m.FailedCode, m.FailedError = f.Code, f.Result.Error
		m.show()
		if err := t.save(ctx, m); err != nil {
			return err
		}
		after = m.Mapping
		switch {
		case !m.Wanted(): // deleted meanwhile: there is nothing to announce
			return nil
		case m.Stage == Failed:
			return t.notify(ctx, m.TenantID, f.FailedNotice)
		case m.Stage == Held:
			return t.notify(ctx, m.TenantID, f.HeldNotice)
		}
		return nil
	})
	if err != nil {
		return Mapping{}, fmt.Errorf("recording a failed create for tenant %q: %w", c.Mapping.TenantID, err)
	}
	return after, nil
}

// release lets a tenant go on that is held for an attempt of which its holder, who slept, now says that nothing was made.
func (t *tx) release(ctx context.Context, m *mappingRow, c Claim, f Failure) error {
	if m.Stage != Held || m.Generation != c.Mapping.Generation || f.Result.Outcome != NotAccepted || !m.Wanted() {
		return nil
	}
	var uncertain bool
	err := t.get(ctx, &uncertain, `SELECT EXISTS (SELECT 1 FROM provision_attempts
		WHERE tenant_id = ? AND generation = ? AND outcome NOT IN ('created', 'refused'))`, m.TenantID, m.Generation)
	if err != nil || uncertain {
		return err
	}
	m.Epoch++
	m.Stage, m.ClaimableAt = Pending, Time{}
	m.show()
	if err := t.save(ctx, m); err != nil {
		return err
	}
	n := f.AgainNotice
	n.OriginalID, n.OriginalTime = m.CreatedEventID, m.CreatedEvent
	return t.notify(ctx, m.TenantID, n)
}

// count adds a failure if another tenant's create succeeded since the last one.
func (t *tx) count(ctx context.Context, m *Mapping) error {
	if !m.FailedAt.IsZero() {
		var succeeded bool
		err := t.get(ctx, &succeeded, `SELECT EXISTS (SELECT 1 FROM provision_attempts
			WHERE workspace_id = ? AND outcome = 'created' AND finished_at > ? AND tenant_id <> ?)`, m.WorkspaceID, m.FailedAt, m.TenantID)
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
