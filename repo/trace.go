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

// Traces. Each transaction and each statement is a span, if it is asked for within one: what the worker reads by itself,
// twice a second, makes none. A statement's text is the program's own, with placeholders: no values.

// mostQuery bounds a statement's text in a span: some have a placeholder for each of hundreds of rows.
const mostQuery = 1000 // bytes

func startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer("papermap-worker/repo").Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
}

// endSpan says whether it failed, but not how: the caller's error does, which can hold values.
func endSpan(span trace.Span, err error) {
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		span.SetStatus(codes.Error, "failed")
	}
	span.End()
}

// traced runs one statement within its span.
func traced(ctx context.Context, driver, query string, run func(context.Context) error) error {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return run(ctx)
	}
	operation, table := summary(query)
	ctx, span := startSpan(ctx, operation+" "+table)
	text := strings.Join(strings.Fields(query), " ")
	if len(text) > mostQuery {
		text = strings.ToValidUTF8(text[:mostQuery], "") + "…"
	}
	span.SetAttributes(
		attribute.String("db.system.name", system(driver)), attribute.String("db.operation.name", operation),
		attribute.String("db.collection.name", table), attribute.String("db.query.text", text),
	)
	err := run(ctx)
	endSpan(span, err)
	return err
}

func system(driver string) string {
	if driver == "pgx" {
		return "postgresql"
	}
	return "sqlite"
}

// summary is a statement's operation and the first table that it names.
func summary(query string) (operation, table string) {
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

// What a transaction runs, it runs within spans too.

func (t *tx) GetContext(ctx context.Context, dest any, query string, args ...any) error {
	return traced(ctx, t.driver, query, func(ctx context.Context) error { return t.on.GetContext(ctx, dest, query, args...) })
}

func (t *tx) SelectContext(ctx context.Context, dest any, query string, args ...any) error {
	return traced(ctx, t.driver, query, func(ctx context.Context) error { return t.on.SelectContext(ctx, dest, query, args...) })
}

func (t *tx) ExecContext(ctx context.Context, query string, args ...any) (result sql.Result, err error) {
	err = traced(ctx, t.driver, query, func(ctx context.Context) error {
		result, err = t.on.ExecContext(ctx, query, args...)
		return err
	})
	return result, err
}
