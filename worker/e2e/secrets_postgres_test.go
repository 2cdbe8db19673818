package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"papermap-worker/papermap"
	"papermap-worker/papermap/simulator"
)

// nkey makes a key of a NATS user.
func nkey(t *testing.T) (seed, public string) {
	t.Helper()
	key, err := nkeys.CreateUser()
	must(t, err)
	text, err := key.Seed()
	must(t, err)
	public, err = key.PublicKey()
	must(t, err)
	return string(text), public
}

// The same as TestSecretsAppearNowhere, for a worker that gets its secrets in the other ways:
// PostgreSQL with a password, an nkey, a file of workspaces; with a second workspace, REST,
// and at last a database that is broken.
func TestSecretsAppearNowhereWithPostgresAndNKey(t *testing.T) {
	t.Parallel()
	hidden := &confidential{texts: map[string]string{
		"the console's token": canaries["CONSOLE_TOKEN"], "the secret of REST": canaries["HTTP_JWT_SECRET"],
		"the first secret":  canaries["PAPERMAP_SECRET_KEY"],
		"the second secret": "sk_CANARY/second+ü&=", "the second embed secret": "sk_CANARY/second+embed&=",
		"an unused secret": "CANARY-unused",
	}}
	database, err := url.Parse(postgres(t))
	must(t, err)
	// else the server is not ours, and its password may be any word
	if _, given := database.User.Password(); !given {
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
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	file("second", hidden.texts["the second secret"]+"\n")
	file("second-embed", hidden.texts["the second embed secret"]+"\n")
	broker := startNATS(t, "", func(o *server.Options) {
		o.StoreDir, o.Nkeys = store, []*server.NkeyUser{{Nkey: public}}
	})
	first := papermap.Workspace{ID: "ws-test",
		Key: papermap.KeyPair{ID: "ak_test", Secret: papermap.NewSecret(hidden.texts["the first secret"])}}
	second := papermap.Workspace{
		ID: "ws-second", Key: papermap.KeyPair{ID: "ak_second",
			Secret: papermap.NewSecret(hidden.texts["the second secret"])},
		EmbedKey: papermap.KeyPair{ID: "ak_second_embed",
			Secret: papermap.NewSecret(hidden.texts["the second embed secret"])},
	}
	api := hidden.echoing(t,
		simulator.New(simulator.Options{Workspaces: []papermap.Workspace{first, second}}))
	env := append(apiSettings(api.URL),
		"PAPERMAP_SECRET_KEY="+first.Key.Secret.Reveal(), "PAPERMAP_ON_AMBIGUOUS=hold",
		"DATABASE_URL_FILE="+file("database", database.String()),
		"NATS_URL="+broker.ClientURL(), "NATS_NKEY_FILE="+file("seed", seed),
		"HTTP_JWT_SECRET="+hidden.texts["the secret of REST"],
		"CONSOLE_TOKEN="+hidden.texts["the console's token"], "EMBED_TOKEN_AUDIT=1000000",
		"PAPERMAP_WORKSPACES_FILE="+file("workspaces.json",
			`[{"workspace_id":"ws-second","api_key_id":"ak_second","secret_key_file":"second",
				"embed_api_key_id":"ak_second_embed","embed_secret_key_file":"second-embed"}]`))
	worker := start(t, env, "serve")
	address := worker.address(t)
	outputs := outputs{} // what was written or answered, by what it is
	option, err := nats.NkeyOptionFromSeed(filepath.Join(dir, "seed"))
	must(t, err)
	nc, err := nats.Connect(broker.ClientURL(), option)
	must(t, err)
	t.Cleanup(nc.Close)

	ask := func(subject, body string) []byte {
		t.Helper()
		var reply *nats.Msg
		eventually(t, func() (err error) { // the worker may be about to start
			reply, err = nc.Request(subject, []byte(body), 5*time.Second)
			return err
		})
		return reply.Data
	}
	for _, e := range [][2]string{
		{"tenant.created", `{"tenant_id":"org-1","name":"One"}`},
		{"tenant.created", `{"tenant_id":"org-2","name":"Two","workspace_id":"ws-second"}`},
		{"tenant.created", `{"tenant_id":"org-3","name":"refused","workspace_id":"ws-second"}`},
		{"tenant.created", `{"tenant_id":"org-4","name":"unknown","workspace_id":"ws-second"}`},
		{"tenant.created", `{"tenant_id":"org-5","name":"Five","workspace_id":"ws-third"}`},
		{"usage.sync", `{}`},
	} {
		ask("papermap.events."+e[0], e[1])
	}
	for tenant, status := range map[string]string{
		"org-1": "active", "org-2": "active", "org-3": "failed", "org-4": "held",
	} {
		eventually(t, func() error { return hasStatus(nc, tenant, status) })
	}
	for _, tenant := range []string{"org-1", "org-2"} {
		if !hidden.addToken(t, ask("papermap.rpc.embed-token."+tenant, "")) {
			t.Errorf("no token for %s", tenant)
		}
	}
	claims := jwt.MapClaims{"scope": "papermap:admin", "exp": time.Now().Add(time.Hour).Unix()}
	bearer, err := jwt.NewWithClaims(jwt.SigningMethodHS256,
		claims).SignedString([]byte(hidden.texts["the secret of REST"]))
	must(t, err)
	hidden.add("the bearer token of REST", bearer)
	get := func(method, path, bearer string) []byte {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
		must(t, err)
		r.Header.Set("Authorization", "Bearer "+bearer)
		answer, text, err := read(http.DefaultClient.Do(r))
		must(t, err)
		outputs[method+" "+path] += answer.Status + fmt.Sprint(answer.Header)
		return []byte(text)
	}
	if !hidden.addToken(t, get("POST", "/api/v1/dashboards/org-2/embed-token", bearer)) {
		t.Errorf("no token by REST: %s", outputs["POST /api/v1/dashboards/org-2/embed-token"])
	}
	ask("papermap.events.tenant.created",
		`{"tenant_id":"org-6","name":"unauthorized","workspace_id":"ws-second"}`)
	eventually(t, func() error { // a pause has a reason that /readyz shows
		outputs["/readyz"] = string(get("GET", "/readyz", ""))
		if !strings.Contains(outputs["/readyz"], "refuses the credentials") {
			return fmt.Errorf("no pause: %s", outputs["/readyz"])
		}
		return nil
	})

	credentials := fmt.Sprintf("-----BEGIN NATS USER JWT-----\n%s\n------END NATS USER JWT------\n\n"+
		"-----BEGIN USER NKEY SEED-----\n%s\n------END USER NKEY SEED------\n", bearer, stranger)
	const unused = "CANARY-unused"
	twice := `[{"workspace_id":"ws-test","api_key_id":"ak_second","secret_key_file":"second"}]`
	wrong := `[{"workspace_id":"ws-second","api_key_id":"ak_second","secret_key":"` + unused + `"}]`
	none := strings.Replace(database.String(), database.Path, "/none", 1)
	outputs.run(t, env, map[string]command{
		"doctor":                       {"doctor", nil},
		"tenants":                      {"tenants list --json", nil},
		"attempts":                     {"attempts list", nil},
		"dead letters":                 {"dead list --json", nil},
		"usage":                        {"usage runs --json", nil},
		"a token of an unknown tenant": {"token org-9", nil},
		"another nkey":                 {"doctor", []string{"NATS_NKEY_FILE=" + file("stranger", stranger)}},
		"no nkey":                      {"doctor", []string{"NATS_NKEY_FILE=" + file("unused", unused)}},
		"credentials that are refused": {"doctor",
			[]string{"NATS_NKEY_FILE=", "NATS_CREDS=" + file("creds", credentials)}},
		"no credentials": {"doctor",
			[]string{"NATS_NKEY_FILE=", "NATS_CREDS=" + filepath.Join(dir, "unused")}},
		"a workspace twice": {"serve",
			[]string{"PAPERMAP_WORKSPACES_FILE=" + file("twice.json", twice)}},
		"a secret where none belongs": {"serve",
			[]string{"PAPERMAP_WORKSPACES_FILE=" + file("wrong.json", wrong)}},
		"a text where a file belongs": {"serve",
			[]string{"PAPERMAP_WORKSPACES_FILE=" + filepath.Join(dir, "second")}},
		"another database": {"tenants list",
			[]string{"DATABASE_URL_FILE=" + file("other", none)}},
	})

	db := openSQL(t, database.String())
	var tables []string
	must(t, db.Select(&tables,
		"SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"))
	for _, table := range tables {
		var rows []string
		must(t, db.Select(&rows, "SELECT r::text FROM "+table+" r"))
		outputs["table "+table] = strings.Join(rows, "\n")
	}
	db.MustExec("ALTER TABLE tenant_dashboards RENAME TO gone")
	uncached := ask("papermap.rpc.embed-token.org-7", "")
	mapping := ask("papermap.rpc.dashboard", `{"tenant_id":"org-1"}`)
	outputs["an answer without the database"] = string(uncached) + string(mapping)
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/api/v1/dashboards",
		"/api/v1/dashboards/org-2", "/api/v1/usage", "/api/v1/openapi.json", "/"} {
		outputs["GET "+path] += string(get("GET", path, bearer)) + string(get("GET", path, "CANARY-unused"))
	}
	worker.says(t, `relation \"tenant_dashboards\" does not exist`)
	worker.stop(t)
	outputs["the worker's log"] = worker.text()
	outputs.mention(t, map[string]string{
		"the worker's log": "[redacted]", "dead letters": "ws-third", "attempts": "org-4",
		"table provision_attempts": "org-3", "doctor": "ws-second", "GET /metrics": "papermap_",
	})
	hidden.find(t, outputs, broker, store)
}
