package repo

import "fmt"

// What the contract says that each decision comes to, written down a second time, over small
// numbers. The exploration compares it with the real decision for everything that a decision can
// meet.

// wrong compares what a decision came to with what it should.
func (in *modelDecision) wrong(out *modelResult) string {
	if out.full {
		return ""
	}
	want := in.expected()
	if want == *out {
		return ""
	}
	return fmt.Sprintf("it comes to\n\t%+v\nand should come to\n\t%+v\nfrom\n\t%+v", *out, want, *in)
}

func (in *modelDecision) expected() modelResult {
	want := modelResult{row: in.row, attempts: in.attempts, owners: in.owners}
	if want.row.generation == 0 {
		want.row.generation = 1
	}
	switch in.do {
	case doCreated:
		in.expectCreated(&want)
	case doAdopt:
		in.expectAdopt(&want)
	case doChange:
		times := [...]*uint8{kindDeleted: &want.row.deleted, kindSuspended: &want.row.suspended,
			kindResumed: &want.row.resumed}
		*times[in.kind] = max(*times[in.kind], in.time)
	case doFinish:
		in.expectFinish(&want)
	case doFail:
		in.expectFail(&want)
	case doResolve:
		if want.refused = in.row.stage != atHeld; !want.refused {
			want.give(in.dashboard, correction, 1)
			in.expectResolved(&want)
		}
	case doRecreate:
		if want.refused = in.row.stage != atHeld || !in.row.wanted(); !want.refused {
			want.release()
			want.row.failures, want.row.failed = 0, 0
		}
	case doReplace:
		in.expectReplace(&want)
	}
	if want.taken || want.refused { // nothing changes
		return modelResult{row: in.row, attempts: in.attempts, owners: in.owners,
			taken: want.taken, refused: want.refused}
	}
	want.row.status = want.row.derived()
	if in.do == doChange {
		want.recorded = want.row.status != max(in.row.status, atPending) // with which a row begins
	}
	return want
}

// derived is the status that follows from the newest events and the stage.
func (r *modelRow) derived() uint8 {
	switch {
	case r.deleted > 0 && !r.wanted():
		return isDeleted
	case r.suspended > r.deleted && r.suspended >= r.resumed:
		return isSuspended
	case r.stage == atNone:
		return atPending
	}
	return r.stage
}

// unfinishedBy reports whether the tenant is being provisioned, in a generation that an event of this
// time began.
func (r *modelRow) unfinishedBy(time uint8) bool {
	return r.wanted() && (r.stage == atPending || r.stage == atCreating) && r.given == time
}

// ended reports whether the next tenant.created begins a new generation.
func (r *modelRow) ended() bool {
	return r.stage == atNone || r.stage == atFailed || !r.wanted()
}

// fence ends all claims.
func (m *modelResult) fence() {
	m.row.epoch, m.fenced = min(m.row.epoch+1, 2), true
}

// begin begins a generation.
func (m *modelResult) begin(time uint8) {
	r := &m.row
	if r.stage != atNone {
		r.generation++
	}
	r.stage, r.claimable, r.dashboard, r.given = atPending, ready, 0, time
	r.failures, r.failed, r.failedBy = 0, 0, 0
	m.fence()
}

// give gives the tenant a dashboard, unless it is the other's. Fence is 1 if claims end with that.
func (m *modelResult) give(dashboard, given, fence uint8) {
	if m.taken = m.owners[dashboard] == 2; m.taken {
		return
	}
	m.owners[dashboard] = 1
	r := &m.row
	r.stage, r.claimable, r.dashboard, r.given = atActive, ready, dashboard, given
	r.failures, r.failed = 0, 0
	if fence == 1 {
		m.fence()
	}
}

// release has a held tenant provisioned again, by its own event.
func (m *modelResult) release() {
	m.row.stage, m.row.claimable, m.again = atPending, ready, true
	m.fence()
}

// giveUp makes attempts unknown whose holders have lost their lease.
func (m *modelResult) giveUp() {
	for i := range m.attempts {
		if m.attempts[i].outcome == isSent {
			m.attempts[i].outcome = isUnknown
		}
	}
}

func (in *modelDecision) expectCreated(want *modelResult) {
	r := &want.row
	switch {
	case in.time <= in.row.deleted && !in.row.unfinishedBy(in.time): // superseded
		want.claim.step = uint8(StepDone)
		return
	case in.row.stage == atFailed && in.row.failedBy == in.message:
		want.claim.step = uint8(StepRefused)
		return
	case in.row.ended():
		want.begin(in.time)
	}
	r.created = max(r.created, in.time)
	switch {
	case r.stage == atActive || r.stage == atHeld:
		want.claim.step = uint8(StepDone)
	case r.claimable != ready:
		want.claim.step = uint8(StepWait)
		r.claimable = due
	default:
		in.expectClaim(want)
	}
}

func (in *modelDecision) expectClaim(want *modelResult) {
	r := &want.row
	abandoned := r.stage == atCreating && in.hold == 1
	r.stage, r.claimable = atCreating, due
	want.fence()
	want.claim = modelClaim{step: uint8(StepCreate), generation: r.generation, current: 1, time: in.time,
		message: in.message}
	free := 0
	for i, a := range in.attempts {
		if a.outcome != 0 {
			free = i + 1
		}
		if abandoned && a.outcome != 0 && a.generation == r.generation { // the newest counts
			want.claim.step, want.claim.attempt = uint8(StepRecordOutcome), uint8(i)
			if a.outcome == isRefused {
				want.claim.step = uint8(StepCreate)
			}
		}
	}
	if want.claim.step == uint8(StepCreate) {
		want.giveUp()
		want.claim.attempt = uint8(free)
		want.attempts[free] = modelAttempt{outcome: isSent, generation: r.generation}
	}
}

func (in *modelDecision) expectAdopt(want *modelResult) {
	r, before := &want.row, &in.row
	if before.stage == atCreating {
		r.claimable = min(r.claimable, due)
	}
	busy := before.stage == atCreating && before.claimable != ready
	switch {
	case in.time <= before.deleted: // superseded
		want.claim.step = uint8(StepDone)
	case before.ended() || !busy && before.stage != atActive:
		if before.ended() {
			want.begin(in.time)
			want.give(in.dashboard, in.time, 0)
		} else {
			if before.stage == atCreating {
				want.giveUp()
			}
			want.give(in.dashboard, in.time, 1)
		}
		r.created = max(r.created, in.time)
		want.claim.step = uint8(StepAdopted)
	default:
		given := before.given
		if given == 0 {
			given = before.created
		}
		switch {
		case before.stage == atActive && (before.dashboard == in.dashboard || in.time < given):
			want.claim.step = uint8(StepDone)
		case in.owners[in.dashboard] == 2:
			want.taken = true
		case busy:
			want.claim.step = uint8(StepWait)
		default:
			want.claim.step = uint8(StepConflict)
		}
		r.created = max(r.created, in.time)
	}
}

func (in *modelDecision) expectFinish(want *modelResult) {
	a := &want.attempts[in.claim.attempt]
	switch {
	case in.row.stage == atActive && in.row.dashboard == in.dashboard:
		want.recorded = true
		return
	case in.claim.current == 0:
		a.outcome, a.dashboard, a.resolved = isOrphaned, in.dashboard, 0
		want.owners[in.dashboard] = max(want.owners[in.dashboard], 1)
		return
	}
	if want.give(in.dashboard, in.claim.time, 0); !want.taken {
		a.outcome, a.dashboard = isCreated, in.dashboard
		want.recorded, want.succeededNow = true, true
	}
}

func (in *modelDecision) expectFail(want *modelResult) {
	a := &want.attempts[in.claim.attempt]
	outcome, dashboard := uint8(isUnknown), in.dashboard
	if in.answer == answerRefused || in.answer == answerDeferred || in.answer == answerRetry {
		outcome, dashboard = isRefused, 0
	}
	recorded := in.claim.step == uint8(StepRecordOutcome)
	switch {
	case in.claim.current == 0:
		if !recorded && a.outcome != isCreated {
			a.outcome, a.dashboard = outcome, dashboard
			want.own(dashboard)
		}
		if !recorded && outcome == isRefused && in.row.stage == atHeld && in.row.wanted() &&
			in.row.generation == in.claim.generation && !want.uncertain() {
			want.release()
		}
		return
	case in.row.stage != atCreating: // recorded before
		return
	}
	permanent, hold, deferral := in.answer == answerRefused, in.hold == 1 && outcome == isUnknown,
		in.answer == answerDeferred
	if recorded && a.outcome != isSent { // its holder has recorded it in the meantime
		hold, deferral = a.outcome != isRefused, a.outcome == isRefused
	} else {
		a.outcome, a.dashboard = outcome, dashboard
		want.own(dashboard)
	}
	r := &want.row
	r.stage, r.claimable = atPending, due
	switch {
	case permanent:
		r.stage = atFailed
	case hold:
		r.stage = atHeld
	case !deferral:
		if in.row.failed == 1 && in.succeeded == 1 {
			r.failures, r.stage = r.failures+1, atFailed
		}
		r.failed, want.failedNow = 1, true
	}
	if r.stage == atFailed {
		r.failedBy = in.claim.message % gone // one that is gone does not come again
	}
	if r.stage != atPending {
		r.claimable = ready
	}
}

// own records a dashboard for the tenant, unless it is the other's.
func (m *modelResult) own(dashboard uint8) {
	if dashboard != 0 {
		m.owners[dashboard] = max(m.owners[dashboard], 1)
	}
}

// uncertain reports whether an attempt of the generation may have made a dashboard.
func (m *modelResult) uncertain() bool {
	for _, a := range m.attempts {
		known := a.outcome == 0 || a.outcome == isCreated || a.outcome == isRefused
		if a.generation == m.row.generation && !known {
			return true
		}
	}
	return false
}

// expectResolved makes the attempt created that has made the dashboard, or may have.
func (in *modelDecision) expectResolved(want *modelResult) {
	var found *modelAttempt
	for i := range want.attempts {
		a := &want.attempts[i]
		if a.generation != in.row.generation {
			continue
		}
		known := a.outcome == isOrphaned && a.dashboard == in.dashboard
		if known || a.outcome == isUnknown && (found == nil || found.outcome == isUnknown) {
			found = a
		}
	}
	if found != nil {
		found.outcome, found.dashboard, found.resolved = isCreated, in.dashboard, 1
	}
}

func (in *modelDecision) expectReplace(want *modelResult) {
	if want.refused = in.row.stage != atActive || !in.row.wanted(); want.refused {
		return
	}
	for i := range want.attempts {
		a := &want.attempts[i]
		switch {
		case a.outcome != 0 && a.dashboard == in.row.dashboard:
			a.outcome, a.resolved = isOrphaned, 0
		case a.outcome == isOrphaned && a.dashboard == in.dashboard:
			a.outcome, a.resolved = isCreated, 1
		}
	}
	want.give(in.dashboard, correction, 1)
}

// announced compares the events out with the facts: one for each, and none for a deleted tenant.
func (in *modelDecision) announced(out *modelResult, rows []OutboxRow) string {
	before, after := &in.row, &out.row
	var want []OutboxRow
	fact := func(stage Status) {
		row := OutboxRow{TenantID: "A", Type: string(stage), EventID: dashboardOf[after.dashboard],
			CreatedAt: present, OriginalID: eventIDOf[after.created],
			OriginalTime: eventTimeOf[after.created]}
		if after.wanted() {
			want = append(want, row)
		}
	}
	switch changed := before.stage != after.stage; {
	case after.stage == atActive && (changed || before.dashboard != after.dashboard ||
		before.generation != after.generation), // an adoption
		changed && (after.stage == atHeld || after.stage == atFailed),
		before.stage == atHeld && after.stage == atPending && before.generation == after.generation:
		fact(stageCodes[after.stage])
	}
	if len(rows) != len(want) {
		return fmt.Sprintf("%d events out for %d facts: %+v → %+v", len(rows), len(want), *before, *after)
	}
	for i := range rows {
		if fmt.Sprint(rows[i]) != fmt.Sprint(want[i]) {
			return fmt.Sprintf("the event out is %+v, the fact %+v", rows[i], want[i])
		}
		out.again = after.stage == atPending
	}
	return ""
}
