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
	maxTenantID = 255 // code points, as are all lengths
	maxEventID  = 255
	maxAhead    = 5 * time.Minute
)

// maxTexts are the longest texts of a tenant.created. With them the API's answer and an event that is published again, which
// hold them too, stay far below what is read and what NATS takes.
var maxTexts = map[string]int{"name": 1000, "title": 1000, "description": 10_000, "created_by": 255}

// Decode reads an event in any of its three forms: CloudEvents binary, CloudEvents structured, or plain JSON. Its
// error is a *Permanent, and even then the event's ID, Time and Message are set as far as they are known.
func Decode(r Raw) (Event, error) {
	message := fmt.Sprintf("%d-%d", r.Sequence, r.Time.UnixNano())
	e := Event{ID: message, Type: r.Type, Time: r.Time.UTC(), Message: message, Stored: r.Time}
	h, err := readHeaders(r.Header)
	if err != nil {
		return e, err
	}
	msgID := h[nats.MsgIdHdr]
	if validEventID(msgID) {
		e.ID = msgID
	}
	// What a replay kept comes first, so that another dead letter of the same event has its identity too.
	ownID, hasOwnID := h[headerEventID]
	if hasOwnID {
		if !validEventID(ownID) {
			return e, wrongID(headerEventID)
		}
		e.ID = ownID
	}
	ownTime, hasOwnTime := h[headerEventTime]
	if hasOwnTime {
		if e.Time, err = eventTime(headerEventTime, ownTime, r.Time); err != nil {
			e.Time = r.Time.UTC()
			return e, err
		}
	}
	a, data, err := unwrap(r, h)
	if err != nil {
		return e, err
	}
	id, isCloudEvent := a["id"]
	switch {
	case hasOwnID:
	case isCloudEvent:
		e.ID = id
	case msgID != "" && !validEventID(msgID):
		return e, wrongID(nats.MsgIdHdr)
	}
	if text, given := a["time"]; given {
		t, err := eventTime("the CloudEvent's time", text, r.Time)
		if err != nil {
			return e, err
		}
		if !hasOwnTime {
			e.Time = t
		}
	}
	e.Data, err = payload(r.Type, data)
	return e, err
}

// readHeaders returns the headers that count, by their names as written here. Their names compare without case; two
// different values of one could be read in two ways, and differently at each delivery.
func readHeaders(h nats.Header) (map[string]string, error) {
	read := map[string]string{}
	for _, name := range []string{
		"ce-specversion", "ce-id", "ce-type", "ce-time", "content-type", nats.MsgIdHdr, headerEventID, headerEventTime,
	} {
		for key, values := range h {
			if !strings.EqualFold(key, name) {
				continue
			}
			for _, v := range values {
				if other, given := read[name]; given && other != v {
					return nil, wrongEnvelope("the header %s is given twice with different values: send one", name)
				}
				read[name] = v
			}
		}
	}
	return read, nil
}

// attributes are those of a CloudEvent that are given and count here: specversion, id, type and time. Its source is
// required by CloudEvents but not used.
type attributes map[string]string

// unwrap finds the data and, unless the event is plain JSON, the attributes in good order.
func unwrap(r Raw, h map[string]string) (attributes, []byte, error) {
	if _, binary := h["ce-specversion"]; binary {
		a := attributes{}
		for _, name := range []string{"specversion", "id", "type", "time"} {
			if v, given := h["ce-"+name]; given {
				a[name] = v
			}
		}
		return a, r.Data, a.validate(r.Type)
	}
	var version, id, eventType, t, data, base64 jsontext.Value
	if !strings.HasPrefix(strings.ToLower(h["content-type"]), "application/cloudevents") {
		if err := DecodeObject(r.Data, map[string]any{"specversion": &version}); err != nil {
			return nil, nil, &Permanent{Code: codeJSON, Err: err}
		}
		if version == nil {
			return nil, r.Data, nil
		}
	}
	if err := DecodeObject(r.Data, map[string]any{
		"specversion": &version, "id": &id, "type": &eventType, "time": &t, "data": &data, "data_base64": &base64,
	}); err != nil {
		return nil, nil, &Permanent{Code: codeJSON, Err: err}
	}
	a := attributes{}
	for _, given := range []struct {
		name  string
		value jsontext.Value
	}{{"specversion", version}, {"id", id}, {"type", eventType}, {"time", t}} {
		if given.value == nil || given.value.Kind() == 'n' { // CloudEvents' JSON format: a null attribute is an unset one
			continue
		}
		var text string
		if err := assign(&text, given.name, given.value); err != nil {
			return nil, nil, wrongEnvelope("the CloudEvent's %w", err)
		}
		a[given.name] = text
	}
	if err := a.validate(r.Type); err != nil {
		return nil, nil, err
	}
	switch {
	case base64 != nil:
		return nil, nil, wrongEnvelope(`"data_base64" is not taken: send the data as a JSON object in "data"`)
	case data == nil:
		return nil, nil, wrongEnvelope(`the CloudEvent has no "data"`)
	case data.Kind() != '{':
		return nil, nil, wrongEnvelope(`the CloudEvent's "data" must be a JSON object`)
	}
	return a, data, nil
}

func (a attributes) validate(published string) error {
	id, hasID := a["id"]
	eventType, hasType := a["type"]
	switch {
	case a["specversion"] != "1.0":
		return wrongEnvelope("the CloudEvent's specversion is %s: send 1.0", short(a["specversion"]))
	case !hasID:
		return wrongEnvelope("the CloudEvent has no id")
	case !validEventID(id):
		return wrongID("the CloudEvent's id")
	case hasType && eventType != published:
		return wrongEnvelope("the CloudEvent's type is %s, but it was published as %s: make them the same", short(eventType), short(published))
	}
	return nil
}

func validEventID(id string) bool {
	return id != "" && utf8.ValidString(id) && utf8.RuneCountInString(id) <= maxEventID && !strings.ContainsFunc(id, unicode.IsControl)
}

func wrongID(name string) error {
	return wrongEnvelope("%s must have 1 to %d characters of valid UTF-8, none of them a control character", name, maxEventID)
}

func wrongEnvelope(format string, args ...any) error {
	return &Permanent{Code: codeEnvelope, Err: fmt.Errorf(format, args...)}
}

// time.Parse alone takes more than RFC 3339: hours of one digit, a comma before the fraction (https://go.dev/issue/54580).
var timeForm = regexp.MustCompile(`^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// eventTime reads an event's time. One far ahead of the stream's is replaced by that: a wrong clock at a publisher
// must not outrank every later event.
func eventTime(name, text string, stream time.Time) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, strings.ToUpper(text))
	if err != nil || !timeForm.MatchString(text) {
		return t, wrongEnvelope("%s is %s: send RFC 3339, such as 2025-01-31T23:59:59Z", name, short(text))
	}
	if t.Before(time.Unix(0, 0)) {
		return t, wrongEnvelope("%s is %s, before 1970: the publisher has probably not set it", name, short(text))
	}
	if t.After(stream.Add(maxAhead)) {
		t = stream
	}
	return t.UTC(), nil
}

// payload reads the data of an event type.
func payload(eventType string, data []byte) (any, error) {
	switch eventType {
	case TypeTenantCreated:
		var p TenantCreated
		if err := readFields(data, []field{
			{"tenant_id", &p.TenantID}, {"name", &p.Name}, {"title", &p.Title}, {"description", &p.Description},
			{"workspace_id", &p.WorkspaceID}, {"created_by", &p.CreatedBy},
		}); err != nil {
			return nil, err
		}
		if strings.TrimSpace(p.Name) == "" {
			return nil, wrongField(errors.New(`"name" is missing or blank`))
		}
		return p, wrongField(ValidateTenantID(p.TenantID))
	case TypeTenantSuspended, TypeTenantResumed, TypeTenantDeleted:
		var p TenantChange
		if err := readFields(data, []field{{"tenant_id", &p.TenantID}, {"workspace_id", &p.WorkspaceID}, {"reason", &p.Reason}}); err != nil {
			return nil, err
		}
		return p, wrongField(ValidateTenantID(p.TenantID))
	case TypeUsageSync:
		var p UsageSync
		if err := readFields(data, []field{
			{"workspace_id", &p.WorkspaceID}, {"tenant_id", &p.TenantID}, {"from_period", &p.FromPeriod}, {"to_period", &p.ToPeriod},
		}); err != nil {
			return nil, err
		}
		return p, wrongField(p.validate(data))
	}
	return nil, &Permanent{Code: codeType, Err: fmt.Errorf("%s is no type of event that the worker takes", short(eventType))}
}

func (p UsageSync) validate(data []byte) error {
	if microReply(data) {
		return errors.New("this is an answer of a NATS micro service that was led here, no event")
	}
	if p.TenantID != "" {
		if err := ValidateTenantID(p.TenantID); err != nil {
			return err
		}
	}
	for _, period := range []field{{"from_period", &p.FromPeriod}, {"to_period", &p.ToPeriod}} {
		if *period.dest == "" {
			continue
		}
		if err := ValidatePeriod(*period.dest); err != nil {
			return fmt.Errorf("%q: %w", period.name, err)
		}
	}
	if p.FromPeriod != "" && p.ToPeriod != "" && p.FromPeriod > p.ToPeriod {
		return errors.New(`"from_period" is after "to_period"`)
	}
	return nil
}

// microReply says whether this is what a micro service answers on $SRV. Its library answers on any subject, so a
// request there with our subject to reply to would sync usage.
func microReply(data []byte) bool {
	var kind jsontext.Value
	if err := DecodeObject(data, map[string]any{"type": &kind}); err != nil || kind.Kind() != '"' {
		return false
	}
	var text string
	return assign(&text, "type", kind) == nil && strings.HasPrefix(text, "io.nats.micro")
}

type field struct {
	name string
	dest *string
}

// readFields reads the fields of an event's data, among them workspace_id, and checks what holds for every event.
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
		if strings.ContainsRune(*f.dest, 0) { // PostgreSQL refuses it, SQLite does not
			return wrongField(fmt.Errorf("%q has a NUL character", f.name))
		}
		if most, limited := maxTexts[f.name]; limited && utf8.RuneCountInString(*f.dest) > most {
			return wrongField(fmt.Errorf("%q has more than %d characters", f.name, most))
		}
		if f.name == "workspace_id" && *f.dest != "" {
			if err := validateID(f.name, *f.dest); err != nil {
				return wrongField(err)
			}
		}
	}
	return nil
}

// wrongField makes the error a permanent one, and leaves nil as it is.
func wrongField(err error) error {
	if err == nil {
		return nil
	}
	return &Permanent{Code: codeField, Err: err}
}

// ValidateTenantID returns what is wrong with a tenant id: it is 1 to 255 characters of valid UTF-8 without control
// characters, without white space at either end.
func ValidateTenantID(id string) error { return validateID("tenant_id", id) }

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
		return fmt.Errorf("%q has white space at an end", name)
	}
	return nil
}

var periodForm = regexp.MustCompile(`^2[0-9]{3}-(0[1-9]|1[0-2])$`)

// ValidatePeriod returns what is wrong with a month: its form is YYYY-MM, its year 2000 to 2999.
func ValidatePeriod(period string) error {
	if !periodForm.MatchString(period) {
		return fmt.Errorf("%s is no month in the form YYYY-MM, from 2000-01 to 2999-12", short(period))
	}
	return nil
}

// DecodeObject reads one JSON object strictly. fields maps the known names to where their values go: *string,
// **int64 (nil when absent) or *jsontext.Value (any value; nil when absent). Unknown names are ignored. It refuses
// everything that two readers could understand differently: duplicate names at any depth, a name that differs from
// a known one only by case, invalid UTF-8, lone surrogates, and anything before or after the object; nesting deeper
// than 10,000; and null or a wrong type for a known name. Messages name fields and never quote values.
// After an error some of the fields may have been read.
func DecodeObject(data []byte, fields map[string]any) error {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return errors.New("the body is empty: send a JSON object, {} at least")
	case !utf8.Valid(data):
		return errors.New("the body is not valid UTF-8: send UTF-8")
	case bytes.HasPrefix(data, []byte("\uFEFF")):
		return errors.New("the body begins with a byte order mark: send it without")
	}
	d := jsontext.NewDecoder(bytes.NewReader(data))
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
					return fmt.Errorf("%s differs from the field %q only by case: rename or remove it", short(name), other)
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

// valueError is a known name with a value of a wrong type, in JSON that is in order.
type valueError string

func (e valueError) Error() string { return string(e) }

func assign(dest any, name string, value jsontext.Value) error {
	switch dest := dest.(type) {
	case *string:
		if value.Kind() != '"' {
			return valueError(fmt.Sprintf("%q must be a string", name))
		}
		if err := json.Unmarshal(value, dest); err != nil {
			return syntax(err)
		}
	case **int64:
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) { // beyond the range n is its end
			return valueError(fmt.Sprintf("%q must be a whole number, written without fraction, exponent or quotes", name))
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
	case errors.As(err, &s) && s.Err.Error() == "exceeded max depth": // jsontext has no name for it
		return errors.New("the JSON is nested more than 10,000 deep")
	case errors.As(err, &s):
		return fmt.Errorf("the body is not valid JSON at byte %d", s.ByteOffset)
	}
	return errors.New("the body is not valid JSON")
}

// short quotes a little of a stranger's text.
func short(s string) string { return strconv.Quote(oneLine(s, 40)) }
