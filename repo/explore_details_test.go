package repo

import (
	"fmt"
	"strings"
	"time"
)

// What the small numbers of the model do not hold: texts, codes, and exact times.

// details compares them with what the contract says.
func (in *modelDecision) details(out *modelResult, s *set, c Claim) string {
	t := s.tenants["A"]
	before, after := in.mapping(), &t.Mapping
	began := out.row.stage != atNone && (in.row.stage == atNone || out.row.generation != in.row.generation)
	adopted := in.do == doAdopt && c.Step == StepAdopted
	given := out.row.stage == atActive && (in.row.stage != atActive || adopted ||
		in.row.dashboard != out.row.dashboard)
	if in.row.status != 0 || began {
		if wrong := in.wrongTexts(&before, after, began || adopted, began, given); wrong != "" {
			return wrong
		}
	}
	for _, a := range t.attempts {
		if wrong := in.wrongAttempt(a); wrong != "" {
			return wrong
		}
	}
	for key, o := range s.claims {
		if isGiven := given && key.DashboardID == after.DashboardID; isGiven != (o.SetAt == present) {
			return "the time from which on it has the dashboard is wrong"
		}
	}
	return in.wrongClaim(t, c)
}

// wrongTexts compares the details of the event that gave them, where the dashboard is from, and why
// it failed.
func (in *modelDecision) wrongTexts(before, after *Mapping, isNew, began, given bool) string {
	e := in.event()
	want := []string{before.Title, before.Description, before.CreatedBy}
	if isNew {
		want = []string{e.Title, e.Description, e.CreatedBy}
	}
	if got := []string{after.Title, after.Description, after.CreatedBy}; fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Sprintf("its details are %q and should be %q", got, want)
	}
	origin, code, why := before.Origin, before.FailedCode, before.FailedError
	failed := in.do == doFail && in.claim.current == 1 && in.row.stage == atCreating
	switch {
	case given && in.do == doAdopt:
		origin = OriginAdopted
	case given && in.do == doReplace:
		origin = OriginReplaced
	case given || began:
		origin = OriginCreated
	}
	switch {
	case given || began || in.do == doRecreate:
		code, why = "", ""
	case failed:
		f := failureOf(in.answer, in.hold == 1, "")
		code, why = f.Code, f.Result.Error
		if a := in.attempt(int(in.claim.attempt)); Step(in.claim.step) == StepRecordOutcome {
			switch a.Outcome {
			case OutcomeSent:
			case OutcomeOrphaned:
				why = fmt.Sprintf("the worker that had stopped made dashboard %q after all", a.DashboardID)
			default:
				why = a.Error
			}
		}
		if after.Stage == Pending && after.ClaimableAt != at(present.Add(3*time.Second)) {
			return "it is not tried again when it should be"
		}
	}
	switch {
	case after.Origin != origin:
		return fmt.Sprintf("its dashboard is %q and should be %q", after.Origin, origin)
	case after.FailedCode != code || after.FailedError != why:
		return fmt.Sprintf("it failed by %q, %q, and should by %q, %q", after.FailedCode, after.FailedError,
			code, why)
	}
	return ""
}

// wrongAttempt compares how and when an attempt ended.
func (in *modelDecision) wrongAttempt(a attemptRow) string {
	i := 0
	for i < modelAttempts-1 && attemptIDOf[i] != a.ID {
		i++
	}
	if !a.stored || !a.changed && !a.resolved {
		return ""
	}
	was := in.attempt(i)
	status, why, finished := was.HTTPStatus, was.Error, present
	switch in.do {
	case doFinish:
		status, why = 200, ""
	case doFail:
		status, why = 503, "why"
	case doResolve, doReplace:
		finished = was.FinishedAt
	default: // its worker had stopped
		status, why = 0, a.Error
		if !strings.Contains(why, "stopped") {
			return "an attempt is given up without saying why"
		}
	}
	switch {
	case a.HTTPStatus != status || a.Error != why:
		return fmt.Sprintf("an attempt ended by %d, %q, and should by %d, %q", a.HTTPStatus, a.Error,
			status, why)
	case a.FinishedAt != finished:
		return "an attempt ended at another time"
	case a.resolved && !a.ResolvedAt.IsZero() && a.ResolvedAt != present:
		return "an attempt was resolved at another time"
	}
	return ""
}

// wrongClaim compares how long the caller waits, and which attempt it is given.
func (in *modelDecision) wrongClaim(t *tenant, c Claim) string {
	switch {
	case (c.Wait > 0) != (c.Step == StepWait && (in.do == doCreated || in.do == doAdopt)):
		return "it waits, or does not"
	case c.Wait > 0 && c.Wait != t.ClaimableAt.Sub(present.Time):
		return "it waits too short or too long"
	}
	switch c.Step {
	case StepCreate:
		if len(t.attempts) > modelAttempts { // not explored
			return ""
		}
		if last := t.attempts[len(t.attempts)-1]; c.Attempt != last.Attempt || last.Outcome != OutcomeSent {
			return "the claim is for another attempt"
		}
	case StepRecordOutcome:
		for i := range in.attempts {
			if c.Attempt.ID == attemptIDOf[i] && c.Attempt != in.attempt(i) {
				return "the claim's attempt is not as recorded"
			}
		}
	}
	return ""
}
