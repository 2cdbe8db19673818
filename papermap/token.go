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
// What is signed is the workspace and the expiry, to the second. So tokens that expire together have one signature,
// whomever they are for, and the last one is kept.
type Minter struct {
	key         KeyPair
	workspaceID string
	head        []byte // of every token, up to the tenant; nil for texts that are not UTF-8
	last        atomic.Pointer[signature]
}

type signature struct {
	until int64
	text  string
}

// NewMinter returns a minter that signs with key.
func NewMinter(key KeyPair, workspaceID string) *Minter {
	head, err := jsontext.AppendQuote(append([]byte(nil), `{"api_key_id":`...), key.ID)
	if err == nil {
		head, err = jsontext.AppendQuote(append(head, `,"workspace_id":`...), workspaceID)
	}
	if err != nil {
		head = nil
	}
	return &Minter{key: key, workspaceID: workspaceID, head: head}
}

// AppendToken appends the token that MintToken returns.
func (m *Minter) AppendToken(dst []byte, tenantID, dashboardID string, validUntil time.Time) ([]byte, error) {
	until := validUntil.Unix()
	if until < 1e9 || until > 9999999999 {
		// Workspace id and time are signed without a separator, so only a fixed length keeps them apart.
		return dst, fmt.Errorf("minting a token: expiry %d is not a ten-digit Unix time", until)
	}
	signed := m.last.Load()
	if signed == nil || signed.until != until {
		signed = &signature{until, Sign(m.key.Secret, m.workspaceID, until)}
		m.last.Store(signed)
	}
	if m.head == nil {
		return dst, errors.New("minting a token: the key id or the workspace id is not valid UTF-8")
	}
	var buffer [640]byte
	text, err := jsontext.AppendQuote(append(append(buffer[:0], m.head...), `,"tenant_id":`...), tenantID)
	if err == nil {
		text, err = jsontext.AppendQuote(append(text, `,"dashboard_id":`...), dashboardID)
	}
	if err != nil {
		return dst, fmt.Errorf("minting a token: %w", err)
	}
	text = append(text, `,"valid_until":`...)
	text = strconv.AppendInt(text, until, 10)
	text = append(text, `,"signature":"`...)
	text = append(text, signed.text...)
	text = append(text, `"}`...)
	return base64.URLEncoding.AppendEncode(dst, text), nil
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
