package events

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
)

var stored = time.Date(2025, 5, 1, 12, 0, 0, 123456789, time.UTC)

const message = "7-1746100800123456789" // sequence 7, stored then

func created(tenantID string) string { return fmt.Sprintf(`{"tenant_id":%q,"name":"Acme"}`, tenantID) }

func raw(eventType, data string, header nats.Header) Raw {
	return Raw{Type: eventType, Header: header, Data: []byte(data), Sequence: 7, Time: stored}
}

// codeOf is the code of the permanent error, or empty. Any other error fails the test, and so does
// a message unfit for a header and a log line.
func codeOf(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var p *Permanent
	if !errors.As(err, &p) {
		t.Fatalf("the error is %T, no *Permanent: %v", err, err)
	}
	if text := p.Error(); text == "" || len(text) > 400 || strings.ContainsAny(text, "\r\n") {
		t.Errorf("the message is not one short line: %.500q", text)
	}
	return p.Code
}

func TestDecodeRefusesPoisonAsPermanent(t *testing.T) {
	deep := func(n int) string {
		return `{"tenant_id":"a","name":"b","x":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + "}"
	}
	many := func(name func(int) string) string {
		var b strings.Builder
		b.WriteString(`{"tenant_id":"a","name":"b"`)
		for i := range 100_000 {
			fmt.Fprintf(&b, `,%q:0`, name(i))
		}
		return b.String() + "}"
	}
	for _, c := range []struct{ name, data, code string }{
		{"empty", "", codeJSON},
		{"white space", " \n", codeJSON},
		{"null", "null", codeJSON},
		{"array", "[]", codeJSON},
		{"string", `"x"`, codeJSON},
		{"no fields", "{}", codeField},
		{"two objects", created("a") + created("a"), codeJSON},
		{"trailing text", created("a") + "x", codeJSON},
		{"trailing NUL", created("a") + "\x00", codeJSON},
		{"cut off", created("a")[:20], codeJSON},
		{"trailing comma", `{"tenant_id":"a","name":"b",}`, codeJSON},
		{"duplicate name", `{"tenant_id":"a","tenant_id":"a","name":"b"}`, codeJSON},
		{"duplicate name, escaped", `{"tenant_id":"a","tenant\u005fid":"b","name":"b"}`, codeJSON},
		{"duplicate unknown name", `{"tenant_id":"a","name":"b","x":1,"x":1}`, codeJSON},
		{"duplicate name, nested", `{"tenant_id":"a","name":"b","x":[{"y":1,"y":2}]}`, codeJSON},
		{"TENANT_ID beside tenant_id", `{"tenant_id":"a","TENANT_ID":"b","name":"b"}`, codeJSON},
		{"Tenant_Id alone", `{"Tenant_Id":"a","name":"b"}`, codeJSON},
		{"workspace_id with a Kelvin sign",
			`{"tenant_id":"a","name":"b","wor` + "\u212a" + `space_id":"w"}`, codeJSON},
		{"SpecVersion", `{"tenant_id":"a","name":"b","SpecVersion":"1.0"}`, codeJSON},
		{"invalid UTF-8 in an id", "{\"tenant_id\":\"a\xff\",\"name\":\"b\"}", codeJSON},
		{"invalid UTF-8 in an unknown field", "{\"tenant_id\":\"a\",\"name\":\"b\",\"x\":\"\xc3\"}",
			codeJSON},
		{"lone surrogate", `{"tenant_id":"a\ud800","name":"b"}`, codeJSON},
		{"lone low surrogate", `{"tenant_id":"\udc00a","name":"b"}`, codeJSON},
		{"BOM", "\uFEFF" + created("a"), codeJSON},
		{"UTF-16 with BOM", "\xff\xfe{\x00}\x00", codeJSON},
		{"UTF-16 without BOM", "{\x00}\x00", codeJSON},
		{"nested 10,001 deep", deep(10_001), codeJSON},
		{"8 MiB id", created(strings.Repeat("a", 8<<20)), codeField},
		{"8 MiB without an end", `{"tenant_id":"` + strings.Repeat("a", 8<<20), codeJSON},
		{"100,000 fields of one name", many(func(int) string { return "x" }), codeJSON},
		{"NUL in the id", `{"tenant_id":"a\u0000","name":"b"}`, codeField},
		{"NUL in the name", `{"tenant_id":"a","name":"b\u0000"}`, codeField},
		{"NUL in the title", `{"tenant_id":"a","name":"b","title":"\u0000"}`, codeField},
		{"NUL in the description", `{"tenant_id":"a","name":"b","description":"\u0000"}`, codeField},
		{"NUL in created_by", `{"tenant_id":"a","name":"b","created_by":"\u0000"}`, codeField},
		{"no id", `{"name":"b"}`, codeField},
		{"id empty", created(""), codeField},
		{"id of white space", created("  "), codeField},
		{"id with white space before", created(" a"), codeField},
		{"id with white space after", created("a "), codeField},
		{"id with a no-break space after", created("a\u00a0"), codeField},
		{"id of 256 characters", created(strings.Repeat("é", 256)), codeField},
		{"id with CR LF", `{"tenant_id":"a\r\nb","name":"b"}`, codeField},
		{"id with DEL", `{"tenant_id":"a\u007fb","name":"b"}`, codeField},
		{"id with a C1 control", `{"tenant_id":"a\u0085b","name":"b"}`, codeField},
		{"id null", `{"tenant_id":null,"name":"b"}`, codeField},
		{"id a number", `{"tenant_id":1,"name":"b"}`, codeField},
		{"id a bool", `{"tenant_id":true,"name":"b"}`, codeField},
		{"id an object", `{"tenant_id":{},"name":"b"}`, codeField},
		{"id an array", `{"tenant_id":["a"],"name":"b"}`, codeField},
		{"no name", `{"tenant_id":"a"}`, codeField},
		{"name blank", `{"tenant_id":"a","name":" \t"}`, codeField},
		{"name null", `{"tenant_id":"a","name":null}`, codeField},
		{"optional fields null", `{"tenant_id":"a","name":"b","title":null,"workspace_id":null,"created_by":null}`, ""},
		{"workspace with white space after", `{"tenant_id":"a","name":"b","workspace_id":"w "}`, codeField},
		{"workspace of 256 characters", `{"tenant_id":"a","name":"b","workspace_id":"` + strings.Repeat("w",
			256) + `"}`, codeField},

		{"blank name and an empty dashboard", `{"tenant_id":"a","name":" ","dashboard_id":""}`, codeField},
		{"dashboard a number", `{"tenant_id":"a","name":"b","dashboard_id":1}`, codeField},
		{"dashboard with a control", `{"tenant_id":"a","dashboard_id":"d\u0001"}`, codeField},
		{"dashboard with white space before", `{"tenant_id":"a","dashboard_id":" d"}`, codeField},
		{"dashboard of 256 characters", `{"tenant_id":"a","dashboard_id":"` + strings.Repeat("é", 256) + `"}`,
			codeField},
		{"Dashboard_id", `{"tenant_id":"a","name":"b","Dashboard_id":"d"}`, codeJSON},

		{"dashboard without a name", `{"tenant_id":"a","dashboard_id":"d"}`, ""},
		{"dashboard and a blank name", `{"tenant_id":"a","name":" ","dashboard_id":"d"}`, ""},
		{"nested 10,000 deep", deep(10_000), ""},
		{"100,000 unknown fields", many(func(i int) string { return fmt.Sprint("x", i) }), ""},
		{"unknown fields", `{"tenant_id":"a","name":"b","tenantId":null,"x":{"y":[1e400]}}`, ""},
		{"empty optional fields", `{"tenant_id":"a","name":"b","title":"","workspace_id":""}`, ""},
		{"white space around", " \r\n" + created("a") + "\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Decode(raw(TypeTenantCreated, c.data, nil))
			if code := codeOf(t, err); code != c.code {
				t.Errorf("code %q, want %q: %v", code, c.code, err)
			}
			if e.ID != message || e.Message != message || !e.Time.Equal(stored) {
				t.Errorf("a dead letter would not know the event: %+v", e)
			}
		})
	}
}

func TestTenantIDsAreTakenAsTheyAre(t *testing.T) {
	for _, id := range []string{
		"org-123", "a.b", "*", ">", "a/b", "O'Neil", "a;b", "a b", "../x", "Acme", "acme", "caf\u00e9",
		"cafe\u0301", "🏢👩‍👩‍👧",
		"%2e", `a"b\c`, "\u200b", "null", "0", strings.Repeat("é", 255), strings.Repeat("🏢", 255),
	} {
		for _, eventType := range []string{TypeTenantCreated, TypeTenantSuspended, TypeTenantResumed,
			TypeTenantDeleted, TypeUsageSync} {
			e, err := Decode(raw(eventType, created(id), nil))
			if err != nil {
				t.Errorf("%s of %q: %v", eventType, id, err)
				continue
			}
			var got string
			switch p := e.Data.(type) {
			case TenantCreated:
				got = p.TenantID
			case TenantChange:
				got = p.TenantID
			case UsageSync:
				got = p.TenantID
			}
			if got != id {
				t.Errorf("%s of %q reads as %q", eventType, id, got)
			}
		}
	}
}

func TestDecodeThreeFormsAlike(t *testing.T) {
	for _, c := range []struct {
		eventType, data string
		want            Payload
	}{
		{
			TypeTenantCreated,
			`{"tenant_id":"a","name":"b","title":"c","description":"d","workspace_id":"e","created_by":"f",` +
				`"dashboard_id":"g"}`,
			TenantCreated{"a", "b", "c", "d", "e", "f", "g"},
		},
		{TypeTenantSuspended, `{"tenant_id":"a","workspace_id":"w","reason":"r"}`,
			TenantChange{"a", "w", "r"}},
		{TypeTenantResumed, `{"tenant_id":"a"}`, TenantChange{TenantID: "a"}},
		{TypeTenantDeleted, `{"tenant_id":"a"}`, TenantChange{TenantID: "a"}},
		{
			TypeUsageSync,
			`{"workspace_id":"w","tenant_id":"a","from_period":"2024-12","to_period":"2025-01"}`,
			UsageSync{"w", "a", "2024-12", "2025-01"},
		},
		{TypeUsageSync, `{}`, UsageSync{}},
	} {
		structured := `{"specversion":"1.0","id":"e1","source":"s","type":"` + c.eventType +
			`","time":"2025-05-01T10:00:00Z","data":` + c.data + `}`
		for _, form := range []struct {
			name string
			raw  Raw
		}{
			{"plain", raw(c.eventType, c.data, nats.Header{"Nats-Msg-Id": {"e1"},
				"Papermap-Event-Time": {"2025-05-01T10:00:00Z"}})},
			{"binary", raw(c.eventType, c.data, nats.Header{
				"ce-specversion": {"1.0"}, "ce-id": {"e1"}, "ce-source": {"s"}, "ce-type": {c.eventType},
				"ce-time": {"2025-05-01T10:00:00Z"},
			})},
			{"structured by header", raw(c.eventType, structured,
				nats.Header{"content-type": {"application/cloudevents+json; charset=utf-8"}})},
			{"structured by body", raw(c.eventType, structured,
				nats.Header{"content-type": {"application/json"}})},
		} {
			got, err := Decode(form.raw)
			if err != nil {
				t.Errorf("%s %s: %v", c.eventType, form.name, err)
				continue
			}
			want := Event{ID: "e1", Type: c.eventType, Time: time.Date(2025, 5, 1, 10, 0, 0, 0, time.UTC),
				Message: message, Stored: form.raw.Time, Data: c.want}
			if form.name != "plain" {
				want.Source = "s"
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s %s: (-want +got)\n%s", c.eventType, form.name, d)
			}
		}
	}
}

func TestEnvelopes(t *testing.T) {
	ce := func(members string) string { return `{"specversion":"1.0",` + members + `}` }
	for _, c := range []struct {
		name   string
		header nats.Header
		data   string
		code   string
	}{
		{"binary, Ce-Specversion", nats.Header{"Ce-Specversion": {"1.0"}, "CE-ID": {"e"}}, created("a"), ""},
		{"binary, its data is no envelope", nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"}},
			ce(`"id":"e","data":` + created("a")), codeField},
		{"binary wins over a structured content type", nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {"e"}, "content-type": {"application/cloudevents+json"},
		}, created("a"), ""},
		{"binary, version 0.3", nats.Header{"ce-specversion": {"0.3"}, "ce-id": {"e"}}, created("a"),
			codeEnvelope},
		{"binary, version empty", nats.Header{"ce-specversion": {""}, "ce-id": {"e"}}, created("a"),
			codeEnvelope},
		{"binary, no id", nats.Header{"ce-specversion": {"1.0"}, "Nats-Msg-Id": {"m"}}, created("a"),
			codeEnvelope},
		{"binary, another type", nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"},
			"ce-type": {"tenant.deleted"}}, created("a"), codeEnvelope},
		{"binary, type empty", nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"}, "ce-type": {""}},
			created("a"), codeEnvelope},
		{"ce-id without ce-specversion does not count", nats.Header{"ce-id": {strings.Repeat("e", 256)}},
			created("a"), ""},
		{"a header twice, the same", nats.Header{"ce-specversion": {"1.0", "1.0"}, "ce-id": {"e"},
			"Ce-Id": {"e"}}, created("a"), ""},
		{"a header twice, different", nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e", "f"}},
			created("a"), codeEnvelope},
		{"a header in two cases, different", nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"},
			"Ce-Id": {"f"}}, created("a"), codeEnvelope},
		{"other headers may come twice", nats.Header{"trace": {"1", "2"}}, created("a"), ""},

		{"structured, content type in capitals",
			nats.Header{"CONTENT-TYPE": {"Application/CloudEvents+JSON"}},
			ce(`"id":"e","data":` + created("a")), ""},
		{"structured, no source", nil, ce(`"id":"e","data":` + created("a")), ""},
		{"structured, attributes null", nil,
			ce(`"id":"e","type":null,"time":null,"source":null,"data":` + created("a")), ""},
		{"structured, other attributes", nil,
			ce(`"id":"e","subject":1,"datacontenttype":"application/json","data":` + created("a")), ""},
		{"structured, content type over plain data",
			nats.Header{"content-type": {"application/cloudevents+json"}}, created("a"), codeEnvelope},
		{"structured, content type in capitals over plain data",
			nats.Header{"Content-Type": {"APPLICATION/CLOUDEVENTS"}}, created("a"), codeEnvelope},
		{"structured, batch", nats.Header{"content-type": {"application/cloudevents-batch+json"}}, "[]",
			codeJSON},
		{"structured, version 0.3", nil, `{"specversion":"0.3","id":"e","data":` + created("a") + `}`,
			codeEnvelope},
		{"structured, version a number", nil, `{"specversion":1.0,"id":"e","data":` + created("a") + `}`,
			codeEnvelope},
		{"structured, version null", nil, `{"specversion":null,"id":"e","data":` + created("a") + `}`,
			codeEnvelope},
		{"structured, no id", nil, ce(`"data":` + created("a")), codeEnvelope},
		{"structured, id null", nil, ce(`"id":null,"data":` + created("a")), codeEnvelope},
		{"structured, id a number", nil, ce(`"id":1,"data":` + created("a")), codeEnvelope},
		{"structured, another type", nil,
			ce(`"id":"e","type":"papermap.events.tenant.created","data":` + created("a")), codeEnvelope},
		{"structured, no data", nil, ce(`"id":"e"`), codeEnvelope},
		{"structured, data null", nil, ce(`"id":"e","data":null`), codeEnvelope},
		{"structured, data a string", nil, ce(`"id":"e","data":"{}"`), codeEnvelope},
		{"structured, data_base64", nil, ce(`"id":"e","data_base64":"e30="`), codeEnvelope},
		{"structured, data_base64 beside data", nil,
			ce(`"id":"e","data_base64":"e30=","data":` + created("a")), codeEnvelope},
		{"structured, Data", nil, ce(`"id":"e","Data":` + created("a")), codeJSON},
		{"structured, id twice", nil, ce(`"id":"e","id":"f","data":` + created("a")), codeJSON},
		{"structured, SpecVersion beside specversion", nil,
			ce(`"SpecVersion":"1.0","id":"e","data":` + created("a")), codeJSON},
		{"structured, a duplicate in the data", nil,
			ce(`"id":"e","data":{"tenant_id":"a","tenant_id":"a","name":"b"}`), codeJSON},
		{"structured, TENANT_ID in the data", nil,
			ce(`"id":"e","data":{"tenant_id":"a","TENANT_ID":"a","name":"b"}`), codeJSON},
		{"structured, tenant id outside the data", nil, ce(`"id":"e","tenant_id":"a","name":"b","data":{}`),
			codeField},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Decode(raw(TypeTenantCreated, c.data, c.header))
			if code := codeOf(t, err); code != c.code {
				t.Errorf("code %q, want %q: %v", code, c.code, err)
			}
		})
	}
}

func TestUsageSync(t *testing.T) {
	for _, c := range []struct{ data, code string }{
		{`{}`, ""},
		{`{"from_period":"2000-01","to_period":"2999-12"}`, ""},
		{`{"from_period":"2025-01","to_period":"2025-01"}`, ""},
		{`{"from_period":"2025-01"}`, ""},
		{`{"tenant_id":"","workspace_id":"","from_period":"","to_period":""}`, ""},
		{`{"type":"something else"}`, ""},
		{`{"type":1}`, ""},
		{``, codeJSON},
		{`null`, codeJSON},
		{`{"tenant_id":" a"}`, codeField},
		{`{"from_period":202501}`, codeField},
		{`{"from_period":"2025-1"}`, codeField},
		{`{"from_period":"2025-00"}`, codeField},
		{`{"to_period":"2025-13"}`, codeField},
		{`{"to_period":"1999-12"}`, codeField},
		{`{"to_period":"3000-01"}`, codeField},
		{`{"to_period":"2025-01-01"}`, codeField},
		{`{"to_period":"2025-01\n"}`, codeField},
		{`{"to_period":"٢٠٢٥-٠١"}`, codeField},
		{`{"from_period":"2025-02","to_period":"2025-01"}`, codeField},
		{`{"name":"papermap-worker","id":"x","version":"1.0.0","metadata":{},` +
			`"type":"io.nats.micro.v1.ping_response"}`, codeField},
		{`{"type":"io\u002enats.micro.v1.stats_response"}`, codeField},
	} {
		_, err := Decode(raw(TypeUsageSync, c.data, nil))
		if code := codeOf(t, err); code != c.code {
			t.Errorf("%s: code %q, want %q: %v", c.data, code, c.code, err)
		}
	}
}

func TestUnknownTypeIsPermanent(t *testing.T) {
	for _, eventType := range []string{"tenant.create", "dashboard.created", "Tenant.Created", ""} {
		_, err := Decode(raw(eventType, created("a"), nil))
		if code := codeOf(t, err); code != codeType {
			t.Errorf("%q: code %q, want %q: %v", eventType, code, codeType, err)
		}
	}
}

func TestMessagesSayWhatToPutRight(t *testing.T) {
	for _, c := range []struct{ data, says string }{
		{"", "empty"},
		{"null", "not a JSON object"},
		{"\uFEFF" + created("a"), "byte order mark"},
		{"\xff\xfe{\x00}\x00", "UTF-8"},
		{created("a") + created("a"), "more data after"},
		{created("a")[:20], "ends too early"},
		{`{"tenant_id":"a","tenant_id":"a"}`, "same name twice"},
		{`{"Tenant_ID":"a"}`, `"Tenant_ID" differs from the field "tenant_id" only by case`},
		{`{"x":` + strings.Repeat("[", 10_001), "nested more than"},
		{`{"tenant_id":1}`, `"tenant_id" must be a string`},
		{`{"tenant_id":"a","name":"b","workspace_id":" w"}`, `"workspace_id" has leading or trailing`},
		{`{"specversion":"1.0","id":"e"}`, `no "data"`},
	} {
		_, err := Decode(raw(TypeTenantCreated, c.data, nil))
		if codeOf(t, err) == "" || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.60q: %v, want %q", c.data, err, c.says)
		}
	}
}

func TestMessagesQuoteLittleOfTheInput(t *testing.T) {
	long := strings.Repeat("q", 1000)
	for _, r := range []Raw{
		raw(long, created("a"), nil),
		raw(long, created("a"), nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"},
			"ce-type": {long + "x"}}),
		raw(TypeTenantCreated, created("a"), nats.Header{"ce-specversion": {long}}),
		raw(TypeTenantCreated, created("a"), nats.Header{"Papermap-Event-Time": {long}}),
		raw(TypeTenantCreated, created("a"), nats.Header{"Nats-Msg-Id": {long}}),
		raw(TypeTenantCreated, created(long), nil),
		raw(TypeTenantCreated, `{"tenant_id":"a","name":"`+long+`q"}`, nil),
		raw(TypeTenantCreated, long, nil),
		raw(TypeTenantCreated, `{"`+long+`":1,"`+long+`":2}`, nil),
		raw(TypeUsageSync, `{"from_period":"`+long+`"}`, nil),
	} {
		_, err := Decode(r)
		if codeOf(t, err) == "" || strings.Contains(err.Error(), long[:41]) {
			t.Errorf("got %v", err)
		}
	}
}

func TestBinaryAttributesArePercentDecoded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ header, encoded, decoded string }{ // decoded empty: refused
		{"ce-id", "signup%20org", "signup org"}, {"Ce-Id", "%C3%a9", "é"}, {"ce-id", "a%2Fb%25", "a/b%"},
		{"ce-id", "100%", "100%"}, {"ce-id", "%", "%"}, {"ce-id", "%2", "%2"}, {"ce-id", "%zz%4", "%zz%4"},
		{"ce-id", "%%41", "%A"}, {"ce-id", "%2541", "%41"}, {"ce-id", "a+b", "a+b"},
		{"ce-id", "%20a%20", " a "}, {"ce-id", "  a ", "a"},
		{"ce-id", strings.Repeat("%C3%A9", 255), strings.Repeat("é", 255)},
		{"ce-id", strings.Repeat("%C3%A9", 256), ""}, {"ce-id", "%00", ""}, {"ce-id", "%FF", ""},
		{"ce-id", "%C3%", ""}, {"ce-id", "\xff", ""},
		{"ce-source", "%2Fa%20b", "/a b"}, {"CE-SOURCE", "é", "é"}, {"ce-source", "%ff", ""},
		{"ce-type", "tenant%2Ecreated", ""}, {"ce-specversion", "1%2E0", ""},
		{"ce-extension", "%C3%28", ""}, {"ce-tracestate", "a%3Db", ""},
		{"Nats-Msg-Id", "m%20", "m%20"}, {"Papermap-Event-Id", "p%20", "p%20"},
	} {
		h := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"}}
		for name := range h {
			if strings.EqualFold(name, c.header) {
				delete(h, name)
			}
		}
		h[c.header] = []string{c.encoded}
		if c.header == "Nats-Msg-Id" {
			h = nats.Header{c.header: {c.encoded}}
		}
		e, err := Decode(raw(TypeTenantCreated, created("a"), h))
		valid := c.decoded != "" ||
			slices.Contains([]string{"ce-type", "ce-specversion", "ce-tracestate"}, c.header)
		if valid != (err == nil) || err != nil && codeOf(t, err) != codeEnvelope {
			t.Errorf("%s %q: %v", c.header, c.encoded, err)
		}
		is := e.ID
		if strings.EqualFold(c.header, "ce-source") {
			is = e.Source
		}
		if c.decoded != "" && is != c.decoded {
			t.Errorf("%s %q reads as %q", c.header, c.encoded, is)
		}
	}
	// Without ce-specversion there is no CloudEvent in binary mode.
	e, err := Decode(raw(TypeTenantCreated, created("a"), nats.Header{"ce-id": {"%FF"}}))
	if err != nil || e.ID != message {
		t.Errorf("%+v, %v", e, err)
	}
}

// A suspension must not fail because of its reason, and a log line must not be as long as an event.
func TestDecodeKeepsTheFirst500CharactersOfAReason(t *testing.T) {
	for length, want := range map[int]string{
		500: strings.Repeat("é", 500), 90_000: strings.Repeat("é", 499) + "…",
	} {
		for _, eventType := range []string{TypeTenantSuspended, TypeTenantResumed, TypeTenantDeleted} {
			e, err := Decode(Raw{Type: eventType,
				Data: fmt.Appendf(nil, `{"tenant_id":"a","reason":%q}`, strings.Repeat("é", length))})
			if change, ok := e.Data.(TenantChange); !ok || err != nil || change.Reason != want {
				t.Errorf("%s with a reason of %d characters: %.20q… (%v)",
					eventType, length, change.Reason, err)
			}
		}
	}
}
