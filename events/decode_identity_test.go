package events

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func TestIdentityPrecedence(t *testing.T) {
	longest, tooLong := strings.Repeat("é", 255), strings.Repeat("é", 256)
	ce := func(more nats.Header) nats.Header {
		h := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"ce"}}
		for name, values := range more {
			h[name] = values
		}
		return h
	}
	for _, c := range []struct {
		name   string
		header nats.Header
		data   string
		id     string // also when it is refused: what the dead letter is known by
		code   string
	}{
		{"nothing", nil, created("a"), message, ""},
		{"Nats-Msg-Id", nats.Header{"Nats-Msg-Id": {"m"}}, created("a"), "m", ""},
		{"nats-msg-id", nats.Header{"nats-msg-id": {"m"}}, created("a"), "m", ""},
		{"Nats-Msg-Id empty is none", nats.Header{"Nats-Msg-Id": {""}}, created("a"), message, ""},
		{"CloudEvents id over Nats-Msg-Id", ce(nats.Header{"Nats-Msg-Id": {"m"}}), created("a"), "ce", ""},
		{"Papermap-Event-Id over all", ce(nats.Header{"Nats-Msg-Id": {"m"}, "papermap-event-id": {"p"}}),
			created("a"), "p", ""},
		{"a Nats-Msg-Id that does not count", ce(nats.Header{"Nats-Msg-Id": {tooLong}}), created("a"), "ce",
			""},
		{"a replayed event keeps its id when refused again", nats.Header{"Papermap-Event-Id": {"p"},
			"Nats-Msg-Id": {"m"}}, "null", "p", codeJSON},
		{"a CloudEvent with wrong data", ce(nil), "{}", "ce", codeField},

		{"Nats-Msg-Id of 255", nats.Header{"Nats-Msg-Id": {longest}}, created("a"), longest, ""},
		{"Nats-Msg-Id of 256", nats.Header{"Nats-Msg-Id": {tooLong}}, created("a"), message, codeEnvelope},
		{"Nats-Msg-Id with a control character", nats.Header{"Nats-Msg-Id": {"a\tb"}}, created("a"),
			message, codeEnvelope},
		{"Nats-Msg-Id not UTF-8", nats.Header{"Nats-Msg-Id": {"a\xff"}}, created("a"), message, codeEnvelope},
		{"ce-id of 256", ce(nats.Header{"ce-id": {tooLong}}), created("a"), message, codeEnvelope},
		{"ce-id empty", ce(nats.Header{"ce-id": {""}}), created("a"), message, codeEnvelope},
		{"ce-id not UTF-8", ce(nats.Header{"ce-id": {"\xff"}}), created("a"), message, codeEnvelope},
		{"structured id with a control character", nil,
			`{"specversion":"1.0","id":"a\nb","data":` + created("a") + `}`, message, codeEnvelope},
		{"structured id empty", nil, `{"specversion":"1.0","id":"","data":` + created("a") + `}`, message,
			codeEnvelope},
		{"Papermap-Event-Id of 256", nats.Header{"Papermap-Event-Id": {tooLong}}, created("a"), message,
			codeEnvelope},
		{"Papermap-Event-Id empty", nats.Header{"Papermap-Event-Id": {""}}, created("a"), message,
			codeEnvelope},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Decode(raw(TypeTenantCreated, c.data, c.header))
			if code := codeOf(t, err); code != c.code {
				t.Errorf("code %q, want %q: %v", code, c.code, err)
			}
			if e.ID != c.id || e.Message != message {
				t.Errorf("id %q of message %q, want %q of %q", e.ID, e.Message, c.id, message)
			}
		})
	}
}

func TestEventTime(t *testing.T) {
	ahead := func(d time.Duration) string { return stored.Add(d).Format(time.RFC3339Nano) }
	at := func(text string) time.Time {
		when, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		return when.UTC()
	}
	for _, c := range []struct {
		text string
		want time.Time // zero: refused
	}{
		{"2025-05-01T10:00:00Z", at("2025-05-01T10:00:00Z")},
		{"2025-05-01T10:00:00.123456789Z", at("2025-05-01T10:00:00.123456789Z")},
		{"2025-05-01T10:00:00+02:00", at("2025-05-01T08:00:00Z")},
		{"2025-05-01t10:00:00z", at("2025-05-01T10:00:00Z")},
		{"2016-12-31T23:59:60Z", at("2017-01-01T00:00:00Z")},
		{"2016-12-31T23:59:60.5Z", at("2017-01-01T00:00:00.5Z")},
		{"1990-12-31T15:59:60-08:00", at("1991-01-01T00:00:00Z")},
		{"2016-12-30T23:59:60Z", time.Time{}},
		{"2016-12-31T22:59:60Z", time.Time{}},
		{"2017-01-01T05:59:60Z", time.Time{}},
		{"2016-12-31T23:59:61Z", time.Time{}},
		{"2016-12-31T23:59:60", time.Time{}},
		{"1970-01-01T00:00:00Z", time.Unix(0, 0).UTC()},
		{ahead(5 * time.Minute), stored.Add(5 * time.Minute)},
		{ahead(5*time.Minute + time.Nanosecond), stored},
		{"2300-01-01T00:00:00Z", stored},
		{"9999-12-31T23:59:59-23:59", stored},
		{"", time.Time{}},
		{"yesterday", time.Time{}},
		{"1746093600", time.Time{}},
		{"2025-05-01", time.Time{}},
		{"2025-05-01T10:00:00", time.Time{}},
		{"2025-05-01 10:00:00Z", time.Time{}},
		{"2025-05-01T1:00:00Z", time.Time{}},
		{"2025-05-01T10:00:00,5Z", time.Time{}},
		{"2025-05-01T10:00:00+24:00", time.Time{}},
		{"2025-02-30T10:00:00Z", time.Time{}},
		{"1969-12-31T23:59:59Z", time.Time{}},
		{"1970-01-01T00:00:00+00:01", time.Time{}},
		{"0001-01-01T00:00:00Z", time.Time{}},
		{"0000-01-01T00:00:00+23:59", time.Time{}},
	} {
		for _, form := range []struct {
			name string
			raw  Raw
		}{
			{"header", raw(TypeTenantCreated, created("a"), nats.Header{"papermap-event-time": {c.text}})},
			{"binary", raw(TypeTenantCreated, created("a"), nats.Header{"ce-specversion": {"1.0"},
				"ce-id": {"e"}, "ce-time": {c.text}})},
			{"structured", raw(TypeTenantCreated,
				fmt.Sprintf(`{"specversion":"1.0","id":"e","time":%q,"data":%s}`, c.text,
					created("a")), nil)},
		} {
			e, err := Decode(form.raw)
			if c.want.IsZero() {
				if codeOf(t, err) != codeEnvelope || !e.Time.Equal(stored) {
					t.Errorf("%s %q: %v with time %v, want %s with the stream's", form.name, c.text, err,
						e.Time, codeEnvelope)
				}
				continue
			}
			if err != nil || e.Time != c.want {
				t.Errorf("%s %q: %v, %v, want %v", form.name, c.text, e.Time, err, c.want)
			}
		}
	}
}

func TestTimeOfAReplayIsTheOriginals(t *testing.T) {
	h := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"}, "ce-time": {"2025-05-01T11:00:00Z"},
		"Papermap-Event-Time": {"2025-05-01T10:00:00Z"}}
	e, err := Decode(raw(TypeTenantCreated, created("a"), h))
	if want := time.Date(2025, 5, 1, 10, 0, 0, 0, time.UTC); err != nil || e.Time != want {
		t.Errorf("%v, %v, want %v", e.Time, err, want)
	}
}

func TestTimeThatWasNeverSetSaysSo(t *testing.T) {
	_, err := Decode(raw(TypeTenantCreated, created("a"),
		nats.Header{"Papermap-Event-Time": {"0001-01-01T00:00:00Z"}}))
	if err == nil || !strings.Contains(err.Error(), "probably not set") {
		t.Errorf("got %v", err)
	}
}
