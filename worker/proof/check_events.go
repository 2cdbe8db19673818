package proof

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo"
)

// eventsEnded checks promise 1: each acknowledged event is recorded in the tenant's row, superseded
// by a later one of its kind that is, or a dead letter. A usage.sync has a run or a dead letter.
func (c *checker) eventsEnded() {
	for _, p := range c.stored {
		what := fmt.Sprintf("%s (sequence %d, of %s)", p.Type, p.Sequence, stamp(p.when()))
		switch {
		case p.StoredAt.IsZero():
			c.report(EventEnded, p.Tenant, "%s was acknowledged and is not in the stream", what)
			continue
		case p.Lost || p.Poison || len(c.dead[p.Sequence]) > 0:
			continue
		case p.Type == events.TypeUsageSync:
			ran := func(r repo.Run) bool { return r.EventID == cmp.Or(p.EventID, p.message()) }
			if !slices.ContainsFunc(c.Runs, ran) {
				c.report(EventEnded, p.Tenant,
					"%s was acknowledged, and there is neither a usage run nor a dead letter of it", what)
			}
			continue
		}
		m, known := c.rows[p.Tenant]
		recorded := map[string]int64{
			events.TypeTenantCreated:   max(m.CreatedEvent, m.DeletedEvent),
			events.TypeTenantSuspended: m.SuspendedEvent,
			events.TypeTenantResumed:   m.ResumedEvent,
			events.TypeTenantDeleted:   m.DeletedEvent,
		}[p.Type]
		switch {
		case !known:
			c.report(EventEnded, p.Tenant,
				"%s was acknowledged, and there is neither a row of the tenant nor a dead letter", what)
		case recorded < p.when().UnixNano():
			c.report(EventEnded, p.Tenant,
				"%s was acknowledged; the row knows of none later than %s, and there is no dead letter",
				what, stamp(time.Unix(0, recorded)))
		}
	}
}

// nothingWaits checks that the run was quiet: an event that is still in flight may end either way.
func (c *checker) nothingWaits() {
	for _, w := range c.Waiting {
		if w.Pending > 0 || w.InFlight > 0 {
			c.report(NothingWaits, "", "consumer %s: %d events wait and %d are in flight",
				w.Consumer, w.Pending, w.InFlight)
		}
	}
}

// finalStatus compares each tenant's row with what its events say, in the order of their times:
// neither the order of delivery nor the number of copies may matter.
func (c *checker) finalStatus() {
	for _, tenant := range slices.Sorted(maps.Keys(c.good)) {
		m, known := c.rows[tenant]
		if !known {
			continue // eventsEnded reports it
		}
		s := fold(c.good[tenant])
		stage := repo.Active // what provisioning must have led to
		switch {
		case m.Stage == repo.Failed && c.failedForGood(tenant), m.Stage == repo.Held && c.mayBeHeld(m):
			stage = m.Stage
		}
		want := s.status()
		if want == repo.Active {
			want = stage
		}
		switch {
		case m.Status != want:
			c.report(FinalStatus, tenant, "the row says %s (stage %s), its %d events say %s",
				m.Status, m.Stage, len(c.good[tenant]), want)
		case s.wanted && m.Stage != stage:
			c.report(FinalStatus, tenant, "the tenant is to have a dashboard, and its row is at stage %s",
				m.Stage)
		case s.wanted && m.Stage == repo.Active && m.DashboardID == "":
			c.report(FinalStatus, tenant, "the row says that there is a dashboard, and has none")
		}
	}
}

// failedForGood reports whether a tenant.created of the tenant is a dead letter.
func (c *checker) failedForGood(tenant string) bool {
	return slices.ContainsFunc(c.good[tenant], func(p Published) bool {
		return p.Type == events.TypeTenantCreated && len(c.dead[p.Sequence]) > 0
	})
}

// mayBeHeld reports whether the mapping's generation has an attempt with an uncertain outcome.
func (c *checker) mayBeHeld(m repo.Mapping) bool {
	return slices.ContainsFunc(c.attempts[m.TenantID], func(a repo.Attempt) bool {
		return a.Generation == m.Generation && uncertain(a.Outcome)
	})
}

// poisonHarmless checks that poison becomes a dead letter at its first delivery and leaves no other
// trace.
func (c *checker) poisonHarmless() {
	for _, p := range c.stored {
		if !p.Poison {
			continue
		}
		if len(c.dead[p.Sequence]) == 0 && !p.Lost {
			c.report(PoisonHarmless, p.Tenant, "the poison %s (sequence %d) did not become a dead letter",
				p.Type, p.Sequence)
		}
		for _, d := range c.dead[p.Sequence] {
			if d.SideEffect != "none" || d.Attempts > 1 {
				c.report(PoisonHarmless, p.Tenant,
					"the dead letter of the poison %s (sequence %d) says side effect %q after %d attempts",
					p.Type, p.Sequence, d.SideEffect, d.Attempts)
			}
		}
	}
	for _, r := range c.creates {
		if !c.has(r.TenantID, events.TypeTenantCreated) {
			c.report(PoisonHarmless, r.TenantID,
				"API request %d creates a dashboard, and no good tenant.created names the tenant", r.Seq)
		}
	}
	for _, m := range c.Mappings {
		if len(c.good[m.TenantID]) == 0 {
			c.report(PoisonHarmless, m.TenantID, "there is a row (%s), and no good event names the tenant",
				m.Status)
		}
	}
}

// defaultDuplicates is how long a stream drops messages with a Nats-Msg-Id that it has seen, unless
// it is told otherwise.
const defaultDuplicates = 2 * time.Minute

// deadLettersTrue compares dead letters with their events. A second dead letter of one event is a
// repetition that the stream should have dropped, unless the first is older than its duplicate
// window, or was in a stream that was deleted.
func (c *checker) deadLettersTrue() {
	stored := map[uint64]Published{}
	for _, p := range c.stored {
		stored[p.Sequence] = p
	}
	first, window := map[uint64]Dead{}, cmp.Or(c.Duplicates, defaultDuplicates)
	for _, d := range c.Dead {
		p, known := stored[d.StreamSequence]
		wrong := func(format string, args ...any) {
			detail := fmt.Sprintf(format, args...)
			c.report(DeadLetterTrue, p.Tenant, "dead letter %d of event %d: %s",
				d.Sequence, d.StreamSequence, detail)
		}
		if !known || p.Type != d.Type {
			wrong("it is a %s, and no such event was published", d.Type)
			continue
		}
		f, again := first[d.StreamSequence]
		later, sameStream := d.Time.Sub(f.Time), d.Stream == f.Stream
		if again && (d.id() != f.id() || sameStream && later < window) {
			wrong("there is a second one, with id %s beside %s, %v later", d.id(), f.id(), later)
		} else if !again {
			first[d.StreamSequence] = d
		}
		if why := d.differs(p.Data); why != "" {
			wrong("%s", why)
		}
		if !d.of(p) {
			wrong("its identity is %q, the event's is %q", d.EventID, cmp.Or(p.EventID, p.message()))
		}
		when, err := time.Parse(time.RFC3339Nano, d.EventTime)
		if err != nil || !when.Equal(p.when()) && (!p.Poison || !when.Equal(p.StoredAt)) {
			wrong("its time is %q, the event's is %s", d.EventTime, stamp(p.when()))
		}
	}
}

// of reports whether the dead letter has the event's identity. Poison may have an id that cannot be read.
func (d Dead) of(p Published) bool {
	return d.EventID == cmp.Or(p.EventID, p.message()) || p.Poison && d.EventID == p.message()
}

func (d Dead) id() string { return d.Header.Get(nats.MsgIdHdr) }

// differs describes how the dead letter's data differ from the event's, of which it may have only
// the beginning; empty if they do not.
func (d Dead) differs(data []byte) string {
	cut := d.Header.Get("Papermap-Data-Truncated")
	whole := fmt.Sprintf("%d %x", len(data), sha256.Sum256(data))
	switch {
	case cut == "" && !bytes.Equal(d.Data, data):
		return fmt.Sprintf("its %d bytes of data are not the event's %d", len(d.Data), len(data))
	case cut != "" && (!bytes.HasPrefix(data, d.Data) || cut != whole):
		return fmt.Sprintf("it was cut from %s, and the event has %d bytes that differ", cut, len(data))
	}
	return ""
}

// The codes with which the API can end an event.
const (
	apiRefused = "API_REFUSED"
	apiFailed  = "API_FAILED"
)

// deadLettersDue looks for the answer of the API that ended a good event, or for what kept it from
// adopting a dashboard.
func (c *checker) deadLettersDue() {
	for _, p := range c.stored {
		for _, d := range c.dead[p.Sequence] {
			var due bool
			switch {
			case p.Poison:
				continue
			case p.Type == events.TypeUsageSync:
				due = !strings.HasPrefix(d.Code, "INVALID_") && !strings.HasPrefix(d.Code, "UNKNOWN_")
			case p.Type == events.TypeTenantCreated && d.Code == apiRefused:
				due = slices.ContainsFunc(c.creates, func(r simulator.Request) bool {
					return r.TenantID == p.Tenant && refuses(r.Status)
				})
			case p.Type == events.TypeTenantCreated && d.Code == apiFailed:
				_, due = c.lastFailure(p.Tenant, d.Time)
			case p.Type == events.TypeTenantCreated:
				due = c.adoptionRefused(p, d.Code)
			}
			if !due {
				c.report(DeadLetterDue, p.Tenant,
					"the good %s (sequence %d) became a dead letter (%s: %s); nothing explains it",
					p.Type, p.Sequence, d.Code, d.Error)
			}
		}
	}
}

// refuses reports whether a status means that the same request will never be accepted.
func refuses(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict,
		http.StatusTooManyRequests, http.StatusPaymentRequired, http.StatusRequestTimeout,
		http.StatusMisdirectedRequest, http.StatusTooEarly:
		return false
	}
	return status >= 400 && status < 500
}

// lastFailure is the tenant's last attempt before a moment that made no dashboard for its mapping.
func (c *checker) lastFailure(tenant string, before time.Time) (last repo.Attempt, ok bool) {
	for _, a := range c.attempts[tenant] {
		failed := a.Outcome == repo.OutcomeRefused || a.Outcome == repo.OutcomeUnknown
		if failed && !c.after(a.FinishedAt.Time, before) {
			last, ok = a, true
		}
	}
	return last, ok
}

// outageSpares checks promise 5: no event is given up for a call during an outage, unless the
// failure was the tenant's own.
func (c *checker) outageSpares() {
	for _, p := range c.stored {
		for _, d := range c.dead[p.Sequence] {
			if p.Poison || d.Code != apiRefused && d.Code != apiFailed {
				continue
			}
			from, to := d.Time, d.Time
			if a, ok := c.lastFailure(p.Tenant, d.Time); ok && p.Type == events.TypeTenantCreated {
				from, to = a.StartedAt.Time, a.FinishedAt.Time
				if d.Code == apiFailed && c.counts(a) {
					continue
				}
			}
			for _, w := range c.Outages {
				if !from.Before(w.From) && !to.After(w.To) {
					c.report(OutageSpares, p.Tenant,
						"%s (sequence %d) became a dead letter (%s) for a call at %s, in an outage %s to %s",
						p.Type, p.Sequence, d.Code, stamp(from), stamp(w.From), stamp(w.To))
				}
			}
		}
	}
}

// counts reports whether a failure is the tenant's own: since its previous one another tenant had a
// success.
func (c *checker) counts(a repo.Attempt) bool {
	previous, ok := c.lastFailure(a.TenantID, a.StartedAt.Add(-tick))
	return ok && slices.ContainsFunc(c.Attempts, func(b repo.Attempt) bool {
		other := b.TenantID != a.TenantID && b.WorkspaceID == a.WorkspaceID
		return other && b.Outcome == repo.OutcomeCreated &&
			b.FinishedAt.After(previous.FinishedAt.Time) && !b.FinishedAt.After(a.FinishedAt.Time)
	})
}
