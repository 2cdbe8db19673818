package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
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
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// canaries are all that a worker can be told in confidence. Some have characters that encodings write otherwise.
var canaries = map[string]string{
	"PAPERMAP_SECRET_KEY":       "sk_CANARY/api+ü&=",
	"PAPERMAP_EMBED_SECRET_KEY": "sk_CANARY/embed+ü&=",
	"NATS_PASSWORD":             "CANARY?of>NATS",
	"CONSOLE_TOKEN":             "CANARY-of-the-console",
	"HTTP_JWT_SECRET":           "CANARY-of-the-REST-interface-long-enough-for-HS256-as-it-must-be",
}

const databaseCanary = "CANARY-of-PostgreSQL"

// formsOf are the ways in which a secret could be written somewhere: as it is, in hex, in both kinds of base64 wherever it
// begins within a longer text, percent-encoded, and as JSON.
func formsOf(secret string) [][]byte {
	quoted, _ := json.Marshal(secret) // of a string: never an error
	set := map[string]bool{
		secret: true, url.QueryEscape(secret): true, url.PathEscape(secret): true, string(quoted[1 : len(quoted)-1]): true,
		hex.EncodeToString([]byte(secret)): true, strings.ToUpper(hex.EncodeToString([]byte(secret))): true,
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for before := range 3 { // what its neighbours have a part in is left out
			text := encoding.EncodeToString([]byte(strings.Repeat("x", before) + secret + "xx"))
			set[text[(8*before+5)/6:(8*(before+len(secret)))/6]] = true
		}
	}
	var list [][]byte
	for form := range set {
		list = append(list, []byte(form))
	}
	return list
}

// confidential is what must be told nowhere, by what it is: the canaries, and what a test finds out on its way.
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
	var token struct{ Token string }
	if err := json.Unmarshal(answer, &token); err != nil {
		t.Fatal(err)
	}
	if token.Token == "" {
		return false
	}
	claims, err := papermap.ParseToken(token.Token)
	if err != nil {
		t.Fatal(err)
	}
	if c.tokens++; c.tokens <= 20 { // the rest is made of the same
		c.add(fmt.Sprint("token ", c.tokens), token.Token)
		c.add(fmt.Sprint("the signature of token ", c.tokens), claims.Signature)
	}
	return true
}

// echoing serves the simulator as an API that keeps no secret: for some titles of dashboards its answer is an error and
// has in it what the request had. The requests' signatures are confidential.
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
				_ = json.NewEncoder(w).Encode(map[string]any{"message": fmt.Sprint("got ", r.Header), "code": signature})
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		sim.ServeHTTP(w, r)
	}), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	return api
}

// find fails the test for each place where something confidential was told, in any form.
func (c *confidential) find(t *testing.T, told map[string]string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, secret := range c.texts {
		for _, form := range formsOf(secret) {
			for where, text := range told {
				if strings.Contains(text, string(form)) {
					t.Errorf("%s is in %s, as %s", what, where, form)
				}
			}
		}
	}
}

// readFiles adds the files in a folder to what was told.
func readFiles(t *testing.T, folder string, told map[string]string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		told[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A worker at the chattiest level of its log, an API that echoes what it gets, everything else wrong that can be, and every
// command: what they write, answer and store has no secret, no signature and no token in it.
func TestNoSecretIsToldAnywhere(t *testing.T) {
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	broker := startNATS(t, "", func(o *server.Options) {
		o.StoreDir = filepath.Join(store, "jetstream")
		o.Users = []*server.User{{Username: "worker", Password: canaries["NATS_PASSWORD"]}}
	})
	workspace := papermap.Workspace{
		ID: "ws-test", Key: papermap.KeyPair{ID: "ak_test", Secret: papermap.NewSecret(canaries["PAPERMAP_SECRET_KEY"])},
		EmbedKey: papermap.KeyPair{ID: "ak_embed", Secret: papermap.NewSecret(canaries["PAPERMAP_EMBED_SECRET_KEY"])},
	}
	hidden := &confidential{texts: map[string]string{"the database's password": databaseCanary, "the collector's key": collectorCanary}}
	for name, value := range canaries {
		hidden.add(name, value)
	}
	api := hidden.echoing(t, simulator.New(simulator.Options{Workspaces: []papermap.Workspace{workspace}}))

	env := []string{
		"PAPERMAP_API_URL=" + api.URL, "PAPERMAP_EMBED_URL=" + api.URL + "/embedded/dashboard", "PAPERMAP_WORKSPACE_ID=ws-test", "PAPERMAP_API_KEY_ID=ak_test",
		"PAPERMAP_EMBED_API_KEY_ID=ak_embed", "PAPERMAP_ON_AMBIGUOUS=hold", "DATABASE_URL=sqlite:" + filepath.Join(store, "papermap.db"),
		"NATS_URL=" + broker.ClientURL(), "NATS_USER=worker", "HTTP_ADDR=127.0.0.1:0", "LOG_LEVEL=debug", "LOG_FORMAT=json", "EMBED_TOKEN_RATE=20",
		"EMBED_TOKEN_AUDIT=1000000",
	}
	traces := newCollector(t)
	traces.fail = 1 // its answer repeats the key
	env = append(env, traces.env()...)
	for name, value := range canaries {
		env = append(env, name+"="+value)
	}
	told := map[string]string{} // what was written or answered, by what it is
	worker := start(t, env, "serve")
	address := worker.address(t)
	nc, err := nats.Connect(broker.ClientURL(), nats.UserInfo("worker", canaries["NATS_PASSWORD"]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	eventually(t, 20*time.Second, func() error {
		answer, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		if answer.Body.Close(); answer.StatusCode != http.StatusOK {
			return errors.New(answer.Status)
		}
		return nil
	})

	for _, e := range []struct{ eventType, data string }{
		{"tenant.created", `{"tenant_id":"org-1","name":"One"}`}, {"tenant.created", `{"tenant_id":"org-2","name":"refused"}`},
		{"tenant.created", `{"tenant_id":"org-3","name":"unknown"}`}, {"tenant.created", `{"tenant_id":"org-4"}`}, {"tenant.created", `{"tenant_id":`},
		{"tenant.suspended", `{"tenant_id":"org-5","workspace_id":"ws-other"}`}, {"tenant.suspended", `{"tenant_id":"org-6","reason":"unpaid"}`}, {"usage.sync", `{}`},
		{"usage.sync", `{"from_period":"never"}`},
	} {
		if _, err := nc.Request("papermap.events."+e.eventType, []byte(e.data), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 20*time.Second, func() error {
		reply, err := nc.Request("papermap.rpc.embed-token", []byte(`{"tenant_id":"org-1"}`), 5*time.Second)
		if err != nil {
			return err
		}
		if reply.Header.Get("Nats-Service-Error-Code") != "" {
			return errors.New(string(reply.Data))
		}
		return nil
	})
	for n := range 100 { // beyond the rate, too
		for subject, body := range map[string]string{
			"embed-token": fmt.Sprintf(`{"tenant_id":"org-1","ttl_seconds":%d}`, 1000+n), "embed-token.org-1": "", "embed-token.org%2e1": "", "embed-token.org-2": "",
			"embed-token.org-3": `{"tenant_id":"org-1"}`, "dashboard": `{"tenant_id":"org-1"}`, "usage": `{}`, "embed-token.org-6": "", "embed-token.org-9": "",
		} {
			reply, err := nc.Request("papermap.rpc."+subject, []byte(body), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if !hidden.addToken(t, reply.Data) {
				told["the answer of "+subject] += string(reply.Data) + fmt.Sprint(reply.Header)
			}
		}
	}
	if hidden.tokens == 0 || !strings.Contains(told["the answer of embed-token"]+told["the answer of embed-token.org-1"], "RATE_LIMITED") {
		t.Errorf("%d tokens and no limit: %v", hidden.tokens, told)
	}
	eventually(t, 20*time.Second, func() error {
		if text := worker.text(); !strings.Contains(text, `"tenant_id":"org-2"`) || strings.Count(text, "[redacted]") < 2 {
			return errors.New("the API has not echoed yet what the log tells")
		}
		return nil
	})
	if _, err := nc.Request("papermap.events.tenant.created", []byte(`{"tenant_id":"org-7","name":"unauthorized"}`), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error { // a pause has a reason that /readyz tells
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/api/v1/tenants", "/", "/?token=" + url.QueryEscape(canaries["CONSOLE_TOKEN"])} {
			answer, err := http.Get("http://" + address + path)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(answer.Body)
			if answer.Body.Close(); err != nil {
				return err
			}
			told[path] += string(text) + fmt.Sprint(answer.Header)
		}
		if !strings.Contains(told["/readyz"], "refuses the credentials") {
			return fmt.Errorf("no pause: %s", told["/readyz"])
		}
		return nil
	})
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	visitor := http.Client{Jar: jar}
	for _, path := range []string{"/login", "/", "/tenants", "/tenant?id=org-1", "/tenant?id=org-2", "/attention", "/dead", "/dead/1", "/usage", "/usage.csv"} {
		ask := func() (*http.Response, error) { return visitor.Get("http://" + address + path) }
		if path == "/login" {
			ask = func() (*http.Response, error) {
				return visitor.PostForm("http://"+address+path, url.Values{"token": {canaries["CONSOLE_TOKEN"]}})
			}
		}
		answer, err := ask()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		if answer.Body.Close(); err != nil || strings.Contains(string(text), "Console token") {
			t.Fatalf("%s: %v, or not logged in", path, err)
		}
		told["console "+path] = string(text) + fmt.Sprint(answer.Header)
	}

	without := func(name string) []string {
		return slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "workspaces.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `[{"workspace_id":"ws-b","api_key_id":"ak_b","secret_key":%q}]`, canaries["PAPERMAP_SECRET_KEY"]), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		env  []string
		args []string
	}{
		"token":                    {env, []string{"token", "org-6"}},
		"token of nobody":          {env, []string{"token", "org-9"}},
		"tenants":                  {env, []string{"tenants", "list", "--json"}},
		"tenant":                   {env, []string{"tenants", "show", "org-2"}},
		"attempts":                 {env, []string{"attempts", "list"}},
		"dead letters":             {env, []string{"dead", "list", "--json"}},
		"usage":                    {env, []string{"usage", "export", "--format", "json"}},
		"publish":                  {env, []string{"publish", "tenant-suspended", "org-8"}},
		"migrations":               {env, []string{"migrate", "status"}},
		"help":                     {env, []string{"--help"}},
		"help of serve":            {env, []string{"serve", "--help"}},
		"a second on the file":     {env, []string{"serve"}},
		"wrong settings":           {append(slices.Clone(env), "PAPERMAP_TIMEOUT=never", "EMBED_TOKEN_TTL=never", "MAX_ATTEMPTS=none", "LOG_LEVEL=loud"), []string{"serve"}},
		"a secret given twice":     {append(slices.Clone(env), "PAPERMAP_SECRET_KEY_FILE=/dev/null", "NATS_PASSWORD_FILE=/dev/null"), []string{"serve"}},
		"a secret in a file":       {append(slices.Clone(env), "PAPERMAP_WORKSPACES_FILE="+file), []string{"serve"}},
		"half a pair":              {without("PAPERMAP_EMBED_API_KEY_ID"), []string{"serve"}},
		"an address with a user":   {append(without("PAPERMAP_API_URL"), "PAPERMAP_API_URL=https://user:"+databaseCanary+"@127.0.0.1/"), []string{"serve"}},
		"no NATS server":           {append(without("NATS_URL"), fmt.Sprintf("NATS_URL=nats://worker:%s@127.0.0.1:%d", databaseCanary, port)), []string{"token", "org-1"}},
		"no address of NATS":       {append(without("NATS_URL"), "NATS_URL=nats://worker:"+databaseCanary+"@host:port%%"), []string{"token", "org-1"}},
		"a wrong password":         {append(without("NATS_PASSWORD"), "NATS_PASSWORD="+databaseCanary), []string{"token", "org-1"}},
		"no address of a database": {append(without("DATABASE_URL"), "DATABASE_URL=postgres://user:"+databaseCanary+"@host:port%%/db"), []string{"tenants", "list"}},
		"no kind of a database":    {append(without("DATABASE_URL"), "DATABASE_URL=mysql://user:"+databaseCanary+"@host/db"), []string{"tenants", "list"}},
		"no database server":       {append(without("DATABASE_URL"), fmt.Sprintf("DATABASE_URL=postgres://user:%s@127.0.0.1:%d/db", databaseCanary, port)), []string{"tenants", "list"}},
		"an unknown database option": {append(without("DATABASE_URL"), fmt.Sprintf("DATABASE_URL=postgres://user:%s@127.0.0.1:%d/db?sslmode=maybe", databaseCanary, port)),
			[]string{"tenants", "list"}},
	} {
		p := start(t, c.env, c.args...)
		p.wait(t, 20*time.Second)
		if told[what] = p.text(); told[what] == "" {
			t.Errorf("%s: it says nothing", what)
		}
	}
	for what, c := range map[string][]string{ // these wait, and say for what
		"waiting for a database": append(without("DATABASE_URL"), fmt.Sprintf("DATABASE_URL=postgres://user:%s@127.0.0.1:%d/db", databaseCanary, port)),
		"waiting for NATS": append(slices.DeleteFunc(without("NATS_URL"), func(e string) bool { return strings.HasPrefix(e, "DATABASE_URL=") }),
			fmt.Sprintf("NATS_URL=nats://worker:%s@127.0.0.1:%d", databaseCanary, port), "DATABASE_URL=sqlite:"+filepath.Join(store, "other.db")),
		"refused by NATS": append(slices.DeleteFunc(without("NATS_PASSWORD"), func(e string) bool { return strings.HasPrefix(e, "DATABASE_URL=") }),
			"NATS_PASSWORD="+databaseCanary, "DATABASE_URL=sqlite:"+filepath.Join(store, "third.db")),
	} {
		p := start(t, c, "serve")
		eventually(t, 20*time.Second, func() error {
			if !strings.Contains(p.text(), "waiting for it") {
				return fmt.Errorf("%s: it says %s", what, p.text())
			}
			return nil
		})
		p.signal(t, syscall.SIGTERM)
		p.wait(t, 40*time.Second)
		told[what] = p.text()
	}
	// The reads of what waits in JetStream's consumers and of the log end here.
	worker.signal(t, syscall.SIGTERM)
	if code := worker.wait(t, 40*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	told["the worker's log"] = worker.text()
	told["the traces"] = traces.text()
	for what, sign := range map[string]string{"the worker's log": "minted an embed token", "dead letters": "org-5", "the traces": "org-7", "attempts": "org-3", "tenant": "org-2"} {
		if !strings.Contains(told[what], sign) {
			t.Errorf("%s does not tell of %q, so there is nothing to find in it:\n%s", what, sign, tail(told[what], 2000))
		}
	}
	nc.Close()
	broker.Shutdown()
	broker.WaitForShutdown()
	readFiles(t, store, told)
	hidden.find(t, told)
}
