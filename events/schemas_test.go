package events_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/schema"
	"papermap-worker/schema/schematest"
)

// agree fails the test unless Decode and the schema both accept data, or both refuse it.
func agree(t *testing.T, eventType, schemaName, data string, accepted bool) {
	t.Helper()
	_, err := events.Decode(events.Raw{Type: eventType, Data: []byte(data), Sequence: 1,
		Time: time.Date(2025, 5, 1, 12, 0, 0, 0, time.UTC)})
	if (err == nil) != accepted {
		t.Errorf("Decode of %s %.200q: %v", eventType, data, err)
	}
	if err := schematest.Check(schemaName, []byte(data)); (err == nil) != accepted {
		t.Errorf("schema of %s for %.200q: %v", schemaName, data, err)
	}
}

func TestSchemasAndDecoderAgreeOnTenantIDs(t *testing.T) {
	for _, eventType := range events.TypesIn() {
		for id, accepted := range map[string]bool{
			`"org-123"`: true, `"a b"`: true, `"caf\u00e9"`: true, `"\u200b"`: true, `"🏢"`: true,
			`"*.>%/\\"`:                          true,
			`"` + strings.Repeat("é", 255) + `"`: true,
			`"` + strings.Repeat("🏢", 255) + `"`: true,
			`"` + strings.Repeat("🏢", 256) + `"`: false,
			`""`:                                 eventType == events.TypeUsageSync, // there it is optional
			`null`:                               eventType == events.TypeUsageSync,
			`1`:                                  false, `true`: false, `{}`: false,
			`["a"]`: false,
			`" a"`:  false, `"a "`: false, `" "`: false, `"\u00a0a"`: false, `"a\u3000"`: false,
			`"a\u2028"`: false, `"\u1680a"`: false,
			`"a\u0000b"`: false, `"a\nb"`: false, `"a\n"`: false, `"a\u007fb"`: false, `"a\u0085b"`: false,
		} {
			agree(t, eventType, eventType, fmt.Sprintf(`{"tenant_id":%s,"name":"Acme"}`, id), accepted)
		}
	}
}

func TestSchemasAndDecoderAgreeOnData(t *testing.T) {
	created, suspended, sync := events.TypeTenantCreated, events.TypeTenantSuspended, events.TypeUsageSync
	long := func(n int) string { return strings.Repeat("é", n) }
	for _, c := range []struct {
		eventType, data string
		accepted        bool
	}{
		{created, `{"tenant_id":"a","name":"b","title":"c","description":"d",` +
			`"workspace_id":"e","created_by":"f"}`, true},
		{created, `{"tenant_id":"a","name":"b","title":"","description":"",` +
			`"workspace_id":"","created_by":""}`, true},
		{created, `{"tenant_id":"a","name":" b\n","title":"\t"}`, true},
		{created, `{"tenant_id":"a","name":"b","tenantId":null,"x":{"y":[1]}}`, true},
		{created, `{"tenant_id":"a","dashboard_id":"d"}`, true},
		{created, `{"tenant_id":"a","name":null,"dashboard_id":"` + long(255) + `"}`, true},
		{created, `{"tenant_id":"a","name":" ","dashboard_id":"d"}`, true},
		{created, `{"tenant_id":"a","name":"b","dashboard_id":""}`, true},
		{created, `{"tenant_id":"a","name":"b","dashboard_id":null}`, true},
		{created, `{"tenant_id":"a","dashboard_id":""}`, false},
		{created, `{"tenant_id":"a","dashboard_id":null}`, false},
		{created, `{"tenant_id":"a","name":1,"dashboard_id":"d"}`, false},
		{created, `{"tenant_id":"a","name":"b","dashboard_id":"` + long(256) + `"}`, false},
		{created, `{"tenant_id":"a","name":"b","dashboard_id":"d "}`, false},
		{created, `{"tenant_id":"a","name":"b","dashboard_ID":"d"}`, false},
		{created, `null`, false},
		{created, `[]`, false},
		{created, `"x"`, false},
		{created, `{}`, false},
		{created, `{"name":"b"}`, false},
		{created, `{"tenant_id":"a"}`, false},
		{created, `{"tenant_id":"a","name":""}`, false},
		{created, `{"tenant_id":"a","name":" \t\u00a0\u3000\u0085"}`, false},
		{created, `{"tenant_id":"a","name":"b\u0000"}`, false},
		{created, `{"tenant_id":"a","name":"b","title":"\u0000"}`, false},
		{created, `{"tenant_id":"a","name":"b","description":"\u0000"}`, false},
		{created, `{"tenant_id":"a","name":"b","created_by":"\u0000"}`, false},
		{created, `{"tenant_id":"a","name":"` + long(1000) + `","title":"` + long(1000) +
			`","description":"` + long(10_000) + `","created_by":"` + long(255) + `"}`, true},
		{created, `{"tenant_id":"a","name":"` + long(1001) + `"}`, false},
		{created, `{"tenant_id":"a","name":"b","title":"` + long(1001) + `"}`, false},
		{created, `{"tenant_id":"a","name":"b","description":"` + long(10_001) + `"}`, false},
		{created, `{"tenant_id":"a","name":"b","created_by":"` + long(256) + `"}`, false},
		{created, `{"tenant_id":"a","name":"b","workspace_id":"w "}`, false},
		{created, `{"tenant_id":"a","name":"b","workspace_id":"` + strings.Repeat("w", 256) + `"}`, false},
		{created, `{"tenant_id":"a","name":"b","wor` + "\u212a" + `space_id":"w"}`, false},
		{created, `{"tenant_id":"a","name":"b","de` + "\u017f" + `cription":"w"}`, false},

		{suspended, `{"tenant_id":"a"}`, true},
		{suspended, `{"tenant_id":"a","workspace_id":"w","reason":"r"}`, true},
		{suspended, `{"tenant_id":"a","NAME":"unknown here"}`, true},
		{suspended, `[]`, false},
		{suspended, `{}`, false},
		{suspended, `{"tenant_id":"a","workspace_id":"w "}`, false},
		{suspended, `{"tenant_id":"a","reason":"\u0000"}`, false},

		{sync, `{}`, true},
		{sync, `{"tenant_id":"","workspace_id":"","from_period":"","to_period":""}`, true},
		{sync, `{"workspace_id":"w","tenant_id":"a","from_period":"2000-01","to_period":"2999-12"}`, true},
		{sync, `{"type":"something else"}`, true},
		{sync, `{"type":1}`, true},
		{sync, `{"type":"io.nats.micro.v1.ping_response"}`, false},
		{sync, `[]`, false},
		{sync, `{"workspace_id":"w "}`, false},
		{sync, `{"from_period":"2025-1"}`, false},
		{sync, `{"from_period":"2025-00"}`, false},
		{sync, `{"to_period":"2025-13"}`, false},
		{sync, `{"to_period":"1999-12"}`, false},
		{sync, `{"to_period":"3000-01"}`, false},
		{sync, `{"to_period":"2025-01\n"}`, false},
		{sync, `{"to_period":"٢٠٢٥-٠١"}`, false},
	} {
		agree(t, c.eventType, c.eventType, c.data, c.accepted)
	}
}

func TestSchemasAndDecoderRefuseTheSameOfEveryField(t *testing.T) {
	for _, eventType := range events.TypesIn() {
		text, err := schema.Contract.ReadFile("events/" + eventType + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Properties map[string]any `json:"properties"`
			Required   []string       `json:"required"`
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		for name := range doc.Properties {
			for _, value := range []string{`null`, `1`, `true`, `[]`, `{}`, `"a\u0000"`} {
				fields := map[string]string{"tenant_id": `"a"`, "name": `"b"`}
				fields[name] = value
				// name is required unless there is a dashboard
				optional := !slices.Contains(doc.Required, name) && name != "name"
				agree(t, eventType, eventType, object(fields), value == `null` && optional)
			}
			for _, other := range []string{strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:]} {
				agree(t, eventType, eventType, object(map[string]string{"tenant_id": `"a"`, "name": `"b"`,
					other: `"x"`}), false)
			}
		}
	}
}

func object(fields map[string]string) string {
	var members []string
	for name, value := range fields {
		members = append(members, fmt.Sprintf("%q:%s", name, value))
	}
	return "{" + strings.Join(members, ",") + "}"
}

func TestSchemasAndDecoderAgreeOnEnvelopes(t *testing.T) {
	const data = `"data":{"tenant_id":"a","name":"b"}`
	for _, c := range []struct {
		members  string
		accepted bool
	}{
		{`"specversion":"1.0","id":"e","source":"/s","type":"tenant.created",` +
			`"time":"2025-05-01T10:00:00.5+02:00",` + data, true},
		{`"specversion":"1.0","id":"e",` + data, true},
		{`"specversion":"1.0","id":"e","source":null,"type":null,"time":null,` + data, true},
		{`"specversion":"1.0","id":"e","subject":1,"datacontenttype":"x","dataschema":"y",` + data, true},
		{`"specversion":"1.0","id":" ",` + data, true},
		{`"specversion":"1.0","id":"e","time":"2025-05-01t10:00:00z",` + data, true},
		{`"specversion":"1.0","id":"e","time":"1970-01-01T00:00:00Z",` + data, true},
		{`"specversion":"1.0","id":"e","time":"9999-12-31T23:59:59-23:59",` + data, true},

		{`"specversion":"0.3","id":"e",` + data, false},
		{`"specversion":1.0,"id":"e",` + data, false},
		{`"specversion":null,"id":"e",` + data, false},
		{`"id":"e",` + data, false},
		{`"specversion":"1.0",` + data, false},
		{`"specversion":"1.0","id":"",` + data, false},
		{`"specversion":"1.0","id":null,` + data, false},
		{`"specversion":"1.0","id":1,` + data, false},
		{`"specversion":"1.0","id":"a\u0000",` + data, false},
		{`"specversion":"1.0","id":"a\u0085",` + data, false},
		{`"specversion":"1.0","id":"` + strings.Repeat("é", 256) + `",` + data, false},
		{`"specversion":"1.0","id":"e","type":1,` + data, false},
		{`"specversion":"1.0","id":"e"`, false},
		{`"specversion":"1.0","id":"e","data":null`, false},
		{`"specversion":"1.0","id":"e","data":"{}"`, false},
		{`"specversion":"1.0","id":"e","data_base64":"e30="`, false},
		{`"specversion":"1.0","id":"e","data_base64":null,` + data, false},
		{`"specversion":"1.0","id":"e","Data":{},` + data, false},
		{`"specversion":"1.0","id":"e","TIME":"x",` + data, false},
		{`"specversion":"1.0","id":"e","SpecVersion":"1.0",` + data, false},
		{`"specversion":"1.0","id":"e","time":1,` + data, false},
		{`"specversion":"1.0","id":"e","time":"",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-05-01",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-05-01T10:00:00",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-05-01 10:00:00Z",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-05-01T1:00:00Z",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-05-01T10:00:00,5Z",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-05-01T23:59:60Z",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-05-01T10:00:00+24:00",` + data, false},
		{`"specversion":"1.0","id":"e","time":"2025-02-30T10:00:00Z",` + data, false},
		{`"specversion":"1.0","id":"e","time":"0001-01-01T00:00:00Z",` + data, false},
	} {
		agree(t, events.TypeTenantCreated, "cloudevent", "{"+c.members+"}", c.accepted)
	}
}

func TestEventsOutFitTheirSchemas(t *testing.T) {
	for eventType, data := range map[string]any{
		events.TypeDashboardCreated: events.DashboardCreated{TenantID: "org-123", WorkspaceID: "w",
			DashboardID: "d", Title: "Dashboard - Acme"},
		events.TypeDashboardFailed: events.DashboardFailed{TenantID: "org-123", WorkspaceID: "w",
			Code: "API_REFUSED", Message: "status 422"},
		events.TypeDashboardHeld: events.DashboardHeld{TenantID: "org-123", WorkspaceID: "w",
			Attempt: "1b4e28ba-2fa1-11d2-883f-0016d3cca427"},
		events.TypeUsageThreshold: events.UsageThreshold{TenantID: "org-123", WorkspaceID: "w",
			Period: "2026-01", Credits: "80.5", Budget: "100", Percent: 80},
	} {
		text, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		schematest.Validate(t, eventType, text)
		e, err := events.Structured("e1", eventType, "org-123", time.Now(), text)
		if err != nil {
			t.Fatal(err)
		}
		schematest.Validate(t, "cloudevent", e.Data)
	}
}
