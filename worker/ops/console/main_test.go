package console

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/workertest"
)

var tags = regexp.MustCompile(`<[^>]*>`)

// text is what a person reads of a page, with single spaces.
func text(page string) string {
	page = strings.NewReplacer("&#39;", "'", "&#34;", `"`, "&amp;", "&", "&lt;", "<", "&gt;",
		">").Replace(tags.ReplaceAllString(page, " "))
	return strings.Join(strings.Fields(page), " ")
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(os.Exit))
}

const token = "console_canary_0123456789"

// world is a workertest.World with a worker that holds what is uncertain, and its console.
type world struct {
	*workertest.World
	t       testing.TB
	console *Console
	base    string
	client  *http.Client // follows no redirect and keeps no cookie
	session *http.Cookie
}

// options is a world with one workspace.
func options(faults []string) workertest.Options {
	return workertest.Options{Faults: faults, Config: func(c *worker.Config) {
		c.Hold, c.Workspaces = true, c.Workspaces[:1]
	}}
}

// virtual runs a scenario in virtual time.
func virtual(t *testing.T, c Config, faults []string, scenario func(*testing.T, *world)) {
	t.Helper()
	workertest.Virtual(t, options(faults),
		func(t *testing.T, w *workertest.World) { scenario(t, serve(t, w, c)) })
}

// start starts a world with the real clock, for a browser.
func start(t testing.TB, c Config, faults ...string) *world {
	t.Helper()
	return serve(t, workertest.Start(t, options(faults)), c)
}

// serve starts the console of a world's worker. At the end the log must not have the console's
// token or a session's.
func serve(t testing.TB, parts *workertest.World, c Config) *world {
	t.Helper()
	w := &world{World: parts, t: t}
	w.client = &http.Client{
		Transport:     parts.HTTP.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	log := slog.New(slog.NewJSONHandler(w.Logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(context.Background())
	w.console = New(ctx, c, w.Workers[0].Worker, log)
	w.base = w.Serve(w.console)
	t.Cleanup(func() {
		cancel()
		for _, canary := range []string{token, "eyJ"} {
			if strings.Contains(w.Logs.String(), canary) {
				t.Errorf("the log has %q in it", canary)
			}
		}
	})
	return w
}

// becomes waits until a tenant has a status.
func (w *world) becomes(tenantID string, status repo.Status) repo.Mapping {
	w.t.Helper()
	var m repo.Mapping
	w.Eventually(func() (err error) {
		if m, err = w.DB.Mapping(w.t.Context(), tenantID); err == nil && m.Status != status {
			err = fmt.Errorf("tenant %s is %s, not %s", tenantID, m.Status, status)
		}
		return err
	})
	return m
}

// letters waits until there are so many dead letters.
func (w *world) letters(n int) []events.DeadLetter {
	w.t.Helper()
	var list []events.DeadLetter
	w.Eventually(func() (err error) {
		if list, err = w.Workers[0].Bus.DeadLetters(w.t.Context(), events.DeadFilter{}, 100); err == nil &&
			len(list) != n {
			err = fmt.Errorf("%d dead letters, not %d", len(list), n)
		}
		return err
	})
	return list
}

// reply is what came of a request.
type reply struct {
	status int
	header http.Header
	body   string
}

// ask sends a request, with a form when it has fields, and with the world's session. change may
// alter it before.
func (w *world) ask(method, path string, fields url.Values, change ...func(*http.Request)) reply {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path,
		strings.NewReader(fields.Encode()))
	w.Must(err)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if w.session != nil {
		req.AddCookie(w.session)
	}
	for _, do := range change {
		do(req)
	}
	resp, err := w.client.Do(req)
	w.Must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	w.Must(err)
	return reply{resp.StatusCode, resp.Header, string(text)}
}

func (w *world) get(path string) reply {
	w.t.Helper()
	r := w.ask("GET", path, nil)
	if r.status != http.StatusOK {
		w.t.Fatalf("GET %s: %d\n%s", path, r.status, r.body)
	}
	return r
}

// act does an action and follows to where it leads.
func (w *world) act(path string, fields url.Values) reply {
	w.t.Helper()
	r := w.ask("POST", path, fields)
	if r.status != http.StatusSeeOther {
		w.t.Fatalf("POST %s: %d\n%s", path, r.status, r.body)
	}
	page := w.ask("GET", r.header.Get("Location"), nil, with(cookie(r, flashCookie)))
	if page.status != http.StatusOK {
		w.t.Fatalf("GET %s: %d\n%s", r.header.Get("Location"), page.status, page.body)
	}
	return page
}

// login logs in for the requests that follow.
func (w *world) login() *http.Cookie {
	w.t.Helper()
	r := w.ask("POST", "/login", url.Values{"token": {token}})
	if r.status != http.StatusSeeOther {
		w.t.Fatalf("logging in: %d\n%s", r.status, r.body)
	}
	w.session = cookie(r, sessionCookie)
	return w.session
}

// header sets a header of a request that is asked.
func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// with adds a cookie to a request that is asked.
func with(c *http.Cookie) func(*http.Request) {
	return func(r *http.Request) {
		if c != nil {
			r.AddCookie(c)
		}
	}
}

func cookie(r reply, name string) *http.Cookie {
	for _, c := range (&http.Response{Header: r.header}).Cookies() {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// trouble makes one tenant of each kind, and dead letters: "good" is active, "held" is held,
// "refused" failed.
func (w *world) trouble() {
	w.t.Helper()
	for _, id := range []string{"good", "held", "refused"} {
		w.Publish(events.TypeTenantCreated, fmt.Sprintf(`{"tenant_id":%q,"name":%q}`, id, "The "+id+" ones"))
	}
	w.becomes("good", repo.Active)
	w.becomes("held", repo.Held)
	w.becomes("refused", repo.Failed)
	w.letters(1) // so that it has the number 1
	broken := w.Publish(events.TypeTenantCreated, `{"tenant_id":"broken"`)
	w.letters(2)
	// once its dead letter is discarded, nothing tells it from an event that should fit its schema
	w.t.Cleanup(func() {
		if stream, err := w.JS.Stream(context.Background(), "PAPERMAP"); err == nil {
			_ = stream.DeleteMsg(context.Background(), broken)
		}
	})
}

// inTrouble are the faults that trouble needs.
var inTrouble = []string{
	"on=create tenant=held drop=after count=1",
	"on=create tenant=refused status=422 count=1 " +
		"body=`{\"success\":false,\"message\":\"The workspace is full\",\"status_code\":422}`",
}
