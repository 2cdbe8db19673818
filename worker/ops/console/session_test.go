package console

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
)

func TestFailedLoginsLockNobodyOut(t *testing.T) {
	file := usersFile(t, "olga:operator:"+hashed("operate-it-all"))
	virtual(t, Config{Token: token, UsersFile: file}, nil, func(t *testing.T, w *world) {
		now := time.Now()
		w.console.now = func() time.Time { return now }
		wrong := url.Values{"token": {"wrong_token_0123456789"}}
		for i := range failBurst {
			r := w.ask("POST", "/login", wrong)
			if r.status != http.StatusUnauthorized || cookie(r, sessionCookie) != nil {
				t.Fatalf("try %d: %d", i, r.status)
			}
		}
		for range 30 {
			if r := w.ask("POST", "/login", wrong); r.status != http.StatusTooManyRequests ||
				r.header.Get("Retry-After") == "" || cookie(r, sessionCookie) != nil {
				t.Errorf("one more: %d", r.status)
			}
		}
		for _, right := range []url.Values{
			{"token": {token}}, {"name": {"olga"}, "password": {"operate-it-all"}},
		} {
			if r := w.ask("POST", "/login", right); r.status != http.StatusSeeOther {
				t.Errorf("what is right after many failures: %d", r.status)
			}
		}
		now = now.Add(2 * failEvery)
		if r := w.ask("POST", "/login", wrong); r.status != http.StatusUnauthorized {
			t.Errorf("a failure after a while: %d", r.status)
		}
		log := w.Logs.String()
		if n := strings.Count(log, `"reason":"wrong_login"`); n < 10 || n > 12 ||
			!strings.Contains(log, `"console log-in"`) || strings.Contains(log, "wrong_token") {
			t.Errorf("the log tells of %d failures, or too much", n)
		}
		if n := int(w.refused("wrong_login")); n != failBurst+31 {
			t.Errorf("%d failures are counted", n)
		}
	})
}

func TestUsersLogInWithTheirPassword(t *testing.T) {
	file := usersFile(t, "# of the console", "", "olga:operator:"+hashed("operate-it-all")+"\r")
	virtual(t, Config{UsersFile: file}, nil, func(t *testing.T, w *world) {
		for _, wrong := range []url.Values{
			{"name": {"olga"}, "password": {""}}, {"name": {"olga"}, "password": {"operate-it-al"}},
			{"name": {"Olga"}, "password": {"operate-it-all"}},
			{"name": {"otto"}, "password": {"operate-it-all"}},
			{"name": {""}, "password": {"operate-it-all"}}, {"token": {""}},
			{"token": {"operate-it-all"}}, {}, {"name": {"olga"}, "token": {"operate-it-all"}},
			{"name": {"olga"}, "password": {strings.Repeat("operate-it-all", 10)}},
		} {
			if r := w.ask("POST", "/login", wrong); r.status != 401 || cookie(r, sessionCookie) != nil {
				t.Errorf("%v: %d", wrong, r.status)
			}
		}
		w.loginAs("olga", "operate-it-all")
		if page := w.get("/").body; !strings.Contains(page, "olga") || strings.Contains(page, "read-only") {
			t.Error("the page does not say who is logged in")
		}
	})
}

func TestUsersFileIsReadAgainWhenItChanges(t *testing.T) {
	olga := "olga:operator:" + hashed("operate-it-all")
	file := usersFile(t, olga)
	virtual(t, Config{UsersFile: file}, nil, func(t *testing.T, w *world) {
		write := func(lines ...string) {
			t.Helper()
			w.Must(os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600))
			time.Sleep(usersEvery)
		}
		status := func() int { return w.ask("GET", "/tenants", nil).status }
		w.loginAs("olga", "operate-it-all")
		write("olga:nobody:x")
		if got := status(); got != 200 {
			t.Errorf("a file that cannot be used: %d", got)
		}
		w.Must(os.Remove(file))
		time.Sleep(usersEvery)
		if got := status(); got != 200 {
			t.Errorf("no file: %d", got)
		}
		write(strings.Replace(olga, "operator", "viewer", 1))
		if r := w.ask("POST", "/usage/sync", nil); r.status != 403 {
			t.Errorf("who is no operator any more acts: %d", r.status)
		}
		write("olga:operator:" + hashed("another-password"))
		if got := status(); got != http.StatusSeeOther {
			t.Errorf("after a new password the session lives: %d", got)
		}
		w.loginAs("olga", "another-password")
		write("otto:operator:" + hashed("operate-it-all"))
		if got := status(); got != http.StatusSeeOther {
			t.Errorf("the session of a user that is gone lives: %d", got)
		}
		w.loginAs("otto", "operate-it-all")
	})
}

func TestUsersFileIsStrict(t *testing.T) {
	t.Parallel()
	hash := hashed("operate-it-all")
	for _, lines := range []string{
		"olga", "olga:operator", "olga:operator:", "olga:operator:secret", "olga:admin:" + hash,
		":operator:" + hash, "ol ga:operator:" + hash, "olga\u200b:operator:" + hash, "olga::" + hash,
		"olga:operator:" + hash + "\nolga:viewer:" + hash,
		"olga:operator:" + strings.Replace(hash, "$04$", "$15$", 1),
		strings.Repeat("o", 65) + ":viewer:" + hash,
	} {
		if _, err := ParseUsers([]byte(lines)); err == nil || strings.Contains(err.Error(), hash) {
			t.Errorf("%q: %v", lines, err)
		}
	}
	all, err := ParseUsers([]byte("\uFEFF# comment\n\n  o.l_g@a-1:viewer:" + hash + "  \r\n"))
	if err != nil || all["o.l_g@a-1"].role != RoleViewer {
		t.Errorf("%v %v", all, err)
	}
	line, err := UserLine("olga", RoleOperator, "operate-it-all")
	if err == nil {
		all, err = ParseUsers([]byte(line))
	}
	if err != nil || all["olga"].role != RoleOperator || strings.Contains(line, "operate-it") {
		t.Errorf("%q: %v", line, err)
	}
	for _, wrong := range [][2]string{{"ol:ga", "operate-it-all"}, {"olga", "short"},
		{"olga", strings.Repeat("x", 73)}, {"", "operate-it-all"}} {
		if line, err := UserLine(wrong[0], RoleOperator, wrong[1]); err == nil {
			t.Errorf("%q makes %q", wrong, line)
		}
	}
}

func TestPasswordsOfOneNetworkLeaveRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, hash := newPasswords(), []byte(hashed("right"))
		var done sync.WaitGroup
		for range 200 { // a flood from one network
			done.Go(func() { p.right(t.Context(), "flood", hash, "wrong") })
		}
		synctest.Wait()
		began := time.Now()
		if ok, busy := p.right(t.Context(), "other", hash, "right"); !ok || busy {
			t.Errorf("the right password of another network: %v, busy %v", ok, busy)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it waited %v", took)
		}
		done.Wait()
		if p.all != 0 || len(p.waiting) != 0 {
			t.Errorf("%d wait, %v", p.all, p.waiting)
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

func TestSessionsAndNetworksAreBounded(t *testing.T) {
	s, now := newSessions(), time.Now()
	none, _ := http.NewRequest("GET", "/", nil)
	id, _ := s.begin(none, now, "", "")
	for i := range maxSessions {
		s.begin(none, now.Add(time.Duration(i+1)*time.Second), "", "")
	}
	first, _ := http.NewRequest("GET", "/", nil)
	first.AddCookie(&http.Cookie{Name: sessionCookie, Value: id})
	if _, lives := s.find(first, now); len(s.all) != maxSessions || lives {
		t.Errorf("%d sessions, the oldest lives: %v", len(s.all), lives)
	}
	for i := range 2 * maxLoginAddr {
		s.tooMany(fmt.Sprint(i), now)
	}
	if len(s.failed) > maxLoginAddr {
		t.Errorf("%d networks", len(s.failed))
	}
	for address, want := range map[string]string{"10.0.0.1:4711": "10.0.0.1", "10.0.0.1": "10.0.0.1",
		"[2001:db8:1:2:3::4]:80": "2001:db8:1:2::/64", "2001:db8:1:2:ffff::1": "2001:db8:1:2::/64",
		"[::ffff:10.0.0.1]:80": "10.0.0.1"} {
		if got := network(&http.Request{RemoteAddr: address}); got != want {
			t.Errorf("network of %s: %s, want %s", address, got, want)
		}
	}
}

// usersFile makes a users' file.
func usersFile(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// hashed is a password's hash, of the lowest cost.
func hashed(password string) string {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		panic(err)
	}
	return string(hash)
}

// loginAs logs in for the requests that follow.
func (w *world) loginAs(name, password string) {
	w.t.Helper()
	r := w.ask("POST", "/login", url.Values{"name": {name}, "password": {password}})
	if w.session = cookie(r, sessionCookie); r.status != http.StatusSeeOther || w.session == nil {
		w.t.Fatalf("log-in of %s: %d", name, r.status)
	}
}

// refused is how many requests were refused for a reason.
func (w *world) refused(reason string) float64 {
	return w.Workers[0].Samples()["papermap_http_refused_total{reason="+reason+"}"]
}
