package events

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

const maxTenantID = 255 // code points, as are all lengths

// field is a text field of an event's data.
type field struct {
	name string
	dest *string
	max  int // code points; 0: checked elsewhere, or bounded by the message alone
}

// readFields reads the fields of an event's data and makes the checks that apply to every event.
func readFields(data []byte, fields []field) error {
	known := make(map[string]any, len(fields))
	for _, f := range fields {
		known[f.name] = f.dest
	}
	if err := DecodeObject(data, known); err != nil {
		var value valueError
		if errors.As(err, &value) {
			return wrongField(err)
		}
		return &Permanent{Code: codeJSON, Err: err}
	}
	for _, f := range fields {
		if err := f.validate(); err != nil {
			return wrongField(err)
		}
	}
	return nil
}

// validate returns the problem of the field's text. An empty text counts as absent.
func (f field) validate() error {
	switch {
	case strings.ContainsRune(*f.dest, 0): // PostgreSQL refuses it, SQLite does not
		return fmt.Errorf("%q has a NUL character", f.name)
	case f.max > 0 && utf8.RuneCountInString(*f.dest) > f.max:
		return fmt.Errorf("%q has more than %d characters", f.name, f.max)
	case strings.HasSuffix(f.name, "_id") && *f.dest != "":
		return validateID(f.name, *f.dest)
	case strings.HasSuffix(f.name, "_period") && *f.dest != "":
		if err := ValidatePeriod(*f.dest); err != nil {
			return fmt.Errorf("%q: %w", f.name, err)
		}
	}
	return nil
}

// wrongField makes err permanent; nil stays nil.
func wrongField(err error) error {
	if err == nil {
		return nil
	}
	return &Permanent{Code: codeField, Err: err}
}

// ValidateTenantID returns the problem of a tenant id: it must be 1 to 255 characters of valid
// UTF-8 without control characters and without leading or trailing white space.
func ValidateTenantID(id string) error { return validateID("tenant_id", id) }

// ValidateDashboardID returns the problem of the id of a dashboard to be adopted. It has the form
// of a tenant id.
func ValidateDashboardID(id string) error { return validateID("dashboard_id", id) }

func validateID(name, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%q is missing or empty", name)
	case !utf8.ValidString(id):
		return fmt.Errorf("%q is not valid UTF-8", name)
	case utf8.RuneCountInString(id) > maxTenantID:
		return fmt.Errorf("%q has more than %d characters", name, maxTenantID)
	case strings.ContainsFunc(id, unicode.IsControl):
		return fmt.Errorf("%q has control characters", name)
	case strings.TrimSpace(id) != id:
		return fmt.Errorf("%q has leading or trailing white space", name)
	}
	return nil
}

var periodForm = regexp.MustCompile(`^2[0-9]{3}-(0[1-9]|1[0-2])$`)

// ValidatePeriod returns the problem of a month: it must have the form YYYY-MM, and a year from
// 2000 to 2999.
func ValidatePeriod(period string) error {
	if !periodForm.MatchString(period) {
		return fmt.Errorf("invalid month %s: use YYYY-MM, from 2000-01 to 2999-12", quote(period))
	}
	return nil
}

// isMicroReply reports whether data is a reply of a NATS micro service to $SRV. Its library replies
// to any subject, so a $SRV request with an event subject as its reply subject would start a usage
// sync.
func isMicroReply(data []byte) bool {
	var kind jsontext.Value
	if err := DecodeObject(data, map[string]any{"type": &kind}); err != nil || kind.Kind() != '"' {
		return false
	}
	var text string
	return assign(&text, "type", kind) == nil && strings.HasPrefix(text, "io.nats.micro")
}
