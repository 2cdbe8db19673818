package proof_test

import (
	"slices"

	"papermap-worker/repo"
)

// The model is the contract about one tenant, implemented a second time and without SQL. The model
// and the database get the same random commands, and must look the same after each. Package repo's
// own property test has the order of events and lost holders; this one also has operators, replays,
// holds and refusals.

// modelAttempt is one create request.
type modelAttempt struct {
	id         string
	generation int
	outcome    repo.Outcome
	dashboard  string
	resolved   bool // an operator has taken it off the list of possible orphans
	made       bool // there is a dashboard at Papermap, recorded or not
}

func (a *modelAttempt) makes() string { return "dashboard-" + a.id }

// doubtful reports whether an operator has to look for its dashboard.
func (a *modelAttempt) doubtful() bool {
	return a.outcome == repo.OutcomeUnknown || a.outcome == repo.OutcomeOrphaned
}

type modelTenant struct {
	created, deleted, suspended, resumed int // minutes of the newest events
	stage                                repo.Status
	generation                           int
	began                                int // minute of the event that began the generation
	dashboard                            string
	claim                                int  // grows with each change of holder
	busy                                 bool // it cannot be claimed
	failed                               string
	attempts                             []*modelAttempt
	out                                  []string
}

func (m *modelTenant) wanted() bool { return m.created > m.deleted }

func (m *modelTenant) status() repo.Status {
	switch {
	case m.deleted > 0 && !m.wanted():
		return repo.Deleted
	case m.suspended > m.deleted && m.suspended >= m.resumed:
		return repo.Suspended
	case m.stage == "":
		return repo.Pending
	}
	return m.stage
}

// uncertain reports whether there may be a dashboard that is not recorded.
func (m *modelTenant) uncertain() bool {
	return slices.ContainsFunc(m.attempts, func(a *modelAttempt) bool {
		return a.generation == m.generation && (a.outcome == repo.OutcomeSent || a.doubtful())
	})
}

func (m *modelTenant) unfinished() bool { return m.stage == repo.Pending || m.stage == repo.Creating }

// begin is the arrival of a tenant.created. With StepCreate and StepRecordOutcome it returns the
// attempt to continue with.
func (m *modelTenant) begin(minute int, message string, hold bool) (repo.Step, *modelAttempt) {
	switch {
	case minute <= m.deleted && !(m.wanted() && m.unfinished() && minute == m.began):
		return repo.StepDone, nil // superseded
	case m.stage == repo.Failed && m.failed == message:
		return repo.StepRefused, nil
	case m.stage == "" || m.stage == repo.Failed || !m.wanted():
		if m.stage != "" {
			m.generation++
		}
		m.stage, m.dashboard, m.busy, m.began = repo.Pending, "", false, minute
		m.claim++
	}
	m.created = max(m.created, minute)
	switch {
	case m.stage == repo.Active || m.stage == repo.Held:
		return repo.StepDone, nil
	case m.busy:
		return repo.StepWait, nil
	}
	abandoned := m.stage == repo.Creating
	m.claim++
	m.busy, m.stage = true, repo.Creating
	if n := len(m.attempts); abandoned && hold && n > 0 {
		if a := m.attempts[n-1]; a.generation == m.generation && a.outcome != repo.OutcomeRefused {
			return repo.StepRecordOutcome, a
		}
	}
	for _, a := range m.attempts {
		if a.outcome == repo.OutcomeSent {
			a.outcome = repo.OutcomeUnknown
		}
	}
	a := &modelAttempt{generation: m.generation, outcome: repo.OutcomeSent}
	m.attempts = append(m.attempts, a)
	return repo.StepCreate, a
}

func (m *modelTenant) announce(eventType string) {
	if m.wanted() {
		m.out = append(m.out, eventType)
	}
}
