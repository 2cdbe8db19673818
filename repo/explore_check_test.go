package repo

import "fmt"

// broken returns which promise a state breaks; empty if none.
func (sc *scope) broken(s *modelState) string {
	for t := range s.tenants {
		if wrong := s.tenants[t].broken(sc.hold == 1); wrong != "" {
			return fmt.Sprintf("tenant %c: %s", 'A'+t, wrong)
		}
	}
	a, b := s.tenants[0].row.dashboard, s.tenants[1].row.dashboard
	if a != 0 && s.asSeenBy(0, b) == a {
		return "both tenants have one dashboard"
	}
	for t := range s.tenants {
		if d := s.tenants[t].row.dashboard; d != 0 && s.ownerOf(uint8(t), d) != 1 {
			return fmt.Sprintf("tenant %c has a dashboard that is not its own", 'A'+t)
		}
	}
	return s.brokenByWorkers()
}

// ownerOf is whose the dashboard is, as the tenant sees it.
func (s *modelState) ownerOf(t, dashboard uint8) uint8 {
	return (&scope{}).ownersOf(s, t)[dashboard]
}

func (sc *scope) ownersOf(s *modelState, t uint8) [len(dashboardOf)]uint8 {
	in := s.decision(sc, t, doChange)
	return in.owners
}

// brokenByWorkers looks at claims.
func (s *modelState) brokenByWorkers() string {
	for n := range s.workers {
		w := &s.workers[n]
		if w.phase == idle {
			continue
		}
		r := &s.tenants[w.tenant].row
		for m := range s.workers[:n] {
			o := &s.workers[m]
			if o.phase == idle || o.tenant != w.tenant {
				continue
			}
			if w.claim.current == 1 && o.claim.current == 1 {
				return "two workers have the claim of one tenant"
			}
			if w.maySend() && o.maySend() && w.claim.generation == o.claim.generation {
				return "two workers may send a create for one tenant and generation"
			}
		}
		switch {
		case w.claim.current == 1 && w.claim.generation != r.generation:
			return "a claim is for another generation"
		case w.maySend() && s.tenants[w.tenant].attempts[w.claim.attempt].outcome == 0:
			return "a create may be sent whose attempt is not committed"
		}
	}
	return ""
}

// maySend reports whether the worker is about to send a create.
func (w *modelWorker) maySend() bool {
	return w.phase == claimed && w.claim.step == uint8(StepCreate) && w.lapsed == 0
}

// broken looks at one tenant.
func (me *modelTenant) broken(hold bool) string {
	r := &me.row
	if r.status == 0 {
		return me.brokenWithoutRow()
	}
	newest := modelRow{stage: r.stage, created: me.newest[kindCreated], deleted: me.newest[kindDeleted],
		suspended: me.newest[kindSuspended], resumed: me.newest[kindResumed]}
	sent, made, uncertain := 0, 0, 0
	var inGeneration [16]int // attempts that made a dashboard, or may have
	for i := range me.attempts {
		a := &me.attempts[i]
		if wrong := me.forgotten(a, uint8(1+i)); wrong != "" {
			return wrong
		}
		made += int(a.made)
		switch a.outcome {
		case isSent:
			sent++
			fallthrough
		case isUnknown, isOrphaned:
			uncertain++
			fallthrough
		case isCreated:
			inGeneration[a.generation%16]++
		}
		if hold && inGeneration[a.generation%16] > 1 && me.recreated == 0 {
			return "a create was repeated although the outcome of another is unknown"
		}
	}
	switch {
	case r.status != newest.derived():
		return "the status does not follow from the newest events that were handled"
	case (r.dashboard != 0) != (r.stage == atActive):
		return "it is active without a dashboard, or has one without being active"
	case sent > 1:
		return "two attempts are sent at once"
	case made > int(r.generation)+uncertain:
		return fmt.Sprintf("%d dashboards were made; %d generations and %d uncertain attempts allow fewer",
			made, r.generation, uncertain)
	case r.wanted() && r.stage < atActive && !me.hasCreated():
		return "it waits for a dashboard, and no event is left that would lead to one"
	case r.failures > 0 && r.stage != atFailed:
		return "it has as many failures as are allowed, and goes on"
	}
	return ""
}

func (me *modelTenant) brokenWithoutRow() string {
	for i, t := range me.newest {
		if t != 0 {
			return fmt.Sprintf("an event of kind %d was handled, and there is no row", i)
		}
	}
	return ""
}

// hasCreated reports whether the stream still has a tenant.created.
func (me *modelTenant) hasCreated() bool {
	for _, e := range me.events {
		if e.state != 0 && e.kind < kindDeleted {
			return true
		}
	}
	return false
}

// forgotten looks for a dashboard that nobody would find.
func (me *modelTenant) forgotten(a *modelAttempt, its uint8) string {
	r := &me.row
	switch {
	case a.outcome == 0:
		return ""
	case a.made == 1 && a.outcome == isRefused:
		return "a create that made a dashboard is recorded as refused"
	case (a.outcome == isCreated || a.outcome == isOrphaned) && a.dashboard == 0:
		return "an attempt made a dashboard, and does not say which"
	case a.generation > r.generation:
		return "an attempt is for a generation that does not exist yet"
	case a.outcome != isCreated || a.resolved == 1:
		return ""
	case a.made == 0 || a.dashboard != its:
		return "an attempt is recorded as created whose dashboard was not made"
	case a.generation == r.generation && r.dashboard != its:
		return "an attempt of this generation is created, and its dashboard is not the mapping's"
	}
	return ""
}
