package repo

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Status is what a mapping shows, and how far its provisioning is.
type Status string

const (
	Pending   Status = "pending"
	Creating  Status = "creating"
	Active    Status = "active"
	Held      Status = "held"
	Failed    Status = "failed"
	Suspended Status = "suspended"
	Deleted   Status = "deleted"

	none Status = "none" // a stage only: no tenant.created was accepted yet
)

// Statuses lists every status that a mapping can show.
func Statuses() []Status {
	return []Status{Pending, Creating, Active, Held, Failed, Suspended, Deleted}
}

// Mapping is a row of tenant_dashboards.
type Mapping struct {
	TenantID    string `db:"tenant_id" json:"tenant_id"`
	WorkspaceID string `db:"workspace_id" json:"workspace_id"`
	DashboardID string `db:"dashboard_id" json:"dashboard_id,omitempty"` // empty until known
	Title       string `db:"title" json:"title"`
	Description string `db:"description" json:"description,omitempty"`
	Status      Status `db:"status" json:"status"`
	Generation  int    `db:"generation" json:"generation"`
	CreatedBy   string `db:"created_by" json:"created_by,omitempty"`
	CreatedAt   Time   `db:"created_at" json:"created_at"`
	UpdatedAt   Time   `db:"updated_at" json:"updated_at"`

	// Stage is how far provisioning is; Status shows it unless the tenant is suspended or deleted.
	Stage Status `db:"stage" json:"-"`

	// The newest event of each kind, by the events' own times in Unix nanoseconds; 0 when there was none.
	CreatedEvent   int64  `db:"created_event" json:"-"`
	DeletedEvent   int64  `db:"deleted_event" json:"-"`
	SuspendedEvent int64  `db:"suspended_event" json:"-"`
	ResumedEvent   int64  `db:"resumed_event" json:"-"`
	CreatedEventID string `db:"created_event_id" json:"-"`

	Epoch       int64 `db:"epoch" json:"-"`        // of the lease; grows with every claim
	ClaimableAt Time  `db:"claimable_at" json:"-"` // nobody may claim before

	Failures      int    `db:"failures" json:"failures,omitzero"` // of this generation, that count
	FailedAt      Time   `db:"failed_at" json:"-"`                // the last failed API call
	FailedMessage string `db:"failed_message" json:"-"`           // the stored message that ended as failed
	FailedCode    string `db:"failed_code" json:"error_code,omitempty"`
	FailedError   string `db:"failed_error" json:"error,omitempty"`
}

// Wanted says whether the tenant should have a dashboard: its newest tenant.created is newer than its newest
// tenant.deleted.
func (m *Mapping) Wanted() bool { return m.CreatedEvent > m.DeletedEvent }

// show sets the status that follows from the events seen and the stage.
func (m *Mapping) show() {
	switch {
	case m.DeletedEvent > 0 && !m.Wanted():
		m.Status = Deleted
	case m.SuspendedEvent > m.DeletedEvent && m.SuspendedEvent >= m.ResumedEvent:
		m.Status = Suspended
	case m.Stage == none:
		m.Status = Pending
	default:
		m.Status = m.Stage
	}
}

// Created is an accepted tenant.created event.
type Created struct {
	TenantID, WorkspaceID, Title, Description, CreatedBy string
	EventID                                              string
	EventTime                                            time.Time
	Message                                              string // the stored message, to know its redelivery
	Entered                                              string // the workspace that the caller may create in; empty: WorkspaceID
}

// next is what follows from a tenant.created.
type next int

const (
	nothing   next = iota // superseded, or there is nothing left to do
	provision             // a dashboard is to be created, once the lease is free
	asBefore              // this very message has ended as failed before
)

// accept applies a tenant.created to the mapping. It decides by the events' times alone, so that order of arrival
// and copies do not matter.
func (m *Mapping) accept(e Created) next {
	eventTime := eventTime(e.EventTime)
	switch {
	case eventTime <= m.DeletedEvent:
		return nothing
	case m.Stage == Failed && m.FailedMessage == e.Message:
		return asBefore
	case m.Stage == none:
		m.begin(e)
	case m.CreatedEvent <= m.DeletedEvent || m.Stage == Failed:
		m.Generation++
		m.begin(e)
	}
	if eventTime > m.CreatedEvent {
		m.CreatedEvent, m.CreatedEventID = eventTime, e.EventID
	}
	m.show()
	if m.Stage == Active || m.Stage == Held {
		return nothing
	}
	return provision
}

// begin starts a generation: whoever still works on an older one is fenced off by the epoch.
func (m *Mapping) begin(e Created) {
	m.WorkspaceID, m.Title, m.Description, m.CreatedBy = e.WorkspaceID, e.Title, e.Description, e.CreatedBy
	m.Stage, m.DashboardID = Pending, ""
	m.Epoch++
	m.ClaimableAt = Time{}
	m.Failures, m.FailedAt, m.FailedMessage, m.FailedCode, m.FailedError = 0, Time{}, "", "", ""
}

// Change is a tenant.suspended, tenant.resumed or tenant.deleted event.
type Change struct {
	TenantID, WorkspaceID string // the workspace is used when the tenant is unknown
	To                    Status // Suspended, Deleted, or Active for a resumed tenant
	EventTime             time.Time
}

// apply notes the event; what it means follows from all events seen.
func (m *Mapping) apply(c Change) {
	newest := map[Status]*int64{Suspended: &m.SuspendedEvent, Active: &m.ResumedEvent, Deleted: &m.DeletedEvent}[c.To]
	*newest = max(*newest, eventTime(c.EventTime))
	m.show()
}

// eventTime is the event's time as the table keeps it, where 0 means none.
func eventTime(t time.Time) int64 { return max(1, t.UnixNano()) }

// Change records the event. It reports whether the mapping's status changed.
func (db *DB) Change(ctx context.Context, c Change) (changed bool, err error) {
	err = db.update(ctx, func(ctx context.Context, t *tx) error {
		m, err := t.lock(ctx, c.TenantID, c.WorkspaceID)
		if err != nil {
			return err
		}
		before := m.Status
		m.apply(c)
		changed = m.Status != before
		return t.save(ctx, m)
	})
	if err != nil {
		return false, fmt.Errorf("recording that tenant %q is %s: %w", c.TenantID, c.To, err)
	}
	return changed, nil
}

const mappingColumns = `tenant_id, workspace_id, COALESCE(dashboard_id, '') AS dashboard_id, title, description, status, generation, created_by,
	created_at, updated_at, stage, created_event, deleted_event, suspended_event, resumed_event, created_event_id, epoch, claimable_at,
	failures, failed_at, failed_message, failed_code, failed_error`

// mappingRow is a mapping within a transaction that may change it.
type mappingRow struct {
	Mapping
	stored *Mapping // as it was read; nil for a tenant that is unknown
}

// lock reads the tenant's row for a change. For a tenant that is unknown it is the row that save will make.
func (t *tx) lock(ctx context.Context, tenantID, workspaceID string) (*mappingRow, error) {
	r, err := t.known(ctx, tenantID)
	if err != ErrNotFound {
		return r, err
	}
	r = &mappingRow{Mapping: Mapping{TenantID: tenantID, WorkspaceID: workspaceID, Status: Pending, Stage: none, Generation: 1, CreatedAt: t.now}}
	if t.locking == "" { // SQLite has one writer: nobody else makes the row meanwhile
		return r, nil
	}
	if err := t.insert(ctx, &r.Mapping, " ON CONFLICT DO NOTHING"); err != nil {
		return nil, err
	}
	return t.known(ctx, tenantID)
}

// known is lock for a tenant that must be known; ErrNotFound when it is not.
func (t *tx) known(ctx context.Context, tenantID string) (*mappingRow, error) {
	var m Mapping
	err := t.get(ctx, &m, "SELECT "+mappingColumns+" FROM tenant_dashboards WHERE tenant_id = ?"+t.locking, tenantID)
	return &mappingRow{Mapping: m, stored: &m}, err
}

// save writes what has changed of the row: whatever is written costs a change of the indexes that it is in.
func (t *tx) save(ctx context.Context, r *mappingRow) error {
	switch {
	case r.stored == nil:
		return t.insert(ctx, &r.Mapping, "")
	case r.Mapping == *r.stored:
		return nil
	}
	r.UpdatedAt = t.now
	var set []string
	var args []any
	before := r.stored.values()
	for i, v := range r.values() {
		if v != before[i] {
			set, args = append(set, mutable[i]), append(args, v)
		}
	}
	return t.exec(ctx, "UPDATE tenant_dashboards SET "+strings.Join(set, ", ")+" WHERE tenant_id = ?", append(args, r.TenantID)...)
}

func (t *tx) insert(ctx context.Context, m *Mapping, onConflict string) error {
	m.UpdatedAt = t.now
	return t.exec(ctx, insertMapping+onConflict, append([]any{m.TenantID, m.CreatedAt}, m.values()...)...)
}

// mutable are the columns that change, as they are set, and values what they are set to.
var mutable = []string{
	"workspace_id = ?", "dashboard_id = NULLIF(?, '')", "title = ?", "description = ?", "status = ?", "generation = ?", "created_by = ?", "updated_at = ?",
	"stage = ?", "created_event = ?", "deleted_event = ?", "suspended_event = ?", "resumed_event = ?", "created_event_id = ?", "epoch = ?", "claimable_at = ?",
	"failures = ?", "failed_at = ?", "failed_message = ?", "failed_code = ?", "failed_error = ?",
}

func (m *Mapping) values() []any {
	return []any{
		m.WorkspaceID, m.DashboardID, m.Title, m.Description, string(m.Status), int64(m.Generation), m.CreatedBy, m.UpdatedAt,
		string(m.Stage), m.CreatedEvent, m.DeletedEvent, m.SuspendedEvent, m.ResumedEvent, m.CreatedEventID, m.Epoch, m.ClaimableAt,
		int64(m.Failures), m.FailedAt, m.FailedMessage, m.FailedCode, m.FailedError,
	}
}

// insertMapping inserts the tenant id, the time of creation, and the mutable columns.
var insertMapping = func() string {
	names, values := "tenant_id, created_at", "?, ?"
	for _, set := range mutable {
		name, value, _ := strings.Cut(set, " = ")
		names, values = names+", "+name, values+", "+value
	}
	return "INSERT INTO tenant_dashboards (" + names + ") VALUES (" + values + ")"
}()

// Mapping reads a tenant's mapping; ErrNotFound when the tenant is unknown.
func (db *DB) Mapping(ctx context.Context, tenantID string) (Mapping, error) {
	var m Mapping
	err := notFound(db.read.GetContext(ctx, &m, db.read.Rebind("SELECT "+mappingColumns+" FROM tenant_dashboards WHERE tenant_id = ?"), tenantID))
	if err != nil {
		return m, fmt.Errorf("reading the mapping of tenant %q: %w", tenantID, err)
	}
	return m, nil
}

// Mappings reads at most limit mappings in order of tenant id, those after the tenant id after; of one status
// unless it is empty.
func (db *DB) Mappings(ctx context.Context, status Status, after string, limit int) ([]Mapping, error) {
	query := "SELECT " + mappingColumns + " FROM tenant_dashboards WHERE tenant_id > ?"
	args := []any{after}
	if status != "" {
		query += " AND status = ?"
		args = append(args, status)
	}
	var list []Mapping
	err := db.read.SelectContext(ctx, &list, db.read.Rebind(query+" ORDER BY tenant_id LIMIT ?"), append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("listing mappings: %w", err)
	}
	return list, nil
}
