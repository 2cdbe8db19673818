package papermap

import (
	"context"
	"net/url"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// startSpan begins the span of one HTTP request, if ctx has one that it can be part of. Neither its headers nor its path,
// query and body are in it, and nothing of it is sent to Papermap: traces are no business of a stranger's.
func (c *Client) startSpan(ctx context.Context, r request) (context.Context, trace.Span) {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer("papermap-worker/papermap")
	ctx, span := tracer.Start(ctx, r.method+" "+r.route, trace.WithSpanKind(trace.SpanKindClient))
	if !span.IsRecording() {
		return ctx, span
	}
	span.SetAttributes(attribute.String("http.request.method", r.method), attribute.String("papermap.route", r.route),
		attribute.String("papermap.workspace_id", c.ws.ID))
	if u, err := url.Parse(c.ws.APIURL); err == nil { // one that is wrong fails in do
		span.SetAttributes(attribute.String("server.address", u.Hostname()))
	}
	return ctx, span
}

// endSpan says by class how the request failed: the message can quote what the API said.
func endSpan(span trace.Span, failed *Error) {
	if failed != nil {
		span.SetAttributes(attribute.String("error.type", string(failed.Class)))
		span.SetStatus(codes.Error, string(failed.Class))
	}
	span.End()
}
