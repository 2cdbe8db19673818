package events

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
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
