package ops

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func TestBearerTokensPermitWhatTheySay(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		w.create("org-1")
		w.create("org-2")
		expired := time.Now().Add(-time.Hour).Unix()
		sign := func(c jwt.MapClaims) string { return "Bearer " + hs256(t, c) }
		const missing, wrong, denied = "Missing authorization", "Invalid token", "Access denied"
		show, list := "GET "+api+"/org-1", "GET "+api
		tampered := sign(jwt.MapClaims{"tenant_id": "org-2"})
		head, rest, _ := strings.Cut(tampered, ".")
		_, signature, _ := strings.Cut(rest, ".")
		forged, _ := json.Marshal(jwt.MapClaims{"iss": "https://issuer", "aud": "papermap",
			"exp": time.Now().Add(time.Hour).Unix(), "tenant_id": "org-1"})
		for name, c := range map[string]struct {
			header, request string
			status          int
			detail          string
		}{
			"none":           {"", show, 401, missing},
			"another scheme": {"Basic b3JnLTE6eA==", show, 401, wrong},
			"no token":       {"Bearer", show, 401, wrong},
			"garbage":        {"Bearer garbage", show, 401, wrong},
			"expired": {sign(jwt.MapClaims{"tenant_id": "org-1", "exp": expired}),
				show, 401, wrong},
			"no exp": {sign(jwt.MapClaims{"tenant_id": "org-1", "exp": nil}), show,
				401, wrong},
			"not yet": {sign(jwt.MapClaims{"tenant_id": "org-1",
				"nbf": time.Now().Add(time.Hour).Unix()}), show, 401, wrong},
			"wrong key": {"Bearer " +
				token(t, jwt.SigningMethodHS256, []byte(secret+"x"), jwt.MapClaims{"tenant_id": "org-1"}),
				show, 401, wrong},
			"another HMAC": {"Bearer " +
				token(t, jwt.SigningMethodHS512, []byte(secret), jwt.MapClaims{"tenant_id": "org-1"}), show,
				401, wrong},
			"alg none": {"Bearer " +
				token(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType,
					jwt.MapClaims{"tenant_id": "org-1"}), show, 401, wrong},
			"forged claims": {head + "." + base64.RawURLEncoding.EncodeToString(forged) +
				"." + signature, show, 401, wrong},
			"wrong audience": {sign(jwt.MapClaims{"tenant_id": "org-1", "aud": "other"}),
				show, 401, wrong},
			"no audience": {sign(jwt.MapClaims{"tenant_id": "org-1", "aud": nil}), show,
				401, wrong},
			"wrong issuer": {sign(jwt.MapClaims{"tenant_id": "org-1",
				"iss": "https://other"}), show, 401, wrong},
			"no issuer": {sign(jwt.MapClaims{"tenant_id": "org-1", "iss": nil}), show,
				401, wrong},
			"scope of another type": {sign(jwt.MapClaims{"scope": 7}), show, 401, wrong},
			"no claim":              {sign(nil), show, 403, denied},
			"empty tenant": {sign(jwt.MapClaims{"tenant_id": "", "tenants": []string{""}}),
				show, 403, denied},
			"other tenant": {sign(jwt.MapClaims{"tenant_id": "org-2"}), show, 403, denied},
			"other tenant's token": {sign(jwt.MapClaims{"tenant_id": "org-2"}),
				"POST " + api + "/org-1/embed-token", 403, denied},
			"tenant in another case": {sign(jwt.MapClaims{"tenant_id": "ORG-1"}), show, 403, denied},
			"another scope": {sign(jwt.MapClaims{"scope": "papermap:adminx xpapermap:admin"}), show,
				403, denied},
			"tenant lists": {sign(jwt.MapClaims{"tenant_id": "org-1"}), list, 403, denied},
			"tenant asks for its usage": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"GET /api/v1/usage?tenant_id=org-1", 200, ""},
			"tenant asks for all usage": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"GET /api/v1/usage", 403, denied},
			"tenant asks for another's usage": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"GET /api/v1/usage?tenant_id=org-2", 403, denied},
			"tenant asks for two usages": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"GET /api/v1/usage?tenant_id=org-1&tenant_id=org-2", 403, denied},
			"tenant asks for no one's usage": {sign(jwt.MapClaims{"tenant_id": ""}),
				"GET /api/v1/usage?tenant_id=", 403, denied},
			"tenant deletes": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"DELETE " + api + "/org-1", 403, denied},
			"tenant suspends": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"POST " + api + "/org-1/suspend", 403, denied},
			"tenant resumes": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"POST " + api + "/org-1/resume", 403, denied},
			"tenant creates": {sign(jwt.MapClaims{"tenant_id": "org-1"}), "POST " + api, 403,
				denied},
			"unknown tenant tells nothing": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"GET " + api + "/org-9", 403, denied},
			"own tenant": {sign(jwt.MapClaims{"tenant_id": "org-1"}), show, 200, ""},
			"own tenant's token": {sign(jwt.MapClaims{"tenant_id": "org-1"}),
				"POST " + api + "/org-1/embed-token", 200, ""},
			"tenants list": {sign(jwt.MapClaims{"tenants": []string{"org-2", "org-1"}}),
				show, 200, ""},
			"tenants list without the one": {sign(jwt.MapClaims{"tenants": []string{"org-2", "org-3"}}),
				show, 403, denied},
			"scope as text": {sign(jwt.MapClaims{"scope": "openid papermap:admin"}), list,
				200, ""},
			"scope as list": {sign(jwt.MapClaims{"scope": []string{"openid",
				"papermap:admin"}}), list, 200, ""},
			"admin shows": {sign(jwt.MapClaims{"scope": "papermap:admin"}), show, 200, ""},
			"scheme in another case": {"b" +
				strings.TrimPrefix(sign(jwt.MapClaims{"tenant_id": "org-1"}), "B"), show, 200, ""},
			"audience of several": {sign(jwt.MapClaims{"tenant_id": "org-1",
				"aud": []string{"other", "papermap"}}), show, 200, ""},
			"expired within the clocks' 5 s": {sign(jwt.MapClaims{"tenant_id": "org-1",
				"exp": time.Now().Add(-2 * time.Second).Unix()}), show, 200, ""},
		} {
			method, path, _ := strings.Cut(c.request, " ")
			var headers []string
			if c.header != "" {
				headers = []string{"Authorization", c.header}
			}
			a := w.ask(method, path, "", "", headers...)
			if a.status != c.status || c.status != 200 && a.field("detail") != c.detail {
				t.Errorf("%s: %d %q, want %d %q", name, a.status, a.field("detail"), c.status, c.detail)
			}
			if c.status == 200 {
				w.ok(a, 200)
			} else {
				w.refused(a, c.status, c.detail)
			}
		}
	})
}

func TestKeySetsAcceptOnlyTheirOwnAlgorithms(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	path := jwks(t, map[string]crypto.PublicKey{"RS256": &rsaKey.PublicKey, "ES256": &ecKey.PublicKey,
		"EdDSA": edPublic})
	virtual(t, JWT{JWKS: path}, func(t *testing.T, w *world) {
		scope := jwt.MapClaims{"scope": adminScope}
		w.ok(w.ask("GET", api, token(t, jwt.SigningMethodRS256, rsaKey, scope), ""), 200)
		w.ok(w.ask("GET", api, token(t, jwt.SigningMethodES256, ecKey, scope), ""), 200)
		w.ok(w.ask("GET", api, token(t, jwt.SigningMethodEdDSA, edKey, scope), ""), 200)

		// What is public of the keys must not work as a secret.
		der, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
		w.Must(err)
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		file, err := os.ReadFile(path)
		w.Must(err)
		for name, key := range map[string][]byte{"PEM": text, "DER": der, "modulus": rsaKey.N.Bytes(),
			"the file": file, "Ed25519": edPublic, "our secret": []byte(secret)} {
			forged := jwt.NewWithClaims(jwt.SigningMethodHS256,
				jwt.MapClaims{"scope": adminScope, "exp": time.Now().Add(time.Hour).Unix()})
			for _, kid := range []any{nil, "RS256", "EdDSA"} {
				if forged.Header["kid"] = kid; kid == nil {
					delete(forged.Header, "kid")
				}
				signed, err := forged.SignedString(key)
				w.Must(err)
				a := w.ask("GET", api, signed, "")
				if w.refused(a, 401, "Invalid token"); t.Failed() {
					t.Fatalf("HS256 with %s, kid %v", name, kid)
				}
			}
		}
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		w.Must(err)
		w.refused(w.ask("GET", api, token(t, jwt.SigningMethodES256, other, scope), ""), 401, "Invalid token")
		w.refused(w.ask("GET", api, token(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, scope),
			""), 401, "Invalid token")

		if _, err := Start(Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: path + ".none"}}, w.Workers[0].Worker,
			slog.New(slog.DiscardHandler)); err == nil ||
			!strings.Contains(err.Error(), "HTTP_JWT_JWKS") {
			t.Errorf("a key set that is not there: %v, want an error that names HTTP_JWT_JWKS", err)
		}
	})
}

func TestCORSAllowsListedOriginsOnly(t *testing.T) {
	virtual(t, secretOnly.JWT, func(t *testing.T, w *world) {
		preflight := []string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers",
			"authorization"}
		for from, want := range map[string]string{
			origin: origin, "": "", "https://evil.example.com": "", "http://app.example.com": "",
			origin + ".evil.com": "", "null": "",
		} {
			for _, a := range []answer{
				w.ask("GET", api, admin(t), "", "Origin", from),
				w.ask("GET", api, "", "", "Origin", from), // so that the page sees the 401
			} {
				if got := a.header.Get("Access-Control-Allow-Origin"); got != want ||
					a.header.Get("Vary") != "Origin" ||
					a.header.Get("Access-Control-Allow-Credentials") != "" {
					t.Errorf("%d for origin %q: allowed %q, want %q; Vary %q", a.status, from, got, want,
						a.header.Get("Vary"))
				}
			}
			a := w.ask("OPTIONS", api+"/org-1/embed-token", "", "", append(preflight, "Origin", from)...)
			methods, headers := a.header.Get("Access-Control-Allow-Methods"),
				a.header.Get("Access-Control-Allow-Headers")
			if a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != want ||
				(methods != "") != (want != "") || (headers != "") != (want != "") {
				t.Errorf("preflight for origin %q: %d %v", from, a.status, a.header)
			}
			if want != "" &&
				(methods != "GET, POST, PUT, DELETE" || headers != "Authorization, Content-Type") {
				t.Errorf("preflight allows %q and %q", methods, headers)
			}
		}
	})
}
