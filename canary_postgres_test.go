package main

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
	"papermap-worker/repo/pgtest"
)

// nkey makes a key of a NATS user.
func nkey(t *testing.T) (seed, public string) {
	t.Helper()
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	text, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = key.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return string(text), public
}

// The same as TestNoSecretIsToldAnywhere, for a worker that is told its secrets in the other ways: PostgreSQL with a password, an
// nkey, a file of workspaces; with a second workspace at work, REST, and at last a database that is broken.
func TestNoSecretIsToldAnywhereWithPostgresAnNKeyAndMoreWorkspaces(t *testing.T) {
	t.Parallel()
	hidden := &confidential{texts: map[string]string{
		"the console's token": canaries["CONSOLE_TOKEN"], "the secret of REST": canaries["HTTP_JWT_SECRET"], "the first secret": canaries["PAPERMAP_SECRET_KEY"],
		"the second secret": "sk_CANARY/second+ü&=", "the second embed secret": "sk_CANARY/second+embed&=", "a secret nobody uses": "CANARY-of-nobody",
	}}
	database, err := url.Parse(pgtest.ForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, given := database.User.Password(); !given { // else the server is not ours, and its password may be any word
		database.User = url.UserPassword(database.User.Username(), databaseCanary)
		hidden.add("the database's password", databaseCanary)
	}
	seed, public := nkey(t)
	stranger, _ := nkey(t)
	hidden.add("the nkey's seed", seed)
	hidden.add("another nkey's seed", stranger)

	dir := t.TempDir()
	store := filepath.Join(dir, "jetstream")
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("second", hidden.texts["the second secret"]+"\n")
	file("second-embed", hidden.texts["the second embed secret"]+"\n")
	broker := startNATS(t, "", func(o *server.Options) { o.StoreDir, o.Nkeys = store, []*server.NkeyUser{{Nkey: public}} })
	first := papermap.Workspace{ID: "ws-test", Key: papermap.KeyPair{ID: "ak_test", Secret: papermap.NewSecret(hidden.texts["the first secret"])}}
	second := papermap.Workspace{
		ID: "ws-second", Key: papermap.KeyPair{ID: "ak_second", Secret: papermap.NewSecret(hidden.texts["the second secret"])},
		EmbedKey: papermap.KeyPair{ID: "ak_second_embed", Secret: papermap.NewSecret(hidden.texts["the second embed secret"])},
	}
	api := hidden.echoing(t, simulator.New(simulator.Options{Workspaces: []papermap.Workspace{first, second}}))
	env := []string{
		"PAPERMAP_API_URL=" + api.URL, "PAPERMAP_EMBED_URL=" + api.URL + "/embedded/dashboard", "PAPERMAP_WORKSPACE_ID=ws-test", "PAPERMAP_API_KEY_ID=ak_test",
		"PAPERMAP_SECRET_KEY=" + first.Key.Secret.Reveal(), "PAPERMAP_ON_AMBIGUOUS=hold", "DATABASE_URL_FILE=" + file("database", database.String()),
		"NATS_URL=" + broker.ClientURL(), "NATS_NKEY_FILE=" + file("seed", seed), "HTTP_JWT_SECRET=" + hidden.texts["the secret of REST"],
		"CONSOLE_TOKEN=" + hidden.texts["the console's token"], "PAPERMAP_WORKSPACES_FILE=" + file("workspaces.json", `[{"workspace_id":"ws-second","api_key_id":"ak_second",
			"secret_key_file":"second","embed_api_key_id":"ak_second_embed","embed_secret_key_file":"second-embed"}]`),
		"HTTP_ADDR=127.0.0.1:0", "LOG_LEVEL=debug", "LOG_FORMAT=json", "EMBED_TOKEN_AUDIT=1000000",
	}
	worker := start(t, env, "serve")
	address := worker.address(t)
	told := map[string]string{} // what was written or answered, by what it is
	option, err := nats.NkeyOptionFromSeed(filepath.Join(dir, "seed"))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(broker.ClientURL(), option)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)

	ask := func(subject, body string) []byte {
		t.Helper()
		var reply *nats.Msg
		eventually(t, 20*time.Second, func() (err error) { // the worker may be about to start
			reply, err = nc.Request(subject, []byte(body), 5*time.Second)
			return err
		})
		return reply.Data
	}
	for _, e := range [][2]string{
		{"tenant.created", `{"tenant_id":"org-1","name":"One"}`}, {"tenant.created", `{"tenant_id":"org-2","name":"Two","workspace_id":"ws-second"}`},
		{"tenant.created", `{"tenant_id":"org-3","name":"refused","workspace_id":"ws-second"}`},
		{"tenant.created", `{"tenant_id":"org-4","name":"unknown","workspace_id":"ws-second"}`},
		{"tenant.created", `{"tenant_id":"org-5","name":"Five","workspace_id":"ws-third"}`}, {"usage.sync", `{}`},
	} {
		ask("papermap.events."+e[0], e[1])
	}
	for tenant, status := range map[string]string{"org-1": "active", "org-2": "active", "org-3": "failed", "org-4": "held"} {
		eventually(t, 20*time.Second, func() error { return hasStatus(nc, tenant, status) })
	}
	for _, tenant := range []string{"org-1", "org-2"} {
		if !hidden.addToken(t, ask("papermap.rpc.embed-token."+tenant, "")) {
			t.Errorf("no token for %s", tenant)
		}
	}
	claims := jwt.MapClaims{"scope": "papermap:admin", "exp": time.Now().Add(time.Hour).Unix()}
	bearer, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(hidden.texts["the secret of REST"]))
	if err != nil {
		t.Fatal(err)
	}
	hidden.add("the bearer token of REST", bearer)
	get := func(method, path, bearer string) []byte {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+bearer)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		told[method+" "+path] += answer.Status + fmt.Sprint(answer.Header)
		return text
	}
	if !hidden.addToken(t, get("POST", "/api/v1/dashboards/org-2/embed-token", bearer)) {
		t.Errorf("no token by REST: %s", told["POST /api/v1/dashboards/org-2/embed-token"])
	}
	ask("papermap.events.tenant.created", `{"tenant_id":"org-6","name":"unauthorized","workspace_id":"ws-second"}`)
	eventually(t, 20*time.Second, func() error { // a pause has a reason that /readyz tells
		if told["/readyz"] = string(get("GET", "/readyz", "")); !strings.Contains(told["/readyz"], "refuses the credentials") {
			return fmt.Errorf("no pause: %s", told["/readyz"])
		}
		return nil
	})

	with := func(more ...string) []string {
		return append(slices.DeleteFunc(slices.Clone(env), func(e string) bool {
			return slices.ContainsFunc(more, func(m string) bool {
				name, _, _ := strings.Cut(m, "=")
				return strings.HasPrefix(e, name+"=")
			})
		}), more...)
	}
	credentials := fmt.Sprintf("-----BEGIN NATS USER JWT-----\n%s\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n%s\n------END USER NKEY SEED------\n", bearer, stranger)
	const nobody = "CANARY-of-nobody"
	for what, c := range map[string]struct {
		env  []string
		args []string
	}{
		"doctor":                       {env, []string{"doctor"}},
		"tenants":                      {env, []string{"tenants", "list", "--json"}},
		"attempts":                     {env, []string{"attempts", "list"}},
		"dead letters":                 {env, []string{"dead", "list", "--json"}},
		"usage":                        {env, []string{"usage", "runs", "--json"}},
		"a token of nobody":            {env, []string{"token", "org-9"}},
		"another nkey":                 {with("NATS_NKEY_FILE=" + file("stranger", stranger)), []string{"doctor"}},
		"no nkey":                      {with("NATS_NKEY_FILE=" + file("nobody", nobody)), []string{"doctor"}},
		"credentials that are refused": {with("NATS_NKEY_FILE=", "NATS_CREDS="+file("creds", credentials)), []string{"doctor"}},
		"no credentials":               {with("NATS_NKEY_FILE=", "NATS_CREDS="+filepath.Join(dir, "nobody")), []string{"doctor"}},
		"a workspace twice": {with("PAPERMAP_WORKSPACES_FILE=" + file("twice.json", `[{"workspace_id":"ws-test","api_key_id":"ak_second","secret_key_file":"second"}]`)),
			[]string{"serve"}},
		"a secret where none belongs": {with("PAPERMAP_WORKSPACES_FILE=" + file("wrong.json", `[{"workspace_id":"ws-second","api_key_id":"ak_second","secret_key":"`+nobody+`"}]`)),
			[]string{"serve"}},
		"a text where a file belongs": {with("PAPERMAP_WORKSPACES_FILE=" + filepath.Join(dir, "second")), []string{"serve"}},
		"another database":            {with("DATABASE_URL_FILE=" + file("other", strings.Replace(database.String(), database.Path, "/none", 1))), []string{"tenants", "list"}},
	} {
		p := start(t, c.env, c.args...)
		p.wait(t, 30*time.Second)
		if told[what] = p.text(); told[what] == "" {
			t.Errorf("%s: it says nothing", what)
		}
	}

	db, err := sql.Open("pgx", database.String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, table := range query(t, db, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'") {
		for _, row := range query(t, db, "SELECT r::text FROM "+table[0]+" r") {
			told["table "+table[0]] += row[0] + "\n"
		}
	}
	if _, err := db.ExecContext(t.Context(), "ALTER TABLE tenant_dashboards RENAME TO gone"); err != nil {
		t.Fatal(err)
	}
	told["an answer without the database"] = string(ask("papermap.rpc.embed-token.org-7", "") /* is in no memory */) + string(ask("papermap.rpc.dashboard", `{"tenant_id":"org-1"}`))
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/api/v1/dashboards", "/api/v1/dashboards/org-2", "/api/v1/usage", "/api/v1/openapi.json", "/"} {
		told["GET "+path] += string(get("GET", path, bearer)) + string(get("GET", path, "CANARY-of-nobody"))
	}
	eventually(t, 20*time.Second, func() error {
		if !strings.Contains(worker.text(), `relation \"tenant_dashboards\" does not exist`) {
			return errors.New("the log does not tell of the broken database")
		}
		return nil
	})
	worker.signal(t, syscall.SIGTERM)
	if code := worker.wait(t, 40*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	told["the worker's log"] = worker.text()
	for what, sign := range map[string]string{
		"the worker's log": "[redacted]", "dead letters": "ws-third", "attempts": "org-4", "table provision_attempts": "org-3", "doctor": "ws-second", "GET /metrics": "papermap_",
	} {
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
