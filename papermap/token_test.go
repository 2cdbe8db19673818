package papermap

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"
	"time"
)

type vectors struct {
	Signatures []struct {
		Secret     string `json:"secret_key"`
		Workspace  string `json:"workspace_id"`
		ValidUntil string `json:"valid_until"`
		Signature  string
	}
	Tokens []struct {
		KeyID      string `json:"api_key_id"`
		Secret     string `json:"secret_key"`
		Workspace  string `json:"workspace_id"`
		Tenant     string `json:"tenant_id"`
		Dashboard  string `json:"dashboard_id"`
		ValidUntil int64  `json:"valid_until"`
		Token      string
		EmbedURL   string `json:"embed_url"`
	}
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	data, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Signatures) == 0 || len(v.Tokens) == 0 {
		t.Fatal("no vectors read")
	}
	return v
}

func TestSignatureEqualsEveryGoldenVector(t *testing.T) {
	for _, v := range readVectors(t).Signatures {
		until, err := strconv.ParseInt(v.ValidUntil, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if got := Sign(NewSecret(v.Secret), v.Workspace, until); got != v.Signature {
			t.Errorf("Sign(…, %q, %d) = %s, want %s", v.Workspace, until, got, v.Signature)
		}
	}
}

func TestTokenAndEmbedURLEqualEveryGoldenVector(t *testing.T) {
	for _, v := range readVectors(t).Tokens {
		key := KeyPair{ID: v.KeyID, Secret: NewSecret(v.Secret)}
		token, err := MintToken(key, v.Workspace, v.Tenant, v.Dashboard, time.Unix(v.ValidUntil, 0))
		if err != nil {
			t.Fatal(err)
		}
		if token != v.Token {
			t.Errorf("token for %q:\n got %s\nwant %s", v.Tenant, token, v.Token)
		}
		if got := EmbedURL("https://papermap.ai/embedded/dashboard", token, v.Workspace,
			v.Dashboard); got != v.EmbedURL {
			t.Errorf("embed address for %q:\n got %s\nwant %s", v.Tenant, got, v.EmbedURL)
		}
		claims, err := ParseToken(token)
		if err != nil {
			t.Fatal(err)
		}
		if claims.TenantID != v.Tenant || claims.DashboardID != v.Dashboard ||
			claims.WorkspaceID != v.Workspace {
			t.Errorf("token read back as %+v", claims)
		}
		if err := claims.Verify(key, time.Unix(v.ValidUntil-1, 0)); err != nil {
			t.Errorf("one second before expiry: %v", err)
		}
		if claims.Verify(key, time.Unix(v.ValidUntil, 0)) == nil {
			t.Error("accepted at its expiry")
		}
		claims.ValidUntil++
		if claims.Verify(key, time.Unix(v.ValidUntil-1, 0)) == nil {
			t.Error("accepted with a changed expiry")
		}
	}
}

func TestTokenIsRefusedWithAnExpiryThatIsNotTenDigits(t *testing.T) {
	for _, until := range []int64{-1, 0, 999999999, 10000000000} {
		if _, err := MintToken(KeyPair{}, "w", "t", "d", time.Unix(until, 0)); err == nil {
			t.Errorf("minted a token until %d", until)
		}
	}
}
