package workertest

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/schema/schematest"
	"papermap-worker/worker"
)

// Publish publishes an event as an upstream service does, and returns its sequence in the stream.
// headers are pairs.
func (w *World) Publish(eventType, body string, headers ...string) uint64 {
	w.t.Helper()
	msg := &nats.Msg{Subject: "papermap.events." + eventType, Header: nats.Header{}, Data: []byte(body)}
	for i := 0; i+1 < len(headers); i += 2 {
		msg.Header[headers[i]] = []string{headers[i+1]}
	}
	w.delay()
	ack, err := w.JS.PublishMsg(w.t.Context(), msg)
	w.Must(err)
	return ack.Sequence
}

// Create publishes a plain tenant.created for each tenant.
func (w *World) Create(tenants ...string) {
	w.t.Helper()
	for _, tenant := range tenants {
		w.Publish(events.TypeTenantCreated, Object("tenant_id", tenant, "name", tenant))
	}
}

// PublishAt publishes an event about a tenant that says when the event happened.
func (w *World) PublishAt(when time.Time, eventType, tenant string) {
	w.t.Helper()
	w.Publish(eventType, Object("tenant_id", tenant, "name", tenant),
		"ce-specversion", "1.0", "ce-id", eventType+when.String(), "ce-source", "/test",
		"ce-time", when.UTC().Format(time.RFC3339Nano))
}

// Sync publishes a usage.sync with this event id. fields are pairs.
func (w *World) Sync(id string, fields ...string) {
	w.t.Helper()
	w.Publish(events.TypeUsageSync, Object(fields...), "Nats-Msg-Id", id)
}

// Object returns a JSON object of strings, from pairs.
func Object(pairs ...string) string {
	fields := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		fields[pairs[i]] = pairs[i+1]
	}
	text, err := json.Marshal(fields, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	return string(text)
}

// Names returns n tenant ids: prefix-0000, prefix-0001 and so on.
func Names(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s-%04d", prefix, i)
	}
	return list
}

// Request sends a request to an endpoint, such as embed-token or embed-token.acme, and checks that
// the answer fits its schema, and, unless it is refused, that the request does. On a tenant's own
// subject it need not name the tenant again.
func (w *World) Request(endpoint, body string) *nats.Msg {
	w.t.Helper()
	w.delay()
	reply, err := w.Conn.Request("papermap.rpc."+endpoint, []byte(body), 10*time.Second)
	w.Must(err)
	name, _, ofTenant := strings.Cut(endpoint, ".")
	if Refusal(reply) != "" {
		schematest.Validate(w.t, "error", reply.Data)
		return reply
	}
	schematest.Validate(w.t, name+".reply", reply.Data)
	if !ofTenant {
		schematest.Validate(w.t, name+".request", []byte(body))
	}
	return reply
}

// Refusal returns the status of an answer that is an error, such as 404; empty for others.
func Refusal(reply *nats.Msg) string { return reply.Header.Get("Nats-Service-Error-Code") }

// Token requests an embed token for a tenant.
func (w *World) Token(tenant string) worker.EmbedToken {
	w.t.Helper()
	return w.TokenFor(Object("tenant_id", tenant))
}

// TokenFor requests an embed token with this body.
func (w *World) TokenFor(body string) worker.EmbedToken {
	w.t.Helper()
	return w.TokenOn("embed-token", body)
}

// TokenOn requests an embed token from an endpoint, which may be a tenant's own. The token must not
// appear anywhere when the test ends.
func (w *World) TokenOn(endpoint, body string) worker.EmbedToken {
	w.t.Helper()
	reply := w.Request(endpoint, body)
	var token worker.EmbedToken
	if err := json.Unmarshal(reply.Data, &token); err != nil || token.Token == "" {
		w.t.Fatalf("request %s of %s: no token but %v %s", body, endpoint, reply.Header, reply.Data)
	}
	w.Minted(token.Token)
	return token
}

// Refused makes a request and checks that the answer is this error, in the headers and in the body.
// It returns retry_after, in seconds.
func (w *World) Refused(endpoint, body string, status int, code string) int {
	w.t.Helper()
	reply := w.Request(endpoint, body)
	var e struct {
		Code       string `json:"code"`
		Message    string `json:"message"`
		RetryAfter int    `json:"retry_after"`
	}
	err := json.Unmarshal(reply.Data, &e)
	if Refusal(reply) != strconv.Itoa(status) || reply.Header.Get("Nats-Service-Error") == "" ||
		err != nil || e.Code != code || e.Message == "" {
		w.t.Errorf("request %.100q: %v %s, want %d %s", body, reply.Header, reply.Data, status, code)
	}
	return e.RetryAfter
}

// Opens loads the page of an iframe from the simulator and checks that it shows the dashboard with
// this title.
func (w *World) Opens(token worker.EmbedToken, title string) {
	w.t.Helper()
	status, page := w.Load(token)
	if status != http.StatusOK || !strings.Contains(page, "<h1>"+title+"</h1>") {
		w.t.Errorf("the page of tenant %q: status %d\n%s", token.TenantID, status, page)
	}
}

// Load loads the page of an iframe from the simulator.
func (w *World) Load(token worker.EmbedToken) (status int, page string) {
	w.t.Helper()
	answer, err := w.HTTP.Get(token.EmbedURL)
	w.Must(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	w.Must(err)
	return answer.StatusCode, string(text)
}

// Claims reads a token without checking its signature.
func (w *World) Claims(token worker.EmbedToken) papermap.Claims {
	w.t.Helper()
	claims, err := papermap.ParseToken(token.Token)
	w.Must(err)
	return claims
}

// Minted registers a token that the test got in another way: it must not appear anywhere when the
// test ends.
func (w *World) Minted(token string) { w.tokens = append(w.tokens, token) }
