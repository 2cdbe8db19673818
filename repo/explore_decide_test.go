package repo

import (
	"errors"
	"time"
)

// The rows of one tenant as small numbers, and what a decision makes of them. Only the order of
// times matters, so a time is a small number, too, or says on which side of the present it is.

const (
	modelAttempts = 4 // of a tenant
	modelEvents   = 4 // of a tenant, in the stream at once
)

// Codes of stages, statuses and outcomes: their places in these lists.
var (
	stageCodes   = [...]Status{none, Pending, Creating, Active, Held, Failed}
	statusCodes  = [...]Status{"", Pending, Creating, Active, Held, Failed, Suspended, Deleted}
	outcomeCodes = [...]Outcome{
		"", OutcomeSent, OutcomeCreated, OutcomeRefused, OutcomeUnknown, OutcomeOrphaned,
	}
)

const (
	atNone, atPending, atCreating, atActive, atHeld, atFailed = 0, 1, 2, 3, 4, 5
	isSuspended, isDeleted                                    = 6, 7
	isSent, isCreated, isRefused, isUnknown, isOrphaned       = 1, 2, 3, 4, 5
)

// Codes of dashboards, as a tenant sees them: those that its own attempts made, those of the other
// tenant's attempts, and two that existed before.
var dashboardOf = [...]string{"", "A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4", "P", "Q"}

const firstOfOther, existing = 1 + modelAttempts, 1 + 2*modelAttempts

// Kinds of events.
const (
	kindCreated, kindAdopt, kindAdoptOther, kindDeleted, kindSuspended, kindResumed = 1, 2, 3, 4, 5, 6
)

var (
	eventIDOf   = [...]string{"", "e1", "e2", "e3"}
	messageOf   = [...]string{"", "m1", "m2", "m3", "m4", "gone"}
	attemptIDOf = [...]string{"a1", "a2", "a3", "a4"}
	epochOf     = [...]int64{0, 1, 10}
	present     = at(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	eventTimeOf = [...]int64{0, minute(1).UnixNano(), minute(2).UnixNano(), minute(3).UnixNano()}
	corrected   = present.Add(-time.Hour).UnixNano()
	failedAt    = at(present.Add(-10 * time.Minute))
	claimableAt = [...]Time{{}, at(present.Add(time.Second)), at(present.Add(10 * time.Hour))}
)

const (
	gone       = modelEvents + 1 // the message of an event that is no longer in the stream
	correction = 4               // the time of an operator's correction: later than every event
	ready, due = 0, 1            // of modelRow.claimable; 2: beyond every lease, by a clock set back
)

// modelRow is a Mapping. A status of 0 means that there is no row.
type modelRow struct {
	stage, status, generation            uint8
	created, deleted, suspended, resumed uint8 // times of the newest events
	given, dashboard                     uint8 // DashboardEvent, DashboardID
	epoch                                uint8 // 0, 1, or more
	claimable, failures                  uint8
	failed, failedBy                     uint8 // whether FailedAt is set; FailedMessage
}

func (r *modelRow) wanted() bool { return r.created > r.deleted }

// modelAttempt is an Attempt. Made is not in the database: whether Papermap made its dashboard.
type modelAttempt struct{ outcome, generation, dashboard, made, resolved uint8 }

// modelClaim is a Claim. Current says that its epoch is the mapping's.
type modelClaim struct{ step, attempt, generation, current, time, message uint8 }

// modelDecision is all that a decision depends on.
type modelDecision struct {
	row       modelRow
	attempts  [modelAttempts]modelAttempt
	owners    [len(dashboardOf)]uint8 // 0: nobody, 1: the tenant, 2: the other one
	succeeded uint8                   // another tenant's create, since FailedAt

	do                        uint8 // one of the decisions below
	kind, time, message, hold uint8
	dashboard                 uint8
	claim                     modelClaim
	answer                    uint8 // of Papermap, as in failureOf
}

const (
	doCreated = iota
	doAdopt
	doChange
	doFinish
	doFail
	doResolve
	doRecreate
	doReplace
)

// modelResult is what a decision comes to.
type modelResult struct {
	row      modelRow
	attempts [modelAttempts]modelAttempt
	owners   [len(dashboardOf)]uint8
	claim    modelClaim // of doCreated and doAdopt: its step, and what belongs to that

	recorded, taken, refused bool // as Finish and Change return; ErrTaken; another error
	fenced                   bool // the epoch has changed
	failedNow                bool // FailedAt is the present
	succeededNow             bool // an attempt became created
	again                    bool // the tenant's event is published again
	full                     bool // there is no room for another attempt: not explored
}

// Answers of Papermap to a create, in the groups that worker.classify distinguishes.
const (
	answerCreated     = iota + 1 // a dashboard
	answerRefused                // 400, 422 …
	answerDeferred               // 401 to 404, 429, Retry-After; or the lease had ended before
	answerRetry                  // connection refused, 421, 425 …
	answerUnknown                // no answer, 408, 5xx …; nothing was made
	answerUnknownMade            // the same, and a dashboard was made
	answerTaken                  // a dashboard was made, and the answer names another tenant's
)

var answerNames = [...]string{"", "it makes the dashboard", "it refuses the request", "it asks for a delay",
	"nothing was sent", "no answer, and nothing was made", "no answer, but the dashboard was made",
	"the answer names another tenant's dashboard"}

// failureOf is the Failure for an answer. TestClassifyIsWhatTheExplorationAssumes in worker compares
// it with worker.classify.
func failureOf(answer uint8, hold bool, dashboard string) Failure {
	f := Failure{Result: Result{Outcome: OutcomeRefused, HTTPStatus: 503, Error: "why"},
		Code: "API_FAILED", MaxFailures: 1, RetryAfter: 3 * time.Second}
	switch answer {
	case answerRefused:
		f.Permanent, f.Code = true, "API_REFUSED"
	case answerDeferred:
		f.Deferral = true
	case answerRetry:
	default:
		f.Result.Outcome, f.Hold, f.Result.DashboardID = OutcomeUnknown, hold, dashboard
	}
	return f
}

// decider runs decisions and remembers what they came to.
type decider struct {
	known map[modelDecision]modelResult
	calls int // decisions that were made and not remembered
}

// decide returns what a decision comes to, and what is wrong with that.
func (x *decider) decide(in *modelDecision) (out modelResult, wrong string) {
	if out, known := x.known[*in]; known {
		return out, ""
	}
	x.calls++
	out, wrong = decideModel(in)
	if wrong == "" {
		wrong = in.wrong(&out)
	}
	if wrong == "" {
		x.known[*in] = out
	}
	return out, wrong
}

// decideModel makes the decision as a batch does.
func decideModel(in *modelDecision) (out modelResult, wrong string) {
	m, attempts := in.mapping(), in.attemptRows()
	var c Claim
	var recorded bool
	j := &job{tenantID: "A", workspaceID: "w", known: in.do == doResolve || in.do == doRecreate ||
		in.do == doReplace}
	j.decide = func(d *decision) (err error) { c, recorded, err = in.run(d, attempts); return err }
	f := newFacts()
	if in.row.status != 0 {
		f.mappings["A"] = m
	}
	f.newDashboards = true
	jobs := []*job{j}
	s := decide(f, present, jobs)
	for rounds := 0; !s.wanted.none() || in.conflict(s) && f.newDashboards; rounds++ {
		if rounds > maxTries {
			return out, "it asks for facts without end"
		}
		if s.wanted.none() {
			f.newDashboards = false // as after an INSERT that was refused
		}
		in.read(f, s.wanted, attempts)
		s = decide(f, present, jobs)
	}
	out = modelResult{row: in.row, attempts: in.attempts, owners: in.owners, recorded: recorded}
	if j.err != nil {
		out.taken, out.refused = errors.Is(j.err, ErrTaken), !errors.Is(j.err, ErrTaken)
		if len(s.tenants)+len(s.outbox)+len(s.claims) > 0 {
			return out, "it failed, and changes something"
		}
		return out, ""
	}
	return in.result(&out, s, c)
}

// run calls the real decision.
func (in *modelDecision) run(d *decision, attempts []Attempt) (c Claim, recorded bool, err error) {
	announce := func(m Mapping) (OutboxEvent, error) {
		return OutboxEvent{EventID: m.DashboardID, Type: string(m.Stage),
			OriginalID: m.CreatedEventID, OriginalTime: m.CreatedEvent}, nil
	}
	e := in.event()
	id := dashboardOf[in.dashboard]
	switch in.do {
	case doCreated:
		next := len(attempts)
		c, err = d.begin(e, attemptIDOf[min(next, modelAttempts-1)], in.hold == 1)
	case doAdopt:
		e.DashboardID = id
		c, err = d.adopt(e, announce)
	case doChange:
		to := [...]Status{kindDeleted: Deleted, kindSuspended: Suspended, kindResumed: Active}[in.kind]
		recorded = d.change(Change{TenantID: "A", WorkspaceID: "w", To: to, EventTime: e.EventTime})
	case doFinish:
		r := Result{Outcome: OutcomeCreated, DashboardID: id, HTTPStatus: 200}
		recorded, err = d.finish(in.realClaim(attempts), r, announce)
	case doFail:
		err = d.fail(in.realClaim(attempts), failureOf(in.answer, in.hold == 1, id), announce)
	case doResolve:
		err = d.resolveHeld(announce, func(d *decision) error { return d.resolve(id) })
	case doRecreate:
		err = d.resolveHeld(announce, (*decision).recreate)
	case doReplace:
		err = d.replace(dashboardOf[in.row.dashboard], id, announce)
	}
	return c, recorded, err
}

// event is the event that is handled.
func (in *modelDecision) event() Created {
	id := eventIDOf[in.time]
	return Created{TenantID: "A", WorkspaceID: "w", Title: "title " + id, Description: "about " + id,
		CreatedBy: "by " + id, EventID: id, EventTime: time.Unix(0, eventTimeOf[in.time]),
		Message: messageOf[in.message], AllowedWorkspace: "w"}
}

// mapping is the row as the decision reads it.
func (in *modelDecision) mapping() Mapping {
	r := &in.row
	given := int64(0)
	if given = corrected; r.given != correction {
		given = eventTimeOf[r.given]
	}
	m := Mapping{TenantID: "A", WorkspaceID: "w", DashboardID: dashboardOf[r.dashboard], Title: "t",
		Status: statusCodes[r.status], Stage: stageCodes[r.stage], Generation: int(r.generation),
		CreatedEvent: eventTimeOf[r.created], DeletedEvent: eventTimeOf[r.deleted],
		SuspendedEvent: eventTimeOf[r.suspended], ResumedEvent: eventTimeOf[r.resumed],
		CreatedEventID: eventIDOf[r.created], DashboardEvent: given, Epoch: epochOf[r.epoch],
		ClaimableAt: claimableAt[r.claimable], Failures: int(r.failures),
		FailedMessage: messageOf[r.failedBy],
	}
	if r.dashboard >= existing {
		m.Origin = OriginAdopted
	}
	if r.failed == 1 {
		m.FailedAt = failedAt
	}
	if r.failed == 1 || r.stage == atFailed {
		m.FailedCode, m.FailedError = "API_FAILED", "why"
	}
	return m
}

func (in *modelDecision) attemptRows() (list []Attempt) {
	for i, a := range in.attempts {
		if a.outcome != 0 {
			list = append(list, in.attempt(i))
		}
	}
	return list
}

func (in *modelDecision) attempt(i int) Attempt {
	a := in.attempts[i]
	row := Attempt{ID: attemptIDOf[i], WorkspaceID: "w", TenantID: "A", Generation: int(a.generation),
		Outcome: outcomeCodes[a.outcome], DashboardID: dashboardOf[a.dashboard],
		StartedAt: at(present.Add(time.Duration(i-60) * time.Minute))}
	if a.outcome != isSent {
		row.FinishedAt, row.HTTPStatus, row.Error = failedAt, 418, "before"
	}
	if a.resolved == 1 {
		row.ResolvedAt = failedAt
	}
	return row
}

// realClaim is the claim as Begin returned it.
func (in *modelDecision) realClaim(attempts []Attempt) Claim {
	c := Claim{Step: Step(in.claim.step), Event: eventTimeOf[in.claim.time],
		Message: messageOf[in.claim.message]}
	c.Mapping = Mapping{TenantID: "A", WorkspaceID: "w", Generation: int(in.claim.generation), Epoch: 5}
	if in.claim.current == 1 {
		c.Mapping.Epoch = epochOf[in.row.epoch]
	}
	c.Attempt = attempts[in.claim.attempt]
	c.Attempt.Outcome, c.Attempt.DashboardID, c.Attempt.FinishedAt = OutcomeSent, "", Time{}
	c.Attempt.ResolvedAt, c.Attempt.HTTPStatus, c.Attempt.Error = Time{}, 0, ""
	return c
}

// read reads what the decision has asked for.
func (in *modelDecision) read(f *facts, w wanted, attempts []Attempt) {
	for range w.sent {
		f.sent["A"] = nil
		for _, a := range attempts {
			if a.Outcome == OutcomeSent {
				f.sent["A"] = append(f.sent["A"], a)
			}
		}
	}
	for range w.attempts {
		f.attempts["A"] = attempts
	}
	for _, key := range w.owners {
		f.owners[key] = in.ownerOf(key)
	}
	for _, key := range w.succeeded {
		f.succeeded[key] = in.succeeded == 1 && !key.since.After(failedAt.Time)
	}
}

func dashboardCode(id string) uint8 {
	for i, known := range dashboardOf {
		if known == id {
			return uint8(i)
		}
	}
	return 255
}

func (in *modelDecision) ownerOf(key dashboardKey) owner {
	switch in.owners[dashboardCode(key.DashboardID)] {
	case 1:
		return owner{WorkspaceID: "w", DashboardID: key.DashboardID, TenantID: "A"}
	case 2:
		return owner{WorkspaceID: "w", DashboardID: key.DashboardID, TenantID: "B"}
	}
	return owner{}
}

// conflict reports whether the INSERT of a dashboard's owner would be refused.
func (in *modelDecision) conflict(s *set) bool {
	for key := range s.claims {
		if in.owners[dashboardCode(key.DashboardID)] == 2 {
			return true
		}
	}
	return false
}
