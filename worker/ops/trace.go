package ops

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// traced handles requests within a span that continues the caller's trace. It has the path's
// pattern, and no headers, query or body.
func (a *rest) traced(r route, handle http.HandlerFunc) http.HandlerFunc {
	if a.tracer == nil {
		return handle
	}
	return func(rw http.ResponseWriter, req *http.Request) {
		ctx := propagation.TraceContext{}.Extract(req.Context(), propagation.HeaderCarrier(req.Header))
		ctx, span := a.tracer.Start(ctx, r.method+" "+r.path,
			trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
				attribute.String("http.request.method", r.method), attribute.String("http.route", r.path)))
		defer span.End()
		noted := &statusWriter{rw, http.StatusOK}
		handle(noted, req.WithContext(ctx))
		span.SetAttributes(attribute.Int("http.response.status_code", noted.status))
		if noted.status >= 500 { // else it is the caller's
			span.SetStatus(codes.Error, http.StatusText(noted.status))
		}
	}
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
