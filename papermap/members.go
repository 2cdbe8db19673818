package papermap

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// lenient accepts what most JSON decoders accept, because it is not documented how strictly the API
// encodes.
var lenient = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// knownNames are all the names that are looked up in an answer.
var knownNames = func() map[string]bool {
	names := map[string]bool{}
	for _, name := range slices.Concat(answerNames, tenantNames, creditsNames, requestsNames, periodNames,
		listNames, paginationNames, pageNames, perPageNames, totalNames, pagesNames, moreNames) {
		names[name] = true
	}
	return names
}()

// answerNames are the documented names, except those of usage.
var answerNames = []string{"success", "data", "dashboard_id", "code", "message", "error", "detail"}

// members are an object's members by name, as sent. They contain only knownNames, so that an object
// of a million other members takes no memory. Of members with the same name the last wins, as in
// other decoders.
type members map[string]jsontext.Value

// readMembers reads v, valid JSON; nil if it is not an object. A nil map may be read like any
// other.
func readMembers(v jsontext.Value) members {
	if v.Kind() != '{' {
		return nil
	}
	m := members{}
	d := jsontext.NewDecoder(bytes.NewBuffer(v), lenient)
	_, _ = d.ReadToken()
	for d.PeekKind() == '"' {
		token, _ := d.ReadToken()
		name := token.String() // now, as the token lives until the next read
		if value, _ := d.ReadValue(); knownNames[name] {
			m[name] = part(v, d, value)
		}
	}
	return m
}

// readList calls each with the elements of v, a valid JSON array, until each returns an error.
func readList(v jsontext.Value, each func(i int, element jsontext.Value) error) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(v), lenient)
	_, _ = d.ReadToken()
	for i := 0; d.PeekKind() != ']'; i++ {
		element, err := d.ReadValue()
		if err == nil {
			err = each(i, part(v, d, element))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// part returns value, which d has just read from v, as a part of v. The value that d returned is
// valid only until its next read.
func part(v jsontext.Value, d *jsontext.Decoder, value jsontext.Value) jsontext.Value {
	end := int(d.InputOffset())
	return v[end-len(value) : end]
}

// first returns the value of the first name that has one, or else nil.
func (m members) first(names []string) jsontext.Value {
	for _, name := range names {
		if v := m[name]; len(v) > 0 && v.Kind() != 'n' {
			return v
		}
	}
	return nil
}

// text returns a JSON string's content, null or a missing value as "", and any other value as it is
// written.
func text(v jsontext.Value) string {
	switch v.Kind() {
	case 'n':
		return ""
	case '"':
		s, _ := jsontext.AppendUnquote(nil, v) // its error is that of invalid UTF-8, which it replaces
		return string(s)
	}
	return string(v)
}

// readSuccess reads a 2xx that must be a JSON object without "success":false. A missing content
// type and text/plain are accepted, for sloppy servers. Anything else but JSON is refused: it may
// be a proxy's error page.
func (a answer) readSuccess() (members, error) {
	mediaType, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	switch mediaType = strings.ToLower(strings.TrimSpace(mediaType)); {
	case mediaType == "", mediaType == "text/plain", mediaType == "text/json":
	case mediaType != "application/json" && !strings.HasSuffix(mediaType, "+json"):
		return nil, errors.New("not declared as JSON")
	}
	top := readMembers(a.body)
	if top == nil || !jsontext.Value(a.body).IsValid(lenient) {
		return nil, errors.New("not a JSON object")
	}
	if string(top["success"]) == "false" {
		_, message := reason(a.body)
		return nil, fmt.Errorf("success is false: %s", message)
	}
	return top, nil
}
