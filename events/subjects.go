package events

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Subjects names every subject under one prefix.
type Subjects struct{ Prefix string }

var prefixForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$`)

// Validate returns the problem of the prefix.
func (s Subjects) Validate() error {
	if !prefixForm.MatchString(s.Prefix) {
		return fmt.Errorf("invalid prefix %q: use letters, digits, - and _, separated by single dots",
			s.Prefix)
	}
	return nil
}

// Event is the subject of an event type.
func (s Subjects) Event(eventType string) string { return s.Prefix + ".events." + eventType }

// Dead is the subject of the dead letters of an event type.
func (s Subjects) Dead(eventType string) string { return s.Prefix + ".dead." + eventType }

// RPC is the subject of a request-reply endpoint.
func (s Subjects) RPC(name string) string { return s.Prefix + ".rpc." + name }

// Changed is the subject on which replicas announce that a tenant's mapping has changed.
func (s Subjects) Changed() string { return s.Prefix + ".changed" }

// EncodeTenant returns a tenant id as one token of a subject: %, ., *, >, white space and control
// characters are percent-encoded byte by byte in upper-case hex, and nothing else is. The subject of
// a tenant's own token requests is
//
//	subjects.RPC("embed-token") + "." + events.EncodeTenant(id) // papermap.rpc.embed-token.acme%2Eexample
func EncodeTenant(id string) string {
	var b strings.Builder
	for _, r := range id {
		if strings.ContainsRune("%.*>", r) || unicode.IsSpace(r) || unicode.IsControl(r) {
			for _, c := range []byte(string(r)) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// DecodeTenant decodes what EncodeTenant returns, and refuses everything else: if a tenant had two
// subjects, permissions by subject would be worthless.
func DecodeTenant(token string) (string, error) {
	id, err := url.PathUnescape(token)
	if err != nil || !utf8.ValidString(id) || EncodeTenant(id) != token {
		return "", errTenantToken
	}
	return id, nil
}

var errTenantToken = errors.New("the subject's last token is not a tenant id encoded as documented")

// all are the subjects of the events stream. It captures nothing else, so that a publish to a
// mistyped subject is refused at once.
func (s Subjects) all() []string { return s.of(typeNames(func(Type) bool { return true })) }

func (s Subjects) of(types []string) []string {
	subjects := make([]string, len(types))
	for i, t := range types {
		subjects[i] = s.Event(t)
	}
	return subjects
}

// typeOf returns the type of event that is published, or kept as a dead letter, on a subject. A
// subject that is neither is returned unchanged; no type has such a name.
func (s Subjects) typeOf(subject string) string {
	if t, ok := strings.CutPrefix(subject, s.Event("")); ok {
		return t
	}
	return strings.TrimPrefix(subject, s.Dead(""))
}

// coversSubject reports whether one of the patterns matches every subject that subject matches.
// subject may itself end in >.
func coversSubject(patterns []string, subject string) bool {
	want := strings.Split(subject, ".")
	for _, p := range patterns {
		have := strings.Split(p, ".")
		for i, token := range have {
			if token == ">" && len(want) > i {
				return true
			}
			if i >= len(want) || token != "*" && token != want[i] || token == "*" && want[i] == ">" {
				break
			}
			if i == len(have)-1 && len(have) == len(want) {
				return true
			}
		}
	}
	return false
}
