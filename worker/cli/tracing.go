package cli

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// Traces are set up by OpenTelemetry's standard variables, which its library reads by itself.
// Without an endpoint there is no tracer, and the other packages make no spans. Only what decides
// that is checked here, and that no key is in an address; other mistakes are the library's to
// handle, by its defaults. It would print them to stderr with their values, which can be keys, so
// its messages are dropped.

// tracing reports whether there is an endpoint to send traces to.
func (p *parser) tracing() bool {
	exporter := p.getenv("OTEL_TRACES_EXPORTER")
	if strings.EqualFold(p.getenv("OTEL_SDK_DISABLED"), "true") || exporter == "none" {
		return false
	}
	endpoints := 0
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		if address := p.getenv(name); address != "" {
			endpoints++
			p.check(webURL(address) != nil, "%s: invalid address: use one like http://collector:4318; "+
				"a key goes into OTEL_EXPORTER_OTLP_HEADERS", name)
		}
	}
	if endpoints > 0 && exporter != "" {
		p.oneOf("OTEL_TRACES_EXPORTER", exporter, "otlp", "none")
	}
	return endpoints > 0
}

// startTracing starts sending traces, if that is configured. traced is log with the ids of spans in
// its lines. stop sends what is left, for at most 2 s, and must be called last. Without tracing,
// tracer is nil and traced is log.
func startTracing(configured bool, build Build, log *slog.Logger) (
	tracer trace.Tracer, traced *slog.Logger, stop func(), err error) {
	if !configured {
		return nil, log, func() {}, nil
	}
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {
		log.Warn("OpenTelemetry reported an error: are the OTEL_ settings right?")
	}))
	ctx := context.Background()
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("export traces: %w", err)
	}
	process, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "papermap-worker"),
		attribute.String("service.version", build.Version),
		attribute.String("service.instance.id", uuid.NewString()),
	), resource.WithFromEnv())
	if err != nil { // without the wrong attributes, it is still good
		log.Warn("OTEL_RESOURCE_ATTRIBUTES is not like key=value,key=value")
	}
	reported := &reportingExporter{exporter, log, rate.Sometimes{Interval: time.Minute}}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(reported), sdktrace.WithResource(process))
	return provider.Tracer("papermap-worker"), slog.New(tracedHandler{log.Handler()}), func() {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("cannot export the last traces", "error", err)
		}
	}, nil
}

// reportingExporter logs failures, at most once a minute, in place of OpenTelemetry's global error
// handler.
type reportingExporter struct {
	sdktrace.SpanExporter
	log   *slog.Logger
	lines rate.Sometimes
}

func (e *reportingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.lines.Do(func() {
			why, _, _ := strings.Cut(err.Error(), "body: ") // which could repeat our headers, and so a key
			e.log.Warn("cannot export traces: spans are lost",
				"spans", len(spans), "error", strings.TrimRight(why, " (:"))
		})
	}
	return nil
}

// tracedHandler adds the ids of the context's span to log lines.
type tracedHandler struct{ slog.Handler }

func (h tracedHandler) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()),
			slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h tracedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tracedHandler{h.Handler.WithAttrs(attrs)}
}

func (h tracedHandler) WithGroup(name string) slog.Handler {
	return tracedHandler{h.Handler.WithGroup(name)}
}
