package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	"papermap-worker/events"
	contract "papermap-worker/schema/schematest"
)

// example is the two programs in one language.
type example struct {
	language       string
	folder         func(*testing.T) string
	publish, token []string
}

func TestExamplesWork(t *testing.T) {
	t.Parallel()
	_, nc := runWorker(t)
	for _, e := range []example{
		{"go", goExamples, []string{"./publish"}, []string{"./token"}},
		{"node", nodeExamples, []string{"node", "publish.mjs"}, []string{"node", "token.mjs"}},
	} {
		t.Run(e.language, func(t *testing.T) {
			url, tenant := nc.ConnectedUrl(), "org-"+e.language
			created, err := nc.SubscribeSync("papermap.events.dashboard.created")
			must(t, err)
			for _, says := range []string{"duplicate: false\n", "duplicate: true\n"} {
				if out, _, err := e.run(t, url, e.publish, tenant, "Acme & Söhne"); err != nil ||
					!strings.HasSuffix(out, says) {
					t.Fatalf("publish printed %q (%v), want %q", out, err, says)
				}
			}
			if about := nextDashboard(t, created); about != tenant {
				t.Fatalf("a dashboard for %q, want one for %q", about, tenant)
			}
			out, _, err := e.run(t, url, e.token, tenant)
			must(t, err)
			if err := openEmbedded(strings.TrimSpace(out)); err != nil {
				t.Errorf("the address that token printed: %v", err)
			}
			_, complaint, err := e.run(t, url, e.token, "nobody")
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 ||
				!strings.Contains(complaint, "404 TENANT_NOT_FOUND: ") {
				t.Errorf("token for an unknown tenant: %v, %q", err, complaint)
			}
			e.triesAgain(t)
		})
	}
}

// triesAgain checks that token asks again when retry_after has passed, at a server whose worker is
// this function.
func (e example) triesAgain(t *testing.T) {
	s := newSystem(t)
	nc, err := nats.Connect(s.nats.URL(), nats.Timeout(patience))
	must(t, err)
	defer nc.Close()
	_, complaint, err := e.run(t, s.nats.URL(), e.token, "org-1")
	if err == nil || !strings.Contains(complaint, "no responders") {
		t.Errorf("token without a worker: %v, %q", err, complaint)
	}
	requests, err := nc.SubscribeSync("papermap.rpc.embed-token")
	must(t, err)
	asked := make(chan time.Duration, 1)
	go func() {
		defer close(asked)
		first, err := requests.NextMsg(time.Minute)
		if err != nil {
			return
		}
		began := time.Now()
		_ = first.RespondMsg(&nats.Msg{ // the requester would complain
			Header: nats.Header{"Nats-Service-Error": {"pending"}, "Nats-Service-Error-Code": {"409"}},
			Data:   []byte(`{"code":"DASHBOARD_NOT_READY","message":"pending","retry_after":1}`),
		})
		second, err := requests.NextMsg(time.Minute)
		if err != nil {
			return
		}
		asked <- time.Since(began)
		_ = second.Respond([]byte(`{"embed_url":"https://example.com/dashboard"}`))
	}()
	out, _, err := e.run(t, s.nats.URL(), e.token, "org-1")
	if err != nil || strings.TrimSpace(out) != "https://example.com/dashboard" {
		t.Errorf("token printed %q (%v)", out, err)
	}
	if after := <-asked; after < time.Second {
		t.Errorf("token asked again after %v, want 1 s at least", after)
	}
}

// run runs one of the programs and returns what it wrote to stdout and stderr.
func (e example) run(t *testing.T, natsURL string, command []string, args ...string) (
	stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args = append(command[1:len(command):len(command)], args...)
	c := exec.CommandContext(ctx, command[0], args...)
	c.Dir = e.folder(t)
	c.Env = append(os.Environ(), "NATS_URL="+natsURL)
	var out, complaints bytes.Buffer
	c.Stdout, c.Stderr = &out, io.MultiWriter(&complaints, t.Output())
	err = c.Run()
	return out.String(), complaints.String(), err
}

// goExamples builds the Go examples and returns the folder of their programs.
func goExamples(t *testing.T) string {
	t.Helper()
	return prepared(t, "go", func(dir string) *exec.Cmd {
		return exec.Command("go", "build", "-o", dir+"/", "./docs/examples/go/...")
	})
}

// nodeExamples installs a copy of the Node examples and returns its folder. Where Node or the
// packages cannot be had, it skips the test, but not in CI.
func nodeExamples(t *testing.T) string {
	t.Helper()
	return prepared(t, "node", func(dir string) *exec.Cmd {
		must(t, os.CopyFS(dir, os.DirFS("docs/examples/node")))
		install := exec.Command("npm", "install", "--no-audit", "--no-fund", "--package-lock=false")
		install.Dir = dir
		return install
	})
}

var preparing sync.Mutex

// prepared returns a folder that all tests share, and that the first one filled with a command.
func prepared(t *testing.T, name string, fill func(dir string) *exec.Cmd) string {
	t.Helper()
	preparing.Lock()
	defer preparing.Unlock()
	dir := filepath.Join(sharedDir, name)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	must(t, os.Mkdir(dir, 0o700))
	if out, err := fill(dir).CombinedOutput(); err != nil {
		must(t, os.RemoveAll(dir))
		without(t, "the %s examples cannot be prepared: %v\n%s", name, err, out)
	}
	return dir
}

// without skips the test, which lacks something. In CI it fails.
func without(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// runWorker runs a worker with more settings until the test ends. It returns a connection to its
// NATS server when the worker answers.
func runWorker(t *testing.T, settings ...string) (*system, *nats.Conn) {
	t.Helper()
	s := newSystem(t)
	nc := s.jetStream(t).Conn()
	worker := start(t, append(s.env, settings...), "serve")
	eventually(t, func() error {
		_, err := nc.Request("papermap.rpc.dashboard", []byte(`{}`), time.Second) // refused, and so answered
		return err
	})
	t.Cleanup(func() { worker.stop(t) })
	return s, nc
}

// nextDashboard waits for a dashboard.created, holds it against its schemas and returns its tenant.
func nextDashboard(t *testing.T, sub *nats.Subscription) string {
	t.Helper()
	msg, err := sub.NextMsg(patience)
	must(t, err)
	contract.Validate(t, "cloudevent", msg.Data)
	var e struct {
		Type    string         `json:"type"`
		Subject string         `json:"subject"`
		Data    jsontext.Value `json:"data"`
	}
	must(t, json.Unmarshal(msg.Data, &e))
	contract.Validate(t, e.Type, e.Data)
	if e.Type != events.TypeDashboardCreated {
		t.Fatalf("got %s", msg.Data)
	}
	return e.Subject
}
