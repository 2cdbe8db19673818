package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// DefaultAuditKept is how long entries of the audit log are kept.
const DefaultAuditKept = 8760 * time.Hour

// How somebody who acts reached the worker.
const (
	ViaREST    = "rest"
	ViaConsole = "console"
	ViaCLI     = "cli"
)

// Actor is who acts.
type Actor struct{ Via, Name string }

type actorKey struct{}

// WithActor returns the context of what somebody does. It is named in the log, and what it changes is
// recorded in the audit log.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf returns who acts; it is empty if that is not known.
func ActorOf(ctx context.Context) Actor {
	a, _ := ctx.Value(actorKey{}).(Actor)
	return a
}

// What the audit log says was done. A failure is recorded as the action with failedSuffix.
const (
	ActionCreate            = "create"
	ActionSuspend           = "suspend"
	ActionResume            = "resume"
	ActionDelete            = "delete"
	ActionSync              = "sync"
	ActionRetry             = "retry"
	ActionResolve           = "resolve"
	ActionReplace           = "replace"
	ActionRecreate          = "recreate"
	ActionResolveAttempt    = "resolve-attempt"
	ActionReplayDeadLetter  = "replay-dead-letter"
	ActionDiscardDeadLetter = "discard-dead-letter"
	ActionReplay            = "replay"
	ActionSetBudget         = "budget-set"
	ActionUnsetBudget       = "budget-unset"

	failedSuffix = ".failed"
)

// actions are what publishing events of these types does.
var actions = map[string]string{
	events.TypeTenantCreated: ActionCreate, events.TypeTenantSuspended: ActionSuspend,
	events.TypeTenantResumed: ActionResume, events.TypeTenantDeleted: ActionDelete,
	events.TypeUsageSync: ActionSync,
}

// Entry is the entry of what the actor does.
func (a Actor) Entry(e repo.AuditEntry) repo.AuditEntry {
	e.Actor, e.Via = cmp.Or(a.Name, "unknown"), a.Via
	return e
}

// audited is a view of the database whose write is recorded in the same transaction, if somebody acts
// in ctx.
func audited(ctx context.Context, db *repo.DB, e repo.AuditEntry) *repo.DB {
	if who := ActorOf(ctx); who != (Actor{}) {
		return db.Audited(who.Entry(e))
	}
	return db
}

// Recorder writes entries of the audit log, as [repo.DB.Audit] does.
type Recorder func(context.Context, ...repo.AuditEntry) error

// failureWait is how long recording a failure may take: the caller's own time may be over.
const failureWait = 2 * time.Second

// Audit does what is no transaction of the database, such as publishing an event. If somebody acts in
// ctx, it is recorded before it is done, and not done if that fails; and once more if it could not be
// done.
func Audit(ctx context.Context, e repo.AuditEntry, record Recorder, do func() error) error {
	who := ActorOf(ctx)
	if who == (Actor{}) {
		return do()
	}
	if err := record(ctx, who.Entry(e)); err != nil {
		return err
	}
	if err := do(); err != nil {
		return auditFailure(ctx, e, record, err)
	}
	return nil
}

// auditFailure records that what was recorded before could not be done, and returns why.
func auditFailure(ctx context.Context, e repo.AuditEntry, record Recorder, err error) error {
	who := ActorOf(ctx)
	if who == (Actor{}) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), failureWait)
	defer cancel()
	return errors.Join(err, record(ctx, who.Entry(FailedEntry(e, err))))
}

// FailedEntry is the entry that follows another one if that could not be done.
func FailedEntry(e repo.AuditEntry, err error) repo.AuditEntry {
	e.Action += failedSuffix
	e.Detail = err.Error()
	return e
}

// EventEntry is the entry of publishing an event that NewEvent has made.
func EventEntry(e events.Outgoing) repo.AuditEntry {
	fields := map[string]any{}
	_ = json.Unmarshal(e.Data, &fields) // without its fields the entry still has the event's id
	tenantID, _ := fields["tenant_id"].(string)
	delete(fields, "tenant_id")
	var detail []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		detail = append(detail, fmt.Sprintf("%s: %v", name, fields[name]))
	}
	return repo.AuditEntry{
		Action: actions[e.Type], TenantID: tenantID, EventID: e.ID, Detail: strings.Join(detail, ", "),
	}
}

// ReplayDeadLetter publishes a dead letter's event again, and deletes the dead letter.
func ReplayDeadLetter(ctx context.Context, bus *events.Bus, d events.DeadLetter, record Recorder) error {
	return Audit(ctx, deadLetterEntry(ActionReplayDeadLetter, d), record, func() error {
		return bus.Replay(ctx, d)
	})
}

// DiscardDeadLetter deletes a dead letter.
func DiscardDeadLetter(ctx context.Context, bus *events.Bus, d events.DeadLetter, record Recorder) error {
	return Audit(ctx, deadLetterEntry(ActionDiscardDeadLetter, d), record, func() error {
		return bus.Discard(ctx, d.Sequence)
	})
}

func deadLetterEntry(action string, d events.DeadLetter) repo.AuditEntry {
	return repo.AuditEntry{
		Action: action, TenantID: d.TenantID, EventID: d.EventID,
		Detail: fmt.Sprintf("%s, dead letter %d: %s", d.Type, d.Sequence, d.Code),
	}
}

// ReplayDeadLetter publishes the event of the dead letter with that number again.
func (a *API) ReplayDeadLetter(ctx context.Context, sequence uint64) error {
	d, err := a.bus.DeadLetter(ctx, sequence)
	if err != nil {
		return err
	}
	return ReplayDeadLetter(ctx, a.bus, d, a.db.Audit)
}

// DiscardDeadLetter deletes the dead letter with that number.
func (a *API) DiscardDeadLetter(ctx context.Context, sequence uint64) error {
	d, err := a.bus.DeadLetter(ctx, sequence)
	if err != nil {
		return err
	}
	return DiscardDeadLetter(ctx, a.bus, d, a.db.Audit)
}

// ResolveAttempt takes an attempt off the list of possible orphans.
func ResolveAttempt(ctx context.Context, db *repo.DB, id string) error {
	e := repo.AuditEntry{Action: ActionResolveAttempt, Detail: "attempt " + id}
	return audited(ctx, db, e).ResolveAttempt(ctx, id)
}
