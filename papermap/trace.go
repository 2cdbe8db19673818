package papermap

import (
	"context"
	"net/url"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// startSpan begins the span of one HTTP request under the span of ctx, if it has one. The span
// holds neither headers nor path, query and body, and no trace header is sent: Papermap is a third
// party.
func (c *Client) startSpan(ctx context.Context, r request) (context.Context, trace.Span) {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer("papermap-worker/papermap")
	ctx, span := tracer.Start(ctx, r.method+" "+r.route, trace.WithSpanKind(trace.SpanKindClient))
	if !span.IsRecording() {
		return ctx, span
	}
	span.SetAttributes(attribute.String("http.request.method", r.method),
		attribute.String("papermap.route", r.route),
		attribute.String("papermap.workspace_id", c.ws.ID))
	if u, err := url.Parse(c.ws.APIURL); err == nil { // an invalid one fails in send
		span.SetAttributes(attribute.String("server.address", u.Hostname()))
	}
	return ctx, span
}

// endSpan records the failure's class. Its message may quote the API, and stays out.
func endSpan(span trace.Span, failed *Error) {
	if failed != nil {
		span.SetAttributes(attribute.String("error.type", string(failed.Class)))
		span.SetStatus(codes.Error, string(failed.Class))
	}
	span.End()
}
