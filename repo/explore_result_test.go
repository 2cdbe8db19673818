package repo

// result reads what a decision comes to from what would be written.
func (in *modelDecision) result(out *modelResult, s *set, c Claim) (modelResult, string) {
	t := s.tenants["A"]
	if t == nil || len(s.tenants) != 1 {
		return *out, "it is not kept"
	}
	if t.made {
		if wrong := out.row.read(&t.Mapping); wrong != "" {
			return *out, wrong
		}
	}
	out.fenced = t.Epoch != epochOf[in.row.epoch]
	out.failedNow = t.FailedAt == present
	for _, a := range t.attempts {
		if wrong := in.readAttempt(out, a); wrong != "" {
			return *out, wrong
		}
	}
	for key, o := range s.claims {
		switch code := dashboardCode(key.DashboardID); {
		case code == 255 || o.TenantID != "A":
			return *out, "a dashboard has a wrong owner"
		case in.owners[code] == 2:
			return *out, "another tenant's dashboard is taken"
		default:
			out.owners[code] = 1
		}
		replaced := in.do == doReplace && key.DashboardID == dashboardOf[in.row.dashboard]
		if replaced != (o.ReplacedAt == present) {
			return *out, "the time of a replacement is wrong"
		}
	}
	out.claim.step = uint8(c.Step)
	if (in.do == doCreated || in.do == doAdopt) && c.Mapping != t.Mapping {
		return *out, "the claim does not have the mapping as committed"
	}
	if wrong := in.readClaim(out, c, t.Epoch); wrong != "" {
		return *out, wrong
	}
	if wrong := in.details(out, s, c); wrong != "" && !out.full {
		return *out, wrong
	}
	return *out, in.announced(out, s.outbox)
}

// read reads a mapping that is to be written.
func (r *modelRow) read(m *Mapping) string {
	before := *r
	*r = modelRow{generation: uint8(m.Generation), dashboard: dashboardCode(m.DashboardID),
		failures: uint8(m.Failures)}
	for i, stage := range stageCodes {
		if m.Stage == stage {
			r.stage = uint8(i)
		}
	}
	for i, status := range statusCodes {
		if m.Status == status {
			r.status = uint8(i)
		}
	}
	for i := range eventTimeOf {
		set := func(t int64, to *uint8) {
			if t == eventTimeOf[i] {
				*to = uint8(i)
			}
		}
		set(m.CreatedEvent, &r.created)
		set(m.DeletedEvent, &r.deleted)
		set(m.SuspendedEvent, &r.suspended)
		set(m.ResumedEvent, &r.resumed)
		set(m.DashboardEvent, &r.given)
	}
	if m.DashboardEvent > eventTimeOf[3] {
		r.given = correction
	}
	for i, id := range messageOf {
		if m.FailedMessage == id && id != "gone" {
			r.failedBy = uint8(i)
		}
	}
	r.epoch = uint8(min(m.Epoch, 2))
	if m.ClaimableAt.After(present.Time) {
		r.claimable = due
		longest := maxRetry
		if m.Stage == Creating {
			longest = Lease
		}
		if m.ClaimableAt.After(present.Add(longest)) {
			r.claimable = 2
		}
	}
	if !m.FailedAt.IsZero() {
		r.failed = 1
	}
	switch {
	case before.status == 0 && (m.CreatedAt != present || m.TenantID != "A" || m.WorkspaceID != "w"):
		return "a new row is incomplete"
	case before != *r && m.UpdatedAt != present:
		return "a row is changed and not marked as changed"
	case m.CreatedEventID != eventIDOf[r.created]:
		return "the newest tenant.created has another's id"
	case m.Stage == Failed && (m.FailedCode == "" || m.FailedError == ""):
		return "a failed tenant has no reason"
	case r.stage == atNone && m.Stage != none:
		return "it has no stage"
	}
	return ""
}

func (in *modelDecision) readAttempt(out *modelResult, a attemptRow) string {
	i := 0
	for i < modelAttempts-1 && attemptIDOf[i] != a.ID {
		i++
	}
	known := in.attempts[i].outcome != 0
	switch {
	case !a.stored && known:
		out.full = true // there is no room for it
		return ""
	case a.stored && !known:
		return "an attempt is changed that was never made"
	case a.stored && !a.changed && !a.resolved:
		return ""
	}
	to := &out.attempts[i]
	before := to.outcome
	for n, outcome := range outcomeCodes {
		if a.Outcome == outcome {
			to.outcome = uint8(n)
		}
	}
	to.generation, to.dashboard = uint8(a.Generation), dashboardCode(a.DashboardID)
	if a.resolved {
		to.resolved = 0
		if !a.ResolvedAt.IsZero() {
			to.resolved = 1
		}
	}
	out.succeededNow = out.succeededNow || to.outcome == isCreated && a.FinishedAt == present
	if before == isSent && to.outcome != isSent && a.FinishedAt != present && in.do != doReplace {
		return "an attempt has ended, and does not say when"
	}
	return ""
}

// readClaim reads what belongs to the claim's step, and checks the lease.
func (in *modelDecision) readClaim(out *modelResult, c Claim, epoch int64) string {
	if in.do != doCreated && in.do != doAdopt {
		return ""
	}
	longest := maxRetry
	if c.Mapping.Stage == Creating {
		longest = Lease
	}
	switch c.Step {
	case StepWait:
		if c.Wait <= 0 || c.Wait > longest {
			return "it waits too long"
		}
	case StepCreate, StepRecordOutcome:
		if c.Mapping.Stage != Creating || c.Mapping.ClaimableAt != at(present.Add(Lease)) {
			return "the claim has no lease"
		}
		if c.Message != messageOf[in.message] || c.Event != eventTimeOf[in.time] {
			return "the claim is for another event"
		}
		for i, id := range attemptIDOf {
			if c.Attempt.ID == id {
				out.claim.attempt = uint8(i)
			}
		}
		if c.Step == StepCreate && (c.Attempt.StartedAt != present || c.Attempt.Mark != "pmw:"+c.Attempt.ID ||
			c.Attempt.TenantID != "A" || c.Attempt.WorkspaceID != "w") {
			return "the attempt is incomplete"
		}
		out.claim.generation, out.claim.time = uint8(c.Mapping.Generation), in.time
		out.claim.message = in.message
		if c.Mapping.Epoch == epoch {
			out.claim.current = 1
		}
	}
	return ""
}
