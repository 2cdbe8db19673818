package events

import (
	"fmt"
	"regexp"
	"slices"
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
	outTypes    = []string{TypeDashboardCreated, TypeDashboardFailed, TypeDashboardHeld, TypeUsageSynced}
)

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

// all is what the stream takes, and nothing else: a publish to a mistyped subject is refused at once.
func (s Subjects) all() []string { return s.events(slices.Concat(mainTypes, accessTypes, outTypes)) }

func (s Subjects) events(types []string) []string {
	subjects := make([]string, len(types))
	for i, t := range types {
		subjects[i] = s.Event(t)
	}
	return subjects
}
