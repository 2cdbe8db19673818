package worker

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// Facts are what is known about one tenant. LoadFacts reads them. A caller that has fewer leaves
// the rest empty.
type Facts struct {
	Mapping     repo.Mapping // the tenant id alone if Known is false
	Known       bool         // the database has the tenant
	Attempts    []repo.Attempt
	Replaced    []repo.ReplacedDashboard
	Outbox      []repo.OutboxRow
	Events      []events.StoredEvent // events in that the stream still keeps
	DeadLetters []events.DeadLetter
	Audit       []repo.AuditEntry
	Pause       *Pause   // of its workspace; nil: not known; empty: not paused
	LeftOut     []string // what could not be read, and why
}

// Explain says in one sentence whether a tenant has a dashboard, and if not, why. It also lists
// what to do, in order. If advice is empty, there is nothing to do. All lists of facts are oldest
// first.
//
//	summary, advice := worker.Explain(facts, time.Now())
//	// It has no dashboard yet: the last try failed (papermap: …), and the worker tries again.
//	// - Fix PAPERMAP_API_KEY_ID and …
func Explain(f Facts, now time.Time) (summary string, advice []string) {
	x := &explanation{Facts: f, tenant: shellWord(f.Mapping.TenantID)}
	if !f.Known {
		x.explainUnrecorded()
		return x.summary, x.advice
	}
	m := f.Mapping
	if !x.explainFinal() {
		x.explainUnfinished(now)
	}
	if m.Status == repo.Suspended && m.DashboardID == "" {
		x.summary += fmt.Sprintf(" It has also been suspended since %s.", eventTime(m.SuspendedEvent))
	}
	if n := f.unrecorded(); n > 0 {
		x.do("Events of it in the stream that no worker has recorded: %d. Is `papermap-worker serve` "+
			"running, and not paused? `papermap-worker health` says so.", n)
	}
	for _, r := range f.Replaced {
		if r.Open {
			x.do("Delete its replaced dashboard %s at Papermap, then `papermap-worker attempts resolve %s`.",
				r.DashboardID, shellWord(r.DashboardID))
		}
	}
	if n := len(f.openAttempts()); n > 0 && m.Stage != repo.Held {
		x.do("%d of its create requests may have left another dashboard at Papermap: "+
			"`papermap-worker attempts list` says what to look for.", n)
	}
	if n := len(f.DeadLetters); n > 0 && m.Stage != repo.Failed {
		x.do("Dead letters: %d. List them with `papermap-worker dead list --tenant %s`.", n, x.tenant)
	}
	return x.summary, x.advice
}

// ExplainDeadLetter says what an operator can do about a dead letter, and whether a replay may help.
func ExplainDeadLetter(d events.DeadLetter) (advice string, replay bool) {
	discard := fmt.Sprintf("`papermap-worker dead discard %d`", d.Sequence)
	fix := fmt.Sprintf("fix the error and `papermap-worker dead replay %d`, or %s.", d.Sequence, discard)
	switch {
	case d.Truncated != "":
		return "It was too large to be kept whole and cannot be replayed. " +
			"Publish it again from its source, then " + discard + ".", false
	case d.SideEffect == "done" || d.SideEffect == "maybe":
		return "Papermap may have created a dashboard: see `papermap-worker attempts list`. Then " + fix, true
	case strings.HasPrefix(d.Code, "INVALID_"):
		return "The event is invalid, so a replay would fail again. " +
			"Publish a valid one from its source, then " + discard + ".", false
	}
	return "To continue, " + fix, true
}

// explanation is what Explain has found so far.
type explanation struct {
	Facts
	tenant  string // the tenant id as a word of a command line
	summary string
	advice  []string
}

func (x *explanation) say(format string, args ...any) { x.summary = fmt.Sprintf(format, args...) }

func (x *explanation) do(format string, args ...any) {
	x.advice = append(x.advice, fmt.Sprintf(format, args...))
}

// explainUnrecorded explains a tenant that is not in the database.
func (x *explanation) explainUnrecorded() {
	switch {
	case len(x.DeadLetters) > 0:
		d := x.DeadLetters[len(x.DeadLetters)-1]
		x.say("It has no dashboard: its %s of %s could not be handled and is dead letter %d (%s).",
			d.Type, dateTime(d.Time), d.Sequence, d.Error)
		x.do("See it with `papermap-worker dead show %d`, which says what to do next.", d.Sequence)
	case len(x.Events) > 0:
		e := x.Events[len(x.Events)-1]
		x.say("It has no dashboard yet: the stream has its %s of %s, and no worker has recorded it.",
			e.Raw.Type, dateTime(e.Raw.Time))
		x.do("Is `papermap-worker serve` running, and not paused? `papermap-worker health` says so, " +
			"and `papermap-worker doctor` what is wrong.")
	default:
		x.say("Nothing is known of it.")
	}
}

// explainFinal explains a tenant that stays as it is until a person acts. For any other tenant it
// returns false.
func (x *explanation) explainFinal() bool {
	m := x.Mapping
	switch {
	case m.Status == repo.Active:
		x.say("It has dashboard %s.", m.DashboardID)
	case m.Status == repo.Suspended && m.DashboardID != "":
		x.say("It has dashboard %s, and gets no tokens for it, because it was suspended at %s.",
			m.DashboardID, eventTime(m.SuspendedEvent))
		x.do("To let it in again, publish tenant.resumed: "+
			"`papermap-worker publish tenant-resumed %s`.", x.tenant)
	case m.Status == repo.Deleted:
		x.say("It has no dashboard any more: it was deleted at %s.", eventTime(m.DeletedEvent))
		x.do("To give it another, publish tenant.created: "+
			"`papermap-worker publish tenant-created %s --name NAME`.", x.tenant)
	case m.Stage == repo.Held:
		last := x.lastAttempt()
		x.say("It has no dashboard: whether Papermap made one at %s is unknown (%s), and you need to check.",
			dateTime(last.StartedAt.Time), m.FailedError)
		x.do("Look in Papermap's page for a dashboard %q with %s in its description.", m.Title, last.Mark)
		x.do("If it is there: `papermap-worker tenants resolve %s --dashboard-id ID`.", x.tenant)
		x.do("If it is not: `papermap-worker tenants resolve %s --recreate`.", x.tenant)
	case m.Stage == repo.Failed:
		x.say("It has no dashboard: creating it failed for good (%s: %s).", m.FailedCode, m.FailedError)
		x.do("Fix the cause of the error.")
		if n := deadLetterOf(x.DeadLetters, m.CreatedEventID); n != 0 {
			x.do("Then `papermap-worker dead replay %d`.", n)
		} else {
			x.do("Then publish tenant.created again: "+
				"`papermap-worker publish tenant-created %s --name NAME`.", x.tenant)
		}
	case !m.Wanted():
		x.say("It has no dashboard: no tenant.created was ever published for it, only other events.")
		x.do("Publish it: `papermap-worker publish tenant-created %s --name NAME`.", x.tenant)
	default:
		return false
	}
	return true
}

// explainUnfinished explains a tenant whose dashboard is not yet created.
func (x *explanation) explainUnfinished(now time.Time) {
	m := x.Mapping
	since := dateTime(x.lastAttempt().StartedAt.Time)
	switch {
	case x.unconfigured() != 0:
		x.say("It has no dashboard yet: it belongs to workspace %s, which is not configured.", m.WorkspaceID)
		x.do("Add the workspace to PAPERMAP_WORKSPACES_FILE and restart the workers. "+
			"Then `papermap-worker dead replay %d`.", x.unconfigured())
	case m.Stage == repo.Creating && now.Before(m.ClaimableAt.Time):
		x.say("It has no dashboard yet: its creation began at %s.", since)
		x.do("Look again in a few seconds.")
	case m.Stage == repo.Creating:
		x.say("It has no dashboard yet: the worker that began creating it at %s has stopped, "+
			"and its event will be redelivered.", since)
		x.do("Check with `papermap-worker health` that a worker is running; " +
			"`papermap-worker doctor` finds what is wrong.")
	case x.Pause != nil && x.Pause.Kind != "":
		x.say("It has no dashboard yet: creating dashboards is paused: %s.", x.Pause.Reason)
		x.advice = append(x.advice, pauseAdvice[x.Pause.Kind])
	case m.FailedError != "":
		x.say("It has no dashboard yet: the last try failed (%s), and the worker tries again.", m.FailedError)
		switch {
		case x.Pause != nil:
			x.do("Nothing for now: the worker retries by itself.")
		case x.refusedBy() != "":
			x.advice = append(x.advice, pauseAdvice[x.refusedBy()])
		default:
			x.do("Is the worker paused because of Papermap? `papermap-worker health` says why, " +
				"and `papermap-worker doctor` what to do.")
		}
	default:
		x.say("It has no dashboard yet: its tenant.created was recorded at %s and waits to be handled.",
			dateTime(m.UpdatedAt.Time))
		x.do("Look again in a few seconds; if nothing changes, `papermap-worker doctor`.")
	}
}

// unconfigured is the sequence of the newest dead letter of a tenant.created whose workspace is not
// configured, or 0.
func (f Facts) unconfigured() uint64 {
	for _, d := range slices.Backward(f.DeadLetters) {
		if d.Type == events.TypeTenantCreated && d.Code == codeUnknownWorkspace {
			return d.Sequence
		}
	}
	return 0
}

// pauseAdvice says what to do about each kind of pause.
var pauseAdvice = map[string]string{
	PauseCredentials: "Fix the credentials: PAPERMAP_API_KEY_ID, PAPERMAP_SECRET_KEY and " +
		"PAPERMAP_WORKSPACE_ID (`papermap-worker doctor` checks them), and restart the worker. " +
		"Its event waits in the stream.",
	PauseConfiguration: "Fix PAPERMAP_API_URL (`papermap-worker doctor` checks it), and restart the " +
		"worker. Its event waits in the stream.",
	PauseQuota: "Raise the workspace's quota at Papermap. The worker tries one dashboard at growing " +
		"intervals, of 15 minutes at most, and resumes when one succeeds; a restart tries at once.",
	PauseFailing: "Nothing for now: the worker probes Papermap and resumes by itself. " +
		"If this persists, `papermap-worker doctor` finds what is wrong.",
}

// refusedBy returns the kind of pause that the last attempt caused: credentials after a 401 or 403,
// quota after a 402, else "". It is used instead of the breaker, which only the running worker has.
func (f Facts) refusedBy() string {
	last := f.lastAttempt()
	if last.Generation != f.Mapping.Generation || last.Outcome != repo.OutcomeRefused {
		return ""
	}
	switch last.HTTPStatus {
	case http.StatusUnauthorized, http.StatusForbidden:
		return PauseCredentials
	case http.StatusPaymentRequired:
		return PauseQuota
	}
	return ""
}

func (f Facts) lastAttempt() repo.Attempt {
	if len(f.Attempts) == 0 {
		return repo.Attempt{}
	}
	return f.Attempts[len(f.Attempts)-1]
}

// PossibleOrphans are the unresolved attempts that may have left another dashboard at Papermap, and
// the unresolved replaced dashboards.
func (f Facts) PossibleOrphans() []repo.Attempt {
	list := f.openAttempts()
	for _, r := range f.Replaced {
		if r.Open {
			list = append(list, r.AsOrphan(f.Mapping))
		}
	}
	return list
}

func (f Facts) openAttempts() []repo.Attempt {
	return slices.DeleteFunc(slices.Clone(f.Attempts), func(a repo.Attempt) bool {
		return a.Outcome != repo.OutcomeUnknown && a.Outcome != repo.OutcomeOrphaned ||
			!a.ResolvedAt.IsZero() || a.DashboardID != "" && a.DashboardID == f.Mapping.DashboardID
	})
}

// unrecorded counts the events that the stream has and the database does not.
func (f Facts) unrecorded() int {
	newest := map[string]int64{}
	for _, e := range newestEvents(f.Mapping) {
		newest[e.eventType] = e.time
	}
	n := 0
	for _, e := range f.Events {
		if e.Data != nil && e.Time.UnixNano() > newest[e.Raw.Type] && deadLetterOf(f.DeadLetters, e.ID) == 0 {
			n++
		}
	}
	return n
}

// recordedEvent is the newest event of a type that the database has of a tenant.
type recordedEvent struct {
	eventType string
	time      int64 // Unix nanoseconds; 0: there was none
	id        string
}

func newestEvents(m repo.Mapping) []recordedEvent {
	return []recordedEvent{
		{events.TypeTenantCreated, m.CreatedEvent, m.CreatedEventID},
		{events.TypeTenantSuspended, m.SuspendedEvent, ""},
		{events.TypeTenantResumed, m.ResumedEvent, ""},
		{events.TypeTenantDeleted, m.DeletedEvent, ""},
	}
}

// deadLetterOf is the sequence of an event's newest dead letter; 0 if there is none.
func deadLetterOf(dead []events.DeadLetter, eventID string) uint64 {
	for _, d := range slices.Backward(dead) {
		if d.EventID == eventID {
			return d.Sequence
		}
	}
	return 0
}

func dateTime(t time.Time) string { return t.UTC().Format(time.DateTime) }

func eventTime(unixNano int64) string { return dateTime(time.Unix(0, unixNano)) }

var simpleWord = regexp.MustCompile(`^[A-Za-z0-9_.:@%+=,/][A-Za-z0-9_.:@%+=,/-]*$`)

// shellWord quotes a tenant id as one harmless word of a shell command. A stranger may have chosen
// the id.
func shellWord(id string) string {
	if simpleWord.MatchString(id) {
		return id
	}
	return "'" + strings.ReplaceAll(id, "'", `'\''`) + "'"
}
