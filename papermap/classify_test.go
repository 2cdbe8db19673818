package papermap

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestClassifyFollowsTheTable(t *testing.T) {
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
		{200, "", "\ufeff" + created, "", ""},
		{200, "", "\ufeff\ufeff" + created, Unknown, ""},
		{200, "", "\ufeff", Unknown, ""},
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
		{408, "", "", Unknown, Retryable},
		{408, "Connection: close", `{"code":"TIMEOUT"}`, Unknown, Retryable},
		{421, "", "", Retryable, Retryable},
		{425, "", "", Retryable, Retryable},
		{407, "", "", Refused, Refused},
		{451, "", "", Refused, Refused},
		{402, "", "", Quota, Quota},
		{402, "", `{"error":"Payment required"}`, Quota, Quota},
		{400, "", `{"code":"QUOTA_EXCEEDED","message":"no"}`, Quota, Quota},
		{403, "", `{"success":false,"error":"insufficient_credits"}`, Quota, Quota},
		{404, "", `{"error":{"code":"CREDITS_EXHAUSTED"}}`, Quota, Quota},
		{409, "", "\ufeff" + `{"code":"PLAN_LIMIT_REACHED"}`, Quota, Quota},
		{400, "", `{"message":"QUOTA_EXCEEDED"}`, Refused, Refused},
		{422, "", `{"error":"the title QUOTA_EXCEEDED is taken","code":"TAKEN"}`, Refused, Refused},
		{422, "", `{"code":"QUOTA_EXCEEDED Ltd"}`, Refused, Refused},
		{422, "", `{"error":"QUOTA_EXCEEDED"`, Refused, Refused},
		{500, "", `{"code":"QUOTA_EXCEEDED"}`, Unknown, Retryable},
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
			if e.Class != outcome.want || e.Status != row.status || e.Deferred != deferred ||
				(e.RetryAfter == time.Minute) != (deferred && row.header != "") {
				t.Errorf("%s: %d %s %.60s: %+v, want %q", outcome.what, row.status, row.header, row.body, e,
					outcome.want)
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
		if e := failed(t, err); e == nil || e.Class != Unknown ||
			!strings.Contains(e.Message, "longer than 1048576 bytes") {
			t.Errorf("%s: create: %v", name, err)
		}
		err = c.Probe(t.Context())
		if e := failed(t, err); e == nil || e.Class != Retryable ||
			!strings.Contains(e.Message, "longer than 8388608 bytes") {
			t.Errorf("%s: probe: %v", name, err)
		}
	}
}

func TestTruncateKeepsWhatFits(t *testing.T) {
	for text, want := range map[string]string{"äb": "äb", "äbc": "äbc", "äbcd": "äb…"} {
		if got := truncate(text, 3); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

func TestRetryAfterIsClamped(t *testing.T) {
	now := time.Date(2025, 1, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"1": time.Second, "90": 90 * time.Second, "900": 15 * time.Minute, "901": 15 * time.Minute,
		" 7 ": 7 * time.Second,
		"0":   time.Second, "-5": time.Second, "": time.Second, "soon": time.Second, "1.5": time.Second,
		"1e3":        time.Second,
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
		got, present := parseRetryAfter(http.Header{"Retry-After": {value}}, now)
		if got != want || !present {
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

func TestReasonIsReadLeniently(t *testing.T) {
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
		a := answer{status: 400, statusLine: "400 Bad Request", header: http.Header{}, body: []byte(body)}
		e := classify(a, Unknown, time.Time{}, redactor{whole: strings.NewReplacer()})
		if got := e.Code + "|" + e.Message; got != want {
			t.Errorf("%.80s: %q, want %q", body, got, want)
		}
	}
}

func TestErrorHoldsNoSecretThatTheServerEchoes(t *testing.T) {
	var signature string
	secrets := func() string {
		return strings.Join([]string{"ak_canary_id", "sk_canary_secret", "sk_canary_embed", signature}, " ")
	}
	long := strings.Repeat("x", maxMessage-20)
	for name, reply := range map[string]func() string{
		"message": func() string {
			return fmt.Sprintf("400 Bad\r\n\r\n{%q:%q,%q:%q}", "message", secrets(), "code", secrets())
		},
		"across the cut": func() string {
			return fmt.Sprintf("400 Bad\r\n\r\n{%q:%q}", "message", long+signature)
		},
		"junk":        func() string { return "500 Bad\r\n\r\n<p>" + signature + secrets() },
		"status line": func() string { return "418 " + secrets() + "\r\n\r\n" },
		"status code": func() string { return secrets() + "\r\n\r\n" },
		"header":      func() string { return "200 OK\r\n" + secrets() + "\r\n\r\n" },
		"redirect": func() string {
			return "302 Found\r\nLocation: http://x/?" + secrets() + "\r\n\r\n"
		},
		"success false": func() string {
			return fmt.Sprintf("200 OK\r\n\r\n{%q:false,%q:%q}", "success", "message", secrets())
		},
		"expired": func() string {
			return fmt.Sprintf("401 No\r\n\r\n{%q:%q,%q:%q}", "code", "TOKEN_EXPIRED", "error", secrets())
		},
	} {
		address, _ := serveRaw(t, func(conn net.Conn, next func() bool) {
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

func TestRedactorHidesASecretThatBeginsLikeAnother(t *testing.T) {
	c := NewClient(Workspace{Key: KeyPair{ID: "abc", Secret: NewSecret("abcdef")}}, ClientOptions{})
	if got := c.redactor("abcd").Replace("<abcdef abcd abc>"); got != "<[redacted] [redacted] [redacted]>" {
		t.Error(got)
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "1", "-1", "900", "99999999999999999999", "1e9", "soon",
		"Wed, 01 Jan 2025 12:01:00 GMT", "Wed, 01 Jan 0001 00:00:00 GMT"} {
		f.Add(s, int64(1735732800))
	}
	f.Fuzz(func(t *testing.T, value string, now int64) {
		d, present := parseRetryAfter(http.Header{"Retry-After": {value}}, time.Unix(now, 0))
		if !present || d < time.Second || d > 15*time.Minute {
			t.Errorf("%q at %d: %v, %v", value, now, d, present)
		}
	})
}
