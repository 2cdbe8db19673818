package worker

import (
	"strings"
	"testing"

	"papermap-worker/events"
)

// parseSimple accepts nothing that the strict decoder refuses, and reads nothing differently.
func FuzzTokenRequest(f *testing.F) {
	for _, seed := range []string{
		`{"tenant_id":"org-123"}`, `{"tenant_id":"org-123","workspace_id":"ws-a","ttl_seconds":60}`,
		" {\t\"ttl_seconds\" :\r\n999999999 , \"tenant_id\": \"a\" } \n",
		`{"tenant_id":"a","tenant_id":"a"}`, `{"tenant_id":"a","ttl_seconds":1,"ttl_seconds":2}`,
		`{"workspace_id":"w","tenant_id":"a","workspace_id":"w"}`,
		`{"Tenant_id":"a"}`, `{"tenant_id":"a","other":1}`, `{"tenant_\u0069d":"a"}`,
		`{"tenant_id":"a\u002eb"}`, `{"tenant_id":"a\"b"}`, `{"tenant_id":"\ud800"}`,
		`{"tenant_id":"a","ttl_seconds":0}`, `{"tenant_id":"a","ttl_seconds":-1}`,
		`{"tenant_id":"a","ttl_seconds":01}`, `{"tenant_id":"a","ttl_seconds":1.0}`,
		`{"tenant_id":"a","ttl_seconds":1e3}`, `{"tenant_id":"a","ttl_seconds":1000000000}`,
		`{"tenant_id":"a","ttl_seconds":99999999999999999999}`,
		`{"tenant_id":"a","ttl_seconds":"1"}`, `{"tenant_id":"a","ttl_seconds":null}`, `{"tenant_id":null}`,
		`{"tenant_id":7}`, `{"tenant_id":""}`,
		`{"tenant_id":"a","workspace_id":""}`, `{}`, `[]`, `null`, ``, ` `, `}`, `{`, `{"tenant_id":"a"`,
		`{"tenant_id":"a",}`, `{,"tenant_id":"a"}`, `{"tenant_id":"a"}}`,
		`{"tenant_id":"a"}{}`, `{"tenant_id":"a"},`, `{{"tenant_id":"a"}`, `{"tenant_id""a"}`,
		`{"tenant_id":"a""workspace_id":"w"}`, "\uFEFF{\"tenant_id\":\"a\"}",
		"{\"tenant_id\":\"a\xff\"}", "{\"tenant_id\":\"a\x1f\"}", "{\"tenant_id\":\"a\x7f\"}",
		"{\"tenant_id\":\"a\u0085\u2028\"}", "{\u00a0\"tenant_id\":\"a\"}",
		"{\v\"tenant_id\":\"a\"}", "{\"tenant_id\":\"mu\u0308ller 🙂\"}",
		`{"tenant_id":"a"}` + strings.Repeat(" ", 100), "{\"tenant_id\":\"a\"}\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		q, ok := parseSimple(data)
		if !ok {
			return // the strict decoder reads or refuses it
		}
		var tenantID, workspaceID string
		var ttl *int64
		if err := events.DecodeObject(data, map[string]any{
			"tenant_id": &tenantID, "workspace_id": &workspaceID, "ttl_seconds": &ttl,
		}); err != nil {
			t.Fatalf("%q is read as %q, %q, %d, and is refused: %v",
				data, q.tenantID, q.workspaceID, q.ttl, err)
		}
		seconds := int64(0)
		if ttl != nil {
			seconds = *ttl
		}
		if string(q.tenantID) != tenantID || string(q.workspaceID) != workspaceID || q.ttl != seconds ||
			ttl != nil && q.ttl < 1 || tenantID == "" {
			t.Fatalf("%q is read as %q, %q, %d, strictly as %q, %q, %d",
				data, q.tenantID, q.workspaceID, q.ttl, tenantID, workspaceID, seconds)
		}
	})
}

func TestParseSimpleReadsUsualRequests(t *testing.T) {
	for text, want := range map[string]tokenRequest{
		`{"tenant_id":"org-123"}`: {tenantID: []byte("org-123")},
		"{ \"ttl_seconds\": 60,\n\t\"workspace_id\": \"ws-a\", \"tenant_id\": \"müller 🙂\" }\r\n": {
			[]byte("müller 🙂"), []byte("ws-a"), 60,
		},
	} {
		q, ok := parseSimple([]byte(text))
		if !ok || string(q.tenantID) != string(want.tenantID) ||
			string(q.workspaceID) != string(want.workspaceID) || q.ttl != want.ttl {
			t.Errorf("%s is read as %q, %q, %d, %v", text, q.tenantID, q.workspaceID, q.ttl, ok)
		}
	}
}
