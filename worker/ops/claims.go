package ops

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"
)

const (
	// adminScope permits everything. A tenant's own claim permits reading its mapping and usage, and
	// minting its tokens; with createScope, also creating its dashboard.
	adminScope  = "papermap:admin"
	createScope = "papermap:create"

	leeway = 5 * time.Second // between the issuer's clock and this one
)

// claims are what a bearer token says, once it is verified.
type claims struct {
	issuer, subject string
	tenants         []string // of tenant_id and tenants
	scopes          []string
}

func (c claims) admin() bool { return slices.Contains(c.scopes, adminScope) }

func (c claims) permits(tenantID string) bool {
	return c.admin() || tenantID != "" && slices.Contains(c.tenants, tenantID)
}

// actor names the caller in the log.
func (c claims) actor() string { return beginning(strings.TrimSpace(c.issuer+" "+c.subject), 255) }

// creator is who a mapping says created it, when the request does not: the subject, as far as it fits.
func (c claims) creator() string { return beginning(strings.ReplaceAll(c.subject, "\x00", ""), 255) }

// beginning is the beginning of a text, at most limit characters.
func beginning(text string, limit int) string {
	for i := range text {
		if limit == 0 {
			return text[:i]
		}
		limit--
	}
	return text
}

// bearer is a JWT (RFC 7519) that is not verified yet.
type bearer struct {
	alg, kid  string
	signed    string // what is signed
	signature []byte
	claims    []byte
}

// parseBearer reads a JWT in the compact form.
func parseBearer(token string) (b bearer, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return b, errors.New("it is no JWT in the compact form")
	}
	decoded := make([][]byte, len(parts))
	for i, part := range parts {
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil ||
			strings.ContainsAny(part, "\r\n") { // which the decoder skips
			return b, errors.New("a part is not base64url")
		}
	}
	header, err := members(decoded[0])
	if err != nil {
		return b, fmt.Errorf("header: %w", err)
	}
	if _, ok := header["crit"]; ok { // RFC 7515, 4.1.11: and no extension is known here
		return b, errors.New("header: crit names an extension that is not known")
	}
	if b.alg, err = text(header, "alg"); err == nil {
		b.kid, err = text(header, "kid")
	}
	if err != nil {
		return b, fmt.Errorf("header: %w", err)
	}
	b.claims, b.signature, b.signed = decoded[1], decoded[2], parts[0]+"."+parts[1]
	return b, nil
}

// verifiedBy reports whether one of the keys made the signature.
func (b bearer) verifiedBy(keys []any) bool {
	method := jwt.GetSigningMethod(b.alg)
	return method != nil && slices.ContainsFunc(keys, func(key any) bool {
		return method.Verify(b.signed, b.signature, key) == nil
	})
}

// readClaims reads and checks the claims of a JWT whose signature is verified. Claim names are exact,
// and none appears twice. exp is required; an optional claim that is null counts as absent.
func readClaims(data []byte, j JWT, now time.Time) (c claims, err error) {
	all, err := members(data)
	if err != nil {
		return c, err
	}
	expires, ok, err := numericDate(all, "exp")
	switch {
	case err != nil:
		return c, err
	case !ok:
		return c, errors.New("exp is missing")
	case unixSeconds(now.Add(-leeway)) >= expires:
		return c, errors.New("exp has passed")
	}
	begins, ok, err := numericDate(all, "nbf")
	switch {
	case err != nil:
		return c, err
	case ok && unixSeconds(now.Add(leeway)) < begins:
		return c, errors.New("nbf has not come yet")
	}
	var tenantID string
	var audience []string
	for _, read := range []func() error{
		func() (err error) { c.issuer, err = text(all, "iss"); return err },
		func() (err error) { c.subject, err = text(all, "sub"); return err },
		func() (err error) { audience, err = texts(all, "aud"); return err },
		func() (err error) { tenantID, err = text(all, "tenant_id"); return err },
		func() (err error) { c.tenants, err = list(all, "tenants"); return err },
		func() (err error) { c.scopes, err = texts(all, "scope"); return err },
	} {
		if err := read(); err != nil {
			return claims{}, err
		}
	}
	if j.Issuer != "" && c.issuer != j.Issuer {
		return claims{}, errors.New("iss is another issuer")
	}
	if j.Audience != "" && !slices.Contains(audience, j.Audience) {
		return claims{}, errors.New("aud is another audience")
	}
	if tenantID != "" {
		c.tenants = append(c.tenants, tenantID)
	}
	if len(c.scopes) == 1 && all["scope"].Kind() == '"' { // RFC 8693: a string, separated by spaces
		c.scopes = strings.Split(c.scopes[0], " ")
	}
	return c, nil
}

// members reads a JSON object. It refuses duplicate names at any depth, invalid UTF-8, and anything
// before or after the object.
func members(data []byte) (all map[string]jsontext.Value, err error) {
	if err := json.Unmarshal(data, &all); err != nil || all == nil {
		return nil, errors.New("not a JSON object, or one with duplicate names")
	}
	return all, nil
}

// member is a member of that exact name; one that is null counts as absent.
func member(all map[string]jsontext.Value, name string) (value jsontext.Value, ok bool) {
	value, ok = all[name]
	return value, ok && value.Kind() != 'n'
}

// text is a member that is a string; empty if it is absent.
func text(all map[string]jsontext.Value, name string) (s string, err error) {
	value, ok := member(all, name)
	if !ok {
		return "", nil
	}
	if value.Kind() != '"' || json.Unmarshal(value, &s) != nil {
		return "", fmt.Errorf("%s is not a string", name)
	}
	return s, nil
}

// list is a member that is a list of strings.
func list(all map[string]jsontext.Value, name string) (values []string, err error) {
	value, ok := member(all, name)
	if !ok {
		return nil, nil
	}
	var items []jsontext.Value
	if value.Kind() != '[' || json.Unmarshal(value, &items) != nil {
		return nil, fmt.Errorf("%s is not a list", name)
	}
	values = make([]string, len(items))
	for i, item := range items {
		if item.Kind() != '"' || json.Unmarshal(item, &values[i]) != nil {
			return nil, fmt.Errorf("%s is not a list of strings", name)
		}
	}
	return values, nil
}

// texts is a member that is a string or a list of strings.
func texts(all map[string]jsontext.Value, name string) ([]string, error) {
	if all[name].Kind() == '"' {
		s, err := text(all, name)
		return []string{s}, err
	}
	return list(all, name)
}

// numericDate is a member that is a number of seconds since the epoch (RFC 7519, 2).
func numericDate(all map[string]jsontext.Value, name string) (seconds float64, ok bool, err error) {
	value, ok := member(all, name)
	if !ok {
		return 0, false, nil
	}
	seconds, err = strconv.ParseFloat(string(value), 64)
	if value.Kind() != '0' || err != nil || math.IsInf(seconds, 0) {
		return 0, false, fmt.Errorf("%s is not a number", name)
	}
	return seconds, true, nil
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
