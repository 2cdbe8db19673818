package console

import (
	"crypto/rand"
	"net/http"
	"sync"
	"time"
)

const (
	flashCookie = "papermap_console_flash"
	flashLife   = time.Minute
	maxFlashes  = 1000
)

// flash is what was observed of an action. The page after the action shows it once.
type flash struct {
	Level string // good or warn
	Text  string
	until time.Time
}

// flashes wait in memory for the pages that show them. The browser has a random key in a cookie, so
// that no address makes a page say what did not happen.
type flashes struct {
	mu  sync.Mutex
	all map[string]flash
}

func (f *flashes) put(one flash, now time.Time) (key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, old := range f.all {
		if len(f.all) >= maxFlashes || now.After(old.until) {
			delete(f.all, k)
		}
	}
	key, one.until = rand.Text(), now.Add(flashLife)
	f.all[key] = one
	return key
}

func (f *flashes) take(key string, now time.Time) *flash {
	f.mu.Lock()
	defer f.mu.Unlock()
	one, ok := f.all[key]
	delete(f.all, key)
	if !ok || now.After(one.until) {
		return nil
	}
	return &one
}

// after redirects the visitor to a page that shows, once, what was observed of the action.
func (c *Console) after(rw http.ResponseWriter, v *visit, target, level, text string) error {
	key := c.flashes.put(flash{Level: level, Text: text}, c.now())
	c.setCookie(rw, v.Request, flashCookie, key, int(flashLife/time.Second))
	http.Redirect(rw, v.Request, target, http.StatusSeeOther)
	return nil
}

// takeFlash returns what the page has to show. A part that a script asks for leaves it to the page.
func (c *Console) takeFlash(rw http.ResponseWriter, v *visit) *flash {
	cookie, err := v.Cookie(flashCookie)
	if err != nil || v.Method != http.MethodGet || v.Header.Get("HX-Request") != "" {
		return nil
	}
	c.setCookie(rw, v.Request, flashCookie, "", -1)
	return c.flashes.take(cookie.Value, c.now())
}
