package e2e

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"papermap-worker/worker/workertest"
)

// TestBackendsAnswerTheElement runs the example backends, as <papermap-dashboard> and a person use
// them.
func TestBackendsAnswerTheElement(t *testing.T) {
	t.Parallel()
	s, nc := runWorker(t)
	s.create(t, nc, "org-1")
	s.create(t, nc, "org-2")
	run(t, s.env, "publish", "tenant-suspended", "org-2")
	s.status(t, "org-2", "suspended")
	for _, b := range []struct {
		language string
		folder   func(*testing.T) string
		command  func(port string) []string
	}{
		{"go", goExamples, func(string) []string { return []string{"./backend"} }},
		{"node", nodeExamples, func(string) []string { return []string{"node", "backend.mjs"} }},
		{"python", pythonExamples, func(port string) []string {
			return []string{"python3", "-m", "uvicorn", "backend:app", "--port", port}
		}},
	} {
		t.Run(b.language, func(t *testing.T) {
			dir := b.folder(t)
			free, err := workertest.FreePort()
			must(t, err)
			port := strconv.Itoa(free)
			command := b.command(port)
			c := exec.CommandContext(t.Context(), command[0], command[1:]...)
			web, err := os.Getwd()
			must(t, err)
			c.Dir, c.Stdout, c.Stderr = dir, t.Output(), t.Output()
			c.Env = append(os.Environ(), "NATS_URL="+nc.ConnectedUrl(), "PORT="+port,
				"WEB="+web+"/docs/examples/web")
			must(t, c.Start())
			t.Cleanup(func() {
				_ = c.Process.Kill()
				_ = c.Wait()
			})
			site := &visitor{t: t, base: "http://127.0.0.1:" + port}
			eventually(t, func() error {
				resp, err := http.Get(site.base + "/index.html")
				if err == nil {
					err = resp.Body.Close()
				}
				return err
			})
			site.wants("", 401, `"LOG_IN"`)
			site.wants("session=invented", 401, `"LOG_IN"`)
			site.login("ada")
			site.wants("", 200, `"tenant_id":"org-1"`)
			site.login("bob")
			site.wants("", 403, `"TENANT_SUSPENDED"`)
		})
	}
}

// create publishes tenant.created and waits for the dashboard.
func (s *system) create(t *testing.T, nc *nats.Conn, tenant string) {
	t.Helper()
	created, err := nc.SubscribeSync("papermap.events.dashboard.created")
	must(t, err)
	run(t, s.env, "publish", "tenant-created", tenant, "--name", tenant)
	if about := nextDashboard(t, created); about != tenant {
		t.Fatalf("a dashboard for %q, want one for %q", about, tenant)
	}
}

// visitor is a person's browser at a backend.
type visitor struct {
	t      *testing.T
	base   string
	client http.Client
}

func (v *visitor) login(user string) {
	v.t.Helper()
	var err error
	v.client.Jar, err = cookiejar.New(nil)
	must(v.t, err)
	answer, text, err := read(v.client.PostForm(v.base+"/login", url.Values{"user": {user}}))
	must(v.t, err)
	if answer.StatusCode != http.StatusOK || !strings.Contains(text, "<papermap-dashboard") {
		v.t.Fatalf("log-in: %s", answer.Status)
	}
}

// wants requests a token as the element does; what the browser says of a tenant changes nothing.
func (v *visitor) wants(cookie string, status int, body string) {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), "POST", v.base+"/dashboard-token?tenant_id=org-1",
		strings.NewReader(`{"tenant_id":"org-1"}`))
	must(v.t, err)
	if cookie != "" {
		req.Header.Set("Cookie", cookie)
	}
	answer, text, err := read(v.client.Do(req))
	must(v.t, err)
	text = strings.ReplaceAll(text, `": "`, `":"`)
	if answer.StatusCode != status || !strings.Contains(text, body) ||
		answer.Header.Get("Cache-Control") != "no-store" ||
		!strings.HasPrefix(answer.Header.Get("Content-Type"), "application/json") {
		v.t.Errorf("got %s, %v, %s; want %d with %s", answer.Status, answer.Header, text, status, body)
	}
}

// pythonExamples returns the folder of the Python examples. Where FastAPI is not installed, it
// skips the test.
func pythonExamples(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "python3", "-c", "import fastapi, multipart, nats, uvicorn").
		CombinedOutput()
	if err != nil {
		t.Skipf("FastAPI, uvicorn, python-multipart or nats-py is not installed: %s", out)
	}
	return "docs/examples/python"
}
