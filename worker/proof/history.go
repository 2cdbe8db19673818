// Package proof decides, from what can be seen from outside, whether the worker kept its promises
// in a run.
//
// # Histories
//
// A [History] is a record of one run. The test writes part of it while it runs: each publish of an
// event, each token and when it was requested, each suspension or deletion that it saw in the
// database, and when the API was down. The rest [Collect] reads when the run is over and [Quiet]:
// the tables, both streams, the consumers, and the log of the Papermap simulator.
//
// # How the checker decides
//
// [Check] is a pure function of a history. It uses none of the worker's state rules: it computes
// what a tenant must be from the events and their times alone, and takes the simulator's log as
// what happened at the API. Then it compares. Each contradiction is a [Violation] of one of the
// named invariants, such as [CreateMarked] or [TokenRevoked]. Where the order of two readings
// cannot be known, because clocks differ or the database keeps only milliseconds, the worker gets
// the benefit of the doubt.
//
// A test looks like this:
//
//	var h proof.History
//	h.Workspaces, h.LongestLife = []papermap.Workspace{workspace}, time.Hour
//	ack, err := js.PublishMsg(ctx, msg)
//	h.Published = append(h.Published, proof.Published{
//		Type: "tenant.created", Tenant: "acme", Data: msg.Data, Sequence: ack.Sequence,
//	})
//	// ... kill workers, break connections, publish more; then wait:
//	for proof.Quiet(ctx, system) != nil {
//		time.Sleep(50 * time.Millisecond)
//	}
//	h, err = proof.Collect(ctx, system, h)
//	for _, v := range proof.Check(h) {
//		t.Error(v)
//	}
//
// # What it cannot see
//
//   - A stream that was purged: events are identified by their stream sequence. Of one that is
//     deleted, [Archive] keeps what the checker needs.
//   - Answers that did not come from the simulator. Its log counts as the truth, even for a fault
//     that contradicts itself (status=429 effect=true): then the worker is blamed for the API's
//     mistake.
//   - Whether an operator resolved an attempt rightly.
//
// The package is for tests: the program does not import it.
package proof

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// History is the record of a run.
type History struct {
	// Written by the test.
	Published   []Published
	Tokens      []Token
	Commits     []Commit
	Outages     []Window             // when the API answered nothing but 401, 403 or 5xx
	Workspaces  []papermap.Workspace // of the worker, once for each pair of keys that it had
	LongestLife time.Duration        // of a token
	Clocks      time.Duration        // greatest skew between test, database and simulator; 0 on one machine
	Canaries    []string             // planted secrets, besides those of Workspaces
	Reported    []UsageRow           // the API's usage of every synced month; nil: not compared
	Texts       map[string]string    // logs, metrics, traces by name: no secret may be in them
	Duplicates  time.Duration        // the streams' duplicate window; 0: the server's default, 2 minutes

	// Read by Archive, ArchiveDead and Collect.
	Streams     int // how many streams of events were deleted
	DeadStreams int // how many streams of dead letters were deleted
	Dead        []Dead

	// Read by Collect.
	Requests   []simulator.Request
	Dashboards []simulator.Dashboard
	Mappings   []repo.Mapping
	Attempts   []repo.Attempt
	Outbox     []OutboxRow
	Usage      []UsageRow
	Runs       []repo.Run
	Out        []Out
	Waiting    []Waiting
}

// Published is one publish of an event, acknowledged or not. A copy is an entry of its own; one
// that the stream dropped as a duplicate has the sequence of the first, whose entry comes first and
// counts.
type Published struct {
	Type     string    // the subject's part after "<prefix>.events."
	Tenant   string    // the tenant that it names; may be empty for poison
	EventID  string    // its id, if it has one that can be read
	Time     time.Time // its own time; zero if it has none
	Data     []byte    // the message's whole body
	Poison   bool      // it must become a dead letter at its first delivery
	Adopts   string    // the dashboard that it names
	Sequence uint64    // as acknowledged; 0 without an acknowledgement

	StoredAt time.Time   // the stream's time; Archive and Collect set it
	Header   nats.Header // as stored; they set it as well
	Lost     bool        // its stream was deleted, perhaps before it was handled; Archive sets it
}

// Token is a request for an embed token and its answer.
type Token struct {
	Asked    time.Time `json:"-"`
	Answered time.Time `json:"-"`
	Tenant   string    `json:"-"`

	Code      string `json:"code"` // of a refusal; then the rest is empty
	Text      string `json:"token"`
	Workspace string `json:"workspace_id"`
	Dashboard string `json:"dashboard_id"`
	Expires   int64  `json:"expires_at"` // Unix seconds
}

// Commit is a suspension or deletion that was seen in the database.
type Commit struct {
	At     time.Time // it was committed no later than this
	Tenant string
	Status repo.Status // Suspended or Deleted
	Event  int64       // Unix nanoseconds of the event that caused it, as in the row
}

// Seen returns the commit that a mapping, read before at, shows; ok is false if the mapping is
// neither suspended nor deleted.
func Seen(m repo.Mapping, at time.Time) (c Commit, ok bool) {
	c = Commit{At: at, Tenant: m.TenantID, Status: m.Status}
	switch m.Status {
	case repo.Suspended:
		c.Event = m.SuspendedEvent
	case repo.Deleted:
		c.Event = m.DeletedEvent
	default:
		return c, false
	}
	return c, true
}

// Window is a period, both ends included.
type Window struct{ From, To time.Time }

// OutboxRow is a row of the outbox; SentAt is zero until it was published.
type OutboxRow struct {
	repo.OutboxRow
	SentAt repo.Time `db:"sent_at"`
}

// UsageRow is a row of tenant_usage.
type UsageRow struct {
	WorkspaceID string    `db:"workspace_id"`
	TenantID    string    `db:"tenant_id"`
	Period      string    `db:"period"`
	Credits     string    `db:"credits"`
	Requests    int64     `db:"requests"`
	SyncedAt    repo.Time `db:"synced_at"`
}

// Out is an event that the worker published, as the stream keeps it.
type Out struct {
	Sequence uint64
	Type     string
	ID       string // of the CloudEvent
	Tenant   string // its subject
	Data     []byte // its data
}

// Dead is a dead letter with all its headers.
type Dead struct {
	events.DeadLetter
	Header nats.Header
	Stream int // how many streams of dead letters were deleted before
}

// Waiting is how many events a consumer has yet to deliver, and how many it has delivered that are
// not acknowledged.
type Waiting struct {
	Consumer          string
	Pending, InFlight int
}

// RequestToken requests an embed token for the tenant, as a caller does. A refusal is an answer; an
// error means that none came.
func RequestToken(
	ctx context.Context, nc *nats.Conn, subjects events.Subjects, tenant string,
) (Token, error) {
	body, err := json.Marshal(map[string]string{"tenant_id": tenant})
	if err != nil {
		return Token{}, fmt.Errorf("request a token: %w", err)
	}
	t := Token{Asked: time.Now(), Tenant: tenant}
	reply, err := nc.RequestWithContext(ctx, subjects.RPC("embed-token"), body)
	t.Answered = time.Now()
	if err != nil {
		return t, fmt.Errorf("request a token for tenant %q: %w", tenant, err)
	}
	if err := json.Unmarshal(reply.Data, &t); err != nil {
		return t, fmt.Errorf("decode the token for tenant %q: %w", tenant, err)
	}
	return t, nil
}
