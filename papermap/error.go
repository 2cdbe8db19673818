package papermap

import (
	"fmt"
	"strings"
	"time"
)

// Class says what is known of a failed request's outcome.
type Class string

const (
	Refused       Class = "refused"       // processed and refused: the same request will be refused again
	Retryable     Class = "retryable"     // provably not processed (or a read): may be sent again
	Credentials   Class = "credentials"   // 401 or 403: keys are wrong or revoked; nothing was processed
	Configuration Class = "configuration" // 404 or a redirect: the address or the workspace is wrong; nothing was processed
	Unknown       Class = "unknown"       // the answer was lost or makes no sense: it may have been processed
)

// Error is a failed request. Message holds what the server said, on one line of at most 300 code points and
// without our keys or signature, so that it may be logged and stored.
type Error struct {
	Class      Class
	Status     int           // HTTP status; 0 when there was no answer
	Code       string        // the API's own code, when it gave one
	Message    string        // what went wrong
	RetryAfter time.Duration // what the server asked for, 1 s to 15 min; 0 when it asked for nothing
	Deferred   bool          // come back later: the server asked for it (429, 503 with Retry-After), or our own rate limit; not a failure
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "papermap (%s)", e.Class)
	if e.Status != 0 {
		fmt.Fprintf(&b, ": status %d", e.Status)
	}
	for _, s := range []string{e.Code, e.Message} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	return b.String()
}
