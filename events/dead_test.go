package events

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
)

func TestDeadLetterKeepsTheEventAndTheReason(t *testing.T) {
	when := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	raw := Raw{Type: "tenant.created", Sequence: 42, Time: when, Data: []byte(`{"a":1}`), Header: nats.Header{
		"Nats-Msg-Id": {"m"}, "nats-expected-last-sequence": {"7"}, "Nats-Rollup": {"all"},
		"X-Own": {"1", "2"}, "papermap-error": {"forged"},
	}}
	e := Event{ID: "m", Time: when, Message: "42-1"}
	got := deadLetter(raw, e, &Permanent{Code: "X", Err: errors.New("two\r\nlines"), Attempts: 3}, 1<<20)
	want := nats.Header{
		"Papermap-Original-Nats-Msg-Id": {"m"}, "Papermap-Original-nats-expected-last-sequence": {"7"},
		"Papermap-Original-Nats-Rollup": {"all"},
		"X-Own":                         {"1", "2"}, "Nats-Msg-Id": {"dead-42-1"}, "Papermap-Event-Id": {"m"},
		"Papermap-Event-Time": {"2026-03-01T12:00:00.000000005Z"},
		"Papermap-Error":      {"two  lines"}, "Papermap-Error-Code": {"X"}, "Papermap-Attempts": {"3"},
		"Papermap-Stream-Sequence": {"42"},
		"Papermap-Side-Effect":     {"none"},
	}
	if diff := cmp.Diff(want, got.Header); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if !bytes.Equal(got.Data, raw.Data) {
		t.Errorf("data %q", got.Data)
	}
}

func TestDeadLetterIsCutToFit(t *testing.T) {
	const most = 4096
	data := bytes.Repeat([]byte("x"), most)
	e := Event{ID: "m", Message: "1-1"}
	p := &Permanent{Code: "X", Err: errors.New(strings.Repeat("é", 5000))}
	for name, header := range map[string]nats.Header{
		"long data": nil, "long headers as well": {"X-Long": {strings.Repeat("y", most)}},
	} {
		got := deadLetter(Raw{Data: data, Header: header}, e, p, most)
		if size := headerSize(got.Header) + len(got.Data); size > most {
			t.Errorf("%s: %d bytes, more than %d", name, size, most)
		}
		if want := fmt.Sprintf("%d %x", len(data),
			sha256.Sum256(data)); got.Header.Get("Papermap-Data-Truncated") != want {
			t.Errorf("%s: Papermap-Data-Truncated is %q", name, got.Header.Get("Papermap-Data-Truncated"))
		}
		if got.Header.Get("Papermap-Event-Id") != "m" {
			t.Errorf("%s: identity lost", name)
		}
	}
}

// Of any event, under any limit that doctor does not call fatal, and of some below it.
func TestDeadLetterFitsUnderAnyLimit(t *testing.T) {
	t.Parallel()
	e := Event{ID: strings.Repeat("é", maxEventID), Message: "18446744073709551615-1746093600000000000"}
	p := &Permanent{Code: "X", Err: errors.New(strings.Repeat("🏢", 5000))}
	for _, limit := range []int{2048, 4096, minMessage, 60_000, 64 << 10, 1 << 20, 64 << 20} {
		for _, headers := range []int{0, 1, 100, 1000, 10_000, 30_000, 62_000, 65_000, 200_000} {
			for _, size := range []int{0, 1, 1000, minMessage, limit - 100, limit, limit + 1} {
				raw := Raw{Header: nats.Header{"Nats-X": {strings.Repeat("h", headers)}}, Data: make([]byte, size)}
				got := deadLetter(raw, e, p, limit)
				h := headerSize(got.Header)
				if h+len(got.Data) > limit || h > maxHeaders {
					t.Errorf("limit %d, headers %d, data %d: %d bytes of headers, %d in all",
						limit, headers, size, h, h+len(got.Data))
				}
				if cut := got.Header.Get(headerTruncated) != ""; cut != (len(got.Data) < size) ||
					got.Header.Get(headerEventID) != e.ID {
					t.Errorf("limit %d, headers %d, data %d: cut %v to %d", limit, headers, size, cut, len(got.Data))
				}
			}
		}
	}
}

// The limit is lowered while the worker runs, below what the server takes.
func TestDeadLetterFitsIntoItsStream(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		consume(t, b.MainConsumer(1, time.Second)) // it has no handler: nothing gets that far
		eventually(t, "it consumes", func() bool { return pending(t, b, MainConsumer) == 0 })
		config := b.streams()[1].config()
		config.MaxMsgSize = minMessage
		if _, err := b.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("x"), 10*minMessage)
		publish(t, b, Outgoing{Type: TypeTenantCreated, Data: data, Header: nats.Header{"X": {string(data[:60_000])}}})
		eventually(t, "it is a dead letter", func() bool {
			return len(deadLetters(t, b)) == 1 && pending(t, b, MainConsumer) == 0
		})
		if d := deadLetters(t, b)[0]; d.Truncated == "" || len(d.Data) < minMessage/2 {
			t.Errorf("cut %q, %d bytes", d.Truncated, len(d.Data))
		}
	})
}

func TestOnDeadContinuesInARecreatedStream(t *testing.T) {
	virtually(t, func(t *testing.T, b *Bus) {
		seen := make(chan string, 10)
		stop, err := b.OnDead(t.Context(), TypeTenantCreated, func(d DeadLetter) { seen <- d.EventID })
		if err != nil {
			t.Fatal(err)
		}
		bury := func(eventType, id string) {
			t.Helper()
			raw := Raw{Type: eventType, Data: []byte("x"), Sequence: 1}
			e, p := Event{ID: id, Message: id}, &Permanent{Code: "INVALID_JSON", Err: errors.New("why")}
			if err := b.publishDead(t.Context(), raw, e, p); err != nil {
				t.Fatal(err)
			}
		}
		bury(TypeTenantCreated, "a")
		bury(TypeTenantDeleted, "of another type")
		time.Sleep(time.Second)
		if err := b.js.DeleteStream(t.Context(), b.deadStream()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := b.EnsureStreams(t.Context()); err != nil {
			t.Fatal(err)
		}
		bury(TypeTenantCreated, "b")
		time.Sleep(time.Second)
		stop()
		bury(TypeTenantCreated, "too late")
		time.Sleep(time.Second)
		close(seen)
		var got []string
		for id := range seen {
			got = append(got, id)
		}
		if !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("saw %q", got)
		}
	})
}
