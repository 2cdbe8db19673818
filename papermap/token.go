package papermap

import (
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
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
	until := validUntil.Unix()
	if until < 1e9 || until > 9999999999 {
		// Workspace id and time are signed without a separator, so only a fixed length keeps them apart.
		return "", fmt.Errorf("minting a token: expiry %d is not a ten-digit Unix time", until)
	}
	fields := [...]struct{ name, value string }{
		{`{"api_key_id":`, key.ID}, {`,"workspace_id":`, workspaceID}, {`,"tenant_id":`, tenantID}, {`,"dashboard_id":`, dashboardID},
	}
	text := make([]byte, 0, 512)
	var err error
	for _, f := range fields {
		text = append(text, f.name...)
		if text, err = jsontext.AppendQuote(text, f.value); err != nil {
			return "", fmt.Errorf("minting a token: %w", err)
		}
	}
	text = append(text, `,"valid_until":`...)
	text = strconv.AppendInt(text, until, 10)
	text = append(text, `,"signature":"`...)
	text = append(text, Sign(key.Secret, workspaceID, until)...)
	text = append(text, `"}`...)
	return base64.URLEncoding.EncodeToString(text), nil
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
	return base + "?embedded-token=" + percentEncode(token) + "&workspace-id=" + percentEncode(workspaceID) + "&dashboard-id=" + percentEncode(dashboardID)
}

// percentEncode escapes a query value with %20 for a space, which a reader of either convention understands.
func percentEncode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
