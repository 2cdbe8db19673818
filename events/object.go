package events

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// DecodeObject reads one JSON object strictly. fields maps the known names to where their values go:
// *string, *bool, **int64 (nil when absent) or *jsontext.Value (any value; nil when absent). Unknown
// names are ignored.
//
// It refuses everything that two readers could understand differently: duplicate names at any
// depth, a name that differs from a known one only by case, invalid UTF-8, lone surrogates,
// anything before or after the object, nesting deeper than 10,000, and a wrong type for a known
// name. A text or number that is null counts as absent. Messages name fields and never quote
// values. After an error some of the fields may have been read.
//
//	var tenant string
//	var ttl *int64
//	err := events.DecodeObject(body, map[string]any{"tenant_id": &tenant, "ttl_seconds": &ttl})
func DecodeObject(data []byte, fields map[string]any) error {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return errors.New("the body is empty: send a JSON object, {} at least")
	case !utf8.Valid(data):
		return errors.New("the body is not valid UTF-8: send UTF-8")
	case bytes.HasPrefix(data, []byte("\uFEFF")):
		return errors.New("the body begins with a byte order mark: send it without")
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(data, &members); err != nil {
		return syntaxError(err)
	}
	if members == nil { // it is null
		return errors.New("the body is not a JSON object")
	}
	for _, name := range slices.Sorted(maps.Keys(members)) { // the same error each time
		if dest, known := fields[name]; known {
			if err := assign(dest, name, members[name]); err != nil {
				return err
			}
			continue
		}
		for other := range fields {
			if strings.EqualFold(other, name) {
				return fmt.Errorf("%s differs from the field %q only by case: rename or remove it",
					quote(name), other)
			}
		}
	}
	return nil
}

// valueError is a value of the wrong type for a known name, in valid JSON.
type valueError string

func (e valueError) Error() string { return string(e) }

func assign(dest any, name string, value jsontext.Value) error {
	if _, raw := dest.(*jsontext.Value); !raw && value.Kind() == 'n' {
		return nil
	}
	switch dest := dest.(type) {
	case *string:
		if value.Kind() != '"' {
			return valueError(fmt.Sprintf("%q must be a string", name))
		}
		if err := json.Unmarshal(value, dest); err != nil {
			return syntaxError(err)
		}
	case *bool:
		if kind := value.Kind(); kind != 't' && kind != 'f' {
			return valueError(fmt.Sprintf("%q must be true or false", name))
		}
		*dest = value.Kind() == 't'
	case **int64:
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) { // beyond the range n is its end
			return valueError(fmt.Sprintf(
				"%q must be a whole number, written without fraction, exponent or quotes", name))
		}
		*dest = &n
	case *jsontext.Value:
		*dest = value
	default:
		panic(fmt.Sprintf("field %s: no way to read into %T", name, dest))
	}
	return nil
}

// syntaxError says what is wrong with JSON and where, without quoting the body.
func syntaxError(err error) error {
	var s *jsontext.SyntacticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return errors.New("the JSON has an object with the same name twice")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the JSON ends too early")
	case errors.As(err, &s) && s.Err.Error() == "exceeded max depth": // jsontext does not export it
		return errors.New("the JSON is nested more than 10,000 deep")
	case errors.As(err, &s) && strings.HasSuffix(s.Err.Error(), " after top-level value"): // nor this
		return errors.New("there is more data after the JSON object")
	case errors.As(err, new(*json.SemanticError)):
		return errors.New("the body is not a JSON object")
	case errors.As(err, &s):
		return fmt.Errorf("the body is not valid JSON at byte %d", s.ByteOffset)
	}
	return errors.New("the body is not valid JSON")
}

// quote quotes the beginning of text from a publisher.
func quote(s string) string { return strconv.Quote(oneLine(s, 40)) }
