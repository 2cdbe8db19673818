package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/ops"
	"papermap-worker/worker/ops/console"
)

// The settings, declared once. Each is a flag, and the environment variable of the flag's name:
// --max-attempts and MAX_ATTEMPTS; the fields of a struct that is embedded with a group are
// settings. They are texts here, because kong would stop at the first wrong one: the parse methods
// check all. Secrets are no fields, so they have no flag and do not show in help; [parser.secret]
// reads them.

// papermapSettings are about the API: address, keys, usage and tokens.
type papermapSettings struct {
	APIURL    string `name:"papermap-api-url" default:"https://prod.dataapi.papermap.ai" help:"API address."`
	EmbedURL  string `name:"papermap-embed-url" help:"Default: https://papermap.ai/embedded/dashboard."`
	Timeout   string `name:"papermap-timeout" default:"10s" help:"Timeout of one API request."`
	MaxRPS    string `name:"papermap-max-rps" default:"0" help:"API requests per second; 0: no limit."`
	Ambiguous string `name:"papermap-on-ambiguous" default:"recreate" help:"If unknown: recreate or hold."`
	AllowHTTP string `name:"papermap-allow-http" default:"false" help:"Allow http beyond loopback (tests)."`

	WorkspaceID    string `name:"papermap-workspace-id" help:"Default workspace. Required."`
	KeyID          string `name:"papermap-api-key-id" help:"API key id. Required, with PAPERMAP_SECRET_KEY."`
	EmbedKeyID     string `name:"papermap-embed-api-key-id" help:"Key id for embed tokens. Default: API key."`
	WorkspacesFile string `name:"papermap-workspaces-file" help:"JSON file with more workspaces."`

	usageSettings `group:"Usage"`
	tokenSettings `group:"Embed tokens"`
}

// usageSettings are about syncing usage.
type usageSettings struct {
	Schedule    string `name:"usage-sync-schedule" default:"@hourly" help:"Cron in UTC, @every 15m, or off."`
	UsagePages  string `name:"usage-sync-concurrency" default:"8" help:"Usage pages requested concurrently."`
	HistoryPath string `name:"papermap-usage-history-path" help:"Path of a tenant's usage, with {tenant_id}."`
}

// tokenSettings are about embed tokens.
type tokenSettings struct {
	TokenTTL    string `name:"embed-token-ttl" default:"1h" help:"Lifetime of an embed token."`
	TokenMaxTTL string `name:"embed-token-max-ttl" default:"1h" help:"Maximum lifetime to request."`
	TokenRate   string `name:"embed-token-rate" default:"0" help:"Tokens per second and tenant; 0: no limit."`
	TokenBurst  string `name:"embed-token-burst" default:"0" help:"Burst of that rate; 0: a second's worth."`
	TokenCreate string `name:"embed-token-create" default:"false" help:"Token requests can create tenants."`
	TokenAudit  string `name:"embed-token-audit" default:"100" help:"Token log lines per second; 0: off."`
}

// workSettings are about the worker itself, and what it serves over HTTP.
type workSettings struct {
	Concurrency   string `name:"worker-concurrency" default:"64" help:"Events processed concurrently."`
	MaxAttempts   string `name:"max-attempts" default:"10" help:"Failures before an event is a dead letter."`
	Grace         string `name:"shutdown-grace" default:"25s" help:"Time for events in flight at shutdown."`
	AuditKept     string `name:"audit-retention" default:"8760h" help:"Time to keep the audit log."`
	ReplyPrefixes string `name:"nats-reply-prefixes" help:"More reply prefixes to answer, comma-separated."`
	webSettings   `group:"REST and console"`
}

// webSettings are about what is served over HTTP.
type webSettings struct {
	JWKS        string `name:"http-jwt-jwks" help:"REST keys: path or https address. Or HTTP_JWT_SECRET."`
	CORSOrigins string `name:"http-cors-origins" help:"Origins that can call REST, comma-separated."`
	UsersFile   string `name:"console-users-file" help:"Console users: lines name:role:bcrypt."`
	Proxies     string `name:"trusted-proxies" help:"CIDRs whose X-Forwarded-For is trusted."`
	jwtSettings
	httpSettings
}

// jwtSettings are what bearer tokens of the REST API must say.
type jwtSettings struct {
	JWTIssuer   string `name:"http-jwt-issuer" help:"Required issuer of REST tokens."`
	JWTAudience string `name:"http-jwt-audience" help:"Required audience of REST tokens."`
}

// httpSettings are where HTTP is served; health needs them as well.
type httpSettings struct {
	HTTPAddr    string `name:"http-addr" default:"127.0.0.1:8080" help:"Console, health and REST, or off."`
	MetricsAddr string `name:"metrics-addr" help:"Address of health and metrics instead."`
	HTTPCert    string `name:"http-tls-cert" help:"Certificate, to serve HTTPS."`
	HTTPKey     string `name:"http-tls-key" help:"Its key."`
}

// natsSettings are about NATS. Every command that connects to it has them.
type natsSettings struct {
	Credentials   string `name:"nats-creds" help:"Credentials file. The servers are in NATS_URL."`
	NKeyFile      string `name:"nats-nkey-file" help:"NKey seed file."`
	User          string `name:"nats-user" help:"User name, with NATS_PASSWORD."`
	TLSCA         string `name:"nats-tls-ca" help:"CA certificates for the server's certificate."`
	TLSCert       string `name:"nats-tls-cert" help:"Client certificate."`
	TLSKey        string `name:"nats-tls-key" help:"Client key."`
	InboxPrefix   string `name:"nats-inbox-prefix" help:"Prefix of own inboxes."`
	Stream        string `name:"nats-stream" default:"PAPERMAP" help:"Stream of events; _DEAD: dead letters."`
	ManageStreams string `name:"nats-manage-streams" default:"true" help:"Create missing streams."`
	Replicas      string `name:"nats-stream-replicas" default:"1" help:"Replicas of created streams."`
	MaxAge        string `name:"nats-stream-max-age" default:"720h" help:"Maximum age in created streams."`
	MaxBytes      string `name:"nats-stream-max-bytes" default:"0" help:"Size of new streams; 0: no limit."`
	Domain        string `name:"nats-js-domain" help:"JetStream domain. Default: the server's own."`
	Prefix        string `name:"subject-prefix" default:"papermap" help:"First part of every subject."`
}

type databaseSettings struct {
	Migrate  string `name:"database-migrate" default:"true" help:"Migrate DATABASE_URL at start."`
	MaxConns string `name:"database-max-conns" default:"24" help:"Connections to PostgreSQL, at most."`
}

type logSettings struct {
	LogLevel  string `name:"log-level" default:"info" help:"debug, info, warn or error."`
	LogFormat string `name:"log-format" default:"auto" help:"text, json, or auto: text on a terminal."`
}

// parse returns the part of the worker's configuration that is about Papermap.
func (s papermapSettings) parse(p *parser) worker.Config {
	const year = 365 * 24 * time.Hour
	embedURL := cmp.Or(s.EmbedURL, "https://papermap.ai/embedded/dashboard")
	c := worker.Config{
		EmbedURL:         embedURL,
		Timeout:          p.duration("PAPERMAP_TIMEOUT", s.Timeout, 100*time.Millisecond, worker.MaxTimeout),
		MaxRPS:           p.rate("PAPERMAP_MAX_RPS", s.MaxRPS),
		Hold:             p.oneOf("PAPERMAP_ON_AMBIGUOUS", s.Ambiguous, "recreate", "hold") == "hold",
		TokenTTL:         p.duration("EMBED_TOKEN_TTL", s.TokenTTL, time.Second, year),
		TokenMaxTTL:      p.duration("EMBED_TOKEN_MAX_TTL", s.TokenMaxTTL, time.Second, year),
		TokenRate:        p.rate("EMBED_TOKEN_RATE", s.TokenRate),
		TokenBurst:       p.integer("EMBED_TOKEN_BURST", s.TokenBurst, 0, 1e6),
		CreateMissing:    p.boolean("EMBED_TOKEN_CREATE", s.TokenCreate),
		TokenAudit:       p.integer("EMBED_TOKEN_AUDIT", s.TokenAudit, 0, 1e6),
		UsageConcurrency: p.integer("USAGE_SYNC_CONCURRENCY", s.UsagePages, 1, 128),
		HistoryPath:      s.HistoryPath,
	}
	c.TokenMaxTTL = c.TokenMaxTTL.Truncate(time.Second)
	c.TokenTTL = min(c.TokenTTL.Truncate(time.Second), c.TokenMaxTTL)
	c.TokenBurst = cmp.Or(c.TokenBurst, int(math.Ceil(c.TokenRate)))
	p.check(webURL(embedURL) != nil,
		"PAPERMAP_EMBED_URL: invalid address %q: use one without query and fragment", embedURL)
	p.check(s.HistoryPath == "" || s.HistoryPath[0] == '/' && strings.Contains(s.HistoryPath, "{tenant_id}"),
		"PAPERMAP_USAGE_HISTORY_PATH: invalid path %q: begin with / and include {tenant_id}", s.HistoryPath)
	if s.Schedule != "off" {
		var err error
		c.Schedule, err = worker.ParseSchedule(s.Schedule)
		p.check(err == nil, "USAGE_SYNC_SCHEDULE: %q: %v", s.Schedule, err)
	}
	c.Workspaces = s.workspaces(p)
	return c
}

// workspaces returns the default workspace, then those of the file.
func (s papermapSettings) workspaces(p *parser) []papermap.Workspace {
	allowHTTP := p.boolean("PAPERMAP_ALLOW_HTTP", s.AllowHTTP)
	first := papermap.Workspace{
		ID:     p.id("PAPERMAP_WORKSPACE_ID", s.WorkspaceID),
		APIURL: p.apiURL("PAPERMAP_API_URL", s.APIURL, allowHTTP),
		Key: papermap.KeyPair{
			ID:     p.id("PAPERMAP_API_KEY_ID", s.KeyID),
			Secret: papermap.NewSecret(p.secret("PAPERMAP_SECRET_KEY")),
		},
	}
	first.EmbedKey = p.pair("PAPERMAP_EMBED_API_KEY_ID", "PAPERMAP_EMBED_SECRET_KEY", papermap.KeyPair{
		ID:     p.id("PAPERMAP_EMBED_API_KEY_ID", s.EmbedKeyID),
		Secret: papermap.NewSecret(p.secret("PAPERMAP_EMBED_SECRET_KEY")),
	}, p.given("PAPERMAP_EMBED_SECRET_KEY"), first.Key)
	for name, given := range map[string]bool{
		"PAPERMAP_WORKSPACE_ID": first.ID != "", "PAPERMAP_API_KEY_ID": first.Key.ID != "",
		"PAPERMAP_SECRET_KEY": p.given("PAPERMAP_SECRET_KEY"),
	} {
		p.check(given, "%s is required: Papermap shows it in the workspace's settings", name)
	}
	more := workspacesFile(p, s.WorkspacesFile, first.APIURL, allowHTTP)
	all := append([]papermap.Workspace{first}, more...)
	seen := map[string]bool{}
	for _, ws := range all {
		p.check(!seen[ws.ID], "PAPERMAP_WORKSPACES_FILE: workspace %q is configured twice", ws.ID)
		seen[ws.ID] = true
	}
	return all
}

// workspaceRow is an entry of PAPERMAP_WORKSPACES_FILE.
type workspaceRow struct {
	ID              string `json:"workspace_id"`
	APIURL          string `json:"api_url"`
	KeyID           string `json:"api_key_id"`
	SecretFile      string `json:"secret_key_file"`
	EmbedKeyID      string `json:"embed_api_key_id"`
	EmbedSecretFile string `json:"embed_secret_key_file"`
	EmbedURL        string `json:"embed_url"`
}

// workspacesFile reads PAPERMAP_WORKSPACES_FILE, if path is not empty.
func workspacesFile(p *parser, path, defaultURL string, allowHTTP bool) (all []papermap.Workspace) {
	if path == "" {
		return nil
	}
	var rows []workspaceRow
	data, err := readText(path)
	if err == nil {
		err = json.Unmarshal(data, &rows, json.RejectUnknownMembers(true))
	}
	p.check(err == nil, "PAPERMAP_WORKSPACES_FILE: %v", jsonProblem(err))
	if err != nil {
		return nil
	}
	for i, row := range rows {
		name := fmt.Sprintf("PAPERMAP_WORKSPACES_FILE, entry %d", i+1)
		if row.ID == "" || row.KeyID == "" || row.SecretFile == "" {
			p.check(false, "%s: workspace_id, api_key_id and secret_key_file are required", name)
			continue
		}
		ws := row.workspace(p, name, filepath.Dir(path), allowHTTP)
		ws.APIURL = cmp.Or(ws.APIURL, defaultURL)
		all = append(all, ws)
	}
	return all
}

// jsonProblem returns what is wrong with JSON without the names of our types.
func jsonProblem(err error) error {
	if e, ok := errors.AsType[*json.SemanticError](err); ok {
		place := e.JSONPointer
		switch {
		case errors.Is(e.Err, json.ErrUnknownName):
			return fmt.Errorf("unknown object member name %q at %q", place.LastToken(), place.Parent())
		case e.Err != nil:
			return fmt.Errorf("at %q: %w", place, e.Err)
		}
		kinds := map[jsontext.Kind]string{'{': "object", '[': "list", '"': "string", '0': "number"}
		return fmt.Errorf("unexpected %s at %q", cmp.Or(kinds[e.JSONKind], "value"), place)
	}
	return err
}

// workspace checks an entry, which name names in messages. Paths in it are relative to dir.
func (row workspaceRow) workspace(p *parser, name, dir string, allowHTTP bool) papermap.Workspace {
	key := func(prefix, id, file string) papermap.KeyPair {
		key := papermap.KeyPair{ID: p.id(name+", "+prefix+"api_key_id", id)}
		if file != "" {
			if !filepath.IsAbs(file) {
				file = filepath.Join(dir, file)
			}
			key.Secret = papermap.NewSecret(p.secretFile(name+", "+prefix+"secret_key_file", file))
		}
		return key
	}
	ws := papermap.Workspace{
		ID: p.id(name+", workspace_id", row.ID), Key: key("", row.KeyID, row.SecretFile),
		EmbedURL: row.EmbedURL,
	}
	p.check(row.EmbedURL == "" || webURL(row.EmbedURL) != nil,
		"%s, embed_url: invalid address %q: use one without query and fragment", name, row.EmbedURL)
	if row.APIURL != "" {
		ws.APIURL = p.apiURL(name+", api_url", row.APIURL, allowHTTP)
	}
	ws.EmbedKey = p.pair(name+", embed_api_key_id", "embed_secret_key_file",
		key("embed_", row.EmbedKeyID, row.EmbedSecretFile), row.EmbedSecretFile != "", ws.Key)
	return ws
}

// parse sets the part of the worker's configuration that is about work. Callers must not make the
// worker publish to subjects of its own (prefix) or to the JetStream API, so those are no reply
// prefixes.
func (s workSettings) parse(p *parser, prefix string, c *worker.Config) {
	c.Concurrency = p.integer("WORKER_CONCURRENCY", s.Concurrency, 1, 4096)
	c.MaxAttempts = p.integer("MAX_ATTEMPTS", s.MaxAttempts, 1, 1000)
	c.Grace = p.duration("SHUTDOWN_GRACE", s.Grace, 0, time.Hour)
	c.AuditKept = p.duration("AUDIT_RETENTION", s.AuditKept, time.Hour, 100*365*24*time.Hour)
	c.ReplyPrefixes = splitList(s.ReplyPrefixes)
	for _, replies := range c.ReplyPrefixes {
		a, b := strings.TrimSuffix(replies, ".")+".", prefix+"."
		p.check(!strings.HasPrefix(replies, "$") && !strings.ContainsAny(replies, "*>"),
			"NATS_REPLY_PREFIXES: %q would let callers publish to more than inboxes", replies)
		p.check(!strings.HasPrefix(a, b) && !strings.HasPrefix(b, a),
			"NATS_REPLY_PREFIXES: %q would let callers make the worker publish to its own subjects", replies)
	}
}

// http returns what is served over HTTP, and where.
func (s workSettings) http(p *parser) ops.Config {
	c := ops.Config{
		Addr: p.hostPort("HTTP_ADDR", s.HTTPAddr), MetricsAddr: p.hostPort("METRICS_ADDR", s.MetricsAddr),
		JWT: ops.JWT{
			Secret: p.secret("HTTP_JWT_SECRET"), JWKS: s.JWKS, Issuer: s.JWTIssuer, Audience: s.JWTAudience,
		},
		Console: console.Config{Token: p.consoleToken(p.secret("CONSOLE_TOKEN")), UsersFile: s.UsersFile},
		Origins: splitList(s.CORSOrigins), Proxies: p.prefixes("TRUSTED_PROXIES", s.Proxies),
		TLS: p.certificate("HTTP_TLS_CERT", s.HTTPCert, "HTTP_TLS_KEY", s.HTTPKey),
	}
	if s.UsersFile != "" {
		_, err := console.ReadUsers(s.UsersFile)
		p.check(err == nil, "CONSOLE_USERS_FILE: %v", err)
	}
	if c.Addr == "off" {
		c.Addr = ""
	}
	p.check(c.MetricsAddr != "off", "METRICS_ADDR: leave it unset, or set HTTP_ADDR to off")
	p.check(c.JWT.Secret == "" || c.JWT.JWKS == "",
		"HTTP_JWT_SECRET and HTTP_JWT_JWKS are both set: unset one")
	p.check(!strings.Contains(c.JWT.JWKS, "://") || strings.HasPrefix(c.JWT.JWKS, "https://"),
		"HTTP_JWT_JWKS: invalid address: use a path or an https address")
	p.check(c.JWT.JWKS == "" || c.JWT.Audience != "", "HTTP_JWT_AUDIENCE is required with HTTP_JWT_JWKS: "+
		"a token that the same keys signed for another service would be accepted")
	for _, origin := range c.Origins {
		u := webURL(origin)
		p.check(u != nil && u.Path == "",
			"HTTP_CORS_ORIGINS: invalid origin %q: use one like https://app.example.com", origin)
	}
	return c
}

// healthAddr returns where health is served; empty for nowhere.
func (s httpSettings) healthAddr() string {
	addr := cmp.Or(s.MetricsAddr, s.HTTPAddr)
	if addr == "off" {
		return ""
	}
	return addr
}

// parse returns how to connect to NATS.
func (s natsSettings) parse(p *parser) events.Options {
	o := events.Options{
		URL:         cmp.Or(p.secret("NATS_URL"), "nats://127.0.0.1:4222"),
		Credentials: p.readable("NATS_CREDS", s.Credentials), NKey: p.readable("NATS_NKEY_FILE", s.NKeyFile),
		User: s.User, Password: p.secret("NATS_PASSWORD"), TLSCA: p.readable("NATS_TLS_CA", s.TLSCA),
		TLSCert: p.readable("NATS_TLS_CERT", s.TLSCert), TLSKey: p.readable("NATS_TLS_KEY", s.TLSKey),
		InboxPrefix:   strings.TrimSuffix(s.InboxPrefix, "."),
		Subjects:      events.Subjects{Prefix: s.Prefix},
		Stream:        s.Stream,
		ManageStreams: p.boolean("NATS_MANAGE_STREAMS", s.ManageStreams),
		Replicas:      p.integer("NATS_STREAM_REPLICAS", s.Replicas, 1, 5),
		MaxAge:        p.duration("NATS_STREAM_MAX_AGE", s.MaxAge, time.Minute, 100*365*24*time.Hour),
		MaxBytes:      int64(p.integer("NATS_STREAM_MAX_BYTES", s.MaxBytes, 0, math.MaxInt)),
		Domain:        s.Domain,
		Name:          "papermap-worker",
	}
	for server := range strings.SplitSeq(o.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		p.check(err == nil && u.Host != "",
			"NATS_URL: invalid address: use one like nats://host:4222, or several separated by commas")
	}
	err := o.Subjects.Validate()
	p.check(err == nil, "SUBJECT_PREFIX: %v", err)
	p.check(s.Stream != "" && !strings.ContainsAny(s.Stream, " .*>/\\\t\r\n"),
		"NATS_STREAM: invalid name %q", s.Stream)
	p.check(!strings.ContainsAny(s.Domain, " .*>/\\\t\r\n"), "NATS_JS_DOMAIN: invalid name %q", s.Domain)
	p.check((s.TLSCert == "") == (s.TLSKey == ""),
		"NATS_TLS_CERT and NATS_TLS_KEY go together: set both or neither")
	p.check(s.User != "" || o.Password == "", "NATS_PASSWORD is set without NATS_USER")
	return o
}

// parse sets the part of serve's configuration that is about the database.
func (s databaseSettings) parse(p *parser, c *serveConfig) {
	c.database = p.databaseURL()
	c.migrate = p.boolean("DATABASE_MIGRATE", s.Migrate)
	c.maxConns = p.integer("DATABASE_MAX_CONNS", s.MaxConns, repo.MinConns, 1000)
}

// databaseURL returns DATABASE_URL.
func (p *parser) databaseURL() string {
	address := cmp.Or(p.secret("DATABASE_URL"), "sqlite:papermap.db")
	err := repo.CheckAddress(address)
	p.check(err == nil, "DATABASE_URL: %v", err)
	return address
}
