package console

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net"
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

// Log-ins that one address may try, and all together: a token of 16 bytes cannot be guessed anyway,
// but the log would fill.
const (
	loginEvery, loginBurst       = 6 * time.Second, 10
	allLoginEvery, allLoginBurst = 100 * time.Millisecond, 100
)

// sessions are who has logged in, in memory: a restart logs all out. Kept are hashes, so that no
// copy of memory is a key.
type sessions struct {
	mu    sync.Mutex
	until map[[sha256.Size]byte]time.Time
	all   *rate.Limiter
	addrs map[string]*rate.Limiter
}

func newSessions() *sessions {
	return &sessions{
		until: map[[sha256.Size]byte]time.Time{}, addrs: map[string]*rate.Limiter{},
		all: rate.NewLimiter(rate.Every(allLoginEvery), allLoginBurst),
	}
}

// find returns the fingerprint of the request's session; nothing when it has none that lives.
func (s *sessions) find(r *http.Request, now time.Time) string {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return ""
	}
	id := sha256.Sum256([]byte(c.Value))
	s.mu.Lock()
	defer s.mu.Unlock()
	until, known := s.until[id]
	if !known {
		return ""
	}
	if !now.Before(until) {
		delete(s.until, id)
		return ""
	}
	return fingerprint(id)
}

func fingerprint(id [sha256.Size]byte) string { return hex.EncodeToString(id[:4]) }

// begin makes a session under a new id. The one that the browser had before ends, whoever gave it
// that.
func (s *sessions) begin(r *http.Request, now time.Time) (id, print string) {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails
	id = base64.RawURLEncoding.EncodeToString(random)
	s.end(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.until) >= maxSessions {
		oldest, first := [sha256.Size]byte{}, time.Time{}
		for k, until := range s.until {
			if first.IsZero() || until.Before(first) {
				oldest, first = k, until
			}
		}
		delete(s.until, oldest)
	}
	key := sha256.Sum256([]byte(id))
	s.until[key] = now.Add(sessionLife)
	return id, fingerprint(key)
}

func (s *sessions) end(r *http.Request) {
	if c, err := r.Cookie(sessionCookie); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.until, sha256.Sum256([]byte(c.Value)))
	}
}

// mayTry says whether an address may try a token now. Addresses are those of connections: what a
// proxy says is a header that anybody can write.
func (s *sessions) mayTry(addr string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	limiter := s.addrs[addr]
	if limiter == nil {
		if len(s.addrs) >= maxLoginAddr {
			clear(s.addrs) // the limit for all still holds
		}
		limiter = rate.NewLimiter(rate.Every(loginEvery), loginBurst)
		s.addrs[addr] = limiter
	}
	return limiter.AllowN(now, 1) && s.all.AllowN(now, 1)
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

type loginData struct{ Back, Wrong string }

func (c *Console) loginPage(rw http.ResponseWriter, v *visit) error {
	if c.cfg.Token == "" || v.session != "" {
		http.Redirect(rw, v.Request, inside(v.FormValue("back")), http.StatusSeeOther)
		return nil
	}
	return c.show(rw, v, "login", "Log in", loginData{Back: inside(v.FormValue("back"))})
}

func (c *Console) login(rw http.ResponseWriter, v *visit) error {
	if c.cfg.Token == "" {
		return refuse(http.StatusNotFound, "There is no log-in: CONSOLE_TOKEN is not set.")
	}
	addr, _, _ := net.SplitHostPort(v.RemoteAddr)
	if !c.sessions.mayTry(addr, c.now()) {
		c.log.Warn("console log-in refused: too many tries", "remote", v.RemoteAddr)
		rw.Header().Set("Retry-After", "60")
		return refuse(http.StatusTooManyRequests, "Too many tries to log in. Wait a minute.")
	}
	// Hashes have one length, so that comparing them tells nothing of the token's.
	given, right := sha256.Sum256([]byte(v.PostFormValue("token"))), sha256.Sum256([]byte(c.cfg.Token))
	if subtle.ConstantTimeCompare(given[:], right[:]) != 1 {
		c.log.Warn("console log-in failed", "remote", v.RemoteAddr)
		data := loginData{Back: inside(v.FormValue("back")), Wrong: "That is not the console's token."}
		return c.render(rw, v, http.StatusUnauthorized, "login", "Log in", data)
	}
	id, print := c.sessions.begin(v.Request, c.now())
	c.log.Info("console log-in", "who", "session "+print, "remote", v.RemoteAddr)
	c.setCookie(rw, v.Request, sessionCookie, id, int(sessionLife/time.Second))
	http.Redirect(rw, v.Request, inside(v.FormValue("back")), http.StatusSeeOther)
	return nil
}

func (c *Console) logout(rw http.ResponseWriter, v *visit) error {
	if v.session != "" {
		c.log.Info("console log-out", "who", v.who(), "remote", v.RemoteAddr)
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

// secure says whether the browser came by TLS. A proxy's word counts where there is a token: to
// claim it only makes a cookie that the browser sends less often.
func (c *Console) secure(r *http.Request) bool {
	return r.TLS != nil || c.cfg.Token != "" && r.Header.Get("X-Forwarded-Proto") == "https"
}
