package proof_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"papermap-worker/repo"
	"papermap-worker/worker/proof"
)

// load publishes events about tenants, as bad as publishers can be: late, out of order, in copies,
// and some that cannot be decoded.
type load struct {
	s      *system
	random *rand.Rand
	start  time.Time     // of the events' own times
	pause  time.Duration // between two requests for tokens; 0 for 30 ms
	choose func()        // queues the next events; nil for next
	queue  []event
	sent   []event
	ids    int

	gate    gate          // held while events are published
	archive proof.History // of the streams that were deleted

	patience int // tries to publish an event, 100 ms apart; 0: 300

	mu        sync.Mutex
	tenants   []*tenant
	published []proof.Published
}

// gate is a lock whose wait a bubble of virtual time can pass over.
type gate chan struct{}

func (g gate) Lock()   { g <- struct{}{} }
func (g gate) Unlock() { <-g }

func newLoad(s *system, random *rand.Rand) *load {
	return &load{s: s, random: random, gate: make(gate, 1)}
}

// event is a message to be published, and its entry in the history.
type event struct {
	msg *nats.Msg
	is  proof.Published
}

type tenant struct {
	id    string
	clock int // seconds of its newest event
}

// tenantForms are ids that are valid, though some are unusual.
var tenantForms = []string{"org-%d", "org-%d", "org-%d", "Org-%d", "org.%d/ä*>", "../%d;'", "org %d 🏢"}

// lives are what happens to a tenant, in the order of its events' times; they arrive in any order.
var lives = [][]string{
	{"created"}, {"created"}, {"created"}, {"created"}, {"created", "suspended"},
	{"created", "suspended", "resumed"},
	{"suspended", "created"}, {"created", "deleted"}, {"created", "deleted", "created"},
	{"created", "suspended", "deleted", "created"}, {"deleted", "created"}, {"deleted"},
}

// poisons are events that must become dead letters, on any subject of a tenant. %q is the id of a
// tenant in use.
var poisons = []string{
	``, ``, `null`, `[]`, `"x"`, `{}`, `{`, "\ufeff{}", `{"tenant_id":%q}{}`,
	`{"tenant_id":%q,"tenant_id":"b","name":"n"}`,
	`{"TENANT_ID":"a","tenant_id":%q,"name":"n"}`, `{"tenant_id":7,"name":"n"}`,
	`{"tenant_id":"","name":"n"}`,
	`{"tenant_id":" a","name":"n"}`, "{\"tenant_id\":\"\xff\",\"name\":\"n\"}",
	`{"tenant_id":"a\u0000","name":"n"}`,
	`{"tenant_id":%q,"name":"n","workspace_id":"ws-unknown"}`,
	`{"specversion":"1.0","data":{"tenant_id":%q}}`,
	`{"specversion":"1.0","id":"x","type":"tenant.other","data":{"tenant_id":%q,"name":"n"}}`,
}

// statuses are headers with which nats.go mistakes an event without data for a status message from the
// server.
var statuses = []nats.Header{
	{"Status": {"100"}}, {"Status": {"404"}}, {"Status": {"408"}}, {"Status": {"503"}},
	{"Status": {"409"}, "Description": {"Consumer Deleted"}},
}

// begin publishes rate events a second and requests tokens until ctx ends, as goroutines of group.
// What callers and the database say meanwhile goes to h.
func (l *load) begin(
	ctx context.Context, group *sync.WaitGroup, rate int, asks *rand.Rand, h *proof.History,
) {
	group.Go(func() {
		if err := l.run(ctx, rate); err != nil {
			l.s.t.Error(err)
		}
	})
	group.Go(func() { h.Tokens = l.tokens(ctx, asks) })
	group.Go(func() { h.Commits = l.commits(ctx) })
}

// judge completes the history with what was published and what the API reports, and checks it.
func (l *load) judge(h proof.History) proof.History {
	l.s.t.Helper()
	h.Published, h.Streams, h.Out = l.published, l.archive.Streams, l.archive.Out
	var err error
	if h.Reported, err = l.reported(); err != nil {
		l.s.t.Error(err)
	}
	return l.s.check(h)
}

// run publishes rate events a second until ctx ends, then what is left.
func (l *load) run(ctx context.Context, rate int) error {
	l.start = time.Now().Add(-time.Hour).Truncate(time.Second)
	every := time.Second / time.Duration(rate)
	for sleep(ctx, every/2+time.Duration(l.random.Int64N(int64(every)))) {
		if l.choose != nil {
			l.choose()
		} else {
			l.next()
		}
		i := l.random.IntN(min(len(l.queue), 12))
		e := l.queue[i]
		l.queue = append(l.queue[:i], l.queue[i+1:]...)
		if err := l.publish(ctx, e); err != nil {
			return err
		}
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, e := range l.queue {
		if err := l.publish(after, e); err != nil {
			return err
		}
	}
	l.queue = nil
	return nil
}

// next queues the next events.
func (l *load) next() {
	switch n := l.random.IntN(100); {
	case n < 10 || len(l.queue) == 0 && n < 12:
		l.poisoned()
	case n < 12:
		l.sync(l.random.IntN(2) == 0)
	case n < 24 && len(l.sent) > 0: // a copy, with or without the header by which the stream recognizes it
		e := l.sent[l.random.IntN(len(l.sent))]
		if e.is.EventID != e.msg.Header.Get(nats.MsgIdHdr) && l.random.IntN(2) == 0 {
			header := maps.Clone(e.msg.Header)
			header.Del(nats.MsgIdHdr)
			e.msg = &nats.Msg{Subject: e.msg.Subject, Header: header, Data: e.msg.Data}
		}
		l.queue = append(l.queue, e)
	case n < 50 && len(l.tenants) > 3:
		kinds := []string{"created", "suspended", "resumed", "deleted", "created"}
		l.about(l.tenants[l.random.IntN(len(l.tenants))], kinds[l.random.IntN(len(kinds))])
	case len(l.queue) > 20:
	default:
		t := &tenant{id: fmt.Sprintf(tenantForms[l.random.IntN(len(tenantForms))], len(l.tenants))}
		l.mu.Lock()
		l.tenants = append(l.tenants, t)
		l.mu.Unlock()
		for _, kind := range lives[l.random.IntN(len(lives))] {
			l.about(t, kind)
		}
	}
	if len(l.queue) == 0 {
		l.poisoned()
	}
}

// adoptedPrefix begins the ids of dashboards that exist without the simulator.
const adoptedPrefix = "adopted-"

// about queues an event about a tenant, as one of the three forms and with a time that may be that
// of the one before.
func (l *load) about(t *tenant, kind string) {
	t.clock += l.random.IntN(4)
	l.ids++
	id := fmt.Sprintf("%s-%d", l.s.name, l.ids)
	when := l.start.Add(time.Duration(t.clock) * time.Second)
	is := proof.Published{Type: "tenant." + kind, Tenant: t.id}
	data := fmt.Sprintf(`{"tenant_id":%s,"name":"Name of %d"}`, quote(t.id), l.ids)
	if kind == "created" && l.random.IntN(8) == 0 { // some tenants name the same dashboard
		is.Adopts = fmt.Sprintf("%s%d", adoptedPrefix, l.random.IntN(len(l.tenants)))
		data = fmt.Sprintf(`{"tenant_id":%s,"dashboard_id":%q}`, quote(t.id), is.Adopts)
	}
	msg := &nats.Msg{Subject: "papermap.events.tenant." + kind, Header: nats.Header{}, Data: []byte(data)}
	switch n := l.random.IntN(10); {
	case n < 6:
		msg.Header = nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {id}, "ce-source": {"/proof"},
			"ce-type": {"tenant." + kind}, "ce-time": {when.Format(time.RFC3339Nano)},
		}
		is.EventID, is.Time = id, when
	case n < 9:
		msg.Header.Set("content-type", "application/cloudevents+json")
		msg.Data = fmt.Appendf(nil,
			`{"specversion":"1.0","id":%q,"source":"/proof","type":"tenant.%s","time":%q,"data":%s}`,
			id, kind, when.Format(time.RFC3339Nano), data)
		is.EventID, is.Time = id, when
	}
	if l.random.IntN(2) == 0 {
		msg.Header.Set(nats.MsgIdHdr, "message-"+id)
		is.EventID = cmp.Or(is.EventID, "message-"+id)
	}
	is.Data = msg.Data
	l.queue = append(l.queue, event{msg, is})
}

// The months that are synced, and the number of tenants: enough pages for a run to be killed
// between two.
const (
	usageFrom, usageTo = "2026-02", "2026-03"
	usageTenants       = 3000
)

// sync queues an event that requests usage, with an id or without.
func (l *load) sync(withID bool) {
	l.ids++
	id := fmt.Sprintf("%s-%d", l.s.name, l.ids)
	data := fmt.Appendf(nil, `{"from_period":%q,"to_period":%q}`, usageFrom, usageTo)
	msg := &nats.Msg{Subject: "papermap.events.usage.sync", Header: nats.Header{}, Data: data}
	is := proof.Published{Type: "usage.sync", Data: msg.Data}
	if withID {
		msg.Header.Set(nats.MsgIdHdr, "message-"+id)
		is.EventID = "message-" + id
	}
	l.queue = append(l.queue, event{msg, is})
}

// reported is what the API reports of those months.
func (l *load) reported() ([]proof.UsageRow, error) {
	rows, err := l.s.sim.UsageTotals(workspace.ID, usageFrom, usageTo)
	list := make([]proof.UsageRow, len(rows))
	for i, r := range rows {
		list[i] = proof.UsageRow{
			WorkspaceID: workspace.ID, TenantID: r.TenantID, Period: r.Period, Credits: r.Credits,
			Requests: r.Requests,
		}
	}
	return list, err
}

func (l *load) poisoned() {
	form := poisons[l.random.IntN(len(poisons))]
	tenant := "org-0"
	if len(l.tenants) > 0 {
		tenant = l.tenants[l.random.IntN(len(l.tenants))].id
	}
	data := strings.ReplaceAll(form, "%q", string(quote(tenant)))
	kind := "tenant." + []string{"created", "created", "suspended", "resumed", "deleted"}[l.random.IntN(5)]
	header := nats.Header{}
	if data == "" {
		header = maps.Clone(statuses[l.random.IntN(len(statuses))])
	}
	l.queue = append(l.queue, event{
		&nats.Msg{Subject: "papermap.events." + kind, Header: header, Data: []byte(data)},
		proof.Published{Type: kind, Data: []byte(data), Poison: true},
	})
}

// publish publishes until the stream has acknowledged it, as publishers should. Without a
// Nats-Msg-Id each try may store a copy.
func (l *load) publish(ctx context.Context, e event) error {
	var err error
	for range cmp.Or(l.patience, 300) {
		if err = l.try(ctx, e); err == nil {
			l.sent = append(l.sent, e)
			return nil
		}
		sleep(context.WithoutCancel(ctx), 100*time.Millisecond)
	}
	return fmt.Errorf("publishing %s: %w", e.msg.Subject, err)
}

func (l *load) try(ctx context.Context, e event) error {
	l.gate.Lock()
	defer l.gate.Unlock()
	return l.store(ctx, e)
}

// store publishes once and records it. The caller holds gate.
func (l *load) store(ctx context.Context, e event) error {
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	ack, err := l.s.js.PublishMsg(try, e.msg)
	if err == nil {
		e.is.Sequence = l.archive.Number(ack.Sequence)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.published = append(l.published, e.is)
	return err
}

func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string can be encoded
	}
	return b
}

// tokens requests tokens of known tenants until ctx ends. A request without an answer does not
// count.
func (l *load) tokens(ctx context.Context, random *rand.Rand) (tokens []proof.Token) {
	for sleep(ctx, cmp.Or(l.pause, 30*time.Millisecond)) {
		l.mu.Lock()
		id := "unknown"
		if n := len(l.tenants); n > 0 {
			id = l.tenants[random.IntN(n)].id
		}
		l.mu.Unlock()
		request, cancel := context.WithTimeout(ctx, time.Second)
		if t, err := proof.RequestToken(request, l.s.nc, subjects, id); err == nil {
			tokens = append(tokens, t)
		}
		cancel()
	}
	return tokens
}

// commits looks in the database for tenants that are suspended or deleted, until ctx ends.
func (l *load) commits(ctx context.Context) (commits []proof.Commit) {
	known := map[proof.Commit]bool{} // without their times
	for sleep(ctx, 500*time.Millisecond) {
		for _, status := range []repo.Status{repo.Suspended, repo.Deleted} {
			list, err := l.s.db.Mappings(ctx, status, "", 1e6)
			if err != nil {
				continue // the database is down
			}
			now := time.Now()
			for _, m := range list {
				c, ok := proof.Seen(m, now)
				key := c
				if key.At = (time.Time{}); ok && !known[key] {
					known[key] = true
					commits = append(commits, c)
				}
			}
		}
	}
	return commits
}
