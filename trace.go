package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// Traces are set up by OpenTelemetry's standard variables, which its library reads by itself. It tells mistakes to stderr,
// with values, and goes on: so what could be one is judged here before. Without an endpoint there is no tracer, and the
// rooms make no spans.

// tracing reads whether there is somewhere to send traces to, and checks the settings if there is.
func (p *problems) tracing() bool {
	exporter := os.Getenv("OTEL_TRACES_EXPORTER")
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || exporter == "none" {
		return false
	}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return false
	}
	if exporter != "" && exporter != "otlp" {
		p.add("OTEL_TRACES_EXPORTER: %q is neither otlp nor none", exporter)
	}
	for _, part := range []string{"OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"} {
		p.exporter(part)
	}
	switch sampler := strings.ToLower(os.Getenv("OTEL_TRACES_SAMPLER")); sampler {
	case "", "always_on", "always_off", "parentbased_always_on", "parentbased_always_off":
	case "traceidratio", "parentbased_traceidratio":
		text := cmp.Or(os.Getenv("OTEL_TRACES_SAMPLER_ARG"), "1")
		if ratio, err := strconv.ParseFloat(text, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
			p.add("OTEL_TRACES_SAMPLER_ARG: %q is no number from 0 to 1", text)
		}
	default:
		p.add("OTEL_TRACES_SAMPLER: %q is none of always_on, always_off, traceidratio, or one of these with parentbased_ before it", sampler)
	}
	if _, err := resource.New(context.Background(), resource.WithFromEnv()); err != nil {
		p.add("OTEL_RESOURCE_ATTRIBUTES: not like key=value,key=value")
	}
	return true
}

// exporter checks the settings of the exporter whose names begin so. An endpoint and headers can hold a key, so they are
// not quoted.
func (p *problems) exporter(prefix string) {
	if text := os.Getenv(prefix + "ENDPOINT"); text != "" {
		if u, err := url.Parse(text); err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			p.add("%sENDPOINT: not an address like http://collector:4318; a key goes into %sHEADERS", prefix, prefix)
		}
	}
	if protocol := os.Getenv(prefix + "PROTOCOL"); protocol != "" && protocol != "http/protobuf" && protocol != "http/json" {
		p.add("%sPROTOCOL: %q is neither http/protobuf nor http/json", prefix, protocol)
	}
	if text := os.Getenv(prefix + "TIMEOUT"); text != "" {
		p.integer(prefix+"TIMEOUT", text, 1, int(time.Hour/time.Millisecond))
	}
	for _, header := range strings.Split(os.Getenv(prefix+"HEADERS"), ",") {
		name, value, found := strings.Cut(header, "=")
		if _, err := url.PathUnescape(value); header != "" && (!found || err != nil || !headerForm.MatchString(strings.TrimSpace(name))) {
			p.add("%sHEADERS: not like key=value,key=value, with percent-encoded values", prefix)
			break
		}
	}
	for _, name := range []string{prefix + "CERTIFICATE", prefix + "CLIENT_CERTIFICATE", prefix + "CLIENT_KEY"} {
		if path := os.Getenv(name); path != "" {
			if _, err := os.Stat(path); err != nil {
				p.add("%s: %v", name, err)
			}
		}
	}
}

var headerForm = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// tracedAs is what says of each trace where it comes from.
func tracedAs(ctx context.Context) (*resource.Resource, error) {
	return resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "papermap-worker"), attribute.String("service.version", programVersion()),
		attribute.String("service.instance.id", uuid.NewString()),
	), resource.WithFromEnv())
}

// startTracing begins to send traces, if that is configured. stop sends what is left, within a bound, and must be called
// last. tracer is nil, and log the same, when there is no tracing.
func startTracing(configured bool, log *slog.Logger) (tracer trace.Tracer, traced *slog.Logger, stop func(), err error) {
	if !configured {
		return nil, log, func() {}, nil
	}
	ctx := context.Background()
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("exporting traces: %w", err)
	}
	from, err := tracedAs(ctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("exporting traces: %w", err)
	}
	reported := &reportingExporter{SpanExporter: exporter, log: log, lines: rate.Sometimes{Interval: time.Minute}}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(reported), sdktrace.WithResource(from))
	return provider.Tracer("papermap-worker"), slog.New(tracedHandler{log.Handler()}), func() {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("cannot export the last traces", "error", err)
		}
	}, nil
}

// reportingExporter tells our log of failures, once in a while, instead of OpenTelemetry's global handler each time.
type reportingExporter struct {
	sdktrace.SpanExporter
	log   *slog.Logger
	lines rate.Sometimes
}

func (e *reportingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.lines.Do(func() {
			why, _, _ := strings.Cut(err.Error(), "body: ") // the answer's, which may repeat our headers, and a key with them
			e.log.Warn("cannot export traces: spans are lost", "spans", len(spans), "error", strings.TrimRight(why, " (:"))
		})
	}
	return nil
}

// tracedHandler adds to a line of the log the span in whose course it was written.
type tracedHandler struct{ slog.Handler }

func (h tracedHandler) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h tracedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tracedHandler{h.Handler.WithAttrs(attrs)}
}

func (h tracedHandler) WithGroup(name string) slog.Handler {
	return tracedHandler{h.Handler.WithGroup(name)}
}
