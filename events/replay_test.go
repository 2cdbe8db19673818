package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"github.com/nats-io/nats.go"
	"slices"
	"strings"
	"sync/atomic"
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

func TestScanEndsWhenTheRestOfTheStreamIsDeleted(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		const all = 1500 // more than the client library fetches ahead
		list := make([]Outgoing, all)
		for i := range list {
			list[i] = createdEvent(fmt.Sprint(i))
			list[i].Data = append(list[i].Data, bytes.Repeat([]byte{' '}, 10_000)...)
		}
		for _, err := range b.PublishAll(t.Context(), list) {
			if err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		read := 0
		if err := b.ScanSince(ctx, time.Time{}, func(StoredEvent) error {
			if read++; read > 1 {
				return nil
			}
			stream, err := b.js.Stream(ctx, b.o.Stream)
			for seq := uint64(1001); err == nil && seq <= all; seq++ {
				err = stream.DeleteMsg(ctx, seq)
			}
			return err
		}); err != nil || read != 1000 {
			t.Errorf("read %d, %v", read, err)
		}
	})
}

// republishAll is what the command replay does.
func republishAll(t *testing.T, b *Bus) (ids []string) {
	t.Helper()
	if err := b.ScanSince(t.Context(), time.Time{}, func(p StoredEvent) error {
		ids = append(ids, p.ID)
		return b.Republish(t.Context(), p)
	}); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestRepublishedEventsAreNotRepublished(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		for _, id := range []string{"a", "b", "c"} {
			e := createdEvent(id)
			e.ID = id
			publish(t, b, e)
		}
		publish(t, b, createdEvent("other of no id"))
		first := republishAll(t, b)
		for range 3 {
			if again := republishAll(t, b); !slices.Equal(first, again) || len(again) != 4 {
				t.Errorf("%v, after %v", again, first)
			}
		}
		stream, err := b.js.Stream(t.Context(), b.o.Stream)
		if err == nil {
			err = stream.DeleteMsg(t.Context(), 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		again := republishAll(t, b) // of the first there are only copies now
		if slices.Sort(again); !slices.Equal(again, slices.Sorted(slices.Values(first))) {
			t.Errorf("%v, want %v", again, first)
		}
	})
}

// A header cannot have white space at its ends.
func TestReplaysKeepTheIdentity(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		type identity struct{ id, source string }
		var refuse atomic.Bool
		var got []identity
		c := b.MainConsumer(1, time.Second)
		c.Handle = func(_ context.Context, e Event) error {
			got = append(got, identity{e.ID, e.Source})
			if refuse.Load() {
				return &Permanent{Code: "X", Err: errors.New("no")}
			}
			return nil
		}
		consume(t, c)
		structured := func(id string) Outgoing {
			return Outgoing{Type: TypeTenantCreated, Data: fmt.Appendf(nil,
				`{"specversion":"1.0","id":%q,"source":"s","data":{"tenant_id":"a","name":"x"}}`, id)}
		}
		binary := createdEvent("a")
		binary.Header = nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"%20b%25%20"}, "CE-Source": {"%C3%A9"}}
		named := createdEvent("a")
		named.Header = nats.Header{"Nats-Msg-Id": {"n "}}
		for _, event := range []struct {
			Outgoing
			want identity
		}{
			{structured(" a "), identity{" a ", "s"}}, {structured("  "), identity{"  ", "s"}},
			{structured("a"), identity{"a", "s"}}, {structured("\u00a0a"), identity{"\u00a0a", "s"}},
			{binary, identity{" b% ", "é"}}, {named, identity{"n", ""}},
		} {
			got = nil
			refuse.Store(true)
			publish(t, b, event.Outgoing)
			for round := range 2 {
				eventually(t, "it is a dead letter", func() bool {
					return len(deadLetters(t, b)) == 1 && pending(t, b, MainConsumer) == 0
				})
				refuse.Store(round == 0)
				if err := b.Replay(t.Context(), deadLetters(t, b)[0]); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "it is handled", func() bool { return pending(t, b, MainConsumer) == 0 })
			if want := []identity{event.want, event.want, event.want}; !slices.Equal(got, want) {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
	})
}
