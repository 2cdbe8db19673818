package ops

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// signer is a key with the id under which a set has it.
type signer struct {
	id      string
	public  crypto.PublicKey
	private ed25519.PrivateKey
}

func newSigner(t *testing.T, id string) signer {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, public, private}
}

// admin is a token that the key has signed.
func (s signer) admin(t *testing.T) string {
	t.Helper()
	tok := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{"scope": adminScope, "exp": time.Now().Add(time.Hour).Unix()})
	tok.Header["kid"] = s.id
	text, err := tok.SignedString(s.private)
	if err != nil {
		t.Fatal(err)
	}
	return text
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

func TestKeysThatAreRotatedAtTheirAddressAreTakenAtOnce(t *testing.T) {
	t.Parallel()
	old, next := newSigner(t, "2025"), newSigner(t, "2026")
	p := newProvider(t)
	p.serve(setOf(t, old))
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: p.URL}})
	w.ok(w.ask("GET", api, old.admin(t), ""), 200)
	p.serve(setOf(t, old, next))
	w.ok(w.ask("GET", api, next.admin(t), ""), 200)
	w.ok(w.ask("GET", api, old.admin(t), ""), 200)

	// Whoever makes up key ids causes no request for each, and nobody waits for them.
	asked := p.asked.Load()
	began := time.Now()
	for i := range 50 {
		w.refused(w.ask("GET", api, newSigner(t, fmt.Sprint("made-up-", i)).admin(t), ""), 401, "Invalid token")
	}
	if more := p.asked.Load() - asked; more > 1 {
		t.Errorf("the provider was asked %d times", more)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("50 refusals took %v", took)
	}
}

func TestAKeySetThatIsDownAtTheStartIsReadLater(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "2025")
	p := newProvider(t)
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: p.URL}})
	if !strings.Contains(w.logs.String(), "cannot read the keys of HTTP_JWT_JWKS") {
		t.Error("the log does not say that the keys cannot be read")
	}
	p.serve(setOf(t, key))
	w.ok(w.ask("GET", api, key.admin(t), ""), 200)
	p.keys.Store(nil) // known keys stay
	w.ok(w.ask("GET", api, key.admin(t), ""), 200)
}

func TestAKeySetIsCheckedWithoutBeingUsed(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	down := p.URL
	for _, c := range []struct {
		keys []byte
		want string
	}{{nil, "status 502"}, {[]byte("<html>"), "reading the key set at " + down}, {setOf(t, newSigner(t, "2025")), "<nil>"}} {
		if c.keys != nil {
			p.serve(c.keys)
		}
		if err := (JWT{JWKS: down}).CheckKeySet(t.Context()); !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%q: %v, want %s", c.keys, err, c.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestKeysInAFileAreReadAgainWhenItChanges(t *testing.T) {
	t.Parallel()
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
	w := start(t, Config{Addr: "127.0.0.1:0", JWT: JWT{JWKS: path}})
	w.ok(w.ask("GET", api, old.admin(t), ""), 200)
	w.refused(w.ask("GET", api, next.admin(t), ""), 401, "Invalid token")
	answers := func(s signer, want int) {
		t.Helper()
		w.eventually(func() error {
			if got := w.ask("GET", api, s.admin(t), "").status; got != want {
				return fmt.Errorf("key %s: %d, want %d", s.id, got, want)
			}
			return nil
		})
	}
	write(setOf(t, next))
	answers(next, 200)
	answers(old, 401)

	// A file that is broken or gone changes nothing, and is said once.
	write([]byte("{"))
	w.eventually(func() error {
		answers(next, 200)
		if n := strings.Count(w.logs.String(), "cannot read the keys"); n != 1 {
			return fmt.Errorf("said %d times", n)
		}
		return nil
	})
	w.must(os.Remove(path))
	w.eventually(func() error {
		answers(next, 200)
		if n := strings.Count(w.logs.String(), "cannot read the keys"); n != 2 {
			return fmt.Errorf("said %d times", n)
		}
		return nil
	})
	write(setOf(t, old))
	answers(old, 200)
	answers(next, 401)
}

func TestAClientThatDoesNotFinishItsRequestIsCutOff(t *testing.T) {
	t.Parallel()
	w := start(t, secretOnly)
	address := strings.TrimPrefix(w.base, "http://")
	for name, request := range map[string]string{
		"header": "POST " + api + " HTTP/1.1\r\nHost: x\r\n",
		"body":   "POST " + api + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + admin(t) + "\r\nContent-Length: 100\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			connection, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer connection.Close()
			if _, err := connection.Write([]byte(request)); err != nil {
				t.Fatal(err)
			}
			if err := connection.SetReadDeadline(time.Now().Add(25 * time.Second)); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(connection) // until it is cut off
			if err != nil {
				t.Errorf("it is still open: %v", err)
			}
			if body := name == "body"; body != strings.Contains(string(answer), "not come whole, or not in time") {
				t.Errorf("answered %s", answer)
			}
		})
	}
}
