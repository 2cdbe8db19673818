package ops

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/time/rate"
)

const (
	maxKeySet = 1 << 20          // bytes
	keysWait  = 5 * time.Second  // timeout of a key set's address
	keysEvery = 30 * time.Second // minimum between requests for unknown key ids, which anybody can send
	keysAge   = 5 * time.Minute  // after which a key that was removed from an address is refused
	fileEvery = time.Second      // for a key set's file

	maxSkipped = 10 // keys that are named in the log because they cannot be used
)

// publicKey is a key of a key set, with the algorithms that it can verify.
type publicKey struct {
	id   string
	algs []string
	key  any
}

// keySet finds keys by the id that a token names. While its source cannot be read, the keys that are
// known stay.
type keySet struct {
	source string // path or https address
	log    *slog.Logger
	client *http.Client
	keys   atomic.Pointer[[]publicKey]

	mu      sync.Mutex // one read at a time
	limiter *rate.Limiter
	logged  string // the last error or remark
}

// newKeySet reads the set, and again whenever it may have changed, until ctx ends. An address that
// does not answer is no error.
func newKeySet(ctx context.Context, source string, log *slog.Logger) (*keySet, error) {
	s := &keySet{
		source: source, log: log, client: newKeysClient(),
		limiter: rate.NewLimiter(rate.Every(keysEvery), 1),
	}
	s.keys.Store(new([]publicKey))
	every := keysAge
	err := s.read(ctx)
	if !remote(source) {
		if err != nil {
			return nil, err
		}
		every = fileEvery
	}
	go func() {
		defer s.client.CloseIdleConnections()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.mu.Lock()
				_ = s.read(ctx) // it is logged
				s.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	}()
	return s, nil
}

// find returns the keys of that id that can verify the algorithm. For an unknown id it asks the
// set's address, at most once in keysEvery.
func (s *keySet) find(ctx context.Context, id, alg string) []any {
	known := s.known(id)
	if len(known) == 0 && remote(s.source) {
		s.mu.Lock()
		if known = s.known(id); len(known) == 0 && s.limiter.Allow() {
			_ = s.read(context.WithoutCancel(ctx)) // it is logged
			known = s.known(id)
		}
		s.mu.Unlock()
	}
	var fit []any
	for _, k := range known {
		if slices.Contains(k.algs, alg) {
			fit = append(fit, k.key)
		}
	}
	return fit
}

func (s *keySet) known(id string) (list []publicKey) {
	for _, k := range *s.keys.Load() {
		if k.id == id {
			list = append(list, k)
		}
	}
	return list
}

// read reads the set. It logs what is wrong once.
func (s *keySet) read(ctx context.Context) error {
	keys, skipped, err := readKeySet(ctx, s.client, s.source)
	remark := ""
	switch {
	case err != nil:
		remark = err.Error()
	case len(skipped) > 0:
		remark = strings.Join(skipped, "; ")
	}
	changed := remark != s.logged
	s.logged = remark
	if err != nil {
		if changed {
			s.log.Warn("cannot refresh HTTP_JWT_JWKS; using cached keys", "error", err)
		}
		return err
	}
	if changed && len(skipped) > 0 {
		s.log.Warn("HTTP_JWT_JWKS has keys that cannot be used; they are skipped",
			"usable", len(keys), "skipped", remark)
	}
	s.keys.Store(&keys)
	return nil
}

func remote(source string) bool { return strings.HasPrefix(source, "https://") }

// newKeysClient returns a client that follows no redirect: it could lead to http.
func newKeysClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	return &http.Client{
		Transport: transport, Timeout: keysWait,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// readKeySet reads a key set from a path or an https address.
func readKeySet(ctx context.Context, client *http.Client, source string) (
	keys []publicKey, skipped []string, err error) {
	var data []byte
	if remote(source) {
		if data, err = fetch(ctx, client, source); err != nil {
			return nil, nil, fmt.Errorf("read the key set at %s: %w", withoutSecrets(source), err)
		}
	} else if data, err = readFile(source); err != nil {
		return nil, nil, err
	}
	if keys, skipped, err = parseKeySet(data); err != nil {
		return nil, nil, fmt.Errorf("read the key set at %s: %w", withoutSecrets(source), err)
	}
	return keys, skipped, nil
}

// withoutSecrets returns the source without the user and the query of an address, which may be
// secret.
func withoutSecrets(source string) string {
	if !remote(source) {
		return source
	}
	u, err := url.Parse(source)
	if err != nil {
		return "an invalid address"
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// withoutAddress returns the cause of an error that also has the address.
func withoutAddress(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

func fetch(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, withoutAddress(err)
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	answer, err := client.Do(request)
	if err != nil {
		return nil, withoutAddress(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", answer.StatusCode)
	}
	return readAll(answer.Body)
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readAll(file)
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeySet+1))
	if err == nil && len(data) > maxKeySet {
		err = fmt.Errorf("it is larger than %d bytes", maxKeySet)
	}
	return data, err
}

// parseKeySet reads a key set (RFC 7517). Keys that cannot be used, of an unknown type for example,
// are skipped, as section 5 has it. The first of them are named in skipped.
func parseKeySet(data []byte) (keys []publicKey, skipped []string, err error) {
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(data, &set, jsontext.AllowDuplicateNames(true)); err != nil || set.Keys == nil {
		return nil, nil, errors.New("not a JSON Web Key Set")
	}
	for i, raw := range set.Keys {
		key, err := parseKey(raw)
		switch {
		case err == nil:
			keys = append(keys, key)
		case len(skipped) < maxSkipped:
			skipped = append(skipped, fmt.Sprintf("key %d: %v", i+1, err))
		}
	}
	if more := len(set.Keys) - len(keys) - len(skipped); more > 0 {
		skipped = append(skipped, fmt.Sprintf("and %d more", more))
	}
	return keys, skipped, nil
}

// parseKey reads one key. A token must name its id, so a key without one is of no use.
func parseKey(raw []byte) (k publicKey, err error) {
	all, err := members(raw)
	if err != nil {
		return k, err
	}
	fields := map[string]string{}
	for _, name := range []string{"kty", "kid", "alg", "use", "crv", "n", "e", "x", "y"} {
		if fields[name], err = text(all, name); err != nil {
			return k, err
		}
	}
	operations, err := list(all, "key_ops")
	_, restricted := member(all, "key_ops")
	k.id = fields["kid"]
	switch {
	case err != nil:
		return k, err
	case k.id == "":
		return k, errors.New("it has no kid")
	case fields["use"] != "" && fields["use"] != "sig":
		return k, fmt.Errorf("its use is %.40q", fields["use"])
	case restricted && !slices.Contains(operations, "verify"):
		return k, errors.New("its key_ops are without verify")
	}
	switch fields["kty"] {
	case "RSA":
		k.key, err = rsaKey(fields)
		k.algs = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	case "EC":
		k.key, k.algs, err = ecKey(fields)
	case "OKP":
		k.key, err = ed25519Key(fields)
		k.algs = []string{"EdDSA"}
	default:
		err = fmt.Errorf("its kty %.40q is not known", fields["kty"])
	}
	if alg := fields["alg"]; err == nil && alg != "" {
		if !slices.Contains(k.algs, alg) {
			return k, fmt.Errorf("its alg %.40q does not fit", alg)
		}
		k.algs = []string{alg}
	}
	return k, err
}

func rsaKey(fields map[string]string) (*rsa.PublicKey, error) {
	n, err := base64.RawURLEncoding.DecodeString(fields["n"])
	e, wrong := base64.RawURLEncoding.DecodeString(fields["e"])
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	switch {
	case errors.Join(err, wrong) != nil:
		return nil, errors.New("n or e is not base64url")
	case modulus.BitLen() < 2048: // RFC 7518, 3.3
		return nil, fmt.Errorf("it has %d bits, fewer than 2048", modulus.BitLen())
	case modulus.BitLen() > 16384:
		return nil, fmt.Errorf("it has %d bits", modulus.BitLen())
	case exponent.BitLen() > 31 || exponent.Int64() < 3 || exponent.Bit(0) == 0:
		return nil, errors.New("its e is no exponent that is used")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

func ecKey(fields map[string]string) (*ecdsa.PublicKey, []string, error) {
	curves := map[string]struct {
		elliptic.Curve
		alg string
	}{
		"P-256": {elliptic.P256(), "ES256"}, "P-384": {elliptic.P384(), "ES384"},
		"P-521": {elliptic.P521(), "ES512"},
	}
	curve, ok := curves[fields["crv"]]
	if !ok {
		return nil, nil, fmt.Errorf("its crv %.40q is not known", fields["crv"])
	}
	x, err := base64.RawURLEncoding.DecodeString(fields["x"])
	y, wrong := base64.RawURLEncoding.DecodeString(fields["y"])
	if err = errors.Join(err, wrong); err != nil {
		return nil, nil, errors.New("x or y is not base64url")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve.Curve, slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, nil, errors.New("x and y are no point of its curve")
	}
	return key, []string{curve.alg}, nil
}

func ed25519Key(fields map[string]string) (ed25519.PublicKey, error) {
	if fields["crv"] != "Ed25519" {
		return nil, fmt.Errorf("its crv %.40q is not known", fields["crv"])
	}
	x, err := base64.RawURLEncoding.DecodeString(fields["x"])
	if err != nil || len(x) != ed25519.PublicKeySize {
		return nil, errors.New("x is no key of Ed25519")
	}
	return x, nil
}
