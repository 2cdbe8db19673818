package papermap

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
)

// RequestLife is how long the signature of an API request is valid (documented: now + 300 seconds).
const RequestLife = 300 * time.Second

// Sign returns the documented signature: HMAC-SHA256 over the workspace id followed directly by
// validUntil (Unix seconds, decimal), keyed with the secret's bytes, as lower-case hex. Nothing
// else is signed: no method, path, body, tenant or dashboard.
func Sign(secret Secret, workspaceID string, validUntil int64) string {
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write([]byte(workspaceID))
	mac.Write(strconv.AppendInt(nil, validUntil, 10))
	return hex.EncodeToString(mac.Sum(nil))
}
