package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// TenantReport is what is known about one tenant, for people who ask why it has no dashboard.
type TenantReport struct {
	repo.Mapping                // the tenant id alone if the database does not have the tenant
	Known        bool           `json:"known"`
	Summary      string         `json:"answer"` // of Explain
	Next         []string       `json:"next"`   // the advice of Explain
	Attempts     []repo.Attempt `json:"attempts"`
	History      []HistoryEntry `json:"history"`            // oldest first
	LeftOut      []string       `json:"left_out,omitempty"` // what could not be read
}

// HistoryEntry is one thing that happened to a tenant.
type HistoryEntry struct {
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"` // event, event again, attempt, dead letter, event out, dashboard or action
	What   string    `json:"what"` // the event's type, the attempt's outcome, "replaced", or the action
	ID     string    `json:"id,omitempty"`
	Detail string    `json:"detail,omitempty"`
}

const (
	factsTimeout = 5 * time.Second // for the stream and the dead letters together
	maxEntries   = 1000            // of each kind
	maxScanned   = 200_000         // messages of the stream, the newest
)

// LoadFacts reads what the database, the stream and the dead letters know about a tenant. If the
// bus is nil or cannot be read, LeftOut says what is missing. The error is repo.ErrNotFound if
// nothing is known.
func LoadFacts(ctx context.Context, db *repo.DB, bus *events.Bus, tenantID string) (Facts, error) {
	m, err := db.Mapping(ctx, tenantID)
	if err != nil && !errors.Is(err, repo.ErrNotFound) {
		return Facts{}, err
	}
	f := Facts{Mapping: m, Known: err == nil}
	f.Mapping.TenantID = tenantID
	if f.Attempts, err = db.Attempts(ctx, tenantID); err != nil {
		return f, err
	}
	if f.Replaced, err = db.Replaced(ctx, tenantID); err != nil {
		return f, err
	}
	if f.Outbox, err = db.TenantOutbox(ctx, tenantID, maxEntries); err != nil {
		return f, err
	}
	if f.Audit, err = db.AuditLog(ctx, repo.AuditFilter{TenantID: tenantID}, maxEntries); err != nil {
		return f, err
	}
	slices.Reverse(f.Audit)
	f.readBus(ctx, bus)
	if !f.Known && len(f.Events) == 0 && len(f.DeadLetters) == 0 {
		return f, fmt.Errorf("tenant %q: %w", tenantID, repo.ErrNotFound)
	}
	return f, nil
}

// Report is LoadFacts in the running worker, which also knows whether the tenant's workspace is
// paused.
func (a *API) Report(ctx context.Context, tenantID string) (Facts, TenantReport, error) {
	f, err := LoadFacts(ctx, a.db, a.bus, tenantID)
	if err != nil {
		return f, TenantReport{}, err
	}
	f.Pause = a.Pause(f.Mapping.WorkspaceID)
	return f, f.Report(a.now()), nil
}

// Pause returns why no dashboards are created in a workspace. It is empty if they are created, and
// nil if there is no such workspace.
func (a *API) Pause(workspaceID string) *Pause {
	ws, ok := a.workspaces.find(workspaceID)
	if !ok {
		return nil
	}
	p, _ := ws.breaker.current()
	return &p
}

// readBus reads the tenant's events in and its dead letters concurrently.
func (f *Facts) readBus(ctx context.Context, bus *events.Bus) {
	if bus == nil {
		return
	}
	if err := bus.Connected(); err != nil {
		f.leaveOut("the stream's events and the dead letters", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, factsTimeout)
	defer cancel()
	tenantID := f.Mapping.TenantID
	var skipped string
	var eventsErr, deadErr error
	var reads sync.WaitGroup
	reads.Go(func() {
		f.Events, skipped, eventsErr = bus.TenantEvents(ctx, tenantID, maxEntries, maxScanned)
	})
	reads.Go(func() {
		f.DeadLetters, deadErr = bus.DeadLetters(ctx, events.DeadFilter{TenantID: tenantID}, maxEntries)
	})
	reads.Wait()
	if skipped != "" && eventsErr == nil {
		f.LeftOut = append(f.LeftOut, skipped)
	}
	f.leaveOut("the stream's events", eventsErr)
	f.leaveOut("dead letters", deadErr)
}

func (f *Facts) leaveOut(what string, err error) {
	if err == nil {
		return
	}
	hint := ""
	if errors.Is(err, context.DeadlineExceeded) {
		hint = ": NATS answers nothing to a user who may not read it"
	}
	f.LeftOut = append(f.LeftOut, fmt.Sprintf("%s: %v%s", what, err, hint))
}

// Report explains the facts and puts them in order of time.
func (f Facts) Report(now time.Time) TenantReport {
	r := TenantReport{
		Mapping: f.Mapping, Known: f.Known, Attempts: f.Attempts, History: f.history(), LeftOut: f.LeftOut,
	}
	r.Summary, r.Next = Explain(f, now)
	return r
}

// history lists what happened, oldest first. Of events that the stream no longer keeps, the
// database has the newest of each type.
func (f Facts) history() []HistoryEntry {
	var list []HistoryEntry
	add := func(t time.Time, kind, what, id, detail string) {
		t = t.UTC().Truncate(time.Millisecond) // as in the database, or an attempt would precede its event
		list = append(list, HistoryEntry{t, kind, what, id, detail})
	}
	for _, e := range f.Audit { // first, because an action comes before its event
		detail := strings.TrimSuffix(fmt.Sprintf("by %s, %s", e.Actor, e.Detail), ", ")
		add(e.At.Time, "action", e.Action, e.EventID, detail)
	}
	kept := map[string]bool{} // types and times of the events in the stream
	for _, e := range f.Events {
		kept[fmt.Sprint(e.Raw.Type, e.Time.UnixNano())] = true
		kind := "event"
		if e.Republished() {
			kind = "event again"
		}
		add(e.Raw.Time, kind, e.Raw.Type, e.ID, eventDetail(e))
	}
	for _, e := range newestEvents(f.Mapping) {
		if e.time != 0 && !kept[fmt.Sprint(e.eventType, e.time)] {
			add(time.Unix(0, e.time), "event", e.eventType, e.id, "the newest, as the database knows it")
		}
	}
	for _, a := range f.Attempts {
		add(a.StartedAt.Time, "attempt", string(a.Outcome), a.ID, attemptDetail(a))
	}
	for _, r := range f.Replaced {
		add(r.ReplacedAt.Time, "dashboard", "replaced", r.DashboardID, "an operator gave the tenant another")
	}
	for _, d := range f.DeadLetters {
		detail := fmt.Sprintf("number %d, %s: %s", d.Sequence, d.Code, d.Error)
		add(d.Time, "dead letter", d.Type, d.EventID, detail)
	}
	for _, e := range f.Outbox {
		kind, id := "event out", e.EventID
		if e.OriginalID != "" {
			kind, id = "event again", e.OriginalID
		}
		add(e.CreatedAt.Time, kind, e.Type, id, outboxDetail(e))
	}
	slices.SortStableFunc(list, func(a, b HistoryEntry) int { return a.Time.Compare(b.Time) })
	return list
}

func eventDetail(e events.StoredEvent) string {
	if e.Invalid != "" {
		return "invalid: " + e.Invalid
	}
	detail := ""
	switch data := e.Data.(type) {
	case events.TenantCreated:
		detail = fmt.Sprintf("name %q", data.Name)
		if data.DashboardID != "" {
			detail = "adopt dashboard " + data.DashboardID
		}
	case events.TenantChange:
		detail = data.Reason
	}
	if late := e.Raw.Time.Sub(e.Time); late.Abs() >= time.Second {
		detail = strings.TrimPrefix(detail+", happened at "+e.Time.UTC().Format(time.RFC3339), ", ")
	}
	return detail
}

func attemptDetail(a repo.Attempt) string {
	var parts []string
	if a.DashboardID != "" {
		parts = append(parts, "dashboard "+a.DashboardID)
	}
	if a.Error != "" {
		parts = append(parts, a.Error)
	}
	if !a.FinishedAt.IsZero() {
		parts = append(parts, fmt.Sprintf("after %v", a.FinishedAt.Sub(a.StartedAt.Time)))
	}
	if !a.ResolvedAt.IsZero() {
		parts = append(parts, "resolved by a person")
	}
	return strings.Join(parts, ", ")
}

func outboxDetail(e repo.OutboxRow) string {
	var data struct {
		DashboardID string `json:"dashboard_id"`
		Code        string `json:"code"`
	}
	_ = json.Unmarshal(e.Data, &data) // the worker's own events can be decoded
	parts := slices.DeleteFunc([]string{data.DashboardID, data.Code}, func(s string) bool { return s == "" })
	if e.SentAt.IsZero() {
		parts = append(parts, "waits to be published")
	}
	return strings.Join(parts, ", ")
}
