package console

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestLoginsAreLimited(t *testing.T) {
	virtual(t, Config{Token: token}, nil, func(t *testing.T, w *world) {
		now := time.Now()
		w.console.now = func() time.Time { return now }
		for i := range loginBurst {
			r := w.ask("POST", "/login", url.Values{"token": {"wrong_token_0123456789"}})
			if r.status != http.StatusUnauthorized || cookie(r, sessionCookie) != nil {
				t.Fatalf("try %d: %d", i, r.status)
			}
		}
		r := w.ask("POST", "/login", url.Values{"token": {token}})
		if r.status != http.StatusTooManyRequests || r.header.Get("Retry-After") == "" ||
			cookie(r, sessionCookie) != nil {
			t.Errorf("the next, which is right: %d", r.status)
		}
		now = now.Add(2 * loginEvery)
		w.login()
		if got := w.Logs.String(); !strings.Contains(got, "console log-in failed") ||
			!strings.Contains(got, "too many tries") || !strings.Contains(got, `"console log-in"`) ||
			strings.Contains(got, "wrong_token") {
			t.Errorf("the log does not tell of it, or too much:\n%s", got)
		}
	})
}

func TestSessionIsNewAtEachLoginAndExpires(t *testing.T) {
	virtual(t, Config{Token: token}, nil, func(t *testing.T, w *world) {
		now := time.Now()
		w.console.now = func() time.Time { return now }
		given := &http.Cookie{Name: sessionCookie, Value: "chosen-by-an-attacker"}
		w.session = given
		mine := w.login()
		if mine.Value == given.Value || len(mine.Value) < 40 || !mine.HttpOnly ||
			mine.SameSite != http.SameSiteStrictMode || mine.Path != "/" || mine.Domain != "" || mine.Secure {
			t.Errorf("cookie %+v", mine)
		}
		w.get("/")
		w.session = given
		if r := w.ask("GET", "/", nil); r.status != http.StatusSeeOther {
			t.Errorf("the given session: %d", r.status)
		}
		w.session = mine
		next := w.login() // with the old cookie
		if next.Value == mine.Value {
			t.Error("the session is the same after a second log-in")
		}
		w.session = mine
		if r := w.ask("GET", "/", nil); r.status != http.StatusSeeOther {
			t.Errorf("the old session after a new log-in: %d", r.status)
		}
		w.session = next
		w.get("/")
		now = now.Add(sessionLife)
		if r := w.ask("GET", "/", nil); r.status != http.StatusSeeOther {
			t.Errorf("a session that is over: %d", r.status)
		}
		w.login()
		if r := w.ask("POST", "/logout", nil); r.status != http.StatusSeeOther ||
			cookie(r, sessionCookie).MaxAge >= 0 {
			t.Errorf("log-out: %d", r.status)
		}
		if r := w.ask("GET", "/", nil); r.status != http.StatusSeeOther {
			t.Errorf("after the log-out: %d", r.status)
		}
		w.session = nil
		r := w.ask("POST", "/login", url.Values{"token": {token}},
			header("X-Forwarded-Proto", "https"))
		if !cookie(r, sessionCookie).Secure {
			t.Error("the cookie is not Secure behind TLS")
		}
		if got := w.ask("POST", "/login", url.Values{"token": {token},
			"back": {"//evil.example"}}).header.Get("Location"); got != "/" {
			t.Errorf("a log-in leads to %q", got)
		}
	})
}

func TestSessionsAndAddressesAreBounded(t *testing.T) {
	s, now := newSessions(), time.Now()
	none, _ := http.NewRequest("GET", "/", nil)
	id, _ := s.begin(none, now)
	for i := range maxSessions {
		s.begin(none, now.Add(time.Duration(i+1)*time.Second))
	}
	first, _ := http.NewRequest("GET", "/", nil)
	first.AddCookie(&http.Cookie{Name: sessionCookie, Value: id})
	if len(s.until) != maxSessions || s.find(first, now) != "" {
		t.Errorf("%d sessions, the oldest %q", len(s.until), s.find(first, now))
	}
	for i := range 2 * maxLoginAddr {
		s.mayTry(fmt.Sprint(i), now)
	}
	if len(s.addrs) > maxLoginAddr {
		t.Errorf("%d addresses", len(s.addrs))
	}
	if s.mayTry("another", now) {
		t.Error("many addresses together are not limited")
	}
}
