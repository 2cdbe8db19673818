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

// UsageSynced is the data of usage.synced.
type UsageSynced struct {
	WorkspaceID  string `json:"workspace_id"`
	TenantID     string `json:"tenant_id,omitempty"` // when only this one's usage was read
	FromPeriod   string `json:"from_period"`
	ToPeriod     string `json:"to_period"`
	Tenants      int    `json:"tenants"`       // that have usage in those months
	Rows         int64  `json:"rows"`          // that were read
	RejectedRows int64  `json:"rejected_rows"` // that could not be used
	ChangedRows  int64  `json:"changed_rows"`  // totals that went down
}

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

const structuredType = "application/cloudevents+json"

// Outgoing is an event to publish.
type Outgoing struct {
	ID     string // at most one copy of an id is kept within the stream's duplicate window
	Type   string
	Header nats.Header // more headers, or nil
	Data   []byte
	Cause  trace.SpanContext // the span that it comes from, when that is not the publishing context's
}

// Structured makes a CloudEvents event in structured mode. data is JSON; about is the tenant that it tells of.
func Structured(id, eventType, about string, when time.Time, data []byte) (Outgoing, error) {
	body, err := json.Marshal(envelope{
		SpecVersion: "1.0", ID: id, Source: "papermap-worker", Type: eventType, Subject: about,
		Time: when.UTC().Format(time.RFC3339Nano), DataContentType: "application/json", Data: data,
	})
	if err != nil {
		return Outgoing{}, fmt.Errorf("encoding event %s: %w", id, err)
	}
	return Outgoing{ID: id, Type: eventType, Header: nats.Header{"content-type": {structuredType}}, Data: body}, nil
}

// As is the event with the identity and the time of one that was published before.
func (e Outgoing) As(id string, t time.Time) Outgoing {
	header := nats.Header{}
	maps.Copy(header, e.Header)
	header.Set(headerEventID, id)
	header.Set(headerEventTime, t.UTC().Format(time.RFC3339Nano))
	e.Header = header
	return e
}

// Publish publishes the event and returns when the stream has stored it. duplicate says that the stream had an
// event of this id already and dropped this one.
func (b *Bus) Publish(ctx context.Context, e Outgoing) (duplicate bool, err error) {
	msg := b.message(e)
	ctx, span := b.startPublish(ctx, msg, e)
	defer span.End()
	ack, err := b.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(b.o.Stream))
	failSpan(span, err)
	if err != nil {
		return false, fmt.Errorf("publishing %s: %w", e.Type, b.explain(err))
	}
	return ack.Duplicate, nil
}

// ErrTooLarge means that an event is larger than the NATS server or the stream takes, and so can never be published.
var ErrTooLarge = errors.New("larger than NATS takes: raise max_payload of the server, or max_msg_size of the stream")

// PublishAll publishes the events at once, in no order, and returns for each nil when the stream has stored it.
func (b *Bus) PublishAll(ctx context.Context, list []Outgoing) []error {
	errs := make([]error, len(list))
	acks := make([]jetstream.PubAckFuture, len(list))
	spans := make([]trace.Span, len(list))
	for i, e := range list {
		msg := b.message(e)
		_, spans[i] = b.startPublish(ctx, msg, e)
		acks[i], errs[i] = b.js.PublishMsgAsync(msg, jetstream.WithExpectStream(b.o.Stream))
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
			errs[i] = fmt.Errorf("publishing %s: %w", list[i].Type, b.explain(errs[i]))
		}
		failSpan(spans[i], errs[i])
		spans[i].End()
	}
	return errs
}

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
