package events

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Types of the events that the worker publishes. Those that it takes stand beside their payloads.
const (
	TypeDashboardCreated = "dashboard.created"
	TypeDashboardFailed  = "dashboard.failed"
	TypeDashboardHeld    = "dashboard.held"
	TypeUsageSynced      = "usage.synced"
)

// mainTypes and accessTypes are what the two consumers take. Access has its own, so that a suspension never waits
// behind creations or a pause.
var (
	mainTypes   = []string{TypeTenantCreated, TypeUsageSync}
	accessTypes = []string{TypeTenantSuspended, TypeTenantResumed, TypeTenantDeleted}
	tenantTypes = append([]string{TypeTenantCreated}, accessTypes...)
	outTypes    = []string{TypeDashboardCreated, TypeDashboardFailed, TypeDashboardHeld, TypeUsageSynced}
)

// TypesIn lists the types of the events that the worker takes.
func TypesIn() []string { return slices.Concat(mainTypes, accessTypes) }

// Names of the durable consumers.
const (
	MainConsumer   = "papermap-worker"
	AccessConsumer = "papermap-worker-access"
)

// Subjects names every subject under one prefix.
type Subjects struct{ Prefix string }

var prefixForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$`)

// Validate returns what is wrong with the prefix.
func (s Subjects) Validate() error {
	if !prefixForm.MatchString(s.Prefix) {
		return fmt.Errorf("%q is no subject prefix: use letters, digits, - and _, with single dots between", s.Prefix)
	}
	return nil
}

// Event is the subject of an event type.
func (s Subjects) Event(eventType string) string { return s.Prefix + ".events." + eventType }

// Dead is the subject of the dead letters of an event type.
func (s Subjects) Dead(eventType string) string { return s.Prefix + ".dead." + eventType }

// RPC is the subject of a request-reply endpoint.
func (s Subjects) RPC(name string) string { return s.Prefix + ".rpc." + name }

// Changed is the subject on which replicas tell each other that a tenant's mapping has changed.
func (s Subjects) Changed() string { return s.Prefix + ".changed" }

// EncodeTenant is a tenant id as one token of a subject: %, ., *, >, white space and control characters are
// percent-encoded byte by byte in upper-case hex, and nothing else is.
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

// DecodeTenant reads what EncodeTenant writes, and refuses all else: one tenant has one subject, or permissions by
// subject would be worth nothing.
func DecodeTenant(token string) (string, error) {
	var id []byte
	for i := 0; i < len(token); i++ {
		if token[i] != '%' {
			id = append(id, token[i])
			continue
		}
		if i+2 >= len(token) {
			return "", errTenantToken
		}
		c, err := strconv.ParseUint(token[i+1:i+3], 16, 8)
		if err != nil {
			return "", errTenantToken
		}
		id = append(id, byte(c))
		i += 2
	}
	if !utf8.Valid(id) || EncodeTenant(string(id)) != token {
		return "", errTenantToken
	}
	return string(id), nil
}

var errTenantToken = errors.New("the subject's last token is not a tenant id encoded as documented")

// all is what the stream takes, and nothing else: a publish to a mistyped subject is refused at once.
func (s Subjects) all() []string { return s.events(slices.Concat(mainTypes, accessTypes, outTypes)) }

func (s Subjects) events(types []string) []string {
	subjects := make([]string, len(types))
	for i, t := range types {
		subjects[i] = s.Event(t)
	}
	return subjects
}
