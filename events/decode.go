package events

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

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
	maxEventID = 255             // code points
	maxAhead   = 5 * time.Minute // of the stream's time
)

func permanentf(code, format string, args ...any) error {
	return &Permanent{Code: code, Err: fmt.Errorf(format, args...)}
}

// Decode decodes an event in any of its three forms: CloudEvents binary mode, CloudEvents structured
// mode, or plain JSON. Its error is a *Permanent, and even then the event's ID, Time and Message are
// set as far as they are known.
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
	// The identity: Papermap-Event-Id, or else CloudEvents id, or else Nats-Msg-Id, or else the
	// stored message. The id that a replay kept comes first, so that another dead letter of the
	// same event keeps its identity.
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
	e.Source = a["source"]
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
	e.Data, err = decodePayload(r.Type, data)
	return e, err
}

// readHeaders returns the relevant headers, by their names as written here. Header names compare
// without case. Two different values of one header would be ambiguous, and could be read
// differently at each delivery, because a Go map has no order. The attributes of a CloudEvent in
// binary mode are percent-decoded, as the CloudEvents binding for NATS requires.
func readHeaders(h nats.Header) (map[string]string, error) {
	read := map[string]string{}
	for _, name := range []string{
		"ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "content-type",
		nats.MsgIdHdr, headerEventID, headerEventTime,
	} {
		for key, values := range h {
			if !strings.EqualFold(key, name) {
				continue
			}
			for _, v := range values {
				v = textproto.TrimString(v) // as it would be after a replay
				if strings.HasPrefix(name, attributePrefix) {
					v = percentDecode(v)
				}
				if other, given := read[name]; given && other != v {
					return nil, permanentf(codeEnvelope,
						"the header %s is given twice with different values: send one", name)
				}
				read[name] = v
			}
		}
	}
	return read, nil
}

const attributePrefix = "ce-" // of the headers that are attributes of a CloudEvent in binary mode

// validateAttributes checks the encoding of all attributes, including unused ones.
func validateAttributes(h nats.Header) error {
	for _, key := range slices.Sorted(maps.Keys(h)) { // the same error each time
		if !hasPrefixFold(key, attributePrefix) {
			continue
		}
		for _, v := range h[key] {
			if !utf8.ValidString(percentDecode(v)) {
				return permanentf(codeEnvelope, "the header %s is not valid UTF-8", quote(key))
			}
		}
	}
	return nil
}

// percentDecode decodes each % that is followed by two hex digits; another % stays.
func percentDecode(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	decoded := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				decoded = append(decoded, b[0])
				i += 2
				continue
			}
		}
		decoded = append(decoded, s[i])
	}
	return string(decoded)
}

// attributes are the CloudEvents attributes that are used here. CloudEvents requires a source; an
// event without one is accepted.
type attributes map[string]string

var attributeNames = []string{"specversion", "id", "source", "type", "time"}

// unwrap returns the data and, unless the event is plain JSON, valid attributes.
func unwrap(r Raw, h map[string]string) (attributes, []byte, error) {
	if _, binary := h["ce-specversion"]; binary {
		if err := validateAttributes(r.Header); err != nil {
			return nil, nil, err
		}
		a := attributes{}
		for _, name := range attributeNames {
			if v, given := h[attributePrefix+name]; given {
				a[name] = v
			}
		}
		return a, r.Data, a.validate(r.Type)
	}
	if !strings.HasPrefix(strings.ToLower(h["content-type"]), "application/cloudevents") {
		var version jsontext.Value
		if err := DecodeObject(r.Data, map[string]any{"specversion": &version}); err != nil {
			return nil, nil, &Permanent{Code: codeJSON, Err: err}
		}
		if version == nil {
			return nil, r.Data, nil
		}
	}
	return unwrapStructured(r)
}

func unwrapStructured(r Raw) (attributes, []byte, error) {
	given, fields := map[string]*jsontext.Value{}, map[string]any{}
	for _, name := range append([]string{"data", "data_base64"}, attributeNames...) {
		given[name] = new(jsontext.Value)
		fields[name] = given[name]
	}
	if err := DecodeObject(r.Data, fields); err != nil {
		return nil, nil, &Permanent{Code: codeJSON, Err: err}
	}
	a := attributes{}
	for _, name := range attributeNames {
		value := *given[name]
		if value == nil || value.Kind() == 'n' { // CloudEvents' JSON format: null means unset
			continue
		}
		var text string
		if err := assign(&text, name, value); err != nil {
			return nil, nil, permanentf(codeEnvelope, "the CloudEvent's %w", err)
		}
		a[name] = text
	}
	if err := a.validate(r.Type); err != nil {
		return nil, nil, err
	}
	data := *given["data"]
	switch {
	case *given["data_base64"] != nil:
		return nil, nil, permanentf(codeEnvelope,
			`"data_base64" is not supported: send the data as a JSON object in "data"`)
	case data == nil:
		return nil, nil, permanentf(codeEnvelope, `the CloudEvent has no "data"`)
	case data.Kind() != '{':
		return nil, nil, permanentf(codeEnvelope, `the CloudEvent's "data" must be a JSON object`)
	}
	return a, data, nil
}

// validate checks the attributes of an event that was published as a type.
func (a attributes) validate(published string) error {
	id, hasID := a["id"]
	eventType, hasType := a["type"]
	switch {
	case a["specversion"] != "1.0":
		return permanentf(codeEnvelope, "the CloudEvent's specversion is %s: send 1.0",
			quote(a["specversion"]))
	case !hasID:
		return permanentf(codeEnvelope, "the CloudEvent has no id")
	case !validEventID(id):
		return wrongID("the CloudEvent's id")
	case hasType && eventType != published:
		return permanentf(codeEnvelope,
			"the CloudEvent's type is %s, but it was published as %s: make them the same",
			quote(eventType), quote(published))
	}
	return nil
}

// validEventID reports whether an id can be a header, a database key and a line of a log.
func validEventID(id string) bool {
	return id != "" && utf8.ValidString(id) && utf8.RuneCountInString(id) <= maxEventID &&
		!strings.ContainsFunc(id, unicode.IsControl)
}

func wrongID(name string) error {
	return permanentf(codeEnvelope,
		"%s must have 1 to %d characters of valid UTF-8, none of them a control character", name, maxEventID)
}

// time.Parse alone accepts more than RFC 3339: hours of one digit, a comma before the fraction
// (https://go.dev/issue/54580).
var timeForm = regexp.MustCompile(
	`^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// parseTime parses RFC 3339. time.Parse does not know leap seconds, which are the last second of a
// month in UTC; here they are the second after them.
func parseTime(text string) (time.Time, error) {
	const seconds = len("2016-12-31T23:59:")
	if len(text) < seconds+2 || text[seconds:seconds+2] != "60" {
		return time.Parse(time.RFC3339Nano, text)
	}
	t, err := time.Parse(time.RFC3339Nano, text[:seconds]+"59"+text[seconds+2:])
	t = t.Add(time.Second)
	if u := t.UTC(); err == nil && (u.Day() != 1 || u.Hour() != 0 || u.Minute() != 0) {
		err = errors.New("a leap second is the last second of a month")
	}
	return t, err
}

// eventTime reads an event's time. A time far ahead of the stream's is replaced by the stream's: a
// publisher's wrong clock must not outrank every later event.
func eventTime(name, text string, stream time.Time) (time.Time, error) {
	t, err := parseTime(strings.ToUpper(text))
	if err != nil || !timeForm.MatchString(text) {
		return t, permanentf(codeEnvelope, "%s is %s: send RFC 3339, such as 2025-01-31T23:59:59Z",
			name, quote(text))
	}
	if t.Before(time.Unix(0, 0)) {
		return t, permanentf(codeEnvelope, "%s is %s, before 1970: the publisher has probably not set it",
			name, quote(text))
	}
	if t.After(stream.Add(maxAhead)) {
		t = stream
	}
	return t.UTC(), nil
}
