package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

// JWT is how bearer tokens of the REST API are checked. With neither key the API is off.
type JWT struct {
	Secret   string // of HS256
	JWKS     string // path or https address of a key set (RFC 7517), for RSA, ECDSA and EdDSA
	Issuer   string // checked when set
	Audience string // checked when set
}

// Given reports whether there is a key.
func (j JWT) Given() bool { return j.Secret != "" || j.JWKS != "" }

// adminScope permits everything. A tenant's own claim permits reading its mapping and minting its
// tokens.
const adminScope = "papermap:admin"

// claims are the claims of a bearer token.
type claims struct {
	jwt.RegisteredClaims
	TenantID string   `json:"tenant_id"`
	Tenants  []string `json:"tenants"`
	Scope    scopes   `json:"scope"`
}

// scopes are a string with spaces between (RFC 8693), or a list.
type scopes []string

func (s *scopes) UnmarshalJSON(data []byte) error {
	var list []string
	if err := json.Unmarshal(data, &list); err == nil {
		*s = list
		return nil
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return errors.New("scope is neither a string nor a list of strings")
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
	// The algorithms are pinned to the kind of key: a token must not choose to be checked with a
	// public key as its secret.
	methods := []string{"HS256"}
	v := &verifier{key: func(*jwt.Token) (any, error) { return []byte(j.Secret), nil }}
	if j.JWKS != "" {
		methods = []string{
			"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
		}
		var err error
		if v.key, err = keySet(ctx, j.JWKS, log); err != nil {
			return nil, fmt.Errorf("read the keys of HTTP_JWT_JWKS: %w", err)
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
	keysWait  = 5 * time.Second  // timeout of a key set's address
	keysEvery = 30 * time.Second // minimum between requests for unknown key ids, which anybody can send
	keysAge   = 15 * time.Minute // after which a key that was removed from the set is refused
	fileEvery = time.Second      // for a key set's file
)

// keySet finds keys by the id that a token names. An address that does not answer is no error: it
// is asked again for the next tokens, which are refused until then.
func keySet(ctx context.Context, source string, log *slog.Logger) (jwt.Keyfunc, error) {
	if !strings.HasPrefix(source, "https://") {
		return fileKeys(ctx, source, log)
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

// CheckKeySet returns an error if the key set cannot be read now.
func (j JWT) CheckKeySet(ctx context.Context) error {
	if !strings.HasPrefix(j.JWKS, "https://") {
		_, err := readKeys(j.JWKS)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, keysWait)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, j.JWKS, nil)
	if err != nil {
		return fmt.Errorf("request the key set: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("request the key set: %w", err)
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
		return fmt.Errorf("read the key set at %s: %w", j.JWKS, err)
	}
	return nil
}

// fileKeys finds keys in a file, which it reads again every fileEvery until ctx ends. While the
// file cannot be used, the keys that are known stay.
func fileKeys(ctx context.Context, path string, log *slog.Logger) (jwt.Keyfunc, error) {
	set, err := readKeys(path)
	if err != nil {
		return nil, err
	}
	var current atomic.Pointer[keyfunc.Keyfunc]
	current.Store(&set)
	go func() {
		tick := time.NewTicker(fileEvery)
		defer tick.Stop()
		logged := ""
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			set, err := readKeys(path)
			switch {
			case err == nil:
				current.Store(&set)
				logged = ""
			case err.Error() != logged:
				logged = err.Error()
				log.Warn("cannot read the keys of HTTP_JWT_JWKS; those that are known stay", "error", err)
			}
		}
	}()
	return func(token *jwt.Token) (any, error) { return (*current.Load()).Keyfunc(token) }, nil
}

func readKeys(path string) (keyfunc.Keyfunc, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return keyfunc.NewJWKSetJSON(data)
}

// verify returns the claims of the request's bearer token.
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
		return claims{}, errInvalid // without the reason: it would help to forge one
	}
	return c, nil
}
