package papermap

import (
	"fmt"
	"strings"
	"time"
)

// Class says what is known about a failed request's outcome, and therefore what may be done about
// it.
type Class string

const (
	// Refused: processed and refused. The same request will be refused again.
	Refused Class = "refused"
	// Retryable: provably not processed, or a read. It may be sent again.
	Retryable Class = "retryable"
	// Credentials: 401 or 403. The keys are wrong or revoked; nothing was processed.
	Credentials Class = "credentials"
	// Configuration: 404 or a redirect. The address or the workspace is wrong; nothing was
	// processed.
	Configuration Class = "configuration"
	// Quota: 402, or the API says that the workspace's quota is used up; nothing was processed.
	Quota Class = "quota"
	// Unknown: the answer was lost or is unusable. The request may have been processed.
	Unknown Class = "unknown"
)

// Error is a failed request. It may be logged and stored: Code and Message are one line each and
// hold none of the workspace's keys or signatures, even when the server echoed them.
type Error struct {
	Class   Class
	Status  int    // HTTP status; 0 when there was no answer
	Code    string // the API's own code, if it gave one; at most 64 code points
	Message string // what went wrong, in the server's words if it gave any; at most 300 code points

	// RetryAfter is what the server asked for, from 1 s to 15 min; 0 when it asked for nothing.
	RetryAfter time.Duration
	// Deferred: not a failure, but a request to come back later. Either the server's (429, or 503
	// with Retry-After), or that of the process's own rate limit.
	Deferred bool
	// Unreadable: a whole answer of success that cannot be used. What was created is Unknown, and the
	// next create is likely to end the same way.
	Unreadable bool
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
