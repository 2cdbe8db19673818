package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

// JWT says which bearer tokens the REST API takes.
type JWT struct {
	Secret   string // of HS256
	JWKS     string // path or https address of a key set, for RSA, ECDSA and EdDSA
	Issuer   string // checked when set
	Audience string // checked when set
}

// Given says whether there is a key, without which the API is off.
func (j JWT) Given() bool { return j.Secret != "" || j.JWKS != "" }

// adminScope permits everything; a tenant's own claim permits reading its mapping and asking for its tokens.
const adminScope = "papermap:admin"

// claims are what a bearer token says.
type claims struct {
	jwt.RegisteredClaims
	TenantID string   `json:"tenant_id"`
	Tenants  []string `json:"tenants"`
	Scope    scopes   `json:"scope"`
}

// scopes are a text with spaces between (RFC 8693), or a list.
type scopes []string

func (s *scopes) UnmarshalJSON(data []byte) error {
	var list []string
	if err := json.Unmarshal(data, &list); err == nil {
		*s = list
		return nil
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return errors.New("scope is neither a text nor a list of texts")
	}
	*s = strings.Fields(text)
	return nil
}

func (c claims) admin() bool { return slices.Contains(c.Scope, adminScope) }

func (c claims) permits(tenantID string) bool {
	return c.admin() || tenantID != "" && (c.TenantID == tenantID || slices.Contains(c.Tenants, tenantID))
}

var (
	errMissing = &problem{http.StatusUnauthorized, "Missing authorization"}
	errInvalid = &problem{http.StatusUnauthorized, "Invalid token"}
	errDenied  = &problem{http.StatusForbidden, "Access denied"}
)

// verifier checks bearer tokens.
type verifier struct {
	parser *jwt.Parser
	key    jwt.Keyfunc
}

// newVerifier reads the keys. A key set is read again when it changes, until ctx ends.
func newVerifier(ctx context.Context, j JWT, log *slog.Logger) (*verifier, error) {
	// The algorithms are pinned to the kind of key: a token must not choose to be checked with a public key as its secret.
	methods := []string{"HS256"}
	v := &verifier{key: func(*jwt.Token) (any, error) { return []byte(j.Secret), nil }}
	if j.JWKS != "" {
		methods = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
		var err error
		if v.key, err = keySet(ctx, j.JWKS, log); err != nil {
			return nil, fmt.Errorf("reading the keys of HTTP_JWT_JWKS: %w", err)
		}
	}
	options := []jwt.ParserOption{jwt.WithValidMethods(methods), jwt.WithLeeway(5 * time.Second)}
	if j.Issuer != "" {
		options = append(options, jwt.WithIssuer(j.Issuer))
	}
	if j.Audience != "" {
		options = append(options, jwt.WithAudience(j.Audience))
	}
	v.parser = jwt.NewParser(options...)
	return v, nil
}

const (
	keysWait  = 5 * time.Second  // for a key set's address
	keysEvery = 30 * time.Second // at most, for key ids that are not known: anybody can send one
	keysAge   = 15 * time.Minute // at most, so that a key that was taken out is refused
	fileEvery = time.Second      // a file is looked at again, at most
)

// keySet finds keys by the id that a token names. An address that does not answer is no error: it is asked again with the next
// tokens, which are refused until then.
func keySet(ctx context.Context, source string, log *slog.Logger) (jwt.Keyfunc, error) {
	if !strings.HasPrefix(source, "https://") {
		f := &fileKeys{path: source, log: log}
		return f.key, f.read()
	}
	set, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{source}, keyfunc.Override{
		Client: &http.Client{Timeout: keysWait}, HTTPTimeout: keysWait, RateLimitWaitMax: keysWait,
		RefreshInterval: keysAge, RefreshUnknownKID: rate.NewLimiter(rate.Every(keysEvery), 1),
		RefreshErrorHandlerFunc: func(string) func(context.Context, error) {
			return func(_ context.Context, err error) {
				log.Warn("cannot read the keys of HTTP_JWT_JWKS; those that are known stay", "error", err)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return set.Keyfunc, nil
}

// CheckKeySet says whether the key set can be read now.
func (j JWT) CheckKeySet(ctx context.Context) error {
	if !strings.HasPrefix(j.JWKS, "https://") {
		return (&fileKeys{path: j.JWKS}).read()
	}
	ctx, cancel := context.WithTimeout(ctx, keysWait)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, j.JWKS, nil)
	if err != nil {
		return fmt.Errorf("asking for the key set: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("asking for the key set: %w", err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", answer.StatusCode)
	}
	if err == nil {
		_, err = keyfunc.NewJWKSetJSON(data)
	}
	if err != nil {
		return fmt.Errorf("reading the key set at %s: %w", j.JWKS, err)
	}
	return nil
}

// fileKeys are the keys of a file, which is read again when it has changed.
type fileKeys struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	set     jwt.Keyfunc
	looked  time.Time
	changed time.Time // the file, when it was read
	missing bool      // and it was said
}

// read reads the file. Keys that are known stay when it cannot be used.
func (f *fileKeys) read() error {
	f.looked = time.Now()
	info, err := os.Stat(f.path)
	if f.missing = f.missing && err != nil; f.missing || err == nil && info.ModTime().Equal(f.changed) {
		return nil
	}
	if err != nil {
		f.missing = true
		return err
	}
	f.changed = info.ModTime()
	data, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	set, err := keyfunc.NewJWKSetJSON(data)
	if err != nil {
		return err
	}
	f.set = set.Keyfunc
	return nil
}

func (f *fileKeys) key(token *jwt.Token) (any, error) {
	f.mu.Lock()
	if time.Since(f.looked) > fileEvery {
		if err := f.read(); err != nil {
			f.log.Warn("cannot read the keys of HTTP_JWT_JWKS; those that are known stay", "error", err)
		}
	}
	set := f.set
	f.mu.Unlock()
	return set(token)
}

// verify returns what the request's bearer token says.
func (v *verifier) verify(r *http.Request) (claims, error) {
	var c claims
	header := r.Header.Get("Authorization")
	if header == "" {
		return c, errMissing
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return c, errInvalid
	}
	if _, err := v.parser.ParseWithClaims(strings.TrimSpace(token), &c, v.key); err != nil {
		return claims{}, errInvalid // why is for nobody who has no token
	}
	return c, nil
}
