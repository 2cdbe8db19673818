package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DeadLetter is an event that could not be handled, as it is kept.
type DeadLetter struct {
	Sequence       uint64      `json:"sequence"` // in the stream of dead letters
	Type           string      `json:"type"`
	TenantID       string      `json:"tenant_id,omitempty"` // as far as the data can be read
	EventID        string      `json:"event_id"`
	EventTime      string      `json:"event_time"`
	Time           time.Time   `json:"time"` // when it became a dead letter
	Code           string      `json:"code"`
	Error          string      `json:"error"`
	Attempts       int         `json:"attempts"`
	SideEffect     string      `json:"side_effect"`
	StreamSequence uint64      `json:"stream_sequence"`     // of the event
	Truncated      string      `json:"truncated,omitempty"` // length and SHA-256 of data that did not fit
	Header         nats.Header `json:"header"`
	Data           []byte      `json:"data"`
}

// DeadFilter selects dead letters. A field that is empty selects all.
type DeadFilter struct {
	Sequences            []uint64
	From                 uint64 // the first sequence
	Type, Code, TenantID string
	Since, Before        time.Time // when they became dead letters
}

func (f DeadFilter) selects(d DeadLetter) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return (len(f.Sequences) == 0 || slices.Contains(f.Sequences, d.Sequence)) && is(f.Type, d.Type) && is(f.Code, d.Code) &&
		is(f.TenantID, d.TenantID) && !d.Time.Before(f.Since) && (f.Before.IsZero() || d.Time.Before(f.Before))
}

// DeadLetters reads the dead letters that the filter selects, oldest first, at most limit.
func (b *Bus) DeadLetters(ctx context.Context, f DeadFilter, limit int) ([]DeadLetter, error) {
	var list []DeadLetter
	err := b.scan(ctx, b.deadStream(), jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, f.From),
	}, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		d := b.deadLetterOf(msg.Subject(), msg.Headers(), msg.Data(), meta.Sequence.Stream, meta.Timestamp)
		if f.selects(d) {
			list = append(list, d)
		}
		return len(list) < limit
	})
	return list, err
}

// ErrNoDeadLetter means that there is no dead letter of that number.
var ErrNoDeadLetter = errors.New("there is no such dead letter")

// DeadLetter reads one by its number.
func (b *Bus) DeadLetter(ctx context.Context, sequence uint64) (DeadLetter, error) {
	stream, err := b.js.Stream(ctx, b.deadStream())
	if err == nil {
		var msg *jetstream.RawStreamMsg
		if msg, err = stream.GetMsg(ctx, sequence); err == nil {
			return b.deadLetterOf(msg.Subject, msg.Header, msg.Data, sequence, msg.Time), nil
		}
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		err = ErrNoDeadLetter
	}
	return DeadLetter{}, fmt.Errorf("reading dead letter %d: %w", sequence, b.explain(err))
}

// OnDead calls do for each event of a type that becomes a dead letter from now on, until stop.
func (b *Bus) OnDead(ctx context.Context, eventType string, do func(DeadLetter)) (stop func(), err error) {
	config := jetstream.OrderedConsumerConfig{FilterSubjects: []string{b.o.Subjects.Dead(eventType)}, DeliverPolicy: jetstream.DeliverNewPolicy}
	consumer, err := b.js.OrderedConsumer(ctx, b.deadStream(), config)
	if err != nil {
		return nil, fmt.Errorf("reading stream %s: %w", b.deadStream(), b.explain(err))
	}
	reading, err := consumer.Consume(func(msg jetstream.Msg) {
		if meta, err := msg.Metadata(); err == nil {
			do(b.deadLetterOf(msg.Subject(), msg.Headers(), msg.Data(), meta.Sequence.Stream, meta.Timestamp))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("reading stream %s: %w", b.deadStream(), b.explain(err))
	}
	return reading.Stop, nil
}

func (b *Bus) deadLetterOf(subject string, h nats.Header, data []byte, sequence uint64, stored time.Time) DeadLetter {
	d := DeadLetter{
		Sequence: sequence, Type: strings.TrimPrefix(subject, b.o.Subjects.Dead("")), TenantID: tenantOf(data),
		EventID: h.Get(headerEventID), EventTime: h.Get(headerEventTime), Time: stored, Code: h.Get(headerCode), Error: h.Get(headerError),
		SideEffect: h.Get(headerSideEffect), Truncated: h.Get(headerTruncated), Header: h, Data: data,
	}
	d.Attempts, _ = strconv.Atoi(h.Get(headerAttempts)) // ours; 0 if somebody else wrote it
	d.StreamSequence, _ = strconv.ParseUint(h.Get(headerSequence), 10, 64)
	return d
}

// tenantOf finds the tenant in data that may be anything; empty when it cannot be told.
func tenantOf(data []byte) string {
	var tenantID struct {
		ID   jsontext.Value `json:"tenant_id"`
		Data struct {
			ID jsontext.Value `json:"tenant_id"`
		} `json:"data"`
	}
	_ = json.Unmarshal(data, &tenantID, jsontext.AllowDuplicateNames(true)) // it is a dead letter because it cannot be read, perhaps
	var id string
	for _, v := range []jsontext.Value{tenantID.Data.ID, tenantID.ID} {
		if id == "" {
			_ = json.Unmarshal(v, &id)
		}
	}
	return id
}

// ErrTruncated means that a dead letter does not hold all of its event.
var ErrTruncated = errors.New("its data was too large to be kept whole: publish the event again from its source")

// Replay publishes a dead letter's event again, with the identity and the time that it had, and takes the dead letter
// away once the stream has stored it. Being stopped between the two leaves the dead letter: to replay it twice changes
// nothing.
func (b *Bus) Replay(ctx context.Context, d DeadLetter) error {
	if d.Truncated != "" {
		return fmt.Errorf("replaying dead letter %d: %w", d.Sequence, ErrTruncated)
	}
	e := Outgoing{ID: fmt.Sprintf("replay-%d-%s", d.Sequence, uuid.NewString()), Type: d.Type, Header: original(d.Header), Data: d.Data}
	e.Header[headerEventID], e.Header[headerEventTime] = []string{d.EventID}, []string{d.EventTime}
	if err := b.again(ctx, e); err != nil {
		return fmt.Errorf("replaying dead letter %d: %w", d.Sequence, err)
	}
	return b.Discard(ctx, d.Sequence)
}

// again publishes an event that was in the stream before, and makes sure that it is stored.
func (b *Bus) again(ctx context.Context, e Outgoing) error {
	duplicate, err := b.Publish(ctx, e)
	if err == nil && duplicate {
		err = fmt.Errorf("the stream took message id %s for a duplicate and dropped it", e.ID)
	}
	return err
}

// Discard deletes a dead letter for good.
func (b *Bus) Discard(ctx context.Context, sequence uint64) error {
	stream, err := b.js.Stream(ctx, b.deadStream())
	if err == nil {
		err = stream.DeleteMsg(ctx, sequence)
	}
	if err != nil {
		return fmt.Errorf("deleting dead letter %d: %w", sequence, b.explain(err))
	}
	return nil
}

// Past is an event that the stream still keeps.
type Past struct {
	Event                       // as it was decoded; Data is nil for an event out
	Raw       Raw               // as it was stored
	Dashboard *DashboardCreated // of dashboard.created
}

// Again says whether it was published again, with the identity that it had.
func (p Past) Again() bool { return p.Raw.Header.Get(headerEventID) != "" }

// Since reads what the stream stored since a time, in its order: the tenants' events that could be decoded, and
// dashboard.created. each returns an error to end it.
func (b *Bus) Since(ctx context.Context, since time.Time, each func(Past) error) error {
	var failed error
	from := jetstream.OrderedConsumerConfig{FilterSubjects: b.o.Subjects.events(append([]string{TypeDashboardCreated}, tenantTypes...))}
	if !since.IsZero() {
		from.DeliverPolicy, from.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	err := b.scan(ctx, b.o.Stream, from, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		p := Past{Raw: b.rawOf(msg, meta)}
		if p.Raw.Type == TypeDashboardCreated {
			var body envelope
			p.Dashboard = &DashboardCreated{}
			if json.Unmarshal(p.Raw.Data, &body) != nil || json.Unmarshal(body.Data, p.Dashboard) != nil {
				return true // not ours
			}
		} else {
			var err error
			if p.Event, err = Decode(p.Raw); err != nil {
				return true // a dead letter, then and now
			}
		}
		failed = each(p)
		return failed == nil
	})
	return errors.Join(err, failed)
}

// PublishAgain publishes an event of the past again, with the identity and the time that it had.
func (b *Bus) PublishAgain(ctx context.Context, p Past) error {
	e := Outgoing{ID: fmt.Sprintf("again-%s-%s", p.Message, uuid.NewString()), Type: p.Raw.Type, Header: original(p.Raw.Header), Data: p.Raw.Data}
	return b.again(ctx, e.As(p.ID, p.Time))
}

// original is a message's headers without those that the server would obey and those that we set. Its trace is over: the
// replay only tells of it.
func original(h nats.Header) nats.Header {
	kept := nats.Header{}
	for name, values := range h {
		lower := strings.ToLower(name)
		if !strings.HasPrefix(lower, "nats-") && !strings.HasPrefix(lower, "papermap-") && !slices.Contains(traceHeaders, lower) {
			kept[name] = values
		}
	}
	keepOriginalTrace(kept, h)
	return kept
}

// OfTenant reads what the stream keeps of a tenant's events in, oldest first: at most most of them, the newest, and among
// the newest messages of the stream, as many as among. Events that cannot be decoded are there as far as they can be read.
// When ctx ends first, it returns what it has. leftOut says what it did not look at; it is empty when the list is whole.
func (b *Bus) OfTenant(ctx context.Context, tenantID string, most int, among uint64) (list []Past, leftOut string, err error) {
	stream, err := b.js.Stream(ctx, b.o.Stream)
	if err != nil {
		return nil, "", fmt.Errorf("reading stream %s: %w", b.o.Stream, b.explain(err))
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return nil, "", nil
	}
	from := jetstream.OrderedConsumerConfig{FilterSubjects: b.o.Subjects.events(tenantTypes)}
	if state.LastSeq-state.FirstSeq >= among {
		from.DeliverPolicy, from.OptStartSeq = jetstream.DeliverByStartSequencePolicy, state.LastSeq-among+1
		leftOut = fmt.Sprintf("events before the newest %d messages of stream %s", among, b.o.Stream)
	}
	var reached time.Time
	err = b.scan(ctx, b.o.Stream, from, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		reached = meta.Timestamp
		p := Past{Raw: b.rawOf(msg, meta)}
		var decodeErr error
		if p.Event, decodeErr = Decode(p.Raw); decodeErr != nil && tenantOf(p.Raw.Data) != tenantID || decodeErr == nil && p.TenantID() != tenantID {
			return true
		}
		if list = append(list, p); len(list) > most {
			list, leftOut = list[1:], fmt.Sprintf("events before the newest %d of this tenant", most)
		}
		return true
	})
	if errors.Is(err, context.DeadlineExceeded) && !reached.IsZero() {
		return list, fmt.Sprintf("events after %s: stream %s is too long to be read to its end in time", reached.UTC().Format(time.RFC3339), b.o.Stream), nil
	}
	return list, leftOut, err
}

func (b *Bus) rawOf(msg jetstream.Msg, meta *jetstream.MsgMetadata) Raw {
	return Raw{
		Type: strings.TrimPrefix(msg.Subject(), b.o.Subjects.Event("")), Header: msg.Headers(), Data: msg.Data(),
		Sequence: meta.Sequence.Stream, Time: meta.Timestamp,
	}
}

// scan hands out the messages of a stream in their order, those that config selects, up to the last one that there is when
// it begins, or until each returns false.
func (b *Bus) scan(ctx context.Context, name string, config jetstream.OrderedConsumerConfig, each func(jetstream.Msg, *jetstream.MsgMetadata) bool) error {
	fail := func(err error) error { return fmt.Errorf("reading stream %s: %w", name, b.explain(err)) }
	stream, err := b.js.Stream(ctx, name)
	if err != nil {
		return fail(err)
	}
	consumer, err := stream.OrderedConsumer(ctx, config)
	if err != nil {
		return fail(err)
	}
	if consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fail(err)
	}
	defer messages.Stop()
	last := stream.CachedInfo().State.LastSeq
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fail(err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fail(err)
		}
		if meta.Sequence.Stream > last || !each(msg, meta) || meta.Sequence.Stream == last || meta.NumPending == 0 {
			return nil
		}
	}
}
