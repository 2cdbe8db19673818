package events

import (
	"testing"

	"github.com/nats-io/nats.go"
)

// Contexts come from strangers: the first that can be read counts, and none makes an event wrong.
func TestTraceContextIsReadFromHeaders(t *testing.T) {
	const id, other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-11111111111111111111111111111111-2222222222222222-01"
	for what, c := range map[string]struct {
		header nats.Header
		want   string // of the trace id
	}{
		"none":                      {nil, ""},
		"W3C's":                     {nats.Header{"traceparent": {id}}, id},
		"as HTTP writes it":         {nats.Header{"Traceparent": {id}}, id},
		"a CloudEvent's":            {nats.Header{"ce-traceparent": {id}}, id},
		"the message's comes first": {nats.Header{"ce-traceparent": {other}, "traceparent": {id}}, id},
		"an unreadable one":         {nats.Header{"traceparent": {"00-zz"}, "ce-traceparent": {id}}, id},
		"two":                       {nats.Header{"traceparent": {id, other}}, id},
		"no value":                  {nats.Header{"traceparent": {}}, ""},
		"zeros":                     {nats.Header{"traceparent": {"00-00000000000000000000000000000000-0000000000000000-01"}}, ""},
		"another version":           {nats.Header{"traceparent": {"ff" + id[2:]}}, ""},
		"a wrong state":             {nats.Header{"traceparent": {id}, "tracestate": {"=,=,"}}, id},
	} {
		got := traceOf(c.header)
		if got.IsValid() != (c.want != "") || got.IsValid() && got.TraceID().String() != c.want[3:35] {
			t.Errorf("%s: trace %s, want %s", what, got.TraceID(), c.want)
		}
		r := Raw{Type: TypeTenantDeleted, Header: c.header, Data: []byte(`{"tenant_id":"org-1"}`)}
		if _, err := Decode(r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
