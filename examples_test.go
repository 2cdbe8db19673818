package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"papermap-worker/events"
	"papermap-worker/papermap/simulator"
	contract "papermap-worker/schema/schematest"
)

// example is the two programs in one language.
type example struct {
	language       string
	dir            string
	publish, token []string
}

func TestExamplesDoWhatTheySay(t *testing.T) {
	nc := runParts(t)
	for _, e := range []example{
		{"go", ".", []string{"go", "run", "./docs/examples/go/publish"}, []string{"go", "run", "./docs/examples/go/token"}},
		{"node", "", []string{"node", "publish.mjs"}, []string{"node", "token.mjs"}},
	} {
		t.Run(e.language, func(t *testing.T) {
			if e.language == "node" {
				e.dir = nodeExamples(t)
			}
			url, tenant := nc.ConnectedUrl(), "org-"+e.language
			created, err := nc.SubscribeSync("papermap.events.dashboard.created")
			if err != nil {
				t.Fatal(err)
			}
			for _, says := range []string{"duplicate: false\n", "duplicate: true\n"} {
				if out, _, err := e.run(t, url, e.publish, tenant, "Acme & Söhne"); err != nil || !strings.HasSuffix(out, says) {
					t.Fatalf("publish printed %q (%v), want %q", out, err, says)
				}
			}
			if about := nextEvent(t, created); about != tenant {
				t.Fatalf("a dashboard for %q, want one for %q", about, tenant)
			}
			out, _, err := e.run(t, url, e.token, tenant)
			if err != nil {
				t.Fatal(err)
			}
			if err := openEmbedded(t.Context(), strings.TrimSpace(out)); err != nil {
				t.Errorf("the address that token printed: %v", err)
			}
			_, complaint, err := e.run(t, url, e.token, "nobody")
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(complaint, "404 TENANT_NOT_FOUND: ") {
				t.Errorf("token for an unknown tenant: %v, %q", err, complaint)
			}
			e.triesAgain(t)
		})
	}
}

// triesAgain checks that token asks again when retry_after has passed, at a server whose worker is this function.
func (e example) triesAgain(t *testing.T) {
	p, err := startParts(t.TempDir(), 0, 0, simulator.Usage{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	nc, err := nats.Connect(p.nats.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, complaint, err := e.run(t, p.nats.URL(), e.token, "org-1")
	if err == nil || !strings.Contains(complaint, "no responders") {
		t.Errorf("token without a worker: %v, %q", err, complaint)
	}
	requests, err := nc.SubscribeSync("papermap.rpc.embed-token")
	if err != nil {
		t.Fatal(err)
	}
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
	out, _, err := e.run(t, p.nats.URL(), e.token, "org-1")
	if err != nil || strings.TrimSpace(out) != "https://example.com/dashboard" {
		t.Errorf("token printed %q (%v)", out, err)
	}
	if after := <-asked; after < time.Second {
		t.Errorf("token asked again after %v, told 1 s", after)
	}
}

// run runs one of the programs and returns what it wrote to stdout and stderr.
func (e example) run(t *testing.T, natsURL string, command []string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args = append(command[1:len(command):len(command)], args...)
	c := exec.CommandContext(ctx, command[0], args...)
	c.Dir = e.dir
	c.Env = append(os.Environ(), "NATS_URL="+natsURL)
	var out, complaints bytes.Buffer
	c.Stdout, c.Stderr = &out, io.MultiWriter(&complaints, t.Output())
	err = c.Run()
	return out.String(), complaints.String(), err
}

// nodeExamples installs a copy of the Node examples and returns its folder. Where Node or the packages cannot be had,
// it skips the test, but not in CI.
func nodeExamples(t *testing.T) string {
	t.Helper()
	without := t.Skipf
	if os.Getenv("CI") == "true" {
		without = t.Fatalf
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			without("the Node examples were not run: %v", err)
		}
	}
	dir := filepath.Join(t.TempDir(), "node")
	if err := os.CopyFS(dir, os.DirFS("docs/examples/node")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--package-lock=false")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		without("the Node examples were not run, because their packages cannot be installed: %v\n%s", err, out)
	}
	return dir
}

func TestAnswersFitTheContract(t *testing.T) {
	nc := runParts(t)
	created, err := nc.SubscribeSync("papermap.events.dashboard.created")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("papermap.events.tenant.created", []byte(`{"tenant_id":"org-123","name":"Acme Corp"}`)); err != nil {
		t.Fatal(err)
	}
	nextEvent(t, created)
	for _, c := range []struct{ endpoint, request, schema string }{
		{"embed-token", `{"tenant_id":"org-123"}`, "embed-token.reply"},
		{"embed-token", `{"tenant_id":"nobody"}`, "error"},
		{"embed-token", ``, "error"},
		{"dashboard", `{"tenant_id":"org-123"}`, "dashboard.reply"},
		{"dashboard", `{"tenant_id":"org-123","workspace_id":"another"}`, "error"},
	} {
		reply, err := nc.Request("papermap.rpc."+c.endpoint, []byte(c.request), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if refused := reply.Header.Get("Nats-Service-Error-Code") != ""; refused != (c.schema == "error") {
			t.Errorf("%s answers %s with %s", c.endpoint, c.request, reply.Data)
		}
		contract.Validate(t, c.schema, reply.Data)
	}
}

// runParts runs a worker on embedded parts until the test ends, with its configuration changed as a test wants it. It
// returns a connection to its NATS server when the worker answers.
func runParts(t *testing.T, change ...func(*serveConfig)) *nats.Conn {
	t.Helper()
	p, err := startParts(t.TempDir(), 0, 0, simulator.Usage{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	for _, f := range change {
		f(&p.config)
	}
	log := slog.New(slog.DiscardHandler)
	bus, err := events.Connect(p.config.bus, log)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close(t.Context())
	if err := bus.EnsureStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	working, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- serve(working, p.config, log) }()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("the worker: %v", err)
		}
	})
	nc, err := nats.Connect(p.nats.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { contract.CheckStream(t, js) })
	eventually(t, 20*time.Second, func() error {
		_, err := nc.Request("papermap.rpc.dashboard", []byte(`{}`), time.Second) // refused, and so answered
		return err
	})
	return nc
}

// nextEvent waits for an event out, holds it against its schemas and returns whom it is about.
func nextEvent(t *testing.T, sub *nats.Subscription) string {
	t.Helper()
	msg, err := sub.NextMsg(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	contract.Validate(t, "cloudevent", msg.Data)
	var e struct {
		Type    string         `json:"type"`
		Subject string         `json:"subject"`
		Data    jsontext.Value `json:"data"`
	}
	if err := json.Unmarshal(msg.Data, &e); err != nil {
		t.Fatal(err)
	}
	contract.Validate(t, e.Type, e.Data)
	return e.Subject
}
