// Package console serves the worker's pages for people: operators and support see what needs attention
// and act on it.
//
// What it promises:
//
//   - Reading works without JavaScript. Scripts only refresh what is shown and draw charts. All
//     files are in the binary.
//   - People log in: with the console's token, or with a name and a password. Who has the role
//     viewer changes nothing. For development there is no log-in, and the console answers this
//     computer alone (see local).
//   - No page of another site can cause an action, and text that a stranger chose stays text:
//     html/template escapes it, and the policy allows no inline script or style.
//   - Every action, and every log-in, is a line in the log with who and what.
//
// It is an http.Handler for the root of a host:
//
//	mux.Handle("/", console.New(ctx, console.Config{Token: token}, w, log))
//
// Each page has a file here and one in pages/. This file has what they share: routes, access,
// rendering and errors. An action is a POST that ends in a redirect; a handler returns a refusal for
// errors that the visitor is to see, and any other error for the log.
package console

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// Config is who may do what.
type Config struct {
	Token     string // to log in with, as an operator
	UsersFile string // of users with passwords: see ParseUsers
	Dev       bool   // without Token and UsersFile: this computer may act
}

// Enabled reports whether anybody has access.
func (c Config) Enabled() bool { return c.Dev || c.login() }

// login reports whether people log in.
func (c Config) login() bool { return c.Token != "" || c.UsersFile != "" }

// Console serves the pages.
type Console struct {
	w         *worker.Worker
	db        *repo.DB
	bus       *events.Bus
	log       *slog.Logger
	cfg       Config
	mux       *http.ServeMux
	policy    string // Content-Security-Policy
	papermap  string // address of Papermap's pages; empty: there are several
	origins   *http.CrossOriginProtection
	users     *users
	sessions  *sessions
	passwords *passwords
	flashes   flashes
	indexes   indexes
	life      context.Context // of the console
	rates     *rates
	sums      sums
	now       func() time.Time
}

// New makes the console. It counts rates until ctx ends.
func New(ctx context.Context, cfg Config, w *worker.Worker, log *slog.Logger) *Console {
	c := &Console{
		w: w, db: w.Database(), bus: w.Bus(), log: log, cfg: cfg, mux: http.NewServeMux(), now: time.Now,
		origins: http.NewCrossOriginProtection(), sessions: newSessions(), rates: &rates{},
		users: newUsers(cfg.UsersFile, log), passwords: newPasswords(),
		flashes: flashes{all: map[string]flash{}}, life: ctx,
	}
	var frames []string
	for _, address := range w.EmbedURLs() {
		if u, err := url.Parse(address); err == nil && u.Host != "" {
			frames = append(frames, u.Scheme+"://"+u.Host)
		}
	}
	slices.Sort(frames)
	if frames = slices.Compact(frames); len(frames) == 1 {
		c.papermap = frames[0]
	}
	c.policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
		"connect-src 'self'; frame-src " +
		cmp.Or(strings.Join(frames, " "), "'none'") + "; frame-ancestors 'none'; form-action 'self'; " +
		"base-uri 'none'"
	for _, r := range routes {
		c.mux.HandleFunc(r.pattern, func(rw http.ResponseWriter, req *http.Request) { c.serve(r, rw, req) })
	}
	go c.rates.run(ctx, w.Counts)
	return c
}

// access is what a route requires of its visitor.
type access int

const (
	open access = iota // for everybody who may reach the console
	read               // logged in, where people log in
	act                // not for the role viewer
)

// route is a page or an action. GET changes nothing.
type route struct {
	pattern string
	access  access
	handle  func(*Console, http.ResponseWriter, *visit) error
}

var routes = []route{
	{"GET /assets/{file}", open, (*Console).asset},
	{"GET /login", open, (*Console).loginPage},
	{"POST /login", open, (*Console).login},
	{"POST /logout", open, (*Console).logout},
	{"POST /theme", open, (*Console).theme},

	{"/", read, (*Console).notFound},
	{"GET /{$}", read, (*Console).overview},
	{"GET /pulse", read, (*Console).pulse},
	{"GET /tenants", read, (*Console).tenants},
	{"GET /tenant", read, (*Console).tenant},
	{"GET /attention", read, (*Console).attention},
	{"GET /dead", read, (*Console).deadLetters},
	{"GET /dead/{sequence}", read, (*Console).deadLetter},
	{"GET /audit", read, (*Console).auditLog},
	{"GET /dead/{sequence}/data", read, (*Console).deadLetterData},
	{"GET /usage", read, (*Console).usage},
	{"GET /usage/run", read, (*Console).usageRun},
	{"GET /usage.csv", read, (*Console).usageCSV},

	{"POST /tenant/suspend", act, (*Console).suspend},
	{"POST /tenant/resume", act, (*Console).resume},
	{"POST /tenant/dashboard", act, (*Console).chooseDashboard},
	{"POST /tenant/resolve", act, (*Console).resolve},
	{"POST /tenant/recreate", act, (*Console).recreate},
	{"POST /tenant/preview", act, (*Console).preview},
	{"POST /attempt/resolve", act, (*Console).resolveAttempt},
	{"POST /dead/replay", act, (*Console).replay},
	{"POST /dead/discard", act, (*Console).discard},
	{"POST /usage/sync", act, (*Console).syncUsage},
}

// visit is a request and its visitor's rights.
type visit struct {
	*http.Request
	session string // fingerprint of who logged in; empty: not logged in
	user    string // name of who logged in with a password
	mayAct  bool
}

// who identifies the visitor's session in the log.
func (v *visit) who() string {
	if v.session != "" {
		return "session " + v.session
	}
	return "this computer"
}

// actor is who the visitor is, for records of what was done.
func (v *visit) actor() string {
	if v.user != "" {
		return "console:" + v.user
	}
	return "console"
}

// refusal is an error that the visitor sees.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

func (c *Console) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	h := rw.Header()
	h.Set("Content-Security-Policy", c.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if !c.cfg.login() {
		if why := local(r); why != "" {
			c.w.Refused(r, "not_local", "", errors.New(why))
			http.Error(rw, "The console has no log-in (CONSOLE_TOKEN is not set), "+
				"so it is for this computer only: "+why+".", http.StatusForbidden)
			return
		}
	}
	c.mux.ServeHTTP(rw, r)
}

// errCrossSite is a request that another site's page caused.
var errCrossSite = &refusal{
	http.StatusForbidden, "The request comes from another site's page, so it was refused.",
}

// crossSite reports whether another site's page caused a request. Following a link from there, in a
// tab of its own, is fine.
func (c *Console) crossSite(r *http.Request) bool {
	if c.origins.Check(r) != nil {
		return true
	}
	site := r.Header.Get("Sec-Fetch-Site")
	navigates := r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
	return site != "" && site != "same-origin" && site != "none" && !navigates
}

// local says why a request is not surely of a person at this computer; nothing when it is. The name
// of the host keeps out pages of other sites whose name was made to point here; a header of a proxy
// means that others are behind it.
func local(r *http.Request) string {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "use the address localhost or 127.0.0.1"
	}
	if remote, _, err := net.SplitHostPort(r.RemoteAddr); err != nil || !net.ParseIP(remote).IsLoopback() {
		return "the request comes from another one"
	}
	for name := range r.Header {
		if name == "Forwarded" || name == "Via" || name == "X-Real-Ip" ||
			strings.HasPrefix(name, "X-Forwarded-") {
			return "the request comes through a proxy (header " + name + ")"
		}
	}
	return ""
}

// serve calls the route's handler if the visitor has access.
func (c *Console) serve(r route, rw http.ResponseWriter, req *http.Request) {
	v := &visit{Request: req, mayAct: c.cfg.Dev && !c.cfg.login()}
	if c.crossSite(req) {
		c.w.Refused(req, "cross_site", "", errCrossSite)
		c.fail(rw, v, errCrossSite)
		return
	}
	if c.cfg.login() {
		if s, ok := c.sessions.find(req, c.now()); ok && c.permitted(s, v) {
			v.session = s.print
		}
		if r.access != open && v.session == "" {
			c.toLogin(rw, v)
			return
		}
	}
	var err error
	if r.access == act && !v.mayAct {
		c.w.Refused(req, "access_denied", v.actor(), errViewer)
		err = errViewer
	} else {
		req.Body = http.MaxBytesReader(rw, req.Body, 1<<20)
		actor := worker.Actor{Via: worker.ViaConsole, Name: v.actor()}
		v.Request = req.WithContext(worker.WithActor(req.Context(), actor))
		err = r.handle(c, rw, v)
	}
	if err != nil {
		c.fail(rw, v, err)
	}
}

// errViewer is an action of a user who may only look.
var errViewer = &refusal{http.StatusForbidden, "Your role is viewer: it is read-only."}

// fail shows an error. Details of what is not the visitor's mistake go to the log alone.
func (c *Console) fail(rw http.ResponseWriter, v *visit, err error) {
	var known *refusal
	if v.Context().Err() != nil {
		return // the visitor has gone
	}
	if !errors.As(err, &known) {
		c.log.Error("a console request failed", "method", v.Method, "path", v.URL.Path, "error", err)
		known = &refusal{
			http.StatusServiceUnavailable,
			"The worker cannot answer now: its log says why. Try again in a moment.",
		}
	}
	_ = c.render(rw, v, known.status, "error", http.StatusText(known.status), known.text)
}

// page is what each template gets.
type page struct {
	Title    string
	Section  string // of the navigation
	Theme    string // auto, light or dark
	Here     string // path and query of this page
	Now      time.Time
	LoggedIn bool
	User     string
	MayAct   bool
	Build    string // of the program, for those who have access
	Papermap string // address of Papermap's pages
	Pulse    pulse
	Flash    *flash // of the action before; nil: there was none
	Data     any
}

// render writes a page: pages/NAME.html in the frame of pages/frame.html.
func (c *Console) render(rw http.ResponseWriter, v *visit, status int, name, title string, data any) error {
	p := page{
		Title: title, Section: name, Theme: themeOf(v.Request), Here: here(v), Now: c.now(),
		LoggedIn: v.session != "", User: v.user, MayAct: v.mayAct, Papermap: c.papermap,
		Pulse: pulseOf(c.w.State()), Flash: c.takeFlash(rw, v), Data: data,
	}
	if v.session != "" || !c.cfg.login() {
		p.Build = c.w.Build().String()
	}
	var out bytes.Buffer
	if err := pages[name].ExecuteTemplate(&out, "frame.html", p); err != nil {
		return fmt.Errorf("writing page %s: %w", name, err)
	}
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.WriteHeader(status)
	_, _ = io.WriteString(rw, visiblePage(out.String())) // an error means that the visitor has gone
	return nil
}

// here is where the visitor is, to come back to. The overview takes no query: what somebody put
// there, a token perhaps, must not be written into pages and addresses.
func here(v *visit) string {
	if v.Method != http.MethodGet || v.URL.Path == "/" {
		return "/"
	}
	return v.URL.RequestURI()
}

// show renders a page with status 200.
func (c *Console) show(rw http.ResponseWriter, v *visit, name, title string, data any) error {
	return c.render(rw, v, http.StatusOK, name, title, data)
}

//go:embed assets pages
var files embed.FS

// pages are the templates by name, each with the frame.
var pages = func() map[string]*template.Template {
	all := map[string]*template.Template{}
	names, err := fs.Glob(files, "pages/*.html")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		t := template.Must(template.New("").Funcs(functions).ParseFS(files, "pages/frame.html", name))
		all[strings.TrimSuffix(path.Base(name), ".html")] = t
	}
	return all
}()

var contentTypes = map[string]string{
	".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
}

func (c *Console) asset(rw http.ResponseWriter, v *visit) error {
	file := v.PathValue("file")
	data, err := files.ReadFile("assets/" + file)
	if err != nil {
		return refuse(http.StatusNotFound, "There is no such file.")
	}
	rw.Header().Set("Content-Type", cmp.Or(contentTypes[path.Ext(file)], "text/plain; charset=utf-8"))
	rw.Header().Set("Cache-Control", "private, max-age=300")
	_, _ = rw.Write(data)
	return nil
}

// theme stores the choice in a cookie, so that it needs no script.
func (c *Console) theme(rw http.ResponseWriter, v *visit) error {
	choice := v.FormValue("theme")
	if choice != "light" && choice != "dark" {
		choice = "auto"
	}
	c.setCookie(rw, v.Request, themeCookie, choice, 365*24*3600)
	http.Redirect(rw, v.Request, inside(v.FormValue("back")), http.StatusSeeOther)
	return nil
}

const themeCookie = "papermap_console_theme"

func themeOf(r *http.Request) string {
	if c, err := r.Cookie(themeCookie); err == nil && (c.Value == "light" || c.Value == "dark") {
		return c.Value
	}
	return "auto"
}

// inside returns target if it is a path of this console, else the root.
func inside(target string) string {
	if _, err := url.Parse(target); err != nil || !strings.HasPrefix(target, "/") ||
		strings.HasPrefix(target, "//") || strings.ContainsAny(target, "\\\r\n\t") {
		return "/"
	}
	return target
}
