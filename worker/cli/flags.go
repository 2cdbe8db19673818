package cli

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// Types of flags that kong checks when it parses the command line. An error of theirs is exit code
// 2.

// limit is a maximum number, 1 or more.
type limit int

func (n limit) Validate() error {
	if n < 1 {
		return errors.New("use 1 or more")
	}
	return nil
}

// status is the status of a tenant; empty for any.
type status repo.Status

func (s status) Validate() error {
	if s != "" && !slices.Contains(repo.Statuses(), repo.Status(s)) {
		return fmt.Errorf("use one of %v", repo.Statuses())
	}
	return nil
}

// month is a month in the form YYYY-MM; empty if it was not given.
type month string

func (m month) Validate() error {
	if m == "" {
		return nil
	}
	return events.ValidatePeriod(string(m))
}

// timeOrAgo is a time in RFC 3339, or given as how long ago it was, such as 2h; zero if it was not
// given.
type timeOrAgo struct{ time.Time }

func (t *timeOrAgo) UnmarshalText(text []byte) (err error) {
	if ago, err := time.ParseDuration(string(text)); err == nil && ago >= 0 {
		t.Time = time.Now().Add(-ago)
		return nil
	}
	if t.Time, err = time.Parse(time.RFC3339, string(text)); err != nil {
		return fmt.Errorf("invalid time %q: use RFC 3339 (2025-01-31T12:00:00Z) or a time ago (2h)", text)
	}
	return nil
}
