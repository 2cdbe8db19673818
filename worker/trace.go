package worker

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"papermap-worker/repo"
)

// about names the tenant in the span at hand.
func about(ctx context.Context, tenantID string) {
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("papermap.tenant_id", tenantID))
}

// causes remembers which spans wrote the events that wait in the outbox, for the relay to go on with their traces. It is
// this process's memory: an event that another replica publishes, or that outlives a restart, begins a trace of its own.
type causes struct {
	mu    sync.Mutex
	spans generations[trace.SpanContext] // by event id
}

const mostCauses = 10_000

// note remembers the span at hand for events that may be written.
func (c *causes) note(ctx context.Context, list ...repo.Notice) {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsSampled() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range list {
		c.spans.put(n.EventID, span)
	}
}

// of returns the span that wrote an event; not valid when it is not known.
func (c *causes) of(eventID string) trace.SpanContext {
	c.mu.Lock()
	defer c.mu.Unlock()
	span, _ := c.spans.get([]byte(eventID))
	return span
}
