package papermap

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// created2 is a creation's answer in the guide's shape.
const created2 = `{"success":true,"data":{"message":"ok","data":{"dashboard_id":"dash-2"}}}`

func TestAnswerIsClassifiedByTheTable(t *testing.T) {
	nested := strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001)
	for _, row := range []struct {
		status        int
		header        string // "Name: value"
		body          string
		create, probe Class // empty: success
	}{
		{200, "", created, "", ""},
		{201, "", created2, "", ""},
		{200, "Content-Type: application/problem+json; charset=utf-8", created, "", ""},
		{200, "Content-Type: Text/Plain", created, "", ""},
		{200, "Content-Type: text/html", created, Unknown, ""},
		{200, "Content-Type: application/octet-stream", created, Unknown, ""},
		{200, "", "", Unknown, ""},
		{200, "", created[:40], Unknown, ""},
		{200, "", created + "}", Unknown, ""},
		{200, "", "<html>", Unknown, ""},
		{200, "", "null", Unknown, ""},
		{200, "", "[" + created + "]", Unknown, ""},
		{200, "", `{"success":false,"message":"no","data":{"dashboard_id":"d"}}`, Unknown, ""},
		{200, "", `{"success":true}`, Unknown, ""},
		{200, "", `{"success":true,"data":{"dashboard_id":"d"},"x":` + nested + `}`, Unknown, ""},
		{200, "", nested, Unknown, ""},
		{202, "", created, Unknown, ""},
		{204, "", "", Unknown, ""},
		{206, "", created, Unknown, ""},
		{429, "", "", Retryable, Retryable},
		{429, "Retry-After: 60", "", Retryable, Retryable},
		{503, "Retry-After: 60", "", Retryable, Retryable},
		{503, "", "", Unknown, Retryable},
		{500, "", created, Unknown, Retryable},
		{500, "Retry-After: 60", "", Unknown, Retryable},
		{502, "", "<html>", Unknown, Retryable},
		{504, "", "", Unknown, Retryable},
		{599, "", "", Unknown, Retryable},
		{999, "", "", Unknown, Retryable},
		{400, "", nested, Refused, Refused},
		{405, "", "", Refused, Refused},
		{409, "", "", Unknown, Refused},
		{413, "", "", Refused, Refused},
		{422, "", "", Refused, Refused},
		{401, "", `{"error":"Invalid signature"}`, Credentials, Credentials},
		{403, "", "", Credentials, Credentials},
		{404, "", "", Configuration, Configuration},
	} {
		address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil // none is guessed
			if name, value, ok := strings.Cut(row.header, ": "); ok {
				w.Header().Set(name, value)
			}
			w.WriteHeader(row.status)
			_, _ = io.WriteString(w, row.body)
		})
		c := newTestClient(t, address, ClientOptions{})
		_, errCreate := c.CreateDashboard(t.Context(), anyDashboard)
		for _, outcome := range []struct {
			what string
			err  error
			want Class
		}{{"create", errCreate, row.create}, {"probe", c.Probe(t.Context()), row.probe}} {
			e := failed(t, outcome.err)
			if e == nil {
				e = &Error{Status: row.status}
			}
			deferred := row.status == 429 || row.status == 503 && row.header != ""
			if e.Class != outcome.want || e.Status != row.status || e.Deferred != deferred || (e.RetryAfter == time.Minute) != (deferred && row.header != "") {
				t.Errorf("%s: %d %s %.60s: %+v, want %q", outcome.what, row.status, row.header, row.body, e, outcome.want)
			}
		}
		c.Close()
	}
}

func TestAnswerIsBoundedInSize(t *testing.T) {
	var bomb bytes.Buffer
	zip := gzip.NewWriter(&bomb)
	_, _ = io.WriteString(zip, created+strings.Repeat(" ", maxUsageBody))
	_ = zip.Close()
	for name, answer := range map[string]http.HandlerFunc{
		"gzip bomb": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "gzip" {
				t.Error("gzip is not accepted")
			}
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb.Bytes())
		},
		"endless body": func(w http.ResponseWriter, _ *http.Request) {
			_, err := io.WriteString(w, created)
			for spaces := bytes.Repeat([]byte(" "), 1<<16); err == nil; {
				_, err = w.Write(spaces)
			}
		},
	} {
		address, _ := serve(t, answer)
		c := newTestClient(t, address, ClientOptions{})
		_, err := c.CreateDashboard(t.Context(), anyDashboard)
		if e := failed(t, err); e == nil || e.Class != Unknown || !strings.Contains(e.Message, "longer than 1048576 bytes") {
			t.Errorf("%s: create: %v", name, err)
		}
		err = c.Probe(t.Context())
		if e := failed(t, err); e == nil || e.Class != Retryable || !strings.Contains(e.Message, "longer than 8388608 bytes") {
			t.Errorf("%s: probe: %v", name, err)
		}
	}
}

func TestDashboardIDIsFoundInBothShapesAndOnlyBelievedWhenValid(t *testing.T) {
	longest := strings.Repeat("ü", MaxDashboardID)
	for body, want := range map[string]string{
		created:  "dash-1",
		created2: "dash-2",
		`{"data":{"dashboard_id":"a","data":{"dashboard_id":"b"}}}`: "a",
		`{"data":{"dashboard_id":"","data":{"dashboard_id":"b"}}}`:  "b",
		`{"data":{"dashboard_id":7,"data":{"dashboard_id":"b"}}}`:   "b",
		`{"data":{"data":{"data":{"dashboard_id":"c"}}}}`:           "",
		`{"data":{"dashboard_id":7}}`:                               "",
		`{"data":{"dashboard_id":null}}`:                            "",
		`{"data":{"dashboard_id":{}}}`:                              "",
		`{"data":{"dashboard_id":"a\u0000"}}`:                       "",
		`{"data":{"dashboard_id":"a\u0085"}}`:                       "",
		`{"data":{"dashboard_id":"a\ud800"}}`:                       "",
		"{\"data\":{\"dashboard_id\":\"a\xff\"}}":                   "",
		`{"data":{"dashboard_id":"` + longest + `"}}`:               longest,
		`{"data":{"dashboard_id":"` + longest + `x"}}`:              "",
		`{"data":["dashboard_id","a"]}`:                             "",
		`{"data":"a"}`:                                              "",
		`{"dashboard_id":"a"}`:                                      "",
		`{"success":null,"data":{"dashboard_id":"a"}}`:              "a",
		"{\"message\":\"\xff\",\"message\":\"twice\",\"success\":1,\"data\":{\"dashboard_id\":\"a\"}}": "a",
	} {
		got, err := createdID(answer{status: 200, header: http.Header{}, body: []byte(body)})
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", body, got, err, want)
		}
	}
}

func TestRetryAfterIsClamped(t *testing.T) {
	now := time.Date(2025, 1, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"1": time.Second, "90": 90 * time.Second, "900": 15 * time.Minute, "901": 15 * time.Minute, " 7 ": 7 * time.Second,
		"0": time.Second, "-5": time.Second, "": time.Second, "soon": time.Second, "1.5": time.Second, "1e3": time.Second,
		"9223372036": 15 * time.Minute, "9223372036854775807": 15 * time.Minute,
		"99999999999999999999999": 15 * time.Minute, "-99999999999999999999999": time.Second,
		now.Add(time.Minute).Format(http.TimeFormat):                  time.Minute,
		now.Add(time.Minute).Format("Monday, 02-Jan-06 15:04:05 GMT"): time.Minute,
		now.Add(time.Minute).Format(time.ANSIC):                       time.Minute,
		now.Add(-time.Hour).Format(http.TimeFormat):                   time.Second,
		now.AddDate(900, 0, 0).Format(http.TimeFormat):                15 * time.Minute,
		"Wed, 01 Jan 0001 12:00:00 GMT":                               time.Second,
		"Wed, 32 Jan 2025 12:00:00 GMT":                               time.Second,
	} {
		if got, present := parseRetryAfter(http.Header{"Retry-After": {value}}, now); got != want || !present {
			t.Errorf("%q: %v, %v, want %v", value, got, present, want)
		}
	}
	if got, present := parseRetryAfter(http.Header{}, now); got != 0 || present {
		t.Errorf("without the header: %v, %v", got, present)
	}
}

func TestRetryAfterDateIsMeasuredByTheServersClock(t *testing.T) {
	ours := time.Date(2025, 1, 1, 12, 0, 0, 0, time.UTC)
	address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", ours.Add(time.Hour).Format(http.TimeFormat))
		w.Header().Set("Retry-After", ours.Add(time.Hour+time.Minute).Format(http.TimeFormat))
		w.WriteHeader(http.StatusTooManyRequests)
	})
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return ours }})
	if e := failed(t, c.Probe(t.Context())); e.RetryAfter != time.Minute {
		t.Error(e.RetryAfter)
	}
}

func TestReasonOfARefusalIsReadLeniently(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":"Bad","code":"E1","status":400}`:                  "E1|Bad",
		`{"success":false,"message":"Bad title","status_code":400}`: "|Bad title",
		`{"message":"","error":"second"}`:                           "|second",
		`{"message":null,"detail":"third","code":17}`:               "17|third",
		`{"error":{"message":"inner","code":"E2"}}`:                 "E2|inner",
		`{"detail":[{"loc":["title"],"msg":"too long"}]}`:           `|[{"loc":["title"],"msg":"too long"}]`,
		"{\"message\":\"two\\nlines\\u0000\\u2028\xff\"}":           "|two lines  \ufffd",
		`{"message":"` + strings.Repeat("ü", 301) + `"}`:            "|" + strings.Repeat("ü", 299) + "…",
		`{"message":"x","code":"` + strings.Repeat("c", 65) + `"}`:  strings.Repeat("c", 63) + "…|x",
		"":                         "|Bad Request",
		`{}`:                       "|Bad Request: {}",
		`{"message":`:              `|Bad Request: {"message":`,
		"<html>\r\n<b>no</b>":      "|Bad Request: <html>  <b>no</b>",
		strings.Repeat("<p>", 100): "|Bad Request: " + strings.Repeat("<p>", 26) + "<…",
	} {
		e := failure(answer{status: 400, statusLine: "400 Bad Request", header: http.Header{}, body: []byte(body)}, Unknown, time.Time{}, strings.NewReplacer())
		if got := e.Code + "|" + e.Message; got != want {
			t.Errorf("%.80s: %q, want %q", body, got, want)
		}
	}
}

func TestNoSecretIsEchoedIntoAnError(t *testing.T) {
	var signature string
	secrets := func() string {
		return strings.Join([]string{"ak_canary_id", "sk_canary_secret", "sk_canary_embed", signature}, " ")
	}
	long := strings.Repeat("x", maxMessage-20)
	for name, reply := range map[string]func() string{
		"message": func() string {
			return fmt.Sprintf("400 Bad\r\n\r\n{%q:%q,%q:%q}", "message", secrets(), "code", secrets())
		},
		"across the cut": func() string { return fmt.Sprintf("400 Bad\r\n\r\n{%q:%q}", "message", long+signature) },
		"junk":           func() string { return "500 Bad\r\n\r\n<p>" + signature + secrets() },
		"status line":    func() string { return "418 " + secrets() + "\r\n\r\n" },
		"status code":    func() string { return secrets() + "\r\n\r\n" },
		"header":         func() string { return "200 OK\r\n" + secrets() + "\r\n\r\n" },
		"redirect":       func() string { return "302 Found\r\nLocation: http://x/?" + secrets() + "\r\n\r\n" },
		"success false":  func() string { return fmt.Sprintf("200 OK\r\n\r\n{%q:false,%q:%q}", "success", "message", secrets()) },
		"expired": func() string {
			return fmt.Sprintf("401 No\r\n\r\n{%q:%q,%q:%q}", "code", "TOKEN_EXPIRED", "error", secrets())
		},
	} {
		address, _ := serveRaw(t, func(conn *net.TCPConn, next func() bool) {
			if next() {
				_, _ = io.WriteString(conn, "HTTP/1.1 "+reply())
			}
		})
		now := time.Unix(1735689600, 0)
		signature = Sign(NewSecret("sk_canary_secret"), "ws-1", now.Add(RequestLife).Unix())
		c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return now }})
		_, err := c.CreateDashboard(t.Context(), anyDashboard)
		e := failed(t, err)
		if e == nil {
			t.Fatalf("%s: no error", name)
		}
		for _, secret := range []string{"canary", signature[:8]} {
			if strings.Contains(fmt.Sprintf("%v %+v", e, *e), secret) {
				t.Errorf("%s: %v", name, e)
			}
		}
		if name != "expired" && name != "across the cut" && !strings.Contains(e.Message, "[redacted]") {
			t.Errorf("%s: the secrets did not come this way: %v", name, e)
		}
		if utf8.RuneCountInString(e.Message) > maxMessage {
			t.Errorf("%s: message has %d characters", name, utf8.RuneCountInString(e.Message))
		}
	}
}

func TestSecretThatBeginsLikeAnotherIsRedactedWhole(t *testing.T) {
	c := NewClient(Workspace{Key: KeyPair{ID: "abc", Secret: NewSecret("abcdef")}}, ClientOptions{})
	if got := c.redactor("abcd").Replace("<abcdef abcd abc>"); got != "<[redacted] [redacted] [redacted]>" {
		t.Error(got)
	}
}

// expiryServer refuses what has expired by its own clock and keeps what the accepted and refused requests were valid until.
func expiryServer(t *testing.T, clock func() time.Time) (address string, untils func() []int64) {
	t.Helper()
	var mu sync.Mutex
	var all []int64
	address, _ = serve(t, func(w http.ResponseWriter, r *http.Request) {
		until, err := strconv.ParseInt(r.Header.Get("X-Valid-Until"), 10, 64)
		if err != nil || r.Header.Get("X-Signature") != Sign(NewSecret("sk_canary_secret"), "ws-1", until) {
			t.Errorf("signature of %q is wrong", r.Header.Get("X-Valid-Until"))
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, until)
		w.Header()["Date"] = nil
		if now := clock(); !now.IsZero() {
			w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
			if until > now.Unix() {
				_, _ = io.WriteString(w, created)
				return
			}
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":"Token expired","code":"TOKEN_EXPIRED","status":401}`)
	})
	return address, func() []int64 {
		mu.Lock()
		defer mu.Unlock()
		seen := all
		all = nil
		return seen
	}
}

func TestExpiredSignatureIsMadeAgainByTheServersClock(t *testing.T) {
	const start = 1735689600
	ours, servers := time.Unix(start, 0), time.Unix(start, 0).Add(time.Hour)
	address, untils := expiryServer(t, func() time.Time { return servers })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return ours }})
	if _, known := c.ClockSkew(); known {
		t.Error("skew known before any answer")
	}
	step := func(what string, want ...int64) {
		t.Helper()
		if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := untils(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: valid until %v, want %v", what, got, want)
		}
	}
	step("an hour behind", start+300, start+3600+300)
	if skew, known := c.ClockSkew(); skew != time.Hour || !known {
		t.Errorf("skew %v, %v", skew, known)
	}
	step("the correction is kept", start+3600+300)
	ours = servers
	step("the host's clock is set", start+7200+300)
	step("the correction follows", start+3600+300)
}

func TestServersDateAloneDoesNotChangeWhatIsSigned(t *testing.T) {
	const start = 1735689600
	address, untils := expiryServer(t, func() time.Time { return time.Unix(start-3600, 0) })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(start, 0) }})
	for range 2 {
		if err := c.Probe(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := untils(); got[1] != start+300 {
		t.Errorf("valid until %v", got)
	}
	if skew, _ := c.ClockSkew(); skew != -time.Hour {
		t.Errorf("skew %v", skew)
	}
}

func TestProbeAlsoSignsAgain(t *testing.T) {
	address, untils := expiryServer(t, func() time.Time { return time.Unix(1735689600+3600, 0) })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(1735689600, 0) }})
	if err := c.Probe(t.Context()); err != nil || len(untils()) != 2 {
		t.Error(err)
	}
}

func TestSignatureThatStaysExpiredIsLostCredentialsAndNamesTheSkew(t *testing.T) {
	const start = 1735689600
	for _, row := range []struct {
		skew    time.Duration // 0: the server sends no Date
		until   int64         // what is signed the second time
		message string
	}{
		{30 * time.Hour, start + 86400 + 300, "30h0m0s"},
		{0, start + 300, "set the host's clock"},
	} {
		address, untils := expiryServer(t, func() time.Time {
			if row.skew == 0 {
				return time.Time{}
			}
			return time.Unix(start, 0).Add(row.skew)
		})
		c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(start, 0) }})
		_, err := c.CreateDashboard(t.Context(), anyDashboard)
		e := failed(t, err)
		if e == nil || e.Class != Credentials || e.Code != "TOKEN_EXPIRED" || !strings.Contains(e.Message, row.message) || !strings.Contains(e.Message, "set the host's clock") {
			t.Errorf("skew %v: %v", row.skew, err)
		}
		if got := untils(); len(got) != 2 || got[1] != row.until {
			t.Errorf("skew %v: valid until %v, want two, the last %d", row.skew, got, row.until)
		}
	}
}

func TestOneClientServesManyAtOnce(t *testing.T) {
	address, _ := expiryServer(t, func() time.Time { return time.Unix(1735689600+3600, 0) })
	c := newTestClient(t, address, ClientOptions{Now: func() time.Time { return time.Unix(1735689600, 0) }})
	var calls sync.WaitGroup
	for range 64 {
		calls.Go(func() {
			if _, err := c.CreateDashboard(t.Context(), anyDashboard); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
}
