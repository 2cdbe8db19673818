package simulator

import (
	"math"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestFaultIsTheFirstRuleThatHits(t *testing.T) {
	s, address := start(t, Options{Faults: []Fault{
		{Status: 500, On: onUsage}, {Status: 501, Count: 2}, {Status: 502, Count: 1},
		{Status: 503, Title: "never"},
	}})
	statuses := func() (got []int) {
		for range 4 {
			got = append(got, send("POST", address+createPath, good(), createText("T", "")).status)
		}
		return got
	}
	if diff := cmp.Diff([]int{501, 501, 502, 200}, statuses()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	s.SetFaults(Fault{Status: 504, Count: 1})
	if diff := cmp.Diff([]int{504, 200, 200, 200}, statuses()); diff != "" {
		t.Errorf("after SetFaults (-want +got)\n%s", diff)
	}
	for i, want := range []string{"count=2 status=501", "count=2 status=501", "count=1 status=502", ""} {
		if got := s.Log()[i].Fault; got != want {
			t.Errorf("entry %d names the fault %q, want %q", i+1, got, want)
		}
	}
}

func TestFaultsHitTheSameRequestsWithTheSameSeed(t *testing.T) {
	run := func(seed uint64) (faults []string) {
		s := New(Options{Seed: seed, Faults: []Fault{{Rate: 0.2, Status: 503}, {Rate: 0.5, Status: 500}}})
		for range 300 {
			s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", createPath, nil))
		}
		for _, e := range s.Log() {
			faults = append(faults, e.Fault)
		}
		return faults
	}
	first := run(1)
	if diff := cmp.Diff(first, run(1)); diff != "" {
		t.Errorf("same seed, other choices:\n%s", diff)
	}
	if cmp.Equal(first, run(2)) {
		t.Error("the seed makes no difference")
	}
	count := map[string]int{}
	for _, f := range first {
		count[f]++
	}
	// Of 300: 60 by the first rule, half of the other 240 by the second.
	if a, b := count["rate=0.2 status=503"], count["rate=0.5 status=500"]; a < 35 || a > 85 || b < 90 ||
		b > 150 {
		t.Errorf("rates are off: %v", count)
	}
}

func TestParseFaultReadsEveryKey(t *testing.T) {
	for _, c := range []struct {
		text string
		want Fault
	}{
		{"status=503 retry-after=1 rate=0.1", Fault{Status: 503, RetryAfter: "1", Rate: 0.1}},
		{"  drop=after\trate=0.05\n", Fault{Drop: "after", Rate: 0.05}},
		{"on=create drop=before count=3", Fault{On: "create", Drop: "before", Count: 3}},
		{"on=usage truncate=true", Fault{On: "usage", Truncate: true}},
		{"on=any delay=1.5s tenant=org-7", Fault{Delay: 1500 * time.Millisecond, Tenant: "org-7"}},
		{`title="Acme \"Corp\"" status=500 effect=true`,
			Fault{Title: `Acme "Corp"`, Status: 500, Effect: true}},
		{"title=`a \"b`  delay=1m", Fault{Title: `a "b`, Delay: time.Minute}},
		{`body={"a":"b=c"} content-type=text/html`, Fault{Body: `{"a":"b=c"}`, ContentType: "text/html"}},
		{"endless=true status=500", Fault{Endless: true, Status: 500}},
		{"bomb=true on=usage", Fault{Bomb: true, On: onUsage}},
		{"header-delay=2s delay=1s", Fault{HeaderDelay: 2 * time.Second, Delay: time.Second}},
		{"header-bytes=1048576", Fault{HeaderBytes: 1 << 20}},
		{`delay=1s status=500 tenant="" effect=false`, Fault{Delay: time.Second, Status: 500}},
	} {
		got, err := ParseFault(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.text, diff)
		}
	}
}

func TestParseFaultNamesWhatIsWrong(t *testing.T) {
	const nothing = "does nothing: give status, body, drop, truncate, endless, bomb, " +
		"header-delay, header-bytes, bom, interim, idle-close, idle-408 or delay"
	const headerBytes = "must be a whole number from 1 to 16777216"
	const oneWay = "only one of drop, truncate, endless, bomb, header-delay and header-bytes can happen"
	const keys = "body, bom, bomb, content-type, count, delay, drop, effect, endless, header-bytes, " +
		"header-delay, idle-408, idle-close, interim, on, rate, retry-after, status, tenant, title, truncate"
	for text, want := range map[string]string{
		"status=503 retry_after=1":       `unknown key "retry_after"; known keys: ` + keys,
		"":                               nothing,
		"on=create rate=0.5":             nothing,
		"drop":                           `"drop" is not key=value`,
		"status=500 =x":                  `"=x" is not key=value`,
		"on=token drop=after":            "on=token: must be create, usage or any",
		"status=abc":                     "status=abc: must be an HTTP status from 200 to 599",
		"status=101":                     "status=101: must be an HTTP status from 200 to 599",
		"status=500 rate=0":              "rate=0: must be a number above 0 and at most 1",
		"status=500 rate=NaN":            "rate=NaN: must be a number above 0 and at most 1",
		"status=500 rate=1.1":            "rate=1.1: must be a number above 0 and at most 1",
		"status=500 count=-1":            "count=-1: must be a whole number from 0",
		"delay=5":                        "delay=5: must be a duration above 0 such as 1.5s",
		"delay=-5s":                      "delay=-5s: must be a duration above 0 such as 1.5s",
		"drop=now":                       "drop=now: must be before or after",
		"truncate=maybe":                 "truncate=maybe: must be true or false",
		"status=500 status=501":          `key "status" is given twice`,
		`body="open`:                     `value of "body" is not a Go string`,
		`body="x"y`:                      `value of "body" is not a Go string`,
		"drop=after status=500":          "only one of drop, truncate and status or body can happen",
		"drop=after truncate=true":       oneWay,
		"endless=true bomb=true":         oneWay,
		"header-delay=1s header-bytes=9": oneWay,
		"header-delay=0s":                "header-delay=0s: must be a duration above 0 such as 1.5s",
		"header-bytes=0":                 "header-bytes=0: " + headerBytes,
		"idle-408=0s":                    "idle-408=0s: must be a duration above 0 such as 1.5s",
		"idle-408=1s idle-close=1s":      "only one of idle-close and idle-408 can happen",

		"header-bytes=16777217":            "header-bytes=16777217: " + headerBytes,
		"status=204 endless=true":          "an answer with status 204 has no body",
		"status=304 body=x":                "an answer with status 304 has no body",
		"on=usage title=x drop=after":      "title belongs to creates",
		"truncate=true body=x":             "only one of drop, truncate and status or body can happen",
		"drop=after effect=true":           "content-type, retry-after and effect belong to status or body",
		"delay=1s retry-after=1":           "content-type, retry-after and effect belong to status or body",
		"truncate=true content-type=x":     "content-type, retry-after and effect belong to status or body",
		"status=500 \u00a0 title=A\u2003B": `"B" is not key=value`,
	} {
		f, err := ParseFault(text)
		if err == nil || !strings.HasSuffix(err.Error(), ": "+want) {
			t.Errorf("%q: error %v, want …%s", text, err, want)
		}
		if f != (Fault{}) {
			t.Errorf("%q: returned %+v with its error", text, f)
		}
	}
}

func TestFaultStringIsReadBackAsTheSameRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		anyBytes := rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })
		text := rapid.OneOf(rapid.String(), anyBytes, rapid.StringMatching("[`\"= a\\\\]{0,5}"))
		f := Fault{
			On:     rapid.SampledFrom([]string{"", onCreate, onUsage}).Draw(t, "on"),
			Tenant: text.Draw(t, "tenant"), Title: text.Draw(t, "title"),
			Rate:  rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(1e-300, 1)).Draw(t, "rate"),
			Count: rapid.IntRange(0, 1<<40).Draw(t, "count"),
			Delay: time.Duration(rapid.Int64Min(0).Draw(t, "delay")),
		}
		if f.On == onUsage {
			f.Title = ""
		}
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			f.Drop = rapid.SampledFrom([]string{"before", "after"}).Draw(t, "drop")
		case 1:
			f.Truncate = true
		case 2:
			f.Delay++
			if f.Delay < 0 {
				f.Delay = 1
			}
		case 3:
			f.Status = rapid.IntRange(200, 599).Draw(t, "status")
			f.Body, f.ContentType, f.RetryAfter = text.Draw(t, "body"), text.Draw(t, "type"),
				text.Draw(t, "after")
			f.Effect = rapid.Bool().Draw(t, "effect")
			if f.Status == 204 || f.Status == 304 {
				f.Body = ""
			}
		case 4:
			f.Endless = true
		case 5:
			f.Bomb = true
		case 6:
			f.HeaderDelay = time.Duration(rapid.Int64Min(1).Draw(t, "header delay"))
		case 7:
			f.HeaderBytes = rapid.IntRange(1, 1<<24).Draw(t, "header bytes")
		case 8:
			f.BOM, f.IdleClose = true, time.Duration(rapid.Int64Min(0).Draw(t, "idle close"))
		case 9:
			f.Interim, f.Idle408 = true, time.Duration(rapid.Int64Min(0).Draw(t, "idle 408"))
		}
		got, err := ParseFault(f.String())
		if err != nil {
			t.Fatal(err)
		}
		if !utf8.ValidString(f.String()) {
			t.Fatalf("%q would not survive JSON", f)
		}
		if got != f {
			t.Fatalf("%s\n got %+v\nwant %+v", f, got, f)
		}
	})
}

func TestSetFaultsPanicsForRulesThatMakeNoSense(t *testing.T) {
	s := New(Options{Faults: []Fault{{On: onAny, Status: 503}}})
	for _, f := range []Fault{
		{}, {On: "token", Status: 500}, {Status: 99}, {Status: 600}, {Rate: 1.5, Status: 500},
		{Rate: -1, Status: 500}, {Rate: math.NaN(), Status: 500},
		{Count: -1, Status: 500}, {Delay: -1}, {Delay: -1, Status: 500}, {Drop: "now"}, {HeaderDelay: -1},
		{HeaderBytes: -1}, {Effect: true}, {Drop: "after", Bomb: true},
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.HasPrefix(text, "simulator: fault ") {
					t.Errorf("%+v: recovered %q", f, text)
				}
			}()
			s.SetFaults(f)
		}()
	}
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, httptest.NewRequest("POST", createPath, nil)); w.Code != 503 {
		t.Errorf("answered %d: the rules from before are gone", w.Code)
	}
}
