// Package proof decides whether what the worker promises was kept in a run, from what can be seen of it from outside.
//
// A test keeps a [History] of what it did and saw: events published, tokens asked for, suspensions seen. When the run is
// over and all is [Quiet], [Collect] adds what the database, the streams and the Papermap simulator say, and [Check]
// says what in it contradicts a promise.
//
// What it promises: Check is a pure function, uses none of the worker's own rules of state, and says of each
// contradiction which invariant it breaks. What it cannot see:
//
//   - A stream that was purged or made again: events are told apart by their stream sequence.
//   - Answers that did not come from the simulator. What stands in its log is believed, also about rules that lie
//     (status=429 effect=true): then the worker is blamed for what the API did.
//   - What an operator settled by hand.
//
// It is a tool for tests: nothing else may import it.
package proof

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
)

// History is what was seen of a run.
type History struct {
	// What the test did and saw itself.
	Published   []Published
	Tokens      []Token
	Commits     []Commit
	Outages     []Window             // when the API answered nothing but 401, 403 or 5xx
	Workspaces  []papermap.Workspace // of the worker; a workspace whose keys were changed is here once for each
	LongestLife time.Duration        // of a token
	Clocks      time.Duration        // how far the clocks of test, database and simulator may be apart; 0 on one machine
	Canaries    []string             // planted secrets; those of Workspaces need not be named
	Reported    []UsageRow           // what the API reports of every month that was asked for; nil: it is not compared
	Texts       map[string]string    // what else no secret may be in, by name: logs, metrics, traces

	// What Collect reads.
	Requests   []simulator.Request
	Dashboards []simulator.Dashboard
	Mappings   []repo.Mapping
	Attempts   []repo.Attempt
	Outbox     []OutboxRow
	Usage      []UsageRow
	Runs       []repo.Run
	Out        []Out
	Dead       []Dead
	Waiting    []Waiting
}

// Published is one try to publish an event. A copy is an entry of its own; one that the stream dropped as a duplicate
// has the sequence of the first, and what counts is what stands first here.
type Published struct {
	Type     string    // the subject's part after "<prefix>.events."
	Tenant   string    // whom it names; of a poison event, if anybody
	EventID  string    // the identity that it was published with, if that can be read; empty: none
	Time     time.Time // as it says itself; zero: it does not
	Data     []byte    // the message's whole body
	Poison   bool      // meant to be a dead letter within one delivery
	Sequence uint64    // as acknowledged; 0 while no acknowledgement came

	StoredAt time.Time // the stream's time; Collect fills it in
}

// Token is a request for an embed token and its answer.
type Token struct {
	Asked, Answered time.Time
	Tenant          string
	Code            string // of a refusal; then the rest is empty

	Text                 string
	Workspace, Dashboard string
	Expires              int64 // Unix seconds
}

// Commit is a suspension or deletion that was seen in the database.
type Commit struct {
	At     time.Time // no later than this it was committed
	Tenant string
	Status repo.Status // Suspended or Deleted
	Event  int64       // the time of the event that is to blame, as in the row
}

// Seen is the commit that a mapping shows which was read before at; ok is false if it is neither suspended nor deleted.
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

// Window is a time from its first moment to its last.
type Window struct{ From, To time.Time }

// OutboxRow is a row of the outbox; SentAt is zero until it was published.
type OutboxRow struct {
	repo.Outgoing
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

// Dead is a dead letter with what package events does not tell of it.
type Dead struct {
	events.DeadLetter
	Header nats.Header
}

// Waiting is how many events wait for a consumer, and how many are in hand or are to be offered again.
type Waiting struct {
	Consumer        string
	Pending, InHand int
}

// System is where Collect reads.
type System struct {
	DB        *sqlx.DB // the worker's database, for what Repo has no method for
	Repo      *repo.DB
	JetStream jetstream.JetStream
	Stream    string // the dead letters' is the same with _DEAD behind it
	Subjects  events.Subjects
	Simulator string // its address, around whatever stands in the way of the worker; empty: Requests and Dashboards are the caller's
}

// Quiet returns nil when nothing is left to be done: no event waits, and everything in the outbox was published.
func Quiet(ctx context.Context, s System) error {
	waiting, err := s.waiting(ctx)
	if err != nil {
		return err
	}
	for _, w := range waiting {
		if w.Pending > 0 || w.InHand > 0 {
			return fmt.Errorf("%s: %d events wait, %d are in hand", w.Consumer, w.Pending, w.InHand)
		}
	}
	unsent, err := s.Repo.Unsent(ctx, 1)
	if err == nil && len(unsent) > 0 {
		err = fmt.Errorf("the outbox has %s of tenant %q to publish", unsent[0].Type, unsent[0].TenantID)
	}
	return err
}

// Collect reads what a run has left and returns it together with what the test has seen. It looks at one part after the
// other, so what it returns is of one moment only when all is quiet.
//
// An event in the stream of which no acknowledgement came to the publisher is found in seen.Published by its type and
// data; one that was replayed, by its identity, and becomes one more entry. A tenant.created that the worker published again
// itself, out of its outbox, is among the events out as well. Any other is an error: nobody could say how
// it should have ended.
func Collect(ctx context.Context, s System, seen History) (History, error) {
	h := seen
	var err error
	if h.Waiting, err = s.waiting(ctx); err != nil {
		return h, err
	}
	if err := s.readDatabase(ctx, &h); err != nil {
		return h, err
	}
	if s.Simulator != "" {
		if err := s.readSimulator(ctx, &h); err != nil {
			return h, err
		}
	}
	if err := s.readEvents(ctx, &h); err != nil {
		return h, err
	}
	return h, s.readDead(ctx, &h)
}

func (s System) readDatabase(ctx context.Context, h *History) error {
	h.Mappings = nil
	for after := ""; ; {
		const page = 1000
		list, err := s.Repo.Mappings(ctx, "", after, page)
		if err != nil {
			return err
		}
		h.Mappings = append(h.Mappings, list...)
		if len(list) < page {
			break
		}
		after = list[len(list)-1].TenantID
	}
	for _, table := range []struct {
		rows  any
		query string
	}{
		{&h.Attempts, `SELECT id, workspace_id, tenant_id, generation, mark, outcome, COALESCE(dashboard_id, '') AS dashboard_id,
			COALESCE(http_status, 0) AS http_status, COALESCE(error, '') AS error, started_at, finished_at
			FROM provision_attempts ORDER BY started_at, id`},
		{&h.Outbox, "SELECT id, event_id, tenant_id, type, data, created_at, sent_at FROM outbox ORDER BY id"},
		{&h.Usage, "SELECT workspace_id, tenant_id, period, credits, requests, synced_at FROM tenant_usage ORDER BY workspace_id, tenant_id, period"},
	} {
		if err := s.DB.SelectContext(ctx, table.rows, table.query); err != nil {
			return fmt.Errorf("reading the worker's tables: %w", err)
		}
	}
	var err error
	h.Runs, err = s.Repo.Runs(ctx, "", math.MaxInt32)
	return err
}

func (s System) readSimulator(ctx context.Context, h *History) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Simulator+"/simulator/state", nil)
	if err != nil {
		return fmt.Errorf("reading the simulator: %w", err)
	}
	req.Close = true // a connection kept for later would be a leak in the eyes of a test
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("reading the simulator: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("reading the simulator: %s", resp.Status)
	}
	var state struct {
		Dashboards []simulator.Dashboard `json:"dashboards"`
		Requests   []simulator.Request   `json:"requests"`
	}
	if err := json.UnmarshalRead(resp.Body, &state, jsontext.AllowInvalidUTF8(true)); err != nil {
		return fmt.Errorf("reading the simulator: %w", err)
	}
	h.Dashboards, h.Requests = state.Dashboards, state.Requests
	return nil
}

// readEvents reads the worker's stream: when the events in were stored, and the events out.
func (s System) readEvents(ctx context.Context, h *History) error {
	h.Published, h.Out = slices.Clone(h.Published), nil
	own := map[string]bool{} // events of the outbox, by id
	for _, r := range h.Outbox {
		own[r.EventID] = true
	}
	acknowledged := map[uint64][]int{} // indexes in h.Published
	for i, p := range h.Published {
		if p.Sequence > 0 {
			acknowledged[p.Sequence] = append(acknowledged[p.Sequence], i)
		}
	}
	return schematest.EachMessage(ctx, s.JetStream, s.Stream, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		sequence, eventType := meta.Sequence.Stream, strings.TrimPrefix(msg.Subject(), s.Subjects.Event(""))
		isOut := slices.Contains([]string{events.TypeDashboardCreated, events.TypeDashboardFailed, events.TypeDashboardHeld, events.TypeUsageSynced}, eventType)
		if isOut || own[msg.Headers().Get(jetstream.MsgIDHeader)] {
			var e struct {
				ID      string         `json:"id"`
				Subject string         `json:"subject"`
				Data    jsontext.Value `json:"data"`
			}
			if err := json.Unmarshal(msg.Data(), &e); err != nil {
				return fmt.Errorf("reading the event out %d (%s): %w", sequence, eventType, err)
			}
			h.Out = append(h.Out, Out{Sequence: sequence, Type: eventType, ID: e.ID, Tenant: e.Subject, Data: e.Data})
		}
		if isOut {
			return nil
		}
		indexes := acknowledged[sequence]
		if len(indexes) == 0 {
			i, err := h.unacknowledged(msg, eventType)
			if err != nil {
				return fmt.Errorf("event %d (%s): %w", sequence, eventType, err)
			}
			indexes = []int{i}
		}
		for _, i := range indexes {
			h.Published[i].Sequence, h.Published[i].StoredAt = sequence, meta.Timestamp
		}
		return nil
	})
}

// unacknowledged finds the entry for a message whose sequence no publisher was told, or makes one for a replay.
func (h *History) unacknowledged(msg jetstream.Msg, eventType string) (int, error) {
	replayed := msg.Headers().Get("Papermap-Event-Id")
	for i, p := range h.Published {
		if replayed == "" && p.Sequence == 0 && p.Type == eventType && string(p.Data) == string(msg.Data()) {
			return i, nil
		}
	}
	for _, p := range h.Published {
		if replayed == "" || p.Type != eventType || cmp.Or(p.EventID, p.message()) != replayed {
			continue
		}
		p.EventID, p.Time, p.Data = replayed, p.when(), msg.Data()
		h.Published = append(h.Published, p)
		return len(h.Published) - 1, nil
	}
	return 0, errors.New("it is in the stream, but not in the history")
}

func (s System) readDead(ctx context.Context, h *History) error {
	h.Dead = nil
	return schematest.EachMessage(ctx, s.JetStream, s.Stream+"_DEAD", func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		header := msg.Headers()
		d := Dead{Header: header, DeadLetter: events.DeadLetter{
			Sequence: meta.Sequence.Stream, Time: meta.Timestamp, Type: strings.TrimPrefix(msg.Subject(), s.Subjects.Dead("")), Data: msg.Data(),
			EventID: header.Get("Papermap-Event-Id"), EventTime: header.Get("Papermap-Event-Time"), Code: header.Get("Papermap-Error-Code"),
			Error: header.Get("Papermap-Error"), SideEffect: header.Get("Papermap-Side-Effect"),
		}}
		var err, attemptsErr error
		d.StreamSequence, err = strconv.ParseUint(header.Get("Papermap-Stream-Sequence"), 10, 64)
		d.Attempts, attemptsErr = strconv.Atoi(header.Get("Papermap-Attempts"))
		if err := errors.Join(err, attemptsErr); err != nil {
			return fmt.Errorf("reading the dead letter %d: %w", meta.Sequence.Stream, err)
		}
		h.Dead = append(h.Dead, d)
		return nil
	})
}

// waiting asks the server about both consumers.
func (s System) waiting(ctx context.Context) ([]Waiting, error) {
	stream, err := s.JetStream.Stream(ctx, s.Stream)
	if err != nil {
		return nil, fmt.Errorf("looking up stream %s: %w", s.Stream, err)
	}
	var list []Waiting
	for _, name := range []string{events.MainConsumer, events.AccessConsumer} {
		c, err := stream.Consumer(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("looking up consumer %s: %w", name, err)
		}
		info := c.CachedInfo()
		w := Waiting{Consumer: name, Pending: int(info.NumPending), InHand: info.NumAckPending}
		for _, subject := range info.Config.FilterSubjects { // a consumer hears of a new message a little later
			last, err := stream.GetLastMsgForSubject(ctx, subject)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("looking up the last message of %s: %w", subject, err)
			}
			if info.Delivered.Stream < last.Sequence {
				w.Pending = max(w.Pending, 1)
			}
		}
		list = append(list, w)
	}
	return list, nil
}

// Ask requests an embed token for the tenant, as a caller does. A refusal is an answer; an error is that none came.
func Ask(ctx context.Context, nc *nats.Conn, subjects events.Subjects, tenant string) (Token, error) {
	body, err := json.Marshal(map[string]string{"tenant_id": tenant})
	if err != nil {
		return Token{}, fmt.Errorf("asking for a token: %w", err)
	}
	t := Token{Asked: time.Now(), Tenant: tenant}
	reply, err := nc.RequestWithContext(ctx, subjects.RPC("embed-token"), body)
	t.Answered = time.Now()
	if err != nil {
		return t, fmt.Errorf("asking for a token for tenant %q: %w", tenant, err)
	}
	var answer struct {
		Code        string `json:"code"`
		Token       string `json:"token"`
		WorkspaceID string `json:"workspace_id"`
		DashboardID string `json:"dashboard_id"`
		ExpiresAt   int64  `json:"expires_at"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return t, fmt.Errorf("reading the answer about a token for tenant %q: %w", tenant, err)
	}
	t.Code, t.Text, t.Workspace, t.Dashboard, t.Expires = answer.Code, answer.Token, answer.WorkspaceID, answer.DashboardID, answer.ExpiresAt
	return t, nil
}
