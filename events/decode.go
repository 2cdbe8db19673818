package events

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
)

// Codes of the permanent errors that Decode returns.
const (
	codeJSON     = "INVALID_JSON"     // cannot be read in exactly one way
	codeEnvelope = "INVALID_ENVELOPE" // CloudEvents attributes, ids and times
	codeField    = "INVALID_FIELD"    // a field of the data
	codeType     = "UNKNOWN_TYPE"
)

const (
	maxTenantID = 255  // code points, by contract
	maxEventID  = 1024 // code points
	maxAhead    = 5 * time.Minute
)

// Decode reads an event in any of its three forms: CloudEvents binary, CloudEvents structured, or plain JSON. Its
// error is a *Permanent, and even then the event's ID, Time and Message are set as far as they are known.
func Decode(r Raw) (Event, error) {
	message := fmt.Sprintf("%d-%d", r.Sequence, r.Time.UnixNano())
	e := Event{ID: message, Type: r.Type, Time: r.Time.UTC(), Message: message}
	if id := header(r.Header, nats.MsgIdHdr); validEventID(id) {
		e.ID = id
	}
	data, err := unwrap(r, &e)
	if err != nil {
		return e, err
	}
	if err := override(r, &e); err != nil {
		return e, err
	}
	e.Data, err = payload(r.Type, data)
	return e, err
}

// unwrap finds the data, and takes identity and time from a CloudEvents envelope.
func unwrap(r Raw, e *Event) (data []byte, err error) {
	var a attributes
	if version := header(r.Header, "ce-specversion"); version != "" {
		a = attributes{version, header(r.Header, "ce-id"), header(r.Header, "ce-type"), header(r.Header, "ce-time")}
		return r.Data, a.apply(r, e)
	}
	structured := strings.HasPrefix(strings.ToLower(header(r.Header, "content-type")), "application/cloudevents")
	if !structured {
		var version jsontext.Value
		if err := DecodeObject(r.Data, map[string]any{"specversion": &version}); err != nil {
			return nil, &Permanent{Code: codeJSON, Err: err}
		}
		if structured = version != nil; !structured {
			return r.Data, nil
		}
	}
	var inData, base64 jsontext.Value
	nullable := map[string]*string{"specversion": &a.version, "id": &a.id, "type": &a.eventType, "time": &a.time, "source": new(string)}
	fields := map[string]any{"data": &inData, "data_base64": &base64}
	values := map[string]*jsontext.Value{}
	for name := range nullable {
		values[name] = new(jsontext.Value)
		fields[name] = values[name]
	}
	if err := DecodeObject(r.Data, fields); err != nil {
		return nil, &Permanent{Code: codeJSON, Err: err}
	}
	for name, dest := range nullable { // CloudEvents' JSON format: a null attribute is an unset one
		if v := *values[name]; v != nil && v.Kind() != 'n' {
			if err := assign(dest, name, v); err != nil {
				return nil, &Permanent{Code: codeEnvelope, Err: err}
			}
		}
	}
	if err := a.apply(r, e); err != nil {
		return nil, err
	}
	if base64 != nil {
		return nil, &Permanent{Code: codeEnvelope, Err: errors.New(`"data_base64" is not taken: send the data as JSON in "data"`)}
	}
	if inData == nil {
		return nil, &Permanent{Code: codeEnvelope, Err: errors.New(`the CloudEvent has no "data"`)}
	}
	return inData, nil
}

// attributes are those of a CloudEvent that count here. Its source is required by CloudEvents but not used.
type attributes struct{ version, id, eventType, time string }

func (a attributes) apply(r Raw, e *Event) error {
	wrong := func(format string, args ...any) error {
		return &Permanent{Code: codeEnvelope, Err: fmt.Errorf(format, args...)}
	}
	switch {
	case a.version != "1.0":
		return wrong("CloudEvents specversion is %s: send 1.0", short(a.version))
	case a.id == "":
		return wrong("the CloudEvent has no id")
	case !validEventID(a.id):
		return wrong("the CloudEvent's id has more than %d characters, control characters or invalid UTF-8", maxEventID)
	}
	e.ID = a.id
	if a.eventType != "" && a.eventType != r.Type {
		return wrong("the CloudEvent's type is %s, but it was published as %s", short(a.eventType), r.Type)
	}
	if a.time == "" {
		return nil
	}
	t, err := eventTime(a.time, r.Time)
	if err != nil {
		return wrong("the CloudEvent's time %s", err)
	}
	e.Time = t
	return nil
}

// override takes the identity that a replay keeps in headers of ours.
func override(r Raw, e *Event) error {
	if id := header(r.Header, headerEventID); id != "" {
		if !validEventID(id) {
			return &Permanent{Code: codeEnvelope, Err: fmt.Errorf("%s has more than %d characters, control characters or invalid UTF-8", headerEventID, maxEventID)}
		}
		e.ID = id
	}
	if text := header(r.Header, headerEventTime); text != "" {
		t, err := eventTime(text, r.Time)
		if err != nil {
			return &Permanent{Code: codeEnvelope, Err: fmt.Errorf("%s %s", headerEventTime, err)}
		}
		e.Time = t
	}
	return nil
}

// eventTime reads an event's time. One far ahead of the stream's is replaced by that: a wrong clock at a publisher
// must not outrank every later event.
func eventTime(text string, stream time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, fmt.Errorf("%s is not RFC 3339, such as 2025-01-31T23:59:59Z", short(text))
	}
	if t.Before(time.Unix(0, 0)) {
		return t, fmt.Errorf("%s is before 1970: the publisher has probably not set it", short(text))
	}
	if t.After(stream.Add(maxAhead)) {
		t = stream
	}
	return t.UTC(), nil
}

// payload reads the data of an event type.
func payload(eventType string, data []byte) (any, error) {
	d := fields{data: data}
	switch eventType {
	case TypeTenantCreated:
		var p TenantCreated
		d.read(map[string]*string{
			"tenant_id": &p.TenantID, "name": &p.Name, "title": &p.Title, "description": &p.Description,
			"workspace_id": &p.WorkspaceID, "created_by": &p.CreatedBy,
		})
		d.check(ValidateTenantID(p.TenantID))
		if strings.TrimSpace(p.Name) == "" {
			d.check(errors.New(`"name" is missing or blank`))
		}
		return p, d.err
	case TypeTenantSuspended, TypeTenantResumed, TypeTenantDeleted:
		var p TenantChange
		d.read(map[string]*string{"tenant_id": &p.TenantID, "workspace_id": &p.WorkspaceID, "reason": &p.Reason})
		d.check(ValidateTenantID(p.TenantID))
		return p, d.err
	case TypeUsageSync:
		var p UsageSync
		d.read(map[string]*string{"workspace_id": &p.WorkspaceID, "tenant_id": &p.TenantID, "from_period": &p.FromPeriod, "to_period": &p.ToPeriod})
		d.check(p.validate(data))
		return p, d.err
	}
	return nil, &Permanent{Code: codeType, Err: fmt.Errorf("%s is no type of event that the worker takes", short(eventType))}
}

func (p UsageSync) validate(data []byte) error {
	var kind jsontext.Value
	if err := DecodeObject(data, map[string]any{"type": &kind}); err == nil && strings.HasPrefix(string(kind), `"io.nats.micro`) {
		return errors.New("this is an answer of a NATS micro service that was led here, no event")
	}
	if p.TenantID != "" {
		if err := ValidateTenantID(p.TenantID); err != nil {
			return err
		}
	}
	for name, period := range map[string]string{"from_period": p.FromPeriod, "to_period": p.ToPeriod} {
		if err := ValidatePeriod(period); period != "" && err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	if p.FromPeriod != "" && p.ToPeriod != "" && p.FromPeriod > p.ToPeriod {
		return errors.New(`"from_period" is after "to_period"`)
	}
	return nil
}

// fields reads an event's data and keeps the first error.
type fields struct {
	data []byte
	err  error
}

func (f *fields) read(dest map[string]*string) {
	all := make(map[string]any, len(dest))
	for name, d := range dest {
		all[name] = d
	}
	if err := DecodeObject(f.data, all); err != nil {
		f.err = &Permanent{Code: codeJSON, Err: err}
		return
	}
	for name, d := range dest {
		if strings.ContainsRune(*d, 0) { // PostgreSQL refuses it, SQLite does not
			f.check(fmt.Errorf("%q has a NUL character", name))
		}
	}
	if ws := dest["workspace_id"]; *ws != "" && ValidateTenantID(*ws) != nil {
		f.check(errors.New(`"workspace_id" is no id: it has more than 255 characters, control characters or white space at an end`))
	}
}

func (f *fields) check(err error) {
	if f.err == nil && err != nil {
		f.err = &Permanent{Code: codeField, Err: err}
	}
}

// ValidateTenantID returns what is wrong with a tenant id: it is 1 to 255 characters of valid UTF-8 without control
// characters, without white space at either end.
func ValidateTenantID(id string) error {
	switch {
	case id == "":
		return errors.New(`"tenant_id" is missing or empty`)
	case !utf8.ValidString(id):
		return errors.New(`"tenant_id" is not valid UTF-8`)
	case utf8.RuneCountInString(id) > maxTenantID:
		return fmt.Errorf(`"tenant_id" has more than %d characters`, maxTenantID)
	case strings.ContainsFunc(id, unicode.IsControl):
		return errors.New(`"tenant_id" has control characters`)
	case strings.TrimSpace(id) != id:
		return errors.New(`"tenant_id" has white space at an end`)
	}
	return nil
}

var periodForm = regexp.MustCompile(`^2[0-9]{3}-(0[1-9]|1[0-2])$`)

// ValidatePeriod returns what is wrong with a month in the form YYYY-MM.
func ValidatePeriod(period string) error {
	if !periodForm.MatchString(period) {
		return fmt.Errorf("%s is no month in the form YYYY-MM", short(period))
	}
	return nil
}

// DecodeObject reads one JSON object strictly. fields maps the known names to where their values go: *string,
// **int64 (nil when absent) or *jsontext.Value (any value; nil when absent). Unknown names are ignored. It refuses
// everything that two readers could understand differently: duplicate names at any depth, a name that differs from
// a known one only by case, invalid UTF-8, and anything before or after the object; and null or a wrong type for a
// known name. Messages name fields and never quote values.
func DecodeObject(data []byte, fields map[string]any) error {
	d := jsontext.NewDecoder(bytes.NewReader(data))
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("the body is empty: send a JSON object")
	}
	switch token, err := d.ReadToken(); {
	case err != nil:
		return syntax(err)
	case token.Kind() != '{':
		return errors.New("the body is not a JSON object")
	}
	for d.PeekKind() != '}' {
		token, err := d.ReadToken()
		if err != nil {
			return syntax(err)
		}
		name := token.String()
		value, err := d.ReadValue()
		if err != nil {
			return syntax(err)
		}
		dest, known := fields[name]
		if !known {
			for other := range fields {
				if strings.EqualFold(other, name) {
					return fmt.Errorf("%s differs from the field %q only by case", short(name), other)
				}
			}
			continue
		}
		if err := assign(dest, name, value); err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return syntax(err)
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return errors.New("there is more data after the JSON object")
	}
	return nil
}

func assign(dest any, name string, value jsontext.Value) error {
	switch dest := dest.(type) {
	case *string:
		if value.Kind() != '"' {
			return fmt.Errorf("%q must be a string", name)
		}
		if err := json.Unmarshal(value, dest); err != nil {
			return syntax(err)
		}
	case **int64:
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil {
			return fmt.Errorf("%q must be a whole number", name)
		}
		*dest = &n
	case *jsontext.Value:
		*dest = value.Clone()
	default:
		panic(fmt.Sprintf("field %s: no way to read into %T", name, dest))
	}
	return nil
}

// syntax says what is wrong with JSON and where, without what the body says there.
func syntax(err error) error {
	var s *jsontext.SyntacticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return errors.New("the JSON has an object with the same name twice")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the JSON ends too early")
	case errors.As(err, &s):
		return fmt.Errorf("the body is not valid JSON at byte %d", s.ByteOffset)
	}
	return errors.New("the body is not valid JSON")
}

// header finds a header by its name without case.
func header(h nats.Header, name string) string {
	for key, values := range h {
		if len(values) > 0 && strings.EqualFold(key, name) {
			return values[0]
		}
	}
	return ""
}

func validEventID(id string) bool {
	return id != "" && utf8.ValidString(id) && utf8.RuneCountInString(id) <= maxEventID && !strings.ContainsFunc(id, unicode.IsControl)
}

// short quotes a little of a stranger's text.
func short(s string) string { return strconv.Quote(oneLine(s, 40)) }
