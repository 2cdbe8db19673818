package repo

import "cmp"

// modelState is all that there is. It has no pointers, so it is compared and hashed as it is.
type modelState struct {
	tenants    [2]modelTenant
	workers    [2]modelWorker
	existing   [2]uint8 // whose the dashboards are that existed before: 1 + the tenant
	faults     uint8    // that may still happen
	operations uint8    // of people, that may still happen
}

type modelTenant struct {
	row       modelRow
	attempts  [modelAttempts]modelAttempt
	owners    [modelAttempts]uint8 // of the dashboards that its attempts made: 1 the tenant, 2 the other
	events    [modelEvents]modelEvent
	newest    [7]uint8 // by kind: the time of the newest event that was handled
	published uint8
	succeeded uint8 // the other tenant had a success since this one's last failure
	recreated uint8
}

type modelEvent struct{ kind, time, state uint8 }

const undelivered, inFlight = 1, 2 // states of an event; 0: there is none

// modelWorker is what a worker does: nothing, or an event with a claim.
type modelWorker struct {
	phase, tenant uint8
	claim         modelClaim
	lapsed        uint8 // the lease ended before the request was sent
	answer        uint8 // of Papermap
}

const idle, claimed, hasAnswer = 0, 1, 2

// normalize gives equal situations one form: the order of events and of workers does not matter.
func (s *modelState) normalize() {
	for t := range s.tenants {
		events := &s.tenants[t].events
		for i := range events {
			for j := i; j > 0 && events[j].before(events[j-1]); j-- {
				events[j], events[j-1] = events[j-1], events[j]
				s.rename(uint8(t), uint8(j), uint8(j+1))
			}
		}
	}
	if a, b := s.workers[0], s.workers[1]; b.before(a) {
		s.workers[0], s.workers[1] = b, a
	}
}

// rename exchanges two messages of a tenant wherever they are named.
func (s *modelState) rename(t, a, b uint8) {
	exchange := func(m *uint8) {
		switch *m {
		case a:
			*m = b
		case b:
			*m = a
		}
	}
	exchange(&s.tenants[t].row.failedBy)
	for n := range s.workers {
		if w := &s.workers[n]; w.phase != idle && w.tenant == t {
			exchange(&w.claim.message)
		}
	}
}

func (e modelEvent) before(o modelEvent) bool {
	if e.state == 0 || o.state == 0 {
		return e.state != 0 && o.state == 0
	}
	return cmp.Or(cmp.Compare(e.kind, o.kind), cmp.Compare(e.time, o.time), cmp.Compare(e.state, o.state)) < 0
}

func (w modelWorker) before(o modelWorker) bool {
	return cmp.Or(-cmp.Compare(w.phase, o.phase), cmp.Compare(w.tenant, o.tenant),
		cmp.Compare(w.claim.attempt, o.claim.attempt), cmp.Compare(w.claim.step, o.claim.step),
		cmp.Compare(w.claim.message, o.claim.message), cmp.Compare(w.claim.current, o.claim.current),
		cmp.Compare(w.answer, o.answer), cmp.Compare(w.lapsed, o.lapsed)) < 0
}

// mirrored is the state with the tenants exchanged, which is the same situation.
func (s *modelState) mirrored() modelState {
	m := *s
	m.tenants[0], m.tenants[1] = s.tenants[1], s.tenants[0]
	for n := range m.workers {
		if m.workers[n].phase != idle {
			m.workers[n].tenant ^= 1
		}
	}
	for i, of := range m.existing {
		if of != 0 {
			m.existing[i] = 3 - of
		}
	}
	m.normalize()
	return m
}
