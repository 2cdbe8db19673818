package console

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	sessionCookie = "papermap_console"
	sessionLife   = 8 * time.Hour
	maxSessions   = 1000
	maxLoginAddr  = 4096
)

// Failed log-ins of one network before the next are answered with 429. What is right is always let
// in, so that nobody can lock out others.
const failEvery, failBurst = 6 * time.Second, 10

// session is somebody who has logged in.
type session struct {
	until      time.Time
	print      string // its fingerprint, for the log
	user, hash string // who logged in with a password, and its bcrypt hash; empty: with the token
}

// sessions are who has logged in, in memory: a restart logs all out. Kept are hashes, so that no
// copy of memory is a key.
type sessions struct {
	mu     sync.Mutex
	all    map[[sha256.Size]byte]session
	failed map[string]*rate.Limiter // by network
}

func newSessions() *sessions {
	return &sessions{all: map[[sha256.Size]byte]session{}, failed: map[string]*rate.Limiter{}}
}

// find returns the request's session, if it has one that lives.
func (s *sessions) find(r *http.Request, now time.Time) (found session, ok bool) {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return found, false
	}
	id := sha256.Sum256([]byte(c.Value))
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok = s.all[id]
	if ok && !now.Before(found.until) {
		delete(s.all, id)
		ok = false
	}
	return found, ok
}

// begin makes a session under a new id. The one that the browser had before ends, whoever gave it
// that.
func (s *sessions) begin(r *http.Request, now time.Time, user, hash string) (id string, started session) {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails
	id = base64.RawURLEncoding.EncodeToString(random)
	s.end(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxSessions {
		oldest, first := [sha256.Size]byte{}, time.Time{}
		for k, one := range s.all {
			if first.IsZero() || one.until.Before(first) {
				oldest, first = k, one.until
			}
		}
		delete(s.all, oldest)
	}
	key := sha256.Sum256([]byte(id))
	started = session{now.Add(sessionLife), hex.EncodeToString(key[:4]), user, hash}
	s.all[key] = started
	return id, started
}

func (s *sessions) end(r *http.Request) {
	if c, err := r.Cookie(sessionCookie); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, sha256.Sum256([]byte(c.Value)))
	}
}

// tooMany counts a failed log-in of a network, and reports whether there were too many.
func (s *sessions) tooMany(network string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	limiter := s.failed[network]
	if limiter == nil {
		if len(s.failed) >= maxLoginAddr {
			clear(s.failed)
		}
		limiter = rate.NewLimiter(rate.Every(failEvery), failBurst)
		s.failed[network] = limiter
	}
	return !limiter.AllowN(now, 1)
}

// toLogin sends to the log-in, and back afterwards. htmx has to be told to leave the page.
func (c *Console) toLogin(rw http.ResponseWriter, v *visit) {
	target := "/login?back=" + url.QueryEscape(here(v))
	if v.Header.Get("HX-Request") != "" {
		rw.Header().Set("HX-Redirect", target)
		return
	}
	http.Redirect(rw, v.Request, target, http.StatusSeeOther)
}

type loginData struct {
	Back, Wrong, Name string
	Users, Token      bool // what there is to log in with
}

func (c *Console) loginData(v *visit, wrong string) loginData {
	return loginData{
		Back: inside(v.FormValue("back")), Wrong: wrong, Name: v.PostFormValue("name"),
		Users: c.cfg.UsersFile != "", Token: c.cfg.Token != "",
	}
}

func (c *Console) loginPage(rw http.ResponseWriter, v *visit) error {
	if !c.cfg.login() || v.session != "" {
		http.Redirect(rw, v.Request, inside(v.FormValue("back")), http.StatusSeeOther)
		return nil
	}
	return c.show(rw, v, "login", "Log in", c.loginData(v, ""))
}

// errLogin is a log-in that failed.
var errLogin = errors.New("wrong token, name or password")

func (c *Console) login(rw http.ResponseWriter, v *visit) error {
	if !c.cfg.login() {
		return refuse(http.StatusNotFound, "There is no log-in: CONSOLE_TOKEN is not set.")
	}
	name, hash, status := c.authenticate(v)
	if status != http.StatusOK {
		c.w.Refused(v.Request, "wrong_login", "", errLogin)
		wrong := "That is wrong."
		if status != http.StatusUnauthorized {
			rw.Header().Set("Retry-After", "60")
			wrong = "Too many log-ins. Wait a minute."
		}
		return c.render(rw, v, status, "login", "Log in", c.loginData(v, wrong))
	}
	id, started := c.sessions.begin(v.Request, c.now(), name, hash)
	v.user = name
	c.log.Info("console log-in", "who", "session "+started.print, "actor", v.actor(), "remote", v.RemoteAddr)
	c.setCookie(rw, v.Request, sessionCookie, id, int(sessionLife/time.Second))
	http.Redirect(rw, v.Request, inside(v.FormValue("back")), http.StatusSeeOther)
	return nil
}

// authenticate checks the token, or the name and password, of a log-in. The status is 200 for those
// that are right; 401, or 429 after too many, for those that are wrong; and 503 if too many wait.
func (c *Console) authenticate(v *visit) (name, hash string, status int) {
	name = v.PostFormValue("name")
	ok := false
	if token := v.PostFormValue("token"); name == "" {
		ok = c.cfg.Token != "" && sameText(token, c.cfg.Token)
	} else if c.cfg.UsersFile != "" {
		u, known := c.users.find(name, c.now())
		right, busy := c.passwords.right(v.Context(), network(v.Request), u.hash, v.PostFormValue("password"))
		if busy {
			return "", "", http.StatusServiceUnavailable
		}
		ok, hash = known && right, string(u.hash)
	}
	switch {
	case ok:
		return name, hash, http.StatusOK
	case c.sessions.tooMany(network(v.Request), c.now()):
		return "", "", http.StatusTooManyRequests
	}
	return "", "", http.StatusUnauthorized
}

func (c *Console) logout(rw http.ResponseWriter, v *visit) error {
	if v.session != "" {
		c.log.Info("console log-out", "who", v.who(), "actor", v.actor(), "remote", v.RemoteAddr)
	}
	c.sessions.end(v.Request)
	c.setCookie(rw, v.Request, sessionCookie, "", -1)
	http.Redirect(rw, v.Request, "/login", http.StatusSeeOther)
	return nil
}

// setCookie sets a cookie for maxAge seconds; -1 deletes it.
func (c *Console) setCookie(rw http.ResponseWriter, r *http.Request, name, value string, maxAge int) {
	http.SetCookie(rw, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: c.secure(r),
		SameSite: http.SameSiteStrictMode,
	})
}

// secure says whether the browser came by TLS. A proxy's word counts where people log in: to
// claim it only makes a cookie that the browser sends less often.
func (c *Console) secure(r *http.Request) bool {
	return r.TLS != nil || c.cfg.login() && r.Header.Get("X-Forwarded-Proto") == "https"
}
