package proof

import (
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// buriedAgain makes an event a dead letter again, later.
func (s *builder) buriedAgain(later time.Duration) {
	d := *s.deadLetter("INVALID_FIELD")
	d.Time = d.Time.Add(later)
	s.Dead = append(s.Dead, d)
}

func TestCheckAcceptsWhatWasLostWithADeletedStream(t *testing.T) {
	t.Parallel()
	s := goodHistory()
	s.Duplicates = 10 * time.Second
	s.buriedAgain(11 * time.Second)
	s.event(96_000, events.TypeTenantCreated, "lost").Lost = true
	// It had not been handled, and its copy was refused.
	taken := s.mapping("acme").DashboardID
	s.adopting(96_003, "unborn", taken).Lost = true
	s.buried(96_100, s.adopting(96_004, "unborn", taken), codeTaken)
	s.event(96_005, events.TypeTenantResumed, "unborn")
	s.row(96_200, "unborn", repo.Pending, "none", 1, "")
	s.mapping("unborn").CreatedEvent = 0
	// It was recorded in conflict with the tenant's own dashboard. Its copy was refused.
	s.event(94_000, events.TypeTenantCreated, "stays")
	own := s.created(94_100, "stays", 1)
	s.event(94_700, events.TypeTenantDeleted, "stays")
	conflict := s.adopting(94_800, "stays", taken)
	conflict.Lost = true
	s.buried(94_900, conflict, codeConflict)
	s.row(95_000, "stays", repo.Active, repo.Active, 1, own)
	s.buried(96_300, s.adopting(96_200, "stays", taken), codeTaken)
	// Another was refused in conflict, then delivered again when the dashboard was taken.
	s.event(94_001, events.TypeTenantCreated, "again refused")
	own = s.created(94_101, "again refused", 1)
	s.event(94_701, events.TypeTenantDeleted, "again refused")
	twice := s.adopting(94_801, "again refused", taken)
	s.buried(94_901, twice, codeConflict)
	s.buried(105_000, twice, codeTaken)
	s.row(95_001, "again refused", repo.Active, repo.Active, 1, own)
	poison := s.event(96_001, events.TypeTenantCreated, "lost")
	poison.Lost, poison.Poison = true, true
	sync := s.event(96_002, events.TypeUsageSync, "")
	sync.Lost = true
	s.run(*sync, repo.RunRunning)
	for _, v := range Check(s.History) {
		t.Error(v)
	}
}

func TestCheckAcceptsAnyOrderOfEventsWithoutATenant(t *testing.T) {
	t.Parallel()
	s := goodHistory()
	s.run(*s.event(200_200, events.TypeUsageSync, ""), repo.RunDone)
	s.announce(events.TypeUsageSynced, "", `"from_period":"2026-04"`)
	of := func(o Out) bool { return o.Tenant == "" }
	a, b := find(s.Out, of), findLast(s.Out, of)
	a.Sequence, b.Sequence = b.Sequence, a.Sequence
	for _, v := range Check(s.History) {
		t.Error(v)
	}
}

func TestCheckFindsEventViolations(t *testing.T) {
	testViolations(t, []violation{
		{EventEnded, "an acknowledged event has left no trace", func(s *builder) {
			s.event(200, events.TypeTenantCreated, "vanished")
		}},
		{EventEnded, "a deletion was not recorded, and another stands for it", func(s *builder) {
			s.event(21_500, events.TypeTenantDeleted, "gone")
		}},
		{EventEnded, "a suspension is newer than what the row knows", func(s *builder) {
			s.mapping("hush").SuspendedEvent--
		}},
		{EventEnded, "the stream has lost an acknowledged event", func(s *builder) {
			s.event(21_000, events.TypeTenantDeleted, "gone").StoredAt = time.Time{}
		}},
		{EventEnded, "a usage.sync came to nothing", func(s *builder) {
			s.event(26_000, events.TypeUsageSync, "")
		}},
		{NothingWaits, "one is in flight", func(s *builder) { s.Waiting[1].InFlight = 1 }},
		{FinalStatus, "suspended and resumed at the same time means suspended", func(s *builder) {
			s.mapping("hush").Status = repo.Active
		}},
		{FinalStatus, "deleted before it was created again means active", func(s *builder) {
			s.mapping("again").Status = repo.Deleted
		}},
		{FinalStatus, "failed without a dead letter", func(s *builder) {
			m := s.mapping("held")
			m.Status, m.Stage = repo.Failed, repo.Failed
		}},
		{FinalStatus, "a suspended tenant was never provisioned", func(s *builder) {
			s.mapping("hush").Stage = repo.Pending
		}},
		{FinalStatus, "active without a dashboard", func(s *builder) {
			s.mapping("acme").DashboardID = ""
			s.mapping("acme").Generation = 2 // so that it is not the first one's that is missing
			s.event(2, events.TypeTenantDeleted, "acme").Time = at(-1)
			s.mapping("acme").DeletedEvent = at(-1).UnixNano()
		}},
		{FinalStatus, "held without a reason", func(s *builder) { s.lastAttempt("held").Generation = 2 }},
		{FinalStatus, "held after a refusal", func(s *builder) {
			s.lastAttempt("held").Generation = 2
			s.attempt(22_700, "held", 1, repo.OutcomeRefused)
		}},
		{FinalStatus, "resumed, and suspended all the same", func(s *builder) {
			s.mapping("back").Status = repo.Suspended
		}},
		{PoisonHarmless, "a poison event was dropped silently", func(s *builder) {
			s.event(27_000, events.TypeTenantCreated, "").Poison = true
		}},
		{PoisonHarmless, "a poison event may have done something", func(s *builder) {
			s.deadLetter("INVALID_FIELD").SideEffect = "maybe"
		}},
		{PoisonHarmless, "a poison event was tried again and again", func(s *builder) {
			s.deadLetter("INVALID_FIELD").Attempts = 2
		}},
		{PoisonHarmless, "a poison event made a row", func(s *builder) {
			s.Mappings = append(s.Mappings,
				repo.Mapping{
					TenantID: "poison", WorkspaceID: workspace.ID, Status: repo.Pending,
					Stage: repo.Pending, Generation: 1,
				})
		}},
		{PoisonHarmless, "a poison event made a request", func(s *builder) {
			s.request(24_100, s.attempt(24_050, "poison", 1, repo.OutcomeRefused), 422, "", false)
		}},
		{
			DeadLetterTrue, "twice",
			func(s *builder) { s.Dead = append(s.Dead, *s.deadLetter("INVALID_FIELD")) },
		},
		{DeadLetterTrue, "with other data", func(s *builder) {
			s.deadLetter("INVALID_FIELD").Data = []byte("other")
		}},
		{DeadLetterTrue, "twice, after the duplicate window and under another id", func(s *builder) {
			d := *s.deadLetter("INVALID_FIELD")
			d.Time, d.Header = d.Time.Add(time.Hour), nats.Header{nats.MsgIdHdr: {"dead-other"}}
			s.Dead = append(s.Dead, d)
		}},
		{DeadLetterTrue, "twice, within the duplicate window that the streams have", func(s *builder) {
			s.Duplicates = 10 * time.Second
			s.buriedAgain(9 * time.Second)
		}},
		{DeadLetterTrue, "of another type", func(s *builder) {
			s.deadLetter("INVALID_FIELD").Type = events.TypeTenantDeleted
		}},
		{DeadLetterTrue, "cut, from something else", func(s *builder) {
			s.deadLetter("INVALID_JSON").Data = []byte("largest")
		}},
		{DeadLetterTrue, "cut, with a wrong sum", func(s *builder) {
			s.deadLetter("INVALID_JSON").Header.Set("Papermap-Data-Truncated", "21 00")
		}},
		{DeadLetterTrue, "with another identity", func(s *builder) {
			s.deadLetter("API_REFUSED").EventID = "other"
		}},
		{DeadLetterTrue, "of a poison event, with another identity", func(s *builder) {
			s.deadLetter("INVALID_ENVELOPE").EventID = "other"
		}},
		{DeadLetterTrue, "of a poison event, with another time", func(s *builder) {
			s.deadLetter("INVALID_ENVELOPE").EventTime = at(1).Format(time.RFC3339Nano)
		}},
		{DeadLetterTrue, "with another time", func(s *builder) {
			s.deadLetter("API_REFUSED").EventTime = at(1).Format(time.RFC3339Nano)
		}},
		{DeadLetterTrue, "of an event that was not published", func(s *builder) {
			d := *s.deadLetter("INVALID_FIELD")
			d.StreamSequence = 999
			s.Dead = append(s.Dead, d)
		}},
		{DeadLetterDue, "a good event was called invalid", func(s *builder) {
			s.buried(21_100, s.published(events.TypeTenantDeleted, "gone"), "INVALID_FIELD")
		}},
		{DeadLetterDue, "refused by an API that refused nothing", func(s *builder) {
			s.lastRequest("bad").Status = 429
		}},
		{DeadLetterDue, "a suspension cannot fail at the API", func(s *builder) {
			s.buried(95_100, s.event(95_000, events.TypeTenantSuspended, "own"), "API_FAILED")
			m := s.mapping("own")
			m.Status, m.SuspendedEvent = repo.Suspended, at(95_000).UnixNano()
		}},
		{OutageSpares, "given up during an outage", func(s *builder) {
			s.lastRequest("bad").Time, s.lastRequest("bad").Status = at(62_100), 401
			s.lastAttempt("bad").StartedAt, s.lastAttempt("bad").FinishedAt = dbTime(62_000), dbTime(62_500)
			s.deadLetter("API_REFUSED").Time = at(62_600)
			s.deadLetter("API_REFUSED").Code = "API_FAILED"
		}},
		{DeadLetterDue, "refused by an API that only failed", func(s *builder) {
			s.lastRequest("bad").Status, s.lastAttempt("bad").Outcome = 500, repo.OutcomeUnknown
		}},
		{DeadLetterDue, "failed without a failure", func(s *builder) {
			s.deadLetter("API_FAILED").Time = at(300)
		}},
		{DeadLetterDue, "an unknown workspace, of a usage.sync that names none", func(s *builder) {
			s.deadLetter("NOT_SUPPORTED").Code = "UNKNOWN_WORKSPACE"
		}},
		{OutageSpares, "its failure counted without a success of another", func(s *builder) {
			i := slices.IndexFunc(s.Attempts, func(a repo.Attempt) bool { return a.TenantID == "own" })
			// after the last success
			s.Attempts[i].StartedAt, s.Attempts[i].FinishedAt = dbTime(58_000), dbTime(58_500)
			s.Requests[s.lastRequest("own").Seq-2].Time = at(58_100)
		}},
	})
}
