package events

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
)

// envelope is a CloudEvents 1.0 event in structured mode.
type envelope struct {
	SpecVersion     string         `json:"specversion"`
	ID              string         `json:"id"`
	Source          string         `json:"source"`
	Type            string         `json:"type"`
	Subject         string         `json:"subject,omitempty"`
	Time            string         `json:"time"`
	DataContentType string         `json:"datacontenttype"`
	Data            jsontext.Value `json:"data"`
}

// Source is the source of the worker's own CloudEvents.
const Source = "papermap-worker"

// Outgoing is an event to publish, of any type, in any form that [Decode] reads.
type Outgoing struct {
	ID     string // Nats-Msg-Id; within the duplicate window the stream drops a copy; empty: none
	Type   string
	Header nats.Header // more headers, or nil
	Data   []byte
	Cause  trace.SpanContext // the span that caused it, when that is not the publishing context's
}

// Structured returns a CloudEvent in structured mode. tenantID, its subject, may be empty; data is
// JSON.
func Structured(id, eventType, tenantID string, when time.Time, data []byte) (Outgoing, error) {
	body, err := json.Marshal(envelope{
		SpecVersion: "1.0", ID: id, Source: Source, Type: eventType, Subject: tenantID,
		Time: when.UTC().Format(time.RFC3339Nano), DataContentType: "application/json", Data: data,
	})
	if err != nil {
		return Outgoing{}, fmt.Errorf("encode event %s: %w", id, err)
	}
	header := nats.Header{"content-type": {"application/cloudevents+json"}}
	return Outgoing{ID: id, Type: eventType, Header: header, Data: body}, nil
}

// WithIdentity returns the event with the identity and time of one that was published before.
func (e Outgoing) WithIdentity(id string, t time.Time) Outgoing {
	header := nats.Header{}
	maps.Copy(header, e.Header)
	header.Set(headerEventID, id)
	header.Set(headerEventTime, t.UTC().Format(time.RFC3339Nano))
	e.Header = header
	return e
}

// WithTime returns an event of plain data as a CloudEvent in binary mode with the given time.
func (e Outgoing) WithTime(t time.Time) Outgoing {
	e.Header = nats.Header{
		"ce-specversion": {"1.0"}, "ce-id": {e.ID}, "ce-source": {"papermap-worker"}, "ce-type": {e.Type},
		"ce-time": {t.UTC().Format(time.RFC3339Nano)},
	}
	return e
}

// MaxAhead is how far an event's time may be ahead of the stream's.
const MaxAhead = maxAhead

// StreamTime is the time by the NATS server's clock, which events without their own time get.
func (b *Bus) StreamTime(ctx context.Context) (time.Time, error) {
	if err := b.connected(b.nc); err != nil {
		return time.Time{}, err
	}
	stream, err := b.js.Stream(ctx, b.o.Stream)
	if err != nil {
		return time.Time{}, fmt.Errorf("ask stream %s for its time: %w", b.o.Stream, b.withHint(err))
	}
	return stream.CachedInfo().TimeStamp, nil
}

// Publish publishes the event and returns when the stream has stored it. duplicate means that the
// stream already had an event with this id and dropped this one. Without a connection it fails at
// once, and the event is not published later.
func (b *Bus) Publish(ctx context.Context, e Outgoing) (duplicate bool, err error) {
	if err := b.connected(b.nc); err != nil {
		return false, fmt.Errorf("publish %s: %w", e.Type, err)
	}
	msg := b.message(e)
	ctx, span := b.startPublish(ctx, msg, e)
	defer span.End()
	var ack *jetstream.PubAck
	if err = b.connected(b.nc); err == nil {
		ack, err = b.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(b.o.Stream))
	}
	failSpan(span, err)
	if err != nil {
		return false, fmt.Errorf("publish %s: %w", e.Type, b.withHint(err))
	}
	return ack.Duplicate, nil
}

// ErrTooLarge means that an event is larger than the NATS server or the stream accepts, so that it
// can never be published.
var ErrTooLarge = errors.New(
	"larger than NATS accepts: raise max_payload of the server, or max_msg_size of the stream")

// ErrNoStream means that no stream captures the event's subject.
var ErrNoStream = jetstream.ErrNoStreamResponse

// PublishAll publishes the events concurrently, in no order, and returns an error for each: nil
// when the stream has stored it. It publishes nothing after ctx's deadline, even if the process or
// the host was suspended before that.
func (b *Bus) PublishAll(ctx context.Context, list []Outgoing) []error {
	errs := make([]error, len(list))
	acks := make([]jetstream.PubAckFuture, len(list))
	spans := make([]trace.Span, len(list))
	for i, e := range list {
		msg := b.message(e)
		_, spans[i] = b.startPublish(ctx, msg, e)
		if deadline, ok := ctx.Deadline(); ok && isOver(deadline) {
			errs[i] = context.DeadlineExceeded
			continue
		}
		// Without the library's retries, which would publish later.
		acks[i], errs[i] = b.js.PublishMsgAsync(msg,
			jetstream.WithExpectStream(b.o.Stream), jetstream.WithRetryAttempts(0))
	}
	for i, ack := range acks {
		if errs[i] == nil {
			select {
			case <-ack.Ok():
			case err := <-ack.Err():
				errs[i] = err
			case <-ctx.Done():
				errs[i] = ctx.Err()
			}
		}
		if errs[i] != nil {
			errs[i] = fmt.Errorf("publish %s: %w", list[i].Type, b.withHint(errs[i]))
		}
		failSpan(spans[i], errs[i])
		spans[i].End()
	}
	return errs
}

// isOver reports whether a deadline has passed: by the monotonic clock, which cannot be set, or by
// the wall clock, which continues while the host sleeps. A context notices only when its timer
// runs.
func isOver(deadline time.Time) bool {
	now := time.Now()
	return !now.Before(deadline) || !now.Round(0).Before(deadline.Round(0))
}

// message returns the NATS message of an event. The event's own headers are copied, because tracing
// adds to them.
func (b *Bus) message(e Outgoing) *nats.Msg {
	msg := &nats.Msg{Subject: b.o.Subjects.Event(e.Type), Header: nats.Header{}, Data: e.Data}
	for name, values := range e.Header {
		msg.Header[name] = values
	}
	if e.ID != "" {
		msg.Header.Set(jetstream.MsgIDHeader, e.ID)
	}
	return msg
}
