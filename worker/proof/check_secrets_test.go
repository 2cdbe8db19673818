package proof

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"

	"papermap-worker/papermap"
)

func TestCheckFindsSecretViolations(t *testing.T) {
	testViolations(t, []violation{
		{NoSecret, "a planted secret in the log", func(s *builder) { s.Texts["log"] += " a planted/secret" }},
		{NoSecret, "a workspace's secret in hex in an error", func(s *builder) {
			secret := []byte(workspace.Key.Secret.Reveal())
			s.lastAttempt("bad").Error = "status 422: " + hex.EncodeToString(secret)
		}},
		{NoSecret, "in base64, inside of something longer, in a dead letter's header", func(s *builder) {
			s.deadLetter("INVALID_FIELD").Header.Set("Papermap-Original-X",
				base64.StdEncoding.EncodeToString([]byte("user:"+workspace.Key.Secret.Reveal()+" etc")))
		}},
		{NoSecret, "URL-encoded, in an event out", func(s *builder) {
			s.Outbox[0].Data = []byte(strings.Replace(string(s.Outbox[0].Data), "{",
				`{"at":"`+url.QueryEscape("a planted/secret")+`",`, 1))
			s.Out[0].Data = s.Outbox[0].Data
		}},
		{NoSecret, "a token's signature inside of something longer, in the log", func(s *builder) {
			claims, err := papermap.ParseToken(s.Tokens[0].Text)
			if err != nil {
				panic(err)
			}
			s.Texts["log"] += `{"header":"X-Signature-` + claims.Signature + `0"}`
		}},
		{NoSecret, "a token in a request to Papermap", func(s *builder) {
			s.Requests[0].Title = s.Tokens[0].Text
		}},
	})
}

// Every form in which a secret may be written is found wherever in the longer text it stands.
func TestCheckFindsSecretsInEveryForm(t *testing.T) {
	const secret = "sk_live/ä?+8"
	for _, before := range []string{"", "1", "12", "123", "a longer beginning"} {
		for _, after := range []string{"", "1", "12", "and an end"} {
			text := []byte(before + secret + after)
			for name, written := range map[string]string{
				"raw": string(text), "hex": hex.EncodeToString(text),
				"base64":          base64.StdEncoding.EncodeToString(text),
				"URL-safe base64": base64.RawURLEncoding.EncodeToString(text),
				"query":           url.QueryEscape(string(text)), "path": url.PathEscape(string(text)),
			} {
				h := History{Canaries: []string{secret}, Texts: map[string]string{"log": "…" + written + "…"}}
				if found := Check(h); len(found) == 0 || found[0].Invariant != NoSecret ||
					!strings.Contains(found[0].Detail, `Texts["log"]`) {
					t.Errorf("%s of %q: %v", name, text, found)
				}
			}
		}
	}
	other := History{Canaries: []string{secret}, Texts: map[string]string{"log": "sk_live/ä?+7"}}
	if found := Check(other); len(found) > 0 {
		t.Error(found)
	}
}
