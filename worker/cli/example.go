package cli

import (
	"crypto/rand"
	"embed"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"papermap-worker/events"
	"papermap-worker/worker"
)

//go:embed example
var exampleFiles embed.FS

var examplePage = template.Must(template.ParseFS(exampleFiles, "example/page.html"))

// exampleTenants are the customers of the example, by tenant id.
var exampleTenants = []struct{ ID, Name string }{
	{"example-acme", "Acme Corp"}, {"example-globex", "Globex"}, {"example-initech", "Initech"},
}

// exampleSession is what the example knows of a browser.
type exampleSession struct {
	tenant string
	life   time.Duration // of its tokens
}

// example is the product page of dev: a customer's site with <papermap-dashboard>, and buttons that
// put it in trouble. It talks to the worker over NATS, as a backend does.
type example struct {
	bus    *events.Bus
	log    *slog.Logger
	policy string

	mu       sync.Mutex
	sessions map[string]exampleSession
}

// newExample serves /example and what is below it. embedURL is the page that the iframe shows.
func newExample(bus *events.Bus, embedURL string, log *slog.Logger) (http.Handler, error) {
	frame, err := url.Parse(embedURL)
	if err != nil {
		return nil, err
	}
	e := &example{bus: bus, log: log, sessions: map[string]exampleSession{}, policy: "default-src 'none'; " +
		"script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; " +
		"frame-ancestors 'none'; frame-src " + frame.Scheme + "://" + frame.Host}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /example", e.page)
	mux.Handle("GET /example/page.css", http.FileServerFS(exampleFiles))
	mux.Handle("GET /example/page.js", http.FileServerFS(exampleFiles))
	mux.HandleFunc("POST /example/login", e.login)
	mux.HandleFunc("POST /example/life", e.life)
	mux.HandleFunc("POST /example/suspend", e.publish(events.TypeTenantSuspended))
	mux.HandleFunc("POST /example/resume", e.publish(events.TypeTenantResumed))
	mux.HandleFunc("POST /example/token", e.token)
	return http.NewCrossOriginProtection().Handler(mux), nil
}

const exampleCookie = "papermap_example"

// session returns the session of a request, and its id; the zero session without one.
func (e *example) session(req *http.Request) (string, exampleSession) {
	cookie, err := req.Cookie(exampleCookie)
	if err != nil {
		return "", exampleSession{}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return cookie.Value, e.sessions[cookie.Value]
}

func (e *example) page(rw http.ResponseWriter, req *http.Request) {
	_, s := e.session(req)
	rw.Header().Set("Content-Security-Policy", e.policy)
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	err := examplePage.Execute(rw,
		map[string]any{"Tenants": exampleTenants, "Tenant": s.tenant, "Life": s.life})
	if err != nil {
		e.log.Debug("cannot write the example's page", "error", err)
	}
}

// login begins a session of a tenant, which it signs up.
func (e *example) login(rw http.ResponseWriter, req *http.Request) {
	for _, t := range exampleTenants {
		if t.ID != req.FormValue("tenant") {
			continue
		}
		fields := map[string]string{"tenant_id": t.ID, "name": t.Name}
		if e.published(rw, req, events.TypeTenantCreated, fields) {
			id := rand.Text()
			e.mu.Lock()
			if len(e.sessions) > 1000 {
				clear(e.sessions)
			}
			e.sessions[id] = exampleSession{t.ID, time.Hour}
			e.mu.Unlock()
			http.SetCookie(rw, &http.Cookie{
				Name: exampleCookie, Value: id, Path: "/example", HttpOnly: true,
				SameSite: http.SameSiteStrictMode,
			})
			http.Redirect(rw, req, "/example", http.StatusSeeOther)
		}
		return
	}
	http.Error(rw, "unknown tenant", http.StatusBadRequest)
}

// life changes the life of the session's tokens.
func (e *example) life(rw http.ResponseWriter, req *http.Request) {
	seconds, err := strconv.Atoi(req.FormValue("seconds"))
	if err != nil || seconds < 1 || seconds > 3600 {
		http.Error(rw, "seconds: use 1 to 3600", http.StatusBadRequest)
		return
	}
	id, s := e.session(req)
	if s.tenant != "" {
		s.life = time.Duration(seconds) * time.Second
		e.mu.Lock()
		e.sessions[id] = s
		e.mu.Unlock()
	}
	http.Redirect(rw, req, "/example", http.StatusSeeOther)
}

// publish returns the handler that publishes an event about the session's tenant.
func (e *example) publish(eventType string) http.HandlerFunc {
	return func(rw http.ResponseWriter, req *http.Request) {
		_, s := e.session(req)
		fields := map[string]string{"tenant_id": s.tenant}
		if s.tenant == "" || e.published(rw, req, eventType, fields) {
			http.Redirect(rw, req, "/example", http.StatusSeeOther)
		}
	}
}

func (e *example) published(
	rw http.ResponseWriter, req *http.Request, eventType string, fields map[string]string,
) bool {
	event, err := worker.NewEvent(eventType, fields, time.Now())
	if err == nil {
		_, err = e.bus.Publish(req.Context(), event)
	}
	if err != nil {
		e.log.Warn("the example cannot publish", "error", err)
		http.Error(rw, "cannot publish; try again", http.StatusServiceUnavailable)
	}
	return err == nil
}

// token answers the element: with the token of the session's tenant, or with the worker's error.
func (e *example) token(rw http.ResponseWriter, req *http.Request) {
	_, s := e.session(req)
	status := http.StatusUnauthorized
	body := any(&events.ServiceError{Code: "LOG_IN", Message: "log in first"})
	if s.tenant != "" {
		token, err := requestToken(req.Context(), e.bus, s.tenant, s.life)
		var refused *events.ServiceError
		switch {
		case err == nil:
			status, body = http.StatusOK, token
		case errors.As(err, &refused):
			status, body = refused.Status, refused
		default:
			e.log.Warn("the example gets no token", "error", err)
			refused = &events.ServiceError{Code: "UNAVAILABLE", Message: "try again", RetryAfter: 2}
			status, body = http.StatusServiceUnavailable, refused
		}
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Cache-Control", "no-store")
	rw.WriteHeader(status)
	_ = json.MarshalWrite(rw, body)
}
