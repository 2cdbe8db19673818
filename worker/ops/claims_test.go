package ops

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// at is the time at which the claims of these tests are read: 2,000,000,000 s.
var at = time.Unix(2_000_000_000, 0)

func TestClaimsAreReadStrictly(t *testing.T) {
	t.Parallel()
	const good = `"exp":2000000060,"iss":"i","aud":"a"`
	for claims, want := range map[string]string{
		`{` + good + `}`: "",
		`{"exp":2000000000.5,"iss":"i","aud":["b","a"]}`:          "",
		`{"exp":1999999996,"iss":"i","aud":"a"}`:                  "", // the clocks' 5 s
		`{` + good + `,"nbf":2000000004}`:                         "",
		`{` + good + `,"nbf":null,"tenants":null,"scope":null}`:   "",
		`{` + good + `,"EXP":1,"Nbf":9e9,"ſcope":7}`:              "", // other claims
		`{"exp":2e9,"iss":"i","aud":"a","x":{"y":[{"z":1}]}}`:     "",
		`{"iss":"i","aud":"a"}`:                                   "exp is missing",
		`{"exp":null,"iss":"i","aud":"a"}`:                        "exp is missing",
		`{"EXP":2000000060,"iss":"i","aud":"a"}`:                  "exp is missing",
		`{"exp":"2000000060","iss":"i","aud":"a"}`:                "exp is not a number",
		`{"exp":true,"iss":"i","aud":"a"}`:                        "exp is not a number",
		`{"exp":[2000000060],"iss":"i","aud":"a"}`:                "exp is not a number",
		`{"exp":1e999,"iss":"i","aud":"a"}`:                       "exp is not a number",
		`{"exp":0,"iss":"i","aud":"a"}`:                           "exp has passed",
		`{"exp":-1,"iss":"i","aud":"a"}`:                          "exp has passed",
		`{"exp":1999999995,"iss":"i","aud":"a"}`:                  "exp has passed",
		`{"exp":1999999990,"EXP":2000000060,"iss":"i","aud":"a"}`: "exp has passed",
		`{"exp":1,"exp":2000000060,"iss":"i","aud":"a"}`:          "duplicate names",
		`{"exp":1,"e\u0078p":2000000060,"iss":"i","aud":"a"}`:     "duplicate names",
		`{` + good + `,"sub":"x","sub":"x"}`:                      "duplicate names",
		`{` + good + `,"x":{"y":1,"y":1}}`:                        "duplicate names",
		`{` + good + `,"other":1,"other":2}`:                      "duplicate names",
		`{` + good + `,"nbf":2000000006}`:                         "nbf has not come",
		`{` + good + `,"nbf":"1"}`:                                "nbf is not a number",
		`{"exp":2000000060,"aud":"a"}`:                            "iss is another",
		`{"exp":2000000060,"iss":"I","aud":"a"}`:                  "iss is another",
		`{"exp":2000000060,"iss":["i"],"aud":"a"}`:                "iss is not a string",
		`{"exp":2000000060,"iss":"i"}`:                            "aud is another",
		`{"exp":2000000060,"iss":"i","aud":"A"}`:                  "aud is another",
		`{"exp":2000000060,"iss":"i","aud":["a b","b"]}`:          "aud is another",
		`{"exp":2000000060,"iss":"i","aud":[]}`:                   "aud is another",
		`{"exp":2000000060,"iss":"i","aud":["a",null]}`:           "aud is not a list of strings",
		`{"exp":2000000060,"iss":"i","aud":["a",["b"]]}`:          "aud is not a list of strings",
		`{"exp":2000000060,"iss":"i","aud":{"a":1}}`:              "aud is not a list",
		`{` + good + `,"sub":7}`:                                  "sub is not a string",
		`{` + good + `,"tenant_id":7}`:                            "tenant_id is not a string",
		`{` + good + `,"tenant_id":["org-1"]}`:                    "tenant_id is not a string",
		`{` + good + `,"tenants":"org-1"}`:                        "tenants is not a list",
		`{` + good + `,"tenants":{"org-1":true}}`:                 "tenants is not a list",
		`{` + good + `,"tenants":[1]}`:                            "tenants is not a list of strings",
		`{` + good + `,"scope":7}`:                                "scope is not a list",
		`{` + good + `,"scope":["papermap:admin",1]}`:             "scope is not a list of strings",
		`{` + good + "}{}":                                        "not a JSON object",
		`[` + good + `]`:                                          "not a JSON object",
		`null`:                                                    "not a JSON object",
		``:                                                        "not a JSON object",
		"{" + good + ",\"sub\":\"\xff\"}":                         "not a JSON object",
		"\uFEFF{" + good + "}":                                    "not a JSON object",
		`{` + good + `,}`:                                         "not a JSON object",
	} {
		_, err := readClaims([]byte(claims), JWT{Issuer: "i", Audience: "a"}, at)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", claims, err, want)
		}
	}
}

func TestScopesAreSeparatedBySpacesOnly(t *testing.T) {
	t.Parallel()
	for scope, want := range map[string]bool{
		`"papermap:admin"`: true, `"a papermap:admin b"`: true, `["a","papermap:admin"]`: true,
		`" papermap:admin  "`: true, `["a papermap:admin"]`: false,
		`"a\u00a0papermap:admin"`: false, `"a\tpapermap:admin"`: false, `"a,papermap:admin"`: false,
		`"a\npapermap:admin"`: false, `"a\u2003papermap:admin"`: false, `"papermap:admin\u0000"`: false,
		`"Papermap:admin"`: false, `"papermap:*"`: false, `"papermap"`: false, `[]`: false, `""`: false,
		`null`: false,
	} {
		for _, name := range []string{"scope", "SCOPE", "ſcope", "scopes", "Scope"} {
			c, err := readClaims(fmt.Appendf(nil, `{"exp":2e9,%q:%s}`, name, scope), JWT{}, at)
			if err != nil || c.admin() != (want && name == "scope") {
				t.Errorf("%s %s: admin %v, %v", name, scope, c.admin(), err)
			}
		}
	}
}

// FuzzReadClaims holds accepted claims against another reader.
func FuzzReadClaims(f *testing.F) {
	for _, seed := range []string{
		`{"exp":2000000060}`, `{"exp":2e9,"scope":"papermap:admin"}`, `{"exp":2e9,"tenants":["a",null]}`,
		`{"exp":1,"exp":2e9}`, `{"exp":null}`, `{"EXP":2e9}`, `{"exp":2e9,"tenant_id":"a","TENANT_ID":"b"}`,
		`{"exp":2e9,"scope":["papermap:admin"]}`, `{"exp":2e9,"scope":"a\u00a0papermap:admin"}`, `{`, `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := readClaims(data, JWT{}, at)
		if err != nil {
			return
		}
		var all map[string]any // exact names
		if err := json.Unmarshal(data, &all); err != nil {
			t.Fatalf("%q is no JSON object: %v", data, err)
		}
		if exp, ok := all["exp"].(float64); !ok || exp <= float64(at.Unix())-5 {
			t.Fatalf("%q is accepted: exp %v", data, all["exp"])
		}
		granted := fmt.Sprint(all["tenant_id"], all["tenants"])
		for _, tenant := range c.tenants {
			if !strings.Contains(granted, tenant) {
				t.Fatalf("%q permits %q", data, tenant)
			}
		}
		if c.admin() {
			scope := fmt.Sprint(all["scope"])
			if !strings.Contains(" "+strings.Trim(scope, "[]")+" ", " papermap:admin ") {
				t.Fatalf("%q is an administrator's", data)
			}
		}
	})
}

func TestTokensWithACriticalHeaderOrAnotherFormAreRefused(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		sign := func(header string) string {
			claims := fmt.Sprintf(
				`{"exp":%d,"iss":"https://issuer","aud":"papermap","scope":"papermap:admin"}`,
				time.Now().Add(time.Hour).Unix())
			b64 := base64.RawURLEncoding.EncodeToString
			text := b64([]byte(header)) + "." + b64([]byte(claims))
			signature, err := jwt.SigningMethodHS256.Sign(text, []byte(secret))
			w.Must(err)
			return text + "." + b64(signature)
		}
		good := sign(`{"alg":"HS256","typ":"JWT","kid":"x","jku":"https://evil.example"}`)
		w.ok(w.ask("GET", api, good, ""), 200)
		for _, bad := range []string{
			sign(`{"alg":"HS256","crit":["exp"],"exp":1}`), sign(`{"alg":"HS256","crit":["x"],"x":1}`),
			sign(`{"alg":"HS256","crit":[]}`), sign(`{"alg":"HS256","crit":null}`),
			sign(`{"alg":"HS256","alg":"none"}`), sign(`{"alg":"hs256"}`),
			sign(`{"ALG":"HS256"}`), sign(`{}`),
			sign(`{"alg":"HS256","kid":7}`), sign(`{"alg":["HS256"]}`), sign(`null`),
			good + ".", good + "=", "." + good, strings.TrimSuffix(good, good[strings.LastIndex(good, "."):]),
			good[:10] + "\n" + good[10:], good + ".x",
		} {
			if strings.ContainsAny(bad, "\n") {
				continue // no header can have it
			}
			w.refused(w.ask("GET", api, bad, ""), 401, "Invalid token")
		}
		if _, err := parseBearer(good[:10] + "\r\n" + good[10:]); err == nil {
			t.Error("a line break is skipped")
		}
		for _, twice := range []string{"Bearer " + good + ", Bearer " + good, "Bearer  x " + good} {
			w.refused(w.ask("GET", api, "", "", "Authorization", twice), 401, "Invalid token")
		}
	})
}

// key is a JSON Web Key of Ed25519 with more members.
func (s signer) key(t *testing.T, members string) string {
	t.Helper()
	return fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q%s}`, s.id,
		base64.RawURLEncoding.EncodeToString(s.public.(ed25519.PublicKey)), members)
}

func TestKeysAreUsedForWhatTheyAreMeant(t *testing.T) {
	t.Parallel()
	s := newSigner(t, "2026")
	for members, want := range map[string]bool{
		``: true, `,"alg":"EdDSA","use":"sig","key_ops":["verify"],"x5t":"x","ext":true`: true,
		`,"key_ops":["sign","verify"]`: true, `,"alg":"ES256"`: false, `,"alg":"RSA-OAEP"`: false,
		`,"use":"enc"`: false, `,"key_ops":["sign"]`: false, `,"key_ops":[]`: false,
		`,"key_ops":"verify"`: false, `,"kid":"other"`: false, `,"use":7`: false,
	} {
		keys, skipped, err := parseKeySet([]byte(`{"keys":[` + s.key(t, members) + `]}`))
		if err != nil || (len(keys) == 1) != want || len(keys)+len(skipped) != 1 {
			t.Errorf("%s: %d keys, skipped %v, %v", members, len(keys), skipped, err)
		}
	}
}

// unknownKeys are keys of a set that cannot be used.
const unknownKeys = `{"kty":"AKP","alg":"ML-DSA-44","kid":"a","pub":"AAAA"},
	{"kty":"EC","crv":"secp256k1","kid":"b","x":"AAAA","y":"AAAA"},
	{"kty":"OKP","crv":"Ed448","kid":"c","x":"AAAA"},{"kty":"OKP","crv":"X25519","kid":"d","x":"AAAA"},
	{"kty":"oct","kid":"e","k":"AAAA"},{"kty":"RSA","kid":"f","n":"AAAA","e":"AQAB"},
	{"kty":"EC","crv":"P-256","kid":"g","x":"AAAA","y":"AAAA"},
	{"kty":7,"kid":"h"},{"kid":"i"},{},"text",7,null,[],{"kty":"RSA","kid":"j","kid":"k"}`

func TestKeysOfUnknownTypesAreSkipped(t *testing.T) {
	t.Parallel()
	old, next := newSigner(t, "2025"), newSigner(t, "2026")
	p := newProvider(t)
	p.serve([]byte(`{"keys":[` + unknownKeys + `,` + old.key(t, "") + `],"more":1}`))
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: p.URL}})
	w.ok(w.ask("GET", api, old.admin(t), ""), 200)
	w.refused(w.ask("GET", api, next.admin(t), ""), 401, "Invalid token")
	if err := (JWT{JWKS: p.URL}).CheckKeySet(t.Context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(w.Logs.String(), "keys that cannot be used; they are skipped") {
		t.Error("the log does not tell of skipped keys")
	}
	p.serve([]byte(`{"keys":[` + unknownKeys + `]}`))
	if err := (JWT{JWKS: p.URL}).CheckKeySet(t.Context()); err == nil {
		t.Error("a set without a usable key is fine")
	}
	for _, no := range []string{`{}`, `[]`, `{"keys":null}`, `{"keys":{}}`, `{"keys":[`, `{"KEYS":[]}`, ``} {
		if _, _, err := parseKeySet([]byte(no)); err == nil {
			t.Errorf("%q is a key set", no)
		}
	}
}

func TestKeysThatCannotBeUsedAreNamedBriefly(t *testing.T) {
	long := strings.Repeat(`\u0001`, 100_000)
	for name, keys := range map[string]string{
		"many":       strings.Repeat(`{},`, 300_000) + `{}`,
		"no objects": strings.Repeat(`0,`, 300_000) + `{}`,
		"a long kty": `{"kid":"a","kty":"` + long + `"}`,
		"a long use": `{"kid":"a","use":"` + long + `"}`,
		"a long alg": `{"kid":"a","kty":"OKP","crv":"Ed25519","x":"` + strings.Repeat("A", 43) +
			`","alg":"` + long + `"}`,
		"a long crv":  `{"kid":"a","kty":"EC","crv":"` + long + `"}`,
		"another crv": `{"kid":"a","kty":"OKP","crv":"` + long + `"}`,
	} {
		found, skipped, err := parseKeySet([]byte(`{"keys":[` + keys + `]}`))
		text := strings.Join(skipped, "; ")
		if err != nil || len(found) > 0 || text == "" || len(text) > 1000 {
			t.Errorf("%s: %d usable, %v, and %d bytes about the others: %.100s",
				name, len(found), err, len(text), text)
		}
	}
}

func FuzzParseKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[` + unknownKeys + `]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, _, err := parseKeySet(data)
		for _, k := range keys {
			if k.id == "" || len(k.algs) == 0 || k.key == nil || err != nil {
				t.Fatalf("%+v, %v", k, err)
			}
			_ = bearer{alg: k.algs[0], signed: "x",
				signature: bytes.Repeat([]byte{1}, 64)}.verifiedBy([]any{k.key})
		}
	})
}

func TestTokensOfAKeySetNeedAKid(t *testing.T) {
	s := newSigner(t, "2026")
	p := newProvider(t)
	p.serve([]byte(`{"keys":[` + s.key(t, "") + `]}`))
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: p.URL, Audience: "papermap"}})
	sign := func(kid any, aud string) string {
		tok := jwt.NewWithClaims(jwt.SigningMethodEdDSA,
			jwt.MapClaims{"scope": adminScope, "exp": time.Now().Add(time.Hour).Unix(), "aud": aud})
		if kid != nil {
			tok.Header["kid"] = kid
		}
		text, err := tok.SignedString(s.private)
		w.Must(err)
		return text
	}
	w.ok(w.ask("GET", api, sign("2026", "papermap"), ""), 200)
	for _, bad := range []string{sign(nil, "papermap"), sign("", "papermap"), sign(2026, "papermap"),
		sign("2025", "papermap"), sign("2026", "other")} {
		w.refused(w.ask("GET", api, bad, ""), 401, "Invalid token")
	}
}
