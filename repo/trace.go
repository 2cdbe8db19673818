package repo

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// maxQueryText limits a statement's text in a span: some statements have hundreds of placeholders.
const maxQueryText = 1000 // bytes

// startSpan starts a span of the caller's trace, with the caller's provider: without one it costs
// nothing.
func startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer("papermap-worker/repo")
	return tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
}

// endSpan records whether it failed, but not how: errors can contain values, and the caller records
// its own.
func endSpan(span trace.Span, err error) {
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		span.SetStatus(codes.Error, "failed")
	}
	span.End()
}

// traced runs one statement within its span, if the caller has one. Background reads, twice a
// second, make none. A statement's text is constant, with placeholders for values.
func traced(ctx context.Context, d *dialect, query string, run func(context.Context) error) error {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return run(ctx)
	}
	operation, table := summarize(query)
	ctx, span := startSpan(ctx, operation+" "+table)
	text := strings.Join(strings.Fields(query), " ")
	if len(text) > maxQueryText {
		text = strings.ToValidUTF8(text[:maxQueryText], "") + "…"
	}
	span.SetAttributes(
		attribute.String("db.system.name", d.system), attribute.String("db.operation.name", operation),
		attribute.String("db.collection.name", table), attribute.String("db.query.text", text),
	)
	err := run(ctx)
	endSpan(span, err)
	return err
}

// traced is traced for a statement of a session.
func (st *statement) traced(ctx context.Context, d *dialect, run func(context.Context) error) error {
	if st.untraced {
		return run(ctx)
	}
	return traced(ctx, d, st.text, run)
}

// summarize returns a statement's operation and the first table that it names.
func summarize(query string) (operation, table string) {
	words := strings.Fields(query)
	operation = words[0]
	for i, word := range words[:len(words)-1] {
		if word == "FROM" || word == "INTO" || word == "UPDATE" && i == 0 {
			if next := words[i+1]; !strings.HasPrefix(next, "(") {
				return operation, strings.TrimRight(next, ",;)")
			}
		}
	}
	return operation, ""
}
