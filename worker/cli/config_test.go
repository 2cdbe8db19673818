package cli

import (
	stdcmp "cmp"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"papermap-worker/papermap"
	"papermap-worker/worker/ops"
	"papermap-worker/worker/ops/console"
)

const secretCanary = "sk_CANARY_of_the_key" // must not show anywhere

// must ends the test if there is an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setEnvironment makes variables the whole environment until the test ends.
func setEnvironment(t *testing.T, variables ...map[string]string) {
	t.Helper()
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		t.Setenv(name, "")
	}
	for _, list := range variables {
		for name, value := range list {
			t.Setenv(name, value)
		}
	}
	unsetEmpty()
}

// required is the least that serve needs.
var required = map[string]string{"PAPERMAP_WORKSPACE_ID": "ws-1", "PAPERMAP_API_KEY_ID": "ak_1",
	"PAPERMAP_SECRET_KEY": secretCanary}

// configure reads serve's settings from the environment alone: required, with changes.
func configure(t *testing.T, changes map[string]string) (serveConfig, []string) {
	t.Helper()
	setEnvironment(t, required, changes)
	var g grammar
	if _, err := newKong(&g).Parse([]string{"serve"}); err != nil {
		t.Fatal(err)
	}
	p := (&app{}).parser()
	g.logger(p, io.Discard)
	cfg, _ := g.Serve.config(p)
	for _, text := range p.problems {
		if strings.Contains(text, "CANARY") {
			t.Errorf("a message shows a secret: %s", text)
		}
	}
	return cfg, p.problems
}

func TestSettingsDefaults(t *testing.T) {
	cfg, p := configure(t, nil)
	if len(p) > 0 {
		t.Fatal(p)
	}
	w := cfg.worker
	key := papermap.KeyPair{ID: "ak_1", Secret: papermap.NewSecret(secretCanary)}
	want := []papermap.Workspace{{ID: "ws-1", APIURL: "https://prod.dataapi.papermap.ai", Key: key,
		EmbedKey: key}}
	if diff := cmp.Diff(want, w.Workspaces, cmpopts.EquateComparable(papermap.Secret{})); diff != "" {
		t.Error(diff)
	}
	type facts struct {
		EmbedURL, NATS, Stream, Prefix, Database, HTTP string
		Timeout, TokenTTL, TokenMaxTTL, Grace, MaxAge  time.Duration
		MaxRPS                                         float64
		Concurrency, MaxAttempts, Replicas             int
		Hold, ManageStreams, Migrate                   bool
	}
	got := facts{
		w.EmbedURL, cfg.bus.URL, cfg.bus.Stream, cfg.bus.Subjects.Prefix, cfg.database, cfg.http.Addr,
		w.Timeout, w.TokenTTL, w.TokenMaxTTL, w.Grace, cfg.bus.MaxAge, w.MaxRPS, w.Concurrency, w.MaxAttempts,
		cfg.bus.Replicas,
		w.Hold, cfg.bus.ManageStreams, cfg.migrate,
	}
	if diff := cmp.Diff(facts{
		"https://papermap.ai/embedded/dashboard", "nats://127.0.0.1:4222", "PAPERMAP", "papermap",
		"sqlite:papermap.db", "127.0.0.1:8080",
		10 * time.Second, time.Hour, time.Hour, 25 * time.Second, 720 * time.Hour, 0, 64, 10, 1, false, true,
		true,
	}, got); diff != "" {
		t.Error(diff)
	}
}

// Each value is refused, or taken, for itself: one problem, which begins with the variable's name,
// or none.
func TestSettingsAreChecked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, []byte("x\n"), 0o600))
	for name, values := range map[string]struct{ right, wrong []string }{
		"PAPERMAP_WORKSPACE_ID": {[]string{"ws", "1", "müller"}, []string{"", "a b", "a\x7fb"}},
		"PAPERMAP_API_KEY_ID":   {[]string{"ak"}, []string{"", "a\tb"}},
		"PAPERMAP_SECRET_KEY":   {[]string{"CANARY"}, []string{""}},
		"PAPERMAP_API_URL": {
			[]string{"https://h", "https://h:8443/base/", "http://localhost:1", "http://127.0.0.1:1",
				"http://127.8.8.8", "http://[::1]:1"},
			[]string{"h", "http://h", "http://10.0.0.1", "http://localhost.example.com",
				"http://127.0.0.1.example.com", "http://0.0.0.0", "ftp://h",
				"https://", "https://:1", "https://h?q=CANARY", "https://h#f", "https://u:CANARY@h",
				"https://h:port", "//h", "CANARY"},
		},
		"PAPERMAP_EMBED_URL": {[]string{"https://h/x", "http://h"},
			[]string{"h", "https://h?x=1", "https://h#x", "https://", "javascript:alert(1)"}},
		"PAPERMAP_TIMEOUT": {[]string{"100ms", "19s"}, []string{"99ms", "19.001s", "10", "-1s", "1 s",
			"forever"}},
		"PAPERMAP_MAX_RPS": {[]string{"0", "0.5", "1e6"},
			[]string{"-1", "NaN", "Inf", "1000001", "many"}},
		"PAPERMAP_ON_AMBIGUOUS": {[]string{"hold", "recreate"}, []string{"Hold", "create"}},
		"PAPERMAP_ALLOW_HTTP":   {[]string{"true", "false", "1", "0"}, []string{"yes", "2"}},
		"EMBED_TOKEN_TTL":       {[]string{"1s", "8760h"}, []string{"999ms", "8761h", "3600"}},
		"EMBED_TOKEN_MAX_TTL":   {[]string{"1s", "8760h"}, []string{"0", "8761h"}},
		"NATS_URL": {
			[]string{"nats://h", "nats://u:CANARY@h:4222", "tls://h:1,tls://g:2", "nats://h:1, nats://g:1",
				"ws://h:80"},
			[]string{"h", "h:4222", "u:CANARY@h:4222", "nats://", "nats://h,CANARY", "nats://u:CANARY @h",
				"nats://h:CANARY"},
		},
		"NATS_CREDS":           {[]string{file}, []string{"/nowhere"}},
		"NATS_NKEY_FILE":       {[]string{file}, []string{"/nowhere"}},
		"NATS_TLS_CA":          {[]string{file}, []string{"/nowhere"}},
		"NATS_TLS_CERT":        {nil, []string{file}}, // alone
		"NATS_PASSWORD":        {nil, []string{"CANARY"}},
		"NATS_USER":            {[]string{"me"}, nil},
		"NATS_INBOX_PREFIX":    {[]string{"_INBOX_me", "_INBOX.me."}, nil},
		"NATS_STREAM":          {[]string{"PAPERMAP_2"}, []string{"a.b", "a b", "a>", "*", "a/b"}},
		"NATS_MANAGE_STREAMS":  {[]string{"false"}, []string{"no"}},
		"NATS_STREAM_REPLICAS": {[]string{"1", "5"}, []string{"0", "6", "1.5", "-1", "x"}},
		"NATS_STREAM_MAX_AGE":  {[]string{"1m", "876000h"}, []string{"59s", "0", "30d"}},
		"NATS_REPLY_PREFIXES":  {[]string{"replies", "a.b., c"}, []string{"$JS.API", "$SYS", "a.*", ">"}},
		"SUBJECT_PREFIX":       {[]string{"a.b-c_1"}, []string{"a..b", ".a", "a.", "a b", "*", ">", "$JS"}},
		"DATABASE_URL": {[]string{"sqlite:x.db", "sqlite:/x/y.db", "postgres://u:CANARY@h/db",
			"postgresql://h"}, []string{"sqlite:", "sqlite::memory:", "x.db", "mysql://u:CANARY@h/db",
			"postgres://u:CANARY@h:port/db", "SQLITE:x"}},
		"DATABASE_MIGRATE":     {[]string{"false"}, []string{"no"}},
		"DATABASE_MAX_CONNS":   {[]string{"4", "1000"}, []string{"3", "1001", "0", "many"}},
		"WORKER_CONCURRENCY":   {[]string{"1", "4096"}, []string{"0", "4097", "-1", "1e2", "many"}},
		"MAX_ATTEMPTS":         {[]string{"1", "1000"}, []string{"0", "1001"}},
		"AUDIT_RETENTION":      {[]string{"1h", "8760h"}, []string{"59m", "0", "365d"}},
		"SHUTDOWN_GRACE":       {[]string{"0", "0s", "1h"}, []string{"-1s", "61m", "25"}},
		"HTTP_ADDR":            {[]string{":8080", "[::1]:1", "off"}, []string{"8080", "localhost", "OFF"}},
		"METRICS_ADDR":         {[]string{"0.0.0.0:9090"}, []string{"9090", "off"}},
		"HTTP_JWT_SECRET":      {[]string{"CANARY"}, nil},
		"HTTP_JWT_SECRET_FILE": {[]string{file}, []string{"/nowhere"}},
		"CONSOLE_TOKEN":        {[]string{"CANARY-of-16-char", "CANÄRY-16-chäräc"}, []string{"x", "CANARY7"}},
		"CONSOLE_TOKEN_FILE":   {nil, []string{"/nowhere", file}},              // too short
		"HTTP_JWT_JWKS":        {nil, []string{"keys.json", "https://h/keys"}}, // without HTTP_JWT_AUDIENCE
		"HTTP_TLS_CERT":        {nil, []string{file}},                          // alone
		"HTTP_TLS_KEY":         {nil, []string{file}},
		"CONSOLE_USERS_FILE":   {nil, []string{file, "/nowhere"}},
		"TRUSTED_PROXIES": {[]string{"10.0.0.0/8", "10.0.0.1, ::1,fd00::/8"},
			[]string{"10.0.0.0/33", "proxy", "10.0.0.0/8,x", "*"}},
		"HTTP_JWT_ISSUER":   {[]string{"https://issuer.example.com/"}, nil},
		"HTTP_JWT_AUDIENCE": {[]string{"papermap"}, nil},
		"HTTP_CORS_ORIGINS": {
			[]string{"https://app.example.com", "https://a.example.com:8443, http://localhost:3000"},
			[]string{"*", "app.example.com", "https://app.example.com/", "https://app.example.com?x",
				"https://", "null"},
		},
		"LOG_LEVEL":  {[]string{"debug", "WARN", "error"}, []string{"loud"}},
		"LOG_FORMAT": {[]string{"auto", "text", "json"}, []string{"xml", "JSON"}},

		"PAPERMAP_WORKSPACES_FILE":  {nil, []string{"/nowhere", file}},
		"PAPERMAP_EMBED_API_KEY_ID": {nil, []string{"ak_2"}}, // alone
		"PAPERMAP_EMBED_SECRET_KEY": {nil, []string{"CANARY"}},
		"PAPERMAP_SECRET_KEY_FILE":  {nil, []string{file}}, // beside PAPERMAP_SECRET_KEY
		"NATS_URL_FILE":             {nil, []string{"/nowhere", file}},
		"DATABASE_URL_FILE":         {nil, []string{"/nowhere", file}},
		"NATS_PASSWORD_FILE":        {nil, []string{"/nowhere"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, value := range values.right {
				if _, p := configure(t, map[string]string{name: value}); len(p) > 0 {
					t.Errorf("%q: %v", value, p)
				}
			}
			for _, value := range values.wrong {
				if _, p := configure(t, map[string]string{name: value}); len(p) != 1 ||
					!strings.Contains(p[0], strings.TrimSuffix(name, "_FILE")) {
					t.Errorf("%q: %q, want one problem that names the variable", value, p)
				}
			}
		})
	}
}

func TestSecretComesFromVariableOrFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	full, empty, blank := write("full", "sk CANARY \r\n\n"), write("empty", ""), write("blank", "\n")
	marked, wide := write("marked", "\uFEFFsk_CANARY\r\n"), write("wide", "\xff\xfes\x00k\x00")
	for name, c := range map[string]struct {
		changes map[string]string
		secret  string
		problem string
	}{
		"variable": {nil, secretCanary, ""},
		"file": {map[string]string{"PAPERMAP_SECRET_KEY": "", "PAPERMAP_SECRET_KEY_FILE": full},
			"sk CANARY ", ""},
		"empty file setting": {map[string]string{"PAPERMAP_SECRET_KEY_FILE": ""}, secretCanary, ""},
		"both": {map[string]string{"PAPERMAP_SECRET_KEY_FILE": full}, "",
			"PAPERMAP_SECRET_KEY and PAPERMAP_SECRET_KEY_FILE are both set: unset one"},
		"neither": {map[string]string{"PAPERMAP_SECRET_KEY": ""}, "",
			"PAPERMAP_SECRET_KEY is required: Papermap shows it in the workspace's settings"},
		"no such file": {map[string]string{"PAPERMAP_SECRET_KEY": "",
			"PAPERMAP_SECRET_KEY_FILE": dir + "/none"}, "",
			"PAPERMAP_SECRET_KEY_FILE: open " + dir + "/none: no such file or directory"},
		"folder": {map[string]string{"PAPERMAP_SECRET_KEY": "", "PAPERMAP_SECRET_KEY_FILE": dir}, "",
			"PAPERMAP_SECRET_KEY_FILE: read " + dir + ": is a directory"},
		"empty file": {map[string]string{"PAPERMAP_SECRET_KEY": "", "PAPERMAP_SECRET_KEY_FILE": empty}, "",
			"PAPERMAP_SECRET_KEY_FILE: " + empty + " is empty"},
		"unreadable embed secret": {map[string]string{"PAPERMAP_EMBED_API_KEY_ID": "ak_2",
			"PAPERMAP_EMBED_SECRET_KEY_FILE": dir + "/none"}, secretCanary,
			"PAPERMAP_EMBED_SECRET_KEY_FILE: open " + dir + "/none: no such file or directory"},
		"byte order mark": {map[string]string{"PAPERMAP_SECRET_KEY": "", "PAPERMAP_SECRET_KEY_FILE": marked},
			"sk_CANARY", ""},
		"UTF-16": {map[string]string{"PAPERMAP_SECRET_KEY": "", "PAPERMAP_SECRET_KEY_FILE": wide}, "",
			"PAPERMAP_SECRET_KEY_FILE: " + wide + " is UTF-16: save it as UTF-8"},
		"blank file": {map[string]string{"PAPERMAP_SECRET_KEY": "", "PAPERMAP_SECRET_KEY_FILE": blank}, "",
			"PAPERMAP_SECRET_KEY_FILE: " + blank + " is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, p := configure(t, c.changes)
			if got := cfg.worker.Workspaces[0].Key.Secret.Reveal(); got != c.secret {
				t.Errorf("secret %q, want %q", got, c.secret)
			}
			var want []string
			if c.problem != "" {
				want = []string{c.problem}
			}
			if !slices.Equal(p, want) {
				t.Errorf("problems %q, want %q", p, want)
			}
		})
	}
}

func TestSecretsComeFromFiles(t *testing.T) {
	dir := t.TempDir()
	changes := map[string]string{"PAPERMAP_EMBED_API_KEY_ID": "ak_2", "NATS_USER": "me"}
	for name, text := range map[string]string{
		"PAPERMAP_EMBED_SECRET_KEY": "sk_CANARY2", "NATS_URL": "nats://me:CANARY3@h",
		"NATS_PASSWORD": "CANARY4", "DATABASE_URL": "sqlite:CANARY5",
	} {
		changes[name+"_FILE"] = filepath.Join(dir, name)
		must(t, os.WriteFile(changes[name+"_FILE"], []byte(text+"\n"), 0o600))
	}
	cfg, p := configure(t, changes)
	if len(p) > 0 {
		t.Fatal(p)
	}
	got := []string{cfg.worker.Workspaces[0].EmbedKey.Secret.Reveal(), cfg.bus.URL, cfg.bus.Password,
		cfg.database}
	want := []string{"sk_CANARY2", "nats://me:CANARY3@h", "CANARY4", "sqlite:CANARY5"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWorkspacesFile(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "sk_2"), []byte("CANARY2\n"), 0o600))
	const row = `{"workspace_id":"ws-2","api_key_id":"ak_2","secret_key_file":"sk_2"`
	key := papermap.KeyPair{ID: "ak_2", Secret: papermap.NewSecret("CANARY2")}
	for name, c := range map[string]struct {
		text     string
		want     []papermap.Workspace
		problems []string // what each is about
	}{
		"none": {`[]`, nil, nil},
		"paths in it are relative to it": {`[` + row + `}]`,
			[]papermap.Workspace{{ID: "ws-2", APIURL: "https://api.example.com", Key: key, EmbedKey: key}},
			nil},
		"all members": {
			`[` + row + `,"api_url":"https://h/","embed_api_key_id":"ak_3",` +
				`"embed_secret_key_file":"` + dir + `/sk_2","embed_url":"https://e/x"}]`,
			[]papermap.Workspace{{ID: "ws-2", APIURL: "https://h", Key: key, EmbedURL: "https://e/x",
				EmbedKey: papermap.KeyPair{ID: "ak_3", Secret: papermap.NewSecret("CANARY2")}}}, nil,
		},
		"an unknown member": {`[` + row + `,"secret_key":"CANARY"}]`, nil,
			[]string{`unknown object member name "secret_key"`}},
		"a wrong type":     {`[{"workspace_id":5}]`, nil, []string{"workspace_id"}},
		"an object":        {`{}`, nil, []string{`PAPERMAP_WORKSPACES_FILE: unexpected object`}},
		"a secret instead": {`CANARY`, nil, []string{"PAPERMAP_WORKSPACES_FILE: json"}},
		"duplicate member": {`[` + row + `,"api_key_id":"x"}]`, nil,
			[]string{`duplicate object member name "api_key_id"`}},
		"missing members": {`[{"workspace_id":"ws-2"},{}]`, nil,
			[]string{"entry 1: workspace_id, api_key_id and secret_key_file are required", "entry 2: "}},
		"duplicate workspace": {`[` + row + `},` + row + `}]`, nil,
			[]string{`workspace "ws-2" is configured twice`}},
		"the default one again": {`[{"workspace_id":"ws-1","api_key_id":"ak_2","secret_key_file":"sk_2"}]`,
			nil, []string{`workspace "ws-1" is configured twice`}},
		"missing secret file": {`[{"workspace_id":"ws-2","api_key_id":"ak_2","secret_key_file":"none"}]`,
			nil, []string{"entry 1, secret_key_file: open " + dir + "/none"}},
		"missing embed file": {`[` + row + `,"embed_api_key_id":"ak_3","embed_secret_key_file":"none"}]`,
			nil, []string{"entry 1, embed_secret_key_file: open "}},
		"half an embed pair": {`[` + row + `,"embed_api_key_id":"ak_3"}]`, nil,
			[]string{"entry 1, embed_api_key_id and embed_secret_key_file go together"}},
		"white space in an id": {`[{"workspace_id":"ws 2","api_key_id":"ak_2","secret_key_file":"sk_2"}]`,
			nil, []string{"entry 1, workspace_id has white space"}},
		"a line break in one": {`[{"workspace_id":"ws-2","api_key_id":"ak\n2","secret_key_file":"sk_2"}]`,
			nil, []string{"entry 1, api_key_id has white space"}},
		"an embed address with a query": {`[` + row + `,"embed_url":"https://e/x?debug=true"}]`, nil,
			[]string{"entry 1, embed_url: invalid address"}},
		"an address without TLS": {`[` + row + `,"api_url":"http://h"}]`, nil,
			[]string{"entry 1, api_url: use https"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "workspaces.json")
			must(t, os.WriteFile(path, []byte(c.text), 0o600))
			cfg, p := configure(t, map[string]string{"PAPERMAP_API_URL": "https://api.example.com/",
				"PAPERMAP_WORKSPACES_FILE": path})
			if len(p) != len(c.problems) {
				t.Fatalf("problems %q, want those about %q", p, c.problems)
			}
			for i, about := range c.problems {
				if !strings.HasPrefix(p[i], "PAPERMAP_WORKSPACES_FILE") || !strings.Contains(p[i], about) {
					t.Errorf("problem %q is not about %q", p[i], about)
				}
			}
			if diff := cmp.Diff(c.want, cfg.worker.Workspaces[1:],
				cmpopts.EquateComparable(papermap.Secret{})); c.problems == nil && len(c.want) > 0 &&
				diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTokenTTLIsCapped(t *testing.T) {
	cfg, p := configure(t, map[string]string{"EMBED_TOKEN_TTL": "2h", "EMBED_TOKEN_MAX_TTL": "30m0.5s"})
	if len(p) > 0 || cfg.worker.TokenTTL != 30*time.Minute || cfg.worker.TokenMaxTTL != 30*time.Minute {
		t.Errorf("lives %v and %v (%v), want 30m each", cfg.worker.TokenTTL, cfg.worker.TokenMaxTTL, p)
	}
}

func TestMetricsAddrMovesOnlyHealth(t *testing.T) {
	for _, c := range []struct{ http, metrics, rest, health string }{
		{"", "", "127.0.0.1:8080", "127.0.0.1:8080"}, {"off", "", "", ""}, {":1", "", ":1", ":1"},
		{":1", ":2", ":1", ":2"}, {"off", ":2", "", ":2"},
	} {
		cfg, p := configure(t, map[string]string{"HTTP_ADDR": c.http, "METRICS_ADDR": c.metrics})
		if len(p) > 0 || cfg.http.Addr != c.rest || cfg.http.MetricsAddr != c.metrics {
			t.Errorf("HTTP_ADDR %q, METRICS_ADDR %q: %q and %q (%v), want %q", c.http, c.metrics,
				cfg.http.Addr, cfg.http.MetricsAddr, p, c.rest)
		}
		asked := httpSettings{HTTPAddr: stdcmp.Or(c.http, "127.0.0.1:8080"), MetricsAddr: c.metrics}
		if got := asked.healthAddr(); got != c.health {
			t.Errorf("HTTP_ADDR %q, METRICS_ADDR %q: health is asked for at %q, want %q", c.http, c.metrics,
				got, c.health)
		}
	}
}

func TestRESTHasOneKey(t *testing.T) {
	secret := strings.Repeat("CANARY", 6)
	cfg, p := configure(t, map[string]string{"HTTP_JWT_SECRET": secret, "HTTP_JWT_ISSUER": "me",
		"HTTP_JWT_AUDIENCE": "you", "HTTP_CORS_ORIGINS": "https://a, https://b"})
	want := ops.Config{Addr: "127.0.0.1:8080", JWT: ops.JWT{Secret: secret, Issuer: "me", Audience: "you"},
		Origins: []string{"https://a", "https://b"}}
	if diff := cmp.Diff(want, cfg.http, cmpopts.IgnoreUnexported(netip.Prefix{})); diff != "" || len(p) > 0 {
		t.Errorf("%v\n%s", p, diff)
	}
	if cfg, p := configure(t, nil); cfg.http.JWT.Given() || len(p) > 0 {
		t.Errorf("without a key: %+v (%v)", cfg.http, p)
	}
	if _, p := configure(t, map[string]string{"HTTP_JWT_SECRET": secret, "HTTP_JWT_AUDIENCE": "papermap",
		"HTTP_JWT_JWKS": "keys.json"}); len(p) != 1 || !strings.Contains(p[0], "unset one") {
		t.Errorf("both keys: %q", p)
	}
	for source, fine := range map[string]bool{"keys.json": true, "https://h/keys": true,
		"http://h/keys": false, "ftp://h": false} {
		_, p := configure(t, map[string]string{"HTTP_JWT_JWKS": source, "HTTP_JWT_AUDIENCE": "papermap"})
		if (len(p) == 0) != fine {
			t.Errorf("key set %s: %q", source, p)
		}
	}
}

// What git and releases call a version is not always what micro services take.
func TestVersionIsSemantic(t *testing.T) {
	for want, candidates := range map[string][]string{
		"1.2.3":     {"1.2.3", "v9.9.9"},
		"1.2.3-rc1": {"v1.2.3-rc1"},
		"0.0.0-20250102030405-abcdef012345+dirty": {"", "v0.0.0-20250102030405-abcdef012345+dirty"},
		"2.0.0":     {"main", "v2.0.0"},
		"0.0.0-dev": {"", "(devel)"},
	} {
		if got := semanticVersion(candidates...); got != want {
			t.Errorf("%q: %q, want %q", candidates, got, want)
		}
	}
}

func TestAmbiguousID(t *testing.T) {
	for id, want := range map[string]bool{
		"ws": false, "ws-1": true, "12345678": true,
		"6f1c1f6e-0f4e-4f57-9a67-0123456789ab": false, "6f1c1f6e-0f4e-4f57-9a67-012345678901": false,
	} {
		if got := ambiguousID(id); got != want {
			t.Errorf("%s: %v, want %v", id, got, want)
		}
	}
}

func TestReplyPrefixesExcludeTheWorkersOwnSubjects(t *testing.T) {
	for prefix, fine := range map[string]bool{
		"_INBOX_team": true, "acme.inbox": true, "papermapper": true,
		"papermap": false, "papermap.events": false, "papermap.": false,
	} {
		_, problems := configure(t, map[string]string{"NATS_REPLY_PREFIXES": prefix})
		if fine && len(problems) > 0 || !fine &&
			(len(problems) != 1 || !strings.Contains(problems[0], "NATS_REPLY_PREFIXES")) {
			t.Errorf("%q: %v", prefix, problems)
		}
	}
}

func TestSettingsFilesAreReadUpToALimit(t *testing.T) {
	t.Parallel()
	if _, err := readText("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("a file without an end: %v", err)
	}
	_, err := console.ReadUsers("/dev/zero")
	if err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("users without an end: %v", err)
	}
}
