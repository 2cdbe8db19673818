package simulator

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/time/rate"
	"pgregory.net/rapid"

	"papermap-worker/papermap"
)

func TestFaultIsWhatAClientSees(t *testing.T) {
	const expired = `{"error":"Token expired","code":"TOKEN_EXPIRED","status":401}`
	for _, c := range []struct {
		fault  string
		status int    // 0: no answer, the connection was closed
		body   string // exact; "*" for any
		header map[string]string
		made   bool // the dashboard is there
	}{
		{"status=503", 503, `{"success":false,"message":"Simulated fault: Service Unavailable","status_code":503}`, map[string]string{"Retry-After": ""}, false},
		{"status=503 retry-after=1", 503, "*", map[string]string{"Retry-After": "1", "Content-Type": "application/json"}, false},
		{`status=429 retry-after="Wed, 21 Oct 2015 07:28:00 GMT"`, 429, "*", map[string]string{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, false},
		{"status=500 effect=true", 500, "*", nil, true},
		{"status=200", 200, "", nil, false},
		{"status=200 effect=true", 200, "", nil, true},
		{"status=204 effect=true", 204, "", nil, true},
		{"status=302", 302, "", map[string]string{"Location": createPath}, false},
		{`status=502 body="<h1>Bad gateway</h1>" content-type=text/html`, 502, "<h1>Bad gateway</h1>", map[string]string{"Content-Type": "text/html"}, false},
		{`body={"success":false} effect=true`, 200, `{"success":false}`, nil, true},
		{"status=401 body=`" + expired + "`", 401, expired, nil, false},
		{"drop=before", 0, "", nil, false},
		{"drop=after", 0, "", nil, true},
		{"on=usage status=500", 200, "*", nil, true},
		{"on=create status=500", 500, "*", nil, false},
		{"tenant=org-2 status=500", 200, "*", nil, true},
		{"tenant=org-1 status=500", 500, "*", nil, false},
		{"title=Acme status=500", 500, "*", nil, false},
		{"title=acme status=500", 200, "*", nil, true},
	} {
		t.Run(c.fault, func(t *testing.T) {
			f, err := ParseFault(c.fault)
			if err != nil {
				t.Fatal(err)
			}
			s, address := start(t, Options{Faults: []Fault{f}})
			h := good()
			h.Set("X-Tenant-ID", "org-1")
			r := send("POST", address+createPath, h, createText("Dashboard - Acme", ""))
			if c.status == 0 {
				if !errors.Is(r.err, io.EOF) {
					t.Errorf("got status %d and error %v, want EOF", r.status, r.err)
				}
			} else if r.err != nil || r.status != c.status || c.body != "*" && r.body != c.body {
				t.Errorf("got %d %q (%v), want %d %q", r.status, r.body, r.err, c.status, c.body)
			}
			for name, want := range c.header {
				if got := r.header.Get(name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			if made := len(s.Dashboards()) == 1; made != c.made {
				t.Errorf("dashboard made: %v, want %v", made, c.made)
			}
			e := s.Log()[0]
			if e.Status != c.status || (e.DashboardID != "") != c.made {
				t.Errorf("logged %+v", e)
			}
		})
	}
}

func TestTruncatedAnswerEndsInTheMiddleOfTheBody(t *testing.T) {
	s, address := start(t, Options{Faults: []Fault{{Truncate: true}}})
	r := send("POST", address+createPath, good(), createText("T", ""))
	if r.status != 200 || !errors.Is(r.err, io.ErrUnexpectedEOF) || !strings.HasPrefix(r.body, `{"success":true`) {
		t.Fatalf("got %d %q and error %v, want half of an answer", r.status, r.body, r.err)
	}
	s.SetFaults()
	whole := send("POST", address+createPath, good(), createText("T", ""))
	if whole.err != nil || len(r.body) != len(whole.body)/2 {
		t.Errorf("got %d bytes of %d (%v), want half", len(r.body), len(whole.body), whole.err)
	}
	if n := len(s.Dashboards()); n != 2 {
		t.Errorf("%d dashboards, want both", n)
	}
}

func TestDelayedAnswerIsLoggedBeforeTheWaitAndGivenUpWithItsClient(t *testing.T) {
	request := func(ctx context.Context) *http.Request {
		q := httptest.NewRequestWithContext(ctx, "POST", createPath, strings.NewReader(createText("T", "")))
		q.Header = good()
		return q
	}
	for _, leave := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Options{Workspaces: []papermap.Workspace{{ID: "ws-a", Key: apiKey}}, Faults: []Fault{{Delay: time.Hour}}, Now: func() time.Time { return epoch }})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began, done := time.Now(), make(chan time.Duration, 1)
			go func() {
				s.ServeHTTP(httptest.NewRecorder(), request(ctx))
				done <- time.Since(began)
			}()
			synctest.Wait()
			if len(s.Dashboards()) != 1 || len(s.Log()) != 1 || len(done) != 0 {
				t.Errorf("during the wait: %d dashboards, %d entries, answered: %v", len(s.Dashboards()), len(s.Log()), len(done) == 1)
			}
			want := time.Hour
			if leave {
				cancel()
				want = 0
			}
			if took := <-done; took != want {
				t.Errorf("client left %v: took %v, want %v", leave, took, want)
			}
		})
	}
}

func TestFirstRuleThatHitsApplies(t *testing.T) {
	s, address := start(t, Options{Faults: []Fault{
		{Status: 500, On: onUsage}, {Status: 501, Count: 2}, {Status: 502, Count: 1}, {Status: 503, Title: "never"},
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

func TestSameSeedHitsTheSameRequests(t *testing.T) {
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
	if a, b := count["rate=0.2 status=503"], count["rate=0.5 status=500"]; a < 35 || a > 85 || b < 90 || b > 150 {
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
		{`title="Acme \"Corp\"" status=500 effect=true`, Fault{Title: `Acme "Corp"`, Status: 500, Effect: true}},
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
	for text, want := range map[string]string{
		"status=503 retry_after=1":         `unknown key "retry_after"; known keys: body, bomb, content-type, count, delay, drop, effect, endless, header-bytes, header-delay, on, rate, retry-after, status, tenant, title, truncate`,
		"":                                 "does nothing: give status, body, drop, truncate, endless, bomb, header-delay, header-bytes or delay",
		"on=create rate=0.5":               "does nothing: give status, body, drop, truncate, endless, bomb, header-delay, header-bytes or delay",
		"drop":                             `"drop" is not key=value`,
		"status=500 =x":                    `"=x" is not key=value`,
		"on=token drop=after":              "on=token: must be create, usage or any",
		"status=abc":                       "status=abc: must be an HTTP status from 200 to 599",
		"status=101":                       "status=101: must be an HTTP status from 200 to 599",
		"status=500 rate=0":                "rate=0: must be a number above 0 and at most 1",
		"status=500 rate=NaN":              "rate=NaN: must be a number above 0 and at most 1",
		"status=500 rate=1.1":              "rate=1.1: must be a number above 0 and at most 1",
		"status=500 count=-1":              "count=-1: must be a whole number from 0",
		"delay=5":                          "delay=5: must be a duration above 0 such as 1.5s",
		"delay=-5s":                        "delay=-5s: must be a duration above 0 such as 1.5s",
		"drop=now":                         "drop=now: must be before or after",
		"truncate=maybe":                   "truncate=maybe: must be true or false",
		"status=500 status=501":            `key "status" is given twice`,
		`body="open`:                       `value of "body" is not a Go string`,
		`body="x"y`:                        `value of "body" is not a Go string`,
		"drop=after status=500":            "only one of drop, truncate and status or body can happen",
		"drop=after truncate=true":         "only one of drop, truncate, endless, bomb, header-delay and header-bytes can happen",
		"endless=true bomb=true":           "only one of drop, truncate, endless, bomb, header-delay and header-bytes can happen",
		"header-delay=1s header-bytes=9":   "only one of drop, truncate, endless, bomb, header-delay and header-bytes can happen",
		"header-delay=0s":                  "header-delay=0s: must be a duration above 0 such as 1.5s",
		"header-bytes=0":                   "header-bytes=0: must be a whole number from 1 to 16777216",
		"header-bytes=16777217":            "header-bytes=16777217: must be a whole number from 1 to 16777216",
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
		switch rapid.IntRange(0, 7).Draw(t, "kind") {
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
			f.Body, f.ContentType, f.RetryAfter = text.Draw(t, "body"), text.Draw(t, "type"), text.Draw(t, "after")
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

func TestSetFaultsRefusesRulesThatMakeNoSense(t *testing.T) {
	s := New(Options{Faults: []Fault{{On: onAny, Status: 503}}})
	for _, f := range []Fault{
		{}, {On: "token", Status: 500}, {Status: 99}, {Status: 600}, {Rate: 1.5, Status: 500}, {Rate: -1, Status: 500}, {Rate: math.NaN(), Status: 500},
		{Count: -1, Status: 500}, {Delay: -1}, {Delay: -1, Status: 500}, {Drop: "now"}, {HeaderDelay: -1}, {HeaderBytes: -1}, {Effect: true}, {Drop: "after", Bomb: true},
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

func TestClientEndsWithTheRightClassInBoundedMemoryForEachFaultOfTheAnswer(t *testing.T) {
	for fault, c := range map[string]struct {
		create, usage papermap.Class
		says          string // of usage
	}{
		"header-delay=300ms":                  {papermap.Unknown, papermap.Retryable, "not done within 700ms"},
		"header-delay=1h":                     {papermap.Unknown, papermap.Retryable, "not done within 700ms"},
		"header-delay=1ms":                    {"", "", ""},
		"header-bytes=1048576":                {papermap.Unknown, papermap.Retryable, "server response headers exceeded"},
		"header-bytes=1000":                   {"", "", ""},
		"endless=true":                        {papermap.Unknown, papermap.Retryable, "longer than 8388608 bytes"},
		"endless=true status=400 body=broken": {papermap.Refused, papermap.Refused, "Bad Request: broken"},
		"bomb=true":                           {papermap.Unknown, papermap.Retryable, "longer than 8388608 bytes"},
		"bomb=true status=500":                {papermap.Unknown, papermap.Retryable, "Internal Server Error"},
		"delay=1h":                            {papermap.Unknown, papermap.Retryable, "not done within 700ms"},
	} {
		t.Run(fault, func(t *testing.T) {
			f, err := ParseFault(fault)
			if err != nil {
				t.Fatal(err)
			}
			_, address := start(t, Options{Faults: []Fault{f}})
			timeout := time.Minute // reading 8 MiB takes its time under the race detector
			if strings.Contains(c.says, "not done within 700ms") {
				timeout = 700 * time.Millisecond
			}
			call := func(what string, want papermap.Class, says string, do func(*papermap.Client) error) {
				client := papermap.NewClient(papermap.Workspace{ID: "ws-a", APIURL: address, Key: apiKey}, papermap.ClientOptions{
					Timeout: timeout, Now: func() time.Time { return epoch },
					Limiter: rate.NewLimiter(rate.Every(time.Hour), 1), // one try
				})
				defer client.Close()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := do(client)
				runtime.ReadMemStats(&after)
				if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 {
					t.Errorf("%s: client and simulator allocated %d MiB", what, grown>>20)
				}
				var e *papermap.Error
				if want == "" {
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
				} else if !errors.As(err, &e) || e.Class != want || !strings.Contains(e.Message, says) {
					t.Errorf("%s: %v, want %s: …%s…", what, err, want, says)
				}
			}
			call("create", c.create, "", func(client *papermap.Client) error {
				_, err := client.CreateDashboard(t.Context(), papermap.NewDashboard{TenantID: "t", Title: "T"})
				return err
			})
			call("usage", c.usage, c.says, func(client *papermap.Client) error {
				_, err := client.Usage(t.Context(), papermap.UsageQuery{Page: 1, PerPage: 100})
				return err
			})
		})
	}
}

func TestCloseEndsAnAnswerWhoseHeaderIsStillComing(t *testing.T) {
	s := New(Options{Faults: []Fault{{HeaderDelay: time.Hour}}})
	server, err := Serve(s, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "POST "+createPath+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	line := make([]byte, len("HTTP/1.1 401 Unauthorized\r\n"))
	if _, err := io.ReadFull(conn, line); err != nil || string(line) != "HTTP/1.1 401 Unauthorized\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	server.Close()
	if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
		t.Errorf("after Close: %q, %v", rest, err)
	}
}
