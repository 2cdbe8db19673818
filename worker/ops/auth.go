package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// JWT is how bearer tokens of the REST API are checked. With neither key the API is off.
type JWT struct {
	Secret   string // of HS256
	JWKS     string // path or https address of a key set (RFC 7517), for RSA, ECDSA and EdDSA
	Issuer   string // checked when set
	Audience string // checked when set; a key set needs it
}

// Given reports whether there is a key.
func (j JWT) Given() bool { return j.Secret != "" || j.JWKS != "" }

var (
	errMissing = &problem{http.StatusUnauthorized, "Missing authorization"}
	errInvalid = &problem{http.StatusUnauthorized, "Invalid token"}
	errDenied  = &problem{http.StatusForbidden, "Access denied"}
)

// verifier checks bearer tokens.
type verifier struct {
	JWT
	keys *keySet // nil: HS256 with the secret
	now  func() time.Time
}

// newVerifier reads the keys. A key set is read again when it changes, until ctx ends.
func newVerifier(ctx context.Context, j JWT, log *slog.Logger) (*verifier, error) {
	v := &verifier{JWT: j, now: time.Now}
	if j.JWKS != "" {
		var err error
		if v.keys, err = newKeySet(ctx, j.JWKS, log); err != nil {
			return nil, fmt.Errorf("read the keys of HTTP_JWT_JWKS: %w", err)
		}
	}
	return v, nil
}

// CheckKeySet returns an error if the key set cannot be read now, or has no key that can be used.
func (j JWT) CheckKeySet(ctx context.Context) error {
	client := newKeysClient()
	defer client.CloseIdleConnections()
	keys, skipped, err := readKeySet(ctx, client, j.JWKS)
	if err == nil && len(keys) == 0 {
		err = errors.New("the key set has no key that can be used: " + strings.Join(skipped, "; "))
	}
	return err
}

// refusedToken is why a bearer token is refused. It is for the log alone: it would help to forge one.
type refusedToken struct{ why error }

func (e *refusedToken) Error() string { return e.why.Error() }
func (e *refusedToken) Unwrap() error { return errInvalid }

// verify returns the claims of the request's bearer token.
func (v *verifier) verify(r *http.Request) (claims, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 || headers[0] == "" {
		return claims{}, errMissing
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if len(headers) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return claims{}, &refusedToken{errors.New("the Authorization header is no bearer token")}
	}
	c, err := v.claims(r.Context(), strings.Trim(token, " "))
	if err != nil {
		return claims{}, &refusedToken{err}
	}
	return c, nil
}

// claims verifies a JWT.
func (v *verifier) claims(ctx context.Context, token string) (claims, error) {
	b, err := parseBearer(token)
	if err != nil {
		return claims{}, err
	}
	// The algorithm must fit the key: a token must not choose to be checked with a public key as its
	// secret.
	var keys []any
	switch {
	case v.keys == nil && b.alg == "HS256":
		keys = []any{[]byte(v.Secret)}
	case v.keys == nil:
		return claims{}, errors.New("its alg is not HS256")
	case b.kid == "":
		return claims{}, errors.New("it names no kid")
	default:
		if keys = v.keys.find(ctx, b.kid, b.alg); len(keys) == 0 {
			return claims{}, errors.New("no key matches its kid and alg")
		}
	}
	if !b.verifiedBy(keys) {
		return claims{}, errors.New("its signature is wrong")
	}
	return readClaims(b.claims, v.JWT, v.now())
}
