package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTenantEventsSaysWhatItLeftOut(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		for i := range 10 {
			e := createdEvent(fmt.Sprint("org-", i%2))
			e.ID = fmt.Sprint("event-", i)
			publish(t, b, e)
			publish(t, b, Outgoing{Type: TypeUsageSync, Data: []byte(`{"tenant_id":"org-1"}`)})
		}
		publish(t, b, Outgoing{Type: TypeTenantDeleted, // cannot be read, but its tenant can
			Data: []byte(`{"specversion":"1.0","id":"e","data":{"tenant_id":"org-1","reason":7}}`)})
		ids := func(list []StoredEvent) (ids []string) {
			for _, p := range list {
				ids = append(ids, p.ID)
			}
			return ids
		}
		for _, c := range []struct {
			tenant  string
			most    int
			among   uint64
			want    []string
			leftOut string
		}{
			{"org-1", 100, 100, []string{"event-1", "event-3", "event-5", "event-7", "event-9", "e"}, ""},
			{"org-1", 100, 21, []string{"event-1", "event-3", "event-5", "event-7", "event-9", "e"}, ""},
			{"org-0", 100, 100, []string{"event-0", "event-2", "event-4", "event-6", "event-8"}, ""},
			{"org-1", 2, 100, []string{"event-9", "e"}, "events before the newest 2 of this tenant"},
			{"org-1", 100, 7, []string{"event-7", "event-9", "e"},
				"events before the newest 7 messages of stream PAPERMAP"},
			{"org-2", 100, 100, nil, ""},
		} {
			list, leftOut, err := b.TenantEvents(t.Context(), c.tenant, c.most, c.among)
			if err != nil || !slices.Equal(ids(list), c.want) || leftOut != c.leftOut {
				t.Errorf("%+v: %v, left out %q, %v", c, ids(list), leftOut, err)
			}
		}
		ctx, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		if _, _, err := b.TenantEvents(ctx, "org-1", 100, 100); !errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), "read stream PAPERMAP") {
			t.Errorf("without time: %v", err)
		}
	})
}
