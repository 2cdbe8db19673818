package main

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/term"

	"papermap-worker/events"
	"papermap-worker/papermap"
	"papermap-worker/repo"
	"papermap-worker/worker"
	"papermap-worker/worker/ops"
	"papermap-worker/worker/ops/console"
)

// Settings are texts here and are judged together by their parse methods, so that one message names everything that
// is wrong. Secrets are no fields of kong's: they have no flag and never show in help.

type papermapSettings struct {
	APIURL         string `name:"papermap-api-url" env:"PAPERMAP_API_URL" default:"https://prod.dataapi.papermap.ai" help:"Address of Papermap's API."`
	WorkspaceID    string `name:"papermap-workspace-id" env:"PAPERMAP_WORKSPACE_ID" help:"The default workspace. Required."`
	KeyID          string `name:"papermap-api-key-id" env:"PAPERMAP_API_KEY_ID" help:"Id of the API key. Required, with PAPERMAP_SECRET_KEY in the environment."`
	EmbedKeyID     string `name:"papermap-embed-api-key-id" env:"PAPERMAP_EMBED_API_KEY_ID" help:"Id of the key that signs embed tokens, with PAPERMAP_EMBED_SECRET_KEY; by default the API key does."`
	WorkspacesFile string `name:"papermap-workspaces-file" env:"PAPERMAP_WORKSPACES_FILE" help:"JSON file with more workspaces."`
	EmbedURL       string `name:"papermap-embed-url" env:"PAPERMAP_EMBED_URL" default:"https://papermap.ai/embedded/dashboard" help:"Address of Papermap's page for iframes."`
	Timeout        string `name:"papermap-timeout" env:"PAPERMAP_TIMEOUT" default:"10s" help:"Longest time of one API request."`
	MaxRPS         string `name:"papermap-max-rps" env:"PAPERMAP_MAX_RPS" default:"0" help:"Most API requests per second of this process; 0 for no limit."`
	OnAmbiguous    string `name:"papermap-on-ambiguous" env:"PAPERMAP_ON_AMBIGUOUS" default:"recreate" help:"What to do when a create's outcome is unknown: recreate or hold."`
	AllowHTTP      string `name:"papermap-allow-http" env:"PAPERMAP_ALLOW_HTTP" default:"false" help:"Allow http to hosts other than loopback, for tests."`
	UsageSchedule  string `name:"usage-sync-schedule" env:"USAGE_SYNC_SCHEDULE" default:"@hourly" help:"When usage is synced, in UTC: five-field cron, @hourly, @every 15m, or off."`
	UsageAtOnce    string `name:"usage-sync-concurrency" env:"USAGE_SYNC_CONCURRENCY" default:"8" help:"Pages of usage asked for at once."`
	HistoryPath    string `name:"papermap-usage-history-path" env:"PAPERMAP_USAGE_HISTORY_PATH" help:"Path of one tenant's usage, with {workspace_id} and {tenant_id}; Papermap does not document it."`
	TokenTTL       string `name:"embed-token-ttl" env:"EMBED_TOKEN_TTL" default:"1h" help:"Life of an embed token."`
	TokenRate      string `name:"embed-token-rate" env:"EMBED_TOKEN_RATE" default:"0" help:"Most embed tokens per second and tenant; 0 for no limit."`
	TokenBurst     string `name:"embed-token-burst" env:"EMBED_TOKEN_BURST" default:"0" help:"Most of them at once; 0 for a second's worth."`
	TokenAudit     string `name:"embed-token-audit" env:"EMBED_TOKEN_AUDIT" default:"100" help:"Most log lines per second that tell of minted tokens; 0 for none."`
	TokenMaxTTL    string `name:"embed-token-max-ttl" env:"EMBED_TOKEN_MAX_TTL" default:"1h" help:"Longest life that a request may ask for."`
}

type workSettings struct {
	Concurrency   string `name:"worker-concurrency" env:"WORKER_CONCURRENCY" default:"64" help:"Events in hand at once."`
	MaxAttempts   string `name:"max-attempts" env:"MAX_ATTEMPTS" default:"10" help:"Failures of one event before it is a dead letter."`
	Grace         string `name:"shutdown-grace" env:"SHUTDOWN_GRACE" default:"25s" help:"Time for what is in hand when the worker is asked to stop."`
	ReplyPrefixes string `name:"nats-reply-prefixes" env:"NATS_REPLY_PREFIXES" help:"More reply subjects that may be answered, comma-separated prefixes beside _INBOX and _R_."`
	HTTPAddr      string `name:"http-addr" env:"HTTP_ADDR" default:"127.0.0.1:8080" help:"Where console, health, metrics and REST are served, or off."`
	MetricsAddr   string `name:"metrics-addr" env:"METRICS_ADDR" help:"Serve health and metrics here instead."`
	JWKS          string `name:"http-jwt-jwks" env:"HTTP_JWT_JWKS" help:"Path or https address of the keys that REST callers' tokens are signed with; or HTTP_JWT_SECRET in the environment. REST is off without."`
	JWTIssuer     string `name:"http-jwt-issuer" env:"HTTP_JWT_ISSUER" help:"Issuer that those tokens must have."`
	JWTAudience   string `name:"http-jwt-audience" env:"HTTP_JWT_AUDIENCE" help:"Audience that those tokens must have."`
	CORSOrigins   string `name:"http-cors-origins" env:"HTTP_CORS_ORIGINS" help:"Origins whose pages may call REST, comma-separated."`
}

type natsSettings struct {
	Credentials   string `name:"nats-creds" env:"NATS_CREDS" help:"Path of a credentials file. The servers are in NATS_URL (default nats://127.0.0.1:4222)."`
	NKeyFile      string `name:"nats-nkey-file" env:"NATS_NKEY_FILE" help:"Path of an nkey seed."`
	User          string `name:"nats-user" env:"NATS_USER" help:"User name, with NATS_PASSWORD in the environment."`
	TLSCA         string `name:"nats-tls-ca" env:"NATS_TLS_CA" help:"Path of the CA certificates that the server's is checked against."`
	TLSCert       string `name:"nats-tls-cert" env:"NATS_TLS_CERT" help:"Path of the client's certificate."`
	TLSKey        string `name:"nats-tls-key" env:"NATS_TLS_KEY" help:"Path of the client's key."`
	InboxPrefix   string `name:"nats-inbox-prefix" env:"NATS_INBOX_PREFIX" help:"Prefix of our own inboxes."`
	Stream        string `name:"nats-stream" env:"NATS_STREAM" default:"PAPERMAP" help:"Stream of the events; dead letters are in the one with _DEAD behind it."`
	ManageStreams string `name:"nats-manage-streams" env:"NATS_MANAGE_STREAMS" default:"true" help:"Create the streams when they are missing."`
	Replicas      string `name:"nats-stream-replicas" env:"NATS_STREAM_REPLICAS" default:"1" help:"Replicas of streams that are created."`
	MaxAge        string `name:"nats-stream-max-age" env:"NATS_STREAM_MAX_AGE" default:"720h" help:"How long a created stream keeps events; dead letters have no limit."`
	Prefix        string `name:"subject-prefix" env:"SUBJECT_PREFIX" default:"papermap" help:"First part of every subject."`
}

type databaseSettings struct {
	Migrate string `name:"database-migrate" env:"DATABASE_MIGRATE" default:"true" help:"Migrate the database at start. It is named by DATABASE_URL (default sqlite:papermap.db)."`
}

type logSettings struct {
	LogLevel  string `name:"log-level" env:"LOG_LEVEL" default:"info" help:"debug, info, warn or error."`
	LogFormat string `name:"log-format" env:"LOG_FORMAT" default:"auto" help:"text, json, or auto: text on a terminal, else json."`
}

// problems collects everything that is wrong with the settings.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

// err is one message that names every problem, or nil.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &usageError{"the configuration is wrong:\n  - " + strings.Join(slices.Sorted(slices.Values(p)), "\n  - ")}
}

// secret reads NAME, or the file that NAME_FILE names. The value is in no message.
func (p *problems) secret(name string) string {
	value, file := os.Getenv(name), os.Getenv(name+"_FILE")
	if file == "" {
		return value
	}
	if value != "" {
		p.add("%s and %s_FILE are both set: unset one", name, name)
		return ""
	}
	return p.secretFile(name+"_FILE", file)
}

func (p *problems) secretFile(name, path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		p.add("%s: %v", name, err)
		return ""
	}
	text := strings.TrimRight(string(data), "\r\n")
	if text == "" {
		p.add("%s: %s is empty", name, path)
	}
	return text
}

func (p *problems) duration(name, text string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		p.add("%s: %q is no time from %v to %v, such as 30s or 5m", name, text, least, most)
	}
	return d
}

func (p *problems) integer(name, text string, least, most int) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		p.add("%s: %q is no whole number from %d to %d", name, text, least, most)
	}
	return n
}

func (p *problems) boolean(name, text string) bool {
	b, err := strconv.ParseBool(text)
	if err != nil {
		p.add("%s: %q is neither true nor false", name, text)
	}
	return b
}

func (s papermapSettings) parse(p *problems) worker.Config {
	c := worker.Config{
		EmbedURL:    s.EmbedURL,
		Timeout:     p.duration("PAPERMAP_TIMEOUT", s.Timeout, 100*time.Millisecond, worker.MaxTimeout),
		TokenTTL:    p.duration("EMBED_TOKEN_TTL", s.TokenTTL, time.Second, 365*24*time.Hour).Truncate(time.Second),
		TokenMaxTTL: p.duration("EMBED_TOKEN_MAX_TTL", s.TokenMaxTTL, time.Second, 365*24*time.Hour).Truncate(time.Second),
	}
	c.TokenTTL = min(c.TokenTTL, c.TokenMaxTTL)
	var err error
	if c.TokenRate, err = strconv.ParseFloat(s.TokenRate, 64); err != nil || !(c.TokenRate >= 0 && c.TokenRate <= 1e6) {
		p.add("EMBED_TOKEN_RATE: %q is no number from 0 to 1000000", s.TokenRate)
	}
	if c.TokenBurst = p.integer("EMBED_TOKEN_BURST", s.TokenBurst, 0, 1e6); c.TokenBurst == 0 {
		c.TokenBurst = int(math.Ceil(c.TokenRate))
	}
	c.TokenAudit = p.integer("EMBED_TOKEN_AUDIT", s.TokenAudit, 0, 1e6)
	c.UsageConcurrency = p.integer("USAGE_SYNC_CONCURRENCY", s.UsageAtOnce, 1, 128)
	if c.HistoryPath = s.HistoryPath; c.HistoryPath != "" && (!strings.HasPrefix(c.HistoryPath, "/") || !strings.Contains(c.HistoryPath, "{tenant_id}")) {
		p.add("PAPERMAP_USAGE_HISTORY_PATH: %q does not begin with / or has no {tenant_id}", s.HistoryPath)
	}
	if s.UsageSchedule != "off" {
		schedule, err := worker.ParseSchedule(s.UsageSchedule)
		if err != nil {
			p.add("USAGE_SYNC_SCHEDULE: %q: %v", s.UsageSchedule, err)
		}
		c.Schedule = schedule
	}
	if u, err := url.Parse(s.EmbedURL); err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" {
		p.add("PAPERMAP_EMBED_URL: %q is no web address without a query and a fragment", s.EmbedURL)
	}
	if c.MaxRPS, err = strconv.ParseFloat(s.MaxRPS, 64); err != nil || !(c.MaxRPS >= 0 && c.MaxRPS <= 1e6) {
		p.add("PAPERMAP_MAX_RPS: %q is no number from 0 to 1000000", s.MaxRPS)
	}
	switch s.OnAmbiguous {
	case "recreate", "hold":
		c.Hold = s.OnAmbiguous == "hold"
	default:
		p.add("PAPERMAP_ON_AMBIGUOUS: %q is neither recreate nor hold", s.OnAmbiguous)
	}
	allowHTTP := p.boolean("PAPERMAP_ALLOW_HTTP", s.AllowHTTP)

	first := papermap.Workspace{
		ID:     s.WorkspaceID,
		APIURL: p.apiURL("PAPERMAP_API_URL", s.APIURL, allowHTTP),
		Key:    papermap.KeyPair{ID: s.KeyID, Secret: papermap.NewSecret(p.secret("PAPERMAP_SECRET_KEY"))},
	}
	embedGiven := os.Getenv("PAPERMAP_EMBED_SECRET_KEY") != "" || os.Getenv("PAPERMAP_EMBED_SECRET_KEY_FILE") != ""
	embedKey := papermap.KeyPair{ID: s.EmbedKeyID, Secret: papermap.NewSecret(p.secret("PAPERMAP_EMBED_SECRET_KEY"))}
	first.EmbedKey = p.pair("PAPERMAP_EMBED_API_KEY_ID", "PAPERMAP_EMBED_SECRET_KEY", embedKey, embedGiven, first.Key)
	for name, missing := range map[string]bool{
		"PAPERMAP_WORKSPACE_ID": first.ID == "", "PAPERMAP_API_KEY_ID": first.Key.ID == "",
		"PAPERMAP_SECRET_KEY": first.Key.Secret.Reveal() == "" && os.Getenv("PAPERMAP_SECRET_KEY_FILE") == "",
	} {
		if missing {
			p.add("%s is required: Papermap shows it in the workspace's settings", name)
		}
	}
	p.ids(map[string]string{
		"PAPERMAP_WORKSPACE_ID": first.ID, "PAPERMAP_API_KEY_ID": first.Key.ID, "PAPERMAP_EMBED_API_KEY_ID": s.EmbedKeyID,
	})
	c.Workspaces = append([]papermap.Workspace{first}, p.workspaces(s.WorkspacesFile, first.APIURL, allowHTTP)...)
	seen := map[string]bool{}
	for _, ws := range c.Workspaces {
		if seen[ws.ID] {
			p.add("PAPERMAP_WORKSPACES_FILE: workspace %q is configured twice", ws.ID)
		}
		seen[ws.ID] = true
	}
	return c
}

// ids checks ids, by the names of their settings: each becomes a header.
func (p *problems) ids(list map[string]string) {
	for name, id := range list {
		if strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			p.add("%s has white space or control characters in it", name)
		}
	}
}

// apiURL checks an address of the API and strips its trailing slash.
func (p *problems) apiURL(name, text string, allowHTTP bool) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		p.add("%s: not an address like https://prod.dataapi.papermap.ai", name)
	case u.Scheme == "http" && !allowHTTP && !loopback(u.Hostname()):
		p.add("%s: use https (http is for loopback hosts, or tests with PAPERMAP_ALLOW_HTTP=true)", name)
	}
	return strings.TrimRight(text, "/")
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// pair is a key pair of which both halves are given, or neither: then it is other. A secret is given also when it
// could not be read, which is a problem of its own.
func (p *problems) pair(idName, secretName string, key papermap.KeyPair, secretGiven bool, other papermap.KeyPair) papermap.KeyPair {
	if key.ID == "" && !secretGiven {
		return other
	}
	if key.ID == "" || !secretGiven {
		p.add("%s and %s go together: set both or neither", idName, secretName)
	}
	return key
}

// workspaces reads PAPERMAP_WORKSPACES_FILE. Paths in it are relative to its folder.
func (p *problems) workspaces(path, defaultURL string, allowHTTP bool) []papermap.Workspace {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		p.add("PAPERMAP_WORKSPACES_FILE: %v", err)
		return nil
	}
	var rows []struct {
		ID              string `json:"workspace_id"`
		APIURL          string `json:"api_url"`
		KeyID           string `json:"api_key_id"`
		SecretFile      string `json:"secret_key_file"`
		EmbedKeyID      string `json:"embed_api_key_id"`
		EmbedSecretFile string `json:"embed_secret_key_file"`
	}
	if err := json.Unmarshal(data, &rows, json.RejectUnknownMembers(true)); err != nil {
		p.add("PAPERMAP_WORKSPACES_FILE: %v", err)
		return nil
	}
	var list []papermap.Workspace
	for i, row := range rows {
		name := fmt.Sprintf("PAPERMAP_WORKSPACES_FILE, entry %d", i+1)
		if row.ID == "" || row.KeyID == "" || row.SecretFile == "" {
			p.add("%s: workspace_id, api_key_id and secret_key_file are required", name)
			continue
		}
		p.ids(map[string]string{name + ", workspace_id": row.ID, name + ", api_key_id": row.KeyID, name + ", embed_api_key_id": row.EmbedKeyID})
		apiURL := defaultURL
		if row.APIURL != "" {
			apiURL = p.apiURL(name+", api_url", row.APIURL, allowHTTP)
		}
		read := func(field, file string) string {
			if file != "" && !filepath.IsAbs(file) {
				file = filepath.Join(filepath.Dir(path), file)
			}
			if file == "" {
				return ""
			}
			return p.secretFile(name+", "+field, file)
		}
		ws := papermap.Workspace{
			ID: row.ID, APIURL: apiURL,
			Key: papermap.KeyPair{ID: row.KeyID, Secret: papermap.NewSecret(read("secret_key_file", row.SecretFile))},
		}
		embedKey := papermap.KeyPair{ID: row.EmbedKeyID, Secret: papermap.NewSecret(read("embed_secret_key_file", row.EmbedSecretFile))}
		ws.EmbedKey = p.pair(name+", embed_api_key_id", "embed_secret_key_file", embedKey, row.EmbedSecretFile != "", ws.Key)
		list = append(list, ws)
	}
	return list
}

func (s workSettings) parse(p *problems, c *worker.Config) {
	c.Concurrency = p.integer("WORKER_CONCURRENCY", s.Concurrency, 1, 4096)
	c.MaxAttempts = p.integer("MAX_ATTEMPTS", s.MaxAttempts, 1, 1000)
	c.Grace = p.duration("SHUTDOWN_GRACE", s.Grace, 0, time.Hour)
	for _, prefix := range strings.FieldsFunc(s.ReplyPrefixes, func(r rune) bool { return r == ',' || r == ' ' }) {
		if strings.HasPrefix(prefix, "$") || strings.ContainsAny(prefix, "*>") {
			p.add("NATS_REPLY_PREFIXES: %q would let callers publish to more than inboxes", prefix)
		}
		c.ReplyPrefixes = append(c.ReplyPrefixes, prefix)
	}
	for name, addr := range map[string]string{"HTTP_ADDR": s.HTTPAddr, "METRICS_ADDR": s.MetricsAddr} {
		if _, _, err := net.SplitHostPort(addr); err != nil && addr != "off" && addr != "" {
			p.add("%s: %q is neither host:port nor off", name, addr)
		}
	}
}

// http is what is served over HTTP, and where.
func (s workSettings) http(p *problems) ops.Config {
	c := ops.Config{Addr: s.HTTPAddr, MetricsAddr: s.MetricsAddr, JWT: ops.JWT{
		Secret: p.secret("HTTP_JWT_SECRET"), JWKS: s.JWKS, Issuer: s.JWTIssuer, Audience: s.JWTAudience,
	}, Console: console.Config{Token: p.secret("CONSOLE_TOKEN")}}
	if c.Addr == "off" {
		c.Addr = ""
	}
	if c.MetricsAddr == "off" {
		p.add("METRICS_ADDR: leave it unset, or HTTP_ADDR off")
	}
	if c.JWT.Secret != "" && c.JWT.JWKS != "" {
		p.add("HTTP_JWT_SECRET and HTTP_JWT_JWKS are both set: unset one")
	}
	if strings.Contains(c.JWT.JWKS, "://") && !strings.HasPrefix(c.JWT.JWKS, "https://") {
		p.add("HTTP_JWT_JWKS: neither a path nor an https address")
	}
	for _, origin := range strings.FieldsFunc(s.CORSOrigins, func(r rune) bool { return r == ',' || r == ' ' }) {
		if u, err := url.Parse(origin); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.Path != "" || u.RawQuery != "" {
			p.add("HTTP_CORS_ORIGINS: %q is no origin like https://app.example.com", origin)
		}
		c.Origins = append(c.Origins, origin)
	}
	return c
}

// healthAddr is where health is served; empty for nowhere.
func (s workSettings) healthAddr() string {
	addr := s.HTTPAddr
	if s.MetricsAddr != "" {
		addr = s.MetricsAddr
	}
	if addr == "off" {
		return ""
	}
	return addr
}

func (s natsSettings) parse(p *problems) events.Options {
	address := p.secret("NATS_URL")
	if address == "" {
		address = "nats://127.0.0.1:4222"
	}
	for one := range strings.SplitSeq(address, ",") {
		if u, err := url.Parse(strings.TrimSpace(one)); err != nil || u.Host == "" {
			p.add("NATS_URL: not an address like nats://host:4222, or several separated by commas")
		}
	}
	o := events.Options{
		URL: address, Credentials: s.Credentials, NKey: s.NKeyFile, User: s.User, Password: p.secret("NATS_PASSWORD"),
		TLSCA: s.TLSCA, TLSCert: s.TLSCert, TLSKey: s.TLSKey, InboxPrefix: strings.TrimSuffix(s.InboxPrefix, "."),
		Subjects:      events.Subjects{Prefix: s.Prefix},
		Stream:        s.Stream,
		ManageStreams: p.boolean("NATS_MANAGE_STREAMS", s.ManageStreams),
		Replicas:      p.integer("NATS_STREAM_REPLICAS", s.Replicas, 1, 5),
		MaxAge:        p.duration("NATS_STREAM_MAX_AGE", s.MaxAge, time.Minute, 100*365*24*time.Hour),
		Name:          "papermap-worker",
	}
	if err := o.Subjects.Validate(); err != nil {
		p.add("SUBJECT_PREFIX: %v", err)
	}
	if s.Stream == "" || strings.ContainsAny(s.Stream, " .*>/\\\t\r\n") {
		p.add("NATS_STREAM: %q is no stream name", s.Stream)
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		p.add("NATS_TLS_CERT and NATS_TLS_KEY go together: set both or neither")
	}
	if s.User == "" && o.Password != "" {
		p.add("NATS_PASSWORD is set without NATS_USER")
	}
	for name, path := range map[string]string{
		"NATS_CREDS": s.Credentials, "NATS_NKEY_FILE": s.NKeyFile, "NATS_TLS_CA": s.TLSCA, "NATS_TLS_CERT": s.TLSCert, "NATS_TLS_KEY": s.TLSKey,
	} {
		if _, err := os.Stat(path); path != "" && err != nil {
			p.add("%s: %v", name, err)
		}
	}
	return o
}

// databaseURL reads and checks DATABASE_URL.
func (p *problems) databaseURL() string {
	address := p.secret("DATABASE_URL")
	if address == "" {
		address = "sqlite:papermap.db"
	}
	if err := repo.CheckAddress(address); err != nil {
		p.add("DATABASE_URL: %v", err)
	}
	return address
}

func (s logSettings) logger(p *problems, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.LogLevel)); err != nil {
		p.add("LOG_LEVEL: %q is none of debug, info, warn, error", s.LogLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewJSONHandler(w, options)
	switch s.LogFormat {
	case "json":
	case "text":
		handler = slog.NewTextHandler(w, options)
	case "auto":
		if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			handler = slog.NewTextHandler(w, options)
		}
	default:
		p.add("LOG_FORMAT: %q is none of auto, text, json", s.LogFormat)
	}
	return slog.New(handler)
}
