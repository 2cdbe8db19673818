package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
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

// newVerifier reads the keys; those at an address are read again now and then, until ctx ends.
func newVerifier(ctx context.Context, j JWT) (*verifier, error) {
	// The algorithms are pinned to the kind of key: a token must not choose to be checked with a public key as its secret.
	methods := []string{"HS256"}
	v := &verifier{key: func(*jwt.Token) (any, error) { return []byte(j.Secret), nil }}
	if j.JWKS != "" {
		methods = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
		set, err := keySet(ctx, j.JWKS)
		if err != nil {
			return nil, fmt.Errorf("reading the keys of HTTP_JWT_JWKS: %w", err)
		}
		v.key = set.Keyfunc
	}
	options := []jwt.ParserOption{jwt.WithValidMethods(methods), jwt.WithExpirationRequired(), jwt.WithLeeway(30 * time.Second)}
	if j.Issuer != "" {
		options = append(options, jwt.WithIssuer(j.Issuer))
	}
	if j.Audience != "" {
		options = append(options, jwt.WithAudience(j.Audience))
	}
	v.parser = jwt.NewParser(options...)
	return v, nil
}

func keySet(ctx context.Context, source string) (keyfunc.Keyfunc, error) {
	if strings.HasPrefix(source, "https://") {
		return keyfunc.NewDefaultCtx(ctx, []string{source})
	}
	data, err := os.ReadFile(source)
	if err != nil {
		return nil, err
	}
	return keyfunc.NewJWKSetJSON(data)
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
