package events

import (
	"time"

	"github.com/nats-io/nats.go"
)

// Types of the events that the worker takes.
const (
	TypeTenantCreated   = "tenant.created"
	TypeTenantSuspended = "tenant.suspended"
	TypeTenantResumed   = "tenant.resumed"
	TypeTenantDeleted   = "tenant.deleted"
	TypeUsageSync       = "usage.sync"
)

// Event is an event that was read and found to be in order.
type Event struct {
	ID         string    // identity: Papermap-Event-Id, else CloudEvents id, else Nats-Msg-Id, else Message
	Type       string    // the subject's part after "<prefix>.events."
	Time       time.Time // Papermap-Event-Time, else CloudEvents time, else the stream's; UTC
	Message    string    // the stored message, "<stream sequence>-<stream time in Unix ns>": the same at each redelivery, another for a copy
	Stored     time.Time // when the stream stored the message: of a copy or a replay, that one's
	Deliveries int       // how often the message was delivered, this time included
	Data       any       // TenantCreated, TenantChange or UsageSync
}

// TenantID is the tenant that the event tells of; empty when it is none.
func (e Event) TenantID() string {
	switch data := e.Data.(type) {
	case TenantCreated:
		return data.TenantID
	case TenantChange:
		return data.TenantID
	case UsageSync:
		return data.TenantID
	}
	return ""
}

// TenantCreated is the data of tenant.created.
type TenantCreated struct {
	TenantID, Name, Title, Description, WorkspaceID, CreatedBy string
}

// TenantChange is the data of tenant.suspended, tenant.resumed and tenant.deleted.
type TenantChange struct {
	TenantID, WorkspaceID, Reason string
}

// UsageSync is the data of usage.sync. Empty fields mean every workspace, every tenant, and the default periods.
type UsageSync struct {
	WorkspaceID, TenantID, FromPeriod, ToPeriod string
}

// Raw is a message as the stream keeps it.
type Raw struct {
	Type     string // the subject's part after "<prefix>.events."
	Header   nats.Header
	Data     []byte
	Sequence uint64
	Time     time.Time // when the stream stored it
}
