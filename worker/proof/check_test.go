package proof

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

var workspace = papermap.Workspace{
	ID: "ws-a", Key: papermap.KeyPair{ID: "ak_a", Secret: papermap.NewSecret("sk_canary_api?")}, EmbedKey: papermap.KeyPair{ID: "ak_a_embed", Secret: papermap.NewSecret("sk_canary_embed")},
}

// at is a moment of the run, in milliseconds from its beginning.
func at(ms int) time.Time {
	return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond)
}

func dbTime(ms int) repo.Time { return repo.Time{Time: at(ms)} }

// story writes a history as a run would leave it.
type story struct{ History }

// event is published, and stored at once.
func (s *story) event(ms int, eventType, tenant string) *Published {
	n := uint64(len(s.Published) + 1)
	s.Published = append(s.Published, Published{
		Type: eventType, Tenant: tenant, EventID: fmt.Sprint("event-", n), Data: []byte(tenant), Sequence: n, StoredAt: at(ms),
	})
	return &s.Published[n-1]
}

// run is what became of a usage.sync.
func (s *story) run(p Published, status repo.RunStatus) {
	s.Runs = append(s.Runs, repo.Run{
		ID: "run-" + p.EventID, WorkspaceID: workspace.ID, EventID: p.EventID, FromPeriod: "2026-04", ToPeriod: "2026-04", Status: status,
	})
}

// attempt begins, and ends half a second later.
func (s *story) attempt(ms int, tenant string, generation int, outcome repo.Outcome) *repo.Attempt {
	id := fmt.Sprintf("%s-%d", tenant, len(s.Attempts))
	s.Attempts = append(s.Attempts, repo.Attempt{
		ID: id, Mark: "pmw:" + id, WorkspaceID: workspace.ID, TenantID: tenant, Generation: generation, Outcome: outcome,
		StartedAt: dbTime(ms), FinishedAt: dbTime(ms + 500),
	})
	return &s.Attempts[len(s.Attempts)-1]
}

// request is sent for the attempt and answered with the status; made says that it makes a dashboard.
func (s *story) request(ms int, a *repo.Attempt, status int, fault string, made bool) (id string) {
	r := simulator.Request{
		Seq: len(s.Requests) + 1, Time: at(ms), Method: "POST", Path: "/api/v1/external/dashboards", WorkspaceID: workspace.ID, TenantID: a.TenantID,
		Title: "Dashboard - " + a.TenantID, Description: a.Mark, Mark: a.Mark, Status: status, Fault: fault,
	}
	if made {
		r.DashboardID = fmt.Sprint("dashboard-", len(s.Dashboards))
		s.Dashboards = append(s.Dashboards, simulator.Dashboard{
			ID: r.DashboardID, WorkspaceID: workspace.ID, TenantID: a.TenantID, Title: r.Title, Description: a.Mark, Mark: a.Mark, CreatedAt: at(ms),
		})
	}
	s.Requests = append(s.Requests, r)
	return r.DashboardID
}

// announce puts an event out into the outbox and the stream.
func (s *story) announce(eventType, tenant, rest string) {
	row := OutboxRow{Outgoing: repo.Outgoing{
		ID: int64(len(s.Outbox) + 1), EventID: fmt.Sprint("out-", len(s.Outbox)), TenantID: tenant, Type: eventType,
		Data: fmt.Appendf(nil, `{"tenant_id":%q,"workspace_id":"ws-a",%s}`, tenant, rest),
	}, SentAt: dbTime(1)}
	s.Outbox = append(s.Outbox, row)
	s.Out = append(s.Out, Out{Sequence: uint64(1000 + len(s.Out)), Type: eventType, ID: row.EventID, Tenant: tenant, Data: row.Data})
}

// created is an attempt that makes the tenant's dashboard at once.
func (s *story) created(ms int, tenant string, generation int) (id string) {
	a := s.attempt(ms, tenant, generation, repo.Made)
	a.DashboardID = s.request(ms+100, a, 200, "", true)
	s.announce(events.TypeDashboardCreated, tenant, fmt.Sprintf(`"dashboard_id":%q`, a.DashboardID))
	return a.DashboardID
}

// row is the tenant's mapping, with the newest event of each kind that was published so far.
func (s *story) row(ms int, tenant string, status, stage repo.Status, generation int, dashboard string) {
	m := repo.Mapping{
		TenantID: tenant, WorkspaceID: workspace.ID, DashboardID: dashboard, Title: "Dashboard - " + tenant, Status: status, Stage: stage,
		Generation: generation, UpdatedAt: dbTime(ms),
	}
	newest := map[string]*int64{
		events.TypeTenantCreated: &m.CreatedEvent, events.TypeTenantDeleted: &m.DeletedEvent,
		events.TypeTenantSuspended: &m.SuspendedEvent, events.TypeTenantResumed: &m.ResumedEvent,
	}
	for _, p := range s.Published {
		if p.Tenant == tenant {
			*newest[p.Type] = max(*newest[p.Type], p.when().UnixNano())
		}
	}
	s.Mappings = append(s.Mappings, m)
}

func (s *story) buried(ms int, p *Published, code string) {
	n := uint64(len(s.Dead) + 1)
	s.Dead = append(s.Dead, Dead{
		DeadLetter: events.DeadLetter{
			Sequence: n, Type: p.Type, EventID: p.EventID, EventTime: p.when().Format(time.RFC3339Nano), Time: at(ms), Code: code,
			Error: "why", Attempts: 1, SideEffect: "none", StreamSequence: p.Sequence, Data: p.Data,
		},
		Header: nats.Header{nats.MsgIdHdr: {"dead-" + p.message()}},
	})
}

// token is minted a tenth of a second after it was asked for, for an hour.
func (s *story) token(ms int, tenant, dashboard string, change ...func(*papermap.Claims)) {
	c := papermap.Claims{TenantID: tenant, DashboardID: dashboard, WorkspaceID: workspace.ID, APIKeyID: workspace.EmbedKey.ID, ValidUntil: at(ms).Unix() + 3600}
	for _, f := range change {
		f(&c)
	}
	text, err := papermap.MintToken(papermap.KeyPair{ID: c.APIKeyID, Secret: workspace.EmbedKey.Secret}, c.WorkspaceID, c.TenantID, c.DashboardID, time.Unix(c.ValidUntil, 0))
	if err != nil {
		panic(err)
	}
	s.Tokens = append(s.Tokens, Token{
		Asked: at(ms), Answered: at(ms + 100), Tenant: tenant, Text: text, Workspace: c.WorkspaceID, Dashboard: c.DashboardID, Expires: c.ValidUntil,
	})
}

// honest is the history of a run in which every promise was kept, and much happened.
func honest() *story {
	s := &story{History{
		Workspaces: []papermap.Workspace{workspace}, LongestLife: 2 * time.Hour, Canaries: []string{"a planted/secret"}, Texts: map[string]string{"log": "all is well"},
		Waiting: []Waiting{{Consumer: events.MainConsumer}, {Consumer: events.AccessConsumer}},
		Outages: []Window{{at(60_000), at(90_000)}},
	}}

	s.event(0, events.TypeTenantCreated, "acme")
	s.event(10, events.TypeTenantCreated, "acme") // a copy
	s.row(700, "acme", repo.Active, repo.Active, 1, s.created(100, "acme", 1))
	s.token(2_000, "acme", "dashboard-0")

	// The first create was processed, and its answer lost.
	s.event(20, events.TypeTenantCreated, "lost")
	s.request(1_100, s.attempt(1_000, "lost", 1, repo.Uncertain), 0, "drop=after", true)
	s.row(4_000, "lost", repo.Active, repo.Active, 1, s.created(3_000, "lost", 1))

	// The first two requests were answered with "not now", the third one of the same attempt with a dashboard.
	s.event(30, events.TypeTenantCreated, "busy")
	busy := s.attempt(5_000, "busy", 1, repo.Made)
	s.request(5_010, busy, 429, "delay=100ms status=429", false)
	s.request(5_200, busy, 503, `retry-after=1 status=503`, false)
	busy.DashboardID = s.request(5_300, busy, 200, "", true)
	s.announce(events.TypeDashboardCreated, "busy", fmt.Sprintf(`"dashboard_id":%q`, busy.DashboardID))
	s.row(6_000, "busy", repo.Active, repo.Active, 1, busy.DashboardID)

	// Deleted and made anew; the deletion says when it happened, and is stored last.
	s.event(40, events.TypeTenantCreated, "again")
	s.created(7_000, "again", 1)
	s.token(7_700, "again", "dashboard-4")
	s.event(9_000, events.TypeTenantCreated, "again")
	s.event(9_500, events.TypeTenantDeleted, "again").Time = at(8_000)
	s.row(11_000, "again", repo.Active, repo.Active, 2, s.created(10_000, "again", 2))
	s.token(12_000, "again", "dashboard-5")

	// Suspended, with a token shortly before the commit was seen and a refusal after.
	s.event(50, events.TypeTenantCreated, "hush")
	hush := s.created(13_000, "hush", 1)
	s.token(15_000, "hush", hush)
	s.event(16_000, events.TypeTenantSuspended, "hush")
	s.event(16_000, events.TypeTenantResumed, "hush") // at the same time: it counts for nothing
	s.row(16_100, "hush", repo.Suspended, repo.Active, 1, hush)
	s.Commits = append(s.Commits, Commit{At: at(16_200), Tenant: "hush", Status: repo.Suspended, Event: at(16_000).UnixNano()})
	s.token(16_150, "hush", hush)
	s.Tokens = append(s.Tokens, Token{Asked: at(30_000), Answered: at(30_010), Tenant: "hush", Code: "TENANT_SUSPENDED"})

	// Suspended, resumed, and given tokens long after.
	s.event(60, events.TypeTenantCreated, "back")
	back := s.created(17_000, "back", 1)
	s.event(18_000, events.TypeTenantSuspended, "back")
	s.Commits = append(s.Commits, Commit{At: at(18_100), Tenant: "back", Status: repo.Suspended, Event: at(18_000).UnixNano()})
	s.event(20_000, events.TypeTenantResumed, "back")
	s.row(20_100, "back", repo.Active, repo.Active, 1, back)
	s.token(28_000, "back", back)

	// Deleted; nothing else is known of it.
	s.event(21_000, events.TypeTenantDeleted, "gone")
	s.row(21_100, "gone", repo.Deleted, "none", 1, "")

	// Held: who knows whether there is a dashboard? (There is.)
	s.event(70, events.TypeTenantCreated, "held")
	held := s.attempt(22_000, "held", 1, repo.Uncertain)
	s.request(22_100, held, 500, "effect=true status=500", true)
	s.announce(events.TypeDashboardHeld, "held", fmt.Sprintf(`"attempt":%q`, held.ID))
	s.row(22_600, "held", repo.Held, repo.Held, 1, "")

	// Refused by the API, for good.
	bad := s.event(80, events.TypeTenantCreated, "bad")
	s.request(23_100, s.attempt(23_000, "bad", 1, repo.NotAccepted), 422, "status=422", false)
	s.announce(events.TypeDashboardFailed, "bad", `"code":"API_REFUSED"`)
	s.buried(23_600, bad, "API_REFUSED")
	s.row(23_500, "bad", repo.Failed, repo.Failed, 1, "")

	// Refused, and published again when the API took it: a second generation.
	worse := s.event(85, events.TypeTenantCreated, "better")
	s.request(26_100, s.attempt(26_000, "better", 1, repo.NotAccepted), 422, "status=422", false)
	s.announce(events.TypeDashboardFailed, "better", `"code":"API_REFUSED"`)
	s.buried(26_600, worse, "API_REFUSED")
	s.event(27_000, events.TypeTenantCreated, "better")
	s.row(27_600, "better", repo.Active, repo.Active, 2, s.created(27_100, "better", 2))

	// The API answered with another tenant's dashboard, which was not believed.
	s.event(88, events.TypeTenantCreated, "twin")
	twin := s.attempt(28_000, "twin", 1, repo.Uncertain)
	s.request(28_100, twin, 200, `body={"data":{"dashboard_id":"dashboard-0"}}`, false)
	twin.DashboardID = "dashboard-0"
	s.row(29_700, "twin", repo.Active, repo.Active, 1, s.created(29_000, "twin", 1))

	// Failed in the outage and done after it; events out of the same tenant in their order.
	s.event(59_000, events.TypeTenantCreated, "patient")
	s.request(61_100, s.attempt(61_000, "patient", 1, repo.NotAccepted), 401, "status=401", false)
	s.row(92_000, "patient", repo.Active, repo.Active, 1, s.created(91_000, "patient", 1))

	// Its own failures used up its attempts, the last one in the outage: others had succeeded since the one before.
	own := s.event(90, events.TypeTenantCreated, "own")
	s.request(500, s.attempt(400, "own", 1, repo.Uncertain), 500, "status=500", false)
	s.request(65_100, s.attempt(65_000, "own", 1, repo.Uncertain), 500, "status=500", false)
	s.announce(events.TypeDashboardFailed, "own", `"code":"API_FAILED"`)
	s.buried(65_600, own, "API_FAILED")
	s.row(65_500, "own", repo.Failed, repo.Failed, 1, "")

	// A holder slept beyond its lease; then it sent, when the next one had made the dashboard.
	s.event(29_000, events.TypeTenantCreated, "slept")
	slept := s.attempt(30_000, "slept", 1, repo.Orphaned)
	slept.FinishedAt = dbTime(57_000)
	slept.DashboardID = s.request(56_700, slept, 200, "", true)
	s.row(56_500, "slept", repo.Active, repo.Active, 1, s.created(56_000, "slept", 1))

	// Suspended, deleted and made anew: the suspension has ended with the deletion.
	s.event(95, events.TypeTenantCreated, "anew")
	s.created(31_000, "anew", 1)
	s.event(32_000, events.TypeTenantSuspended, "anew")
	s.Commits = append(s.Commits, Commit{At: at(32_100), Tenant: "anew", Status: repo.Suspended, Event: at(32_000).UnixNano()})
	s.event(33_000, events.TypeTenantDeleted, "anew")
	s.Commits = append(s.Commits, Commit{At: at(33_100), Tenant: "anew", Status: repo.Deleted, Event: at(33_000).UnixNano()})
	s.event(34_000, events.TypeTenantCreated, "anew")
	anew := s.created(35_000, "anew", 2)
	s.row(35_500, "anew", repo.Active, repo.Active, 2, anew)
	s.token(45_000, "anew", anew)

	// A poison event that was too large to be kept whole.
	large := s.event(23_900, events.TypeTenantDeleted, "")
	large.Poison, large.Data = true, []byte("larger than it may be")
	s.buried(24_000, large, "INVALID_JSON")
	cut := &s.Dead[len(s.Dead)-1]
	cut.Data = large.Data[:6]
	cut.Header.Set("Papermap-Data-Truncated", fmt.Sprintf("%d %x", len(large.Data), sha256.Sum256(large.Data)))

	p := s.event(24_000, events.TypeTenantCreated, "poison")
	p.Poison, p.EventID = true, ""
	s.buried(24_100, p, "INVALID_FIELD")
	s.Dead[len(s.Dead)-1].EventID = p.message()

	// Another, of which nobody could read the id and the time.
	p = s.event(24_500, events.TypeTenantCreated, "")
	p.Poison, p.Time = true, at(24_400)
	s.buried(24_600, p, "INVALID_ENVELOPE")
	unread := &s.Dead[len(s.Dead)-1]
	unread.EventID, unread.EventTime = p.message(), p.StoredAt.Format(time.RFC3339Nano)

	u := s.event(70_000, events.TypeUsageSync, "") // in the outage, which has nothing to do with it
	s.buried(70_100, u, "NOT_SUPPORTED")
	sync := s.event(200_000, events.TypeUsageSync, "")
	s.run(*sync, repo.RunDone)
	s.announce(events.TypeUsageSynced, "", `"from_period":"2026-04"`)
	tick := s.event(200_100, events.TypeUsageSync, "")
	s.run(*tick, repo.Skipped)
	s.Usage = append(s.Usage, UsageRow{WorkspaceID: workspace.ID, TenantID: "acme", Period: "2026-04", Credits: "12.50", Requests: 3})
	s.Reported = slices.Clone(s.Usage)

	// The first event out of one tenant was published again later.
	copied := s.Out[slices.IndexFunc(s.Out, func(o Out) bool { return o.Tenant == "again" })]
	copied.Sequence = 5_000
	s.Out = append(s.Out, copied)

	// The publisher heard nothing, and the stream has nothing.
	s.Published = append(s.Published, Published{Type: events.TypeTenantCreated, Tenant: "never", Data: []byte("never")})
	return s
}

// Ways to a part of the honest history.

func (s *story) mapping(tenant string) *repo.Mapping {
	return &s.Mappings[slices.IndexFunc(s.Mappings, func(m repo.Mapping) bool { return m.TenantID == tenant })]
}

func (s *story) lastAttempt(tenant string) *repo.Attempt {
	var last *repo.Attempt
	for i := range s.Attempts {
		if s.Attempts[i].TenantID == tenant {
			last = &s.Attempts[i]
		}
	}
	return last
}

func (s *story) lastRequest(tenant string) *simulator.Request {
	var last *simulator.Request
	for i := range s.Requests {
		if s.Requests[i].TenantID == tenant {
			last = &s.Requests[i]
		}
	}
	return last
}

func (s *story) deadLetter(code string) *Dead {
	return &s.Dead[slices.IndexFunc(s.Dead, func(d Dead) bool { return d.Code == code })]
}

func (s *story) published(eventType, tenant string) *Published {
	return &s.Published[slices.IndexFunc(s.Published, func(p Published) bool { return p.Type == eventType && p.Tenant == tenant })]
}

func TestAnHonestHistoryHasNoViolations(t *testing.T) {
	for _, v := range Check(honest().History) {
		t.Error(v)
	}
}

func TestEachLieIsCaughtByItsInvariantAlone(t *testing.T) {
	repeat := func(s *story, seq, status int, made bool) { // request seq's mark again, at the same moment
		r := s.Requests[seq-1]
		s.request(0, &repo.Attempt{Mark: r.Mark, TenantID: r.TenantID}, status, "", made)
		s.Requests[len(s.Requests)-1].Time = r.Time.Add(10 * time.Millisecond)
	}
	for _, lie := range []struct {
		invariant, what string
		tell            func(*story)
	}{
		{EventEnded, "an acknowledged event has left no trace", func(s *story) { s.event(200, events.TypeTenantCreated, "vanished") }},
		{EventEnded, "a deletion was not recorded, and another stands for it", func(s *story) {
			s.event(21_500, events.TypeTenantDeleted, "gone")
		}},
		{EventEnded, "a suspension is newer than what the row knows", func(s *story) { s.mapping("hush").SuspendedEvent-- }},
		{EventEnded, "the stream has lost an acknowledged event", func(s *story) { s.event(21_000, events.TypeTenantDeleted, "gone").StoredAt = time.Time{} }},
		{EventEnded, "a usage.sync came to nothing", func(s *story) {
			s.event(26_000, events.TypeUsageSync, "")
		}},
		{NothingWaits, "one is in hand", func(s *story) { s.Waiting[1].InHand = 1 }},
		{FinalStatus, "suspended and resumed at the same time means suspended", func(s *story) { s.mapping("hush").Status = repo.Active }},
		{FinalStatus, "deleted before it was created again means active", func(s *story) { s.mapping("again").Status = repo.Deleted }},
		{FinalStatus, "failed without a dead letter", func(s *story) {
			m := s.mapping("held")
			m.Status, m.Stage = repo.Failed, repo.Failed
		}},
		{FinalStatus, "a suspended tenant was never provisioned", func(s *story) { s.mapping("hush").Stage = repo.Pending }},
		{FinalStatus, "active without a dashboard", func(s *story) {
			s.mapping("acme").DashboardID = ""
			s.mapping("acme").Generation = 2 // so that it is not the first one's that is missing
			s.event(2, events.TypeTenantDeleted, "acme").Time = at(-1)
			s.mapping("acme").DeletedEvent = at(-1).UnixNano()
		}},
		{FinalStatus, "held without a reason", func(s *story) { s.lastAttempt("held").Generation = 2 }},
		{FinalStatus, "held after a refusal", func(s *story) {
			s.lastAttempt("held").Generation = 2
			s.attempt(22_700, "held", 1, repo.NotAccepted)
		}},
		{FinalStatus, "resumed, and suspended all the same", func(s *story) { s.mapping("back").Status = repo.Suspended }},
		{OneDashboard, "two rows of one tenant", func(s *story) { s.Mappings = append(s.Mappings, *s.mapping("acme")) }},
		{OneDashboard, "one dashboard in two rows", func(s *story) { s.mapping("held").DashboardID = s.mapping("acme").DashboardID }},
		{DashboardExists, "a row names a dashboard that was never made", func(s *story) { s.mapping("held").DashboardID = "invented" }},
		{DashboardExists, "an orphan's dashboard was made for another tenant", func(s *story) {
			a := s.lastAttempt("held")
			a.Outcome, a.DashboardID = repo.Orphaned, "dashboard-0"
			m := s.mapping("held")
			m.Status, m.Stage, m.DashboardID = repo.Active, repo.Active, s.created(23_000, "held", 1) // held no longer
		}},
		{DashboardExists, "made by another tenant's attempt", func(s *story) { s.Dashboards[0].Mark = s.lastAttempt("busy").Mark }},
		{DashboardExists, "made in another workspace", func(s *story) { s.Dashboards[0].WorkspaceID = "ws-b" }},
		{DashboardRecorded, "a dashboard that nobody knows of", func(s *story) {
			s.Dashboards = append(s.Dashboards, simulator.Dashboard{ID: "lost", WorkspaceID: workspace.ID, TenantID: "held", Mark: "pmw:strange"})
			s.attempt(22_700, "held", 1, repo.Uncertain) // so that their number could be right
		}},
		{DashboardBound, "two dashboards of a generation without an uncertain attempt", func(s *story) {
			s.Dashboards = append(s.Dashboards, simulator.Dashboard{ID: "second", WorkspaceID: workspace.ID, TenantID: "acme", Mark: s.lastAttempt("acme").Mark})
		}},
		{GenerationCause, "a generation more than there were reasons for", func(s *story) {
			s.mapping("acme").Generation = 2
			s.lastAttempt("acme").Generation = 2
		}},
		{CreateMarked, "a request without an attempt", func(s *story) {
			s.request(1_000, &repo.Attempt{TenantID: "acme"}, 500, "status=500", false)
		}},
		{CreateMarked, "the attempt was committed after its request", func(s *story) {
			s.lastAttempt("acme").StartedAt = repo.Time{Time: s.lastRequest("acme").Time.Add(50 * time.Millisecond)}
		}},
		{CreateMarked, "the mark of another tenant's attempt", func(s *story) {
			s.request(22_200, &repo.Attempt{TenantID: "acme", Mark: s.lastAttempt("held").Mark}, 500, "status=500", false)
			s.Requests[len(s.Requests)-1].Mark += "0" // or it would be the second with this mark, too
			a := s.attempt(22_200, "held", 1, repo.Uncertain)
			a.Mark = s.Requests[len(s.Requests)-1].Mark
		}},
		{MarkSentOnce, "again after an answer that leaves it open", func(s *story) { repeat(s, s.lastRequest("held").Seq, 500, false) }},
		{MarkSentOnce, "again before the answer came", func(s *story) {
			s.Requests[s.lastRequest("busy").Seq-3].Fault = "delay=10s status=429"
		}},
		{MarkSentOnce, "again after a conflict", func(s *story) { s.Requests[s.lastRequest("busy").Seq-2].Status = 409 }},
		{MarkSentOnce, "again after a 503 without Retry-After", func(s *story) {
			s.Requests[s.lastRequest("busy").Seq-2].Fault = "status=503"
		}},
		{KnownOutcome, "sent after the refusal was recorded", func(s *story) {
			s.lastRequest("bad").Time = s.lastAttempt("bad").FinishedAt.Add(50 * time.Millisecond)
		}},
		{KnownOutcome, "another attempt after the dashboard was made", func(s *story) { s.attempt(8_000, "acme", 1, repo.NotAccepted) }},
		{CreatedProven, "created, but the answer was cut short", func(s *story) { s.lastRequest("acme").Fault = "truncate=true" }},
		{CreatedProven, "created, but the row has none", func(s *story) {
			s.event(17_000, events.TypeTenantDeleted, "hush") // so that it need not have one
			m := s.mapping("hush")
			m.DashboardID, m.Status, m.DeletedEvent = "", repo.Deleted, at(17_000).UnixNano()
		}},
		{RefusedProven, "refused, and yet the answer was lost", func(s *story) {
			r := s.lastRequest("patient")
			r = &s.Requests[r.Seq-2]
			r.Status, r.Fault = 0, "drop=before"
		}},
		{PoisonHarmless, "a poison event was dropped silently", func(s *story) { s.event(27_000, events.TypeTenantCreated, "").Poison = true }},
		{PoisonHarmless, "a poison event may have done something", func(s *story) { s.deadLetter("INVALID_FIELD").SideEffect = "maybe" }},
		{PoisonHarmless, "a poison event was tried again and again", func(s *story) { s.deadLetter("INVALID_FIELD").Attempts = 2 }},
		{PoisonHarmless, "a poison event made a row", func(s *story) {
			s.Mappings = append(s.Mappings, repo.Mapping{TenantID: "poison", WorkspaceID: workspace.ID, Status: repo.Pending, Stage: repo.Pending, Generation: 1})
		}},
		{PoisonHarmless, "a poison event made a request", func(s *story) {
			s.request(24_100, s.attempt(24_050, "poison", 1, repo.NotAccepted), 422, "", false)
		}},
		{DeadLetterTrue, "twice", func(s *story) { s.Dead = append(s.Dead, *s.deadLetter("INVALID_FIELD")) }},
		{DeadLetterTrue, "with other data", func(s *story) { s.deadLetter("INVALID_FIELD").Data = []byte("other") }},
		{DeadLetterTrue, "twice, after the duplicate window and under another id", func(s *story) {
			d := *s.deadLetter("INVALID_FIELD")
			d.Time, d.Header = d.Time.Add(time.Hour), nats.Header{nats.MsgIdHdr: {"dead-other"}}
			s.Dead = append(s.Dead, d)
		}},
		{DeadLetterTrue, "of another type", func(s *story) { s.deadLetter("INVALID_FIELD").Type = events.TypeTenantDeleted }},
		{DeadLetterTrue, "cut, from something else", func(s *story) { s.deadLetter("INVALID_JSON").Data = []byte("largest") }},
		{DeadLetterTrue, "cut, with a wrong sum", func(s *story) { s.deadLetter("INVALID_JSON").Header.Set("Papermap-Data-Truncated", "21 00") }},
		{DeadLetterTrue, "with another identity", func(s *story) { s.deadLetter("API_REFUSED").EventID = "other" }},
		{DeadLetterTrue, "of a poison event, with another identity", func(s *story) { s.deadLetter("INVALID_ENVELOPE").EventID = "other" }},
		{DeadLetterTrue, "of a poison event, with another time", func(s *story) {
			s.deadLetter("INVALID_ENVELOPE").EventTime = at(1).Format(time.RFC3339Nano)
		}},
		{DeadLetterTrue, "with another time", func(s *story) { s.deadLetter("API_REFUSED").EventTime = at(1).Format(time.RFC3339Nano) }},
		{DeadLetterTrue, "of an event that nobody published", func(s *story) {
			d := *s.deadLetter("INVALID_FIELD")
			d.StreamSequence = 999
			s.Dead = append(s.Dead, d)
		}},
		{DeadLetterDue, "a good event was called invalid", func(s *story) { s.buried(21_100, s.published(events.TypeTenantDeleted, "gone"), "INVALID_FIELD") }},
		{DeadLetterDue, "refused by an API that refused nothing", func(s *story) { s.lastRequest("bad").Status = 429 }},
		{DeadLetterDue, "a suspension cannot fail at the API", func(s *story) {
			s.buried(95_100, s.event(95_000, events.TypeTenantSuspended, "own"), "API_FAILED")
			m := s.mapping("own")
			m.Status, m.SuspendedEvent = repo.Suspended, at(95_000).UnixNano()
		}},
		{OutageSpares, "given up during an outage", func(s *story) {
			s.lastRequest("bad").Time, s.lastRequest("bad").Status = at(62_100), 401
			s.lastAttempt("bad").StartedAt, s.lastAttempt("bad").FinishedAt = dbTime(62_000), dbTime(62_500)
			s.deadLetter("API_REFUSED").Time = at(62_600)
			s.deadLetter("API_REFUSED").Code = "API_FAILED"
		}},
		{DeadLetterDue, "refused by an API that only failed", func(s *story) {
			s.lastRequest("bad").Status, s.lastAttempt("bad").Outcome = 500, repo.Uncertain
		}},
		{DeadLetterDue, "failed without a failure", func(s *story) { s.deadLetter("API_FAILED").Time = at(300) }},
		{DeadLetterDue, "an unknown workspace, of a usage.sync that names none", func(s *story) { s.deadLetter("NOT_SUPPORTED").Code = "UNKNOWN_WORKSPACE" }},
		{OutageSpares, "its failure counted although nobody had succeeded", func(s *story) {
			i := slices.IndexFunc(s.Attempts, func(a repo.Attempt) bool { return a.TenantID == "own" })
			s.Attempts[i].StartedAt, s.Attempts[i].FinishedAt = dbTime(58_000), dbTime(58_500) // after the last success
			s.Requests[s.lastRequest("own").Seq-2].Time = at(58_100)
		}},
		{OutPublished, "a row of the outbox was never published", func(s *story) { s.Out = s.Out[1:] }},
		{OutOrder, "two of a tenant in the wrong order", func(s *story) {
			var of []int
			for i, o := range s.Out {
				if o.Tenant == "again" {
					of = append(of, i)
				}
			}
			a, b := &s.Out[of[0]], &s.Out[of[1]]
			a.Sequence, b.Sequence = b.Sequence, a.Sequence
		}},
		{OutCause, "published without a row", func(s *story) {
			o := s.Out[0]
			o.ID, o.Sequence = "strange", 5_000
			s.Out = append(s.Out, o)
		}},
		{OutCause, "published about another tenant", func(s *story) { s.Out[0].Tenant = "lost" }},
		{OutCause, "published as another type", func(s *story) { s.Out[0].Type = events.TypeDashboardFailed }},
		{OutCause, "published with other data", func(s *story) { s.Out[0].Data = []byte(`{"tenant_id":"acme"}`) }},
		{OutTrue, "the announced dashboard is not the tenant's", func(s *story) {
			data := []byte(strings.Replace(string(s.Outbox[0].Data), "dashboard-0", "dashboard-1", 1))
			s.Outbox = append(s.Outbox, s.Outbox[0])
			more := &s.Outbox[len(s.Outbox)-1]
			more.ID, more.EventID, more.Data = 999, "strange", data
			s.Out = append(s.Out, Out{Sequence: 5_000, Type: more.Type, ID: more.EventID, Tenant: more.TenantID, Data: data})
		}},
		{OutTrue, "about another tenant", func(s *story) {
			data := []byte(strings.Replace(string(s.Outbox[0].Data), "acme", "lost", 1))
			s.Outbox[0].Data, s.Out[0].Data = data, data
		}},
		{OutTrue, "held because of another tenant's attempt", func(s *story) {
			i := slices.IndexFunc(s.Outbox, func(o OutboxRow) bool { return o.Type == events.TypeDashboardHeld })
			data := []byte(strings.Replace(string(s.Outbox[i].Data), s.lastAttempt("held").ID, s.lastAttempt("acme").ID, 1))
			s.Outbox[i].Data, s.Out[i].Data = data, data
		}},
		{OutTrue, "a dashboard that nothing tells of", func(s *story) { s.Outbox, s.Out = s.Outbox[1:], s.Out[1:] }},
		{TokenSigned, "signed with another key", func(s *story) {
			s.token(3_000, "acme", "dashboard-0", func(c *papermap.Claims) { c.APIKeyID = workspace.Key.ID })
		}},
		{TokenSigned, "no token at all", func(s *story) { s.Tokens[0].Text = "garbage" }},
		{TokenLife, "valid longer than allowed", func(s *story) {
			s.token(3_000, "acme", "dashboard-0", func(c *papermap.Claims) { c.ValidUntil += 3 * 3600 })
		}},
		{TokenLife, "expired before it was asked for", func(s *story) {
			s.token(3_000, "acme", "dashboard-0", func(c *papermap.Claims) { c.ValidUntil -= 3600 })
		}},
		{TokenMapping, "for another tenant's dashboard", func(s *story) { s.token(16_000, "acme", "dashboard-4") }},
		{TokenMapping, "before there was a dashboard", func(s *story) { s.token(50, "acme", "dashboard-0") }},
		{TokenMapping, "for the dashboard of an older generation", func(s *story) { s.token(20_000, "again", "dashboard-4") }},
		{TokenMapping, "the answer names another dashboard than the token", func(s *story) { s.Tokens[0].Dashboard = "dashboard-1" }},
		{TokenRevoked, "long after the suspension was committed", func(s *story) { s.token(21_300, "hush", s.mapping("hush").DashboardID) }},
		{TokenRevoked, "after a deletion, before it was made anew", func(s *story) {
			s.token(45_000, "anew", s.mapping("anew").DashboardID)
			s.published(events.TypeTenantDeleted, "anew").Time = at(34_000)
			s.mapping("anew").Status, s.mapping("anew").DeletedEvent = repo.Deleted, at(34_000).UnixNano()
			s.Commits[len(s.Commits)-1].Event = at(34_000).UnixNano()
		}},
		{TokenRevoked, "resumed only later", func(s *story) {
			s.token(24_000, "back", s.mapping("back").DashboardID)
			s.published(events.TypeTenantResumed, "back").StoredAt = at(25_000)
			s.mapping("back").ResumedEvent = at(25_000).UnixNano()
		}},
		{UsageValid, "twice the same month", func(s *story) { s.Usage = append(s.Usage, s.Usage[0]) }},
		{UsageValid, "a float", func(s *story) { s.Usage[0].Credits, s.Reported[0].Credits = "1.25e1", "1.25e1" }},
		{UsageTrue, "a credit too many", func(s *story) { s.Usage[0].Credits = "13.50" }},
		{UsageTrue, "a request too few", func(s *story) { s.Usage[0].Requests-- }},
		{UsageTrue, "a row that the API does not report", func(s *story) { s.Reported = s.Reported[:0] }},
		{UsageTrue, "a row that a whole run has left out", func(s *story) {
			s.Reported = append(s.Reported, UsageRow{WorkspaceID: workspace.ID, TenantID: "lost", Period: "2026-04", Credits: "1"})
		}},
		{UsageRun, "a run that never ended", func(s *story) { s.Runs[1].Status = repo.Running }},
		{UsageRun, "a second run of one event", func(s *story) {
			s.Runs[1].EventID, s.Published[len(s.Published)-2].EventID = s.Runs[0].EventID, s.Runs[0].EventID
		}},
		{UsageRun, "a run that is done and nobody was told of", func(s *story) { s.Runs[1].Status = repo.RunDone }},
		{NoSecret, "a planted secret in the log", func(s *story) { s.Texts["log"] += " a planted/secret" }},
		{NoSecret, "a workspace's secret in hex in an error", func(s *story) {
			s.lastAttempt("bad").Error = "status 422: " + hex.EncodeToString([]byte(workspace.Key.Secret.Reveal()))
		}},
		{NoSecret, "in base64, inside of something longer, in a dead letter's header", func(s *story) {
			s.deadLetter("INVALID_FIELD").Header.Set("Papermap-Original-X", base64.StdEncoding.EncodeToString([]byte("user:"+workspace.Key.Secret.Reveal()+" etc")))
		}},
		{NoSecret, "URL-encoded, in an event out", func(s *story) {
			s.Outbox[0].Data = []byte(strings.Replace(string(s.Outbox[0].Data), "{", `{"at":"`+url.QueryEscape("a planted/secret")+`",`, 1))
			s.Out[0].Data = s.Outbox[0].Data
		}},
		{NoSecret, "a token's signature inside of something longer, in the log", func(s *story) {
			claims, err := papermap.ParseToken(s.Tokens[0].Text)
			if err != nil {
				panic(err)
			}
			s.Texts["log"] += `{"header":"X-Signature-` + claims.Signature + `0"}`
		}},
		{NoSecret, "a token in a request to Papermap", func(s *story) { s.Requests[0].Title = s.Tokens[0].Text }},
	} {
		t.Run(lie.invariant+": "+lie.what, func(t *testing.T) {
			s := honest()
			lie.tell(s)
			found := Check(s.History)
			if len(found) == 0 {
				t.Fatal("nobody noticed")
			}
			for _, v := range found {
				if v.Invariant != lie.invariant {
					t.Errorf("%v", v)
				}
			}
		})
	}
}

// Every form in which a secret may be written is found wherever in the longer text it stands.
func TestSecretsAreFoundInEveryFormAtEveryPlace(t *testing.T) {
	const secret = "sk_live/ä?+8"
	for _, before := range []string{"", "1", "12", "123", "a longer beginning"} {
		for _, after := range []string{"", "1", "12", "and an end"} {
			text := []byte(before + secret + after)
			for name, written := range map[string]string{
				"raw": string(text), "hex": hex.EncodeToString(text), "base64": base64.StdEncoding.EncodeToString(text),
				"URL-safe base64": base64.RawURLEncoding.EncodeToString(text), "query": url.QueryEscape(string(text)), "path": url.PathEscape(string(text)),
			} {
				h := History{Canaries: []string{secret}, Texts: map[string]string{"log": "…" + written + "…"}}
				if found := Check(h); len(found) == 0 || found[0].Invariant != NoSecret || !strings.Contains(found[0].Detail, `Texts["log"]`) {
					t.Errorf("%s of %q: %v", name, text, found)
				}
			}
		}
	}
	if found := Check(History{Canaries: []string{secret}, Texts: map[string]string{"log": "sk_live/ä?+7"}}); len(found) > 0 {
		t.Error(found)
	}
}

// The contract's sentences on state, with events in every order.
func TestTheExpectedStatusFollowsFromTheEventsTimesAlone(t *testing.T) {
	kinds := map[byte]string{'c': events.TypeTenantCreated, 's': events.TypeTenantSuspended, 'r': events.TypeTenantResumed, 'd': events.TypeTenantDeleted}
	for text, want := range map[string]repo.Status{
		"c1": repo.Active, "c1 c1 c2": repo.Active, "d1": repo.Deleted, "s1": repo.Suspended, "r1": repo.Pending, "s1 r2": repo.Pending,
		"c1 d1": repo.Deleted, "c1 d2": repo.Deleted, "d1 c2": repo.Active, "c1 d2 c3": repo.Active, "c1 c3 d2": repo.Active,
		"c1 s2": repo.Suspended, "s1 c2": repo.Suspended, "c1 s2 r3": repo.Active, "c1 s2 r2": repo.Suspended, "c1 r2 s3": repo.Suspended, "c3 r2 s1": repo.Active,
		"c1 s2 d3": repo.Deleted, "c1 s2 d2 c3": repo.Active, "c1 s2 d3 c4": repo.Active, "c1 d2 s3": repo.Deleted, "c1 d2 s3 c4": repo.Suspended,
		"c1 s1 d2 c3 r1": repo.Active, "d1 d2 c2": repo.Deleted,
	} {
		var list []Published
		for _, word := range strings.Fields(text) {
			list = append(list, Published{Type: kinds[word[0]], StoredAt: at(int(word[1]))})
		}
		permutations(list, func(order []Published) {
			if is := fold(order).status(); is != want {
				t.Errorf("%s: %s, want %s (in the order %v)", text, is, want, order)
			}
		})
	}
}

func permutations(list []Published, do func([]Published)) {
	if len(list) == 0 {
		do(nil)
		return
	}
	for i := range list {
		rest := slices.Delete(slices.Clone(list), i, i+1)
		permutations(rest, func(order []Published) { do(append([]Published{list[i]}, order...)) })
	}
}

func TestWithoutAnEmbedKeyTheWorkspacesOwnSigns(t *testing.T) {
	s := honest()
	s.Workspaces = []papermap.Workspace{{ID: workspace.ID, Key: workspace.EmbedKey}}
	for _, v := range Check(s.History) {
		t.Error(v)
	}
}

// An event far ahead of the stream's clock counts as of the stream's time.
func TestATimeFarAheadIsTheStreams(t *testing.T) {
	p := Published{StoredAt: at(0), Time: at(5 * 60_000)}
	if !p.when().Equal(p.Time) {
		t.Error("five minutes are not far ahead")
	}
	p.Time = p.Time.Add(1)
	if !p.when().Equal(p.StoredAt) {
		t.Error("more than five minutes are")
	}
}
