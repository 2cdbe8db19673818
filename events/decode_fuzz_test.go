package events

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
)

// The contract's rule for tenant ids, written a second time.
func lawful(id string) bool {
	runes := []rune(id)
	if !utf8.ValidString(id) || len(runes) < 1 || len(runes) > 255 || unicode.IsSpace(runes[0]) ||
		unicode.IsSpace(runes[len(runes)-1]) {
		return false
	}
	for _, r := range runes {
		if unicode.Is(unicode.Cc, r) {
			return false
		}
	}
	return true
}

func FuzzDecode(f *testing.F) {
	types := []string{TypeTenantCreated, TypeTenantSuspended, TypeUsageSync, "tenant.create"}
	structured := `{"specversion":"1.0","id":"e","type":"tenant.created","time":"2025-05-01T10:00:00Z","data":{"tenant_id":"a","name":"b"}}`
	for _, seed := range []struct{ version, id, time, contentType, data string }{
		{"", "", "", "", `{"tenant_id":"org-123","name":"Acme Corp"}`},
		{"", "", "", "", structured},
		{"", "m", "", "application/cloudevents+json", structured},
		{"1.0", "e", "2025-05-01T10:00:00Z", "application/json",
			`{"tenant_id":"a.b *>","name":"b","title":"c","workspace_id":"w"}`},
		{"1.0", strings.Repeat("é", 256), "0001-01-01T00:00:00Z", "", `{}`},
		{"", "", "9999-12-31T23:59:59-23:59", "", `{"from_period":"2024-12","to_period":"2025-01"}`},
		{"", "a\xff", "", "", `{"type":"io.nats.micro.v1.ping_response"}`},
		{"", "", "", "", `{"tenant_id":"a","TENANT_ID":"b","name":"b"}`},
		{"", "", "", "", `{"tenant_id":"a\ud800","name":"\u0000"}`},
		{"", "", "", "", "\uFEFF{}{}"},
		{"", "", "", "", `{"tenant_id":"a","name":"b","x":` + strings.Repeat("[", 50) + strings.Repeat("]",
			50) + `}`},
		{"", "", "", "", "null"},
	} {
		for i := range types {
			f.Add(i, seed.version, seed.id, seed.time, seed.contentType, []byte(seed.data))
		}
	}
	f.Fuzz(func(t *testing.T, i int, version, id, when, contentType string, data []byte) {
		h := nats.Header{}
		for name, value := range map[string]string{"ce-specversion": version, "content-type": contentType,
			"Papermap-Event-Time": when} {
			if value != "" {
				h[name] = []string{value}
			}
		}
		h["ce-id"], h["Nats-Msg-Id"] = []string{id}, []string{id}
		r := Raw{Type: types[uint(i)%uint(len(types))], Header: h, Data: data, Sequence: 7, Time: stored}

		e, err := Decode(r)
		again, errAgain := Decode(r)
		if !reflect.DeepEqual(e, again) || (err == nil) != (errAgain == nil) || err != nil &&
			err.Error() != errAgain.Error() {
			t.Fatalf("two readings differ: %+v, %v and %+v, %v", e, err, again, errAgain)
		}
		if !validEventID(e.ID) || e.Message != message || e.Time.Location() != time.UTC ||
			e.Time.Unix() < 0 || e.Time.After(stored.Add(maxAhead)) {
			t.Fatalf("not to be recorded: %+v", e)
		}
		if err != nil {
			var p *Permanent
			if !errors.As(err, &p) || p.Code == "" || len(p.Error()) > 1000 ||
				strings.ContainsFunc(p.Error(), unicode.IsControl) {
				t.Fatalf("no error to keep with a dead letter: %#v", err)
			}
			return
		}
		switch p := e.Data.(type) {
		case TenantCreated:
			if !lawful(p.TenantID) || strings.TrimSpace(p.Name) == "" || p.WorkspaceID != "" &&
				!lawful(p.WorkspaceID) {
				t.Fatalf("accepted %+v", p)
			}
		case TenantChange:
			if !lawful(p.TenantID) || p.WorkspaceID != "" && !lawful(p.WorkspaceID) {
				t.Fatalf("accepted %+v", p)
			}
		case UsageSync:
			if p.TenantID != "" && !lawful(p.TenantID) || p.FromPeriod != "" &&
				ValidatePeriod(p.FromPeriod) != nil {
				t.Fatalf("accepted %+v", p)
			}
		default:
			t.Fatalf("data is %T", e.Data)
		}
	})
}

// What DecodeObject accepts is JSON that jsontext calls valid as well, with a string where one was
// asked for.
func FuzzDecodeObject(f *testing.F) {
	for _, data := range []string{
		`{}`, `{"tenant_id":"a","ttl_seconds":60}`, `{"ttl_seconds":1e3}`, `{"ttl_seconds":null}`,
		`{"tenant_id":"a","tenant_id":"a"}`,
		`{"Tenant_id":"a"}`, `{"x":{"y":1,"y":2}}`, `{}{}`, `[]`, "\uFEFF{}", `{"tenant_id":"\ud800"}`,
		"{\"x\":\"\xff\"}",
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var id string
		var ttl *int64
		var value jsontext.Value
		if err := DecodeObject(data, map[string]any{"tenant_id": &id, "ttl_seconds": &ttl,
			"value": &value}); err != nil {
			return
		}
		if v := jsontext.Value(data); !v.IsValid() || v.Kind() != '{' || !utf8.ValidString(id) {
			t.Fatalf("accepted %q", data)
		}
	})
}

// Headers alone never make a reading differ from another of the same message, or from that of its copy,
// which Republish publishes.
func FuzzDecodeHeaders(f *testing.F) {
	for _, seed := range [][3]string{
		{"ce-id", "signup%20org", "s"}, {"Ce-Id", "%C3%A9", "%2Fa"}, {"ce-time", "2025-05-01T10%3A00:00Z", ""},
		{"ce-id", " %20", "%"}, {"ce-x", "%FF", "a"}, {"Nats-Msg-Id", "m ", "%zz"}, {"ce-id", "%C3", "\xff"},
		{"Papermap-Event-Id", "p", ""}, {"papermap-event-time", "2016-12-31T23:59:60Z", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, name, value, source string) {
		h := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"e"}, "ce-source": {source}}
		h[name] = append(h[name], value)
		r := Raw{Type: TypeTenantSuspended, Header: h, Data: []byte(`{"tenant_id":"a"}`), Sequence: 7, Time: stored}
		e, err := Decode(r)
		again, errAgain := Decode(r)
		if !reflect.DeepEqual(e, again) || (err == nil) != (errAgain == nil) || err != nil &&
			err.Error() != errAgain.Error() {
			t.Fatalf("two readings differ: %+v, %v and %+v, %v", e, err, again, errAgain)
		}
		if !validEventID(e.ID) || !utf8.ValidString(e.Source) && err == nil {
			t.Fatalf("not to be recorded: %+v", e)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Fatalf("a long error: %v", err)
		}
	})
}
