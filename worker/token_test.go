package worker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
)

// request asks an endpoint as a caller does. The answer fits its schema, and so does a request that is not
// refused; one on a tenant's own subject need not name the tenant again.
func (w *world) request(endpoint, body string) *nats.Msg {
	w.t.Helper()
	reply, err := w.nc.Request("papermap.rpc."+endpoint, []byte(body), 10*time.Second)
	w.must(err)
	name, _, ofTenant := strings.Cut(endpoint, ".")
	if reply.Header.Get("Nats-Service-Error-Code") != "" {
		schematest.Validate(w.t, "error", reply.Data)
		return reply
	}
	schematest.Validate(w.t, name+".reply", reply.Data)
	if !ofTenant {
		schematest.Validate(w.t, name+".request", []byte(body))
	}
	return reply
}

// token requests an embed token.
func (w *world) token(body string) worker.EmbedToken {
	w.t.Helper()
	reply := w.request("embed-token", body)
	var token worker.EmbedToken
	if err := json.Unmarshal(reply.Data, &token); err != nil || token.Token == "" {
		w.t.Fatalf("request %s: no token but %v %s", body, reply.Header, reply.Data)
	}
	w.tokens = append(w.tokens, token.Token)
	return token
}

// refused makes a request and expects this error, in every way that it is told. It returns retry_after.
func (w *world) refused(endpoint, body string, status int, code string) int {
	w.t.Helper()
	reply := w.request(endpoint, body)
	var e struct {
		Code       string `json:"code"`
		Message    string `json:"message"`
		RetryAfter int    `json:"retry_after"`
	}
	err := json.Unmarshal(reply.Data, &e)
	if reply.Header.Get("Nats-Service-Error-Code") != strconv.Itoa(status) || reply.Header.Get("Nats-Service-Error") == "" || err != nil || e.Code != code || e.Message == "" {
		w.t.Errorf("request %.100q: %v %s, want %d %s", body, reply.Header, reply.Data, status, code)
	}
	return e.RetryAfter
}

// opens loads the page of an iframe from the simulator and fails the test unless it shows the dashboard.
func (w *world) opens(token worker.EmbedToken, title string) {
	w.t.Helper()
	answer, err := http.Get(token.EmbedURL)
	w.must(err)
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	w.must(err)
	if answer.StatusCode != http.StatusOK || !strings.Contains(string(page), "<h1>"+title+"</h1>") {
		w.t.Errorf("the page of tenant %q: status %d\n%s", token.TenantID, answer.StatusCode, page)
	}
}

func TestATokenOpensTheTenantsDashboardAndNothingElse(t *testing.T) {
	onBoth(t, testATokenOpensTheTenantsDashboardAndNothingElse)
}

func testATokenOpensTheTenantsDashboardAndNothingElse(t *testing.T) {
	w := start(t, options{})
	w.publish(events.TypeTenantCreated, `{"tenant_id":"in a","name":"A"}`)
	w.publish(events.TypeTenantCreated, `{"tenant_id":"in b/ü.*>","name":"B","workspace_id":"ws-b"}`)
	eventually(t, soon, w.are(repo.Active, "in a", "in b/ü.*>"))
	for _, c := range []struct {
		tenant, title string
		workspace     papermap.Workspace
	}{
		{"in a", "Dashboard - A", workspaceA},
		{"in b/ü.*>", "Dashboard - B", workspaceB},
	} {
		before := time.Now().Unix()
		token := w.token(object("tenant_id", c.tenant, "workspace_id", c.workspace.ID))
		claims, err := papermap.ParseToken(token.Token)
		w.must(err)
		m := w.mapping(c.tenant)
		if err := claims.Verify(c.workspace.EmbedKey, time.Now()); err != nil {
			t.Error(err)
		}
		if claims.TenantID != c.tenant || claims.WorkspaceID != c.workspace.ID || claims.DashboardID != m.DashboardID || claims.ValidUntil != token.ExpiresAt ||
			token.TenantID != c.tenant || token.WorkspaceID != c.workspace.ID || token.DashboardID != m.DashboardID {
			t.Errorf("token %+v, claims %+v, mapping %+v", token, claims, m)
		}
		if life := token.ExpiresAt - before; life < 3600 || life > 3610 || token.RefreshAfter != token.ExpiresAt-720 {
			t.Errorf("expires after %d s, refresh %d s before that; want 3600 and 720", life, token.ExpiresAt-token.RefreshAfter)
		}
		w.opens(token, c.title)
	}
	if n := len(w.requests("create")); n != 2 || len(w.requests("usage")) > 0 {
		t.Errorf("minting called the API: %+v", w.sim.Log())
	}
}

func TestATokensLifeIsAsAskedAndNeverBeyondTheLongest(t *testing.T) {
	onBoth(t, testATokensLifeIsAsAskedAndNeverBeyondTheLongest)
}

func testATokensLifeIsAsAskedAndNeverBeyondTheLongest(t *testing.T) {
	w := start(t, options{})
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	for asked, want := range map[string]int64{"1": 1, "10": 10, "3601": 3601, "7200": 7200, "7201": 7200, "9223372036854775807": 7200} {
		before := time.Now().Unix()
		token := w.token(`{"tenant_id":"t","ttl_seconds":` + asked + `}`)
		if life := token.ExpiresAt - before; life < want || life > want+10 {
			t.Errorf("asked for %s, got %d s, want %d", asked, life, want)
		}
		if refresh := token.ExpiresAt - token.RefreshAfter; refresh < want/5 || refresh > want/5+1 { // when 80 % are over
			t.Errorf("asked for %s: refresh %d s before the end of %d", asked, refresh, want)
		}
	}
}

func TestEveryRequestThatGetsNoTokenIsToldWhy(t *testing.T) {
	onBoth(t, testEveryRequestThatGetsNoTokenIsToldWhy)
}

func testEveryRequestThatGetsNoTokenIsToldWhy(t *testing.T) {
	w := start(t, options{
		config: func(c *worker.Config) { c.Hold, c.Grace = true, 100*time.Millisecond },
		faults: []string{
			"tenant=pending status=503 retry-after=900", "tenant=creating delay=1m", "tenant=held drop=after", "tenant=failed status=400",
		},
	})
	w.create("active", "pending", "held", "failed", "suspended", "deleted")
	w.publish(events.TypeTenantSuspended, object("tenant_id", "suspended"))
	w.publish(events.TypeTenantDeleted, object("tenant_id", "deleted"))
	w.publish(events.TypeTenantResumed, object("tenant_id", "resumed alone"))
	for _, status := range []repo.Status{repo.Active, repo.Held, repo.Failed, repo.Suspended, repo.Deleted} {
		eventually(t, soon, w.are(status, string(status)))
	}
	eventually(t, soon, w.are(repo.Pending, "resumed alone"))
	eventually(t, soon, func() error {
		if got := w.outcomes("pending"); got != "refused" {
			return fmt.Errorf("attempts %q", got)
		}
		return w.are(repo.Pending, "pending")()
	})

	for _, body := range []string{
		``, ` `, `null`, `[]`, `"active"`, `{}`, `{"tenant_id":null}`, `{"tenant_id":7}`, `{"tenant_id":""}`, `{"tenant_id":" active"}`,
		`{"tenant_id":"a\u0007"}`, `{"tenant_id":"` + strings.Repeat("x", 256) + `"}`, "{\"tenant_id\":\"active\xff\"}", `{"Tenant_ID":"active"}`,
		`{"tenant_id":"active","tenant_id":"active"}`, `{"tenant_id":"active"}{}`, `{"tenant_id":"active","ttl_seconds":0}`,
		`{"tenant_id":"active","ttl_seconds":-1}`, `{"tenant_id":"active","ttl_seconds":1.5}`, `{"tenant_id":"active","ttl_seconds":"60"}`,
		`{"tenant_id":"active","ttl_seconds":-99999999999999999999}`, `{"tenant_id":"active","workspace_id":"ws-b"}`, `{"tenant_id":"active","workspace_id":7}`,
	} {
		w.refused("embed-token", body, 400, "INVALID_REQUEST")
		if !strings.Contains(body, "ttl_seconds") {
			w.refused("dashboard", body, 400, "INVALID_REQUEST")
		}
	}
	w.create("creating")
	eventually(t, soon, w.are(repo.Creating, "creating"))
	w.refused("embed-token", object("tenant_id", "unknown"), 404, "TENANT_NOT_FOUND")
	w.refused("dashboard", object("tenant_id", "unknown"), 404, "TENANT_NOT_FOUND")
	w.refused("embed-token", object("tenant_id", "Active"), 404, "TENANT_NOT_FOUND")
	w.refused("embed-token", object("tenant_id", "suspended"), 403, "TENANT_SUSPENDED")
	w.refused("embed-token", object("tenant_id", "deleted"), 410, "TENANT_DELETED")
	for _, tenant := range []string{"pending", "creating", "held", "failed", "resumed alone"} {
		if after := w.refused("embed-token", object("tenant_id", tenant), 409, "DASHBOARD_NOT_READY"); after < 1 {
			t.Errorf("%s: no retry_after", tenant)
		}
	}
	for _, status := range []repo.Status{repo.Active, repo.Pending, repo.Creating, repo.Held, repo.Failed, repo.Suspended, repo.Deleted} {
		var d map[string]any
		w.must(json.Unmarshal(w.request("dashboard", object("tenant_id", string(status), "workspace_id", "ws-a")).Data, &d))
		m := w.mapping(string(status))
		var id any
		if m.DashboardID != "" {
			id = m.DashboardID
		}
		if d["tenant_id"] != m.TenantID || d["status"] != string(status) || d["dashboard_id"] != id || d["workspace_id"] != "ws-a" ||
			d["title"] != m.Title || d["created_at"] == nil || d["updated_at"] == nil || len(d) != 7 {
			t.Errorf("the mapping is told as %v, want %+v", d, m)
		}
	}
	w.token(object("tenant_id", "active"))

	for _, i := range w.workers { // and without a database, once what is in memory is no longer believed
		w.must(i.db.Close())
	}
	eventually(t, soon, func() error {
		for range 40 { // whichever worker answers: both
			if reply := w.request("embed-token", object("tenant_id", "active")); reply.Header.Get("Nats-Service-Error-Code") == "" {
				return errors.New("a token all the same")
			}
		}
		return nil
	})
	w.refused("embed-token", object("tenant_id", "active"), 503, "UNAVAILABLE")
}

func TestOnlyInboxesAreAnswered(t *testing.T) {
	onBoth(t, testOnlyInboxesAreAnswered)
}

func testOnlyInboxesAreAnswered(t *testing.T) {
	w := start(t, options{config: func(c *worker.Config) { c.ReplyPrefixes = []string{"answers.here"} }})
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	eventually(t, soon, w.relayed)
	before, err := w.js.Stream(t.Context(), "PAPERMAP")
	w.must(err)

	seen, err := w.nc.SubscribeSync(">")
	w.must(err)
	body := []byte(object("tenant_id", "t"))
	for _, reply := range []string{
		"papermap.events.tenant.created", "papermap.events.usage.sync", "$JS.API.STREAM.DELETE.PAPERMAP", "$JS.API.STREAM.PURGE.PAPERMAP",
		"_INBOX", "_INBOXES.x", "answers.hereafter", "papermap.rpc.embed-token",
	} {
		for _, endpoint := range []string{"embed-token", "dashboard"} {
			for _, data := range [][]byte{body, nil} { // errors are answers, too
				w.must(w.nc.PublishRequest("papermap.rpc."+endpoint, reply, data))
			}
		}
	}
	w.must(w.nc.Publish("papermap.rpc.embed-token", body))
	// One that is answered, after all those: they share one queue, which is worked off by several, so ask a few times.
	for range 100 {
		w.must(w.nc.PublishRequest("papermap.rpc.dashboard", "answers.here.x", body))
		w.request("dashboard", string(body))
	}
	answered := 0
	for {
		msg, err := seen.NextMsg(200 * time.Millisecond)
		if err != nil {
			break
		}
		switch first, _, _ := strings.Cut(msg.Subject, "."); {
		case msg.Subject == "answers.here.x":
			answered++
		case strings.HasPrefix(msg.Subject, "_INBOX."):
		case strings.HasPrefix(msg.Subject, "papermap.rpc.") && len(msg.Header) == 0 && (len(msg.Data) == 0 || string(msg.Data) == string(body)): // ours
		case first == "$JS" && !strings.HasPrefix(msg.Subject, "$JS.API.STREAM."): // pulls and acknowledgements
		case strings.HasPrefix(msg.Subject, "$JS.API.STREAM.INFO.") && msg.Reply != "":
		default:
			t.Errorf("an answer to %s: %s", msg.Subject, msg.Data)
		}
	}
	if answered != 100 {
		t.Errorf("%d answers under a configured prefix, want 100", answered)
	}
	after, err := w.js.Stream(t.Context(), "PAPERMAP")
	w.must(err)
	if b, a := before.CachedInfo(), after.CachedInfo(); a.State.LastSeq != b.State.LastSeq || a.State.Msgs != b.State.Msgs || !a.Created.Equal(b.Created) {
		t.Errorf("the stream was changed: %+v before, %+v after", b.State, a.State)
	}
}

func TestASuspendedTenantGetsNoTokenFromAnyReplica(t *testing.T) {
	onBoth(t, testASuspendedTenantGetsNoTokenFromAnyReplica)
}

func testASuspendedTenantGetsNoTokenFromAnyReplica(t *testing.T) {
	w := start(t, options{})
	for len(w.workers) < 3 {
		w.startWorker()
	}
	w.create("t")
	eventually(t, soon, w.are(repo.Active, "t"))
	for range 3 {
		w.publish(events.TypeTenantSuspended, object("tenant_id", "t"))
		eventually(t, soon, w.are(repo.Suspended, "t"))
		answers := func(refused bool) func() error {
			return func() error {
				for range 20 { // any of the three answers
					reply := w.request("embed-token", object("tenant_id", "t"))
					if got := reply.Header.Get("Nats-Service-Error-Code"); (got != "") != refused {
						return fmt.Errorf("answer %q %s", got, reply.Data)
					}
				}
				return nil
			}
		}
		eventually(t, 5*time.Second, answers(true)) // promise 6
		for range 20 {
			w.refused("embed-token", object("tenant_id", "t"), 403, "TENANT_SUSPENDED")
		}
		w.publish(events.TypeTenantResumed, object("tenant_id", "t"))
		eventually(t, soon, w.are(repo.Active, "t"))
		eventually(t, 5*time.Second, answers(false))
	}
}
