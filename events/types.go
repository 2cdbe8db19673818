package events

import (
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// Names of the event types: the subject's part after "<prefix>.events.".
const (
	TypeTenantCreated   = "tenant.created"
	TypeTenantSuspended = "tenant.suspended"
	TypeTenantResumed   = "tenant.resumed"
	TypeTenantDeleted   = "tenant.deleted"
	TypeUsageSync       = "usage.sync"

	TypeDashboardCreated = "dashboard.created"
	TypeDashboardFailed  = "dashboard.failed"
	TypeDashboardHeld    = "dashboard.held"
	TypeUsageThreshold   = "usage.threshold"
	TypeUsageSynced      = "usage.synced"
)

// Names of the durable consumers. Events about access have a separate consumer, so that a
// suspension never waits behind creations or a pause.
const (
	MainConsumer   = "papermap-worker"
	AccessConsumer = "papermap-worker-access"
)

var consumers = []string{MainConsumer, AccessConsumer}

// Type is one row of the table of event types.
type Type struct {
	Name       string   // its JSON Schema is schema/events/<Name>.json
	Consumer   string   // durable consumer of an event in; empty: an event out, published by the worker
	Tenant     bool     // its data always names one tenant
	Publishers []string // users of docs/nats/server.conf that may publish it

	decode func(data []byte) (Payload, error) // of an event in
}

// Types is the table of event types. Subjects of streams, filters of consumers, decoding, metrics
// and the tests of schemas, AsyncAPI and NATS permissions are derived from it. To add a type, add a
// row, its payload, its schema, and a handler in package worker; tests name what is missing.
var Types = []Type{
	{TypeTenantCreated, MainConsumer, true, upstreamOrWorker, decodeTenantCreated},
	{TypeUsageSync, MainConsumer, false, upstreamOrWorker, decodeUsageSync},
	{TypeTenantSuspended, AccessConsumer, true, upstream, decodeTenantChange},
	{TypeTenantResumed, AccessConsumer, true, upstream, decodeTenantChange},
	{TypeTenantDeleted, AccessConsumer, true, upstream, decodeTenantChange},
	{TypeDashboardCreated, "", true, workerOnly, nil},
	{TypeDashboardFailed, "", true, workerOnly, nil},
	{TypeDashboardHeld, "", true, workerOnly, nil},
	{TypeUsageThreshold, "", true, workerOnly, nil},
	{TypeUsageSynced, "", false, workerOnly, nil},
}

// Users of docs/nats/server.conf.
const (
	consoleUser = "worker"          // with REST and console
	workerUser  = "worker-headless" // without
)

var (
	upstream         = []string{consoleUser, "publisher", "operator", "leaf"}
	upstreamOrWorker = append([]string{workerUser}, upstream...) // ticks, and what an operator asked for
	workerOnly       = []string{consoleUser, workerUser}
)

// TypesIn returns the names of the types that the worker consumes.
func TypesIn() []string { return typeNames(func(t Type) bool { return t.Consumer != "" }) }

// TypesOf returns the names of the types that a durable consumer handles.
func TypesOf(consumer string) []string {
	return typeNames(func(t Type) bool { return t.Consumer == consumer })
}

func typeNames(selected func(Type) bool) []string {
	var names []string
	for _, t := range Types {
		if selected(t) {
			names = append(names, t.Name)
		}
	}
	return names
}

// ofTenant selects the events in that make up a tenant's history.
func ofTenant(t Type) bool { return t.Tenant && t.Consumer != "" }

// decodePayload decodes the data of an event in.
func decodePayload(eventType string, data []byte) (Payload, error) {
	i := slices.IndexFunc(Types, func(t Type) bool { return t.Name == eventType && t.decode != nil })
	if i < 0 {
		return nil, permanentf(codeType, "unknown event type %s", quote(eventType))
	}
	p, err := Types[i].decode(data)
	if err != nil {
		return nil, err // and not p, which is half of an event
	}
	return p, nil
}

// Event is an event that was decoded.
type Event struct {
	ID     string    // identity: Papermap-Event-Id, else CloudEvents id, else Nats-Msg-Id, else Message
	Source string    // of a CloudEvent, whose identity is source and ID; of any length; empty: none
	Type   string    // the subject's part after "<prefix>.events."
	Time   time.Time // Papermap-Event-Time, else CloudEvents time, else the stream's; UTC

	// Message is the stored message, "<stream sequence>-<stream time in Unix ns>": the same for each
	// redelivery, another for a copy. The time is there because sequences begin again with a new stream.
	Message    string
	Stored     time.Time // when the stream stored the message; of a copy or a replay, that message
	Deliveries int       // deliveries of the message, this one included
	Data       Payload   // TenantCreated, TenantChange or UsageSync; nil if it could not be decoded
}

// TenantID returns the tenant that the event is about; empty if there is none.
func (e Event) TenantID() string {
	if e.Data == nil {
		return ""
	}
	return e.Data.tenantID()
}

// Raw is a message as the stream stores it.
type Raw struct {
	Type     string // the subject's part after "<prefix>.events." or "<prefix>.dead."
	Header   nats.Header
	Data     []byte
	Sequence uint64
	Time     time.Time // when the stream stored it
}

// Payload is the data of an event in: [TenantCreated], [TenantChange] or [UsageSync].
type Payload interface{ tenantID() string }

// TenantCreated is the data of tenant.created: the tenant should have a dashboard. DashboardID
// names an existing one to adopt; then Name may be empty.
type TenantCreated struct {
	TenantID, Name, Title, Description, WorkspaceID, CreatedBy, DashboardID string
}

func (p TenantCreated) tenantID() string { return p.TenantID }

// TenantChange is the data of tenant.suspended, tenant.resumed and tenant.deleted.
type TenantChange struct {
	TenantID, WorkspaceID string
	Reason                string // at most maxReason long: the rest of a longer one is left out
}

func (p TenantChange) tenantID() string { return p.TenantID }

// UsageSync is the data of usage.sync. Empty fields mean every workspace, every tenant, and the
// default periods.
type UsageSync struct {
	WorkspaceID, TenantID, FromPeriod, ToPeriod string
}

func (p UsageSync) tenantID() string { return p.TenantID }

// DashboardCreated is the data of dashboard.created.
type DashboardCreated struct {
	TenantID    string `json:"tenant_id"`
	WorkspaceID string `json:"workspace_id"`
	DashboardID string `json:"dashboard_id"`
	Title       string `json:"title"`
}

// DashboardFailed is the data of dashboard.failed.
type DashboardFailed struct {
	TenantID    string `json:"tenant_id"`
	WorkspaceID string `json:"workspace_id"`
	Code        string `json:"code"`
	Message     string `json:"message"`
}

// DashboardHeld is the data of dashboard.held.
type DashboardHeld struct {
	TenantID    string `json:"tenant_id"`
	WorkspaceID string `json:"workspace_id"`
	Attempt     string `json:"attempt"`
}

// UsageThreshold is the data of usage.threshold.
type UsageThreshold struct {
	TenantID    string `json:"tenant_id"`
	WorkspaceID string `json:"workspace_id"`
	Period      string `json:"period"`  // YYYY-MM
	Credits     string `json:"credits"` // used; a decimal number, as is the budget
	Budget      string `json:"budget"`
	Percent     int    `json:"percent"` // of the budget, that were reached
}

// UsageSynced is the data of usage.synced.
type UsageSynced struct {
	WorkspaceID  string `json:"workspace_id"`
	TenantID     string `json:"tenant_id,omitempty"` // when only this tenant's usage was read
	FromPeriod   string `json:"from_period"`
	ToPeriod     string `json:"to_period"`
	Tenants      int    `json:"tenants"`       // with usage in those months
	Rows         int64  `json:"rows"`          // read
	RejectedRows int64  `json:"rejected_rows"` // that could not be used
	ChangedRows  int64  `json:"changed_rows"`  // totals that went down
}

func decodeTenantChange(data []byte) (Payload, error) {
	var p TenantChange
	if err := readFields(data, []field{
		{"tenant_id", &p.TenantID, 0}, {"workspace_id", &p.WorkspaceID, 0}, {"reason", &p.Reason, 0},
	}); err != nil {
		return nil, err
	}
	p.Reason = firstOf(p.Reason, maxReason)
	return p, wrongField(ValidateTenantID(p.TenantID))
}

func decodeUsageSync(data []byte) (Payload, error) {
	var p UsageSync
	if err := readFields(data, []field{
		{"workspace_id", &p.WorkspaceID, 0}, {"tenant_id", &p.TenantID, 0},
		{"from_period", &p.FromPeriod, 0}, {"to_period", &p.ToPeriod, 0},
	}); err != nil {
		return nil, err
	}
	switch {
	case isMicroReply(data):
		return nil, permanentf(codeField,
			"this is a reply of a NATS micro service that was sent here, not an event")
	case p.FromPeriod != "" && p.ToPeriod != "" && p.FromPeriod > p.ToPeriod:
		return nil, permanentf(codeField, `"from_period" is after "to_period"`)
	}
	return p, nil
}
