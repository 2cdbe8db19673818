package repo

import "fmt"

var kindNames = [...]string{"", "tenant.created", "tenant.created with dashboard P",
	"tenant.created with dashboard Q", "tenant.deleted", "tenant.suspended", "tenant.resumed"}

// tell says what a step is.
func (s *modelState) tell(a modelAction) string {
	tenant := 'A' + rune(a.a)
	event := func() string {
		e := s.tenants[a.a].events[a.b]
		return fmt.Sprintf("%s of time %d for tenant %c", kindNames[e.kind], e.time, tenant)
	}
	worker := func() string {
		w := s.workers[a.a]
		return fmt.Sprintf("worker %d, with attempt %d of tenant %c", a.a+1, w.claim.attempt+1, 'A'+w.tenant)
	}
	switch a.do {
	case actPublish:
		return fmt.Sprintf("%s of time %d for tenant %c is delivered", kindNames[a.b], a.c, tenant)
	case actDeliver:
		return event() + " is delivered again"
	case actDeliverNo:
		return event() + " is delivered again, and its acknowledgement is lost"
	case actAnswer:
		return worker() + ", asks Papermap: " + answerNames[a.b]
	case actWrite:
		return worker() + ", records the outcome"
	case actWriteNo:
		return worker() + ", records the outcome, and its acknowledgement is lost"
	case actWriteTwice:
		return worker() + ", records the outcome; the COMMIT has no answer, so it will do so again"
	case actCrash:
		return worker() + ", is killed"
	case actSleep:
		return "the time of a lease passes; workers that have a claim sleep"
	case actRedeliver:
		return event() + " is to be delivered again"
	case actDue:
		return fmt.Sprintf("the retry of tenant %c is due", tenant)
	case actClockBack:
		return "the database's clock is set back"
	case actResolve:
		return fmt.Sprintf("an operator resolves tenant %c with %s", tenant, s.dashboardName(a.a, a.b))
	case actRecreate:
		return fmt.Sprintf("an operator has tenant %c created again", tenant)
	}
	return fmt.Sprintf("an operator replaces the dashboard of tenant %c by %s", tenant,
		s.dashboardName(a.a, a.b))
}

// dashboardName is the name of a dashboard that the tenant sees under this code.
func (s *modelState) dashboardName(t, dashboard uint8) string {
	if t == 1 && dashboard < existing {
		dashboard = s.asSeenBy(0, dashboard)
	}
	return dashboardOf[dashboard]
}

// tellTenant shows a tenant's row and attempts.
func (s *modelState) tellTenant(t int) string {
	me := &s.tenants[t]
	r := &me.row
	text := fmt.Sprintf("%c: %s, stage %s, generation %d, dashboard %q;", 'A'+t, statusCodes[r.status],
		stageCodes[r.stage], r.generation, s.dashboardName(uint8(t), r.dashboard))
	for i, a := range me.attempts {
		if a.outcome != 0 {
			text += fmt.Sprintf(" attempt %d %s", i+1, outcomeCodes[a.outcome])
		}
	}
	for _, e := range me.events {
		if e.state == undelivered {
			text += fmt.Sprintf("; waiting: %s of time %d", kindNames[e.kind], e.time)
		}
	}
	return text
}
