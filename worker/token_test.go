package worker_test

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"papermap-worker/worker"
)

// request asks an endpoint as a caller does.
func (w *world) request(endpoint, body string) *nats.Msg {
	w.t.Helper()
	reply, err := w.nc.Request("papermap.rpc."+endpoint, []byte(body), 10*time.Second)
	w.must(err)
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
