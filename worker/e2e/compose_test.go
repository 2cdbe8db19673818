package e2e

import (
	"cmp"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"gopkg.in/yaml.v3"
)

func loadCompose(t *testing.T, environment map[string]string) *types.Project {
	t.Helper()
	const name = "docker-compose.yml"
	details := types.ConfigDetails{
		WorkingDir: ".", Environment: environment,
		ConfigFiles: []types.ConfigFile{{Filename: name, Content: []byte(readFile(t, name))}},
	}
	project, err := loader.LoadWithContext(t.Context(), details)
	if err != nil {
		t.Fatalf("docker-compose.yml: %v", err)
	}
	return project
}

func TestComposeWorkerStartsAfterItsDependencies(t *testing.T) {
	t.Parallel()
	project := loadCompose(t, nil)
	worker, err := project.GetService("worker")
	must(t, err)
	for _, name := range []string{"nats", "postgres", "simulator"} {
		service, err := project.GetService(name)
		must(t, err)
		if service.HealthCheck == nil || len(service.HealthCheck.Test) < 2 {
			t.Errorf("%s has no health check", name)
		}
		if d := worker.DependsOn[name]; d.Condition != types.ServiceConditionHealthy {
			t.Errorf("worker waits for %s until %q, not until it is healthy", name, d.Condition)
		}
	}
	if got := strings.Join(worker.HealthCheck.Test, " "); got != "CMD /papermap-worker health" {
		t.Errorf("the worker's health check is %q: its image has no shell", got)
	}
}

// composeSecrets are the files that the service secrets makes, and the compose file's text that does so.
// Owners need root, as in the container.
func composeSecrets(t *testing.T) (folder string, generate func()) {
	t.Helper()
	service, err := loadCompose(t, nil).GetService("secrets")
	must(t, err)
	folder = t.TempDir()
	script := strings.NewReplacer("/secrets/", folder+"/", "/secrets\n", folder+"\n",
		"/var/lib/nats", t.TempDir()).Replace(service.Command[0])
	if os.Getuid() != 0 {
		script = "chown() { :; }\n" + script
	}
	generate = func() {
		t.Helper()
		out, err := exec.Command(service.Entrypoint[0], service.Entrypoint[1], script).CombinedOutput()
		if err != nil {
			t.Fatalf("generating the secrets: %v\n%s", err, out)
		}
	}
	generate()
	return folder, generate
}

func TestComposeSecretsAreGeneratedOnce(t *testing.T) {
	t.Parallel()
	folder, generate := composeSecrets(t)
	// content returns the secrets, and fails for one that others than its service could read.
	content := func() map[string]string {
		t.Helper()
		files, err := os.ReadDir(folder)
		must(t, err)
		secrets := map[string]string{}
		for _, f := range files {
			info, err := f.Info()
			must(t, err)
			if info.Mode() != 0o400 {
				t.Errorf("%s has mode %v", f.Name(), info.Mode())
			}
			text, err := os.ReadFile(filepath.Join(folder, f.Name()))
			must(t, err)
			secrets[f.Name()] = string(text)
		}
		return secrets
	}
	first := content()
	passwords := map[string]bool{}
	for name, secret := range first {
		for _, password := range regexp.MustCompile(`[0-9a-f]{32}`).FindAllString(secret, -1) {
			passwords[password] = true
		}
		if os.Getuid() == 0 {
			info, err := os.Stat(filepath.Join(folder, name))
			must(t, err)
			owner := map[string]uint32{"worker": 65532, "database-url": 65532, "postgres": 70, "grafana": 472}[name]
			if got := info.Sys().(*syscall.Stat_t).Uid; got != cmp.Or(owner, 65533) {
				t.Errorf("%s belongs to %d", name, got)
			}
		}
	}
	if len(passwords) != 9 { // 7 of NATS, PostgreSQL's, Grafana's
		t.Errorf("%d different passwords", len(passwords))
	}
	if !strings.Contains(first["database-url"], ":"+first["postgres"]+"@") {
		t.Error("the worker has not the password of PostgreSQL")
	}
	generate()
	if again := content(); !maps.Equal(again, first) {
		t.Errorf("a second start changed secrets")
	}
	// What a start that was interrupted has left behind.
	must(t, os.Remove(filepath.Join(folder, "postgres")))
	must(t, os.WriteFile(filepath.Join(folder, "postgres.new"), []byte("half"), 0o400))
	generate()
	if s := content(); !strings.Contains(s["database-url"], ":"+s["postgres"]+"@") || len(s) != len(first) {
		t.Error("after an interrupted start the secrets do not fit together")
	}
	if other, _ := composeSecrets(t); first["worker"] == readFile(t, filepath.Join(other, "worker")) {
		t.Error("two installations have the same password")
	}
}

// An attacker within a container has nothing but what its program needs.
func TestComposeServicesAreRestricted(t *testing.T) {
	t.Parallel()
	project, err := loadCompose(t, nil).WithProfiles([]string{"observability"})
	must(t, err)
	for name, s := range project.Services {
		if !slices.Equal(s.CapDrop, []string{"ALL"}) || !s.ReadOnly || s.MemLimit == 0 || s.PidsLimit == 0 ||
			s.Privileged || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("%s is not restricted: %+v", name, s)
		}
		if len(s.CapAdd) > 0 && name != "secrets" {
			t.Errorf("%s has the capabilities %v", name, s.CapAdd)
		}
		for _, v := range s.Volumes {
			if v.Source == "secrets" && v.ReadOnly == (name == "secrets") {
				t.Errorf("%s mounts the secrets, read-only %v", name, v.ReadOnly)
			}
			if v.Source == "secrets" && name != "secrets" &&
				s.DependsOn["secrets"].Condition != types.ServiceConditionCompletedSuccessfully {
				t.Errorf("%s does not wait for its secrets", name)
			}
		}
		for variable, value := range s.Environment {
			if value != nil && *value != "" && strings.Contains(variable, "PASSWORD") &&
				!strings.HasPrefix(*value, "/secrets/") {
				t.Errorf("%s has a fixed %s", name, variable)
			}
		}
	}
}

// composeNATS runs the server of the compose file, with its configuration and its passwords.
func composeNATS(t *testing.T, secrets string) *server.Server {
	t.Helper()
	config := readFile(t, "docs/nats/server.conf")
	for _, m := range regexp.MustCompile(`export (\w+)='("\w+")';`).FindAllStringSubmatch(
		readFile(t, filepath.Join(secrets, "nats.env")), -1) {
		config = strings.ReplaceAll(config, "$"+m[1]+"\n", m[2]+"\n")
	}
	return startNATS(t, tempFile(t, "nats.conf", config), func(o *server.Options) {
		o.HTTPHost, o.HTTPPort = "127.0.0.1", server.RANDOM_PORT
	})
}

func TestComposeNATSKeepsEventsThroughPowerCut(t *testing.T) {
	t.Parallel()
	nats, err := loadCompose(t, nil).GetService("nats")
	must(t, err)
	mounted := func(kind, source, target string) bool {
		return slices.ContainsFunc(nats.Volumes, func(v types.ServiceVolumeConfig) bool {
			return v.Type == kind && strings.HasSuffix(v.Source, source) && v.Target == target
		})
	}
	const command = ". /secrets/nats.env; exec nats-server --config /etc/nats/server.conf --http_port 8222"
	if !slices.Equal(nats.Command, []string{command}) ||
		!mounted(types.VolumeTypeBind, "docs/nats/server.conf", "/etc/nats/server.conf") {
		t.Errorf("the server is started with %q, mounts are %v", nats.Command, nats.Volumes)
	}
	o, err := server.ProcessConfigFile("docs/nats/server.conf")
	must(t, err)
	if !mounted(types.VolumeTypeVolume, "nats", o.StoreDir) {
		t.Errorf("events are stored in %q, which is on no volume", o.StoreDir)
	}
	secrets, _ := composeSecrets(t)
	s := composeNATS(t, secrets)
	if v, err := s.Varz(nil); err != nil || v.JetStream.Config == nil || !v.JetStream.Config.SyncAlways {
		t.Errorf("JetStream as the server has it: %+v, %v", v.JetStream.Config, err)
	}
	check, err := url.Parse(nats.HealthCheck.Test[len(nats.HealthCheck.Test)-1])
	must(t, err)
	if check.Host != "127.0.0.1:8222" {
		t.Errorf("the health check asks %s, the server answers on port 8222", check.Host)
	}
	answer, text, err := read(http.Get("http://" + s.MonitorAddr().String() + check.RequestURI()))
	if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(text, `"ok"`) {
		t.Errorf("the health check gets %v, %s (%v)", answer, text, err)
	}
}

// The worker with the settings of the compose file, on its NATS server. Only addresses and the
// database differ.
func TestComposeWorkerGetsEventsWithItsSecrets(t *testing.T) {
	t.Parallel()
	secrets, _ := composeSecrets(t)
	s := composeNATS(t, secrets)
	worker, err := loadCompose(t, nil).GetService("worker")
	must(t, err)
	system := newSystem(t)
	env := system.env
	for name, value := range worker.Environment {
		if strings.HasPrefix(name, "NATS_") && name != "NATS_URL" {
			env = append(env, name+"="+strings.Replace(*value, "/secrets", secrets, 1))
		}
	}
	p := start(t, append(env, "NATS_URL="+s.ClientURL(), "LOG_LEVEL=info"), "serve")
	p.says(t, `"stream":"PAPERMAP_DEAD"`)
	if _, err := nats.Connect(s.ClientURL()); err == nil {
		t.Error("the server takes a client without a password")
	}
	connect := func(role string) *nats.Conn {
		nc, err := nats.Connect(s.ClientURL(), nats.CustomInboxPrefix(natsRoles[role].inbox),
			nats.UserInfo(role, readFile(t, filepath.Join(secrets, role))))
		must(t, err)
		t.Cleanup(nc.Close)
		return nc
	}
	publishStored(t, connect("publisher"), "tenant.created", `{"tenant_id":"org-123","name":"Acme"}`)
	backend := connect("backend")
	eventually(t, func() error {
		m, err := backend.Request("papermap.rpc.embed-token", []byte(`{"tenant_id":"org-123"}`), 5*time.Second)
		if err == nil && !strings.Contains(string(m.Data), `"token"`) {
			err = errors.New(string(m.Data))
		}
		return err
	})
	p.stop(t)
}

func TestComposeWorkerScales(t *testing.T) {
	t.Parallel()
	worker, err := loadCompose(t, nil).GetService("worker")
	must(t, err)
	if worker.ContainerName != "" {
		t.Error("a container name allows one worker only")
	}
	for _, port := range worker.Ports {
		if port.Published != "" && !strings.Contains(port.Published, "-") {
			t.Errorf("port %s of the host can be taken by one worker only", port.Published)
		}
		if port.HostIP != "127.0.0.1" {
			t.Errorf("port %s is open to the network", port.Published)
		}
	}
}

func TestComposeSettingsAreValid(t *testing.T) {
	t.Parallel()
	worker, err := loadCompose(t, nil).GetService("worker")
	must(t, err)
	secrets, _ := composeSecrets(t)
	settings := map[string]string{}
	for name, value := range worker.Environment {
		if name != "HTTPS_PROXY" && name != "NO_PROXY" { // every program reads those
			settings[name] = *value
		}
		if strings.HasSuffix(name, "_FILE") { // accepts takes the content
			settings[name] = readFile(t, filepath.Join(secrets, strings.TrimPrefix(*value, "/secrets/")))
		}
	}
	accepts(t, settings)
}

// instruction is one of a Dockerfile.
type instruction struct{ name, rest string }

// dockerfile reads the instructions of each stage.
func dockerfile(t *testing.T) (stages [][]instruction) {
	t.Helper()
	text := readFile(t, "Dockerfile")
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" || name[0] == '#' {
			continue
		}
		if name == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) > 0 { // ARG may stand before
			last := len(stages) - 1
			stages[last] = append(stages[last], instruction{name, strings.TrimSpace(rest)})
		}
	}
	return stages
}

func TestImageHasOnlyProgramAndCertificates(t *testing.T) {
	t.Parallel()
	stages := dockerfile(t)
	last := stages[len(stages)-1]
	rest := func(name string) (list []string) {
		for _, i := range last {
			if i.name == name {
				list = append(list, i.rest)
			}
		}
		return list
	}
	for name, want := range map[string][]string{
		"FROM":       {"scratch"}, // no shell, no package manager
		"RUN":        nil,
		"ADD":        nil,
		"ENTRYPOINT": {`["/papermap-worker"]`},
		"CMD":        {`["serve"]`},
		"SHELL":      nil,
	} {
		if got := rest(name); !slices.Equal(got, want) {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}
	// a name would need /etc/passwd
	if user := rest("USER"); len(user) != 1 ||
		!regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user[0]) {
		t.Errorf("USER %q, want numbers that are not root's", user)
	}
	copied := map[string]string{}
	for _, line := range rest("COPY") {
		flag := func(word string) bool { return strings.HasPrefix(word, "--") }
		words := slices.DeleteFunc(strings.Fields(line), flag)
		if !strings.HasPrefix(line, "--from=build ") || len(words) != 2 {
			t.Errorf("COPY %s: not one thing from the stage that builds", line)
			continue
		}
		copied[words[1]] = words[0]
	}
	const certificates = "/etc/ssl/certs/ca-certificates.crt" // where Go looks first
	if copied[certificates] != certificates || copied["/papermap-worker"] == "" {
		t.Errorf("the image has %v, and not the program and %s", copied, certificates)
	}
	if check := rest("HEALTHCHECK"); len(check) != 1 ||
		!strings.HasSuffix(check[0], ` CMD ["/papermap-worker", "health"]`) {
		t.Errorf("HEALTHCHECK %q", check)
	}
	environment := map[string]string{}
	for _, line := range rest("ENV") {
		for _, pair := range strings.Fields(line) {
			name, value, ok := strings.Cut(pair, "=")
			if !ok {
				t.Errorf("ENV %s is no NAME=value", pair)
			}
			if !slices.Contains(variables(t), name) {
				t.Errorf("the program knows no setting %s", name)
			}
			environment[name] = value
		}
	}
	if _, port, err := net.SplitHostPort(environment["HTTP_ADDR"]); err != nil ||
		!slices.Equal(rest("EXPOSE"), []string{port}) {
		t.Errorf("EXPOSE %q, and HTTP is served at %q", rest("EXPOSE"), environment["HTTP_ADDR"])
	}
}

func TestEnvExampleNamesComposeVariables(t *testing.T) {
	t.Parallel()
	example := readFile(t, ".env.example")
	compose := readFile(t, "docker-compose.yml")
	taken, given := named(`\$\{([A-Z_]+)`, compose), named(`(?m)^#?([A-Z_]+)=`, example)
	if !slices.Equal(taken, given) {
		t.Errorf("docker-compose.yml takes %v\n.env.example names %v", taken, given)
	}
}

func TestComposeObservabilityProfileIsComplete(t *testing.T) {
	t.Parallel()
	project := loadCompose(t, nil)
	for _, name := range []string{"prometheus", "grafana"} {
		if _, err := project.GetService(name); err == nil {
			t.Errorf("%s starts without the profile", name)
		}
	}
	project, err := project.WithProfiles([]string{"observability"})
	must(t, err)
	targets := map[string]map[string]string{} // where files are mounted, by service
	for _, name := range []string{"prometheus", "grafana"} {
		service, err := project.GetService(name)
		must(t, err)
		if !regexp.MustCompile(`:v?\d+\.\d+\.\d+$`).MatchString(service.Image) {
			t.Errorf("%s is of no fixed version: %s", name, service.Image)
		}
		if len(service.Ports) != 1 || service.Ports[0].HostIP != "127.0.0.1" {
			t.Errorf("%s is open to the network, or not at all: %v", name, service.Ports)
		}
		targets[name] = map[string]string{}
		for _, v := range service.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if info, err := os.Stat(v.Source); err != nil || !info.Mode().IsRegular() || !v.ReadOnly {
				t.Errorf("%s mounts %s: %v, read-only %v", name, v.Source, err, v.ReadOnly)
			}
			targets[name][v.Target] = v.Source
		}
	}

	// What is mounted is where it is looked for.
	var prometheus struct {
		Rules  []string `yaml:"rule_files"`
		Scrape []struct {
			Job string `yaml:"job_name"`
			DNS []struct {
				Names []string
				Port  int
			} `yaml:"dns_sd_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, targets["prometheus"]["/etc/prometheus/prometheus.yml"], &prometheus)
	for _, file := range prometheus.Rules {
		if targets["prometheus"][file] == "" {
			t.Errorf("Prometheus reads rules from %s, where nothing is mounted", file)
		}
	}
	worker, err := project.GetService("worker")
	must(t, err)
	scrape := prometheus.Scrape[0]
	if scrape.Job != "papermap-worker" || scrape.DNS[0].Names[0] != "worker" ||
		uint32(scrape.DNS[0].Port) != worker.Ports[0].Target {
		t.Errorf("Prometheus scrapes %+v", scrape)
	}
	var dashboards struct {
		Providers []struct{ Options struct{ Path string } }
	}
	readYAML(t, targets["grafana"]["/etc/grafana/provisioning/dashboards/papermap.yml"], &dashboards)
	home, err := project.GetService("grafana")
	must(t, err)
	path := *home.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if targets["grafana"][path] == "" || filepath.Dir(path) != dashboards.Providers[0].Options.Path {
		t.Errorf("Grafana reads dashboards from %s and begins with %s; mounted: %v",
			dashboards.Providers[0].Options.Path, path, targets["grafana"])
	}
	var sources struct{ Datasources []struct{ URL string } }
	readYAML(t, targets["grafana"]["/etc/grafana/provisioning/datasources/papermap.yml"], &sources)
	if len(sources.Datasources) != 1 || sources.Datasources[0].URL != "http://prometheus:9090" {
		t.Errorf("Grafana asks %+v", sources)
	}
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	must(t, yaml.Unmarshal([]byte(readFile(t, path)), into))
}
