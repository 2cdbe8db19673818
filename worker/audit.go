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

// How an actor reached the worker.
const (
	ViaREST    = "rest"
	ViaConsole = "console"
	ViaCLI     = "cli"
)

// Actor is the person or caller who acts.
type Actor struct{ Via, Name string }

type actorKey struct{}

// WithActor returns a context whose actions belong to the actor. The log names the actor, and the
// audit log records the changes.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf returns the context's actor. It is empty if there is none.
func ActorOf(ctx context.Context) Actor {
	a, _ := ctx.Value(actorKey{}).(Actor)
	return a
}

// The actions of the audit log. A failure is recorded as the action with failedSuffix.
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

// actions maps event types to the action of publishing them.
var actions = map[string]string{
	events.TypeTenantCreated: ActionCreate, events.TypeTenantSuspended: ActionSuspend,
	events.TypeTenantResumed: ActionResume, events.TypeTenantDeleted: ActionDelete,
	events.TypeUsageSync: ActionSync,
}

// Entry is the audit entry of an action of the actor.
func (a Actor) Entry(e repo.AuditEntry) repo.AuditEntry {
	e.Actor, e.Via = cmp.Or(a.Name, "unknown"), a.Via
	return e
}

// audited is a view of the database that records its write in the same transaction, if ctx has an
// actor.
func audited(ctx context.Context, db *repo.DB, e repo.AuditEntry) *repo.DB {
	if who := ActorOf(ctx); who != (Actor{}) {
		return db.Audited(who.Entry(e))
	}
	return db
}

// Recorder writes entries of the audit log, as [repo.DB.Audit] does.
type Recorder func(context.Context, ...repo.AuditEntry) error

// failureWait is how long recording a failure may take, because the caller's own time may be over.
const failureWait = 2 * time.Second

// Audit records and does an action that is not a database transaction, such as publishing an event.
// If ctx has an actor, the entry is written first, and the action is not done if that fails. If the
// action fails, a second entry is written.
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

// auditFailure records that an action failed after its entry was written, and returns the cause.
func auditFailure(ctx context.Context, e repo.AuditEntry, record Recorder, err error) error {
	who := ActorOf(ctx)
	if who == (Actor{}) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), failureWait)
	defer cancel()
	return errors.Join(err, record(ctx, who.Entry(FailedEntry(e, err))))
}

// FailedEntry is the second entry of an action that failed.
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
