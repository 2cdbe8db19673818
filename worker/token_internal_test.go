package worker

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
)

// BenchmarkToken compares the handler with the straightforward version of it, both for a tenant in
// memory.
func BenchmarkToken(b *testing.B) {
	const secret = "sk_0123456789abcdef0123456789abcdef"
	ws := papermap.Workspace{
		ID: "7b0c6a52-6a3f-4f4b-9a0c-0d6f3f1f8a11", APIURL: "http://127.0.0.1:1",
		Key:      papermap.KeyPair{ID: "ak_1", Secret: papermap.NewSecret("sk_1")},
		EmbedKey: papermap.KeyPair{ID: "ak_embed_0123456789", Secret: papermap.NewSecret(secret)},
	}
	m := repo.Mapping{
		TenantID: "org-0000123", WorkspaceID: ws.ID, Status: repo.Active,
		DashboardID: "b4a7a2f8-1c55-4a6e-8f0e-0f5a4d1b2c3d",
	}
	request := []byte(`{"tenant_id":"org-0000123"}`)

	b.Run("handler", func(b *testing.B) {
		s := benchmarkService()
		known := &tenant{
			id: m.TenantID, dashboardID: m.DashboardID,
			ws: configured(ws),
		}
		s.cache.setLife(known, time.Now(), time.Hour)
		s.cache.known.put(m.TenantID, known)
		var buffer []byte
		b.ReportAllocs()
		for b.Loop() {
			reply, v, err := s.tokenFromCache(buffer[:0], events.Request{Data: request})
			if v != events.FastAnswered || err != nil {
				b.Fatal(v, err)
			}
			buffer = reply
		}
	})
	b.Run("straightforward", func(b *testing.B) {
		mappings := map[string]repo.Mapping{m.TenantID: m}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := straightforward(context.Background(), mappings, ws, request); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchmarkService() *tokenService {
	limits := tokenLimits{ttl: time.Hour, maxTTL: time.Hour}
	return newTokenService(workspaces{}, nil, newMetrics(Build{}), limits, nil, 100)
}

func configured(ws papermap.Workspace) *workspace {
	return newWorkspaces([]papermap.Workspace{ws}, papermap.ClientOptions{},
		"https://papermap.ai/embedded/dashboard", nil, slog.New(slog.DiscardHandler)).list[0]
}

// straightforward is how one would write it at first.
func straightforward(
	_ context.Context, mappings map[string]repo.Mapping, ws papermap.Workspace, data []byte,
) ([]byte, error) {
	var q struct {
		TenantID string `json:"tenant_id"`
		TTL      *int64 `json:"ttl_seconds"`
	}
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, err
	}
	m, ok := mappings[q.TenantID]
	if !ok {
		return nil, fmt.Errorf("tenant %q is unknown", q.TenantID)
	}
	now := time.Now()
	expires := now.Add(time.Hour).Unix()
	mac := hmac.New(sha256.New, []byte(ws.EmbedKey.Secret.Reveal()))
	fmt.Fprintf(mac, "%s%d", m.WorkspaceID, expires)
	text, err := json.Marshal(map[string]any{
		"api_key_id": ws.EmbedKey.ID, "workspace_id": m.WorkspaceID, "tenant_id": m.TenantID,
		"dashboard_id": m.DashboardID,
		"valid_until":  expires, "signature": hex.EncodeToString(mac.Sum(nil)),
	})
	if err != nil {
		return nil, err
	}
	token := base64.URLEncoding.EncodeToString(text)
	return json.Marshal(map[string]any{
		"token": token, "tenant_id": m.TenantID, "workspace_id": m.WorkspaceID,
		"dashboard_id": m.DashboardID, "expires_at": expires,
		"refresh_after": now.Add(48 * time.Minute).Unix(),
		"embed_url": fmt.Sprintf("https://papermap.ai/embedded/dashboard?embedded-token=%s&workspace-id=%s"+
			"&dashboard-id=%s", url.QueryEscape(token), url.QueryEscape(m.WorkspaceID),
			url.QueryEscape(m.DashboardID)),
	})
}

// The two ways to a token give the same answer.
func TestTokenFromCacheAnswersAsEmbedToken(t *testing.T) {
	s := benchmarkService()
	s.clock = func() time.Time { return time.Unix(1_800_000_000, 0) }
	key := papermap.KeyPair{ID: "ak", Secret: papermap.NewSecret("sk")}
	for _, id := range []string{"org-1", "org-12", "org-123", "müller & <söhne>", `a"b`} {
		ws := papermap.Workspace{ID: "ws \"1\"&", APIURL: "http://127.0.0.1:1", Key: key, EmbedKey: key}
		known := &tenant{id: id, dashboardID: "d/1 2", ws: configured(ws)}
		s.cache.setLife(known, time.Now(), time.Hour)
		s.cache.known.put(id, known)
		token, err := s.embedToken(t.Context(), TokenRequest{TenantID: id})
		if err != nil {
			t.Fatal(err)
		}
		want, err := jsonv2.Marshal(token)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.appendToken(t.Context(), nil, known, tokenRequest{tenantID: []byte(id)}, s.clock())
		if err != nil || string(got) != string(want) {
			t.Errorf("%s, error %v; want %s", got, err, want)
		}
	}
}
