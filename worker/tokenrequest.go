package worker

import (
	"errors"
	"unicode/utf8"

	"papermap-worker/events"
)

// TokenRequest asks for an embed token.
type TokenRequest struct {
	TenantID    string
	WorkspaceID string // empty, or the tenant's own
	TTLSeconds  *int64 // at least 1, at most Config.TokenMaxTTL is granted; nil: Config.TokenTTL

	// CreateMissing publishes tenant.created with this name for a tenant that is unknown, if
	// Config.CreateMissing permits it.
	CreateMissing bool
	Name          string
}

// tokenRequest is a TokenRequest in the form that minting reads without allocations.
type tokenRequest struct {
	tenantID, workspaceID []byte
	ttl                   int64 // seconds; 0: the default
}

// decodeTokenRequest decodes a request as strictly as an event. The tenant comes from the body or
// from the subject's last token; if both name one, they must agree.
func decodeTokenRequest(r events.Request) (q TokenRequest, err error) {
	if len(r.Data) > 0 || r.Token == "" {
		if err := events.DecodeObject(r.Data, map[string]any{
			"tenant_id": &q.TenantID, "workspace_id": &q.WorkspaceID, "ttl_seconds": &q.TTLSeconds,
			"create_missing": &q.CreateMissing, "name": &q.Name,
		}); err != nil {
			return q, invalid(err)
		}
	}
	if r.Token == "" {
		return q, nil
	}
	tenantID, err := events.DecodeTenant(r.Token)
	if err != nil {
		return q, invalid(err)
	}
	if q.TenantID != "" && q.TenantID != tenantID {
		return q, serviceError(403, "TENANT_MISMATCH", 0,
			`"tenant_id" doesn't match the tenant in the subject`)
	}
	q.TenantID, q.CreateMissing = tenantID, false // a tenant's own caller may not create it
	return q, nil
}

// validate returns the request as minting reads it.
func (r TokenRequest) validate() (tokenRequest, error) {
	q := tokenRequest{tenantID: []byte(r.TenantID), workspaceID: []byte(r.WorkspaceID)}
	if r.TTLSeconds != nil {
		if q.ttl = *r.TTLSeconds; q.ttl < 1 {
			return q, invalid(errors.New(`"ttl_seconds" must be at least 1`))
		}
	}
	if err := events.ValidateTenantID(r.TenantID); err != nil {
		return q, invalid(err)
	}
	return q, nil
}

// parseSimpleRequest is decodeTokenRequest for requests in the common form. ok is false for any
// other.
func parseSimpleRequest(r events.Request) (q tokenRequest, ok bool) {
	if len(r.Data) == 0 {
		q.tenantID = []byte(r.Token)
	} else if q, ok = parseSimple(r.Data); !ok {
		return q, false
	}
	return q, r.Token == "" || isSimpleToken(r.Token) && r.Token == string(q.tenantID)
}

// isSimpleToken reports whether a subject's token is the tenant id itself, with nothing
// percent-encoded.
func isSimpleToken(token string) bool {
	for i := range len(token) {
		if c := token[i]; c <= ' ' || c >= 0x7f || c == '%' || c == '*' || c == '>' {
			return false
		}
	}
	return true
}

// parseSimple parses a request in the common form: the known names, once each, strings without
// escapes, a whole number. ok is false for any other, which is left to the strict decoder. It
// allocates nothing: q refers to data.
func parseSimple(data []byte) (q tokenRequest, ok bool) {
	if !utf8.Valid(data) {
		return q, false
	}
	s := scanner{data}
	for open := byte('{'); !s.is('}'); open = ',' {
		if !s.is(open) {
			return q, false
		}
		name, ok := s.text()
		if !ok || !s.is(':') {
			return q, false
		}
		switch {
		case string(name) == "tenant_id" && q.tenantID == nil:
			q.tenantID, ok = s.text()
		case string(name) == "workspace_id" && q.workspaceID == nil:
			q.workspaceID, ok = s.text()
		case string(name) == "ttl_seconds" && q.ttl == 0:
			q.ttl, ok = s.number()
		default:
			ok = false
		}
		if !ok {
			return q, false
		}
	}
	s.space()
	return q, len(s.rest) == 0 && len(q.tenantID) > 0
}

// scanner reads simple JSON from the front of rest.
type scanner struct{ rest []byte }

func (s *scanner) space() {
	for len(s.rest) > 0 && (s.rest[0] == ' ' || s.rest[0] == '\n' || s.rest[0] == '\t' || s.rest[0] == '\r') {
		s.rest = s.rest[1:]
	}
}

// is consumes c, after white space, if it comes next.
func (s *scanner) is(c byte) bool {
	s.space()
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// text reads a string that is not empty and has no escapes.
func (s *scanner) text() ([]byte, bool) {
	if !s.is('"') {
		return nil, false
	}
	for i, c := range s.rest {
		switch {
		case c == '"':
			text := s.rest[:i]
			s.rest = s.rest[i+1:]
			return text, i > 0
		case c < ' ' || c == '\\':
			return nil, false
		}
	}
	return nil, false
}

// number reads a whole number from 1 to 999,999,999.
func (s *scanner) number() (n int64, ok bool) {
	s.space()
	for len(s.rest) > 0 && s.rest[0] >= '0' && s.rest[0] <= '9' && n < 100_000_000 {
		n = n*10 + int64(s.rest[0]-'0')
		if s.rest = s.rest[1:]; n == 0 {
			return 0, false
		}
	}
	return n, n > 0
}
