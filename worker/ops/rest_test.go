package ops

import (
	"bytes"
	"context"
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
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"papermap-worker/events"
	"papermap-worker/events/embedded"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
)

func TestMain(m *testing.M) {
	trusted := httptest.NewTLSServer(nil) // all of them show one certificate
	dir, err := os.MkdirTemp("", "papermap-ops-")
	if err == nil {
		file := filepath.Join(dir, "ca.pem")
		err = errors.Join(os.Setenv("SSL_CERT_FILE", file),
			os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: trusted.Certificate().Raw}), 0o600))
	}
	trusted.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

const (
	secret = "jwt_canary_0123456789abcdef01234567"
	origin = "https://app.example.com"
	api    = "/api/v1/dashboards"
)

// secretOnly is a configuration with HS256.
var secretOnly = Config{Addr: "127.0.0.1:0", JWT: JWT{Secret: secret, Issuer: "https://issuer", Audience: "papermap"}, Origins: []string{origin}}

// world is a worker with everything that it works with, and its HTTP side.
type world struct {
	t      *testing.T
	sim    *simulator.Simulator
	worker *worker.Worker
	sql    *sqlx.DB
	logs   *logs
	base   string          // address of the REST API
	health string          // address of health
	seen   map[string]bool // answers that were held against openapi.json: method, path and status
}

// logs keeps what was logged, at every level.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start starts a worker and its HTTP side, and stops them when the test ends. Then the log must know no secret.
func start(t *testing.T, c Config) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, logs: &logs{}, seen: map[string]bool{}}
	workspace := papermap.Workspace{
		ID: "ws-a", Key: papermap.KeyPair{ID: "ak_a", Secret: papermap.NewSecret("sk_canary_api")}, EmbedKey: papermap.KeyPair{ID: "ak_embed", Secret: papermap.NewSecret("sk_canary_embed")},
	}
	w.sim = simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}, Seed: 1})
	papermapAPI, err := simulator.Serve(w.sim, "127.0.0.1:0")
	w.must(err)
	t.Cleanup(papermapAPI.Close)
	workspace.APIURL = papermapAPI.URL
	server, err := embedded.Start(filepath.Join(dir, "jetstream"), 0)
	w.must(err)
	t.Cleanup(func() { server.Close() })
	nc, err := nats.Connect(server.URL())
	w.must(err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	w.must(err)
	t.Cleanup(func() { schematest.CheckStream(t, js) })

	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	file := filepath.Join(dir, "papermap.db")
	db, err := repo.Open(t.Context(), "sqlite:"+file)
	w.must(err)
	t.Cleanup(func() { _ = db.Close() })
	_, err = db.Migrate(t.Context())
	w.must(err)
	w.sql, err = sqlx.Open("sqlite3", "file:"+file+"?_busy_timeout=5000")
	w.must(err)
	t.Cleanup(func() { _ = w.sql.Close() })
	bus, err := events.Connect(events.Options{
		URL: server.URL(), Subjects: events.Subjects{Prefix: "papermap"}, Stream: "PAPERMAP", ManageStreams: true, Replicas: 1,
		MaxAge: time.Hour, Name: "worker", Wait: true,
	}, log)
	w.must(err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		bus.Close(ctx)
	})
	w.worker = worker.New(worker.Config{
		Workspaces: []papermap.Workspace{workspace}, EmbedURL: papermapAPI.URL + "/embedded/dashboard", Timeout: 19 * time.Second,
		TokenTTL: time.Hour, TokenMaxTTL: 2 * time.Hour, TokenAudit: 100, Concurrency: 64, MaxAttempts: 10, Grace: time.Second, Version: "0.0.0-test",
	}, db, bus, log)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		if err := w.worker.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ran
	})

	served, err := Start(c, w.worker, log)
	w.must(err)
	w.base, w.health = "http://"+served.servers[0].Addr, "http://"+served.Addr()
	t.Cleanup(func() {
		client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		served.Close(ctx)
		for _, canary := range []string{secret, "sk_canary", "eyJ"} {
			if strings.Contains(w.logs.String(), canary) {
				t.Errorf("the log has %q in it", canary)
			}
		}
	})
	w.eventually(func() error {
		if s := w.worker.State(t.Context()); !s.Ready {
			return fmt.Errorf("the worker is not ready: %v", s.Reasons)
		}
		return nil
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) eventually(check func() error) {
	w.t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	deadline := time.Now().Add(time.Minute)
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
		<-look.C
	}
}

// answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) field(name string) string {
	var fields map[string]any
	_ = json.Unmarshal(a.body, &fields)
	text, _ := fields[name].(string)
	return text
}

var client = &http.Client{Transport: &http.Transport{}}

// ask sends a request. headers are pairs. An answer of a documented route must be as openapi.json says.
func (w *world) ask(method, path, token, body string, headers ...string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path, strings.NewReader(body))
	w.must(err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	w.must(err)
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(resp.Body)
	w.must(err)
	for _, r := range routes {
		if r.method == method && fits(r.path, req.URL.EscapedPath()) {
			w.checkDocumented(r, a)
		}
	}
	return a
}

// fits says whether a path is of a route.
func fits(route, path string) bool {
	want, got := strings.Split(route, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if want[i] != got[i] && !strings.HasPrefix(want[i], "{") {
			return false
		}
	}
	return true
}

// refused checks that the answer is the problem with this status and a detail that has the text in it.
func (w *world) refused(a answer, status int, detail string) {
	w.t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	err := json.Unmarshal(a.body, &p)
	if err != nil || a.status != status || p.Status != status || p.Type != "about:blank" || p.Title != http.StatusText(status) || !strings.Contains(p.Detail, detail) ||
		a.header.Get("Content-Type") != "application/problem+json" {
		w.t.Errorf("%d %s %s (%v), want the problem %d with %q", a.status, a.header.Get("Content-Type"), a.body, err, status, detail)
	}
	want := ""
	if status == http.StatusUnauthorized {
		want = "Bearer"
	}
	if got := a.header.Get("WWW-Authenticate"); got != want {
		w.t.Errorf("WWW-Authenticate %q, want %q", got, want)
	}
}

func (w *world) ok(a answer, status int) answer {
	w.t.Helper()
	if a.status != status {
		w.t.Fatalf("%d %s, want %d", a.status, a.body, status)
	}
	if got := a.header.Get("Cache-Control"); got != "no-store" {
		w.t.Errorf("Cache-Control %q, want no-store", got)
	}
	return a
}

// token signs claims on top of those that every good token has; nil takes one away.
func token(t *testing.T, method jwt.SigningMethod, key any, changes jwt.MapClaims) string {
	t.Helper()
	c := jwt.MapClaims{"iss": "https://issuer", "aud": "papermap", "exp": time.Now().Add(time.Hour).Unix()}
	for name, value := range changes {
		c[name] = value
		if value == nil {
			delete(c, name)
		}
	}
	tok := jwt.NewWithClaims(method, c)
	if method != jwt.SigningMethodHS256 {
		tok.Header["kid"] = method.Alg()
	}
	text, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func hs256(t *testing.T, changes jwt.MapClaims) string {
	return token(t, jwt.SigningMethodHS256, []byte(secret), changes)
}

func admin(t *testing.T) string { return hs256(t, jwt.MapClaims{"scope": "read papermap:admin"}) }

func (w *world) create(tenant string) answer {
	w.t.Helper()
	body, err := json.Marshal(map[string]string{"tenant_id": tenant, "name": tenant})
	w.must(err)
	return w.ok(w.ask("POST", api, admin(w.t), string(body)), http.StatusCreated)
}

// becomes waits until the tenant's mapping shows the status.
func (w *world) becomes(tenant, status string) {
	w.t.Helper()
	w.eventually(func() error {
		if got := w.ask("GET", api+"/"+url.PathEscape(tenant), admin(w.t), "").field("status"); got != status {
			return fmt.Errorf("%s is %q, want %q", tenant, got, status)
		}
		return nil
	})
}

func TestBearerTokensPermitWhatTheySay(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	w.create("org-1")
	w.create("org-2")
	expired := time.Now().Add(-time.Hour).Unix()
	sign := func(c jwt.MapClaims) string { return "Bearer " + hs256(t, c) }
	const missing, wrong, denied = "Missing authorization", "Invalid token", "Access denied"
	show, list := "GET "+api+"/org-1", "GET "+api
	tampered := sign(jwt.MapClaims{"tenant_id": "org-2"})
	head, rest, _ := strings.Cut(tampered, ".")
	_, signature, _ := strings.Cut(rest, ".")
	forged, _ := json.Marshal(jwt.MapClaims{"iss": "https://issuer", "aud": "papermap", "exp": time.Now().Add(time.Hour).Unix(), "tenant_id": "org-1"})
	for name, c := range map[string]struct {
		header, request string
		status          int
		detail          string
	}{
		"none":                           {"", show, 401, missing},
		"another scheme":                 {"Basic b3JnLTE6eA==", show, 401, wrong},
		"no token":                       {"Bearer", show, 401, wrong},
		"garbage":                        {"Bearer garbage", show, 401, wrong},
		"expired":                        {sign(jwt.MapClaims{"tenant_id": "org-1", "exp": expired}), show, 401, wrong},
		"no exp":                         {sign(jwt.MapClaims{"tenant_id": "org-1", "exp": nil}), show, 200, ""},
		"not yet":                        {sign(jwt.MapClaims{"tenant_id": "org-1", "nbf": time.Now().Add(time.Hour).Unix()}), show, 401, wrong},
		"wrong key":                      {"Bearer " + token(t, jwt.SigningMethodHS256, []byte(secret+"x"), jwt.MapClaims{"tenant_id": "org-1"}), show, 401, wrong},
		"another HMAC":                   {"Bearer " + token(t, jwt.SigningMethodHS512, []byte(secret), jwt.MapClaims{"tenant_id": "org-1"}), show, 401, wrong},
		"alg none":                       {"Bearer " + token(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"tenant_id": "org-1"}), show, 401, wrong},
		"forged claims":                  {head + "." + base64.RawURLEncoding.EncodeToString(forged) + "." + signature, show, 401, wrong},
		"wrong audience":                 {sign(jwt.MapClaims{"tenant_id": "org-1", "aud": "other"}), show, 401, wrong},
		"no audience":                    {sign(jwt.MapClaims{"tenant_id": "org-1", "aud": nil}), show, 401, wrong},
		"wrong issuer":                   {sign(jwt.MapClaims{"tenant_id": "org-1", "iss": "https://other"}), show, 401, wrong},
		"no issuer":                      {sign(jwt.MapClaims{"tenant_id": "org-1", "iss": nil}), show, 401, wrong},
		"scope of another type":          {sign(jwt.MapClaims{"scope": 7}), show, 401, wrong},
		"no claim":                       {sign(nil), show, 403, denied},
		"empty tenant":                   {sign(jwt.MapClaims{"tenant_id": "", "tenants": []string{""}}), show, 403, denied},
		"other tenant":                   {sign(jwt.MapClaims{"tenant_id": "org-2"}), show, 403, denied},
		"other tenant's token":           {sign(jwt.MapClaims{"tenant_id": "org-2"}), "POST " + api + "/org-1/embed-token", 403, denied},
		"tenant in another case":         {sign(jwt.MapClaims{"tenant_id": "ORG-1"}), show, 403, denied},
		"another scope":                  {sign(jwt.MapClaims{"scope": "papermap:adminx xpapermap:admin"}), show, 403, denied},
		"tenant lists":                   {sign(jwt.MapClaims{"tenant_id": "org-1"}), list, 403, denied},
		"tenant asks for usage":          {sign(jwt.MapClaims{"tenant_id": "org-1"}), "GET /api/v1/usage?tenant_id=org-1", 403, denied},
		"tenant deletes":                 {sign(jwt.MapClaims{"tenant_id": "org-1"}), "DELETE " + api + "/org-1", 403, denied},
		"tenant suspends":                {sign(jwt.MapClaims{"tenant_id": "org-1"}), "POST " + api + "/org-1/suspend", 403, denied},
		"tenant resumes":                 {sign(jwt.MapClaims{"tenant_id": "org-1"}), "POST " + api + "/org-1/resume", 403, denied},
		"tenant creates":                 {sign(jwt.MapClaims{"tenant_id": "org-1"}), "POST " + api, 403, denied},
		"unknown tenant tells nothing":   {sign(jwt.MapClaims{"tenant_id": "org-1"}), "GET " + api + "/org-9", 403, denied},
		"own tenant":                     {sign(jwt.MapClaims{"tenant_id": "org-1"}), show, 200, ""},
		"own tenant's token":             {sign(jwt.MapClaims{"tenant_id": "org-1"}), "POST " + api + "/org-1/embed-token", 200, ""},
		"tenants list":                   {sign(jwt.MapClaims{"tenants": []string{"org-2", "org-1"}}), show, 200, ""},
		"tenants list without the one":   {sign(jwt.MapClaims{"tenants": []string{"org-2", "org-3"}}), show, 403, denied},
		"scope as text":                  {sign(jwt.MapClaims{"scope": "openid papermap:admin"}), list, 200, ""},
		"scope as list":                  {sign(jwt.MapClaims{"scope": []string{"openid", "papermap:admin"}}), list, 200, ""},
		"admin shows":                    {sign(jwt.MapClaims{"scope": "papermap:admin"}), show, 200, ""},
		"scheme in another case":         {"b" + strings.TrimPrefix(sign(jwt.MapClaims{"tenant_id": "org-1"}), "B"), show, 200, ""},
		"audience of several":            {sign(jwt.MapClaims{"tenant_id": "org-1", "aud": []string{"other", "papermap"}}), show, 200, ""},
		"expired within the clocks' 5 s": {sign(jwt.MapClaims{"tenant_id": "org-1", "exp": time.Now().Add(-2 * time.Second).Unix()}), show, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			method, path, _ := strings.Cut(c.request, " ")
			var headers []string
			if c.header != "" {
				headers = []string{"Authorization", c.header}
			}
			a := w.ask(method, path, "", "", headers...)
			if c.status == 200 {
				w.ok(a, 200)
				return
			}
			w.refused(a, c.status, c.detail)
			if got := a.field("detail"); got != c.detail {
				t.Errorf("detail %q, want %q", got, c.detail)
			}
		})
	}
}

// jwks writes a key set of public keys, each named as its algorithm.
func jwks(t *testing.T, keys map[string]crypto.PublicKey) string {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	var list []map[string]string
	for alg, key := range keys {
		k := map[string]string{"kid": alg, "alg": alg, "use": "sig"}
		switch key := key.(type) {
		case *rsa.PublicKey:
			k["kty"], k["n"], k["e"] = "RSA", b64(key.N.Bytes()), "AQAB"
		case *ecdsa.PublicKey:
			point, err := key.Bytes() // 4, x, y
			if err != nil {
				t.Fatal(err)
			}
			k["kty"], k["crv"], k["x"], k["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
		case ed25519.PublicKey:
			k["kty"], k["crv"], k["x"] = "OKP", "Ed25519", b64(key)
		}
		list = append(list, k)
	}
	data, err := json.Marshal(map[string]any{"keys": list})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeySetsTakeTheirOwnAlgorithmsAlone(t *testing.T) {
	t.Parallel()
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
	path := jwks(t, map[string]crypto.PublicKey{"RS256": &rsaKey.PublicKey, "ES256": &ecKey.PublicKey, "EdDSA": edPublic})
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: path}})
	scope := jwt.MapClaims{"scope": adminScope}
	w.ok(w.ask("GET", api, token(t, jwt.SigningMethodRS256, rsaKey, scope), ""), 200)
	w.ok(w.ask("GET", api, token(t, jwt.SigningMethodES256, ecKey, scope), ""), 200)
	w.ok(w.ask("GET", api, token(t, jwt.SigningMethodEdDSA, edKey, scope), ""), 200)

	// What everybody knows of the keys must not do as a secret.
	der, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	w.must(err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	file, err := os.ReadFile(path)
	w.must(err)
	for name, key := range map[string][]byte{"PEM": text, "DER": der, "modulus": rsaKey.N.Bytes(), "the file": file, "Ed25519": edPublic, "our secret": []byte(secret)} {
		forged := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"scope": adminScope, "exp": time.Now().Add(time.Hour).Unix()})
		for _, kid := range []any{nil, "RS256", "EdDSA"} {
			if forged.Header["kid"] = kid; kid == nil {
				delete(forged.Header, "kid")
			}
			signed, err := forged.SignedString(key)
			w.must(err)
			a := w.ask("GET", api, signed, "")
			if w.refused(a, 401, "Invalid token"); t.Failed() {
				t.Fatalf("HS256 with %s, kid %v", name, kid)
			}
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	w.refused(w.ask("GET", api, token(t, jwt.SigningMethodES256, other, scope), ""), 401, "Invalid token")
	w.refused(w.ask("GET", api, token(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, scope), ""), 401, "Invalid token")

	if _, err := Start(Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: path + ".none"}}, w.worker, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "HTTP_JWT_JWKS") {
		t.Errorf("a key set that is not there: %v, want an error that names HTTP_JWT_JWKS", err)
	}
}

func TestEachRouteDoesItsWorkAndAnswersAsDocumented(t *testing.T) {
	t.Parallel()
	w, root := start(t, secretOnly), admin(t)

	a := w.ok(w.ask("POST", api, root, `{"tenant_id":"org-1","name":"Acme","description":"the first"}`), 201)
	if got, want := a.header.Get("Location"), api+"/org-1"; got != want {
		t.Errorf("Location %q, want %q", got, want)
	}
	if a.field("title") != "Dashboard - Acme" || a.field("status") != "active" || a.field("workspace_id") != "ws-a" || a.field("dashboard_id") == "" {
		t.Errorf("created %s", a.body)
	}
	if shown := w.ok(w.ask("GET", a.header.Get("Location"), root, ""), 200); !bytes.Equal(bytes.TrimSpace(shown.body), bytes.TrimSpace(a.body)) {
		t.Errorf("shown %s, created %s", shown.body, a.body)
	}
	if again := w.ok(w.ask("POST", api, root, `{"tenant_id":"org-1","name":"Acme"}`), 201); again.field("dashboard_id") != a.field("dashboard_id") {
		t.Errorf("created again: %s, before %s", again.body, a.body)
	}
	var list struct{ Dashboards []worker.Dashboard }
	if w.must(json.Unmarshal(w.ok(w.ask("GET", api+"?status=active", root, ""), 200).body, &list)); len(list.Dashboards) != 1 || list.Dashboards[0].TenantID != "org-1" {
		t.Errorf("listed %+v", list)
	}
	if w.must(json.Unmarshal(w.ok(w.ask("GET", api+"?status=failed", root, ""), 200).body, &list)); len(list.Dashboards) != 0 {
		t.Errorf("listed as failed %+v", list)
	}
	var minted worker.EmbedToken
	w.must(json.Unmarshal(w.ok(w.ask("POST", api+"/org-1/embed-token", root, `{"ttl_seconds":60}`), 200).body, &minted))
	if left := time.Until(time.Unix(minted.ExpiresAt, 0)); left > time.Minute || left < 0 || minted.TenantID != "org-1" {
		t.Errorf("minted %+v", minted)
	}
	page, err := client.Get(minted.EmbedURL)
	w.must(err)
	if page.Body.Close(); page.StatusCode != 200 {
		t.Errorf("Papermap answers %d to the address for the iframe", page.StatusCode)
	}

	_, err = w.sql.Exec(`INSERT INTO tenant_usage (workspace_id, tenant_id, period, credits, requests, synced_at)
		VALUES ('ws-a', 'org-1', '2025-01', '1.50', 3, '2025-02-01T00:00:00.000Z'), ('ws-a', 'org-2', '2025-01', '7', 4, '2025-02-01T00:00:00.000Z')`)
	w.must(err)
	var usage worker.Usage
	w.must(json.Unmarshal(w.ok(w.ask("GET", "/api/v1/usage?tenant_id=org-1&workspace_id=ws-a&from_period=2025-01&to_period=2025-01&page=1&per_page=1", root, ""), 200).body, &usage))
	if usage.Total != 1 || usage.Page != 1 || len(usage.Usage) != 1 || usage.Usage[0].Credits != "1.50" || usage.Usage[0].Requests != 3 {
		t.Errorf("usage %+v", usage)
	}

	w.ok(w.ask("POST", api+"/org-1/suspend", root, `{"reason":"unpaid"}`), 202)
	w.becomes("org-1", "suspended")
	w.eventually(func() error {
		if got := w.ask("POST", api+"/org-1/embed-token", root, ""); got.status != 403 || got.field("code") != "TENANT_SUSPENDED" {
			return fmt.Errorf("a suspended tenant gets %d %s", got.status, got.field("code"))
		}
		return nil
	})
	w.ok(w.ask("POST", api+"/org-1/resume", root, ""), 202)
	w.becomes("org-1", "active")
	if id := w.ok(w.ask("DELETE", api+"/org-1", root, ""), 202).field("event_id"); id == "" {
		t.Error("no event_id")
	}
	w.becomes("org-1", "deleted")
	w.eventually(func() error {
		if got := w.ask("POST", api+"/org-1/embed-token", root, ""); got.status != 410 || got.field("code") != "TENANT_DELETED" {
			return fmt.Errorf("a deleted tenant gets %d %s", got.status, got.field("code"))
		}
		return nil
	})
	for _, r := range routes {
		done := false
		for _, status := range []int{200, 201, 202} {
			done = done || w.seen[fmt.Sprint(r.method, " ", r.path, " ", status)]
		}
		if !done {
			t.Errorf("%s %s has not done its work once", r.method, r.path)
		}
	}
}

func TestMistakesOfCallersAreNamed(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	root := admin(t)
	w.create("org-1")
	large := `{"reason":"` + strings.Repeat("x", maxBody) + `"}`
	for _, c := range []struct {
		request, body string
		status        int
		detail        string
	}{
		{"POST " + api, "", 400, "missing"},
		{"POST " + api, "{", 400, "JSON"},
		{"POST " + api, "[]", 400, "not a JSON object"},
		{"POST " + api, `{"tenant_id":"x"}`, 400, "name"},
		{"POST " + api, `{"tenant_id":"x","name":5}`, 400, "name"},
		{"POST " + api, `{"tenant_id":"x","Name":"x"}`, 400, "case"},
		{"POST " + api, `{"tenant_id":"x","tenant_id":"y","name":"x"}`, 400, "same name twice"},
		{"POST " + api, `{"tenant_id":" x","name":"x"}`, 400, "white space"},
		{"POST " + api, `{"tenant_id":"x","name":"x","workspace_id":"ws-z"}`, 400, `workspace "ws-z" is not configured`},
		{"POST " + api, large, 413, "larger than 65536 bytes"},
		{"GET " + api + "?status=gone", "", 400, "status is one of"},
		{"GET " + api + "?limit=0", "", 400, "limit is 1 to 1000"},
		{"GET " + api + "?limit=1001", "", 400, "limit is 1 to 1000"},
		{"GET " + api + "?limit=x", "", 400, "limit is 1 to 1000"},
		{"GET " + api + "?cursor=%FF", "", 400, "cursor"},
		{"GET " + api + "/nobody", "", 404, "unknown"},
		{"GET " + api + "/" + strings.Repeat("x", 256), "", 400, "255"},
		{"GET " + api + "/%20x", "", 400, "white space"},
		{"GET " + api + "/%00", "", 400, "control"},
		{"GET " + api + "/%FF", "", 400, "UTF-8"},
		{"POST " + api + "/nobody/embed-token", "", 404, "unknown"},
		{"POST " + api + "/org-1/embed-token", "{", 400, "JSON"},
		{"POST " + api + "/org-1/embed-token", `{"ttl_seconds":0}`, 400, "at least 1"},
		{"POST " + api + "/org-1/embed-token", `{"ttl_seconds":"1"}`, 400, "ttl_seconds"},
		{"POST " + api + "/org-1/embed-token", large, 413, "larger"},
		{"DELETE " + api + "/org-1", "null", 400, "not a JSON object"},
		{"DELETE " + api + "/%20x", "", 400, "white space"},
		{"POST " + api + "/org-1/suspend", large, 413, "larger"},
		{"POST " + api + "/org-1/resume", `{"reason":1}`, 400, "reason"},
		{"GET /api/v1/usage?from_period=2025-13", "", 400, "YYYY-MM"},
		{"GET /api/v1/usage?to_period=2025-1", "", 400, "YYYY-MM"},
		{"GET /api/v1/usage?page=0", "", 400, "page"},
		{"GET /api/v1/usage?per_page=1001", "", 400, "per_page"},
		{"GET /api/v1/usage?page=x", "", 400, "page is a whole number"},
		{"GET /api/", "", 404, "openapi.json"},
		{"GET /api/v2/dashboards", "", 404, "openapi.json"},
		{"GET " + api + "/", "", 404, "openapi.json"},
		{"PUT " + api, "", 404, "openapi.json"},
		{"GET " + api + "/a/b", "", 404, "openapi.json"},
	} {
		t.Run(c.request+" "+c.body[:min(20, len(c.body))], func(t *testing.T) {
			w := *w
			w.t = t
			method, path, _ := strings.Cut(c.request, " ")
			w.refused(w.ask(method, path, root, c.body), c.status, c.detail)
		})
	}
	if got := w.ask("GET", api+"/org-1", root, "").field("status"); got != "active" {
		t.Errorf("after all that the tenant is %q, want active", got)
	}
}

func TestTenantIDsInPathsArePercentEncoded(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	for _, tenant := range []string{"a/b", "../x", "100%", "ünï", "a b", "a%2Fb", "a?b#c", "a+b", "a//b", "embed-token"} {
		own := hs256(t, jwt.MapClaims{"tenant_id": tenant})
		location := w.create(tenant).header.Get("Location")
		if got := w.ok(w.ask("GET", location, own, ""), 200).field("tenant_id"); got != tenant {
			t.Errorf("%s shows tenant %q, want %q", location, got, tenant)
		}
		if got := w.ok(w.ask("POST", location+"/embed-token", own, ""), 200).field("tenant_id"); got != tenant {
			t.Errorf("%s: a token for %q, want %q", location, got, tenant)
		}
		w.refused(w.ask("GET", api+"/"+url.PathEscape(tenant+"x"), own, ""), 403, "Access denied")
		w.ok(w.ask("DELETE", location, admin(t), ""), 202)
		w.becomes(tenant, "deleted")
	}
}

func TestCreateThatTakesLongIsAccepted(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	fault, err := simulator.ParseFault("on=create delay=13s")
	w.must(err)
	w.sim.SetFaults(fault)
	a := w.ok(w.ask("POST", api, admin(t), `{"tenant_id":"a/b","name":"Slow"}`), 202)
	if a.field("status") != "creating" || a.field("dashboard_id") != "" || a.header.Get("Location") != api+"/a%2Fb" {
		t.Errorf("accepted %s, Location %q", a.body, a.header.Get("Location"))
	}
	w.refused(w.ask("POST", a.header.Get("Location")+"/embed-token", admin(t), ""), 409, "creating")
	w.becomes("a/b", "active")
}

func TestDashboardFromBeforeADeletionIsNotCreated(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	w.create("org-1")
	w.ok(w.ask("DELETE", api+"/org-1", admin(t), ""), 202)
	w.becomes("org-1", "deleted")
	fault, err := simulator.ParseFault("status=401")
	w.must(err)
	w.sim.SetFaults(fault)
	gone := make(chan answer)
	go func() { gone <- w.ask("POST", api, admin(t), `{"tenant_id":"org-2","name":"x"}`) }()
	w.eventually(func() error {
		if s := w.worker.State(t.Context()); s.Consuming != "paused" {
			return fmt.Errorf("the worker is not paused: %+v", s)
		}
		return nil
	})
	other := *w
	other.seen = map[string]bool{}
	a := other.ok(other.ask("POST", api, admin(t), `{"tenant_id":"org-1","name":"x"}`), 202)
	if a.field("status") != "deleted" {
		t.Errorf("while its event waits: %s", a.body)
	}
	<-gone
}

func TestCreateThatPapermapRefusesSaysSo(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	fault, err := simulator.ParseFault(`on=create status=422 body="{}" content-type=application/json`)
	w.must(err)
	w.sim.SetFaults(fault)
	w.refused(w.ask("POST", api, admin(t), `{"tenant_id":"org-1","name":"x"}`), 422, "")
}

func TestListPagesByCursor(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	var want []string
	for i := range 250 {
		want = append(want, fmt.Sprintf("org/%03d &ü", i))
		_, err := w.worker.Publish(t.Context(), events.TypeTenantCreated, map[string]string{"tenant_id": want[i], "name": "x"})
		w.must(err)
	}
	w.eventually(func() error {
		var n int
		if w.must(w.sql.Get(&n, "SELECT count(*) FROM tenant_dashboards WHERE status = 'active'")); n != len(want) {
			return fmt.Errorf("%d dashboards, want %d", n, len(want))
		}
		return nil
	})
	for _, c := range []struct {
		limit string
		pages []int
	}{{"", []int{100, 100, 50}}, {"125", []int{125, 125, 0}}, {"1000", []int{250}}} {
		var got []string
		var pages []int
		for cursor, more := "", true; more; {
			q := url.Values{"status": {"active"}}
			if c.limit != "" {
				q.Set("limit", c.limit)
			}
			if cursor != "" {
				q.Set("cursor", cursor)
			}
			var page struct {
				Dashboards []worker.Dashboard
				Next       string `json:"next_cursor"`
			}
			w.must(json.Unmarshal(w.ok(w.ask("GET", api+"?"+q.Encode(), admin(t), ""), 200).body, &page))
			for _, d := range page.Dashboards {
				got = append(got, d.TenantID)
			}
			pages = append(pages, len(page.Dashboards))
			cursor, more = page.Next, page.Next != "" && len(pages) < 10
		}
		if diff := cmp.Diff(c.pages, pages); diff != "" || !slices.Equal(got, want) {
			t.Errorf("limit %q: %d tenants\n%s", c.limit, len(got), diff)
		}
	}
}

func TestPagesOfListedOriginsMayCall(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	preflight := []string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization"}
	for from, want := range map[string]string{
		origin: origin, "": "", "https://evil.example.com": "", "http://app.example.com": "", origin + ".evil.com": "", "null": "",
	} {
		for _, a := range []answer{
			w.ask("GET", api, admin(t), "", "Origin", from),
			w.ask("GET", api, "", "", "Origin", from), // so that the page sees the 401
		} {
			if got := a.header.Get("Access-Control-Allow-Origin"); got != want || a.header.Get("Vary") != "Origin" || a.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%d for origin %q: allowed %q, want %q; Vary %q", a.status, from, got, want, a.header.Get("Vary"))
			}
		}
		a := w.ask("OPTIONS", api+"/org-1/embed-token", "", "", append(preflight, "Origin", from)...)
		methods, headers := a.header.Get("Access-Control-Allow-Methods"), a.header.Get("Access-Control-Allow-Headers")
		if a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != want || (methods != "") != (want != "") || (headers != "") != (want != "") {
			t.Errorf("preflight for origin %q: %d %v", from, a.status, a.header)
		}
		if want != "" && (methods != "GET, POST, DELETE" || headers != "Authorization, Content-Type") {
			t.Errorf("preflight allows %q and %q", methods, headers)
		}
	}
}

func TestRESTIsOffWithoutAKey(t *testing.T) {
	t.Parallel()
	w := start(t, Config{Addr: "127.0.0.1:0"})
	for _, path := range []string{"/api/", "/api/v1/openapi.json", "/api/v1/nothing"} {
		if a := w.ask("GET", path, "", ""); a.status != 404 {
			t.Errorf("GET %s: %d, want 404", path, a.status)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if a := w.ask("GET", path, "", ""); a.status != 200 {
			t.Errorf("GET %s: %d, want 200", path, a.status)
		}
	}
}

func TestMetricsAddressMovesHealthAndLeavesREST(t *testing.T) {
	t.Parallel()
	c := secretOnly
	c.MetricsAddr = "127.0.0.1:0"
	w := start(t, c)
	probes := *w
	probes.base = w.health
	for path, want := range map[string][2]int{"/": {200, 404}, "/healthz": {404, 200}, "/readyz": {404, 200}, "/metrics": {404, 200}, "/api/v1/openapi.json": {200, 404}} {
		if got := [2]int{w.ask("GET", path, "", "").status, probes.ask("GET", path, "", "").status}; got != want {
			t.Errorf("GET %s at HTTP_ADDR and METRICS_ADDR: %v, want %v", path, got, want)
		}
	}
	w.ok(w.ask("GET", api, admin(t), ""), 200)
}

// document is openapi.json, read.
func document(t *testing.T) map[string]any {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openAPI))
	if err != nil {
		t.Fatal(err)
	}
	return doc.(map[string]any)
}

func TestOpenAPINamesEachRouteAndNoOther(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	a := w.ask("GET", "/api/v1/openapi.json", "", "")
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" || !bytes.Equal(a.body, openAPI) {
		t.Errorf("%d %s, want the document", a.status, a.header.Get("Content-Type"))
	}
	doc := document(t)
	if doc["openapi"] != "3.1.0" {
		t.Errorf("openapi: %v", doc["openapi"])
	}
	var want, got []string
	for _, r := range routes {
		want = append(want, r.method+" "+r.path)
	}
	for path, item := range doc["paths"].(map[string]any) {
		for method := range item.(map[string]any) {
			if method != "parameters" {
				got = append(got, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes (-) and openapi.json (+):\n%s", diff)
	}
}

// checkDocumented holds an answer against openapi.json: its status, content type and body.
func (w *world) checkDocumented(r route, a answer) {
	w.t.Helper()
	at := []string{"paths", r.path, strings.ToLower(r.method), "responses", fmt.Sprint(a.status)}
	doc := document(w.t)
	response, ok := within(doc, at)
	if !ok {
		w.t.Errorf("openapi.json does not know %d of %s %s: %s", a.status, r.method, r.path, a.body)
		return
	}
	if ref, is := response["$ref"].(string); is {
		at = strings.Split(strings.TrimPrefix(ref, "#/"), "/")
		response, _ = within(doc, at)
	}
	contentType := a.header.Get("Content-Type")
	if _, ok := within(response, []string{"content", contentType, "schema"}); !ok {
		w.t.Errorf("openapi.json does not know %s as answer of %s %s", contentType, r.method, r.path)
		return
	}
	pointer := ""
	for _, name := range append(at, "content", contentType, "schema") {
		pointer += "/" + url.PathEscape(strings.NewReplacer("~", "~0", "/", "~1").Replace(name))
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	w.must(c.AddResource("rest:///openapi.json", doc))
	schema, err := c.Compile("rest:///openapi.json#" + pointer)
	w.must(err)
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.body))
	if err == nil {
		err = schema.Validate(value)
	}
	if err != nil {
		w.t.Errorf("%s %s: %v\n%s", r.method, r.path, err, a.body)
	}
	w.seen[fmt.Sprint(r.method, " ", r.path, " ", a.status)] = true
}

func within(value map[string]any, at []string) (map[string]any, bool) {
	for _, name := range at {
		next, ok := value[name].(map[string]any)
		if !ok {
			return nil, false
		}
		value = next
	}
	return value, true
}
