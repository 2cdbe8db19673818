package ops

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestMain(m *testing.M) {
	trusted := httptest.NewTLSServer(nil) // all of them show one certificate
	dir, err := os.MkdirTemp("", "papermap-ops-")
	if err == nil {
		file := filepath.Join(dir, "ca.pem")
		err = errors.Join(os.Setenv("SSL_CERT_FILE", file),
			os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
				Bytes: trusted.Certificate().Raw}), 0o600))
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
var secretOnly = Config{Addr: "127.0.0.1:0",

	JWT: JWT{Secret: secret, Issuer: "https://issuer", Audience: "papermap"}, Origins: []string{origin}}

// world is a workertest.World with one workspace and the HTTP side of its worker.
type world struct {
	*workertest.World
	t      *testing.T
	client *http.Client
	served *Server         // nil in virtual time
	base   string          // address of the REST API
	health string          // address of health
	seen   map[string]bool // answers that were held against openapi.json: method, path and status
}

func newWorld(t *testing.T, w *workertest.World) *world {
	t.Cleanup(func() {
		for _, canary := range []string{secret, "eyJ"} {
			if strings.Contains(w.Logs.String(), canary) {
				t.Errorf("the log has %q in it", canary)
			}
		}
	})
	return &world{World: w, t: t, client: w.HTTP, seen: map[string]bool{}}
}

var options = workertest.Options{Config: func(c *worker.Config) {
	c.Workspaces, c.Timeout = c.Workspaces[:1], 19*time.Second
}}

func (w *world) log() *slog.Logger {
	return slog.New(slog.NewJSONHandler(w.Logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// start starts a worker and its HTTP side with sockets.
func start(t *testing.T, c Config) *world {
	t.Helper()
	w := newWorld(t, workertest.Start(t, options))
	served, err := Start(c, w.Workers[0].Worker, w.log())
	w.Must(err)
	w.served = served
	w.base, w.health = "http://"+served.servers[0].Addr, "http://"+served.Addr()
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		served.Close(ctx)
	})
	return w
}

// virtual runs a scenario with a worker and its REST API in virtual time.
func virtual(t *testing.T, keys JWT, scenario func(*testing.T, *world)) {
	t.Helper()
	workertest.Virtual(t, options, func(t *testing.T, parts *workertest.World) {
		w := newWorld(t, parts)
		ctx, stop := context.WithCancel(context.Background())
		t.Cleanup(stop)
		auth, err := newVerifier(ctx, keys, w.log())
		w.Must(err)
		mux := http.NewServeMux()
		(&rest{w: w.Workers[0].Worker, auth: auth, origins: secretOnly.Origins, log: w.log()}).register(mux)
		w.base = w.Serve(mux)
		scenario(t, w)
	})
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

// ask sends a request. headers are pairs. An answer of a documented route must be as openapi.json
// says.
func (w *world) ask(method, path, token, body string, headers ...string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path, strings.NewReader(body))
	w.Must(err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := w.client.Do(req)
	w.Must(err)
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(resp.Body)
	w.Must(err)
	for _, r := range routes {
		if r.method == method && fits(r.path, req.URL.EscapedPath()) {
			w.checkDocumented(r, a)
		}
	}
	return a
}

// fits says whether a path is of a route.
func fits(route, path string) bool {
	want, got := strings.Split(route, "/"), strings.Split(strings.TrimSuffix(path, "/"), "/")
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

// refused checks that the answer is the problem with this status and a detail that has the text in
// it.
func (w *world) refused(a answer, status int, detail string) {
	w.t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	err := json.Unmarshal(a.body, &p)
	if err != nil || a.status != status || p.Status != status || p.Type != "about:blank" ||
		p.Title != http.StatusText(status) || !strings.Contains(p.Detail, detail) ||
		a.header.Get("Content-Type") != "application/problem+json" {
		w.t.Errorf("%d %s %s (%v), want the problem %d with %q", a.status, a.header.Get("Content-Type"),
			a.body, err, status, detail)
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
	w.Must(err)
	return w.ok(w.ask("POST", api, admin(w.t), string(body)), http.StatusCreated)
}

// signer is a key with the id under which a set has it.
type signer struct {
	id      string
	public  crypto.PublicKey
	private ed25519.PrivateKey
}

// admin is a token that the key has signed.
func (s signer) admin(t *testing.T) string {
	t.Helper()
	tok := jwt.NewWithClaims(jwt.SigningMethodEdDSA,
		jwt.MapClaims{"scope": adminScope, "exp": time.Now().Add(time.Hour).Unix()})
	tok.Header["kid"] = s.id
	text, err := tok.SignedString(s.private)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
