package worker_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
)

// poisonEvent is an event that can never be handled.
type poisonEvent struct {
	name, eventType, data string
	headers               []string // pairs
}

func poisons() []poisonEvent {
	const good = `{"tenant_id":"poison","name":"P"}`
	created := func(name, data string, headers ...string) poisonEvent {
		return poisonEvent{name, events.TypeTenantCreated, data, headers}
	}
	binary := func(name string, headers ...string) poisonEvent { return created(name, good, headers...) }
	structured := func(name, data string) poisonEvent {
		return created(name, data, "content-type", "application/cloudevents+json")
	}
	nested := strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001)
	return []poisonEvent{
		created("empty", ""), created("blank", " \n"), created("null", "null"), created("array", "[]"), created("string", `"x"`), created("number", "7"),
		created("no fields", "{}"), created("two objects", good+good), created("trailing text", good+"x"), created("cut off", good[:20]),
		created("duplicate names", `{"tenant_id":"poison","tenant_id":"poison","name":"P"}`), created("case variant", `{"TENANT_ID":"x","tenant_id":"poison","name":"P"}`),
		created("invalid UTF-8", "{\"tenant_id\":\"poison\xff\",\"name\":\"P\"}"), created("lone surrogate", `{"tenant_id":"poison\ud800","name":"P"}`),
		created("NUL in the id", `{"tenant_id":"poison\u0000","name":"P"}`), created("NUL in the name", `{"tenant_id":"poison","name":"\u0000"}`),
		created("BOM", "\uFEFF"+good), created("UTF-16", "{\x00}\x00"), created("too deep", `{"tenant_id":"poison","name":"P","x":`+nested+`}`),
		created("id empty", `{"tenant_id":"","name":"P"}`), created("id blank", `{"tenant_id":"  ","name":"P"}`), created("id padded", `{"tenant_id":" poison","name":"P"}`),
		created("id too long", `{"tenant_id":"`+strings.Repeat("p", 256)+`","name":"P"}`), created("id with CR LF", `{"tenant_id":"poi\r\nson","name":"P"}`),
		created("id a number", `{"tenant_id":7,"name":"P"}`), created("id a bool", `{"tenant_id":true,"name":"P"}`), created("id an object", `{"tenant_id":{},"name":"P"}`),
		created("id null", `{"tenant_id":null,"name":"P"}`), created("no name", `{"tenant_id":"poison"}`), created("name too long", `{"tenant_id":"poison","name":"`+strings.Repeat("n", 500_000)+`"}`), created("name null", `{"tenant_id":"poison","name":null}`),
		created("unknown workspace", `{"tenant_id":"poison","name":"P","workspace_id":"ws-nowhere"}`),
		binary("wrong version", "ce-specversion", "0.3", "ce-id", "1", "ce-source", "/x"), binary("no id", "ce-specversion", "1.0", "ce-source", "/x"),
		binary("another type", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/x", "ce-type", "tenant.deleted"),
		binary("no time", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/x", "ce-time", "yesterday"),
		binary("an id too long", "ce-specversion", "1.0", "ce-id", strings.Repeat("i", 256), "ce-source", "/x"),
		binary("a replay without a time", "Papermap-Event-Id", "e", "Papermap-Event-Time", "soon"), binary("a replay without an id", "Papermap-Event-Id", ""),
		structured("structured, not JSON", "<event/>"), structured("structured, no id", `{"specversion":"1.0","source":"/x","type":"tenant.created","data":`+good+`}`),
		structured("structured, no data", `{"specversion":"1.0","id":"1","source":"/x","type":"tenant.created"}`),
		structured("structured, base64", `{"specversion":"1.0","id":"1","source":"/x","type":"tenant.created","data_base64":"e30="}`),
		structured("structured, data a text", `{"specversion":"1.0","id":"1","source":"/x","type":"tenant.created","data":"{}"}`),
		structured("structured, another type", `{"specversion":"1.0","id":"1","source":"/x","type":"tenant.resumed","data":`+good+`}`),
		{"suspension of nobody", events.TypeTenantSuspended, "{}", nil}, {"deletion of a number", events.TypeTenantDeleted, `{"tenant_id":1}`, nil},
		{"resumption, reason a list", events.TypeTenantResumed, `{"tenant_id":"poison","reason":[]}`, nil},
		{"month 13", events.TypeUsageSync, `{"from_period":"2025-13"}`, nil}, {"months the wrong way", events.TypeUsageSync, `{"from_period":"2025-02","to_period":"2025-01"}`, nil},
		{"an answer of a micro service", events.TypeUsageSync, `{"type":"io.nats.micro.v1.ping_response"}`, nil},
	}
}

// odd are tenant ids that are taken as they are, each another tenant.
var odd = []string{
	"a.b", "a*", "a>", "a/b", "o'hara", "drop;table", "two words", "../x", "Acme", "acme", "\u00e9", "e\u0301", "🙂", "%41", "{}", `quo"te`, "<b>", "=1+1", strings.Repeat("é", 255),
}

func TestPoisonDiesAloneAndOddTenantsLive(t *testing.T) {
	onBoth(t, testPoisonDiesAloneAndOddTenantsLive)
}

func testPoisonDiesAloneAndOddTenantsLive(t *testing.T) {
	w := start(t, options{})
	list := poisons()
	if len(list) < 40 {
		t.Fatalf("%d kinds of poison", len(list))
	}
	sequences := map[string]string{} // by the stream's sequence, as the dead letter has it
	var good []string
	for i, p := range list {
		sequence := w.publish(p.eventType, p.data, p.headers...)
		sequences[fmt.Sprint(sequence)] = p.name
		good = append(good, fmt.Sprintf("good-%d", i))
		w.create(good[i])
	}
	w.create(odd...)
	eventually(t, soon, w.are(repo.Active, slices.Concat(good, odd)...))
	eventually(t, soon, func() error {
		if n := len(w.dead()); n < len(list) {
			return fmt.Errorf("%d dead letters, want %d", n, len(list))
		}
		return nil
	})
	eventually(t, soon, w.settled)
	died := map[string]int{}
	for _, d := range w.dead() {
		name := sequences[d.Header.Get("Papermap-Stream-Sequence")]
		died[name]++
		i := slices.IndexFunc(list, func(p poisonEvent) bool { return p.name == name })
		switch {
		case i < 0:
			t.Errorf("dead letter of %q, which is no poison", d.Header.Get("Papermap-Event-Id"))
		case string(d.Data) != list[i].data || d.Header.Get("Papermap-Error") == "" || d.Header.Get("Papermap-Side-Effect") != "none":
			t.Errorf("%s: dead letter %v %.100q", name, d.Header, d.Data)
		}
	}
	for _, p := range list {
		if died[p.name] != 1 {
			t.Errorf("%s died %d times", p.name, died[p.name])
		}
	}
	for _, tenant := range odd {
		if made := w.made(tenant); len(made) != 1 {
			t.Errorf("tenant %q has %d dashboards", tenant, len(made))
		}
	}
	if n, want := w.front.seen(http.MethodPost), len(good)+len(odd); n != want {
		t.Errorf("%d create requests for %d tenants", n, want)
	}
}

// BenchmarkPoison is how long good tenants wait, from publishing to their dashboard at Papermap, alone and with a tenth
// of poison between them.
func BenchmarkPoison(b *testing.B) {
	const tenants = 3000
	p99 := func(poisoned bool) time.Duration {
		var waits []time.Duration
		pipelineLoad(b, func(publish func(eventType, data string) time.Time) map[string]time.Time {
			published := map[string]time.Time{}
			for i := range tenants {
				if poisoned && i%10 == 0 {
					publish(events.TypeTenantCreated, poisons()[i/10%30].data)
				}
				tenant := fmt.Sprintf("t-%d", i)
				published[tenant] = publish(events.TypeTenantCreated, object("tenant_id", tenant, "name", tenant))
				time.Sleep(2 * time.Millisecond) // a steady load, below what the worker can do
			}
			return published
		}, func(wait time.Duration) { waits = append(waits, wait) })
		slices.Sort(waits)
		return waits[len(waits)*99/100]
	}
	var clean, poisoned time.Duration
	for b.Loop() {
		clean += p99(false)
		poisoned += p99(true)
	}
	b.ReportMetric(float64(poisoned)/float64(clean), "p99_of_clean")
	b.ReportMetric(clean.Seconds()*1000/float64(b.N), "clean_ms")
	b.ReportMetric(0, "ns/op")
}
