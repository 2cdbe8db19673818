package events

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrTruncated means that a dead letter does not contain its whole event.
var ErrTruncated = errors.New(
	"its data was too large to be kept whole: publish the event again from its source")

// Replay publishes a dead letter's event again and deletes the dead letter once the stream has
// stored the event. If it is interrupted between the two, the dead letter remains; replaying it
// twice is safe.
func (b *Bus) Replay(ctx context.Context, d DeadLetter) error {
	err := ErrTruncated
	if d.Truncated == "" {
		id := fmt.Sprintf("replay-%d-%s", d.Sequence, uuid.NewString())
		r := Raw{Type: d.Type, Header: d.Header, Data: d.Data}
		err = b.republish(ctx, id, r, d.EventID, d.EventTime)
	}
	if err != nil {
		return fmt.Errorf("replay dead letter %d: %w", d.Sequence, err)
	}
	return b.Discard(ctx, d.Sequence)
}

// Republish publishes a stored event again.
func (b *Bus) Republish(ctx context.Context, p StoredEvent) error {
	id := fmt.Sprintf("again-%s-%s", p.Message, uuid.NewString())
	return b.republish(ctx, id, p.Raw, p.ID, p.Time.UTC().Format(time.RFC3339Nano))
}

// republish publishes an event again, with its original identity and time, under a new message id:
// inside the stream's duplicate window the old one would be dropped.
func (b *Bus) republish(ctx context.Context, messageID string, r Raw, eventID, eventTime string) error {
	e := Outgoing{ID: messageID, Type: r.Type, Header: headersToRepublish(r.Header), Data: r.Data}
	// White space at the ends of an id does not survive in a header. Such an id can only come from the
	// event itself, which still has it.
	own, _ := Decode(Raw{Type: r.Type, Header: e.Header, Data: r.Data})
	if own.ID == textproto.TrimString(own.ID) ||
		textproto.TrimString(own.ID) != textproto.TrimString(eventID) {
		e.Header[headerEventID] = []string{eventID}
	}
	e.Header[headerEventTime] = []string{eventTime}
	duplicate, err := b.Publish(ctx, e)
	if err == nil && duplicate {
		err = fmt.Errorf("the stream dropped message id %s as a duplicate", e.ID)
	}
	return err
}

// headersToRepublish are a message's headers without those that the server would act on
// and those that the worker sets. Its trace has ended; the new trace links to it.
func headersToRepublish(h nats.Header) nats.Header {
	kept := nats.Header{}
	for name, values := range h {
		if !hasPrefixFold(name, "nats-") && !hasPrefixFold(name, "papermap-") &&
			!slices.Contains(traceHeaders, strings.ToLower(name)) {
			kept[name] = values
		}
	}
	keepOriginalTrace(kept, h)
	return kept
}

// StoredEvent is an event that the stream still stores.
type StoredEvent struct {
	Event                       // decoded; Data is nil for an event out
	Raw       Raw               // as it is stored
	Invalid   string            // why it can't be decoded; empty if it can
	Dashboard *DashboardCreated // of dashboard.created
}

// size is the approximate memory that it takes without the stored data.
func (p StoredEvent) size() int {
	const fixed = 512
	texts := len(p.ID) + len(p.Source) + len(p.Invalid)
	switch data := p.Data.(type) {
	case TenantCreated:
		texts += len(data.Name) + len(data.Title) + len(data.Description)
	case TenantChange:
		texts += len(data.Reason)
	}
	return fixed + texts + headerSize(p.Raw.Header)
}

// Republished reports whether the event was published again, with its original identity.
func (p StoredEvent) Republished() bool { return p.Raw.Header.Get(headerEventTime) != "" }

// identity tells republished copies of an event from other events.
func (p StoredEvent) identity() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %s",
		p.Type, p.Source, p.ID, p.Time.UnixNano(), p.Raw.Data))
}

// ScanSince reads what the stream stored since a time, oldest first: the tenants' events that can
// be decoded, and dashboard.created. Of an event and its copies by [Bus.Republish] it reads only
// the first. If each returns an error, it stops and returns it. The zero time means the whole stream.
func (b *Bus) ScanSince(ctx context.Context, since time.Time, each func(StoredEvent) error) error {
	types := append([]string{TypeDashboardCreated}, typeNames(ofTenant)...)
	config := jetstream.ConsumerConfig{FilterSubjects: b.o.Subjects.of(types)}
	if !since.IsZero() {
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	var failed error
	seen := map[[sha256.Size]byte]bool{}
	err := b.scan(ctx, b.o.Stream, config, func(r Raw) bool {
		p := StoredEvent{Raw: r}
		if r.Type == TypeDashboardCreated {
			var body envelope
			p.Dashboard = &DashboardCreated{}
			if json.Unmarshal(r.Data, &body) != nil || json.Unmarshal(body.Data, p.Dashboard) != nil {
				return true // not published by a worker
			}
			p.ID = body.ID
			p.Time, _ = time.Parse(time.RFC3339Nano, body.Time) // a worker's can be read
		} else if e, err := Decode(r); err == nil {
			p.Event = e
			id := p.identity()
			if seen[id] && p.Republished() {
				return true
			}
			seen[id] = true
		} else {
			return true // a dead letter, then and now
		}
		failed = each(p)
		return failed == nil
	})
	return errors.Join(err, failed)
}

// historyBytes limits the text of a tenant's events in memory, in bytes.
const historyBytes = 4 << 20

// TenantEvents returns a tenant's events in that the stream still has, oldest first: the newest
// limit of them, searched in the newest among messages of the stream. Events that cannot be decoded
// are included as far as they can be read; all are without their stored data. If ctx ends first, it
// returns the events found so far. leftOut says what was not searched; it is empty if the list is
// complete.
func (b *Bus) TenantEvents(
	ctx context.Context, tenantID string, limit int, among uint64,
) (list []StoredEvent, leftOut string, err error) {
	fail := func(err error) ([]StoredEvent, string, error) {
		return nil, "", fmt.Errorf("read stream %s: %w", b.o.Stream, b.withHint(err))
	}
	js, release, err := b.reader()
	if err != nil {
		return fail(err)
	}
	defer release()
	stream, err := js.Stream(ctx, b.o.Stream)
	if err != nil {
		return fail(err)
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return nil, "", nil
	}
	config := jetstream.ConsumerConfig{FilterSubjects: b.o.Subjects.of(typeNames(ofTenant))}
	if state.LastSeq-state.FirstSeq >= among {
		config.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
		config.OptStartSeq = state.LastSeq - among + 1
		leftOut = fmt.Sprintf("events before the newest %d messages of stream %s", among, b.o.Stream)
	}
	var reached time.Time
	size := 0
	err = b.scan(ctx, b.o.Stream, config, func(r Raw) bool {
		reached = r.Time
		e, err := Decode(r)
		if err == nil && e.TenantID() != tenantID || err != nil && tenantOf(r.Data) != tenantID {
			return true
		}
		stored := StoredEvent{Event: e, Raw: r}
		stored.Raw.Data = nil
		if err != nil {
			stored.Invalid = err.Error()
		}
		list, size = append(list, stored), size+stored.size()
		for len(list) > limit || size > historyBytes && len(list) > 1 {
			size -= list[0].size()
			list[0] = StoredEvent{}
			list = list[1:]
			leftOut = fmt.Sprintf("events before the newest %d of this tenant", len(list))
		}
		return true
	})
	if errors.Is(err, context.DeadlineExceeded) && !reached.IsZero() {
		return list, fmt.Sprintf("events after %s: stream %s is too long to be read to its end in time",
			reached.UTC().Format(time.RFC3339), b.o.Stream), nil
	}
	return list, leftOut, err
}
