package embed

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	_ "embed"

	"papermap-worker/worker/workertest/browser"
)

// clock lets a test decide what time it is on the page.
//
//go:embed testdata/clock.js
var clock string

// serverStart is the Unix time of the backend when the page's true time is 0.
const serverStart = 1_800_000_000

// dashboard is an element as most pages have it.
const dashboard = `<papermap-dashboard src="/token" title="Sales"></papermap-dashboard>`

// answer is what the backend answers; the zero answer is a token.
type answer struct {
	status     int
	body       string
	retryAfter string // header
	hang       bool   // until the request is canceled
	drop       bool   // the connection
}

// backend is a customer's site: pages, the element and the endpoint for tokens.
type backend struct {
	site, papermap *httptest.Server
	life           int // seconds of a token

	mu       sync.Mutex
	requests []string // method and the page's true time in seconds of each request for a token
	decide   func(n, at int) answer
	done     chan struct{}
}

// host is a page with one dashboard and a strict policy.
const host = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Shop</title>
<link rel="stylesheet" href="/style.css"><script type="module" src="/embed/papermap-embed.js"></script>
<body><main><h1>Your sales</h1><input aria-label="Search">%s</main>`

func serveSite(t *testing.T) *backend {
	t.Helper()
	b := &backend{life: 3600, done: make(chan struct{})}
	b.papermap = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(rw, `<!doctype html><html lang="en"><meta name="color-scheme" content="light dark">`+
			`<title>Papermap</title><main><h1>Acme</h1><input aria-label="Filter"><p>%s %q`,
			req.URL.Query().Get("exp"), req.Referer())
	}))
	mux := http.NewServeMux()
	Register(mux)
	mux.HandleFunc("/token", b.serveToken)
	mux.HandleFunc("/style.css", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/css")
		_, _ = rw.Write([]byte(`:root { color-scheme: light dark; font: 16px system-ui }
			papermap-dashboard { height: 300px; border: 1px solid; border-radius: 8px }
			.tall { height: 5000px }`))
	})
	mux.HandleFunc("/{$}", func(rw http.ResponseWriter, req *http.Request) {
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		rw.Header().Set("Content-Security-Policy",
			"default-src 'none'; script-src 'self'; style-src 'self'; "+
				"connect-src 'self'; frame-src "+b.papermap.URL+"; require-trusted-types-for 'script'")
		fmt.Fprintf(rw, host, req.URL.Query().Get("body"))
	})
	b.site = httptest.NewServer(mux)
	t.Cleanup(func() {
		close(b.done)
		b.site.Close()
		b.papermap.Close()
	})
	return b
}

func (b *backend) serveToken(rw http.ResponseWriter, req *http.Request) {
	at := 0
	if c, err := req.Cookie("now"); err == nil {
		at, _ = strconv.Atoi(c.Value)
	}
	b.mu.Lock()
	b.requests = append(b.requests, fmt.Sprintf("%s %d", req.Method, at/1000))
	a := answer{}
	if b.decide != nil {
		a = b.decide(len(b.requests), at/1000)
	}
	b.mu.Unlock()
	if a.hang {
		select {
		case <-req.Context().Done():
		case <-b.done:
		}
		return
	}
	if a.drop {
		panic(http.ErrAbortHandler)
	}
	if a.body == "" && a.status == 0 {
		a.body = b.token(at, fmt.Sprintf(`"expires_in":%d,`, b.life))
	}
	if a.retryAfter != "" {
		rw.Header().Set("Retry-After", a.retryAfter)
	}
	rw.WriteHeader(max(a.status, 200))
	_, _ = rw.Write([]byte(a.body))
}

// token is an embed-token reply of that time in milliseconds. expiresIn is that field, or empty.
func (b *backend) token(at int, expiresIn string) string {
	now := serverStart + at/1000
	return fmt.Sprintf(`{"token":"t","tenant_id":"org-1","workspace_id":"ws","dashboard_id":"d",`+
		`"expires_at":%d,"refresh_after":%d,%s"embed_url":"%s/embedded/dashboard?exp=%d"}`,
		now+b.life, now+b.life*8/10, expiresIn, b.papermap.URL, at+b.life*1000)
}

// asked returns the times of the requests so far.
func (b *backend) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.requests...)
}

// visit is a page that is open in a browser.
type visit struct {
	*backend
	*browser.Tab
	t *testing.T
}

// open opens Chromium with the clock of this package.
func open(t *testing.T) *visit {
	t.Helper()
	v := &visit{serveSite(t), browser.Open(t), t}
	v.Do(chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := page.AddScriptToEvaluateOnNewDocument(clock).Do(ctx)
		return err
	}))
	return v
}

// load opens the site's page anew with what is in its body. decide answers its requests; nil: with
// tokens.
func (v *visit) load(t *testing.T, life int, body string, decide func(n, at int) answer) {
	t.Helper()
	v.t = t
	v.Do(chromedp.Navigate("about:blank"))
	v.mu.Lock()
	v.life, v.requests, v.decide = life, nil, decide
	v.mu.Unlock()
	v.Do(chromedp.Navigate(v.site.URL + "/?body=" + url.QueryEscape(body)))
	v.settle()
}

// settle waits until the element is defined and nothing is loading.
func (v *visit) settle() {
	v.t.Helper()
	v.Await(`customElements.whenDefined("papermap-dashboard").then(() => clock.settle())`, nil)
}

// result is what a page shows at the end of a script.
type result struct {
	Gap    float64 // seconds without a valid token while there should be one
	Events []string
	Text   string // of the element's message, if it shows one
	Frames int
	Timers int
}

// run runs a script and returns what came of it.
func (v *visit) run(script string) (r result) {
	v.t.Helper()
	v.Await(`(async () => { const element = document.querySelector("papermap-dashboard");
		`+script+`; await clock.settle();
		const root = document.querySelector("papermap-dashboard")?.shadowRoot;
		const shown = [...root?.querySelectorAll("div:not([hidden])") ?? []];
		return {Gap: clock.gap / 1000, Events: clock.events, Timers: clock.timers,
			Frames: root?.querySelectorAll("iframe").length ?? 0,
			Text: shown.map(d => d.innerText.trim().replace(/\s+/g, " ")).join("|")} })()`, &r)
	return r
}
