package worker

import (
	"errors"
	"fmt"
	"time"

	"papermap-worker/events"
)

// retry is the error of an event that is to be delivered again after a delay. It is not a failure.
func retry(after time.Duration, reason string) error {
	return &events.Retry{After: after, Err: errors.New(reason)}
}

// permanent is the error of an event that becomes a dead letter without any side effect.
func permanent(code, format string, args ...any) error {
	return &events.Permanent{Code: code, Err: fmt.Errorf(format, args...)}
}

// serviceError is the answer to a refused request. retryAfter is in seconds; 0: do not retry.
func serviceError(status int, code string, retryAfter int, message string) *events.ServiceError {
	return &events.ServiceError{Status: status, Code: code, RetryAfter: retryAfter, Message: message}
}

// invalid is the answer to a request that its caller has to correct.
func invalid(err error) *events.ServiceError {
	return serviceError(400, "INVALID_REQUEST", 0, err.Error())
}

// errOtherWorkspace answers a request that names a workspace which is not the tenant's.
var errOtherWorkspace = invalid(errors.New(`"workspace_id" is not the tenant's workspace`))

// logOnce decides when a lasting problem is logged: when it begins, and not again until it has
// ended.
type logOnce struct{ on bool }

// begins reports whether the problem exists and did not at the last call.
func (o *logOnce) begins(problem bool) bool {
	first := problem && !o.on
	o.on = problem
	return first
}
