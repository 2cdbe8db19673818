package events

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// fields are the fields of the data. The limits keep the API's answers and republished events, which
// repeat these texts, far below what is read and what NATS accepts.
func (p *TenantCreated) fields() []field {
	return []field{
		{"tenant_id", &p.TenantID, 0}, {"name", &p.Name, 1000}, {"title", &p.Title, 1000},
		{"description", &p.Description, 10_000}, {"workspace_id", &p.WorkspaceID, 0},
		{"created_by", &p.CreatedBy, 255}, {"dashboard_id", &p.DashboardID, 0},
	}
}

var errNoName = errors.New(`"name" is missing or blank`)

// lacksName reports whether the name is missing although a dashboard is to be created.
func (p *TenantCreated) lacksName() bool {
	return strings.TrimSpace(p.Name) == "" && p.DashboardID == ""
}

func decodeTenantCreated(data []byte) (Payload, error) {
	var p TenantCreated
	if err := readFields(data, p.fields()); err != nil {
		return nil, err
	}
	if p.lacksName() {
		return nil, wrongField(errNoName)
	}
	return p, wrongField(ValidateTenantID(p.TenantID))
}

// FieldError is a problem with a field of an event's data.
type FieldError struct {
	Field string
	Err   error
}

// Validate lists all problems of the data, while decoding an event stops at the first.
func (p *TenantCreated) Validate() (list []FieldError) {
	for _, f := range p.fields() {
		err := f.validate()
		switch {
		case err != nil:
		case !utf8.ValidString(*f.dest):
			err = fmt.Errorf("%q is not valid UTF-8", f.name)
		case f.name == "tenant_id":
			err = ValidateTenantID(p.TenantID)
		case f.name == "name" && p.lacksName():
			err = errNoName
		}
		if err != nil {
			list = append(list, FieldError{f.name, err})
		}
	}
	return list
}
