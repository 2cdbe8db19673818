package e2e

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// operatorClient calls a worker's REST API, and its console as somebody who has logged in.
type operatorClient struct {
	t             *testing.T
	address       string
	client        http.Client
	authorization string
}

func (v *operatorClient) do(method, path string, form url.Values) (status int, body string) {
	v.t.Helper()
	var content io.Reader = http.NoBody
	if form != nil {
		content = strings.NewReader(form.Encode())
	}
	request, err := http.NewRequest(method, "http://"+v.address+path, content)
	must(v.t, err)
	if strings.HasPrefix(path, "/api/") {
		request.Header.Set("Authorization", v.authorization)
	} else {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	answer, err := v.client.Do(request)
	must(v.t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(v.t, err)
	return answer.StatusCode, string(text)
}

func TestNATSPermissionsCoverRESTAndConsole(t *testing.T) {
	t.Parallel()
	for file, prefixes := range map[string]string{
		"server.conf": "_INBOX_backend,_INBOX_tenant.{tenant}", "accounts.conf": "",
	} {
		t.Run(file, func(t *testing.T) {
			j := &natsJob{server: startNATS(t, file), system: newSystem(t)}
			key := strings.Repeat("secret", 6)
			env := append(j.system.env, j.env("worker")...)
			env = append(env, "NATS_REPLY_PREFIXES="+prefixes, "HTTP_JWT_SECRET="+key,
				"CONSOLE_TOKEN=token-of-the-console-1234567890")
			j.worker = start(t, env, "serve")
			j.stop = sync.OnceFunc(func() { j.worker.stop(t) })
			j.worker.says(t, `"stream":"PAPERMAP_DEAD"`)
			publisher, backend := natsDial(t, j.server, "publisher"), natsDial(t, j.server, "backend")
			j.run(t, publisher, backend)
			j.deadLetter(t, publisher)

			token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"scope": "papermap:admin",
				"sub": "ann", "exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(key))
			must(t, err)
			jar, err := cookiejar.New(nil)
			must(t, err)
			v := &operatorClient{t, j.worker.address(t), http.Client{Jar: jar}, "Bearer " + token}
			if status, body := v.do("POST", "/api/v1/dashboards/org-123/suspend", nil); status != 200 {
				t.Errorf("suspending over REST: %d %s", status, body)
			}
			v.do("POST", "/login", url.Values{"token": {"token-of-the-console-1234567890"}})
			for path, want := range map[string]string{
				"/dead": "tenant.deleted", "/dead/1": "is missing", "/dead/1/data": `{"tenant":"is missing"}`,
				"/tenant?id=org-123": "tenant.suspended",
			} {
				status, body := v.do("GET", path, nil)
				if status != 200 || !strings.Contains(body, want) ||
					strings.Contains(body, "may not read it") {
					t.Errorf("%s: %d, without %q or with a part left out:\n%s", path, status, want, body)
				}
			}
			for _, action := range []string{"/dead/replay", "/dead/discard"} {
				var number string
				eventually(t, func() error { // a replay ends as another dead letter
					_, list := v.do("GET", "/dead", nil)
					_, rest, found := strings.Cut(list, `href="/dead/`)
					number, _, _ = strings.Cut(rest, `"`)
					if !found || number == "1" && action == "/dead/discard" {
						return io.ErrNoProgress
					}
					return nil
				})
				if status, body := v.do("POST", action, url.Values{"sequence": {number}}); status != 200 {
					t.Errorf("%s: %d %s", action, status, body)
				}
			}
			text := start(t, env, "doctor")
			text.wait(t)
			if strings.Contains(text.text(), "may not publish") {
				t.Errorf("doctor says\n%s", text.text())
			}
			headless := start(t, append(env, j.env("worker-headless")...), "doctor")
			headless.wait(t)
			for _, subject := range []string{"papermap.events.tenant.suspended",
				"$JS.API.CONSUMER.CREATE.PAPERMAP_DEAD.", "$JS.API.STREAM.MSG.DELETE.PAPERMAP_DEAD"} {
				if !strings.Contains(headless.text(), "may not publish "+subject) {
					t.Errorf("doctor does not miss the right to publish %s:\n%s", subject, headless.text())
				}
			}
			j.clean(t)
		})
	}
}
