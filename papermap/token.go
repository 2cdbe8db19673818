package papermap

import (
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Claims is the content of an embed token. Only WorkspaceID and ValidUntil are signed: whoever
// holds a token can change the tenant and the dashboard in it, so they must come from the mapping
// and never from a caller.
type Claims struct {
	APIKeyID    string `json:"api_key_id"`
	WorkspaceID string `json:"workspace_id"`
	TenantID    string `json:"tenant_id"`
	DashboardID string `json:"dashboard_id"`
	ValidUntil  int64  `json:"valid_until"` // Unix seconds
	Signature   string `json:"signature"`
}

// MintToken returns the embed token for a tenant's dashboard, signed with key and valid until
// validUntil: the documented JSON object, compact and in the documented order, as URL-safe base64
// with padding.
func MintToken(key KeyPair, workspaceID, tenantID, dashboardID string, validUntil time.Time) (string, error) {
	token, err := NewMinter(key, workspaceID).AppendToken(nil, tenantID, dashboardID, validUntil)
	return string(token), err
}

// Minter mints a workspace's tokens. It is safe for concurrent use.
//
// Only the workspace and the expiry, to the second, are signed. Tokens that expire together
// therefore have the same ending, whatever the tenant, and the newest such ending is kept.
// Base64 makes four characters of three bytes, so what starts and ends all tokens is encoded once:
// the head as far as whole threes go, the tail from each of its first three bytes on.
type Minter struct {
	key         KeyPair
	workspaceID string
	head        []byte // of every token, encoded
	rest        []byte // of the JSON between head and the tenant id: less than three bytes
	err         error  // key id or workspace id is not UTF-8
	last        atomic.Pointer[tokenTail]
}

// tokenTail is what follows the dashboard in the JSON of all tokens that expire together.
type tokenTail struct {
	until   int64
	json    string
	encoded [3]string // json from its first, second and third byte on
}

// NewMinter returns a minter that signs with key.
func NewMinter(key KeyPair, workspaceID string) *Minter {
	m := &Minter{key: key, workspaceID: workspaceID}
	head, err := appendMember([]byte("{"), `"api_key_id":`, key.ID, nil)
	head, m.err = appendMember(head, `,"workspace_id":`, workspaceID, err)
	head = append(head, `,"tenant_id":`...)
	whole := len(head) / 3 * 3
	m.head, m.rest = base64.URLEncoding.AppendEncode(nil, head[:whole]), head[whole:]
	return m
}

// AppendToken appends the token that [MintToken] returns to dst.
func (m *Minter) AppendToken(dst []byte, tenantID, dashboardID string, validUntil time.Time) ([]byte, error) {
	until := validUntil.Unix()
	if until < 1e9 || until > 9999999999 {
		// Workspace id and time are signed without a separator: a fixed length keeps them apart.
		return dst, fmt.Errorf("mint embed token: expiry %d is not a ten-digit Unix time", until)
	}
	tail := m.last.Load()
	if tail == nil || tail.until != until {
		tail = newTokenTail(until, Sign(m.key.Secret, m.workspaceID, until))
		m.last.Store(tail)
	}
	var buffer [640]byte
	text, err := appendMember(append(buffer[:0], m.rest...), "", tenantID, m.err)
	text, err = appendMember(text, `,"dashboard_id":`, dashboardID, err)
	if err != nil {
		return dst, fmt.Errorf("mint embed token: %w", err)
	}
	missing := (3 - len(text)%3) % 3 // bytes to whole threes
	text = append(text, tail.json[:missing]...)
	dst = base64.URLEncoding.AppendEncode(append(dst, m.head...), text)
	return append(dst, tail.encoded[missing]...), nil
}

func newTokenTail(until int64, signature string) *tokenTail {
	tail := &tokenTail{until: until}
	tail.json = fmt.Sprintf(`,"valid_until":%d,"signature":"%s"}`, until, signature)
	for i := range tail.encoded {
		tail.encoded[i] = base64.URLEncoding.EncodeToString([]byte(tail.json[i:]))
	}
	return tail
}

// appendMember appends a JSON member with a string as its value, unless there is an error already.
func appendMember(dst []byte, name, value string, err error) ([]byte, error) {
	if err != nil {
		return dst, err
	}
	return AppendQuote(append(dst, name...), value)
}

// unreserved has the characters that need no escape, neither in JSON nor in a query.
var unreserved = func() (table [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~") {
		table[c] = true
	}
	return table
}()

func isUnreserved(s string) bool {
	for i := range len(s) {
		if !unreserved[s[i]] {
			return false
		}
	}
	return true
}

// AppendQuote is [jsontext.AppendQuote], but faster for a text like most ids, which need no escape.
func AppendQuote(dst []byte, s string) ([]byte, error) {
	if !isUnreserved(s) {
		return jsontext.AppendQuote(dst, s)
	}
	return append(append(append(dst, '"'), s...), '"'), nil
}

// ParseToken decodes a token and verifies nothing: see [Claims.Verify].
func ParseToken(token string) (Claims, error) {
	text, err := base64.URLEncoding.DecodeString(token)
	if err != nil {
		return Claims{}, fmt.Errorf("read embed token: not URL-safe base64 with padding: %w", err)
	}
	var c Claims
	if err := json.Unmarshal(text, &c); err != nil {
		return Claims{}, errors.New("read embed token: not the documented JSON object")
	}
	return c, nil
}

// Verify returns nil if the claims are signed with key and not expired at now, which is what
// Papermap checks.
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

// EmbedURL returns the address for the iframe that shows the dashboard. base is the address of
// Papermap's embed page, without a query.
func EmbedURL(base, token, workspaceID, dashboardID string) string {
	address := base + "?embedded-token=" + percentEncode(token)
	return string(AppendEmbedQuery([]byte(address), workspaceID, dashboardID))
}

// AppendEmbedQuery appends the rest of that address, after the token, to dst.
func AppendEmbedQuery(dst []byte, workspaceID, dashboardID string) []byte {
	dst = append(append(dst, "&workspace-id="...), percentEncode(workspaceID)...)
	return append(append(dst, "&dashboard-id="...), percentEncode(dashboardID)...)
}

// percentEncode escapes a query value with %20 for a space, which readers of either convention
// understand.
func percentEncode(s string) string {
	if isUnreserved(s) {
		return s
	}
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}
