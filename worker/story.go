package worker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// Story is what is known of one tenant, for whoever asks why it has no dashboard.
type Story struct {
	repo.Mapping                // the tenant id alone when the database does not know the tenant
	Known        bool           `json:"known"`
	Answer       string         `json:"answer"` // whether it has a dashboard, and why not, in one sentence
	Next         []string       `json:"next"`   // what to do, in this order; nothing when nothing is to be done
	Attempts     []repo.Attempt `json:"attempts"`
	History      []Moment       `json:"history"`            // oldest first
	LeftOut      []string       `json:"left_out,omitempty"` // what could not be looked at
}

// Moment is one thing that happened to a tenant.
type Moment struct {
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"` // event, event again, attempt, dead letter or event out
	What   string    `json:"what"` // the event's type, or the attempt's outcome
	ID     string    `json:"id,omitempty"`
	Detail string    `json:"detail,omitempty"`
}

const (
	storyTime    = 5 * time.Second // for the stream, and for the dead letters
	storyMoments = 1000            // of each kind
	storyStream  = 200_000         // messages of the stream, the newest, that are looked through
)

// Story tells a tenant's story.
func (w *Worker) Story(ctx context.Context, tenantID string) (Story, error) {
	return TellStory(ctx, w.db, w.bus, tenantID, w.now())
}

// TellStory puts together what the database, the stream and the dead letters know of a tenant. Without the bus, or where it
// cannot be read, it says what it left out. A tenant that nothing is known of is repo.ErrNotFound.
func TellStory(ctx context.Context, db *repo.DB, bus *events.Bus, tenantID string, now time.Time) (Story, error) {
	s := Story{}
	m, err := db.Mapping(ctx, tenantID)
	if err != nil && !errors.Is(err, repo.ErrNotFound) {
		return s, err
	}
	s.Mapping, s.Known = m, err == nil
	s.TenantID = tenantID
	if s.Attempts, err = db.Attempts(ctx, tenantID); err != nil {
		return s, err
	}
	out, err := db.EventsOut(ctx, tenantID, storyMoments)
	if err != nil {
		return s, err
	}
	in, dead := s.readBus(ctx, bus)
	if !s.Known && len(in) == 0 && len(dead) == 0 {
		return s, fmt.Errorf("tenant %q: %w", tenantID, repo.ErrNotFound)
	}
	s.tell(in, dead, out)
	s.conclude(in, dead, now)
	return s, nil
}

// readBus reads the tenant's events in that the stream still keeps, and its dead letters.
func (s *Story) readBus(ctx context.Context, bus *events.Bus) (in []events.Past, dead []events.DeadLetter) {
	if bus == nil {
		return nil, nil
	}
	if err := bus.Connected(); err != nil {
		s.LeftOut = append(s.LeftOut, fmt.Sprintf("the stream's events and the dead letters: %v", err))
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	var leftOut string
	var inErr, deadErr error
	var reading sync.WaitGroup
	reading.Go(func() { in, leftOut, inErr = bus.OfTenant(ctx, s.TenantID, storyMoments, storyStream) })
	reading.Go(func() { dead, deadErr = bus.DeadLetters(ctx, events.DeadFilter{TenantID: s.TenantID}, storyMoments) })
	reading.Wait()
	if inErr != nil {
		leftOut = fmt.Sprintf("the stream's events: %v%s", inErr, noRight(inErr))
	}
	if leftOut != "" {
		s.LeftOut = append(s.LeftOut, leftOut)
	}
	if deadErr != nil {
		s.LeftOut = append(s.LeftOut, fmt.Sprintf("dead letters: %v%s", deadErr, noRight(deadErr)))
	}
	return in, dead
}

// noRight is what an answer that never came may mean.
func noRight(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return ": NATS answers nothing to a user who may not read it"
	}
	return ""
}

// tell fills the history.
func (s *Story) tell(in []events.Past, dead []events.DeadLetter, out []repo.Outgoing) {
	add := func(t time.Time, kind, what, id, detail string) {
		t = t.UTC().Truncate(time.Millisecond) // what the database keeps of a time: or an attempt would come before its event
		s.History = append(s.History, Moment{t, kind, what, id, detail})
	}
	kept := map[string]bool{} // types and times of the events that the stream keeps
	for _, p := range in {
		kept[fmt.Sprint(p.Raw.Type, p.Time.UnixNano())] = true
		detail := ""
		switch data := p.Data.(type) {
		case events.TenantCreated:
			detail = fmt.Sprintf("name %q", data.Name)
		case events.TenantChange:
			detail = data.Reason
		case nil:
			detail = "cannot be read"
		}
		if late := p.Raw.Time.Sub(p.Time); late.Abs() >= time.Second && p.Data != nil {
			detail = strings.TrimPrefix(detail+", happened at "+p.Time.UTC().Format(time.RFC3339), ", ")
		}
		kind := "event"
		if p.Again() {
			kind = "event again"
		}
		add(p.Raw.Time, kind, p.Raw.Type, p.ID, detail)
	}
	// The database keeps the newest of each type for ever.
	for _, e := range []struct {
		eventType string
		time      int64
		id        string
	}{
		{events.TypeTenantCreated, s.CreatedEvent, s.CreatedEventID}, {events.TypeTenantSuspended, s.SuspendedEvent, ""},
		{events.TypeTenantResumed, s.ResumedEvent, ""}, {events.TypeTenantDeleted, s.DeletedEvent, ""},
	} {
		if e.time != 0 && !kept[fmt.Sprint(e.eventType, e.time)] {
			add(time.Unix(0, e.time), "event", e.eventType, e.id, "the newest, as the database knows it")
		}
	}
	for _, a := range s.Attempts {
		add(a.StartedAt.Time, "attempt", string(a.Outcome), a.ID, attemptDetail(a))
	}
	for _, d := range dead {
		add(d.Time, "dead letter", d.Type, d.EventID, fmt.Sprintf("number %d, %s: %s", d.Sequence, d.Code, d.Error))
	}
	for _, e := range out {
		kind, id := "event out", e.EventID
		if e.OriginalID != "" {
			kind, id = "event again", e.OriginalID
		}
		add(e.CreatedAt.Time, kind, e.Type, id, outDetail(e))
	}
	slices.SortStableFunc(s.History, func(a, b Moment) int { return a.Time.Compare(b.Time) })
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
	if !a.SettledAt.IsZero() {
		parts = append(parts, "settled by a person")
	}
	return strings.Join(parts, ", ")
}

func outDetail(e repo.Outgoing) string {
	var data struct {
		DashboardID string `json:"dashboard_id"`
		Code        string `json:"code"`
	}
	_ = json.Unmarshal(e.Data, &data) // what is ours can be read
	parts := slices.DeleteFunc([]string{data.DashboardID, data.Code}, func(s string) bool { return s == "" })
	if e.SentAt.IsZero() {
		parts = append(parts, "waits to be published")
	}
	return strings.Join(parts, ", ")
}

// conclude says in a sentence whether the tenant has a dashboard, and what to do.
func (s *Story) conclude(in []events.Past, dead []events.DeadLetter, now time.Time) {
	say := func(format string, args ...any) { s.Answer = fmt.Sprintf(format, args...) }
	do := func(format string, args ...any) { s.Next = append(s.Next, fmt.Sprintf(format, args...)) }
	day := func(nanoseconds int64) string { return time.Unix(0, nanoseconds).UTC().Format(time.DateTime) }
	word := shellWord(s.TenantID)
	last := repo.Attempt{}
	if len(s.Attempts) > 0 {
		last = s.Attempts[len(s.Attempts)-1]
	}
	switch {
	case !s.Known && len(dead) > 0:
		d := dead[len(dead)-1]
		say("It has no dashboard: its %s of %s could not be handled and is dead letter %d (%s).", d.Type, d.Time.UTC().Format(time.DateTime), d.Sequence, d.Error)
		do("See it with `papermap-worker dead show %d`, which says how to go on.", d.Sequence)
	case !s.Known:
		e := in[len(in)-1]
		say("It has no dashboard yet: the stream has its %s of %s, and no worker has recorded it.", e.Raw.Type, e.Raw.Time.UTC().Format(time.DateTime))
		do("Is `papermap-worker serve` running, and not paused? `papermap-worker health` says so, and `papermap-worker doctor` what is wrong.")
	case s.Status == repo.Active:
		say("It has dashboard %s.", s.DashboardID)
	case s.Status == repo.Suspended && s.DashboardID != "":
		say("It has dashboard %s, and gets no tokens for it, because it was suspended at %s.", s.DashboardID, day(s.SuspendedEvent))
		do("To let it in again, publish tenant.resumed: `papermap-worker publish tenant-resumed %s`.", word)
	case s.Status == repo.Deleted:
		say("It has no dashboard any more: it was deleted at %s.", day(s.DeletedEvent))
		do("To give it another, publish tenant.created: `papermap-worker publish tenant-created %s --name NAME`.", word)
	case s.Stage == repo.Held:
		say("It has no dashboard: whether Papermap made one at %s is unknown (%s), and a person must look.", last.StartedAt.UTC().Format(time.DateTime), s.FailedError)
		do("Look in Papermap's page for a dashboard %q with %s in its description.", s.Title, last.Mark)
		do("If it is there: `papermap-worker tenants resolve %s --dashboard-id ID`.", word)
		do("If it is not: `papermap-worker tenants resolve %s --recreate`.", word)
	case s.Stage == repo.Failed:
		say("It has no dashboard: creating it failed for good (%s: %s).", s.FailedCode, s.FailedError)
		do("Put right what the error names.")
		if n := deadLetterOf(dead, s.CreatedEventID); n != 0 {
			do("Then `papermap-worker dead replay %d`.", n)
		} else {
			do("Then publish tenant.created again: `papermap-worker publish tenant-created %s --name NAME`.", word)
		}
	case s.Stage == repo.Creating && now.Before(s.ClaimableAt.Time):
		say("It has no dashboard yet: it is being created since %s.", last.StartedAt.UTC().Format(time.DateTime))
		do("Look again in a few seconds.")
	case s.Stage == repo.Creating:
		say("It has no dashboard yet: the worker that created it since %s has stopped, and the event is offered again.", last.StartedAt.UTC().Format(time.DateTime))
		do("Is a worker running? `papermap-worker health`, and `papermap-worker doctor` says what is wrong.")
	case !s.Wanted():
		say("It has no dashboard: no tenant.created was ever published for it, only other events.")
		do("Publish it: `papermap-worker publish tenant-created %s --name NAME`.", word)
	case s.FailedError != "":
		say("It has no dashboard yet: the last try failed (%s), and the worker tries again.", s.FailedError)
		do("Is the worker paused because of Papermap? `papermap-worker health` says why, and `papermap-worker doctor` what to do.")
	default:
		say("It has no dashboard yet: its tenant.created was taken at %s and waits for its turn.", s.UpdatedAt.UTC().Format(time.DateTime))
		do("Look again in a few seconds; if nothing changes, `papermap-worker doctor`.")
	}
	if s.Known && s.Status == repo.Suspended && s.DashboardID == "" {
		s.Answer += fmt.Sprintf(" It is suspended since %s as well.", day(s.SuspendedEvent))
	}
	if n := s.waiting(in, dead); n > 0 {
		do("Events of it in the stream that no worker has recorded: %d. Is `papermap-worker serve` running, and not paused? `papermap-worker health` says so.", n)
	}
	orphans := 0
	for _, a := range s.Attempts {
		if (a.Outcome == repo.Uncertain || a.Outcome == repo.Orphaned) && a.SettledAt.IsZero() {
			orphans++
		}
	}
	if orphans > 0 && s.Stage != repo.Held {
		do("%d of its create requests may have left another dashboard at Papermap: `papermap-worker attempts list` says what to look for.", orphans)
	}
	if s.Known && s.Stage != repo.Failed && len(dead) > 0 {
		do("It has %d dead letters: `papermap-worker dead list --tenant %s`.", len(dead), word)
	}
}

// waiting counts the events that the stream has and the database does not know.
func (s *Story) waiting(in []events.Past, dead []events.DeadLetter) int {
	newest := map[string]int64{
		events.TypeTenantCreated: s.CreatedEvent, events.TypeTenantSuspended: s.SuspendedEvent,
		events.TypeTenantResumed: s.ResumedEvent, events.TypeTenantDeleted: s.DeletedEvent,
	}
	n := 0
	for _, p := range in {
		if s.Known && p.Data != nil && p.Time.UnixNano() > newest[p.Raw.Type] && deadLetterOf(dead, p.ID) == 0 {
			n++
		}
	}
	return n
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_.:@%+=,/][A-Za-z0-9_.:@%+=,/-]*$`)

// shellWord writes a tenant id, which a stranger may have chosen, as one harmless word of a shell's command line.
func shellWord(id string) string {
	if plainWord.MatchString(id) {
		return id
	}
	return "'" + strings.ReplaceAll(id, "'", `'\''`) + "'"
}

// deadLetterOf is the number of an event's newest dead letter; 0 when there is none.
func deadLetterOf(dead []events.DeadLetter, eventID string) uint64 {
	for _, d := range slices.Backward(dead) {
		if d.EventID == eventID {
			return d.Sequence
		}
	}
	return 0
}
