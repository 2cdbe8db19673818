package ops

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"go.opentelemetry.io/otel/trace"

	"papermap-worker/events"
	"papermap-worker/repo"
	"papermap-worker/worker"
)

// openAPI documents the REST API. A test compares it with the routes.
//
//go:embed openapi.json
var openAPI []byte

const (
	maxBody    = 64 << 10         // bytes
	createWait = 10 * time.Second // for the outcome of a create
	maxListed  = 1000
	maxReason  = 500 // characters, as in the console
)

// problem is an error answer (RFC 9457).
type problem struct {
	status int
	detail string
}

func (p *problem) Error() string { return p.detail }

// reason is the label of papermap_http_refused_total.
func (p *problem) reason() string {
	switch {
	case p == errMissing:
		return "no_token"
	case p == errInvalid:
		return "invalid_token"
	case p.status == http.StatusForbidden:
		return "access_denied"
	case p.status == http.StatusNotFound:
		return "not_found"
	}
	return "invalid_request"
}

// rest is the REST API.
type rest struct {
	w       *worker.Worker
	auth    *verifier
	origins []string     // whose pages may call it
	tracer  trace.Tracer // nil: no spans
	log     *slog.Logger
}

// route is one operation of the API. Its path may end in a slash.
type route struct {
	method, path string
	access       access
	action       string // the name of what it changes, for the log; empty: nothing
	handle       func(*rest, http.ResponseWriter, *http.Request, claims) error
}

// access is what a route requires of its caller.
type access int

const (
	admins      access = iota // the scope papermap:admin
	pathTenant                // or a claim of the path's tenant
	queryTenant               // or a claim of the query's tenant
	bodyTenant                // or what the handler checks
)

var routes = []route{
	{"POST", "/api/v1/dashboards", bodyTenant, "create", (*rest).create},
	{"GET", "/api/v1/dashboards", admins, "", (*rest).list},
	{"GET", "/api/v1/dashboards/{tenant_id}", pathTenant, "", (*rest).show},
	{"DELETE", "/api/v1/dashboards/{tenant_id}", admins, "delete", change(events.TypeTenantDeleted)},
	{"POST", "/api/v1/dashboards/{tenant_id}/embed-token", pathTenant, "", (*rest).embedToken},
	{"POST", "/api/v1/dashboards/{tenant_id}/suspend", admins, "suspend", change(events.TypeTenantSuspended)},
	{"POST", "/api/v1/dashboards/{tenant_id}/resume", admins, "resume", change(events.TypeTenantResumed)},
	{"GET", "/api/v1/usage", queryTenant, "", (*rest).usage},
	{"GET", "/api/v1/usage/budgets/{tenant_id}", admins, "", (*rest).showBudget},
	{"PUT", "/api/v1/usage/budgets/{tenant_id}", admins, "budget-set", (*rest).setBudget},
	{"DELETE", "/api/v1/usage/budgets/{tenant_id}", admins, "budget-unset", (*rest).unsetBudget},
}

func (a *rest) register(mux *http.ServeMux) {
	handle := func(method, path string, handler http.HandlerFunc) {
		mux.HandleFunc(method+" "+path, handler)
		mux.HandleFunc(method+" "+path+"/{$}", handler)
	}
	handle("GET", "/api/v1/openapi.json", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_, _ = rw.Write(openAPI)
	})
	for _, r := range routes {
		handle(r.method, r.path, a.traced(r, func(rw http.ResponseWriter, req *http.Request) {
			a.allowOrigin(rw, req)
			rw.Header().Set("Cache-Control", "no-store")
			if c, err := a.serve(r, rw, req); err != nil {
				a.refuse(rw, req, c, err)
			}
		}))
	}
	mux.HandleFunc("OPTIONS /api/v1/", func(rw http.ResponseWriter, req *http.Request) {
		if a.allowOrigin(rw, req) {
			rw.Header().Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
			rw.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
			rw.Header().Set("Access-Control-Max-Age", "600")
		}
		rw.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/api/", func(rw http.ResponseWriter, req *http.Request) {
		none := &problem{http.StatusNotFound, "No such resource: see /api/v1/openapi.json"}
		a.refuse(rw, req, claims{}, none)
	})
}

// allowOrigin lets a browser read the answer when its page is from an origin of the list.
func (a *rest) allowOrigin(rw http.ResponseWriter, req *http.Request) bool {
	rw.Header().Add("Vary", "Origin")
	origin := req.Header.Get("Origin")
	if origin == "" || !slices.Contains(a.origins, origin) {
		return false
	}
	rw.Header().Set("Access-Control-Allow-Origin", origin)
	return true
}

// serve calls the route's handler if the caller has access. It returns who that is.
func (a *rest) serve(r route, rw http.ResponseWriter, req *http.Request) (claims, error) {
	c, err := a.auth.verify(req)
	if err != nil {
		return c, err
	}
	query := req.URL.Query()
	switch permitted := c.admin(); {
	case permitted, r.access == bodyTenant:
	case r.access == pathTenant && c.permits(req.PathValue("tenant_id")):
	case r.access == queryTenant && len(query["tenant_id"]) == 1 && c.permits(query.Get("tenant_id")):
	default:
		return c, errDenied
	}
	if id := req.PathValue("tenant_id"); id != "" {
		if err := events.ValidateTenantID(id); err != nil {
			return c, &problem{http.StatusBadRequest, err.Error()}
		}
	}
	req.Body = http.MaxBytesReader(rw, req.Body, maxBody)
	req = req.WithContext(worker.WithActor(req.Context(), worker.Actor{Via: worker.ViaREST, Name: c.actor()}))
	if err := r.handle(a, rw, req, c); err != nil {
		return c, err
	}
	if r.action != "" {
		a.log.InfoContext(req.Context(), "REST action", "action", r.action, "actor", c.actor(),
			"tenant_id", req.PathValue("tenant_id"), "remote", req.RemoteAddr)
	}
	return c, nil
}

// refuse answers with a problem. What is not the caller's mistake goes to the log alone.
func (a *rest) refuse(rw http.ResponseWriter, req *http.Request, c claims, err error) {
	var p *problem
	var known *events.ServiceError
	var tooLarge *http.MaxBytesError
	code := ""
	switch {
	case errors.As(err, &p):
		a.w.Refused(req, p.reason(), c.actor(), err)
	case errors.As(err, &known):
		p, code = &problem{known.Status, known.Message}, known.Code
		if known.RetryAfter > 0 {
			rw.Header().Set("Retry-After", strconv.Itoa(known.RetryAfter))
		}
		if known.Status == http.StatusBadRequest {
			a.w.Refused(req, p.reason(), c.actor(), err)
		}
	case errors.As(err, &tooLarge):
		p = &problem{
			http.StatusRequestEntityTooLarge, fmt.Sprintf("The body is larger than %d bytes", maxBody),
		}
		a.w.Refused(req, p.reason(), c.actor(), err)
	default:
		a.log.ErrorContext(req.Context(), "a request failed",
			"method", req.Method, "path", req.URL.Path, "error", err)
		p = &problem{http.StatusServiceUnavailable, "The worker cannot answer now; try again"}
	}
	if p.status == http.StatusUnauthorized {
		rw.Header().Set("WWW-Authenticate", "Bearer")
	}
	rw.Header().Set("Content-Type", "application/problem+json")
	writeJSON(rw, p.status, struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Code   string `json:"code,omitempty"`
	}{"about:blank", http.StatusText(p.status), p.status, p.detail, code})
}

// body reads the request's JSON object, as strictly as an event; an empty body is an empty object.
func body(req *http.Request, fields map[string]any) error {
	for _, coding := range req.Header.Values("Content-Encoding") {
		if !strings.EqualFold(strings.TrimSpace(coding), "identity") && strings.TrimSpace(coding) != "" {
			return &problem{
				http.StatusUnsupportedMediaType,
				"The body has a Content-Encoding: send it without, as plain JSON",
			}
		}
	}
	data, err := io.ReadAll(req.Body)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return err
	}
	if err != nil {
		return &problem{http.StatusBadRequest, "The body did not come whole, or not in time"}
	}
	if len(data) == 0 {
		return nil
	}
	if err := events.DecodeObject(data, fields); err != nil {
		return &problem{http.StatusBadRequest, err.Error()}
	}
	return nil
}

// mapping is a tenant's mapping as REST shows it.
type mapping struct {
	worker.Dashboard
	Description *string `json:"description"` // null: none
	CreatedBy   *string `json:"created_by"`  // null: not known
}

func mappingOf(d worker.Dashboard) mapping { return mapping{d, d.Description, d.CreatedBy} }

// create publishes tenant.created. A tenant may create its own dashboard, with fields that decide
// nothing for others.
func (a *rest) create(rw http.ResponseWriter, req *http.Request, c claims) error {
	var tenantID, workspaceID, name, title, description, createdBy, dashboardID string
	err := body(req, map[string]any{
		"tenant_id": &tenantID, "workspace_id": &workspaceID, "name": &name, "title": &title,
		"description": &description, "created_by": &createdBy, "dashboard_id": &dashboardID,
	})
	own := !c.admin()
	switch {
	case own && !slices.Contains(c.scopes, createScope):
		return errDenied
	case err != nil:
		return err
	case own && !c.permits(tenantID):
		return errDenied
	case own && (workspaceID != "" || createdBy != "" || dashboardID != ""):
		return &problem{http.StatusForbidden,
			"Access denied: workspace_id, created_by and dashboard_id need the scope " + adminScope}
	}
	fields := map[string]string{
		"tenant_id": tenantID, "workspace_id": workspaceID, "name": name, "title": title,
		"description": description, "created_by": cmp.Or(createdBy, c.creator()),
		"dashboard_id": dashboardID,
	}
	ctx, cancel := context.WithTimeout(req.Context(), createWait)
	defer cancel()
	create := a.w.Create
	if own {
		create = a.w.CreateUnknown
	}
	d, err := create(ctx, fields)
	if err != nil {
		return err
	}
	rw.Header().Set("Location", "/api/v1/dashboards/"+url.PathEscape(tenantID))
	status := http.StatusAccepted
	if d.DashboardID != nil && d.Status != repo.Deleted { // else it is the one before the deletion
		status = http.StatusCreated
	}
	reply(rw, status, mappingOf(d))
	return nil
}

func (a *rest) list(rw http.ResponseWriter, req *http.Request, _ claims) error {
	q := req.URL.Query()
	status, limit := repo.Status(q.Get("status")), 100
	if status != "" && !slices.Contains(repo.Statuses(), status) {
		return &problem{http.StatusBadRequest, fmt.Sprintf("status is one of %v", repo.Statuses())}
	}
	if text := q.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxListed {
			return &problem{http.StatusBadRequest, fmt.Sprintf("limit is 1 to %d", maxListed)}
		}
	}
	cursor := q.Get("cursor")
	if cursor != "" && events.ValidateTenantID(cursor) != nil {
		return &problem{http.StatusBadRequest, "cursor is no next_cursor of a page"}
	}
	list, err := a.w.Tenants(req.Context(), status, cursor, limit)
	if err != nil {
		return err
	}
	answer := struct {
		Dashboards []mapping `json:"dashboards"`
		Next       string    `json:"next_cursor,omitempty"`
	}{make([]mapping, len(list)), ""}
	for i, d := range list {
		answer.Dashboards[i] = mappingOf(d)
	}
	if len(list) == limit {
		answer.Next = list[limit-1].TenantID
	}
	reply(rw, http.StatusOK, answer)
	return nil
}

func (a *rest) show(rw http.ResponseWriter, req *http.Request, _ claims) error {
	d, err := a.w.Dashboard(req.Context(), worker.DashboardRequest{TenantID: req.PathValue("tenant_id")})
	return writeAnswer(rw, mappingOf(d), err)
}

func (a *rest) embedToken(rw http.ResponseWriter, req *http.Request, _ claims) error {
	q := worker.TokenRequest{TenantID: req.PathValue("tenant_id")}
	if err := body(req, map[string]any{"ttl_seconds": &q.TTLSeconds}); err != nil {
		return err
	}
	token, err := a.w.EmbedToken(req.Context(), q)
	return writeAnswer(rw, token, err)
}

func (a *rest) usage(rw http.ResponseWriter, req *http.Request, _ claims) error {
	query := req.URL.Query()
	q := worker.UsageRequest{
		TenantID: query.Get("tenant_id"), WorkspaceID: query.Get("workspace_id"),
		FromPeriod: query.Get("from_period"), ToPeriod: query.Get("to_period"),
	}
	for name, dest := range map[string]**int64{"page": &q.Page, "per_page": &q.PerPage} {
		if !query.Has(name) {
			continue
		}
		n, err := strconv.ParseInt(query.Get(name), 10, 64)
		if err != nil {
			return &problem{http.StatusBadRequest, name + " is a whole number"}
		}
		*dest = &n
	}
	page, err := a.w.Usage(req.Context(), q)
	return writeAnswer(rw, page, err)
}

// writeAnswer writes what the worker answers, as it does over NATS.
func writeAnswer[A any](rw http.ResponseWriter, v A, err error) error {
	if err != nil {
		return err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	rw.Header().Set("Content-Type", "application/json")
	_, _ = rw.Write(data)
	return nil
}

// change publishes a tenant's suspension, resumption or deletion and answers what was seen of it:
// 200 with the mapping when it is in force, else 202.
func change(eventType string) func(*rest, http.ResponseWriter, *http.Request, claims) error {
	return func(a *rest, rw http.ResponseWriter, req *http.Request, _ claims) error {
		var reason string
		if err := body(req, map[string]any{"reason": &reason}); err != nil {
			return err
		}
		if utf8.RuneCountInString(reason) > maxReason {
			return &problem{http.StatusBadRequest,
				fmt.Sprintf("reason has more than %d characters", maxReason)}
		}
		c, err := a.w.ChangeAccess(req.Context(), eventType, req.PathValue("tenant_id"), reason)
		if err == nil && !c.InForce {
			reply(rw, http.StatusAccepted, map[string]string{"event_id": c.EventID})
			return nil
		}
		return writeAnswer(rw, mappingOf(c.After), err)
	}
}
