package proof

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
)

// System is where Collect reads.
type System struct {
	DB        *sqlx.DB // the worker's database, for tables that Repo has no method for
	Repo      *repo.DB
	JetStream jetstream.JetStream
	Stream    string // dead letters are in the stream with _DEAD appended
	Subjects  events.Subjects
	Simulator *simulator.Simulator
}

// Quiet returns nil if nothing is left to be done: no event waits, and everything in the outbox was
// published.
func Quiet(ctx context.Context, s System) error {
	waiting, err := s.waiting(ctx)
	if err != nil {
		return err
	}
	for _, w := range waiting {
		if w.Pending > 0 || w.InFlight > 0 {
			return fmt.Errorf("%s: %d events wait, %d are in flight", w.Consumer, w.Pending, w.InFlight)
		}
	}
	unsent, err := s.Repo.Unsent(ctx, 1)
	if err == nil && len(unsent) > 0 {
		err = fmt.Errorf("the outbox has %s of tenant %q to publish", unsent[0].Type, unsent[0].TenantID)
	}
	return err
}

// numbersPerStream is how far the sequences of two streams of events are apart in a history: those of a
// recreated stream start over.
const numbersPerStream = 1 << 32

// Number returns the sequence in the history of a message in the current stream of events.
func (h *History) Number(sequence uint64) uint64 {
	return uint64(h.Streams)*numbersPerStream + sequence
}

// Archive reads the stream of events into the history before the test deletes it, and returns its
// events in. They count as lost, so the test has to publish them again. Nothing may publish to the
// stream meanwhile.
func Archive(ctx context.Context, s System, seen History) (h History, lost []Published, err error) {
	h = seen
	if err := s.DB.SelectContext(ctx, &h.Outbox, selectOutbox); err != nil { // tells which events are out
		return h, nil, fmt.Errorf("read the outbox: %w", err)
	}
	if err := s.readEvents(ctx, &h); err != nil {
		return h, nil, err
	}
	h.Outbox = nil // Collect reads all of it
	known := map[uint64]bool{}
	for i := range h.Published {
		p := &h.Published[i]
		if p.Sequence <= h.Number(0) {
			continue
		}
		if p.Lost = true; !p.StoredAt.IsZero() && !known[p.Sequence] {
			known[p.Sequence] = true
			lost = append(lost, *p)
		}
	}
	slices.SortFunc(lost, func(a, b Published) int { return cmp.Compare(a.Sequence, b.Sequence) })
	h.Streams++
	return h, lost, nil
}

// Collect returns the history that the test has written together with what the run has left. It
// reads one part after the other, so they are consistent only when all is quiet.
//
// A stored event whose publisher got no acknowledgement is matched with an entry of seen.Published
// by type and data. A replayed one is matched by its identity and becomes an entry of its own. A
// tenant.created that the worker published out of its outbox is an event out as well. Any other
// event that the history does not know is an error, because nothing says how it should have ended.
func Collect(ctx context.Context, s System, seen History) (History, error) {
	h := seen
	var err error
	if h.Waiting, err = s.waiting(ctx); err != nil {
		return h, err
	}
	if err := s.readDatabase(ctx, &h); err != nil {
		return h, err
	}
	h.Dashboards, h.Requests = s.Simulator.Dashboards(), s.Simulator.Log()
	if err := s.readEvents(ctx, &h); err != nil {
		return h, err
	}
	if err := s.readDead(ctx, &h); err != nil {
		return h, err
	}
	h.numberDead()
	return h, nil
}

const selectOutbox = "SELECT id, event_id, tenant_id, type, data, created_at, sent_at FROM outbox ORDER BY id"

func (s System) readDatabase(ctx context.Context, h *History) (err error) {
	if h.Mappings, err = s.Repo.Mappings(ctx, "", "", math.MaxInt32); err != nil {
		return err
	}
	for query, rows := range map[string]any{
		`SELECT id, workspace_id, tenant_id, generation, mark, outcome, started_at, finished_at,
			COALESCE(dashboard_id, '') AS dashboard_id, COALESCE(http_status, 0) AS http_status,
			COALESCE(error, '') AS error FROM provision_attempts ORDER BY started_at, id`: &h.Attempts,
		selectOutbox: &h.Outbox,
		`SELECT workspace_id, tenant_id, period, credits, requests, synced_at FROM tenant_usage
			ORDER BY workspace_id, tenant_id, period`: &h.Usage,
	} {
		if err := s.DB.SelectContext(ctx, rows, query); err != nil {
			return fmt.Errorf("read the worker's tables: %w", err)
		}
	}
	h.Runs, err = s.Repo.Runs(ctx, "", math.MaxInt32)
	return err
}

// typesOut are the types that the worker publishes and does not consume.
var typesOut = []string{
	events.TypeDashboardCreated, events.TypeDashboardFailed, events.TypeDashboardHeld,
	events.TypeUsageThreshold, events.TypeUsageSynced,
}

// readEvents reads the worker's stream: when the events in were stored, and the events out.
func (s System) readEvents(ctx context.Context, h *History) error {
	h.Published, h.Out = slices.Clone(h.Published), slices.Clone(h.Out)
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
	read := func(msg *jetstream.RawStreamMsg) error {
		sequence := h.Number(msg.Sequence)
		eventType := strings.TrimPrefix(msg.Subject, s.Subjects.Event(""))
		isOut := slices.Contains(typesOut, eventType)
		if isOut || own[msg.Header.Get(jetstream.MsgIDHeader)] {
			var e struct {
				ID      string         `json:"id"`
				Subject string         `json:"subject"`
				Data    jsontext.Value `json:"data"`
			}
			if err := json.Unmarshal(msg.Data, &e); err != nil {
				return fmt.Errorf("read the event out %d (%s): %w", sequence, eventType, err)
			}
			h.Out = append(h.Out, Out{sequence, eventType, e.ID, e.Subject, e.Data})
		}
		if isOut {
			return nil
		}
		indexes := acknowledged[sequence]
		if len(indexes) == 0 && eventType == events.TypeUsageSync &&
			own[msg.Header.Get(jetstream.MsgIDHeader)] {
			h.Published = append(h.Published, Published{ // of the schedule
				Type: eventType, EventID: msg.Header.Get(jetstream.MsgIDHeader), Data: msg.Data,
			})
			indexes = []int{len(h.Published) - 1}
		}
		if len(indexes) == 0 {
			i, err := h.unacknowledged(msg, eventType)
			if err != nil {
				return fmt.Errorf("event %d (%s): %w", sequence, eventType, err)
			}
			indexes = []int{i}
		}
		for _, i := range indexes {
			p := &h.Published[i]
			p.Sequence, p.StoredAt, p.Header = sequence, msg.Time, msg.Header
		}
		return nil
	}
	return schematest.EachMessage(ctx, s.JetStream, s.Stream, read)
}

// unacknowledged returns the index of the entry for a message without an acknowledgement. For a
// replay it appends one.
func (h *History) unacknowledged(msg *jetstream.RawStreamMsg, eventType string) (int, error) {
	replayed := msg.Header.Get("Papermap-Event-Id")
	for i, p := range h.Published {
		if replayed == "" && p.Sequence == 0 && p.Type == eventType && string(p.Data) == string(msg.Data) {
			if id := msg.Header.Get("ce-id"); p.EventID == "" && id != "" { // chosen by a call
				when, err := time.Parse(time.RFC3339Nano, msg.Header.Get("ce-time"))
				h.Published[i].EventID, h.Published[i].Time = id, when
				return i, err
			}
			return i, nil
		}
	}
	for _, p := range h.Published {
		if replayed == "" || p.Type != eventType || cmp.Or(p.EventID, p.message()) != replayed {
			continue
		}
		p.EventID, p.Time, p.Data = replayed, p.when(), msg.Data
		h.Published = append(h.Published, p)
		return len(h.Published) - 1, nil
	}
	return 0, errors.New("it is in the stream, but not in the history")
}

// ArchiveDead reads the stream of dead letters into the history before the test deletes it. Nothing may
// publish to the stream meanwhile.
func ArchiveDead(ctx context.Context, s System, seen History) (h History, err error) {
	h = seen
	err = s.readDead(ctx, &h)
	h.DeadStreams++
	return h, err
}

// readDead appends the dead letters that are in their stream now.
func (s System) readDead(ctx context.Context, h *History) error {
	h.Dead = slices.Clone(h.Dead)
	read := func(msg *jetstream.RawStreamMsg) error {
		header := msg.Header
		d := Dead{Header: header, Stream: h.DeadStreams, DeadLetter: events.DeadLetter{
			Sequence: msg.Sequence, Time: msg.Time, Data: msg.Data,
			Type:       strings.TrimPrefix(msg.Subject, s.Subjects.Dead("")),
			EventID:    header.Get("Papermap-Event-Id"),
			EventTime:  header.Get("Papermap-Event-Time"),
			Code:       header.Get("Papermap-Error-Code"),
			Error:      header.Get("Papermap-Error"),
			SideEffect: header.Get("Papermap-Side-Effect"),
		}}
		var err, attemptsErr error
		d.StreamSequence, err = strconv.ParseUint(header.Get("Papermap-Stream-Sequence"), 10, 64)
		d.Attempts, attemptsErr = strconv.Atoi(header.Get("Papermap-Attempts"))
		if err := errors.Join(err, attemptsErr); err != nil {
			return fmt.Errorf("read the dead letter %d: %w", msg.Sequence, err)
		}
		h.Dead = append(h.Dead, d)
		return nil
	}
	return schematest.EachMessage(ctx, s.JetStream, s.Stream+"_DEAD", read)
}

// numberDead replaces the sequences of the dead letters' events by those in the history.
func (h *History) numberDead() {
	stored := map[uint64][]Published{} // by sequence in their stream
	for _, p := range h.Published {
		if !p.StoredAt.IsZero() {
			stored[p.Sequence%numbersPerStream] = append(stored[p.Sequence%numbersPerStream], p)
		}
	}
	for i := range h.Dead {
		d := &h.Dead[i]
		for _, p := range stored[d.StreamSequence] { // the newest stream that may be meant
			if !d.Time.Before(p.StoredAt) && p.Type == d.Type && d.of(p) {
				d.StreamSequence = p.Sequence
			}
		}
	}
}

// waiting reads the state of both consumers.
func (s System) waiting(ctx context.Context) ([]Waiting, error) {
	stream, err := s.JetStream.Stream(ctx, s.Stream)
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", s.Stream, err)
	}
	var list []Waiting
	for _, name := range []string{events.MainConsumer, events.AccessConsumer} {
		c, err := stream.Consumer(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("look up consumer %s: %w", name, err)
		}
		info := c.CachedInfo()
		w := Waiting{Consumer: name, Pending: int(info.NumPending), InFlight: info.NumAckPending}
		// The consumer learns of a new message a little later than the stream.
		for _, subject := range info.Config.FilterSubjects {
			last, err := stream.GetLastMsgForSubject(ctx, subject)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("look up the last message of %s: %w", subject, err)
			}
			if info.Delivered.Stream < last.Sequence {
				w.Pending = max(w.Pending, 1)
			}
		}
		list = append(list, w)
	}
	return list, nil
}
