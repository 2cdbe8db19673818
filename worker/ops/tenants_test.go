package ops

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
)

// ofTenant is a token of a tenant that may create its dashboard.
func ofTenant(t *testing.T, tenants ...string) string {
	return hs256(t, jwt.MapClaims{"tenants": tenants, "scope": "openid papermap:create", "sub": "user-7"})
}

func TestTenantsCreateTheirOwnDashboardWhileUnknown(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		own := ofTenant(t, "org-1", "org-3", "lost", "bad", "gone", "late")
		for body, status := range map[string]int{
			`{"tenant_id":"org-2","name":"x"}`:                         403,
			`{"tenant_id":"ORG-1","name":"x"}`:                         403,
			`{"name":"x"}`:                                             403,
			`{"tenant_id":"org-1","name":"x","workspace_id":"ws-a"}`:   403,
			`{"tenant_id":"org-1","name":"x","dashboard_id":"d-1"}`:    403,
			`{"tenant_id":"org-1","name":"x","created_by":"the boss"}`: 403,
			`{"tenant_id":"org-1","name":"x","dashboard_id":["d-1"]}`:  400,
			`{"tenant_id":"org-1","name":"x","Workspace_ID":"ws-a"}`:   400,
			`{"tenant_id":"org-2","tenant_id":"org-1","name":"x"}`:     400,
			`{"tenant_id":"org-1"}`:                                    400,
		} {
			if a := w.ask("POST", api, own, body); a.status != status {
				t.Errorf("%s: %d %s, want %d", body, a.status, a.body, status)
			}
		}
		for _, other := range []string{
			hs256(t, jwt.MapClaims{"tenant_id": "org-1"}),
			hs256(t, jwt.MapClaims{"scope": "papermap:create"}),
			hs256(t, jwt.MapClaims{"tenant_id": "org-1", "scope": "papermap:creates"}),
		} {
			w.refused(w.ask("POST", api, other, `{"tenant_id":"org-1","name":"x"}`), 403, "Access denied")
		}
		if _, err := w.DB.Mapping(t.Context(), "org-1"); err == nil {
			t.Fatal("a refused request created the tenant")
		}

		const wanted = `{"tenant_id":"org-1","name":"Acme","title":"Ours","description":"the first"}`
		a := w.ok(w.ask("POST", api, own, wanted), 201)
		if a.field("title") != "Ours" || a.field("description") != "the first" ||
			a.field("created_by") != "user-7" || a.field("status") != "active" {
			t.Errorf("created %s", a.body)
		}
		m, err := w.DB.Mapping(t.Context(), "org-1")
		w.Must(err)
		again := w.ok(w.ask("POST", api, own, `{"tenant_id":"org-1","name":"Other"}`), 201)
		if now, err := w.DB.Mapping(t.Context(), "org-1"); err != nil ||
			now.CreatedEventID != m.CreatedEventID ||
			again.field("dashboard_id") != a.field("dashboard_id") || again.field("title") != "Ours" {
			t.Errorf("created again: %s, %v", again.body, err)
		}

		w.Publish(events.TypeTenantSuspended, `{"tenant_id":"org-1"}`)
		w.becomes("org-1", "suspended")
		w.refused(w.ask("POST", api, own, wanted), 403, "suspended")
		w.Publish(events.TypeTenantDeleted, `{"tenant_id":"org-1"}`)
		w.becomes("org-1", "deleted")
		w.refused(w.ask("POST", api, own, wanted), 410, "deleted")
		w.Publish(events.TypeTenantDeleted, `{"tenant_id":"gone"}`)
		w.becomes("gone", "deleted")
		w.refused(w.ask("POST", api, own, `{"tenant_id":"gone","name":"x"}`), 410, "deleted")

		w.Simulator.SetFaults(simulator.Fault{On: "create", Tenant: "bad", Status: 422})
		if a := w.ask("POST", api, own, `{"tenant_id":"bad","name":"x"}`); a.status != 422 {
			t.Errorf("refused by Papermap: %d %s", a.status, a.body)
		}
		w.refused(w.ask("POST", api, own, `{"tenant_id":"bad","name":"x"}`), 409, "failed")
	})
}

// An event that a tenant may publish has the time of the request, so that a deletion that comes after
// it is newer.
func TestTenantsCreateIsOlderThanADeletionThatFollows(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		w.ok(w.ask("POST", api, ofTenant(t, "org-1"), `{"tenant_id":"org-1","name":"x"}`), 201)
		stream, err := w.JS.Stream(t.Context(), "PAPERMAP")
		w.Must(err)
		msg, err := stream.GetLastMsgForSubject(t.Context(), "papermap.events.tenant.created")
		w.Must(err)
		if msg.Header.Get("ce-time") == "" || msg.Header.Get("ce-id") == "" {
			t.Errorf("the event has no time of its own: %v", msg.Header)
		}
	})
}

func TestCreatorIsTheTokensSubject(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		for i, c := range []struct{ sub, given, want string }{
			{"user-7", "", `"user-7"`}, {"user-7", `,"created_by":"ann"`, `"ann"`},
			{"user-7", `,"created_by":""`, `"user-7"`}, {"", "", "null"},
			{strings.Repeat("é", 300), "", `"` + strings.Repeat("é", 255) + `"`}, {"a\x00b", "", `"ab"`},
		} {
			root := hs256(t, jwt.MapClaims{"scope": adminScope, "sub": c.sub})
			body := fmt.Sprintf(`{"tenant_id":"org-%d","name":"x"%s}`, i, c.given)
			var d struct {
				CreatedBy json.RawMessage `json:"created_by"`
			}
			w.Must(json.Unmarshal(w.ok(w.ask("POST", api, root, body), 201).body, &d))
			if string(d.CreatedBy) != c.want {
				t.Errorf("sub %.20q, %s: created_by %s, want %s", c.sub, c.given, d.CreatedBy, c.want)
			}
		}
	})
}

func TestPathsMayEndInASlash(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)
		w.ok(w.ask("POST", api+"/", root, `{"tenant_id":"org-1","name":"x"}`), 201)
		for _, path := range []string{api, api + "/org-1", "/api/v1/usage"} {
			w.ok(w.ask("GET", path+"/", root, ""), 200)
		}
		w.ok(w.ask("POST", api+"/org-1/embed-token/", root, ""), 200)
		w.refused(w.ask("GET", api+"/org-1/", hs256(t, jwt.MapClaims{"tenant_id": "org-2"}), ""),
			403, "denied")
		w.refused(w.ask("GET", api+"/", "", ""), 401, "Missing")
		if a := w.ask("GET", "/api/v1/openapi.json/", "", ""); a.status != 200 {
			t.Errorf("openapi.json/: %d", a.status)
		}
	})
}

func TestEncodedBodiesAreRefusedWithWords(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)
		w.create("org-1")
		for _, path := range []string{api, api + "/org-1/embed-token", api + "/org-1/suspend"} {
			for _, coding := range []string{"gzip", "GZIP", "br", "zstd", "identity, gzip", "x"} {
				w.refused(w.ask("POST", path, root, "\x1f\x8b", "Content-Encoding", coding),
					415, "Content-Encoding")
			}
		}
		w.ok(w.ask("POST", api+"/org-1/embed-token", root, "{}", "Content-Encoding", "Identity"), 200)
	})
}

func TestRefusedRequestsAreCountedAndLogged(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		w.create("org-1")
		other := hs256(t, jwt.MapClaims{"tenant_id": "org-2", "sub": "mallory"})
		for range 20 {
			w.ask("GET", api, "", "")
			w.ask("GET", api+"/org-1", "garbage.of.token", "")
			w.ask("GET", api+"/org-1", other, "")
			w.ask("POST", api, admin(t), "{")
			w.ask("GET", "/api/"+strings.Repeat("x", 9000), "", "")
		}
		samples := w.Workers[0].Samples()
		for _, reason := range []string{"no_token", "invalid_token", "access_denied", "invalid_request",
			"not_found"} {
			if n := samples["papermap_http_refused_total{reason="+reason+"}"]; n != 20 {
				t.Errorf("%s: %v, want 20", reason, n)
			}
		}
		log := w.Logs.String()
		if n := strings.Count(log, "an HTTP request was refused"); n < 10 || n > 15 { // at most 10 a second
			t.Errorf("%d lines", n)
		}
		for _, want := range []string{
			`"reason":"access_denied","method":"GET","path":"/api/v1/dashboards/org-1"`,
			`"actor":"https://issuer mallory"`, `"error":"a part is not base64url"`,
		} {
			if !strings.Contains(log, want) {
				t.Errorf("no %s in the log", want)
			}
		}
		for line := range strings.Lines(log) {
			if len(line) > 2000 {
				t.Errorf("a line of %d bytes", len(line))
			}
		}
	})
}

func TestLogNamesWhoActs(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := hs256(t, jwt.MapClaims{"scope": adminScope, "sub": "ann"})
		w.ok(w.ask("POST", api, root, `{"tenant_id":"org-1","name":"x"}`), 201)
		w.ok(w.ask("POST", api+"/org-1/embed-token", root, ""), 200)
		w.ask("POST", api+"/org-1/suspend", root, "")
		for _, want := range []string{`"msg":"REST action","action":"create","actor":"https://issuer ann"`,
			`"msg":"REST action","action":"suspend","actor":"https://issuer ann","tenant_id":"org-1"`} {
			if !strings.Contains(w.Logs.String(), want) {
				t.Errorf("no %s in the log", want)
			}
		}
		w.Eventually(func() error {
			for line := range strings.Lines(w.Logs.String()) {
				if strings.Contains(line, "minted an embed token") &&
					strings.Contains(line, `"actor":"https://issuer ann"`) {
					return nil
				}
			}
			return fmt.Errorf("the line of the token does not name who asked for it")
		})
	})
}

func TestClientIsTheLastAddressThatIsNoTrustedProxy(t *testing.T) {
	t.Parallel()
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct{ peer, header, want string }{
		{"203.0.113.9:1", "198.51.100.1", "203.0.113.9:1"}, // no proxy of ours
		{"10.0.0.1:1", "", "10.0.0.1:1"},
		{"10.0.0.1:1", "198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:1", "198.51.100.7, 198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:1", "198.51.100.7, 198.51.100.1,10.0.0.2 , 10.0.0.3", "198.51.100.1"},
		{"10.0.0.1:1", "127.0.0.1, evil, 198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:1", "198.51.100.1, evil", "10.0.0.1:1"},
		{"10.0.0.1:1", "198.51.100.1, evil, 10.0.0.2", "10.0.0.2"},
		{"10.0.0.1:1", "10.0.0.9, 10.0.0.2", "10.0.0.9"},
		{"10.0.0.1:1", "198.51.100.1:4711", "198.51.100.1"},
		{"[fd00::1]:1", "[2001:db8::1]:80, fd00::2", "2001:db8::1"},
		{"[::ffff:10.0.0.1]:1", "198.51.100.1", "198.51.100.1"},
		{"pipe", "198.51.100.1", "pipe"},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{"X-Forwarded-For": {c.header}}}
		if got := client(r, proxies); got != c.want {
			t.Errorf("%s, %q: %s, want %s", c.peer, c.header, got, c.want)
		}
		if got := client(r, nil); got != c.peer {
			t.Errorf("without trusted proxies %s is %s", c.peer, got)
		}
	}
	r := &http.Request{RemoteAddr: "10.0.0.1:1",
		Header: http.Header{"X-Forwarded-For": {"1.1.1.1", "2.2.2.2"}}}
	if got := client(r, proxies); got != "2.2.2.2" {
		t.Errorf("of two headers: %s", got)
	}
}

func TestNullIsAbsent(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		root := admin(t)
		const nulls = `,"title":null,"description":null,"workspace_id":null,"created_by":null,` +
			`"dashboard_id":null}`
		for _, token := range []string{root, ofTenant(t, "org-1")} {
			a := w.ok(w.ask("POST", api, token, `{"tenant_id":"org-1","name":"x"`+nulls), 201)
			if a.field("title") != "Dashboard - x" {
				t.Errorf("created %s", a.body)
			}
		}
		w.ok(w.ask("POST", api+"/org-1/embed-token", root, `{"ttl_seconds":null}`), 200)
		for _, required := range []string{`{"tenant_id":null,"name":"x"}`, `{"tenant_id":"x","name":null}`} {
			w.refused(w.ask("POST", api, root, required), 400, "missing")
		}
	})
}
