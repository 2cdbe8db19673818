package papermap

import (
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Claims is what an embed token says. Only WorkspaceID and ValidUntil are signed: whoever holds a token can
// change the tenant and the dashboard in it, so they must come from the mapping and never from a caller.
type Claims struct {
	APIKeyID    string `json:"api_key_id"`
	WorkspaceID string `json:"workspace_id"`
	TenantID    string `json:"tenant_id"`
	DashboardID string `json:"dashboard_id"`
	ValidUntil  int64  `json:"valid_until"` // Unix seconds
	Signature   string `json:"signature"`
}

// MintToken returns the embed token for a tenant's dashboard, signed with key and valid until validUntil: the
// documented JSON object, compact and in the documented order, as URL-safe base64 with padding.
func MintToken(key KeyPair, workspaceID, tenantID, dashboardID string, validUntil time.Time) (string, error) {
	token, err := NewMinter(key, workspaceID).AppendToken(nil, tenantID, dashboardID, validUntil)
	return string(token), err
}

// Minter mints a workspace's tokens. It may be used by many goroutines at once.
//
// What is signed is the workspace and the expiry, to the second. So tokens that expire together have one end, whomever they
// are for, and the last one is kept. Base64 makes four characters of three bytes, so what begins and ends all tokens is
// encoded once: the begin as far as whole threes go, the end from each of its first three bytes on.
type Minter struct {
	key         KeyPair
	workspaceID string
	begin       []byte // of every token, encoded
	rest        []byte // what follows it up to the tenant: less than three bytes
	err         error  // texts that are not UTF-8
	last        atomic.Pointer[tokenEnd]
}

// tokenEnd is what follows the dashboard in all tokens that expire together.
type tokenEnd struct {
	until   int64
	text    string
	encoded [3]string // from its first, second and third byte on
}

// NewMinter returns a minter that signs with key.
func NewMinter(key KeyPair, workspaceID string) *Minter {
	m := &Minter{key: key, workspaceID: workspaceID}
	head, err := jsontext.AppendQuote([]byte(`{"api_key_id":`), key.ID)
	if err == nil {
		head, err = jsontext.AppendQuote(append(head, `,"workspace_id":`...), workspaceID)
	}
	if err != nil {
		m.err = errors.New("minting a token: the key id or the workspace id is not valid UTF-8")
		return m
	}
	head = append(head, `,"tenant_id":`...)
	whole := len(head) / 3 * 3
	m.begin, m.rest = base64.URLEncoding.AppendEncode(nil, head[:whole]), head[whole:]
	return m
}

// AppendToken appends the token that MintToken returns.
func (m *Minter) AppendToken(dst []byte, tenantID, dashboardID string, validUntil time.Time) ([]byte, error) {
	until := validUntil.Unix()
	if until < 1e9 || until > 9999999999 {
		// Workspace id and time are signed without a separator, so only a fixed length keeps them apart.
		return dst, fmt.Errorf("minting a token: expiry %d is not a ten-digit Unix time", until)
	}
	if m.err != nil {
		return dst, m.err
	}
	end := m.last.Load()
	if end == nil || end.until != until {
		end = newTokenEnd(until, Sign(m.key.Secret, m.workspaceID, until))
		m.last.Store(end)
	}
	var buffer [640]byte
	text, err := jsontext.AppendQuote(append(buffer[:0], m.rest...), tenantID)
	if err == nil {
		text, err = jsontext.AppendQuote(append(text, `,"dashboard_id":`...), dashboardID)
	}
	if err != nil {
		return dst, fmt.Errorf("minting a token: %w", err)
	}
	missing := (3 - len(text)%3) % 3 // to whole threes
	text = append(text, end.text[:missing]...)
	dst = base64.URLEncoding.AppendEncode(append(dst, m.begin...), text)
	return append(dst, end.encoded[missing]...), nil
}

func newTokenEnd(until int64, signature string) *tokenEnd {
	end := &tokenEnd{until: until, text: `,"valid_until":` + strconv.FormatInt(until, 10) + `,"signature":"` + signature + `"}`}
	for i := range end.encoded {
		end.encoded[i] = base64.URLEncoding.EncodeToString([]byte(end.text[i:]))
	}
	return end
}

// ParseToken reads a token without judging it.
func ParseToken(token string) (Claims, error) {
	text, err := base64.URLEncoding.DecodeString(token)
	if err != nil {
		return Claims{}, fmt.Errorf("reading an embed token: not URL-safe base64 with padding: %w", err)
	}
	var c Claims
	if err := json.Unmarshal(text, &c); err != nil {
		return Claims{}, errors.New("reading an embed token: not the documented JSON object")
	}
	return c, nil
}

// Verify says whether the claims are signed with key and not expired at now, as Papermap would.
func (c Claims) Verify(key KeyPair, now time.Time) error {
	switch {
	case c.APIKeyID != key.ID:
		return fmt.Errorf("token is signed with key %q, not %q", c.APIKeyID, key.ID)
	case !hmac.Equal([]byte(c.Signature), []byte(Sign(key.Secret, c.WorkspaceID, c.ValidUntil))):
		return errors.New("token has a wrong signature")
	case c.ValidUntil <= now.Unix():
		return errors.New("token has expired")
	}
	return nil
}

// EmbedURL is the address for the iframe that shows the dashboard. base is the address of Papermap's embed page.
func EmbedURL(base, token, workspaceID, dashboardID string) string {
	return base + "?embedded-token=" + percentEncode(token) + string(AppendEmbedQuery(nil, workspaceID, dashboardID))
}

// AppendEmbedQuery appends the rest of that address, behind the token.
func AppendEmbedQuery(dst []byte, workspaceID, dashboardID string) []byte {
	dst = append(append(dst, "&workspace-id="...), percentEncode(workspaceID)...)
	return append(append(dst, "&dashboard-id="...), percentEncode(dashboardID)...)
}

// percentEncode escapes a query value with %20 for a space, which a reader of either convention understands.
func percentEncode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
