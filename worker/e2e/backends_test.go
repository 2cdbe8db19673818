package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"papermap-worker/worker/workertest"
	"papermap-worker/worker/workertest/browser"
)

// TestBackendsShowDashboards runs the example backends and logs in to them in a browser, and without
// one, to see what they answer <papermap-dashboard>.
func TestBackendsShowDashboards(t *testing.T) {
	t.Parallel()
	const secret = "a secret of the tests that is long enough"
	s := newSystem(t)
	s.jetStream(t)
	worker := startReady(t, append(s.env, "HTTP_JWT_SECRET="+secret))
	t.Cleanup(func() { worker.stop(t) })
	s.create(t, "org-1")
	s.create(t, "org-2")
	run(t, s.env, "publish", "tenant-suspended", "org-2")
	s.status(t, "org-2", "suspended")
	web := t.TempDir()
	must(t, os.CopyFS(web, os.DirFS("docs/examples/web")))
	element, err := os.ReadFile("worker/ops/embed/papermap-embed.js")
	must(t, err)
	must(t, os.WriteFile(web+"/papermap-embed.js", element, 0o600))
	env := append(os.Environ(), "NATS_URL="+s.nats.URL(), "WEB="+web,
		"WORKER_URL=http://"+worker.address(t), "HTTP_JWT_SECRET="+secret)
	for _, b := range []struct {
		language string
		command  func(t *testing.T, port string) *exec.Cmd
	}{
		{"go", func(t *testing.T, _ string) *exec.Cmd { return exec.Command(goExamples(t) + "/backend") }},
		{"node", func(t *testing.T, _ string) *exec.Cmd {
			return exec.Command("node", nodeExamples(t)+"/backend.mjs")
		}},
		{"python", func(t *testing.T, port string) *exec.Cmd {
			return exec.Command(python(t, "fastapi", "jwt", "multipart", "uvicorn"),
				"-m", "uvicorn", "--app-dir", "docs/examples/python", "backend:app", "--port", port)
		}},
	} {
		t.Run(b.language, func(t *testing.T) {
			free, err := workertest.FreePort()
			must(t, err)
			port := strconv.Itoa(free)
			c := b.command(t, port)
			c.Stdout, c.Stderr = t.Output(), t.Output()
			c.Env = append(env, "PORT="+port, "PYTHONDONTWRITEBYTECODE=1")
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
			if !raceDetector {
				site.browse()
			}
		})
	}
}

// browse logs in as a person does, and looks at the dashboard.
func (v *visitor) browse() {
	v.t.Helper()
	tab := browser.Open(v.t)
	sees := func(user, what string) (frame string) {
		v.t.Helper()
		tab.Do(chromedp.Navigate(v.base+"/"), chromedp.SetValue("select", user, chromedp.ByQuery),
			chromedp.Submit("form", chromedp.ByQuery))
		eventually(v.t, func() error {
			var page struct{ User, Text, Frame string }
			err := chromedp.Run(tab.Context, chromedp.Evaluate(`(() => {
				const shown = document.querySelector("papermap-dashboard")?.shadowRoot;
				const error = shown?.querySelector("[part=error]");
				return {Text: error && !error.hidden ? error.innerText : "",
					Frame: shown?.querySelector("iframe:not([inert])")?.src ?? ""};
			})()`, &page))
			if err != nil { // the page may be on its way
				return err
			}
			if !strings.Contains(page.Text, what) || (page.Frame == "") == (what == "") {
				return fmt.Errorf("%s sees %+v", user, page)
			}
			frame = page.Frame
			return nil
		})
		return frame
	}
	if err := openEmbedded(sees("ada", "")); err != nil {
		v.t.Error(err)
	}
	sees("bob", "You do not have access to this dashboard.")
}

// create publishes tenant.created and waits for the dashboard.
func (s *system) create(t *testing.T, tenant string) {
	t.Helper()
	run(t, s.env, "publish", "tenant-created", tenant, "--name", tenant)
	s.status(t, tenant, "active")
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

// wants requests a token as the element does, again after a 503: the backends wait 2 s for the
// worker. What the browser says of a tenant changes nothing.
func (v *visitor) wants(cookie string, status int, body string) {
	v.t.Helper()
	var answer *http.Response
	var text string
	eventually(v.t, func() error {
		req, err := http.NewRequestWithContext(v.t.Context(), "POST",
			v.base+"/dashboard-token?tenant_id=org-1", strings.NewReader(`{"tenant_id":"org-1"}`))
		must(v.t, err)
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		answer, text, err = read(v.client.Do(req))
		must(v.t, err)
		if answer.StatusCode == http.StatusServiceUnavailable {
			return errors.New(text)
		}
		return nil
	})
	text = strings.ReplaceAll(text, `": "`, `":"`)
	if answer.StatusCode != status || !strings.Contains(text, body) ||
		answer.Header.Get("Cache-Control") != "no-store" ||
		!strings.HasPrefix(answer.Header.Get("Content-Type"), "application/json") {
		v.t.Errorf("got %s, %v, %s; want %d with %s", answer.Status, answer.Header, text, status, body)
	}
}

// python returns a Python that has the packages. Without one it only checks the example's syntax and
// skips the test.
func python(t *testing.T, packages ...string) string {
	t.Helper()
	var out []byte
	for _, name := range []string{"python3", "/usr/bin/python3"} { // the second has Debian's packages
		var err error
		c := exec.CommandContext(t.Context(), name, "-c", "import "+strings.Join(packages, ", "))
		if out, err = c.CombinedOutput(); err == nil {
			return name
		}
	}
	syntax := exec.CommandContext(t.Context(), "python3", "-c",
		`import ast; ast.parse(open("docs/examples/python/backend.py").read())`)
	if _, err := syntax.CombinedOutput(); errors.As(err, new(*exec.ExitError)) {
		t.Errorf("docs/examples/python/backend.py is no valid Python")
	}
	t.Skipf("no Python with %v: %s", packages, out)
	return ""
}
