package repo

import "slices"

// The parts around the decisions, as a model: the stream with its redeliveries, workers that can
// stop at every step, Papermap, and time. An event enters the state when it is first delivered;
// before that it changes nothing.

// scope is what is explored.
type scope struct {
	name               string
	kinds              []uint8
	events             [2]uint8 // of one tenant, and of the other
	times              uint8
	faults, operations uint8
	hold               uint8
	clock              bool // whether it can be set back
}

// modelAction is a step from one state to the next.
type modelAction struct{ do, a, b, c uint8 }

const (
	actPublish    = iota // the kind b of time c of tenant a is delivered for the first time
	actDeliver           // event b of tenant a is delivered again
	actDeliverNo         // the same, and its acknowledgement is lost
	actAnswer            // Papermap answers b to worker a
	actWrite             // worker a records what it knows, and ends its event
	actWriteNo           // the same, and its acknowledgement is lost
	actWriteTwice        // the same, but the answer of the COMMIT is lost, so that it records it again
	actCrash             // worker a
	actSleep             // all workers and the leases, past the lease and AckWait
	actRedeliver         // event b of tenant a, although a worker has it
	actDue               // tenant a's retry
	actClockBack         // the database's clock is set back
	actResolve           // an operator gives tenant a dashboard b
	actRecreate
	actReplace
)

func (s *modelState) idleWorker() (int, bool) {
	for i := range s.workers {
		if s.workers[i].phase == idle {
			return i, true
		}
	}
	return 0, false
}

// actions lists what can happen.
func (sc *scope) actions(s *modelState, list []modelAction) []modelAction {
	add := func(do int, args ...uint8) {
		a := modelAction{do: uint8(do)}
		for i, to := range []*uint8{&a.a, &a.b, &a.c}[:len(args)] {
			*to = args[i]
		}
		list = append(list, a)
	}
	_, free := s.idleWorker()
	busy := false
	for i := range s.workers {
		n := uint8(i)
		switch w := &s.workers[i]; {
		case w.phase == idle:
			continue
		case w.phase == claimed && w.claim.step == uint8(StepCreate) && w.lapsed == 0:
			for answer := uint8(answerCreated); answer <= answerTaken; answer++ {
				if answer != answerTaken || s.tenants[1-w.tenant].row.dashboard != 0 {
					add(actAnswer, n, answer)
				}
			}
		case w.phase == claimed && w.claim.step == uint8(StepCreate):
			add(actAnswer, n, answerDeferred)
		default:
			add(actWrite, n)
			if s.faults > 0 {
				add(actWriteNo, n)
				add(actWriteTwice, n)
			}
		}
		busy = true
		if s.faults > 0 {
			add(actCrash, n)
		}
	}
	if s.faults > 0 || !busy {
		add(actSleep)
	}
	for t := range s.tenants {
		sc.tenantActions(s, uint8(t), free, add)
	}
	if sc.clock && s.faults > 0 {
		add(actClockBack)
	}
	return list
}

func (sc *scope) tenantActions(s *modelState, t uint8, free bool, add func(do int, args ...uint8)) {
	me, other := &s.tenants[t], &s.tenants[1-t]
	for i, e := range me.events {
		if e.state == inFlight && s.faults > 0 {
			add(actRedeliver, t, uint8(i))
		}
		if e.state == undelivered && (free || e.kind != kindCreated) {
			add(actDeliver, t, uint8(i))
			if s.faults > 0 {
				add(actDeliverNo, t, uint8(i))
			}
		}
	}
	if me.row.claimable == due && me.row.stage == atPending {
		add(actDue, t)
	}
	low, high := min(sc.events[0], sc.events[1]), max(sc.events[0], sc.events[1])
	if n := me.published + 1; n <= high && (n <= low || other.published <= low) {
		for _, kind := range sc.kinds {
			for time := uint8(1); time <= sc.times && (free || kind != kindCreated); time++ {
				add(actPublish, t, kind, time)
			}
		}
	}
	if s.operations == 0 {
		return
	}
	for d := uint8(1); int(d) < len(dashboardOf); d++ {
		real := d >= existing && slices.Contains(sc.kinds, kindAdopt) ||
			d < firstOfOther && me.attempts[d-1].made == 1 ||
			d >= firstOfOther && d < existing && other.attempts[d-firstOfOther].made == 1
		if real && me.row.stage == atHeld {
			add(actResolve, t, d)
		}
		if real && me.row.stage == atActive && d != me.row.dashboard {
			add(actReplace, t, d)
		}
	}
	if me.row.stage == atHeld {
		add(actRecreate, t)
	}
}

// apply makes a step. It returns false if there is no such step, and what is wrong.
func (sc *scope) apply(x *decider, s *modelState, a modelAction) (possible bool, wrong string) {
	switch a.do {
	case actPublish:
		me := &s.tenants[a.a]
		me.published++
		i := 0
		for me.events[i].state != 0 {
			if i++; i == modelEvents {
				return false, ""
			}
		}
		me.events[i] = modelEvent{a.b, a.c, undelivered}
		possible, wrong = sc.deliver(x, s, a.a, uint8(i), false)
	case actDeliver:
		possible, wrong = sc.deliver(x, s, a.a, a.b, false)
	case actDeliverNo:
		s.faults--
		possible, wrong = sc.deliver(x, s, a.a, a.b, true)
	case actAnswer:
		possible = true
		w := &s.workers[a.a]
		w.phase, w.answer, w.lapsed = hasAnswer, a.b, 0
		if a.b == answerCreated || a.b == answerUnknownMade || a.b == answerTaken {
			s.tenants[w.tenant].attempts[w.claim.attempt].made = 1
		}
	case actWrite, actWriteNo, actWriteTwice:
		if a.do != actWrite {
			s.faults--
		}
		possible, wrong = sc.write(x, s, a.a, a.do)
	case actCrash:
		possible = true
		s.faults--
		s.end(a.a, false)
	case actSleep:
		possible = sc.sleep(s)
	case actRedeliver:
		possible = true
		s.faults--
		s.tenants[a.a].events[a.b].state = undelivered
	case actDue:
		possible = true
		s.tenants[a.a].row.claimable = ready
	case actClockBack:
		s.faults--
		for t := range s.tenants {
			if r := &s.tenants[t].row; r.claimable == due {
				r.claimable, possible = 2, true
			}
		}
	default:
		s.operations--
		in := s.decision(sc, a.a, uint8(doResolve+a.do-actResolve))
		in.dashboard = a.b
		var out modelResult
		out, wrong = s.commit(x, a.a, &in)
		possible = !out.taken && !out.refused && !out.full
		if a.do == actRecreate {
			s.tenants[a.a].recreated = 1
		}
	}
	s.normalize()
	return possible, wrong
}

// sleep ends what depends on time: leases, and the deadlines of events in flight.
func (sc *scope) sleep(s *modelState) (changed bool) {
	before := *s
	busy := false
	for i := range s.workers {
		if w := &s.workers[i]; w.phase != idle {
			busy = true
			if w.phase == claimed && w.claim.step == uint8(StepCreate) {
				w.lapsed = 1
			}
		}
	}
	for t := range s.tenants {
		me := &s.tenants[t]
		me.row.claimable &^= due
		for i := range me.events {
			if me.events[i].state == inFlight {
				me.events[i].state = undelivered
			}
		}
	}
	if changed = *s != before; busy {
		s.faults--
	}
	return changed
}

// decision is what a decision about a tenant depends on.
func (s *modelState) decision(sc *scope, t, do uint8) modelDecision {
	me, other := &s.tenants[t], &s.tenants[1-t]
	in := modelDecision{row: me.row, attempts: me.attempts, succeeded: me.succeeded, do: do, hold: sc.hold}
	for i := range in.attempts {
		in.attempts[i].made = 0 // no decision knows it
	}
	for i := range me.owners {
		in.owners[1+i] = me.owners[i]
		if of := other.owners[i]; of != 0 {
			in.owners[firstOfOther+i] = 3 - of
		}
	}
	for i, of := range s.existing {
		if of != 0 {
			in.owners[existing+i] = 1 + ((of - 1) ^ t)
		}
	}
	return in
}

// commit makes a decision and writes what it comes to.
func (s *modelState) commit(x *decider, t uint8, in *modelDecision) (modelResult, string) {
	out, wrong := x.decide(in)
	me, other := &s.tenants[t], &s.tenants[1-t]
	if wrong != "" || out.taken || out.refused || out.full {
		return out, wrong
	}
	me.row = out.row
	for i, a := range out.attempts {
		a.made = me.attempts[i].made
		me.attempts[i] = a
	}
	for i := range me.owners {
		me.owners[i] = out.owners[1+i]
		if of := out.owners[firstOfOther+i]; of != 0 {
			other.owners[i] = 3 - of
		}
	}
	for i := range s.existing {
		if of := out.owners[existing+i]; of != 0 {
			s.existing[i] = 1 + ((of - 1) ^ t)
		}
	}
	if out.fenced {
		for i := range s.workers {
			if s.workers[i].tenant == t {
				s.workers[i].claim.current = 0
			}
		}
	}
	if out.failedNow || me.row.failed == 0 {
		me.succeeded = 0
	}
	if out.succeededNow && other.row.failed == 1 {
		other.succeeded = 1
	}
	if out.again {
		for i := range me.events {
			if me.events[i].state == 0 {
				me.events[i] = modelEvent{kindCreated, me.row.created, undelivered}
				return out, ""
			}
		}
		out.full = true
	}
	return out, ""
}

// deliver hands an event to a worker. Lost says that the acknowledgement is lost.
func (sc *scope) deliver(x *decider, s *modelState, t, i uint8, lost bool) (possible bool, wrong string) {
	me := &s.tenants[t]
	e := &me.events[i]
	do := uint8(doChange)
	switch e.kind {
	case kindCreated:
		do = doCreated
	case kindAdopt, kindAdoptOther:
		do = doAdopt
	}
	in := s.decision(sc, t, do)
	in.kind, in.time, in.message = e.kind, e.time, i+1
	if do == doAdopt {
		in.kind, in.dashboard = kindAdopt, existing+e.kind-kindAdopt
	}
	in.succeeded = 0
	if do != doCreated {
		in.message, in.hold = 0, 0 // it does not depend on these
	}
	out, wrong := s.commit(x, t, &in)
	if wrong != "" || out.full {
		return false, wrong
	}
	if !out.taken {
		kind := e.kind
		if do == doAdopt {
			kind = kindCreated
		}
		me.newest[kind] = max(me.newest[kind], e.time)
	}
	switch Step(out.claim.step) {
	case StepWait:
		return !lost, ""
	case StepCreate, StepRecordOutcome:
		if do != doCreated {
			break
		}
		n, _ := s.idleWorker()
		e.state = inFlight
		s.workers[n] = modelWorker{phase: claimed, tenant: t, claim: out.claim}
		return !lost, ""
	}
	if !lost { // acknowledged, or a dead letter
		s.remove(t, i)
	}
	return true, ""
}

// remove removes an event from the stream. Workers that have a copy of it go on.
func (s *modelState) remove(t, i uint8) {
	s.tenants[t].events[i] = modelEvent{}
	for n := range s.workers {
		if w := &s.workers[n]; w.phase != idle && w.tenant == t && w.claim.message == i+1 {
			w.claim.message = gone
		}
	}
	if r := &s.tenants[t].row; r.failedBy == i+1 {
		r.failedBy = 0 // its message does not come again
	}
}

// end ends a worker's work: done, or to be delivered again.
func (s *modelState) end(n uint8, done bool) {
	w := s.workers[n]
	s.workers[n] = modelWorker{}
	switch {
	case w.claim.message == gone:
	case done:
		s.remove(w.tenant, w.claim.message-1)
	default:
		s.tenants[w.tenant].events[w.claim.message-1].state = undelivered
	}
}

// write records what a worker knows, as the worker's code does: attempt.create and recordFailure.
func (sc *scope) write(x *decider, s *modelState, n, how uint8) (possible bool, wrong string) {
	w := &s.workers[n]
	t, done := w.tenant, false
	in := s.decision(sc, t, doFail)
	in.claim, in.answer = w.claim, w.answer
	if w.phase == claimed {
		in.answer = answerUnknown // of a worker that was killed
	}
	var out modelResult
	if w.answer == answerCreated || w.answer == answerTaken {
		in.dashboard = 1 + w.claim.attempt
		if w.answer == answerTaken {
			in.dashboard = s.asSeenBy(t, s.tenants[1-t].row.dashboard)
		}
	}
	if in.dashboard != 0 {
		in.do, in.answer, in.succeeded = doFinish, 0, 0
		out, wrong = s.commit(x, t, &in)
		done = out.recorded
	}
	if wrong == "" && (in.do == doFail || out.taken) {
		dashboard := in.dashboard
		in = s.decision(sc, t, doFail)
		in.claim, in.dashboard, in.answer = w.claim, dashboard, w.answer
		if w.phase == claimed || w.answer == answerTaken || dashboard != 0 {
			in.answer = answerUnknown
		}
		out, wrong = s.commit(x, t, &in)
		done = out.row.stage == atFailed || out.row.stage == atHeld
	}
	if wrong != "" || out.full {
		return false, wrong
	}
	switch how {
	case actWrite:
		s.end(n, done)
	case actWriteNo:
		if !done {
			return false, "" // as actWrite
		}
		s.end(n, false)
	}
	return true, ""
}

// asSeenBy is the code of a dashboard of the other tenant.
func (s *modelState) asSeenBy(t, dashboard uint8) uint8 {
	switch {
	case dashboard == 0 || dashboard >= existing:
		return dashboard
	case dashboard >= firstOfOther:
		return dashboard - modelAttempts
	}
	return dashboard + modelAttempts
}
