package simulator

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"papermap-worker/papermap"
)

func TestEmbeddedPageOpensOnlyForAValidToken(t *testing.T) {
	s, address := start(t, Options{})
	revoked := papermap.KeyPair{ID: "ak_revoked", Secret: papermap.NewSecret("sk_revoked")}
	s.AddKey("ws-a", revoked)
	if r := send("POST", address+createPath, good(), createText("Acme <Corp>", "")); r.status != 200 {
		t.Fatal(r)
	}
	s.RevokeKey(revoked.ID)
	id := s.Dashboards()[0].ID
	mint := func(key papermap.KeyPair, workspace, dashboard string, life time.Duration) string {
		token, err := papermap.MintToken(key, workspace, "org-1", dashboard, epoch.Add(life))
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	nineDigits, err := json.Marshal(papermap.Claims{
		APIKeyID: apiKey.ID, WorkspaceID: "ws-a", TenantID: "org-1", DashboardID: id,
		ValidUntil: 999_999_999, Signature: papermap.Sign(apiKey.Secret, "ws-a", 999_999_999),
	})
	if err != nil {
		t.Fatal(err)
	}
	right := mint(apiKey, "ws-a", id, time.Hour)
	for _, c := range []struct {
		name, token, workspace, dashboard string
		status                            int
		message                           string
	}{
		{"right", right, "ws-a", id, 200, "Acme &lt;Corp&gt;"},
		{"embed pair", mint(embedKey, "ws-a", id, time.Second), "ws-a", id, 200, "org-1"},
		{"expiry shown", right, "ws-a", id, 200, epoch.Add(time.Hour).Format(time.RFC3339)},
		{"expired", mint(apiKey, "ws-a", id, 0), "ws-a", id, 401, "expired"},
		{"wrong secret", mint(papermap.KeyPair{ID: apiKey.ID, Secret: papermap.NewSecret("x")}, "ws-a", id,
			time.Hour), "ws-a", id, 401, "wrong signature"},
		{"revoked key", mint(revoked, "ws-a", id, time.Hour), "ws-a", id, 401, "does not have"},
		{"key of another workspace", mint(otherKey, "ws-a", id, time.Hour), "ws-a", id, 401, "does not have"},
		{"nine digits", base64.URLEncoding.EncodeToString(nineDigits), "ws-a", id, 401, "ten-digit"},
		{"no token", "", "ws-a", id, 401, "cannot be read"},
		{"not base64", right + "!", "ws-a", id, 401, "cannot be read"},
		{"other workspace in the address", right, "ws-b", id, 403, "another workspace"},
		{"no workspace in the address", right, "", id, 200, "ws-a"},
		{"no dashboard in the address", right, "ws-a", "", 200, id},
		{"other dashboard in the address", right, "ws-a", "d-2", 403, "another dashboard"},
		{"unknown dashboard", mint(apiKey, "ws-a", "d-2", time.Hour), "ws-a", "d-2", 404,
			"no such dashboard"},
		{"dashboard of another workspace", mint(otherKey, "ws-b", id, time.Hour), "ws-b", id, 404,
			"no such dashboard"},
	} {
		r := send("GET", papermap.EmbedURL(address+"/embedded/dashboard", c.token, c.workspace, c.dashboard),
			nil, "")
		if r.status != c.status || !strings.Contains(r.body, c.message) {
			t.Errorf("%s: got %d %s, want %d and %q", c.name, r.status, r.body, c.status, c.message)
		}
		if strings.Contains(r.body, "Acme") != (c.status == 200) {
			t.Errorf("%s: the title is shown although refused, or the other way round", c.name)
		}
	}
	if n := len(s.Log()); n != 1 {
		t.Errorf("log has %d entries: pages are no API requests", n)
	}
}

func TestEmbeddedPageNeedsNothingButItsToken(t *testing.T) {
	s, address := start(t, Options{})
	if r := send("POST", address+createPath, good(), createText("Acme", "")); r.status != 200 {
		t.Fatal(r)
	}
	token, err := papermap.MintToken(apiKey, "ws-a", "org-1", s.Dashboards()[0].ID, epoch.Add(90*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	page := address + "/embedded/dashboard?embedded-token=" + url.QueryEscape(token)
	r := send("GET", page, nil, "")
	if r.status != 200 || strings.Count(r.body, "<rect ") != 12 ||
		!strings.Contains(r.body, `data-seconds="90"`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	if again := send("GET", page, nil, ""); again.body != r.body {
		t.Error("a dashboard looks different the second time")
	}
}

func TestEmbeddedPageCanBeFramedAndRunsOnlyItsOwnScript(t *testing.T) {
	_, address := start(t, Options{})
	r := send("GET", address+"/embedded/dashboard", nil, "")
	hash := func(tag string) string {
		_, rest, _ := strings.Cut(r.body, "<"+tag+">")
		text, _, found := strings.Cut(rest, "</"+tag+">")
		if !found || strings.Count(r.body, "<"+tag) != 1 {
			t.Errorf("not one %s in the page", tag)
		}
		sum := sha256.Sum256([]byte(text))
		return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
	}
	want := "default-src 'none'; style-src '" + hash("style") + "'; script-src '" + hash("script") + "'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors *"
	if got := r.header.Get("Content-Security-Policy"); got != want {
		t.Errorf("policy does not fit the page:\n got %s\nwant %s", got, want)
	}
	if got := r.header.Get("X-Frame-Options"); got != "" {
		t.Errorf("X-Frame-Options %q forbids frames", got)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
		"X-Content-Type-Options": "nosniff"} {
		if got := r.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
