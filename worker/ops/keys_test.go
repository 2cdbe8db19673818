package ops

import (
	"compress/gzip"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"papermap-worker/worker/workertest"
)

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

func newSigner(t *testing.T, id string) signer {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, public, private}
}

// setOf is a key set of them.
func setOf(t *testing.T, signers ...signer) []byte {
	t.Helper()
	keys := map[string]crypto.PublicKey{}
	for _, s := range signers {
		keys[s.id] = s.public
	}
	data, err := os.ReadFile(jwks(t, keys))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.ReplaceAll(string(data), `"alg":"`, `"x-alg":"`)) // the ids are no algorithms
}

// provider is an identity provider that serves a key set and counts who asks.
type provider struct {
	*httptest.Server
	keys  atomic.Pointer[[]byte] // nil: it is down
	asked atomic.Int64
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		p.asked.Add(1)
		keys := p.keys.Load()
		if keys == nil {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = rw.Write(*keys)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *provider) serve(keys []byte) { p.keys.Store(&keys) }

func TestKeysRotatedAtTheirAddressAreReadAtOnce(t *testing.T) {
	t.Parallel()
	old, next := newSigner(t, "2025"), newSigner(t, "2026")
	p := newProvider(t)
	p.serve(setOf(t, old))
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: p.URL}})
	w.ok(w.ask("GET", api, old.admin(t), ""), 200)
	p.serve(setOf(t, old, next))
	w.ok(w.ask("GET", api, next.admin(t), ""), 200)
	w.ok(w.ask("GET", api, old.admin(t), ""), 200)

	// Made-up key ids cause no request each, and delay nothing.
	asked := p.asked.Load()
	began := time.Now()
	for i := range 50 {
		w.refused(w.ask("GET", api, newSigner(t, fmt.Sprint("made-up-", i)).admin(t), ""), 401,
			"Invalid token")
	}
	if more := p.asked.Load() - asked; more > 1 {
		t.Errorf("the provider was asked %d times", more)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("50 refusals took %v", took)
	}
}

func TestKeySetThatIsDownAtTheStartIsReadLater(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "2025")
	p := newProvider(t)
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: p.URL}})
	if !strings.Contains(w.Logs.String(), "cannot refresh HTTP_JWT_JWKS") {
		t.Error("the log does not say that the keys cannot be read")
	}
	p.serve(setOf(t, key))
	w.ok(w.ask("GET", api, key.admin(t), ""), 200)
	p.keys.Store(nil) // known keys stay
	w.ok(w.ask("GET", api, key.admin(t), ""), 200)
}

func TestCheckKeySetSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	down := p.URL
	for _, c := range []struct {
		keys []byte
		want string
	}{{nil, "status 502"}, {[]byte("<html>"), "read the key set at " + down},
		{setOf(t, newSigner(t, "2025")), "<nil>"}} {
		if c.keys != nil {
			p.serve(c.keys)
		}
		if err := (JWT{JWKS: down}).CheckKeySet(t.Context()); !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%q: %v, want %s", c.keys, err, c.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestErrorsOfAKeySetDoNotNameSecretsInItsAddress(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.serve([]byte("<html>"))
	there := strings.Replace(p.URL, "https://", "https://worker:canary-1@", 1) + "?key=canary-2"
	gone := strings.Replace(there, p.URL[strings.LastIndex(p.URL, ":"):], ":1", 1)
	for _, address := range []string{there, gone, gone + "\x7f", "https://worker:canary-1@[::1?key=canary-2"} {
		err := (JWT{JWKS: address}).CheckKeySet(t.Context())
		if err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestKeyFileIsReadAgainWhenItChanges(t *testing.T) {
	old, next := newSigner(t, "2025"), newSigner(t, "2026")
	path := t.TempDir() + "/keys.json"
	write := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(setOf(t, old))
	virtual(t, JWT{JWKS: path}, func(t *testing.T, w *world) {
		w.ok(w.ask("GET", api, old.admin(t), ""), 200)
		w.refused(w.ask("GET", api, next.admin(t), ""), 401, "Invalid token")
		answers := func(s signer, want int) {
			t.Helper()
			w.Eventually(workertest.That("status of a key", func() bool {
				return w.ask("GET", api, s.admin(t), "").status == want
			}))
		}
		write(setOf(t, next))
		answers(next, 200)
		answers(old, 401)

		// A file that is broken or gone changes nothing, and is logged once.
		write([]byte("{"))
		w.Eventually(func() error {
			answers(next, 200)
			if n := strings.Count(w.Logs.String(), "cannot refresh HTTP_JWT_JWKS"); n != 1 {
				return fmt.Errorf("logged %d times", n)
			}
			return nil
		})
		w.Must(os.Remove(path))
		w.Eventually(func() error {
			answers(next, 200)
			if n := strings.Count(w.Logs.String(), "cannot refresh HTTP_JWT_JWKS"); n != 2 {
				return fmt.Errorf("logged %d times", n)
			}
			return nil
		})
		write(setOf(t, old))
		answers(old, 200)
		answers(next, 401)
	})
}

func TestKeySetsAreBoundedAndFollowNoRedirect(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "2026")
	set := setOf(t, key)
	plain := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = rw.Write(set)
	}))
	t.Cleanup(plain.Close)
	served := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/http":
			http.Redirect(rw, r, plain.URL, http.StatusFound)
		case "/https":
			http.Redirect(rw, r, "/keys", http.StatusMovedPermanently)
		case "/large":
			_, _ = fmt.Fprintf(rw, `{"keys":[],"x":"%s"}`, strings.Repeat("x", maxKeySet))
		case "/bomb":
			rw.Header().Set("Content-Encoding", "gzip")
			packed := gzip.NewWriter(rw)
			for range 64 {
				_, _ = packed.Write(make([]byte, maxKeySet))
			}
			_ = packed.Close()
		default:
			_, _ = rw.Write(set)
		}
	}))
	t.Cleanup(served.Close)
	for path, want := range map[string]string{"/http": "status 302", "/https": "status 301",
		"/large": "larger than 1048576 bytes", "/bomb": "larger than 1048576 bytes", "/keys": "<nil>"} {
		err := JWT{JWKS: served.URL + path}.CheckKeySet(t.Context())
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}

func TestAFileWithKeysOfUnknownTypesLosesTheKeyThatIsTakenOut(t *testing.T) {
	old, next := newSigner(t, "2025"), newSigner(t, "2026")
	path := t.TempDir() + "/keys.json"
	write := func(signers ...signer) {
		t.Helper()
		text := `{"keys":[` + unknownKeys
		for _, s := range signers {
			text += "," + s.key(t, "")
		}
		if err := os.WriteFile(path, []byte("\uFEFF"+text+"]}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old)
	virtual(t, JWT{JWKS: path}, func(t *testing.T, w *world) {
		w.ok(w.ask("GET", api, old.admin(t), ""), 200)
		write(next)
		time.Sleep(2 * fileEvery)
		w.ok(w.ask("GET", api, next.admin(t), ""), 200)
		w.refused(w.ask("GET", api, old.admin(t), ""), 401, "Invalid token")
		write()
		time.Sleep(2 * fileEvery)
		w.refused(w.ask("GET", api, next.admin(t), ""), 401, "Invalid token")
		if n := strings.Count(w.Logs.String(), "they are skipped"); n != 1 {
			t.Errorf("skipped keys are logged %d times", n)
		}
	})
}
