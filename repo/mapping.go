package repo

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// Status is the state that a mapping shows, and also its stage of provisioning. These move a tenant
// from one stage to the next:
//
//	none      tenant.created             pending
//	pending   Begin                      creating
//	creating  Finish                     active
//	          Fail, to be tried again    pending
//	          Fail, outcome unknown      held, with PAPERMAP_ON_AMBIGUOUS=hold
//	          Fail, refused or too often failed
//	          Begin, after the lease     creating, by another worker
//	held      Resolve                    active
//	          Recreate                   pending
//	active    Replace                    active, with another dashboard
//	failed    tenant.created             pending, generation + 1
//	any       tenant.created after
//	          tenant.deleted             pending, generation + 1
//
// A tenant.created that names a dashboard (Adopt) leads to active where another one leads to
// pending. It also leads from pending and held to active.
//
// tenant.suspended, tenant.resumed and tenant.deleted change the status, and leave the stage
// unchanged.
type Status string

const (
	Pending   Status = "pending"   // to be provisioned, now or at its next try
	Creating  Status = "creating"  // a worker holds the claim and sends the create
	Active    Status = "active"    // it has its dashboard
	Held      Status = "held"      // a create has an unknown outcome, and an operator has to look
	Failed    Status = "failed"    // Papermap refused, or MAX_ATTEMPTS is reached
	Suspended Status = "suspended" // it gets no tokens; provisioning continues
	Deleted   Status = "deleted"

	none Status = "none" // a stage only: no tenant.created was accepted yet
)

// Statuses lists every status that a mapping can show.
func Statuses() []Status {
	return []Status{Pending, Creating, Active, Held, Failed, Suspended, Deleted}
}

// Mapping is a row of tenant_dashboards. Its SQL is generated from the fields: declare a new field
// here and in a migration.
type Mapping struct {
	TenantID    string `db:"tenant_id" json:"tenant_id"`
	WorkspaceID string `db:"workspace_id" json:"workspace_id"`
	DashboardID string `db:"dashboard_id" json:"dashboard_id,omitempty"` // empty until known
	Title       string `db:"title" json:"title"`
	Description string `db:"description" json:"description,omitempty"`
	Status      Status `db:"status" json:"status"`
	Generation  int    `db:"generation" json:"generation"` // 1, and one more for each re-creation
	CreatedBy   string `db:"created_by" json:"created_by,omitempty"`
	CreatedAt   Time   `db:"created_at" json:"created_at"`
	UpdatedAt   Time   `db:"updated_at" json:"updated_at"`

	// Stage is how far provisioning is; Status shows it unless the tenant is suspended or deleted.
	Stage Status `db:"stage" json:"-"`

	// The newest event of each kind, by the events' own times in Unix nanoseconds; 0 when there was
	// none.
	CreatedEvent   int64  `db:"created_event" json:"-"`
	DeletedEvent   int64  `db:"deleted_event" json:"-"`
	SuspendedEvent int64  `db:"suspended_event" json:"-"`
	ResumedEvent   int64  `db:"resumed_event" json:"-"`
	CreatedEventID string `db:"created_event_id" json:"-"`

	// DashboardEvent is the time of the event, or of the operator's correction, that gave the
	// tenant its dashboard, and before that of the event that began the generation; 0 if an older
	// version wrote it. See dashboardEvent.
	DashboardEvent int64 `db:"dashboard_event" json:"-"`

	Origin Origin `db:"dashboard_origin" json:"-"` // of the dashboard

	Epoch       int64 `db:"epoch" json:"-"`        // of the lease; grows with every claim
	ClaimableAt Time  `db:"claimable_at" json:"-"` // no worker may claim the tenant before

	Failures      int    `db:"failures" json:"failures,omitzero"` // of this generation, that count
	FailedAt      Time   `db:"failed_at" json:"-"`                // the last failed API call
	FailedMessage string `db:"failed_message" json:"-"`           // the stored message that ended as failed
	FailedCode    string `db:"failed_code" json:"error_code,omitempty"`
	FailedError   string `db:"failed_error" json:"error,omitempty"`
}

// Origin is how a tenant got its dashboard.
type Origin string

const (
	OriginCreated  Origin = ""         // by a create of a worker; also while there is none
	OriginAdopted  Origin = "adopted"  // by a tenant.created that named it
	OriginReplaced Origin = "replaced" // by an operator, in place of another
)

// Origins are those that people can select tenants by.
func Origins() []Origin { return []Origin{OriginAdopted, OriginReplaced} }

// Wanted reports whether the tenant should have a dashboard: its newest tenant.created is newer
// than its newest tenant.deleted. At equal times deleted wins.
//
// Suspended tenants are wanted, too: they keep their dashboard.
func (m *Mapping) Wanted() bool { return m.CreatedEvent > m.DeletedEvent }

// deriveStatus sets the status that follows from the events seen and the stage. At equal times
// suspended beats resumed.
func (m *Mapping) deriveStatus() {
	switch {
	case m.DeletedEvent > 0 && !m.Wanted():
		m.Status = Deleted
	case m.isSuspended():
		m.Status = Suspended
	case m.Stage == none:
		m.Status = Pending
	default:
		m.Status = m.Stage
	}
}

func (m *Mapping) isSuspended() bool {
	return m.SuspendedEvent > m.DeletedEvent && m.SuspendedEvent >= m.ResumedEvent
}

// Access returns the time of the newest event that asked for a status (Suspended, Deleted, or
// Active for a resumed tenant), in Unix nanoseconds, and whether that status is in force.
func (m *Mapping) Access(to Status) (newest int64, inForce bool) {
	switch to {
	case Suspended:
		return m.SuspendedEvent, m.isSuspended()
	case Deleted:
		return m.DeletedEvent, m.DeletedEvent > 0 && !m.Wanted()
	}
	return m.ResumedEvent, !m.isSuspended()
}

// NewestEvent is the time of the newest event of any kind, in Unix nanoseconds.
func (m *Mapping) NewestEvent() int64 {
	return max(m.CreatedEvent, m.DeletedEvent, m.SuspendedEvent, m.ResumedEvent)
}

// setStage sets the stage and when the tenant may be claimed; the zero time means at once.
func (m *Mapping) setStage(stage Status, claimable Time) {
	m.Stage, m.ClaimableAt = stage, claimable
	m.deriveStatus()
}

// clearFailures forgets what went wrong in this generation.
func (m *Mapping) clearFailures() {
	m.Failures, m.FailedAt, m.FailedCode, m.FailedError = 0, Time{}, "", ""
}

// Created is an accepted tenant.created event.
type Created struct {
	TenantID, WorkspaceID, Title, Description, CreatedBy string

	DashboardID    string // to be adopted; empty: one is to be created
	NamesWorkspace bool   // the event names WorkspaceID, which is the default otherwise

	EventID          string
	EventTime        time.Time
	Message          string // identifies the stored message, so that its redelivery is recognised
	AllowedWorkspace string // the workspace that the caller may create in; empty: WorkspaceID
}

// createdEffect is the effect of a tenant.created.
type createdEffect int

const (
	noEffect  createdEffect = iota // superseded, or there is nothing left to do
	provision                      // a dashboard is to be created, once the lease is free
	failAgain                      // this very message has ended as failed before
)

// applyCreated applies a tenant.created to the mapping. It decides only by the events' times, so
// neither the order of arrival nor duplicates matter.
//
// An event that is older than a tenant.deleted has no effect, unless it began the generation that is
// being provisioned. It then has to finish that, because the newer tenant.created for which the
// tenant is wanted may have become a dead letter.
func (m *Mapping) applyCreated(e Created) createdEffect {
	switch {
	case eventTime(e.EventTime) <= m.DeletedEvent && !m.unfinishedBy(e):
		return noEffect
	case m.Stage == Failed && m.FailedMessage == e.Message:
		return failAgain
	case m.ended():
		m.startGeneration(e)
	}
	m.noteCreated(e)
	if m.Stage == Active || m.Stage == Held {
		return noEffect
	}
	return provision
}

// unfinishedBy reports whether the event began the generation, and it is still being provisioned.
func (m *Mapping) unfinishedBy(e Created) bool {
	return m.Wanted() && (m.Stage == Pending || m.Stage == Creating) &&
		m.DashboardEvent == eventTime(e.EventTime)
}

// ended reports whether the next tenant.created begins a new generation.
func (m *Mapping) ended() bool {
	return m.Stage == none || m.CreatedEvent <= m.DeletedEvent || m.Stage == Failed
}

// noteCreated records the event; the status follows from all events seen.
func (m *Mapping) noteCreated(e Created) {
	if t := eventTime(e.EventTime); t > m.CreatedEvent {
		m.CreatedEvent, m.CreatedEventID = t, e.EventID
	}
	m.deriveStatus()
}

// dashboardEvent is DashboardEvent, or the newest tenant.created if that is not known.
func (m *Mapping) dashboardEvent() int64 { return cmp.Or(m.DashboardEvent, m.CreatedEvent) }

// startGeneration takes the details from the event. The epoch fences off a worker that still
// provisions an older generation.
func (m *Mapping) startGeneration(e Created) {
	if m.Stage != none {
		m.Generation++
	}
	m.WorkspaceID, m.Title, m.Description, m.CreatedBy = e.WorkspaceID, e.Title, e.Description, e.CreatedBy
	m.Stage, m.ClaimableAt, m.DashboardID, m.FailedMessage = Pending, Time{}, "", ""
	m.DashboardEvent, m.Origin = eventTime(e.EventTime), OriginCreated
	m.Epoch++
	m.clearFailures()
}

// Change is a tenant.suspended, tenant.resumed or tenant.deleted event. For an unknown tenant it
// makes a row without a dashboard, so that it also applies to a tenant.created that arrives later.
type Change struct {
	TenantID, WorkspaceID string // the workspace is used when the tenant is unknown
	To                    Status // Suspended, Deleted, or Active for a resumed tenant
	EventTime             time.Time
}

// applyChange records the event; the status follows from all events seen.
func (m *Mapping) applyChange(c Change) {
	newest := &m.DeletedEvent
	switch c.To {
	case Suspended:
		newest = &m.SuspendedEvent
	case Active:
		newest = &m.ResumedEvent
	}
	*newest = max(*newest, eventTime(c.EventTime))
	m.deriveStatus()
}

// eventTime is the event's time as the table stores it: Unix nanoseconds, where 0 means that there
// was no event.
func eventTime(t time.Time) int64 { return max(1, t.UnixNano()) }

// Change records the event. It reports whether the mapping's status changed.
func (db *DB) Change(ctx context.Context, c Change) (changed bool, err error) {
	err = db.decide(ctx, &job{
		tenantID: c.TenantID, workspaceID: c.WorkspaceID, urgent: true,
		decide: func(d *decision) error {
			changed = d.change(c)
			return nil
		},
	}, "record that tenant %q is %s", c.TenantID, c.To)
	return changed, err
}

func (d *decision) change(c Change) (changed bool) {
	d.applyChange(c)
	d.save()
	return d.Status != d.before.Status
}

// Mapping reads a tenant's mapping; ErrNotFound when the tenant is unknown.
func (db *DB) Mapping(ctx context.Context, tenantID string) (m Mapping, err error) {
	if err := db.read.get(ctx, &m, mappingTable.selects+" WHERE tenant_id = ?", tenantID); err != nil {
		return m, fmt.Errorf("read the mapping of tenant %q: %w", tenantID, err)
	}
	return m, nil
}

// Mappings reads at most limit mappings in the order of tenant ids, starting after the tenant id
// after. If the status is not empty, it reads only those with that status.
func (db *DB) Mappings(ctx context.Context, status Status, after string, limit int) ([]Mapping, error) {
	return db.Search(ctx, Search{Status: status}, Cursor{After: after, Limit: limit})
}
