package worker_test

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

func TestEventsThroughFaultsAreNotLost(t *testing.T) {
	onBoth(t, options{Faults: []string{
		"on=create rate=0.1 status=503 retry-after=1", "on=create rate=0.025 drop=before",
		"on=create rate=0.025 drop=after",
	}}, func(t *testing.T, w *world) {
		terminated, err := w.Conn.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.PAPERMAP." +
			workertest.MainConsumer)
		w.Must(err)
		tenants := names("good", 300-len(poison))
		bad := map[string][]string{} // by stream sequence
		for i, tenant := range tenants {
			if i%(len(tenants)/len(poison)) == 0 && len(bad) < len(poison) {
				p := poison[len(bad)]
				bad[strconv.FormatUint(w.Publish(events.TypeTenantCreated, p[1], p[2:]...), 10)] = p
			}
			w.Create(tenant)
		}
		if len(bad) != len(poison) {
			t.Fatalf("published %d of %d bad payloads", len(bad), len(poison))
		}
		w.Eventually(func() error {
			if err := w.Handled(); err != nil {
				return err
			}
			return w.Are(repo.Active, tenants...)()
		})

		for _, letter := range w.DeadLetters() {
			h := letter.Header
			p, ok := bad[h.Get("Papermap-Stream-Sequence")]
			if !ok {
				t.Errorf("dead letter of a good event, or a second one: %v", h)
				continue
			}
			delete(bad, h.Get("Papermap-Stream-Sequence"))
			if string(letter.Data) != p[1] || h.Get("Papermap-Error-Code") != p[0] ||
				h.Get("Papermap-Attempts") != "1" || h.Get("Papermap-Side-Effect") != "none" ||
				h.Get("Papermap-Error") == "" {
				t.Errorf("dead letter of %v: %q %v", p, letter.Data, h)
			}
		}
		for _, p := range bad {
			t.Errorf("no dead letter of %v", p)
		}
		for range poison { // the server's own word that each was delivered once
			msg, err := terminated.NextMsg(workertest.Soon)
			w.Must(err)
			var advisory struct {
				Deliveries int `json:"deliveries"`
			}
			w.Must(json.Unmarshal(msg.Data, &advisory))
			if advisory.Deliveries != 1 {
				t.Errorf("terminated after %d deliveries: %s", advisory.Deliveries, msg.Data)
			}
		}
		for n := range w.Workers {
			if !strings.Contains(w.Logs.String(),
				fmt.Sprintf(`"msg":"created a dashboard","worker":%d,`, n)) {
				t.Errorf("worker %d had no share of the work", n)
			}
		}
		lost := 0
		for _, r := range w.Requests("create") {
			if !strings.HasPrefix(r.TenantID, "good-") {
				t.Errorf("a bad payload reached the API: %+v", r)
			}
			if r.Status == 0 {
				lost++
			}
		}
		uncertain, err := w.DB.PossibleOrphans(t.Context())
		w.Must(err)
		if len(uncertain) != lost || lost == 0 {
			t.Errorf("%d requests were lost, %d attempts are uncertain", lost, len(uncertain))
		}
		if more := len(w.Simulator.Dashboards()) - len(tenants); more < 0 || more > lost {
			t.Errorf("%d dashboards more than tenants", more)
		}
	})
}

func TestHangingCreateDelaysNoOtherTenant(t *testing.T) {
	virtual(t, options{
		Workers: 2,
		Config: func(c *worker.Config) {
			c.Concurrency, c.Timeout = 4, worker.MaxTimeout
		},
		Faults: []string{"tenant=hangs delay=1m"},
	}, func(t *testing.T, w *world) {
		w.Create("hangs")
		others := names("other", 50)
		w.Create(others...)
		for _, p := range poison { // nor do these
			w.Publish(events.TypeTenantCreated, p[1], p[2:]...)
		}
		late := names("late", 50)
		w.Create(late...)
		w.Eventually(w.Are(repo.Active, others[:20]...))
		if s := w.Status("hangs"); s != repo.Creating { // its request has timed out
			t.Errorf("the tenant whose create hangs is %s: the others waited for it", s)
		}
		w.Eventually(w.Are(repo.Active, append(others, late...)...))
	})
}

func TestFailingTenantIsADeadLetterAfterMaxAttempts(t *testing.T) {
	onBoth(t, options{
		Config: func(c *worker.Config) { c.MaxAttempts = 2 },
		Faults: []string{"tenant=poison status=500"},
	}, func(t *testing.T, w *world) {
		sequence := w.Publish(events.TypeTenantCreated, object("tenant_id", "poison", "name", "N"),
			"Nats-Msg-Id", "the-event")
		others := 0
		w.Eventually(func() error {
			w.Create(fmt.Sprintf("other-%d", others))
			others++
			return w.Are(repo.Failed, "poison")()
		})
		w.Eventually(workertest.That("one dead letter", func() bool { return len(w.DeadLetters()) == 1 }))
		h := w.DeadLetters()[0].Header
		for name, want := range map[string]string{
			"Papermap-Error-Code": "API_FAILED", "Papermap-Attempts": "2", "Papermap-Side-Effect": "maybe",
			"Papermap-Event-Id":        "the-event",
			"Papermap-Stream-Sequence": fmt.Sprint(sequence), "Papermap-Original-Nats-Msg-Id": "the-event",
		} {
			if h.Get(name) != want {
				t.Errorf("%s is %q, want %q", name, h.Get(name), want)
			}
		}
		if n := w.Creates("poison"); n != 3 { // the first never counts: there is no moment before it
			t.Errorf("%d create requests, want 3", n)
		}
		if got := w.Outcomes("poison"); got != "unknown unknown unknown" {
			t.Errorf("attempts %s", got)
		}
		w.Eventually(w.Handled)
		if n := len(w.Simulator.Dashboards()); n != others || w.pausesLogged() > 0 {
			t.Errorf("%d dashboards for %d others, %d pauses", n, others, w.pausesLogged())
		}
	})
}

func TestMaxAttemptsDoNotCountWhileEveryCreateFails(t *testing.T) {
	o := options{Workers: 2, Config: func(c *worker.Config) { c.MaxAttempts = 1 }}
	virtual(t, o, func(t *testing.T, w *world) {
		w.Create("before")
		w.Eventually(w.Are(repo.Active, "before"))
		w.SetFaults("on=create status=500")
		tenants := names("t", 2) // so few that there is no pause yet
		w.Create(tenants...)
		w.Eventually(func() error {
			for _, tenant := range tenants {
				if n := w.Creates(tenant); n < 3 {
					return fmt.Errorf("%s was tried %d times", tenant, n)
				}
			}
			return nil
		})
		w.NoDeadLetters()
		w.SetFaults()
		workertest.Eventually(t, recovery, w.Are(repo.Active, tenants...))
	})
}

// odd are tenant ids that are taken as they are, each another tenant.
var odd = []string{
	"a.b", "a*", "a>", "a/b", "o'hara", "drop;table", "two words", "../x", "Acme", "acme", "\u00e9",
	"e\u0301", "🙂", "%41", "{}", `quo"te`, "<b>", "=1+1", strings.Repeat("é", 255),
}

func TestInvalidEventsBecomeDeadLettersAndOddTenantsGetDashboards(t *testing.T) {
	onBoth(t, options{}, func(t *testing.T, w *world) {
		list := poisons()
		if len(list) < 40 {
			t.Fatalf("%d kinds of poison", len(list))
		}
		sequences := map[string]string{} // by the stream's sequence, as the dead letter has it
		var good []string
		for i, p := range list {
			sequence := w.Publish(p.eventType, p.data, p.headers...)
			sequences[fmt.Sprint(sequence)] = p.name
			good = append(good, fmt.Sprintf("good-%d", i))
			w.Create(good[i])
		}
		w.Create(odd...)
		w.Eventually(w.Are(repo.Active, slices.Concat(good, odd)...))
		w.Eventually(workertest.That("all dead letters", func() bool {
			return len(w.DeadLetters()) >= len(list)
		}))
		w.Eventually(w.Handled)
		died := map[string]int{}
		for _, d := range w.DeadLetters() {
			name := sequences[d.Header.Get("Papermap-Stream-Sequence")]
			died[name]++
			i := slices.IndexFunc(list, func(p poisonEvent) bool { return p.name == name })
			switch {
			case i < 0:
				t.Errorf("dead letter of %q, which is no poison", d.Header.Get("Papermap-Event-Id"))
			case string(d.Data) != list[i].data || d.Header.Get("Papermap-Error") == "" ||
				d.Header.Get("Papermap-Side-Effect") != "none":
				t.Errorf("%s: dead letter %v %.100q", name, d.Header, d.Data)
			}
		}
		for _, p := range list {
			if died[p.name] != 1 {
				t.Errorf("%s died %d times", p.name, died[p.name])
			}
		}
		for _, tenant := range odd {
			if made := w.Dashboards(tenant); len(made) != 1 {
				t.Errorf("tenant %q has %d dashboards", tenant, len(made))
			}
		}
		if n, want := w.API.Requests(http.MethodPost), len(good)+len(odd); n != want {
			t.Errorf("%d create requests for %d tenants", n, want)
		}
	})
}

// A worker is killed with a request on its way: the dashboard is made, and its answer is lost.
func TestKilledWorkersTenantsAreTakenOver(t *testing.T) {
	for _, c := range []struct {
		name      string
		hold      bool
		status    repo.Status
		outcomes  string
		announced string
	}{
		{"recreate", false, repo.Active, "unknown created", "dashboard.created"},
		{"hold", true, repo.Held, "unknown", "dashboard.held"},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBoth(t, options{
				Config:   func(cfg *worker.Config) { cfg.Hold, cfg.Grace = c.hold, 100*time.Millisecond },
				Faults:   []string{"on=create delay=1m"},
				NoWorker: true,
			}, func(t *testing.T, w *world) {
				first := w.StartWorker()
				tenants := names("t", 5)
				w.Create(tenants...)
				w.Eventually(w.Sent(len(tenants)))
				w.Config.Grace = 20 * time.Second
				if w.Shared() {
					w.StartWorker() // the replica that survives
				}
				first.Kill()
				killed := time.Now()
				for _, tenant := range tenants {
					if w.Outcomes(tenant) != "sent" || w.Status(tenant) != repo.Creating {
						t.Fatalf("%s is %s, attempts %s: that was no kill", tenant, w.Status(tenant),
							w.Outcomes(tenant))
					}
				}
				w.SetFaults()
				if !w.Shared() {
					w.StartWorker()
				}
				w.Eventually(w.Are(c.status, tenants...))
				w.Eventually(w.Handled)
				w.Eventually(w.Relayed)
				for _, tenant := range tenants {
					if after := w.Attempts(tenant)[0].FinishedAt.Sub(killed); after > takeUp {
						t.Errorf("%s was taken up %v after the kill", tenant, after)
					}
					if w.Outcomes(tenant) != c.outcomes || len(w.Dashboards(tenant)) != w.Creates(tenant) {
						t.Errorf("%s: attempts %s, %d dashboards", tenant, w.Outcomes(tenant),
							len(w.Dashboards(tenant)))
					}
					if got := w.Announced(tenant); len(got) != 1 || !strings.HasPrefix(got[0], c.announced) {
						t.Errorf("%s: announced %q", tenant, got)
					}
				}
			})
		})
	}
}

// A worker is cut off from NATS while Papermap refuses: the tenant is failed, the dead letter not
// stored. The same message comes again, to another worker, and ends the same way without another
// request.
func TestRedeliveredRefusalBecomesItsDeadLetterWithoutAnotherRequest(t *testing.T) {
	o := options{Faults: []string{"on=create status=400"}, NoWorker: true}
	onBoth(t, o, func(t *testing.T, w *world) {
		first := w.StartWorker()
		release := w.API.HoldAnswers()
		sequence := w.Publish(events.TypeTenantCreated, object("tenant_id", "t", "name", "N"))
		w.Eventually(w.Sent(1))
		if w.Shared() {
			w.StartWorker() // the replica that gets the message next
		}
		first.CloseBus()
		release()
		w.Eventually(w.Are(repo.Failed, "t"))
		first.Stop()
		if n := len(w.DeadLetters()); n != 0 || w.Handled() == nil {
			t.Fatalf("%d dead letters, handled: %v: the worker was not cut off", n, w.Handled())
		}
		if !w.Shared() {
			w.StartWorker()
		}
		workertest.Eventually(t, takeUp, w.Handled)
		if letters := w.DeadLetters(); len(letters) != 1 ||
			letters[0].Header.Get("Papermap-Side-Effect") != "none" ||
			letters[0].Header.Get("Papermap-Error-Code") != "API_REFUSED" ||
			letters[0].Header.Get("Papermap-Stream-Sequence") != strconv.FormatUint(sequence, 10) {
			t.Errorf("dead letters %+v", letters)
		}
		if w.Creates("t") != 1 || w.Status("t") != repo.Failed || w.Mapping("t").Generation != 1 {
			t.Errorf("%d requests, mapping %+v", w.Creates("t"), w.Mapping("t"))
		}
		w.Eventually(w.Relayed)
		if got := w.Announced("t"); len(got) != 1 || !strings.HasPrefix(got[0], "dashboard.failed") {
			t.Errorf("announced %q", got)
		}
	})
}

// poison are events that can never be handled: code, body, headers.
var poison = [][]string{
	{"INVALID_JSON", ``},
	{"INVALID_JSON", `null`},
	{"INVALID_JSON", `["tenant_id"]`},
	{"INVALID_JSON", `{"tenant_id":"bad","name":"N","tenant_id":"bad2"}`},
	{"INVALID_JSON", `{"tenant_id":"bad","name":"N"}{}`},
	{"INVALID_JSON", "{\"tenant_id\":\"bad\xff\",\"name\":\"N\"}"},
	{"INVALID_FIELD", `{"tenant_id":7,"name":"N"}`},
	{"INVALID_FIELD", `{"tenant_id":" bad","name":"N"}`},
	{"INVALID_ENVELOPE", `{"tenant_id":"bad","name":"N"}`, "ce-specversion", "1.0", "ce-id", "1", "ce-type",
		"tenant.deleted"},
	{"UNKNOWN_WORKSPACE", `{"tenant_id":"bad","name":"N","workspace_id":"ws-none"}`},
}

// poisonEvent is an event that can never be handled.
type poisonEvent struct {
	name, eventType, data string
	headers               []string // pairs
}

func poisons() []poisonEvent {
	const good, ofType = `{"tenant_id":"poison","name":"P"}`, `"type":"tenant.created"`
	created := func(name, data string, headers ...string) poisonEvent {
		return poisonEvent{name, events.TypeTenantCreated, data, headers}
	}
	binary := func(name string, headers ...string) poisonEvent { return created(name, good, headers...) }
	structured := func(name, data string) poisonEvent {
		return created(name, data, "content-type", "application/cloudevents+json")
	}
	nested := strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001)
	return []poisonEvent{
		created("empty", ""), created("blank", " \n"), created("null", "null"), created("array", "[]"),
		created("string", `"x"`), created("number", "7"),
		created("no fields", "{}"), created("two objects", good+good), created("trailing text", good+"x"),
		created("cut off", good[:20]),
		created("duplicate names", `{"tenant_id":"poison","tenant_id":"poison","name":"P"}`),
		created("case variant", `{"TENANT_ID":"x","tenant_id":"poison","name":"P"}`),
		created("invalid UTF-8", "{\"tenant_id\":\"poison\xff\",\"name\":\"P\"}"),
		created("lone surrogate", `{"tenant_id":"poison\ud800","name":"P"}`),
		created("NUL in the id", `{"tenant_id":"poison\u0000","name":"P"}`),
		created("NUL in the name", `{"tenant_id":"poison","name":"\u0000"}`),
		created("BOM", "\uFEFF"+good), created("UTF-16", "{\x00}\x00"),
		created("too deep", `{"tenant_id":"poison","name":"P","x":`+nested+`}`),
		created("id empty", `{"tenant_id":"","name":"P"}`),
		created("id blank", `{"tenant_id":"  ","name":"P"}`),
		created("id padded", `{"tenant_id":" poison","name":"P"}`),
		created("id too long", `{"tenant_id":"`+strings.Repeat("p", 256)+`","name":"P"}`),
		created("id with CR LF", `{"tenant_id":"poi\r\nson","name":"P"}`),
		created("id a number", `{"tenant_id":7,"name":"P"}`),
		created("id a bool", `{"tenant_id":true,"name":"P"}`),
		created("id an object", `{"tenant_id":{},"name":"P"}`),
		created("id null", `{"tenant_id":null,"name":"P"}`), created("no name", `{"tenant_id":"poison"}`),
		created("name too long", `{"tenant_id":"poison","name":"`+strings.Repeat("n", 500_000)+`"}`),
		created("name null", `{"tenant_id":"poison","name":null}`),
		created("unknown workspace", `{"tenant_id":"poison","name":"P","workspace_id":"ws-nowhere"}`),
		binary("wrong version", "ce-specversion", "0.3", "ce-id", "1", "ce-source", "/x"),
		binary("no id", "ce-specversion", "1.0", "ce-source", "/x"),
		binary("another type", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/x", "ce-type",
			"tenant.deleted"),
		binary("no time", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/x", "ce-time", "yesterday"),
		binary("an id too long", "ce-specversion", "1.0", "ce-id", strings.Repeat("i", 256), "ce-source",
			"/x"),
		binary("a replay without a time", "Papermap-Event-Id", "e", "Papermap-Event-Time", "soon"),
		binary("a replay without an id", "Papermap-Event-Id", ""),
		structured("structured, not JSON", "<event/>"),
		structured("structured, no id", `{"specversion":"1.0","source":"/x",`+ofType+`,"data":`+good+`}`),
		structured("structured, no data", `{"specversion":"1.0","id":"1","source":"/x",`+ofType+`}`),
		structured("structured, base64",
			`{"specversion":"1.0","id":"1","source":"/x",`+ofType+`,"data_base64":"e30="}`),
		structured("structured, data a text",
			`{"specversion":"1.0","id":"1","source":"/x","type":"tenant.created","data":"{}"}`),
		structured("structured, another type",
			`{"specversion":"1.0","id":"1","source":"/x","type":"tenant.resumed","data":`+good+`}`),
		{"suspension without a tenant", events.TypeTenantSuspended, "{}", nil},
		{"deletion of a number", events.TypeTenantDeleted, `{"tenant_id":1}`, nil},
		{"resumption, reason a list", events.TypeTenantResumed, `{"tenant_id":"poison","reason":[]}`, nil},
		{"month 13", events.TypeUsageSync, `{"from_period":"2025-13"}`, nil},
		{"months the wrong way", events.TypeUsageSync, `{"from_period":"2025-02","to_period":"2025-01"}`,
			nil},
		{"an answer of a micro service", events.TypeUsageSync, `{"type":"io.nats.micro.v1.ping_response"}`,
			nil},
	}
}

// The outcome of a create is recorded while the tenant is still its worker's, even if Papermap takes
// longer to answer than any timeout allows.
func TestCreateEndsBeforeItsLease(t *testing.T) {
	virtual(t, options{
		Config: func(c *worker.Config) { c.Timeout = 2 * repo.Lease },
		Faults: []string{"tenant=t count=1 delay=1m"},
	}, func(t *testing.T, w *world) {
		w.Create("t")
		w.Eventually(w.Sent(1))
		started := w.Attempts("t")[0].StartedAt
		time.Sleep(time.Until(started.Add(repo.Lease - 2*time.Second)))
		if got := w.Outcomes("t"); got != "unknown" {
			t.Errorf("outcome %q 2 s before the end of the lease, want unknown", got)
		}
		w.Eventually(w.Are(repo.Active, "t"))
	})
}
