package proof

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

var workspace = papermap.Workspace{
	ID: "ws-a", Key: papermap.KeyPair{ID: "ak_a", Secret: papermap.NewSecret("sk_canary_api?")},
	EmbedKey: papermap.KeyPair{ID: "ak_a_embed", Secret: papermap.NewSecret("sk_canary_embed")},
}

// at is a moment of the run, in milliseconds from its beginning.
func at(ms int) time.Time {
	return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond)
}

func dbTime(ms int) repo.Time { return repo.Time{Time: at(ms)} }

// builder writes a history as a run would leave it.
type builder struct{ History }

// event is published, and stored at once.
func (s *builder) event(ms int, eventType, tenant string) *Published {
	n := uint64(len(s.Published) + 1)
	s.Published = append(s.Published, Published{
		Type: eventType, Tenant: tenant, EventID: fmt.Sprint("event-", n), Data: []byte(tenant),
		Sequence: n, StoredAt: at(ms),
	})
	return &s.Published[n-1]
}

// adopting is a tenant.created that names a dashboard.
func (s *builder) adopting(ms int, tenant, dashboard string) *Published {
	p := s.event(ms, events.TypeTenantCreated, tenant)
	p.Adopts = dashboard
	return p
}

// usage is what the API reports and the table has.
func (s *builder) usage(tenant, credits string, requests int64) {
	row := UsageRow{
		WorkspaceID: workspace.ID, TenantID: tenant, Period: "2026-04", Credits: credits, Requests: requests,
	}
	s.Usage, s.Reported = append(s.Usage, row), append(s.Reported, row)
}

// run is what became of a usage.sync.
func (s *builder) run(p Published, status repo.RunStatus) {
	s.Runs = append(s.Runs, repo.Run{
		ID: "run-" + p.EventID, WorkspaceID: workspace.ID, EventID: p.EventID, FromPeriod: "2026-04",
		ToPeriod: "2026-04", Status: status,
	})
}

// attempt begins, and ends half a second later.
func (s *builder) attempt(ms int, tenant string, generation int, outcome repo.Outcome) *repo.Attempt {
	id := fmt.Sprintf("%s-%d", tenant, len(s.Attempts))
	s.Attempts = append(s.Attempts, repo.Attempt{
		ID: id, Mark: "pmw:" + id, WorkspaceID: workspace.ID, TenantID: tenant, Generation: generation,
		Outcome: outcome, StartedAt: dbTime(ms), FinishedAt: dbTime(ms + 500),
	})
	return &s.Attempts[len(s.Attempts)-1]
}

// request is sent for the attempt and answered with the status; made says that it makes a
// dashboard.
func (s *builder) request(ms int, a *repo.Attempt, status int, fault string, made bool) (id string) {
	r := simulator.Request{
		Seq: len(s.Requests) + 1, Time: at(ms), Method: "POST", Path: "/api/v1/external/dashboards",
		WorkspaceID: workspace.ID, TenantID: a.TenantID, Title: "Dashboard - " + a.TenantID,
		Description: a.Mark, Mark: a.Mark, Status: status, Fault: fault,
	}
	if made {
		r.DashboardID = fmt.Sprint("dashboard-", len(s.Dashboards))
		s.Dashboards = append(s.Dashboards, simulator.Dashboard{
			ID: r.DashboardID, WorkspaceID: workspace.ID, TenantID: a.TenantID, Title: r.Title,
			Description: a.Mark, Mark: a.Mark, CreatedAt: at(ms),
		})
	}
	s.Requests = append(s.Requests, r)
	return r.DashboardID
}

// announce puts an event out into the outbox and the stream.
func (s *builder) announce(eventType, tenant, rest string) {
	row := OutboxRow{OutboxRow: repo.OutboxRow{
		ID: int64(len(s.Outbox) + 1), EventID: fmt.Sprint("out-", len(s.Outbox)), TenantID: tenant,
		Type: eventType, Data: fmt.Appendf(nil, `{"tenant_id":%q,"workspace_id":"ws-a",%s}`, tenant, rest),
	}, SentAt: dbTime(1)}
	s.Outbox = append(s.Outbox, row)
	s.Out = append(s.Out, Out{uint64(1000 + len(s.Out)), eventType, row.EventID, tenant, row.Data})
}

// created is an attempt that makes the tenant's dashboard at once.
func (s *builder) created(ms int, tenant string, generation int) (id string) {
	a := s.attempt(ms, tenant, generation, repo.OutcomeCreated)
	a.DashboardID = s.request(ms+100, a, 200, "", true)
	s.announce(events.TypeDashboardCreated, tenant, fmt.Sprintf(`"dashboard_id":%q`, a.DashboardID))
	return a.DashboardID
}

// row is the tenant's mapping, with the newest event of each kind that was published so far.
func (s *builder) row(ms int, tenant string, status, stage repo.Status, generation int, dashboard string) {
	m := repo.Mapping{
		TenantID: tenant, WorkspaceID: workspace.ID, DashboardID: dashboard, Title: "Dashboard - " + tenant,
		Status: status, Stage: stage, Generation: generation, UpdatedAt: dbTime(ms),
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

// buried makes the event a dead letter.
func (s *builder) buried(ms int, p *Published, code string) {
	n := uint64(len(s.Dead) + 1)
	s.Dead = append(s.Dead, Dead{
		DeadLetter: events.DeadLetter{
			Sequence: n, Type: p.Type, EventID: p.EventID, EventTime: p.when().Format(time.RFC3339Nano),
			Time: at(ms), Code: code, Error: "why", Attempts: 1, SideEffect: "none",
			StreamSequence: p.Sequence, Data: p.Data,
		},
		Header: nats.Header{nats.MsgIdHdr: {"dead-" + p.message()}},
	})
}

// commit is a suspension or deletion by an event, as it was seen in the database.
func (s *builder) commit(ms int, tenant string, status repo.Status, eventMS int) {
	s.Commits = append(s.Commits, Commit{at(ms), tenant, status, at(eventMS).UnixNano()})
}

// token is minted a tenth of a second after its request, valid for an hour.
func (s *builder) token(ms int, tenant, dashboard string, change ...func(*papermap.Claims)) {
	c := papermap.Claims{
		TenantID: tenant, DashboardID: dashboard, WorkspaceID: workspace.ID,
		APIKeyID: workspace.EmbedKey.ID, ValidUntil: at(ms).Unix() + 3600,
	}
	for _, f := range change {
		f(&c)
	}
	text, err := papermap.MintToken(papermap.KeyPair{ID: c.APIKeyID, Secret: workspace.EmbedKey.Secret},
		c.WorkspaceID, c.TenantID, c.DashboardID, time.Unix(c.ValidUntil, 0))
	if err != nil {
		panic(err)
	}
	s.Tokens = append(s.Tokens, Token{
		Asked: at(ms), Answered: at(ms + 100), Tenant: tenant, Text: text, Workspace: c.WorkspaceID,
		Dashboard: c.DashboardID, Expires: c.ValidUntil,
	})
}

// goodHistory is the history of a run with many faults, in which every promise was kept.
func goodHistory() *builder {
	s := &builder{History{
		Workspaces: []papermap.Workspace{workspace}, LongestLife: 2 * time.Hour,
		Canaries: []string{"a planted/secret"}, Texts: map[string]string{"log": "all is well"},
		Waiting: []Waiting{{Consumer: events.MainConsumer}, {Consumer: events.AccessConsumer}},
		Outages: []Window{{at(60_000), at(90_000)}},
	}}
	s.provisioned()
	s.suspendedAndDeleted()
	s.failed()
	s.recovered()
	s.adopted()
	s.poisonedAndSynced()

	// The first event out of one tenant was published again later.
	copied := *find(s.Out, func(o Out) bool { return o.Tenant == "again" })
	copied.Sequence = 5_000
	s.Out = append(s.Out, copied)

	// The publisher got no acknowledgement, and the stream has nothing.
	never := Published{Type: events.TypeTenantCreated, Tenant: "never", Data: []byte("never")}
	s.Published = append(s.Published, never)
	return s
}

// provisioned adds tenants that got their dashboards.
func (s *builder) provisioned() {
	s.event(0, events.TypeTenantCreated, "acme")
	s.event(10, events.TypeTenantCreated, "acme") // a copy
	s.row(700, "acme", repo.Active, repo.Active, 1, s.created(100, "acme", 1))
	s.token(2_000, "acme", "dashboard-0")

	// The first create was processed, and its answer lost.
	s.event(20, events.TypeTenantCreated, "lost")
	s.request(1_100, s.attempt(1_000, "lost", 1, repo.OutcomeUnknown), 0, "drop=after", true)
	s.row(4_000, "lost", repo.Active, repo.Active, 1, s.created(3_000, "lost", 1))

	// The first two requests were answered with "not now", the third one of the same attempt with a
	// dashboard.
	s.event(30, events.TypeTenantCreated, "busy")
	busy := s.attempt(5_000, "busy", 1, repo.OutcomeCreated)
	s.request(5_010, busy, 429, "delay=100ms status=429", false)
	s.request(5_200, busy, 503, `retry-after=1 status=503`, false)
	busy.DashboardID = s.request(5_300, busy, 200, "", true)
	s.announce(events.TypeDashboardCreated, "busy", fmt.Sprintf(`"dashboard_id":%q`, busy.DashboardID))
	s.row(6_000, "busy", repo.Active, repo.Active, 1, busy.DashboardID)

	// Deleted and created again; the deletion says when it happened, and is stored last.
	s.event(40, events.TypeTenantCreated, "again")
	s.created(7_000, "again", 1)
	s.token(7_700, "again", "dashboard-4")
	s.event(9_000, events.TypeTenantCreated, "again")
	s.event(9_500, events.TypeTenantDeleted, "again").Time = at(8_000)
	s.row(11_000, "again", repo.Active, repo.Active, 2, s.created(10_000, "again", 2))
	s.token(12_000, "again", "dashboard-5")
}

// suspendedAndDeleted adds tenants that lost their tokens, for a while or for good.
func (s *builder) suspendedAndDeleted() {
	// Suspended, with a token shortly before the commit was seen and a refusal after.
	s.event(50, events.TypeTenantCreated, "hush")
	hush := s.created(13_000, "hush", 1)
	s.token(15_000, "hush", hush)
	s.event(16_000, events.TypeTenantSuspended, "hush")
	s.event(16_000, events.TypeTenantResumed, "hush") // at the same time: it counts for nothing
	s.row(16_100, "hush", repo.Suspended, repo.Active, 1, hush)
	s.commit(16_200, "hush", repo.Suspended, 16_000)
	s.token(16_150, "hush", hush)
	s.Tokens = append(s.Tokens,
		Token{Asked: at(30_000), Answered: at(30_010), Tenant: "hush", Code: "TENANT_SUSPENDED"})

	// Suspended, resumed, and given tokens long after.
	s.event(60, events.TypeTenantCreated, "back")
	back := s.created(17_000, "back", 1)
	s.event(18_000, events.TypeTenantSuspended, "back")
	s.commit(18_100, "back", repo.Suspended, 18_000)
	s.event(20_000, events.TypeTenantResumed, "back")
	s.row(20_100, "back", repo.Active, repo.Active, 1, back)
	s.token(28_000, "back", back)

	// Deleted; nothing else is known of it.
	s.event(21_000, events.TypeTenantDeleted, "gone")
	s.row(21_100, "gone", repo.Deleted, "none", 1, "")
}

// failed adds tenants without a dashboard, and one that got it at the second try.
func (s *builder) failed() {
	// Held, because the outcome is unknown. (There is a dashboard.)
	s.event(70, events.TypeTenantCreated, "held")
	held := s.attempt(22_000, "held", 1, repo.OutcomeUnknown)
	s.request(22_100, held, 500, "effect=true status=500", true)
	s.announce(events.TypeDashboardHeld, "held", fmt.Sprintf(`"attempt":%q`, held.ID))
	s.row(22_600, "held", repo.Held, repo.Held, 1, "")

	// Refused by the API, for good.
	bad := s.event(80, events.TypeTenantCreated, "bad")
	s.request(23_100, s.attempt(23_000, "bad", 1, repo.OutcomeRefused), 422, "status=422", false)
	s.announce(events.TypeDashboardFailed, "bad", `"code":"API_REFUSED"`)
	s.buried(23_600, bad, "API_REFUSED")
	s.row(23_500, "bad", repo.Failed, repo.Failed, 1, "")

	// Refused, and published again when the API accepted it: a second generation.
	worse := s.event(85, events.TypeTenantCreated, "better")
	s.request(26_100, s.attempt(26_000, "better", 1, repo.OutcomeRefused), 422, "status=422", false)
	s.announce(events.TypeDashboardFailed, "better", `"code":"API_REFUSED"`)
	s.buried(26_600, worse, "API_REFUSED")
	s.event(27_000, events.TypeTenantCreated, "better")
	s.row(27_600, "better", repo.Active, repo.Active, 2, s.created(27_100, "better", 2))
}

// recovered adds tenants that took several attempts.
func (s *builder) recovered() {
	// The API answered with another tenant's dashboard, which was not accepted.
	s.event(88, events.TypeTenantCreated, "twin")
	twin := s.attempt(28_000, "twin", 1, repo.OutcomeUnknown)
	s.request(28_100, twin, 200, `body={"data":{"dashboard_id":"dashboard-0"}}`, false)
	twin.DashboardID = "dashboard-0"
	s.row(29_700, "twin", repo.Active, repo.Active, 1, s.created(29_000, "twin", 1))

	// Failed in the outage and done after it; events out of the same tenant in their order.
	s.event(59_000, events.TypeTenantCreated, "patient")
	s.request(61_100, s.attempt(61_000, "patient", 1, repo.OutcomeRefused), 401, "status=401", false)
	s.row(92_000, "patient", repo.Active, repo.Active, 1, s.created(91_000, "patient", 1))

	// Its own failures used up its attempts, the last one in the outage: others had succeeded since
	// the one before.
	own := s.event(90, events.TypeTenantCreated, "own")
	s.request(500, s.attempt(400, "own", 1, repo.OutcomeUnknown), 500, "status=500", false)
	s.request(65_100, s.attempt(65_000, "own", 1, repo.OutcomeUnknown), 500, "status=500", false)
	s.announce(events.TypeDashboardFailed, "own", `"code":"API_FAILED"`)
	s.buried(65_600, own, "API_FAILED")
	s.row(65_500, "own", repo.Failed, repo.Failed, 1, "")

	// A holder was suspended beyond its lease, and sent when the next one had made the dashboard.
	s.event(29_000, events.TypeTenantCreated, "late")
	late := s.attempt(30_000, "late", 1, repo.OutcomeOrphaned)
	late.FinishedAt = dbTime(57_000)
	late.DashboardID = s.request(56_700, late, 200, "", true)
	s.row(56_500, "late", repo.Active, repo.Active, 1, s.created(56_000, "late", 1))

	// Suspended, deleted and created again: the suspension has ended with the deletion.
	s.event(95, events.TypeTenantCreated, "renewed")
	s.created(31_000, "renewed", 1)
	s.event(32_000, events.TypeTenantSuspended, "renewed")
	s.commit(32_100, "renewed", repo.Suspended, 32_000)
	s.event(33_000, events.TypeTenantDeleted, "renewed")
	s.commit(33_100, "renewed", repo.Deleted, 33_000)
	s.event(34_000, events.TypeTenantCreated, "renewed")
	renewed := s.created(35_000, "renewed", 2)
	s.row(35_500, "renewed", repo.Active, repo.Active, 2, renewed)
	s.token(45_000, "renewed", renewed)
}

// adopted adds a tenant with a dashboard that existed before, and a rival for it. Both name others.
func (s *builder) adopted() {
	s.adopting(36_000, "adopter", "existing")
	s.announce(events.TypeDashboardCreated, "adopter", `"dashboard_id":"existing"`)
	s.buried(36_600, s.adopting(36_500, "adopter", "another"), worker.CodeConflict)
	s.row(36_600, "adopter", repo.Active, repo.Active, 1, "existing")
	s.buried(37_100, s.adopting(37_000, "rival", "existing"), worker.CodeTaken)
	s.token(37_000, "adopter", "existing")
}

// poisonedAndSynced adds poison events and usage runs.
func (s *builder) poisonedAndSynced() {
	// A poison event that was too large to be kept whole.
	large := s.event(23_900, events.TypeTenantDeleted, "")
	large.Poison, large.Data = true, []byte("larger than it may be")
	s.buried(24_000, large, "INVALID_JSON")
	cut := &s.Dead[len(s.Dead)-1]
	cut.Data = large.Data[:6]
	cut.Header.Set("Papermap-Data-Truncated", fmt.Sprintf("%d %x", len(large.Data),
		sha256.Sum256(large.Data)))

	p := s.event(24_000, events.TypeTenantCreated, "poison")
	p.Poison, p.EventID = true, ""
	s.buried(24_100, p, "INVALID_FIELD")
	s.Dead[len(s.Dead)-1].EventID = p.message()

	// Another, with an id and a time that cannot be read.
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
	s.run(*tick, repo.RunSkipped)
	s.usage("acme", "12.50", 3)
}

// find returns the first element that fits, which there must be.
func find[T any](list []T, fits func(T) bool) *T { return &list[slices.IndexFunc(list, fits)] }

// findLast returns the last element that fits.
func findLast[T any](list []T, fits func(T) bool) (last *T) {
	for i := range list {
		if fits(list[i]) {
			last = &list[i]
		}
	}
	return last
}

func (s *builder) mapping(tenant string) *repo.Mapping {
	return find(s.Mappings, func(m repo.Mapping) bool { return m.TenantID == tenant })
}

func (s *builder) lastAttempt(tenant string) *repo.Attempt {
	return findLast(s.Attempts, func(a repo.Attempt) bool { return a.TenantID == tenant })
}

func (s *builder) lastRequest(tenant string) *simulator.Request {
	return findLast(s.Requests, func(r simulator.Request) bool { return r.TenantID == tenant })
}

func (s *builder) deadLetter(code string) *Dead {
	return find(s.Dead, func(d Dead) bool { return d.Code == code })
}

func (s *builder) published(eventType, tenant string) *Published {
	return find(s.Published, func(p Published) bool { return p.Type == eventType && p.Tenant == tenant })
}

func TestCheckAcceptsAGoodHistory(t *testing.T) {
	for _, v := range Check(goodHistory().History) {
		t.Error(v)
	}
}

// violation is a history that contradicts one invariant.
type violation struct {
	invariant, what string
	change          func(*builder)
}

// testViolations makes each change to the good history and expects reports of its invariant, and of
// no other.
func testViolations(t *testing.T, list []violation) {
	for _, v := range list {
		t.Run(v.invariant+": "+v.what, func(t *testing.T) {
			s := goodHistory()
			v.change(s)
			found := Check(s.History)
			if len(found) == 0 {
				t.Fatal("not found")
			}
			for _, f := range found {
				if f.Invariant != v.invariant {
					t.Errorf("%v", f)
				}
			}
		})
	}
}

// The contract's sentences on state, with events in every order: c1 is a tenant.created at time 1.
func TestFoldDependsOnTheEventsTimesAlone(t *testing.T) {
	kinds := map[byte]string{
		'c': events.TypeTenantCreated, 's': events.TypeTenantSuspended, 'r': events.TypeTenantResumed,
		'd': events.TypeTenantDeleted,
	}
	for want, texts := range map[repo.Status]string{
		repo.Pending: "r1, s1 r2",
		repo.Active: "c1, c1 c1 c2, d1 c2, c1 d2 c3, c1 c3 d2, c1 s2 r3, c3 r2 s1, c1 s2 d2 c3, " +
			"c1 s2 d3 c4, c1 s1 d2 c3 r1",
		repo.Suspended: "s1, c1 s2, s1 c2, c1 s2 r2, c1 r2 s3, c1 d2 s3 c4",
		repo.Deleted:   "d1, c1 d1, c1 d2, c1 s2 d3, c1 d2 s3, d1 d2 c2",
	} {
		for text := range strings.SplitSeq(texts, ", ") {
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

// An event far ahead of the stream's clock counts as of the stream's time.
func TestWhenIgnoresATimeFarAhead(t *testing.T) {
	p := Published{StoredAt: at(0), Time: at(5 * 60_000)}
	if !p.when().Equal(p.Time) {
		t.Error("five minutes ahead, it does not count")
	}
	p.Time = p.Time.Add(1)
	if !p.when().Equal(p.StoredAt) {
		t.Error("more than five minutes ahead, it counts")
	}
}
