package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/worker/workertest"
)

// canaries are all secrets that a worker can have. Some have characters that encodings
// write otherwise.
var canaries = map[string]string{
	"PAPERMAP_SECRET_KEY":       "sk_CANARY/api+ü&=",
	"PAPERMAP_EMBED_SECRET_KEY": "sk_CANARY/embed+ü&=",
	"NATS_PASSWORD":             "CANARY?of>NATS",
	"CONSOLE_TOKEN":             "CANARY-of-the-console",
	"HTTP_JWT_SECRET":           "CANARY-of-the-REST-interface-long-enough-for-HS256-as-it-must-be",
}

const databaseCanary = "CANARY-of-PostgreSQL"

// confidential is what must appear nowhere, by what it is: the canaries, and what a test finds out
// on its way.
type confidential struct {
	mu     sync.Mutex
	texts  map[string]string
	tokens int
}

func (c *confidential) add(what, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.texts[what] = text
}

// addToken keeps the token of an answer, and says whether there was one.
func (c *confidential) addToken(t *testing.T, answer []byte) bool {
	t.Helper()
	var token struct {
		Token string `json:"token"`
	}
	must(t, json.Unmarshal(answer, &token))
	if token.Token == "" {
		return false
	}
	claims, err := papermap.ParseToken(token.Token)
	must(t, err)
	if c.tokens++; c.tokens <= 20 { // the rest is made of the same
		c.add(fmt.Sprint("token ", c.tokens), token.Token)
		c.add(fmt.Sprint("the signature of token ", c.tokens), claims.Signature)
	}
	return true
}

// echoing serves the simulator as an API that keeps no secret: for some titles of dashboards its
// answer is an error and has in it what the request had. The requests' signatures are confidential.
func (c *confidential) echoing(t *testing.T, sim *simulator.Simulator) *simulator.Server {
	t.Helper()
	api, err := simulator.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		signature := r.Header.Get("X-Signature")
		if signature != "" {
			c.add("the signature "+signature[:8], signature)
		}
		for text, status := range map[string]int{"refused": 422, "unknown": 500, "unauthorized": 401} {
			if strings.Contains(string(body), "Dashboard - "+text) {
				w.WriteHeader(status)
				_ = json.MarshalWrite(w, map[string]string{
					"message": fmt.Sprint("got ", r.Header), "code": signature,
				})
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		sim.ServeHTTP(w, r)
	}), "127.0.0.1:0")
	must(t, err)
	t.Cleanup(api.Close)
	return api
}

// find fails the test for each place where something confidential appears, in any form: in the
// outputs, or in a file of the folder where a NATS server, which it stops, and maybe the worker
// keep their data.
func (c *confidential) find(t *testing.T, outputs outputs, broker *server.Server, store string) {
	t.Helper()
	broker.Shutdown()
	broker.WaitForShutdown()
	must(t, filepath.WalkDir(store, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		outputs[path] = string(text)
		return err
	}))
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, secret := range c.texts {
		for _, form := range workertest.FormsOf(secret) {
			for where, text := range outputs {
				if strings.Contains(text, string(form)) {
					t.Errorf("%s is in %s, as %s", what, where, form)
				}
			}
		}
	}
}

// outputs are what was written or answered, by what it is.
type outputs map[string]string

// command is a command line, and settings beside those of the worker.
type command struct {
	line     string
	settings []string
}

// run adds what commands print.
func (o outputs) run(t *testing.T, env []string, commands map[string]command) {
	t.Helper()
	for what, c := range commands {
		p := start(t, append(slices.Clone(env), c.settings...), strings.Fields(c.line)...)
		p.wait(t)
		if o[what] = p.text(); o[what] == "" {
			t.Errorf("%s: it prints nothing", what)
		}
	}
}

// mention checks that outputs have in them what shows that there is something to find.
func (o outputs) mention(t *testing.T, signs map[string]string) {
	t.Helper()
	for what, sign := range signs {
		if !strings.Contains(o[what], sign) {
			t.Errorf("%s does not mention %q:\n%s", what, sign, tail(o[what], 2000))
		}
	}
}

// A worker at the chattiest level of its log, an API that echoes what it gets, everything else
// wrong that can be, and every command: what they write, answer and store has no secret, no
// signature and no token in it.
func TestSecretsAppearNowhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	must(t, os.Mkdir(store, 0o700))
	broker := startNATS(t, "", func(o *server.Options) {
		o.StoreDir = filepath.Join(store, "jetstream")
		o.Users = []*server.User{{Username: "worker", Password: canaries["NATS_PASSWORD"]}}
	})
	workspace := papermap.Workspace{
		ID: "ws-test", Key: papermap.KeyPair{ID: "ak_test",
			Secret: papermap.NewSecret(canaries["PAPERMAP_SECRET_KEY"])},
		EmbedKey: papermap.KeyPair{ID: "ak_embed",
			Secret: papermap.NewSecret(canaries["PAPERMAP_EMBED_SECRET_KEY"])},
	}
	hidden := &confidential{texts: map[string]string{"the database's password": databaseCanary,
		"the collector's key": collectorCanary}}
	for name, value := range canaries {
		hidden.add(name, value)
	}
	api := hidden.echoing(t, simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}}))

	traces := newCollector(t)
	traces.fail = 1 // its answer repeats the key
	env := append(append(apiSettings(api.URL), traces.env()...),
		"PAPERMAP_EMBED_API_KEY_ID=ak_embed", "PAPERMAP_ON_AMBIGUOUS=hold",
		"DATABASE_URL=sqlite:"+filepath.Join(store, "papermap.db"), "NATS_URL="+broker.ClientURL(),
		"NATS_USER=worker", "EMBED_TOKEN_RATE=0.5", "EMBED_TOKEN_AUDIT=1000000")
	for name, value := range canaries {
		env = append(env, name+"="+value)
	}
	outputs := outputs{} // what was written or answered, by what it is
	worker := startReady(t, env)
	address := worker.address(t)
	nc, err := nats.Connect(broker.ClientURL(), nats.UserInfo("worker", canaries["NATS_PASSWORD"]))
	must(t, err)
	t.Cleanup(nc.Close)

	for _, e := range []struct{ eventType, data string }{
		{"tenant.created", `{"tenant_id":"org-1","name":"One"}`},
		{"tenant.created", `{"tenant_id":"org-2","name":"refused"}`},
		{"tenant.created", `{"tenant_id":"org-3","name":"unknown"}`},
		{"tenant.created", `{"tenant_id":"org-4"}`}, {"tenant.created", `{"tenant_id":`},
		{"tenant.suspended", `{"tenant_id":"org-5","workspace_id":"ws-other"}`},
		{"tenant.suspended", `{"tenant_id":"org-6","reason":"unpaid"}`}, {"usage.sync", `{}`},
		{"usage.sync", `{"from_period":"never"}`},
	} {
		publishStored(t, nc, e.eventType, e.data)
	}
	eventually(t, func() error { return hasStatus(nc, "org-1", "active") })
	for n := range 20 { // beyond the rate, too
		for subject, body := range map[string]string{
			"embed-token":       fmt.Sprintf(`{"tenant_id":"org-1","ttl_seconds":%d}`, 1000+n),
			"embed-token.org-1": "", "embed-token.org%2e1": "", "embed-token.org-2": "",
			"embed-token.org-3": `{"tenant_id":"org-1"}`, "dashboard": `{"tenant_id":"org-1"}`, "usage": `{}`,
			"embed-token.org-6": "", "embed-token.org-9": "",
		} {
			reply := ask(t, nc, "papermap.rpc."+subject, body)
			if !hidden.addToken(t, reply.Data) {
				outputs["the answer of "+subject] += string(reply.Data) + fmt.Sprint(reply.Header)
			}
		}
	}
	answers := outputs["the answer of embed-token"] + outputs["the answer of embed-token.org-1"]
	if hidden.tokens == 0 || !strings.Contains(answers, "RATE_LIMITED") {
		t.Errorf("%d tokens and no limit: %v", hidden.tokens, outputs)
	}
	eventually(t, func() error {
		if text := worker.text(); !strings.Contains(text, `"tenant_id":"org-2"`) ||
			strings.Count(text, "[redacted]") < 2 {
			return errors.New("the API has not echoed yet what the log shows")
		}
		return nil
	})
	publishStored(t, nc, "tenant.created", `{"tenant_id":"org-7","name":"unauthorized"}`)
	eventually(t, func() error { // a pause has a reason that /readyz shows
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/api/v1/tenants", "/",
			"/?token=" + url.QueryEscape(canaries["CONSOLE_TOKEN"])} {
			answer, text, err := read(http.Get("http://" + address + path))
			if err != nil {
				return err
			}
			outputs[path] += text + fmt.Sprint(answer.Header)
		}
		if !strings.Contains(outputs["/readyz"], "refuses the credentials") {
			return fmt.Errorf("no pause: %s", outputs["/readyz"])
		}
		return nil
	})
	jar, err := cookiejar.New(nil)
	must(t, err)
	visitor := http.Client{Jar: jar}
	form := url.Values{"token": {canaries["CONSOLE_TOKEN"]}}
	_, _, err = read(visitor.PostForm("http://"+address+"/login", form))
	must(t, err)
	for _, path := range []string{"/", "/tenants", "/tenant?id=org-1", "/tenant?id=org-2",
		"/attention", "/dead", "/dead/1", "/usage", "/usage.csv"} {
		answer, text, err := read(visitor.Get("http://" + address + path))
		if must(t, err); strings.Contains(text, "Console token") {
			t.Fatalf("%s: not logged in", path)
		}
		outputs["console "+path] = text + fmt.Sprint(answer.Header)
	}

	port, err := workertest.FreePort()
	must(t, err)
	file := filepath.Join(dir, "workspaces.json")
	rows := fmt.Appendf(nil, `[{"workspace_id":"ws-b","api_key_id":"ak_b","secret_key":%q}]`,
		canaries["PAPERMAP_SECRET_KEY"])
	must(t, os.WriteFile(file, rows, 0o600))
	nowhere := fmt.Sprintf("%s@127.0.0.1:%d", databaseCanary, port)
	outputs.run(t, env, map[string]command{
		"token":                  {"token org-6", nil},
		"token of unknown":       {"token org-9", nil},
		"tenants":                {"tenants list --json", nil},
		"tenant":                 {"tenants show org-2", nil},
		"attempts":               {"attempts list", nil},
		"dead letters":           {"dead list --json", nil},
		"usage":                  {"usage export --format json", nil},
		"publish":                {"publish tenant-suspended org-8", nil},
		"migrations":             {"migrate status", nil},
		"help":                   {"--help", nil},
		"help of serve":          {"serve --help", nil},
		"a second on the file":   {"serve", nil},
		"wrong timeout":          {"serve", []string{"PAPERMAP_TIMEOUT=never", "EMBED_TOKEN_TTL=never"}},
		"wrong settings":         {"serve", []string{"MAX_ATTEMPTS=none", "LOG_LEVEL=loud"}},
		"a secret given twice":   {"serve", []string{"PAPERMAP_SECRET_KEY_FILE=/dev/null"}},
		"a password given twice": {"serve", []string{"NATS_PASSWORD_FILE=/dev/null"}},
		"a secret in a file":     {"serve", []string{"PAPERMAP_WORKSPACES_FILE=" + file}},
		"half a pair":            {"serve", []string{"PAPERMAP_EMBED_API_KEY_ID="}},
		"an address with a user": {"serve", []string{"PAPERMAP_API_URL=https://user:" + nowhere + "/"}},
		"no NATS server":         {"token org-1", []string{"NATS_URL=nats://worker:" + nowhere}},
		"no address of NATS":     {"token org-1", []string{"NATS_URL=nats://worker:" + nowhere + "%%"}},
		"a wrong password":       {"token org-1", []string{"NATS_PASSWORD=" + databaseCanary}},
		"no address of a database": {"tenants list",
			[]string{"DATABASE_URL=postgres://u:" + nowhere + "%%/db"}},
		"no kind of a database": {"tenants list", []string{"DATABASE_URL=mysql://u:" + nowhere + "/db"}},
		"no database server":    {"tenants list", []string{"DATABASE_URL=postgres://u:" + nowhere + "/db"}},
		"an unknown database option": {"tenants list",
			[]string{"DATABASE_URL=postgres://u:" + nowhere + "/db?sslmode=x"}},
	})
	other := "DATABASE_URL=sqlite:" + filepath.Join(store, "other.db")
	third := "DATABASE_URL=sqlite:" + filepath.Join(store, "third.db")
	for what, settings := range map[string][]string{ // these wait, and log for what
		"waiting for a database": {"DATABASE_URL=postgres://user:" + nowhere + "/db"},
		"waiting for NATS":       {"NATS_URL=nats://worker:" + nowhere, other},
		"refused by NATS":        {"NATS_PASSWORD=" + databaseCanary, third},
	} {
		p := start(t, append(slices.Clone(env), settings...), "serve")
		p.says(t, "waiting for it")
		p.stop(t)
		outputs[what] = p.text()
	}
	worker.stop(t)
	outputs["the worker's log"] = worker.text()
	outputs["the traces"] = traces.text()
	outputs.mention(t, map[string]string{
		"the worker's log": "minted an embed token", "dead letters": "org-5", "the traces": "org-7",
		"attempts": "org-3", "tenant": "org-2",
	})
	hidden.find(t, outputs, broker, store)
}
