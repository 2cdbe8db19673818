package events

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// A message carries its trace context in the W3C headers traceparent and tracestate; a CloudEvent
// may carry it in ce-traceparent. The first delivery continues that trace. A later delivery, and a
// replay, start a new trace with a link to it: they come minutes or weeks later, and are not caused
// by the publisher. A context that cannot be parsed is ignored, and never makes an event invalid.
//
// Attributes follow OpenTelemetry's semantic conventions for messaging
// (https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). None holds data or headers
// of a message.

// headerOriginalTrace keeps, on a replay, the traceparent of the event when it was first published.
const headerOriginalTrace = originalPrefix + "Traceparent"

var traceHeaders = []string{"traceparent", "tracestate", "ce-traceparent", "ce-tracestate"}

var w3c propagation.TraceContext

// carrier adapts a message's headers to package propagation.
type carrier struct {
	header nats.Header
	prefix string // of the header names
}

// Get compares names without case: HTTP libraries, which many publishers use for headers, capitalise
// them.
func (c carrier) Get(name string) string {
	for key, values := range c.header {
		if len(values) > 0 && strings.EqualFold(key, c.prefix+name) {
			return values[0]
		}
	}
	return ""
}

func (c carrier) Set(name, value string) { c.header[c.prefix+name] = []string{value} }
func (c carrier) Keys() []string         { return slices.Collect(maps.Keys(c.header)) }

// traceOf returns the span that a message comes from; it is invalid if there is none.
func traceOf(h nats.Header) trace.SpanContext {
	for _, prefix := range []string{"", "ce-"} {
		ctx := w3c.Extract(context.Background(), carrier{h, prefix})
		if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
			return sc
		}
	}
	return trace.SpanContext{}
}

// originalTraceOf returns the span that a replayed event came from when it was first published.
func originalTraceOf(h nats.Header) trace.SpanContext {
	return traceOf(nats.Header{"traceparent": {carrier{header: h}.Get(headerOriginalTrace)}})
}

// keepOriginalTrace records in the headers of a replay the span that its event came from when it was
// first published. were are the event's headers.
func keepOriginalTrace(replay, were nats.Header) {
	sc := originalTraceOf(were)
	if !sc.IsValid() {
		sc = traceOf(were)
	}
	text := propagation.MapCarrier{}
	w3c.Inject(trace.ContextWithSpanContext(context.Background(), sc), text)
	if parent := text.Get("traceparent"); parent != "" {
		replay.Set(headerOriginalTrace, parent)
	}
}

func link(kind string, sc trace.SpanContext) trace.SpanStartOption {
	attributes := []attribute.KeyValue{attribute.String("papermap.link", kind)}
	return trace.WithLinks(trace.Link{SpanContext: sc, Attributes: attributes})
}

func messaging(operation, kind, destination string, more ...attribute.KeyValue) trace.SpanStartOption {
	return trace.WithAttributes(append(more,
		attribute.String("messaging.system", "nats"), attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.operation.type", kind),
		attribute.String("messaging.destination.name", destination),
	)...)
}

// startPublish starts the span of a publish and puts it into the message's headers.
func (b *Bus) startPublish(ctx context.Context, msg *nats.Msg, e Outgoing) (context.Context, trace.Span) {
	if b.o.Tracer == nil {
		return ctx, noop.Span{}
	}
	options := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindProducer),
		messaging("publish", "send", msg.Subject, attribute.String("messaging.message.id", e.ID)),
	}
	if e.Cause.IsValid() {
		ctx = trace.ContextWithSpanContext(ctx, e.Cause)
	}
	if original := originalTraceOf(msg.Header); original.IsValid() {
		options = append(options, trace.WithNewRoot(), link("original", original))
	}
	ctx, span := b.o.Tracer.Start(ctx, "publish "+msg.Subject, options...)
	w3c.Inject(ctx, carrier{header: msg.Header})
	return ctx, span
}

// startRequest returns a request's message and its span.
func (b *Bus) startRequest(
	ctx context.Context, endpoint string, data []byte,
) (context.Context, *nats.Msg, trace.Span) {
	msg := &nats.Msg{Subject: b.o.Subjects.RPC(endpoint), Data: data, Header: nats.Header{}}
	if b.o.Tracer == nil {
		return ctx, msg, noop.Span{}
	}
	ctx, span := b.o.Tracer.Start(ctx, "request "+msg.Subject, trace.WithSpanKind(trace.SpanKindClient),
		messaging("request", "send", msg.Subject))
	w3c.Inject(ctx, carrier{header: msg.Header})
	return ctx, msg, span
}

// startProcess starts the span of an event's handling.
func (c *Consumer) startProcess(
	ctx context.Context, subject string, raw Raw, deliveries int,
) (context.Context, trace.Span) {
	if c.bus.o.Tracer == nil {
		return ctx, noop.Span{}
	}
	options := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindConsumer),
		messaging("process", "process", subject, attribute.String("messaging.consumer.group.name", c.Durable),
			attribute.Int64("messaging.nats.stream.sequence", int64(raw.Sequence)),
			attribute.Int("messaging.nats.deliveries", deliveries)),
	}
	from := traceOf(raw.Header)
	switch {
	case deliveries <= 1:
		ctx = trace.ContextWithRemoteSpanContext(ctx, from)
	case from.IsValid():
		options = append(options, link("redelivery", from))
	}
	if original := originalTraceOf(raw.Header); original.IsValid() {
		options = append(options, link("original", original))
	}
	return c.bus.o.Tracer.Start(ctx, "process "+subject, options...)
}

// tracedDead returns the headers of an event for its dead letter. Without a trace of their own they
// get that of ctx.
func tracedDead(ctx context.Context, h nats.Header) nats.Header {
	if traceOf(h).IsValid() || !trace.SpanContextFromContext(ctx).IsValid() {
		return h
	}
	traced := nats.Header{}
	maps.Copy(traced, h)
	w3c.Inject(ctx, carrier{header: traced})
	return traced
}

// traced starts the span of a request if its caller traces it: there are far too many requests for a
// span of each.
func (s *Service) traced(r request) context.Context {
	from := traceOf(r.header)
	if !from.IsSampled() {
		return r.ctx
	}
	subject := s.bus.o.Subjects.RPC(r.endpoint.Name)
	ctx, _ := s.bus.o.Tracer.Start(trace.ContextWithRemoteSpanContext(r.ctx, from), "answer "+subject,
		trace.WithSpanKind(trace.SpanKindServer), messaging("answer", "process", subject))
	return ctx
}

// failSpan marks a span as failed, without the error's text, which can hold data: the log has that,
// with the trace id.
func failSpan(span trace.Span, err error) {
	if err == nil {
		return
	}
	kind := "error"
	if known := (*ServiceError)(nil); errors.As(err, &known) {
		kind = known.Code
	}
	span.SetAttributes(attribute.String("error.type", kind))
	span.SetStatus(codes.Error, kind)
}
